//! How far each backfill has come, so that a restart resumes at the chunk and not at row one.
//! Surprise: keys are row values, so `Debug` prints how many there are and not what they are.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One backfill of one table that is not finished.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Unique in the pipeline; tasks are listed in this order.
    pub id: u64,
    /// The schema of the source table.
    pub schema: String,
    /// The name of the source table.
    pub table: String,
    /// The SQL condition that limits the rows, as it was typed; `None` for all.
    pub filter: Option<String>,
    /// Only the rows with these keys: a repair. `None` for all.
    pub keys: Option<Vec<Vec<u8>>>,
    /// Whether rows that are gone from the source are removed at the end.
    pub sweep: bool,
    /// The version below which a row is gone from the source: 16 bytes, big-endian.
    pub marker: Option<[u8; 16]>,
    /// How many columns the table had when the copy began; 0 if that is yet to be seen. A table
    /// that has got more since is copied from the beginning, above a new marker.
    pub columns: u32,
    /// What the task is doing.
    pub phase: Phase,
    /// The key of the last row that is done in this phase; `None` before the first.
    pub after: Option<Vec<u8>>,
    /// The number of rows that are done.
    pub rows: u64,
    /// The target's sequence when this was saved: the rows are durable there up to it.
    pub sequence: u64,
}

/// What a backfill is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Copying rows from the source.
    Copy,
    /// Removing rows from the target that are gone from the source.
    Sweep,
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("id", &self.id)
            .field("table", &format_args!("{}.{}", self.schema, self.table))
            .field("filtered", &self.filter.is_some())
            .field("keys_count", &self.keys.as_ref().map(Vec::len))
            .field("sweep", &self.sweep)
            .field("marker", &self.marker)
            .field("columns", &self.columns)
            .field("phase", &self.phase)
            .field("after_bytes", &self.after.as_ref().map(Vec::len))
            .field("rows", &self.rows)
            .field("sequence", &self.sequence)
            .finish()
    }
}
