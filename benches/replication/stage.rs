//! Two private servers, on disk and as durable as their engines are as shipped, a source database
//! with a workload in it, and a target database for each contestant. The databases are made anew
//! for each round. What is said to each kind of server is in `sides`.

use std::time::{Duration, Instant};

use driftless::demo::server::Engine;
use driftless::demo::{Error, Result};
use tempfile::TempDir;

use crate::contestant::Contestant;
use crate::pair::Pair;
use crate::sides::{Side, WORK, mariadb, postgres};
use crate::workloads::{Backlog, Size, Workload};

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
    /// For the state of driftless and what programs say.
    pub scratch: TempDir,
}

/// What a target must have: queries for rows and checksums there, and their answers.
pub struct Wanted(Vec<(String, Option<String>)>);

impl Stage {
    /// Starts the servers.
    pub async fn set(pair: Pair) -> Result<Stage> {
        let source = match pair.source() {
            Engine::Postgres => postgres::start().await?,
            Engine::Mariadb => mariadb::start(&mariadb::source_settings()).await?,
        };
        let target = match pair.target() {
            Engine::Postgres => postgres::start().await?,
            Engine::Mariadb => mariadb::start(&mariadb::target_settings()).await?,
        };
        let scratch = tempfile::tempdir();
        let scratch = scratch.map_err(|error| Error(format!("make a directory: {error}")))?;
        Ok(Stage { pair, source, target, scratch })
    }

    /// One line about each server.
    pub async fn describe(&self) -> Result<String> {
        let (source, target) = (self.source.describe().await?, self.target.describe().await?);
        Ok(format!("{}\n  from {source}\n  to   {target}", self.pair))
    }

    /// Makes the source database, and what is in it before the contestants are prepared.
    pub async fn open_source(&self, workload: Workload, size: Size) -> Result<()> {
        match self.source.engine {
            Engine::Postgres => postgres::open_source(&self.source, workload, size).await,
            Engine::Mariadb => mariadb::open_source(&self.source, workload, size).await,
        }
    }

    /// Makes the target database of a contestant, as it needs it.
    pub async fn open_target(&self, contestant: Contestant, workload: Workload) -> Result<()> {
        if !contestant.has_target() {
            return Ok(());
        }
        let database = self.database(contestant);
        let with_tables = match contestant {
            Contestant::Native
            | Contestant::NativeDurable
            | Contestant::BothEnds
            | Contestant::Pipe
            | Contestant::PipeBinary => true,
            Contestant::Driftless
            | Contestant::DriftlessStreaming
            | Contestant::NativeRelayed
            | Contestant::NativeRelaxed
            | Contestant::Sender
            | Contestant::Pgcopydb => false,
        };
        match self.target.engine {
            Engine::Postgres => {
                postgres::open_target(&self.target, &database, workload, with_tables).await
            }
            Engine::Mariadb if database == WORK => Ok(()),
            Engine::Mariadb => mariadb::open_target(&self.target, &database).await,
        }
    }

    /// Writes the backlog.
    pub async fn work(&self, workload: Workload, size: Size) -> Result<Backlog> {
        let writes = workload.writes(size);
        match self.source.engine {
            Engine::Postgres => postgres::work(&self.source, writes).await,
            Engine::Mariadb => mariadb::work(&self.source, writes).await,
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

    /// What the source has now, to be compared with targets.
    pub async fn wanted(&self, workload: Workload) -> Result<Wanted> {
        let source = self.source.session(WORK).await?;
        let ours = match self.source.engine {
            Engine::Postgres => postgres::sums_of_any_table(&source).await?,
            Engine::Mariadb => mariadb::sums(workload),
        };
        let theirs = match self.pair {
            Pair::PostgresPostgres | Pair::MariadbMariadb => ours.clone(),
            Pair::MariadbPostgres => postgres::sums_of_mariadb(workload),
        };
        let mut wanted = Vec::new();
        for (ours, theirs) in ours.iter().zip(theirs) {
            let answer = source.ask(ours).await?;
            if answer.is_none() {
                return Err(Error(format!("the source has no answer to {ours}")));
            }
            wanted.push((theirs, answer));
        }
        match wanted.is_empty() {
            false => Ok(Wanted(wanted)),
            true => Err(Error("the source has no tables to compare".into())),
        }
    }

    /// Proves that the target of a contestant has the rows of the source.
    pub async fn must_have(&self, contestant: Contestant, wanted: &Wanted) -> Result<()> {
        let database = self.database(contestant);
        let target = self.target.session(&database).await?;
        for (query, wanted) in &wanted.0 {
            let found = target.ask(query).await;
            let found = found.map_err(|error| Error(format!("{contestant}: {error}")))?;
            if found != *wanted {
                return Err(Error(format!(
                    "{contestant} has not made the target equal to the source: rows and checksum \
                     are {found:?} instead of {wanted:?}, asked by {query}"
                )));
            }
        }
        Ok(())
    }

    /// The target database of a contestant. MariaDB's own replication does not rename.
    pub fn database(&self, contestant: Contestant) -> String {
        let keeps_name = matches!(
            contestant,
            Contestant::Native | Contestant::NativeRelayed | Contestant::NativeRelaxed
        );
        match self.target.engine {
            Engine::Mariadb if keeps_name => WORK.into(),
            Engine::Postgres | Engine::Mariadb => contestant.identifier(),
        }
    }

    /// Where a contestant puts a table: the database of a session that can see it, and its name
    /// there. MariaDB's own replication makes its database late, so that is another one.
    pub fn place(&self, contestant: Contestant, table: &str) -> (String, String) {
        let database = self.database(contestant);
        match self.pair {
            Pair::PostgresPostgres => (database, table.into()),
            Pair::MariadbPostgres => (database, format!("{WORK}.{table}")),
            Pair::MariadbMariadb => {
                (self.target.server.first_database().into(), format!("{database}.{table}"))
            }
        }
    }

    /// Removes the target database of a contestant.
    pub async fn close_target(&self, contestant: Contestant) -> Result<()> {
        let database = self.database(contestant);
        match self.target.engine {
            _ if !contestant.has_target() => Ok(()),
            Engine::Postgres => postgres::close_target(&self.target, &database).await,
            Engine::Mariadb => mariadb::close_target(&self.target, &database).await,
        }
    }

    /// Lets the source forget that somebody will go on reading its log.
    pub async fn forget_readers(&self) -> Result<()> {
        match self.source.engine {
            Engine::Postgres => postgres::drop_slots(&self.source).await,
            // It keeps nothing for anybody.
            Engine::Mariadb => Ok(()),
        }
    }

    /// Removes the source database, and what the source keeps for somebody.
    pub async fn close_source(&self) -> Result<()> {
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
