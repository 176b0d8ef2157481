//! How a record is written: magic, format version, kind, payload, checksum. Used for the records
//! in the database and for the small files beside it.
//!
//! Surprise: the frame around the payload never changes, in any later version, so that an older
//! program can tell "newer than I am" (stop, touch nothing) from "damaged" (move aside).

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, ErrorKind, Result};

/// The version of everything that this program writes. Raise it with any change of a payload.
pub(crate) const VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"drft";
const HEADER_LENGTH: usize = MAGIC.len() + size_of::<u16>() + size_of::<u8>();
const CHECKSUM_LENGTH: usize = size_of::<u32>();

/// What a record holds, so that one cannot be taken for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Who made the store, for whom.
    Instance = 1,
    /// How many writes the database has taken.
    Writes = 2,
    /// How many writes were acknowledged.
    Witness = 3,
    /// A checkpoint.
    Checkpoint = 4,
    /// A backfill that is not finished.
    Task = 5,
    /// The shapes that tables had before.
    Shapes = 6,
}

/// Writes one record.
pub(crate) fn encode<T: Serialize>(kind: Kind, payload: &T) -> Result<Vec<u8>> {
    encode_version(VERSION, kind, payload)
}

fn encode_version<T: Serialize>(version: u16, kind: Kind, payload: &T) -> Result<Vec<u8>> {
    let mut record = MAGIC.to_vec();
    record.extend(version.to_be_bytes());
    record.push(kind as u8);
    let payload = postcard::to_allocvec(payload)
        .map_err(|error| Error::corrupt(format!("write a {kind:?} record: {error}")))?;
    record.extend(payload);
    record.extend(crc32fast::hash(&record).to_be_bytes());
    Ok(record)
}

/// Reads one record of this kind; every byte must be accounted for.
pub(crate) fn decode<T: DeserializeOwned>(kind: Kind, record: &[u8]) -> Result<T> {
    let damaged = |what: &str| Error::corrupt(format!("a {kind:?} record {what}"));
    if record.len() < HEADER_LENGTH + CHECKSUM_LENGTH {
        return Err(damaged("is too short"));
    }
    let (framed, checksum) = record.split_at(record.len() - CHECKSUM_LENGTH);
    // First the checksum: a damaged version number must not look like a newer program's.
    if crc32fast::hash(framed).to_be_bytes() != checksum {
        return Err(damaged("has a wrong checksum"));
    }
    let (header, payload) = framed.split_at(HEADER_LENGTH);
    let (magic, rest) = header.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(damaged("is not one of ours"));
    }
    let version = u16::from_be_bytes([rest[0], rest[1]]);
    if version > VERSION {
        return Err(Error::new(
            ErrorKind::Version,
            format!(
                "the state has format version {version}, and this program knows {VERSION}; \
                 run the version of driftless that wrote it, or a newer one"
            ),
        ));
    }
    if version != VERSION || rest[2] != kind as u8 {
        return Err(damaged("is of another kind or version"));
    }
    match postcard::take_from_bytes(payload) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(damaged("is too long")),
        Err(_) => Err(damaged("cannot be decoded")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A valid record of a version that does not exist yet.
    pub(crate) fn encode_from_the_future<T: Serialize>(kind: Kind, payload: &T) -> Vec<u8> {
        encode_version(VERSION + 1, kind, payload).unwrap()
    }

    #[test]
    fn a_record_of_a_newer_version_is_told_from_a_damaged_one() {
        let record = encode_from_the_future(Kind::Task, &7_u64);
        assert_eq!(decode::<u64>(Kind::Task, &record).unwrap_err().kind, ErrorKind::Version);
    }

    #[test]
    fn a_record_of_another_kind_is_refused() {
        let record = encode(Kind::Task, &7_u64).unwrap();
        assert_eq!(decode::<u64>(Kind::Witness, &record).unwrap_err().kind, ErrorKind::Corrupt);
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(payload: Vec<u8>) {
            let record = encode(Kind::Checkpoint, &payload).unwrap();
            prop_assert_eq!(decode::<Vec<u8>>(Kind::Checkpoint, &record).unwrap(), payload);
        }

        #[test]
        fn a_record_with_a_flipped_bit_or_a_lost_end_is_corrupt(
            payload: Vec<u8>, place: prop::sample::Index, bit in 0..8_u8, cut: bool,
        ) {
            let mut record = encode(Kind::Checkpoint, &payload).unwrap();
            let place = place.index(record.len());
            if cut { record.truncate(place) } else { record[place] ^= 1 << bit }
            let error = decode::<Vec<u8>>(Kind::Checkpoint, &record).unwrap_err();
            prop_assert_eq!(error.kind, ErrorKind::Corrupt);
        }
    }
}
