//! Appends bytes, dates and times to a buffer as canonical text. Pure. Nothing here allocates:
//! most values of a table pass through.

use super::bytes::Malformed;
use crate::ZeroDates;
use crate::digits::{self, two_digits};
use crate::{calendar, hex};

/// Appends bytes as `\x` and hexadecimal digits, with zeros behind them up to this many bytes.
pub fn push_bytes(bytes: &[u8], length_min: usize, out: &mut Vec<u8>) {
    let padding = length_min.saturating_sub(bytes.len());
    out.reserve(2 + 2 * (bytes.len() + padding));
    out.extend_from_slice(b"\\x");
    hex::push(bytes, out);
    out.extend(std::iter::repeat_n(b'0', 2 * padding));
}

/// Appends so many low bits of a number.
pub fn push_bits(number: u64, bits: u8, out: &mut Vec<u8>) {
    out.extend((0..bits).rev().map(|bit| b'0' + (number >> bit & 1) as u8));
}

/// What became of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// Its text was appended.
    Text,
    /// It is NULL, or is replaced by NULL as the configuration says.
    Null,
}

/// Why a value cannot be replicated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A date with a zero year, month or day, or one that is in no calendar.
    ZeroDate,
    /// It was not understood.
    Malformed(Malformed),
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Refusal {
        Refusal::Malformed(malformed)
    }
}

/// A day, perhaps none of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    /// 0 to 9999.
    pub year: u16,
    /// 0 to 12.
    pub month: u8,
    /// 0 to 31.
    pub day: u8,
}

/// A time of day, or a length of time without its sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Up to 838 in a length of time.
    pub hour: u16,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
    /// Of a second.
    pub micros: u32,
}

impl Date {
    fn is_in_calendar(self) -> bool {
        let Date { year, month, day } = self;
        (1..=9999).contains(&year) && calendar::has_day(year.into(), month.into(), day.into())
    }
}

/// Appends `2026-01-31`.
///
/// # Errors
/// `ZeroDate`, unless NULL is to stand for such dates.
pub fn push_date(date: Date, zero_dates: ZeroDates, out: &mut Vec<u8>) -> Result<Pushed, Refusal> {
    if !date.is_in_calendar() {
        return match zero_dates {
            ZeroDates::Stop => Err(Refusal::ZeroDate),
            ZeroDates::Null => Ok(Pushed::Null),
        };
    }
    let mut text = *b"0000-00-00";
    text[..2].copy_from_slice(&two_digits((date.year / 100) as u8));
    text[2..4].copy_from_slice(&two_digits((date.year % 100) as u8));
    text[5..7].copy_from_slice(&two_digits(date.month));
    text[8..].copy_from_slice(&two_digits(date.day));
    out.extend_from_slice(&text);
    Ok(Pushed::Text)
}

/// Appends `2026-01-31 13:59:59.5`, and `+00` if it is an instant.
///
/// # Errors
/// As `push_date`; `Malformed`, if there is no such time of day.
pub fn push_timestamp(
    date: Date,
    clock: Clock,
    zone: &str,
    zero_dates: ZeroDates,
    out: &mut Vec<u8>,
) -> Result<Pushed, Refusal> {
    if clock.hour > 23 {
        return Err(Malformed::new("a time of day is none").into());
    }
    match push_date(date, zero_dates, out)? {
        Pushed::Null => Ok(Pushed::Null),
        Pushed::Text => {
            out.push(b' ');
            push_clock(clock, out)?;
            out.extend_from_slice(zone.as_bytes());
            Ok(Pushed::Text)
        }
    }
}

/// Appends `-838:59:59.5`.
///
/// # Errors
/// `Malformed`, if there is no such time.
pub fn push_duration(negative: bool, clock: Clock, out: &mut Vec<u8>) -> Result<Pushed, Refusal> {
    if clock.hour > 838 {
        return Err(Malformed::new("a length of time is too long").into());
    }
    if negative {
        out.push(b'-');
    }
    push_clock(clock, out)?;
    Ok(Pushed::Text)
}

fn push_clock(clock: Clock, out: &mut Vec<u8>) -> Result<(), Malformed> {
    let Clock { hour, minute, second, micros } = clock;
    if minute > 59 || second > 59 || micros > 999_999 {
        return Err(Malformed::new("a time of day is none"));
    }
    digits::push_clock(hour.into(), minute, second, micros, out);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pushed;

    #[test]
    fn bytes_and_bits_are_appended() {
        assert_eq!(pushed(|out| push_bytes(&[0, 0xfe], 3, out)), "\\x00fe00");
        assert_eq!(pushed(|out| push_bits(5, 9, out)), "000000101");
    }

    fn check_date(date: (u16, u8, u8), expected: Option<&str>) {
        let (year, month, day) = date;
        let date = Date { year, month, day };
        let mut out = Vec::new();
        let stopped = push_date(date, ZeroDates::Stop, &mut out);
        let null = push_date(date, ZeroDates::Null, &mut Vec::new());
        match expected {
            Some(expected) => assert_eq!(String::from_utf8(out).unwrap(), expected),
            None => {
                assert_eq!(stopped, Err(Refusal::ZeroDate));
                assert_eq!(null, Ok(Pushed::Null));
            }
        }
    }

    #[test]
    fn dates_that_are_in_no_calendar_are_the_configurations_matter() {
        check_date((2024, 2, 29), Some("2024-02-29"));
        check_date((1, 1, 1), Some("0001-01-01"));
        for date in [(0, 0, 0), (2020, 0, 1), (2020, 1, 0), (0, 1, 1), (2023, 2, 29), (2020, 4, 31)]
        {
            check_date(date, None);
        }
    }

    #[test]
    fn a_length_of_time_has_a_sign_and_more_than_a_day() {
        let clock = |micros| Clock { hour: 1, minute: 2, second: 3, micros };
        let duration = |negative, micros| {
            pushed(|out| _ = push_duration(negative, clock(micros), out).unwrap())
        };
        assert_eq!(duration(true, 400_000), "-01:02:03.4");
        assert_eq!(duration(false, 0), "01:02:03");
        assert_eq!(duration(false, 7), "01:02:03.000007");
        let long = Clock { hour: 838, minute: 59, second: 59, micros: 0 };
        assert_eq!(pushed(|out| _ = push_duration(false, long, out).unwrap()), "838:59:59");
    }
}
