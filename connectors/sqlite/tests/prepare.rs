//! Shapes: what is created, added, adopted and refused; and names that want to be SQL.

use std::sync::Arc;

use super::support::{
    Fixture, at, claim, delete, key, keyed, open, options, schema, simple, upsert,
};
use crate::change::{Cell, Key, Row, RowDelete, RowUpsert, TableStatus, Timestamp};
use crate::error::{Code, Kind};
use crate::schema::{ColumnType, TableName, TableSchema};
use crate::{KeyScan, Level, Prepared, Target, TargetOptions};

#[tokio::test]
async fn a_table_is_created_once_and_its_record_is_copying() {
    let mut f = Fixture::new(simple(), false).await;
    assert_eq!(f.target.prepare(&f.table).await.unwrap(), Prepared::Unchanged);
    let sql: String = f.query("SELECT sql FROM sqlite_schema WHERE name = 't'");
    let expected = "CREATE TABLE \"t\" (\n  \"id\" INTEGER NOT NULL PRIMARY KEY,\n  \"a\" TEXT,\n  \
                    \"b\" TEXT,\n  _cdc_version BLOB NOT NULL,\n  _cdc_updated_at TEXT NOT NULL\n)";
    assert_eq!(sql, expected);
    let remembered = f.target.recall().await.unwrap().unwrap();
    assert_eq!(remembered.tables[&f.table.name].status, TableStatus::Copying);
}

#[tokio::test]
async fn added_columns_are_null_in_old_rows_and_the_table_is_copying_again() {
    let mut f = Fixture::new(simple(), false).await;
    f.upsert(vec![upsert(1, at(1), &["a", "b"])]).await;
    let mut batch = f.batch(vec![], vec![]);
    batch.status.insert(f.table.name.clone(), TableStatus::Live);
    f.apply(&batch).await.unwrap();
    let wide = schema(
        "t",
        &[("a", ColumnType::Text), ("b", ColumnType::Text), ("c", ColumnType::Float64)],
    );
    let narrow = std::mem::replace(&mut f.table, Arc::new(wide));
    let added = Prepared::Added(vec!["c".into()]);
    assert_eq!(f.target.prepare(&f.table).await.unwrap(), added);
    assert_eq!(f.rows().await, ["1 a b - @1"]);
    let remembered = f.target.recall().await.unwrap().unwrap();
    assert_eq!(remembered.tables[&f.table.name].status, TableStatus::Copying);
    assert_eq!(f.target.prepare(&narrow).await.unwrap(), Prepared::Unchanged);
}

#[tokio::test]
async fn a_table_of_another_shape_is_refused_and_the_column_is_named() {
    let columns = "_cdc_version BLOB NOT NULL, _cdc_updated_at TEXT NOT NULL";
    for (definition, named) in [
        (format!("id INTEGER PRIMARY KEY, a TEXT, b INT, {columns}"), "\"b\""),
        (format!("id INTEGER PRIMARY KEY, a TEXT NOT NULL, b TEXT, {columns}"), "\"a\""),
        (format!("id INTEGER, a TEXT, b TEXT, {columns}, PRIMARY KEY (id, a)"), "(a, id)"),
        (format!("id INTEGER PRIMARY KEY, a, b TEXT AS (a), {columns}"), "\"a\""),
        (format!("id INTEGER PRIMARY KEY, x INT NOT NULL, {columns}"), "\"x\""),
        (format!("id INTEGER PRIMARY KEY, _cdc_deleted INTEGER, {columns}"), "_cdc_deleted"),
        ("id INTEGER PRIMARY KEY, a TEXT, b TEXT".into(), "_cdc_version"),
    ] {
        check_refused(&format!("CREATE TABLE T ({definition})"), Code::TargetShape, named).await;
    }
    check_refused("CREATE VIEW t AS SELECT 1 AS id", Code::TargetShape, "view").await;
    let rows = "CREATE TABLE t (id INTEGER PRIMARY KEY); INSERT INTO t VALUES (1)";
    check_refused(rows, Code::TargetNotEmpty, "\"t\"").await;
}

async fn check_refused(existing: &str, code: Code, named: &str) {
    let directory = tempfile::tempdir().unwrap();
    let connection = rusqlite::Connection::open(directory.path().join("replica.db")).unwrap();
    connection.execute_batch(existing).unwrap();
    let mut target = open(&directory, options(false)).await;
    let table = Arc::new(simple());
    let findings = target.check(&[Arc::clone(&table)]).await.unwrap();
    let failed = findings.iter().find(|finding| finding.level == Level::Failure).unwrap();
    assert!(failed.message.contains(named) && !failed.remedy.is_empty(), "{failed:?}");
    target.claim(&claim()).await.unwrap();
    let error = target.prepare(&table).await.unwrap_err();
    assert_eq!(error.code, code, "{error}");
    assert_eq!(error.kind, Kind::Table(table.name.clone()));
    assert!(error.message.contains(named), "{error}");
    assert!(error.message.contains("RENAME TO") || error.message.contains("DROP "));
}

#[tokio::test]
async fn a_key_that_folds_case_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let connection = rusqlite::Connection::open(directory.path().join("replica.db")).unwrap();
    let sql = "CREATE TABLE t (k TEXT COLLATE NOCASE PRIMARY KEY, \
               _cdc_version BLOB NOT NULL, _cdc_updated_at TEXT NOT NULL)";
    connection.execute_batch(sql).unwrap();
    let mut target = open(&directory, options(false)).await;
    target.claim(&claim()).await.unwrap();
    let table = Arc::new(keyed("t", &[("k", ColumnType::Text)], &[0]));
    let error = target.prepare(&table).await.unwrap_err();
    assert_eq!(error.code, Code::TargetShape);
    assert!(error.message.contains("BINARY"), "{error}");
}

#[tokio::test]
async fn an_empty_table_that_fits_is_adopted() {
    let directory = tempfile::tempdir().unwrap();
    let connection = rusqlite::Connection::open(directory.path().join("replica.db")).unwrap();
    let sql = "CREATE TABLE T (ID bigint PRIMARY KEY, a varchar(3), mine TEXT, \
               _cdc_version BLOB NOT NULL, _cdc_updated_at TEXT NOT NULL)";
    connection.execute_batch(sql).unwrap();
    let mut f = Fixture::new(simple(), false).await;
    f.target = open(&directory, options(false)).await;
    f.target.claim(&claim()).await.unwrap();
    assert_eq!(f.target.prepare(&f.table).await.unwrap(), Prepared::Created);
    f.upsert(vec![upsert(1, at(1), &["longer", "b"])]).await;
    assert_eq!(f.rows().await, ["1 longer b @1"]);
}

#[tokio::test]
async fn a_table_of_another_pipeline_is_refused() {
    let f = Fixture::new(simple(), false).await;
    let other = TargetOptions {
        pipeline: "other".into(),
        soft_deletes: false,
        plain_schema: "public".into(),
    };
    let mut other = open(&f.directory, other).await;
    other.claim(&claim()).await.unwrap();
    let error = other.prepare(&Arc::new(schema("T", &[]))).await.unwrap_err();
    assert_eq!(error.code, Code::TableOwned);
    assert!(error.message.contains("main"), "{error}");
}

#[tokio::test]
async fn a_released_table_keeps_its_rows_and_is_not_taken_back_silently() {
    let mut f = Fixture::new(simple(), false).await;
    f.upsert(vec![upsert(1, at(1), &["a", "b"])]).await;
    f.delete(vec![delete(2, at(1))]).await;
    f.target.release(&[f.table.name.clone()]).await.unwrap();
    assert!(f.target.recall().await.unwrap().unwrap().tables.is_empty());
    assert_eq!(f.query::<i64>("SELECT count(*) FROM _cdc_tombstone"), 0);
    assert_eq!(f.rows().await, ["1 a b @1"]);
    let error = f.target.prepare(&f.table).await.unwrap_err();
    assert_eq!(error.code, Code::TargetNotEmpty);
}

#[tokio::test]
async fn two_tables_of_one_name_stop_the_pipeline_and_are_found_by_check() {
    let mut f = Fixture::new(simple(), false).await;
    let mut twin = simple();
    twin.name = TableName::new("public", "T");
    let twin = Arc::new(twin);
    let error = f.target.prepare(&twin).await.unwrap_err();
    assert_eq!((error.code, error.kind), (Code::NameCollision, Kind::Stop));
    assert!(error.message.contains("public.t") && error.message.contains("public.T"));
    let findings = f.target.check(&[Arc::clone(&f.table), twin]).await.unwrap();
    assert_eq!(findings.iter().filter(|finding| finding.level == Level::Failure).count(), 1);
}

#[tokio::test]
async fn soft_deletes_can_be_turned_on_and_not_silently_off() {
    let mut f = Fixture::new(simple(), false).await;
    f.upsert(vec![upsert(1, at(1), &["a", "b"])]).await;
    drop(f.target);
    f.target = open(&f.directory, options(true)).await;
    f.target.claim(&claim()).await.unwrap();
    assert_eq!(f.target.prepare(&f.table).await.unwrap(), Prepared::Unchanged);
    f.delete(vec![delete(1, at(2))]).await;
    assert_eq!(f.query::<i64>("SELECT count(*) FROM t WHERE _cdc_deleted"), 1);
    drop(f.target);
    f.target = open(&f.directory, options(false)).await;
    f.target.claim(&claim()).await.unwrap();
    let error = f.target.prepare(&f.table).await.unwrap_err();
    assert_eq!(error.code, Code::TargetShape);
}

#[tokio::test]
async fn names_that_want_to_be_sql_are_only_names() {
    let names = ["a\"b", "x'; DROP TABLE canary;--", "select", "🦀", "a`b", "[c]", "rowid", " "];
    for name in names {
        let other = format!("{name}2");
        let columns = [(name, ColumnType::Text), (other.as_str(), ColumnType::Text)];
        let mut table = keyed(name, &columns, &[0]);
        table.name.schema = "s\"s".into();
        check_hostile(table).await;
    }
}

async fn check_hostile(table: TableSchema) {
    let mut f = Fixture::new(table, true).await;
    f.execute("CREATE TABLE canary (alive)");
    let row = |cells: [&str; 2], version| RowUpsert {
        key: Key::from_values([cells[0].as_bytes()]),
        row: Row::from_cells(cells.map(|text| match text {
            "?" => Cell::Absent,
            text => Cell::Value(text.as_bytes()),
        })),
        version,
        updated_at: Timestamp(0),
    };
    let nasty = "'; DROP TABLE canary; --";
    f.upsert(vec![row([nasty, "\"x\\"], at(1)), row(["k", "v"], at(1))]).await;
    f.upsert(vec![row(["k", "?"], at(2))]).await;
    f.delete(vec![RowDelete {
        key: Key::from_values([nasty.as_bytes()]),
        version: at(2),
        updated_at: Timestamp(0),
    }])
    .await;
    assert_eq!(f.rows().await, ["k v @2"], "{}", f.table.name);
    let mut wide = (*f.table).clone();
    wide.columns.push(crate::schema::Column { name: "\";--".into(), ..wide.columns[1].clone() });
    let added = Prepared::Added(vec!["\";--".into()]);
    assert_eq!(f.target.prepare(&Arc::new(wide)).await.unwrap(), added);
    f.truncate(at(3)).await;
    assert_eq!(f.query::<i64>("SELECT count(*) FROM canary"), 0);
}

#[tokio::test]
async fn keys_are_read_in_order_after_a_key_below_a_version_and_by_a_condition() {
    let mut f = Fixture::new(simple(), false).await;
    let rows = [(1, 5, "x"), (2, 1, "x"), (3, 1, "y"), (10, 1, "x")];
    f.upsert(rows.iter().map(|&(id, log, a)| upsert(id, at(log), &[a, "-"])).collect()).await;
    let table = Arc::clone(&f.table);
    let all = KeyScan { table: &table, after: None, limit: 9, below: None, filter: None };
    let (one, two) = (key(1), key(2));
    check_keys(&mut f, &all, &[1, 2, 3, 10]).await;
    check_keys(&mut f, &KeyScan { after: Some(&one), limit: 2, ..all.clone() }, &[2, 3]).await;
    check_keys(&mut f, &KeyScan { below: Some(at(5)), ..all.clone() }, &[2, 3, 10]).await;
    let filter = Some("a = 'x' OR 0 -- and a comment");
    let some = KeyScan { filter, below: Some(at(5)), after: Some(&two), ..all.clone() };
    check_keys(&mut f, &some, &[10]).await;
    for filter in ["a = ", "\"nothing\" = 1", "a = ?9", "1) OR (1", "a = abs('x', 1)"] {
        let scan = KeyScan { filter: Some(filter), ..all.clone() };
        match f.target.read_keys(&scan).await {
            Err(error) => assert_eq!(error.kind, Kind::Table(table.name.clone()), "{filter}"),
            Ok(_) => assert_eq!(filter, "1) OR (1", "only SQL of the operator's own making"),
        }
    }
}

async fn check_keys(f: &mut Fixture, scan: &KeyScan<'_>, expected: &[i64]) {
    let expected: Vec<Key> = expected.iter().map(|&id| key(id)).collect();
    assert_eq!(f.target.read_keys(scan).await.unwrap(), expected, "{scan:?}");
}

#[tokio::test]
async fn a_composite_key_is_ordered_by_its_columns_in_key_order() {
    let columns = [("a", ColumnType::Text), ("b", ColumnType::Int32)];
    let mut f = Fixture::new(keyed("t", &columns, &[1, 0]), false).await;
    let pair = |b: &str, a: &str| Key::from_values([b.as_bytes(), a.as_bytes()]);
    let row = |a: &str, b: &str| RowUpsert {
        key: pair(b, a),
        row: Row::from_cells([Cell::Value(a.as_bytes()), Cell::Value(b.as_bytes())]),
        version: at(1),
        updated_at: Timestamp(0),
    };
    f.upsert(vec![row("x", "10"), row("X", "9"), row("z", "9"), row("a", "-1")]).await;
    let table = Arc::clone(&f.table);
    let after = pair("-1", "a");
    let scan = KeyScan { table: &table, after: Some(&after), limit: 9, below: None, filter: None };
    let expected = [pair("9", "X"), pair("9", "z"), pair("10", "x")];
    assert_eq!(f.target.read_keys(&scan).await.unwrap(), expected);
}

#[tokio::test]
async fn check_warns_of_triggers_and_unique_indexes_and_leaves_nothing_behind() {
    let mut f = Fixture::new(simple(), false).await;
    f.execute(
        "CREATE UNIQUE INDEX u ON t (a); CREATE TRIGGER g AFTER INSERT ON t BEGIN SELECT 1; END",
    );
    let findings = f.target.check(&[Arc::clone(&f.table)]).await.unwrap();
    let remedies: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.level == Level::Warning)
        .map(|finding| finding.remedy.as_str())
        .collect();
    assert_eq!(remedies, ["DROP TRIGGER \"g\";", "DROP INDEX \"u\";"]);
    let names = std::fs::read_dir(f.directory.path()).unwrap();
    let probe = names.flatten().find(|entry| entry.file_name().to_string_lossy().contains("check"));
    assert!(probe.is_none());
}
