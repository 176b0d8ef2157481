//! Two private servers, on disk and as durable as their engines are as shipped, a source database
//! with a workload in it, and target databases. The databases are made anew for each round. What is
//! said to each kind of server is in `sides`.

use std::time::{Duration, Instant};

use driftless::demo::server::Engine;
use driftless::demo::{Error, Result};
use tempfile::TempDir;

use crate::contestants::Contestant;
use crate::pair::Pair;
use crate::sides::{OURS, Side, WORK, mariadb, postgres};
use crate::workload::{Backlog, Workload};

/// How long a preparation or a drain may take.
pub const PATIENCE: Duration = Duration::from_secs(1800);
/// How often processes are looked at.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The servers.
pub struct Stage {
    /// What kinds they are.
    pub pair: Pair,
    /// Where the changes are made.
    pub source: Side,
    /// Where they go.
    pub target: Side,
    /// For the state of driftless and what it says.
    pub scratch: TempDir,
}

impl Stage {
    /// Starts the servers. `flush_log` is for a MariaDB target.
    pub async fn set(pair: Pair, flush_log: u8) -> Result<Stage> {
        let source = match pair.source() {
            Engine::Postgres => postgres::start().await?,
            Engine::Mariadb => mariadb::start(&mariadb::source_settings()).await?,
        };
        let target = match pair.target() {
            Engine::Postgres => postgres::start().await?,
            Engine::Mariadb => mariadb::start(&mariadb::target_settings(flush_log)).await?,
        };
        let scratch = tempfile::tempdir();
        let scratch = scratch.map_err(|error| Error(format!("make a directory: {error}")))?;
        Ok(Stage { pair, source, target, scratch })
    }

    /// One line about the servers.
    pub async fn describe(&self) -> Result<String> {
        let (source, target) = (self.source.describe().await?, self.target.describe().await?);
        Ok(format!("{}: from {source} to {target}", self.pair))
    }

    /// Makes the databases of a round and what is in them before the contestants are prepared.
    pub async fn open(&self, workload: Workload, rows: u64) -> Result<()> {
        match self.source.engine {
            Engine::Postgres => postgres::open_source(&self.source, workload, rows).await?,
            Engine::Mariadb => mariadb::open_source(&self.source, workload, rows).await?,
        }
        match self.target.engine {
            Engine::Postgres => postgres::open_target(&self.target, workload).await,
            Engine::Mariadb => mariadb::open_target(&self.target).await,
        }
    }

    /// Writes the backlog.
    pub async fn work(&self, workload: Workload, rows: u64) -> Result<Backlog> {
        match self.source.engine {
            Engine::Postgres => postgres::work(&self.source, workload, rows).await,
            Engine::Mariadb => mariadb::work(&self.source, workload, rows).await,
        }
    }

    /// Gives both servers a clean start.
    pub async fn settle(&self) -> Result<()> {
        for side in [&self.source, &self.target] {
            match side.engine {
                Engine::Postgres => postgres::settle(side).await?,
                Engine::Mariadb => mariadb::settle(side).await?,
            }
        }
        Ok(())
    }

    /// Proves that the target of a contestant has the rows of the source.
    pub async fn must_be_equal(&self, contestant: Contestant) -> Result<()> {
        let database = self.database(contestant);
        let source = self.source.server.session(WORK).await?;
        let target = self.target.server.session(database).await?;
        let sums = match self.source.engine {
            Engine::Postgres => postgres::sums_of_any_table(&source).await?,
            Engine::Mariadb => mariadb::sums(),
        };
        let theirs = match self.pair {
            Pair::PostgresPostgres | Pair::MariadbMariadb => sums.clone(),
            Pair::MariadbPostgres => postgres::sums_of_mariadb(),
        };
        for (wanted, found) in sums.iter().zip(&theirs) {
            let (wanted, found) = (source.ask(wanted).await?, target.ask(found).await?);
            if wanted.is_none() || wanted != found {
                return Err(Error(format!(
                    "{database} is not equal to the source: rows and checksum are {found:?} \
                     instead of {wanted:?}"
                )));
            }
        }
        Ok(())
    }

    /// The target database of a contestant.
    pub fn database(&self, contestant: Contestant) -> &'static str {
        match (contestant, self.target.engine) {
            (Contestant::Driftless, _) => OURS,
            (_, Engine::Postgres) => postgres::THEIRS,
            (_, Engine::Mariadb) => mariadb::THEIRS,
        }
    }

    /// Removes the databases of a round, and what the sources keep for somebody.
    pub async fn close(&self) -> Result<()> {
        match self.target.engine {
            Engine::Postgres => postgres::close_target(&self.target).await?,
            Engine::Mariadb => mariadb::close_target(&self.target).await?,
        }
        match self.source.engine {
            Engine::Postgres => postgres::close_source(&self.source).await,
            Engine::Mariadb => mariadb::close_source(&self.source).await,
        }
    }
}

/// Asks again and again.
pub async fn wait_until(
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let started = Instant::now();
    while !condition().await? {
        if started.elapsed() > PATIENCE {
            return Err(Error(format!("waited in vain until {what}")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}
