//! Tables, rows and batches for the tests of all SQL targets, and what tests of several rooms need.

pub mod histories;

use std::sync::Arc;

use futures_util::future::join;

use crate::change::{Cell, Key, Row, RowDelete, RowUpsert, TableBatch, Timestamp};
use crate::error::{Code, Error, Kind};
use crate::schema::{Column, ColumnType, Engine, TableName, TableSchema};
use crate::version::Version;
use crate::{Claim, StageAhead, TargetOptions, Upcoming};

/// What is appended, as a string.
pub fn pushed(push: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    push(&mut out);
    String::from_utf8(out).unwrap()
}

pub fn options(pipeline: &str, soft_deletes: bool) -> TargetOptions {
    TargetOptions { pipeline: pipeline.into(), soft_deletes, plain_schema: "public".into() }
}

pub fn claim_as(instance: &str) -> Claim {
    Claim { instance: instance.into(), fence: None, take_over: false }
}

pub fn version(log: u64) -> Version {
    Version { epoch: 1, log, ordinal: 1 }
}

pub fn column(name: &str, native: &str, id: u32) -> Column {
    let column_type = match native {
        "bigint" => ColumnType::Int64,
        "integer" => ColumnType::Int32,
        "text" => ColumnType::Text,
        "bytea" => ColumnType::Bytes,
        "numeric" => ColumnType::Numeric,
        "date" => ColumnType::Date,
        _ => ColumnType::Other,
    };
    Column { name: name.into(), column_type, native: Some(native.into()), id }
}

/// A table whose first column is its key; columns are written `name type`.
pub fn table(name: &str, columns: &[&str]) -> Arc<TableSchema> {
    let column = |(id, column_text): (usize, &&str)| {
        let (name, native) = column_text.split_once(' ').unwrap();
        column(name, native, id as u32 + 1)
    };
    Arc::new(TableSchema {
        name: TableName::new("public", name),
        id: 1,
        engine: Engine::Postgres,
        columns: columns.iter().enumerate().map(column).collect(),
        key: vec![0],
    })
}

/// The usual one: `k bigint, a text, b text`.
pub fn usual() -> Arc<TableSchema> {
    table("t", &["k bigint", "a text", "b text"])
}

pub fn key(values: &[&str]) -> Key {
    Key::from_values(values.iter().map(|value| value.as_bytes()))
}

/// `~` is NULL, `-` is absent.
pub fn row(cells: &[&str]) -> Row {
    Row::from_cells(cells.iter().map(|cell| match *cell {
        "~" => Cell::Null,
        "-" => Cell::Absent,
        value => Cell::Value(value.as_bytes()),
    }))
}

/// Part of a batch, built up.
pub fn part(table: &Arc<TableSchema>) -> TableBatch {
    TableBatch { table: table.clone(), truncated: None, deletes: Vec::new(), upserts: Vec::new() }
}

impl TableBatch {
    /// Also a row, with this place in the log.
    pub fn upsert(mut self, log: u64, cells: &[&str]) -> TableBatch {
        let row = row(cells);
        let key = Key::of(&self.table, &row).unwrap();
        let (version, updated_at) = (version(log), Timestamp(log as i64));
        self.upserts.push(RowUpsert { key, row, version, updated_at });
        self
    }

    /// Also a delete of the row with these key values.
    pub fn delete(mut self, log: u64, values: &[&str]) -> TableBatch {
        let (version, updated_at) = (version(log), Timestamp(log as i64));
        self.deletes.push(RowDelete { key: key(values), version, updated_at });
        self
    }

    /// Also a truncation.
    pub fn truncate(mut self, log: u64) -> TableBatch {
        self.truncated = Some((version(log), Timestamp(log as i64)));
        self
    }
}

/// Updates of rows 1 and 2 of `usual`.
pub fn update(log: u64) -> Arc<TableBatch> {
    let text = format!("at {log}");
    Arc::new(part(&usual()).upsert(log, &["1", &text, "b"]).upsert(log, &["2", &text, "b"]))
}

/// Has a target begin with a part of the next batch, with so many rows that depend on nothing.
pub fn bring(ahead: &dyn StageAhead, part: &Arc<TableBatch>, independent: usize) {
    ahead.stage(vec![Upcoming { part: part.clone(), independent }]);
}

/// Waits for a batch, and has the next one brought, if there is one, as soon as that waits for
/// something.
pub async fn while_bringing<T>(
    applied: impl Future<Output = T>,
    ahead: &dyn StageAhead,
    next: Option<&Arc<TableBatch>>,
    independent: usize,
) -> T {
    let brought = async { next.into_iter().for_each(|next| bring(ahead, next, independent)) };
    join(applied, brought).await.0
}

/// An error of this kind, with all these words in its message.
pub fn check_error<T: std::fmt::Debug>(
    result: Result<T, Error>,
    kind: Kind,
    code: Code,
    words: &[&str],
) {
    let error = result.unwrap_err();
    assert_eq!((&error.kind, error.code), (&kind, code), "{error}");
    for word in words {
        assert!(error.message.contains(word), "{word:?} is not in {:?}", error.message);
    }
}

pub fn of_table(table: &TableSchema) -> Kind {
    Kind::Table(table.name.clone())
}
