//! Expands the bodies of MariaDB's compressed events. Pure.

use std::io::Read as _;

use flate2::read::ZlibDecoder;

use super::Operation;
use crate::mysql::bytes::{Decoded, Malformed, Reader};

/// An event has at most this many bytes.
const EXPANDED_MAX: u64 = 1 << 32;

/// The body of a compressed rows event as that of a plain one: how many columns it has and which
/// of them are there stands before what is compressed.
///
/// # Errors
/// If the rows cannot be expanded to exactly the length that they claim.
pub fn expand_rows(operation: Operation, body: &[u8]) -> Decoded<Vec<u8>> {
    let mut reader = Reader::new(body);
    let columns = reader.length_encoded()?;
    let bitmap = usize::try_from(columns.div_ceil(8))
        .map_err(|_| Malformed::new("a row has too many columns"))?;
    reader.take(bitmap)?;
    if operation == Operation::Update {
        reader.take(bitmap)?;
    }
    let head = &body[..body.len() - reader.rest().len()];
    let mut expanded = expand(reader.rest())?;
    expanded.splice(..0, head.iter().copied());
    Ok(expanded)
}

/// Expands what begins with a header of its own: method and length of the length, then the
/// length, the high byte first, then the compressed bytes.
///
/// # Errors
/// If it cannot be expanded to exactly the length that it claims.
pub fn expand(bytes: &[u8]) -> Decoded<Vec<u8>> {
    let wrong = || Malformed::new("a compressed event cannot be expanded");
    let mut reader = Reader::new(bytes);
    let head = reader.u8()?;
    // The high bit is always set; the next three are the method, of which zlib is the only one.
    if head & 0xf8 != 0x80 || !(1..=4).contains(&(head & 7)) {
        return Err(wrong());
    }
    let length = reader.big_endian(usize::from(head & 7))?;
    if length > EXPANDED_MAX {
        return Err(wrong());
    }
    // A length that lies must not take memory that is not needed.
    let mut expanded = Vec::with_capacity((length as usize).min(1 << 20));
    let read = ZlibDecoder::new(reader.rest()).take(length + 1).read_to_end(&mut expanded);
    match read {
        Ok(read) if read as u64 == length => Ok(expanded),
        _ => Err(wrong()),
    }
}
