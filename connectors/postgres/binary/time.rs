//! Dates, times and lengths of time in binary, of canonical text, and back. Surprise: PostgreSQL
//! counts from 2000-01-01, and the greatest and the least number are its infinities.

use std::io::Write as _;

use super::number::{digit, integer, sign};
use crate::calendar::{from_days, to_days};
use crate::change::Timestamp;
use crate::digits;

const SECOND_US: i64 = 1_000_000;
const DAY_US: i64 = 86_400 * SECOND_US;
/// 2000-01-01, in days since 1970-01-01.
const EPOCH_DAY: i64 = 10_957;

/// An instant as microseconds.
pub fn micros(instant: Timestamp) -> i64 {
    // Out of range only for an instant that no clock shows; the server refuses the greatest.
    instant.0.saturating_sub(EPOCH_DAY * DAY_US)
}

/// `2026-01-31`, perhaps with ` BC`, as days.
pub fn date(text: &[u8]) -> Option<i32> {
    match text {
        b"infinity" => return Some(i32::MAX),
        b"-infinity" => return Some(i32::MIN),
        _ => {}
    }
    let (text, before_christ) = before_christ(text);
    let (day, rest) = day(text, before_christ)?;
    let day = i32::try_from(day).ok().filter(|_| rest.is_empty())?;
    // The greatest and the least would be read as infinities.
    (day != i32::MAX && day != i32::MIN).then_some(day)
}

/// `2026-01-31 13:59:59.5+00` as microseconds.
pub fn instant(text: &[u8]) -> Option<i64> {
    if let Some(infinity) = infinity(text) {
        return Some(infinity);
    }
    let (text, before_christ) = before_christ(text);
    moment(text.strip_suffix(b"+00")?, before_christ)
}

/// `2026-01-31 13:59:59.5` as microseconds.
pub fn timestamp(text: &[u8]) -> Option<i64> {
    if let Some(infinity) = infinity(text) {
        return Some(infinity);
    }
    let (text, before_christ) = before_christ(text);
    moment(text, before_christ)
}

/// `13:59:59.5` as microseconds. The end of a day is a time, too.
pub fn time(text: &[u8]) -> Option<i64> {
    let (micros, rest) = clock(text)?;
    (rest.is_empty() && text.get(2) == Some(&b':') && micros <= DAY_US).then_some(micros)
}

/// Appends `13:59:59.5+05:30`: microseconds, and seconds to the west of Greenwich.
pub fn push_time_tz(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let at = text.iter().position(|byte| matches!(byte, b'+' | b'-'))?;
    let (clock, zone) = text.split_at(at);
    let micros = time(clock)?;
    let mut seconds = 0;
    let parts = zone.get(1..)?.split(|&byte| byte == b':');
    for (part, unit) in parts.zip([3600, 60, 1]) {
        let value = two(part).filter(|value| part.len() == 2 && (unit == 3600 || *value < 60))?;
        seconds += i32::try_from(value).ok()? * unit;
    }
    if zone.len() > 9 {
        return None;
    }
    let west = if zone[0] == b'+' { -seconds } else { seconds };
    out.extend_from_slice(&micros.to_be_bytes());
    out.extend_from_slice(&west.to_be_bytes());
    Some(())
}

/// Appends `1 year 2 mons -3 days -04:05:06.789`, or as much of it as there is: microseconds,
/// days and months.
pub fn push_interval(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (mut months, mut days, mut micros) = (0_i64, 0_i64, 0_i64);
    let mut words = text.split(|&byte| byte == b' ');
    let mut last = 0;
    while let Some(word) = words.next() {
        if word.contains(&b':') {
            micros = signed_clock(word)?;
            // It comes last.
            words.next().is_none().then_some(())?;
            break;
        }
        let count = i64::from(i32::try_from(integer(plain(word)?)?).ok()?);
        let unit = match words.next()? {
            b"year" | b"years" => 1,
            b"mon" | b"mons" => 2,
            b"day" | b"days" => 3,
            _ => return None,
        };
        // Each comes once, the longest first.
        (unit > last).then(|| last = unit)?;
        match unit {
            1 => months = count * 12,
            2 => months += count,
            _ => days = count,
        }
    }
    let (months, days) = (i32::try_from(months).ok()?, i32::try_from(days).ok()?);
    out.extend_from_slice(&micros.to_be_bytes());
    out.extend_from_slice(&days.to_be_bytes());
    out.extend_from_slice(&months.to_be_bytes());
    Some(())
}

/// Appends the text of a `date`.
pub fn push_date_text(days: i32, out: &mut Vec<u8>) {
    match days {
        i32::MAX => out.extend_from_slice(b"infinity"),
        i32::MIN => out.extend_from_slice(b"-infinity"),
        _ => {
            let era = push_day(days.into(), out);
            out.extend_from_slice(era);
        }
    }
}

/// Appends the text of a `time`; `None` if no day has it.
pub fn push_time_text(micros: i64, out: &mut Vec<u8>) -> Option<()> {
    (0..=DAY_US).contains(&micros).then(|| push_clock(micros.unsigned_abs(), out))
}

/// Appends the text of a `time with time zone`: of the zone as much as it needs.
pub fn push_time_tz_text(value: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (micros, west) = value.split_first_chunk()?;
    let west = i32::from_be_bytes(west.try_into().ok()?);
    push_time_text(i64::from_be_bytes(*micros), out)?;
    out.push(if west > 0 { b'-' } else { b'+' });
    let seconds = west.unsigned_abs();
    digits::push_padded((seconds / 3600).into(), 2, out);
    let rest: &[u32] = match (seconds / 60 % 60, seconds % 60) {
        (0, 0) => &[],
        (minutes, 0) => &[minutes],
        (minutes, seconds) => &[minutes, seconds],
    };
    for part in rest {
        out.push(b':');
        digits::push_padded((*part).into(), 2, out);
    }
    Some(())
}

/// Appends the text of an `interval`. A part that follows a negative one has a sign in any case.
pub fn push_interval_text(value: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (micros, rest) = value.split_first_chunk()?;
    let (days, months) = rest.split_first_chunk()?;
    let micros = i64::from_be_bytes(*micros);
    let days = i32::from_be_bytes(*days);
    let months = i32::from_be_bytes(months.try_into().ok()?);
    match (micros, days, months) {
        (i64::MAX, i32::MAX, i32::MAX) => out.extend_from_slice(b"infinity"),
        (i64::MIN, i32::MIN, i32::MIN) => out.extend_from_slice(b"-infinity"),
        _ => push_length(months, days, micros, out),
    }
    Some(())
}

fn push_length(months: i32, days: i32, micros: i64, out: &mut Vec<u8>) {
    let (mut space, mut after_negative) = ("", false);
    for (count, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if count != 0 {
            let plus = if after_negative && count > 0 { "+" } else { "" };
            let plural = if count == 1 { "" } else { "s" };
            // Writing to memory cannot fail.
            let _ = write!(out, "{space}{plus}{count} {unit}{plural}");
            (space, after_negative) = (" ", count < 0);
        }
    }
    if space.is_empty() || micros != 0 {
        let sign = match micros < 0 {
            true => "-",
            false if after_negative => "+",
            false => "",
        };
        out.extend_from_slice(space.as_bytes());
        out.extend_from_slice(sign.as_bytes());
        push_clock(micros.unsigned_abs(), out);
    }
}

/// Appends the text of a `timestamp`, with what stands for its zone.
pub fn push_moment(micros: i64, zone: &str, out: &mut Vec<u8>) {
    match micros {
        i64::MAX => out.extend_from_slice(b"infinity"),
        i64::MIN => out.extend_from_slice(b"-infinity"),
        _ => {
            let era = push_day(micros.div_euclid(DAY_US), out);
            out.push(b' ');
            push_clock(micros.rem_euclid(DAY_US).unsigned_abs(), out);
            out.extend_from_slice(zone.as_bytes());
            out.extend_from_slice(era);
        }
    }
}

/// Appends a day without its era, and says what that is.
fn push_day(days: i64, out: &mut Vec<u8>) -> &'static [u8] {
    let (year, month, day) = from_days(days + EPOCH_DAY);
    // The year before 1 is 1 BC.
    let (year, era): (i64, &[u8]) = if year > 0 { (year, b"") } else { (1 - year, b" BC") };
    digits::push_padded(year.unsigned_abs(), 4, out);
    for part in [month, day] {
        out.push(b'-');
        out.extend_from_slice(&digits::two_digits(part as u8));
    }
    era
}

fn push_clock(micros: u64, out: &mut Vec<u8>) {
    let second_us = SECOND_US.unsigned_abs();
    let (seconds, micros) = (micros / second_us, micros % second_us);
    let [minute, second] = [seconds / 60 % 60, seconds % 60].map(|part| part as u8);
    digits::push_clock(seconds / 3600, minute, second, micros as u32, out);
}

/// A number without the plus that stands before it when the one before is negative.
fn plain(word: &[u8]) -> Option<&[u8]> {
    match word.strip_prefix(b"+") {
        Some([b'-', ..]) => None,
        Some(rest) => Some(rest),
        None => Some(word),
    }
}

fn signed_clock(word: &[u8]) -> Option<i64> {
    let (negative, rest) = sign(plain(word)?);
    let (micros, rest) = clock(rest)?;
    // Version 14 has no greater number of hours, although more have a binary form.
    let is_small = micros < i64::from(i32::MAX) * 3600 * SECOND_US;
    (is_small && rest.is_empty()).then_some(if negative { -micros } else { micros })
}

fn infinity(text: &[u8]) -> Option<i64> {
    match text {
        b"infinity" => Some(i64::MAX),
        b"-infinity" => Some(i64::MIN),
        _ => None,
    }
}

/// The text without its era, and whether it has one.
fn before_christ(text: &[u8]) -> (&[u8], bool) {
    match text.strip_suffix(b" BC") {
        Some(text) => (text, true),
        None => (text, false),
    }
}

/// Day and time of day as microseconds.
fn moment(text: &[u8], before_christ: bool) -> Option<i64> {
    let (day, rest) = day(text, before_christ)?;
    let (micros, rest) = clock(rest.strip_prefix(b" ")?)?;
    if !rest.is_empty() || micros >= DAY_US {
        return None;
    }
    let moment = day.checked_mul(DAY_US)?.checked_add(micros)?;
    // The greatest and the least would be read as infinities.
    (moment != i64::MAX && moment != i64::MIN).then_some(moment)
}

/// The day that the text begins with, and what follows.
fn day(text: &[u8], before_christ: bool) -> Option<(i64, &[u8])> {
    let digits = text.iter().position(|&byte| byte == b'-')?;
    // A year has four digits, or more if it needs them.
    let (year, rest) = text.split_at_checked(digits).filter(|(year, _)| year.len() >= 4)?;
    let year = integer(year).filter(|year| *year > 0)?;
    let year = if before_christ { 1 - year } else { year };
    let (month, rest) = rest.split_at_checked(3)?;
    let (day, rest) = rest.split_at_checked(3)?;
    let (b'-', b'-') = (month[0], day[0]) else { return None };
    // Far beyond what the server takes, and far from what overflows.
    let year = (year.abs() < 10_000_000).then_some(year)?;
    Some((to_days(year, two(&month[1..])?, two(&day[1..])?)? - EPOCH_DAY, rest))
}

/// The microseconds of `13:59:59.5` at the beginning of the text, and what follows. Hours may have
/// more than two digits.
fn clock(text: &[u8]) -> Option<(i64, &[u8])> {
    let digits = text.iter().position(|&byte| byte == b':').filter(|digits| *digits >= 2)?;
    let (hours, rest) = text.split_at_checked(digits)?;
    let (hours, minutes, seconds) = (integer(hours)?, two(rest.get(1..3)?)?, two(rest.get(4..6)?)?);
    if hours < 0 || minutes > 59 || seconds > 59 || rest[3] != b':' {
        return None;
    }
    let (mut micros, mut rest) = (0, &rest[6..]);
    if let Some(fraction) = rest.strip_prefix(b".") {
        let places = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if !(1..=6).contains(&places) {
            return None;
        }
        for &byte in fraction[..places].iter().chain(&b"000000"[places..]) {
            micros = micros * 10 + i64::from(digit(byte)?);
        }
        rest = &fraction[places..];
    }
    let seconds = hours.checked_mul(3600)?.checked_add(minutes * 60 + seconds)?;
    Some((seconds.checked_mul(SECOND_US)?.checked_add(micros)?, rest))
}

/// The number of two digits.
fn two(text: &[u8]) -> Option<i64> {
    let (&high, &low) = (text.first()?, text.get(1)?);
    Some(i64::from(digit(high)?) * 10 + i64::from(digit(low)?))
}
