//! The transaction that is being received: its changes, their ordinals, the parts it is delivered
//! in, and what savepoints take back. Pure; part of the builder in `transaction.rs`.
//!
//! Surprise: ordinals count the changes of halted tables too, so that a transaction that is
//! delivered again after a table was halted never gives a change a smaller version than the first
//! time. Ordinals of one part follow one by one, so such a gap begins a new part. Of an XA
//! transaction nothing is delivered before its end, so all of that is left to its shelf.

use std::collections::BTreeSet;

use super::binlog::{Gtid, Xid};
use super::shelf::Shelf;
use crate::change::{Change, Timestamp};
use crate::error::{Code, Error, Result};
use crate::schema::TableName;

/// A transaction that has begun.
#[derive(Debug)]
pub struct Open {
    /// What begins and names it.
    pub gtid: Gtid,
    /// The place that its versions are made of.
    pub log: u64,
    /// When it was committed.
    pub committed_at: Timestamp,
    /// Whether events follow until one that ends it; else one statement is all.
    pub has_events: bool,
    /// Whether it is an XA transaction, which is kept until it is decided.
    pub is_xa: bool,
    /// Whether it was one that is committed without being prepared, and is being delivered.
    pub is_leaving: bool,
    /// The changes of an XA transaction, but for those that came last.
    pub shelf: Shelf,
    first_ordinal: u32,
    changes: Vec<Change>,
    bytes: usize,
    /// Changes of halted tables since the last kept one; they use up ordinals.
    skipped: u32,
    /// Tables of which changes have been delivered.
    delivered: BTreeSet<TableName>,
    savepoints: Vec<Savepoint>,
}

#[derive(Debug)]
struct Savepoint {
    name: String,
    /// How many changes the part had, or where the shelf ended; and which part it was.
    changes: u64,
    first_ordinal: u32,
}

/// Changes that follow one by one.
#[derive(Debug)]
pub struct Part {
    /// The ordinal of the first.
    pub first_ordinal: u32,
    /// The changes.
    pub changes: Vec<Change>,
}

/// A prepared XA transaction that waits for its decision.
#[derive(Debug)]
pub struct Prepared {
    /// Which.
    pub xid: Xid,
    /// What it will change.
    pub shelf: Shelf,
}

impl Open {
    /// Begins.
    #[must_use]
    pub fn new(gtid: Gtid, log: u64, committed_at: Timestamp, has_events: bool) -> Open {
        Open {
            gtid,
            log,
            committed_at,
            has_events,
            is_xa: false,
            is_leaving: false,
            shelf: Shelf::default(),
            first_ordinal: 1,
            changes: Vec::new(),
            bytes: 0,
            skipped: 0,
            delivered: BTreeSet::new(),
            savepoints: Vec::new(),
        }
    }

    /// Makes room for the changes of an event; returns the part that ends here.
    ///
    /// # Errors
    /// If there are more changes than ordinals.
    pub fn next_part(&mut self, part_bytes: usize) -> Result<Option<Part>> {
        if self.is_xa {
            self.shelve();
            return Ok(None);
        }
        let gap = std::mem::take(&mut self.skipped);
        let is_full = self.bytes >= part_bytes;
        if !is_full && (gap == 0 || self.changes.is_empty()) {
            self.first_ordinal = self.first_ordinal.checked_add(gap).ok_or_else(too_many)?;
            return Ok(None);
        }
        let next = self.next_ordinal()?.checked_add(gap).ok_or_else(too_many)?;
        let changes = std::mem::take(&mut self.changes);
        self.delivered.extend(changes.iter().map(|change| change.table().clone()));
        self.bytes = 0;
        let first_ordinal = std::mem::replace(&mut self.first_ordinal, next);
        Ok(Some(Part { first_ordinal, changes }))
    }

    /// Appends a change.
    ///
    /// # Errors
    /// If there are more changes than ordinals.
    pub fn push(&mut self, change: Change) -> Result<()> {
        self.bytes += change.size();
        self.changes.push(change);
        self.next_ordinal().map(|_| ())
    }

    /// Leaves out changes of a halted table, but not their ordinals.
    ///
    /// # Errors
    /// If there are more changes than ordinals.
    pub fn skip(&mut self, count: usize) -> Result<()> {
        let count = u32::try_from(count).map_err(|_| too_many())?;
        self.skipped = self.skipped.checked_add(count).ok_or_else(too_many)?;
        Ok(())
    }

    /// Puts the changes that came last on the shelf.
    pub fn shelve(&mut self) {
        self.changes.drain(..).for_each(|change| self.shelf.push(change));
        // Those that are left out always come behind.
        self.shelf.skip(std::mem::take(&mut self.skipped));
        self.bytes = 0;
    }

    /// Remembers a place to go back to.
    pub fn savepoint(&mut self, name: String) {
        let first_ordinal = self.first_ordinal;
        let changes = match self.is_xa {
            true => {
                self.shelve();
                self.shelf.end()
            }
            false => self.changes.len() as u64,
        };
        self.savepoints.retain(|savepoint| !savepoint.is_named(&name));
        self.savepoints.push(Savepoint { name, changes, first_ordinal });
    }

    /// Takes back what came after a savepoint. Returns the tables for which it is too late.
    ///
    /// # Errors
    /// `protocol`, if there is no such savepoint.
    pub fn roll_back_to(&mut self, name: &str) -> Result<Vec<TableName>> {
        let at = self.savepoints.iter().rposition(|savepoint| savepoint.is_named(name));
        let Some(at) = at else {
            let what = "the binary log goes back to a savepoint that it does not have";
            return Err(Error::stop(Code::Protocol, what));
        };
        self.savepoints.truncate(at + 1);
        let Savepoint { changes, first_ordinal, .. } = self.savepoints[at];
        if first_ordinal == self.first_ordinal {
            self.keep(changes);
            return Ok(Vec::new());
        }
        self.keep(0);
        self.savepoints.truncate(0);
        Ok(std::mem::take(&mut self.delivered).into_iter().collect())
    }

    /// Takes everything back. Returns the tables for which it is too late.
    pub fn roll_back(&mut self) -> Vec<TableName> {
        self.keep(0);
        self.changes.append(&mut self.shelf.halts);
        std::mem::take(&mut self.delivered).into_iter().collect()
    }

    /// Drops changes but the first; that a table was halted stays true.
    fn keep(&mut self, count: u64) {
        if self.is_xa {
            self.shelve();
            return self.shelf.truncate(count);
        }
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let dropped = self.changes.split_off(count.min(self.changes.len()));
        let is_halt = |change: &Change| matches!(change, Change::Halt { .. });
        self.changes.extend(dropped.into_iter().filter(is_halt));
        self.bytes = self.changes.iter().map(Change::size).sum();
    }

    /// What has not been delivered.
    #[must_use]
    pub fn last_part(&mut self) -> Part {
        Part { first_ordinal: self.first_ordinal, changes: std::mem::take(&mut self.changes) }
    }

    fn next_ordinal(&self) -> Result<u32> {
        let count = u32::try_from(self.changes.len()).map_err(|_| too_many())?;
        self.first_ordinal.checked_add(count).ok_or_else(too_many)
    }
}

impl Savepoint {
    fn is_named(&self, name: &str) -> bool {
        self.name.to_lowercase() == name.to_lowercase()
    }
}

fn too_many() -> Error {
    Error::stop(Code::Protocol, "a transaction has more than four billion changes")
}
