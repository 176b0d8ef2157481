//! What a batch does to one table: of every key the newest change, and of a partial change the
//! cells that it brings. Fed by `merge.rs`.
//!
//! Surprise: keys are kept in the order in which they came. The log comes in the order of its
//! versions, so what is taken out is sorted already, most of the time.

use std::sync::Arc;

use connectors::change::{Cell, Key, Row, RowDelete, RowUpsert, TableBatch, Timestamp};
use connectors::schema::TableSchema;
use connectors::version::Version;
use foldhash::fast::RandomState;
use indexmap::IndexMap;
use indexmap::map::Entry;

use super::MergedTable;

/// When something happened: its rank, and the clock of the source.
pub type Moment = (Version, Timestamp);

/// What the batch does to one table so far.
#[derive(Debug)]
pub struct MergingTable {
    /// The shape of its rows.
    pub table: Arc<TableSchema>,
    truncated: Option<Moment>,
    rows: IndexMap<Key, MergingRow, RandomState>,
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
    /// Nothing so far, and room for so many rows.
    pub fn new(table: &Arc<TableSchema>, rows: usize) -> MergingTable {
        let rows = IndexMap::with_capacity_and_hasher(rows, RandomState::default());
        let table = table.clone();
        MergingTable { table, truncated: None, rows, bytes: 0 }
    }

    /// How many rows and truncations it has.
    pub fn count(&self) -> usize {
        self.rows.len() + usize::from(self.truncated.is_some())
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What `bytes` must be, counted anew.
    #[cfg(test)]
    pub fn bytes_counted(&self) -> usize {
        self.rows.iter().map(|(key, merging)| merging.bytes(key)).sum()
    }

    /// A row is written.
    pub fn upsert(&mut self, key: Key, row: Row, (version, updated_at): Moment) {
        if is_after(self.truncated, version) {
            let upsert = Upsert { row, version, updated_at, ages: None };
            self.change(key, |merging| merging.upsert(upsert));
        }
    }

    /// A row is removed.
    pub fn delete(&mut self, key: Key, moment: Moment) {
        if is_after(self.truncated, moment.0) {
            self.change(key, |merging| merging.delete(moment));
        }
    }

    /// All rows are removed.
    pub fn truncate(&mut self, moment: Moment) {
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
        match self.rows.entry(key) {
            Entry::Occupied(mut entry) => {
                self.bytes -= entry.get().bytes(entry.key());
                apply(entry.get_mut());
                self.bytes += entry.get().bytes(entry.key());
            }
            Entry::Vacant(entry) => {
                let mut merging = MergingRow::default();
                apply(&mut merging);
                self.bytes += merging.bytes(entry.key());
                entry.insert(merging);
            }
        }
    }

    /// What it comes to.
    pub fn finish(self) -> MergedTable {
        let truncated = self.truncated;
        let mut upserts = Vec::with_capacity(self.rows.len());
        let (mut deletes, mut orphans) = (Vec::new(), Vec::new());
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
        // The same changes in another order must make the same batch.
        deletes.sort_unstable_by(|a, b| (a.version, &a.key).cmp(&(b.version, &b.key)));
        upserts.sort_unstable_by(|a, b| (a.version, &a.key).cmp(&(b.version, &b.key)));
        orphans.sort_unstable();
        MergedTable {
            batch: Arc::new(TableBatch { table: self.table, truncated, deletes, upserts }),
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
            (_, None) => Some(self.version),
            (_, Some(ages)) => Some(ages[place]),
        }
    }
}

fn is_after(wiped: Option<Moment>, version: Version) -> bool {
    wiped.is_none_or(|moment| moment.0 < version)
}
