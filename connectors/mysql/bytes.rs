//! A cursor over bytes that a server sent. Everything that decodes reads through it, so a length
//! that lies is an error in one place and a panic in none.

use std::fmt;

use crate::error::{Code, Error};

/// What is wrong with bytes that were not understood; never holds a value of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

/// Result of decoding.
pub type Decoded<T> = std::result::Result<T, Malformed>;

impl Malformed {
    /// What is wrong, in a few words.
    pub fn new(what: impl Into<String>) -> Malformed {
        Malformed(what.into())
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Error {
        Error::stop(Code::Protocol, format!("the binary log makes no sense: {malformed}"))
    }
}

/// Reads from the front of a slice.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Begins at the front of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// What has not been read.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether all has been read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next bytes.
    ///
    /// # Errors
    /// If there are fewer.
    #[inline]
    pub fn take(&mut self, length: usize) -> Decoded<&'a [u8]> {
        match self.rest.split_at_checked(length) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(short()),
        }
    }

    /// The next bytes, of which there are a number known when this is compiled.
    ///
    /// # Errors
    /// If there are fewer.
    #[inline]
    pub fn array<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        match self.rest.split_first_chunk::<N>() {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(*taken)
            }
            None => Err(short()),
        }
    }

    /// One byte.
    ///
    /// # Errors
    /// At the end.
    pub fn u8(&mut self) -> Decoded<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Two bytes, the low one first.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn u16(&mut self) -> Decoded<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes, the low one first.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn u32(&mut self) -> Decoded<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes, the low one first.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn u64(&mut self) -> Decoded<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Up to eight bytes as a number, the low one first.
    ///
    /// # Errors
    /// If there are fewer.
    #[inline]
    pub fn little_endian(&mut self, length: usize) -> Decoded<u64> {
        let rest = self.rest;
        let bytes = self.take(length)?;
        Ok(match (rest.first_chunk(), unused_bits(length)) {
            (Some(eight), Some(unused)) => u64::from_le_bytes(*eight) << unused >> unused,
            _ => bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)),
        })
    }

    /// Up to eight bytes as a number, the high one first.
    ///
    /// # Errors
    /// If there are fewer.
    #[inline]
    pub fn big_endian(&mut self, length: usize) -> Decoded<u64> {
        let rest = self.rest;
        let bytes = self.take(length)?;
        Ok(match (rest.first_chunk(), unused_bits(length)) {
            (Some(eight), Some(unused)) => u64::from_be_bytes(*eight) >> unused,
            _ => bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)),
        })
    }

    /// A number in MySQL's length-encoded form.
    ///
    /// # Errors
    /// If it is cut off, or is none.
    pub fn length_encoded(&mut self) -> Decoded<u64> {
        match self.u8()? {
            small @ 0..=250 => Ok(u64::from(small)),
            252 => self.little_endian(2),
            253 => self.little_endian(3),
            254 => self.u64(),
            251 | 255 => Err(Malformed::new("a length is none")),
        }
    }

    /// As many bytes as the length-encoded number before them says.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn length_encoded_bytes(&mut self) -> Decoded<&'a [u8]> {
        let length = self.length_encoded()?;
        self.take(usize::try_from(length).map_err(|_| short())?)
    }

    /// Bytes after a length of one byte.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn short_bytes(&mut self) -> Decoded<&'a [u8]> {
        let length = self.u8()?;
        self.take(usize::from(length))
    }

    /// Says that nothing may be left.
    ///
    /// # Errors
    /// If something is.
    pub fn end(&self) -> Decoded<()> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(Malformed(format!("{left} bytes are left over"))),
        }
    }
}

/// How many bits of eight bytes a number of one to eight bytes leaves unused. Where eight bytes can
/// be read, the number is cut out of them, which is cheaper than to read it byte by byte.
fn unused_bits(length: usize) -> Option<u32> {
    matches!(length, 1..=8).then_some(64 - 8 * length as u32)
}

fn short() -> Malformed {
    Malformed::new("it ends too early")
}

/// Bytes that must be UTF-8, such as names of tables and files.
///
/// # Errors
/// If they are not.
pub fn utf8(bytes: &[u8]) -> Decoded<&str> {
    std::str::from_utf8(bytes).map_err(|_| Malformed::new("a name is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_length_are_read() {
        let mut reader = Reader::new(&[1, 2, 0, 3, 0, 0, 0, 0x12, 0x34, 0x56, 0x12, 0x34]);
        assert_eq!(reader.u8(), Ok(1));
        assert_eq!(reader.u16(), Ok(2));
        assert_eq!(reader.u32(), Ok(3));
        assert_eq!(reader.little_endian(3), Ok(0x56_34_12));
        assert_eq!(reader.big_endian(2), Ok(0x12_34));
        assert!(reader.end().is_ok());
        assert!(reader.u8().is_err());
    }

    #[test]
    fn a_number_is_the_same_with_bytes_behind_it_and_without() {
        let bytes = [0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10, 0xff, 0xff];
        for length in 0..=8 {
            let (whole, cut) = (Reader::new(&bytes), Reader::new(&bytes[..length]));
            let little = |mut reader: Reader<'_>| reader.little_endian(length);
            let big = |mut reader: Reader<'_>| reader.big_endian(length);
            assert_eq!(little(whole), little(cut));
            assert_eq!(big(whole), big(cut));
        }
        assert_eq!(Reader::new(&bytes).little_endian(3), Ok(0xba_dcfe));
        assert_eq!(Reader::new(&bytes).big_endian(3), Ok(0xfe_dcba));
        assert_eq!(Reader::new(&bytes).big_endian(8), Ok(0xfedc_ba98_7654_3210));
    }

    #[test]
    fn a_length_that_lies_is_an_error() {
        for bytes in [&[5, 1, 2][..], &[251], &[255], &[252, 1], &[254; 9], &[]] {
            assert!(Reader::new(bytes).length_encoded_bytes().is_err(), "{bytes:?}");
        }
        assert_eq!(Reader::new(&[252, 2, 0, 7, 8]).length_encoded_bytes(), Ok(&[7, 8][..]));
    }
}
