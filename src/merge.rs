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

use connectors::change::{Change, Chunk, Key, Row, RowDelete, RowUpsert, TableBatch, Timestamp};
use connectors::error::{Code, Error, Result};
use connectors::schema::{TableName, TableSchema};
use connectors::version::Version;
use foldhash::fast::RandomState;

use table::MergingTable;

mod table;

/// One batch being built.
#[derive(Debug, Default)]
pub struct Merger {
    tables: Vec<MergingTable>,
    /// Where in `tables` a name is.
    names: BTreeMap<TableName, usize>,
    /// Where in `tables` the shape at this address is. Only shapes that an entry of `tables`
    /// holds are in it, so no address can come to mean another one.
    shapes: HashMap<usize, usize, RandomState>,
    rows: usize,
    bytes: usize,
    /// How many rows each table had in the batch before: so much room it gets at once.
    before: HashMap<TableName, usize, RandomState>,
}

/// What a batch does to one table, and what the target cannot know about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedTable {
    /// For the target.
    pub batch: Arc<TableBatch>,
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
        let moment = (version, updated_at);
        match change {
            Change::Upsert { table, row } => {
                let key = Key::of(&table, &row).ok_or_else(|| defect(&table.name, "no key"))?;
                self.change(&table, |merging| merging.upsert(key, row, moment))
            }
            Change::Delete { table, key } => {
                self.change(&table, |merging| merging.delete(key, moment))
            }
            Change::Truncate { table } => self.change(&table, |merging| merging.truncate(moment)),
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

    /// Whether the table's rows in the batch have another shape. A batch has one shape a table:
    /// when the log comes with another, the batch is taken first.
    #[must_use]
    pub fn has_other_shape(&self, table: &Arc<TableSchema>) -> bool {
        self.place(table).is_some_and(|place| !is_same(&self.tables[place].table, table))
    }

    /// The batch, by name of the table and within it in the order of the log. Leaves it empty.
    pub fn take(&mut self) -> Vec<MergedTable> {
        let Merger { tables, names, .. } = std::mem::take(self);
        let rows = |(name, place): (&TableName, &usize)| (name.clone(), tables[*place].count());
        self.before = names.iter().map(rows).collect();
        let mut tables: Vec<Option<MergingTable>> = tables.into_iter().map(Some).collect();
        let by_name = names.into_values().filter_map(|place| tables[place].take());
        by_name.map(MergingTable::finish).collect()
    }

    fn place(&self, table: &Arc<TableSchema>) -> Option<usize> {
        let place = self.shapes.get(&address(table));
        place.or_else(|| self.names.get(&table.name)).copied()
    }

    fn change(
        &mut self,
        table: &Arc<TableSchema>,
        apply: impl FnOnce(&mut MergingTable),
    ) -> Result<()> {
        let place = self.place(table).unwrap_or_else(|| {
            let place = self.tables.len();
            let expected = self.before.get(&table.name).copied().unwrap_or(0);
            self.tables.push(MergingTable::new(table, expected));
            self.names.insert(table.name.clone(), place);
            self.shapes.insert(address(table), place);
            place
        });
        let merging = &mut self.tables[place];
        if !is_same(&merging.table, table) {
            return Err(defect(&table.name, "another shape"));
        }
        let (rows, bytes) = (merging.count(), merging.bytes());
        apply(merging);
        self.rows = self.rows - rows + merging.count();
        self.bytes = self.bytes - bytes + merging.bytes();
        Ok(())
    }
}

fn address(table: &Arc<TableSchema>) -> usize {
    Arc::as_ptr(table).addr()
}

fn is_same(a: &Arc<TableSchema>, b: &Arc<TableSchema>) -> bool {
    Arc::ptr_eq(a, b) || a == b
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
    let mut missing: Vec<&Key> = asked.unwrap_or_default().iter().collect();
    if !missing.is_empty() {
        let found: HashSet<&Key> = chunk.rows.iter().map(|(key, _)| key).collect();
        missing.retain(|key| !found.contains(key));
        missing.sort_unstable();
        missing.dedup();
    }
    let gone = |key: &Key| RowDelete { key: key.clone(), version, updated_at };
    let deletes = missing.into_iter().map(gone).collect();
    let upsert = |(key, row)| RowUpsert { key, row, version, updated_at };
    let upserts = chunk.rows.into_iter().map(upsert).collect();
    TableBatch { table: chunk.table, truncated: None, deletes, upserts }
}

fn defect(table: &TableName, what: &str) -> Error {
    let message = format!("merge changes of table {table}: {what} cannot be merged into a batch");
    Error::stop(Code::Internal, message)
}

#[cfg(test)]
mod tests;
