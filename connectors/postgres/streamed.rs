//! Transactions that the server sends before they have ended, because they are too large for its
//! memory. Their messages go to disk, and come back as those of any transaction when the commit is
//! there. Used by `streaming.rs`, with protocol 2 of pgoutput.
//!
//! Surprise: the server says which subtransactions were taken back, but not always: after a
//! reconnection it forgets those that it had put on its own disk. So what it says of them is
//! ignored, and `outcome.rs` asks what became of each when the commit is there.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use super::outcome::Committed;
use crate::error::{Code, Error, Result};
use crate::spool::{Failure, Spool};

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
    /// A transaction has been committed.
    Committed(Committed),
    /// The disk has no room for it. It may be given again.
    NoRoom(io::Error),
}

#[derive(Debug)]
struct InProgress {
    spool: Spool,
    /// Its subtransactions, and whether each has told the shape of a table.
    children: HashMap<u32, bool>,
}

impl Streamed {
    /// Nothing is in progress; files go into this directory.
    #[must_use]
    pub fn new(directory: PathBuf) -> Streamed {
        Streamed { directory, block: None, open: HashMap::new() }
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
            Err(failure) => failure.no_room(&self.directory).map(Taken::NoRoom),
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
        let (&[_, top @ .., _, _, _, _], []) = split::<9>(message)? else { return Err(trailing()) };
        if message[1..5] == message[5..] {
            // Nothing of it came if it is not there.
            self.open.remove(&u32::from_be_bytes(top));
        }
        Ok(Taken::Kept)
    }

    fn commit(&mut self, message: &[u8]) -> Attempt {
        let (&[_, a, b, c, d, flags], [_, ..]) = split(message)? else { return Err(trailing()) };
        let (xid, rest) = ([a, b, c, d], &message[6..]);
        let (commit_lsn, time) = match (flags, rest.len()) {
            (0, 24) => (&rest[..8], &rest[16..]),
            _ => return Err(wrong("a commit that is none")),
        };
        let top = u32::from_be_bytes(xid);
        let transaction = self.open.remove(&top).ok_or_else(unknown)?;
        match transaction.spool.read() {
            Ok(records) => Ok(Taken::Committed(Committed {
                xid: top,
                children: transaction.children,
                begin: [b"B", commit_lsn, time, &xid].concat(),
                records,
                end: [b"C\0", rest].concat(),
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
        InProgress { spool, children: HashMap::new() }
    }

    /// Keeps a message as it came, the transaction's number first.
    fn keep(&mut self, (top, xid): (u32, u32), tag: u8, rest: &[u8]) -> io::Result<()> {
        self.spool.make_room()?;
        if xid != top {
            *self.children.entry(xid).or_default() |= tag == b'R';
        }
        self.spool.push([&xid.to_be_bytes(), &[tag], rest]);
        Ok(())
    }
}

type Attempt = std::result::Result<Taken, Failure>;

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
    Error::stop(Code::Protocol, message).into()
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

        /// Gives all messages; the records of the transactions that were committed.
        fn take(&mut self, messages: &[Vec<u8>]) -> Result<Vec<Vec<Vec<u8>>>> {
            let mut committed = Vec::new();
            for message in messages {
                match self.streamed.take(message)? {
                    Taken::Committed(Committed { begin, mut records, end, .. }) => {
                        let mut all = vec![begin];
                        while records.load().unwrap() {
                            all.push(records.record().to_vec());
                            records.consume();
                        }
                        all.push(end);
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

    fn transaction(xid: u32, lsn: u64, messages: &[(u32, Vec<u8>)]) -> Vec<Vec<u8>> {
        // The time in `encode::commit` is zero, in PostgreSQL's own count.
        let begin = [b"B".as_slice(), &lsn.to_be_bytes(), &[0; 8], &xid.to_be_bytes()].concat();
        let record =
            |(xid, plain): &(u32, Vec<u8>)| [&xid.to_be_bytes(), plain.as_slice()].concat();
        let records: Vec<Vec<u8>> = messages.iter().map(record).collect();
        [vec![begin], records, vec![encode::commit(lsn, lsn + 0x30)]].concat()
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
            transaction(80, 0x200, &[(80, row("x"))]),
            transaction(TOP, 0x300, &[(TOP, relation()), (TOP, row("a")), (71, row("b"))]),
        ];
        assert_eq!(fixture.take(&messages), Ok(expected.to_vec()));
        assert!(!fixture.streamed.in_block());
        assert!(matches!(fixture.streamed.take(&row("plain")), Ok(Taken::Plain)));
    }

    #[test]
    fn what_is_said_to_be_taken_back_is_kept_until_it_is_asked_for() {
        let mut streamed = Fixture::new();
        let messages = [
            start(TOP, true),
            part(TOP, &relation()),
            part(71, &row("a")),
            part(72, &relation()),
            part(71, &row("b")),
            stop(),
            abort(TOP, 71),
            abort(TOP, 99),
        ];
        assert_eq!(streamed.take(&messages), Ok(vec![]));
        let taken = streamed.streamed.take(&commit(TOP, 0x300));
        let Ok(Taken::Committed(committed)) = taken else { panic!("{taken:?}") };
        assert_eq!(committed.xid, TOP);
        assert_eq!(committed.children, HashMap::from([(71, false), (72, true)]));
    }

    #[test]
    fn an_aborted_transaction_leaves_nothing() {
        let mut fixture = Fixture::new();
        let messages =
            [start(TOP, true), part(TOP, &row("a")), stop(), abort(TOP, TOP), abort(TOP, TOP)];
        assert_eq!(fixture.take(&messages), Ok(vec![]));
        assert!(fixture.take(&[commit(TOP, 0x300)]).is_err());
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
