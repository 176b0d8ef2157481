//! Events of the binary log, read from raw bytes without copying: an explicit list of what is
//! understood and of what is left out on purpose; everything else is an error. Checksums are
//! verified here. Pure; fed by `stream.rs`, read by `transaction.rs`.
//!
//! Surprises: the client library expands a compressed transaction and drops it silently when that
//! fails, so we count the bytes of the events within. And it knows none of MariaDB's own events,
//! which is why we read raw bytes at all.

mod compressed;
mod gtids;
mod query;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use mysql_async::binlog::{BinlogChecksumAlg, events};

pub use self::gtids::{Gtid, MariadbKind};
pub use self::query::Query;
use super::bytes::{Decoded, Malformed, Reader, utf8};
use crate::error::{Code, Error, Result};

/// Bytes of the header that every event begins with.
pub const HEADER_LEN: usize = 19;

/// The header of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// When the statement began, in seconds since 1970.
    pub timestamp: u32,
    /// What kind of event it is.
    pub kind: u8,
    /// The server that first wrote it.
    pub server_id: u32,
    /// How long it is, header and checksum included.
    pub size: u32,
    /// Where it ends in its file, modulo 2^32; 0 where the server does not say.
    pub end: u32,
    /// Marks; see `ARTIFICIAL` and `IGNORABLE`.
    pub flags: u16,
}

/// Made for us when the log was opened; it is in no file and has no place.
const ARTIFICIAL: u16 = 0x20;
/// A server that does not know the event may skip it.
const IGNORABLE: u16 = 0x80;
/// Set while the file is being written, and left out of the checksum.
const IN_USE: u16 = 0x1;

impl Header {
    /// Whether the event is in no file, so that its place and size say nothing.
    #[must_use]
    pub fn is_artificial(&self) -> bool {
        self.flags & ARTIFICIAL != 0
    }

    /// The header as it was sent, which the checksum covers too.
    #[must_use]
    pub fn bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&self.timestamp.to_le_bytes());
        bytes[4] = self.kind;
        bytes[5..9].copy_from_slice(&self.server_id.to_le_bytes());
        bytes[9..13].copy_from_slice(&self.size.to_le_bytes());
        bytes[13..17].copy_from_slice(&self.end.to_le_bytes());
        bytes[17..].copy_from_slice(&self.flags.to_le_bytes());
        bytes
    }
}

/// An event as the client library hands it out.
#[derive(Clone, Copy, Debug)]
pub struct RawEvent<'a> {
    /// Its header.
    pub header: Header,
    /// What follows the header, without the checksum and what describes it.
    pub body: &'a [u8],
    /// The checksum that came with it, and the algorithm's number.
    pub checksum: Option<(u8, u32)>,
}

impl<'a> RawEvent<'a> {
    /// The library's event.
    ///
    /// # Errors
    /// `protocol`, for an algorithm of checksums that is unknown.
    pub fn of(event: &'a events::Event) -> Result<RawEvent<'a>> {
        let header = event.header();
        let header = Header {
            timestamp: header.timestamp(),
            kind: header.event_type_raw(),
            server_id: header.server_id(),
            size: header.event_size(),
            end: header.log_pos(),
            flags: header.flags_raw(),
        };
        let algorithm = event.footer().get_checksum_alg().map_err(|_| {
            Error::stop(Code::Protocol, "the binary log has an unknown kind of checksum")
        })?;
        let checksum = match (algorithm, event.checksum()) {
            (Some(BinlogChecksumAlg::BINLOG_CHECKSUM_ALG_CRC32), Some(checksum)) => {
                Some((CRC32, u32::from_le_bytes(checksum)))
            }
            _ => None,
        };
        Ok(RawEvent { header, body: event.data(), checksum })
    }

    fn verify(&self) -> Result<()> {
        let Some((algorithm, expected)) = self.checksum else { return Ok(()) };
        let mut header = self.header;
        let mut hasher = crc32fast::Hasher::new();
        if header.kind == FORMAT_DESCRIPTION {
            header.flags &= !IN_USE;
        }
        hasher.update(&header.bytes());
        hasher.update(self.body);
        if header.kind == FORMAT_DESCRIPTION {
            hasher.update(&[algorithm]);
        }
        match hasher.finalize() == expected {
            true => Ok(()),
            // The network or the server's memory; read again, the event may be whole.
            false => Err(Error::transient(
                Code::Protocol,
                format!(
                    "an event of the binary log (type {}, ending at {}) has a wrong checksum; if \
                     this comes again, the server's log is damaged: run `driftless run --resync`",
                    header.kind, header.end
                ),
            )),
        }
    }
}

/// The algorithm number of CRC32, the only one there is.
const CRC32: u8 = 1;

/// What an event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A file begins, or is opened in its middle.
    Format {
        /// The server's version, as it calls itself.
        server: &'a str,
    },
    /// Where the next event is: in the next file, or where reading begins.
    Rotate {
        /// The file.
        file: &'a str,
        /// Bytes from its beginning.
        offset: u64,
    },
    /// A transaction begins.
    Gtid(Gtid),
    /// The events of a transaction follow, which were compressed together.
    Payload,
    /// The text of a statement.
    Query(Query<'a>),
    /// Rows of a table follow.
    TableMap {
        /// The number that they refer to it by.
        id: u64,
        /// What `TableMap::read` reads.
        body: &'a [u8],
    },
    /// Rows that were inserted, updated or deleted.
    Rows(Rows<'a>),
    /// The transaction is committed.
    Xid,
    /// An XA transaction is prepared, or committed in one phase.
    XaPrepare {
        /// Its identifier.
        xid: Xid,
        /// Whether it is committed already.
        one_phase: bool,
    },
    /// Nothing happens; the log ends here.
    Heartbeat {
        /// The file that is being written.
        file: &'a str,
        /// The end of it; `None` where only the header says.
        offset: Option<u64>,
    },
    /// Of no meaning for us; `decode` says why.
    Nothing,
}

/// What was done to rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Rows as they are now.
    Insert,
    /// Rows as they were, each followed by what it is now.
    Update,
    /// Rows as they were.
    Delete,
}

/// A rows event, without its rows read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows<'a> {
    /// The number of the table, as the table map before it said.
    pub table: u64,
    /// What was done.
    pub operation: Operation,
    /// How many columns the rows have, and for each image which of them it has; then the rows.
    pub body: Cow<'a, [u8]>,
}

/// The identifier of an XA transaction, in the form in which statements print it:
/// `X'6162',X'',1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xid {
    /// Which format its two parts have.
    pub format: i32,
    /// The global part.
    pub global: Vec<u8>,
    /// The branch.
    pub branch: Vec<u8>,
}

impl Xid {
    fn read(reader: &mut Reader<'_>, lengths: usize) -> Decoded<Xid> {
        let format = reader.u32()?.cast_signed();
        let global = reader.little_endian(lengths)?;
        let branch = reader.little_endian(lengths)?;
        let take = |reader: &mut Reader<'_>, length: u64| match length {
            0..=64 => reader.take(length as usize).map(<[u8]>::to_vec),
            _ => Err(Malformed::new("an XA identifier is too long")),
        };
        Ok(Xid { format, global: take(reader, global)?, branch: take(reader, branch)? })
    }
}

const QUERY: u8 = 2;
const STOP: u8 = 3;
const ROTATE: u8 = 4;
const INTVAR: u8 = 5;
const SLAVE: u8 = 7;
const RAND: u8 = 13;
const USER_VAR: u8 = 14;
const FORMAT_DESCRIPTION: u8 = 15;
const XID: u8 = 16;
const TABLE_MAP: u8 = 19;
const INCIDENT: u8 = 26;
const HEARTBEAT: u8 = 27;
const IGNORABLE_EVENT: u8 = 28;
const ROWS_QUERY: u8 = 29;
const GTID: u8 = 33;
const ANONYMOUS_GTID: u8 = 34;
const PREVIOUS_GTIDS: u8 = 35;
const TRANSACTION_CONTEXT: u8 = 36;
const VIEW_CHANGE: u8 = 37;
const XA_PREPARE: u8 = 38;
const PARTIAL_UPDATE_ROWS: u8 = 39;
const TRANSACTION_PAYLOAD: u8 = 40;
const HEARTBEAT_V2: u8 = 41;
const GTID_TAGGED: u8 = 42;
const ANNOTATE_ROWS: u8 = 160;
const BINLOG_CHECKPOINT: u8 = 161;
const MARIADB_GTID: u8 = 162;
const GTID_LIST: u8 = 163;
const START_ENCRYPTION: u8 = 164;
const QUERY_COMPRESSED: u8 = 165;
const PARTIAL_ROW_DATA: u8 = 172;

/// Decodes one event after another.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    /// Whether the file's format is known; before that, checksums are not told from names.
    format_known: bool,
    /// Bytes of events that were compressed together and are still to come.
    inner_left: u64,
}

impl Decoder {
    /// At the beginning of a connection.
    #[must_use]
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// What the event says, and its header: one of a compressed transaction has the size 0 there,
    /// because it takes no place in the file.
    ///
    /// # Errors
    /// `protocol`: it is not understood, so nothing after it can be trusted either; a wrong
    /// checksum is `Transient`.
    pub fn decode<'a>(&mut self, raw: &RawEvent<'a>) -> Result<(Header, Event<'a>)> {
        let inner = self.inner_left > 0;
        match inner {
            true => self.count_inner(raw)?,
            false => raw.verify()?,
        }
        let event = self.read(raw).map_err(|malformed| {
            let Header { kind, end, .. } = raw.header;
            malformed_event(kind, end, &malformed)
        })??;
        if inner
            && !matches!(
                event,
                Event::Query(_)
                    | Event::TableMap { .. }
                    | Event::Rows(_)
                    | Event::Xid
                    | Event::XaPrepare { .. }
                    | Event::Nothing
            )
        {
            return Err(
                Malformed::new("an event that cannot be in a compressed transaction").into()
            );
        }
        let size = if inner { 0 } else { raw.header.size };
        Ok((Header { size, ..raw.header }, event))
    }

    /// The event is one of those that were compressed together.
    fn count_inner(&mut self, raw: &RawEvent<'_>) -> Result<()> {
        let size = u64::from(raw.header.size);
        let whole = HEADER_LEN + raw.body.len();
        self.inner_left = match self.inner_left.checked_sub(size) {
            Some(left) if size == whole as u64 => left,
            _ => return Err(lost_payload()),
        };
        Ok(())
    }

    fn read<'a>(&mut self, raw: &RawEvent<'a>) -> Decoded<Result<Event<'a>>> {
        let RawEvent { header, body, .. } = *raw;
        let mut reader = Reader::new(body);
        let event = match header.kind {
            FORMAT_DESCRIPTION => {
                self.format_known = true;
                format(&mut reader)?
            }
            ROTATE => {
                let offset = reader.u64()?;
                let name = match self.format_known {
                    true => reader.rest(),
                    false => without_checksum(&header, body, reader.rest()),
                };
                Event::Rotate { file: utf8(name)?, offset }
            }
            GTID | ANONYMOUS_GTID | GTID_TAGGED | MARIADB_GTID => {
                Event::Gtid(Gtid::read(header.kind, header.server_id, body)?)
            }
            QUERY => Event::Query(Query::read(body)?),
            QUERY_COMPRESSED => Event::Query(Query::read_compressed(body)?),
            TABLE_MAP => Event::TableMap { id: reader.little_endian(6)?, body },
            20..=25 | 30..=32 | PARTIAL_UPDATE_ROWS | 166..=171 => {
                return rows(header.kind, body);
            }
            XID => Event::Xid,
            XA_PREPARE => {
                let one_phase = reader.u8()? != 0;
                let xid = Xid::read(&mut reader, 4)?;
                reader.end()?;
                Event::XaPrepare { xid, one_phase }
            }
            HEARTBEAT => Event::Heartbeat { file: utf8(body)?, offset: None },
            HEARTBEAT_V2 => heartbeat_v2(&mut reader)?,
            TRANSACTION_PAYLOAD => {
                self.inner_left = payload_size(&mut reader)?;
                Event::Payload
            }
            kind => return Ok(left_out(kind, header.flags)),
        };
        Ok(Ok(event))
    }
}

/// The name in the first event of a connection. MariaDB appends a checksum to it, which nobody can
/// know before the format has been told; the checksum itself tells.
fn without_checksum<'a>(header: &Header, body: &[u8], name: &'a [u8]) -> &'a [u8] {
    let (Some((body, checksum)), Some(plain)) =
        (body.split_last_chunk::<4>(), name.len().checked_sub(4).and_then(|end| name.get(..end)))
    else {
        return name;
    };
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header.bytes());
    hasher.update(body);
    match hasher.finalize() == u32::from_le_bytes(*checksum) {
        true => plain,
        false => name,
    }
}

/// What is left out on purpose, with the reason, and what stops.
fn left_out(kind: u8, flags: u16) -> Result<Event<'static>> {
    match kind {
        // The server was shut down in good order; the next file says what goes on.
        STOP
        // Written by replicas of long ago for themselves.
        | SLAVE
        // Random numbers and variables of the statement that follows, which is judged itself.
        | INTVAR | RAND | USER_VAR
        // The text of the statement whose rows follow.
        | ROWS_QUERY | ANNOTATE_ROWS
        // For crash recovery of the server that wrote it.
        | BINLOG_CHECKPOINT
        // What earlier files hold; we count for ourselves.
        | PREVIOUS_GTIDS | GTID_LIST
        // For members of a replication group among themselves.
        | TRANSACTION_CONTEXT | VIEW_CHANGE
        // The rest of the file is encrypted on disk, but the server sends it decrypted.
        | START_ENCRYPTION
        // Made to be skipped.
        | IGNORABLE_EVENT => Ok(Event::Nothing),
        INCIDENT => Err(Error::stop(
            Code::Protocol,
            "the server has written an incident into its binary log: changes are missing there; \
             to go on with a full copy, run `driftless run --resync`",
        )),
        PARTIAL_ROW_DATA => Err(Error::stop(
            Code::Protocol,
            "the binary log has a row event in fragments, which are not followed; run \
             `SET GLOBAL binlog_row_event_fragment_threshold = DEFAULT` or split the statement, \
             then `driftless run --resync`",
        )),
        // A server that does not know it may skip it, says whoever wrote it.
        _ if flags & IGNORABLE != 0 => Ok(Event::Nothing),
        _ => Err(Error::stop(
            Code::Protocol,
            format!("the binary log has an event of type {kind}, which is unknown"),
        )),
    }
}

fn malformed_event(kind: u8, end: u32, malformed: &Malformed) -> Error {
    Error::stop(
        Code::Protocol,
        format!(
            "an event of the binary log (type {kind}, ending at {end}) is not understood: \
             {malformed}"
        ),
    )
}

fn lost_payload() -> Error {
    Error::stop(
        Code::Protocol,
        "a compressed transaction could not be expanded whole; run \
         `SET GLOBAL binlog_transaction_compression = OFF`, then `driftless run --resync`",
    )
}

fn format<'a>(reader: &mut Reader<'a>) -> Decoded<Event<'a>> {
    if reader.u16()? != 4 {
        return Err(Malformed::new("the binary log has another version than 4"));
    }
    let name = reader.take(50)?;
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    let _created = reader.u32()?;
    if usize::from(reader.u8()?) != HEADER_LEN {
        return Err(Malformed::new("headers have another length than 19"));
    }
    Ok(Event::Format { server: utf8(&name[..end])? })
}

/// The rows of an event, as the same body whatever its version and compression.
fn rows(kind: u8, body: &[u8]) -> Decoded<Result<Event<'_>>> {
    let operation = match kind {
        23 | 30 | 166 | 169 => Operation::Insert,
        24 | 31 | 167 | 170 => Operation::Update,
        25 | 32 | 168 | 171 => Operation::Delete,
        PARTIAL_UPDATE_ROWS => {
            return Ok(Err(Error::stop(
                Code::PartialRow,
                "the binary log has JSON documents only in part; run \
                 `SET GLOBAL binlog_row_value_options = ''` and end the sessions that set it \
                 themselves, then `driftless run --resync`",
            )));
        }
        _ => return Err(Malformed::new("row events of MySQL 5.1.17 and older are not read")),
    };
    let mut reader = Reader::new(body);
    let table = reader.little_endian(6)?;
    let _flags = reader.u16()?;
    if matches!(kind, 30..=32 | 169..=171) {
        // Its length counts itself. What is in there (NDB, partitions) does not change rows.
        let extra = reader.u16()?;
        let length = extra.checked_sub(2).ok_or_else(|| Malformed::new("extra data"))?;
        reader.take(usize::from(length))?;
    }
    let body = match kind {
        166..=171 => Cow::Owned(compressed::expand_rows(operation, reader.rest())?),
        _ => Cow::Borrowed(reader.rest()),
    };
    Ok(Ok(Event::Rows(Rows { table, operation, body })))
}

/// A heartbeat of MySQL 8.0.26 and later: fields with a type, a length and a value.
fn heartbeat_v2<'a>(reader: &mut Reader<'a>) -> Decoded<Event<'a>> {
    let (mut file, mut offset) = ("", None);
    loop {
        match reader.length_encoded()? {
            0 => break,
            1 => file = utf8(reader.length_encoded_bytes()?)?,
            2 => offset = Some(Reader::new(reader.length_encoded_bytes()?).length_encoded()?),
            _ => _ = reader.length_encoded_bytes()?,
        }
    }
    Ok(Event::Heartbeat { file, offset })
}

/// How many bytes a compressed transaction has when it is expanded.
fn payload_size(reader: &mut Reader<'_>) -> Decoded<u64> {
    const ZSTD: u64 = 0;
    const UNCOMPRESSED: u64 = 255;
    let (mut size, mut expanded, mut method) = (None, None, None);
    loop {
        let field = reader.length_encoded()?;
        if field == 0 {
            break;
        }
        let number = Reader::new(reader.length_encoded_bytes()?).length_encoded()?;
        match field {
            1 => size = Some(number),
            2 => method = Some(number),
            3 => expanded = Some(number),
            _ => return Err(Malformed::new("an unknown field of a compressed transaction")),
        }
    }
    match (method, size, expanded) {
        (Some(ZSTD), _, Some(expanded)) => Ok(expanded),
        (Some(UNCOMPRESSED), Some(size), _) => Ok(size),
        _ => Err(Malformed::new("a compressed transaction of an unknown kind")),
    }
}
