//! A first copy: one task reads the chunks of a table in the order of their keys, several loaders
//! write them at a time, and one chunk waits, so that a loader that is done has another. Called by
//! `worker.rs` for tables that were created empty; copies over rows that are there already go
//! through the applier, one chunk after the other.
//!
//! Chunks become durable in any order. The ledger has the place up to which all of them are, so a
//! restart repeats at most those that were under way, and repeating is harmless.
//!
//! Surprise: a loader's transaction has no sequence. The ledger gets one that the applier makes
//! afterwards. A target that is restored from a backup without the chunk is therefore older than
//! the ledger, and found out.

use std::collections::VecDeque;
use std::sync::Arc;

use connectors::change::{Chunk, Key};
use connectors::error::{Code, Error, Kind, Result};
use connectors::schema::TableSchema;
use state::{Phase, Task};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinError, JoinSet};

use super::loaders::{Load, Loaded};
use super::worker::{Interrupted, Sent, Worker, answer};
use super::{ended, task_table};
use crate::floor::Hold;
use crate::merge::chunk_batch;
use crate::order::{Order, Wanted};

/// The chunks that were read and that the ledger does not have yet.
struct Loading {
    running: JoinSet<(u64, Result<Loaded>)>,
    /// Taken by the chunk that waits for a session.
    waiting: Arc<Semaphore>,
    /// In the order in which they were read.
    chunks: VecDeque<Read>,
    /// The number of the first of them.
    first: u64,
}

struct Read {
    rows: u64,
    next: Option<Key>,
    durable: bool,
}

type Finished = std::result::Result<(u64, Result<Loaded>), JoinError>;

impl Worker {
    /// Copies the table from the place in the ledger.
    pub(super) async fn load_all(
        &mut self,
        table: &Arc<TableSchema>,
    ) -> std::result::Result<(), Interrupted> {
        let mut loading = Loading::new();
        let copied = self.load_chunks(table, &mut loading).await;
        if let Err(Interrupted::Failed(error)) = &copied
            && !matches!(error.kind, Kind::Table(_))
        {
            return copied;
        }
        // The session goes on, and a load that is given up would close the table to the log.
        while let Some(finished) = loading.running.join_next().await {
            finished.map_err(died)?.1?;
        }
        copied
    }

    async fn load_chunks(
        &mut self,
        table: &Arc<TableSchema>,
        loading: &mut Loading,
    ) -> std::result::Result<(), Interrupted> {
        let mut after = self.key_from_ledger()?;
        loop {
            let (chunk, hold) = self.read_next(table, after.as_ref()).await?;
            self.expect_shape(&chunk)?;
            after = chunk.next.clone();
            self.load(chunk, hold, loading).await?;
            self.save_without_waiting(loading)?;
            if after.is_none() {
                break;
            }
        }
        while let Some(finished) = loading.running.join_next().await {
            self.loaded(finished, loading).await?;
        }
        self.settle().await?;
        if loading.advance(&mut self.task) {
            let sent = self.ask_for_sequence();
            self.shared.orders.send(sent).await.map_err(|_| ended())?;
        }
        self.settle().await
    }

    /// Has a chunk written as soon as there is a session for it. At most one waits for a session, while
    /// another one is read.
    async fn load(
        &mut self,
        chunk: Chunk,
        hold: Hold,
        loading: &mut Loading,
    ) -> std::result::Result<(), Interrupted> {
        let loaders = Arc::clone(&self.shared.loaders);
        // It is never closed.
        let waiting = Arc::clone(&loading.waiting).acquire_owned().await;
        while let Some(finished) = loading.running.try_join_next() {
            self.loaded(finished, loading).await?;
        }
        let (rows, next) = (chunk.rows.len() as u64, chunk.next.clone());
        let load = Load { rows: chunk_batch(chunk, None), hold };
        let (number, remains) = (loading.add(rows, next), self.shared.remains.clone());
        loading.running.spawn(async move {
            let loaded = async {
                let session = loaders.session().await?.ok_or_else(one_writer)?;
                drop(waiting);
                loaders.load(session, load).await
            };
            let loaded = loaded.await;
            drop(remains);
            (number, loaded)
        });
        Ok(())
    }

    /// Takes in that a chunk is durable. One that was refused is given to the applier.
    async fn loaded(
        &mut self,
        finished: Finished,
        loading: &mut Loading,
    ) -> std::result::Result<(), Interrupted> {
        let (number, loaded) = finished.map_err(died)?;
        if let Loaded::Refused(Load { rows, hold }) = loaded? {
            let (done, wait) = oneshot::channel();
            let table = task_table(&self.task);
            let order = Order { table, wanted: Wanted::Rows(rows, hold), done };
            self.shared.orders.send(order).await.map_err(|_| ended())?;
            answer(wait.await)?;
        }
        loading.mark(number);
        Ok(())
    }

    /// Moves the ledger on, unless the last move is still under way or the applier is busy.
    fn save_without_waiting(
        &mut self,
        loading: &mut Loading,
    ) -> std::result::Result<(), Interrupted> {
        if let Some(Sent { mut done, ledger }) = self.sent.take() {
            match done.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => {
                    self.sent = Some(Sent { done, ledger });
                    return Ok(());
                }
                Ok(sequence) => self.save_durable(answer(Ok(sequence))?, ledger)?,
                Err(oneshot::error::TryRecvError::Closed) => return Err(ended().into()),
            }
        }
        let room = match self.shared.orders.clone().try_reserve_owned() {
            Ok(room) => room,
            Err(TrySendError::Full(_)) => return Ok(()),
            Err(TrySendError::Closed(_)) => return Err(ended().into()),
        };
        if loading.advance(&mut self.task) {
            room.send(self.ask_for_sequence());
        }
        Ok(())
    }

    /// The order for a sequence under which the ledger, as the task is now, may be saved.
    fn ask_for_sequence(&mut self) -> Order {
        let (done, wait) = oneshot::channel();
        self.sent = Some(Sent { done: wait, ledger: self.task.clone() });
        Order { table: task_table(&self.task), wanted: Wanted::Sequence, done }
    }
}

impl Loading {
    fn new() -> Loading {
        let (running, waiting) = (JoinSet::new(), Arc::new(Semaphore::new(1)));
        Loading { running, waiting, chunks: VecDeque::new(), first: 0 }
    }

    /// A chunk that comes after all others; returns its number.
    fn add(&mut self, rows: u64, next: Option<Key>) -> u64 {
        self.chunks.push_back(Read { rows, next, durable: false });
        self.first + self.chunks.len() as u64 - 1
    }

    fn mark(&mut self, number: u64) {
        if let Some(chunk) = self.chunks.get_mut((number - self.first) as usize) {
            chunk.durable = true;
        }
    }

    /// Moves the task over the chunks that are durable without a gap; says whether there were any.
    fn advance(&mut self, task: &mut Task) -> bool {
        let before = self.first;
        while self.chunks.front().is_some_and(|chunk| chunk.durable) {
            let Some(Read { rows, next, .. }) = self.chunks.pop_front() else { break };
            self.first += 1;
            task.rows += rows;
            if next.is_none() {
                task.phase = Phase::Sweep;
            }
            task.after = next.map(|key| key.as_bytes().to_vec());
        }
        self.first > before
    }
}

fn one_writer() -> Error {
    Error::stop(Code::Internal, "the target takes one writer at a time after all")
}

fn died(error: JoinError) -> Error {
    Error::stop(Code::Internal, format!("a task that loads a chunk has died: {error}"))
}
