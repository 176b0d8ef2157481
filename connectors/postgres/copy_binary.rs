//! The rows of `COPY (SELECT …) TO STDOUT (FORMAT binary)`, one CopyData message after another: of
//! `bulk.rs`, whose one column is a message of the plug-in, and of `chunk.rs`. Pure and borrowing.
//!
//! Surprise: the protocol promises one row a message, so none is put together from two. The
//! header comes with whatever is first: a row, or the end.

use crate::error::{Code, Error, Result};

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
/// The signature, the flags and the length of an extension.
const HEADER_BYTES: usize = 19;
/// What stands in the place of the number of columns after the last row.
const END: [u8; 2] = (-1_i16).to_be_bytes();
/// The length of NULL.
const NULL: i32 = -1;

/// What a CopyData message may hold next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// The header and a row, or the header and the end.
    #[default]
    Header,
    /// A row, or the end.
    Row,
    /// Nothing.
    Nothing,
}

/// What it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The cells of a row.
    Row(Cells<'a>),
    /// The end of the rows.
    End,
}

/// The cells of a row that are still to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cells<'a>(&'a [u8]);

impl Expected {
    /// Reads one CopyData message, whose row has so many columns.
    ///
    /// # Errors
    /// `protocol` if it is anything else.
    pub fn read(self, bytes: &[u8], columns: u16) -> Result<Piece<'_>> {
        let row = match self {
            Expected::Header => after_header(bytes)?,
            Expected::Row => bytes,
            Expected::Nothing => return Err(wrong("a row after the last one")),
        };
        match row.split_first_chunk() {
            Some((&END, [])) => Ok(Piece::End),
            Some((count, cells)) if u16::from_be_bytes(*count) == columns => {
                Ok(Piece::Row(Cells(cells)))
            }
            _ => Err(wrong("a row that has not as many columns as were asked for")),
        }
    }
}

impl<'a> Cells<'a> {
    /// The next one; `None` if it is NULL.
    ///
    /// # Errors
    /// `protocol` if there is no whole one.
    pub fn take(&mut self) -> Result<Option<&'a [u8]>> {
        let (length, rest) = self.0.split_first_chunk().ok_or_else(|| wrong("half a row"))?;
        let length = i32::from_be_bytes(*length);
        if length == NULL {
            self.0 = rest;
            return Ok(None);
        }
        let value = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length));
        let (value, rest) = value.ok_or_else(|| wrong("a row whose length is wrong"))?;
        self.0 = rest;
        Ok(Some(value))
    }

    /// There are no more.
    ///
    /// # Errors
    /// `protocol` if there are.
    pub fn end(self) -> Result<()> {
        match self.0 {
            [] => Ok(()),
            _ => Err(wrong("a row that goes on")),
        }
    }

    /// The only one.
    ///
    /// # Errors
    /// `protocol` if it is NULL, or not the only one.
    pub fn only(mut self) -> Result<&'a [u8]> {
        let value = self.take()?.ok_or_else(|| wrong("a NULL"))?;
        self.end().map(|()| value)
    }
}

fn after_header(bytes: &[u8]) -> Result<&[u8]> {
    let (header, row) = bytes.split_at_checked(HEADER_BYTES).ok_or_else(|| wrong("no header"))?;
    // Neither flags nor an extension exist yet, and some flags would change what follows.
    match header.strip_prefix(SIGNATURE) {
        Some([0, 0, 0, 0, 0, 0, 0, 0]) => Ok(row),
        _ => Err(wrong("a header of another format")),
    }
}

fn wrong(what: &str) -> Error {
    Error::stop(Code::Protocol, format!("a COPY of the source in binary has {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Vec<u8> {
        [SIGNATURE.as_slice(), &[0; 8]].concat()
    }

    fn row(message: &[u8]) -> Vec<u8> {
        [&[0, 1], i32::try_from(message.len()).unwrap().to_be_bytes().as_slice(), message].concat()
    }

    /// The messages of these pieces, if the end follows them.
    fn read(pieces: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        let (mut expected, mut messages) = (Expected::default(), Vec::new());
        for piece in pieces {
            expected = match expected.read(piece, 1)? {
                Piece::Row(cells) => {
                    messages.push(cells.only()?.to_vec());
                    Expected::Row
                }
                Piece::End => Expected::Nothing,
            };
        }
        Ok(messages)
    }

    #[test]
    fn the_header_comes_with_the_first_row_or_with_the_end() {
        let first = [header(), row(b"one")].concat();
        let messages = read(&[first, row(b""), row(b"three"), END.to_vec()]);
        assert_eq!(messages.unwrap(), [b"one".to_vec(), b"".to_vec(), b"three".to_vec()]);
        assert_eq!(read(&[[header(), END.to_vec()].concat()]).unwrap(), [b""; 0]);
    }

    #[test]
    fn a_row_has_cells_and_some_are_null() {
        let row = b"\0\x03\0\0\0\x01a\xff\xff\xff\xff\0\0\0\0";
        let Piece::Row(mut cells) = Expected::Row.read(row, 3).unwrap() else { panic!() };
        assert_eq!(cells.take().unwrap(), Some(b"a".as_slice()));
        assert!(cells.end().is_err());
        assert_eq!((cells.take().unwrap(), cells.take().unwrap()), (None, Some(b"".as_slice())));
        assert!(cells.end().is_ok() && cells.take().is_err());
        assert!(Expected::Row.read(row, 2).is_err());
    }

    #[test]
    fn what_is_no_row_is_an_error() {
        let first = [header(), row(b"one")].concat();
        let check = |pieces: &[&[u8]]| {
            let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
            assert_eq!(read(&pieces).unwrap_err().code, Code::Protocol, "{pieces:?}");
        };
        check(&[&row(b"one")]);
        check(&[&header()]);
        check(&[&first, &first]);
        check(&[&first, &END, &END]);
        check(&[&first, &[&END[..], &[0]].concat()]);
        check(&[&first, &[row(b"two"), row(b"three")].concat()]);
        check(&[&first, &[0, 1, 0xff, 0xff, 0xff, 0xff]]);
        check(&[&first, &[0, 2, 0, 0, 0, 0, 0, 0, 0, 0]]);
        check(&[&first, &[0, 1, 0xff, 0xff, 0xff, 0xfe]]);
        check(&[&first, &[0, 0]]);
        for flag in SIGNATURE.len()..HEADER_BYTES {
            let mut other = first.clone();
            other[flag] = 1;
            check(&[&other]);
        }
        for length in 0..first.len() {
            check(&[&first[..length]]);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_read_beyond_them(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
            begun: bool,
        ) {
            let expected = if begun { Expected::Row } else { Expected::Header };
            if let Ok(Piece::Row(cells)) = expected.read(&bytes, 1) && let Ok(message) = cells.only() {
                prop_assert!(bytes.ends_with(message));
                prop_assert_eq!(message.len() + 6, bytes.len() - if begun { 0 } else { 19 });
            }
        }

        #[test]
        fn every_message_comes_out_as_it_went_in(
            messages: Vec<Vec<u8>>,
        ) {
            let mut pieces: Vec<Vec<u8>> = messages.iter().map(|message| row(message)).collect();
            pieces.push(END.to_vec());
            pieces[0] = [header(), pieces[0].clone()].concat();
            prop_assert_eq!(read(&pieces).unwrap(), messages);
        }
    }
}
