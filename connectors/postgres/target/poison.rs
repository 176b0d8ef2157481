//! Finds the row that the server refused. A batch is applied as a whole, so its error names no
//! row; this applies it again in a transaction that is always rolled back, halving what fails
//! until one row is left. Called by `apply.rs` after an error about data.
//!
//! Surprise: the half that succeeds stays applied while the other is tried, because two rows may
//! be refused only together.

use super::apply::{BEGIN, is_about_data};
use super::{Attempt, Failure, PostgresTarget};
use crate::change::{Key, TableBatch};
use crate::error::{Code, Error, Result};
use crate::part::{TablePart, row_at};
use crate::postgres::connect::{self, ServerError};
use crate::version::Version;

impl PostgresTarget {
    /// Names the first row that the server refuses. `Err` says what else came of the search.
    pub(super) async fn find_poison(
        &mut self,
        tables: &[&TableBatch],
        floor: Version,
        refusal: &tokio_postgres::Error,
    ) -> Result<Error> {
        for table in tables {
            // Made inside the transaction, a staging table would go with it.
            let made = self.session.stage(&table.table).await;
            made.map_err(|failure| failure.doing("make a staging table"))?;
        }
        let found = loop {
            self.session.in_transaction = true;
            let found = self.search(tables, floor).await;
            self.roll_back().await;
            match found {
                Err(Failure::NoBinary(place)) => self.session.write_text(place).await?,
                found => break found,
            }
        };
        match found {
            Ok(Some(error)) => Ok(error),
            // Something outside the batch was in its way, and is not any more.
            Ok(None) => {
                let cause = connect::error("apply a batch", refusal).message;
                let message = format!("{cause}; row by row it was accepted");
                Err(Error::transient(Code::PoisonRow, message))
            }
            Err(failure) => Err(failure.doing("look for the row that the target refused")),
        }
    }

    async fn search(&mut self, tables: &[&TableBatch], floor: Version) -> Attempt<Option<Error>> {
        // Constraints that wait for the commit would be silent in a transaction without one.
        self.session
            .client
            .batch_execute(&format!("{BEGIN}; SET CONSTRAINTS ALL IMMEDIATE"))
            .await?;
        for table in tables {
            let whole = table.deletes.len() + table.upserts.len();
            let Some(mut refusal) = self.probe(table, 0, whole, floor).await? else {
                continue;
            };
            // Rows before `start` are applied; the first refused one is before `end`.
            let (mut start, mut end) = (0, whole);
            while end - start > 1 {
                let middle = start + (end - start) / 2;
                match self.probe(table, start, middle, floor).await? {
                    Some(error) => (end, refusal) = (middle, error),
                    None => start = middle,
                }
            }
            // The last probe of the remaining row may have been part of a larger one.
            if let Some(error) = self.probe(table, start, end, floor).await? {
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
    ) -> Attempt<Option<ServerError>> {
        self.session.client.batch_execute("SAVEPOINT probe").await?;
        match self.apply_some(table, start, end, floor).await {
            Ok(()) => {
                self.session.client.batch_execute("RELEASE SAVEPOINT probe").await?;
                Ok(None)
            }
            Err(Failure::Server(error)) if is_about_data(&error) => {
                self.session.client.batch_execute("ROLLBACK TO SAVEPOINT probe").await?;
                Ok(error.as_db_error().map(ServerError::from))
            }
            Err(failure) => Err(failure),
        }
    }

    async fn apply_some(
        &mut self,
        table: &TableBatch,
        start: usize,
        end: usize,
        floor: Version,
    ) -> Attempt<()> {
        let part = TablePart::of_rows(table, start, end);
        let place = self.session.stage(part.table).await?;
        let staged = self.session.fill(place, &part, true, 0).await?;
        let mut statements = Vec::new();
        self.table_statements(&mut statements, &part, place, &staged, floor, true);
        // The staging table empties itself only at a commit.
        statements.push(format!("DELETE FROM {}", self.session.stages[place].name));
        self.session.client.batch_execute(&statements.join("; ")).await?;
        Ok(())
    }
}

fn describe(table: &TableBatch, row: Option<(&Key, Version)>, refusal: &ServerError) -> Error {
    let name = &table.table.name;
    let what = match row {
        Some((key, version)) => format!("the row with key hash {} at {version}", key.hash()),
        // Only a truncation is left, and a trigger or a foreign key that does not allow it.
        None => "a truncation".to_owned(),
    };
    let names = refusal.objects.iter().map(|object| format!(", {object}")).collect::<String>();
    let message = format!(
        "the target refused {what} of {name} (SQLSTATE {}{names}); change the target table or \
         the source row, then run `driftless backfill --table {name}`",
        refusal.sqlstate
    );
    Error::table(name, Code::PoisonRow, message)
}
