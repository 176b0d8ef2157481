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
        Arc::clone(&self.room).acquire_many_owned(self.kib(transaction)).await.ok()
    }

    /// Sends if there is room now; otherwise gives the transaction back. One that nobody receives
    /// any more is dropped.
    pub fn offer(&self, transaction: Transaction) -> Option<Transaction> {
        match Arc::clone(&self.room).try_acquire_many_owned(self.kib(&transaction)) {
            Ok(room) => {
                let _ = self.send(transaction, room);
                None
            }
            Err(_) => Some(transaction),
        }
    }

    fn kib(&self, transaction: &Transaction) -> u32 {
        let kib = u32::try_from(transaction.size() / 1024 + 1).unwrap_or(u32::MAX);
        kib.min(self.capacity_kib)
    }

    /// Sends into reserved room; `false` when the receiver is gone.
    #[must_use]
    pub fn send(&self, transaction: Transaction, room: OwnedSemaphorePermit) -> bool {
        self.channel.send(Queued { transaction, memory: room }).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use connectors::change::Timestamp;
    use connectors::version::{Position, Version};

    use super::*;

    fn transaction(log: u64) -> Transaction {
        Transaction {
            version: Version::at_log(1, log),
            position: Position(log.to_string()),
            committed_at: Timestamp(0),
            first_ordinal: 1,
            changes: Vec::new(),
            complete: true,
        }
    }

    #[tokio::test]
    async fn what_is_offered_goes_while_there_is_room_and_comes_back_afterwards() {
        let (sender, mut receiver) = bounded(2048);
        assert_eq!(sender.offer(transaction(1)), None);
        assert_eq!(sender.offer(transaction(2)), None);
        assert_eq!(sender.offer(transaction(3)), Some(transaction(3)));
        assert_eq!(receiver.recv().await.map(|queued| queued.transaction), Some(transaction(1)));
        assert_eq!(sender.offer(transaction(3)), None);
        drop(receiver);
        assert_eq!(sender.offer(transaction(4)), None, "nobody waits for it any more");
    }
}
