//! The rows of a table in the target in memory, and what one transaction does to them: the rules of
//! `Target::apply`, one row at a time.
//!
//! Surprise: a softly deleted row is not there when a newer upsert lacks columns. It must not lend
//! its old values to the row that was inserted after it.

use std::collections::BTreeMap;

use crate::change::{Cell, Key, Row, RowDelete, RowUpsert, TableBatch, Timestamp};
use crate::schema::{TableName, TableSchema};
use crate::version::Version;

/// A table of the target.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// Whose it is.
    pub(super) pipeline: String,
    /// The names of its columns.
    pub(super) columns: Vec<String>,
    /// Its rows, deleted ones that stay among them.
    pub(super) rows: BTreeMap<Key, StoredRow>,
}

/// One of its rows.
#[derive(Clone, Debug)]
pub(super) struct StoredRow {
    /// Its rank.
    pub(super) version: Version,
    /// Commit time at the source.
    pub(super) updated_at: Timestamp,
    /// Whether it is only kept as its own tombstone.
    pub(super) deleted: bool,
    /// By name of the column, so that columns can be added and reordered; `None` is NULL.
    pub(super) cells: BTreeMap<String, Option<Vec<u8>>>,
}

/// One table's part of one transaction.
pub(super) struct TableWrite<'a> {
    /// Which table.
    pub(super) name: &'a TableName,
    /// Its rows.
    pub(super) stored: &'a mut Table,
    /// The tombstones of the pipeline, or what this transaction sees of them.
    pub(super) tombstones: &'a mut BTreeMap<(TableName, Key), Version>,
    /// Below it no tombstone is left.
    pub(super) floor: Version,
    /// Whether deleted rows stay, marked.
    pub(super) soft: bool,
}

impl TableWrite<'_> {
    /// The truncation, then deletes, then upserts. Returns the keys of the rows that are needed.
    pub(super) fn apply(&mut self, part: &TableBatch) -> Vec<Key> {
        if let Some((version, updated_at)) = part.truncated {
            self.truncate(version, updated_at);
        }
        for delete in &part.deletes {
            self.delete(delete);
        }
        let upserts = part.upserts.iter();
        upserts.filter(|upsert| !self.upsert(&part.table, upsert)).map(|u| u.key.clone()).collect()
    }

    fn truncate(&mut self, version: Version, updated_at: Timestamp) {
        let soft = self.soft;
        self.stored.rows.retain(|_, row| {
            let older = row.version < version;
            if older && soft {
                row.delete(version, updated_at);
            }
            soft || !older
        });
        self.bury(Key::whole_table(), version);
    }

    fn delete(&mut self, delete: &RowDelete) {
        if self.outranks(&delete.key, delete.version) {
            return;
        }
        match self.stored.rows.get_mut(&delete.key) {
            // The row that stays is its own tombstone.
            Some(row) if self.soft => row.delete(delete.version, delete.updated_at),
            Some(_) | None => {
                self.stored.rows.remove(&delete.key);
                self.bury(delete.key.clone(), delete.version);
            }
        }
    }

    /// False if it has absent cells and the row that they would be taken from is not there.
    fn upsert(&mut self, table: &TableSchema, upsert: &RowUpsert) -> bool {
        if self.outranks(&upsert.key, upsert.version) {
            return true;
        }
        let old = self.stored.rows.get(&upsert.key);
        let mut cells = match old.filter(|row| !row.deleted) {
            Some(row) => row.cells.clone(),
            None if upsert.row.has_absent() => return false,
            None => BTreeMap::new(),
        };
        write(&mut cells, table, &upsert.row);
        let RowUpsert { version, updated_at, .. } = *upsert;
        let row = StoredRow { version, updated_at, deleted: false, cells };
        self.stored.rows.insert(upsert.key.clone(), row);
        self.tombstones.remove(&(self.name.clone(), upsert.key.clone()));
        true
    }

    /// Whether what is known of a key is at least as new as this version.
    fn outranks(&self, key: &Key, version: Version) -> bool {
        let buried = |key: Key| self.tombstones.get(&(self.name.clone(), key)).copied();
        let known = [
            self.stored.rows.get(key).map(|row| row.version),
            buried(key.clone()),
            buried(Key::whole_table()),
        ];
        known.into_iter().flatten().any(|known| known >= version)
    }

    fn bury(&mut self, key: Key, version: Version) {
        if version >= self.floor {
            let known = self.tombstones.entry((self.name.clone(), key)).or_insert(version);
            *known = version.max(*known);
        }
    }
}

impl Table {
    /// Whether it has all columns of this shape.
    pub(super) fn has(&self, table: &TableSchema) -> bool {
        table.columns.iter().all(|column| self.columns.contains(&column.name))
    }
}

impl StoredRow {
    fn delete(&mut self, version: Version, updated_at: Timestamp) {
        (self.version, self.updated_at, self.deleted) = (version, updated_at, true);
    }

    /// The row in this shape; a column that was never written is NULL.
    pub(super) fn read(&self, table: &TableSchema) -> Row {
        let cell = |name: &String| self.cells.get(name).and_then(Option::as_deref);
        Row::from_cells(
            table.columns.iter().map(|column| cell(&column.name).map_or(Cell::Null, Cell::Value)),
        )
    }
}

/// Writes the cells of a row that are not absent.
pub(super) fn write(cells: &mut BTreeMap<String, Option<Vec<u8>>>, table: &TableSchema, row: &Row) {
    for (column, cell) in table.columns.iter().zip(row.cells()) {
        match cell {
            Cell::Value(value) => cells.insert(column.name.clone(), Some(value.to_vec())),
            Cell::Null => cells.insert(column.name.clone(), None),
            Cell::Absent => None,
            Cell::Binary(_) => unreachable!("this database is not PostgreSQL"),
        };
    }
}
