//! Bytes, bits and what is made of them, in binary, of canonical text.

/// Not a hexadecimal digit.
const NONE: u8 = 0xff;

/// The value of each byte as a hexadecimal digit.
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

fn pair(high: u8, low: u8) -> Option<u8> {
    let (high, low) = (DIGITS[usize::from(high)], DIGITS[usize::from(low)]);
    (high != NONE && low != NONE).then_some(high << 4 | low)
}

/// Appends what hexadecimal digits stand for.
pub fn push_hex(digits: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let pairs = digits.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    out.reserve(pairs.len());
    for two in pairs {
        out.push(pair(two[0], two[1])?);
    }
    Some(())
}

/// The bytes of `a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11`.
pub fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    const PLACES: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
    let text: &[u8; 36] = text.try_into().ok()?;
    if [8, 13, 18, 23].iter().any(|&at: &usize| text[at] != b'-') {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, at) in bytes.iter_mut().zip(PLACES) {
        *byte = pair(text[at], text[at + 1])?;
    }
    Some(bytes)
}

/// Appends the bytes of `08:00:2b:01:02:03`.
pub fn push_hardware(text: &[u8], count: usize, out: &mut Vec<u8>) -> Option<()> {
    if text.len() != 3 * count - 1 {
        return None;
    }
    for (place, part) in text.chunks(3).enumerate() {
        let ends = if place + 1 < count { part[2] == b':' } else { part.len() == 2 };
        out.push(ends.then(|| pair(part[0], part[1]))??);
    }
    Some(())
}

/// The one byte of a `"char"`. Others than ASCII have a text form that depends on the server's
/// version.
pub fn character(text: &[u8]) -> Option<[u8; 1]> {
    match text {
        [] => Some([0]),
        [byte] if byte.is_ascii() && *byte != 0 => Some([*byte]),
        _ => None,
    }
}

/// Appends the count of bits, then the bits, the first one highest.
pub fn push_bits(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.extend_from_slice(&i32::try_from(text.len()).ok()?.to_be_bytes());
    for part in text.chunks(8) {
        let mut byte = 0;
        for (place, bit) in part.iter().enumerate() {
            byte |= match bit {
                b'0' => 0,
                b'1' => 0x80 >> place,
                _ => return None,
            };
        }
        out.push(byte);
    }
    Some(())
}
