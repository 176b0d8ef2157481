//! Who writes: `_cdc_checkpoint` with its fence, and the named lock that says that the writer is
//! alive. The lock only protects people from starting a second instance by mistake; that no
//! second one can ever commit is the fence's work, which every transaction compares.
//!
//! Surprise: our own crashed predecessor may still hold the lock, and row locks too, until the
//! server notices that it is gone. It has our instance mark, so its session is ended. As long as
//! the lock is held a commit of that session may still come, so nobody resumes before it is free.

use std::time::Duration;

use super::MysqlTarget;
use super::records::{bytes, number, optional};
use crate::error::{Code, Doing, Error, Result};
use crate::mysql::sql;
use crate::records::{self, Records};
use crate::schema::TableName;
use crate::{Claim, Remembered};

/// How long another instance's session may take to go away before it counts as alive.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_INTERVAL: Duration = Duration::from_millis(200);

impl MysqlTarget {
    pub(super) async fn become_writer(&mut self, claim: &Claim) -> Result<Remembered> {
        let remembered = match claim.fence {
            Some(fence) => self.verify_fence(claim, fence).await?,
            None => self.raise_fence(claim).await?,
        };
        self.unknown_commit = false;
        self.fence = Some(remembered.fence);
        self.tables = remembered.tables.clone();
        self.tombstones = super::apply::Tombstones::unknown();
        Ok(remembered)
    }

    async fn verify_fence(&mut self, claim: &Claim, fence: u64) -> Result<Remembered> {
        self.expect_claim(claim, fence).await?;
        if !self.try_lock().await? {
            self.end_lock_holder().await?;
            self.wait_for_own_lock().await?;
        }
        // An earlier session of ours may have committed until just now.
        self.expect_claim(claim, fence).await
    }

    async fn expect_claim(&mut self, claim: &Claim, fence: u64) -> Result<Remembered> {
        let found = self.remembered().await?;
        let remembered = found.ok_or_else(|| lost(&self.options.pipeline))?;
        match remembered.fence == fence && remembered.instance == claim.instance {
            true => Ok(remembered),
            false => Err(records::fenced(&self.options.pipeline)),
        }
    }

    async fn raise_fence(&mut self, claim: &Claim) -> Result<Remembered> {
        self.create_own_tables().await?;
        let recorded = self.remembered().await?.map(|remembered| remembered.instance);
        let ours = recorded.as_ref() == Some(&claim.instance);
        if !self.try_lock().await? {
            if ours || claim.take_over {
                self.end_lock_holder().await?;
            }
            if !self.wait_for_lock().await? && !ours && !claim.take_over {
                return Err(records::already_running(&self.options.pipeline));
            }
        }
        let raise = sql::raise_fence(&self.options.pipeline, &claim.instance);
        self.session.execute("claim the pipeline", &raise).await?;
        let found = self.remembered().await?;
        let remembered = found.ok_or_else(|| lost(&self.options.pipeline))?;
        // Somebody may have claimed it between our commit and our look at it.
        if remembered.instance != claim.instance {
            return Err(records::fenced(&self.options.pipeline));
        }
        Ok(remembered)
    }

    async fn create_own_tables(&mut self) -> Result<()> {
        if !self.has_own_tables().await? {
            for create in sql::CREATE_OWN_TABLES {
                self.session.execute("create our own tables", create).await?;
            }
        }
        Ok(())
    }

    /// Asks for the lock again if it was not to be had when we claimed.
    pub(super) async fn retry_lock(&mut self) -> Result<()> {
        if !self.lock_held {
            self.try_lock().await?;
        }
        Ok(())
    }

    async fn try_lock(&mut self) -> Result<bool> {
        if !self.lock_held {
            let query = format!("SELECT GET_LOCK('{}', 0)", self.lock_name());
            let rows = self.session.query("lock the pipeline", &query).await?;
            let held = rows.first().map(|row| optional(row, 0)).transpose()?.flatten();
            self.lock_held = held == Some(b"1");
        }
        Ok(self.lock_held)
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

    async fn wait_for_own_lock(&mut self) -> Result<()> {
        if self.wait_for_lock().await? {
            return Ok(());
        }
        let message = format!(
            "an earlier session of pipeline {} has not ended yet, and may still commit",
            self.options.pipeline
        );
        Err(Error::transient(Code::Unreachable, message))
    }

    /// Ends the session that holds the lock. Without the privilege to, it is left to the server.
    async fn end_lock_holder(&mut self) -> Result<()> {
        let query = format!("SELECT IS_USED_LOCK('{}')", self.lock_name());
        let rows = self.session.query("look for the earlier session", &query).await?;
        let Some(row) = rows.first().filter(|row| matches!(optional(row, 0), Ok(Some(_)))) else {
            return Ok(());
        };
        let kill = format!("KILL {}", number(row, 0)?);
        const NO_SUCH_SESSION: &str = "error 1094";
        match self.session.execute("end the earlier session", &kill).await {
            Err(error) if error.code == Code::Permission => Ok(()),
            Err(error) if error.message.contains(NO_SUCH_SESSION) => Ok(()),
            ended => ended.map(drop),
        }
    }

    /// At most 64 characters, the same for every release.
    fn lock_name(&self) -> String {
        lock_name(&self.config.database, &self.options.pipeline)
    }

    pub(super) async fn release_tables(&mut self, released: &[TableName]) -> Result<()> {
        let mut tables = self.tables.clone();
        tables.retain(|name, _| !released.contains(name));
        let pipeline = sql::text(&self.options.pipeline);
        let forget = |name: &TableName| {
            format!(
                "DELETE FROM `{}` WHERE `pipeline` = {pipeline} AND `table_name` = {}",
                sql::TOMBSTONE,
                sql::text(&self.naming.target_name(name))
            )
        };
        let changes: Vec<String> = released.iter().map(forget).collect();
        self.change_records(&changes, tables).await
    }

    /// Runs statements and records tables in one transaction, if we are still the writer.
    pub(super) async fn change_records(
        &mut self,
        changes: &[String],
        tables: Records,
    ) -> Result<()> {
        self.claimed()?;
        let record = records::write(&tables)?;
        match self.change_if_writer(changes, &record).await {
            Ok(()) => {
                self.tables = tables;
                Ok(())
            }
            Err(error) => {
                self.roll_back().await;
                Err(error)
            }
        }
    }

    async fn change_if_writer(&mut self, changes: &[String], tables: &str) -> Result<()> {
        const DOING: &str = "change what is recorded of tables";
        self.begin().await?;
        self.lock_own_checkpoint().await?;
        let record = sql::record_tables(&self.options.pipeline, tables);
        self.session.execute(DOING, &record).await?;
        for change in changes {
            self.session.execute(DOING, change).await?;
        }
        self.commit(DOING).await
    }

    /// Compares the fence, and keeps every other writer waiting until this transaction ends.
    pub(super) async fn lock_own_checkpoint(&mut self) -> Result<mysql_async::Row> {
        let (fence, pipeline) = (self.claimed()?, &self.options.pipeline);
        let lock = sql::lock_checkpoint(pipeline);
        let rows = self.session.query("compare the fence", &lock).await;
        let rows = rows.map_err(|error| match error.code {
            Code::MissingTable => lost(pipeline),
            _ => error,
        })?;
        let row = rows.into_iter().next().ok_or_else(|| lost(pipeline))?;
        match number(&row, 0)? == fence {
            true => Ok(row),
            false => Err(records::fenced(pipeline)),
        }
    }

    /// Compares the fence; nothing that it protects may follow, because nothing stays locked.
    pub(super) async fn look_at_fence(&mut self) -> Result<()> {
        let fence = self.claimed()?;
        let found = self.remembered().await?;
        match found.ok_or_else(|| lost(&self.options.pipeline))?.fence == fence {
            true => Ok(()),
            false => Err(records::fenced(&self.options.pipeline)),
        }
    }

    pub(super) async fn forget_pipeline(&mut self) -> Result<()> {
        if !self.has_own_tables().await? {
            return Ok(());
        }
        let claimed = self.fence.is_some();
        // Without a claim nothing tells whether we may, except that no writer is alive. A writer
        // that only seems dead finds its record gone and commits nothing more.
        if !claimed && !self.wait_for_lock().await? {
            return Err(records::already_running(&self.options.pipeline));
        }
        let forgotten = self.forget_records(claimed).await;
        if forgotten.is_err() {
            self.roll_back().await;
        }
        forgotten?;
        self.fence = None;
        self.tables = Records::new();
        self.drop_own_tables().await.doing("remove our own tables")
    }

    async fn forget_records(&mut self, claimed: bool) -> Result<()> {
        const DOING: &str = "forget the pipeline";
        self.begin().await?;
        if claimed {
            self.lock_own_checkpoint().await?;
        }
        let pipeline = sql::text(&self.options.pipeline);
        for own in [sql::TOMBSTONE, sql::CHECKPOINT] {
            let forget = format!("DELETE FROM `{own}` WHERE `pipeline` = {pipeline}");
            self.session.execute(DOING, &forget).await?;
        }
        self.commit(DOING).await
    }

    /// Drops our own tables when no pipeline has a record in them. Who may lock them does so, so
    /// that nobody claims in between.
    async fn drop_own_tables(&mut self) -> Result<()> {
        let (checkpoint, tombstone) = (sql::CHECKPOINT, sql::TOMBSTONE);
        let lock = format!("LOCK TABLES `{checkpoint}` WRITE, `{tombstone}` WRITE");
        let locked = self.session.execute("lock our own tables", &lock).await;
        if locked.as_ref().is_err_and(|error| error.code != Code::Permission) {
            return locked.map(drop);
        }
        let dropped = self.drop_if_unused().await;
        if locked.is_ok() {
            self.session.execute("unlock our own tables", "UNLOCK TABLES").await?;
        }
        dropped
    }

    async fn drop_if_unused(&mut self) -> Result<()> {
        let (checkpoint, tombstone) = (sql::CHECKPOINT, sql::TOMBSTONE);
        let count = format!("SELECT COUNT(*) FROM `{checkpoint}`");
        let rows = self.session.query("look for other pipelines", &count).await?;
        if rows.first().is_some_and(|row| bytes(row, 0).is_ok_and(|count| count == b"0")) {
            let drop = format!("DROP TABLE `{checkpoint}`, `{tombstone}`");
            self.session.execute("drop our own tables", &drop).await?;
        }
        Ok(())
    }
}

/// The name of a pipeline's lock. Every release must agree on it.
pub fn lock_name(database: &str, pipeline: &str) -> String {
    // FNV-1a, 64 bits.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in format!("{database}\0{pipeline}").bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("driftless_target_{hash:016x}")
}

/// The record that our claim made is gone.
fn lost(pipeline: &str) -> Error {
    records::lost(pipeline, sql::CHECKPOINT)
}
