//! Transactions that the server sends before they have ended, because they are too large for its
//! memory. Their messages go to disk, and come back as those of any transaction when the commit is
//! there. Used by `streaming.rs`, with protocol 2 of pgoutput.
//!
//! Surprises: an aborted subtransaction takes back what came since its first message, and nothing
//! else can have come in between but its own children. The shape of a table may be among that: it
//! is sent once a transaction, so it is kept all the same.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Code, Error, Result};
use crate::spool::{Records, Spool};

/// The transactions that have not ended yet.
#[derive(Debug)]
pub struct Streamed {
    directory: PathBuf,
    /// The transaction whose messages are coming.
    block: Option<u32>,
    open: HashMap<u32, InProgress>,
}

/// What became of a message.
#[derive(Debug)]
pub enum Taken {
    /// It belongs to no transaction that is in progress.
    Plain,
    /// It was put away.
    Kept,
    /// A transaction has been committed; these are its messages.
    Committed(Replay),
    /// The disk has no room for it. It may be given again.
    NoRoom(io::Error),
}

#[derive(Debug)]
struct InProgress {
    spool: Spool,
    /// The subtransactions in the order of their first messages, and where those are.
    children: Vec<(u32, u64)>,
    /// Their numbers.
    begun: HashSet<u32>,
    /// Shapes of tables, and where they are.
    relations: Vec<(u64, Vec<u8>)>,
}

impl Streamed {
    /// Nothing is in progress; files go into this directory.
    #[must_use]
    pub fn new(directory: PathBuf) -> Streamed {
        Streamed { directory, block: None, open: HashMap::new() }
    }

    /// Where files go.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether messages of a transaction in progress are coming.
    #[must_use]
    pub fn in_block(&self) -> bool {
        self.block.is_some()
    }

    /// Takes a message if it belongs to a transaction in progress.
    ///
    /// # Errors
    /// `protocol` if the messages do not make sense; `state-disk` if the disk fails.
    pub fn take(&mut self, message: &[u8]) -> Result<Taken> {
        let taken = match (self.block, message.first()) {
            (Some(_), Some(b'E')) => self.stop(message),
            (Some(top), Some(&tag)) => self.keep(top, tag, message),
            (None, Some(b'S')) => self.start(message),
            (None, Some(b'c')) => self.commit(message),
            (None, Some(b'A')) => self.abort(message),
            (None, Some(b'E')) => Err(wrong("a block ends that has not begun")),
            (None, _) => Ok(Taken::Plain),
            (Some(_), None) => Err(wrong("an empty message")),
        };
        match taken {
            Ok(taken) => Ok(taken),
            Err(Failure::Wrong(error)) => Err(error),
            Err(Failure::Disk(error)) if is_full(&error) => Ok(Taken::NoRoom(error)),
            Err(Failure::Disk(error)) => Err(disk(&self.directory, &error)),
        }
    }

    fn start(&mut self, message: &[u8]) -> Attempt {
        let (&[_, a, b, c, d, first], []) = split(message)? else { return Err(trailing()) };
        let xid = u32::from_be_bytes([a, b, c, d]);
        match (first, self.open.contains_key(&xid)) {
            (1, false) => {
                self.open.insert(xid, InProgress::new(Spool::create(&self.directory)?));
            }
            (0, true) => {}
            _ => return Err(wrong("a transaction in progress does not begin where it should")),
        }
        self.block = Some(xid);
        Ok(Taken::Kept)
    }

    fn stop(&mut self, message: &[u8]) -> Attempt {
        let ([_], []) = split(message)? else { return Err(trailing()) };
        self.block = None;
        Ok(Taken::Kept)
    }

    fn keep(&mut self, top: u32, tag: u8, message: &[u8]) -> Attempt {
        let transaction = self.open.get_mut(&top).ok_or_else(unknown)?;
        match tag {
            // Says where the transaction came from, and has no number.
            b'O' => {}
            b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M' => {
                let (&[_, a, b, c, d], rest) = split(message)?;
                transaction.keep((top, u32::from_be_bytes([a, b, c, d])), tag, rest)?;
            }
            other => return Err(wrong(format!("message {:?} in a block", char::from(other)))),
        }
        Ok(Taken::Kept)
    }

    fn abort(&mut self, message: &[u8]) -> Attempt {
        let (&[_, a, b, c, d, e, f, g, h], []) = split(message)? else { return Err(trailing()) };
        let (top, xid) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        if xid == top {
            self.open.remove(&top).ok_or_else(unknown)?;
        } else {
            self.open.get_mut(&top).ok_or_else(unknown)?.abort(xid);
        }
        Ok(Taken::Kept)
    }

    fn commit(&mut self, message: &[u8]) -> Attempt {
        let ([_, rest @ ..], []) = split::<30>(message)? else { return Err(trailing()) };
        let (xid, rest) = rest.split_at(4);
        let (flags, lsns_and_time) = rest.split_at(1);
        let (commit_lsn, time) = (&lsns_and_time[..8], &lsns_and_time[16..]);
        if flags != [0] {
            return Err(wrong("a commit has flags"));
        }
        let top = xid.iter().fold(0, |number, &byte| number << 8 | u32::from(byte));
        let transaction = self.open.remove(&top).ok_or_else(unknown)?;
        match transaction.spool.read() {
            Ok(records) => Ok(Taken::Committed(Replay {
                place: Place::Begin,
                begin: [b"B", commit_lsn, time, xid].concat(),
                records,
                end: [b"C\0", lsns_and_time].concat(),
            })),
            Err((spool, error)) => {
                self.open.insert(top, InProgress { spool, ..transaction });
                Err(error.into())
            }
        }
    }
}

impl InProgress {
    fn new(spool: Spool) -> InProgress {
        InProgress { spool, children: Vec::new(), begun: HashSet::new(), relations: Vec::new() }
    }

    fn keep(&mut self, (top, xid): (u32, u32), tag: u8, rest: &[u8]) -> io::Result<()> {
        self.spool.make_room()?;
        if xid != top && self.begun.insert(xid) {
            self.children.push((xid, self.spool.end()));
        }
        if tag == b'R' {
            self.relations.push((self.spool.end(), rest.to_vec()));
        }
        self.spool.push([&[tag], rest]);
        Ok(())
    }

    /// Takes back what a subtransaction and its children did.
    fn abort(&mut self, xid: u32) {
        if !self.begun.contains(&xid) {
            // None of its messages came.
            return;
        }
        let Some(first) = self.children.iter().rposition(|(child, _)| *child == xid) else {
            return;
        };
        let from = self.children[first].1;
        for (child, _) in self.children.drain(first..) {
            self.begun.remove(&child);
        }
        self.spool.truncate(from);
        let kept = self.relations.partition_point(|(at, _)| *at < from);
        for (at, relation) in &mut self.relations[kept..] {
            *at = self.spool.end();
            self.spool.push([b"R", relation]);
        }
    }
}

/// The messages of a transaction that was in progress, as those of any other.
#[derive(Debug)]
pub struct Replay {
    place: Place,
    begin: Vec<u8>,
    records: Records,
    end: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Begin,
    Records,
    End,
    Over,
}

impl Replay {
    /// Whether there is another message. After that, `message` is the one.
    ///
    /// # Errors
    /// `state-disk` if the disk fails.
    pub fn load(&mut self) -> Result<bool> {
        let failed = |error| {
            let message = format!("read a large transaction from the disk: {error}");
            Error::transient(Code::StateDisk, message)
        };
        if self.place == Place::Records && !self.records.load().map_err(failed)? {
            self.place = Place::End;
        }
        Ok(self.place != Place::Over)
    }

    /// The message that was loaded; the same one until `consume`.
    #[must_use]
    pub fn message(&self) -> &[u8] {
        match self.place {
            Place::Begin => &self.begin,
            Place::Records => self.records.record(),
            Place::End => &self.end,
            Place::Over => &[],
        }
    }

    /// Steps over it.
    pub fn consume(&mut self) {
        match self.place {
            Place::Begin => self.place = Place::Records,
            Place::Records => self.records.consume(),
            Place::End | Place::Over => self.place = Place::Over,
        }
    }
}

type Attempt = std::result::Result<Taken, Failure>;

enum Failure {
    Wrong(Error),
    Disk(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Disk(error)
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

fn disk(directory: &Path, error: &io::Error) -> Error {
    let directory = directory.display();
    let message = format!("put away a large transaction in {directory}: {error}");
    Error::transient(Code::StateDisk, message)
}

/// The first bytes of a message, and the others.
fn split<const N: usize>(message: &[u8]) -> std::result::Result<(&[u8; N], &[u8]), Failure> {
    message.split_first_chunk().ok_or_else(|| wrong("a message is cut off"))
}

fn unknown() -> Failure {
    wrong("a transaction in progress has not begun")
}

fn trailing() -> Failure {
    wrong("bytes follow a message")
}

fn wrong(what: impl std::fmt::Display) -> Failure {
    let message = format!("the log of the source makes no sense: {what}");
    Failure::Wrong(Error::stop(Code::Protocol, message))
}

#[cfg(test)]
mod tests {
    use super::super::pgoutput::encode;
    use super::*;
    use crate::change::Cell::Value;

    const TOP: u32 = 70;

    struct Fixture {
        streamed: Streamed,
        _directory: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Fixture {
            let directory = tempfile::tempdir().unwrap();
            Fixture { streamed: Streamed::new(directory.path().into()), _directory: directory }
        }

        /// Gives all messages; the messages of the transactions that were committed.
        fn take(&mut self, messages: &[Vec<u8>]) -> Result<Vec<Vec<Vec<u8>>>> {
            let mut committed = Vec::new();
            for message in messages {
                match self.streamed.take(message)? {
                    Taken::Committed(mut replay) => {
                        let mut all = Vec::new();
                        while replay.load()? {
                            all.push(replay.message().to_vec());
                            replay.consume();
                        }
                        committed.push(all);
                    }
                    Taken::Kept => {}
                    other => panic!("{other:?}"),
                }
            }
            Ok(committed)
        }
    }

    fn start(xid: u32, is_first: bool) -> Vec<u8> {
        [b"S".as_slice(), &xid.to_be_bytes(), &[u8::from(is_first)]].concat()
    }

    fn stop() -> Vec<u8> {
        b"E".to_vec()
    }

    fn abort(top: u32, xid: u32) -> Vec<u8> {
        [b"A".as_slice(), &top.to_be_bytes(), &xid.to_be_bytes()].concat()
    }

    fn commit(xid: u32, lsn: u64) -> Vec<u8> {
        let plain = encode::commit(lsn, lsn + 0x30);
        [b"c".as_slice(), &xid.to_be_bytes(), &plain[1..]].concat()
    }

    fn row(value: &str) -> Vec<u8> {
        encode::insert(1, &[Value(value.as_bytes())])
    }

    /// A message as it stands in a block.
    fn part(xid: u32, plain: &[u8]) -> Vec<u8> {
        [&plain[..1], &xid.to_be_bytes(), &plain[1..]].concat()
    }

    fn relation() -> Vec<u8> {
        b"Rshape".to_vec()
    }

    fn transaction(xid: u32, lsn: u64, messages: &[Vec<u8>]) -> Vec<Vec<u8>> {
        // The time in `encode::commit` is zero, in PostgreSQL's own count.
        let begin = [b"B".as_slice(), &lsn.to_be_bytes(), &[0; 8], &xid.to_be_bytes()].concat();
        let end = encode::commit(lsn, lsn + 0x30);
        [&[begin], messages, &[end]].concat()
    }

    #[test]
    fn messages_come_back_when_their_transaction_is_committed() {
        let mut fixture = Fixture::new();
        let messages = [
            start(TOP, true),
            part(TOP, &relation()),
            part(TOP, &row("a")),
            stop(),
            start(80, true),
            part(80, &row("x")),
            stop(),
            start(TOP, false),
            part(71, &row("b")),
            stop(),
            commit(80, 0x200),
            commit(TOP, 0x300),
        ];
        let expected = [
            transaction(80, 0x200, &[row("x")]),
            transaction(TOP, 0x300, &[relation(), row("a"), row("b")]),
        ];
        assert_eq!(fixture.take(&messages), Ok(expected.to_vec()));
        assert!(!fixture.streamed.in_block());
        assert!(matches!(fixture.streamed.take(&row("plain")), Ok(Taken::Plain)));
    }

    #[test]
    fn what_a_subtransaction_did_is_taken_back_with_it_but_no_shape() {
        let mut fixture = Fixture::new();
        let messages = [
            start(TOP, true),
            part(TOP, &row("a")),
            part(71, &row("b")),
            // Released, and so a child of 71.
            part(72, &relation()),
            part(72, &row("c")),
            part(71, &row("d")),
            stop(),
            abort(TOP, 72),
            abort(TOP, 71),
            abort(TOP, 99),
            start(TOP, false),
            part(71, &row("e")),
            stop(),
            commit(TOP, 0x300),
        ];
        let expected = transaction(TOP, 0x300, &[row("a"), relation(), row("e")]);
        assert_eq!(fixture.take(&messages), Ok(vec![expected]));
    }

    #[test]
    fn an_aborted_transaction_leaves_nothing() {
        let mut fixture = Fixture::new();
        let messages =
            [start(TOP, true), part(TOP, &row("a")), stop(), abort(TOP, TOP), start(TOP, true)];
        assert_eq!(fixture.take(&messages), Ok(vec![]));
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        let refused = |messages: &[Vec<u8>]| {
            let code = Fixture::new().take(messages).unwrap_err().code;
            assert_eq!(code, Code::Protocol, "{messages:?}");
        };
        refused(&[stop()]);
        refused(&[start(TOP, false)]);
        refused(&[start(TOP, true), stop(), start(TOP, true)]);
        refused(&[commit(TOP, 0x300)]);
        refused(&[abort(TOP, TOP)]);
        refused(&[abort(TOP, 71)]);
        refused(&[start(TOP, true), b"I".to_vec()]);
        refused(&[start(TOP, true), b"B".to_vec()]);
        refused(&[start(TOP, true), vec![]]);
        refused(&[[start(TOP, true), vec![0]].concat()]);
        let mut flags = commit(TOP, 0x300);
        flags[5] = 1;
        refused(&[start(TOP, true), stop(), flags]);
    }

    #[test]
    fn a_directory_that_is_gone_is_named() {
        let mut streamed = Streamed::new("/nowhere/at/all".into());
        let error = streamed.take(&start(TOP, true)).unwrap_err();
        assert_eq!(error.code, Code::StateDisk);
        assert!(error.message.contains("/nowhere/at/all"), "{error}");
    }
}
