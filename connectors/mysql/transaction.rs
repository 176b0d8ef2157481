//! Turns events of the binary log into transactions. Pure, but for XA transactions that are put away
//! on disk; fed by `stream.rs`, read by the engine.
//!
//! Surprises: a version is the place of the GTID event, because row events of newer servers have
//! no place of their own. Rows of an XA transaction come when it is prepared, and only a statement
//! much later says whether they count; until then the position stays before them. And places are
//! modulo 2^32 in the log, so the builder counts.

mod changes;
mod statements;
mod xa;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use self::xa::Coming;
use super::binlog::{Event, Gtid, Header, MariadbKind};
use super::bookmark::{self, Bookmark, FIRST_OFFSET, Place};
use super::layout::Layout;
use super::open::{Open, Part, Prepared};
use super::rows::Cells;
use super::shapes::{Resolved, Shapes};
use crate::ZeroDates;
use crate::change::{Change, Timestamp, Transaction};
use crate::error::{Code, Error, Result};
use crate::schema::{TableName, TableSchema};
use crate::version::{Position, Version};

/// What the transactions are made with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The epoch of all versions.
    pub epoch: u32,
    /// A larger transaction is delivered in parts of about this many bytes.
    pub part_bytes: usize,
    /// The directory for XA transactions that take too much memory.
    pub spool: PathBuf,
    /// What becomes of dates with a zero in them.
    pub zero_dates: ZeroDates,
    /// Whether the server ignores the case of table names (`lower_case_table_names` is not 0).
    pub fold_names: bool,
}

/// What came of an event.
#[derive(Debug)]
pub enum Step {
    /// It was taken: a transaction, a part of a large one, or nothing yet.
    Taken(Option<Transaction>),
    /// It was not: find out how this table is defined now, tell `Builder::define`, and feed the
    /// same event again.
    Ask(TableName),
    /// It was not: this is a part of a transaction that ends with it. Feed the same event again.
    Part(Transaction),
    /// It was not: the disk has no room. Feed the same event again when it has.
    NoRoom(io::Error),
}

/// Builds transactions, one event after another.
#[derive(Debug)]
pub struct Builder {
    options: Options,
    shapes: Shapes,
    /// The end of the last whole transaction.
    reached: Bookmark,
    /// Where to resume while an XA transaction waits for its decision.
    held: Option<Bookmark>,
    prepared: Vec<Prepared>,
    /// Below this place of the log everything was delivered before we were opened.
    delivered: u64,
    /// Tables that were halted while reading that again.
    late_halts: Vec<Change>,
    /// The end of the last event.
    here: Place,
    /// When its file was begun, once the file has said so.
    begun: Option<u32>,
    open: Option<Open>,
    before: Cells,
    after: Cells,
}

impl Builder {
    /// Begins after `from`. `tables` are the replicated tables as the catalog has them now,
    /// `earlier` the shapes that they had before, the oldest first.
    ///
    /// # Errors
    /// `protocol`, as `Place::log`.
    pub fn new(
        from: Bookmark,
        tables: Vec<Layout>,
        earlier: &[Arc<TableSchema>],
        options: Options,
    ) -> Result<Builder> {
        Ok(Builder {
            shapes: Shapes::new(tables, earlier, options.fold_names, options.zero_dates),
            here: from.place.clone(),
            begun: None,
            delivered: from.end().log()?,
            late_halts: Vec::new(),
            reached: Bookmark { delivered: None, ..from },
            held: None,
            prepared: Vec::new(),
            open: None,
            before: Cells::default(),
            after: Cells::default(),
            options,
        })
    }

    /// The end of what has been received completely.
    #[must_use]
    pub fn reached(&self) -> &Bookmark {
        &self.reached
    }

    /// Where to resume.
    fn position(&self) -> Position {
        match &self.held {
            None => self.reached.position(),
            Some(held) => {
                let delivered = Some(self.reached.place.clone());
                Bookmark { delivered, ..held.clone() }.position()
            }
        }
    }

    /// The version of the transaction that has begun and not ended.
    #[must_use]
    pub fn open_version(&self) -> Option<Version> {
        self.open.as_ref().map(|open| Version::at_log(self.options.epoch, open.log))
    }

    /// How the catalog defines a table now, after `Step::Ask`; `None` if it is gone.
    pub fn define(&mut self, table: &TableName, now: Option<Layout>) {
        self.shapes.define(table, now);
    }

    /// Takes the next event. Heartbeats and new files give a transaction without changes, which
    /// only says how far the log has been read.
    ///
    /// # Errors
    /// `Stop`: the events do not make sense, or say that something is missing. What concerns one
    /// table is a `Change::Halt` instead. `state-disk`, if the disk fails.
    pub fn feed(&mut self, header: &Header, event: &Event<'_>) -> Result<Step> {
        match event {
            Event::TableMap { id, body } => match self.table_map(*id, body)? {
                Step::Taken(part) => self.advance(header).map(|()| Step::Taken(part)),
                not_taken => Ok(not_taken),
            },
            Event::Query(query) => self.query(header, query),
            event => match self.before(&Coming::of_event(event))? {
                Some(step) => Ok(step),
                None => self.plain(header, event).map(Step::Taken),
            },
        }
    }

    /// An event for which nobody needs to be asked.
    fn plain(&mut self, header: &Header, event: &Event<'_>) -> Result<Option<Transaction>> {
        if self.open.is_some() || matches!(event, Event::Gtid(_)) {
            self.advance(header)?;
        }
        match event {
            Event::Gtid(gtid) => self.begin(header, gtid.clone()).map(|()| None),
            Event::Rows(rows) => self.rows(rows),
            Event::Xid | Event::XaPrepare { one_phase: true, .. } => self.commit(),
            Event::XaPrepare { xid, one_phase: false } => self.prepare(xid.clone()),
            Event::Rotate { file, offset } => self.rotate(file, *offset),
            Event::Format { .. } => self.file_begins(header),
            Event::Heartbeat { file, offset } => {
                self.heartbeat(file, offset.unwrap_or(u64::from(header.end)))
            }
            Event::Payload | Event::Nothing => Ok(None),
            // `feed` has taken them.
            Event::Query(_) | Event::TableMap { .. } => Ok(None),
        }
    }

    /// Counts on to the end of an event of a transaction. What stands between transactions says
    /// nothing: at the head of a file it comes again whenever the file is opened in its middle.
    fn advance(&mut self, header: &Header) -> Result<()> {
        if !header.is_artificial() {
            self.here.offset = match header.end {
                0 => self.here.offset + u64::from(header.size),
                end => unwrapped(self.here.offset, end)?,
            };
        }
        Ok(())
    }

    fn begin(&mut self, header: &Header, gtid: Gtid) -> Result<()> {
        if self.open.is_some() {
            return Err(wrong("a transaction begins inside another"));
        }
        let log = self.here.log()?;
        if log < self.reached.place.log()? {
            return Err(wrong("a transaction comes before one that was read already"));
        }
        let by_header = Timestamp(i64::from(header.timestamp) * 1_000_000);
        let (committed_at, has_events, is_xa) = match &gtid {
            Gtid::Mysql { committed_at, .. } => (committed_at.unwrap_or(by_header), false, false),
            Gtid::Mariadb { kind, .. } => match kind {
                MariadbKind::Events => (by_header, true, false),
                MariadbKind::Prepared(_) => (by_header, true, true),
                MariadbKind::Statement | MariadbKind::Completed(_) | MariadbKind::Unfinished => {
                    (by_header, false, false)
                }
            },
        };
        let mut open = Open::new(gtid, log, committed_at, has_events);
        open.is_xa = is_xa;
        if !self.was_delivered(log) {
            std::mem::take(&mut self.late_halts)
                .into_iter()
                .try_for_each(|halt| open.push(halt))?;
        }
        self.open = Some(open);
        Ok(())
    }

    /// Whether changes of this place were delivered before we were opened.
    fn was_delivered(&self, log: u64) -> bool {
        log < self.delivered
    }

    fn commit(&mut self) -> Result<Option<Transaction>> {
        let mut open = self.open.take().ok_or_else(outside)?;
        self.pass(&open.gtid)?;
        let part = open.last_part();
        Ok(self.whole(&open, part))
    }

    /// The last part of a transaction, unless it was delivered before.
    fn whole(&mut self, open: &Open, part: Part) -> Option<Transaction> {
        if self.was_delivered(open.log) {
            let is_halt = |change: &Change| matches!(change, Change::Halt { .. });
            self.late_halts.extend(part.changes.into_iter().filter(is_halt));
            return None;
        }
        Some(self.transaction(open, part, true))
    }

    /// The transaction is behind us.
    fn pass(&mut self, gtid: &Gtid) -> Result<()> {
        match gtid {
            Gtid::Mariadb { gtid, .. } => self.reached.gtids.add_mariadb(*gtid)?,
            Gtid::Mysql { id: Some((uuid, number)), .. } => {
                self.reached.gtids.add_mysql(uuid, *number)?;
            }
            Gtid::Mysql { id: None, .. } => {}
        }
        self.reached.place = self.here.clone();
        self.reached.begun = self.begun;
        Ok(())
    }

    /// A new file, or the one that reading begins in. That may be an older one than ours, in which
    /// the server looks for the transactions that we have not read.
    fn rotate(&mut self, file: &str, offset: u64) -> Result<Option<Transaction>> {
        if file == self.here.file {
            return Ok(None);
        }
        let cut_off = self.cut_off()?;
        let ours = &self.reached.place;
        let log = bookmark::log(file, offset)?;
        let is_older = log < ours.log()? || self.was_delivered(log);
        let offset = if file == ours.file { ours.offset } else { offset };
        self.here = Place::new(file, offset.max(FIRST_OFFSET));
        self.begun = None;
        self.shapes.forget_maps();
        match (cut_off, is_older || file == ours.file) {
            (Some(transaction), _) => Ok(Some(transaction)),
            (None, true) => Ok(None),
            (None, false) => self.idle().map(Some),
        }
    }

    /// The first event of a file; also said again when reading begins in the middle of it.
    fn file_begins(&mut self, header: &Header) -> Result<Option<Transaction>> {
        let begun = (header.timestamp != 0).then_some(header.timestamp);
        if self.here.file == self.reached.place.file {
            if let (Some(ours), Some(theirs)) = (self.reached.begun, begun)
                && ours != theirs
            {
                return Err(begun_anew(&self.here.file));
            }
            self.reached.begun = self.reached.begun.or(begun);
        }
        self.begun = begun;
        self.cut_off()
    }

    /// A file ends within a transaction, because the server crashed while writing it.
    fn cut_off(&mut self) -> Result<Option<Transaction>> {
        let Some(mut open) = self.open.take() else { return Ok(None) };
        let late = open.roll_back();
        self.halt_late(&mut open, late)?;
        let part = open.last_part();
        Ok(self.whole(&open, part))
    }

    fn heartbeat(&mut self, file: &str, end: u64) -> Result<Option<Transaction>> {
        if self.open.is_some() || file != self.here.file || end == 0 {
            return Ok(None);
        }
        self.here.offset = match u32::try_from(end) {
            Ok(end) => unwrapped(self.here.offset, end)?,
            Err(_) => end.max(self.here.offset),
        };
        let log = self.here.log()?;
        if log < self.reached.place.log()? || self.was_delivered(log) {
            return Ok(None);
        }
        self.idle().map(Some)
    }

    /// Nothing but the position moved. When, nobody says; `stream.rs` has a clock.
    fn idle(&mut self) -> Result<Transaction> {
        self.reached.place = self.here.clone();
        self.reached.begun = self.begun;
        Ok(Transaction {
            version: Version::at_log(self.options.epoch, self.here.log()?),
            position: self.position(),
            committed_at: Timestamp(0),
            first_ordinal: 1,
            changes: Vec::new(),
            complete: true,
        })
    }

    fn transaction(&self, open: &Open, part: Part, complete: bool) -> Transaction {
        Transaction {
            version: Version::at_log(self.options.epoch, open.log),
            position: self.position(),
            committed_at: open.committed_at,
            first_ordinal: part.first_ordinal,
            changes: part.changes,
            complete,
        }
    }

    fn table_map(&mut self, id: u64, body: &[u8]) -> Result<Step> {
        if self.open.is_none() {
            return Err(outside());
        }
        match self.shapes.map(id, body)? {
            Resolved::Done => Ok(Step::Taken(None)),
            Resolved::Ask(table) => Ok(Step::Ask(table)),
            Resolved::Halt(table, why) => {
                let part = self.halt(&table, Code::SchemaChange, &halted(&table, &why))?;
                // The rows that follow are those of a halted table now.
                self.shapes.map(id, body)?;
                Ok(Step::Taken(part))
            }
        }
    }

    /// Stops a table; returns the part before it if it ends there.
    fn halt(&mut self, table: &TableName, code: Code, why: &str) -> Result<Option<Transaction>> {
        self.shapes.halt(table);
        let part = self.next_part()?;
        let change = Change::halt(table.clone(), code, why.to_owned());
        self.open.as_mut().ok_or_else(outside)?.push(change)?;
        Ok(part)
    }

    /// Stops tables of which changes were delivered that are taken back now.
    fn halt_late(&mut self, open: &mut Open, late: Vec<TableName>) -> Result<()> {
        for table in late {
            if self.shapes.followed(&table).is_none() {
                continue;
            }
            self.shapes.halt(&table);
            let message = format!(
                "table {table} had changes in a large transaction that was rolled back when they \
                 had been applied; run `driftless backfill --table {table}`"
            );
            open.push(Change::halt(table, Code::Protocol, message))?;
        }
        Ok(())
    }

    fn next_part(&mut self) -> Result<Option<Transaction>> {
        let open = self.open.as_mut().ok_or_else(outside)?;
        let part = open.next_part(self.options.part_bytes)?;
        let Some(part) = part else { return Ok(None) };
        let Some(open) = &self.open else { return Ok(None) };
        Ok(Some(self.transaction(open, part, false)))
    }
}

/// The file of our place is another one than it was, although it has the same name.
fn begun_anew(file: &str) -> Error {
    Error::stop(
        Code::SourceIdentity,
        format!(
            "the source's binary log {file} was begun anew since our place in it was read (RESET \
             MASTER, or a server in the place of another); to accept the gap and copy everything \
             again run `driftless run --resync`"
        ),
    )
}

/// The message for a table whose shape is not followed.
fn halted(table: &TableName, why: &str) -> String {
    format!(
        "table {table} {why}; its changes from here on are not applied; adapt the target's table \
         if need be, then run `driftless backfill --table {table}`"
    )
}

/// The place that an event ends at, of which the log has the low 32 bits, at or after `from`.
fn unwrapped(from: u64, end: u32) -> Result<u64> {
    // A little before what was counted is no file of four billion bytes more.
    const BACKWARDS: u64 = 1 << 24;
    const WRAP: u64 = 1 << 32;
    let offset = from & !(WRAP - 1) | u64::from(end);
    let offset = if offset < from { offset + WRAP } else { offset };
    match offset - from > WRAP - BACKWARDS {
        true => Err(wrong("an event ends before it begins")),
        false => Ok(offset),
    }
}

fn outside() -> Error {
    wrong("an event outside of a transaction")
}

fn wrong(what: impl std::fmt::Display) -> Error {
    Error::stop(Code::Protocol, format!("the binary log makes no sense: {what}"))
}
