//! Values: what is written comes back as `stored` says, also at the ends of every type.

use proptest::prelude::*;

use super::support::{Fixture, at, keyed};
use crate::Target;
use crate::change::{Cell, Key, Row, RowUpsert, Timestamp};
use crate::schema::{ColumnType, TableSchema};

const COLUMNS: [(&str, ColumnType); 10] = [
    ("bool", ColumnType::Bool),
    ("int64", ColumnType::Int64),
    ("float32", ColumnType::Float32),
    ("float64", ColumnType::Float64),
    ("numeric", ColumnType::Numeric),
    ("text", ColumnType::Text),
    ("bytes", ColumnType::Bytes),
    ("timestamp", ColumnType::TimestampTz),
    ("json", ColumnType::Json),
    ("other", ColumnType::Other),
];

/// Every value is also a key, because looking up compares it.
fn table() -> TableSchema {
    keyed("values", &COLUMNS, &(0..COLUMNS.len()).collect::<Vec<_>>())
}

fn any_row() -> impl Strategy<Value = Vec<String>> {
    let float32 = any::<f32>().prop_map(|value| float(f64::from(value), value.to_string()));
    let float64 = any::<f64>().prop_map(|value| float(value, format!("{value:e}")));
    let special = prop::sample::select(vec!["NaN", "Infinity", "-Infinity", "-0", "0", "1e+20"])
        .prop_map(String::from);
    let text = "[^\0]{0,20}";
    let hex = prop::collection::vec("[0-9a-f]{2}", 0..9).prop_map(|d| format!("\\x{}", d.concat()));
    (
        prop::sample::select(vec!["t", "f"]).prop_map(String::from),
        any::<i64>().prop_map(|value| value.to_string()),
        prop_oneof![float32, special.clone()],
        prop_oneof![float64, special],
        "-?[0-9]{1,60}(\\.[0-9]{1,60})?|NaN|-Infinity",
        text,
        hex,
        "[0-9]{4}-01-01 00:00:00(\\.[0-9]{1,6})?\\+00|infinity",
        text,
        text,
    )
        .prop_map(|row| vec![row.0, row.1, row.2, row.3, row.4, row.5, row.6, row.7, row.8, row.9])
}

fn float(value: f64, text: String) -> String {
    match value {
        value if value.is_nan() => "NaN".into(),
        value if value.is_infinite() && value > 0.0 => "Infinity".into(),
        value if value.is_infinite() => "-Infinity".into(),
        _ => text,
    }
}

fn row_of(values: &[String]) -> Row {
    Row::from_cells(values.iter().map(|text| Cell::Value(text.as_bytes())))
}

async fn check_values(f: &mut Fixture, values: &[String], log: u64) {
    let row = row_of(values);
    let key = Key::of(&f.table, &row).unwrap();
    let upsert = RowUpsert {
        key: key.clone(),
        row: row.clone(),
        version: at(log),
        updated_at: Timestamp(0),
    };
    f.upsert(vec![upsert]).await;
    let found = f.target.read_rows(&f.table, std::slice::from_ref(&key)).await.unwrap();
    let stored = f.target.stored(&f.table, &row);
    assert!(found == [(key, at(log), stored)], "{values:?} came back as something else");
}

#[test]
fn every_row_comes_back_as_it_is_said_to_be_stored() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut f = runtime.block_on(Fixture::new(table(), false));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
    let log = std::cell::Cell::new(0);
    let fixture = std::cell::RefCell::new(&mut f);
    runner
        .run(&any_row(), |values| {
            log.set(log.get() + 1);
            runtime.block_on(check_values(&mut fixture.borrow_mut(), &values, log.get()));
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn the_ends_of_every_type_come_back_unchanged() {
    let mut f = Fixture::new(table(), false).await;
    let rows: [[&str; 10]; 4] = [
        [
            "t",
            "9223372036854775807",
            "3.4028235e+38",
            "1.7976931348623157e+308",
            "NaN",
            "",
            "\\x",
            "infinity",
            "{}",
            "",
        ],
        [
            "f",
            "-9223372036854775808",
            "1e-45",
            "5e-324",
            "-0.000",
            "'\"\\%_\n\t",
            "\\x00ff",
            "-infinity",
            "{\"a\": 1, \"a\": 2}",
            "{1,NULL,\"\"}",
        ],
        [
            "t",
            "0",
            "-0",
            "-0",
            "1.10",
            "🦀 \u{10FFFF}\u{FEFF}",
            "\\x5c78",
            "4714-11-24 BC",
            "1e400",
            "[1,2)",
        ],
        [
            "f",
            "-1",
            "NaN",
            "-Infinity",
            "123456789012345678901234567890.5",
            "NaN",
            "\\x00",
            "2026-01-31 13:59:59.5+00",
            "null",
            "1 day",
        ],
    ];
    for (log, row) in rows.iter().enumerate() {
        let values: Vec<String> = row.iter().map(|&text| text.into()).collect();
        check_values(&mut f, &values, log as u64 + 1).await;
        // What these values are stored as must not depend on how floats are laid out.
        let stored = f.target.stored(&f.table, &row_of(&values));
        assert!(stored == row_of(&values), "{row:?}");
    }
    let nan: String = f.query("SELECT typeof(float32) || float32 FROM \"values\" WHERE int64 = -1");
    assert_eq!(nan, "textNaN");
    let zero: f64 = f.query("SELECT float64 FROM \"values\" WHERE int64 = 0");
    assert!(zero == 0.0 && zero.is_sign_negative());
    let money: String = f.query("SELECT \"numeric\" FROM \"values\" WHERE int64 = 0");
    assert_eq!(money, "1.10");
}

#[tokio::test]
async fn a_single_precision_float_is_stored_as_people_write_it() {
    let mut f = Fixture::new(keyed("t", &[("f", ColumnType::Float32)], &[0]), false).await;
    check_values(&mut f, &["0.1".into()], 1).await;
    assert_eq!(f.query::<f64>("SELECT f FROM t"), 0.1);
}

#[tokio::test]
async fn a_row_that_was_changed_by_hand_is_read_as_different_and_not_as_an_error() {
    let mut f = Fixture::new(super::support::simple(), false).await;
    f.upsert(vec![super::support::upsert(1, at(1), &["a", "b"])]).await;
    f.execute("UPDATE t SET a = x'61', b = NULL");
    assert_eq!(f.rows().await, ["1 \0blob a - @1"]);
}
