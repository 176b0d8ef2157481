//! Decodes the messages of the pgoutput plug-in, protocol 1. Pure and borrowing: a message is a
//! view of the bytes that it was read from. Fed by `stream.rs`, read by `transaction.rs`.
//!
//! Surprise: whatever is not exactly a message of protocol 1 is an error, trailing bytes and the
//! messages of prepared transactions included, which were not asked for. What protocol 2 adds is
//! taken off before, by `streamed.rs`.

use super::lsn::Lsn;
use crate::change::{Cell, Timestamp};
use crate::error::{Code, Error, Result};

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A transaction begins; it is already committed.
    Begin {
        /// LSN of its commit record.
        final_lsn: Lsn,
        /// When it was committed.
        committed_at: Timestamp,
        /// Its transaction id, without the epoch.
        xid: u32,
    },
    /// The transaction ends.
    Commit {
        /// LSN of the commit record.
        commit_lsn: Lsn,
        /// Where the log goes on after it.
        end_lsn: Lsn,
    },
    /// Where the transaction came from; it was replicated into this server.
    Origin,
    /// The shape of a table, before its first change and after each change of shape.
    Relation(Relation<'a>),
    /// The name of a type that users made.
    Type,
    /// A row was inserted.
    Insert {
        /// Its table.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was updated.
    Update {
        /// Its table.
        relation: u32,
        /// The row as it was, as far as the replica identity tells; `None` if its key is the same.
        old: Option<OldTuple<'a>>,
        /// The row as it is.
        new: Tuple<'a>,
    },
    /// A row was deleted.
    Delete {
        /// Its table.
        relation: u32,
        /// The row as it was.
        old: OldTuple<'a>,
    },
    /// Tables were emptied.
    Truncate {
        /// Which.
        relations: Vec<u32>,
    },
    /// `pg_logical_emit_message`.
    Logical {
        /// Whether it belongs to the transaction around it.
        transactional: bool,
    },
}

/// The shape of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation<'a> {
    /// Its OID.
    pub id: u32,
    /// Its schema.
    pub schema: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Whether the replica identity is FULL.
    pub identity_full: bool,
    /// Its published columns, in the order of the tuples.
    pub columns: Vec<RelationColumn<'a>>,
}

/// A column of a relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationColumn<'a> {
    /// Whether it belongs to the replica identity.
    pub key: bool,
    /// Its name.
    pub name: &'a str,
    /// OID of its type.
    pub type_id: u32,
}

/// The row before the change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// Only key columns have their values; all others are NULL.
    Key(Tuple<'a>),
    /// All of it.
    Full(Tuple<'a>),
}

impl<'a> OldTuple<'a> {
    /// The tuple, whichever it is.
    pub fn tuple(&self) -> Tuple<'a> {
        match self {
            OldTuple::Key(tuple) | OldTuple::Full(tuple) => *tuple,
        }
    }
}

/// The cells of a row, checked when the message was decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple<'a> {
    columns: u16,
    cells: &'a [u8],
}

impl<'a> Tuple<'a> {
    /// How many cells it has.
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    /// The cells in order; an unchanged TOAST value is absent.
    pub fn cells(&self) -> impl Iterator<Item = Cell<'a>> + use<'a> {
        let mut rest = Reader { rest: self.cells };
        // `Reader::tuple` has read every cell once, so none fails here.
        (0..self.columns).map_while(move |_| rest.cell().ok())
    }
}

/// Decodes one message.
///
/// # Errors
/// `protocol` if the bytes are anything else.
pub fn decode(bytes: &[u8]) -> Result<Message<'_>> {
    let mut reader = Reader { rest: bytes };
    let tag = reader.u8()?;
    let message = reader.message(tag)?;
    match reader.rest {
        [] => Ok(message),
        rest => Err(wrong(format!("{} bytes follow message {:?}", rest.len(), char::from(tag)))),
    }
}

/// Microseconds from 1970 to 2000, where PostgreSQL's time begins.
pub const EPOCH_MICROS: i64 = 946_684_800_000_000;

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn message(&mut self, tag: u8) -> Result<Message<'a>> {
        Ok(match tag {
            b'B' => Message::Begin {
                final_lsn: self.lsn()?,
                committed_at: self.timestamp()?,
                xid: self.u32()?,
            },
            b'C' => self.commit()?,
            b'O' => {
                self.lsn()?;
                self.text()?;
                Message::Origin
            }
            b'R' => Message::Relation(self.relation()?),
            b'Y' => {
                self.u32()?;
                self.text()?;
                self.text()?;
                Message::Type
            }
            b'I' => Message::Insert { relation: self.u32()?, new: self.new_tuple()? },
            b'U' => {
                Message::Update { relation: self.u32()?, old: self.old()?, new: self.new_tuple()? }
            }
            b'D' => {
                let relation = self.u32()?;
                let old = self.old()?.ok_or_else(|| wrong("a deletion has no key"))?;
                Message::Delete { relation, old }
            }
            b'T' => self.truncate()?,
            b'M' => self.logical()?,
            b'S' | b'E' | b'c' | b'A' => {
                return Err(wrong("a streamed transaction out of place"));
            }
            b'b' | b'P' | b'K' | b'r' | b'p' => {
                return Err(wrong("a prepared transaction, which was not asked for"));
            }
            other => return Err(wrong(format!("message {:?} is not known", char::from(other)))),
        })
    }

    fn commit(&mut self) -> Result<Message<'a>> {
        if self.u8()? != 0 {
            return Err(wrong("a commit has flags"));
        }
        let (commit_lsn, end_lsn) = (self.lsn()?, self.lsn()?);
        self.timestamp()?;
        Ok(Message::Commit { commit_lsn, end_lsn })
    }

    fn relation(&mut self) -> Result<Relation<'a>> {
        let (id, schema, name) = (self.u32()?, self.text()?, self.text()?);
        let identity_full = match self.u8()? {
            b'f' => true,
            b'd' | b'i' | b'n' => false,
            other => return Err(wrong(format!("replica identity {other} is not known"))),
        };
        // Each column takes at least ten bytes, so a count that lies allocates little.
        let count = usize::from(self.u16()?);
        let mut columns = Vec::with_capacity(count.min(self.rest.len() / 10));
        for _ in 0..count {
            let key = match self.u8()? {
                0 => false,
                1 => true,
                other => return Err(wrong(format!("column flags {other} are not known"))),
            };
            let (name, type_id) = (self.text()?, self.u32()?);
            self.u32()?;
            columns.push(RelationColumn { key, name, type_id });
        }
        // An empty schema stands for pg_catalog.
        let schema = if schema.is_empty() { "pg_catalog" } else { schema };
        Ok(Relation { id, schema, name, identity_full, columns })
    }

    fn truncate(&mut self) -> Result<Message<'a>> {
        let count = self.u32()? as usize;
        let flags = self.u8()?;
        if flags > 3 {
            return Err(wrong(format!("truncate flags {flags} are not known")));
        }
        if count != self.rest.len() / 4 {
            return Err(wrong("a truncation names fewer or more tables than it says"));
        }
        let relations = (0..count).map(|_| self.u32()).collect::<Result<_>>()?;
        Ok(Message::Truncate { relations })
    }

    fn logical(&mut self) -> Result<Message<'a>> {
        let transactional = match self.u8()? {
            0 => false,
            1 => true,
            other => return Err(wrong(format!("logical message flags {other} are not known"))),
        };
        self.lsn()?;
        self.text()?;
        let length = self.u32()? as usize;
        self.take(length)?;
        Ok(Message::Logical { transactional })
    }

    fn new_tuple(&mut self) -> Result<Tuple<'a>> {
        match self.u8()? {
            b'N' => self.tuple(),
            other => Err(wrong(format!("byte {other} where a new row begins"))),
        }
    }

    fn old(&mut self) -> Result<Option<OldTuple<'a>>> {
        let old = match self.rest.first() {
            Some(b'K') => OldTuple::Key,
            Some(b'O') => OldTuple::Full,
            _ => return Ok(None),
        };
        self.u8()?;
        Ok(Some(old(self.tuple()?)))
    }

    fn tuple(&mut self) -> Result<Tuple<'a>> {
        let columns = self.u16()?;
        let start = self.rest;
        for _ in 0..columns {
            self.cell()?;
        }
        Ok(Tuple { columns, cells: &start[..start.len() - self.rest.len()] })
    }

    // As a call its answer goes by way of memory, written in other pieces than it is read in, for which the
    // processor waits: measured, that is a third of the time that decoding takes.
    #[inline(always)]
    fn cell(&mut self) -> Result<Cell<'a>> {
        match self.u8()? {
            b'n' => Ok(Cell::Null),
            b'u' => Ok(Cell::Absent),
            b't' => {
                let length = self.u32()? as usize;
                Ok(Cell::Value(self.take(length)?))
            }
            b'b' => {
                let length = self.u32()? as usize;
                Ok(Cell::Binary(self.take(length)?))
            }
            other => Err(wrong(format!("cell of kind {other}, which was not asked for"))),
        }
    }

    fn text(&mut self) -> Result<&'a str> {
        let end = self.rest.iter().position(|&byte| byte == 0).ok_or_else(short)?;
        let text = std::str::from_utf8(&self.rest[..end]).map_err(|_| wrong("no UTF-8 name"))?;
        self.rest = &self.rest[end + 1..];
        Ok(text)
    }

    fn timestamp(&mut self) -> Result<Timestamp> {
        let micros = self.u64()?.cast_signed().checked_add(EPOCH_MICROS);
        Ok(Timestamp(micros.ok_or_else(|| wrong("a time beyond all times"))?))
    }

    fn lsn(&mut self) -> Result<Lsn> {
        Ok(Lsn(self.u64()?))
    }

    #[inline(always)]
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(short)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline(always)]
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(short)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }
}

fn short() -> Error {
    wrong("it ends too early")
}

fn wrong(what: impl std::fmt::Display) -> Error {
    Error::stop(
        Code::Protocol,
        format!("the source sent a message that this version does not understand: {what}"),
    )
}

#[cfg(test)]
pub mod encode {
    //! The reverse of `decode`, for tests here and in `transaction.rs`.

    use super::{Cell, EPOCH_MICROS};

    /// A message being written.
    #[derive(Default)]
    pub struct Bytes(pub Vec<u8>);

    impl Bytes {
        pub fn tag(tag: u8) -> Bytes {
            Bytes(vec![tag])
        }

        pub fn bytes(mut self, bytes: &[u8]) -> Bytes {
            self.0.extend_from_slice(bytes);
            self
        }

        pub fn text(self, text: &str) -> Bytes {
            self.bytes(text.as_bytes()).bytes(&[0])
        }

        pub fn tuple(self, kind: u8, cells: &[Cell<'_>]) -> Bytes {
            let start = self.bytes(&[kind]).bytes(&(cells.len() as u16).to_be_bytes());
            cells.iter().fold(start, |bytes, cell| match cell {
                Cell::Null => bytes.bytes(b"n"),
                Cell::Absent => bytes.bytes(b"u"),
                Cell::Value(value) => {
                    bytes.bytes(b"t").bytes(&(value.len() as u32).to_be_bytes()).bytes(value)
                }
                Cell::Binary(value) => {
                    bytes.bytes(b"b").bytes(&(value.len() as u32).to_be_bytes()).bytes(value)
                }
            })
        }
    }

    pub fn begin(final_lsn: u64, micros: i64, xid: u32) -> Vec<u8> {
        let time = (micros - EPOCH_MICROS).to_be_bytes();
        let bytes = Bytes::tag(b'B').bytes(&final_lsn.to_be_bytes()).bytes(&time);
        bytes.bytes(&xid.to_be_bytes()).0
    }

    pub fn commit(commit_lsn: u64, end_lsn: u64) -> Vec<u8> {
        let bytes = Bytes::tag(b'C').bytes(&[0]).bytes(&commit_lsn.to_be_bytes());
        bytes.bytes(&end_lsn.to_be_bytes()).bytes(&[0; 8]).0
    }

    pub fn relation(id: u32, name: &str, identity: u8, columns: &[(bool, &str, u32)]) -> Vec<u8> {
        let start = Bytes::tag(b'R').bytes(&id.to_be_bytes()).text("public").text(name);
        let start = start.bytes(&[identity]).bytes(&(columns.len() as u16).to_be_bytes());
        let column = |bytes: Bytes, &(key, name, type_id): &(bool, &str, u32)| {
            let bytes = bytes.bytes(&[u8::from(key)]).text(name).bytes(&type_id.to_be_bytes());
            bytes.bytes(&(-1i32).to_be_bytes())
        };
        columns.iter().fold(start, column).0
    }

    pub fn insert(id: u32, new: &[Cell<'_>]) -> Vec<u8> {
        Bytes::tag(b'I').bytes(&id.to_be_bytes()).tuple(b'N', new).0
    }

    pub fn update(id: u32, old: Option<(u8, &[Cell<'_>])>, new: &[Cell<'_>]) -> Vec<u8> {
        let mut bytes = Bytes::tag(b'U').bytes(&id.to_be_bytes());
        if let Some((kind, old)) = old {
            bytes = bytes.tuple(kind, old);
        }
        bytes.tuple(b'N', new).0
    }

    pub fn delete(id: u32, kind: u8, old: &[Cell<'_>]) -> Vec<u8> {
        Bytes::tag(b'D').bytes(&id.to_be_bytes()).tuple(kind, old).0
    }

    pub fn truncate(ids: &[u32]) -> Vec<u8> {
        let start = Bytes::tag(b'T').bytes(&(ids.len() as u32).to_be_bytes()).bytes(&[1]);
        ids.iter().fold(start, |bytes, id| bytes.bytes(&id.to_be_bytes())).0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CELLS: [Cell<'static>; 5] =
        [Cell::Value(b"1"), Cell::Null, Cell::Absent, Cell::Binary(b"\0"), Cell::Value(b"")];

    /// One of each message, with the bytes of each.
    fn samples() -> Vec<Vec<u8>> {
        let bytes = encode::Bytes::tag;
        vec![
            encode::begin(0x10, 5, 7),
            encode::commit(0x10, 0x20),
            bytes(b'O').bytes(&[0; 8]).text("elsewhere").0,
            encode::relation(9, "t", b'd', &[(true, "k", 20), (false, "v", 25)]),
            bytes(b'Y').bytes(&[0, 0, 0, 1]).text("public").text("mood").0,
            encode::insert(9, &CELLS),
            encode::update(9, None, &CELLS),
            encode::update(9, Some((b'K', &CELLS[..2])), &CELLS),
            encode::update(9, Some((b'O', &CELLS)), &CELLS),
            encode::delete(9, b'K', &CELLS[..2]),
            encode::truncate(&[9, 10]),
            bytes(b'M').bytes(&[1]).bytes(&[0; 8]).text("p").bytes(&[0, 0, 0, 2, 1, 2]).0,
        ]
    }

    #[test]
    fn every_message_of_protocol_1_is_decoded() {
        let samples = samples();
        let messages: Vec<_> = samples.iter().map(|bytes| decode(bytes).unwrap()).collect();
        let begin = Message::Begin { final_lsn: Lsn(0x10), committed_at: Timestamp(5), xid: 7 };
        assert_eq!(messages[0], begin);
        assert_eq!(messages[1], Message::Commit { commit_lsn: Lsn(0x10), end_lsn: Lsn(0x20) });
        assert_eq!((&messages[2], &messages[4]), (&Message::Origin, &Message::Type));
        let column = |key, name, type_id| RelationColumn { key, name, type_id };
        let columns = vec![column(true, "k", 20), column(false, "v", 25)];
        let (schema, name) = ("public", "t");
        let relation = Relation { id: 9, schema, name, identity_full: false, columns };
        assert_eq!(messages[3], Message::Relation(relation));
        let Message::Insert { relation: 9, new } = &messages[5] else { panic!("{messages:?}") };
        assert!(new.cells().eq(CELLS));
        assert!(matches!(&messages[6], Message::Update { old: None, new, .. } if new.len() == 5));
        let Message::Update { old: Some(OldTuple::Key(old)), .. } = &messages[7] else { panic!() };
        assert!(old.cells().eq(CELLS[..2].iter().copied()));
        assert!(matches!(&messages[8], Message::Update { old: Some(OldTuple::Full(_)), .. }));
        assert!(matches!(&messages[9], Message::Delete { relation: 9, .. }));
        assert_eq!(messages[10], Message::Truncate { relations: vec![9, 10] });
        assert_eq!(messages[11], Message::Logical { transactional: true });
    }

    #[test]
    fn a_message_cut_or_continued_anywhere_is_an_error() {
        for sample in samples() {
            for end in 0..sample.len() {
                assert!(decode(&sample[..end]).is_err(), "{:?} at {end}", sample[0] as char);
            }
            let longer = [sample.as_slice(), &[0]].concat();
            assert!(decode(&longer).is_err(), "{:?}", sample[0] as char);
        }
    }

    #[test]
    fn what_was_not_asked_for_is_refused() {
        for tag in *b"SEcAbPKrpz" {
            assert_eq!(decode(&[tag, 0, 0, 0, 0]).unwrap_err().code, Code::Protocol);
        }
        let other = encode::Bytes::tag(b'I').bytes(&[0, 0, 0, 9, b'N', 0, 1, b'x', 0, 0, 0, 0]);
        assert!(decode(&other.0).is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_or_a_message_and_never_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let _ = decode(&bytes);
        }

        #[test]
        fn a_damaged_message_never_panics(which in 0..12usize, at: usize, with: u8) {
            let mut sample = samples().swap_remove(which);
            let at = at % sample.len();
            sample[at] = with;
            if let Ok(Message::Insert { new, .. }) = decode(&sample) {
                prop_assert_eq!(new.cells().count(), new.len());
            }
        }
    }
}
