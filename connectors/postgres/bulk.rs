//! The log as it is read over SQL, in bulk: the feed of a pipeline that is behind. The same
//! messages as `streaming.rs` has, at little more than half the cost for the server and a third of
//! the cost for us, in calls of bounded size.
//!
//! The calls read a temporary copy of our slot, which goes when the session goes. So a call need
//! not wait until the one before it is durable, and nothing is delivered twice: the copy begins
//! at our position and moves with each call. The slot itself stays at what is durable, and is
//! moved between two calls.
//!
//! # What a call proves
//!
//! The server decodes every record of the log that begins before the place it is given, and then
//! says through the copy how far it got: every commit that begins before that place was given out.
//!
//! Surprise: the server decodes the whole call before it sends the first byte, and begins each
//! time at the oldest transaction that was open. So a call takes as much new log as it has to read
//! again, which makes large transactions cost no more than twice; and where much would be read
//! again for little, streaming is the cheaper way.

use std::pin::Pin;
use std::sync::Arc;

use postgres_protocol::message::backend::Message;

use super::bulk_rows::{Expected, Piece};
use super::config::Config;
use super::connect::{self, ServerError};
use super::gap;
use super::lsn::Lsn;
use super::source_sql as sql;
use super::watchdog::Patience;
use super::wire::{self, Rows, Wire};
use crate::error::{Code, Error, Result};

const READING_IN_BULK: &str = "read the log in bulk";
/// As while streaming; and a slot whose log is gone says so only when it is read.
const GAPS: [(&str, Code); 2] = [gap::WHILE_READING[0], gap::AT_THE_SLOT[1]];
/// How much log a call takes, in multiples of what a pipeline must be behind. The first one is small,
/// so that the target has something to do while the server decodes the second one; and none is
/// so large that the target runs out of work meanwhile.
const FIRST_CALL: u64 = 2;
const CALL: u64 = 4;
/// How much it takes at most when it has much to read again.
const CALL_MAX: u64 = 64;
/// How much log a call may read again, in multiples of what it reads for the first time. To decode
/// it once more costs the server about a quarter of what streaming it costs.
const AGAIN_MAX: u64 = 4;

/// What is read, by whom, from where.
pub struct Task<'a> {
    /// The server, to ask about our session.
    pub config: &'a Arc<Config>,
    /// The slot; also the name of the publication.
    pub slot: &'a str,
    /// How many bytes behind a pipeline must be.
    pub above: u64,
    /// Our position.
    pub from: Lsn,
    /// What is durable.
    pub durable: Lsn,
}

/// A slot that is read in bulk.
pub struct Bulk {
    copy: Arc<CopiedSlot>,
    /// Everything before it was given out.
    received: Lsn,
    /// What is done between two calls. It has the connection, and goes on when the future that
    /// waited for it is dropped.
    turning: Option<Pin<Box<dyn Future<Output = Result<Turn>> + Send>>>,
    wire: Option<Wire>,
    expected: Expected,
    failed: Option<ServerError>,
    patience: Patience,
}

/// The temporary copy of a slot.
struct CopiedSlot {
    slot: String,
    name: String,
    above: u64,
}

/// What comes next.
pub enum Next {
    /// A message, until `consume`.
    Message,
    /// Everything before it was given out.
    Reached(Lsn),
    /// No more in bulk.
    Over(Over),
}

/// The end of the bulk read.
pub struct Over {
    /// From where to go on.
    pub at: Lsn,
    /// Why, and on which connection.
    pub end: End,
}

/// Why a bulk read is over.
pub enum End {
    /// It is not worth while any more.
    NotWorthWhile(Rest),
    /// The server refuses it, for this reason. The session is of no use any more: up to version 14
    /// the plug-in remembers, after an error, of which tables it has spoken, and is silent of them.
    Refused(String),
}

/// What is left of a bulk read.
pub struct Rest {
    wire: Wire,
    copy: String,
}

/// What came of the attempt to begin.
pub enum Opened {
    /// It has begun.
    Bulk(Bulk),
    /// It is refused, or not worth while.
    Over(Over),
}

/// The connection between two calls, and where the copy of the slot is.
struct Turn {
    wire: Wire,
    place: Place,
    /// Whether the next call was begun.
    calling: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// Every commit before it was given out.
    confirmed: Lsn,
    /// From where the server reads the log again.
    restart: Lsn,
    /// The end of the log.
    end: Lsn,
}

impl Bulk {
    /// Begins at our position, if that is worth while. Not cancel-safe.
    ///
    /// # Errors
    /// A gap, what the server says, silence (transient), or a broken connection.
    pub async fn open(mut wire: Wire, task: &Task<'_>) -> Result<Opened> {
        let backend = answer(connect::within(task.config, wire.ask(sql::BACKEND)).await?)?;
        let (backend_pid, version): (i32, i32) = (cell(&backend, 0)?, cell(&backend, 1)?);
        let mut patience = Patience::new(task.config.clone(), backend_pid);
        let name = format!("driftless_bulk_{backend_pid}");
        let over = |end| Ok(Opened::Over(Over { at: task.from, end }));
        if is_too_old(version) {
            return over(End::Refused("it needs 14.8, 15.3 or newer".into()));
        }
        let copied = patience.wait(wire.ask(&sql::copy_slot(task.slot, &name))).await??;
        if let Err(error) = copied {
            return match is_refusal(&error) {
                true => over(End::Refused(error.text())),
                false => Err(gap::failure(READING_IN_BULK, &error, &gap::AT_THE_SLOT)),
            };
        }
        let place = patience.wait(place(&mut wire, &name)).await??;
        if (Place { confirmed: task.from, ..place }).next_call(task.above, FIRST_CALL).is_none() {
            return over(End::NotWorthWhile(Rest { wire, copy: name }));
        }
        // As START_REPLICATION does with a position ahead of the slot's.
        let moved = patience.wait(wire.ask(&sql::move_slot(&name, task.from))).await??;
        moved
            .map_err(|error| gap::failure(READING_IN_BULK, &error, &[("55000", Code::SlotGap)]))?;
        let copy = Arc::new(CopiedSlot { slot: task.slot.to_owned(), name, above: task.above });
        Ok(Opened::Bulk(Bulk {
            turning: Some(Box::pin(turn(wire, copy.clone(), (task.durable, FIRST_CALL)))),
            copy,
            received: task.from,
            wire: None,
            expected: Expected::Nothing,
            failed: None,
            patience,
        }))
    }

    /// Waits for what comes next. Cancel-safe.
    ///
    /// # Errors
    /// A gap, what the server says, silence (transient), or a broken connection.
    pub async fn peek(&mut self, durable: Lsn) -> Result<Next> {
        loop {
            if let Some(turning) = &mut self.turning {
                let turn = self.patience.wait(turning.as_mut()).await??;
                self.turning = None;
                return self.turned(turn);
            }
            let wire = self.wire.as_mut().ok_or_else(nothing_there)?;
            // What has arrived needs no clock.
            if !wire.has_message()? {
                let waited = self.patience.wait(wire.wait()).await?;
                // A fatal error is followed by the end of the connection.
                waited.map_err(|ended| self.failed.as_ref().map_or(ended, failure))?;
            }
            let (tag, body) = wire.head()?;
            if tag == b'd' {
                match self.expected.read(body)? {
                    Piece::Message(_) => return Ok(Next::Message),
                    Piece::End => self.expected = Expected::Nothing,
                }
                wire.skip();
                continue;
            }
            match wire.take()? {
                Message::CopyOutResponse(_) | Message::CopyDone | Message::CommandComplete(_) => {}
                Message::NoticeResponse(body) => {
                    gap::unless_noticed(&wire::server_error(&mut body.fields()))?;
                }
                Message::ErrorResponse(body) => {
                    self.failed = Some(wire::server_error(&mut body.fields()));
                }
                Message::ReadyForQuery(_) => {
                    if let Some(over) = self.called(durable)? {
                        return Ok(Next::Over(over));
                    }
                }
                other => wire::ignore(&other)?,
            }
        }
    }

    /// The message that `peek` found.
    ///
    /// # Errors
    /// `protocol`.
    pub fn message(&self) -> Result<&[u8]> {
        let (_, body) = self.wire.as_ref().ok_or_else(nothing_there)?.head()?;
        match self.expected.read(body)? {
            Piece::Message(message) => Ok(message),
            Piece::End => Err(nothing_there()),
        }
    }

    /// Steps over it.
    pub fn consume(&mut self) {
        if let Some(wire) = &mut self.wire {
            wire.skip();
            self.expected = Expected::Row;
        }
    }

    fn turned(&mut self, turn: Turn) -> Result<Next> {
        let Turn { wire, place, calling } = turn;
        let at = place.confirmed;
        if at < self.received {
            return Err(wire::broken_protocol("a slot that moves back"));
        }
        self.received = at;
        if !calling {
            let rest = Rest { wire, copy: self.copy.name.clone() };
            return Ok(Next::Over(Over { at, end: End::NotWorthWhile(rest) }));
        }
        (self.wire, self.expected, self.failed) = (Some(wire), Expected::Header, None);
        Ok(Next::Reached(at))
    }

    /// A call is over. Goes on to the next one, unless the server refused this one.
    fn called(&mut self, durable: Lsn) -> Result<Option<Over>> {
        let wire = self.wire.take().ok_or_else(nothing_there)?;
        match (self.failed.take(), self.expected) {
            (None, Expected::Nothing) => {
                self.turning = Some(Box::pin(turn(wire, self.copy.clone(), (durable, CALL))));
                Ok(None)
            }
            (None, _) => Err(wire::broken_protocol("rows without an end")),
            // After a row, only the session's next life knows how to go on.
            (Some(error), Expected::Header) if is_refusal(&error) => {
                Ok(Some(Over { at: self.received, end: End::Refused(error.text()) }))
            }
            (Some(error), _) => Err(failure(&error)),
        }
    }
}

impl Rest {
    /// The connection, with nothing left of the bulk read. Not cancel-safe.
    ///
    /// # Errors
    /// What the server says, or a broken connection.
    pub async fn into_wire(mut self) -> Result<Wire> {
        answer(self.wire.ask(&sql::drop_slot_if_there(&self.copy)).await?)?;
        Ok(self.wire)
    }
}

impl Place {
    /// Up to where the next call reads; `None` if there should be none.
    fn next_call(&self, above: u64, least: u64) -> Option<Lsn> {
        let new = self.end.0.saturating_sub(self.confirmed.0);
        let again = self.confirmed.0.saturating_sub(self.restart.0);
        let call = again.clamp(least * above, CALL_MAX * above);
        // A rest is taken along rather than left for a call of its own.
        let call = if new < 2 * call { new } else { call };
        (new >= above && again <= AGAIN_MAX * call).then_some(Lsn(self.confirmed.0 + call))
    }
}

/// Lets go of log that is durable, looks how far the copy is, and begins the next call.
async fn turn(mut wire: Wire, copy: Arc<CopiedSlot>, (durable, least): (Lsn, u64)) -> Result<Turn> {
    let moved = wire.ask(&sql::move_slot_if_free(&copy.slot, durable)).await?;
    moved.map_err(|error| gap::failure("move the slot", &error, &gap::AT_THE_SLOT))?;
    let place = place(&mut wire, &copy.name).await?;
    let next_call = place.next_call(copy.above, least);
    if let Some(upto) = next_call {
        wire.send(&sql::bulk_read(&copy.name, &copy.slot, upto)).await?;
    }
    Ok(Turn { wire, place, calling: next_call.is_some() })
}

async fn place(wire: &mut Wire, slot: &str) -> Result<Place> {
    let rows = answer(wire.ask(&sql::slot_place(slot)).await?)?;
    Ok(Place { confirmed: cell(&rows, 0)?, restart: cell(&rows, 1)?, end: cell(&rows, 2)? })
}

fn answer(answer: std::result::Result<Rows, ServerError>) -> Result<Rows> {
    answer.map_err(|error| failure(&error))
}

fn cell<T: std::str::FromStr>(rows: &Rows, column: usize) -> Result<T> {
    let cell = rows.first().and_then(|row| row.get(column)?.as_deref()?.parse().ok());
    cell.ok_or_else(|| wire::broken_protocol("no answer to a question about a slot"))
}

/// Up to these versions a session can start the plug-in only about ten times.
fn is_too_old(version: i32) -> bool {
    version < 140_008 || (150_000..150_003).contains(&version)
}

/// Whether it is something that streaming does not need: a privilege for a function, another slot,
/// room for temporary files, the functions themselves.
fn is_refusal(error: &ServerError) -> bool {
    let sqlstate = error.sqlstate.as_str();
    sqlstate.starts_with("53") || ["0A000", "42501", "42710", "42883"].contains(&sqlstate)
}

fn failure(error: &ServerError) -> Error {
    gap::failure(READING_IN_BULK, error, &GAPS)
}

fn nothing_there() -> Error {
    Error::stop(Code::Internal, "the bulk read of the log was asked for what it does not have")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_runs_out_of_room_for_the_plug_in_is_streamed() {
        let old: Vec<i32> = [140_007, 140_008, 149_999, 150_002, 150_003, 160_000]
            .into_iter()
            .filter(|version| is_too_old(*version))
            .collect();
        assert_eq!(old, [140_007, 150_002]);
    }

    #[test]
    fn a_call_takes_a_bounded_piece_but_at_least_what_is_read_again() {
        let check = |(restart, confirmed, end), expected: Option<u64>| {
            let place = Place { restart: Lsn(restart), confirmed: Lsn(confirmed), end: Lsn(end) };
            assert_eq!(place.next_call(10, 4), expected.map(Lsn), "{place:?}");
        };
        check((1000, 1000, 1009), None);
        check((1000, 1000, 1010), Some(1010));
        check((1000, 1000, 1079), Some(1079));
        check((1000, 1000, 1080), Some(1040));
        check((900, 1000, 1199), Some(1199));
        check((900, 1000, 1200), Some(1100));
        check((0, 1000, 9000), Some(1640));
        check((0, 1000, 1249), None);
        check((0, 1000, 1250), Some(1250));
        check((0, 2560, 9000), Some(3200));
        check((0, 2561, 9000), None);
    }
}
