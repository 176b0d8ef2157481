//! What is said to each kind of server to make databases, backlogs and checksums.
//!
//! Both kinds have the same tables, so that the figures of the pairs can be compared.

pub mod mariadb;
pub mod postgres;

use std::fmt;
use std::path::PathBuf;

use driftless::demo::Result;
use driftless::demo::server::session::Session;
use driftless::demo::server::{Engine, Server};

use crate::workloads::Workload;

/// The source database of a round.
pub const WORK: &str = "work";
/// What our own sessions are called, so that nobody is charged for them.
pub const BENCH: &str = "bench";

/// The last row of a backlog: whoever has it has everything.
const FINISH: &str = "CREATE TABLE finish (id int PRIMARY KEY)";
/// Writes it.
pub const FINISHED: &str = "INSERT INTO finish VALUES (1)";
/// The small transactions of `latency`.
const TICKS: &str = "CREATE TABLE ticks (writer int NOT NULL, number int NOT NULL, \
    note varchar(100) NOT NULL, PRIMARY KEY (writer, number))";

/// A server, and a session with it that belongs to nobody's work.
pub struct Side {
    /// What kind it is.
    pub engine: Engine,
    /// The server.
    pub server: Server,
    /// A session with none of the databases of a round.
    pub watch: Session,
}

impl Side {
    async fn of(engine: Engine, server: Server) -> Result<Side> {
        let watch = server.session(server.first_database()).await?;
        Ok(Side { engine, server, watch })
    }

    /// A session of our own with a database.
    pub async fn session(&self, database: &str) -> Result<Session> {
        let session = self.server.session(database).await?;
        if self.engine == Engine::Postgres {
            session.batch_execute(&format!("SET application_name = '{BENCH}'")).await?;
        }
        Ok(session)
    }

    /// What it is and how durable.
    pub async fn describe(&self) -> Result<String> {
        let version = self.server.version()?;
        Ok(match self.engine {
            Engine::Postgres => {
                format!("PostgreSQL {version} ({})", postgres::describe(&self.watch).await?)
            }
            Engine::Mariadb => {
                format!("MariaDB {version} ({})", mariadb::describe(&self.watch).await?)
            }
        })
    }

    /// A program that came with the server, or the one in PATH.
    pub fn program(&self, name: &str) -> PathBuf {
        program_of(&self.server, name)
    }
}

fn program_of(server: &Server, name: &str) -> PathBuf {
    let directory = server.program_directory();
    // Some of the programs may be linked into a directory of PATH, and others not.
    let linked = directory.join("postgres").canonicalize().unwrap_or_default();
    let places = [directory.join(name), linked.with_file_name(name)];
    places.into_iter().find(|place| place.exists()).unwrap_or_else(|| name.into())
}

/// The tables that are ours, not pgbench's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    /// Eleven columns of mixed types.
    Events,
    /// Small transactions.
    Ticks,
    /// One row, the last of a backlog.
    Finish,
}

impl Table {
    fn of(workload: Workload) -> &'static [Table] {
        match workload {
            Workload::Inserts(_)
            | Workload::Durable
            | Workload::Updates
            | Workload::Hot
            | Workload::Huge
            | Workload::Copy => &[Table::Events, Table::Finish],
            Workload::Pgbench => &[Table::Finish],
            Workload::Latency => &[Table::Ticks, Table::Finish],
        }
    }

    /// The statement that makes it; that of the events has the types of the server.
    fn definition(self, events: &'static str) -> &'static str {
        match self {
            Table::Events => events,
            Table::Ticks => TICKS,
            Table::Finish => FINISH,
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Table::Events => "events",
            Table::Ticks => "ticks",
            Table::Finish => "finish",
        })
    }
}
