//! The task that owns the log: reads it into the queue and acknowledges what is durable.
//!
//! Acknowledging never waits for the queue, so that a slow target does not get us disconnected.

use std::time::Duration;

use connectors::ChangeStream;
use connectors::change::Transaction;
use connectors::error::Result;
use connectors::version::{Position, Version};
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::queue::Sender;

/// How often a new durable position is passed on to the source.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_millis(100);
/// How often the source hears from us at all.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(10);
/// How many transactions are read before anything else is looked at.
const AT_A_TIME: usize = 64;

/// What the reader is given.
pub struct Reader {
    /// The log, open at `resumed_from`.
    pub stream: Box<dyn ChangeStream>,
    /// Where transactions go.
    pub queue: Sender,
    /// The position that is durable in the target and in the state directory.
    pub durable: watch::Receiver<Position>,
    /// The version that was durable when the log was opened.
    pub resumed_from: Version,
    /// Set when the applier has finished for good.
    pub finished: watch::Receiver<bool>,
}

impl Reader {
    /// Reads until the applier has finished; then acknowledges for the last time.
    ///
    /// # Errors
    /// Whatever ends the log.
    pub async fn run(mut self) -> Result<()> {
        let mut waiting: Option<Transaction> = None;
        let mut tick = interval(ACKNOWLEDGE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_sent = Instant::now();
        loop {
            let Reader { stream, queue, durable, resumed_from, finished } = &mut self;
            tokio::select! {
                biased;
                () = set(finished) => break,
                _ = tick.tick() => {
                    let moved = durable.has_changed().unwrap_or(false);
                    if moved || last_sent.elapsed() >= HEARTBEAT_EVERY {
                        acknowledge(stream.as_mut(), durable).await?;
                        last_sent = Instant::now();
                    }
                }
                room = reserve(queue, waiting.as_ref()), if waiting.is_some() => {
                    if let (Some(room), Some(transaction)) = (room, waiting.take()) {
                        // A closed queue means that the applier is ending; `finished` follows.
                        let _ = queue.send(transaction, room);
                    }
                }
                next = stream.next(), if waiting.is_none() => {
                    waiting = hand_on(next?, stream.as_mut(), queue, *resumed_from)?;
                }
            }
        }
        let durable = self.durable.borrow().clone();
        self.stream.close(&durable).await
    }
}

/// Hands a transaction on, and those that have arrived behind it: to look at everything else in
/// between costs more than a small transaction does. Returns the one for which there is no room.
fn hand_on(
    first: Transaction,
    stream: &mut dyn ChangeStream,
    queue: &Sender,
    resumed_from: Version,
) -> Result<Option<Transaction>> {
    let offer = |next| unless_repeated(next, resumed_from).and_then(|next| queue.offer(next));
    let mut waiting = offer(first);
    for _ in 1..AT_A_TIME {
        if waiting.is_some() {
            break;
        }
        let Some(next) = stream.next().now_or_never() else { break };
        waiting = offer(next?);
    }
    Ok(waiting)
}

async fn set(flag: &mut watch::Receiver<bool>) {
    // A sender that is gone has finished too.
    let _ = flag.wait_for(|flag| *flag).await;
}

async fn acknowledge(
    stream: &mut dyn ChangeStream,
    durable: &mut watch::Receiver<Position>,
) -> Result<()> {
    let position = durable.borrow_and_update().clone();
    stream.acknowledge(&position).await
}

/// A source may deliver again what is durable already (its bookmark is behind ours); such a
/// transaction is dropped here, so that nothing older than the floor reaches the target.
fn unless_repeated(transaction: Transaction, resumed_from: Version) -> Option<Transaction> {
    let repeated = transaction.version < resumed_from
        || (transaction.version == resumed_from && !transaction.changes.is_empty());
    (!repeated).then_some(transaction)
}

async fn reserve(
    queue: &Sender,
    transaction: Option<&Transaction>,
) -> Option<tokio::sync::OwnedSemaphorePermit> {
    match transaction {
        Some(transaction) => queue.reserve(transaction).await,
        None => None,
    }
}
