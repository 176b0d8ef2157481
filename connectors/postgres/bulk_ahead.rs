//! The task of a bulk read: makes its calls, one after the other, and takes what they give out off the
//! network before anybody wants it, within bounds. Two sessions do so, each with every other call: as
//! soon as one has sent all rows of its call, it begins the one after the other's, which may still be
//! decoding. Where there is no room for a second one, the first does all of it. Begun and listened to by
//! `bulk.rs`.
//!
//! Surprise: when nothing is left that is worth a call, the task waits until everything is durable.
//! Only then can the slot be moved; a stream that begins before reads the log again from where the
//! slot is, in the way that is more than twice as expensive.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;
use tracing::info;

use super::bulk_reader::{Door, Reader};
use super::bulk_turn::{CALL, FIRST_CALL, Place};
use super::connect::ServerError;
use super::copy_session::Given;
use super::frames::{self, Frames};
use super::gap;
use super::lsn::Lsn;
use crate::error::Result;

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
    Over(Lsn, Reader),
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

/// A call that was begun.
#[derive(Clone, Copy, Debug)]
struct Call {
    /// Everything before it was given out.
    from: Lsn,
    /// As far as it reads.
    upto: Lsn,
    /// Where the log ended then.
    end: Lsn,
}

/// What comes after a call.
enum Begun {
    /// Another one.
    Call(Call),
    /// Nothing that is worth one; everything before this place was given out.
    Nothing(Lsn),
}

/// The task.
pub struct Ahead {
    reader: Reader,
    second: Second,
    orders: watch::Receiver<Orders>,
    outlet: Outlet,
}

/// The session that makes the next call while one is decoded and its rows are handed on.
struct Second {
    door: Door,
    reader: Option<Reader>,
    /// There was no room for it, or it failed.
    given_up: bool,
}

/// Where everything goes.
struct Outlet {
    events: mpsc::UnboundedSender<Result<Event>>,
    room: Arc<Semaphore>,
    room_max: u32,
}

impl Ahead {
    /// The task of a reader.
    pub fn new(
        door: Door,
        reader: Reader,
        orders: watch::Receiver<Orders>,
        events: mpsc::UnboundedSender<Result<Event>>,
    ) -> Ahead {
        let room_max = u32::try_from(door.pipeline.read_ahead / ROOM_BYTES);
        let room_max = room_max.unwrap_or(u32::MAX / 8).max(1);
        let room = Arc::new(Semaphore::new(room_max as usize));
        let second = Second { door, reader: None, given_up: false };
        Ahead { reader, second, orders, outlet: Outlet { events, room, room_max } }
    }

    /// Reads from this place, where the copy is, when told to, until there is nothing more to say.
    pub async fn run(mut self, from: Lsn) {
        let last = match self.read(from).await {
            Ok(Ending::NothingLeft(at)) => {
                self.second.close().await;
                Ok(Event::Over(at, self.reader))
            }
            Ok(Ending::Told) => return,
            Ok(Ending::Closed) => {
                let durable = self.durable();
                match self.reader.part(durable).await {
                    // Who closes the log waits for the end of the events.
                    Ok(()) => return,
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        };
        // Nobody listens any more if the log was let go of.
        let _ = self.outlet.events.send(last);
    }

    async fn read(&mut self, from: Lsn) -> Result<Ending> {
        if self.orders.wait_for(|orders| orders.begin).await.is_err() {
            return Ok(Ending::Told);
        }
        let (mut upto, mut settled, mut next) = (from, false, None);
        loop {
            let begun = match next.take() {
                Some(call) => Begun::Call(call),
                None => self.begin(upto, upto == from).await?,
            };
            let call = match begun {
                Begun::Call(call) => call,
                Begun::Nothing(at) if settled => return Ok(Ending::NothingLeft(at)),
                Begun::Nothing(at) => {
                    self.outlet.say(Event::Settling(at));
                    if self.settle(at).await? {
                        return Ok(Ending::Closed);
                    }
                    self.reader.move_slot(self.durable(), self.second.door.above).await?;
                    settled = true;
                    continue;
                }
            };
            (upto, settled) = (call.upto, false);
            self.outlet.say(Event::Reached(call.from));
            let failed;
            (failed, next) = self.call(call).await?;
            let is_over = failed.is_some();
            self.outlet.say(Event::Called(failed));
            if is_over {
                return Ok(Ending::Told);
            }
            if next.is_some()
                && let Some(second) = &mut self.second.reader
            {
                mem::swap(&mut self.reader, second);
            }
        }
    }

    /// Begins the call that follows this place, which may be the first one.
    async fn begin(&mut self, upto: Lsn, is_first: bool) -> Result<Begun> {
        let place = self.reader.place().await?;
        // What was not read must not be taken for read; and it would be asked for again for ever.
        if place.confirmed < upto {
            return Err(frames::broken_protocol("a bulk read that ends before its end"));
        }
        let least = if is_first { FIRST_CALL } else { CALL };
        let Some(upto) = place.next_call(self.second.door.above, least) else {
            return Ok(Begun::Nothing(place.confirmed));
        };
        let durable = self.durable();
        self.reader.begin_call(upto, durable).await?;
        Ok(Begun::Call(Call { from: place.confirmed, upto, end: place.end }))
    }

    /// Waits for the rows of a call and hands them on, and meanwhile has the next one begun, if there
    /// is one. Also returns what the server has against the call.
    async fn call(&mut self, call: Call) -> Result<(Option<ServerError>, Option<Call>)> {
        let (copy, durable) = (self.reader.copy().to_owned(), self.durable());
        let handed_on = self.outlet.hand_on(&mut self.reader);
        let (failed, next) = join(handed_on, self.second.follow(call, &copy, durable)).await;
        Ok((failed?, next))
    }

    /// Waits until everything before a place is durable, or the target takes too long for it. Says
    /// whether the log was closed meanwhile.
    async fn settle(&mut self, at: Lsn) -> Result<bool> {
        // The target has its time once all rows are on their way to it.
        let _ = self.outlet.room.acquire_many(self.outlet.room_max).await;
        let over = |orders: &Orders| orders.close || orders.durable >= at;
        tokio::select! {
            biased;
            _ = timeout(SETTLING, self.orders.wait_for(over)) => {}
            error = self.reader.last_word() => return Err(error),
        }
        Ok(self.orders.borrow().close)
    }

    fn durable(&self) -> Lsn {
        self.orders.borrow().durable
    }
}

impl Second {
    /// Begins the call after this one, which is the other session's, with this copy, if there is one.
    async fn follow(&mut self, call: Call, copy: &str, durable: Lsn) -> Option<Call> {
        let left = call.end.0.saturating_sub(call.upto.0);
        if self.given_up || left < self.door.above {
            return None;
        }
        self.begin_after(call, copy, durable).await.unwrap_or_else(|error| {
            let slot = &self.door.pipeline.slot;
            info!(slot, %error, "the log is read in bulk with one session, without a second one");
            (self.reader, self.given_up) = (None, true);
            None
        })
    }

    async fn begin_after(&mut self, call: Call, copy: &str, durable: Lsn) -> Result<Option<Call>> {
        let reader = match &mut self.reader {
            Some(reader) => reader,
            None => self.reader.insert(Reader::open(&self.door).await?),
        };
        let place = Place { confirmed: call.upto, ..reader.place_of(copy).await? };
        let Some(upto) = place.next_call(self.door.above, CALL) else {
            return Ok(None);
        };
        let from = reader.follow(copy, call.upto).await?;
        reader.begin_call(upto, durable).await?;
        Ok(Some(Call { from, upto, end: place.end }))
    }

    async fn close(self) {
        if let Some(reader) = self.reader {
            // A session that is lost has no copy either.
            let _ = reader.into_wire().await;
        }
    }
}

impl Outlet {
    /// Hands the rows of a call on, once they are there. Returns what the server has against it.
    async fn hand_on(&self, reader: &mut Reader) -> Result<Option<ServerError>> {
        loop {
            let rows = match reader.given().await? {
                Given::Rows(rows) => rows,
                Given::Notice(notice) => {
                    gap::unless_noticed(&notice)?;
                    continue;
                }
                Given::End(failed) => return Ok(failed),
            };
            // More than there is room for at all passes alone.
            let room = u32::try_from(rows.len().div_ceil(ROOM_BYTES)).unwrap_or(u32::MAX);
            let room = room.min(self.room_max);
            if let Ok(room) = self.room.clone().acquire_many_owned(room).await {
                self.say(Event::Rows(rows, room));
            }
        }
    }

    fn say(&self, event: Event) {
        let _ = self.events.send(Ok(event));
    }
}
