//! What became of the subtransactions of a transaction that was sent before its end: the source is
//! asked, over SQL, when the commit is there. Then its messages come back, as those of any other,
//! without what was taken back. Between `streamed.rs` and `streaming.rs`.
//!
//! # Why the answer is final
//!
//! A session that takes a subtransaction back marks it as aborted in the server's commit log, its
//! children with it (`TransactionIdAbortTree`), and takes it from the list of those that run,
//! before its next statement. We ask after we have read the commit of the whole, which the same
//! session wrote later. So whatever was taken back is "aborted" by now. The commit itself may not
//! be visible yet, while it waits for a standby: what is still "in progress" belongs to it and is
//! committed with it.
//!
//! Surprise: shapes of tables are told once a transaction, and those told within something that was
//! taken back may hold beyond it, or may not. Rather than guess, the transaction is read again at
//! its end. So it is where the source has no answer.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::time::timeout;
use tokio_postgres::Client;

use super::pipeline::{ANSWER, HEARTBEAT, Pipeline};
use super::source_sql as sql;
use super::visibility::Snapshot;
use super::{connect, session};
use crate::error::{Code, Error, Result};
use crate::spool::Records;

/// How many subtransactions are asked for at a time.
const PIECE: usize = 4096;
/// Each record begins with the number of its subtransaction.
const XID: usize = 4;

/// A transaction that has been committed, with everything that was sent of it.
#[derive(Debug)]
pub struct Committed {
    /// Its number.
    pub xid: u32,
    /// Its subtransactions, and whether each has told the shape of a table.
    pub children: HashMap<u32, bool>,
    /// The message that begins it.
    pub begin: Vec<u8>,
    /// Those in between, with the number of the subtransaction before each.
    pub records: Records,
    /// The message that ends it.
    pub end: Vec<u8>,
}

/// Asks which subtransactions were taken back; the messages of the others.
///
/// # Errors
/// The connection, or silence (transient). Where the answer leaves a doubt, early transactions are
/// given up (transient).
pub async fn ask(pipeline: Arc<Pipeline>, committed: Committed) -> Result<Replay> {
    if committed.children.is_empty() {
        return Ok(committed.without(HashSet::new()));
    }
    // Its own number is a test whether we have come to the right server.
    let mut xids = vec![committed.xid];
    xids.extend(committed.children.keys());
    let doubt = |why: &str| {
        let xid = committed.xid;
        pipeline.early.give_up(format!("read the large transaction {xid}: {why}"))
    };
    let application = session::application(&pipeline.slot);
    let client = connect::connect(&pipeline.config, &application).await?;
    let mut all = HashSet::new();
    for piece in xids.chunks(PIECE) {
        // A connection that swallows everything must not hold up the log for ever.
        let Ok(statuses) = timeout(HEARTBEAT + ANSWER, statuses(&client, piece)).await else {
            let message = "the source does not say what became of subtransactions";
            return Err(Error::transient(Code::Unreachable, message));
        };
        let statuses = statuses.map_err(|error| match error.is_transient() {
            true => error,
            false => doubt(&error.message),
        })?;
        let answers = piece.iter().copied().zip(statuses.iter().map(Option::as_deref));
        all.extend(aborted(&committed, answers).map_err(|why| doubt(&why))?);
    }
    Ok(committed.without(all))
}

/// What the source knows of each.
async fn statuses(client: &Client, xids: &[u32]) -> Result<Vec<Option<String>>> {
    let failed = |error| connect::error("ask what became of subtransactions", &error);
    let now = client.query_one(sql::NOW_SEEN, &[]).await.map_err(failed)?;
    let now = Snapshot::parse(now.get(0))?;
    let wide = xids.iter().map(|xid| now.widen(*xid).cast_signed()).collect::<Vec<_>>();
    let rows = client.query(sql::STATUSES, &[&wide]).await.map_err(failed)?;
    match rows.len() == xids.len() {
        true => Ok(rows.iter().map(|row| row.get(0)).collect()),
        false => Err(Error::stop(Code::Protocol, "some subtransactions were left out")),
    }
}

/// The subtransactions that were taken back.
fn aborted<'a>(
    committed: &Committed,
    answers: impl Iterator<Item = (u32, Option<&'a str>)>,
) -> std::result::Result<HashSet<u32>, String> {
    let mut aborted = HashSet::new();
    for (xid, status) in answers {
        match status {
            Some("committed" | "in progress") => {}
            Some("aborted") if xid != committed.xid => {
                if committed.children.get(&xid) != Some(&false) {
                    return Err("it took back what told the shape of a table".into());
                }
                aborted.insert(xid);
            }
            Some(other) => return Err(format!("the source says that {xid} is {other:?}")),
            None => return Err(format!("the source has forgotten what became of {xid}")),
        }
    }
    Ok(aborted)
}

impl Committed {
    fn without(self, aborted: HashSet<u32>) -> Replay {
        let Committed { begin, records, end, .. } = self;
        Replay { place: Place::Begin, begin, records, aborted, end }
    }
}

/// The messages of a transaction that was sent before its end, as those of any other.
#[derive(Debug)]
pub struct Replay {
    place: Place,
    begin: Vec<u8>,
    records: Records,
    /// The subtransactions whose messages do not come.
    aborted: HashSet<u32>,
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
    /// Whether there is another message. After that, `message` is the one. Cancel-safe.
    ///
    /// # Errors
    /// `state-disk` if the disk fails.
    pub async fn load(&mut self) -> Result<bool> {
        while self.place == Place::Records {
            let loaded = self.records.load().map_err(|error| {
                let message = format!("read a large transaction from the disk: {error}");
                Error::transient(Code::StateDisk, message)
            })?;
            match self.records.record().first_chunk::<XID>() {
                Some(xid) if loaded && self.aborted.contains(&u32::from_be_bytes(*xid)) => {
                    self.records.consume();
                    // Nobody else would come to anything while much is left out.
                    tokio::task::consume_budget().await;
                }
                _ if loaded => break,
                _ => self.place = Place::End,
            }
        }
        Ok(self.place != Place::Over)
    }

    /// The message that was loaded; the same one until `consume`.
    #[must_use]
    pub fn message(&self) -> &[u8] {
        match self.place {
            Place::Begin => &self.begin,
            Place::Records => self.records.record().get(XID..).unwrap_or_default(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::Spool;

    const TOP: u32 = 70;

    /// A transaction with these messages, each of a subtransaction.
    fn committed(messages: &[(u32, &str)]) -> Committed {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::create(directory.path()).unwrap();
        let mut children = HashMap::new();
        for (xid, message) in messages {
            spool.push([&xid.to_be_bytes(), b"", message.as_bytes()]);
            if *xid != TOP {
                *children.entry(*xid).or_default() |= message.starts_with('R');
            }
        }
        let records = spool.read().unwrap();
        Committed { xid: TOP, children, begin: b"B".into(), records, end: b"C".into() }
    }

    async fn check(
        messages: &[(u32, &str)],
        answers: &[(u32, Option<&str>)],
        expected: std::result::Result<&[&str], &str>,
    ) {
        let committed = committed(messages);
        let aborted = match aborted(&committed, answers.iter().copied()) {
            Ok(aborted) => aborted,
            Err(why) => return assert_eq!(expected, Err(why.as_str())),
        };
        let mut replay = committed.without(aborted);
        let mut found = Vec::new();
        while replay.load().await.unwrap() {
            found.push(String::from_utf8_lossy(replay.message()).into_owned());
            replay.consume();
        }
        assert_eq!(expected, Ok(found.iter().map(String::as_str).collect::<Vec<_>>().as_slice()));
    }

    #[tokio::test]
    async fn what_was_taken_back_does_not_come_and_all_else_does_in_its_order() {
        let messages =
            [(TOP, "R"), (TOP, "Ia"), (71, "Ib"), (72, "Ic"), (73, "Id"), (71, "Ie"), (TOP, "If")];
        let done = Some("committed");
        let gone = Some("aborted");
        let kept = ["B", "R", "Ia", "Ib", "Ic", "Id", "Ie", "If", "C"];
        check(&messages, &[(TOP, done), (71, done), (72, done), (73, done)], Ok(&kept)).await;
        let not_yet = Some("in progress");
        check(&messages, &[(TOP, not_yet), (71, not_yet), (72, done), (73, done)], Ok(&kept)).await;
        let kept = ["B", "R", "Ia", "Id", "If", "C"];
        check(&messages, &[(TOP, not_yet), (71, gone), (72, gone), (73, done)], Ok(&kept)).await;
        check(&[(71, "Ib"), (72, "Ic")], &[(71, gone), (72, gone)], Ok(&["B", "C"])).await;
    }

    #[tokio::test]
    async fn a_doubt_is_none_of_the_two() {
        let messages = [(TOP, "Ia"), (71, "R"), (71, "Ib")];
        let (done, gone) = (Some("committed"), Some("aborted"));
        let forgotten = "the source has forgotten what became of 71";
        check(&messages, &[(TOP, done), (71, None)], Err(forgotten)).await;
        let other = "the source says that 70 is \"aborted\"";
        check(&messages, &[(TOP, gone), (71, done)], Err(other)).await;
        let unknown = "the source says that 71 is \"lost\"";
        check(&messages, &[(71, Some("lost"))], Err(unknown)).await;
        let shape = "it took back what told the shape of a table";
        check(&messages, &[(TOP, done), (71, gone)], Err(shape)).await;
    }
}
