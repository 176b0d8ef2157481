//! The short way for rows that the target does not have yet: copied into the table itself, without
//! a staging table and without a comparison. Used by `apply.rs`.
//!
//! Surprise: nobody knows beforehand whether the rows are new. It is tried under a savepoint, and
//! the unique key says no at the first row that is there. A table that says no is asked again
//! only after a while, which gets longer each time.

use std::pin::pin;

use futures_util::SinkExt;
use tokio_postgres::Statement;

use super::apply::is_about_data;
use super::stage::{PIECE_BYTES, encode_rank, new_piece, take};
use super::{Attempt, PostgresTarget};
use crate::change::RowUpsert;
use crate::part::TablePart;
use crate::postgres::copy;

/// For fewer rows the savepoint costs more than the staging table. All tests go this way.
const ROWS_MIN: usize = if cfg!(test) { 1 } else { 100 };
/// The longest time that a table is not asked, in batches.
const REST_MAX: u32 = 63;

/// Whether the rows of a table are worth the try.
pub struct NewRows {
    copy: Statement,
    /// So many batches go the long way before the next try.
    resting: u32,
    /// How many that were the last time.
    rest: u32,
}

impl NewRows {
    /// Worth a try at once.
    pub fn new(copy: Statement) -> NewRows {
        NewRows { copy, resting: 0, rest: 0 }
    }

    fn is_worth_a_try(&mut self, part: &TablePart<'_>) -> bool {
        let only_rows = part.truncated.is_none() && part.deletes.is_empty();
        if !only_rows || part.upserts.len() < ROWS_MIN {
            return false;
        }
        if self.resting > 0 {
            self.resting -= 1;
            return false;
        }
        part.upserts.iter().all(|upsert| !upsert.row.has_absent())
    }

    fn learn(&mut self, were_new: bool) {
        self.rest = if were_new { 0 } else { (2 * self.rest + 1).min(REST_MAX) };
        self.resting = self.rest;
    }
}

impl PostgresTarget {
    /// Copies the rows of a part into their table if all of them are new; says whether they were.
    /// Only for rows that no tombstone can outrank.
    pub(super) async fn copy_new(&mut self, place: usize, part: &TablePart<'_>) -> Attempt<bool> {
        if !self.stages[place].new_rows.is_worth_a_try(part) {
            return Ok(false);
        }
        self.client.batch_execute("SAVEPOINT new_rows").await?;
        let were_new = match self.send_new(place, part.upserts).await {
            Ok(()) => true,
            // What is wrong with a row that is not just there already shows on the long way.
            Err(error) if is_about_data(&error) => {
                self.client.batch_execute("ROLLBACK TO SAVEPOINT new_rows").await?;
                false
            }
            Err(error) => return Err(error.into()),
        };
        self.stages[place].new_rows.learn(were_new);
        Ok(were_new)
    }

    async fn send_new(
        &self,
        place: usize,
        upserts: &[RowUpsert],
    ) -> Result<(), tokio_postgres::Error> {
        let mut sink = pin!(self.client.copy_in(&self.stages[place].new_rows.copy).await?);
        let mut piece = new_piece();
        for upsert in upserts {
            encode_new(&mut piece, upsert);
            if piece.len() >= PIECE_BYTES {
                sink.feed(take(&mut piece)).await?;
            }
        }
        sink.feed(take(&mut piece)).await?;
        sink.finish().await?;
        Ok(())
    }
}

/// Appends a row as its table has it.
pub fn encode_new(out: &mut Vec<u8>, upsert: &RowUpsert) {
    for cell in upsert.row.cells() {
        copy::encode_cell(out, cell);
        out.push(copy::DELIMITER);
    }
    encode_rank(out, upsert.version, upsert.updated_at);
    out.push(copy::END);
}
