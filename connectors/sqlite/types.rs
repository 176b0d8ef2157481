//! What a value becomes in SQLite and how it comes back as canonical text.
//!
//! | `ColumnType` | declared | stored as |
//! |---|---|---|
//! | `Bool` | `INTEGER` | 0 or 1 |
//! | `Int16`, `Int32`, `Int64` | `INTEGER` | the integer |
//! | `Float32`, `Float64` | no type | a REAL; `NaN`, `Infinity`, `-Infinity` as TEXT |
//! | `Bytes` | `BLOB` | the bytes |
//! | `Numeric` and all others | `TEXT` | the canonical text, exact |
//!
//! Surprise: floats have no declared type, because SQLite turns a REAL `NaN` into NULL, and in a
//! column declared `REAL` it turns -0.0 into 0.

use std::borrow::Cow;

use rusqlite::types::{ToSqlOutput, Value, ValueRef};

use crate::float;
use crate::schema::ColumnType;

/// How SQLite treats the values of a column, as its declared type decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Affinity {
    Integer,
    Text,
    /// Values stay as they are.
    Blob,
    Real,
    Numeric,
}

/// The declared type of a column; empty for floats.
pub(super) fn declared_type(column_type: ColumnType) -> &'static str {
    match column_type {
        ColumnType::Bool | ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64 => "INTEGER",
        ColumnType::Float32 | ColumnType::Float64 => "",
        ColumnType::Bytes => "BLOB",
        ColumnType::Numeric
        | ColumnType::Text
        | ColumnType::Date
        | ColumnType::Time
        | ColumnType::Duration
        | ColumnType::Timestamp
        | ColumnType::TimestampTz
        | ColumnType::Uuid
        | ColumnType::Json
        | ColumnType::Other => "TEXT",
    }
}

/// The affinity of a declared type, by the five rules of SQLite's documentation, in their order.
pub(super) fn affinity(declared: &str) -> Affinity {
    let declared = declared.to_ascii_uppercase();
    let has = |words: &[&str]| words.iter().any(|word| declared.contains(word));
    if has(&["INT"]) {
        Affinity::Integer
    } else if has(&["CHAR", "CLOB", "TEXT"]) {
        Affinity::Text
    } else if declared.is_empty() || has(&["BLOB"]) {
        Affinity::Blob
    } else if has(&["REAL", "FLOA", "DOUB"]) {
        Affinity::Real
    } else {
        Affinity::Numeric
    }
}

/// The canonical text as what SQLite stores; the error says what is wrong with it, without it.
pub(super) fn encode(
    column_type: ColumnType,
    text: &[u8],
) -> Result<ToSqlOutput<'_>, &'static str> {
    let utf8 = std::str::from_utf8(text).map_err(|_| "a value is not valid UTF-8")?;
    let owned = |value: Value| Ok(ToSqlOutput::Owned(value));
    match column_type {
        ColumnType::Bool => match utf8 {
            "t" => owned(Value::Integer(1)),
            "f" => owned(Value::Integer(0)),
            _ => Err("a boolean is neither t nor f"),
        },
        ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64 => {
            utf8.parse().map(Value::Integer).map_err(|_| "an integer is not one").and_then(owned)
        }
        ColumnType::Float32 | ColumnType::Float64 => match utf8 {
            "NaN" | "Infinity" | "-Infinity" => Ok(ToSqlOutput::Borrowed(ValueRef::Text(text))),
            _ => finite(column_type, utf8).map(Value::Real).and_then(owned),
        },
        ColumnType::Bytes => bytes(utf8).map(Value::Blob).and_then(owned),
        ColumnType::Numeric
        | ColumnType::Text
        | ColumnType::Date
        | ColumnType::Time
        | ColumnType::Duration
        | ColumnType::Timestamp
        | ColumnType::TimestampTz
        | ColumnType::Uuid
        | ColumnType::Json
        | ColumnType::Other => {
            // Half of SQLite's functions would end the text there.
            if text.contains(&0) {
                return Err("a text has a NUL character");
            }
            Ok(ToSqlOutput::Borrowed(ValueRef::Text(text)))
        }
    }
}

/// What SQLite has as canonical text; `None` for NULL. A value of a kind that `encode` does not
/// make begins with NUL, so that it equals no value of the source.
pub(super) fn decode(column_type: ColumnType, value: ValueRef<'_>) -> Option<Vec<u8>> {
    let is_float = matches!(column_type, ColumnType::Float32 | ColumnType::Float64);
    let is_integer =
        matches!(column_type, ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64);
    let is_bytes = column_type == ColumnType::Bytes;
    let text = match value {
        ValueRef::Null => return None,
        ValueRef::Integer(0) if column_type == ColumnType::Bool => b"f".to_vec(),
        ValueRef::Integer(1) if column_type == ColumnType::Bool => b"t".to_vec(),
        ValueRef::Integer(integer) if is_integer => integer.to_string().into_bytes(),
        ValueRef::Real(real) if is_float => float_text(column_type, real).into_bytes(),
        ValueRef::Blob(blob) if is_bytes => hex(blob),
        ValueRef::Text(text) if declared_type(column_type) == "TEXT" || is_float => text.to_vec(),
        ValueRef::Integer(integer) => format!("\0integer {integer}").into_bytes(),
        ValueRef::Real(real) => format!("\0real {real}").into_bytes(),
        ValueRef::Text(text) => [b"\0text ", text].concat(),
        ValueRef::Blob(blob) => [b"\0blob ", blob].concat(),
    };
    Some(text)
}

/// The canonical text as it comes back after it was stored: floats in their shortest form, so
/// that two servers which print a float differently still agree.
pub(super) fn stored(column_type: ColumnType, text: &[u8]) -> Cow<'_, [u8]> {
    match encode(column_type, text) {
        Ok(ToSqlOutput::Owned(value)) => {
            decode(column_type, ValueRef::from(&value)).map_or(Cow::Borrowed(text), Cow::Owned)
        }
        // What is stored as text is stored unchanged, and what is refused is not stored.
        _ => Cow::Borrowed(text),
    }
}

fn finite(column_type: ColumnType, text: &str) -> Result<f64, &'static str> {
    const WRONG: &str = "a float is not one";
    let double: f64 = text.parse().map_err(|_| WRONG)?;
    if column_type == ColumnType::Float64 {
        return if double.is_finite() { Ok(double) } else { Err(WRONG) };
    }
    let single: f32 = text.parse().map_err(|_| WRONG)?;
    if !single.is_finite() {
        return Err(WRONG);
    }
    // People should see 0.1 and not 0.10000000149011612; both read back as the same single.
    Ok(if double as f32 == single { double } else { f64::from(single) })
}

fn float_text(column_type: ColumnType, value: f64) -> String {
    let mut text = Vec::new();
    match column_type {
        ColumnType::Float32 => float::push_single(value as f32, &mut text),
        _ => float::push_double(value, &mut text),
    }
    String::from_utf8(text).unwrap_or_default()
}

fn bytes(text: &str) -> Result<Vec<u8>, &'static str> {
    const WRONG: &str = "a byte string is not \\x and hexadecimal digits";
    let digits = text.strip_prefix("\\x").ok_or(WRONG)?.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(WRONG);
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(WRONG);
    }
    pairs.iter().map(|&[high, low]| Ok((digit(high)? * 16 + digit(low)?) as u8)).collect()
}

fn hex(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = Vec::with_capacity(2 + bytes.len() * 2);
    text.extend_from_slice(b"\\x");
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)]);
        text.push(DIGITS[usize::from(byte & 15)]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_stored(column_type: ColumnType, text: &str, expected: &str) {
        assert_eq!(stored(column_type, text.as_bytes()), expected.as_bytes(), "{text}");
    }

    #[test]
    fn floats_are_laid_out_as_postgresql_does() {
        for text in ["0", "-0", "1", "0.1", "0.0001", "1e-05", "1e+15", "100000000000000"] {
            check_stored(ColumnType::Float64, text, text);
        }
        for text in ["5e-324", "1.7976931348623157e+308", "NaN", "Infinity", "-Infinity"] {
            check_stored(ColumnType::Float64, text, text);
        }
        for text in ["0.1", "1e+06", "999999", "1.234567e+06", "1e-45", "3.4028235e+38", "-0"] {
            check_stored(ColumnType::Float32, text, text);
        }
        check_stored(ColumnType::Float64, "100000000000000000000", "1e+20");
        check_stored(ColumnType::Float32, "0.10000000149011612", "0.1");
    }

    #[test]
    fn bytes_come_back_in_lower_case_and_booleans_as_letters() {
        check_stored(ColumnType::Bytes, "\\xDEad00", "\\xdead00");
        check_stored(ColumnType::Bytes, "\\x", "\\x");
        check_stored(ColumnType::Bool, "t", "t");
        check_stored(ColumnType::Numeric, "1.2300", "1.2300");
    }

    #[test]
    fn what_is_not_canonical_is_refused_without_naming_the_value() {
        let wrong: [(ColumnType, &[u8]); 8] = [
            (ColumnType::Text, b"secret\xff"),
            (ColumnType::Text, b"secret\0"),
            (ColumnType::Int64, b"9223372036854775808"),
            (ColumnType::Float64, b"1e999"),
            (ColumnType::Float32, b"1e39"),
            (ColumnType::Bool, b"true"),
            (ColumnType::Bytes, b"\\x123"),
            (ColumnType::Bytes, b"secret"),
        ];
        for (column_type, text) in wrong {
            let reason = encode(column_type, text).unwrap_err();
            assert!(!reason.contains("secret"), "{reason}");
        }
    }

    #[test]
    fn a_value_of_another_kind_equals_no_value_of_the_source() {
        let foreign = [
            (ColumnType::Bool, ValueRef::Integer(2)),
            (ColumnType::Text, ValueRef::Blob(b"x")),
            (ColumnType::Bytes, ValueRef::Text(b"\\x00")),
            (ColumnType::Int64, ValueRef::Text(b"1")),
        ];
        for (column_type, value) in foreign {
            assert_eq!(decode(column_type, value).unwrap()[0], 0);
        }
    }

    #[test]
    fn affinity_follows_the_documented_rules_in_their_order() {
        let check = |declared, expected| assert_eq!(affinity(declared), expected, "{declared}");
        check("bigint", Affinity::Integer);
        check("CHARINT", Affinity::Integer);
        check("VARCHAR(3)", Affinity::Text);
        check("", Affinity::Blob);
        check("DOUBLE PRECISION", Affinity::Real);
        check("DECIMAL(10,2)", Affinity::Numeric);
    }
}
