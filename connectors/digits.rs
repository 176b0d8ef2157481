//! Numbers as decimal digits, for every database that hands them out in binary. Pure. Nothing here
//! allocates: most values of a table pass through.

/// Appends a number.
pub fn push_unsigned(number: u64, out: &mut Vec<u8>) {
    match number {
        0..=9 => out.push(b'0' + number as u8),
        _ => push_padded(number, 1, out),
    }
}

/// Appends a number with its sign.
pub fn push_signed(number: i64, out: &mut Vec<u8>) {
    if number < 0 {
        out.push(b'-');
    }
    push_unsigned(number.unsigned_abs(), out);
}

/// Appends a number with zeros in front of it up to this many digits.
pub fn push_padded(number: u64, digits_min: usize, out: &mut Vec<u8>) {
    let mut digits = [b'0'; 20];
    let (mut at, mut left) = (digits.len(), number);
    while left >= 10 {
        at -= 2;
        digits[at..at + 2].copy_from_slice(&two_digits((left % 100) as u8));
        left /= 100;
    }
    if left > 0 {
        at -= 1;
        digits[at] = b'0' + left as u8;
    }
    out.extend_from_slice(&digits[at.min(digits.len() - digits_min)..]);
}

/// The digits of a number below 100.
#[must_use]
pub fn two_digits(number: u8) -> [u8; 2] {
    [b'0' + number / 10, b'0' + number % 10]
}

/// Appends a time of day, or a length of time: `13:59:59.5`. Hours have two digits or more.
pub fn push_clock(hours: u64, minutes: u8, seconds: u8, micros: u32, out: &mut Vec<u8>) {
    match hours {
        0..=99 => out.extend_from_slice(&two_digits(hours as u8)),
        _ => push_unsigned(hours, out),
    }
    let mut text = *b":00:00";
    text[1..3].copy_from_slice(&two_digits(minutes));
    text[4..].copy_from_slice(&two_digits(seconds));
    out.extend_from_slice(&text);
    if micros > 0 {
        out.push(b'.');
        push_padded(u64::from(micros), 6, out);
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pushed;

    #[test]
    fn numbers_are_appended() {
        assert_eq!(pushed(|out| push_unsigned(u64::MAX, out)), "18446744073709551615");
        assert_eq!(pushed(|out| push_unsigned(0, out)), "0");
        assert_eq!(pushed(|out| push_signed(i64::MIN, out)), "-9223372036854775808");
        assert_eq!(pushed(|out| push_padded(7, 3, out)), "007");
        assert_eq!(pushed(|out| push_padded(1005, 3, out)), "1005");
    }

    #[test]
    fn fractions_of_seconds_lose_their_zeros() {
        assert_eq!(pushed(|out| push_clock(1, 2, 3, 400_000, out)), "01:02:03.4");
        assert_eq!(pushed(|out| push_clock(1, 2, 3, 0, out)), "01:02:03");
        assert_eq!(pushed(|out| push_clock(838, 59, 59, 7, out)), "838:59:59.000007");
    }
}
