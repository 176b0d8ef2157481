//! A source, a target and a state directory, and what scenarios do with them. What they do with
//! the target alone is in `replica`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use connectors::schema::{TableName, TablePatterns};
use driftless::demo::compare::{Replica, compare};
use driftless::demo::server::session::Session;
use driftless::demo::server::{Engine, PASSWORD, Server, ServerOptions};

use super::daemon::{Daemon, Outcome};
use super::{PATIENCE, Pair, Source, Target, wait_until};

/// Everything that one scenario works with; gone when dropped.
pub struct World {
    /// The kinds of source and target.
    pub pair: Pair,
    /// The source's server.
    pub server: Server,
    /// A session in the source database. After a restart, `reconnect`.
    pub source: Session,
    /// What `--tables` says.
    pub tables: String,
    /// What `--pipeline` says.
    pub pipeline: String,
    /// What `--from` says.
    pub from: String,
    /// What `--to` says.
    pub to: String,
    /// Variables of every command's environment, which override the configuration.
    pub environment: Vec<(String, String)>,
    pub(super) target_server: Option<Server>,
    directory: tempfile::TempDir,
    sentinel: u32,
}

impl World {
    /// A source made by this SQL, and an empty target.
    pub async fn new(pair: Pair, sql: &str) -> World {
        World::with(pair, sql, &[], false).await
    }

    /// The same, with settings of the source's server, and with a server of its own for the
    /// target if asked for.
    pub async fn with(
        pair: Pair,
        sql: &str,
        settings: &[(&str, &str)],
        own_target_server: bool,
    ) -> World {
        let other = pair.target.engine().filter(|_| own_target_server || !pair.share_a_server());
        let target_server = async {
            match other {
                Some(engine) => Some(private_server(engine, &[]).await),
                None => None,
            }
        };
        let (server, target_server) =
            tokio::join!(private_server(pair.source.engine(), settings), target_server);
        let directory = tempfile::tempdir().unwrap();
        let to = match pair.target {
            Target::Sqlite => format!("sqlite:{}", directory.path().join("replica.db").display()),
            Target::Postgres | Target::Mariadb => {
                let host = target_server.as_ref().unwrap_or(&server);
                let session = host.session(host.first_database()).await.unwrap();
                session.batch_execute("CREATE DATABASE replica").await.unwrap();
                host.url("replica")
            }
        };
        if pair.source == Source::Mariadb {
            let session = server.session(server.first_database()).await.unwrap();
            session.batch_execute("CREATE DATABASE shop").await.unwrap();
        }
        let from = server.url(source_database(pair.source, &server));
        let source = session(&from).await;
        source.batch_execute("CREATE TABLE sentinel (n int PRIMARY KEY)").await.unwrap();
        source.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        World {
            pair,
            source,
            tables: format!("{}.*", pair.source.schema()),
            pipeline: "main".into(),
            from,
            to,
            environment: Vec::new(),
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

    /// Schema and name of a table of the source.
    pub fn name(&self, table: &str) -> String {
        format!("{}.{table}", self.pair.source.schema())
    }

    /// Gives a key of the configuration another value: `source.zero_dates`.
    pub fn configure(&mut self, key: &str, value: &str) {
        let variable = key.to_uppercase().replace('.', "__");
        self.environment.push((format!("DRIFTLESS_{variable}"), value.into()));
    }

    /// Runs SQL in the source.
    pub async fn execute(&self, sql: &str) {
        self.source.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// A single value from the source, as text; `None` for NULL and while it cannot be asked.
    pub async fn ask(&self, sql: &str) -> Option<String> {
        self.source.ask(sql).await.ok().flatten()
    }

    /// Removes from a MariaDB source's disk every file of its log but a new one.
    pub async fn purge_the_log(&self) {
        self.execute("FLUSH BINARY LOGS").await;
        // A file stays as long as a crash of the server might need it, or somebody reads it.
        wait_until("the log is purged", async || {
            let files = self.source.rows("SHOW BINARY LOGS").await.unwrap();
            let last = files.last().and_then(|file| file[0].clone()).unwrap();
            self.execute(&format!("PURGE BINARY LOGS TO '{last}'")).await;
            self.source.rows("SHOW BINARY LOGS").await.unwrap().len() == 1
        })
        .await;
    }

    /// Connects to the source again, after its server was restarted.
    pub async fn reconnect(&mut self) {
        let database = source_database(self.pair.source, &self.server);
        self.source = self.server.session(database).await.unwrap();
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

    /// Starts the binary with these arguments.
    pub fn start(&self, arguments: &[String]) -> Daemon {
        Daemon::start_with(arguments, &self.environment)
    }

    /// Starts `driftless run`, with these further arguments.
    pub fn run(&self, more: &[&str]) -> Daemon {
        self.start(&self.arguments(&[&["run"], more].concat()))
    }

    /// Starts `driftless run` so that `Daemon::limit_files` can be used.
    pub fn run_where_files_can_be_limited(&self) -> Daemon {
        Daemon::start_limited(&self.arguments(&["run"]), &self.environment)
    }

    /// Runs a command to its end.
    pub async fn command(&self, command: &[&str]) -> Outcome {
        self.start(&self.arguments(command)).wait().await
    }

    /// Runs until everything that is committed now has arrived, and nobody reads the log.
    pub async fn catch_up(&self) {
        self.command(&["run", "--until-current"]).await.must_exit(0);
        // The server notices the end of our session a moment after we do.
        let readers = self.readers_query();
        wait_until("nobody reads the log", async || {
            self.ask(&readers).await.as_deref() == Some("0")
        })
        .await;
    }

    /// How many sessions read the source's log for this pipeline.
    fn readers_query(&self) -> String {
        match self.pair.source {
            Source::Postgres => format!(
                "SELECT count(*) FROM pg_replication_slots
                 WHERE active AND slot_name = 'driftless_{}'",
                self.pipeline
            ),
            Source::Mariadb => "SELECT count(*) FROM information_schema.processlist
                 WHERE command LIKE 'Binlog Dump%'"
                .into(),
        }
    }

    /// Waits until a running daemon has brought over a row that is written now, and every table
    /// is complete.
    pub async fn arrival(&mut self, daemon: &mut Daemon) {
        self.sentinel += 1;
        let n = self.sentinel;
        self.execute(&format!("INSERT INTO {} VALUES ({n})", self.name("sentinel"))).await;
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

    /// The URL of the source for another role.
    pub fn source_as(&self, role: &str, password: &str) -> String {
        let superuser = self.pair.source.superuser();
        self.from.replace(&format!("{superuser}:{PASSWORD}"), &format!("{role}:{password}"))
    }

    async fn source_tables(&self) -> Vec<(String, String)> {
        let query = self.pair.source.either(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname
             NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2",
            "SELECT table_schema, table_name FROM information_schema.tables
             WHERE table_type = 'BASE TABLE' AND table_schema NOT IN
             ('mysql', 'sys', 'performance_schema', 'replica', 'backup') ORDER BY 1, 2",
        );
        let patterns: Vec<&str> = self.tables.split(',').map(str::trim).collect();
        let patterns = TablePatterns::parse(&patterns, self.pair.source.schema()).unwrap();
        let rows = self.source.rows(query).await.unwrap();
        let names = rows.into_iter().filter_map(|row| match <[_; 2]>::try_from(row) {
            Ok([Some(schema), Some(table)]) => Some((schema, table)),
            _ => None,
        });
        names.filter(|(schema, table)| patterns.matches(&TableName::new(schema, table))).collect()
    }

    async fn compare_table(
        &self,
        schema: &str,
        table: &str,
        caller: &'static std::panic::Location<'static>,
    ) {
        let found = match self.pair.target {
            Target::Postgres | Target::Mariadb => {
                let session = self.target_session().await;
                compare(&self.source, schema, table, &Replica::Server(&session)).await
            }
            Target::Sqlite => {
                let file = self.target_file();
                compare(&self.source, schema, table, &Replica::Sqlite(&file)).await
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

/// The source database: in PostgreSQL the one that every server is born with, because making one
/// takes time.
fn source_database(source: Source, server: &Server) -> &'static str {
    source.either(server.first_database(), "shop")
}

/// A fast server for a test, from a template that all tests share.
pub async fn private_server(engine: Engine, settings: &[(&str, &str)]) -> Server {
    let settings = settings.iter().map(|&(name, value)| (name.into(), value.into())).collect();
    let template_cache = Some(PathBuf::from(env!("CARGO_TARGET_TMPDIR")));
    let options = ServerOptions { engine, careless: true, settings, template_cache };
    Server::start(options).await.unwrap()
}

/// A session with any URL of a private server.
pub async fn session(url: &str) -> Session {
    Session::connect(url).await.unwrap()
}
