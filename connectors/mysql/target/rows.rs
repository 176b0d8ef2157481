//! Rows and keys on their way to the server: which are written at all, and which are looked for.
//! `write.rs` writes them. Called by `apply.rs` and `poison.rs` in their transaction.
//!
//! Surprise: a row with absent cells is an upsert that does not mention them. That the row is
//! there, so that nothing is ever inserted with holes in it, is found out before, under a lock.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

use super::records::bytes;
use super::write::{ROWS_MAX, STATEMENT_BYTES, Written};
use super::writer::Writer;
use crate::change::{Cell, Key, RowDelete, RowUpsert};
use crate::error::{Code, Error, Result};
use crate::key_order::by_key;
use crate::mysql::sql::{self, TableSql};
use crate::mysql::target_types::StoredColumn;
use crate::mysql::target_values::{decode, encode, stored};
use crate::part::TablePart;
use crate::schema::{TableName, TableSchema};
use crate::version::Version;

/// The most keys of a statement that looks some up. MariaDB makes a temporary table of longer
/// lists.
const KEYS_MAX: usize = 500;

/// What is known of a row that is there.
struct Existing {
    version: Version,
    deleted: bool,
}

impl Writer {
    /// Does everything to a table that its part says. Returns the keys of the rows with absent
    /// cells for which there is no row to keep them from, and nothing newer either.
    pub(super) async fn write_part(
        &mut self,
        part: &TablePart<'_>,
        floor: Version,
        check_tombstones: bool,
    ) -> Result<Vec<Key>> {
        let name = self.naming.target_name(&part.table.name);
        let columns = self.stored_columns(part.table);
        let table = self.sql(part.table, &name, &columns);
        if !check_tombstones && !self.runs_many && self.load_new(&table, part).await? {
            return Ok(Vec::new());
        }
        if let Some((truncation, updated_at)) = part.truncated {
            let doing = format!("truncate target table {name}");
            self.session.execute(&doing, &table.truncate(truncation, updated_at)).await?;
            if truncation >= floor {
                self.bury(&name, &[(digest(&Key::whole_table()), truncation)]).await?;
            }
        }
        match self.options.soft_deletes {
            false => self.delete_rows(&table, part.deletes).await?,
            true => self.mark_rows(&table, part.deletes).await?,
        }
        let kept = part.deletes.iter().filter(|delete| delete.version >= floor);
        let kept: Vec<_> = kept.map(|delete| (digest(&delete.key), delete.version)).collect();
        self.bury(&name, &kept).await?;
        let upserts = match check_tombstones {
            true => self.not_outranked(&name, part).await?,
            false => part.upserts.iter().collect(),
        };
        let (partial, complete): (Vec<&RowUpsert>, Vec<&RowUpsert>) =
            upserts.into_iter().partition(|upsert| upsert.row.has_absent());
        let all: Vec<usize> = (0..columns.len()).collect();
        let order = by_key(part.table, complete.iter().map(|upsert| &upsert.key));
        let rows = order.into_iter().map(|at| Written::from(complete[at]));
        self.write_rows(&table, &all, rows).await?;
        self.write_partial(&table, &partial).await
    }

    async fn delete_rows(&mut self, table: &TableSql<'_>, deletes: &[RowDelete]) -> Result<()> {
        let doing = format!("delete rows of target table {}", table.name);
        for deletes in self.pieces(deletes, |delete| &delete.key) {
            // A key that the target cannot have is not there.
            let keyed = |delete: &RowDelete| {
                let key = key_literals(table.table, table.columns, &delete.key).ok()?;
                Some((key, delete.version))
            };
            let deletions: Vec<_> = deletes.iter().filter_map(keyed).collect();
            if !deletions.is_empty() {
                self.session.execute(&doing, &table.delete(&deletions)).await?;
            }
        }
        Ok(())
    }

    /// Marks the rows that are there and older than their deletion.
    async fn mark_rows(&mut self, table: &TableSql<'_>, deletes: &[RowDelete]) -> Result<()> {
        let keys: Vec<&Key> = deletes.iter().map(|delete| &delete.key).collect();
        let existing = self.lock_rows(table, &keys).await?;
        let older = deletes.iter().filter(|delete| {
            let known = existing.get(&stored_key(table.table, table.columns, &delete.key));
            known.is_some_and(|known| known.version < delete.version)
        });
        let marked = older.map(|delete| Written {
            key: &delete.key,
            row: None,
            updated_at: delete.updated_at,
            version: delete.version,
            deleted: true,
        });
        self.write_rows(table, &table.table.key.clone(), marked).await
    }

    async fn bury(&mut self, name: &str, deletions: &[([u8; 32], Version)]) -> Result<()> {
        for deletions in deletions.chunks(ROWS_MAX) {
            let bury = sql::bury(self.engine(), &self.options.pipeline, name, deletions);
            self.session.execute("remember deletions", &bury).await?;
        }
        Ok(())
    }

    /// The upserts for which no tombstone of their key or table is newer.
    async fn not_outranked<'a>(
        &mut self,
        name: &str,
        part: &TablePart<'a>,
    ) -> Result<Vec<&'a RowUpsert>> {
        let whole = digest(&Key::whole_table());
        let mut kept = Vec::with_capacity(part.upserts.len());
        for upserts in part.upserts.chunks(KEYS_MAX) {
            let mut digests: Vec<[u8; 32]> = upserts.iter().map(|u| digest(&u.key)).collect();
            digests.push(whole);
            let look = sql::tombstones(&self.options.pipeline, name, &digests);
            let rows = self.session.query("look for tombstones", &look).await?;
            let mut buried: HashMap<Vec<u8>, Version> = HashMap::with_capacity(rows.len());
            for row in &rows {
                let damaged =
                    || Error::stop(Code::TargetLost, "a version in _cdc_tombstone is damaged");
                let version = Version::from_bytes(bytes(row, 1)?).ok_or_else(damaged)?;
                buried.insert(bytes(row, 0)?.to_vec(), version);
            }
            let here = part.truncated.map(|(version, _)| version);
            let truncated = buried.get(&whole[..]).copied().max(here);
            kept.extend(upserts.iter().zip(&digests).filter_map(|(upsert, digest)| {
                let key_buried = buried.get(&digest[..]).copied();
                let outranked =
                    key_buried >= Some(upsert.version) || truncated > Some(upsert.version);
                (!outranked).then_some(upsert)
            }));
        }
        Ok(kept)
    }

    /// Writes rows that mention only some columns into rows that are there.
    async fn write_partial(
        &mut self,
        table: &TableSql<'_>,
        partial: &[&RowUpsert],
    ) -> Result<Vec<Key>> {
        let keys: Vec<&Key> = partial.iter().map(|upsert| &upsert.key).collect();
        let existing = self.lock_rows(table, &keys).await?;
        let mut missing = Vec::new();
        let mut by_columns: BTreeMap<Vec<usize>, Vec<&RowUpsert>> = BTreeMap::new();
        for &upsert in partial {
            match existing.get(&stored_key(table.table, table.columns, &upsert.key)) {
                Some(known) if known.version >= upsert.version => {}
                Some(known) if !known.deleted => {
                    let present = |index: &usize| upsert.row.cell(*index) != Cell::Absent;
                    let present = (0..upsert.row.len()).filter(present).collect();
                    by_columns.entry(present).or_default().push(upsert);
                }
                // It must not get columns of a row that was deleted before it.
                Some(_) | None => missing.push(upsert.key.clone()),
            }
        }
        for (present, upserts) in by_columns {
            let rows = upserts.into_iter().map(Written::from);
            self.write_rows(table, &present, rows).await?;
        }
        Ok(missing)
    }

    /// The rows of these keys that are there, by their keys as the target has them.
    async fn lock_rows(
        &mut self,
        table: &TableSql<'_>,
        keys: &[&Key],
    ) -> Result<HashMap<Key, Existing>> {
        let doing = format!("look for rows of target table {}", table.name);
        let mut existing = HashMap::with_capacity(keys.len());
        let length = table.table.key.len();
        for keys in self.pieces(keys, |key| key) {
            let literals: Vec<Vec<String>> = keys
                .iter()
                .filter_map(|key| key_literals(table.table, table.columns, key).ok())
                .collect();
            if literals.is_empty() {
                continue;
            }
            for row in self.session.query(&doing, &table.lock_rows(&literals)).await? {
                let key = read_key(table.table, table.columns, &row)?;
                let version = read_version(table, &row, length)?;
                let deleted = bytes(&row, length + 1)? != b"0";
                existing.insert(key, Existing { version, deleted });
            }
        }
        Ok(existing)
    }

    /// The keys of as many statements as they need: neither too many nor too long.
    pub(super) fn pieces<'a, T>(
        &self,
        mut rest: &'a [T],
        key: impl Fn(&T) -> &Key,
    ) -> Vec<&'a [T]> {
        let bytes_max = STATEMENT_BYTES.min(self.packet_max / 2);
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |item: &&T| {
                // In hexadecimal, with the column's name and the version beside it.
                bytes += key(item).size() * 2 + 200;
                bytes <= bytes_max
            };
            let count = rest.iter().take(KEYS_MAX).take_while(fits).count().max(1);
            let (piece, after) = rest.split_at(count);
            pieces.push(piece);
            rest = after;
        }
        pieces
    }
}

/// A key's place among the tombstones. A digest, because keys may be longer than an index allows.
fn digest(key: &Key) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// The literals of a key's values; the error says why the target cannot have such a key.
pub fn key_literals(
    table: &TableSchema,
    columns: &[StoredColumn],
    key: &Key,
) -> std::result::Result<Vec<String>, &'static str> {
    let literal = |(&index, value): (&usize, &[u8])| {
        let mut literal = String::new();
        encode(columns[index].form, value, &mut literal).map(|()| literal)
    };
    table.key.iter().zip(key.values()).map(literal).collect()
}

/// A key as it comes back from the target.
pub fn stored_key(table: &TableSchema, columns: &[StoredColumn], key: &Key) -> Key {
    let values: Vec<_> = table
        .key
        .iter()
        .zip(key.values())
        .map(|(&index, value)| stored(columns[index].form, value))
        .collect();
    Key::from_values(values.iter().map(|value| &value[..]))
}

/// The key that a row begins with.
pub fn read_key(
    table: &TableSchema,
    columns: &[StoredColumn],
    row: &mysql_async::Row,
) -> Result<Key> {
    let read =
        |(place, &index): (usize, &usize)| Ok(decode(columns[index].form, bytes(row, place)?));
    let values: Vec<Vec<u8>> = table.key.iter().enumerate().map(read).collect::<Result<_>>()?;
    Ok(Key::from_values(values.iter().map(Vec::as_slice)))
}

/// The version in this column of a row.
pub fn read_version(table: &TableSql<'_>, row: &mysql_async::Row, index: usize) -> Result<Version> {
    Version::from_bytes(bytes(row, index)?).ok_or_else(|| {
        let message = format!(
            "target table {} has a row whose {} is not 16 bytes; run `driftless verify --repair`",
            table.name,
            sql::VERSION
        );
        Error::table(&table.table.name, Code::TargetShape, message)
    })
}

/// A row that cannot be written, for a reason that names no value.
pub fn poison(table: &TableName, key: &Key, version: Version, reason: &str) -> Error {
    Error::table(
        table,
        Code::PoisonRow,
        format!(
            "the target refused the row with key hash {} at {version} of {table}: {reason}; mend \
             the row at the source or what refuses it in the target, then run `driftless backfill \
             --table {table}`",
            key.hash()
        ),
    )
}
