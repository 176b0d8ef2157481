//! Last writer wins, as pure functions: changes in, one batch out. Fed by the applier and the
//! backfill; what it makes, a target applies.
//!
//! A database refuses two changes to one key in one statement, so they are merged here first.
//! Surprise: an update may lack columns (`Cell::Absent`), and what it lacks must come from the
//! change before it, wherever that is: in this batch, in the target, or, when a delete lies in
//! between, only in the source. The last kind are the *orphans*.
//!
//! What a batch becomes depends only on the set of its changes. Every order and every repetition
//! of them makes the same batch, provided that one version is always the same change of a key.
//! The log keeps that by its ordinals. Rows of chunks are not merged with the log: they have
//! every column, and the target itself decides whether they are newer than what it has.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use connectors::change::{
    Cell, Change, Chunk, Key, Row, RowDelete, RowUpsert, TableBatch, Timestamp,
};
use connectors::error::{Code, Error, Result};
use connectors::schema::{TableName, TableSchema};
use connectors::version::Version;

/// One batch being built.
#[derive(Debug, Default)]
pub struct Merger {
    tables: BTreeMap<TableName, MergingTable>,
    rows: usize,
    bytes: usize,
}

/// What a batch does to one table, and what the target cannot know about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedTable {
    /// For the target.
    pub batch: TableBatch,
    /// Keys of upserts that still lack columns although their row was deleted or truncated
    /// earlier in this batch. The target sees only the upsert: it would take what is absent from
    /// the row that it still has, which is the deleted one. So these rows are read again from the
    /// source and given to `complete` before the batch is applied.
    pub orphans: Vec<Key>,
}

impl Merger {
    /// Takes in one change of the log.
    ///
    /// # Errors
    /// `internal`: a `Halt`, which is for the engine; a row without its key; or a table whose
    /// shape is not the one that its rows in this batch have.
    pub fn add(&mut self, version: Version, updated_at: Timestamp, change: Change) -> Result<()> {
        match change {
            Change::Upsert { table, row } => {
                let key = Key::of(&table, &row).ok_or_else(|| defect(&table.name, "no key"))?;
                let upsert = Upsert { row, version, updated_at, ages: None };
                self.change(&table, |merging| merging.upsert(key, upsert))
            }
            Change::Delete { table, key } => {
                self.change(&table, |merging| merging.delete(key, (version, updated_at)))
            }
            Change::Truncate { table } => {
                self.change(&table, |merging| merging.truncate((version, updated_at)))
            }
            Change::Halt { table, .. } => Err(defect(&table, "a halt")),
        }
    }

    /// Whether taking it now would give nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// How many rows and truncations it holds, after merging.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes held, after merging.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The shape of this table's rows in the batch. A batch has one shape a table: when the log
    /// comes with another, the batch is taken first.
    #[must_use]
    pub fn knows(&self, table: &TableName) -> Option<&Arc<TableSchema>> {
        self.tables.get(table).map(|merging| &merging.table)
    }

    /// The batch, by name of the table and within it in the order of the log. Leaves it empty.
    pub fn take(&mut self) -> Vec<MergedTable> {
        (self.rows, self.bytes) = (0, 0);
        std::mem::take(&mut self.tables).into_values().map(MergingTable::finish).collect()
    }

    fn change(
        &mut self,
        table: &Arc<TableSchema>,
        apply: impl FnOnce(&mut MergingTable),
    ) -> Result<()> {
        // No `entry`: it would clone the name for every change.
        if !self.tables.contains_key(&table.name) {
            self.tables.insert(table.name.clone(), MergingTable::new(table));
        }
        let Some(merging) = self.tables.get_mut(&table.name) else {
            return Err(defect(&table.name, "no entry"));
        };
        if !Arc::ptr_eq(&merging.table, table) && merging.table != *table {
            return Err(defect(&table.name, "another shape"));
        }
        let (rows, bytes) = (merging.count(), merging.bytes);
        apply(merging);
        self.rows = self.rows - rows + merging.count();
        self.bytes = self.bytes - bytes + merging.bytes;
        Ok(())
    }
}

/// Fills the upserts of the keys that were asked for with the rows read again from the source.
/// They keep the version of the change: whatever newer value the read saw is repeated by the log.
/// An asked key without a row loses its upsert: its delete is still to come.
pub fn complete(merged: &mut TableBatch, rows: &[(Key, Row)], asked: &[Key]) {
    let found: HashMap<&Key, &Row> = rows.iter().map(|(key, row)| (key, row)).collect();
    let asked: HashSet<&Key> = asked.iter().collect();
    merged.upserts.retain_mut(|upsert| {
        if !asked.contains(&upsert.key) {
            return true;
        }
        match found.get(&upsert.key) {
            // The whole row, not only what is absent: so it is one that really existed.
            Some(row) => upsert.row = (*row).clone(),
            None => return false,
        }
        true
    });
}

/// A chunk as a batch: its rows as upserts at its version. When these keys were asked for, those
/// that the source does not have become deletes at the same version.
#[must_use]
pub fn chunk_batch(chunk: Chunk, asked: Option<&[Key]>) -> TableBatch {
    let (version, updated_at) = (chunk.version, chunk.read_at);
    let found: HashSet<&Key> = chunk.rows.iter().map(|(key, _)| key).collect();
    let mut missing: Vec<&Key> = asked.unwrap_or_default().iter().collect();
    missing.retain(|key| !found.contains(key));
    missing.sort_unstable();
    missing.dedup();
    let gone = |key: &Key| RowDelete { key: key.clone(), version, updated_at };
    let deletes = missing.into_iter().map(gone).collect();
    let upsert = |(key, row)| RowUpsert { key, row, version, updated_at };
    let upserts = chunk.rows.into_iter().map(upsert).collect();
    TableBatch { table: chunk.table, truncated: None, deletes, upserts }
}

/// When something happened: its rank, and the clock of the source.
type Moment = (Version, Timestamp);

/// What the batch does to one table so far.
#[derive(Debug)]
struct MergingTable {
    table: Arc<TableSchema>,
    truncated: Option<Moment>,
    rows: HashMap<Key, MergingRow>,
    bytes: usize,
}

/// What the batch does to one row so far. At least one of the two is there, and the upsert is
/// newer than the deletion and than the table's truncation.
#[derive(Debug, Default)]
struct MergingRow {
    deleted: Option<Moment>,
    upsert: Option<Upsert>,
}

#[derive(Debug)]
struct Upsert {
    row: Row,
    version: Version,
    updated_at: Timestamp,
    /// The version that each cell is from, once they are not all from the same: a change that
    /// comes late may belong between two that were merged already.
    ages: Option<Box<[Version]>>,
}

impl MergingTable {
    fn new(table: &Arc<TableSchema>) -> MergingTable {
        MergingTable { table: table.clone(), truncated: None, rows: HashMap::new(), bytes: 0 }
    }

    fn count(&self) -> usize {
        self.rows.len() + usize::from(self.truncated.is_some())
    }

    fn upsert(&mut self, key: Key, upsert: Upsert) {
        if is_after(self.truncated, upsert.version) {
            self.change(key, |merging| merging.upsert(upsert));
        }
    }

    fn delete(&mut self, key: Key, moment: Moment) {
        if is_after(self.truncated, moment.0) {
            self.change(key, |merging| merging.delete(moment));
        }
    }

    fn truncate(&mut self, moment: Moment) {
        if !is_after(self.truncated, moment.0) {
            return;
        }
        self.truncated = Some(moment);
        self.bytes = 0;
        self.rows.retain(|key, merging| {
            merging.forget_until(moment.0);
            let left = merging.upsert.is_some() || merging.deleted.is_some();
            self.bytes += if left { merging.bytes(key) } else { 0 };
            left
        });
    }

    fn change(&mut self, key: Key, apply: impl FnOnce(&mut MergingRow)) {
        match self.rows.get_mut(&key) {
            Some(merging) => {
                self.bytes -= merging.bytes(&key);
                apply(merging);
                self.bytes += merging.bytes(&key);
            }
            None => {
                let mut merging = MergingRow::default();
                apply(&mut merging);
                self.bytes += merging.bytes(&key);
                self.rows.insert(key, merging);
            }
        }
    }

    fn finish(self) -> MergedTable {
        let truncated = self.truncated;
        let (mut deletes, mut upserts, mut orphans) = (Vec::new(), Vec::new(), Vec::new());
        for (key, merging) in self.rows {
            match (merging.upsert, merging.deleted) {
                (Some(upsert), deleted) => {
                    let was_deleted = deleted.is_some() || truncated.is_some();
                    if was_deleted && upsert.row.has_absent() {
                        orphans.push(key.clone());
                    }
                    let Upsert { row, version, updated_at, ages: _ } = upsert;
                    upserts.push(RowUpsert { key, row, version, updated_at });
                }
                (None, Some((version, updated_at))) => {
                    deletes.push(RowDelete { key, version, updated_at });
                }
                (None, None) => {}
            }
        }
        // The map has no order, and the same changes must make the same batch.
        deletes.sort_unstable_by(|a, b| (a.version, &a.key).cmp(&(b.version, &b.key)));
        upserts.sort_unstable_by(|a, b| (a.version, &a.key).cmp(&(b.version, &b.key)));
        orphans.sort_unstable();
        MergedTable {
            batch: TableBatch { table: self.table, truncated, deletes, upserts },
            orphans,
        }
    }
}

impl MergingRow {
    fn upsert(&mut self, upsert: Upsert) {
        if is_after(self.deleted, upsert.version) {
            self.upsert = Some(match self.upsert.take() {
                Some(other) => upsert.merged(other),
                None => upsert,
            });
        }
    }

    fn delete(&mut self, moment: Moment) {
        if is_after(self.deleted, moment.0) {
            self.forget_until(moment.0);
            self.deleted = Some(moment);
        }
    }

    /// Forgets everything that this version wiped out.
    fn forget_until(&mut self, version: Version) {
        self.deleted = self.deleted.filter(|moment| moment.0 > version);
        self.upsert = self.upsert.take().and_then(|upsert| upsert.since(version));
    }

    fn bytes(&self, key: &Key) -> usize {
        key.size()
            + std::mem::size_of::<MergingRow>()
            + self.upsert.as_ref().map_or(0, |upsert| {
                upsert.row.size()
                    + upsert.ages.as_ref().map_or(0, |ages| ages.len() * size_of::<Version>())
            })
    }
}

impl Upsert {
    /// Both as one: of every column the newest cell that is not absent.
    fn merged(self, other: Upsert) -> Upsert {
        let (newer, older) =
            if self.version >= other.version { (self, other) } else { (other, self) };
        if newer.ages.is_none() && !newer.row.has_absent() {
            return newer;
        }
        let age = |place| newer.age(place).max(older.age(place)).unwrap_or(Version::ZERO);
        let pick = |place| {
            let kept = newer.age(place) >= older.age(place);
            if kept { newer.row.cell(place) } else { older.row.cell(place) }
        };
        Upsert {
            row: Row::from_cells((0..newer.row.len()).map(pick)),
            ages: Some((0..newer.row.len()).map(age).collect()),
            version: newer.version,
            updated_at: newer.updated_at,
        }
    }

    /// What is left of it when this version wiped the row out; `None` if it is older itself.
    fn since(self, version: Version) -> Option<Upsert> {
        if self.version <= version {
            return None;
        }
        if self.ages.is_none() {
            return Some(self);
        }
        let keep = |place| {
            let kept = self.age(place).is_some_and(|age| age > version);
            if kept { self.row.cell(place) } else { Cell::Absent }
        };
        let row = Row::from_cells((0..self.row.len()).map(keep));
        Some(Upsert { row, ..self })
    }

    /// The version that a cell is from; `None` if it is absent.
    fn age(&self, place: usize) -> Option<Version> {
        match (self.row.cell(place), &self.ages) {
            (Cell::Absent, _) => None,
            (Cell::Value(_) | Cell::Null, None) => Some(self.version),
            (Cell::Value(_) | Cell::Null, Some(ages)) => Some(ages[place]),
        }
    }
}

fn is_after(wiped: Option<Moment>, version: Version) -> bool {
    wiped.is_none_or(|moment| moment.0 < version)
}

fn defect(table: &TableName, what: &str) -> Error {
    let message = format!("merge changes of table {table}: {what} cannot be merged into a batch");
    Error::stop(Code::Internal, message)
}

#[cfg(test)]
mod tests;
