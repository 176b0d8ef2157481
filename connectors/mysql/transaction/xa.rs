//! XA transactions: their rows are kept until it is decided whether they count. Those that take too
//! much memory wait on disk.
//!
//! Surprise: what may have to be tried again, because the disk is full or only a part was delivered,
//! is done before anything else is done with an event; so the same event is simply fed again.

use std::io;

use super::{Builder, Step, outside};
use crate::change::{Change, Transaction};
use crate::error::{Code, Error, Result};
use crate::mysql::binlog::{Event, Xid};
use crate::mysql::ddl::Statement;
use crate::mysql::open::{Part, Prepared};
use crate::mysql::shelf::{Item, Shelf};
use crate::spool::Failure;

/// XA transactions may hold so many times the bytes of a part in memory.
const MEMORY_PARTS_MAX: usize = 4;

/// What an event is to an XA transaction.
pub(super) enum Coming<'a> {
    /// Rows of it.
    Rows,
    /// Its end, after which it waits for its decision.
    Prepared,
    /// Its end, if it needs no decision.
    Committed,
    /// One that was prepared is committed.
    Decided(&'a Xid),
    /// Nothing that matters to it.
    Other,
}

impl<'a> Coming<'a> {
    pub(super) fn of_event(event: &Event<'_>) -> Coming<'a> {
        match event {
            Event::Rows(_) => Coming::Rows,
            Event::XaPrepare { one_phase: false, .. } => Coming::Prepared,
            Event::XaPrepare { one_phase: true, .. } | Event::Xid => Coming::Committed,
            _ => Coming::Other,
        }
    }

    pub(super) fn of_statement(statement: &'a Statement) -> Coming<'a> {
        match statement {
            Statement::Commit => Coming::Committed,
            Statement::XaCommit(xid) => Coming::Decided(xid),
            _ => Coming::Other,
        }
    }
}

impl Builder {
    /// Does what must be done before an event is taken. With a step it is not taken yet.
    pub(super) fn before(&mut self, coming: &Coming<'_>) -> Result<Option<Step>> {
        match self.try_before(coming) {
            Ok(part) => Ok(part.map(Step::Part)),
            Err(failure) => {
                failure.no_room(&self.options.spool).map(|full| Some(Step::NoRoom(full)))
            }
        }
    }

    fn try_before(
        &mut self,
        coming: &Coming<'_>,
    ) -> std::result::Result<Option<Transaction>, Failure> {
        let is_xa = self.open.as_ref().is_some_and(|open| open.is_xa);
        match coming {
            Coming::Rows if is_xa => self.make_room()?,
            Coming::Prepared => {
                let open = self.open.as_mut().ok_or_else(outside)?;
                open.shelve();
                open.shelf.close()?;
            }
            Coming::Committed => return self.leave(),
            Coming::Decided(xid) => return self.deliver(xid),
            Coming::Rows | Coming::Other => {}
        }
        Ok(None)
    }

    /// Makes room in memory for rows of an XA transaction.
    fn make_room(&mut self) -> io::Result<()> {
        if let Some(open) = &mut self.open {
            open.shelve();
            open.shelf.make_room()?;
        }
        let limit = self.options.part_bytes.saturating_mul(MEMORY_PARTS_MAX);
        loop {
            let open = self.open.as_mut().map(|open| &mut open.shelf);
            let prepared = self.prepared.iter_mut().map(|prepared| &mut prepared.shelf);
            let (mut bytes, mut largest) = (0, None::<&mut Shelf>);
            for shelf in prepared.chain(open) {
                bytes += shelf.bytes();
                if largest.as_ref().is_none_or(|largest| largest.bytes() < shelf.bytes()) {
                    largest = Some(shelf);
                }
            }
            match largest {
                Some(largest) if bytes > limit => largest.spill(&self.options.spool)?,
                _ => return Ok(()),
            }
        }
    }

    /// Keeps the changes until they are decided, and the position before them.
    pub(super) fn prepare(&mut self, xid: Xid) -> Result<Option<Transaction>> {
        let mut open = self.open.take().ok_or_else(outside)?;
        self.held.get_or_insert_with(|| self.reached.clone());
        self.pass(&open.gtid)?;
        let mut shelf = std::mem::take(&mut open.shelf);
        // Halted tables are halted now, whatever becomes of the transaction.
        let halts = Part { first_ordinal: 1, changes: std::mem::take(&mut shelf.halts) };
        self.prepared.push(Prepared { xid, shelf });
        Ok(self.whole(&open, halts))
    }

    /// A prepared transaction is decided; `false` if it is not known.
    pub(super) fn decide(&mut self, xid: &Xid) -> bool {
        let Some(at) = self.place(xid) else { return false };
        self.prepared.remove(at);
        if self.prepared.is_empty() {
            self.held = None;
        }
        true
    }

    /// A prepared transaction counts, and all of it has been taken from its shelf.
    pub(super) fn xa_commit(&mut self, xid: &Xid) -> Result<Option<Transaction>> {
        match self.decide(xid) {
            true => Ok(None),
            false => Err(Error::stop(
                Code::PartialRow,
                "an XA transaction is committed that was prepared before the log was opened, so \
                 its rows are not known; see that `XA RECOVER` lists nothing, then run \
                 `driftless run --resync`",
            )),
        }
    }

    fn place(&self, xid: &Xid) -> Option<usize> {
        self.prepared.iter().position(|prepared| prepared.xid == *xid)
    }

    /// The next part of a prepared transaction that is committed, but for the last.
    fn deliver(&mut self, xid: &Xid) -> std::result::Result<Option<Transaction>, Failure> {
        let Some(open) = &self.open else { return Ok(None) };
        let Some(at) = self.place(xid).filter(|_| !self.was_delivered(open.log)) else {
            return Ok(None);
        };
        self.prepared[at].shelf.close()?;
        let mut shelf = std::mem::take(&mut self.prepared[at].shelf);
        let part = self.draw(&mut shelf, |builder, change| {
            // Its table may have been halted since.
            builder.shapes.followed(change.table()).is_some()
        });
        self.prepared[at].shelf = shelf;
        part
    }

    /// The next part of an XA transaction that is committed without being prepared, but for the
    /// last.
    fn leave(&mut self) -> std::result::Result<Option<Transaction>, Failure> {
        let Some(open) = self.open.as_mut().filter(|open| open.is_xa || open.is_leaving) else {
            return Ok(None);
        };
        if open.is_xa {
            open.shelve();
            open.shelf.close()?;
            (open.is_xa, open.is_leaving) = (false, true);
        }
        let (log, mut shelf) = (open.log, std::mem::take(&mut open.shelf));
        let part = match self.was_delivered(log) {
            true => None,
            false => self.draw(&mut shelf, |_, _| true)?,
        };
        let open = self.open.as_mut().ok_or_else(outside)?;
        if part.is_none() {
            // A table that is halted has no changes behind its halt.
            for halt in std::mem::take(&mut shelf.halts) {
                open.push(halt)?;
            }
        }
        open.shelf = shelf;
        Ok(part)
    }

    /// Takes changes from the shelf until there is more than a part; `None` at its end, where the
    /// last part is in `open`. What is left out keeps its ordinal.
    fn draw(
        &mut self,
        shelf: &mut Shelf,
        counts: impl Fn(&Builder, &Change) -> bool,
    ) -> std::result::Result<Option<Transaction>, Failure> {
        while let Some(item) = shelf.take()? {
            let (change, left_out) = match item {
                Item::Gap(count) => (None, count as usize),
                Item::Change(change) if counts(self, &change) => (Some(change), 0),
                Item::Change(_) => (None, 1),
            };
            let part = if change.is_some() { self.next_part()? } else { None };
            let open = self.open.as_mut().ok_or_else(outside)?;
            open.skip(left_out)?;
            change.map_or(Ok(()), |change| open.push(change))?;
            if part.is_some() {
                return Ok(part);
            }
        }
        Ok(None)
    }
}
