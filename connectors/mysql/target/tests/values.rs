//! Values: what is written comes back as `stored` says, also at the ends of every type, whether
//! it was inserted, written over another value, or is a key.

use std::sync::Arc;

use proptest::prelude::*;

use super::support::*;
use crate::change::{Applied, Key, TableBatch};
use crate::error::Code;
use crate::schema::{Column, ColumnType, Engine, TableSchema};
use crate::{KeyScan, Target};

/// A type and values of it that come back as they are.
struct Case {
    engine: Engine,
    column_type: ColumnType,
    native: &'static str,
    values: &'static [&'static str],
}

const fn postgres(
    column_type: ColumnType,
    native: &'static str,
    values: &'static [&'static str],
) -> Case {
    Case { engine: Engine::Postgres, column_type, native, values }
}

const fn mysql(
    column_type: ColumnType,
    native: &'static str,
    values: &'static [&'static str],
) -> Case {
    Case { engine: Engine::Mysql, column_type, native, values }
}

const DOUBLES: &[&str] = &[
    "-1.7976931348623157e+308",
    "-1",
    "5e-324",
    "2.2250738585072014e-308",
    "0.30000000000000004",
    "100000000000000",
    "1e+15",
    "1.7976931348623157e+308",
];
const SINGLES: &[&str] =
    &["-3.4028235e+38", "-0.1", "1e-45", "1.1754944e-38", "0.1", "999999", "1e+06", "16777217e0"];
const TEXTS: &[&str] = &[
    "",
    " ",
    "A",
    "a",
    "a ",
    "a\tb\n\r\\'\"`%_?:x\u{1a}",
    "it''s \\\\ -- /* */ ;",
    "ä",
    "a\u{308}",
    "🦀 \u{10FFFF}\u{FEFF}",
];

const CASES: &[Case] = &[
    postgres(ColumnType::Bool, "boolean", &["f", "t"]),
    postgres(ColumnType::Int16, "smallint", &["-32768", "0", "32767"]),
    postgres(ColumnType::Int32, "integer", &["-2147483648", "-1", "2147483647"]),
    postgres(ColumnType::Int64, "bigint", &["-9223372036854775808", "9223372036854775807"]),
    postgres(ColumnType::Float64, "double precision", DOUBLES),
    postgres(ColumnType::Numeric, "numeric(10,2)", &["-99999999.99", "0.00", "1.50"]),
    postgres(
        ColumnType::Numeric,
        "numeric(65,30)",
        &["99999999999999999999999999999999999.999999999999999999999999999999"],
    ),
    postgres(ColumnType::Numeric, "numeric", &["-0.10", "1.0", "1.00", "1e400", "NaN"]),
    postgres(ColumnType::Numeric, "numeric(3,-2)", &["12300", "NaN"]),
    postgres(ColumnType::Text, "text", TEXTS),
    postgres(ColumnType::Text, "character(3)", &["a  ", "   "]),
    postgres(ColumnType::Bytes, "bytea", &["\\x", "\\x00", "\\x0000", "\\x5c27", "\\xff00"]),
    postgres(ColumnType::Date, "date", &["0001-01-01", "1969-12-31", "2024-02-29", "9999-12-31"]),
    postgres(
        ColumnType::Time,
        "time without time zone",
        &["00:00:00", "00:00:00.000001", "13:59:59.5", "24:00:00"],
    ),
    postgres(
        ColumnType::Timestamp,
        "timestamp without time zone",
        &["0001-01-01 00:00:00", "2026-03-29 02:30:00", "9999-12-31 23:59:59.999999"],
    ),
    postgres(
        ColumnType::TimestampTz,
        "timestamp with time zone",
        &["0001-01-01 00:00:00+00", "2026-03-29 01:30:00.5+00", "9999-12-31 23:59:59.999999+00"],
    ),
    postgres(ColumnType::Uuid, "uuid", &["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]),
    postgres(ColumnType::Json, "jsonb", &["{\"a\": 1}", "{\"a\":\"\\\\\\n\"}", "null"]),
    postgres(ColumnType::Other, "int4[]", &["{1,NULL}", "{}"]),
    mysql(ColumnType::Int16, "tinyint(1)", &["-128", "0", "127"]),
    mysql(ColumnType::Int16, "tinyint(3) unsigned", &["0", "255"]),
    mysql(ColumnType::Int16, "year(4)", &["0", "1901", "2155"]),
    mysql(ColumnType::Int32, "mediumint(9)", &["-8388608", "8388607"]),
    mysql(ColumnType::Int32, "mediumint(8) unsigned zerofill", &["0", "16777215"]),
    mysql(ColumnType::Int64, "int(10) unsigned", &["0", "4294967295"]),
    mysql(ColumnType::Numeric, "bigint(20) unsigned", &["0", "18446744073709551615"]),
    mysql(ColumnType::Numeric, "decimal(10,3) unsigned", &["0.000", "9999999.999"]),
    mysql(ColumnType::Numeric, "decimal(5,0)", &["-99999", "0"]),
    mysql(ColumnType::Float32, "float(7,2)", SINGLES),
    mysql(ColumnType::Float64, "double", DOUBLES),
    mysql(ColumnType::Text, "char(20) character set latin1", TEXTS),
    mysql(ColumnType::Text, "varchar(30) character set utf8mb4", TEXTS),
    mysql(ColumnType::Text, "tinytext character set latin1", TEXTS),
    mysql(ColumnType::Text, "longtext character set utf8mb3", TEXTS),
    mysql(
        ColumnType::Text,
        "enum('b','a','it''s','x y','A','c\\\\d') character set utf8mb4",
        &["A", "a", "b", "it's", "x y", "c\\d"],
    ),
    mysql(ColumnType::Text, "set('b','a','c') character set latin1", &["", "a", "b,a,c"]),
    mysql(ColumnType::Text, "enum('?') character set utf8mb4", &["€", "語"]),
    mysql(ColumnType::Bytes, "binary(3)", &["\\x000000", "\\x610000", "\\xffffff"]),
    mysql(ColumnType::Bytes, "varbinary(4)", &["\\x", "\\x61", "\\x6120", "\\xff00ff00"]),
    mysql(ColumnType::Bytes, "tinyblob", &["\\x", "\\xdeadbeef"]),
    mysql(ColumnType::Bytes, "geometry", &["\\x0000000001010000"]),
    mysql(ColumnType::Other, "bit(1)", &["0", "1"]),
    mysql(ColumnType::Other, "bit(13)", &["0000000000000", "1010101010101"]),
    mysql(
        ColumnType::Other,
        "bit(64)",
        &["1111111111111111111111111111111111111111111111111111111111111111"],
    ),
    mysql(ColumnType::Date, "date", &["1000-01-01", "9999-12-31"]),
    mysql(
        ColumnType::Timestamp,
        "datetime(3)",
        &["1000-01-01 00:00:00", "2026-01-01 00:00:00.001"],
    ),
    mysql(ColumnType::Timestamp, "datetime", &["2026-01-01 00:00:00"]),
    mysql(
        ColumnType::TimestampTz,
        "timestamp(6)",
        &["1970-01-01 00:00:01+00", "2026-03-29 01:30:00.5+00", "2038-01-19 03:14:07.999999+00"],
    ),
    mysql(
        ColumnType::Duration,
        "time(6)",
        &["-838:59:59", "-00:00:00.000001", "00:00:00", "01:02:03.4", "838:59:59"],
    ),
    mysql(ColumnType::Json, "json", &["{\"a\": 1.10}", "[1, \"\\\\\"]"]),
    Case {
        engine: Engine::Mariadb,
        column_type: ColumnType::Json,
        native: "longtext character set utf8mb4",
        values: &["{\"b\":1,  \"a\":[]}"],
    },
    Case {
        engine: Engine::Mariadb,
        column_type: ColumnType::Other,
        native: "inet6",
        values: &["::", "2001:db8::ff00:42:8329"],
    },
];

impl Case {
    /// `id` and two columns of the type; the key is `id`, or one of the others.
    fn table(&self, name: &str, key: usize) -> Arc<TableSchema> {
        let column = |name: &str| Column {
            name: name.into(),
            column_type: self.column_type,
            native: Some(self.native.into()),
            id: 2,
        };
        let mut table = (*table(name, &["id bigint"])).clone();
        table.engine = self.engine;
        table.columns.push(column("v"));
        table.columns.push(column("w"));
        table.key = vec![key];
        Arc::new(table)
    }

    fn described(&self) -> String {
        format!("{:?} {}", self.engine, self.native)
    }
}

#[tokio::test]
async fn values_of_every_type_come_back_unchanged() {
    check_round_trip(Fixture::new(false).await).await;
}

#[tokio::test]
async fn values_of_every_type_come_back_unchanged_as_literals() {
    check_round_trip(Fixture::new(false).await.with_literals()).await;
}

async fn check_round_trip(mut f: Fixture) {
    for (number, case) in CASES.iter().enumerate() {
        let table = case.table(&format!("t{number}"), 0);
        f.target.prepare(&table).await.unwrap_or_else(|e| panic!("{}: {e}", case.described()));
        for (log, value) in (1..).zip(case.values) {
            let value = if case.native.starts_with("float") { &canonical(value) } else { *value };
            let id = log.to_string();
            // Inserted, written over NULL, written alone, and written over another value.
            let expected = row(&[&id, value, value]);
            f.done(vec![part(&table).upsert(1, &[&id, value, "~"])]).await;
            f.done(vec![part(&table).upsert(2, &[&id, "-", value])]).await;
            assert!(
                read(&mut f, &table, &id).await == Some(expected.clone()),
                "{}: {value}",
                case.described()
            );
            f.done(vec![part(&table).upsert(3, &[&id, case.values[0], "~"])]).await;
            f.done(vec![part(&table).upsert(4, &[&id, value, value])]).await;
            f.done(vec![part(&table).upsert(3, &[&id, case.values[0], "~"])]).await;
            assert!(
                read(&mut f, &table, &id).await == Some(expected.clone()),
                "{}: {value}",
                case.described()
            );
            assert!(f.target.stored(&table, &expected) == expected, "{}", case.described());
        }
    }
}

/// As the shortest text says it.
fn canonical(single: &str) -> String {
    let mut text = Vec::new();
    crate::float::push_single(single.parse().unwrap(), &mut text);
    String::from_utf8(text).unwrap()
}

async fn read(f: &mut Fixture, table: &Arc<TableSchema>, id: &str) -> Option<crate::change::Row> {
    let rows = f.target.read_rows(table, &[key(&[id])]).await.unwrap();
    rows.into_iter().next().map(|(_, _, row)| row)
}

#[tokio::test]
async fn values_of_every_type_come_back_unchanged_from_a_file() {
    let mut f = Fixture::new(false).await.with_literals();
    f.floor = version(1);
    // Until it has been seen that there are no tombstones, every row is compared with them.
    f.done(vec![]).await;
    for (number, case) in CASES.iter().enumerate() {
        let table = case.table(&format!("t{number}"), 0);
        f.target.prepare(&table).await.unwrap_or_else(|e| panic!("{}: {e}", case.described()));
        let (mut batch, mut expected) = (part(&table), Vec::new());
        for (log, value) in (2..).zip(case.values) {
            let value = if case.native.starts_with("float") { &canonical(value) } else { *value };
            let id = log.to_string();
            batch = batch.upsert(log, &[&id, value, "~"]);
            expected.push((id.clone(), row(&[&id, value, "~"])));
        }
        f.done(vec![batch]).await;
        for (id, expected) in expected {
            assert!(read(&mut f, &table, &id).await == Some(expected), "{} {id}", case.described());
        }
    }
}

#[tokio::test]
async fn values_of_every_type_can_be_keys() {
    check_keys(Fixture::new(false).await).await;
}

#[tokio::test]
async fn values_of_every_type_can_be_keys_as_literals() {
    check_keys(Fixture::new(false).await.with_literals()).await;
}

async fn check_keys(mut f: Fixture) {
    for (number, case) in CASES.iter().enumerate() {
        let table = case.table(&format!("t{number}"), 1);
        f.target.prepare(&table).await.unwrap_or_else(|e| panic!("{}: {e}", case.described()));
        let mut batch = part(&table);
        let mut expected = Vec::new();
        for (log, value) in (1..).zip(case.values) {
            let value = if case.native.starts_with("float") { &canonical(value) } else { *value };
            batch = batch.upsert(log, &[&log.to_string(), value, "~"]);
            expected.push(key(&[value]));
        }
        f.done(vec![batch]).await;
        let rows = f.target.read_rows(&table, &expected).await.unwrap();
        assert_eq!(rows.len(), expected.len(), "{}", case.described());
        let mut scanned = scan_by_one(&mut f, &table).await;
        scanned.sort();
        expected.sort();
        assert!(scanned == expected, "{}", case.described());
        let partial = expected.iter().fold(part(&table), |batch, key| {
            let value = String::from_utf8(key.values().next().unwrap().to_vec()).unwrap();
            batch.upsert(100, &["7", &value, "-"])
        });
        f.done(vec![partial]).await;
        let last = expected.pop().unwrap();
        let deletes = expected.iter().fold(part(&table), |batch, key| {
            let value = String::from_utf8(key.values().next().unwrap().to_vec()).unwrap();
            batch.delete(200, &[&value])
        });
        f.done(vec![deletes]).await;
        assert!(scan_by_one(&mut f, &table).await == [last], "{}", case.described());
    }
}

async fn scan_by_one(f: &mut Fixture, table: &Arc<TableSchema>) -> Vec<Key> {
    let mut keys: Vec<Key> = Vec::new();
    loop {
        let after = keys.last();
        let scan = KeyScan { table, after, limit: 1, below: None, filter: None };
        match f.target.read_keys(&scan).await.unwrap().pop() {
            Some(key) => keys.push(key),
            None => return keys,
        }
    }
}

/// Values that no column of the type can hold exactly.
async fn check_refused(case: &Case, mut f: Fixture) {
    let table = case.table("t", 0);
    f.target.prepare(&table).await.unwrap();
    for value in case.values {
        let refused = f.apply(vec![part(&table).upsert(1, &["1", value, "~"])]).await;
        let error = refused.expect_err(&format!("{}: {value}", case.described()));
        assert_eq!((error.kind, error.code), (of_table(&table), Code::PoisonRow), "{value}");
        assert!(value.len() < 4 || !error.message.contains(value), "{}", error.message);
    }
    assert_eq!(f.look("SELECT COUNT(*) FROM t").await, ["0"]);
}

#[tokio::test]
async fn what_would_be_clipped_is_refused() {
    let _server = crate::mysql::testing::Server::shared().await;
    for case in [
        postgres(ColumnType::Float64, "double precision", &["NaN", "Infinity", "-Infinity"]),
        postgres(ColumnType::Float32, "real", &["NaN"]),
        postgres(ColumnType::Numeric, "numeric(5,2)", &["NaN", "1.005", "1000.00"]),
        postgres(ColumnType::Date, "date", &["infinity", "0044-03-15 BC", "10000-01-01"]),
        postgres(
            ColumnType::TimestampTz,
            "timestamp with time zone",
            &["-infinity", "0044-03-15 00:00:00+00 BC", "10000-01-01 00:00:00+00"],
        ),
        mysql(ColumnType::Int16, "tinyint(4)", &["-129", "128", "x"]),
        mysql(ColumnType::Int64, "int unsigned", &["-1"]),
        mysql(ColumnType::Int16, "year(4)", &["99", "2156"]),
        mysql(ColumnType::Text, "varchar(3) character set utf8mb4", &["abcd", "abc "]),
        mysql(ColumnType::Text, "enum('a','b') character set utf8mb4", &["c", "d"]),
        mysql(ColumnType::Bytes, "binary(3)", &["\\x6100", "\\x61626364"]),
        mysql(ColumnType::Bytes, "varbinary(2)", &["\\x616263"]),
        mysql(ColumnType::Timestamp, "datetime(3)", &["2026-01-01 00:00:00.0001"]),
        mysql(ColumnType::Timestamp, "datetime", &["2026-02-30 00:00:00"]),
        mysql(ColumnType::TimestampTz, "timestamp", &["1969-12-31 23:59:59+00"]),
        mysql(ColumnType::Duration, "time", &["839:00:00", "00:60:00"]),
        mysql(ColumnType::Other, "bit(3)", &["0101", "21"]),
    ] {
        check_refused(&case, Fixture::new(false).await).await;
        check_refused(&case, Fixture::new(false).await.with_literals()).await;
    }
}

#[tokio::test]
async fn keys_that_are_too_long_are_refused_and_named() {
    let mut f = Fixture::new(false).await;
    let case = postgres(ColumnType::Text, "text", &[]);
    let table = case.table("t", 1);
    f.target.prepare(&table).await.unwrap();
    let (fits, long) = ("ä".repeat(768), "x".repeat(769));
    f.done(vec![part(&table).upsert(1, &["1", &fits, "~"])]).await;
    let refused = f.apply(vec![part(&table).upsert(2, &["1", &long, "~"])]).await;
    check_error(refused, of_table(&table), Code::PoisonRow, &["longer", "column v"]);
    // Such a row was never here, so it can be asked for and deleted.
    f.done(vec![part(&table).delete(3, &[&long])]).await;
    assert!(f.target.read_rows(&table, &[key(&[&long])]).await.unwrap().is_empty());
    f.done(vec![part(&table).delete(3, &[&fits])]).await;
    assert!(scan_by_one(&mut f, &table).await.is_empty());
}

#[tokio::test]
async fn many_long_keys_take_more_than_one_statement() {
    let mut f = Fixture::new(true).await;
    f.target.writer.packet_max = 100_000;
    let table = postgres(ColumnType::Text, "text", &[]).table("t", 1);
    f.target.prepare(&table).await.unwrap();
    let keys: Vec<String> =
        (0..40).map(|number| format!("{number}{}", "ü\\".repeat(300))).collect();
    let all = |batch, each: fn(TableBatch, &str) -> TableBatch| {
        keys.iter().fold(batch, |batch, key| each(batch, key))
    };
    f.done(vec![all(part(&table), |batch, key| batch.upsert(1, &["1", key, "a"]))]).await;
    f.done(vec![all(part(&table), |batch, key| batch.upsert(2, &["2", key, "-"]))]).await;
    let wanted: Vec<Key> = keys.iter().map(|text| key(&[text])).collect();
    assert_eq!(f.target.read_rows(&table, &wanted).await.unwrap().len(), 40);
    f.done(vec![all(part(&table), |batch, key| batch.delete(3, &[key]))]).await;
    assert_eq!(f.look("SELECT COUNT(*) FROM t WHERE id = 2 AND _cdc_deleted").await, ["40"]);
}

#[tokio::test]
async fn a_database_that_is_not_there_is_named_with_the_sql_that_makes_it() {
    let server = crate::mysql::testing::Server::shared().await;
    let refused = crate::mysql::target::target(&server.url("no`ne"), options("p", false)).await;
    let words = ["CREATE DATABASE `no``ne`"];
    check_error(refused.map(|_| ()), crate::error::Kind::Stop, Code::Configuration, &words);
}

#[tokio::test]
async fn two_texts_of_one_float_are_one_row() {
    let mut f = Fixture::new(false).await;
    let table = postgres(ColumnType::Float64, "double precision", &[]).table("t", 1);
    f.target.prepare(&table).await.unwrap();
    f.done(vec![part(&table).upsert(1, &["1", "0", "-0"])]).await;
    f.done(vec![part(&table).upsert(2, &["2", "-0", "-0"])]).await;
    assert_eq!(f.look("SELECT id, v, w FROM t").await, ["2|0|0"]);
    assert!(scan_by_one(&mut f, &table).await == [key(&["0"])]);
    let stored = f.target.stored(&table, &row(&["2", "-0", "-0"]));
    assert!(stored == row(&["2", "0", "0"]));
    f.done(vec![part(&table).delete(3, &["-0"])]).await;
    assert!(scan_by_one(&mut f, &table).await.is_empty());
}

#[tokio::test]
async fn a_row_larger_than_a_packet_is_refused_and_the_session_lives() {
    let mut f = Fixture::with(&usual(), false).await;
    f.target.writer.packet_max = 1 << 20;
    let (fits, long) = ("x".repeat(900_000), "y".repeat(1 << 20));
    let rows =
        part(&usual()).upsert(1, &["1", &fits, "~"]).upsert(1, &["2", &fits, &"\\".repeat(9)]);
    f.done(vec![rows]).await;
    let refused = f.apply(vec![part(&usual()).upsert(1, &["3", &long, "~"])]).await;
    check_error(refused, of_table(&usual()), Code::PoisonRow, &["max_allowed_packet"]);
    assert_eq!(f.look("SELECT k FROM t ORDER BY k").await, ["1", "2"]);
}

fn any_row() -> impl Strategy<Value = Vec<String>> {
    let single = any::<f32>().prop_filter("finite", |value| value.is_finite());
    let double = any::<f64>().prop_filter("finite", |value| value.is_finite());
    let hex = prop::collection::vec("[0-9a-fA-F]{2}", 0..9);
    // These two stand for NULL and for an absent cell.
    let text = || "\\PC{0,20}".prop_filter("a value", |text| !["~", "-"].contains(&text.as_str()));
    (
        any::<i64>().prop_map(|value| value.to_string()),
        single.prop_map(|value| value.to_string()),
        double.prop_map(|value| format!("{value:e}")),
        "-?[0-9]{1,35}(\\.[0-9]{1,30})?",
        "-?[0-9]{1,60}(\\.[0-9]{1,60})?|NaN|-Infinity",
        text(),
        hex.prop_map(|digits| format!("\\x{}", digits.concat())),
        "[1-9][0-9]{3}-0[1-9]-[0-2][1-8] [01][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?",
        "-?[0-9]{2,2}:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?",
    )
        .prop_map(|r| vec![r.0, r.1, r.2, r.3, r.4, r.5, r.6, r.7, r.8])
}

fn any_columns() -> Arc<TableSchema> {
    let types = [
        ("i", ColumnType::Int64, "bigint"),
        ("s", ColumnType::Float32, "real"),
        ("d", ColumnType::Float64, "double precision"),
        ("n", ColumnType::Numeric, "numeric(65,30)"),
        ("u", ColumnType::Numeric, "numeric"),
        ("t", ColumnType::Text, "text"),
        ("b", ColumnType::Bytes, "bytea"),
        ("at", ColumnType::Timestamp, "timestamp without time zone"),
        ("l", ColumnType::Duration, "interval"),
    ];
    let mut table = (*usual()).clone();
    let column = |(name, column_type, native): (&str, ColumnType, &str)| Column {
        name: name.into(),
        column_type,
        native: Some(native.into()),
        id: 1,
    };
    table.columns = types.into_iter().map(column).collect();
    table.key = vec![0, 2, 5, 6];
    Arc::new(table)
}

#[test]
fn every_row_comes_back_as_it_is_said_to_be_stored() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let table = any_columns();
    let fixture = std::cell::RefCell::new(runtime.block_on(Fixture::with(&table, false)));
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() };
    proptest::test_runner::TestRunner::new(config)
        .run(&any_row(), |values| {
            let mut f = fixture.borrow_mut();
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            let log = f.sequence + 1;
            let applied = runtime.block_on(f.apply(vec![part(&table).upsert(log, &values)]));
            prop_assert_eq!(applied, Ok(Applied::Done));
            let row = row(&values);
            let key = Key::of(&table, &row).unwrap();
            let found =
                runtime.block_on(f.target.read_rows(&table, std::slice::from_ref(&key))).unwrap();
            let stored = f.target.stored(&table, &row);
            prop_assert!(found == [(key, version(log), stored)], "not what was stored");
            Ok(())
        })
        .unwrap();
}
