//! Applies a batch in one transaction: fence and sequence first, then the rows by way of the
//! staging tables, the tombstones, and the commit. `stage.rs` copies, `poison.rs` looks for the
//! row that the server refused.
//!
//! Surprise: the checkpoint is written before the rows. Its row lock makes a second writer wait,
//! and a writer that has lost its claim finds out before it has changed anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_postgres::SimpleQueryRow;
use tokio_postgres::error::SqlState;

use super::ahead::Brought;
use super::stage::Staged;
use super::{Attempt, Failure, PostgresTarget, into_row, last_count, text};
use crate::change::{Applied, Batch, Key, TableBatch};
use crate::error::{Code, Error, Result};
use crate::hex;
use crate::part::TablePart;
use crate::postgres::{connect, quote, sql, types};
use crate::records::{self, Records};
use crate::schema::TableName;
use crate::tombstones::Tombstones;
use crate::version::Version;

/// A lock that somebody holds on a table must show as a retry, not as silence.
pub const BEGIN: &str = "\
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = '30s'";

impl PostgresTarget {
    pub(super) async fn apply_batch(&mut self, batch: &Batch) -> Result<Applied> {
        self.claimed()?;
        // It may not have been to be had when we claimed.
        self.try_lock().await?;
        loop {
            let ahead = self.ahead.clone();
            match ahead.beside(self.attempt(batch)).await {
                Ok(applied) => return Ok(applied),
                Err(failure) => {
                    let tables: Vec<&TableBatch> = batch.tables.iter().map(Arc::as_ref).collect();
                    self.recover(failure, &tables, batch.floor).await?;
                }
            }
        }
    }

    /// Ends the transaction of a failed attempt, and says why it failed; `Ok` if it is worth
    /// another one.
    pub(super) async fn recover(
        &mut self,
        failure: Failure,
        tables: &[&TableBatch],
        floor: Version,
    ) -> Result<()> {
        self.roll_back().await;
        match failure {
            Failure::Ours(error) => Err(error),
            Failure::Server(error) => Err(self.explain(tables, floor, &error).await),
            Failure::NoBinary(place) => self.session.write_text(place).await,
        }
    }

    async fn attempt(&mut self, batch: &Batch) -> Attempt<Applied> {
        let tables = records::after(&self.tables, batch)?;
        let check = self.tombstones.concern(batch);
        self.ahead.expect_tombstones(check || batch.buries());
        let brought = self.ahead.take(batch, check, &mut self.session).await;
        let begin = if brought.is_some() { String::new() } else { format!("{BEGIN}; ") };
        let mut brought = brought.unwrap_or_default().into_iter();
        let mut places = Vec::with_capacity(batch.tables.len());
        for part in &batch.tables {
            let place = self.session.stage(&part.table).await?;
            if places.contains(&place) {
                let message = format!("a batch has two parts for {}", part.table.name);
                return Err(Error::stop(Code::Internal, message).into());
            }
            places.push(place);
        }
        self.session.in_transaction = true;
        self.unknown_commit = true;
        let advance = self.advance_checkpoint(batch, tables.as_ref())?;
        let replies = self.session.client.simple_query(&format!("{begin}{advance}")).await?;
        if last_count(&replies) != 1 {
            return self.unexpected_checkpoint(batch).await;
        }
        let mut statements = Vec::new();
        let mut partial = false;
        for (number, (part, &place)) in batch.tables.iter().zip(&places).enumerate() {
            let part = TablePart::from(&**part);
            let (part, staged) = match brought.next().flatten() {
                Some(Brought::Staged(staged)) => (part, Some(staged)),
                Some(Brought::Copied(count)) => (part.without_first_upserts(count), None),
                None => (part, None),
            };
            let staged = match staged {
                Some(staged) => staged,
                None if part.is_empty() => continue,
                None if !check && self.session.copy_new(place, &part).await? => continue,
                None => self.session.fill(place, &part, check, 0).await?,
            };
            partial |= !staged.partial.is_empty();
            self.table_statements(&mut statements, &part, place, &staged, batch.floor, check);
            if !staged.partial.is_empty() {
                let stage = &self.session.stages[place].name;
                statements.push(self.session.sql(part.table, stage).missing(number));
            }
        }
        let collects = self.collect_statements(&mut statements, batch);
        if !partial {
            statements.push("COMMIT".into());
        }
        let replies = self.session.client.simple_query(&statements.join("; ")).await?;
        let replies: Vec<SimpleQueryRow> = replies.into_iter().filter_map(into_row).collect();
        let (missing, remain) = read_replies(batch, &replies)?;
        if !missing.is_empty() {
            self.roll_back().await;
            return Ok(Applied::NeedsRows(missing));
        }
        if partial {
            self.session.client.batch_execute("COMMIT").await?;
        }
        self.session.in_transaction = false;
        self.unknown_commit = false;
        if collects {
            self.tombstones = Tombstones::collected(batch.floor, remain);
        }
        if let Some(tables) = tables {
            self.tables = tables;
        }
        Ok(Applied::Done)
    }

    fn advance_checkpoint(&self, batch: &Batch, tables: Option<&Records>) -> Result<String> {
        let checkpoint = &batch.checkpoint;
        let tables = match tables {
            Some(tables) => {
                format!(", tables = {}", quote::literal(&records::write(tables)?))
            }
            None => String::new(),
        };
        Ok(format!(
            "UPDATE {} SET position = {}, version = {}, sequence = {}, \
             updated_at = clock_timestamp(){tables} \
             WHERE pipeline = {} AND fence = {} AND sequence = {}",
            sql::CHECKPOINT,
            quote::literal(&checkpoint.position.0),
            sql::version(checkpoint.version),
            checkpoint.sequence,
            quote::literal(&self.session.options.pipeline),
            self.claimed()?,
            i128::from(checkpoint.sequence) - 1,
        ))
    }

    /// The target is not where the batch begins. Either this very batch is already there and the
    /// answer to its commit was lost, or somebody else writes.
    async fn unexpected_checkpoint(&mut self, batch: &Batch) -> Attempt<Applied> {
        self.roll_back().await;
        let (fence, pipeline) = (self.claimed()?, &self.session.options.pipeline);
        let Some(remembered) = self.remembered().await? else {
            return Err(super::claim::lost(pipeline).into());
        };
        if remembered.fence != fence {
            return Err(records::fenced(pipeline).into());
        }
        if remembered.checkpoint.as_ref() == Some(&batch.checkpoint) {
            self.tables = remembered.tables;
            return Ok(Applied::Done);
        }
        let found = remembered.checkpoint.map_or(0, |checkpoint| checkpoint.sequence);
        let message = format!(
            "pipeline {pipeline}: batch {} does not follow the target's checkpoint {found}",
            batch.checkpoint.sequence
        );
        Err(Error::stop(Code::Internal, message).into())
    }

    /// Everything that a staged part does to its table.
    pub(super) fn table_statements(
        &self,
        statements: &mut Vec<String>,
        part: &TablePart<'_>,
        place: usize,
        staged: &Staged,
        floor: Version,
        check_tombstones: bool,
    ) {
        let table = self.session.sql(part.table, &self.session.stages[place].name);
        if let Some((truncation, updated_at)) = part.truncated {
            let mut instant = Vec::new();
            types::push_timestamp(&mut instant, updated_at);
            statements.push(table.truncate(truncation, &String::from_utf8_lossy(&instant)));
            if truncation >= floor {
                statements.push(table.whole_table_tombstone(truncation));
            }
        }
        if !part.deletes.is_empty() {
            statements.push(table.delete());
        }
        if part.deletes.iter().any(|delete| delete.version >= floor) {
            statements.push(table.tombstones(floor));
        }
        if staged.complete {
            statements.push(table.upsert(sql::COMPLETE, check_tombstones));
        }
        for (kind, absent) in (sql::FIRST_PARTIAL..).zip(&staged.partial) {
            statements.push(table.update_present(kind, absent));
        }
    }

    /// Drops tombstones that nothing older can follow any more, and asks whether any are left.
    /// Returns whether there was reason to.
    fn collect_statements(&mut self, statements: &mut Vec<String>, batch: &Batch) -> bool {
        self.tombstones.expect(batch);
        if !self.tombstones.are_due(batch.floor) {
            return false;
        }
        let pipeline = &self.session.options.pipeline;
        statements.push(sql::collect_tombstones(pipeline, batch.floor));
        statements.push(format!("SELECT 'tombstones', {}", sql::has_tombstones(pipeline)));
        true
    }

    /// Turns a refusal of the server into the reaction that it asks for.
    async fn explain(
        &mut self,
        tables: &[&TableBatch],
        floor: Version,
        error: &tokio_postgres::Error,
    ) -> Error {
        if is_about_data(error) {
            let found = self.find_poison(tables, floor, error).await;
            return found.unwrap_or_else(|error| error);
        }
        if error.code().is_some_and(|code| code.code().starts_with("42"))
            && error.code() != Some(&SqlState::INSUFFICIENT_PRIVILEGE)
            && let Err(shape) = self.explain_shapes(tables).await
        {
            return shape;
        }
        connect::error("apply a batch", error)
    }

    /// A statement did not fit its table; says which table is not what was prepared.
    async fn explain_shapes(&mut self, tables: &[&TableBatch]) -> Result<()> {
        // What was staged for a shape that is no more must not be used again.
        if self.remembered().await?.is_none() {
            return Err(super::claim::lost(&self.session.options.pipeline));
        }
        for table in tables {
            self.expect_shape(&table.table).await?;
        }
        Ok(())
    }
}

/// Whether the server refused a value: data exceptions, constraints, a trigger's own error, and
/// a key too long for an index.
pub fn is_about_data(error: &tokio_postgres::Error) -> bool {
    let Some(code) = error.code().map(SqlState::code) else {
        return false;
    };
    ["22", "23", "44"].iter().any(|class| code.starts_with(class))
        || code == "P0001"
        || code == "54000"
}

type Missing = Vec<(TableName, Vec<Key>)>;

/// The keys of rows to be read from the source, and whether tombstones are left.
fn read_replies(batch: &Batch, replies: &[SimpleQueryRow]) -> Result<(Missing, bool)> {
    let mut missing: BTreeMap<usize, Vec<Key>> = BTreeMap::new();
    let mut remain = true;
    let damaged = || Error::stop(Code::Protocol, "the target gave back a key that was not sent");
    for row in replies {
        if text(row, 0)? == "tombstones" {
            remain = text(row, 1)? == "t";
            continue;
        }
        let number: usize = text(row, 1)?.parse().map_err(|_| damaged())?;
        let key = hex::parse(text(row, 2)?).and_then(|bytes| Key::from_bytes(&bytes));
        missing.entry(number).or_default().push(key.ok_or_else(damaged)?);
    }
    let name = |number: usize| batch.tables[number].table.name.clone();
    let missing = missing.into_iter().map(|(number, keys)| (name(number), keys)).collect();
    Ok((missing, remain))
}
