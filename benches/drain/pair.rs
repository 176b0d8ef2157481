//! Which kind of server is replicated into which, and who can do that.

use std::fmt;
use std::str::FromStr;

use driftless::demo::server::Engine;

use crate::contestants::Contestant;
use crate::workload::Workload;

/// A kind of source and a kind of target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pair {
    /// Against PostgreSQL's own logical replication.
    PostgresPostgres,
    /// Against MariaDB's own replication.
    MariadbMariadb,
    /// Which only we can do.
    MariadbPostgres,
}

impl Pair {
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

    /// Whether somebody can replicate this.
    pub fn knows(self, contestant: Contestant) -> bool {
        match contestant {
            Contestant::Driftless => true,
            Contestant::Native => self.source() == self.target(),
            Contestant::NativeRelayed => self == Pair::MariadbMariadb,
        }
    }

    /// What is measured unless something else is asked for.
    pub fn usual_workloads(self) -> Vec<Workload> {
        match self.source() {
            Engine::Postgres => vec![Workload::Inserts(100), Workload::Pgbench],
            Engine::Mariadb => vec![Workload::Inserts(100), Workload::Updates],
        }
    }

    /// Whether the source can make this backlog.
    pub fn can_do(self, workload: Workload) -> bool {
        self.source() == Engine::Postgres || workload != Workload::Pgbench
    }
}

impl FromStr for Pair {
    type Err = ();

    fn from_str(text: &str) -> Result<Pair, ()> {
        let pairs = [Pair::PostgresPostgres, Pair::MariadbMariadb, Pair::MariadbPostgres];
        pairs.into_iter().find(|pair| pair.to_string() == text).ok_or(())
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
