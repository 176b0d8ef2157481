//! The short way for rows that the target does not have yet: copied into the table itself, without
//! a staging table and without a comparison. Used by `apply.rs`.
//!
//! Surprise: nobody knows beforehand whether the rows are new. It is tried under a savepoint, and
//! the unique key says no at the first row that is there. A table that says no is asked again
//! only after a while, which gets longer each time.

use std::pin::pin;
use std::sync::Arc;

use futures_util::SinkExt;
use futures_util::future::join;
use tokio_postgres::error::SqlState;

use super::apply::is_about_data;
use super::copying::Copying;
use super::row_writer::{NoBinary, RowWriter};
use super::{Attempt, Failure, PostgresTarget};
use crate::change::RowUpsert;
use crate::part::TablePart;
use crate::schema::TableSchema;

/// The columns that follow the row's own: its version and its commit time.
const OWN_COLUMNS: usize = 2;

/// For fewer rows the savepoint costs more than the staging table. All tests go this way.
const ROWS_MIN: usize = if cfg!(test) { 1 } else { 100 };
/// The longest time that a table is not asked, in batches.
const REST_MAX: u32 = 63;

/// Whether the rows of a table are worth the try.
pub struct NewRows {
    /// Prepared at the first try: inside its transaction, where no lock is waited for too long.
    copying: Option<Arc<Copying>>,
    /// Whether rows may be written in binary.
    binary: bool,
    /// So many batches go the long way before the next try.
    resting: u32,
    /// How many that were the last time.
    rest: u32,
}

impl NewRows {
    /// Worth a try at once.
    pub fn new(binary: bool) -> NewRows {
        NewRows { copying: None, binary, resting: 0, rest: 0 }
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
        let copying = self.prepare_new(place, part.table).await?;
        let were_new = match self.send_new(place, &copying, part.upserts).await {
            Ok(()) => true,
            // What is wrong with a row that is not just there already shows on the long way. So
            // does a table whose columns have other types now.
            Err(Failure::Server(error)) if is_about_data(&error) || is_of_another_shape(&error) => {
                self.client.batch_execute("ROLLBACK TO SAVEPOINT new_rows").await?;
                false
            }
            Err(failure) => return Err(failure),
        };
        self.stages[place].new_rows.learn(were_new);
        Ok(were_new)
    }

    async fn prepare_new(&mut self, place: usize, table: &TableSchema) -> Attempt<Arc<Copying>> {
        let NewRows { copying, binary, .. } = &self.stages[place].new_rows;
        if let Some(copying) = copying {
            return Ok(copying.clone());
        }
        let sql = self.sql(table, &self.stages[place].name);
        let copying = self.prepare_copy(&sql.copy_new(), &sql.new_columns(), *binary).await?;
        let copying = Arc::new(copying);
        self.stages[place].new_rows.copying = Some(copying.clone());
        Ok(copying)
    }

    async fn send_new(
        &self,
        place: usize,
        copying: &Copying,
        upserts: &[RowUpsert],
    ) -> Attempt<()> {
        let Copying { statement, columns, form } = copying;
        // Sent together. From here on nobody can change the types of the columns.
        let savepoint = self.client.batch_execute("SAVEPOINT new_rows");
        let (savepoint, unchanged) = join(savepoint, self.client.execute(columns, &[])).await;
        savepoint?;
        unchanged?;
        let mut sink = pin!(self.client.copy_in(statement).await?);
        let mut writer = RowWriter::new(form, OWN_COLUMNS);
        for upsert in upserts {
            writer.cells(upsert.row.cells()).map_err(|NoBinary| Failure::NoBinary(place))?;
            writer.rank(upsert.version, upsert.updated_at);
            if let Some(piece) = writer.end_row() {
                sink.feed(piece).await?;
            }
        }
        sink.feed(writer.finish()).await?;
        sink.finish().await?;
        Ok(())
    }
}

/// Whether a prepared statement would give other types than it did.
fn is_of_another_shape(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED)
}
