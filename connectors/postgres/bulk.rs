//! The log as it is read over SQL, in bulk: the feed of a pipeline that is behind. The same
//! messages as `streaming.rs` has, at little more than half the cost for the server and a third of
//! the cost for us, in calls of bounded size.
//!
//! The calls read a temporary copy of our slot, which goes when the session goes. So a call need
//! not wait until the one before it is durable, and nothing is delivered twice: the copy begins
//! at our position and moves with each call. The slot itself stays at what is durable; what is done
//! with both between two calls is in `bulk_turn.rs`.
//!
//! # What a call proves
//!
//! The server decodes every record of the log that begins before the place it is given, and then
//! says through the copy how far it got: every commit that begins before that place was given out.
//!
//! Surprise: when nothing is left that is worth a call, the stream does not begin at once but when
//! everything is durable. Only then can the slot be moved; a stream that begins before reads the log
//! again from where the slot is, in the way that is three times as expensive.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use postgres_protocol::message::backend::Message;
use tokio::time::{Instant, sleep_until};

use super::bulk_rows::{Expected, Piece};
use super::bulk_turn::{CALL, CopiedSlot, FIRST_CALL, Place, Turn, cell};
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
/// How long the stream waits for a target that is slow to make everything durable.
const SETTLING: Duration = Duration::from_secs(10);

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
    slots: Arc<CopiedSlot>,
    /// Everything before it was given out.
    received: Lsn,
    /// Up to where the last call was to read; our position before the first.
    upto: Lsn,
    /// Whether everything that was given out has had its time to become durable.
    settled: bool,
    state: State,
    patience: Patience,
}

enum State {
    /// Between two calls. It has the connection, and goes on when the future that waited for it is
    /// dropped.
    Turning(Pin<Box<dyn Future<Output = Result<Turn>> + Send>>),
    Reading(Call),
    /// Everything was given out, and has until then to become durable.
    Settling(Wire, Instant),
    /// Over, or broken.
    Gone,
}

/// A call whose rows are read.
struct Call {
    wire: Wire,
    expected: Expected,
    failed: Option<ServerError>,
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

/// What a call has to say.
enum Peeked {
    /// A message, until it is skipped.
    Message,
    /// Nothing more.
    End,
}

/// What came of the attempt to begin.
pub enum Opened {
    /// It has begun.
    Bulk(Bulk),
    /// It is refused, or not worth while.
    Over(Over),
}

impl Bulk {
    /// Begins at our position, if that is worth while. Not cancel-safe.
    ///
    /// # Errors
    /// A gap, what the server says, silence (transient), or a broken connection.
    pub async fn open(mut wire: Wire, task: &Task<'_>) -> Result<Opened> {
        let &Task { config, slot, above, from, durable } = task;
        let backend = answer(connect::within(config, wire.ask(sql::BACKEND)).await?)?;
        let (backend_pid, version): (i32, i32) = (cell(&backend, 0)?, cell(&backend, 1)?);
        let mut patience = Patience::new(config.clone(), backend_pid);
        let copy = format!("driftless_bulk_{backend_pid}");
        let over = |end| Ok(Opened::Over(Over { at: from, end }));
        if is_too_old(version) {
            return over(End::Refused("it needs 14.8, 15.3 or newer".into()));
        }
        let copied = patience.wait(wire.ask(&sql::copy_slot(slot, &copy))).await??;
        if let Err(error) = copied {
            return match is_refusal(&error) {
                true => over(End::Refused(error.text())),
                false => Err(gap::failure(READING_IN_BULK, &error, &gap::AT_THE_SLOT)),
            };
        }
        let slots = CopiedSlot { slot: slot.to_owned(), copy, above };
        let place = patience.wait(slots.place(&mut wire)).await??;
        if (Place { confirmed: from, ..place }).next_call(above, FIRST_CALL).is_none() {
            return over(End::NotWorthWhile(Rest { wire, copy: slots.copy }));
        }
        if place.confirmed != from {
            // As START_REPLICATION does with a position ahead of the slot's.
            let moved = patience.wait(wire.ask(&sql::move_slot(&slots.copy, from))).await??;
            moved.map_err(|error| {
                gap::failure(READING_IN_BULK, &error, &[("55000", Code::SlotGap)])
            })?;
        }
        let mut bulk = Bulk {
            slots: Arc::new(slots),
            received: from,
            upto: from,
            settled: false,
            state: State::Gone,
            patience,
        };
        bulk.go_on(wire, durable, (CALL * above, FIRST_CALL));
        Ok(Opened::Bulk(bulk))
    }

    /// Waits for what comes next. Cancel-safe.
    ///
    /// # Errors
    /// A gap, what the server says, silence (transient), or a broken connection.
    pub async fn peek(&mut self, durable: Lsn) -> Result<Next> {
        loop {
            match &mut self.state {
                State::Turning(turning) => {
                    let turn = self.patience.wait(turning.as_mut()).await??;
                    return self.turned(turn);
                }
                State::Reading(call) => match call.peek(&mut self.patience).await? {
                    Peeked::Message => return Ok(Next::Message),
                    Peeked::End => {
                        if let Some(over) = self.called(durable)? {
                            return Ok(Next::Over(over));
                        }
                    }
                },
                State::Settling(_, until) => {
                    if durable < self.received {
                        sleep_until(*until).await;
                    }
                    self.settled(durable)?;
                }
                State::Gone => return Err(nothing_there()),
            }
        }
    }

    /// The message that `peek` found.
    ///
    /// # Errors
    /// `protocol`.
    pub fn message(&self) -> Result<&[u8]> {
        let State::Reading(call) = &self.state else { return Err(nothing_there()) };
        let (_, body) = call.wire.head()?;
        match call.expected.read(body)? {
            Piece::Message(message) => Ok(message),
            Piece::End => Err(nothing_there()),
        }
    }

    /// Steps over it.
    pub fn consume(&mut self) {
        if let State::Reading(call) = &mut self.state {
            call.wire.skip();
            call.expected = Expected::Row;
        }
    }

    /// Whether only what was given out must still become durable.
    #[must_use]
    pub fn is_settling(&self) -> bool {
        matches!(self.state, State::Settling(..))
    }

    /// Moves the slot to what is durable, for the last time, if no call is under way. The next
    /// bulk read does it otherwise.
    ///
    /// # Errors
    /// What the server says, silence (transient), or a broken connection.
    pub async fn close(&mut self, durable: Lsn) -> Result<()> {
        if let State::Settling(wire, _) = &mut self.state {
            self.patience.wait(self.slots.move_slot(wire, durable, 0)).await??;
        }
        Ok(())
    }

    /// Moves the slot to what is durable if that lets go of `gain` bytes of log, and begins a call of
    /// at least `least` times what a pipeline must be behind.
    fn go_on(&mut self, mut wire: Wire, durable: Lsn, (gain, least): (u64, u64)) {
        let slots = self.slots.clone();
        self.state = State::Turning(Box::pin(async move {
            slots.move_slot(&mut wire, durable, gain).await?;
            slots.begin_call(wire, least).await
        }));
    }

    /// Everything is durable, or the target takes too long for it.
    fn settled(&mut self, durable: Lsn) -> Result<()> {
        let State::Settling(wire, _) = std::mem::replace(&mut self.state, State::Gone) else {
            return Err(nothing_there());
        };
        self.settled = true;
        self.go_on(wire, durable, (self.slots.above, CALL));
        Ok(())
    }

    fn turned(&mut self, turn: Turn) -> Result<Next> {
        let Turn { wire, place, next_call } = turn;
        // What was not read must not be taken for read; and it would be asked for again for ever.
        if place.confirmed < self.upto {
            return Err(wire::broken_protocol("a bulk read that ends before its end"));
        }
        self.received = place.confirmed;
        match (next_call, self.settled) {
            (Some(upto), _) => {
                (self.upto, self.settled) = (upto, false);
                let call = Call { wire, expected: Expected::Header, failed: None };
                self.state = State::Reading(call);
            }
            (None, false) => self.state = State::Settling(wire, Instant::now() + SETTLING),
            (None, true) => {
                let rest = Rest { wire, copy: self.slots.copy.clone() };
                let end = End::NotWorthWhile(rest);
                return Ok(Next::Over(Over { at: self.received, end }));
            }
        }
        Ok(Next::Reached(self.received))
    }

    /// A call is over. Goes on to the next one, unless the server refused this one.
    fn called(&mut self, durable: Lsn) -> Result<Option<Over>> {
        let State::Reading(call) = std::mem::replace(&mut self.state, State::Gone) else {
            return Err(nothing_there());
        };
        match (call.failed, call.expected) {
            (None, Expected::Nothing) => {
                // As much as a call, so that no more log is read for the slot's sake than for ours.
                self.go_on(call.wire, durable, (CALL * self.slots.above, CALL));
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

impl Call {
    async fn peek(&mut self, patience: &mut Patience) -> Result<Peeked> {
        loop {
            // What has arrived needs no clock.
            if !self.wire.has_message()? {
                let waited = patience.wait(self.wire.wait()).await?;
                // A fatal error is followed by the end of the connection.
                waited.map_err(|ended| self.failed.as_ref().map_or(ended, failure))?;
            }
            let (tag, body) = self.wire.head()?;
            if tag == b'd' {
                match self.expected.read(body)? {
                    Piece::Message(_) => return Ok(Peeked::Message),
                    Piece::End => self.expected = Expected::Nothing,
                }
                self.wire.skip();
                continue;
            }
            match self.wire.take()? {
                Message::CopyOutResponse(_) | Message::CopyDone | Message::CommandComplete(_) => {}
                Message::NoticeResponse(body) => {
                    gap::unless_noticed(&wire::server_error(&mut body.fields()))?;
                }
                Message::ErrorResponse(body) => {
                    self.failed = Some(wire::server_error(&mut body.fields()));
                }
                Message::ReadyForQuery(_) => return Ok(Peeked::End),
                other => wire::ignore(&other)?,
            }
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

/// What a server answered while it is read in bulk.
///
/// # Errors
/// What its error means.
pub fn answer(answer: std::result::Result<Rows, ServerError>) -> Result<Rows> {
    answer.map_err(|error| failure(&error))
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
}
