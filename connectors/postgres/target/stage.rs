//! Temporary tables that a batch is copied into before statements apply it. One for each shape,
//! made when it is first needed; the server empties them at every commit.
//!
//! Surprise: rows with absent cells are told apart by their `kind`, one for each set of absent
//! columns, because each set needs a statement that does not mention its columns.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;

use futures_util::SinkExt;

use super::copying::Copying;
use super::new_rows::CopyNew;
use super::row_writer::{RowWriter, Unwritten};
use super::session::Session;
use super::{Attempt, Failure};
use crate::change::{Cell, Row, RowDelete, RowUpsert};
use crate::error;
use crate::key_order::by_key;
use crate::part::TablePart;
use crate::postgres::sql;
use crate::schema::TableSchema;

/// The columns that follow the row's own: `key`, `version`, `updated_at`, `kind`.
const OWN_COLUMNS: usize = 4;

/// A staging table of this session.
pub struct Stage {
    table: Arc<TableSchema>,
    /// As it is written in SQL.
    pub name: String,
    copying: Copying,
    /// How rows that are not there yet get past the staging table.
    pub new_rows: CopyNew,
}

#[cfg(test)]
impl Stage {
    pub fn form(&self) -> &super::row_writer::Form {
        &self.copying.form
    }
}

/// What was staged and not written yet: whether there are complete rows, and the absent columns of
/// each other kind.
#[derive(Default)]
pub struct Staged {
    pub complete: bool,
    pub partial: Vec<Vec<usize>>,
}

impl Session {
    /// The place of the staging table for this shape; it is made if there is none.
    pub(super) async fn stage(&mut self, table: &Arc<TableSchema>) -> Attempt<usize> {
        if let Some(place) = self.place(table) {
            return Ok(place);
        }
        let name = format!("pg_temp._cdc_stage_{}", self.stages.len());
        let create = self.sql(table, &name).create_stage();
        self.client.batch_execute(&format!("DROP TABLE IF EXISTS {name}; {create}")).await?;
        let copying = self.prepare_staging(table, &name, true).await?;
        let new_rows = CopyNew::new(true);
        self.stages.push(Stage { table: table.clone(), name, copying, new_rows });
        Ok(self.stages.len() - 1)
    }

    /// The place of the staging table for this shape, if it was made.
    pub(super) fn place(&self, table: &Arc<TableSchema>) -> Option<usize> {
        let same = |stage: &Stage| Arc::ptr_eq(&stage.table, table) || stage.table == *table;
        self.stages.iter().position(same)
    }

    /// Has the rows of this stage's table written in text from now on.
    pub(super) async fn write_text(&mut self, place: usize) -> error::Result<()> {
        let Stage { table, name, .. } = &self.stages[place];
        let prepared = self.prepare_staging(table, name, false).await;
        let copying = prepared.map_err(|failure| failure.doing("prepare to write text"))?;
        let stage = &mut self.stages[place];
        (stage.copying, stage.new_rows) = (copying, CopyNew::new(false));
        Ok(())
    }

    async fn prepare_staging(
        &self,
        table: &TableSchema,
        name: &str,
        binary: bool,
    ) -> Attempt<Copying> {
        let sql = self.sql(table, name);
        self.prepare_copy(table, &sql.copy(), &sql.staged_columns(), binary).await
    }

    /// Copies deletes and rows into their staging table, in the open transaction. Keys go along
    /// when something will look for tombstones. So many upserts, from the first, are marked as those
    /// that are written early.
    pub(super) async fn fill(
        &self,
        place: usize,
        part: &TablePart<'_>,
        check_tombstones: bool,
        early: usize,
    ) -> Attempt<Staged> {
        let mut staged = Staged::default();
        if part.deletes.is_empty() && part.upserts.is_empty() {
            return Ok(staged);
        }
        let unwritten = |why| Failure::unwritten(why, place, part.table);
        let Copying { statement, form, .. } = &self.stages[place].copying;
        let mut sink = pin!(self.client.copy_in(statement).await?);
        let mut kinds = Kinds::default();
        let mut writer = RowWriter::new(form, OWN_COLUMNS);
        for at in by_key(part.table, part.deletes.iter().map(|delete| &delete.key)) {
            write_delete(&mut writer, part.table, &part.deletes[at]).map_err(unwritten)?;
            if let Some(piece) = writer.end_row() {
                sink.feed(piece).await?;
            }
        }
        for at in by_key(part.table, part.upserts.iter().map(|upsert| &upsert.key)) {
            let upsert = &part.upserts[at];
            let kind = if at < early { sql::EARLY } else { kinds.of(&upsert.row) };
            staged.complete |= kind == sql::COMPLETE;
            let with_key = check_tombstones || kind >= sql::FIRST_PARTIAL;
            write_upsert(&mut writer, upsert, kind, with_key).map_err(unwritten)?;
            if let Some(piece) = writer.end_row() {
                sink.feed(piece).await?;
            }
        }
        sink.feed(writer.finish()).await?;
        sink.finish().await?;
        staged.partial = kinds.partial;
        Ok(staged)
    }
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

fn write_delete(
    writer: &mut RowWriter<'_>,
    table: &TableSchema,
    delete: &RowDelete,
) -> Result<(), Unwritten> {
    // Cells stand in column order, a key's values in key order.
    let values: Vec<&[u8]> = delete.key.values().collect();
    let cell = |index: usize| {
        let value = table.key.iter().position(|&key| key == index).and_then(|at| values.get(at));
        value.map_or(Cell::Null, |value| Cell::Value(value))
    };
    writer.cells((0..table.columns.len()).map(cell))?;
    writer.bytes(Some(delete.key.as_bytes()));
    writer.rank(delete.version, delete.updated_at);
    writer.number(sql::DELETE);
    Ok(())
}

fn write_upsert(
    writer: &mut RowWriter<'_>,
    upsert: &RowUpsert,
    kind: u32,
    with_key: bool,
) -> Result<(), Unwritten> {
    writer.cells(upsert.row.cells())?;
    writer.bytes(with_key.then(|| upsert.key.as_bytes()));
    writer.rank(upsert.version, upsert.updated_at);
    writer.number(kind);
    Ok(())
}
