//! Finds the row that the server refused. A statement writes many rows, and its error names none;
//! this applies the batch again in a transaction that is always rolled back, halving what fails
//! until one row is left. Called by `apply.rs` after an error about data.
//!
//! Surprise: the half that succeeds stays applied while the other is tried, because two rows may
//! be refused only together.

use super::MysqlTarget;
use super::rows::poison;
use crate::change::{Batch, Key, TableBatch};
use crate::error::{Code, Error, Kind, Result};
use crate::part::{TablePart, row_at};
use crate::version::Version;

impl MysqlTarget {
    /// Names the first row that the server refuses. `Err` says what else came of the search.
    pub(super) async fn find_poison(&mut self, batch: &Batch, refusal: &Error) -> Result<Error> {
        self.writer.begin().await?;
        let found = self.search(batch).await;
        self.writer.roll_back().await;
        match found? {
            Some(error) => Ok(error),
            // Something outside the batch was in its way, and is not any more.
            None => {
                let message = format!("{}; row by row it was accepted", refusal.message);
                Err(Error::transient(Code::PoisonRow, message))
            }
        }
    }

    async fn search(&mut self, batch: &Batch) -> Result<Option<Error>> {
        self.lock_own_checkpoint().await?;
        for table in &batch.tables {
            let whole = table.deletes.len() + table.upserts.len();
            let Some(mut refusal) = self.probe(table, 0, whole, batch.floor).await? else {
                continue;
            };
            // Rows before `start` are applied; the first refused one is before `end`.
            let (mut start, mut end) = (0, whole);
            while end - start > 1 {
                let middle = start + (end - start) / 2;
                match self.probe(table, start, middle, batch.floor).await? {
                    Some(error) => (end, refusal) = (middle, error),
                    None => start = middle,
                }
            }
            // The last probe of the remaining row may have been part of a larger one.
            if let Some(error) = self.probe(table, start, end, batch.floor).await? {
                refusal = error;
            }
            return Ok(Some(describe(table, row_at(table, start), &refusal)));
        }
        Ok(None)
    }

    /// Applies some of a table's rows, deletes before upserts, and says why that was refused.
    async fn probe(
        &mut self,
        table: &TableBatch,
        start: usize,
        end: usize,
        floor: Version,
    ) -> Result<Option<Error>> {
        const DOING: &str = "look for the row that the target refused";
        let part = TablePart::of_rows(table, start, end);
        self.writer.session.execute(DOING, "SAVEPOINT probe").await?;
        match self.writer.write_part(&part, floor, true).await {
            Ok(_) => Ok(None),
            Err(error) if error.code == Code::PoisonRow && error.kind == Kind::Stop => {
                self.writer.session.execute(DOING, "ROLLBACK TO SAVEPOINT probe").await?;
                Ok(Some(error))
            }
            Err(error) => Err(error),
        }
    }
}

fn describe(table: &TableBatch, row: Option<(&Key, Version)>, refusal: &Error) -> Error {
    let name = &table.table.name;
    match row {
        Some((key, version)) => poison(name, key, version, &refusal.message),
        // Only a truncation is left, and something in the target that does not allow it.
        None => {
            let message = format!("the target refused a truncation of {name}: {}", refusal.message);
            Error::table(name, Code::PoisonRow, message)
        }
    }
}
