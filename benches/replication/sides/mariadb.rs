//! MariaDB as a source and as a target.
//!
//! The target is as durable as it comes: every commit reaches the disk, and it has no binary log,
//! neither for driftless nor for its own replication. The source's durability plays no part, since
//! nobody writes there while somebody drains.

use std::time::{Duration, Instant};

use driftless::demo::server::session::Session;
use driftless::demo::server::{Engine, Server, ServerOptions};
use driftless::demo::{Error, Result};

use super::{FINISHED, Side, Table, WORK};
use crate::workloads::{Backlog, Size, Workload, Writes};

/// How long the pages that wait to be written may take.
const SETTLING_TIMEOUT: Duration = Duration::from_secs(300);
/// As shipped.
const DIRTY_PAGES_PERCENT_MAX: u8 = 90;
/// `innodb_flush_log_at_trx_commit` of a target, as shipped: each commit reaches the disk.
const FLUSH_LOG: u8 = 1;

const EVENTS: &str = "CREATE TABLE events (id bigint PRIMARY KEY, kind int NOT NULL, parent int, \
    amount decimal(12,2) NOT NULL, score double NOT NULL, active boolean NOT NULL, \
    name varchar(100) NOT NULL, digest varchar(64) NOT NULL, created_at timestamp(6) NOT NULL, \
    token uuid NOT NULL, detail json NOT NULL)";

/// Settings of a server: their names and values.
type Settings = Vec<(&'static str, String)>;

/// Of both servers. No checkpoint is forced in the middle of a drain: it would hit only one
/// contestant.
fn settings() -> Settings {
    vec![
        ("innodb-buffer-pool-size", "1G".into()),
        // Loose, so that a MySQL starts too, and can be told that it is not meant.
        ("loose-innodb-log-file-size", "2G".into()),
        ("sync-binlog", "0".into()),
    ]
}

/// Of the source; the names of columns are in its log, as we recommend.
pub fn source_settings() -> Settings {
    let mut settings = settings();
    settings.push(("binlog-row-metadata", "FULL".into()));
    settings.push(("innodb-flush-log-at-trx-commit", "2".into()));
    settings
}

/// Of the target.
pub fn target_settings() -> Settings {
    let mut settings = settings();
    settings.push(("server-id", "2".into()));
    settings.push(("skip-log-bin", "ON".into()));
    settings.push(("innodb-flush-log-at-trx-commit", FLUSH_LOG.to_string()));
    settings
}

/// Starts a server.
pub async fn start(settings: &Settings) -> Result<Side> {
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    let options = ServerOptions {
        engine: Engine::Mariadb,
        settings: settings.collect(),
        ..ServerOptions::default()
    };
    let server = Server::start(options).await?;
    match server.is_mysql() {
        false => Side::of(Engine::Mariadb, server).await,
        true => Err(Error(
            "MYSQL_TREE names a MySQL, and the measurements are of MariaDB; let it name a MariaDB, \
             or unset it"
                .into(),
        )),
    }
}

/// The settings that decide what survives a power failure, and those that we have changed.
pub async fn describe(session: &Session) -> Result<String> {
    let query = "SELECT concat('innodb_flush_log_at_trx_commit = ', \
         @@innodb_flush_log_at_trx_commit, ', sync_binlog = ', @@sync_binlog, ', ', \
         if(@@log_bin, 'binary log', 'no binary log'), ', innodb_buffer_pool_size = ', \
         @@innodb_buffer_pool_size, ', innodb_log_file_size = ', @@innodb_log_file_size)";
    Ok(session.ask(query).await?.unwrap_or_default())
}

/// Lets a target wait for the disk once a second only, or again once a commit.
pub async fn relax(side: &Side, relaxed: bool) -> Result<()> {
    let value = if relaxed { 2 } else { FLUSH_LOG };
    side.watch.batch_execute(&format!("SET GLOBAL innodb_flush_log_at_trx_commit = {value}")).await
}

/// Makes the source database, with what is in it before the backlog. The log begins anew, with the
/// statements that do it: a new replica can follow from its beginning.
pub async fn open_source(side: &Side, workload: Workload, size: Size) -> Result<()> {
    side.watch.batch_execute("RESET MASTER").await?;
    side.watch.batch_execute(&format!("CREATE DATABASE {WORK}")).await?;
    define(side, WORK, workload).await?;
    match workload.rows_before(size) {
        0 => Ok(()),
        before => side.session(WORK).await?.batch_execute(&inserts(before, 10_000)).await,
    }
}

/// Makes a target database; MariaDB's own replication makes its database itself.
pub async fn open_target(side: &Side, database: &str) -> Result<()> {
    side.watch.batch_execute(&format!("CREATE DATABASE {database}")).await
}

async fn define(side: &Side, database: &str, workload: Workload) -> Result<()> {
    let session = side.session(database).await?;
    for &table in Table::of(workload) {
        session.batch_execute(table.definition(EVENTS)).await?;
    }
    Ok(())
}

/// Writes the backlog.
pub async fn work(side: &Side, writes: Writes) -> Result<Backlog> {
    let session = side.session(WORK).await?;
    let begins_after = session.ask("SELECT @@gtid_binlog_pos").await?;
    let changes = match writes {
        Writes::Inserts { rows, each } => {
            session.batch_execute(&inserts(rows, each)).await?;
            rows
        }
        Writes::Updates { count, range } => {
            session.batch_execute(&updates(count, range)).await?;
            count
        }
        Writes::Pgbench { .. } => return Err(Error("pgbench is a program of PostgreSQL".into())),
        Writes::Nothing => 0,
    };
    session.batch_execute(FINISHED).await?;
    Ok(Backlog { changes, begins_after, ends_at: None })
}

/// Lets the server write and purge what waits for it, so that it hits nobody.
pub async fn settle(side: &Side) -> Result<()> {
    let limit = |percent| format!("SET GLOBAL innodb_max_dirty_pages_pct = {percent}");
    side.watch.batch_execute(&limit(0)).await?;
    let waiting = "SELECT sum(variable_value) FROM information_schema.global_status \
         WHERE variable_name IN ('INNODB_BUFFER_POOL_PAGES_DIRTY', 'INNODB_HISTORY_LIST_LENGTH')";
    let started = Instant::now();
    while side.watch.ask(waiting).await?.as_deref() != Some("0") {
        if started.elapsed() > SETTLING_TIMEOUT {
            return Err(Error("a MariaDB does not come to rest".into()));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    side.watch.batch_execute(&limit(DIRTY_PAGES_PERCENT_MAX)).await
}

/// Queries for the number of rows and a checksum, one for each table.
/// `postgres::sums_of_mariadb` says the same in the other language.
pub fn sums(workload: Workload) -> Vec<String> {
    let sum = |&table: &Table| {
        let row = match table {
            Table::Events => {
                "concat_ws('|', id, kind, coalesce(parent, 'NULL'), amount, score, active, name, \
                 digest, date_format(created_at, '%Y-%m-%d %H:%i:%s.%f'), token, detail)"
            }
            Table::Ticks => "concat_ws('|', writer, number, note)",
            Table::Finish => "id",
        };
        format!(
            "SELECT concat(count(*), ' ', \
             coalesce(sum(cast(conv(left(md5({row}), 15), 16, 10) AS unsigned)), 0)) FROM {table}"
        )
    };
    Table::of(workload).iter().map(sum).collect()
}

/// Ends MariaDB's own replication, if there is one, and removes a target database.
pub async fn close_target(side: &Side, database: &str) -> Result<()> {
    side.watch.batch_execute("STOP SLAVE; RESET SLAVE ALL").await?;
    side.watch.batch_execute(&format!("DROP DATABASE IF EXISTS {database}")).await
}

/// Removes the source database, and who still reads its log.
pub async fn close_source(side: &Side) -> Result<()> {
    let readers = "SELECT id FROM information_schema.processlist WHERE command = 'Binlog Dump'";
    for reader in side.watch.rows(readers).await?.into_iter().flatten().flatten() {
        // It may just have gone.
        let _ = side.watch.batch_execute(&format!("KILL {reader}")).await;
    }
    side.watch.batch_execute(&format!("DROP DATABASE {WORK}")).await
}

/// One statement a transaction.
fn inserts(rows: u64, each: u64) -> String {
    format!(
        "BEGIN NOT ATOMIC DECLARE lowest bigint DEFAULT 1; WHILE lowest <= {rows} DO \
         INSERT INTO events SELECT n, n % 1000, nullif(n % 7, 0), round(n * 0.37, 2), n / 7e0, \
         n % 2 = 0, concat('event number ', n), concat(md5(n), md5(n + 1)), \
         timestamp '2026-01-01 00:00:00' + INTERVAL n SECOND, {TOKEN}, \
         json_object('n', n, 'even', n % 2 = 0, 'kind', n % 1000) \
         FROM (SELECT lowest + seq AS n FROM seq_0_to_{}) AS numbers WHERE n <= {rows}; \
         SET lowest = lowest + {each}; END WHILE; END",
        each - 1
    )
}

/// MariaDB takes no UUID without version and variant.
const TOKEN: &str = "concat_ws('-', left(md5(n), 8), substr(md5(n), 9, 4), \
    concat('4', substr(md5(n), 13, 3)), concat('8', substr(md5(n), 17, 3)), right(md5(n), 12))";

/// So many updates of three columns, 100 a transaction and statement, spread over the first
/// `range` rows by steps of a prime, so that no row comes twice before all have come.
fn updates(count: u64, range: u64) -> String {
    format!(
        "BEGIN NOT ATOMIC DECLARE lowest bigint DEFAULT 1; WHILE lowest <= {count} DO \
         UPDATE events JOIN (SELECT n, 1 + (n * 7919) % {range} AS row_id \
         FROM (SELECT lowest + seq AS n FROM seq_0_to_99) AS numbers WHERE n <= {count}) AS which \
         ON id = row_id SET amount = amount + 1, score = score + 1, name = concat('changed ', n); \
         SET lowest = lowest + 100; END WHILE; END"
    )
}
