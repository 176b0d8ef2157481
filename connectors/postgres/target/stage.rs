//! Temporary tables that a batch is copied into before statements apply it. One for each shape,
//! made when it is first needed; the server empties them at every commit.
//!
//! Surprise: rows with absent cells are told apart by their `kind`, one for each set of absent
//! columns, because each set needs a statement that does not mention its columns.

use std::collections::HashMap;
use std::io::Write as _;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::Statement;

use super::new_rows::NewRows;
use super::{Attempt, PostgresTarget};
use crate::change::{Cell, Key, Row, RowDelete, RowUpsert, Timestamp};
use crate::part::TablePart;
use crate::postgres::{copy, sql, types};
use crate::schema::TableSchema;
use crate::version::Version;

/// About how many bytes are sent at a time.
pub const PIECE_BYTES: usize = 256 * 1024;

/// A staging table of this session.
pub struct Stage {
    table: Arc<TableSchema>,
    /// As it is written in SQL.
    pub name: String,
    copy: Statement,
    /// How rows that are not there yet get past the staging table.
    pub new_rows: NewRows,
}

/// What was staged: whether there are complete rows, and the absent columns of each other kind.
#[derive(Default)]
pub struct Staged {
    pub complete: bool,
    pub partial: Vec<Vec<usize>>,
}

impl PostgresTarget {
    /// The place of the staging table for this shape; it is made if there is none.
    pub(super) async fn stage(&mut self, table: &Arc<TableSchema>) -> Attempt<usize> {
        let same = |stage: &Stage| Arc::ptr_eq(&stage.table, table) || stage.table == *table;
        if let Some(place) = self.stages.iter().position(same) {
            return Ok(place);
        }
        let name = format!("pg_temp._cdc_stage_{}", self.stages.len());
        let statements = self.sql(table, &name);
        self.client
            .batch_execute(&format!("DROP TABLE IF EXISTS {name}; {}", statements.create_stage()))
            .await?;
        let copy = self.client.prepare(&statements.copy()).await?;
        let new_rows = NewRows::new(self.client.prepare(&statements.copy_new()).await?);
        self.stages.push(Stage { table: table.clone(), name, copy, new_rows });
        Ok(self.stages.len() - 1)
    }

    /// Copies deletes and rows into their staging table, in the open transaction. Keys go along
    /// when something will look for tombstones.
    pub(super) async fn fill(
        &self,
        place: usize,
        part: &TablePart<'_>,
        check_tombstones: bool,
    ) -> Attempt<Staged> {
        let mut staged = Staged::default();
        if part.deletes.is_empty() && part.upserts.is_empty() {
            return Ok(staged);
        }
        let mut sink = pin!(self.client.copy_in(&self.stages[place].copy).await?);
        let mut kinds = Kinds::default();
        let mut piece = new_piece();
        for delete in part.deletes {
            encode_delete(&mut piece, part.table, delete);
            if piece.len() >= PIECE_BYTES {
                sink.feed(take(&mut piece)).await?;
            }
        }
        for upsert in part.upserts {
            let kind = kinds.of(&upsert.row);
            staged.complete |= kind == sql::COMPLETE;
            let with_key = check_tombstones || kind != sql::COMPLETE;
            encode_upsert(&mut piece, upsert, kind, with_key);
            if piece.len() >= PIECE_BYTES {
                sink.feed(take(&mut piece)).await?;
            }
        }
        sink.feed(take(&mut piece)).await?;
        sink.finish().await?;
        staged.partial = kinds.partial;
        Ok(staged)
    }
}

/// A buffer for about `PIECE_BYTES`.
pub fn new_piece() -> Vec<u8> {
    Vec::with_capacity(PIECE_BYTES + PIECE_BYTES / 4)
}

/// What the buffer holds, and leaves it empty.
pub fn take(piece: &mut Vec<u8>) -> Bytes {
    let empty = Vec::with_capacity(piece.capacity());
    Bytes::from(std::mem::replace(piece, empty))
}

/// Numbers the sets of absent columns as they turn up.
#[derive(Default)]
struct Kinds {
    numbers: HashMap<Vec<usize>, u32>,
    partial: Vec<Vec<usize>>,
}

impl Kinds {
    fn of(&mut self, row: &Row) -> u32 {
        if !row.has_absent() {
            return sql::COMPLETE;
        }
        let absent: Vec<usize> =
            (0..row.len()).filter(|&index| row.cell(index) == Cell::Absent).collect();
        let next = sql::FIRST_PARTIAL + self.partial.len() as u32;
        *self.numbers.entry(absent).or_insert_with_key(|absent| {
            self.partial.push(absent.clone());
            next
        })
    }
}

fn encode_delete(out: &mut Vec<u8>, table: &TableSchema, delete: &RowDelete) {
    // Cells stand in column order, a key's values in key order.
    let values: Vec<&[u8]> = delete.key.values().collect();
    for index in 0..table.columns.len() {
        let value = table.key.iter().position(|&key| key == index).and_then(|at| values.get(at));
        copy::encode_cell(out, value.map_or(Cell::Null, |value| Cell::Value(value)));
        out.push(copy::DELIMITER);
    }
    encode_tail(out, Some(&delete.key), delete.version, delete.updated_at, sql::DELETE);
}

fn encode_upsert(out: &mut Vec<u8>, upsert: &RowUpsert, kind: u32, with_key: bool) {
    for cell in upsert.row.cells() {
        copy::encode_cell(out, cell);
        out.push(copy::DELIMITER);
    }
    let key = with_key.then_some(&upsert.key);
    encode_tail(out, key, upsert.version, upsert.updated_at, kind);
}

fn encode_tail(
    out: &mut Vec<u8>,
    key: Option<&Key>,
    version: Version,
    updated_at: Timestamp,
    kind: u32,
) {
    // The backslash of a `bytea` is itself escaped in COPY's text.
    match key {
        Some(key) => {
            out.extend_from_slice(b"\\\\x");
            types::push_hex(out, key.as_bytes());
        }
        None => copy::encode_cell(out, Cell::Null),
    }
    out.push(copy::DELIMITER);
    encode_rank(out, version, updated_at);
    out.push(copy::DELIMITER);
    // Writing to memory cannot fail.
    let _ = write!(out, "{kind}");
    out.push(copy::END);
}

/// Appends what we write beside a row's cells.
pub fn encode_rank(out: &mut Vec<u8>, version: Version, updated_at: Timestamp) {
    out.extend_from_slice(b"\\\\x");
    types::push_hex(out, &version.to_bytes());
    out.push(copy::DELIMITER);
    types::push_timestamp(out, updated_at);
}
