//! The task of a bulk read: makes its calls, one after the other, and takes what they give out off the
//! network before anybody wants it, within bounds. So the server decodes the next call while we still
//! work on the last one. Begun and listened to by `bulk.rs`.
//!
//! Surprise: when nothing is left that is worth a call, the task waits until everything is durable.
//! Only then can the slot be moved; a stream that begins before reads the log again from where the
//! slot is, in the way that is more than twice as expensive.

use std::sync::Arc;
use std::time::Duration;

use postgres_protocol::message::backend::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;

use super::bulk_turn::{CALL, CopiedSlot, FIRST_CALL, answer, failure};
use super::connect::ServerError;
use super::frames::Frames;
use super::gap;
use super::lsn::Lsn;
use super::source_sql as sql;
use super::watchdog::Patience;
use super::wire::{self, Wire};
use crate::error::{Error, Result};

/// How long the stream waits for a target that is slow to make everything durable.
const SETTLING: Duration = Duration::from_secs(10);
/// In which unit room for rows is counted.
const ROOM_BYTES: usize = 1024;

/// What the task has to say, in this order.
pub enum Event {
    /// Rows of a call, and the room that they take up until this is dropped.
    Rows(Frames, OwnedSemaphorePermit),
    /// A call is over; or the server refused to go on with it, and the task is over.
    Called(Option<ServerError>),
    /// Everything before it was given out, and another call has begun.
    Reached(Lsn),
    /// Everything before it was given out, and has some time to become durable.
    Settling(Lsn),
    /// Everything before it was given out, and what is left is not worth a call.
    Over(Lsn, Rest),
}

/// What is left of a bulk read.
pub struct Rest {
    wire: Wire,
    copy: String,
}

/// What the task has to know.
#[derive(Clone, Copy, Debug)]
pub struct Orders {
    /// Whether to begin. Whoever has opened the log looks first where it ends, and the calls are to
    /// read as far as that.
    pub begin: bool,
    /// Up to where everything is durable.
    pub durable: Lsn,
    /// Whether to tell the server and end, once the log has nothing more.
    pub close: bool,
}

/// Why the task ends.
enum Ending {
    /// A call was refused, and that was told; or nobody listens any more.
    Told,
    /// The log is let go of.
    Closed,
    /// Everything before this place was given out, and what is left is not worth a call.
    NothingLeft(Lsn),
}

/// The task.
pub struct Ahead {
    wire: Wire,
    slots: CopiedSlot,
    patience: Patience,
    orders: watch::Receiver<Orders>,
    events: mpsc::UnboundedSender<Result<Event>>,
    room: Arc<Semaphore>,
    room_max: u32,
}

impl Ahead {
    /// The task for a copy of a slot; about so many bytes of rows may wait.
    pub fn new(
        (wire, slots, patience): (Wire, CopiedSlot, Patience),
        orders: watch::Receiver<Orders>,
        events: mpsc::UnboundedSender<Result<Event>>,
        bytes_max: usize,
    ) -> Ahead {
        let room_max = u32::try_from(bytes_max / ROOM_BYTES).unwrap_or(u32::MAX / 8).max(1);
        let room = Arc::new(Semaphore::new(room_max as usize));
        Ahead { wire, slots, patience, orders, events, room, room_max }
    }

    /// Reads from this place, where the copy is, when told to, until there is nothing more to say.
    pub async fn run(mut self, from: Lsn) {
        let last = match self.read(from).await {
            Ok(Ending::NothingLeft(at)) => {
                Ok(Event::Over(at, Rest { wire: self.wire, copy: self.slots.copy }))
            }
            Ok(Ending::Told) => return,
            Ok(Ending::Closed) => {
                let Ahead { wire, slots, mut patience, orders, .. } = self;
                let durable = orders.borrow().durable;
                match patience.wait(slots.part(wire, durable)).await.flatten() {
                    // Who closes the log waits for the end of the events.
                    Ok(()) => return,
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        };
        // Nobody listens any more if the log was let go of.
        let _ = self.events.send(last);
    }

    async fn read(&mut self, from: Lsn) -> Result<Ending> {
        if self.orders.wait_for(|orders| orders.begin).await.is_err() {
            return Ok(Ending::Told);
        }
        let above = self.slots.above;
        let (mut upto, mut settled, mut least) = (from, false, FIRST_CALL);
        loop {
            let place = self.patience.wait(self.slots.place(&mut self.wire)).await??;
            // What was not read must not be taken for read; and it would be asked for again for ever.
            if place.confirmed < upto {
                return Err(wire::broken_protocol("a bulk read that ends before its end"));
            }
            match place.next_call(above, least) {
                Some(next) => {
                    // No more log is read for the slot than for us.
                    self.move_slot(CALL * above).await?;
                    (upto, settled, least) = (next, false, CALL);
                    self.patience.wait(self.slots.begin_call(&mut self.wire, next)).await??;
                    self.say(Event::Reached(place.confirmed));
                    let failed = self.call().await?;
                    let is_over = failed.is_some();
                    self.say(Event::Called(failed));
                    if is_over {
                        return Ok(Ending::Told);
                    }
                }
                None if settled => return Ok(Ending::NothingLeft(place.confirmed)),
                None => {
                    self.say(Event::Settling(place.confirmed));
                    if self.settle(place.confirmed).await? {
                        return Ok(Ending::Closed);
                    }
                    self.move_slot(above).await?;
                    settled = true;
                }
            }
        }
    }

    /// Moves the slot to what is durable if that lets go of so many bytes of log.
    async fn move_slot(&mut self, gain: u64) -> Result<()> {
        let durable = self.orders.borrow().durable;
        self.patience.wait(self.slots.move_slot(&mut self.wire, durable, gain)).await?
    }

    /// Hands the rows of a call on. Returns what the server has against it.
    async fn call(&mut self) -> Result<Option<ServerError>> {
        let mut failed = None;
        loop {
            // What has arrived needs no clock.
            if !self.wire.has_message()? {
                let waited = self.patience.wait(self.wire.wait()).await?;
                // A fatal error is followed by the end of the connection.
                waited.map_err(|ended| failed.as_ref().map_or(ended, failure))?;
            }
            let rows = self.wire.take_all(b'd')?;
            if rows.len() > 0 {
                self.hand_on(rows).await;
                continue;
            }
            match self.wire.take()? {
                Message::CopyOutResponse(_) | Message::CopyDone | Message::CommandComplete(_) => {}
                Message::NoticeResponse(body) => {
                    gap::unless_noticed(&wire::server_error(&mut body.fields()))?;
                }
                Message::ErrorResponse(body) => {
                    failed = Some(wire::server_error(&mut body.fields()));
                }
                Message::ReadyForQuery(_) => return Ok(failed),
                other => wire::ignore(&other)?,
            }
        }
    }

    /// Waits for room. More than there is at all passes alone.
    async fn hand_on(&mut self, rows: Frames) {
        let room = u32::try_from(rows.len().div_ceil(ROOM_BYTES)).unwrap_or(u32::MAX);
        let room = room.min(self.room_max);
        if let Ok(room) = self.room.clone().acquire_many_owned(room).await {
            self.say(Event::Rows(rows, room));
        }
    }

    /// Waits until everything before a place is durable, or the target takes too long for it. Says
    /// whether the log was closed meanwhile.
    async fn settle(&mut self, at: Lsn) -> Result<bool> {
        // The target has its time once all rows are on their way to it.
        let _ = self.room.acquire_many(self.room_max).await;
        let over = |orders: &Orders| orders.close || orders.durable >= at;
        tokio::select! {
            biased;
            _ = timeout(SETTLING, self.orders.wait_for(over)) => {}
            error = last_word(&mut self.wire) => return Err(error),
        }
        Ok(self.orders.borrow().close)
    }

    fn say(&self, event: Event) {
        let _ = self.events.send(Ok(event));
    }
}

/// Why a server that was asked for nothing has ended the connection.
async fn last_word(wire: &mut Wire) -> Error {
    loop {
        let said = match wire.message().await {
            Ok(Message::ErrorResponse(body)) => {
                Err(failure(&wire::server_error(&mut body.fields())))
            }
            Ok(other) => wire::ignore(&other),
            Err(error) => Err(error),
        };
        if let Err(error) = said {
            return error;
        }
    }
}

impl Rest {
    /// That nothing was read in bulk on this connection, though there is such a copy.
    pub fn new(wire: Wire, copy: String) -> Rest {
        Rest { wire, copy }
    }

    /// The connection, with nothing left of the bulk read. Not cancel-safe.
    ///
    /// # Errors
    /// What the server says, or a broken connection.
    pub async fn into_wire(mut self) -> Result<Wire> {
        answer(self.wire.ask(&sql::drop_slot_if_there(&self.copy)).await?)?;
        Ok(self.wire)
    }
}
