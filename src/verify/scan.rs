//! Walks one table: every source row against the target, then every target key against the
//! source. What does not match at once becomes a suspect, which `settle.rs` judges.
//!
//! Surprise: the two databases sort keys differently, so neither walk ever compares two sorted
//! streams; each asks the other side for exactly the keys it holds.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use connectors::change::{Cell, Key, Row};
use connectors::error::{Code, Error, Result};
use connectors::schema::TableSchema;
use connectors::version::Version;
use connectors::{ChunkRequest, KeyScan, Target};

use super::report::{Differences, TableReport};
use super::settle::Suspects;
use super::{Scanned, Verifier};

/// Rows of the first chunk, before the size of a row is known.
const CHUNK_ROWS_FIRST: usize = 256;
/// Rows of a chunk at most, however small they are.
const CHUNK_ROWS_MAX: usize = 5_000;

/// Rows of the source in the form in which the target gives them back, with both forms of a key.
pub(super) struct StoredRow {
    /// The key in the source's form.
    pub(super) source_key: Key,
    /// The key in the target's form, by which the two sides are matched.
    pub(super) key: Key,
    /// The row in the target's form.
    pub(super) row: Row,
}

impl Verifier<'_> {
    /// Compares all rows of one table.
    pub(super) async fn scan(&mut self, table: &Arc<TableSchema>) -> Result<TableReport> {
        let started = Instant::now();
        let mut suspects = Suspects::default();
        let mut found = Differences::default();
        let rows_estimated = self.source.estimate_rows(table).await?;
        let mut told = Scanned { table: &table.name, rows: 0, rows_estimated, done: false };
        (self.on_progress)(told);
        let (rows, digest) = self.scan_source(&mut told, table, &mut suspects, &mut found).await?;
        self.scan_target(table, &mut suspects, &mut found).await?;
        self.settle(table, &mut suspects, &mut found).await?;
        (self.on_progress)(Scanned { done: true, ..told });
        let target_name = self.target.table_name(&table.name);
        Ok(TableReport::compared(&table.name, target_name, rows, digest, found, started.elapsed()))
    }

    /// Finds missing and differing rows. Returns how many rows there are and their digest.
    async fn scan_source(
        &mut self,
        told: &mut Scanned<'_>,
        table: &Arc<TableSchema>,
        suspects: &mut Suspects,
        found: &mut Differences,
    ) -> Result<(u64, blake3::Hash)> {
        let mut hasher = blake3::Hasher::new();
        let mut rows_max = CHUNK_ROWS_FIRST;
        let mut chunk = self.reader.read_plain(&request(table, None, rows_max)).await?;
        loop {
            let (rows, next) = chunk;
            rows_max = rows_of(self.options.chunk_bytes, &rows);
            let keys: Vec<Key> = rows.iter().map(|(key, _)| key.clone()).collect();
            // The next chunk is read while the target looks for this one.
            let following = request(table, next.as_ref(), rows_max);
            let (following, in_target) = tokio::join!(
                async {
                    match next.is_some() {
                        true => self.reader.read_plain(&following).await.map(Some),
                        false => Ok(None),
                    }
                },
                self.target.read_rows(table, &keys),
            );
            let mut in_target = by_key(table, in_target?)?;
            told.rows += rows.len() as u64;
            (self.on_progress)(*told);
            for row in stored_rows(self.target, table, rows)? {
                absorb(&mut hasher, &row.row);
                if in_target.remove(&row.key).as_ref() != Some(&row.row) {
                    suspects.add(row.key, row.source_key);
                }
            }
            self.settle_if_full(table, suspects, found).await?;
            match following? {
                Some(following) => chunk = following,
                None => return Ok((told.rows, hasher.finalize())),
            }
        }
    }

    /// Finds rows that only the target has.
    async fn scan_target(
        &mut self,
        table: &Arc<TableSchema>,
        suspects: &mut Suspects,
        found: &mut Differences,
    ) -> Result<()> {
        let keys_only = Arc::new(keys_only(table));
        let mut after: Option<Key> = None;
        loop {
            let after_key = after.as_ref();
            let limit = CHUNK_ROWS_MAX;
            let scan = KeyScan { table, after: after_key, limit, below: None, filter: None };
            let keys = self.target.read_keys(&scan).await?;
            let Some(last) = keys.last() else { return Ok(()) };
            after = Some(last.clone());
            let (keys, impossible): (Vec<Key>, Vec<Key>) = keys.into_iter().partition(can_exist);
            impossible.iter().for_each(|key| found.extra.add_beyond_repair(table, key));
            let in_source = self.reader.read_plain_keys(&keys_only, &keys).await?;
            let in_source: HashSet<Key> = stored_rows(self.target, &keys_only, in_source)?
                .into_iter()
                .map(|row| row.key)
                .collect();
            for key in keys.into_iter().filter(|key| !in_source.contains(key)) {
                suspects.add(key.clone(), key);
            }
            self.settle_if_full(table, suspects, found).await?;
        }
    }
}

fn request<'a>(
    table: &'a Arc<TableSchema>,
    after: Option<&'a Key>,
    rows_max: usize,
) -> ChunkRequest<'a> {
    ChunkRequest { table, after, filter: None, rows_max, not_below: Version::ZERO }
}

/// No text of any source has a NUL in it, so the source is not even asked for such a key; asking
/// would be an error. A target shows values that way which somebody else wrote, of another type.
fn can_exist(key: &Key) -> bool {
    key.values().all(|value| !value.contains(&0))
}

/// How many rows like these are about so many bytes.
fn rows_of(chunk_bytes: usize, rows: &[(Key, Row)]) -> usize {
    let bytes: usize = rows.iter().map(|(key, row)| key.size() + row.size()).sum();
    let row_bytes = bytes.div_ceil(rows.len().max(1)).max(1);
    (chunk_bytes / row_bytes).clamp(1, CHUNK_ROWS_MAX)
}

/// The table as if it had no columns but its key, so that only keys are read.
fn keys_only(table: &TableSchema) -> TableSchema {
    TableSchema {
        columns: table.key_columns().cloned().collect(),
        key: (0..table.key.len()).collect(),
        ..table.clone()
    }
}

/// Source rows as the target gives them back.
pub(super) fn stored_rows(
    target: &dyn Target,
    table: &TableSchema,
    rows: Vec<(Key, Row)>,
) -> Result<Vec<StoredRow>> {
    let stored = |(source_key, row): (Key, Row)| {
        let row = target.stored(table, &row);
        Ok(StoredRow { source_key, key: key_of(table, &row)?, row })
    };
    rows.into_iter().map(stored).collect()
}

/// Target rows by their own key.
pub(super) fn by_key(
    table: &TableSchema,
    rows: Vec<(Key, Version, Row)>,
) -> Result<HashMap<Key, Row>> {
    rows.into_iter().map(|(_, _, row)| Ok((key_of(table, &row)?, row))).collect()
}

fn key_of(table: &TableSchema, row: &Row) -> Result<Key> {
    Key::of(table, row).ok_or_else(|| {
        Error::table(
            &table.name,
            Code::TargetShape,
            format!("a row of {} has NULL in its key, so it cannot be compared", table.name),
        )
    })
}

fn absorb(hasher: &mut blake3::Hasher, row: &Row) {
    for cell in row.cells() {
        match cell {
            Cell::Value(value) => {
                hasher.update(&[1]).update(&(value.len() as u64).to_le_bytes()).update(value);
            }
            Cell::Null => {
                hasher.update(&[0]);
            }
            Cell::Absent => {
                hasher.update(&[2]);
            }
            // Only logs have such values, and tables are compared. A mark of its own differs.
            Cell::Binary(value) => {
                hasher.update(&[3]).update(&(value.len() as u64).to_le_bytes()).update(value);
            }
        }
    }
}

/// A digest of one row.
pub(super) fn fingerprint(row: &Row) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    absorb(&mut hasher, row);
    hasher.finalize()
}
