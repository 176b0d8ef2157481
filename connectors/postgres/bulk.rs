//! The log as it is read over SQL, in bulk: the feed of a pipeline that is behind. The same
//! messages as `streaming.rs` has, at no more than half the cost for the server and less for us, in
//! calls of bounded size.
//!
//! The calls read a temporary copy of our slot, which goes when the session goes. So a call need
//! not wait until the one before it is durable, and nothing is delivered twice: the copy begins
//! at our position and moves with each call. The slot itself stays at what is durable. What a session
//! does with both is in `bulk_reader.rs`, how far a call reads in `bulk_turn.rs`. The calls are made by a
//! task of their own, `bulk_ahead.rs`, which says what they gave out, in order; here it is believed.
//!
//! # What a call proves
//!
//! The server decodes every record of the log that begins before the place it is given, and then
//! says through the copy how far it got: every commit that begins before that place was given out.

use std::mem;

use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::JoinHandle;

use super::bulk_ahead::{Ahead, Event, Orders};
use super::bulk_reader::{Door, Reader};
use super::bulk_turn::{FIRST_CALL, Place, READING_IN_BULK, failure};
use super::connect::ServerError;
use super::copy_binary::{Expected, Piece};
use super::frames::{self, Frames};
use super::gap;
use super::lsn::Lsn;
use super::wire::Wire;
use crate::error::{Code, Error, Result};

/// A row is one message.
const COLUMNS: u16 = 1;

/// A slot that is read in bulk.
pub struct Bulk {
    events: mpsc::UnboundedReceiver<Result<Event>>,
    orders: watch::Sender<Orders>,
    task: JoinHandle<()>,
    /// Rows that came, and the room they take up.
    rows: Option<(Frames, OwnedSemaphorePermit)>,
    /// What the call may still have.
    expected: Expected,
    /// Everything before it was given out.
    received: Lsn,
    settling: bool,
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
    NotWorthWhile(Reader),
    /// The server refuses it, for this reason. The session is of no use any more: up to version 14
    /// the plug-in remembers, after an error, of which tables it has spoken, and is silent of them.
    Refused(String),
}

/// What came of the attempt to begin.
pub enum Opened {
    /// It has begun.
    Bulk(Bulk),
    /// It is refused, or not worth while.
    Over(Over),
}

impl Bulk {
    /// Begins at our position, `from`, if that is worth while; so much is durable. Not cancel-safe.
    ///
    /// # Errors
    /// A gap, what the server says, silence (transient), or a broken connection.
    pub async fn open(wire: Wire, door: Door, from: Lsn, durable: Lsn) -> Result<Opened> {
        let mut reader = Reader::new(wire, &door).await?;
        let over = |end| Ok(Opened::Over(Over { at: from, end }));
        if is_too_old(reader.version()) {
            return over(End::Refused("it needs 14.8, 15.3 or newer".into()));
        }
        if let Err(error) = reader.copy_slot().await? {
            return match is_refusal(&error) {
                true => over(End::Refused(error.text())),
                false => Err(gap::failure(READING_IN_BULK, &error, &gap::AT_THE_SLOT)),
            };
        }
        let place = reader.place().await?;
        if (Place { confirmed: from, ..place }).next_call(door.above, FIRST_CALL).is_none() {
            return over(End::NotWorthWhile(reader));
        }
        if place.confirmed != from {
            reader.skip_to(from).await?;
        }
        let (orders, given) = watch::channel(Orders { begin: false, durable, close: false });
        let (sender, events) = mpsc::unbounded_channel();
        let reading = Ahead::new(door, reader, given, sender);
        Ok(Opened::Bulk(Bulk {
            events,
            orders,
            task: tokio::spawn(reading.run(from)),
            rows: None,
            expected: Expected::Nothing,
            received: from,
            settling: false,
        }))
    }

    /// Waits for what comes next. Cancel-safe.
    ///
    /// # Errors
    /// A gap, what the server says, silence (transient), or a broken connection.
    pub async fn peek(&mut self) -> Result<Next> {
        loop {
            while let Some((rows, _)) = &mut self.rows {
                match rows.first()? {
                    Some(row) => match self.expected.read(row, COLUMNS)? {
                        Piece::Row(_) => return Ok(Next::Message),
                        Piece::End => {
                            self.expected = Expected::Nothing;
                            rows.skip();
                        }
                    },
                    None => self.rows = None,
                }
            }
            self.orders.send_if_modified(|orders| !mem::replace(&mut orders.begin, true));
            match self.events.recv().await.ok_or_else(nothing_there)?? {
                Event::Rows(rows, room) => self.rows = Some((rows, room)),
                Event::Called(failed) => {
                    if let Some(over) = self.called(failed)? {
                        return Ok(Next::Over(over));
                    }
                }
                Event::Reached(place) => {
                    (self.received, self.settling) = (place, false);
                    self.expected = Expected::Header;
                    return Ok(Next::Reached(place));
                }
                Event::Settling(place) => {
                    (self.received, self.settling) = (place, true);
                    return Ok(Next::Reached(place));
                }
                Event::Over(at, reader) => {
                    return Ok(Next::Over(Over { at, end: End::NotWorthWhile(reader) }));
                }
            }
        }
    }

    /// The message that `peek` found.
    ///
    /// # Errors
    /// `protocol`.
    pub fn message(&self) -> Result<&[u8]> {
        let (rows, _) = self.rows.as_ref().ok_or_else(nothing_there)?;
        match self.expected.read(rows.first()?.ok_or_else(nothing_there)?, COLUMNS)? {
            Piece::Row(cells) => cells.only(),
            Piece::End => Err(nothing_there()),
        }
    }

    /// Steps over it.
    pub fn consume(&mut self) {
        if let Some((rows, _)) = &mut self.rows {
            rows.skip();
            self.expected = Expected::Row;
        }
    }

    /// Says up to where everything is durable, for the next time the slot can be moved.
    pub fn acknowledge(&self, durable: Lsn) {
        self.orders.send_modify(|orders| orders.durable = durable);
    }

    /// Whether only what was given out must still become durable.
    #[must_use]
    pub fn is_settling(&self) -> bool {
        self.settling
    }

    /// Tells the server what is durable, for the last time, if no call is under way. The next
    /// bulk read does it otherwise.
    ///
    /// # Errors
    /// What the server says, silence (transient), or a broken connection.
    pub async fn close(&mut self, durable: Lsn) -> Result<()> {
        if self.settling {
            self.orders.send_modify(|orders| (orders.durable, orders.close) = (durable, true));
            // Its end; or it went on before it heard of ours.
            self.events.recv().await.transpose()?;
        }
        Ok(())
    }

    /// A call is over. There is another one, unless the server refused this one.
    fn called(&mut self, failed: Option<ServerError>) -> Result<Option<Over>> {
        match (failed, self.expected) {
            (None, Expected::Nothing) => Ok(None),
            (None, _) => Err(frames::broken_protocol("rows without an end")),
            // After a row, only the session's next life knows how to go on.
            (Some(error), Expected::Header) if is_refusal(&error) => {
                Ok(Some(Over { at: self.received, end: End::Refused(error.text()) }))
            }
            (Some(error), _) => Err(failure(&error)),
        }
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.task.abort();
    }
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
