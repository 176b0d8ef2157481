//! COPY's text format, both ways: rows on their way to the target's staging tables, and the lines
//! that a source sends for a chunk. Pure. Surprise: a value that reads `\.` or `\N` is no marker,
//! because its backslash is doubled; only a bare `\N` is NULL.

use crate::change::{Cell, Row, RowBuilder};

/// What stands between two cells.
pub const DELIMITER: u8 = b'\t';
/// What ends a row.
pub const END: u8 = b'\n';

/// What stands for NULL.
pub const NULL: &[u8] = b"\\N";

/// Reads one line, without its end, into a row of so many cells; `None` if it is not what COPY
/// writes of them.
#[must_use]
pub fn decode_line(line: &[u8], cells: usize) -> Option<Row> {
    let delimiters = line.iter().filter(|&&byte| byte == DELIMITER).count();
    if delimiters + 1 != cells {
        return None;
    }
    let mut row = RowBuilder::new(cells, line.len() - delimiters);
    let mut unescaped = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, &byte) in line.iter().chain([&DELIMITER]).enumerate() {
        match byte {
            b'\\' => escaped = true,
            DELIMITER => {
                let cell = &line[start..at];
                row.push(match escaped {
                    false => Cell::Value(cell),
                    true if cell == NULL => Cell::Null,
                    true => {
                        unescaped.clear();
                        decode_value(cell, &mut unescaped)?;
                        Cell::Value(&unescaped)
                    }
                });
                (start, escaped) = (at + 1, false);
            }
            _ => {}
        }
    }
    Some(row.finish())
}

/// The letter that stands for this byte after a backslash, if the byte needs one.
fn escape(byte: u8) -> Option<u8> {
    match byte {
        b'\\' => Some(b'\\'),
        0x08 => Some(b'b'),
        0x0c => Some(b'f'),
        b'\n' => Some(b'n'),
        b'\r' => Some(b'r'),
        b'\t' => Some(b't'),
        0x0b => Some(b'v'),
        _ => None,
    }
}

/// Appends one value, without a delimiter.
pub fn encode_value(out: &mut Vec<u8>, value: &[u8]) {
    let mut plain = 0;
    for (at, &byte) in value.iter().enumerate() {
        if let Some(letter) = escape(byte) {
            out.extend_from_slice(&value[plain..at]);
            out.extend_from_slice(&[b'\\', letter]);
            plain = at + 1;
        }
    }
    out.extend_from_slice(&value[plain..]);
}

fn decode_value(cell: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut rest = cell;
    while let Some(at) = rest.iter().position(|&byte| byte == b'\\') {
        out.extend_from_slice(&rest[..at]);
        // COPY TO writes no other escapes; anything else was not written by it.
        out.push(match rest.get(at + 1)? {
            b'\\' => b'\\',
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 0x0b,
            _ => return None,
        });
        rest = &rest[at + 2..];
    }
    out.extend_from_slice(rest);
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(cells: &[Option<Vec<u8>>]) -> Vec<u8> {
        let mut line = Vec::new();
        for (index, cell) in cells.iter().enumerate() {
            if index > 0 {
                line.push(DELIMITER);
            }
            match cell {
                Some(value) => encode_value(&mut line, value),
                None => line.extend_from_slice(NULL),
            }
        }
        line
    }

    fn awkward() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            Just(b'\\'),
            Just(b'N'),
            Just(b'.'),
            Just(b'\t'),
            Just(b'\n'),
            Just(b'\r'),
            any::<u8>()
        ];
        proptest::collection::vec(byte, 0..12)
    }

    proptest! {
        #[test]
        fn a_row_survives_encoding_and_decoding(
            cells in proptest::collection::vec(proptest::option::of(awkward()), 1..6)
        ) {
            let line = encode(&cells);
            prop_assert!(!line.contains(&END));
            let row = decode_line(&line, cells.len()).unwrap();
            let expected = cells.iter().map(|c| c.as_deref().map_or(Cell::Null, Cell::Value));
            prop_assert!(row.cells().eq(expected));
        }
    }

    fn check_encode(value: &[u8], expected: &[u8]) {
        assert_eq!(encode(&[Some(value.to_vec())]), expected);
    }

    #[test]
    fn markers_inside_values_are_escaped() {
        check_encode(b"\\N", b"\\\\N");
        check_encode(b"\\.", b"\\\\.");
        check_encode(b"a\tb\nc\rd", b"a\\tb\\nc\\rd");
        check_encode(b"", b"");
    }

    #[test]
    fn a_line_that_copy_does_not_write_is_refused() {
        assert_eq!(decode_line(b"a\\", 1), None);
        assert_eq!(decode_line(b"\\x41", 1), None);
        assert_eq!(decode_line(b"\\.", 1), None);
        assert_eq!(decode_line(b"a\\N", 1), None);
        assert_eq!(decode_line(b"a\tb", 1), None);
        assert_eq!(decode_line(b"a\tb", 3), None);
    }
}
