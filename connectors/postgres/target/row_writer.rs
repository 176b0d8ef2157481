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
    /// As text.
    Text,
    /// In binary, with the encoding of each column.
    Binary(Box<[Encoding]>),
}

/// A value has no binary form.
#[derive(Debug)]
pub struct NoBinary;

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

    /// Begins a row with its own cells. An absent one is written as NULL.
    ///
    /// # Panics
    /// If there are not as many as the table has columns: a defect, rows and schemas travel
    /// together. What follows would be read as other columns.
    pub fn cells<'c>(
        &mut self,
        cells: impl ExactSizeIterator<Item = Cell<'c>>,
    ) -> Result<(), NoBinary> {
        let out = &mut self.piece;
        let Form::Binary(encodings) = self.form else {
            for cell in cells {
                copy::encode_cell(out, cell);
                out.push(copy::DELIMITER);
            }
            return Ok(());
        };
        let (count, columns) = (cells.len(), encodings.len() - self.own_columns);
        assert!(count == columns, "a row of {count} cells for {columns} columns");
        // The server has no tables of more columns than this can say.
        out.extend_from_slice(&(encodings.len() as i16).to_be_bytes());
        for (encoding, cell) in encodings.iter().zip(cells) {
            match cell {
                Cell::Value(text) => encoding.push(text, out).ok_or(NoBinary)?,
                Cell::Null | Cell::Absent => binary::push_null(out),
            }
        }
        Ok(())
    }

    /// A `bytea` column of ours.
    pub fn bytes(&mut self, bytes: Option<&[u8]>) {
        let out = &mut self.piece;
        match (self.form, bytes) {
            (Form::Binary(_), Some(bytes)) => binary::push_bytes(bytes, out),
            (Form::Binary(_), None) => binary::push_null(out),
            (Form::Text, bytes) => {
                match bytes {
                    // The backslash is itself escaped in COPY's text.
                    Some(bytes) => {
                        out.extend_from_slice(b"\\\\x");
                        hex::push(bytes, out);
                    }
                    None => copy::encode_cell(out, Cell::Null),
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
            Form::Text => {
                types::push_timestamp(&mut self.piece, updated_at);
                self.piece.push(copy::DELIMITER);
            }
        }
    }

    /// An `integer` column of ours, for small numbers.
    pub fn number(&mut self, number: u32) {
        match self.form {
            Form::Binary(_) => binary::push_fixed(number.to_be_bytes(), &mut self.piece),
            Form::Text => {
                // Writing to memory cannot fail.
                let _ = write!(self.piece, "{number}");
                self.piece.push(copy::DELIMITER);
            }
        }
    }

    /// Ends a row. Gives out what has been written once it is enough to be sent.
    pub fn end_row(&mut self) -> Option<Bytes> {
        if let (Form::Text, Some(last)) = (self.form, self.piece.last_mut()) {
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
        assert_eq!(String::from_utf8(written(&Form::Text)).unwrap(), expected);
    }

    #[test]
    fn a_row_is_written_in_binary() {
        use Encoding::{Bytes, Int32, Int64, Text, TimestampTz};
        let form = Form::Binary([Int64, Text, Text, Bytes, Bytes, TimestampTz, Int32].into());
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
        let form = Form::Binary([Encoding::Int64].into());
        let mut writer = RowWriter::new(&form, 0);
        assert!(writer.cells([Cell::Value(b"seven")].into_iter()).is_err());
    }

    #[test]
    fn pieces_are_given_out_when_they_are_full() {
        let form = Form::Binary([Encoding::Text].into());
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
