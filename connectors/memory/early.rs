//! Rows of the next batch that are compared before their turn, by the target in memory.
//!
//! A real target writes them in a transaction that stays open, and the locks on them are in the way of
//! whoever touches them meanwhile. Here nobody is kept away, but found out.

use std::sync::Arc;

use crate::Upcoming;
use crate::change::{Batch, Key, TableBatch};
use crate::error::{Code, Error, Result};
use crate::schema::TableName;
use crate::version::Version;

/// The parts with such rows.
#[derive(Clone, Debug, Default)]
pub struct EarlyRows(Vec<EarlyPart>);

/// A part, and for each of its first upserts the version of the row that it was compared with.
#[derive(Clone, Debug)]
struct EarlyPart {
    part: Arc<TableBatch>,
    seen: Vec<Option<Version>>,
}

impl EarlyRows {
    /// Compares what may be compared.
    pub fn new(
        upcoming: Vec<Upcoming>,
        version: impl Fn(&TableName, &Key) -> Option<Version>,
    ) -> EarlyRows {
        let compare = |Upcoming { part, independent }: Upcoming| {
            let rows = part.upserts[..independent].iter();
            let seen = rows.map(|row| version(&part.table.name, &row.key)).collect();
            EarlyPart { part, seen }
        };
        EarlyRows(upcoming.into_iter().map(compare).collect())
    }

    /// If it is this batch that has come: that nobody has touched its rows since.
    ///
    /// # Errors
    /// A defect of the engine.
    pub fn expect(
        &self,
        batch: &Batch,
        version: impl Fn(&TableName, &Key) -> Option<Version>,
    ) -> Result<()> {
        let is_in_batch =
            |early: &EarlyPart| batch.tables.iter().any(|part| Arc::ptr_eq(part, &early.part));
        if !self.0.iter().all(is_in_batch) {
            return Ok(());
        }
        for EarlyPart { part, seen } in &self.0 {
            let table = &part.table.name;
            for (row, seen) in part.upserts.iter().zip(seen) {
                if version(table, &row.key) != *seen {
                    let message = format!("a row of {table} was touched after it was compared");
                    return Err(Error::stop(Code::Internal, message));
                }
            }
        }
        Ok(())
    }
}
