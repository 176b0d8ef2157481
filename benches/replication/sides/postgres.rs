//! PostgreSQL as a source and as a target.
//!
//! Surprise: a private server is made with small log files, because a demonstration has many of
//! them; each costs a wait for the disk, so here they get the size that servers are shipped with.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use driftless::demo::server::session::Session;
use driftless::demo::server::{Engine, PASSWORD, Server, ServerOptions, Shutdown, USER};
use driftless::demo::{Error, Result};

use super::{FINISHED, Side, Table, WORK, program_of};
use crate::workloads::{Backlog, Size, Workload, Writes};

/// The publication of those who need one.
pub const PUBLICATION: &str = "everything";

const PGBENCH_CLIENTS: u64 = 4;

/// The same for all servers; a checkpoint in the middle of a drain would hit only one contestant.
/// And a subscription that is enabled within five seconds after another one was would wait for the
/// rest of them, which in a short drain is most of the time.
const SETTINGS: [(&str, &str); 5] = [
    ("wal_retrieve_retry_interval", "10ms"),
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
    let mut server = Server::start(ServerOptions { settings, ..ServerOptions::default() }).await?;
    server.stop(Shutdown::Fast).await?;
    let data = server.data_directory();
    let owner = data.metadata().map_err(|error| Error(format!("look at a server: {error}")))?;
    let mut resize = Command::new(program_of(&server, "pg_resetwal"));
    resize.arg("--wal-segsize=16").arg("-D").arg(&data).env("LC_ALL", "C").current_dir("/");
    must_succeed("pg_resetwal", resize.uid(owner.uid()).gid(owner.gid()))?;
    server.start_again().await?;
    Side::of(Engine::Postgres, server).await
}

/// The settings that decide what survives a power failure, and those that we have changed.
pub async fn describe(session: &Session) -> Result<String> {
    let names = "fsync full_page_writes synchronous_commit wal_segment_size shared_buffers \
         max_wal_size checkpoint_timeout autovacuum_naptime wal_retrieve_retry_interval";
    let query = format!(
        "SELECT string_agg(name || ' = ' || current_setting(name), ', ' ORDER BY place) \
         FROM unnest(string_to_array('{names}', ' ')) WITH ORDINALITY AS settings (name, place)"
    );
    Ok(session.ask(&query).await?.unwrap_or_default())
}

/// Makes the source database, with what is in it before the backlog.
pub async fn open_source(side: &Side, workload: Workload, size: Size) -> Result<()> {
    side.watch.batch_execute(&format!("CREATE DATABASE {WORK}")).await?;
    define(side, WORK, workload, Some(size)).await?;
    let session = side.session(WORK).await?;
    session.batch_execute(&format!("CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES")).await
}

/// Makes a target database; with tables for those who only copy rows.
pub async fn open_target(
    side: &Side,
    database: &str,
    workload: Workload,
    with_tables: bool,
) -> Result<()> {
    side.watch.batch_execute(&format!("CREATE DATABASE {database}")).await?;
    match with_tables {
        true => define(side, database, workload, None).await,
        false => Ok(()),
    }
}

async fn define(side: &Side, database: &str, workload: Workload, size: Option<Size>) -> Result<()> {
    let session = side.session(database).await?;
    for &table in Table::of(workload) {
        session.batch_execute(table.definition(EVENTS)).await?;
    }
    if workload == Workload::Pgbench {
        // A target gets the tables, a source also the rows.
        let (steps, scale) = match size {
            Some(size) => ("dtgvp", size.pgbench_scale()),
            None => ("dtp", 1),
        };
        pgbench(side, database, &["-i", "-q", "-I", steps, "-s", &scale.to_string()])?;
        let key = "ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY";
        return session.batch_execute(key).await;
    }
    match size.map(|size| workload.rows_before(size)) {
        None | Some(0) => Ok(()),
        Some(before) => {
            session.batch_execute("SET synchronous_commit = off").await?;
            session.batch_execute(&inserts(before, 10_000)).await
        }
    }
}

/// Writes the backlog.
pub async fn work(side: &Side, writes: Writes) -> Result<Backlog> {
    let session = side.session(WORK).await?;
    session.batch_execute("SET synchronous_commit = off").await?;
    // A block is alone in its message, because only then may it commit.
    let changes = match writes {
        Writes::Inserts { rows, each } => {
            session.batch_execute(&inserts(rows, each)).await?;
            rows
        }
        Writes::Updates { count, range } => {
            session.batch_execute(&updates(count, range)).await?;
            count
        }
        Writes::Pgbench { transactions } => {
            let each = (transactions / PGBENCH_CLIENTS).max(1);
            let (clients, count) = (PGBENCH_CLIENTS.to_string(), each.to_string());
            pgbench(side, WORK, &["-n", "-c", &clients, "-j", "2", "-t", &count])?;
            each * PGBENCH_CLIENTS * 4
        }
        Writes::Nothing => 0,
    };
    let ends_at = session.ask("SELECT pg_current_wal_insert_lsn()").await?;
    // The sender sends only what is on disk, so nothing of it may wait in memory.
    session.batch_execute("SET synchronous_commit = on").await?;
    session.batch_execute(FINISHED).await?;
    Ok(Backlog { changes, begins_after: None, ends_at })
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
pub fn sums_of_mariadb(workload: Workload) -> Vec<String> {
    let sum = |&table: &Table| {
        let row = match table {
            Table::Events => {
                "concat_ws('|', id, kind, coalesce(parent::text, 'NULL'), amount, score, active, \
                 name, digest, to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'), \
                 token, detail)"
            }
            Table::Ticks => "concat_ws('|', writer, number, note)",
            Table::Finish => "id::text",
        };
        format!(
            "SELECT count(*) || ' ' || \
             coalesce(sum(('x' || left(md5({row}), 15))::bit(60)::bigint), 0) FROM {WORK}.{table}"
        )
    };
    Table::of(workload).iter().map(sum).collect()
}

/// Removes a target database, and a subscription in it.
pub async fn close_target(side: &Side, database: &str) -> Result<()> {
    let session = side.session(database).await?;
    // The slot is dropped at the source; a subscription that is left would keep its database.
    let forget = "DO $$ DECLARE it name; BEGIN FOR it IN SELECT subname FROM pg_subscription s \
         JOIN pg_database d ON d.oid = subdbid WHERE datname = current_database() LOOP \
         EXECUTE format('ALTER SUBSCRIPTION %I DISABLE', it); \
         EXECUTE format('ALTER SUBSCRIPTION %I SET (slot_name = NONE)', it); \
         EXECUTE format('DROP SUBSCRIPTION %I', it); END LOOP; END $$";
    session.batch_execute(forget).await?;
    drop(session);
    side.watch.batch_execute(&format!("DROP DATABASE {database} WITH (FORCE)")).await
}

/// Removes the slots that wait for somebody to read the source, whoever still does.
pub async fn drop_slots(side: &Side) -> Result<()> {
    let readers = format!(
        "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots \
         WHERE database = '{WORK}' AND active"
    );
    side.watch.batch_execute(&readers).await?;
    let slots = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
         WHERE database = '{WORK}'"
    );
    side.watch.batch_execute(&slots).await
}

/// Removes the source database.
pub async fn close_source(side: &Side) -> Result<()> {
    drop_slots(side).await?;
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
         FROM (SELECT n, 1 + (n::bigint * 7919) % {range} AS row \
         FROM generate_series(lowest, least(lowest + 99, {count})) AS n) AS which \
         WHERE id = which.row; COMMIT; END LOOP; END $$"
    )
}

fn pgbench(side: &Side, database: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(side.program("pgbench"));
    command.args(["-h", "127.0.0.1", "-U", USER, "-p", &side.server.port().to_string()]);
    command.args(arguments).arg(database).env("PGPASSWORD", PASSWORD);
    command.env("PGOPTIONS", "-c synchronous_commit=off");
    must_succeed("pgbench", &mut command)
}

fn must_succeed(program: &str, command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| {
        Error(format!("run {program}: {error}; install it with `apt-get install postgresql`"))
    })?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(Error(format!("{program} failed: {}", said.trim())))
        }
    }
}
