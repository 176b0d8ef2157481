//! `Version` decides who wins, `Position` says where to resume. They are different things:
//! versions of one pipeline are totally ordered; positions are opaque outside their connector.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The rank of a change. Of two changes to one key the one with the greater version wins.
///
/// Stored as 16 bytes big-endian, so that bytewise comparison (ours and the target's SQL) is the
/// order of the versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// Rises when the source's lineage changes and its log positions stop being comparable.
    pub epoch: u32,
    /// Place of the commit in the source's log. PostgreSQL: LSN of the commit record.
    pub log: u64,
    /// Index of the change in its transaction, from 1. A row read by a backfill has 0, so that
    /// every change of the commit that bounds it is newer.
    pub ordinal: u32,
}

impl Version {
    /// Older than every change.
    pub const ZERO: Version = Version { epoch: 0, log: 0, ordinal: 0 };
    /// Length of the stored form, in bytes.
    pub const LEN: usize = 16;

    /// The version that a backfilled row of this log place has, older than its changes.
    #[must_use]
    pub fn at_log(epoch: u32, log: u64) -> Version {
        Version { epoch, log, ordinal: 0 }
    }

    /// The same commit, at another change.
    #[must_use]
    pub fn with_ordinal(self, ordinal: u32) -> Version {
        Version { ordinal, ..self }
    }

    /// The stored form: epoch, log, ordinal, big-endian.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Version::LEN] {
        let mut bytes = [0; Version::LEN];
        bytes[..4].copy_from_slice(&self.epoch.to_be_bytes());
        bytes[4..12].copy_from_slice(&self.log.to_be_bytes());
        bytes[12..].copy_from_slice(&self.ordinal.to_be_bytes());
        bytes
    }

    /// Reads the stored form; `None` unless it is exactly 16 bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Version> {
        let bytes: &[u8; Version::LEN] = bytes.try_into().ok()?;
        let value = u128::from_be_bytes(*bytes);
        Some(Version {
            epoch: (value >> 96) as u32,
            log: (value >> 32) as u64,
            ordinal: value as u32,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:X}:{}", self.epoch, self.log, self.ordinal)
    }
}

/// The source's own bookmark: where to resume reading its log. Carries the identity of the
/// server it belongs to. Only the connector that made it can read it; all others store it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position(pub String);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_sort_as_versions_and_read_back(
            a in any::<(u32, u64, u32)>(), b in any::<(u32, u64, u32)>()
        ) {
            let a = Version { epoch: a.0, log: a.1, ordinal: a.2 };
            let b = Version { epoch: b.0, log: b.1, ordinal: b.2 };
            prop_assert_eq!(a.cmp(&b), a.to_bytes().cmp(&b.to_bytes()));
            prop_assert_eq!(Version::from_bytes(&a.to_bytes()), Some(a));
        }
    }
}
