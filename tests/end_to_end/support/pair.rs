//! What is replicated into what, and the few words of SQL that differ.

use driftless::demo::server::mariadb::ADMIN;
use driftless::demo::server::{Engine, USER};

/// The kinds of sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Postgres,
    /// Or a MySQL, if MYSQL_TREE names one.
    Mariadb,
}

/// The kinds of targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Another database, of the source's server if that is of the same kind, unless the scenario
    /// harms the server.
    Postgres,
    /// The same.
    Mariadb,
    /// A file.
    Sqlite,
}

/// A source and a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub source: Source,
    pub target: Target,
}

impl Pair {
    /// The pair that the list of `for_each_pair!` names.
    pub fn of(source: &str, target: &str) -> Pair {
        let source = match source {
            "postgres" => Source::Postgres,
            "mariadb" => Source::Mariadb,
            other => panic!("there is no kind of source called {other}"),
        };
        let target = match target {
            "postgres" => Target::Postgres,
            "mariadb" => Target::Mariadb,
            "sqlite" => Target::Sqlite,
            other => panic!("there is no kind of target called {other}"),
        };
        Pair { source, target }
    }

    /// Whether source and target may be databases of one server.
    pub fn share_a_server(self) -> bool {
        self.target.engine() == Some(self.source.engine())
    }
}

impl Source {
    pub fn engine(self) -> Engine {
        self.either(Engine::Postgres, Engine::Mariadb)
    }

    /// What holds for a PostgreSQL, or what holds for a MariaDB.
    pub fn either<T>(self, postgres: T, mariadb: T) -> T {
        match self {
            Source::Postgres => postgres,
            Source::Mariadb => mariadb,
        }
    }

    /// The schema of the tables that are replicated; in MariaDB, the database.
    pub fn schema(self) -> &'static str {
        self.either("public", "shop")
    }

    /// Digits that no two numbers `n` of a series share.
    pub fn digits(self) -> &'static str {
        self.either("md5(n::text)", "left(sha2(n, 224), 32)")
    }

    /// Who may do everything.
    pub fn superuser(self) -> &'static str {
        self.either(USER, ADMIN)
    }

    /// The numbers `n` from 1, to select from.
    pub fn series(self, last: u32) -> String {
        match self {
            Source::Postgres => format!("generate_series(1, {last}) n"),
            Source::Mariadb => format!(
                "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {last})
                  SELECT n FROM s) series"
            ),
        }
    }
}

impl Target {
    /// The kind of server, if it is one.
    pub fn engine(self) -> Option<Engine> {
        match self {
            Target::Postgres => Some(Engine::Postgres),
            Target::Mariadb => Some(Engine::Mariadb),
            Target::Sqlite => None,
        }
    }
}
