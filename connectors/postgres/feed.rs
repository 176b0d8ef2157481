//! Where the messages of the plug-in come from: the server's stream (`streaming.rs`), or bulk
//! reads over SQL while a pipeline is far behind (`bulk.rs`). Read by `stream.rs`, which does not
//! care.
//!
//! From bulk to the stream there is no gap: both begin at a place in the log, and give out every
//! transaction whose commit begins there or later. The bulk read says at which place it ended, and
//! the stream is opened there, on the same connection: who the server is need not be proven again.
//!
//! Surprise: a change from one to the other goes on when the future that waited for it is
//! dropped.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::timeout;

use super::bulk::{Bulk, End, Next, Opened, Over};
use super::bulk_reader::Door;
use super::lsn::Lsn;
use super::pipeline::{ANSWER, HEARTBEAT, Pipeline};
use super::streaming::{Item, Streaming};
use super::walsender::Walsender;
use super::wire::Wire;
use crate::error::{Code, Error, Result};

/// A pipeline that streams must be this many times further behind than one that is being opened:
/// a change costs the server some log that it reads again.
const PATIENCE: u64 = 4;

/// The messages of a slot.
pub struct Feed {
    pipeline: Arc<Pipeline>,
    durable: Lsn,
    state: State,
}

enum State {
    Streaming(Box<Streaming>),
    Bulk(Bulk),
    Changing(Pin<Box<dyn Future<Output = Result<State>> + Send>>),
    Failed(Error),
}

impl Feed {
    /// Begins at a place up to which everything is durable; the log ends at `end`. Not
    /// cancel-safe.
    ///
    /// # Errors
    /// `slot-in-use` (transient), a gap, what the server says, or a broken connection.
    pub async fn open(pipeline: Pipeline, wire: Wire, from: Lsn, end: Lsn) -> Result<Feed> {
        let pipeline = Arc::new(pipeline);
        let state = begin(&pipeline, wire, (from, end), from).await?;
        Ok(Feed { pipeline, durable: from, state })
    }

    /// Waits for what comes next. Cancel-safe.
    ///
    /// # Errors
    /// A gap, silence (transient), what the server says, or a broken connection.
    pub async fn peek(&mut self) -> Result<Item> {
        loop {
            let step = match &mut self.state {
                State::Streaming(streaming) => return streaming.peek(self.durable).await,
                State::Bulk(bulk) => match bulk.peek().await {
                    Ok(Next::Message) => return Ok(Item::Message),
                    Ok(Next::Reached(place)) => return Ok(Item::Reached(place)),
                    Ok(Next::Over(over)) => {
                        let pipeline = self.pipeline.clone();
                        Ok(State::Changing(Box::pin(async move { stream(&pipeline, over).await })))
                    }
                    Err(error) => Err(error),
                },
                State::Changing(change) => change.await,
                State::Failed(error) => return Err(error.clone()),
            };
            self.state = step.unwrap_or_else(State::Failed);
        }
    }

    /// The message that `peek` found.
    ///
    /// # Errors
    /// `protocol`.
    pub fn message(&self) -> Result<&[u8]> {
        match &self.state {
            State::Streaming(streaming) => streaming.message(),
            State::Bulk(bulk) => bulk.message(),
            State::Changing(_) | State::Failed(_) => {
                Err(Error::stop(Code::Internal, "no message of the log was found"))
            }
        }
    }

    /// Steps over it.
    pub fn consume(&mut self) {
        match &mut self.state {
            State::Streaming(streaming) => streaming.consume(),
            State::Bulk(bulk) => bulk.consume(),
            State::Changing(_) | State::Failed(_) => {}
        }
    }

    /// Up to where everything is durable. Cancel-safe. The server is told at once while it
    /// streams, and otherwise when it has an ear for it: after a call.
    ///
    /// # Errors
    /// The connection.
    pub async fn acknowledge(&mut self, durable: Lsn) -> Result<()> {
        self.durable = self.durable.max(durable);
        match &mut self.state {
            State::Streaming(streaming) => streaming.acknowledge(self.durable).await,
            State::Bulk(bulk) => {
                bulk.acknowledge(self.durable);
                Ok(())
            }
            State::Changing(_) | State::Failed(_) => Ok(()),
        }
    }

    /// Says once more what is durable, before the log is let go of.
    ///
    /// # Errors
    /// The connection, or what the server says.
    pub async fn close(&mut self, durable: Lsn) -> Result<()> {
        match &mut self.state {
            State::Bulk(bulk) => bulk.close(durable).await,
            _ => self.acknowledge(durable).await,
        }
    }

    /// Whether the feed waits until what it gave out is durable.
    #[must_use]
    pub fn is_settling(&self) -> bool {
        matches!(&self.state, State::Bulk(bulk) if bulk.is_settling())
    }

    /// Whether the end of the log is known to be far away.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        matches!(self.state, State::Bulk(_))
    }

    /// After how much streamed log it is time to look how far away its end is.
    #[must_use]
    pub fn look_after(&self) -> Option<u64> {
        match &self.state {
            State::Streaming(_) => self.pipeline.bulk_read_above(),
            State::Bulk(_) | State::Changing(_) | State::Failed(_) => None,
        }
    }

    /// Changes to bulk reads if that is worth while. Everything before `at` was given out, the
    /// server would read the log again from `restart`, and it ends at `end`.
    pub fn catch_up(&mut self, at: Lsn, restart: Lsn, end: Lsn) {
        let (behind, again) = (end.0.saturating_sub(at.0), at.0.saturating_sub(restart.0));
        let enough = |above: u64| behind >= above.max(again).saturating_mul(PATIENCE);
        if self.look_after().is_some_and(enough) {
            let (pipeline, durable) = (self.pipeline.clone(), self.durable);
            // The stream ends here. Its process may hold the slot for a while, but not its copy.
            self.state = State::Changing(Box::pin(async move {
                let (wire, end) = pipeline.login().await?;
                begin(&pipeline, wire, (at, end), durable).await
            }));
        }
    }
}

/// Goes on in the way that suits the distance.
async fn begin(
    pipeline: &Arc<Pipeline>,
    wire: Wire,
    (from, end): (Lsn, Lsn),
    durable: Lsn,
) -> Result<State> {
    let behind_bytes = end.0.saturating_sub(from.0);
    let Some(above) = pipeline.bulk_read_above().filter(|above| behind_bytes >= *above) else {
        return start(pipeline, wire, from).await;
    };
    let door = Door { pipeline: pipeline.clone(), above };
    match Bulk::open(wire, door, from, durable).await? {
        Opened::Bulk(bulk) => {
            let slot = &pipeline.slot;
            tracing::info!(slot, behind_bytes, "far behind, reading the log in bulk");
            Ok(State::Bulk(bulk))
        }
        Opened::Over(over) => stream(pipeline, over).await,
    }
}

/// Goes on by streaming where the bulk read ended.
async fn stream(pipeline: &Arc<Pipeline>, over: Over) -> Result<State> {
    let (slot, from) = (&pipeline.slot, over.at);
    let wire = match over.end {
        End::NotWorthWhile(reader) => {
            tracing::info!(slot, position = %from, "streaming the log");
            timeout(HEARTBEAT + ANSWER, reader.into_wire()).await.unwrap_or_else(|_| {
                let message = "the source does not answer after a bulk read of its log";
                Err(Error::transient(Code::Unreachable, message))
            })?
        }
        End::Refused(reason) => {
            if !pipeline.bulk_read_refused.swap(true, Ordering::Relaxed) {
                tracing::info!(slot, reason, "the source refuses bulk reads, streaming the log");
            }
            pipeline.login().await?.0
        }
    };
    start(pipeline, wire, from).await
}

async fn start(pipeline: &Arc<Pipeline>, wire: Wire, from: Lsn) -> Result<State> {
    let walsender = Walsender::start(wire, pipeline, from, &pipeline.early).await?;
    Ok(State::Streaming(Box::new(Streaming::new(walsender, pipeline.clone()))))
}
