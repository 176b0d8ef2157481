//! DECIMAL: from the binlog's packed digits, and from SQL's text, to one canonical text. Pure.
//!
//! Surprise: a negative number has all its bits inverted, and then the first one inverted again,
//! so that the bytes sort as the numbers.

use super::bytes::{Decoded, Malformed, Reader};
use crate::digits::{push_padded, push_unsigned};

/// Bytes that so many digits take, fewer than nine of them or nine.
const BYTES: [usize; 10] = [0, 1, 1, 2, 2, 3, 3, 4, 4, 4];
const GROUP: u8 = 9;
/// The most digits that a DECIMAL has.
const PRECISION_MAX: u8 = 65;
const BYTES_MAX: usize = 32;
/// The first number that has more than so many digits.
const BEYOND: [u64; 10] =
    [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000];

/// How many bytes a number of this type takes.
///
/// # Errors
/// If there is no such type.
pub fn length(precision: u8, scale: u8) -> Decoded<usize> {
    if precision == 0 || precision > PRECISION_MAX || scale > precision {
        return Err(Malformed::new("a DECIMAL has impossible digits"));
    }
    let side = |digits: u8| usize::from(digits / GROUP) * 4 + BYTES[usize::from(digits % GROUP)];
    Ok(side(precision - scale) + side(scale))
}

/// Reads a number and appends it; digits after the point are kept, also zeros.
///
/// # Errors
/// If it is cut off, or holds what are no digits.
pub fn push(reader: &mut Reader<'_>, precision: u8, scale: u8, out: &mut Vec<u8>) -> Decoded<()> {
    push_packed(reader.take(length(precision, scale)?)?, precision, scale, out)
}

/// Appends a number of which the bytes are there already, as many as `length` says.
///
/// # Errors
/// If it holds what are no digits.
pub fn push_packed(packed: &[u8], precision: u8, scale: u8, out: &mut Vec<u8>) -> Decoded<()> {
    // Eight more than there can be, so that every number is read out of eight.
    let mut bytes = [0; BYTES_MAX + 8];
    let negative = packed.first().is_some_and(|first| first & 0x80 == 0);
    let mask = if negative { 0xff } else { 0 };
    bytes.iter_mut().zip(packed).for_each(|(byte, packed)| *byte = packed ^ mask);
    bytes[0] ^= 0x80;
    let start = out.len();
    if negative {
        out.push(b'-');
    }
    let mut digits = Reader::new(&bytes);
    push_whole(&mut digits, precision - scale, out)?;
    if scale > 0 {
        out.push(b'.');
        for _ in 0..scale / GROUP {
            push_padded(group(&mut digits, GROUP)?, usize::from(GROUP), out);
        }
        if !scale.is_multiple_of(GROUP) {
            let count = scale % GROUP;
            push_padded(group(&mut digits, count)?, usize::from(count), out);
        }
    }
    drop_sign_of_zero(start, out);
    Ok(())
}

fn push_whole(digits: &mut Reader<'_>, count: u8, out: &mut Vec<u8>) -> Decoded<()> {
    let start = out.len();
    for place in 0..=count / GROUP {
        // The first has the digits that are left over, maybe none.
        let number = group(digits, if place == 0 { count % GROUP } else { GROUP })?;
        match out.len() > start {
            true => push_padded(number, usize::from(GROUP), out),
            false if number > 0 => push_unsigned(number, out),
            false => {}
        }
    }
    if out.len() == start {
        out.push(b'0');
    }
    Ok(())
}

/// The number that the next digits are, so many of them.
#[inline]
fn group(digits: &mut Reader<'_>, count: u8) -> Decoded<u64> {
    let number = digits.big_endian(BYTES[usize::from(count)])?;
    match number < BEYOND[usize::from(count)] {
        true => Ok(number),
        false => Err(Malformed::new("a DECIMAL has a digit above nine")),
    }
}

/// Zero has no sign.
fn drop_sign_of_zero(start: usize, out: &mut Vec<u8>) {
    let is_zero = |byte: &u8| matches!(byte, b'0' | b'.');
    if out.get(start) == Some(&b'-') && out[start + 1..].iter().all(is_zero) {
        out.remove(start);
    }
}

/// Appends what the server prints, without the zeros that ZEROFILL puts in front.
///
/// # Errors
/// If it is no number.
pub fn push_text(text: &[u8], out: &mut Vec<u8>) -> Decoded<()> {
    let (sign, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (&b"-"[..], digits),
        None => (&b""[..], text),
    };
    let plain = |byte: &u8| byte.is_ascii_digit() || *byte == b'.';
    if digits.is_empty() || !digits.iter().all(plain) {
        return Err(Malformed::new("a DECIMAL is no number"));
    }
    let whole = digits.iter().position(|&byte| byte == b'.').unwrap_or(digits.len());
    let zeros = digits[..whole].iter().take_while(|&&digit| digit == b'0').count();
    let start = out.len();
    out.extend_from_slice(sign);
    if zeros == whole {
        out.push(b'0');
    }
    out.extend_from_slice(&digits[zeros..]);
    drop_sign_of_zero(start, out);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(precision: u8, scale: u8, bytes: &[u8], expected: &str) {
        let mut out = Vec::new();
        let mut reader = Reader::new(bytes);
        push(&mut reader, precision, scale, &mut out).unwrap();
        assert!(reader.is_empty());
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn packed_digits_are_read() {
        // The example of the server's own source code.
        let bytes = [0x81, 0x0d, 0xfb, 0x38, 0xd2, 0x04, 0xd2];
        check(14, 4, &bytes, "1234567890.1234");
        let negative: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
        check(14, 4, &negative, "-1234567890.1234");
        check(3, 2, &[0x80, 0x05], "0.05");
        check(2, 2, &[0x85], "0.05");
        check(1, 0, &[0x7f], "0");
        // The groups of nine digits that are zero.
        check(20, 0, &[0x80, 0, 0, 0, 0, 0, 0, 0, 5], "5");
        check(20, 0, &[0x80, 0, 0, 0, 1, 0, 0, 0, 5], "1000000005");
        check(20, 10, &[0x80, 0, 0, 0, 1, 0, 0, 0, 5, 0], "1.0000000050");
    }

    fn check_text(text: &str, expected: &str) {
        let mut out = Vec::new();
        push_text(text.as_bytes(), &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn zerofill_is_not_part_of_the_number() {
        check_text("0000001.50", "1.50");
        check_text("00.00", "0.00");
        check_text("-0.00", "0.00");
        check_text("-12", "-12");
        check_text("0", "0");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_number_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..40), precision: u8, scale: u8
        ) {
            let mut out = Vec::new();
            if push(&mut Reader::new(&bytes), precision, scale, &mut out).is_ok() {
                let mut again = Vec::new();
                push_text(&out, &mut again).unwrap();
                prop_assert_eq!(out, again);
            }
        }
    }
}
