//! In which form the source sends the values of rows: as text, or in binary, which costs both
//! servers and us less. In binary only for a PostgreSQL target, and only where each column has a
//! known way back to text, for keys and for rows that have to be written as text after all.
//!
//! Surprise: a session asks for one form for all of its tables. So a column of another type that is
//! added later ends the session, and the next one reads text.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::binary::Encoding;
use crate::change::{Cell, RowBuilder};
use crate::error::{Code, Error, Result};
use crate::schema::{Column, TableSchema};

/// Whether values come in binary. Shared by all sessions of a source.
#[derive(Clone, Debug)]
pub struct InBinary(Arc<AtomicBool>);

impl InBinary {
    /// As the target allows.
    #[must_use]
    pub fn new(wanted: bool) -> InBinary {
        InBinary(Arc::new(AtomicBool::new(wanted)))
    }

    /// Whether it is asked for where rows of these tables come.
    #[must_use]
    pub fn suits<'a>(&self, tables: impl IntoIterator<Item = &'a TableSchema>) -> bool {
        self.0.load(Ordering::Relaxed) && tables.into_iter().all(|table| unknown(table).is_none())
    }

    /// Whether a session that asked for it can go on with a table that has this shape now.
    ///
    /// # Errors
    /// `schema-change` (transient), if the next one has to read text.
    pub fn prove(&self, table: &TableSchema) -> Result<()> {
        match unknown(table) {
            None => Ok(()),
            Some(Column { name, .. }) => Err(self.give_up(
                Code::SchemaChange,
                format!(
                    "table {} has got column {name}, which does not come in binary",
                    table.name
                ),
            )),
        }
    }

    /// From the next session on, as long as we run, values are text.
    #[must_use]
    pub fn give_up(&self, code: Code, why: impl std::fmt::Display) -> Error {
        self.0.store(false, Ordering::Relaxed);
        Error::transient(code, format!("{why}; the log will be read as text"))
    }
}

/// What becomes of the values of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// They are left out.
    No,
    /// They are kept as they come.
    AsTheyCome,
    /// They belong to the key, which is text; with what they are if they come in binary.
    AsText(Option<Encoding>),
}

impl Keep {
    /// What becomes of those of the table's column at this place.
    #[must_use]
    pub fn of(table: &TableSchema, place: usize) -> Keep {
        match table.is_key(place) {
            true => Keep::AsText(Encoding::of_column(&table.columns[place])),
            false => Keep::AsTheyCome,
        }
    }

    /// What becomes of those of each column of a table.
    #[must_use]
    pub fn all(table: &TableSchema) -> Vec<Keep> {
        (0..table.columns.len()).map(|place| Keep::of(table, place)).collect()
    }

    /// Appends one to a row.
    #[inline]
    pub fn push(self, cell: Cell<'_>, row: &mut RowBuilder) {
        match (self, cell) {
            (Keep::No, _) => {}
            // One that has no text becomes NULL, which no key is.
            (Keep::AsText(encoding), Cell::Binary(value)) => row.push_with(|out| {
                encoding.is_some_and(|encoding| encoding.push_text(value, out).is_some())
            }),
            _ => row.push(cell),
        }
    }
}

/// A column whose values are not taken in binary.
fn unknown(table: &TableSchema) -> Option<&Column> {
    table.columns.iter().find(|column| Encoding::of_column(column).is_none())
}
