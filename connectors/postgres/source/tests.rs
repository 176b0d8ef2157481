//! The source against a real server: the log, the chunks beside it, and the proofs of gaps.

mod bulk;
mod chunks;
mod gaps;
mod streamed;
mod switch;
mod tls;
mod values;

use std::sync::Arc;

use tokio_postgres::Client;

use super::super::binary::Encoding;
use super::super::testing::Database;
use super::{PostgresSource, source};
use crate::change::{Cell, Change, Key, Row, Transaction};
use crate::error::Code;
use crate::schema::{Column, ColumnType, TablePatterns, TableSchema};
use crate::version::{Position, Version};
use crate::{ChangeStream, Level, Resume, Source, SourceOptions};

const EPOCH: u32 = 3;

/// A database with a source on it.
struct Fixture {
    database: Database,
    client: Client,
    source: PostgresSource,
}

impl Fixture {
    async fn new(sql: &str) -> Fixture {
        Fixture::on(Database::create().await, sql).await
    }

    async fn on(database: Database, sql: &str) -> Fixture {
        let client = database.client().await;
        client.batch_execute("SET search_path = public").await.unwrap();
        client.batch_execute(sql).await.unwrap();
        let pipeline = client.query_one("SELECT current_database()::text", &[]).await.unwrap();
        let mut options = SourceOptions::new(pipeline.get::<_, String>(0), 1 << 20);
        options.in_binary = true;
        let source = source(&database.url(), &options).unwrap();
        Fixture { database, client, source }
    }

    async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    async fn tables(&self) -> Vec<Arc<TableSchema>> {
        let all = TablePatterns::parse(&["public.*"], "public").unwrap();
        self.source.tables(&all).await.unwrap()
    }

    /// Subscribes afresh and opens the log.
    async fn start(&self) -> (Position, Box<dyn ChangeStream>) {
        let tables = self.tables().await;
        let position = self.source.subscribe(&tables, None).await.unwrap();
        let stream = self.source.stream(&position, EPOCH, &tables, &[]).await.unwrap();
        (position, stream)
    }

    /// Subscribes afresh.
    async fn subscribed(&self) -> Position {
        self.source.subscribe(&self.tables().await, None).await.unwrap()
    }

    /// Opens the log again.
    async fn open(&self, from: &Position) -> Box<dyn ChangeStream> {
        self.source.stream(from, EPOCH, &self.tables().await, &[]).await.unwrap()
    }

    /// Everything that the log has until now.
    async fn read_all(&self, stream: &mut Box<dyn ChangeStream>) -> Vec<Transaction> {
        let marker = self.source.mark(EPOCH).await.unwrap();
        let mut transactions = Vec::new();
        loop {
            let transaction = stream.next().await.unwrap();
            let end = transaction.complete && transaction.version >= marker;
            transactions.push(transaction);
            if end {
                return transactions;
            }
        }
    }

    /// What the log says until now, in words.
    async fn log(&self, stream: &mut Box<dyn ChangeStream>) -> Vec<String> {
        let transactions = self.read_all(stream).await;
        transactions.iter().flat_map(|t| &t.changes).map(words).collect()
    }

    fn slot(&self) -> &str {
        &self.source.slot
    }
}

fn text(cell: Cell<'_>) -> String {
    match cell {
        Cell::Null => "NULL".into(),
        Cell::Absent => "absent".into(),
        Cell::Binary(_) => panic!("a value in binary"),
        Cell::Value(value) if value.len() > 100 => format!("{} bytes", value.len()),
        Cell::Value(value) => String::from_utf8_lossy(value).into_owned(),
    }
}

/// The row with all of its values as text.
fn plain(table: &TableSchema, row: &Row) -> Row {
    let texts: Vec<Vec<u8>> = table.columns.iter().zip(row.cells()).map(text_of).collect();
    let cells = row.cells().zip(&texts);
    Row::from_cells(cells.map(|(cell, text)| match cell {
        Cell::Binary(_) => Cell::Value(text),
        cell => cell,
    }))
}

fn text_of((column, cell): (&Column, Cell<'_>)) -> Vec<u8> {
    let mut text = Vec::new();
    if let Cell::Binary(value) = cell {
        Encoding::of_column(column).unwrap().push_text(value, &mut text).unwrap();
    }
    text
}

fn row_words(row: &Row) -> String {
    row.cells().map(text).collect::<Vec<_>>().join("|")
}

fn key_words(key: &Key) -> String {
    key.values().map(|value| text(Cell::Value(value))).collect::<Vec<_>>().join("|")
}

fn words(change: &Change) -> String {
    let table = &change.table().name;
    match change {
        Change::Upsert { table: shape, row } => {
            format!("{table} + {}", row_words(&plain(shape, row)))
        }
        Change::Delete { key, .. } => format!("{table} - {}", key_words(key)),
        Change::Truncate { .. } => format!("{table} truncated"),
        Change::Halt { code, .. } => format!("{table} halted {code}"),
    }
}

const LONG: &str = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 1000) i)";

#[tokio::test]
async fn the_log_has_every_change_in_its_order() {
    let fixture = Fixture::new(
        "CREATE TABLE t (k int, v text, big text, g int GENERATED ALWAYS AS (k * 2) STORED, \
         PRIMARY KEY (k)); CREATE TABLE u (a int, b text, PRIMARY KEY (b, a)); \
         CREATE TABLE f (k int PRIMARY KEY, big text); ALTER TABLE f REPLICA IDENTITY FULL; \
         CREATE TABLE p (k int PRIMARY KEY, v text) PARTITION BY RANGE (k); \
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); \
         CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)",
    )
    .await;
    let (_, mut stream) = fixture.start().await;
    fixture.run(&format!("INSERT INTO t VALUES (1, 'a', NULL), (2, NULL, {LONG})")).await;
    fixture.run("UPDATE t SET v = 'b' WHERE k = 2; UPDATE t SET k = 3 WHERE k = 2").await;
    fixture.run("DELETE FROM t WHERE k = 1").await;
    fixture.run("INSERT INTO u VALUES (1, 'x'); UPDATE u SET b = 'y'; DELETE FROM u").await;
    fixture.run(&format!("INSERT INTO f VALUES (1, {LONG}); UPDATE f SET k = 2")).await;
    fixture.run("INSERT INTO p VALUES (1, 'a'); UPDATE p SET k = 11").await;
    fixture.run("BEGIN; INSERT INTO t VALUES (9); ROLLBACK").await;
    fixture.run("TRUNCATE t, u; INSERT INTO u VALUES (2, 'z')").await;
    let expected = [
        "t + 1|a|NULL",
        "t + 2|NULL|32000 bytes",
        "t + 2|b|absent",
        "t - 2",
        "t + 3|b|absent",
        "t - 1",
        "u + 1|x",
        "u - x|1",
        "u + 1|y",
        "u - y|1",
        "f + 1|32000 bytes",
        "f - 1",
        "f + 2|32000 bytes",
        "p + 1|a",
        "p - 1",
        "p + 11|a",
        "t truncated",
        "u truncated",
        "u + 2|z",
    ];
    assert_eq!(fixture.log(&mut stream).await, expected);
}

#[tokio::test]
async fn a_transaction_has_one_version_and_rising_ordinals() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let (start, mut stream) = fixture.start().await;
    fixture.run("BEGIN; INSERT INTO t VALUES (1); INSERT INTO t VALUES (2); COMMIT").await;
    fixture.run("INSERT INTO t VALUES (3)").await;
    let transactions = fixture.read_all(&mut stream).await;
    let versions: Vec<Version> =
        transactions.iter().cloned().flat_map(Transaction::versioned).map(|(v, _)| v).collect();
    assert_eq!(
        versions.iter().map(|v| (v.epoch, v.ordinal)).collect::<Vec<_>>(),
        [(EPOCH, 1), (EPOCH, 2), (EPOCH, 1)]
    );
    assert!(versions[0].log == versions[1].log && versions[1].log < versions[2].log);
    assert!(fixture.source.version_of(&start, EPOCH).unwrap() < versions[0]);
    for transaction in &transactions {
        let version = fixture.source.version_of(&transaction.position, EPOCH).unwrap();
        assert_eq!(version, transaction.version);
    }
}

#[tokio::test]
async fn a_stream_goes_on_after_the_position_that_was_reached() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let (_, mut stream) = fixture.start().await;
    fixture.run("INSERT INTO t VALUES (1)").await;
    let reached = fixture.read_all(&mut stream).await.pop().unwrap().position;
    stream.acknowledge(&reached).await.unwrap();
    drop(stream);
    fixture.run("INSERT INTO t VALUES (2)").await;
    let tables = fixture.tables().await;
    let resumed = fixture.source.subscribe(&tables, Some(Resume::at(&reached))).await.unwrap();
    assert_eq!(resumed, reached);
    let mut stream = fixture.source.stream(&resumed, EPOCH, &tables, &[]).await.unwrap();
    assert_eq!(fixture.log(&mut stream).await, ["t + 2"]);
    assert!(fixture.source.lag_bytes(&reached).await.unwrap() > 0);
}

#[tokio::test]
async fn next_loses_nothing_when_it_is_dropped_again_and_again() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    let (_, mut stream) = fixture.start().await;
    fixture.run(&format!("INSERT INTO t SELECT k, {LONG} FROM generate_series(1, 50) k")).await;
    fixture.run("ALTER TABLE t ADD COLUMN w int; INSERT INTO t VALUES (51, 'a', 7)").await;
    let marker = fixture.source.mark(EPOCH).await.unwrap();
    let mut seen = Vec::new();
    loop {
        // Polled at most a few times, then dropped: in the middle of a frame, of a query.
        let step = tokio::time::timeout(std::time::Duration::from_micros(50), stream.next()).await;
        let Ok(transaction) = step else { continue };
        let transaction = transaction.unwrap();
        seen.extend(transaction.changes.iter().map(words));
        if transaction.version >= marker {
            break;
        }
    }
    let mut expected: Vec<String> = (1..=50).map(|k| format!("t + {k}|32000 bytes")).collect();
    expected.push("t + 51|a|7".into());
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_change_of_shape_that_cannot_be_followed_halts_its_table_only() {
    let fixture = Fixture::new(
        "CREATE TABLE a (k int PRIMARY KEY, v int); CREATE TABLE b (k int PRIMARY KEY, v int); \
         CREATE TABLE c (k int PRIMARY KEY, v int); CREATE TABLE d (k int PRIMARY KEY)",
    )
    .await;
    let (_, mut stream) = fixture.start().await;
    fixture.run("INSERT INTO a VALUES (1, 1); ALTER TABLE a ADD COLUMN w int DEFAULT 5").await;
    fixture.run("INSERT INTO a VALUES (2, 2, 2); INSERT INTO b VALUES (1, 1)").await;
    assert_eq!(fixture.log(&mut stream).await, ["a + 1|1", "a + 2|2|2", "b + 1|1"]);
    fixture.run("ALTER TABLE b DROP COLUMN v; INSERT INTO b VALUES (3)").await;
    fixture.run("ALTER TABLE c ALTER v TYPE bigint; INSERT INTO c VALUES (1, 1)").await;
    fixture.run("INSERT INTO d VALUES (1); ALTER TABLE d RENAME TO e").await;
    fixture.run("INSERT INTO e VALUES (2), (3)").await;
    let expected = ["b + 3", "c + 1|1", "d halted schema-change"];
    assert_eq!(fixture.log(&mut stream).await, expected);
}

#[tokio::test]
async fn rows_from_before_a_drop_halt_the_table() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, v int)").await;
    let tables = fixture.tables().await;
    let position = fixture.source.subscribe(&tables, None).await.unwrap();
    fixture.run("INSERT INTO t VALUES (1, 1); ALTER TABLE t DROP COLUMN v").await;
    fixture.run("INSERT INTO t VALUES (2)").await;
    let mut stream = fixture.source.stream(&position, EPOCH, &tables, &[]).await.unwrap();
    assert_eq!(fixture.log(&mut stream).await, ["t halted schema-change"]);
}

#[tokio::test]
async fn an_idle_source_moves_the_position_past_what_is_not_published() {
    let fixture = Fixture::new(
        "CREATE TABLE t (k int PRIMARY KEY); CREATE SCHEMA other; CREATE TABLE other.u (k int)",
    )
    .await;
    let (_, mut stream) = fixture.start().await;
    let sql = "INSERT INTO other.u SELECT generate_series(1, 1000); \
               SELECT pg_current_wal_lsn()::text";
    fixture.run(sql).await;
    let lsn: super::Lsn = {
        let row = fixture.client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await;
        row.unwrap().get::<_, String>(0).parse().unwrap()
    };
    loop {
        let transaction = stream.next().await.unwrap();
        assert_eq!((transaction.changes.len(), transaction.complete), (0, true));
        stream.acknowledge(&transaction.position).await.unwrap();
        if transaction.version.log >= lsn.0 {
            break;
        }
    }
    let confirmed = "SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots \
                     WHERE slot_name = $2";
    loop {
        let row = fixture.client.query_one(confirmed, &[&lsn.to_string(), &fixture.slot()]).await;
        if row.unwrap().get(0) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn tables_have_the_types_and_keys_of_the_catalog() {
    let fixture = Fixture::new(
        "CREATE TYPE mood AS ENUM ('ok'); CREATE DOMAIN price AS numeric(10,2); \
         CREATE TABLE t (a int, b varchar(9) NOT NULL, c price, d mood, e int[], f mood[], \
         g timestamptz, h uuid, i jsonb, j int4range, k bpchar, UNIQUE (b)); \
         ALTER TABLE t DROP COLUMN a; ALTER TABLE t REPLICA IDENTITY USING INDEX t_b_key",
    )
    .await;
    let table = fixture.tables().await.remove(0);
    let columns: Vec<(&str, ColumnType, Option<&str>)> = table
        .columns
        .iter()
        .map(|column| (column.name.as_str(), column.column_type, column.native.as_deref()))
        .collect();
    let expected = [
        ("b", ColumnType::Text, Some("character varying(9)")),
        ("c", ColumnType::Numeric, Some("numeric(10,2)")),
        ("d", ColumnType::Text, None),
        ("e", ColumnType::Other, Some("integer[]")),
        ("f", ColumnType::Other, None),
        ("g", ColumnType::TimestampTz, Some("timestamp with time zone")),
        ("h", ColumnType::Uuid, Some("uuid")),
        ("i", ColumnType::Json, Some("jsonb")),
        ("j", ColumnType::Other, Some("int4range")),
        ("k", ColumnType::Text, Some("bpchar")),
    ];
    assert_eq!(columns, expected);
    assert_eq!((table.key.as_slice(), table.columns[0].id), ([0].as_slice(), 2));
}

#[tokio::test]
async fn a_table_that_cannot_be_replicated_is_named() {
    let check = async |sql: &str, patterns: &[&str], code: Code| {
        let fixture = Fixture::new(sql).await;
        let patterns = TablePatterns::parse(patterns, "public").unwrap();
        let error = fixture.source.tables(&patterns).await.unwrap_err();
        assert_eq!((error.code, error.is_transient()), (code, false), "{error}");
        let findings = fixture.source.check(&patterns).await.unwrap();
        assert!(findings.iter().any(|finding| finding.level == Level::Failure), "{findings:?}");
    };
    check("CREATE TABLE t (k int)", &["*.*"], Code::NoKey).await;
    check("CREATE UNLOGGED TABLE t (k int PRIMARY KEY)", &["t"], Code::SourceSettings).await;
    check("CREATE TABLE t (k int PRIMARY KEY)", &["t", "nothing"], Code::MissingTable).await;
}

#[tokio::test]
async fn check_finds_a_fresh_server_ready_and_changes_nothing() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let all = TablePatterns::parse(&["public.*"], "public").unwrap();
    let findings = fixture.source.check(&all).await.unwrap();
    let failed: Vec<_> = findings.iter().filter(|f| f.level == Level::Failure).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(fixture.source.subscription().await.unwrap(), None);
}

#[tokio::test]
async fn check_names_what_a_poor_role_is_missing() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let role = format!("poor_{}", fixture.slot());
    fixture.run(&format!("CREATE ROLE {role} LOGIN")).await;
    let url = fixture.database.url().replace("postgres@", &format!("{role}@"));
    let options = SourceOptions::new("poor", 1);
    let poor = source(&url, &options).unwrap();
    let all = TablePatterns::parse(&["public.*"], "public").unwrap();
    let findings = poor.check(&all).await.unwrap();
    let remedies: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.level == Level::Failure)
        .map(|finding| finding.remedy.as_str())
        .collect();
    let all_of = remedies.join("\n");
    assert!(all_of.contains("REPLICATION"), "{all_of}");
    assert!(all_of.contains("GRANT SELECT ON \"public\".\"t\""), "{all_of}");
    assert!(all_of.contains("CREATE PUBLICATION \"driftless_poor\""), "{all_of}");
}

#[tokio::test]
async fn unsubscribe_leaves_nothing_and_may_be_repeated() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let (_, stream) = fixture.start().await;
    let there = fixture.source.subscription().await.unwrap();
    assert_eq!(there, Some(format!("replication slot and publication {}", fixture.slot())));
    assert_eq!(fixture.source.unsubscribe().await.unwrap_err().code, Code::SlotInUse);
    fixture.source.evict().await.unwrap();
    drop(stream);
    fixture.source.unsubscribe().await.unwrap();
    fixture.source.unsubscribe().await.unwrap();
    assert_eq!(fixture.source.subscription().await.unwrap(), None);
}
