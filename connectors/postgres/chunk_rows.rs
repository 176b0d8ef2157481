//! Rows that a COPY of the source hands out, in text or in binary. Pure; fed by `chunk.rs`.
//!
//! Surprise: the server sends row by row, but only of the binary form does the protocol promise it.

use super::copy::decode_line;
use super::copy_binary::{Cells, Expected, Piece};
use super::values::Keep;
use crate::change::{Cell, Key, Row, RowBuilder};
use crate::error::{Code, Error, Result};
use crate::schema::TableSchema;

/// The rows so far.
pub struct Decoder<'a> {
    table: &'a TableSchema,
    form: Form,
    rows: Vec<(Key, Row)>,
}

enum Form {
    /// With the beginning of a line.
    Text(Vec<u8>),
    Binary {
        expected: Expected,
        columns: Vec<Keep>,
        row: RowBuilder,
    },
}

impl<'a> Decoder<'a> {
    /// For all columns of a table.
    #[must_use]
    pub fn new(table: &'a TableSchema, in_binary: bool) -> Decoder<'a> {
        let form = match in_binary {
            false => Form::Text(Vec::new()),
            true => Form::Binary {
                expected: Expected::Header,
                columns: Keep::all(table),
                row: RowBuilder::default(),
            },
        };
        Decoder { table, form, rows: Vec::new() }
    }

    /// Takes what one CopyData message holds.
    ///
    /// # Errors
    /// `protocol` if it is no row.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        let Decoder { table, form, rows } = self;
        match form {
            Form::Text(rest) => lines(table, rest, bytes, rows),
            Form::Binary { expected, columns, row } => {
                // The server has no tables of more columns than this can say.
                match expected.read(bytes, columns.len() as u16)? {
                    Piece::End => *expected = Expected::Nothing,
                    Piece::Row(cells) => {
                        *expected = Expected::Row;
                        rows.push(in_binary(table, columns, cells, row)?);
                    }
                }
                Ok(())
            }
        }
    }

    /// The rows, if they are whole.
    ///
    /// # Errors
    /// `protocol` if they are not.
    pub fn finish(self) -> Result<Vec<(Key, Row)>> {
        let is_whole = match self.form {
            Form::Text(rest) => rest.is_empty(),
            Form::Binary { expected, .. } => expected == Expected::Nothing,
        };
        is_whole.then_some(self.rows).ok_or_else(|| malformed(self.table))
    }
}

fn lines(
    table: &TableSchema,
    rest: &mut Vec<u8>,
    mut bytes: &[u8],
    rows: &mut Vec<(Key, Row)>,
) -> Result<()> {
    if let [line @ .., b'\n'] = bytes
        && rest.is_empty()
        && !line.contains(&b'\n')
    {
        rows.push(of_line(table, line)?);
        return Ok(());
    }
    while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
        rest.extend_from_slice(&bytes[..end]);
        rows.push(of_line(table, rest)?);
        rest.clear();
        bytes = &bytes[end + 1..];
    }
    rest.extend_from_slice(bytes);
    Ok(())
}

fn of_line(table: &TableSchema, line: &[u8]) -> Result<(Key, Row)> {
    let row = decode_line(line, table.columns.len()).ok_or_else(|| malformed(table))?;
    with_key(table, row)
}

fn in_binary(
    table: &TableSchema,
    columns: &[Keep],
    mut cells: Cells<'_>,
    row: &mut RowBuilder,
) -> Result<(Key, Row)> {
    row.restart(columns.len());
    for keep in columns {
        keep.push(cells.take()?.map_or(Cell::Null, Cell::Binary), row);
    }
    cells.end()?;
    with_key(table, row.take())
}

fn with_key(table: &TableSchema, row: Row) -> Result<(Key, Row)> {
    let key = Key::of(table, &row).ok_or_else(|| malformed(table))?;
    Ok((key, row))
}

fn malformed(table: &TableSchema) -> Error {
    let message = format!("read rows of {}: the source sent a line that is no row", table.name);
    Error::stop(Code::Protocol, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{key, row, usual};

    fn decoded(in_binary: bool, messages: &[&[u8]]) -> Result<Vec<(Key, Row)>> {
        let table = usual();
        let mut decoder = Decoder::new(&table, in_binary);
        messages.iter().try_for_each(|message| decoder.feed(message))?;
        decoder.finish()
    }

    #[test]
    fn lines_become_rows_however_they_are_cut() {
        let expected =
            vec![(key(&["1"]), row(&["1", "a", "~"])), (key(&["2"]), row(&["2", "b", ""]))];
        let all = b"1\ta\t\\N\n2\tb\t\n";
        for cut in 0..all.len() {
            assert_eq!(decoded(false, &[&all[..cut], &all[cut..]]), Ok(expected.clone()));
        }
        assert!(decoded(false, &[b"1\ta\tb"]).is_err(), "half a line");
        assert!(decoded(false, &[b"1\ta\n"]).is_err(), "a cell too few");
        assert!(decoded(false, &[b"\\N\ta\tb\n"]).is_err(), "no key");
    }

    #[test]
    fn rows_in_binary_have_keys_of_text() {
        let header = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".as_slice();
        let one = b"\0\x03\0\0\0\x08\0\0\0\0\0\0\0\x07\0\0\0\x01a\xff\xff\xff\xff".as_slice();
        let (first, end) = ([header, one].concat(), b"\xff\xff".as_slice());
        let expected = Row::from_cells([Cell::Value(b"7"), Cell::Binary(b"a"), Cell::Null]);
        assert_eq!(decoded(true, &[&first, end]), Ok(vec![(key(&["7"]), expected)]));
        assert!(decoded(true, &[&first]).is_err(), "no end");
        assert!(decoded(true, &[&first, end, one]).is_err(), "a row after the end");
        assert!(decoded(true, &[&[&first[..], &[0]].concat(), end]).is_err(), "a row that goes on");
        let null = b"\0\x03\xff\xff\xff\xff\0\0\0\x01a\xff\xff\xff\xff".as_slice();
        assert!(decoded(true, &[&[header, null].concat(), end]).is_err(), "no key");
    }
}
