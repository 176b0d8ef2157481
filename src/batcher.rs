//! Merges queued transactions into one batch while the applier is busy with another.
//!
//! A batch goes as soon as the applier is free and the log has nothing more to give, is full, or
//! has waited long enough. The surprise: a batch may end inside a transaction when a table's shape
//! changes there or when the transaction is too large to hold; then its checkpoint stays before
//! that transaction, and versions make the repetition after a crash harmless.

use std::sync::Arc;
use std::time::Duration;

use connectors::change::{Change, TableStatus, Timestamp, Transaction, Versioned};
use connectors::error::Result;
use connectors::schema::{TableName, TableSchema};
use connectors::version::{Position, Version};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::merge::{MergedTable, Merger};
use crate::queue::{Queued, Receiver};
use crate::supply::Demand;

/// How many transactions are merged before anything else is looked at.
const AT_A_TIME: usize = 64;

/// When a batch is full.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Rows, after merging.
    pub rows: usize,
    /// Bytes, after merging.
    pub bytes: usize,
    /// An unfilled batch goes after this long even if the log has more.
    pub wait: Duration,
}

/// What the applier gets: merged changes and how far they reach.
#[derive(Debug)]
pub struct LogBatch {
    /// The changes, by table.
    pub tables: Vec<MergedTable>,
    /// The last commit that is wholly in this batch or an earlier one; `None` if there is none
    /// since the last batch.
    pub reached: Option<(Position, Version)>,
    /// Tables that the source cannot go on with.
    pub halted: Vec<(TableName, TableStatus)>,
    /// Commit time of the newest transaction.
    pub committed_at: Option<Timestamp>,
    /// Transactions that end in this batch, those without changes not counted.
    pub transactions: u64,
    /// Changes before merging.
    pub changes: u64,
}

/// The applier's request for the next batch; for a full one while the target is not free.
pub type Request = oneshot::Sender<LogBatch>;

/// The task's state.
pub struct Batcher {
    queue: Receiver,
    requests: mpsc::Receiver<Request>,
    target_free: watch::Receiver<bool>,
    bounds: Bounds,
    merger: Merger,
    building: LogBatch,
    /// What is left of a transaction inside which the batch must end.
    rest: Option<Rest>,
    /// The newest transaction has parts still to come.
    inside: bool,
    since: Option<Instant>,
}

struct Rest {
    first: (Version, Change),
    others: Versioned,
    end: End,
    memory: OwnedSemaphorePermit,
}

struct End {
    position: Position,
    version: Version,
    committed_at: Timestamp,
    complete: bool,
}

impl Batcher {
    /// A batcher between a queue and an applier's requests.
    #[must_use]
    pub fn new(queue: Receiver, (requests, target_free): Demand, bounds: Bounds) -> Batcher {
        let (merger, building) = (Merger::default(), LogBatch::empty());
        Batcher {
            queue,
            requests,
            target_free,
            bounds,
            merger,
            building,
            rest: None,
            inside: false,
            since: None,
        }
    }

    /// Runs until the reader or the applier is gone.
    ///
    /// # Errors
    /// A change that cannot be merged: a defect.
    pub async fn run(mut self) -> Result<()> {
        loop {
            self.resume_rest()?;
            let deadline = self.since.map(|since| since + self.bounds.wait);
            let waited = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            let hungry = !(self.full() || waited && self.may_go());
            let wanted = self.full() || *self.target_free.borrow_and_update() && self.may_go();
            tokio::select! {
                biased;
                queued = self.queue.recv(), if hungry => match queued {
                    Some(queued) => self.add_all(queued)?,
                    None => return Ok(()),
                },
                request = self.requests.recv(), if wanted => match request {
                    Some(request) => self.give(request),
                    None => return Ok(()),
                },
                changed = self.target_free.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    }

    fn full(&self) -> bool {
        self.rest.is_some()
            || self.merger.rows() >= self.bounds.rows
            || self.merger.bytes() >= self.bounds.bytes
    }

    /// Whether there is something to give that may be given: a transaction that is not complete
    /// yet waits for its other parts, unless there is no room for them.
    fn may_go(&self) -> bool {
        self.full() || (!self.inside && self.building.says_something(&self.merger))
    }

    /// Also what is queued behind it: to look at everything else in between costs more than a small
    /// transaction does.
    fn add_all(&mut self, first: Queued) -> Result<()> {
        self.add(first)?;
        for _ in 1..AT_A_TIME {
            if self.full() {
                break;
            }
            let Ok(next) = self.queue.try_recv() else { break };
            self.add(next)?;
        }
        Ok(())
    }

    fn add(&mut self, Queued { transaction, memory }: Queued) -> Result<()> {
        let Transaction { version, position, committed_at, first_ordinal, changes, complete } =
            transaction;
        if !changes.is_empty() {
            self.since.get_or_insert_with(Instant::now);
            self.building.transactions += u64::from(complete);
        }
        self.building.changes += changes.len() as u64;
        let changes = Versioned::new(version.with_ordinal(first_ordinal), changes);
        self.merge(None, changes, End { position, version, committed_at, complete }, memory)
    }

    fn resume_rest(&mut self) -> Result<()> {
        if self.rest.is_some() && !self.merger.is_empty() {
            return Ok(());
        }
        if let Some(Rest { first, others, end, memory }) = self.rest.take() {
            self.since.get_or_insert_with(Instant::now);
            self.merge(Some(first), others, end, memory)?;
        }
        Ok(())
    }

    fn merge(
        &mut self,
        mut first: Option<(Version, Change)>,
        mut others: Versioned,
        end: End,
        memory: OwnedSemaphorePermit,
    ) -> Result<()> {
        while let Some((version, change)) = first.take().or_else(|| others.next()) {
            if let Change::Halt { table, code, message } = change {
                let message = message.into_string();
                let status = TableStatus::Stopped { code, message, version };
                self.building.halted.push((*table, status));
                continue;
            }
            if self.shape_differs(&change) {
                self.inside = true;
                self.rest = Some(Rest { first: (version, change), others, end, memory });
                return Ok(());
            }
            self.merger.add(version, end.committed_at, change)?;
        }
        self.inside = !end.complete;
        self.building.committed_at = Some(end.committed_at);
        if end.complete {
            self.building.reached = Some((end.position, end.version));
        }
        Ok(())
    }

    fn shape_differs(&self, change: &Change) -> bool {
        shape(change).is_some_and(|shape| self.merger.has_other_shape(shape))
    }

    fn give(&mut self, request: Request) {
        let mut batch = std::mem::replace(&mut self.building, LogBatch::empty());
        batch.tables = self.merger.take();
        self.since = None;
        // The applier dropped its request only if it is ending.
        let _ = request.send(batch);
    }
}

impl LogBatch {
    fn empty() -> LogBatch {
        LogBatch {
            tables: Vec::new(),
            reached: None,
            halted: Vec::new(),
            committed_at: None,
            transactions: 0,
            changes: 0,
        }
    }

    fn says_something(&self, merger: &Merger) -> bool {
        !merger.is_empty() || self.reached.is_some() || !self.halted.is_empty()
    }
}

fn shape(change: &Change) -> Option<&Arc<TableSchema>> {
    match change {
        Change::Upsert { table, .. }
        | Change::Delete { table, .. }
        | Change::Truncate { table } => Some(table),
        Change::Halt { .. } => None,
    }
}
