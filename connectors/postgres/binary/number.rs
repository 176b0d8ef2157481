//! Numbers in binary, of canonical text, and back. Surprise: zeros at the end of a `numeric` are part of the
//! value, so the number of its decimals is written beside its digits.

use std::io::Write as _;

use crate::digits;
use crate::postgres::lsn::Lsn;

/// `t` or `f`.
pub fn boolean(text: &[u8]) -> Option<[u8; 1]> {
    match text {
        b"t" => Some([1]),
        b"f" => Some([0]),
        _ => None,
    }
}

/// An integer of up to 64 bits.
pub fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = sign(text);
    // Nineteen digits cannot overflow.
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    let mut number: u64 = 0;
    for &byte in digits {
        number = number * 10 + u64::from(digit(byte)?);
    }
    match negative {
        true => 0_i64.checked_sub_unsigned(number),
        false => i64::try_from(number).ok(),
    }
}

/// A place in a log: two hexadecimal numbers.
pub fn lsn(text: &[u8]) -> Option<u64> {
    let (high, low) = std::str::from_utf8(text).ok()?.split_once('/')?;
    let half = |digits: &str| {
        let plain = (1..=8).contains(&digits.len()) && !digits.starts_with('+');
        plain.then(|| u64::from_str_radix(digits, 16).ok())?
    };
    Some(half(high)? << 32 | half(low)?)
}

/// Appends the text of a place in a log.
pub fn push_lsn_text(place: u64, out: &mut Vec<u8>) {
    // Writing to memory cannot fail.
    let _ = write!(out, "{}", Lsn(place));
}

/// The bits of a single.
pub fn single(text: &[u8]) -> Option<u32> {
    match text {
        b"NaN" => return Some(0x7fc0_0000),
        b"Infinity" => return Some(f32::INFINITY.to_bits()),
        b"-Infinity" => return Some(f32::NEG_INFINITY.to_bits()),
        _ => {}
    }
    let value: f32 = decimal(text)?.parse().ok()?;
    // What overflows or vanishes is for the server to refuse.
    let exact = value.is_finite() && (value != 0.0 || is_zero(text));
    exact.then(|| value.to_bits())
}

/// The bits of a double.
pub fn double(text: &[u8]) -> Option<u64> {
    match text {
        b"NaN" => return Some(0x7ff8_0000_0000_0000),
        b"Infinity" => return Some(f64::INFINITY.to_bits()),
        b"-Infinity" => return Some(f64::NEG_INFINITY.to_bits()),
        _ => {}
    }
    let value: f64 = decimal(text)?.parse().ok()?;
    let exact = value.is_finite() && (value != 0.0 || is_zero(text));
    exact.then(|| value.to_bits())
}

/// The text if it is a number in digits, and none of the words that Rust reads, too.
fn decimal(text: &[u8]) -> Option<&str> {
    let of_digits = text.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e'));
    of_digits.then(|| std::str::from_utf8(text).ok())?
}

fn is_zero(text: &[u8]) -> bool {
    let mantissa = text.split(|&byte| byte == b'e').next().unwrap_or_default();
    !mantissa.iter().any(|byte| matches!(byte, b'1'..=b'9'))
}

const POSITIVE: u16 = 0;
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xc000;
const INFINITY: u16 = 0xd000;
const NEGATIVE_INFINITY: u16 = 0xf000;
/// No number of the server has more digits before the point.
const WHOLE_DIGITS_MAX: usize = 131_072;
/// Or after it.
const DECIMALS_MAX: usize = 16_383;

/// Appends a `numeric`: groups of four decimal digits, counted from the point.
pub fn push_numeric(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    match text {
        b"NaN" => return push_header(out, 0, 0, NAN, 0),
        b"Infinity" => return push_header(out, 0, 0, INFINITY, 0),
        b"-Infinity" => return push_header(out, 0, 0, NEGATIVE_INFINITY, 0),
        _ => {}
    }
    let (negative, digits) = sign(text);
    let (whole, fraction) = match digits.iter().position(|&byte| byte == b'.') {
        // A point without digits after it is not canonical.
        Some(at) => (&digits[..at], digits.get(at + 1..).filter(|rest| !rest.is_empty())?),
        None => (digits, &[][..]),
    };
    if whole.is_empty() || whole.len() > WHOLE_DIGITS_MAX || fraction.len() > DECIMALS_MAX {
        return None;
    }
    let (wholes, fractions) = (whole.len().div_ceil(4), fraction.len().div_ceil(4));
    let sign = if negative { NEGATIVE } else { POSITIVE };
    push_header(out, wholes + fractions, wholes - 1, sign, fraction.len())?;
    let (first, rest) = whole.split_at((whole.len() + 3) % 4 + 1);
    push_group(first, 4, out)?;
    for group in rest.chunks_exact(4) {
        push_group(group, 4, out)?;
    }
    for group in fraction.chunks(4) {
        push_group(group, group.len(), out)?;
    }
    Some(())
}

fn push_header(
    out: &mut Vec<u8>,
    groups: usize,
    weight: usize,
    sign: u16,
    decimals: usize,
) -> Option<()> {
    let mut header = [0; 8];
    header[..2].copy_from_slice(&u16::try_from(groups).ok()?.to_be_bytes());
    header[2..4].copy_from_slice(&i16::try_from(weight).ok()?.to_be_bytes());
    header[4..6].copy_from_slice(&sign.to_be_bytes());
    header[6..].copy_from_slice(&u16::try_from(decimals).ok()?.to_be_bytes());
    out.extend_from_slice(&header);
    Some(())
}

/// Appends up to four digits as one number; of a group that has only its first `places` digits,
/// the others are zero.
fn push_group(digits: &[u8], places: usize, out: &mut Vec<u8>) -> Option<()> {
    const SCALE: [u16; 5] = [0, 1000, 100, 10, 1];
    let mut group = 0;
    for &byte in digits {
        group = group * 10 + u16::from(digit(byte)?);
    }
    out.extend_from_slice(&(group * SCALE[places]).to_be_bytes());
    Some(())
}

/// Appends the text of a `numeric`; `None` if the bytes are none.
pub fn push_numeric_text(value: &[u8], out: &mut Vec<u8>) -> Option<()> {
    const GROUP_END: u64 = 10_000;
    let (&[a, b, c, d, e, f, g, h], groups) = value.split_first_chunk()?;
    let (count, weight) = (u16::from_be_bytes([a, b]), i16::from_be_bytes([c, d]));
    let (sign, decimals) = (u16::from_be_bytes([e, f]), u16::from_be_bytes([g, h]));
    let word: &[u8] = match sign {
        POSITIVE => b"",
        NEGATIVE => b"-",
        NAN => b"NaN",
        INFINITY => b"Infinity",
        NEGATIVE_INFINITY => b"-Infinity",
        _ => return None,
    };
    out.extend_from_slice(word);
    if !matches!(sign, POSITIVE | NEGATIVE) {
        return Some(());
    }
    let (groups, []) = groups.as_chunks::<2>() else { return None };
    let value_of = |group: &[u8; 2]| u64::from(u16::from_be_bytes(*group));
    let is_one = groups.len() == usize::from(count)
        && groups.iter().all(|group| value_of(group) < GROUP_END);
    // Of a power of ten thousand. Groups of zeros are left out at both ends.
    let weight = i32::from(weight);
    let group = |power: i32| {
        let place = usize::try_from(weight - power).ok();
        place.and_then(|place| groups.get(place)).map_or(0, value_of)
    };
    digits::push_unsigned(group(weight.max(0)), out);
    for power in (0..weight).rev() {
        digits::push_padded(group(power), 4, out);
    }
    if decimals > 0 {
        out.push(b'.');
        let end = out.len() + usize::from(decimals);
        for power in 1.. {
            if out.len() >= end {
                break;
            }
            digits::push_padded(group(-power), 4, out);
        }
        out.truncate(end);
    }
    is_one.then_some(())
}

/// Whether there is a minus, and what follows it.
pub fn sign(text: &[u8]) -> (bool, &[u8]) {
    match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    }
}

/// The value of a decimal digit.
pub fn digit(byte: u8) -> Option<u8> {
    let digit = byte.wrapping_sub(b'0');
    (digit < 10).then_some(digit)
}
