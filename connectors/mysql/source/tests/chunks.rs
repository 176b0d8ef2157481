//! Chunks beside the log: whatever the order in which they arrive, the greatest version of each
//! key is what the source has.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::sync::oneshot;

use super::*;
use crate::change::Chunk;
use crate::{ChunkRequest, RowReader};

/// All chunks of a table.
async fn read_table(
    reader: &mut Box<dyn RowReader>,
    table: &Arc<TableSchema>,
    rows_max: usize,
) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    loop {
        let after = chunks.last().and_then(|chunk| chunk.next.clone());
        let not_below = Version::ZERO;
        let request =
            ChunkRequest { table, after: after.as_ref(), filter: None, rows_max, not_below };
        chunks.push(reader.read_chunk(&request).await.unwrap());
        if chunks.last().unwrap().next.is_none() {
            return chunks;
        }
    }
}

/// The rows of a table in chunks of two, in words, in the order in which they come; then the same
/// rows by their keys.
async fn check_order(columns: &str, key: &str, rows: &str, expected: &[&str]) {
    let create = format!("CREATE TABLE t ({columns}, PRIMARY KEY ({key}))");
    let fixture = Fixture::new(&format!("{create};\nINSERT INTO t VALUES {rows}")).await;
    let (_, _stream) = fixture.start().await;
    let table = fixture.tables().await.remove(0);
    let mut reader = fixture.source.reader().await.unwrap();
    let chunks = read_table(&mut reader, &table, 2).await;
    let rows: Vec<_> = chunks.iter().flat_map(|chunk| &chunk.rows).collect();
    let found: Vec<String> = rows.iter().map(|(key, _)| key_words(key)).collect();
    assert_eq!(found, expected, "{columns}");
    let keys: Vec<Key> = rows.iter().map(|(key, _)| key.clone()).collect();
    let again = reader.read_keys(&table, &keys, Version::ZERO).await.unwrap();
    assert_eq!(again.rows.len(), keys.len(), "{columns}");
    let plain = reader.read_plain_keys(&table, &keys).await.unwrap();
    assert_eq!(plain.len(), keys.len(), "{columns}");
}

#[tokio::test]
async fn keys_of_numbers_go_on_where_a_chunk_ended() {
    check_order(
        "k bigint",
        "k",
        "(-5), (3), (0), (-9223372036854775808), (9223372036854775807)",
        &["-9223372036854775808", "-5", "0", "3", "9223372036854775807"],
    )
    .await;
    check_order(
        "k bigint unsigned",
        "k",
        "(1), (18446744073709551615), (9223372036854775808)",
        &["1", "9223372036854775808", "18446744073709551615"],
    )
    .await;
    check_order(
        "k decimal(30,10)",
        "k",
        "(-1.5), (12345678901234567890.0123456789), (2), (2.5)",
        &["-1.5000000000", "2.0000000000", "2.5000000000", "12345678901234567890.0123456789"],
    )
    .await;
    check_order(
        "k double",
        "k",
        "(0.1), (-1e300), (1e-300), (0)",
        &["-1e+300", "0", "1e-300", "0.1"],
    )
    .await;
    check_order(
        "k float",
        "k",
        "(0.1), (0.3), (0.2), (16777216)",
        &["0.1", "0.2", "0.3", "1.6777216e+07"],
    )
    .await;
    check_order(
        "k bit(9)",
        "k",
        "(b'1'), (b'111111111'), (b'0')",
        &["000000000", "000000001", "111111111"],
    )
    .await;
    check_order("k smallint unsigned zerofill", "k", "(7), (65535), (1)", &["1", "7", "65535"])
        .await;
    check_order("k year", "k", "(2026), (1901), (0)", &["0", "1901", "2026"]).await;
}

#[tokio::test]
async fn keys_of_texts_go_on_in_the_order_of_their_collation() {
    check_order(
        "k varchar(9)",
        "k",
        "('b'), ('A'), ('a2'), ('ä1'), ('B3')",
        &["A", "ä1", "a2", "b", "B3"],
    )
    .await;
    let latin = "k varchar(9) CHARACTER SET latin1 COLLATE latin1_german1_ci";
    check_order(latin, "k", "('z'), ('Ä'), ('é'), ('€')", &["Ä", "é", "z", "€"]).await;
    for charset in ["ucs2", "utf16", "utf32", "utf8mb3", "gbk", "sjis"] {
        let column = format!("k varchar(9) CHARACTER SET {charset}");
        check_order(&column, "k", "('c'), ('a'), ('b')", &["a", "b", "c"]).await;
    }
    check_order("k char(5)", "k", "('x'), (''), ('y ')", &["", "x", "y"]).await;
    check_order(
        "k varbinary(9)",
        "k",
        "('a\\\\'), (x'00ff'), ('')",
        &["\\x", "\\x00ff", "\\x615c"],
    )
    .await;
    check_order(
        "k binary(3)",
        "k",
        "('a'), (x'00ff00'), ('')",
        &["\\x000000", "\\x00ff00", "\\x610000"],
    )
    .await;
    check_order("k enum('z','it''s','a')", "k", "('a'), ('z'), ('it''s')", &["z", "it's", "a"])
        .await;
    check_order("k set('z','a','b')", "k", "('a'), ('z,b'), (''), ('b')", &["", "a", "b", "z,b"])
        .await;
}

#[tokio::test]
async fn keys_of_times_go_on_where_a_chunk_ended() {
    check_order(
        "k date",
        "k",
        "('2026-01-02'), ('1999-12-31'), ('9999-12-31')",
        &["1999-12-31", "2026-01-02", "9999-12-31"],
    )
    .await;
    check_order(
        "k datetime(6)",
        "k",
        "('2026-01-02 03:04:05.000001'), ('2026-01-02'), ('2026-01-02 03:04:05')",
        &["2026-01-02 00:00:00", "2026-01-02 03:04:05", "2026-01-02 03:04:05.000001"],
    )
    .await;
    check_order(
        "k timestamp(3)",
        "k",
        "('2026-01-02 03:04:05.1'), ('2026-01-02 03:04:05'), ('2030-01-01')",
        &["2026-01-02 03:04:05+00", "2026-01-02 03:04:05.1+00", "2030-01-01 00:00:00+00"],
    )
    .await;
    check_order(
        "k time(1)",
        "k",
        "('-838:59:59'), ('12:00'), ('-1:00:00.5')",
        &["-838:59:59", "-01:00:00.5", "12:00:00"],
    )
    .await;
    if !testing::is_mysql() {
        check_order(
            "k uuid",
            "k",
            "('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'), ('00000000-0000-0000-0000-000000000001')",
            &["00000000-0000-0000-0000-000000000001", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
        )
        .await;
        check_order(
            "k inet6",
            "k",
            "('::2'), ('::1'), ('2001:db8::')",
            &["::1", "::2", "2001:db8::"],
        )
        .await;
    }
}

#[tokio::test]
async fn a_key_of_several_columns_is_compared_column_by_column() {
    let columns = "v text, a int unsigned, b varchar(5)";
    let rows = "('x', 2, 'a'), ('y', 1, 'b'), ('z', 1, 'A'), ('u', 2, 'B'), ('w', 0, '')";
    check_order(columns, "a, b", rows, &["0|", "1|A", "1|b", "2|a", "2|B"]).await;
}

#[tokio::test]
async fn a_filter_restricts_a_chunk_and_its_errors_are_the_filters() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, v int)").await;
    fixture.run("INSERT INTO t VALUES (1, 1), (2, NULL), (3, 3), (4, 0)").await;
    let table = fixture.tables().await.remove(0);
    let mut reader = fixture.source.reader().await.unwrap();
    let mut read = async |filter: &str| {
        let (rows_max, not_below) = (9, Version::ZERO);
        let filter = Some(filter);
        let request = ChunkRequest { table: &table, after: None, filter, rows_max, not_below };
        reader.read_plain(&request).await
    };
    let (rows, next) = read("v > 0 -- all of them").await.unwrap();
    assert_eq!((rows.len(), next), (2, None));
    let error = read("v >").await.unwrap_err();
    assert_eq!(error.code, Code::Configuration);
    assert!(error.message.contains("--where"), "{error}");
}

#[tokio::test]
async fn a_table_that_changed_its_shape_is_not_read() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, v int, w int)").await;
    fixture.run("INSERT INTO t VALUES (1, 1, 1)").await;
    let table = fixture.tables().await.remove(0);
    let mut reader = fixture.source.reader().await.unwrap();
    let mut read = async || {
        let (rows_max, not_below, filter) = (9, Version::ZERO, None);
        let request = ChunkRequest { table: &table, after: None, filter, rows_max, not_below };
        reader.read_plain(&request).await
    };
    assert_eq!(read().await.unwrap().0.len(), 1);
    fixture.run("ALTER TABLE t ADD COLUMN x int FIRST").await;
    assert_eq!(read().await.unwrap().0.len(), 1);
    fixture.run("ALTER TABLE t DROP COLUMN w").await;
    assert_eq!(read().await.unwrap_err().code, Code::SchemaChange);
    fixture.run("ALTER TABLE t ADD COLUMN w int, DROP PRIMARY KEY, ADD PRIMARY KEY (k, w)").await;
    assert_eq!(read().await.unwrap_err().code, Code::SchemaChange);
    fixture.run("DROP TABLE t").await;
    assert_eq!(read().await.unwrap_err().code, Code::MissingTable);
}

#[tokio::test]
async fn whether_any_row_has_a_value_is_asked_of_the_source() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, a int, b int)").await;
    let table = fixture.tables().await.remove(0);
    let mut reader = fixture.source.reader().await.unwrap();
    fixture.run("INSERT INTO t VALUES (1, NULL, NULL)").await;
    let columns = ["a".to_owned(), "b".to_owned()];
    assert!(!reader.any_value(&table, &columns).await.unwrap());
    fixture.run("UPDATE t SET b = 0").await;
    assert!(reader.any_value(&table, &columns).await.unwrap());
    assert!(!reader.any_value(&table, &columns[..1]).await.unwrap());
    assert_eq!(fixture.source.estimate_rows(&table).await.unwrap(), 1);
}

/// What a target would hold: per key the greatest version, and the row or its absence.
#[derive(Default)]
struct Replica {
    rows: HashMap<Key, (Version, Option<Row>)>,
    truncated: Option<Version>,
}

impl Replica {
    fn put(&mut self, key: Key, version: Version, row: Option<Row>) {
        if self.truncated.is_some_and(|truncated| version < truncated) {
            return;
        }
        match self.rows.get_mut(&key) {
            Some(held) if held.0 > version => {}
            Some(held) => *held = (version, row),
            None => drop(self.rows.insert(key, (version, row))),
        }
    }

    fn apply(&mut self, transaction: Transaction) {
        for (version, change) in transaction.versioned() {
            match change {
                Change::Upsert { table, row } => {
                    self.put(Key::of(&table, &row).unwrap(), version, Some(row));
                }
                Change::Delete { key, .. } => self.put(key, version, None),
                Change::Truncate { .. } => {
                    self.truncated = Some(version);
                    self.rows.retain(|_, (held, _)| *held > version);
                }
                Change::Halt { message, .. } => panic!("{message}"),
            }
        }
    }

    fn put_chunk(&mut self, chunk: Chunk) {
        for (key, row) in chunk.rows {
            self.put(key, chunk.version, Some(row));
        }
    }

    fn rows(&self) -> BTreeMap<String, String> {
        let alive = self.rows.iter().filter_map(|(key, (_, row))| Some((key, row.as_ref()?)));
        alive.map(|(key, row)| (key_words(key), row_words(row))).collect()
    }
}

/// Writes without a pause until told to stop.
async fn write(mut client: Conn, seed: u64, mut stop: oneshot::Receiver<()>) {
    let mut state = seed;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % below
    };
    // Row locks and table locks do not know of each other, so their deadlocks take that long.
    let patience = "SET SESSION innodb_lock_wait_timeout = 1, SESSION lock_wait_timeout = 1";
    client.query_drop(patience).await.unwrap();
    if !testing::is_mysql() {
        client.query_drop(format!("SET SESSION gtid_domain_id = {seed}")).await.unwrap();
    }
    while stop.try_recv().is_err() {
        let (k, other) = (random(40), random(40));
        let statements = match random(60) {
            0 => vec!["TRUNCATE t".to_owned()],
            1 => vec!["FLUSH BINARY LOGS".to_owned()],
            2..=3 => vec![
                format!("XA START 'x{seed}'"),
                format!("REPLACE INTO t VALUES ({k}, {other})"),
                format!("XA END 'x{seed}'"),
                format!("XA PREPARE 'x{seed}'"),
                format!("XA {} 'x{seed}'", if other > 20 { "COMMIT" } else { "ROLLBACK" }),
            ],
            4..=12 => vec![format!("DELETE FROM t WHERE k = {k}")],
            13..=20 => vec![
                "BEGIN".to_owned(),
                format!("DELETE FROM t WHERE k = {other}"),
                format!("UPDATE t SET k = {other} WHERE k = {k}"),
                "COMMIT".to_owned(),
            ],
            _ => vec![format!(
                "INSERT INTO t VALUES ({k}, {other}) ON DUPLICATE KEY UPDATE v = t.v + 1"
            )],
        };
        for statement in statements {
            // Writers may be in each other's way.
            if client.query_drop(&statement).await.is_err() {
                for end in [format!("XA END 'x{seed}'"), format!("XA ROLLBACK 'x{seed}'")] {
                    let _ = client.query_drop(end).await;
                }
                let _ = client.query_drop("ROLLBACK").await;
                break;
            }
        }
    }
}

async fn check_under_writes(database: Database) {
    let fixture = Fixture::on(database, "CREATE TABLE t (k int PRIMARY KEY, v int)").await;
    let values: Vec<String> = (0..40).map(|k| format!("({k}, 0)")).collect();
    fixture.run(&format!("INSERT INTO t VALUES {}", values.join(", "))).await;
    let table = fixture.tables().await.remove(0);
    let (_, mut stream) = fixture.start().await;
    let mut writers = Vec::new();
    for seed in 1..4 {
        let (stop, stopped) = oneshot::channel();
        let client = fixture.database.client().await;
        writers.push((stop, tokio::spawn(write(client, seed, stopped))));
    }
    let mut reader = fixture.source.reader().await.unwrap();
    let mut replica = Replica::default();
    let mut chunks = Vec::new();
    for round in 0..40 {
        // The log moves on between the chunks and while they are read.
        let reading = read_table(&mut reader, &table, 7);
        tokio::pin!(reading);
        let read = loop {
            tokio::select! {
                read = &mut reading => break read,
                transaction = stream.next() => replica.apply(transaction.unwrap()),
            }
        };
        // Some arrive at once, others long after, out of order.
        match round % 3 {
            0 => chunks.extend(read),
            _ => read.into_iter().rev().for_each(|chunk| replica.put_chunk(chunk)),
        }
    }
    for (stop, writer) in writers {
        stop.send(()).unwrap();
        writer.await.unwrap();
    }
    fixture.read_all(&mut stream).await.into_iter().for_each(|t| replica.apply(t));
    chunks.into_iter().for_each(|chunk| replica.put_chunk(chunk));
    let rows: Vec<(String, String)> = fixture
        .client
        .lock()
        .await
        .query("SELECT CAST(k AS CHAR), CONCAT(k, '|', v) FROM t")
        .await
        .unwrap();
    assert_eq!(replica.rows(), rows.into_iter().collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s51_chunks_under_writes_end_as_the_source() {
    check_under_writes(Database::create().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s51_chunks_under_writes_end_as_the_source_without_gtids() {
    if testing::is_mysql() {
        let settings = ["--gtid-mode=OFF", "--enforce-gtid-consistency=OFF"];
        check_under_writes(Database::alone(&settings).await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s52_a_commit_that_is_logged_but_not_visible_is_not_claimed() {
    let create = "CREATE TABLE t (k int PRIMARY KEY, v text);\nINSERT INTO t VALUES (1, 'old')";
    let fixture = Fixture::on(Database::alone(&[]).await, create).await;
    let table = fixture.tables().await.remove(0);
    let (_, mut stream) = fixture.start().await;
    // A replica that does not exist is waited for, after the log was written.
    let prefix = match testing::is_mysql() {
        true => {
            let plugin = "INSTALL PLUGIN rpl_semi_sync_source SONAME 'semisync_source.so'";
            fixture.run(plugin).await;
            "SET GLOBAL rpl_semi_sync_source"
        }
        false => "SET GLOBAL rpl_semi_sync_master",
    };
    fixture.run(&format!("{prefix}_timeout = 100000")).await;
    fixture.run(&format!("{prefix}_wait_point = AFTER_SYNC")).await;
    fixture.run(&format!("{prefix}_enabled = ON")).await;
    let mut writer = fixture.database.client().await;
    let stalled = tokio::spawn(async move {
        writer.query_drop("UPDATE t SET v = 'new' WHERE k = 1").await.unwrap();
    });
    let (update, commit) = loop {
        let transaction = stream.next().await.unwrap();
        if let Some(change) = transaction.changes.first() {
            break (words(change), transaction.version);
        }
    };
    assert!(update.ends_with("t + 1|new"), "{update}");
    let mut reader = fixture.source.reader().await.unwrap();
    let plain = ChunkRequest {
        table: &table,
        after: None,
        filter: None,
        rows_max: 10,
        not_below: Version::ZERO,
    };
    let (rows, _) = reader.read_plain(&plain).await.unwrap();
    assert_eq!(row_words(&rows[0].1), "1|old", "the stall does not work");
    let keys = [rows[0].0.clone()];
    // A MariaDB says what its snapshot shows; a MySQL is waited for.
    let early = read_table(&mut reader, &table, 10);
    if let Ok(chunks) = tokio::time::timeout(Duration::from_millis(300), early).await {
        assert!(!testing::is_mysql());
        assert_eq!(row_words(&chunks[0].rows[0].1), "1|old");
        assert!(chunks[0].version < commit, "{} claims {commit}", chunks[0].version);
    }
    // What asks for that commit waits until it is visible.
    let reread = reader.reread(&table, &keys, commit.with_ordinal(1));
    assert!(tokio::time::timeout(Duration::from_millis(300), reread).await.is_err());
    fixture.run(&format!("{prefix}_enabled = OFF")).await;
    let rows = reader.reread(&table, &keys, commit.with_ordinal(1)).await.unwrap();
    assert_eq!(row_words(&rows[0].1), "1|new");
    let chunk = reader.read_keys(&table, &keys, commit).await.unwrap();
    assert!(chunk.version >= commit);
    stalled.await.unwrap();
}

#[tokio::test]
async fn an_xa_transaction_that_ends_after_a_chunk_is_not_lost() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, v int)").await;
    let table = fixture.tables().await.remove(0);
    let (_, mut stream) = fixture.start().await;
    let mut other = fixture.database.client().await;
    let prepare = "XA START 'a';\nINSERT INTO t VALUES (1, 1);\nXA END 'a';\nXA PREPARE 'a'";
    testing::run(&mut other, prepare).await;
    let mut reader = fixture.source.reader().await.unwrap();
    let chunk = read_table(&mut reader, &table, 10).await.remove(0);
    assert_eq!(chunk.rows.len(), 0);
    assert_eq!(fixture.log(&mut stream).await, [""; 0], "prepared is not committed");
    testing::run(&mut other, "XA COMMIT 'a'").await;
    let transactions = fixture.read_all(&mut stream).await;
    let commit = transactions.iter().find(|t| !t.changes.is_empty()).unwrap();
    assert!(commit.version > chunk.version);
    let chunk = reader.read_keys(&table, &[], commit.version).await.unwrap();
    assert!(chunk.version >= commit.version);
}

#[tokio::test]
async fn an_invalid_enum_in_a_key_is_not_taken_for_the_label_that_it_reads_like() {
    let fixture = Fixture::new("CREATE TABLE t (k enum('z','','a') PRIMARY KEY, n int)").await;
    let (_, mut stream) = fixture.start().await;
    fixture.run("INSERT INTO t VALUES ('a', 1), ('', 2), ('z', 3)").await;
    assert_eq!(fixture.log(&mut stream).await, ["t + a|1", "t + |2", "t + z|3"]);
    let table = fixture.tables().await.remove(0);
    let mut reader = fixture.source.reader().await.unwrap();
    let chunks = read_table(&mut reader, &table, 1).await;
    let rows = chunks.iter().flat_map(|chunk| &chunk.rows);
    assert_eq!(rows.map(|(key, _)| key_words(key)).collect::<Vec<_>>(), ["z", "", "a"]);

    fixture.run("SET sql_mode = '';\nINSERT INTO t VALUES ('bad', 4)").await;
    assert_eq!(fixture.log(&mut stream).await, ["t halted poison-row"]);
    let error = reader.read_plain(&request(&table)).await.unwrap_err();
    assert_eq!(error.code, Code::PoisonRow);
    assert!(error.message.contains("an invalid ENUM in a key"), "{error}");
}

fn request(table: &Arc<TableSchema>) -> ChunkRequest<'_> {
    ChunkRequest { table, after: None, filter: None, rows_max: 9, not_below: Version::ZERO }
}
