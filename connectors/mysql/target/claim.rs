//! Who writes: `_cdc_checkpoint` with its fence, and the named lock that says that the writer is
//! alive. The lock only protects people from starting a second instance by mistake; that no
//! second one can ever commit is the fence's work, which every transaction compares.
//!
//! Surprise: our own crashed predecessor may still hold the lock, and row locks too, until the
//! server notices that it is gone. It has our instance mark, so its session is ended. As long as
//! the lock is held a commit of that session may still come, so nobody resumes before it is free.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::MysqlTarget;
use super::records::{bytes, number, optional};
use crate::ahead::HeldLock;
use crate::error::{Code, Doing, Error, Result};
use crate::mysql::sql;
use crate::records::{self, Records};
use crate::schema::TableName;
use crate::tombstones::Tombstones;
use crate::{Claim, Remembered};

/// How long another instance's session may take to go away before it counts as alive.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_INTERVAL: Duration = Duration::from_millis(200);

impl MysqlTarget {
    pub(super) async fn become_writer(&mut self, claim: &Claim) -> Result<Remembered> {
        self.ahead.close();
        let remembered = match claim.fence {
            Some(fence) => self.verify_fence(claim, fence).await?,
            None => self.raise_fence(claim).await?,
        };
        // Nobody else can make any now.
        let possible = self.has_tombstones().await?;
        self.ahead.expect_tombstones(possible);
        self.tombstones = Tombstones::new(possible);
        self.unknown_commit = false;
        self.fence = Some(remembered.fence);
        self.tables = remembered.tables.clone();
        Ok(remembered)
    }

    async fn verify_fence(&mut self, claim: &Claim, fence: u64) -> Result<Remembered> {
        self.expect_claim(claim, fence).await?;
        let held = self.try_lock().await?;
        self.end_lock_holders().await?;
        if !held {
            self.wait_for_own_lock().await?;
        }
        self.wait_for_commits().await?;
        // An earlier session of ours may have committed until just now.
        self.expect_claim(claim, fence).await
    }

    async fn expect_claim(&mut self, claim: &Claim, fence: u64) -> Result<Remembered> {
        let found = self.remembered().await?;
        let remembered = found.ok_or_else(|| lost(&self.writer.options.pipeline))?;
        match remembered.fence == fence && remembered.instance == claim.instance {
            true => Ok(remembered),
            false => Err(records::fenced(&self.writer.options.pipeline)),
        }
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
            return Err(records::already_running(&self.writer.options.pipeline));
        }
        let raise = sql::raise_fence(&self.writer.options.pipeline, &claim.instance);
        self.writer.session.execute("claim the pipeline", &raise).await?;
        let found = self.remembered().await?;
        let remembered = found.ok_or_else(|| lost(&self.writer.options.pipeline))?;
        // Somebody may have claimed it between our commit and our look at it.
        if remembered.instance != claim.instance {
            return Err(records::fenced(&self.writer.options.pipeline));
        }
        Ok(remembered)
    }

    async fn create_own_tables(&mut self) -> Result<()> {
        if !self.has_own_tables().await? {
            for create in sql::CREATE_OWN_TABLES {
                self.writer.session.execute("create our own tables", create).await?;
            }
        }
        Ok(())
    }

    /// Asks for the lock, unless one of our sessions holds it.
    pub(super) async fn try_lock(&mut self) -> Result<bool> {
        if self.lock_held.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let granted = self.writer.get_lock(&self.door.lock_name()).await?;
        self.writer.lock = granted.then(|| HeldLock::new(&self.lock_held));
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

    async fn wait_for_own_lock(&mut self) -> Result<()> {
        if self.wait_for_lock().await? {
            return Ok(());
        }
        let message = format!(
            "an earlier session of pipeline {} has not ended yet, and may still commit",
            self.writer.options.pipeline
        );
        Err(Error::transient(Code::Unreachable, message))
    }

    /// Ends the sessions that hold the lock, or bring rows. Without the privilege to, they are left
    /// to the server.
    async fn end_lock_holders(&mut self) -> Result<()> {
        let mut names = vec![self.door.lock_name()];
        names.extend(self.door.lock_names_of_others());
        let holders = names.iter().map(|name| format!("IS_USED_LOCK('{name}')"));
        let holders: Vec<String> = holders.collect();
        let query = format!("SELECT CONNECTION_ID(), {}", holders.join(", "));
        let rows = self.writer.session.query("look for the earlier session", &query).await?;
        let row = rows.first().ok_or_else(|| lost(&self.writer.options.pipeline))?;
        let ours = number(row, 0)?;
        for place in 1..=names.len() {
            if optional(row, place)?.is_some() && number(row, place)? != ours {
                self.end_session(number(row, place)?).await?;
            }
        }
        Ok(())
    }

    async fn end_session(&mut self, id: u64) -> Result<()> {
        const NO_SUCH_SESSION: &str = "error 1094";
        let kill = format!("KILL {id}");
        match self.writer.session.execute("end the earlier session", &kill).await {
            Err(error) if error.code == Code::Permission => Ok(()),
            Err(error) if error.message.contains(NO_SUCH_SESSION) => Ok(()),
            ended => ended.map(drop),
        }
    }

    /// Waits until nothing that an earlier session began can be committed any more: whoever is about
    /// to commit has locked the checkpoint.
    async fn wait_for_commits(&mut self) -> Result<()> {
        self.writer.begin().await?;
        let lock = sql::lock_checkpoint(&self.writer.options.pipeline);
        let waited = self.writer.session.query("wait for the earlier session", &lock).await;
        self.writer.roll_back().await;
        waited.map(drop)
    }

    pub(super) async fn release_tables(&mut self, released: &[TableName]) -> Result<()> {
        let mut tables = self.tables.clone();
        tables.retain(|name, _| !released.contains(name));
        let pipeline = sql::text(&self.writer.options.pipeline);
        let forget = |name: &TableName| {
            format!(
                "DELETE FROM `{}` WHERE `pipeline` = {pipeline} AND `table_name` = {}",
                sql::TOMBSTONE,
                sql::text(&self.writer.naming.target_name(name))
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
                self.writer.roll_back().await;
                Err(error)
            }
        }
    }

    async fn change_if_writer(&mut self, changes: &[String], tables: &str) -> Result<()> {
        const DOING: &str = "change what is recorded of tables";
        self.writer.begin().await?;
        self.lock_own_checkpoint().await?;
        let record = sql::record_tables(&self.writer.options.pipeline, tables);
        self.writer.session.execute(DOING, &record).await?;
        for change in changes {
            self.writer.session.execute(DOING, change).await?;
        }
        self.writer.commit(DOING).await
    }

    /// Compares the fence, and keeps every other writer waiting until this transaction ends.
    pub(super) async fn lock_own_checkpoint(&mut self) -> Result<mysql_async::Row> {
        let (fence, pipeline) = (self.claimed()?, &self.writer.options.pipeline);
        let lock = sql::lock_checkpoint(pipeline);
        let rows = self.writer.session.query("compare the fence", &lock).await;
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
        match found.ok_or_else(|| lost(&self.writer.options.pipeline))?.fence == fence {
            true => Ok(()),
            false => Err(records::fenced(&self.writer.options.pipeline)),
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
            return Err(records::already_running(&self.writer.options.pipeline));
        }
        let forgotten = self.forget_records(claimed).await;
        if forgotten.is_err() {
            self.writer.roll_back().await;
        }
        forgotten?;
        self.fence = None;
        self.tables = Records::new();
        self.drop_own_tables().await.doing("remove our own tables")
    }

    async fn forget_records(&mut self, claimed: bool) -> Result<()> {
        const DOING: &str = "forget the pipeline";
        self.writer.begin().await?;
        if claimed {
            self.lock_own_checkpoint().await?;
        }
        let pipeline = sql::text(&self.writer.options.pipeline);
        for own in [sql::TOMBSTONE, sql::CHECKPOINT] {
            let forget = format!("DELETE FROM `{own}` WHERE `pipeline` = {pipeline}");
            self.writer.session.execute(DOING, &forget).await?;
        }
        self.writer.commit(DOING).await
    }

    /// Drops our own tables when no pipeline has a record in them. Who may lock them does so, so
    /// that nobody claims in between.
    async fn drop_own_tables(&mut self) -> Result<()> {
        let (checkpoint, tombstone) = (sql::CHECKPOINT, sql::TOMBSTONE);
        let lock = format!("LOCK TABLES `{checkpoint}` WRITE, `{tombstone}` WRITE");
        let locked = self.writer.session.execute("lock our own tables", &lock).await;
        if locked.as_ref().is_err_and(|error| error.code != Code::Permission) {
            return locked.map(drop);
        }
        let dropped = self.drop_if_unused().await;
        if locked.is_ok() {
            self.writer.session.execute("unlock our own tables", "UNLOCK TABLES").await?;
        }
        dropped
    }

    async fn drop_if_unused(&mut self) -> Result<()> {
        let (checkpoint, tombstone) = (sql::CHECKPOINT, sql::TOMBSTONE);
        let count = format!("SELECT COUNT(*) FROM `{checkpoint}`");
        let rows = self.writer.session.query("look for other pipelines", &count).await?;
        if rows.first().is_some_and(|row| bytes(row, 0).is_ok_and(|count| count == b"0")) {
            let drop = format!("DROP TABLE `{checkpoint}`, `{tombstone}`");
            self.writer.session.execute("drop our own tables", &drop).await?;
        }
        Ok(())
    }
}

/// The record that our claim made is gone.
fn lost(pipeline: &str) -> Error {
    records::lost(pipeline, sql::CHECKPOINT)
}
