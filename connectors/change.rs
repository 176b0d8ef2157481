//! What travels: rows, keys, changes, transactions, chunks; and the batch that a target applies.

mod row;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::row::{Cell, Row, RowBuilder};
use crate::error::Code;
use crate::fnv::fnv_1a;
use crate::schema::{TableName, TableSchema};
use crate::version::{Position, Version};

/// The values of a row's key columns in key order, as one string of bytes: for each its length
/// (u32 big-endian) and its text. Equal keys are equal bytes; the order of the bytes means nothing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key(Box<[u8]>);

impl Key {
    /// The key of no row; stands for the whole table where a truncation is remembered.
    #[must_use]
    pub fn whole_table() -> Key {
        Key(Box::default())
    }

    /// A key from the values of its columns.
    pub fn from_values<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Key {
        let mut bytes = Vec::new();
        for value in values {
            push_key_value(&mut bytes, value);
        }
        Key(bytes.into_boxed_slice())
    }

    /// The key of a row; `None` if a key column is NULL or absent.
    #[must_use]
    pub fn of(table: &TableSchema, row: &Row) -> Option<Key> {
        let mut length = 0;
        for &index in &table.key {
            let Cell::Value(value) = row.cell(index) else { return None };
            length += KEY_PREFIX + value.len();
        }
        let mut bytes = Vec::with_capacity(length);
        for &index in &table.key {
            if let Cell::Value(value) = row.cell(index) {
                push_key_value(&mut bytes, value);
            }
        }
        Some(Key(bytes.into_boxed_slice()))
    }

    /// The stored form.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads the stored form; `None` if it is damaged.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Key> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let length = u32::from_be_bytes(rest.get(..4)?.try_into().ok()?) as usize;
            rest = rest.get(4 + length..)?;
        }
        Some(Key(bytes.into()))
    }

    /// The values of the key columns, in key order.
    pub fn values(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest: &[u8] = &self.0;
        std::iter::from_fn(move || {
            let (length, tail) = rest.split_at_checked(4)?;
            let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
            let (value, tail) = tail.split_at_checked(length)?;
            rest = tail;
            Some(value)
        })
    }

    /// What may be printed of a key: 16 hexadecimal digits of its FNV-1a hash. Tells keys apart
    /// for people; short keys can be guessed from it, so it is no secret-keeper.
    #[must_use]
    pub fn hash(&self) -> String {
        format!("{:016x}", fnv_1a(&self.0))
    }

    /// Bytes held.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.len() + std::mem::size_of::<Key>()
    }
}

// A key is part of a row's values.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} bytes)", self.0.len())
    }
}

const KEY_PREFIX: usize = 4;

fn push_key_value(bytes: &mut Vec<u8>, value: &[u8]) {
    bytes.extend_from_slice(&(value.len() as u32).to_be_bytes());
    bytes.extend_from_slice(value);
}

/// Microseconds since 1970-01-01 00:00:00 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

/// One row inserted, updated or deleted, or one table truncated. An update that changes the key
/// is a `Delete` of the old key, then an `Upsert` of the new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The row exists with these cells.
    Upsert {
        /// Its shape at this point of the log.
        table: Arc<TableSchema>,
        /// Its cells; key columns are always there.
        row: Row,
    },
    /// The row is gone.
    Delete {
        /// Its shape at this point of the log.
        table: Arc<TableSchema>,
        /// Which row.
        key: Key,
    },
    /// Every row of the table is gone.
    Truncate {
        /// Its shape at this point of the log.
        table: Arc<TableSchema>,
    },
    /// The source cannot go on with this table (its shape changed in a way that is not followed).
    /// No further change of it comes from this stream.
    Halt {
        /// Which table.
        table: Box<TableName>,
        /// Why, for scripts.
        code: Code,
        /// Why and what to type next, for people.
        message: Box<str>,
    },
}

impl Change {
    /// A halt.
    pub fn halt(table: TableName, code: Code, message: String) -> Change {
        // Boxed, because all changes are as large as the largest kind.
        Change::Halt { table: Box::new(table), code, message: message.into_boxed_str() }
    }

    /// Which table it belongs to.
    #[must_use]
    pub fn table(&self) -> &TableName {
        match self {
            Change::Upsert { table, .. }
            | Change::Delete { table, .. }
            | Change::Truncate { table } => &table.name,
            Change::Halt { table, .. } => table.as_ref(),
        }
    }

    /// Bytes held.
    #[must_use]
    pub fn size(&self) -> usize {
        std::mem::size_of::<Change>()
            + match self {
                Change::Upsert { row, .. } => row.size(),
                Change::Delete { key, .. } => key.size(),
                Change::Truncate { .. } | Change::Halt { .. } => 0,
            }
    }
}

/// The changes of one commit, or a part of them when the commit is too large to hold at once.
/// Without changes it only says that the log has been read up to `position`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The commit's place in the log, ordinal 0.
    pub version: Version,
    /// Where to resume after the whole transaction; meaningless unless `complete`.
    pub position: Position,
    /// When it was committed at the source.
    pub committed_at: Timestamp,
    /// Ordinal of the first change: 1, or more in a later part. The others follow one by one.
    pub first_ordinal: u32,
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// Whether this is the last part.
    pub complete: bool,
}

impl Transaction {
    /// The changes with the version of each.
    pub fn versioned(self) -> Versioned {
        Versioned::new(self.version.with_ordinal(self.first_ordinal), self.changes)
    }

    /// Bytes held.
    #[must_use]
    pub fn size(&self) -> usize {
        std::mem::size_of::<Transaction>() + self.changes.iter().map(Change::size).sum::<usize>()
    }
}

/// The changes of a transaction, each with its version.
#[derive(Debug)]
pub struct Versioned {
    next: Version,
    changes: std::vec::IntoIter<Change>,
}

impl Versioned {
    /// Changes that follow one by one from this version on.
    #[must_use]
    pub fn new(first: Version, changes: Vec<Change>) -> Versioned {
        Versioned { next: first, changes: changes.into_iter() }
    }
}

impl Iterator for Versioned {
    type Item = (Version, Change);

    fn next(&mut self) -> Option<(Version, Change)> {
        let change = self.changes.next()?;
        let version = self.next;
        // There is no change after the one with the last ordinal.
        self.next.ordinal = version.ordinal.wrapping_add(1);
        Some((version, change))
    }
}

/// Rows read from the source in one snapshot, and the version that they may claim: every change
/// at or below it is contained, every change above it is still to come on the log.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The table's shape in the snapshot.
    pub table: Arc<TableSchema>,
    /// The version of its rows, ordinal 0.
    pub version: Version,
    /// When the snapshot was taken, by the source's clock.
    pub read_at: Timestamp,
    /// The rows, in the source's key order where a range was read.
    pub rows: Vec<(Key, Row)>,
    /// Where the next chunk begins; `None` when the table's end was reached.
    pub next: Option<Key>,
}

/// A row on its way into the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowUpsert {
    /// The row's key.
    pub key: Key,
    /// Its cells. An absent one keeps what the target's row has.
    pub row: Row,
    /// Its rank.
    pub version: Version,
    /// Commit time at the source; for a backfilled row the time it was read.
    pub updated_at: Timestamp,
}

/// A row to be removed from the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowDelete {
    /// The row's key.
    pub key: Key,
    /// The rank of the deletion.
    pub version: Version,
    /// Commit time at the source.
    pub updated_at: Timestamp,
}

/// What one batch does to one table: the truncation first, then deletes, then upserts.
/// No key occurs twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableBatch {
    /// The shape that all rows have. The target was prepared for it, or for more columns.
    pub table: Arc<TableSchema>,
    /// Remove every row older than this, and remember it as the tombstone of the whole table.
    pub truncated: Option<(Version, Timestamp)>,
    /// Rows to be removed.
    pub deletes: Vec<RowDelete>,
    /// Rows to be written.
    pub upserts: Vec<RowUpsert>,
}

impl TableBatch {
    /// Whether it leaves tombstones, none of which is older than `floor`.
    #[must_use]
    pub fn buries(&self, floor: Version) -> bool {
        self.truncated.is_some_and(|(version, _)| version >= floor)
            || self.deletes.iter().any(|delete| delete.version >= floor)
    }
}

/// How far a pipeline has come in the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Where the source resumes.
    pub position: Position,
    /// The last commit applied, ordinal 0.
    pub version: Version,
    /// Counts the transactions of this pipeline in the target, so that a lost answer to a commit
    /// can be told from a commit that failed.
    pub sequence: u64,
}

/// One target transaction: at most one change per key and table, and the checkpoint it reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// What is recorded together with the rows. Its sequence is one more than the target's.
    pub checkpoint: Checkpoint,
    /// Tombstones below this are neither written nor kept: nothing older can arrive.
    pub floor: Version,
    /// The changes, by table.
    pub tables: Vec<Arc<TableBatch>>,
    /// What is recorded of tables whose state changes with this batch.
    pub status: BTreeMap<TableName, TableStatus>,
}

impl Batch {
    /// Whether it leaves tombstones that are not older than its floor.
    #[must_use]
    pub fn buries(&self) -> bool {
        self.tables.iter().any(|part| part.buries(self.floor))
    }
}

/// What the target records of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum TableStatus {
    /// Not every row has been copied yet.
    Copying,
    /// Complete up to the checkpoint.
    Live,
    /// Its changes are not applied since `version`; only a new copy of it mends that.
    Stopped {
        /// Why, for scripts.
        code: Code,
        /// Why and what to type next, for people.
        message: String,
        /// The first change that was not applied.
        version: Version,
    },
}

/// What the target did with a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It is durable.
    Done,
    /// Nothing was done: these rows have absent cells and the target does not have their row.
    /// Read them from the source and apply the batch again with them complete.
    NeedsRows(Vec<(TableName, Vec<Key>)>),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_gives_back_its_values(values in any::<Vec<Vec<u8>>>()) {
            let key = Key::from_values(values.iter().map(Vec::as_slice));
            prop_assert!(key.values().eq(values.iter().map(Vec::as_slice)));
            prop_assert_eq!(Key::from_bytes(key.as_bytes()), Some(key));
        }
    }

    #[test]
    fn the_hash_of_a_key_is_fnv_1a() {
        assert_eq!(Key::whole_table().hash(), "cbf29ce484222325");
        assert_eq!(Key::from_bytes(&[0, 0, 0, 1, b'a']).unwrap().hash(), "e4b8cad92528d179");
    }
}
