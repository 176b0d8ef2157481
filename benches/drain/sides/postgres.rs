//! PostgreSQL as a source and as a target.

use std::process::{Command, Stdio};

use driftless::demo::server::session::Session;
use driftless::demo::server::{Engine, PASSWORD, Server, ServerOptions, USER};
use driftless::demo::{Error, Result};

use super::{FINISH, FINISHED, OURS, Side, WORK};
use crate::workload::{Backlog, Workload};

/// The target database of PostgreSQL's own replication.
pub const THEIRS: &str = "theirs";

const PGBENCH_SCALE: &str = "10";
const PGBENCH_CLIENTS: u64 = 4;

/// The same for all servers; a checkpoint in the middle of a drain would hit only one contestant.
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

/// Starts a server.
pub async fn start() -> Result<Side> {
    let settings = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let server = Server::start(ServerOptions { settings, ..ServerOptions::default() }).await?;
    Side::of(Engine::Postgres, server).await
}

/// Makes the source database, with what is in it before the backlog.
pub async fn open_source(side: &Side, workload: Workload, rows: u64) -> Result<()> {
    side.watch.batch_execute(&format!("CREATE DATABASE {WORK}")).await?;
    define(&side.server, WORK, workload, Some(rows)).await
}

/// Makes the target databases.
pub async fn open_target(side: &Side, workload: Workload) -> Result<()> {
    for database in [OURS, THEIRS] {
        side.watch.batch_execute(&format!("CREATE DATABASE {database}")).await?;
    }
    // PostgreSQL's own replication copies rows, but no tables.
    define(&side.server, THEIRS, workload, None).await
}

async fn define(
    server: &Server,
    database: &str,
    workload: Workload,
    rows: Option<u64>,
) -> Result<()> {
    let session = server.session(database).await?;
    session.batch_execute(FINISH).await?;
    if workload == Workload::Pgbench {
        let steps = if rows.is_some() { "dtgvp" } else { "dtp" };
        pgbench(server, database, &["-i", "-q", "-I", steps, "-s", PGBENCH_SCALE])?;
        let key = "ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY";
        return session.batch_execute(key).await;
    }
    session.batch_execute(EVENTS).await?;
    match rows.map(|rows| workload.rows_before(rows)) {
        None | Some(0) => Ok(()),
        Some(before) => {
            session.batch_execute("SET synchronous_commit = off").await?;
            session.batch_execute(&inserts(before, 10_000)).await
        }
    }
}

/// Writes the backlog.
pub async fn work(side: &Side, workload: Workload, rows: u64) -> Result<Backlog> {
    let session = side.server.session(WORK).await?;
    session.batch_execute("SET synchronous_commit = off").await?;
    // A block is alone in its message, because only then may it commit.
    let changes = match workload {
        Workload::Inserts(each) => {
            session.batch_execute(&inserts(rows, each)).await?;
            rows
        }
        Workload::Updates | Workload::Hot => {
            let range = workload.rows_before(rows);
            session.batch_execute(&updates(rows / 2, range)).await?;
            rows / 2
        }
        Workload::Pgbench => {
            let each = (rows / 10 / PGBENCH_CLIENTS).max(1);
            let (clients, count) = (PGBENCH_CLIENTS.to_string(), each.to_string());
            pgbench(&side.server, WORK, &["-n", "-c", &clients, "-j", "2", "-t", &count])?;
            each * PGBENCH_CLIENTS * 4
        }
    };
    session.batch_execute(FINISHED).await?;
    Ok(Backlog { changes, begins_after: None })
}

/// Writes everything that waits to be written, so that it hits nobody.
pub async fn settle(side: &Side) -> Result<()> {
    side.watch.batch_execute("CHECKPOINT").await
}

/// Queries for the number of rows and a checksum, one for each table that this database has.
pub async fn sums_of_any_table(source: &Session) -> Result<Vec<String>> {
    let tables = "SELECT format('SELECT count(*) || '' '' || \
         coalesce(sum(hashtextextended(ROW(%s)::text, 0)::numeric), 0) FROM %I', \
         string_agg(quote_ident(column_name), ', ' ORDER BY ordinal_position), table_name) \
         FROM information_schema.columns WHERE table_schema = 'public' GROUP BY table_name";
    Ok(source.rows(tables).await?.into_iter().flatten().flatten().collect())
}

/// Queries that answer what `mariadb::sums` answers, about replicas of the same tables.
pub fn sums_of_mariadb() -> Vec<String> {
    let sum = |table: &str, row: &str| {
        format!(
            "SELECT count(*) || ' ' || coalesce(sum(('x' || left(md5({row}), 15))::bit(60)::bigint), \
             0) FROM {WORK}.{table}"
        )
    };
    let event = "concat_ws('|', id, kind, coalesce(parent::text, 'NULL'), amount, score, active, \
         name, digest, to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'), token, \
         detail)";
    vec![sum("events", event), sum("finish", "id::text")]
}

/// Removes the target databases.
pub async fn close_target(side: &Side) -> Result<()> {
    let theirs = side.server.session(THEIRS).await?;
    // The slot is dropped at the source; a subscription that is left would keep its database.
    let forget = "DO $$ BEGIN IF EXISTS (SELECT FROM pg_subscription) THEN \
         ALTER SUBSCRIPTION native SET (slot_name = NONE); END IF; END $$; \
         DROP SUBSCRIPTION IF EXISTS native";
    theirs.batch_execute(forget).await?;
    drop(theirs);
    for database in [OURS, THEIRS] {
        side.watch.batch_execute(&format!("DROP DATABASE {database} WITH (FORCE)")).await?;
    }
    Ok(())
}

/// Removes the source database, and the slots that wait for somebody to read it.
pub async fn close_source(side: &Side) -> Result<()> {
    let slots = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
         WHERE database = '{WORK}'"
    );
    side.watch.batch_execute(&slots).await?;
    side.watch.batch_execute(&format!("DROP DATABASE {WORK} WITH (FORCE)")).await
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
