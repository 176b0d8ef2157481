//! The task that owns the target: prepares tables, applies batches, records the checkpoint.
//!
//! Order of durability: the target commits, then the state directory is written, then the reader
//! may acknowledge. Chunks of a backfill take turns with batches of the log.

use std::collections::{BTreeMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use connectors::change::{Applied, Batch, Checkpoint, Key, TableBatch, TableStatus};
use connectors::error::{Code, Error, Kind, Result};
use connectors::schema::{Evolution, TableName, TableSchema};
use connectors::version::{Position, Version};
use connectors::{Prepared, RowReader, Source, Target};
use futures_util::future::select;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, error, info};

use crate::batcher::LogBatch;
use crate::floor::{Floor, Hold};
use crate::gate::Gates;
use crate::history;
use crate::merge::{MergedTable, complete};
use crate::order::{Order, Wanted, Widened, count_columns, reshaped};
use crate::persist::Persist;
use crate::status::Status;
use crate::supply::Supply;
use crate::tables::{Tables, shape_changed};
use crate::upcoming::upcoming;

/// A position that moved without changes is recorded at most this often.
const IDLE_EVERY: Duration = Duration::from_millis(250);
/// The state directory is written, and the source acknowledged, at most this often.
const PERSIST_EVERY: Duration = Duration::from_millis(500);

/// Where the applier hears from the other tasks, and tells them.
pub struct Channels {
    /// The batches of the log.
    pub supply: Supply,
    /// Orders of the backfills.
    pub orders: mpsc::Receiver<Order>,
    /// Tells the backfills of tables that got columns.
    pub widened: mpsc::UnboundedSender<Widened>,
    /// Tells the reader what may be acknowledged.
    pub durable: watch::Sender<Position>,
    /// Tells everybody how far the target has come.
    pub reached: watch::Sender<Version>,
    /// Set when the pipeline shall end.
    pub stop: watch::Receiver<bool>,
}

/// The task's state.
pub struct Applier {
    /// The target, claimed.
    pub target: Box<dyn Target>,
    /// For rows that the log carried only in part.
    pub source: Arc<dyn Source>,
    /// Opened when it is first needed.
    pub row_reader: Option<Box<dyn RowReader>>,
    /// The second copy of the checkpoint.
    pub persist: Persist,
    /// Shared with the backfills.
    pub floor: Arc<Floor>,
    /// Shared with the backfills.
    pub tables: Arc<Tables>,
    /// Shared with the loaders of the backfills.
    pub gates: Arc<Gates>,
    /// For people.
    pub status: Arc<Status>,
    /// What the target has.
    pub checkpoint: Checkpoint,
    /// How far the log has moved since then without changes. The next commit takes it along.
    pub moved: Option<(Position, Version)>,
    /// Whether one table's error stops the whole pipeline.
    pub stop_on_table_error: bool,
    /// The other tasks.
    pub channels: Channels,
}

enum Next {
    Stop,
    Order(Order),
    Log(LogBatch),
    Timer,
}

impl Applier {
    /// Applies until told to stop; then leaves everything durable.
    ///
    /// # Errors
    /// Whatever the target or the state directory cannot go on with.
    pub async fn run(mut self) -> Result<()> {
        let mut last_commit = Instant::now();
        let mut orders_first = true;
        loop {
            self.persist_when_due(PERSIST_EVERY)?;
            let due = match self.moved {
                Some(_) => last_commit + IDLE_EVERY,
                None => self.persist_due(),
            };
            let next = self.next(orders_first, due).await?;
            match next {
                Next::Stop => break,
                Next::Timer if self.moved.is_none() => continue,
                Next::Timer => self.commit(Vec::new(), BTreeMap::new(), None).await?,
                Next::Order(order) => {
                    orders_first = false;
                    self.apply_order(order).await?;
                }
                Next::Log(batch) if batch.only_moves() => {
                    orders_first = true;
                    self.moved = batch.reached.or(self.moved.take());
                    if last_commit.elapsed() < IDLE_EVERY {
                        continue;
                    }
                    self.commit(Vec::new(), BTreeMap::new(), None).await?;
                }
                Next::Log(batch) => {
                    orders_first = true;
                    self.apply_log(batch).await?;
                }
            }
            last_commit = Instant::now();
        }
        self.persist_when_due(Duration::ZERO)
    }

    async fn next(&mut self, orders_first: bool, due: Instant) -> Result<Next> {
        let Channels { orders, supply, stop, .. } = &mut self.channels;
        let order = pin!(async {
            let order = orders.recv().await;
            order.map(Next::Order).ok_or_else(|| gone("backfill"))
        });
        let batch = pin!(async {
            supply.wait().await?;
            supply.take().map(Next::Log).ok_or_else(|| gone("batcher"))
        });
        let work = async {
            match orders_first {
                true => select(order, batch).await.factor_first().0,
                false => select(batch, order).await.factor_first().0,
            }
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => Ok(Next::Stop),
            next = work => next,
            () = tokio::time::sleep_until(due) => Ok(Next::Timer),
        }
    }

    async fn apply_log(&mut self, batch: LogBatch) -> Result<()> {
        let started = Instant::now();
        let LogBatch { tables, reached, halted, committed_at, transactions, changes } = batch;
        let mut statuses = BTreeMap::new();
        for (name, status) in halted {
            self.stop_table(&name, status, &mut statuses)?;
        }
        let mut ready = Vec::with_capacity(tables.len());
        for merged in tables {
            if let Some(table) = self.ready_table(merged, &mut statuses).await? {
                ready.push(table);
            }
        }
        let rows: usize = ready.iter().map(|t| t.upserts.len() + t.deletes.len()).sum();
        self.commit(ready, statuses, reached).await?;
        if !self.channels.supply.is_there()
            && let Some(ahead) = self.target.ahead()
        {
            ahead.discard();
        }
        let elapsed_ms = started.elapsed().as_millis() as u64;
        debug!(rows, changes, transactions, elapsed_ms, position = %self.checkpoint.position, "batch applied");
        self.status.applied(rows as u64, transactions, committed_at);
        Ok(())
    }

    /// Makes one table's part of a log batch ready for the target, or leaves it out because the
    /// table is stopped.
    async fn ready_table(
        &mut self,
        merged: MergedTable,
        statuses: &mut BTreeMap<TableName, TableStatus>,
    ) -> Result<Option<Arc<TableBatch>>> {
        let MergedTable { mut batch, mut orphans } = merged;
        let name = batch.table.name.clone();
        if !self.tables.is_running(&name) {
            return Ok(None);
        }
        let outcome = match self.follow_shape(&batch).await {
            Ok(()) => {
                if !self.tables.is_trusted(&name) {
                    orphans = partial_keys(&batch);
                }
                self.complete_rows(&mut batch, &orphans).await
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => Ok(Some(batch)),
            Err(error) => {
                let version = first_version(&batch).unwrap_or(self.checkpoint.version);
                self.stop_or_fail(error, version, statuses)?;
                Ok(None)
            }
        }
    }

    /// Compares the shape of a table's rows with the one in the target, and adds new columns.
    async fn follow_shape(&mut self, batch: &TableBatch) -> Result<()> {
        let name = &batch.table.name;
        let Some(known) = self.tables.get(name) else {
            return Err(Error::table(
                name,
                Code::Internal,
                format!("table {name} was never prepared"),
            ));
        };
        match known.schema.evolution(&batch.table) {
            Evolution::Same | Evolution::Fewer => Ok(()),
            Evolution::Added(_) | Evolution::Reordered => {
                let since = first_version(batch).unwrap_or(self.checkpoint.version);
                self.widen(&batch.table, since.with_ordinal(0)).await
            }
            Evolution::Changed(how) => Err(shape_changed(name, &how)),
        }
    }

    async fn widen(&mut self, schema: &Arc<TableSchema>, since: Version) -> Result<()> {
        if let Some(known) = self.tables.get(&schema.name)
            && history::leads_to(&known.schema, schema)
        {
            history::add(self.persist.store(), &known.schema)?;
        }
        let alone = self.gates.alone([&schema.name]).await?;
        let widened = self.prepare(schema, since).await;
        // Only what the target does not answer any more may still be under way there.
        if !widened.as_ref().is_err_and(Error::is_transient) {
            alone.done();
        }
        widened
    }

    async fn prepare(&mut self, schema: &Arc<TableSchema>, since: Version) -> Result<()> {
        // The target records the table as `Copying` together with the new columns.
        if let Prepared::Added(columns) = self.target.prepare(schema).await? {
            info!(table = %schema.name, ?columns, "columns added in the target");
            self.tables.insert(Arc::clone(schema), TableStatus::Copying);
            let widened = Widened { table: schema.name.clone(), columns, since };
            self.channels.widened.send(widened).map_err(|_| gone("backfill"))?;
        }
        let status = self.tables.get(&schema.name).map_or(TableStatus::Live, |table| table.status);
        self.tables.insert(Arc::clone(schema), status);
        Ok(())
    }

    /// Reads rows from the source that a partial change cannot take from the target.
    async fn complete_rows(&mut self, batch: &mut Arc<TableBatch>, keys: &[Key]) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        // A batch may hold as many partial rows as it has room for, so no list is searched here.
        let wanted: HashSet<&Key> = keys.iter().collect();
        let asked = batch.upserts.iter().filter(|upsert| wanted.contains(&upsert.key));
        let Some(at) = asked.map(|upsert| upsert.version).max() else { return Ok(()) };
        let reader = match &mut self.row_reader {
            Some(reader) => reader,
            None => self.row_reader.insert(self.source.reader().await?),
        };
        let rows = reader.reread(&batch.table, keys, at).await?;
        debug!(table = %batch.table.name, asked = keys.len(), found = rows.len(), "rows read again");
        complete(Arc::make_mut(batch), &rows, keys);
        Ok(())
    }

    async fn apply_order(&mut self, order: Order) -> Result<()> {
        let Order { table, wanted, done } = order;
        let answer = match wanted {
            Wanted::Rows(batch, hold) => self.apply_rows(&table, batch, hold).await?,
            // The log may have stopped it since its last row was copied.
            Wanted::Complete { .. } if !self.tables.is_running(&table) => Err(self.stopped(&table)),
            Wanted::Complete { columns } if !self.has_columns(&table, columns) => Err(reshaped()),
            Wanted::Complete { .. } => self.apply_status(table, TableStatus::Live).await?,
            Wanted::Status(status) => self.apply_status(table, status).await?,
            Wanted::Sequence => {
                self.commit(Vec::new(), BTreeMap::new(), None).await?;
                Ok(self.checkpoint.sequence)
            }
            Wanted::TakeUp => {
                let stopped = self.tables.get(&table).map(|known| known.status);
                let answer = self.apply_status(table.clone(), TableStatus::Copying).await?;
                stopped.into_iter().for_each(|status| self.tables.set_status(&table, status));
                answer
            }
        };
        // A backfill that no longer waits has been ended with the pipeline.
        let _ = done.send(answer);
        Ok(())
    }

    async fn apply_status(&mut self, table: TableName, status: TableStatus) -> Result<Result<u64>> {
        self.commit(Vec::new(), BTreeMap::from([(table, status)]), None).await?;
        Ok(Ok(self.checkpoint.sequence))
    }

    /// The answer is for the backfill, an error outside of it for the pipeline.
    async fn apply_rows(
        &mut self,
        table: &TableName,
        batch: TableBatch,
        hold: Hold,
    ) -> Result<Result<u64>> {
        if !self.tables.is_running(table) {
            return Ok(Err(self.stopped(table)));
        }
        if self.tables.get(table).is_none_or(|known| known.schema != batch.table) {
            return self.follow_rows(table, &batch).await.map(Err);
        }
        self.commit(vec![Arc::new(batch)], BTreeMap::new(), None).await?;
        drop(hold);
        let running = self.tables.is_running(table);
        Ok(if running { Ok(self.checkpoint.sequence) } else { Err(self.stopped(table)) })
    }

    /// Rows of a chunk with another shape than the log has told of so far. The backfill reads
    /// them again: a wider table is ready then, a narrower one was read before the change showed.
    async fn follow_rows(&mut self, table: &TableName, batch: &TableBatch) -> Result<Error> {
        let mut statuses = BTreeMap::new();
        if let Err(error) = self.follow_shape(batch).await {
            self.stop_or_fail(error, self.checkpoint.version, &mut statuses)?;
            self.commit(Vec::new(), statuses, None).await?;
            return Ok(self.stopped(table));
        }
        Ok(reshaped())
    }

    fn has_columns(&self, table: &TableName, columns: u32) -> bool {
        self.tables.get(table).is_some_and(|table| count_columns(&table.schema) == columns)
    }

    fn stopped(&self, name: &TableName) -> Error {
        match self.tables.get(name).map(|table| table.status) {
            Some(TableStatus::Stopped { code, message, .. }) => Error::table(name, code, message),
            _ => Error::table(name, Code::Internal, format!("table {name} is not replicated")),
        }
    }

    /// One target transaction. A table that the target refuses is stopped and left out.
    async fn commit(
        &mut self,
        tables: Vec<Arc<TableBatch>>,
        status: BTreeMap<TableName, TableStatus>,
        reached: Option<(Position, Version)>,
    ) -> Result<()> {
        let (position, version) = reached
            .or(self.moved.take())
            .unwrap_or_else(|| (self.checkpoint.position.clone(), self.checkpoint.version));
        let sequence = self.checkpoint.sequence + 1;
        let floor = self.floor.announce(version);
        let checkpoint = Checkpoint { position, version, sequence };
        let mut batch = Batch { checkpoint, floor, tables, status };
        let written = batch.tables.iter().map(|part| &part.table.name);
        let alone = self.gates.alone(written).await?;
        loop {
            match self.apply(&batch).await {
                Ok(Applied::Done) => break,
                Ok(Applied::NeedsRows(wanted)) => self.complete_batch(&mut batch, wanted).await?,
                Err(error) => self.leave_out(error, &mut batch)?,
            }
        }
        alone.done();
        for (name, status) in &batch.status {
            self.tables.set_status(name, status.clone());
            self.status.table_status(name, status);
        }
        self.checkpoint = batch.checkpoint;
        self.persist.note(&self.checkpoint);
        self.status.reached(&self.checkpoint);
        self.channels.reached.send_replace(self.checkpoint.version);
        Ok(())
    }

    /// Meanwhile has the rows of the next batch brought to the target.
    async fn apply(&mut self, batch: &Batch) -> Result<Applied> {
        let Some(ahead) = self.target.ahead() else { return self.target.apply(batch).await };
        let applied = self.target.apply(batch);
        let (supply, tables) = (&mut self.channels.supply, &self.tables);
        let looked_ahead = async {
            let next = supply.look_ahead().await?;
            ahead.stage(upcoming(&mut next.tables, batch, tables));
            std::future::pending().await
        };
        tokio::select! {
            biased;
            applied = applied => applied,
            gone = looked_ahead => gone,
        }
    }

    async fn complete_batch(
        &mut self,
        batch: &mut Batch,
        wanted: Vec<(TableName, Vec<Key>)>,
    ) -> Result<()> {
        for (name, keys) in wanted {
            let Some(at) = batch.tables.iter().position(|part| part.table.name == name) else {
                continue;
            };
            let mut part = batch.tables.swap_remove(at);
            match self.complete_rows(&mut part, &keys).await {
                Ok(()) => batch.tables.push(part),
                Err(error) => {
                    let version = first_version(&part).unwrap_or(batch.checkpoint.version);
                    self.stop_or_fail(error, version, &mut batch.status)?;
                }
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, error: Error, batch: &mut Batch) -> Result<()> {
        let Kind::Table(name) = &error.kind else { return Err(error) };
        let Some(at) = batch.tables.iter().position(|part| part.table.name == *name) else {
            return Err(Error { kind: Kind::Stop, ..error });
        };
        let part = batch.tables.swap_remove(at);
        let version = first_version(&part).unwrap_or(batch.checkpoint.version);
        self.stop_or_fail(error, version, &mut batch.status)
    }

    fn stop_or_fail(
        &mut self,
        error: Error,
        version: Version,
        statuses: &mut BTreeMap<TableName, TableStatus>,
    ) -> Result<()> {
        let Kind::Table(name) = error.kind.clone() else { return Err(error) };
        let Error { code, message, .. } = error;
        self.stop_table(&name, TableStatus::Stopped { code, message, version }, statuses)
    }

    fn stop_table(
        &mut self,
        name: &TableName,
        status: TableStatus,
        statuses: &mut BTreeMap<TableName, TableStatus>,
    ) -> Result<()> {
        if let TableStatus::Stopped { code, message, version } = &status {
            if self.stop_on_table_error {
                return Err(Error::stop(*code, message.clone()));
            }
            error!(table = %name, %code, %version, reason = message, "table stopped");
        }
        self.tables.set_status(name, status.clone());
        statuses.insert(name.clone(), status);
        Ok(())
    }

    fn persist_due(&self) -> Instant {
        self.persist.due(PERSIST_EVERY)
    }

    fn persist_when_due(&mut self, every: Duration) -> Result<()> {
        if let Some(saved) = self.persist.save_when_due(every)? {
            self.channels.durable.send_replace(saved);
        }
        Ok(())
    }
}

impl LogBatch {
    fn only_moves(&self) -> bool {
        self.tables.is_empty() && self.halted.is_empty()
    }
}

fn partial_keys(batch: &TableBatch) -> Vec<Key> {
    let partial = batch.upserts.iter().filter(|upsert| upsert.row.has_absent());
    partial.map(|upsert| upsert.key.clone()).collect()
}

fn first_version(batch: &TableBatch) -> Option<Version> {
    let upserts = batch.upserts.iter().map(|upsert| upsert.version);
    let deletes = batch.deletes.iter().map(|delete| delete.version);
    upserts.chain(deletes).chain(batch.truncated.map(|(version, _)| version)).min()
}

fn gone(task: &str) -> Error {
    Error::transient(Code::Internal, format!("the {task} task has ended"))
}
