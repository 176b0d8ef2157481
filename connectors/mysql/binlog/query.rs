//! Reads QUERY events: the text of a statement, and what one must know to read it. Pure.
//!
//! Surprise: the text is in the character set of the client that sent the statement.

use std::borrow::Cow;

use super::compressed;
use crate::mysql::bytes::{Decoded, Malformed, Reader, utf8};
use crate::mysql::charset::Charset;

/// A statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query<'a> {
    /// The database in which names without one are looked up; empty if there is none.
    pub database: &'a str,
    /// The statement.
    pub text: Cow<'a, str>,
    /// Whether `"` quotes names, not texts (`ANSI_QUOTES`).
    pub ansi_quotes: bool,
    /// Whether `\` is a character like others (`NO_BACKSLASH_ESCAPES`).
    pub no_backslash: bool,
}

const ANSI_QUOTES: u64 = 4;
const NO_BACKSLASH_ESCAPES: u64 = 1 << 20;

impl<'a> Query<'a> {
    /// Reads the body of a QUERY event.
    ///
    /// # Errors
    /// If it is cut off, or its character set is unknown.
    pub fn read(body: &'a [u8]) -> Decoded<Query<'a>> {
        let (head, text) = Head::read(body)?;
        let charset = head.charset;
        Ok(head.query(decode(charset, text)?))
    }

    /// Reads the body of a QUERY_COMPRESSED event, of which only the text is compressed.
    ///
    /// # Errors
    /// As `read`; or if it cannot be expanded.
    pub fn read_compressed(body: &'a [u8]) -> Decoded<Query<'a>> {
        let (head, text) = Head::read(body)?;
        let text = compressed::expand(text)?;
        let text = decode(head.charset, &text)?.into_owned();
        Ok(head.query(Cow::Owned(text)))
    }
}

struct Head<'a> {
    database: &'a str,
    sql_mode: u64,
    /// The collation of the client.
    charset: Option<u16>,
}

impl<'a> Head<'a> {
    fn read(body: &'a [u8]) -> Decoded<(Head<'a>, &'a [u8])> {
        let mut reader = Reader::new(body);
        let _thread = reader.u32()?;
        let _seconds = reader.u32()?;
        let database_length = usize::from(reader.u8()?);
        let _error = reader.u16()?;
        let status_length = usize::from(reader.u16()?);
        let status = reader.take(status_length)?;
        let database = utf8(reader.take(database_length)?)?;
        if reader.u8()? != 0 {
            return Err(Malformed::new("a statement's database has no end"));
        }
        let (sql_mode, charset) = read_status(status)?;
        Ok((Head { database, sql_mode, charset }, reader.rest()))
    }

    fn query(self, text: Cow<'a, str>) -> Query<'a> {
        Query {
            database: self.database,
            text,
            ansi_quotes: self.sql_mode & ANSI_QUOTES != 0,
            no_backslash: self.sql_mode & NO_BACKSLASH_ESCAPES != 0,
        }
    }
}

/// SQL mode and client collation. They come first; what follows them is skipped, because some of
/// it has no length that one could know.
fn read_status(status: &[u8]) -> Decoded<(u64, Option<u16>)> {
    const FLAGS: u8 = 0;
    const SQL_MODE: u8 = 1;
    const CATALOG: u8 = 2;
    const AUTO_INCREMENT: u8 = 3;
    const CHARSET: u8 = 4;
    const TIME_ZONE: u8 = 5;
    const CATALOG_WITHOUT_END: u8 = 6;
    let mut reader = Reader::new(status);
    let mut sql_mode = 0;
    while !reader.is_empty() {
        match reader.u8()? {
            FLAGS | AUTO_INCREMENT => _ = reader.u32()?,
            SQL_MODE => sql_mode = reader.u64()?,
            CATALOG => {
                reader.short_bytes()?;
                reader.u8()?;
            }
            TIME_ZONE | CATALOG_WITHOUT_END => _ = reader.short_bytes()?,
            CHARSET => return Ok((sql_mode, Some(reader.u16()?))),
            _ => break,
        }
    }
    Ok((sql_mode, None))
}

fn decode(collation: Option<u16>, text: &[u8]) -> Decoded<Cow<'_, str>> {
    match collation.and_then(Charset::of_collation) {
        // Clients speak no other Unicode than UTF-8, and its collations are too many to list.
        None | Some(Charset::Utf8(_)) => match std::str::from_utf8(text) {
            Ok(text) => Ok(Cow::Borrowed(text)),
            // A text between quotes may hold any bytes, and means nothing to us.
            Err(_) => Ok(String::from_utf8_lossy(text)),
        },
        Some(charset) => match std::str::from_utf8(text) {
            Ok(ascii) if ascii.is_ascii() && charset != Charset::Swe7 => Ok(Cow::Borrowed(ascii)),
            _ => charset.utf8(text).map(Cow::Owned),
        },
    }
}
