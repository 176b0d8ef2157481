//! The short way for rows that the target does not have yet: copied into the table itself, without
//! a staging table and without a comparison. Used by `apply.rs`.
//!
//! Surprise: it is tried under a savepoint, and the unique key says no at the first row that is
//! there. `crate::new_rows` decides when to try.

use std::pin::pin;
use std::sync::Arc;

use futures_util::SinkExt;
use futures_util::future::join;
use tokio_postgres::error::SqlState;

use super::apply::is_about_data;
use super::copying::Copying;
use super::row_writer::RowWriter;
use super::session::Session;
use super::{Attempt, Failure};
use crate::key_order::by_key;
use crate::part::TablePart;
use crate::schema::TableSchema;

/// The columns that follow the row's own: its version and its commit time.
const OWN_COLUMNS: usize = 2;

/// How a session copies new rows into a table.
pub struct CopyNew {
    /// Prepared at the first try: inside its transaction, where no lock is waited for too long.
    copying: Option<Arc<Copying>>,
    /// Whether rows may be written in binary.
    binary: bool,
}

impl CopyNew {
    /// Nothing is prepared yet.
    pub fn new(binary: bool) -> CopyNew {
        CopyNew { copying: None, binary }
    }
}

impl Session {
    /// Copies the rows of a part into their table if all of them are new; says whether they were.
    /// Only for rows that no tombstone can outrank.
    pub(super) async fn copy_new(&mut self, place: usize, part: &TablePart<'_>) -> Attempt<bool> {
        if !self.may_be_new(part) {
            return Ok(false);
        }
        let copying = self.prepare_new(place, part.table).await?;
        let were_new = match self.send_new(place, &copying, part).await {
            Ok(()) => true,
            // What is wrong with a row that is not just there already shows on the long way. So
            // does a table whose columns have other types now.
            Err(Failure::Server(error)) if is_about_data(&error) || is_of_another_shape(&error) => {
                self.client.batch_execute("ROLLBACK TO SAVEPOINT new_rows").await?;
                false
            }
            Err(failure) => return Err(failure),
        };
        self.lessons.learn(&part.table.name, were_new);
        Ok(were_new)
    }

    /// Whether it is worth a try to copy this part.
    pub(super) fn may_be_new(&self, part: &TablePart<'_>) -> bool {
        self.lessons.is_worth_a_try(part)
    }

    async fn prepare_new(&mut self, place: usize, table: &TableSchema) -> Attempt<Arc<Copying>> {
        let CopyNew { copying, binary } = &self.stages[place].new_rows;
        if let Some(copying) = copying {
            return Ok(copying.clone());
        }
        let sql = self.sql(table, &self.stages[place].name);
        let copying =
            self.prepare_copy(table, &sql.copy_new(), &sql.new_columns(), *binary).await?;
        let copying = Arc::new(copying);
        self.stages[place].new_rows.copying = Some(copying.clone());
        Ok(copying)
    }

    async fn send_new(&self, place: usize, copying: &Copying, part: &TablePart<'_>) -> Attempt<()> {
        let Copying { statement, columns, form } = copying;
        // Sent together. From here on nobody can change the types of the columns.
        let savepoint = self.client.batch_execute("SAVEPOINT new_rows");
        let (savepoint, unchanged) = join(savepoint, self.client.execute(columns, &[])).await;
        savepoint?;
        unchanged?;
        let mut sink = pin!(self.client.copy_in(statement).await?);
        let mut writer = RowWriter::new(form, OWN_COLUMNS);
        for at in by_key(part.table, part.upserts.iter().map(|upsert| &upsert.key)) {
            let upsert = &part.upserts[at];
            let written = writer.cells(upsert.row.cells());
            written.map_err(|why| Failure::unwritten(why, place, part.table))?;
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
