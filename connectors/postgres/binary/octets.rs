//! Bytes, bits and what is made of them, in binary, of canonical text, and back.

use crate::hex::{self, pair};

/// The bytes of `a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11`.
pub fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    const PLACES: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
    let text: &[u8; 36] = text.try_into().ok()?;
    if [8, 13, 18, 23].iter().any(|&at: &usize| text[at] != b'-') {
        return None;
    }
    let (mut bytes, mut marks) = ([0; 16], 0);
    for (byte, at) in bytes.iter_mut().zip(PLACES) {
        let (value, mark) = pair(text[at], text[at + 1]);
        (*byte, marks) = (value, marks | mark);
    }
    (marks < 16).then_some(bytes)
}

/// Appends the bytes of `08:00:2b:01:02:03`.
pub fn push_hardware(text: &[u8], count: usize, out: &mut Vec<u8>) -> Option<()> {
    if text.len() != 3 * count - 1 {
        return None;
    }
    for (place, part) in text.chunks(3).enumerate() {
        let ends = if place + 1 < count { part[2] == b':' } else { part.len() == 2 };
        let (byte, mark) = pair(part[0], part[1]);
        out.push((ends && mark < 16).then_some(byte)?);
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

/// Appends the text of a hardware address.
pub fn push_hardware_text(bytes: &[u8], out: &mut Vec<u8>) {
    for (place, &byte) in bytes.iter().enumerate() {
        if place > 0 {
            out.push(b':');
        }
        out.extend_from_slice(&hex::digits(byte));
    }
}

/// Appends the text of bits.
pub fn push_bits_text(value: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (count, bytes) = value.split_first_chunk()?;
    let count = u32::from_be_bytes(*count) as usize;
    let bit = |place: usize| b'0' + (bytes[place / 8] >> (7 - place % 8) & 1);
    (bytes.len() == count.div_ceil(8)).then(|| out.extend((0..count).map(bit)))
}
