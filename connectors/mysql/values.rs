//! Values that SQL hands out, as the same canonical text that the row decoder makes of the log.
//! Pure. Used by `chunk.rs`.
//!
//! Surprise: this reads the *binary* protocol (prepared statements), because the text protocol
//! prints FLOAT with six digits only. Texts come in the character set of their column, so that the
//! two ways to us use one transcoder; `SESSION` asks for that.

use mysql_async::Value;

use super::bytes::{Malformed, Reader};
use super::rows;
use super::text::{self, Clock, Date, Pushed, Refusal};
use super::types::MysqlType;
use super::{charset::Charset, decimal};
use crate::{ZeroDates, digits, float};

/// What a session must have set before it reads rows: instants in UTC, texts as they are stored,
/// and CHAR without the padding. (Our statements are plain ASCII or UTF-8.)
pub const SESSION: &str = "SET time_zone = '+00:00', character_set_client = utf8mb4, \
     collation_connection = utf8mb4_bin, character_set_results = NULL, sql_mode = ''";

/// What to select for a column. The name is quoted already.
#[must_use]
pub fn select_expression(mysql_type: &MysqlType, quoted: String, is_key: bool) -> String {
    match is_key && mysql_type.has_empty_label() {
        // Two keys would have one text. `selected.rs` refuses the NULL.
        true => format!("IF({quoted} + 0 = 0, NULL, {quoted})"),
        // The binary protocol has every value as it is.
        false => quoted,
    }
}

/// Appends a value as canonical text.
///
/// # Errors
/// `ZeroDate`, as the configuration says; `Malformed`, if it is not what a column of this type
/// gives, or no text in its character set.
pub fn push(
    value: &Value,
    mysql_type: &MysqlType,
    zero_dates: ZeroDates,
    out: &mut Vec<u8>,
) -> Result<Pushed, Refusal> {
    match (value, mysql_type) {
        (Value::NULL, _) => return Ok(Pushed::Null),
        (Value::Int(number), MysqlType::Integer { .. } | MysqlType::Year) => {
            digits::push_signed(*number, out);
        }
        (Value::UInt(number), MysqlType::Integer { .. } | MysqlType::Year) => {
            digits::push_unsigned(*number, out);
        }
        (Value::Float(value), MysqlType::Float) => float::push_single(*value, out),
        (Value::Double(value), MysqlType::Double) => float::push_double(*value, out),
        (Value::Date(year, month, day, hour, minute, second, micros), _) => {
            let date = Date { year: *year, month: *month, day: *day };
            let clock =
                Clock { hour: u16::from(*hour), minute: *minute, second: *second, micros: *micros };
            return push_date(date, clock, mysql_type, zero_dates, out);
        }
        (Value::Time(negative, days, hours, minute, second, micros), MysqlType::Time(_)) => {
            let hour = days.saturating_mul(24).saturating_add(u32::from(*hours));
            let hour = u16::try_from(hour).unwrap_or(u16::MAX);
            let clock = Clock { hour, minute: *minute, second: *second, micros: *micros };
            return text::push_duration(*negative, clock, out);
        }
        (Value::Bytes(bytes), mysql_type) => push_bytes(bytes, mysql_type, out)?,
        _ => return Err(unexpected().into()),
    }
    Ok(Pushed::Text)
}

fn push_date(
    date: Date,
    clock: Clock,
    mysql_type: &MysqlType,
    zero_dates: ZeroDates,
    out: &mut Vec<u8>,
) -> Result<Pushed, Refusal> {
    match mysql_type {
        MysqlType::Date => text::push_date(date, zero_dates, out),
        MysqlType::DateTime(_) => text::push_timestamp(date, clock, "", zero_dates, out),
        MysqlType::Timestamp(_) => text::push_timestamp(date, clock, "+00", zero_dates, out),
        _ => Err(unexpected().into()),
    }
}

fn push_bytes(bytes: &[u8], mysql_type: &MysqlType, out: &mut Vec<u8>) -> Result<(), Malformed> {
    match mysql_type {
        MysqlType::Decimal { .. } => decimal::push_text(bytes, out),
        MysqlType::Enum(_, charset) | MysqlType::Set(_, charset) => charset.push_utf8(bytes, out),
        // Documents are printed by the server, in UTF-8.
        MysqlType::Json => Charset::Utf8(4).push_utf8(bytes, out),
        // So are these.
        MysqlType::Uuid | MysqlType::Inet4 | MysqlType::Inet6 => {
            Charset::Ascii.push_utf8(bytes, out)
        }
        MysqlType::Bit(bits) => {
            let number = Reader::new(bytes).big_endian(bytes.len().min(8))?;
            text::push_bits(number, *bits, out);
            Ok(())
        }
        _ => rows::push_bytes(bytes, mysql_type, out),
    }
}

fn unexpected() -> Malformed {
    Malformed::new("the server gave a value that is not of its column's type")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: Value, native: &str, expected: &str) {
        let mysql_type = MysqlType::parse(native).unwrap();
        let mut out = Vec::new();
        let pushed = push(&value, &mysql_type, ZeroDates::Null, &mut out);
        let text = match pushed {
            Ok(Pushed::Text) => String::from_utf8(out).unwrap(),
            other => format!("{other:?}"),
        };
        assert_eq!(text, expected, "{native}");
    }

    #[test]
    fn values_of_the_binary_protocol_become_canonical_text() {
        check(Value::NULL, "int", "Ok(Null)");
        check(Value::Int(-5), "int", "-5");
        check(Value::UInt(u64::MAX), "bigint unsigned", "18446744073709551615");
        check(Value::UInt(0), "year", "0");
        check(Value::Float(16_777_216.0), "float", "1.6777216e+07");
        check(Value::Double(0.1), "double", "0.1");
        check(Value::Bytes(b"0001.50".into()), "decimal(6,2)", "1.50");
        check(Value::Bytes(vec![0xe9]), "char(1) character set latin1", "é");
        check(Value::Bytes(vec![0xe9]), "enum('é') character set latin1", "é");
        check(Value::Bytes(vec![1, 1]), "bit(9)", "100000001");
        check(Value::Bytes(vec![0, 255]), "varbinary(2)", "\\x00ff");
        check(Value::Bytes(b"::1".into()), "inet6", "::1");
        check(Value::Bytes(b"{}".into()), "json", "{}");
    }

    #[test]
    fn times_of_the_binary_protocol_become_canonical_text() {
        check(Value::Date(2026, 1, 31, 0, 0, 0, 0), "date", "2026-01-31");
        check(Value::Date(2026, 1, 31, 1, 2, 3, 500_000), "datetime(3)", "2026-01-31 01:02:03.5");
        check(Value::Date(2026, 1, 31, 1, 2, 3, 0), "timestamp", "2026-01-31 01:02:03+00");
        check(Value::Date(0, 0, 0, 0, 0, 0, 0), "timestamp", "Ok(Null)");
        check(Value::Time(true, 34, 22, 59, 59, 1), "time(6)", "-838:59:59.000001");
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        for (value, native) in [
            (Value::Bytes(b"5".into()), "int"),
            (Value::Bytes(b"1.1".into()), "float"),
            (Value::Int(1), "date"),
            (Value::Date(2026, 1, 31, 0, 0, 0, 0), "int"),
        ] {
            let mysql_type = MysqlType::parse(native).unwrap();
            let refused = push(&value, &mysql_type, ZeroDates::Stop, &mut Vec::new());
            assert!(matches!(refused, Err(Refusal::Malformed(_))), "{native}");
        }
    }
}
