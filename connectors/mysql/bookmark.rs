//! The place in the log where a pipeline resumes: what a `Position` of this source says. Pure.
//!
//! Surprise: it has two places, because neither is enough. The GTIDs survive a change of server;
//! file and offset order transactions (versions are made of them), and are all there is where
//! GTIDs are off.

use serde::{Deserialize, Serialize};

use super::gtid::{MariadbGtid, MariadbPosition, MysqlSet, Uuid};
use crate::error::{Code, Error, Result};
use crate::version::{Position, Version};

/// Which of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flavor {
    /// MySQL.
    Mysql,
    /// MariaDB.
    Mariadb,
}

/// A place in the binary log of one server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The file's name: `binlog.000002`.
    pub file: String,
    /// Bytes from its beginning; more than four billion in a file with a huge transaction.
    pub offset: u64,
}

/// Where the first event of every file begins, after four magic bytes.
pub const FIRST_OFFSET: u64 = 4;
const OFFSET_BITS: u32 = 40;
const FILE_NUMBER_MAX: u64 = (1 << (64 - OFFSET_BITS)) - 1;

impl Place {
    /// A place.
    pub fn new(file: impl Into<String>, offset: u64) -> Place {
        Place { file: file.into(), offset }
    }

    /// The `log` of a version: the file's number, then the offset.
    ///
    /// # Errors
    /// `protocol`, if the file's name ends in no number, or a number is too large.
    pub fn log(&self) -> Result<u64> {
        log(&self.file, self.offset)
    }
}

/// The `log` of the version of an offset in a file.
///
/// # Errors
/// As `Place::log`.
pub fn log(file: &str, offset: u64) -> Result<u64> {
    let number = file_number(file)?;
    if offset >> OFFSET_BITS != 0 {
        let what = format!("offset {offset} of binary log {file} is too large for a version");
        return Err(Error::stop(Code::Protocol, what));
    }
    Ok(number << OFFSET_BITS | offset)
}

/// The number of a binary log's file: 2 of `binlog.000002`.
///
/// # Errors
/// `protocol`, if there is none or it is too large.
pub fn file_number(file: &str) -> Result<u64> {
    let digits = file.rsplit_once('.').map_or("", |(_, digits)| digits);
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = plain.then(|| digits.parse::<u64>().ok()).flatten();
    number.filter(|&number| number <= FILE_NUMBER_MAX).ok_or_else(|| {
        Error::stop(
            Code::Protocol,
            format!(
                "the binary log's name {file:?} does not end in a number up to {FILE_NUMBER_MAX}"
            ),
        )
    })
}

/// Which transactions were read, in the server's own form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gtids {
    /// MariaDB: the last transaction of each domain.
    Mariadb(MariadbPosition),
    /// MySQL: the set of all; empty where GTIDs are off.
    Mysql(MysqlSet),
}

impl Gtids {
    /// None yet.
    #[must_use]
    pub fn none(flavor: Flavor) -> Gtids {
        match flavor {
            Flavor::Mariadb => Gtids::Mariadb(MariadbPosition::default()),
            Flavor::Mysql => Gtids::Mysql(MysqlSet::default()),
        }
    }

    /// Reads what the server prints.
    ///
    /// # Errors
    /// `protocol`, if it is not understood.
    pub fn parse(flavor: Flavor, text: &str) -> Result<Gtids> {
        Ok(match flavor {
            Flavor::Mariadb => Gtids::Mariadb(text.parse()?),
            Flavor::Mysql => Gtids::Mysql(text.parse()?),
        })
    }

    /// The server whose form it is.
    #[must_use]
    pub fn flavor(&self) -> Flavor {
        match self {
            Gtids::Mariadb(_) => Flavor::Mariadb,
            Gtids::Mysql(_) => Flavor::Mysql,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Gtids::Mariadb(position) => position.is_empty(),
            Gtids::Mysql(set) => set.is_empty(),
        }
    }

    /// A transaction of MariaDB was read.
    ///
    /// # Errors
    /// `protocol` from a MySQL.
    pub fn add_mariadb(&mut self, gtid: MariadbGtid) -> Result<()> {
        match self {
            Gtids::Mariadb(position) => {
                position.add(gtid);
                Ok(())
            }
            Gtids::Mysql(_) => Err(other_server()),
        }
    }

    /// A transaction of MySQL was read.
    ///
    /// # Errors
    /// `protocol` from a MariaDB.
    pub fn add_mysql(&mut self, uuid: &Uuid, number: u64) -> Result<()> {
        match self {
            Gtids::Mysql(set) => {
                set.add(uuid, number);
                Ok(())
            }
            Gtids::Mariadb(_) => Err(other_server()),
        }
    }
}

fn other_server() -> Error {
    Error::stop(Code::Protocol, "the binary log has a GTID of the other kind of server")
}

impl std::fmt::Display for Gtids {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Gtids::Mariadb(position) => position.fmt(f),
            Gtids::Mysql(set) => set.fmt(f),
        }
    }
}

/// What a `Position` of this source says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Stored", try_from = "Stored")]
pub struct Bookmark {
    /// Who wrote the log: MySQL's `server_uuid`, MariaDB's `server_id`.
    pub server: String,
    /// Where to resume: the end of the last transaction that was read.
    pub place: Place,
    /// The transactions up to there.
    pub gtids: Gtids,
    /// The end of what was delivered, where that is further: from `place` to here the log is only
    /// read again for the XA transactions that were prepared there and are not decided.
    pub delivered: Option<Place>,
    /// When the file was begun, in seconds since 1970, once the log has said so. A log that was reset
    /// and filled again may come to the same place and the same GTIDs.
    pub begun: Option<u32>,
}

/// The form of a bookmark in a `Position`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    flavor: Flavor,
    server: String,
    file: String,
    offset: u64,
    gtid: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delivered: Option<Place>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    begun: Option<u32>,
}

impl From<Bookmark> for Stored {
    fn from(bookmark: Bookmark) -> Stored {
        Stored {
            flavor: bookmark.gtids.flavor(),
            server: bookmark.server,
            file: bookmark.place.file,
            offset: bookmark.place.offset,
            gtid: bookmark.gtids.to_string(),
            delivered: bookmark.delivered,
            begun: bookmark.begun,
        }
    }
}

impl TryFrom<Stored> for Bookmark {
    type Error = Error;

    fn try_from(stored: Stored) -> Result<Bookmark> {
        let gtids = Gtids::parse(stored.flavor, &stored.gtid)?;
        Ok(Bookmark {
            server: stored.server,
            place: Place::new(stored.file, stored.offset),
            gtids,
            delivered: stored.delivered,
            begun: stored.begun,
        })
    }
}

impl Bookmark {
    /// The opaque form.
    #[must_use]
    pub fn position(&self) -> Position {
        // A struct of strings and numbers is always JSON.
        Position(serde_json::to_string(self).unwrap_or_default())
    }

    /// Reads the opaque form.
    ///
    /// # Errors
    /// `source-identity` if it was not made by this connector.
    pub fn read(position: &Position) -> Result<Bookmark> {
        serde_json::from_str(&position.0).map_err(|error| {
            Error::stop(
                Code::SourceIdentity,
                format!("the position {position} is not one of a MySQL source: {error}"),
            )
        })
    }

    /// How far changes have been delivered.
    #[must_use]
    pub fn end(&self) -> &Place {
        self.delivered.as_ref().unwrap_or(&self.place)
    }

    /// The version of this place, older than every transaction that is still to be delivered.
    ///
    /// # Errors
    /// `protocol`, as `Place::log`.
    pub fn version(&self, epoch: u32) -> Result<Version> {
        Ok(Version::at_log(epoch, self.end().log()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bookmark_reads_back(server in ".{0,9}", number: u32, offset: u64, sequence: u64) {
            let mut gtids = Gtids::none(Flavor::Mariadb);
            gtids.add_mariadb(MariadbGtid { domain: number, server: 7, sequence }).unwrap();
            let place = Place::new(format!("binlog.{number:06}"), offset);
            let delivered = (offset % 2 == 0).then(|| Place::new("binlog.7", offset));
            let begun = (offset % 3 == 0).then_some(number);
            let bookmark = Bookmark { server, place, gtids, delivered, begun };
            prop_assert_eq!(Bookmark::read(&bookmark.position()).unwrap(), bookmark);
        }
    }

    #[test]
    fn the_form_of_a_position_stays() {
        let text = r#"{"flavor":"mysql","server":"s","file":"b.000002","offset":157,"gtid":""}"#;
        let bookmark = Bookmark::read(&Position(text.into())).unwrap();
        assert_eq!(bookmark.position().0, text);
        assert_eq!(bookmark.version(3).unwrap().to_string(), "3:2000000009D:0");
        let other = Position(r#"{"system":"7","timeline":1}"#.into());
        assert_eq!(Bookmark::read(&other).unwrap_err().code, Code::SourceIdentity);
    }

    #[test]
    fn places_are_ordered_by_file_number_then_offset() {
        let log = |file: &str, offset| Place::new(file, offset).log().unwrap();
        assert!(log("b.999999", 1 << 35) < log("b.1000000", 4));
        assert!(log("b.000001", 4) < log("b.000001", 5_000_000_000));
        for (file, offset) in [("binlog", 4), ("b.x", 4), ("b.16777216", 4), ("b.1", 1 << 40)] {
            assert!(Place::new(file, offset).log().is_err(), "{file} {offset}");
        }
    }
}
