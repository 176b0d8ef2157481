//! Writes rows as COPY reads them: in binary if every column has a binary form, else in text. Pure;
//! `stage.rs` and `new_rows.rs` send what it writes.
//!
//! Surprise: a value may have no binary form although its column has one. Then nothing of the rows
//! written so far is of use, and the batch begins again in text.

use std::io::Write as _;

use bytes::Bytes;

use crate::change::{Cell, Timestamp};
use crate::hex;
use crate::postgres::binary::{self, Encoding};
use crate::postgres::{copy, types};
use crate::version::Version;

/// About how many bytes are sent at a time.
const PIECE_BYTES: usize = 256 * 1024;

/// What begins a COPY in binary: its name, no flags, no extension.
const BINARY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What ends it, where the number of a row's columns would be.
const BINARY_TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

/// In which form a COPY reads its rows.
#[derive(Clone, Debug)]
pub enum Form {
    /// As text. For each column, how its values come if they come in binary.
    Text(Box<[Option<Encoding>]>),
    /// In binary, each column in its way.
    Binary(Box<[BinaryColumn]>),
}

/// How the values of a column are written in binary.
#[derive(Clone, Copy, Debug)]
pub struct BinaryColumn {
    to: Encoding,
    /// How they come if they come in binary.
    source: Option<Encoding>,
}

impl Form {
    /// The form for columns of the target with these encodings: binary, if each has one and if it is
    /// allowed. `source` are the encodings in which values of a row's own columns, the first ones, may
    /// come from the source.
    #[must_use]
    pub fn new(target: &[Option<Encoding>], source: &[Option<Encoding>], binary: bool) -> Form {
        let source = (0..target.len()).map(|place| source.get(place).copied().flatten());
        let columns = target.iter().zip(source.clone());
        let columns =
            columns.map(|(encoding, source)| encoding.map(|to| BinaryColumn { to, source }));
        match columns.collect::<Option<Box<[BinaryColumn]>>>().filter(|_| binary) {
            Some(columns) => Form::Binary(columns),
            None => Form::Text(source.collect()),
        }
    }

    fn columns(&self) -> usize {
        match self {
            Form::Text(columns) => columns.len(),
            Form::Binary(columns) => columns.len(),
        }
    }
}

impl BinaryColumn {
    /// Appends a value that came in binary, by way of its text if the target's column has another
    /// encoding than the source's.
    fn push(self, value: &[u8], out: &mut Vec<u8>) -> Result<(), Unwritten> {
        if self.source == Some(self.to) {
            binary::push_bytes(value, out);
            return Ok(());
        }
        self.to.push(&text(self.source, value)?, out).ok_or(Unwritten::NoBinary)
    }
}

/// The text of a value that came in binary.
fn text(source: Option<Encoding>, value: &[u8]) -> Result<Vec<u8>, Unwritten> {
    let mut text = Vec::new();
    let read = source.and_then(|source| source.push_text(value, &mut text));
    read.map(|()| text).ok_or(Unwritten::Foreign)
}

/// Why a value cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwritten {
    /// It has no binary form.
    NoBinary,
    /// It came in binary, and is none of its column's type.
    Foreign,
}

/// Rows being written.
pub struct RowWriter<'a> {
    form: &'a Form,
    /// How many columns of ours follow the cells of a row.
    own_columns: usize,
    piece: Vec<u8>,
}

impl<'a> RowWriter<'a> {
    /// Nothing is written yet but what stands before the first row.
    pub fn new(form: &'a Form, own_columns: usize) -> RowWriter<'a> {
        let mut piece = new_piece();
        if let Form::Binary(_) = form {
            piece.extend_from_slice(BINARY_HEADER);
        }
        RowWriter { form, own_columns, piece }
    }

    /// Begins a row with its own cells. An absent one is written as NULL: a staging table has no
    /// third state, so whoever writes one must keep every statement from reading it.
    ///
    /// # Panics
    /// If there are not as many as the table has columns: a defect, rows and schemas travel
    /// together. What follows would be read as other columns.
    pub fn cells<'c>(
        &mut self,
        cells: impl ExactSizeIterator<Item = Cell<'c>>,
    ) -> Result<(), Unwritten> {
        let (count, columns) = (cells.len(), self.form.columns() - self.own_columns);
        assert!(count == columns, "a row of {count} cells for {columns} columns");
        let columns = match self.form {
            Form::Binary(columns) => columns,
            Form::Text(columns) => {
                return self.cells_as_text(columns, cells);
            }
        };
        let out = &mut self.piece;
        // The server has no tables of more columns than this can say.
        out.extend_from_slice(&(columns.len() as i16).to_be_bytes());
        for (column, cell) in columns.iter().zip(cells) {
            match cell {
                Cell::Value(text) => column.to.push(text, out).ok_or(Unwritten::NoBinary)?,
                Cell::Binary(value) => column.push(value, out)?,
                Cell::Null | Cell::Absent => binary::push_null(out),
            }
        }
        Ok(())
    }

    fn cells_as_text<'c>(
        &mut self,
        columns: &[Option<Encoding>],
        cells: impl Iterator<Item = Cell<'c>>,
    ) -> Result<(), Unwritten> {
        let out = &mut self.piece;
        for (&source, cell) in columns.iter().zip(cells) {
            match cell {
                Cell::Value(text) => copy::encode_value(out, text),
                Cell::Binary(value) => copy::encode_value(out, &text(source, value)?),
                Cell::Null | Cell::Absent => out.extend_from_slice(copy::NULL),
            }
            out.push(copy::DELIMITER);
        }
        Ok(())
    }

    /// A `bytea` column of ours.
    pub fn bytes(&mut self, bytes: Option<&[u8]>) {
        let out = &mut self.piece;
        match (self.form, bytes) {
            (Form::Binary(_), Some(bytes)) => binary::push_bytes(bytes, out),
            (Form::Binary(_), None) => binary::push_null(out),
            (Form::Text(_), bytes) => {
                match bytes {
                    // The backslash is itself escaped in COPY's text.
                    Some(bytes) => {
                        out.extend_from_slice(b"\\\\x");
                        hex::push(bytes, out);
                    }
                    None => out.extend_from_slice(copy::NULL),
                }
                out.push(copy::DELIMITER);
            }
        }
    }

    /// The columns that say how a row ranks.
    pub fn rank(&mut self, version: Version, updated_at: Timestamp) {
        self.bytes(Some(&version.to_bytes()));
        match self.form {
            Form::Binary(_) => binary::push_timestamp(updated_at, &mut self.piece),
            Form::Text(_) => {
                types::push_timestamp(&mut self.piece, updated_at);
                self.piece.push(copy::DELIMITER);
            }
        }
    }

    /// An `integer` column of ours, for small numbers.
    pub fn number(&mut self, number: u32) {
        match self.form {
            Form::Binary(_) => binary::push_fixed(number.to_be_bytes(), &mut self.piece),
            Form::Text(_) => {
                // Writing to memory cannot fail.
                let _ = write!(self.piece, "{number}");
                self.piece.push(copy::DELIMITER);
            }
        }
    }

    /// Ends a row. Gives out what has been written once it is enough to be sent.
    pub fn end_row(&mut self) -> Option<Bytes> {
        if let (Form::Text(_), Some(last)) = (self.form, self.piece.last_mut()) {
            *last = copy::END;
        }
        (self.piece.len() >= PIECE_BYTES)
            .then(|| Bytes::from(std::mem::replace(&mut self.piece, new_piece())))
    }

    /// What is left to be sent after the last row.
    pub fn finish(mut self) -> Bytes {
        if let Form::Binary(_) = self.form {
            self.piece.extend_from_slice(&BINARY_TRAILER);
        }
        Bytes::from(self.piece)
    }
}

fn new_piece() -> Vec<u8> {
    Vec::with_capacity(PIECE_BYTES + PIECE_BYTES / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CELLS: [Cell<'_>; 3] = [Cell::Value(b"7"), Cell::Null, Cell::Value(b"a\tb")];
    const VERSION: Version = Version { epoch: 1, log: 2, ordinal: 3 };

    fn in_binary(to: &[Encoding], source: &[Encoding]) -> Form {
        let [to, source] =
            [to, source].map(|all| all.iter().copied().map(Some).collect::<Vec<_>>());
        Form::new(&to, &source, true)
    }

    fn written(form: &Form) -> Vec<u8> {
        let mut writer = RowWriter::new(form, 4);
        writer.cells(CELLS.into_iter()).unwrap();
        writer.bytes(None);
        writer.rank(VERSION, Timestamp(946_684_800_000_001));
        writer.number(1);
        assert_eq!(writer.end_row(), None);
        writer.finish().to_vec()
    }

    #[test]
    fn a_row_is_written_as_text() {
        let expected = "7\t\\N\ta\\tb\t\\N\t\\\\x00000001000000000000000200000003\t\
                        2000-01-01 00:00:00.000001+00\t1\n";
        assert_eq!(
            String::from_utf8(written(&Form::new(&[None; 7], &[], true))).unwrap(),
            expected
        );
    }

    #[test]
    fn a_row_is_written_in_binary() {
        use Encoding::{Bytes, Int32, Int64, Text, TimestampTz};
        let form = in_binary(&[Int64, Text, Text, Bytes, Bytes, TimestampTz, Int32], &[]);
        let expected = [
            b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".as_slice(),
            b"\0\x07",
            b"\0\0\0\x08\0\0\0\0\0\0\0\x07",
            b"\xff\xff\xff\xff",
            b"\0\0\0\x03a\tb",
            b"\xff\xff\xff\xff",
            b"\0\0\0\x10\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x03",
            b"\0\0\0\x08\0\0\0\0\0\0\0\x01",
            b"\0\0\0\x04\0\0\0\x01",
            b"\xff\xff",
        ];
        assert_eq!(written(&form), expected.concat());
    }

    #[test]
    fn a_value_without_a_binary_form_is_noticed() {
        let form = in_binary(&[Encoding::Int64], &[]);
        let mut writer = RowWriter::new(&form, 0);
        let written = writer.cells([Cell::Value(b"seven")].into_iter());
        assert_eq!(written, Err(Unwritten::NoBinary));
    }

    #[test]
    fn a_value_in_binary_is_passed_on_and_becomes_what_the_target_wants() {
        use Encoding::{Int32, Int64, Text};
        let check = |form: &Form, expected: &[u8]| {
            let mut writer = RowWriter::new(form, 0);
            writer.cells([Cell::Binary(b"\0\0\0\x07"), Cell::Null].into_iter()).unwrap();
            let skipped = if let Form::Binary(_) = form { BINARY_HEADER.len() } else { 0 };
            assert_eq!(writer.piece[skipped..], *expected);
        };
        let null = b"\xff\xff\xff\xff";
        let row = |value: &[u8]| [b"\0\x02", value, null].concat();
        check(&in_binary(&[Int32; 2], &[Int32; 2]), &row(b"\0\0\0\x04\0\0\0\x07"));
        check(&in_binary(&[Int64; 2], &[Int32; 2]), &row(b"\0\0\0\x08\0\0\0\0\0\0\0\x07"));
        check(&in_binary(&[Text; 2], &[Int32; 2]), &row(b"\0\0\0\x017"));
        check(&Form::new(&[None; 2], &[Some(Int32); 2], true), b"7\t\\N\t");
        check(&Form::new(&[Some(Int32); 2], &[Some(Int32); 2], false), b"7\t\\N\t");
    }

    #[test]
    fn a_value_in_binary_that_is_none_of_its_columns_type_is_noticed() {
        use Encoding::{Int32, Int64};
        let check = |form: &Form| {
            let written = RowWriter::new(form, 0).cells([Cell::Binary(&[0; 8])].into_iter());
            assert_eq!(written, Err(Unwritten::Foreign));
        };
        check(&in_binary(&[Int64], &[]));
        check(&in_binary(&[Int64], &[Int32]));
        check(&Form::new(&[None], &[Some(Int32)], true));
    }

    #[test]
    fn pieces_are_given_out_when_they_are_full() {
        let form = in_binary(&[Encoding::Text], &[]);
        let (text, mut sent) = (vec![b'x'; 1000], 0);
        let mut writer = RowWriter::new(&form, 0);
        for _ in 0..1000 {
            writer.cells([Cell::Value(&text)].into_iter()).unwrap();
            if let Some(piece) = writer.end_row() {
                assert!(piece.len() >= PIECE_BYTES && piece.len() < PIECE_BYTES + 2000);
                sent += piece.len();
            }
        }
        sent += writer.finish().len();
        assert_eq!(sent, BINARY_HEADER.len() + 1000 * (2 + 4 + 1000) + BINARY_TRAILER.len());
    }
}
