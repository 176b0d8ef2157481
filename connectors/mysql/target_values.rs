//! Values on their way into a MySQL or MariaDB target and back: canonical text to what the server
//! reads, and what it gives back to canonical text. Pure. `target_types.rs` says which column has which
//! form, `spelling.rs` how it is spelled.
//!
//! Surprise: every value is looked at here, because even in its strict mode the server cuts digits
//! off a decimal, blanks off a text, and microseconds off a time, without an error.

use std::borrow::Cow;

use super::spelling::Spelling;
use crate::float;

/// How values of a column are written and read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// 0 or 1.
    Bool,
    /// Digits.
    Integer,
    /// 0, or 1901 to 2155.
    Year,
    /// A single.
    Single,
    /// A double.
    Double,
    /// An exact number.
    Decimal {
        /// All digits.
        precision: u8,
        /// Those after the point.
        scale: u8,
    },
    /// So many binary digits.
    Bits(u8),
    /// Characters, at most so many; `None` where the type's own limit is enough.
    Text(Option<u32>),
    /// Bytes, at most so many.
    Bytes(Option<u32>),
    /// Exactly so many bytes.
    FixedBytes(u32),
    /// A day.
    Date,
    /// A time or length of time with so many digits of a second's fraction.
    Time(u8),
    /// A day and a time, no zone.
    DateTime(u8),
    /// A day and a time in UTC.
    Instant(u8),
}

/// Spells a value of canonical text; the error says what is wrong with it, without it.
///
/// # Errors
/// A value that the column cannot hold exactly.
pub fn encode(form: Form, value: &[u8], out: &mut impl Spelling) -> Result<(), &'static str> {
    let text = std::str::from_utf8(value).map_err(|_| "a text is not valid UTF-8")?;
    match form {
        Form::Bool => out.integer(match text {
            "t" => "1",
            "f" => "0",
            _ => return Err("a boolean is neither t nor f"),
        }),
        // Most fit into the smaller type, which is cheaper to read.
        Form::Integer if text.parse::<i64>().is_ok() || text.parse::<i128>().is_ok() => {
            out.integer(text);
        }
        Form::Integer => return Err("an integer is not one"),
        Form::Year => match text.parse::<u16>() {
            // Small numbers would be taken for years of this century, and so would the text "0".
            Ok(0) => out.integer("0000"),
            Ok(1901..=2155) => out.integer(text),
            _ => return Err("a year is not one from 1901 to 2155"),
        },
        Form::Single | Form::Double => push_float(form, text, out)?,
        Form::Decimal { precision, scale } => {
            out.number(&decimal(text, precision, scale).ok_or(NO_DECIMAL)?);
        }
        Form::Bits(count) => match u64::from_str_radix(text, 2) {
            Ok(bits) if text.len() == usize::from(count) => out.bits(bits),
            _ => return Err("a bit string is not of the column's length"),
        },
        Form::Text(limit) => {
            // A text has no more characters than bytes.
            let is_longer = |limit: usize| text.len() > limit && text.chars().count() > limit;
            if limit.is_some_and(|limit| is_longer(limit as usize)) {
                return Err("a text is longer than the target's column");
            }
            out.text(text);
        }
        Form::Bytes(limit) => {
            let digits = hex_digits(text)?;
            if limit.is_some_and(|limit| digits.len() / 2 > limit as usize) {
                return Err("a byte string is longer than the target's column");
            }
            out.hexadecimal(digits);
        }
        Form::FixedBytes(count) => {
            let digits = hex_digits(text)?;
            if digits.len() / 2 != count as usize {
                return Err("a byte string is not of the column's length");
            }
            out.hexadecimal(digits);
        }
        Form::Date | Form::Time(_) | Form::DateTime(_) | Form::Instant(_) => {
            push_time(form, text, out)?;
        }
    }
    Ok(())
}

const NO_DECIMAL: &str = "a number does not fit into the target's decimal";
const NO_DATE: &str = "a date or time is not from the years 1 to 9999";
const NO_TIME: &str = "a time has more digits than the target's column";

/// Digits enough to give the same number back, whatever the server makes of shorter ones.
fn push_float(form: Form, text: &str, out: &mut impl Spelling) -> Result<(), &'static str> {
    const WRONG: &str = "a float is NaN, infinite or none";
    let value = match form {
        Form::Single => f64::from(text.parse::<f32>().map_err(|_| WRONG)?),
        _ => text.parse::<f64>().map_err(|_| WRONG)?,
    };
    let value = unsigned_zero(value);
    match form {
        _ if !value.is_finite() => return Err(WRONG),
        // As the double that it is exactly, so that it is rounded once.
        Form::Single => out.single(value),
        _ => out.double(value, text),
    }
    Ok(())
}

fn single_text(value: f64) -> Vec<u8> {
    let mut text = Vec::new();
    float::push_single(unsigned_zero(value) as f32, &mut text);
    text
}

fn double_text(value: f64) -> Vec<u8> {
    let mut text = Vec::new();
    float::push_double(unsigned_zero(value), &mut text);
    text
}

/// MariaDB does not keep the sign of zero, so nobody's is kept.
fn unsigned_zero(value: f64) -> f64 {
    if value == 0.0 { 0.0 } else { value }
}

/// A number with exactly so many digits after the point; `None` if it has more, or too many
/// before it, or is none.
fn decimal(text: &str, precision: u8, scale: u8) -> Option<Cow<'_, str>> {
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |digits| ("-", digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let given = (sign, whole);
    let whole = whole.trim_start_matches('0');
    let kept = fraction.trim_end_matches('0');
    if kept.len() > usize::from(scale) || whole.len() > usize::from(precision - scale) {
        return None;
    }
    let sign = if whole.is_empty() && kept.is_empty() { "" } else { sign };
    let whole = if whole.is_empty() { "0" } else { whole };
    if (sign, whole) == given && fraction.len() == usize::from(scale) && !text.ends_with('.') {
        return Some(Cow::Borrowed(text));
    }
    Some(Cow::Owned(match scale {
        0 => format!("{sign}{whole}"),
        _ => format!("{sign}{whole}.{kept:0<width$}", width = usize::from(scale)),
    }))
}

fn hex_digits(text: &str) -> Result<&str, &'static str> {
    match text.strip_prefix("\\x") {
        Some(digits)
            if digits.len().is_multiple_of(2)
                && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) =>
        {
            Ok(digits)
        }
        _ => Err("a byte string is not \\x and hexadecimal digits"),
    }
}

/// Dates and times. The server itself refuses a 31st of February.
fn push_time(form: Form, text: &str, out: &mut impl Spelling) -> Result<(), &'static str> {
    let (date, time, digits) = match form {
        Form::Date => (Some(text), None, 0),
        Form::Time(digits) => (None, Some(text), digits),
        Form::Instant(digits) => {
            let utc = text.strip_suffix("+00").ok_or(NO_DATE)?;
            let (date, time) = utc.split_once(' ').ok_or(NO_DATE)?;
            (Some(date), Some(time), digits)
        }
        Form::DateTime(digits) => {
            let (date, time) = text.split_once(' ').ok_or(NO_DATE)?;
            (Some(date), Some(time), digits)
        }
        _ => return Err("a date or time is none"),
    };
    if date.is_some_and(|date| !has_shape(date, "dddd-dd-dd") || date.starts_with("0000")) {
        return Err(NO_DATE);
    }
    if let Some(time) = time {
        let (clock, fraction) = time.split_once('.').unwrap_or((time, ""));
        let clock = clock.strip_prefix('-').filter(|_| date.is_none()).unwrap_or(clock);
        if !has_shape(clock, "dd:dd:dd") && (date.is_some() || !has_shape(clock, "ddd:dd:dd")) {
            return Err(NO_DATE);
        }
        if !fraction.bytes().all(|digit| digit.is_ascii_digit())
            || fraction.trim_end_matches('0').len() > usize::from(digits)
        {
            return Err(NO_TIME);
        }
    }
    out.time(text.strip_suffix("+00").unwrap_or(text));
    Ok(())
}

/// Whether the text is digits where the pattern has `d`, and the pattern's own characters.
fn has_shape(text: &str, pattern: &str) -> bool {
    text.len() == pattern.len()
        && text.bytes().zip(pattern.bytes()).all(|(byte, expected)| match expected {
            b'd' => byte.is_ascii_digit(),
            expected => byte == expected,
        })
}

/// What the server gave back, as canonical text. A value that `encode` does not write begins with
/// NUL, so that it equals no value of the source.
#[must_use]
pub fn decode(form: Form, value: &[u8]) -> Vec<u8> {
    let text = || std::str::from_utf8(value).ok();
    let decoded = match form {
        Form::Bool => match value {
            b"1" => Some(b"t".to_vec()),
            b"0" => Some(b"f".to_vec()),
            _ => None,
        },
        Form::Integer | Form::Decimal { .. } | Form::Text(_) | Form::Date => Some(value.to_vec()),
        Form::Year => text()
            .and_then(|text| text.parse::<u16>().ok())
            .map(|year| year.to_string().into_bytes()),
        Form::Single => text().and_then(|text| text.parse().ok()).map(single_text),
        Form::Double => text().and_then(|text| text.parse().ok()).map(double_text),
        Form::Bits(count) => bits(value, count).map(String::into_bytes),
        Form::Bytes(_) | Form::FixedBytes(_) => Some(hex(value)),
        Form::Time(_) | Form::DateTime(_) => text().map(|text| trimmed(text).into_bytes()),
        Form::Instant(_) => text().map(|text| (trimmed(text) + "+00").into_bytes()),
    };
    decoded.unwrap_or_else(|| [b"\0", value].concat())
}

/// The canonical text as it comes back after it was stored.
#[must_use]
pub fn stored(form: Form, value: &[u8]) -> Cow<'_, [u8]> {
    let Ok(text) = std::str::from_utf8(value) else {
        return Cow::Borrowed(value);
    };
    let normal: Option<Vec<u8>> = match form {
        Form::Bool | Form::Integer | Form::Year | Form::Bits(_) | Form::Text(_) | Form::Date => {
            return Cow::Borrowed(value);
        }
        // Rounded once, to the single.
        Form::Single => text.parse::<f32>().ok().map(|value| single_text(f64::from(value))),
        Form::Double => text.parse().ok().map(double_text),
        Form::Decimal { precision, scale } => {
            decimal(text, precision, scale).map(|text| text.into_owned().into_bytes())
        }
        Form::Bytes(_) | Form::FixedBytes(_) => Some(value.to_ascii_lowercase()),
        Form::Time(_) => Some(match trimmed(text) {
            zero if zero == "-00:00:00" => b"00:00:00".to_vec(),
            time => time.into_bytes(),
        }),
        Form::DateTime(_) => Some(trimmed(text).into_bytes()),
        Form::Instant(_) => text.strip_suffix("+00").map(|utc| (trimmed(utc) + "+00").into_bytes()),
    };
    match normal {
        Some(normal) if normal != value => Cow::Owned(normal),
        // What is refused is not stored.
        _ => Cow::Borrowed(value),
    }
}

/// Without the zeros at the end of a second's fraction.
fn trimmed(text: &str) -> String {
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    }
}

fn bits(value: &[u8], count: u8) -> Option<String> {
    if value.len() > 8 {
        return None;
    }
    let number = value.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    Some(format!("{number:0width$b}", width = usize::from(count)))
}

fn hex(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(2 + bytes.len() * 2);
    super::text::push_bytes(bytes, 0, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_literal(form: Form, value: &str, expected: &str) {
        let mut literal = String::new();
        assert_eq!(encode(form, value.as_bytes(), &mut literal), Ok(()), "{value}");
        assert_eq!(literal, expected);
    }

    fn check_stored(form: Form, value: &str, expected: &str) {
        assert_eq!(stored(form, value.as_bytes()), expected.as_bytes(), "{value}");
    }

    #[test]
    fn no_literal_depends_on_the_sql_mode() {
        check_literal(Form::Text(None), "it's", "'it''s'");
        check_literal(Form::Text(None), "'", "''''");
        check_literal(Form::Text(None), "", "''");
        check_literal(Form::Text(None), "a\\'b", "_utf8mb4 X'615C2762'");
        check_literal(Form::Text(None), "\0", "_utf8mb4 X'00'");
        check_literal(Form::Bytes(None), "\\x5c27", "X'5c27'");
        check_literal(Form::Bits(3), "101", "5");
        check_literal(Form::Single, "0.1", "1.0000000149011612e-1");
        check_literal(Form::Double, "-0", "0e0");
        check_literal(Form::Decimal { precision: 5, scale: 2 }, "-007.5", "-7.50");
        check_literal(Form::Decimal { precision: 5, scale: 0 }, "-0.0", "0");
        check_literal(Form::Decimal { precision: 5, scale: 2 }, "-12.50", "-12.50");
        check_literal(Form::Decimal { precision: 5, scale: 2 }, "-0.00", "0.00");
        check_literal(Form::Decimal { precision: 2, scale: 2 }, "0.05", "0.05");
        check_literal(Form::Decimal { precision: 5, scale: 0 }, "5.", "5");
        check_literal(Form::Integer, "18446744073709551615", "18446744073709551615");
        check_literal(Form::Text(Some(2)), "éé", "'éé'");
        check_literal(Form::Instant(6), "2026-01-31 13:59:59.5+00", "'2026-01-31 13:59:59.5'");
        check_literal(Form::Time(0), "-838:59:59", "'-838:59:59'");
    }

    #[test]
    fn what_is_not_canonical_is_refused_without_naming_the_value() {
        let wrong: [(Form, &[u8]); 14] = [
            (Form::Text(None), b"secret\xff"),
            (Form::Text(Some(5)), b"secret"),
            (Form::Bool, b"true"),
            (Form::Integer, b"1; DROP TABLE t"),
            (Form::Integer, b""),
            (Form::Year, b"70"),
            (Form::Double, b"NaN"),
            (Form::Single, b"1e39"),
            (Form::Decimal { precision: 5, scale: 2 }, b"1.234"),
            (Form::Decimal { precision: 5, scale: 2 }, b"1e2"),
            (Form::Bytes(None), b"\\xabc"),
            (Form::Date, b"'; DROP T"),
            (Form::DateTime(6), b"0000-01-01 00:00:00"),
            (Form::Instant(6), b"2026-01-01 00:00:00+01"),
        ];
        for (form, value) in wrong {
            let reason = encode(form, value, &mut String::new()).unwrap_err();
            assert!(!reason.contains("secret"), "{reason}");
        }
    }

    #[test]
    fn values_come_back_as_the_server_lays_them_out() {
        check_stored(Form::Double, "100000000000000000000", "1e+20");
        check_stored(Form::Double, "-0", "0");
        check_stored(Form::Single, "0.10000000149011612", "0.1");
        check_stored(Form::Decimal { precision: 6, scale: 3 }, "1.5", "1.500");
        check_stored(Form::Decimal { precision: 6, scale: 3 }, "-0.000", "0.000");
        check_stored(Form::Bytes(None), "\\xDEad", "\\xdead");
        check_stored(Form::Time(6), "-00:00:00.000", "00:00:00");
        check_stored(Form::Instant(6), "2026-01-01 00:00:00.500+00", "2026-01-01 00:00:00.5+00");
        check_stored(Form::Text(None), "1.0 ", "1.0 ");
        // What is refused is not stored.
        check_stored(Form::Decimal { precision: 6, scale: 3 }, "NaN", "NaN");
    }

    #[test]
    fn a_value_that_somebody_else_wrote_equals_none_of_the_source() {
        assert_eq!(decode(Form::Bool, b"2"), b"\x002");
        assert_eq!(decode(Form::Bool, b"1"), b"t");
        assert_eq!(decode(Form::Year, b"0000"), b"0");
        assert_eq!(decode(Form::Bits(9), &[1, 1]), b"100000001");
        let instant = decode(Form::Instant(6), b"2026-01-01 00:00:00.500000");
        assert_eq!(instant, b"2026-01-01 00:00:00.5+00");
    }
}
