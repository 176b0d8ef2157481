//! MySQL's binary JSON, as it stands in row events, to exactly the text that `SELECT` prints. Pure.
//! MariaDB's JSON is text already.
//!
//! Surprise: what JSON has no type for (DECIMAL, dates, BLOBs) is kept in the document in the
//! server's own form, and is printed as a number, as a quoted date, or as `"base64:type252:..."`.

use std::io::Write as _;

use super::bytes::{Decoded, Malformed, Reader};
use super::decimal;
use crate::digits::{push_padded, push_signed, push_unsigned};
use crate::float::Decimal;

/// Documents are at most 100 levels deep.
const DEPTH_MAX: u32 = 101;

const SMALL_OBJECT: u8 = 0;
const LARGE_OBJECT: u8 = 1;
const SMALL_ARRAY: u8 = 2;
const LARGE_ARRAY: u8 = 3;
const LITERAL: u8 = 4;
const INT16: u8 = 5;
const UINT16: u8 = 6;
const INT32: u8 = 7;
const UINT32: u8 = 8;
const INT64: u8 = 9;
const UINT64: u8 = 10;
const DOUBLE: u8 = 11;
const STRING: u8 = 12;
const OPAQUE: u8 = 15;

/// Appends the text of a document.
///
/// # Errors
/// If it is damaged, or holds a value of a kind that is unknown.
pub fn push(document: &[u8], out: &mut Vec<u8>) -> Decoded<()> {
    match document.split_first() {
        // What an UPDATE IGNORE of NULL leaves behind.
        None => out.extend_from_slice(b"null"),
        Some((&kind, value)) => push_value(kind, value, 0, out)?,
    }
    Ok(())
}

fn push_value(kind: u8, value: &[u8], depth: u32, out: &mut Vec<u8>) -> Decoded<()> {
    let mut reader = Reader::new(value);
    match kind {
        SMALL_OBJECT | LARGE_OBJECT | SMALL_ARRAY | LARGE_ARRAY => {
            return push_container(kind, value, depth, out);
        }
        LITERAL => out.extend_from_slice(match reader.u8()? {
            0 => b"null",
            1 => b"true",
            2 => b"false",
            _ => return Err(malformed()),
        }),
        INT16 => push_signed(i64::from(reader.u16()?.cast_signed()), out),
        UINT16 => push_unsigned(u64::from(reader.u16()?), out),
        INT32 => push_signed(i64::from(reader.u32()?.cast_signed()), out),
        UINT32 => push_unsigned(u64::from(reader.u32()?), out),
        INT64 => push_signed(reader.u64()?.cast_signed(), out),
        UINT64 => push_unsigned(reader.u64()?, out),
        DOUBLE => push_double(f64::from_bits(reader.u64()?), out)?,
        STRING => {
            let length = length(&mut reader)?;
            push_string(reader.take(length)?, out)?;
        }
        OPAQUE => {
            let field_type = reader.u8()?;
            let length = length(&mut reader)?;
            push_opaque(field_type, reader.take(length)?, out)?;
        }
        _ => return Err(malformed()),
    }
    Ok(())
}

/// An object or an array: how many members, how many bytes, then where each is.
fn push_container(kind: u8, value: &[u8], depth: u32, out: &mut Vec<u8>) -> Decoded<()> {
    if depth >= DEPTH_MAX {
        return Err(Malformed::new("a JSON document is too deep"));
    }
    let is_object = matches!(kind, SMALL_OBJECT | LARGE_OBJECT);
    let width = if matches!(kind, LARGE_OBJECT | LARGE_ARRAY) { 4 } else { 2 };
    let mut reader = Reader::new(value);
    let count = reader.little_endian(width)? as usize;
    let size = reader.little_endian(width)? as usize;
    let value = value.get(..size).ok_or_else(malformed)?;
    let mut keys = Reader::new(value.get(2 * width..).ok_or_else(malformed)?);
    let key_table = if is_object { count * (width + 2) } else { 0 };
    let mut values = keys;
    values.take(key_table)?;
    out.push(if is_object { b'{' } else { b'[' });
    for index in 0..count {
        if index > 0 {
            out.extend_from_slice(b", ");
        }
        if is_object {
            let offset = keys.little_endian(width)? as usize;
            let length = usize::from(keys.u16()?);
            push_string(within(value, offset)?.get(..length).ok_or_else(malformed)?, out)?;
            out.extend_from_slice(b": ");
        }
        push_member(&mut values, value, width, depth, out)?;
    }
    out.push(if is_object { b'}' } else { b']' });
    Ok(())
}

/// A value that an entry refers to, or that is in the entry itself if it is small enough.
fn push_member(
    entries: &mut Reader<'_>,
    container: &[u8],
    width: usize,
    depth: u32,
    out: &mut Vec<u8>,
) -> Decoded<()> {
    let kind = entries.u8()?;
    let entry = entries.take(width)?;
    let is_inline =
        matches!(kind, LITERAL | INT16 | UINT16) || (width == 4 && matches!(kind, INT32 | UINT32));
    if is_inline {
        return push_value(kind, entry, depth + 1, out);
    }
    let offset = Reader::new(entry).little_endian(width)? as usize;
    // A value that contained itself would never end.
    if offset < 2 * width {
        return Err(malformed());
    }
    push_value(kind, within(container, offset)?, depth + 1, out)
}

fn within(container: &[u8], offset: usize) -> Decoded<&[u8]> {
    container.get(offset..).ok_or_else(malformed)
}

/// A length in groups of seven bits, the low ones first.
fn length(reader: &mut Reader<'_>) -> Decoded<usize> {
    let mut length = 0;
    for group in 0..5 {
        let byte = reader.u8()?;
        length |= u64::from(byte & 0x7f) << (7 * group);
        if byte & 0x80 == 0 {
            return usize::try_from(length).map_err(|_| malformed());
        }
    }
    Err(malformed())
}

fn push_string(text: &[u8], out: &mut Vec<u8>) -> Decoded<()> {
    let text = std::str::from_utf8(text).map_err(|_| malformed())?;
    out.push(b'"');
    for &byte in text.as_bytes() {
        let escaped = match byte {
            b'"' | b'\\' => byte,
            8 => b'b',
            9 => b't',
            10 => b'n',
            12 => b'f',
            13 => b'r',
            0..=31 => {
                let _ = write!(out, "\\u{byte:04x}");
                continue;
            }
            _ => {
                out.push(byte);
                continue;
            }
        };
        out.extend_from_slice(&[b'\\', escaped]);
    }
    out.push(b'"');
    Ok(())
}

/// The shortest digits that read back; a point where the text would look like an integer.
fn push_double(value: f64, out: &mut Vec<u8>) -> Decoded<()> {
    const PLAIN_DIGITS: i32 = 15;
    if !value.is_finite() {
        return Err(malformed());
    }
    let (decimal, start) = (Decimal::of_double(value), out.len());
    if decimal.is_plain(-PLAIN_DIGITS, PLAIN_DIGITS) {
        decimal.push_plain(out);
        if !out[start..].contains(&b'.') {
            out.extend_from_slice(b".0");
        }
        return Ok(());
    }
    decimal.push_mantissa(out);
    let _ = write!(out, "e{}", decimal.exponent());
    Ok(())
}

/// A value in the form of a column of this type.
fn push_opaque(field_type: u8, value: &[u8], out: &mut Vec<u8>) -> Decoded<()> {
    const TIMESTAMP: u8 = 7;
    const DATE: u8 = 10;
    const TIME: u8 = 11;
    const DATETIME: u8 = 12;
    const NEW_DECIMAL: u8 = 246;
    let mut reader = Reader::new(value);
    match field_type {
        NEW_DECIMAL => {
            let (precision, scale) = (reader.u8()?, reader.u8()?);
            decimal::push(&mut reader, precision, scale, out)?;
            return reader.end();
        }
        DATE | TIME | DATETIME | TIMESTAMP => {
            let packed = reader.u64()?.cast_signed();
            out.push(b'"');
            match field_type {
                TIME => push_time(packed, out),
                _ => push_date(packed, field_type != DATE, out),
            }
            out.push(b'"');
            return reader.end();
        }
        _ => {
            let _ = write!(out, "\"base64:type{field_type}:");
            push_base64(value, out);
            out.push(b'"');
        }
    }
    Ok(())
}

/// Microseconds in the low 24 bits, then 6 bits each of seconds and minutes, then hours.
fn push_clock(packed: u64, hour_bits: u32, out: &mut Vec<u8>) {
    let (micros, clock) = (packed & 0xff_ffff, packed >> 24);
    push_padded(clock >> 12 & ((1 << hour_bits) - 1), 2, out);
    out.push(b':');
    push_padded(clock >> 6 & 63, 2, out);
    out.push(b':');
    push_padded(clock & 63, 2, out);
    out.push(b'.');
    push_padded(micros, 6, out);
}

fn push_time(packed: i64, out: &mut Vec<u8>) {
    if packed < 0 {
        out.push(b'-');
    }
    push_clock(packed.unsigned_abs(), 10, out);
}

fn push_date(packed: i64, with_time: bool, out: &mut Vec<u8>) {
    let packed = packed.unsigned_abs();
    let days = packed >> (24 + 17);
    let (months, day) = (days >> 5, days & 31);
    push_padded(months / 13, 4, out);
    out.push(b'-');
    push_padded(months % 13, 2, out);
    out.push(b'-');
    push_padded(day, 2, out);
    if with_time {
        out.push(b' ');
        push_clock(packed, 5, out);
    }
}

/// Appends base64 in lines of 76 characters.
fn push_base64(bytes: &[u8], out: &mut Vec<u8>) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const GROUPS_OF_A_LINE: usize = 19;
    for (index, group) in bytes.chunks(3).enumerate() {
        if index > 0 && index % GROUPS_OF_A_LINE == 0 {
            // The server breaks its lines, and then writes the break as JSON does.
            out.extend_from_slice(b"\\n");
        }
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            out.push(match place <= group.len() {
                true => ALPHABET[(bits >> (18 - 6 * place) & 63) as usize],
                false => b'=',
            });
        }
    }
}

fn malformed() -> Malformed {
    Malformed::new("a JSON document is damaged")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(document: &[u8]) -> String {
        let mut out = Vec::new();
        push(document, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn small_documents_are_printed_as_the_server_does() {
        assert_eq!(text(&[]), "null");
        assert_eq!(text(&[LITERAL, 1]), "true");
        assert_eq!(text(&[INT16, 0xff, 0xff]), "-1");
        assert_eq!(text(&[STRING, 5, b'a', b'"', 10, 0x1f, b'/']), r#""a\"\n\u001f/""#);
        // {"a": 1, "b": [true]}
        let document = [
            SMALL_OBJECT,
            2,
            0,
            27,
            0,
            18,
            0,
            1,
            0,
            19,
            0,
            1,
            0,
            INT16,
            1,
            0,
            SMALL_ARRAY,
            20,
            0,
            b'a',
            b'b',
            1,
            0,
            7,
            0,
            LITERAL,
            1,
            0,
        ];
        assert_eq!(text(&document), r#"{"a": 1, "b": [true]}"#);
    }

    #[test]
    fn large_documents_keep_more_numbers_in_their_entries() {
        // [70000, "x"], with offsets of four bytes.
        let document = [
            LARGE_ARRAY,
            2,
            0,
            0,
            0,
            20,
            0,
            0,
            0,
            INT32,
            0x70,
            0x11,
            1,
            0,
            STRING,
            18,
            0,
            0,
            0,
            1,
            b'x',
        ];
        assert_eq!(text(&document), r#"[70000, "x"]"#);
    }

    fn double(value: f64) -> String {
        let mut document = vec![DOUBLE];
        document.extend_from_slice(&value.to_le_bytes());
        text(&document)
    }

    #[test]
    fn doubles_have_a_point_or_an_exponent() {
        for (value, expected) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (1e14, "100000000000000.0"),
            (1e15, "1e15"),
            (1e-15, "0.000000000000001"),
            (1e-16, "1e-16"),
            (1.2345678901234568e29, "1.2345678901234568e29"),
            (618_221_224_675_161.0 / 8.0, "77277653084395.12"),
        ] {
            assert_eq!(double(value), expected);
        }
    }

    #[test]
    fn what_json_has_no_type_for_is_printed_as_the_server_does() {
        let opaque = |field_type: u8, value: &[u8]| {
            let mut document = vec![OPAQUE, field_type, value.len() as u8];
            document.extend_from_slice(value);
            text(&document)
        };
        assert_eq!(opaque(246, &[3, 2, 0x81, 50]), "1.50");
        assert_eq!(opaque(15, &[5]), r#""base64:type15:BQ==""#);
        let long = opaque(252, &[0; 60]);
        assert_eq!(long.split("\\n").map(str::len).collect::<Vec<_>>(), [92, 5]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_document_or_an_error(
            kind in 0u8..16, bytes in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let mut document = vec![kind];
            document.extend_from_slice(&bytes);
            let _ = push(&document, &mut Vec::new());
        }
    }
}
