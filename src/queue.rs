//! The one bounded channel: transactions from the reader to the batcher, bounded by their size.

use std::sync::Arc;

use connectors::change::Transaction;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// A transaction and the memory that it occupies.
#[derive(Debug)]
pub struct Queued {
    /// The transaction.
    pub transaction: Transaction,
    /// Its memory, given back when this is dropped.
    pub memory: OwnedSemaphorePermit,
}

/// The reader's end.
#[derive(Debug)]
pub struct Sender {
    channel: mpsc::UnboundedSender<Queued>,
    room: Arc<Semaphore>,
    capacity_kib: u32,
}

/// The batcher's end.
pub type Receiver = mpsc::UnboundedReceiver<Queued>;

/// A channel that holds about `bytes` of transactions; a single larger one passes alone.
#[must_use]
pub fn bounded(bytes: usize) -> (Sender, Receiver) {
    let capacity_kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX / 2).max(1);
    let (channel, receiver) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(capacity_kib as usize));
    (Sender { channel, room, capacity_kib }, receiver)
}

impl Sender {
    /// Waits for room. Cancel-safe: nothing is reserved when the future is dropped.
    ///
    /// Returns `None` when the receiver is gone.
    pub async fn reserve(&self, transaction: &Transaction) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(transaction.size() / 1024 + 1).unwrap_or(u32::MAX);
        Arc::clone(&self.room).acquire_many_owned(kib.min(self.capacity_kib)).await.ok()
    }

    /// Sends into reserved room; `false` when the receiver is gone.
    #[must_use]
    pub fn send(&self, transaction: Transaction, room: OwnedSemaphorePermit) -> bool {
        self.channel.send(Queued { transaction, memory: room }).is_ok()
    }
}
