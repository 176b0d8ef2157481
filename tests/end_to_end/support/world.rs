//! A source, a target and a state directory, and what scenarios do with them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use driftless::demo::compare::{Replica, compare};
use driftless::demo::server::{PASSWORD, Server, ServerOptions, USER, connect};
use tokio_postgres::Client;

use super::daemon::{Daemon, Outcome};
use super::{PATIENCE, wait_until};

/// The source database: the one that every server is born with, because making one takes time.
const SOURCE: &str = "postgres";

/// The kinds of targets that every scenario runs against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Another database, of the same server unless the scenario harms the server.
    Postgres,
    /// A file.
    Sqlite,
}

/// Everything that one scenario works with; gone when dropped.
pub struct World {
    /// The source's server.
    pub server: Server,
    /// A session in the source database. After a restart, `reconnect`.
    pub source: Client,
    /// The kind of target.
    pub target: Target,
    /// What `--tables` says.
    pub tables: String,
    /// What `--pipeline` says.
    pub pipeline: String,
    /// What `--from` says.
    pub from: String,
    /// What `--to` says.
    pub to: String,
    target_server: Option<Server>,
    directory: tempfile::TempDir,
    sentinel: u32,
}

impl World {
    /// A source made by this SQL, and an empty target.
    pub async fn new(target: Target, sql: &str) -> World {
        World::with(target, sql, &[], false).await
    }

    /// The same, with settings of the source's server, and with a server of its own for a
    /// PostgreSQL target if asked for.
    pub async fn with(
        target: Target,
        sql: &str,
        settings: &[(&str, &str)],
        own_target_server: bool,
    ) -> World {
        let server = private_server(settings).await;
        let own = own_target_server && target == Target::Postgres;
        let target_server = if own { Some(private_server(&[]).await) } else { None };
        let directory = tempfile::tempdir().unwrap();
        let to = match target {
            Target::Sqlite => format!("sqlite:{}", directory.path().join("replica.db").display()),
            Target::Postgres => {
                let host = target_server.as_ref().unwrap_or(&server);
                let session = host.connect_to("postgres").await.unwrap();
                session.batch_execute("CREATE DATABASE replica").await.unwrap();
                host.url("replica")
            }
        };
        let source = server.connect_to(SOURCE).await.unwrap();
        source.batch_execute("CREATE TABLE sentinel (n int PRIMARY KEY)").await.unwrap();
        source.batch_execute(sql).await.unwrap();
        World {
            source,
            target,
            tables: "public.*".into(),
            pipeline: "main".into(),
            from: server.url(SOURCE),
            to,
            server,
            target_server,
            directory,
            sentinel: 0,
        }
    }

    /// Where the state is kept.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// A file of this name beside the state.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs SQL in the source.
    pub async fn execute(&self, sql: &str) {
        self.source.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// A single value from the source, as text.
    pub async fn ask(&self, sql: &str) -> Option<String> {
        ask(&self.source, sql).await
    }

    /// Connects to the source again, after its server was restarted.
    pub async fn reconnect(&mut self) {
        self.source = self.server.connect_to(SOURCE).await.unwrap();
    }

    /// The arguments of a command with this world's source, target and state.
    pub fn arguments(&self, command: &[&str]) -> Vec<String> {
        let state = self.state().display().to_string();
        let ours: [&str; 10] = [
            "--from",
            &self.from,
            "--to",
            &self.to,
            "--tables",
            &self.tables,
            "--state",
            &state,
            "--pipeline",
            &self.pipeline,
        ];
        command.iter().chain(&ours).map(|word| (*word).to_owned()).collect()
    }

    /// Starts `driftless run`, with these further arguments.
    pub fn run(&self, more: &[&str]) -> Daemon {
        Daemon::start(&self.arguments(&[&["run"], more].concat()))
    }

    /// Runs a command to its end.
    pub async fn command(&self, command: &[&str]) -> Outcome {
        Daemon::start(&self.arguments(command)).wait().await
    }

    /// Runs until everything that is committed now has arrived, and the slot is free again.
    pub async fn catch_up(&self) {
        self.command(&["run", "--until-current"]).await.must_exit(0);
        // The server notices the end of our session a moment after we do.
        let query = format!(
            "SELECT count(*) FROM pg_replication_slots WHERE active AND slot_name = 'driftless_{}'",
            self.pipeline
        );
        super::wait_until("the slot is free", async || {
            self.ask(&query).await.as_deref() != Some("1")
        })
        .await;
    }

    /// Waits until a running daemon has brought over a row that is written now, and every table
    /// is complete.
    pub async fn arrival(&mut self, daemon: &mut Daemon) {
        self.sentinel += 1;
        let n = self.sentinel;
        self.execute(&format!("INSERT INTO sentinel VALUES ({n})")).await;
        // The log runs beside the first copy, so the sentinel alone says nothing about that.
        let query = format!(
            "SELECT count(*) FROM sentinel WHERE n = {n} \
             AND NOT EXISTS (SELECT 1 FROM _cdc_checkpoint WHERE tables LIKE '%\"copying\"%')"
        );
        let deadline = Instant::now() + PATIENCE;
        while self.ask_target(&query).await.as_deref() != Some("1") {
            daemon.must_be_running();
            let late = Instant::now() > deadline;
            assert!(!late, "the sentinel does not arrive; it said\n{}", daemon.stderr());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A session in a PostgreSQL target.
    pub async fn target_session(&self) -> Client {
        assert_eq!(self.target, Target::Postgres);
        let host = self.target_server.as_ref().unwrap_or(&self.server);
        host.connect_to("replica").await.unwrap()
    }

    /// A connection to an SQLite target.
    pub fn target_file(&self) -> rusqlite::Connection {
        assert_eq!(self.target, Target::Sqlite);
        let connection = rusqlite::Connection::open(self.file("replica.db")).unwrap();
        connection.busy_timeout(Duration::from_secs(20)).unwrap();
        connection
    }

    /// A single value from the target, as text; `None` for NULL and while it cannot be asked.
    pub async fn ask_target(&self, sql: &str) -> Option<String> {
        match self.target {
            Target::Postgres => ask(&self.target_session().await, sql).await,
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

    /// Runs SQL, which both kinds of targets understand, in the target.
    pub async fn execute_in_target(&self, sql: &str) {
        match self.target {
            Target::Postgres => self.target_session().await.batch_execute(sql).await.unwrap(),
            Target::Sqlite => self.target_file().execute_batch(sql).unwrap(),
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

    /// Compares every table of the source that this world replicates, by plain SQL.
    #[track_caller]
    pub fn must_be_equal(&self) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            for (schema, table) in self.source_tables().await {
                self.compare_table(&schema, &table, caller).await;
            }
        }
    }

    /// Keeps a copy of the target, to go back to it.
    pub async fn back_up_target(&self) {
        match self.target {
            Target::Sqlite => {
                let copy = self.file("replica.backup").display().to_string();
                self.target_file().execute("VACUUM INTO ?1", [copy]).unwrap();
            }
            Target::Postgres => {
                self.target_maintenance("CREATE DATABASE backup TEMPLATE replica").await;
            }
        }
    }

    /// Replaces the target by the copy.
    pub async fn restore_target(&self) {
        match self.target {
            Target::Sqlite => {
                self.remove_target().await;
                std::fs::rename(self.file("replica.backup"), self.file("replica.db")).unwrap();
            }
            Target::Postgres => {
                self.target_maintenance("DROP DATABASE replica WITH (FORCE)").await;
                self.target_maintenance("ALTER DATABASE backup RENAME TO replica").await;
            }
        }
    }

    /// Replaces the target by an empty one.
    pub async fn remove_target(&self) {
        match self.target {
            Target::Sqlite => {
                for suffix in ["", "-wal", "-shm"] {
                    let _ = std::fs::remove_file(self.file(&format!("replica.db{suffix}")));
                }
            }
            Target::Postgres => {
                self.target_maintenance("DROP DATABASE replica WITH (FORCE)").await;
                self.target_maintenance("CREATE DATABASE replica").await;
            }
        }
    }

    /// The URL of the source for another role.
    pub fn source_as(&self, role: &str, password: &str) -> String {
        self.from.replace(&format!("{USER}:{PASSWORD}"), &format!("{role}:{password}"))
    }

    async fn target_maintenance(&self, sql: &str) {
        let host = self.target_server.as_ref().unwrap_or(&self.server);
        host.connect_to("postgres").await.unwrap().batch_execute(sql).await.unwrap();
    }

    async fn source_tables(&self) -> Vec<(String, String)> {
        let query = "SELECT schemaname::text, tablename::text FROM pg_tables WHERE schemaname
             NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2";
        let patterns: Vec<&str> = self.tables.split(',').map(str::trim).collect();
        let patterns = connectors::schema::TablePatterns::parse(&patterns, "public").unwrap();
        let rows = self.source.query(query, &[]).await.unwrap();
        let names = rows.iter().map(|row| (row.get(0), row.get(1)));
        names
            .filter(|(schema, table): &(String, String)| {
                patterns.matches(&connectors::schema::TableName::new(schema, table))
            })
            .collect()
    }

    async fn compare_table(
        &self,
        schema: &str,
        table: &str,
        caller: &'static std::panic::Location<'static>,
    ) {
        let found = match self.target {
            Target::Postgres => {
                let session = self.target_session().await;
                compare(&self.source, schema, table, &Replica::Postgres(&session)).await
            }
            Target::Sqlite => {
                let file = self.target_file();
                compare_with_file(&self.source, schema, table, &file).await
            }
        };
        let found = found.unwrap_or_else(|error| panic!("at {caller}: compare {table}: {error}"));
        let few = |rows: &[String]| rows[..rows.len().min(5)].join("\n  ");
        assert!(
            found.is_equal(),
            "at {caller}: table {schema}.{table} differs: {} rows in the source, {} in the target; \
             {} missing\n  {}\n{} extra\n  {}",
            found.source_rows,
            found.replica_rows,
            found.missing.len(),
            few(&found.missing),
            found.extra.len(),
            few(&found.extra)
        );
    }
}

/// A fast server for a test, from a template that all tests share.
pub async fn private_server(settings: &[(&str, &str)]) -> Server {
    let settings = settings.iter().map(|&(name, value)| (name.into(), value.into())).collect();
    let template_cache = Some(PathBuf::from(env!("CARGO_TARGET_TMPDIR")));
    let options = ServerOptions { careless: true, settings, template_cache };
    Server::start(options).await.unwrap()
}

/// A single value, as text; `None` for NULL and while it cannot be asked.
pub async fn ask(client: &Client, sql: &str) -> Option<String> {
    let messages = client.simple_query(sql).await.ok()?;
    messages.into_iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    })
}

/// A session with any URL of a private server.
pub async fn session(url: &str) -> Client {
    connect(url).await.unwrap()
}

async fn compare_with_file(
    source: &Client,
    schema: &str,
    table: &str,
    file: &rusqlite::Connection,
) -> driftless::demo::Result<driftless::demo::compare::Comparison> {
    compare(source, schema, table, &Replica::Sqlite(file)).await
}
