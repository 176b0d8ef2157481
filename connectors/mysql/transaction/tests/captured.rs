//! Rows that are built out of captured logs equal what `SELECT` said.

use std::collections::BTreeMap;

use crate::ZeroDates;
use crate::change::{Cell, Change, Key, Row};
use crate::mysql::bookmark::{Bookmark, Flavor, Gtids, Place};
use crate::mysql::fixtures;
use crate::mysql::transaction::{Builder, Options};
use crate::schema::TableSchema;

type Rows = BTreeMap<(String, Vec<u8>), Vec<Option<String>>>;

fn builder(name: &str, fixture: &fixtures::Fixture, part_bytes: usize) -> Builder {
    let flavor = if name.starts_with("mysql") { Flavor::Mysql } else { Flavor::Mariadb };
    let from = Bookmark {
        server: "1".into(),
        place: Place::new("binlog.000001", 4),
        gtids: Gtids::none(flavor),
        delivered: None,
        begun: None,
    };
    let layouts = fixture.tables.iter().map(|(layout, _)| layout.clone()).collect();
    let options = Options {
        epoch: 1,
        part_bytes,
        spool: std::env::temp_dir(),
        zero_dates: ZeroDates::Null,
        fold_names: false,
    };
    Builder::new(from, layouts, &[], options).unwrap()
}

fn texts(row: &Row) -> Vec<Option<String>> {
    let text = |cell: Cell<'_>| match cell {
        Cell::Value(value) => Some(String::from_utf8(value.to_vec()).unwrap()),
        Cell::Null => None,
        Cell::Absent => Some("(absent)".into()),
        Cell::Binary(_) => Some("(binary)".into()),
    };
    row.cells().map(text).collect()
}

fn entry(table: &TableSchema, key: &Key) -> (String, Vec<u8>) {
    (table.name.name.clone(), key.as_bytes().to_vec())
}

fn apply(rows: &mut Rows, change: &Change) {
    match change {
        Change::Upsert { table, row } => {
            let key = Key::of(table, row).unwrap();
            rows.insert(entry(table, &key), texts(row));
        }
        Change::Delete { table, key } => {
            assert!(rows.remove(&entry(table, key)).is_some(), "no such row in {}", table.name);
        }
        Change::Truncate { table } => rows.retain(|(name, _), _| *name != table.name.name),
        Change::Halt { message, .. } => panic!("{message}"),
    }
}

fn check(name: &str, part_bytes: usize) {
    let fixture = fixtures::read(name);
    let mut expected = Rows::new();
    for (layout, rows) in &fixture.tables {
        for row in rows {
            let cells = row.iter().map(|cell| match cell {
                Some(text) => Cell::Value(text.as_bytes()),
                None => Cell::Null,
            });
            let key = Key::of(&layout.schema, &Row::from_cells(cells)).unwrap();
            expected.insert(entry(&layout.schema, &key), row.clone());
        }
    }
    let mut builder = builder(name, &fixture, part_bytes);
    let transactions = fixtures::transactions(&mut builder, &fixture.events, &[]).unwrap();
    let mut rows = Rows::new();
    transactions.iter().flat_map(|one| &one.changes).for_each(|change| apply(&mut rows, change));
    assert!(expected.len() > 10);
    for (key, row) in &expected {
        assert_eq!(rows.get(key), Some(row), "{name}: {}", key.0);
    }
    assert_eq!(rows.len(), expected.len(), "{name}");
    let versions = transactions.iter().map(|one| (one.version, one.first_ordinal));
    assert!(versions.is_sorted(), "{name}: versions go back");
}

#[test]
fn every_type_of_mariadb_is_as_select_shows_it() {
    check("mariadb-10.11-types", usize::MAX);
    check("mariadb-11.8-types", usize::MAX);
}

#[test]
fn every_type_of_mysql_is_as_select_shows_it() {
    check("mysql-9.7-types", usize::MAX);
}

#[test]
fn compressed_logs_with_full_metadata_are_read() {
    for name in ["mariadb-10.11-compressed", "mariadb-11.8-compressed", "mysql-9.7-compressed"] {
        check(name, usize::MAX);
        check(name, 1);
    }
}
