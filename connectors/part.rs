//! A piece of what a batch does to one table, for targets that apply a batch in pieces: to look for
//! the row that is refused. Deletes come before upserts.

use std::sync::Arc;

use crate::change::{Key, RowDelete, RowUpsert, TableBatch, Timestamp};
use crate::schema::TableSchema;
use crate::version::Version;

/// What a batch, or a piece of it, does to one table.
#[derive(Clone, Copy)]
pub struct TablePart<'a> {
    /// The shape of the rows.
    pub table: &'a Arc<TableSchema>,
    /// As in the batch.
    pub truncated: Option<(Version, Timestamp)>,
    /// As in the batch.
    pub deletes: &'a [RowDelete],
    /// As in the batch.
    pub upserts: &'a [RowUpsert],
}

impl<'a> From<&'a TableBatch> for TablePart<'a> {
    fn from(batch: &'a TableBatch) -> TablePart<'a> {
        TablePart::of_rows(batch, 0, batch.deletes.len() + batch.upserts.len())
    }
}

impl<'a> TablePart<'a> {
    /// Only its upserts, from the first, and so many of them.
    #[must_use]
    pub fn first_upserts(&self, count: usize) -> TablePart<'a> {
        TablePart { truncated: None, deletes: &[], upserts: &self.upserts[..count], ..*self }
    }

    /// All but so many upserts, from the first.
    #[must_use]
    pub fn without_first_upserts(&self, count: usize) -> TablePart<'a> {
        TablePart { upserts: &self.upserts[count..], ..*self }
    }

    /// Whether it does nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.truncated.is_none() && self.deletes.is_empty() && self.upserts.is_empty()
    }

    /// The rows from `start` to before `end`; the truncation belongs to the first.
    #[must_use]
    pub fn of_rows(batch: &'a TableBatch, start: usize, end: usize) -> TablePart<'a> {
        let deletes = batch.deletes.len();
        TablePart {
            table: &batch.table,
            truncated: batch.truncated.filter(|_| start == 0),
            deletes: &batch.deletes[start.min(deletes)..end.min(deletes)],
            upserts: &batch.upserts[start.saturating_sub(deletes)..end.saturating_sub(deletes)],
        }
    }
}

/// The key and the version of the row at this place of a batch's table.
#[must_use]
pub fn row_at(batch: &TableBatch, index: usize) -> Option<(&Key, Version)> {
    match index.checked_sub(batch.deletes.len()) {
        None => batch.deletes.get(index).map(|row| (&row.key, row.version)),
        Some(index) => batch.upserts.get(index).map(|row| (&row.key, row.version)),
    }
}
