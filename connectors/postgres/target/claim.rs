//! Who writes: `_cdc_checkpoint` with its fence, and the advisory lock that says that the writer
//! is alive. The lock only protects people from starting a second instance by mistake; that no
//! second one can ever commit is the fence's work, in `apply.rs`.
//!
//! Surprise: our own crashed predecessor may still hold the lock, and a row lock too, until the
//! server notices that it is gone. It has our instance mark, so its sessions are ended. What they
//! may still commit is waited for: behind a lock that loaders share, and the row of the checkpoint.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_postgres::SimpleQueryRow;

use super::{Attempt, PostgresTarget, text};
use crate::ahead::HeldLock;
use crate::change::Checkpoint;
use crate::error::{Code, Error, Result};
use crate::fnv::fnv_1a;
use crate::postgres::{connect, quote, sql, types};
use crate::records;
use crate::schema::TableName;
use crate::tombstones::Tombstones;
use crate::version::Position;
use crate::{Claim, Remembered, TableRecord};

/// How long another instance's session may take to go away before it counts as alive.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_INTERVAL: Duration = Duration::from_millis(200);

/// The advisory lock under which sessions create our own tables, one after the other.
const CREATION_LOCK: i64 = 0x6472_6966_746c_6573;

impl PostgresTarget {
    /// What `_cdc_checkpoint` says of this pipeline; changes nothing.
    pub(super) async fn remembered(&self) -> Result<Option<Remembered>> {
        if !self.has_own_tables().await? {
            return Ok(None);
        }
        let query = format!(
            "SELECT fence, instance, tables, sequence, position, version FROM {} \
             WHERE pipeline = {}",
            sql::CHECKPOINT,
            quote::literal(&self.session.options.pipeline)
        );
        let rows = self.session.query("read the checkpoint", &query).await?;
        rows.first().map(|row| self.read_remembered(row)).transpose()
    }

    async fn has_own_tables(&self) -> Result<bool> {
        let query = format!(
            "SELECT to_regclass('{}') IS NOT NULL AND to_regclass('{}') IS NOT NULL",
            sql::CHECKPOINT,
            sql::TOMBSTONE
        );
        let rows = self.session.query("look for the checkpoint", &query).await?;
        rows.first().map_or(Ok(false), |row| Ok(text(row, 0)? == "t"))
    }

    fn read_remembered(&self, row: &SimpleQueryRow) -> Result<Remembered> {
        let damaged = || {
            let message = format!(
                "the record of pipeline {} in {} cannot be read; restore the target, or run \
                 `driftless teardown` and start again with an empty one",
                self.session.options.pipeline,
                sql::CHECKPOINT
            );
            Error::stop(Code::TargetLost, message)
        };
        let number = |index| text(row, index)?.parse::<u64>().map_err(|_| damaged());
        let checkpoint = match (row.get(4), row.get(5)) {
            (None, None) => None,
            (Some(position), Some(version)) => Some(Checkpoint {
                position: Position(position.to_owned()),
                version: types::parse_version(version).ok_or_else(damaged)?,
                sequence: number(3)?,
            }),
            _ => return Err(damaged()),
        };
        let tables: Vec<TableRecord> =
            serde_json::from_str(text(row, 2)?).map_err(|_| damaged())?;
        Ok(Remembered {
            checkpoint,
            fence: number(0)?,
            instance: text(row, 1)?.to_owned(),
            tables: tables.into_iter().map(|table| (table.schema.name.clone(), table)).collect(),
        })
    }

    pub(super) async fn become_writer(&mut self, claim: &Claim) -> Result<Remembered> {
        self.ahead.close();
        let remembered = match claim.fence {
            Some(fence) => self.verify_fence(claim, fence).await?,
            None => self.raise_fence(claim).await?,
        };
        // Nobody else can make any now.
        let look =
            format!("SELECT 1 WHERE {}", sql::has_tombstones(&self.session.options.pipeline));
        let found = self.session.query("look for tombstones", &look).await?;
        self.ahead.expect_tombstones(!found.is_empty());
        self.tombstones = Tombstones::new(!found.is_empty());
        self.unknown_commit = false;
        self.fence = Some(remembered.fence);
        self.tables = remembered.tables.clone();
        Ok(remembered)
    }

    async fn verify_fence(&mut self, claim: &Claim, fence: u64) -> Result<Remembered> {
        let pipeline = &self.session.options.pipeline.clone();
        let remembered = self.remembered().await?.ok_or_else(|| lost(pipeline))?;
        if remembered.fence != fence || remembered.instance != claim.instance {
            return Err(records::fenced(pipeline));
        }
        // Our own earlier sessions may be there until the server notices that they are gone.
        self.try_lock().await?;
        self.end_lock_holders().await?;
        self.wait_for_commits().await?;
        let remembered = self.remembered().await?.ok_or_else(|| lost(pipeline))?;
        match remembered.fence == fence {
            true => Ok(remembered),
            false => Err(records::fenced(pipeline)),
        }
    }

    /// Waits until nothing that an earlier session began can be committed any more.
    async fn wait_for_commits(&mut self) -> Result<()> {
        self.session.in_transaction = true;
        let wait = format!(
            "{}; SELECT pg_advisory_xact_lock({}); SELECT FROM {} WHERE pipeline = {} \
             FOR UPDATE; COMMIT",
            super::apply::BEGIN,
            loader_lock_number(&self.session.options.pipeline),
            sql::CHECKPOINT,
            quote::literal(&self.session.options.pipeline)
        );
        if let Err(error) = self.session.client.batch_execute(&wait).await {
            self.roll_back().await;
            return Err(connect::error("wait for the earlier session", &error));
        }
        self.session.in_transaction = false;
        Ok(())
    }

    async fn raise_fence(&mut self, claim: &Claim) -> Result<Remembered> {
        self.create_own_tables().await?;
        let recorded = self.remembered().await?.map(|remembered| remembered.instance);
        let ours = recorded.as_ref() == Some(&claim.instance);
        let held = self.try_lock().await?;
        if ours || claim.take_over {
            self.end_lock_holders().await?;
        }
        if !held && !self.wait_for_lock().await? && !ours && !claim.take_over {
            return Err(records::already_running(&self.session.options.pipeline));
        }
        self.session.in_transaction = true;
        let pipeline = quote::literal(&self.session.options.pipeline);
        let instance = quote::literal(&claim.instance);
        let raise = format!(
            "{}; SELECT pg_advisory_xact_lock({}); INSERT INTO {} AS c \
             (pipeline, sequence, fence, instance, tables, updated_at) VALUES ({pipeline}, 0, 1, {instance}, '[]', clock_timestamp()) \
             ON CONFLICT (pipeline) DO UPDATE SET fence = c.fence + 1, \
             instance = excluded.instance, updated_at = excluded.updated_at; COMMIT",
            super::apply::BEGIN,
            loader_lock_number(&self.session.options.pipeline),
            sql::CHECKPOINT
        );
        if let Err(error) = self.session.client.batch_execute(&raise).await {
            self.roll_back().await;
            return Err(connect::error("claim the pipeline", &error));
        }
        self.session.in_transaction = false;
        let remembered =
            self.remembered().await?.ok_or_else(|| lost(&self.session.options.pipeline))?;
        // Somebody may have claimed it between our commit and our look at it.
        if remembered.instance != claim.instance {
            return Err(records::fenced(&self.session.options.pipeline));
        }
        Ok(remembered)
    }

    async fn create_own_tables(&mut self) -> Result<()> {
        if self.has_own_tables().await? {
            return Ok(());
        }
        self.session.in_transaction = true;
        let create = format!(
            "BEGIN; SELECT pg_advisory_xact_lock({CREATION_LOCK}); {}; COMMIT",
            sql::CREATE_OWN_TABLES
        );
        if let Err(error) = self.session.client.batch_execute(&create).await {
            self.roll_back().await;
            return Err(connect::error("create our own tables in schema public", &error));
        }
        self.session.in_transaction = false;
        Ok(())
    }

    /// Asks for the lock, unless one of our sessions holds it.
    pub(super) async fn try_lock(&mut self) -> Result<bool> {
        if self.lock_held.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let query = format!("SELECT pg_try_advisory_lock({})", self.lock_number());
        let rows = self.session.query("lock the pipeline", &query).await?;
        let granted = rows.first().map(|row| text(row, 0)).transpose()? == Some("t");
        self.session.lock = granted.then(|| HeldLock::new(&self.lock_held));
        Ok(granted)
    }

    async fn wait_for_lock(&mut self) -> Result<bool> {
        let patience = tokio::time::Instant::now() + LOCK_PATIENCE;
        while !self.try_lock().await? {
            if tokio::time::Instant::now() >= patience {
                return Ok(false);
            }
            tokio::time::sleep(LOCK_INTERVAL).await;
        }
        Ok(true)
    }

    /// Ends the sessions that hold the lock or load chunks. Without the privilege to, that is left
    /// to the server.
    async fn end_lock_holders(&self) -> Result<()> {
        let place = |number: i64| format!("({}, {})", (number as u64) >> 32, number as u32);
        let end = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' \
             AND objsubid = 1 AND database = (SELECT oid FROM pg_database \
             WHERE datname = current_database()) AND pid <> pg_backend_pid() \
             AND (classid, objid) IN ({}, {})",
            place(self.lock_number()),
            place(loader_lock_number(&self.session.options.pipeline))
        );
        match self.session.query("end the earlier sessions", &end).await {
            Err(error) if error.code != Code::Permission => Err(error),
            _ => Ok(()),
        }
    }

    fn lock_number(&self) -> i64 {
        lock_number(&self.session.options.pipeline)
    }

    /// Records tables, if the fence is still ours.
    fn record_tables(&self, tables: &BTreeMap<TableName, TableRecord>) -> Result<String> {
        Ok(format!(
            "UPDATE {} SET tables = {}, updated_at = clock_timestamp() \
             WHERE pipeline = {} AND fence = {}",
            sql::CHECKPOINT,
            quote::literal(&records::write(tables)?),
            quote::literal(&self.session.options.pipeline),
            self.claimed()?
        ))
    }

    pub(super) async fn release_tables(&mut self, released: &[TableName]) -> Result<()> {
        let mut tables = self.tables.clone();
        tables.retain(|name, _| !released.contains(name));
        let pipeline = quote::literal(&self.session.options.pipeline);
        let mut changes = Vec::new();
        for TableName { schema, name } in released {
            changes.push(format!(
                "DELETE FROM {} WHERE pipeline = {pipeline} AND table_schema = {} \
                 AND table_name = {}",
                sql::TOMBSTONE,
                quote::literal(schema),
                quote::literal(name)
            ));
        }
        self.change_records(&changes, tables).await
    }

    /// Runs statements and records tables in one transaction, if we are still the writer.
    pub(super) async fn change_records(
        &mut self,
        changes: &[String],
        tables: BTreeMap<TableName, TableRecord>,
    ) -> Result<()> {
        let record = self.record_tables(&tables)?;
        self.session.in_transaction = true;
        match self.change_if_writer(changes, &record).await {
            Ok(()) => {
                self.session.in_transaction = false;
                self.tables = tables;
                Ok(())
            }
            Err(failure) => {
                self.roll_back().await;
                Err(failure.doing("change what is recorded of tables"))
            }
        }
    }

    async fn change_if_writer(&self, changes: &[String], record: &str) -> Attempt<()> {
        let begin = format!("{}; {record}", super::apply::BEGIN);
        let replies = self.session.client.simple_query(&begin).await?;
        if super::last_count(&replies) != 1 {
            return Err(records::fenced(&self.session.options.pipeline).into());
        }
        let mut rest = changes.join("; ");
        rest += if changes.is_empty() { "COMMIT" } else { "; COMMIT" };
        self.session.client.batch_execute(&rest).await?;
        Ok(())
    }

    pub(super) async fn forget_pipeline(&mut self) -> Result<()> {
        if !self.has_own_tables().await? {
            return Ok(());
        }
        let pipeline = quote::literal(&self.session.options.pipeline);
        let own = [sql::TOMBSTONE, sql::CHECKPOINT];
        let mut changes: Vec<String> =
            own.map(|table| format!("DELETE FROM {table} WHERE pipeline = {pipeline}")).into();
        changes.push(format!(
            "DO $$ BEGIN LOCK TABLE {0}; IF NOT EXISTS (SELECT FROM {0}) \
             THEN DROP TABLE {0}, {1}; END IF; END $$",
            sql::CHECKPOINT,
            sql::TOMBSTONE
        ));
        match self.fence {
            Some(_) => self.change_records(&changes, BTreeMap::new()).await?,
            None => self.forget_unclaimed(&changes).await?,
        }
        self.fence = None;
        Ok(())
    }

    /// Without a claim nothing tells whether we may, except that no writer is alive. A writer
    /// that only seems dead finds its record gone and commits nothing more.
    async fn forget_unclaimed(&mut self, changes: &[String]) -> Result<()> {
        if !self.wait_for_lock().await? {
            return Err(records::already_running(&self.session.options.pipeline));
        }
        self.session.in_transaction = true;
        let forget = format!("{}; {}; COMMIT", super::apply::BEGIN, changes.join("; "));
        if let Err(error) = self.session.client.batch_execute(&forget).await {
            self.roll_back().await;
            return Err(connect::error("forget the pipeline", &error));
        }
        self.session.in_transaction = false;
        self.tables = BTreeMap::new();
        Ok(())
    }
}

/// The number of a pipeline's advisory lock. Every release must agree on it.
pub fn lock_number(pipeline: &str) -> i64 {
    advisory_lock(&format!("driftless target {pipeline}"))
}

/// The number of the lock that a pipeline's loaders share. Every release must agree on it.
pub fn loader_lock_number(pipeline: &str) -> i64 {
    advisory_lock(&format!("driftless loader {pipeline}"))
}

fn advisory_lock(name: &str) -> i64 {
    fnv_1a(name.as_bytes()) as i64
}

/// The record that our claim made is gone.
pub fn lost(pipeline: &str) -> Error {
    records::lost(pipeline, sql::CHECKPOINT)
}
