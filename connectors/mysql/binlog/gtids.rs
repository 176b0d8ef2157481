//! Reads the events that begin a transaction and name it, of both servers. Pure.

use super::{ANONYMOUS_GTID, GTID, MARIADB_GTID, Xid};
use crate::change::Timestamp;
use crate::mysql::bytes::{Decoded, Malformed, Reader, utf8};
use crate::mysql::gtid::{MariadbGtid, Uuid};

/// The beginning of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gtid {
    /// MariaDB.
    Mariadb {
        /// Its identifier.
        gtid: MariadbGtid,
        /// What kind of transaction it is.
        kind: MariadbKind,
    },
    /// MySQL.
    Mysql {
        /// Who numbers, and the number; `None` where GTIDs are off.
        id: Option<(Uuid, u64)>,
        /// When this server committed it, if it says so.
        committed_at: Option<Timestamp>,
    },
}

/// What a transaction of MariaDB consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MariadbKind {
    /// Events until one that ends it.
    Events,
    /// One statement.
    Statement,
    /// Events until the prepare of this XA transaction.
    Prepared(Xid),
    /// The end of this XA transaction, one statement.
    Completed(Xid),
    /// An ALTER that is not done yet, or that came to nothing; nothing has changed.
    Unfinished,
}

const STANDALONE: u8 = 1;
const GROUP_COMMIT_ID: u8 = 2;
const PREPARED_XA: u8 = 64;
const COMPLETED_XA: u8 = 128;
const MULTI_ENGINE: u8 = 1;
const START_ALTER: u8 = 2;
const ROLLBACK_ALTER: u8 = 8;

impl Gtid {
    /// Reads the body of an event of one of these kinds.
    ///
    /// # Errors
    /// If it is cut off or not understood.
    pub fn read(kind: u8, server: u32, body: &[u8]) -> Decoded<Gtid> {
        match kind {
            MARIADB_GTID => mariadb(server, body),
            GTID => mysql(body, true),
            ANONYMOUS_GTID => mysql(body, false),
            _ => tagged(body),
        }
    }
}

fn mariadb(server: u32, body: &[u8]) -> Decoded<Gtid> {
    let mut reader = Reader::new(body);
    let sequence = reader.u64()?;
    let domain = reader.u32()?;
    let flags = reader.u8()?;
    let gtid = MariadbGtid { domain, server, sequence };
    if flags & GROUP_COMMIT_ID != 0 {
        reader.u64()?;
    }
    let xid = match flags & (PREPARED_XA | COMPLETED_XA) {
        0 => None,
        _ => Some(Xid::read(&mut reader, 1)?),
    };
    // Bodies of old servers end in zeros here, which say the same as nothing.
    let extra = if reader.is_empty() { 0 } else { reader.u8()? };
    if extra & MULTI_ENGINE != 0 {
        reader.u8()?;
    }
    let kind = match xid {
        Some(xid) if flags & PREPARED_XA != 0 => MariadbKind::Prepared(xid),
        Some(xid) => MariadbKind::Completed(xid),
        None if extra & (START_ALTER | ROLLBACK_ALTER) != 0 => MariadbKind::Unfinished,
        None if flags & STANDALONE != 0 => MariadbKind::Statement,
        None => MariadbKind::Events,
    };
    Ok(Gtid::Mariadb { gtid, kind })
}

fn mysql(body: &[u8], named: bool) -> Decoded<Gtid> {
    const LOGICAL_CLOCK: u8 = 2;
    const ORIGINAL_FOLLOWS: u64 = 1 << 55;
    let mut reader = Reader::new(body);
    let _flags = reader.u8()?;
    let bytes = reader.array()?;
    let number = reader.u64()?;
    let id = named.then(|| (Uuid { bytes, tag: String::new() }, number));
    let mut committed_at = None;
    // Added by later versions; what follows (length, versions) does not matter to us.
    if !reader.is_empty() && reader.u8()? == LOGICAL_CLOCK {
        let _last_committed = reader.u64()?;
        let _sequence_number = reader.u64()?;
        if !reader.is_empty() {
            let micros = reader.little_endian(7)? & !ORIGINAL_FOLLOWS;
            committed_at = Some(timestamp(micros)?);
        }
    }
    Ok(Gtid::Mysql { id, committed_at })
}

fn timestamp(micros: u64) -> Decoded<Timestamp> {
    i64::try_from(micros).map(Timestamp).map_err(|_| Malformed::new("a time is too late"))
}

/// A GTID with a tag, since MySQL 8.3: fields with numbers, in MySQL's general form for messages,
/// whose integers say their length in the low bits of their first byte.
fn tagged(body: &[u8]) -> Decoded<Gtid> {
    const FLAGS: u64 = 0;
    const UUID: u64 = 1;
    const NUMBER: u64 = 2;
    const TAG: u64 = 3;
    const LAST_COMMITTED: u64 = 4;
    const SEQUENCE_NUMBER: u64 = 5;
    const COMMITTED_AT: u64 = 6;
    let mut reader = Reader::new(body);
    if varint(&mut reader)? != 1 {
        return Err(Malformed::new("a GTID in an unknown form"));
    }
    let _size = varint(&mut reader)?;
    let _last_field_that_matters = varint(&mut reader)?;
    let (mut bytes, mut number, mut tag, mut committed_at) = (None, None, String::new(), None);
    while !reader.is_empty() {
        match varint(&mut reader)? {
            FLAGS => _ = varint(&mut reader)?,
            UUID => {
                let mut uuid = [0; 16];
                for byte in &mut uuid {
                    *byte = u8::try_from(varint(&mut reader)?)
                        .map_err(|_| Malformed::new("a UUID is none"))?;
                }
                bytes = Some(uuid);
            }
            // Integers with a sign keep it in their lowest bit.
            NUMBER => number = Some(signed(&mut reader)?),
            TAG => {
                let length = varint(&mut reader)?;
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                utf8(reader.take(length)?)?.clone_into(&mut tag);
            }
            LAST_COMMITTED | SEQUENCE_NUMBER => _ = varint(&mut reader)?,
            COMMITTED_AT => committed_at = Some(timestamp(varint(&mut reader)?)?),
            // What follows does not matter to us.
            _ => break,
        }
    }
    match (bytes, number) {
        (Some(bytes), Some(number)) => {
            Ok(Gtid::Mysql { id: Some((Uuid { bytes, tag }, number)), committed_at })
        }
        _ => Err(Malformed::new("a GTID has no number")),
    }
}

fn signed(reader: &mut Reader<'_>) -> Decoded<u64> {
    let number = varint(reader)?;
    match number & 1 {
        0 => Ok(number >> 1),
        _ => Err(Malformed::new("a GTID has a negative number")),
    }
}

/// An integer of one to nine bytes: as many low bits of the first byte are set as bytes follow it.
fn varint(reader: &mut Reader<'_>) -> Decoded<u64> {
    let first = reader.u8()?;
    let more = first.trailing_ones() as usize;
    let rest = reader.little_endian(more)?;
    Ok(match more {
        0..=6 => rest << (7 - more) | u64::from(first) >> (more + 1),
        _ => rest,
    })
}
