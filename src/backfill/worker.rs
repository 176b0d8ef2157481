//! One copy of one table: chunk by chunk, then the sweep of rows that are gone from the source.
//!
//! The sweep does not delete blindly. It lists the target's rows that are older than the marker,
//! asks the source for them by key, and applies the answer like any chunk.

use std::sync::Arc;
use std::time::Duration;

use connectors::change::{Chunk, Key};
use connectors::error::{Code, Error, Result};
use connectors::schema::TableSchema;
use connectors::version::Version;
use connectors::{ChunkRequest, KeyScan, RowReader, Target};
use state::{Phase, Task};
use tokio::sync::{mpsc, oneshot};
use tracing::info;

use super::{Shared, task_table};
use crate::control::Reply;
use crate::floor::Hold;
use crate::merge::chunk_batch;
use crate::order::{Order, Wanted, count_columns, is_reshaped};
use crate::persist::{blocking, state_error};

/// How many keys are asked for at once in a sweep or a repair.
const KEYS_PER_READ: usize = 1000;

/// A copy begins with few rows, because nobody knows yet how large they are.
const ROWS_FIRST: usize = 64;
/// How long a copy waits before it begins again with another shape.
const RESHAPED_PAUSE: Duration = Duration::from_millis(100);

/// The state of one copy.
pub struct Worker {
    pub(super) shared: Shared,
    pub(super) task: Task,
    reader: Box<dyn RowReader>,
    reply: Option<mpsc::Sender<Reply>>,
    rows_estimated: Option<u64>,
    rows_next: usize,
    pub(super) sent: Option<Sent>,
}

/// An order to the applier, and what the ledger says once it is done.
pub(super) struct Sent {
    pub(super) done: oneshot::Receiver<Result<u64>>,
    pub(super) ledger: Task,
}

/// Why a copy begins again.
pub(super) enum Interrupted {
    /// The table got columns since it began.
    Reshaped,
    /// It cannot go on.
    Failed(Error),
}

impl From<Error> for Interrupted {
    fn from(error: Error) -> Interrupted {
        Interrupted::Failed(error)
    }
}

impl Worker {
    /// A worker for a new or a resumed task.
    pub fn new(
        shared: Shared,
        task: Task,
        reader: Box<dyn RowReader>,
        reply: Option<mpsc::Sender<Reply>>,
    ) -> Worker {
        Worker {
            shared,
            task,
            reader,
            reply,
            rows_estimated: None,
            rows_next: ROWS_FIRST,
            sent: None,
        }
    }

    /// Runs to the end of the copy; gives the task back with its row count.
    pub async fn run(mut self) -> (Task, Result<()>) {
        loop {
            match self.attempt().await {
                Ok(()) => return (self.task, Ok(())),
                Err(Interrupted::Failed(error)) => return (self.task, Err(error)),
                Err(Interrupted::Reshaped) => {
                    info!(table = %task_table(&self.task), "shape changed: copy begins again");
                    self.begin_again();
                    // The new shape may not be visible yet to those who read beside the log.
                    tokio::time::sleep(RESHAPED_PAUSE).await;
                }
            }
        }
    }

    fn begin_again(&mut self) {
        if !self.task.sweep {
            self.shared.tables.begin_recopy(&task_table(&self.task));
        }
        super::begin_again(&mut self.task);
        self.sent = None;
    }

    async fn attempt(&mut self) -> std::result::Result<(), Interrupted> {
        let table = self.schema()?;
        let columns = count_columns(&table);
        if self.task.columns != 0 && self.task.columns != columns {
            return Err(Interrupted::Reshaped);
        }
        self.task.columns = columns;
        self.rows_estimated = self.shared.source.estimate_rows(&table).await.ok();
        if self.task.sweep && self.task.marker.is_none() {
            let marker = self.shared.source.mark(self.shared.epoch).await?;
            self.task.marker = Some(marker.to_bytes());
            self.save()?;
        }
        if let Some(keys) = self.task.keys.clone() {
            return self.repair(&table, &keys).await;
        }
        if self.task.phase == Phase::Copy {
            // Rows of a first copy meet nothing that is older.
            match !self.task.sweep && self.shared.loaders.exist().await? {
                true => self.load_all(&table).await?,
                false => self.copy(&table).await?,
            }
        }
        if self.task.sweep {
            self.sweep(&table).await?;
        }
        self.settle().await
    }

    async fn copy(&mut self, table: &Arc<TableSchema>) -> std::result::Result<(), Interrupted> {
        let mut after = self.key_from_ledger()?;
        loop {
            let (chunk, hold) = self.read_next(table, after.as_ref()).await?;
            let next = chunk.next.clone();
            self.send(chunk, None, hold).await?;
            self.task.after = next.as_ref().map(|key| key.as_bytes().to_vec());
            if next.is_none() {
                self.task.phase = Phase::Sweep;
            }
            self.remember_sent();
            if next.is_none() {
                return self.settle().await;
            }
            after = next;
        }
    }

    /// Reads the chunk after this key.
    pub(super) async fn read_next(
        &mut self,
        table: &Arc<TableSchema>,
        after: Option<&Key>,
    ) -> Result<(Chunk, Hold)> {
        let hold = self.shared.floor.hold();
        let request = ChunkRequest {
            table,
            after,
            filter: self.task.filter.as_deref(),
            rows_max: self.rows_next.min(self.shared.chunk_rows),
            not_below: self.not_below(&hold)?,
        };
        let chunk = self.reader.read_chunk(&request).await?;
        self.rows_next = rows_for_next(&chunk, self.shared.chunk_bytes);
        Ok((chunk, hold))
    }

    async fn sweep(&mut self, table: &Arc<TableSchema>) -> std::result::Result<(), Interrupted> {
        let below = self.marker()?;
        let mut target: Box<dyn Target> = (self.shared.connect_target)().await?;
        let mut after = self.key_from_ledger()?;
        loop {
            let scan = KeyScan {
                table,
                after: after.as_ref(),
                limit: KEYS_PER_READ,
                below: Some(below),
                filter: self.task.filter.as_deref(),
            };
            let keys = target.read_keys(&scan).await?;
            let Some(last) = keys.last().cloned() else { return Ok(()) };
            self.read_and_send(table, &keys).await?;
            self.task.after = Some(last.as_bytes().to_vec());
            self.remember_sent();
            self.settle().await?;
            after = Some(last);
        }
    }

    async fn repair(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Vec<u8>],
    ) -> std::result::Result<(), Interrupted> {
        let damaged = || Error::stop(Code::StateCorrupt, "a key in the backfill ledger is damaged");
        let keys = keys.iter().map(|key| Key::from_bytes(key).ok_or_else(damaged));
        let keys: Vec<Key> = keys.collect::<Result<_>>()?;
        for part in keys.chunks(KEYS_PER_READ) {
            self.read_and_send(table, part).await?;
            self.remember_sent();
            self.settle().await?;
        }
        Ok(())
    }

    async fn read_and_send(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
    ) -> std::result::Result<(), Interrupted> {
        let hold = self.shared.floor.hold();
        let not_below = self.not_below(&hold)?;
        let chunk = self.reader.read_keys(table, keys, not_below).await?;
        self.send(chunk, Some(keys), hold).await
    }

    /// Sends a chunk to the applier, after the one before it is durable.
    async fn send(
        &mut self,
        chunk: Chunk,
        asked: Option<&[Key]>,
        hold: Hold,
    ) -> std::result::Result<(), Interrupted> {
        let rows = chunk.rows.len() as u64;
        let table = chunk.table.name.clone();
        self.expect_shape(&chunk)?;
        let batch = chunk_batch(chunk, asked);
        self.settle().await?;
        let (done, wait) = oneshot::channel();
        let order = Order { table, wanted: Wanted::Rows(batch, hold), done };
        self.shared.orders.send(order).await.map_err(|_| super::ended())?;
        self.task.rows += rows;
        self.sent = Some(Sent { done: wait, ledger: self.task.clone() });
        Ok(())
    }

    /// The log may have told the applier of a new shape; rows sent before lack its columns.
    pub(super) fn expect_shape(&self, chunk: &Chunk) -> std::result::Result<(), Interrupted> {
        let others = count_columns(&chunk.table) != self.task.columns;
        match others && self.schema()? == chunk.table {
            true => Err(Interrupted::Reshaped),
            false => Ok(()),
        }
    }

    /// The ledger entry of the chunk just sent is the task as it is now.
    fn remember_sent(&mut self) {
        if let Some(sent) = &mut self.sent {
            sent.ledger = self.task.clone();
        }
    }

    /// Waits until the chunk under way is durable in the target, then writes the ledger.
    pub(super) async fn settle(&mut self) -> std::result::Result<(), Interrupted> {
        let Some(Sent { done, ledger }) = self.sent.take() else { return Ok(()) };
        let sequence = answer(done.await)?;
        Ok(self.save_durable(sequence, ledger)?)
    }

    /// Writes the ledger, whose rows are durable up to this sequence of the target.
    pub(super) fn save_durable(&self, sequence: u64, mut ledger: Task) -> Result<()> {
        ledger.sequence = sequence;
        blocking(|| self.shared.store.save_task(&ledger)).map_err(|e| state_error(&e))?;
        let table = task_table(&ledger);
        self.shared.status.copied(&table, ledger.rows, self.rows_estimated);
        // Half of the room is kept for last answers, which must not be lost.
        let has_room = |reply: &&mpsc::Sender<Reply>| reply.capacity() > reply.max_capacity() / 2;
        if let Some(reply) = self.reply.as_ref().filter(has_room) {
            let rows_estimated = self.rows_estimated;
            // Whoever asked may have gone or be slow; progress is not worth waiting for.
            let _ = reply.try_send(Reply::Progress {
                table: table.to_string(),
                rows: ledger.rows,
                rows_estimated,
            });
        }
        Ok(())
    }

    fn schema(&self) -> Result<Arc<TableSchema>> {
        let name = task_table(&self.task);
        let known = self.shared.tables.get(&name);
        known.map(|table| table.schema).ok_or_else(|| {
            let message = format!("table {name} is not replicated by this pipeline any more");
            Error::table(&name, Code::MissingTable, message)
        })
    }

    fn not_below(&self, hold: &Hold) -> Result<Version> {
        Ok(if self.task.marker.is_some() { hold.version.max(self.marker()?) } else { hold.version })
    }

    fn marker(&self) -> Result<Version> {
        let marker = self.task.marker.as_ref().and_then(|bytes| Version::from_bytes(bytes));
        marker.ok_or_else(|| Error::stop(Code::Internal, "a backfill has no marker"))
    }

    pub(super) fn key_from_ledger(&self) -> Result<Option<Key>> {
        let Some(bytes) = &self.task.after else { return Ok(None) };
        let damaged = || Error::stop(Code::StateCorrupt, "a key in the backfill ledger is damaged");
        Key::from_bytes(bytes).map(Some).ok_or_else(damaged)
    }

    fn save(&self) -> Result<()> {
        blocking(|| self.shared.store.save_task(&self.task)).map_err(|error| state_error(&error))
    }
}

/// What the applier answered.
pub(super) fn answer(
    answered: std::result::Result<Result<u64>, oneshot::error::RecvError>,
) -> std::result::Result<u64, Interrupted> {
    match answered.map_err(|_| super::ended())? {
        Ok(sequence) => Ok(sequence),
        Err(error) if is_reshaped(&error) => Err(Interrupted::Reshaped),
        Err(error) => Err(error.into()),
    }
}

/// How many rows of this size make a chunk; never more than twice as many as last time.
fn rows_for_next(chunk: &Chunk, chunk_bytes: usize) -> usize {
    let bytes: usize = chunk.rows.iter().map(|(key, row)| key.size() + row.size()).sum();
    let rows = chunk.rows.len().max(1);
    (chunk_bytes / (bytes / rows).max(1)).clamp(1, rows * 2)
}
