//! Writes a chunk beside the session that applies the log: a loader's transaction.
//!
//! It holds a lock that loaders share and a claim takes alone, then compares the fence. So a claim
//! waits until the loaders of an earlier session are done, and they see its fence afterwards. The
//! session that applies the log takes no part in it: its own lock is the row of the checkpoint,
//! which a loader only reads.
//!
//! Surprise: the lock is asked for in a message of its own, and its answer is waited for before any
//! row is sent. So whatever a server may still commit after its client is gone had the lock while
//! the client was there, and no later claim can overlook it.

use super::{Attempt, PostgresTarget, text};
use crate::change::TableBatch;
use crate::error::Result;
use crate::part::TablePart;
use crate::postgres::{quote, sql};
use crate::records;
use crate::version::Version;

impl PostgresTarget {
    pub(super) async fn load_rows(&mut self, rows: &TableBatch) -> Result<()> {
        let fence = self.joined.ok_or_else(records::not_joined)?;
        loop {
            match self.attempt_load(fence, rows).await {
                Ok(()) => return Ok(()),
                Err(failure) => self.recover(failure, &[rows], Version::ZERO).await?,
            }
        }
    }

    async fn attempt_load(&mut self, fence: u64, rows: &TableBatch) -> Attempt<()> {
        let place = self.session.stage(&rows.table).await?;
        self.session.in_transaction = true;
        self.unknown_commit = true;
        let check = self.begin_load(fence, rows).await?;
        let part = TablePart::from(rows);
        let mut statements = Vec::new();
        if check || !self.session.copy_new(place, &part).await? {
            let staged = self.session.fill(place, &part, check, 0).await?;
            self.table_statements(&mut statements, &part, place, &staged, Version::ZERO, check);
        }
        statements.push("COMMIT".into());
        self.session.client.batch_execute(&statements.join("; ")).await?;
        self.session.in_transaction = false;
        self.unknown_commit = false;
        Ok(())
    }

    /// Proves the fence until the end of the transaction, and says whether a tombstone may outrank
    /// a row. The log does not write the table meanwhile, so the answer stays true.
    async fn begin_load(&self, fence: u64, rows: &TableBatch) -> Attempt<bool> {
        let pipeline = &self.session.options.pipeline;
        let oldest = rows.upserts.iter().map(|upsert| upsert.version).min();
        let begin = format!(
            "{}; SELECT pg_advisory_xact_lock_shared({}); SELECT fence, {} FROM {} \
             WHERE pipeline = {}",
            super::apply::BEGIN,
            super::claim::loader_lock_number(pipeline),
            self.session.sql(&rows.table, "").has_tombstones(oldest.unwrap_or(Version::ZERO)),
            sql::CHECKPOINT,
            quote::literal(pipeline)
        );
        // The first row is the lock's.
        let replies = self.session.rows(&begin).await?;
        let Some(record) = replies.get(1) else {
            return Err(super::claim::lost(pipeline).into());
        };
        if text(record, 0)? != fence.to_string() {
            return Err(records::fenced(pipeline).into());
        }
        Ok(text(record, 1)? == "t")
    }
}
