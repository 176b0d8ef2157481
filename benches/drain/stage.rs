//! Two private PostgreSQL servers, on disk and with `fsync` on, a source database with a workload
//! in it, and one target database for each contestant. Everything is made anew for each round.

use std::fmt;
use std::process::{Command, Stdio};
use std::str::FromStr;

use driftless::demo::server::{PASSWORD, Server, ServerOptions, USER};
use driftless::demo::{Error, Result};
use tempfile::TempDir;
use tokio_postgres::{Client, SimpleQueryMessage};

/// The source database of a round.
pub const WORK: &str = "work";
/// The target databases of a round.
pub const TARGETS: [&str; 2] = ["ours", "theirs"];

const PGBENCH_SCALE: &str = "10";
const PGBENCH_CLIENTS: u64 = 4;

/// The same for both servers; a checkpoint in the middle of a drain would hit only one of them.
const SETTINGS: [(&str, &str); 4] = [
    ("shared_buffers", "512MB"),
    ("max_wal_size", "16GB"),
    ("checkpoint_timeout", "1h"),
    ("autovacuum_naptime", "1h"),
];

const EVENTS: &str = "CREATE TABLE events (id bigint PRIMARY KEY, kind int NOT NULL, parent int, \
    amount numeric(12,2) NOT NULL, score float8 NOT NULL, active bool NOT NULL, \
    name text NOT NULL, digest text NOT NULL, created_at timestamptz NOT NULL, \
    token uuid NOT NULL, detail jsonb NOT NULL)";

/// The last row of a backlog: whoever has it has everything.
const FINISH: &str = "CREATE TABLE finish (id int PRIMARY KEY)";

/// What the backlog is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Rows of 11 columns, so many a transaction.
    Inserts(u64),
    /// Half as many updates as there are rows, 100 a transaction, each of another row.
    Updates,
    /// As many updates, all of the same thousand rows.
    Hot,
    /// TPC-B: three updates and an insert a transaction.
    Pgbench,
}

/// Rows that the hot workload has.
const HOT_ROWS: u64 = 1000;

impl FromStr for Workload {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Workload, ()> {
        match text.strip_prefix("inserts-") {
            Some(rows) => {
                rows.parse().ok().filter(|rows| *rows > 0).map(Workload::Inserts).ok_or(())
            }
            None => match text {
                "updates" => Ok(Workload::Updates),
                "hot" => Ok(Workload::Hot),
                "pgbench" => Ok(Workload::Pgbench),
                _ => Err(()),
            },
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Workload::Inserts(rows) => write!(f, "inserts-{rows}"),
            Workload::Updates => f.write_str("updates"),
            Workload::Hot => f.write_str("hot"),
            Workload::Pgbench => f.write_str("pgbench"),
        }
    }
}

/// The servers, and a session with each that belongs to nobody's work.
pub struct Stage {
    /// Where the changes are made.
    pub source: Server,
    /// Where they go.
    pub target: Server,
    /// A session in the source server.
    pub source_watch: Client,
    /// A session in the target server.
    pub target_watch: Client,
    /// For the state of driftless and what it says.
    pub scratch: TempDir,
}

impl Stage {
    /// Starts the servers.
    pub async fn set() -> Result<Stage> {
        let settings = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let options = ServerOptions { settings, ..ServerOptions::default() };
        let source = Server::start(options.clone()).await?;
        let target = Server::start(options).await?;
        let source_watch = source.connect_to("postgres").await?;
        let target_watch = target.connect_to("postgres").await?;
        let scratch = tempfile::tempdir();
        let scratch = scratch.map_err(|error| Error(format!("make a directory: {error}")))?;
        Ok(Stage { source, target, source_watch, target_watch, scratch })
    }

    /// Makes the databases of a round and what is in them before the contestants are prepared.
    pub async fn open(&self, workload: Workload, rows: u64) -> Result<()> {
        self.source_watch.batch_execute(&format!("CREATE DATABASE {WORK}")).await?;
        for database in TARGETS {
            self.target_watch.batch_execute(&format!("CREATE DATABASE {database}")).await?;
        }
        self.define(workload, &self.source, WORK, Some(rows)).await?;
        // PostgreSQL's own replication copies rows, but no tables.
        self.define(workload, &self.target, TARGETS[1], None).await
    }

    async fn define(
        &self,
        workload: Workload,
        server: &Server,
        database: &str,
        rows: Option<u64>,
    ) -> Result<()> {
        let client = server.connect_to(database).await?;
        client.batch_execute(FINISH).await?;
        match workload {
            Workload::Inserts(_) => client.batch_execute(EVENTS).await?,
            Workload::Updates | Workload::Hot => {
                client.batch_execute(EVENTS).await?;
                let there = if workload == Workload::Hot { Some(HOT_ROWS) } else { rows };
                if let (Some(_), Some(there)) = (rows, there) {
                    client.batch_execute("SET synchronous_commit = off").await?;
                    client.batch_execute(&inserts(there, 10_000)).await?;
                }
            }
            Workload::Pgbench => {
                let steps = if rows.is_some() { "dtgvp" } else { "dtp" };
                pgbench(server, database, &["-i", "-q", "-I", steps, "-s", PGBENCH_SCALE])?;
                let key = "ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY";
                client.batch_execute(key).await?;
            }
        }
        Ok(())
    }

    /// Writes the backlog; returns how many rows it changes.
    pub async fn work(&self, workload: Workload, rows: u64) -> Result<u64> {
        let client = self.source.connect_to(WORK).await?;
        let changes = match workload {
            Workload::Inserts(each) => {
                client.batch_execute("SET synchronous_commit = off").await?;
                // Alone in its message, because only then may it commit.
                client.batch_execute(&inserts(rows, each)).await?;
                rows
            }
            Workload::Updates | Workload::Hot => {
                let range = if workload == Workload::Hot { HOT_ROWS } else { rows };
                client.batch_execute("SET synchronous_commit = off").await?;
                client.batch_execute(&updates(rows / 2, range)).await?;
                rows / 2
            }
            Workload::Pgbench => {
                let each = (rows / 10 / PGBENCH_CLIENTS).max(1);
                let (clients, count) = (PGBENCH_CLIENTS.to_string(), each.to_string());
                pgbench(&self.source, WORK, &["-n", "-c", &clients, "-j", "2", "-t", &count])?;
                each * PGBENCH_CLIENTS * 4
            }
        };
        client.batch_execute("INSERT INTO finish VALUES (1)").await?;
        Ok(changes)
    }

    /// Gives both servers a clean start.
    pub async fn checkpoint(&self) -> Result<()> {
        self.source_watch.batch_execute("CHECKPOINT").await?;
        Ok(self.target_watch.batch_execute("CHECKPOINT").await?)
    }

    /// Proves that a target database has the rows of the source.
    pub async fn must_be_equal(&self, database: &str) -> Result<()> {
        let source = self.source.connect_to(WORK).await?;
        let target = self.target.connect_to(database).await?;
        let columns = "SELECT quote_ident(table_name), \
             string_agg(quote_ident(column_name), ', ' ORDER BY ordinal_position) \
             FROM information_schema.columns WHERE table_schema = 'public' GROUP BY table_name";
        for row in source.query(columns, &[]).await? {
            let (table, columns): (String, String) = (row.get(0), row.get(1));
            let sum = format!(
                "SELECT count(*) || ' ' || \
                 coalesce(sum(hashtextextended(ROW({columns})::text, 0)::numeric), 0) FROM {table}"
            );
            let (wanted, found) = (value(&source, &sum).await?, value(&target, &sum).await?);
            if wanted != found {
                let message = format!("{database}.{table} is not equal to the source");
                return Err(Error(message));
            }
        }
        Ok(())
    }

    /// Removes the databases and slots of a round.
    pub async fn close(&self) -> Result<()> {
        let theirs = self.target.connect_to(TARGETS[1]).await?;
        // The slot is dropped below; a subscription that is left would keep its database.
        let forget = "DO $$ BEGIN IF EXISTS (SELECT FROM pg_subscription) THEN \
             ALTER SUBSCRIPTION native SET (slot_name = NONE); END IF; END $$; \
             DROP SUBSCRIPTION IF EXISTS native";
        theirs.batch_execute(forget).await?;
        drop(theirs);
        let slots = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE database = '{WORK}'"
        );
        self.source_watch.batch_execute(&slots).await?;
        self.source_watch.batch_execute(&format!("DROP DATABASE {WORK} WITH (FORCE)")).await?;
        for database in TARGETS {
            let drop = format!("DROP DATABASE {database} WITH (FORCE)");
            self.target_watch.batch_execute(&drop).await?;
        }
        Ok(())
    }
}

/// The first value of a query, as text.
pub async fn value(client: &Client, query: &str) -> Result<Option<String>> {
    let row = client.simple_query(query).await?.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    Ok(row)
}

fn inserts(rows: u64, each: u64) -> String {
    format!(
        "DO $$ BEGIN FOR lowest IN 1..{rows} BY {each} LOOP \
         INSERT INTO events SELECT n, n % 1000, nullif(n % 7, 0), round(n * 0.37, 2), \
         n / 7.0::float8, n % 2 = 0, 'event number ' || n, \
         md5(n::text) || md5((n + 1)::text), timestamptz '2026-01-01 UTC' + n * interval '1 s', \
         md5(n::text)::uuid, jsonb_build_object('n', n, 'even', n % 2 = 0, 'kind', n % 1000) \
         FROM generate_series(lowest, least(lowest + {each} - 1, {rows})) AS n; \
         COMMIT; END LOOP; END $$"
    )
}

/// So many updates of three columns, 100 a transaction, spread over the first `range` rows by
/// steps of a prime, so that no row comes twice before all have come.
fn updates(count: u64, range: u64) -> String {
    format!(
        "DO $$ BEGIN FOR lowest IN 1..{count} BY 100 LOOP \
         UPDATE events SET amount = amount + 1, score = score * 2, name = 'changed ' || n \
         FROM (SELECT n, 1 + (n * 7919) % {range} AS row \
         FROM generate_series(lowest, least(lowest + 99, {count})) AS n) AS which \
         WHERE id = which.row; COMMIT; END LOOP; END $$"
    )
}

fn pgbench(server: &Server, database: &str, arguments: &[&str]) -> Result<()> {
    let beside = server.program_directory().join("pgbench");
    let program = if beside.exists() { beside } else { "pgbench".into() };
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-U", USER, "-p", &server.port().to_string()]);
    command.args(arguments).arg(database).env("PGPASSWORD", PASSWORD);
    command.env("PGOPTIONS", "-c synchronous_commit=off");
    let output = command.stdin(Stdio::null()).output().map_err(|error| {
        Error(format!("run pgbench: {error}; install it with `apt-get install postgresql-contrib`"))
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error(format!("pgbench failed: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
