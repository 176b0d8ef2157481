//! Which kind of server is replicated into which, and who can do what between them.

use std::fmt;
use std::str::FromStr;

use driftless::demo::server::Engine;

use crate::contestant::Contestant;
use crate::workloads::Workload;

/// A kind of source and a kind of target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pair {
    /// Against PostgreSQL's own logical replication, pgcopydb and COPY.
    PostgresPostgres,
    /// Against MariaDB's own replication and mariadb-dump.
    MariadbMariadb,
    /// Which only we can do.
    MariadbPostgres,
}

impl Pair {
    /// All of them.
    pub const ALL: [Pair; 3] =
        [Pair::PostgresPostgres, Pair::MariadbMariadb, Pair::MariadbPostgres];

    /// What the changes are made in.
    pub fn source(self) -> Engine {
        match self {
            Pair::PostgresPostgres => Engine::Postgres,
            Pair::MariadbMariadb | Pair::MariadbPostgres => Engine::Mariadb,
        }
    }

    /// Where they go.
    pub fn target(self) -> Engine {
        match self {
            Pair::PostgresPostgres | Pair::MariadbPostgres => Engine::Postgres,
            Pair::MariadbMariadb => Engine::Mariadb,
        }
    }

    /// Who takes part. A contestant that would need half an hour, because it waits for the disk a
    /// million times, is not asked to.
    pub fn contestants(self, workload: Workload) -> &'static [Contestant] {
        use Contestant::{
            BothEnds, Driftless, DriftlessStreaming, Native, NativeDurable, NativeRelaxed,
            NativeRelayed, Pgcopydb, Pipe, PipeBinary, Sender,
        };
        match (self, workload) {
            (Pair::PostgresPostgres, Workload::Copy) => {
                &[Driftless, Native, Pgcopydb, Pipe, PipeBinary]
            }
            (Pair::PostgresPostgres | Pair::MariadbMariadb, Workload::Latency) => {
                &[Driftless, Native]
            }
            (Pair::PostgresPostgres, Workload::Durable) => &[Driftless, Native, NativeDurable],
            (Pair::PostgresPostgres, Workload::Inserts(_)) => {
                &[Driftless, DriftlessStreaming, Native, Sender, BothEnds]
            }
            (Pair::PostgresPostgres, _) => &[Driftless, DriftlessStreaming, Native, Sender],
            (_, Workload::Pgbench) => &[],
            (Pair::MariadbMariadb, Workload::Copy) => &[Driftless, Pipe],
            (Pair::MariadbMariadb, Workload::Inserts(1)) => &[Driftless, NativeRelaxed],
            (Pair::MariadbMariadb, _) => &[Driftless, Native, NativeRelayed],
            (Pair::MariadbPostgres, _) => &[Driftless],
        }
    }
}

impl FromStr for Pair {
    type Err = ();

    fn from_str(text: &str) -> Result<Pair, ()> {
        Pair::ALL.into_iter().find(|pair| pair.to_string() == text).ok_or(())
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Pair::PostgresPostgres => "postgres-postgres",
            Pair::MariadbMariadb => "mariadb-mariadb",
            Pair::MariadbPostgres => "mariadb-postgres",
        })
    }
}
