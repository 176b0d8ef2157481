//! Bytes as hexadecimal digits, and back. Pure; for every database that writes them so.

/// Not a digit.
const NONE: u8 = 0xff;

/// The value of each byte as a digit.
const DIGITS: [u8; 256] = {
    let mut digits = [NONE; 256];
    let mut value = 0;
    while value < 16 {
        digits[b"0123456789abcdef"[value] as usize] = value as u8;
        digits[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    digits
};

/// Appends bytes as digits.
pub fn push(bytes: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + bytes.len() * 2, 0);
    let (pairs, _) = out[start..].as_chunks_mut();
    pairs.iter_mut().zip(bytes).for_each(|(pair, &byte)| *pair = digits(byte));
}

/// The two digits of a byte.
#[inline]
#[must_use]
pub fn digits(byte: u8) -> [u8; 2] {
    [byte >> 4, byte & 15].map(|value| value + if value < 10 { b'0' } else { b'a' - 10 })
}

/// Appends `a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11`.
pub fn push_uuid(bytes: [u8; 16], out: &mut Vec<u8>) {
    let digits = bytes.map(digits);
    let digits = digits.as_flattened();
    let mut text = [b'-'; 36];
    text[..8].copy_from_slice(&digits[..8]);
    text[9..13].copy_from_slice(&digits[8..12]);
    text[14..18].copy_from_slice(&digits[12..16]);
    text[19..23].copy_from_slice(&digits[16..20]);
    text[24..].copy_from_slice(&digits[20..]);
    out.extend_from_slice(&text);
}

/// The byte of two digits, and a mark that is above 15 if one of them is none.
#[inline]
#[must_use]
pub fn pair(high: u8, low: u8) -> (u8, u8) {
    let (high, low) = (DIGITS[usize::from(high)], DIGITS[usize::from(low)]);
    (high << 4 | low, high | low)
}

/// Appends what digits stand for; `None` for anything else.
#[must_use]
pub fn push_bytes(digits: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let pairs = digits.chunks_exact(2);
    let mut marks = pairs.remainder().len() as u8 * NONE;
    out.extend(pairs.map(|two| {
        let (byte, mark) = pair(two[0], two[1]);
        marks |= mark;
        byte
    }));
    (marks < 16).then_some(())
}

/// What digits stand for; `None` for anything else.
#[must_use]
pub fn parse(digits: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(digits.len() / 2);
    push_bytes(digits.as_bytes(), &mut bytes).map(|()| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_read_back() {
        let mut text = Vec::new();
        push(&[0, 0x5c, 0xff], &mut text);
        assert_eq!(parse("005cff"), Some(vec![0, 0x5c, 0xff]));
        assert_eq!(text, b"005cff");
        assert_eq!(parse("0g"), None);
        assert_eq!(parse("0"), None);
    }
}
