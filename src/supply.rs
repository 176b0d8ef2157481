//! Where the applier gets the batches of the log: it asks the batcher for one at a time, and sees the
//! next one early if it is full before its turn.
//!
//! Surprise: the batcher is asked even while the target is busy, and then gives out only a full batch.
//! Whether the target is free stands beside the request, so that it can change while the request
//! waits.

use connectors::error::{Code, Error, Result};
use tokio::sync::{mpsc, oneshot, watch};

use crate::batcher::{LogBatch, Request};

/// The applier's end.
pub struct Supply {
    requests: mpsc::Sender<Request>,
    target_free: watch::Sender<bool>,
    /// What the batcher was asked for.
    asked: Option<oneshot::Receiver<LogBatch>>,
    /// What it gave.
    next: Option<LogBatch>,
}

/// The batcher's end: requests, and whether the target is free.
pub type Demand = (mpsc::Receiver<Request>, watch::Receiver<bool>);

/// Both ends.
#[must_use]
pub fn supply() -> (Supply, Demand) {
    let (requests, requested) = mpsc::channel(1);
    let (target_free, is_free) = watch::channel(false);
    (Supply { requests, target_free, asked: None, next: None }, (requested, is_free))
}

impl Supply {
    /// Waits until there is a batch for a target that is free. Cancel-safe.
    ///
    /// # Errors
    /// The batcher has ended.
    pub async fn wait(&mut self) -> Result<()> {
        if self.next.is_some() {
            return Ok(());
        }
        self.set_free(true);
        self.get().await
    }

    /// Waits for the next batch while the target is busy, and shows it; once. Cancel-safe.
    ///
    /// # Errors
    /// The batcher has ended.
    pub async fn look_ahead(&mut self) -> Result<&mut LogBatch> {
        if self.next.is_some() {
            return std::future::pending().await;
        }
        self.set_free(false);
        self.get().await?;
        self.next.as_mut().ok_or_else(gone)
    }

    /// The next batch, if it is there.
    pub fn take(&mut self) -> Option<LogBatch> {
        self.set_free(false);
        self.next.take()
    }

    /// Whether the next batch is there.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.next.is_some()
    }

    async fn get(&mut self) -> Result<()> {
        let asked = match &mut self.asked {
            Some(asked) => asked,
            None => {
                let (sender, receiver) = oneshot::channel();
                self.requests.send(sender).await.map_err(|_| gone())?;
                self.asked.insert(receiver)
            }
        };
        let batch = asked.await.map_err(|_| gone())?;
        (self.asked, self.next) = (None, Some(batch));
        Ok(())
    }

    fn set_free(&self, free: bool) {
        self.target_free.send_if_modified(|is_free| std::mem::replace(is_free, free) != free);
    }
}

fn gone() -> Error {
    Error::transient(Code::Internal, "the batcher task has ended")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use connectors::change::{Cell, Change, Row, Timestamp, Transaction};
    use connectors::schema::{Column, ColumnType, Engine, TableName, TableSchema};
    use connectors::version::{Position, Version};

    use super::*;
    use crate::batcher::{Batcher, Bounds};
    use crate::queue;

    const BOUNDS: Bounds = Bounds { rows: 2, bytes: usize::MAX, wait: Duration::from_millis(200) };
    const LONG: Duration = Duration::from_secs(60);

    fn transaction(log: u64) -> Transaction {
        let column =
            Column { name: "k".into(), column_type: ColumnType::Int64, native: None, id: 1 };
        let table = Arc::new(TableSchema {
            name: TableName::new("public", "t"),
            id: 1,
            engine: Engine::Memory,
            columns: vec![column],
            key: vec![0],
        });
        let row = Row::from_cells([Cell::Value(log.to_string().as_bytes())]);
        Transaction {
            version: Version::at_log(1, log),
            position: Position(log.to_string()),
            committed_at: Timestamp(0),
            first_ordinal: 1,
            changes: vec![Change::Upsert { table, row }],
            complete: true,
        }
    }

    async fn send(queue: &queue::Sender, log: u64) {
        let transaction = transaction(log);
        let room = queue.reserve(&transaction).await.unwrap();
        assert!(queue.send(transaction, room));
    }

    fn changes(batch: Option<LogBatch>) -> u64 {
        batch.unwrap().changes
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_target_gets_full_batches_ahead_and_a_free_one_whatever_there_is() {
        let (queue, queued) = queue::bounded(1 << 20);
        let (mut supply, demand) = supply();
        let batcher = tokio::spawn(Batcher::new(queued, demand, BOUNDS).run());
        send(&queue, 1).await;
        let ahead = tokio::time::timeout(LONG, supply.look_ahead()).await;
        assert!(ahead.is_err(), "an unfilled batch was given to a busy target");
        supply.wait().await.unwrap();
        assert_eq!(changes(supply.take()), 1);
        for log in 2..=5 {
            send(&queue, log).await;
        }
        assert_eq!(supply.look_ahead().await.unwrap().changes, 2);
        let again = tokio::time::timeout(LONG, supply.look_ahead()).await;
        assert!(again.is_err(), "one batch at a time is looked at ahead");
        // What was seen early comes first.
        for expected in [2, 3].map(|log| Some(Version::at_log(1, 2 * log - 1))) {
            supply.wait().await.unwrap();
            let reached = supply.take().and_then(|batch| batch.reached);
            assert_eq!(reached.map(|(_, version)| version), expected);
        }
        drop(queue);
        batcher.await.unwrap().unwrap();
    }
}
