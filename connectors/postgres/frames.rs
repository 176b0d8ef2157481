//! Messages of the server as they lie in a buffer, one behind the other: a letter, a length that
//! counts itself, a body. Pure; filled by `wire.rs`.

use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::Header;

use crate::error::{Code, Error, Result};

/// The letter and the length.
const HEADER_BYTES: usize = 5;
// The server allocates no message beyond 1 GiB; a longer one is garbage.
const BYTES_MAX: usize = 1 << 30;

/// Whole messages of one kind.
#[derive(Debug)]
pub struct Frames(BytesMut);

impl Frames {
    /// Takes those out of a buffer that are whole and stand before any other.
    ///
    /// # Errors
    /// `protocol` if one cannot be a message.
    pub fn take(buffer: &mut BytesMut, tag: u8) -> Result<Frames> {
        let mut end = 0;
        while buffer.get(end) == Some(&tag)
            && let Some(length) = length(&buffer[end..])?
        {
            end += length;
        }
        Ok(Frames(buffer.split_to(end)))
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The body of the first one; `None` if there is none.
    ///
    /// # Errors
    /// `protocol`.
    pub fn first(&self) -> Result<Option<&[u8]>> {
        Ok(first(&self.0)?.map(|(_, body)| body))
    }

    /// Steps over the first one.
    pub fn skip(&mut self) {
        skip(&mut self.0);
    }
}

/// The length of the message at the beginning, once it is there as a whole.
///
/// # Errors
/// `protocol` if it cannot be a message.
pub fn length(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(header) = Header::parse(bytes).map_err(malformed)? else { return Ok(None) };
    let length = usize::try_from(header.len()).unwrap_or(usize::MAX).saturating_add(1);
    if length > BYTES_MAX {
        return Err(broken_protocol("a message of more than 1 GiB"));
    }
    Ok((bytes.len() >= length).then_some(length))
}

/// The letter and the body of the message at the beginning, once it is there as a whole.
///
/// # Errors
/// `protocol` if it cannot be a message.
pub fn first(bytes: &[u8]) -> Result<Option<(u8, &[u8])>> {
    Ok(length(bytes)?.map(|length| (bytes[0], &bytes[HEADER_BYTES..length])))
}

/// Steps over it.
pub fn skip(buffer: &mut BytesMut) {
    if let Ok(Some(length)) = length(buffer) {
        buffer.advance(length);
    }
}

/// A message that is none.
pub fn malformed(error: std::io::Error) -> Error {
    broken_protocol(error)
}

/// The server says what it must not say.
pub fn broken_protocol(what: impl std::fmt::Display) -> Error {
    Error::stop(Code::Protocol, format!("the source does not speak the protocol: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_messages_of_one_kind_are_taken_and_the_rest_stays() {
        let mut buffer = BytesMut::from(&b"d\0\0\0\x06abd\0\0\0\x04c\0\0\0\x04d\0\0\0\x05x"[..]);
        let mut frames = Frames::take(&mut buffer, b'd').unwrap();
        assert_eq!(frames.first().unwrap(), Some(&b"ab"[..]));
        frames.skip();
        assert_eq!((frames.first().unwrap(), frames.len()), (Some(&b""[..]), 5));
        frames.skip();
        assert_eq!((frames.first().unwrap(), frames.len()), (None, 0));
        assert_eq!(Frames::take(&mut buffer, b'd').unwrap().len(), 0, "another one is first");
        buffer.advance(5);
        buffer.truncate(5);
        assert_eq!(Frames::take(&mut buffer, b'd').unwrap().len(), 0, "it is half a message");
        assert_eq!(&buffer[..], b"d\0\0\0\x05");
    }
}
