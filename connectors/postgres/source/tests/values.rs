//! Values in binary: they are those of the text, and a log that has others is read as text.

use super::*;
use crate::ChunkRequest;
use crate::error::{Error, Kind};
use crate::postgres::values::InBinary;

const TYPES: &str = "CREATE TYPE mood AS ENUM ('sad', 'so so'); CREATE TABLE t (a numeric(9, 2), b timestamptz, k name, big text, bo boolean, \
    i2 smallint, i4 integer, i8 bigint, f4 real, f8 double precision, n numeric, v varchar(9), \
    c char(5), y bytea, d date, ti time, ts timestamp, u uuid, j json, jb jsonb, \
    e mood, tz timetz(3), iv interval day to second, o oid, l pg_lsn, ip inet, net cidr, m macaddr, \
    bi bit(9), vb bit varying, ai int[], at timestamp(3)[], av varchar(9)[], PRIMARY KEY (k, b, a))";

const ROWS: &str = "INSERT INTO t SELECT i / 3.0, timestamptz '2000-01-01' + i * interval '37 days', \
    'k' || i, repeat(md5(i::text), 200), i % 2 = 0, i, -i, i * 1e12::bigint, i / 7.0, 1 / (i + 0.3), \
    i * 1e20::numeric - 1e-5, 'v' || i, 'c', int8send(i), date '0044-03-15 BC' + i * 99, \
    time '00:00' + i * interval '1.000001 s', timestamp 'infinity', md5(i::text)::uuid, '{\"a\" : 1}', \
    jsonb_build_object('i', i), (ARRAY['sad', 'so so'])[i % 2 + 1]::mood, time '12:00:00.5', \
    i * interval '-1.5 days', i * 41943040::bigint, pg_lsn '0/0' + i * 1e10::numeric, inet '::1' + i, \
    cidr '10.0.0.0/8', macaddr '08:00:2b:01:02:03', i::bit(9), i::bit(9), \
    ARRAY[[i, NULL], [-i, 0]], ARRAY[timestamp '2000-01-01' + i * interval '1 s'], \
    ARRAY['v' || i, '', NULL, 'a \"b'] FROM generate_series(0, 99) i; \
    INSERT INTO t (a, b, k) VALUES (0, '-infinity', ''); \
    UPDATE t SET v = 'new' WHERE i2 = 7; UPDATE t SET a = a + 1000 WHERE i2 IN (8, 9); \
    DELETE FROM t WHERE i2 > 90";

impl Fixture {
    /// What the log says from here on, read as text, or in binary if that suits.
    async fn read(&mut self, from: &Position, in_binary: bool) -> Vec<Change> {
        self.source.in_binary = InBinary::new(in_binary);
        let mut stream = self.open(from).await;
        let transactions = self.read_all(&mut stream).await;
        transactions.into_iter().flat_map(|transaction| transaction.changes).collect()
    }
}

async fn until_error(stream: &mut Box<dyn ChangeStream>) -> (Vec<Change>, Error) {
    let mut changes = Vec::new();
    loop {
        match stream.next().await {
            Ok(transaction) => changes.extend(transaction.changes),
            Err(error) => return (changes, error),
        }
    }
}

/// How many values are text and how many are not.
fn forms(changes: &[Change]) -> (usize, usize) {
    let rows = changes.iter().filter_map(|change| match change {
        Change::Upsert { row, .. } => Some(row),
        _ => None,
    });
    let cells: Vec<Cell<'_>> = rows.flat_map(Row::cells).collect();
    let count = |is: fn(&Cell<'_>) -> bool| cells.iter().filter(|cell| is(cell)).count();
    (count(|cell| matches!(cell, Cell::Value(_))), count(|cell| matches!(cell, Cell::Binary(_))))
}

#[tokio::test]
async fn values_in_binary_are_those_of_the_text() {
    let mut fixture = Fixture::new(TYPES).await;
    let from = fixture.subscribed().await;
    fixture.run(ROWS).await;
    for bulk_read_above in [None, Some(1 << 10)] {
        fixture.source.bulk_read_above = bulk_read_above;
        let (text, binary) = (fixture.read(&from, false).await, fixture.read(&from, true).await);
        let words = |changes: &[Change]| changes.iter().map(words).collect::<Vec<_>>();
        assert_eq!(words(&binary), words(&text));
        assert_eq!(binary.len(), 101 + 1 + 4 + 9);
        let rows = 101 + 1 + 2;
        assert_eq!(forms(&text).1, 0);
        assert_eq!(forms(&binary).0, 3 * rows, "a key is not text, or something else is");
        assert_eq!(forms(&binary).1, forms(&text).0 - 3 * rows);
    }
}

#[tokio::test]
async fn rows_beside_the_log_come_in_binary_unless_they_are_to_be_compared() {
    let fixture = Fixture::new(TYPES).await;
    let (_, _stream) = fixture.start().await;
    fixture.run(ROWS).await;
    let table = fixture.tables().await.remove(0);
    let mut reader = fixture.source.reader().await.unwrap();
    let request = ChunkRequest {
        table: &table,
        after: None,
        filter: None,
        rows_max: 1000,
        not_below: Version::ZERO,
    };
    let chunk = reader.read_chunk(&request).await.unwrap();
    let (text, _) = reader.read_plain(&request).await.unwrap();
    let plain = |rows: &[(Key, Row)]| {
        rows.iter()
            .map(|(key, row)| (key.clone(), row_words(&plain(&table, row))))
            .collect::<Vec<_>>()
    };
    assert_eq!(text.len(), 92);
    assert_eq!(plain(&chunk.rows), plain(&text));
    let is_binary = |rows: &[(Key, Row)]| {
        rows.iter().any(|(_, row)| row.cells().any(|cell| matches!(cell, Cell::Binary(_))))
    };
    assert!(is_binary(&chunk.rows) && !is_binary(&text));
    let keys: Vec<Key> = text.iter().step_by(7).map(|(key, _)| key.clone()).collect();
    let chunk = reader.read_keys(&table, &keys, Version::ZERO).await.unwrap();
    let found = reader.read_plain_keys(&table, &keys).await.unwrap();
    assert_eq!(found.len(), keys.len());
    assert_eq!(plain(&chunk.rows), plain(&found));
    assert!(is_binary(&chunk.rows) && !is_binary(&found));
}

#[tokio::test]
async fn a_log_with_values_that_have_no_way_back_is_read_as_text() {
    let mut fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, a int4range)").await;
    let from = fixture.subscribed().await;
    fixture.run("INSERT INTO t VALUES (1, NULL), (2, '[1,3)')").await;
    assert_eq!(forms(&fixture.read(&from, true).await), (3, 0));
}

#[tokio::test]
async fn keys_that_are_floats_have_the_text_of_the_server() {
    let mut fixture = Fixture::new("CREATE TABLE t (k float8, l float4, PRIMARY KEY (k, l))").await;
    let from = fixture.subscribed().await;
    fixture.run("INSERT INTO t SELECT 61346878300597984 + i * 8, 33554432 + i FROM generate_series(1, 999) i").await;
    let (text, binary) = (fixture.read(&from, false).await, fixture.read(&from, true).await);
    assert_eq!(text.len(), 999);
    assert_eq!(text, binary, "keys are text, however they come");
}

#[tokio::test]
async fn a_strangers_table_without_a_binary_form_has_the_log_read_as_text() {
    for bulk_read_above in [None, Some(1 << 10)] {
        let mut fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, a text)").await;
        fixture.source.bulk_read_above = bulk_read_above;
        let from = fixture.subscribed().await;
        fixture.run("CREATE SCHEMA other; CREATE TABLE other.u (a aclitem[])").await;
        fixture.run(&format!("ALTER PUBLICATION {} ADD TABLE other.u", fixture.slot())).await;
        fixture.run("INSERT INTO t VALUES (1, 'a')").await;
        fixture
            .run("INSERT INTO other.u VALUES (ARRAY[makeaclitem(10, 10, 'SELECT', true)])")
            .await;
        let mut stream = fixture.open(&from).await;
        let (_, error) = until_error(&mut stream).await;
        assert_eq!((error.kind, error.code), (Kind::Transient, Code::Protocol));
        assert!(error.message.contains("will be read as text"), "{}", error.message);
        drop(stream);
        let mut stream = fixture.open(&from).await;
        assert_eq!(fixture.log(&mut stream).await, ["t + 1|a"]);
    }
}

#[tokio::test]
async fn a_column_of_such_a_type_ends_the_session_and_the_next_one_reads_text() {
    for bulk_read_above in [None, Some(1 << 10)] {
        let mut fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, a text)").await;
        fixture.source.bulk_read_above = bulk_read_above;
        let before = fixture.tables().await;
        let from = fixture.source.subscribe(&before, None).await.unwrap();
        fixture.run("INSERT INTO t VALUES (1, 'a')").await;
        fixture.run("ALTER TABLE t ADD COLUMN b int4range").await;
        fixture.run("INSERT INTO t VALUES (2, 'b', '[1,3)')").await;
        let mut stream = fixture.source.stream(&from, EPOCH, &before, &[]).await.unwrap();
        let (changes, error) = until_error(&mut stream).await;
        assert_eq!((error.kind, error.code), (Kind::Transient, Code::SchemaChange));
        assert!(error.message.contains("public.t has got column b, which"), "{}", error.message);
        assert!(changes.len() < 2);
        drop(stream);
        let mut stream = fixture.source.stream(&from, EPOCH, &before, &[]).await.unwrap();
        let log = fixture.log(&mut stream).await;
        assert_eq!(log, ["t + 1|a", "t + 2|b|[1,3)"]);
    }
}
