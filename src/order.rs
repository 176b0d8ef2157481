//! What the backfills want of the applier, and what the applier tells them; the words between the
//! two tasks, which do not know each other.

use connectors::change::{TableBatch, TableStatus};
use connectors::error::{Code, Error, Result};
use connectors::schema::{TableName, TableSchema};
use connectors::version::Version;
use tokio::sync::oneshot;

use crate::floor::Hold;

/// What a backfill wants done in the target.
#[derive(Debug)]
pub struct Order {
    /// Which table it is about.
    pub table: TableName,
    /// What is to be done.
    pub wanted: Wanted,
    /// Gets the target's sequence when it is durable.
    pub done: oneshot::Sender<Result<u64>>,
}

/// What a backfill may want.
#[derive(Debug)]
pub enum Wanted {
    /// Write the rows of a chunk, which were read under this hold.
    Rows(TableBatch, Hold),
    /// Record the table as complete, unless in the meantime it was stopped or got columns.
    Complete {
        /// How many columns its rows have.
        columns: u32,
    },
    /// Record this state.
    Status(TableStatus),
    /// Nothing but a sequence above all that is durable by now.
    Sequence,
    /// Record a stopped table as to be copied. The log goes on passing over it until the next
    /// session, which looks at its shape afresh.
    TakeUp,
}

/// A table whose target got new columns, which rows copied earlier do not have.
#[derive(Clone, Debug)]
pub struct Widened {
    /// Which table.
    pub table: TableName,
    /// Which columns.
    pub columns: Vec<String>,
    /// Whoever reads beside the log sees the columns from this version on.
    pub since: Version,
}

/// What a backfill is told whose rows have another shape than the table by now.
#[must_use]
pub fn reshaped() -> Error {
    Error::transient(Code::SchemaChange, "the table's shape changed")
}

/// Whether it is that.
#[must_use]
pub fn is_reshaped(error: &Error) -> bool {
    error.code == Code::SchemaChange && error.is_transient()
}

/// Tables of the pipeline only ever get more columns, so their number tells the shapes apart.
#[must_use]
pub fn count_columns(schema: &TableSchema) -> u32 {
    schema.columns.len() as u32
}
