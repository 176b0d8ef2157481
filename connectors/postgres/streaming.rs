//! The log as the server sends it of its own accord: the feed of a pipeline that keeps up. Frames
//! of `walsender.rs` in, messages out; answers the server's questions, and notices its silence. What
//! comes of transactions that have not ended goes to disk until they have: `streamed.rs`.
//!
//! Surprise: time during which nobody asks for the next message is not silence of the source; it
//! counts from the moment that we asked the source for a sign of life.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::lsn::Lsn;
use super::outcome::{self, Replay};
use super::pipeline::{ANSWER, GRACE, HEARTBEAT, Pipeline};
use super::streamed::{Streamed, Taken};
use super::walsender::{Frame, Walsender};
use crate::error::{Code, Error, Result};
use crate::spool::Room;

/// A server that asks for replies this many times in a row within a second is shutting down: it
/// waits until we confirm all of its log, which a slow target may not allow for long.
const HURRY_MAX: u32 = 8;
const HURRY_WINDOW: Duration = Duration::from_secs(1);

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    /// A message, which stays until `consume`.
    Message,
    /// Everything before this place was given out.
    Reached(Lsn),
}

/// An open stream.
pub struct Streaming {
    pipeline: Arc<Pipeline>,
    walsender: Walsender,
    streamed: Streamed,
    /// What became of a transaction that has ended. The question goes on when the future that
    /// waited for it is dropped.
    asking: Option<Pin<Box<dyn Future<Output = Result<Replay>> + Send>>>,
    /// A transaction that has ended and comes from the disk.
    replay: Option<Replay>,
    room: Room,
    reply_due: bool,
    /// How often the server has asked for a reply since then, with nothing else to say.
    hurry: (u32, Instant),
    heard: Instant,
    asked: Option<Instant>,
}

impl Streaming {
    /// Feeds on this one.
    pub fn new(walsender: Walsender, pipeline: Arc<Pipeline>) -> Streaming {
        let now = Instant::now();
        Streaming {
            streamed: Streamed::new(pipeline.spool.clone()),
            pipeline,
            walsender,
            asking: None,
            replay: None,
            room: Room::default(),
            reply_due: false,
            hurry: (0, now),
            heard: now,
            asked: None,
        }
    }

    /// Waits for what comes next; a message stays until `consume`. Cancel-safe.
    ///
    /// # Errors
    /// As `Walsender::wait`; silence (transient); as `Streamed::take` and `outcome::ask`.
    pub async fn peek(&mut self, durable: Lsn) -> Result<Item> {
        loop {
            if let Some(asking) = &mut self.asking {
                let replay = asking.await;
                self.asking = None;
                self.replay = Some(replay?);
                self.walsender.consume();
            }
            if let Some(replay) = &mut self.replay {
                if replay.load().await? {
                    return Ok(Item::Message);
                }
                self.replay = None;
            }
            if std::mem::take(&mut self.reply_due) {
                // Also cancel-safe: a reply that was begun is in the walsender's buffer.
                self.walsender.send_status(durable, false).await?;
            }
            // What has arrived needs no clock.
            if !self.walsender.has_message()? {
                let silent_at = self.asked.map_or(self.heard + HEARTBEAT, |asked| asked + ANSWER);
                let deadline = silent_at.max(Instant::now() + GRACE);
                let Ok(waited) = timeout_at(deadline, self.walsender.wait()).await else {
                    self.silence(durable).await?;
                    continue;
                };
                waited?;
                (self.heard, self.asked) = (Instant::now(), None);
            }
            if !self.walsender.sift()? {
                continue;
            }
            let (wal_end, reply_requested) = match self.walsender.frame()? {
                Frame::Keepalive { wal_end, reply_requested } => (wal_end, reply_requested),
                Frame::Data(bytes) => {
                    self.hurry.0 = 0;
                    match self.streamed.take(bytes).map_err(|error| self.doubt(error))? {
                        Taken::Plain => return Ok(Item::Message),
                        Taken::Kept => {
                            self.room.found();
                            self.walsender.consume();
                        }
                        // The message stays until there is an answer.
                        Taken::Committed(committed) => {
                            let asking = outcome::ask(self.pipeline.clone(), committed);
                            self.asking = Some(Box::pin(asking));
                        }
                        Taken::NoRoom(error) => {
                            self.room.wait(&self.pipeline.spool, &error).await;
                        }
                    }
                    continue;
                }
            };
            self.walsender.consume();
            self.reply_due |= reply_requested;
            self.unless_shutting_down(reply_requested)?;
            if !self.streamed.in_block() {
                return Ok(Item::Reached(wal_end));
            }
        }
    }

    /// What makes no sense before the end of a transaction may do so at its end.
    fn doubt(&self, error: Error) -> Error {
        match error.code {
            Code::Protocol => self.pipeline.early.give_up(error.message),
            _ => error,
        }
    }

    /// The message that `peek` found.
    ///
    /// # Errors
    /// `protocol`.
    pub fn message(&self) -> Result<&[u8]> {
        if let Some(replay) = &self.replay {
            return Ok(replay.message());
        }
        match self.walsender.frame()? {
            Frame::Data(bytes) => Ok(bytes),
            Frame::Keepalive { .. } => Err(Error::stop(Code::Internal, "no message was found")),
        }
    }

    /// Steps over it.
    pub fn consume(&mut self) {
        match &mut self.replay {
            Some(replay) => replay.consume(),
            None => self.walsender.consume(),
        }
    }

    /// Tells the server what is durable, and that we are alive. Cancel-safe.
    ///
    /// # Errors
    /// The connection.
    pub async fn acknowledge(&mut self, durable: Lsn) -> Result<()> {
        self.walsender.send_status(durable, false).await
    }

    /// Lets go of a server that is only waiting for us to end. Log that we have not confirmed stays
    /// in the slot.
    fn unless_shutting_down(&mut self, reply_requested: bool) -> Result<()> {
        let (asked, since) = self.hurry;
        self.hurry = match reply_requested && since.elapsed() < HURRY_WINDOW {
            true => (asked + 1, since),
            false => (u32::from(reply_requested), Instant::now()),
        };
        match self.hurry.0 < HURRY_MAX {
            true => Ok(()),
            false => Err(Error::transient(Code::Unreachable, "the source is shutting down")),
        }
    }

    async fn silence(&mut self, durable: Lsn) -> Result<()> {
        if self.asked.is_some() {
            let seconds = (HEARTBEAT + ANSWER).as_secs();
            return Err(Error::transient(
                Code::Unreachable,
                format!("the source has said nothing for {seconds} s, not even when asked"),
            ));
        }
        self.asked = Some(Instant::now());
        self.walsender.send_status(durable, true).await
    }
}
