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
use crate::{ZeroDates, float};

/// What a session must have set before it reads rows: instants in UTC, texts as they are stored,
/// and CHAR without the padding. (Our statements are plain ASCII or UTF-8.)
pub const SESSION: &str = "SET time_zone = '+00:00', character_set_client = utf8mb4, \
     collation_connection = utf8mb4_bin, character_set_results = NULL, sql_mode = ''";

/// What to select for a column, so that `push` understands it. The name is quoted already.
#[must_use]
pub fn select_expression(_mysql_type: &MysqlType, quoted: &str) -> String {
    // The binary protocol has every type as it is.
    quoted.to_owned()
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
            text::push_signed(*number, out);
        }
        (Value::UInt(number), MysqlType::Integer { .. } | MysqlType::Year) => {
            text::push_unsigned(*number, out);
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
