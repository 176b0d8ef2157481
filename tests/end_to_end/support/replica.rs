//! What scenarios do with the target alone: ask it, change it by hand, keep a copy of it.

use std::time::Duration;

use driftless::demo::compare::backticked;
use driftless::demo::server::Server;
use driftless::demo::server::session::Session;

use super::{Daemon, Source, Target, World, wait_until};

impl World {
    /// A session in a target that is a server. A table of the source is found by its plain name.
    pub async fn target_session(&self) -> Session {
        let session = self.target_host().session("replica").await.unwrap();
        if self.pair.target == Target::Postgres && self.pair.source == Source::Mariadb {
            session.batch_execute("SET search_path = shop, public").await.unwrap();
        }
        session
    }

    /// A connection to an SQLite target.
    pub fn target_file(&self) -> rusqlite::Connection {
        assert_eq!(self.pair.target, Target::Sqlite);
        let connection = rusqlite::Connection::open(self.file("replica.db")).unwrap();
        connection.busy_timeout(Duration::from_secs(20)).unwrap();
        connection
    }

    /// Where a target that is a server listens.
    pub fn target_port(&self) -> u16 {
        self.target_host().port()
    }

    /// A single value from the target, as text; `None` for NULL and while it cannot be asked.
    pub async fn ask_target(&self, sql: &str) -> Option<String> {
        match self.pair.target {
            Target::Postgres | Target::Mariadb => {
                self.target_session().await.ask(sql).await.ok().flatten()
            }
            Target::Sqlite => {
                let value = self.target_file().query_row(sql, [], |row| row.get(0)).ok()?;
                match value {
                    rusqlite::types::Value::Integer(number) => Some(number.to_string()),
                    rusqlite::types::Value::Real(number) => Some(number.to_string()),
                    rusqlite::types::Value::Text(text) => Some(text),
                    rusqlite::types::Value::Null | rusqlite::types::Value::Blob(_) => None,
                }
            }
        }
    }

    /// How many tables of this name the target has, in any schema.
    pub async fn tables_in_target(&self, table: &str) -> u32 {
        let query = match self.pair.target {
            Target::Postgres => "SELECT count(*) FROM pg_tables WHERE tablename",
            Target::Mariadb => {
                "SELECT count(*) FROM information_schema.tables
                 WHERE table_schema = 'replica' AND table_name"
            }
            Target::Sqlite if !self.file("replica.db").exists() => return 0,
            Target::Sqlite => "SELECT count(*) FROM sqlite_schema WHERE name",
        };
        let count = self.ask_target(&format!("{query} = '{table}'")).await;
        count.and_then(|count| count.parse().ok()).expect("a number")
    }

    /// Runs SQL, which all kinds of targets understand, in the target.
    pub async fn execute_in_target(&self, sql: &str) {
        match self.pair.target {
            Target::Postgres | Target::Mariadb => {
                let done = self.target_session().await.batch_execute(sql).await;
                done.unwrap_or_else(|error| panic!("{sql}: {error}"));
            }
            Target::Sqlite => self.target_file().execute_batch(sql).unwrap(),
        }
    }

    /// Makes the place where the target's tables will be, before driftless does.
    pub async fn make_target_schema(&self) {
        if self.pair.target == Target::Postgres && self.pair.source == Source::Mariadb {
            self.execute_in_target("CREATE SCHEMA shop").await;
        }
    }

    /// Waits until the target answers this, or the daemon ends.
    pub async fn until_target_says(&self, daemon: &mut Daemon, sql: &str, answer: &str) {
        let what = format!("the target answers {answer:?} to {sql}");
        wait_until(&what, async || {
            daemon.must_be_running();
            self.ask_target(sql).await.as_deref() == Some(answer)
        })
        .await;
    }

    /// A run stops with one of these codes and says what to type; nothing moved; what it said to
    /// type mends it. There is a table `t` with a text `v`.
    pub async fn must_refuse_then_resync(&self, codes: &[&str]) {
        let before = self.state_of_t().await;
        let outcome = self.command(&["run", "--until-current"]).await;
        let stopped = codes.iter().any(|code| outcome.stderr.contains(&format!("[{code}]")));
        assert!(stopped && outcome.code != Some(0), "expected {codes:?}: {outcome}");
        outcome.must_say("--resync");
        assert_eq!(self.state_of_t().await, before, "the target moved");
        self.command(&["run", "--until-current", "--resync"]).await.must_exit(0);
        self.must_be_equal().await;
    }

    async fn state_of_t(&self) -> Vec<Option<String>> {
        let mut state = Vec::new();
        for what in ["count(*)", "max(v)", "sum(length(v))"] {
            state.push(self.ask_target(&format!("SELECT {what} FROM t")).await);
        }
        state
    }

    /// Keeps a copy of the target, to go back to it.
    pub async fn back_up_target(&self) {
        match self.pair.target {
            Target::Sqlite => {
                let copy = self.file("replica.backup").display().to_string();
                self.target_file().execute("VACUUM INTO ?1", [copy]).unwrap();
            }
            Target::Postgres => {
                self.target_maintenance("CREATE DATABASE backup TEMPLATE replica").await;
            }
            Target::Mariadb => {
                self.target_maintenance("CREATE DATABASE backup").await;
                for table in self.mariadb_tables("replica").await {
                    self.target_maintenance(&format!(
                        "CREATE TABLE backup.{table} LIKE replica.{table};
                         INSERT INTO backup.{table} SELECT * FROM replica.{table}"
                    ))
                    .await;
                }
            }
        }
    }

    /// Replaces the target by the copy.
    pub async fn restore_target(&self) {
        match self.pair.target {
            Target::Sqlite => {
                self.remove_target().await;
                std::fs::rename(self.file("replica.backup"), self.file("replica.db")).unwrap();
            }
            Target::Postgres => {
                self.target_maintenance("DROP DATABASE replica WITH (FORCE)").await;
                self.target_maintenance("ALTER DATABASE backup RENAME TO replica").await;
            }
            Target::Mariadb => {
                self.remove_target().await;
                for table in self.mariadb_tables("backup").await {
                    let rename = format!("RENAME TABLE backup.{table} TO replica.{table}");
                    self.target_maintenance(&rename).await;
                }
                self.target_maintenance("DROP DATABASE backup").await;
            }
        }
    }

    /// Replaces the target by an empty one.
    pub async fn remove_target(&self) {
        match self.pair.target {
            Target::Sqlite => {
                for suffix in ["", "-wal", "-shm"] {
                    let _ = std::fs::remove_file(self.file(&format!("replica.db{suffix}")));
                }
            }
            Target::Postgres => {
                self.target_maintenance("DROP DATABASE replica WITH (FORCE)").await;
                self.target_maintenance("CREATE DATABASE replica").await;
            }
            Target::Mariadb => {
                self.target_maintenance("DROP DATABASE replica; CREATE DATABASE replica").await;
            }
        }
    }

    fn target_host(&self) -> &Server {
        assert_ne!(self.pair.target, Target::Sqlite);
        self.target_server.as_ref().unwrap_or(&self.server)
    }

    async fn target_maintenance(&self, sql: &str) {
        let host = self.target_host();
        let session = host.session(host.first_database()).await.unwrap();
        session.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    async fn mariadb_tables(&self, database: &str) -> Vec<String> {
        let host = self.target_host();
        let session = host.session(host.first_database()).await.unwrap();
        let query = format!(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = '{database}'"
        );
        let rows = session.rows(&query).await.unwrap();
        rows.into_iter().flatten().flatten().map(|name| backticked(&name)).collect()
    }
}
