//! A claimed target in a directory of its own, and short words for changes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;

use crate::change::{
    Applied, Batch, Cell, Checkpoint, Key, Row, RowDelete, RowUpsert, TableBatch, Timestamp,
};
use crate::error::Result;
use crate::schema::{Column, ColumnType, Engine, TableName, TableSchema};
use crate::sqlite::target::{SqliteTarget, target};
use crate::version::{Position, Version};
use crate::{Claim, KeyScan, Target, TargetOptions};

/// A table with the key `id` and these other columns.
pub(crate) fn schema(name: &str, columns: &[(&str, ColumnType)]) -> TableSchema {
    let columns = [&[("id", ColumnType::Int64)], columns].concat();
    keyed(name, &columns, &[0])
}

/// A table with these columns and this key.
pub(crate) fn keyed(name: &str, columns: &[(&str, ColumnType)], key: &[usize]) -> TableSchema {
    let column = |(at, &(name, column_type)): (usize, &(&str, ColumnType))| Column {
        name: name.into(),
        column_type,
        native: None,
        id: at as u32 + 1,
    };
    TableSchema {
        name: TableName::new("public", name),
        id: 1,
        engine: Engine::Memory,
        columns: columns.iter().enumerate().map(column).collect(),
        key: key.to_vec(),
    }
}

/// `t(id, a, b)`.
pub(crate) fn simple() -> TableSchema {
    schema("t", &[("a", ColumnType::Text), ("b", ColumnType::Text)])
}

/// The version of the change at this place of the log.
pub(crate) fn at(log: u64) -> Version {
    Version { epoch: 1, log, ordinal: 1 }
}

pub(crate) fn key(id: i64) -> Key {
    Key::from_values([id.to_string().as_bytes()])
}

/// The row `(id, cells...)`; `-` is NULL and `?` is absent.
pub(crate) fn upsert(id: i64, version: Version, cells: &[&str]) -> RowUpsert {
    let id_text = id.to_string();
    let first = std::iter::once(Cell::Value(id_text.as_bytes()));
    let row = first.chain(cells.iter().map(|text| match *text {
        "-" => Cell::Null,
        "?" => Cell::Absent,
        text => Cell::Value(text.as_bytes()),
    }));
    let updated_at = Timestamp(version.log as i64);
    RowUpsert { key: key(id), row: Row::from_cells(row), version, updated_at }
}

pub(crate) fn delete(id: i64, version: Version) -> RowDelete {
    RowDelete { key: key(id), version, updated_at: Timestamp(version.log as i64) }
}

pub(crate) fn claim() -> Claim {
    Claim { instance: "one".into(), fence: None, take_over: false }
}

pub(crate) fn options(soft_deletes: bool) -> TargetOptions {
    TargetOptions { pipeline: "main".into(), soft_deletes, plain_schema: "public".into() }
}

/// A claimed target that is prepared for one table.
pub(crate) struct Fixture {
    pub(crate) directory: TempDir,
    pub(crate) target: SqliteTarget,
    pub(crate) table: Arc<TableSchema>,
    pub(crate) sequence: u64,
    pub(crate) floor: Version,
}

impl Fixture {
    pub(crate) async fn new(table: TableSchema, soft_deletes: bool) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let mut target = open(&directory, options(soft_deletes)).await;
        target.claim(&claim()).await.unwrap();
        let table = Arc::new(table);
        target.prepare(&table).await.unwrap();
        Fixture { directory, target, table, sequence: 0, floor: Version::ZERO }
    }

    pub(crate) fn batch(&self, deletes: Vec<RowDelete>, upserts: Vec<RowUpsert>) -> Batch {
        self.batch_of(TableBatch {
            table: Arc::clone(&self.table),
            truncated: None,
            deletes,
            upserts,
        })
    }

    pub(crate) fn batch_of(&self, table: TableBatch) -> Batch {
        Batch {
            checkpoint: Checkpoint {
                position: Position(format!("p{}", self.sequence + 1)),
                version: Version::at_log(1, self.sequence + 1),
                sequence: self.sequence + 1,
            },
            floor: self.floor,
            tables: vec![Arc::new(table)],
            status: BTreeMap::new(),
        }
    }

    pub(crate) async fn apply(&mut self, batch: &Batch) -> Result<Applied> {
        let applied = self.target.apply(batch).await?;
        if applied == Applied::Done {
            self.sequence = batch.checkpoint.sequence;
        }
        Ok(applied)
    }

    pub(crate) async fn upsert(&mut self, upserts: Vec<RowUpsert>) {
        self.done(self.batch(vec![], upserts)).await;
    }

    pub(crate) async fn delete(&mut self, deletes: Vec<RowDelete>) {
        self.done(self.batch(deletes, vec![])).await;
    }

    pub(crate) async fn truncate(&mut self, version: Version) {
        let mut batch = self.batch(vec![], vec![]);
        Arc::make_mut(&mut batch.tables[0]).truncated =
            Some((version, Timestamp(version.log as i64)));
        self.done(batch).await;
    }

    async fn done(&mut self, batch: Batch) {
        assert_eq!(self.apply(&batch).await.unwrap(), Applied::Done);
    }

    /// Every row that exists, as `key cells @version`.
    pub(crate) async fn rows(&mut self) -> Vec<String> {
        let scan = KeyScan {
            table: &self.table,
            after: None,
            limit: usize::MAX,
            below: None,
            filter: None,
        };
        let keys = self.target.read_keys(&scan).await.unwrap();
        let rows = self.target.read_rows(&self.table, &keys).await.unwrap();
        assert_eq!(rows.len(), keys.len());
        rows.iter().map(|(_, version, row)| format!("{} @{}", shown(row), version.log)).collect()
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("replica.db")
    }

    /// One value, as somebody with another program sees it.
    pub(crate) fn query<T: rusqlite::types::FromSql>(&self, sql: &str) -> T {
        self.connection().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    pub(crate) fn execute(&self, sql: &str) {
        self.connection().execute_batch(sql).unwrap();
    }

    fn connection(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.path()).unwrap()
    }
}

pub(crate) async fn open(directory: &TempDir, options: TargetOptions) -> SqliteTarget {
    let url = format!("sqlite:{}", directory.path().join("replica.db").display());
    target(&url, options).await.unwrap()
}

fn shown(row: &Row) -> String {
    let cell = |cell: Cell<'_>| match cell {
        Cell::Value(text) => String::from_utf8_lossy(text).into_owned(),
        Cell::Null => "-".into(),
        Cell::Absent => "?".into(),
        Cell::Binary(_) => "binary".into(),
    };
    row.cells().map(cell).collect::<Vec<_>>().join(" ")
}
