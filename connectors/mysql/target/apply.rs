//! Applies a batch in one transaction: fence and sequence first, then the rows, the tombstones,
//! and the commit. `rows.rs` writes the rows, `poison.rs` looks for the one that the server
//! refused.
//!
//! Surprise: the checkpoint is locked and written before the rows. A second writer waits for that
//! lock, and one that has lost its claim finds out before it has changed anything.

use mysql_async::Row;

use super::MysqlTarget;
use super::records::read_checkpoint;
use crate::change::{Applied, Batch, Checkpoint, Key};
use crate::error::{Code, Error, Kind, Result};
use crate::mysql::sql;
use crate::part::TablePart;
use crate::records;
use crate::schema::TableName;
use crate::tombstones::Tombstones;

/// Where the target is when a batch begins.
enum Place {
    /// The batch follows.
    Before,
    /// This very batch is there already: the answer to its commit was lost.
    After,
}

impl MysqlTarget {
    pub(super) async fn apply_batch(&mut self, batch: &Batch) -> Result<Applied> {
        self.claimed()?;
        // It may not have been to be had when we claimed.
        self.try_lock().await?;
        let ahead = self.ahead.clone();
        match ahead.beside(self.attempt(batch)).await {
            Ok(applied) => Ok(applied),
            Err(error) => {
                self.writer.roll_back().await;
                Err(self.explain(batch, error).await)
            }
        }
    }

    async fn attempt(&mut self, batch: &Batch) -> Result<Applied> {
        let tables = records::after(&self.tables, batch)?;
        let check = self.tombstones.concern(batch);
        self.ahead.expect_tombstones(check || batch.buries());
        let brought = self.ahead.take(batch, check, &mut self.writer).await;
        if brought.is_none() {
            self.writer.begin().await?;
        }
        let found = self.lock_own_checkpoint().await?;
        match self.place(&batch.checkpoint, &found)? {
            Place::Before => {}
            Place::After => {
                self.writer.roll_back().await;
                if let Some(remembered) = self.remembered().await? {
                    self.tables = remembered.tables;
                }
                return Ok(Applied::Done);
            }
        }
        let written = tables.as_ref().map(records::write).transpose()?;
        let advance =
            sql::advance(&self.writer.options.pipeline, &batch.checkpoint, written.as_deref());
        self.writer.session.execute("move the checkpoint", &advance).await?;
        self.tombstones.expect(batch);
        let missing = self.write_tables(batch, check, &brought.unwrap_or_default()).await?;
        if !missing.is_empty() {
            self.writer.roll_back().await;
            return Ok(Applied::NeedsRows(missing));
        }
        let tombstones = self.collect_tombstones(batch).await?;
        // Whoever drops this future now must not believe that nothing was committed.
        self.unknown_commit = true;
        self.writer.commit("commit a batch").await?;
        self.unknown_commit = false;
        if let Some(tombstones) = tombstones {
            self.tombstones = tombstones;
        }
        if let Some(tables) = tables {
            self.tables = tables;
        }
        Ok(Applied::Done)
    }

    /// Whether the batch follows what is there.
    fn place(&self, next: &Checkpoint, found: &Row) -> Result<Place> {
        let pipeline = &self.writer.options.pipeline;
        let found = read_checkpoint(pipeline, found, 1)?;
        if found.as_ref() == Some(next) {
            return Ok(Place::After);
        }
        let sequence = found.map_or(0, |found| found.sequence);
        if sequence.checked_add(1) == Some(next.sequence) {
            return Ok(Place::Before);
        }
        let message = format!(
            "pipeline {pipeline}: batch {} does not follow the target's checkpoint {sequence}",
            next.sequence
        );
        Err(Error::stop(Code::Internal, message))
    }

    /// Writes the parts of all tables, without what was brought of them. Returns the keys of the
    /// rows that are needed first.
    async fn write_tables(
        &mut self,
        batch: &Batch,
        check_tombstones: bool,
        brought: &[Option<usize>],
    ) -> Result<Vec<(TableName, Vec<Key>)>> {
        let mut missing = Vec::new();
        for (place, table) in batch.tables.iter().enumerate() {
            let written = brought.get(place).copied().flatten().unwrap_or(0);
            let part = TablePart::from(&**table).without_first_upserts(written);
            let keys = self.writer.write_part(&part, batch.floor, check_tombstones).await?;
            if !keys.is_empty() {
                missing.push((table.table.name.clone(), keys));
            }
        }
        Ok(missing)
    }

    /// Drops tombstones that nothing older can follow any more. Strictly below the floor: an idle
    /// source gives a new backfill the very version of the floor. Returns what is known then.
    async fn collect_tombstones(&mut self, batch: &Batch) -> Result<Option<Tombstones>> {
        if !self.tombstones.are_due(batch.floor) {
            return Ok(None);
        }
        let pipeline = &self.writer.options.pipeline;
        let collect = sql::collect_tombstones(pipeline, batch.floor);
        self.writer.session.execute("collect tombstones", &collect).await?;
        Ok(Some(Tombstones::collected(batch.floor, self.has_tombstones().await?)))
    }

    pub(super) async fn has_tombstones(&mut self) -> Result<bool> {
        let look = sql::has_tombstones(&self.writer.options.pipeline);
        Ok(!self.writer.session.query("look for tombstones", &look).await?.is_empty())
    }

    /// Turns a refusal of the server into the reaction that it asks for.
    async fn explain(&mut self, batch: &Batch, error: Error) -> Error {
        if error.kind != Kind::Stop {
            return error;
        }
        match error.code {
            Code::PoisonRow => self.find_poison(batch, &error).await.unwrap_or_else(|error| error),
            // A statement did not fit its table, or the table is gone.
            Code::MissingTable | Code::Protocol => {
                self.explain_shapes(batch).await.err().unwrap_or(error)
            }
            _ => error,
        }
    }

    /// Says which table is not what was prepared.
    async fn explain_shapes(&mut self, batch: &Batch) -> Result<()> {
        self.look_at_fence().await?;
        for table in &batch.tables {
            self.expect_shape(&table.table).await?;
        }
        Ok(())
    }
}
