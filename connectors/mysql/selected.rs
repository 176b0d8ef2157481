//! Turns rows that SQL hands out into ours, by `values.rs`. Pure; used by `chunk.rs`.
//!
//! Surprise: a row with a value that cannot be replicated is read to its end all the same, because
//! the error names the row by its key.

use mysql_async::Row as ServerRow;

use super::bytes::Malformed;
use super::rows::LIKE_A_LABEL;
use super::text::{Pushed, Refusal};
use super::types::MysqlType;
use super::values;
use crate::ZeroDates;
use crate::change::{Cell, Key, Row};
use crate::error::{Code, Error, Result};
use crate::schema::{Column, TableSchema};

/// Turns the server's rows into ours.
pub struct Turner<'a> {
    table: &'a TableSchema,
    types: &'a [MysqlType],
    zero_dates: ZeroDates,
    /// The values of a row, one behind the other.
    buffer: Vec<u8>,
    /// For each cell where it ends; `None` for NULL.
    ends: Vec<Option<usize>>,
}

impl<'a> Turner<'a> {
    /// Of rows with these columns, and their types.
    pub fn new(
        table: &'a TableSchema,
        types: &'a [MysqlType],
        zero_dates: ZeroDates,
    ) -> Turner<'a> {
        Turner { table, types, zero_dates, buffer: Vec::new(), ends: Vec::new() }
    }

    /// A row and its key.
    ///
    /// # Errors
    /// `zero-date`, `poison-row`: a value of this table that cannot be replicated.
    pub fn turn(&mut self, row: &ServerRow) -> Result<(Key, Row)> {
        self.buffer.clear();
        self.ends.clear();
        let table = self.table;
        let mut refused = None;
        for (place, kind) in self.types.iter().enumerate() {
            let value = row.as_ref(place).ok_or_else(|| malformed(table, "a column is missing"))?;
            let pushed = values::push(value, kind, self.zero_dates, &mut self.buffer);
            self.ends.push(match pushed {
                Ok(Pushed::Text) => Some(self.buffer.len()),
                Ok(Pushed::Null) => None,
                Err(refusal) => {
                    refused.get_or_insert((place, refusal));
                    Some(self.buffer.len())
                }
            });
        }
        let row = self.row();
        let key = Key::of(table, &row);
        // The statement gives NULL for it.
        if let Some(&place) = table.key.iter().find(|&&place| self.is_no_label(place)) {
            refused = Some((place, Refusal::Malformed(Malformed::new(LIKE_A_LABEL))));
        }
        match refused {
            Some((place, refusal)) => {
                Err(refusal_error(table, &table.columns[place], key.as_ref(), &refusal))
            }
            None => Ok((key.ok_or_else(|| malformed(table, "its key is NULL"))?, row)),
        }
    }

    fn is_no_label(&self, place: usize) -> bool {
        self.ends[place].is_none() && self.types[place].has_empty_label()
    }

    fn row(&self) -> Row {
        let mut begin = 0;
        let cell = |end: &Option<usize>| match end {
            None => Cell::Null,
            Some(end) => {
                let value = &self.buffer[begin..*end];
                begin = *end;
                Cell::Value(value)
            }
        };
        let cells: Vec<Cell<'_>> = self.ends.iter().map(cell).collect();
        Row::from_cells(cells)
    }
}

fn refusal_error(
    table: &TableSchema,
    column: &Column,
    key: Option<&Key>,
    refusal: &Refusal,
) -> Error {
    let name = &table.name;
    let row =
        key.map_or_else(|| "of unknown key".to_owned(), |key| format!("with key {}", key.hash()));
    match refusal {
        Refusal::ZeroDate => Error::table(
            name,
            Code::ZeroDate,
            format!(
                "column {} of table {name} has a date with a zero in it, in the row {row}; mend \
                 the row, or set zero_dates = \"null\" under [source], then run `driftless \
                 backfill --table {name}`",
                column.name
            ),
        ),
        Refusal::Malformed(why) => Error::table(
            name,
            Code::PoisonRow,
            format!(
                "column {} of table {name} has a value that is not understood, in the row {row}: \
                 {why}; mend the row, then run `driftless backfill --table {name}`",
                column.name
            ),
        ),
    }
}

fn malformed(table: &TableSchema, why: &str) -> Error {
    let message = format!("read rows of {}: the source sent what is no row: {why}", table.name);
    Error::stop(Code::Protocol, message)
}
