//! Places in PostgreSQL's log, and the bookmark that the source hands out as its `Position`.
//!
//! Surprise: a bookmark has two places. `lsn` is where to resume (the end of the last commit),
//! `log` is what versions are made of (the start of its commit record).

use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};
use crate::version::Position;

/// A place in the write-ahead log, in bytes from its beginning; written `0/16B3748`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(into = "String", try_from = "String")]
pub struct Lsn(pub u64);

impl Lsn {
    /// As it is written, in this memory.
    fn text(self, memory: &mut [u8; Lsn::TEXT_MAX]) -> &str {
        let (mut at, halves) = (memory.len(), [self.0 & 0xffff_ffff, self.0 >> 32]);
        for (place, mut half) in halves.into_iter().enumerate() {
            if place > 0 {
                at -= 1;
                memory[at] = b'/';
            }
            loop {
                at -= 1;
                memory[at] = b"0123456789ABCDEF"[(half & 15) as usize];
                half >>= 4;
                if half == 0 {
                    break;
                }
            }
        }
        str::from_utf8(&memory[at..]).unwrap_or_default()
    }

    const TEXT_MAX: usize = 17;
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text(&mut [0; Lsn::TEXT_MAX]))
    }
}

impl FromStr for Lsn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Lsn> {
        let half = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten().map(u64::from)
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| Error::stop(Code::Protocol, format!("{text:?} is not an LSN")))
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> String {
        lsn.to_string()
    }
}

impl TryFrom<String> for Lsn {
    type Error = Error;

    fn try_from(text: String) -> Result<Lsn> {
        text.parse()
    }
}

/// Which log: a server and its timeline. Places of two logs cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogIdentity {
    /// The system identifier, decimal.
    pub system: String,
    /// The timeline.
    pub timeline: u32,
}

/// What a `Position` of this source says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bookmark {
    /// The log it is a place of.
    #[serde(flatten)]
    pub identity: LogIdentity,
    /// OID of the publication that it was reached with.
    pub publication: u32,
    /// Where to resume.
    pub lsn: Lsn,
    /// The log place of the version that was reached.
    pub log: Lsn,
}

impl Bookmark {
    /// The opaque form.
    #[must_use]
    pub fn position(&self) -> Position {
        let Bookmark { identity: LogIdentity { system, timeline }, publication, lsn, log } = self;
        // As serde writes it, but in one go, because every transaction has one; the system identifier
        // is digits only.
        let mut text = String::with_capacity(system.len() + 128);
        text += r#"{"system":""#;
        text += system;
        // Writing to memory cannot fail.
        let _ = write!(text, r#"","timeline":{timeline},"publication":{publication},"lsn":""#);
        text += lsn.text(&mut [0; Lsn::TEXT_MAX]);
        text += r#"","log":""#;
        text += log.text(&mut [0; Lsn::TEXT_MAX]);
        text += r#""}"#;
        Position(text)
    }

    /// Reads the opaque form.
    ///
    /// # Errors
    /// `source-identity` if it was not made by this connector.
    pub fn read(position: &Position) -> Result<Bookmark> {
        serde_json::from_str(&position.0).map_err(|error| {
            Error::stop(
                Code::SourceIdentity,
                format!("the position {position} is not one of a PostgreSQL source: {error}"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bookmark_reads_back(system: u64, timeline: u32, publication: u32, lsn: u64, log: u64) {
            let bookmark = Bookmark {
                identity: LogIdentity { system: system.to_string(), timeline },
                publication,
                lsn: Lsn(lsn),
                log: Lsn(log),
            };
            let position = bookmark.position();
            prop_assert_eq!(Bookmark::read(&position).unwrap(), bookmark.clone());
            let value: serde_json::Value = serde_json::from_str(&position.0).unwrap();
            prop_assert_eq!(value, serde_json::to_value(&bookmark).unwrap());
        }
    }

    #[test]
    fn an_lsn_is_two_hexadecimal_numbers() {
        assert_eq!("16/B374D848".parse::<Lsn>().unwrap(), Lsn(0x16_B374_D848));
        assert_eq!(Lsn(0x16_0000_000A).to_string(), "16/A");
        for text in ["", "0", "0/", "/0", "0/+1", "0/100000000", "0/1/2", "x/1"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }
}
