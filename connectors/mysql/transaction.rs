//! Turns events of the binary log into transactions. Pure; fed by `stream.rs`, read by the engine.

use std::sync::Arc;

use super::binlog::{Event, Header};
use super::bookmark::Bookmark;
use super::layout::Layout;
use crate::ZeroDates;
use crate::change::Transaction;
use crate::error::Result;
use crate::schema::{TableName, TableSchema};
use crate::version::Version;

/// What the transactions are made with.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The epoch of all versions.
    pub epoch: u32,
    /// A larger transaction is delivered in parts of about this many bytes.
    pub part_bytes: usize,
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
}

/// Builds transactions, one event after another.
#[derive(Debug)]
pub struct Builder {
    options: Options,
    reached: Bookmark,
    tables: Vec<Layout>,
    earlier: Vec<Arc<TableSchema>>,
}

impl Builder {
    /// Begins after `from`. `tables` are the replicated tables as the catalog has them now,
    /// `earlier` the shapes that they had before, the oldest first.
    #[must_use]
    pub fn new(
        from: Bookmark,
        tables: Vec<Layout>,
        earlier: &[Arc<TableSchema>],
        options: Options,
    ) -> Builder {
        Builder { options, reached: from, tables, earlier: earlier.to_vec() }
    }

    /// The end of what has been received completely; where to resume.
    #[must_use]
    pub fn reached(&self) -> &Bookmark {
        &self.reached
    }

    /// The version of the transaction that has begun and not ended.
    #[must_use]
    pub fn open_version(&self) -> Option<Version> {
        None
    }

    /// How the catalog defines a table now, after `Step::Ask`; `None` if it is gone.
    pub fn define(&mut self, table: &TableName, now: Option<Layout>) {
        let _ = (table, now);
    }

    /// Takes the next event. Heartbeats and new files give a transaction without changes, which
    /// only says how far the log has been read.
    ///
    /// # Errors
    /// `Stop`: the events do not make sense, or say that something is missing. What concerns one
    /// table is a `Change::Halt` instead.
    pub fn feed(&mut self, header: &Header, event: &Event<'_>) -> Result<Step> {
        let _ = (header, event, &self.options, &self.tables, &self.earlier);
        Ok(Step::Taken(None))
    }
}
