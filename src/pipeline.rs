//! One source into one target: decides where to resume, then runs the tasks until one of them
//! ends. Any task's end or panic ends them all; `daemon.rs` decides whether to begin again.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use connectors::change::{Batch, Checkpoint, TableStatus};
use connectors::error::{Code, Error, Kind, Result};
use connectors::schema::{Evolution, TableName, TablePatterns, TableSchema};
use connectors::version::Version;
use connectors::{Claim, Finding, Level, Prepared, Remembered, Resume, Source, Target};
use state::Store;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::applier::{Applier, Channels, shape_changed};
use crate::backfill::{Backfills, Shared, Waiting};
use crate::batcher::{Batcher, Bounds};
use crate::control::Ask;
use crate::floor::Floor;
use crate::persist::{Persist, blocking, state_error};
use crate::queue;
use crate::reader::Reader;
use crate::resume::{Memories, Start, decide};
use crate::status::{State, Status};
use crate::tables::Tables;

/// Opens a connection to the target.
pub type TargetFactory =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Box<dyn Target>>> + Send>> + Send + Sync>;

/// How a pipeline runs.
#[derive(Clone, Debug)]
pub struct Limits {
    /// When a batch is full.
    pub bounds: Bounds,
    /// Bytes that wait between the log and the target.
    pub queue_bytes: usize,
    /// Rows a chunk.
    pub chunk_rows: usize,
    /// Tables copied at the same time.
    pub copy_workers: usize,
    /// Whether one table's error stops the whole pipeline.
    pub stop_on_table_error: bool,
}

/// One source into one target.
pub struct Pipeline {
    /// Read from here.
    pub source: Arc<dyn Source>,
    /// Written to.
    pub connect_target: TargetFactory,
    /// The second copy.
    pub store: Arc<dyn Store>,
    /// Which tables.
    pub tables: TablePatterns,
    /// How it runs.
    pub limits: Limits,
    /// For people.
    pub status: Arc<Status>,
    /// Who waits for which backfill.
    pub asked: Arc<Waiting>,
}

/// What one session is told, and what it leaves for the next.
pub struct Session {
    /// The fence of our claim, once there is one.
    pub fence: Option<u64>,
    /// Take the pipeline over from another instance; cleared when done.
    pub take_over: bool,
    /// Accept a gap; cleared when done.
    pub resync: bool,
    /// End when everything committed before the command began is durable and copied.
    pub until_current: bool,
    /// End when no backfill is left.
    pub until_copied: bool,
    /// The version that `until_current` waits for.
    pub mark: Option<Version>,
    /// Whether a session of this process has been running.
    pub established: bool,
    /// Requests of other commands.
    pub asks: mpsc::Receiver<Ask>,
    /// Ends the pipeline in order.
    pub stop: watch::Receiver<bool>,
}

/// What is known once the pipeline may run.
struct Ready {
    target: Box<dyn Target>,
    fence: u64,
    checkpoint: Checkpoint,
    tables: Tables,
    schemas: Vec<Arc<TableSchema>>,
    /// The shapes that the target was prepared for until now, where they were others.
    earlier: Vec<Arc<TableSchema>>,
    fresh: Vec<TableName>,
}

impl Pipeline {
    /// Connects, resumes and replicates until told to stop, or until what the session waits for
    /// has happened.
    ///
    /// # Errors
    /// The first error of any task; `Transient` ones are worth another session.
    pub async fn run(&self, session: &mut Session) -> Result<()> {
        let ready = self.prepare(session).await?;
        session.established = true;
        session.fence = Some(ready.fence);
        (session.take_over, session.resync) = (false, false);
        self.replicate(ready, session).await
    }

    async fn prepare(&self, session: &Session) -> Result<Ready> {
        let mut target = (self.connect_target)().await?;
        // In this order: whoever subscribes has claimed the target before.
        let subscription = self.source.subscription().await?;
        let recalled = target.recall().await?;
        let saved = blocking(|| self.store.checkpoint()).map_err(|error| state_error(&error))?;
        let tasks = blocking(|| self.store.tasks()).map_err(|error| state_error(&error))?;
        let memories = Memories {
            target: recalled.as_ref(),
            saved: saved.as_ref(),
            ledger: tasks.iter().map(|task| task.sequence).max().unwrap_or(0),
            instance: self.store.instance(),
            subscription: subscription.as_deref(),
        };
        let start = decide(memories, session.resync)?;
        let schemas = self.source.tables(&self.tables).await?;
        if !matches!(start, Start::Resume { .. }) {
            self.check_first_start(target.as_mut(), &schemas).await?;
        }
        let claim = Claim {
            instance: self.store.instance().to_owned(),
            fence: session.fence,
            take_over: session.take_over,
        };
        let remembered = target.claim(&claim).await?;
        if session.take_over {
            self.source.evict().await?;
        }
        // Whoever wrote until the claim may have gone on after we had looked.
        let before = recalled.as_ref().and_then(|recalled| recalled.checkpoint.as_ref());
        let start = if remembered.checkpoint.as_ref() == before {
            start
        } else {
            let nobody = "";
            let target = Some(&remembered);
            decide(Memories { target, instance: nobody, ..memories }, session.resync)?
        };
        self.begin(target, remembered, start, schemas).await
    }

    /// A first start changes nothing anywhere unless everything is ready.
    async fn check_first_start(
        &self,
        target: &mut dyn Target,
        schemas: &[Arc<TableSchema>],
    ) -> Result<()> {
        let mut findings = self.source.check(&self.tables).await?;
        findings.extend(target.check(schemas).await?);
        match findings.into_iter().find(|finding| finding.level == Level::Failure) {
            None => Ok(()),
            Some(Finding { code, message, remedy, .. }) if remedy.is_empty() => {
                Err(Error::stop(code.unwrap_or(Code::SourceSettings), message))
            }
            Some(Finding { code, message, remedy, .. }) => {
                let code = code.unwrap_or(Code::SourceSettings);
                Err(Error::stop(code, format!("{message}; run: {remedy}")))
            }
        }
    }

    /// Prepares the tables and the log, and records where the pipeline stands.
    async fn begin(
        &self,
        mut target: Box<dyn Target>,
        remembered: Remembered,
        start: Start,
        schemas: Vec<Arc<TableSchema>>,
    ) -> Result<Ready> {
        self.release_others(target.as_mut(), &remembered, &schemas).await?;
        let relied_upon = self.relied_upon(&remembered, &schemas)?;
        let tables = Tables::default();
        let mut fresh = Vec::new();
        let mut statuses = BTreeMap::new();
        let copy_all = matches!(start, Start::Resync { .. });
        for schema in &schemas {
            let name = &schema.name;
            let (status, created) =
                prepare_table(target.as_mut(), &remembered, schema, copy_all).await?;
            if created {
                fresh.push(name.clone());
            }
            tables.insert(Arc::clone(schema), status.clone());
            self.status.table_status(name, &status);
            statuses.insert(name.clone(), status);
        }
        let (checkpoint, new) = match self.locate(&start, &schemas, &relied_upon).await {
            Ok(located) => located,
            Err(error) => return Err(unless_fenced(target.as_mut(), remembered.fence, error).await),
        };
        if !matches!(start, Start::Resume { ledger_holds: true, .. }) {
            blocking(|| self.store.reset()).map_err(|error| state_error(&error))?;
        }
        self.keep_only_replicated_tasks(&schemas)?;
        let checkpoint = if new || changed(&remembered, &statuses) {
            record(target.as_mut(), checkpoint, statuses).await?
        } else {
            checkpoint
        };
        let mut persist = Persist::new(Arc::clone(&self.store), remembered.fence);
        persist.note(&checkpoint);
        persist.save_when_due(std::time::Duration::ZERO)?;
        info!(position = %checkpoint.position, version = %checkpoint.version, tables = schemas.len(), "pipeline ready");
        let earlier = earlier_shapes(&remembered, &schemas);
        Ok(Ready { target, fence: remembered.fence, checkpoint, tables, schemas, earlier, fresh })
    }

    /// The checkpoint to go on from, and whether the target does not have it yet.
    async fn locate(
        &self,
        start: &Start,
        schemas: &[Arc<TableSchema>],
        relied_upon: &[TableName],
    ) -> Result<(Checkpoint, bool)> {
        let (epoch, sequence) = match start {
            Start::Resume { checkpoint, .. } => {
                let resume = Resume { position: &checkpoint.position, relied_upon };
                self.source.subscribe(schemas, Some(resume)).await?;
                return Ok((checkpoint.clone(), false));
            }
            Start::Fresh => (1, 0),
            Start::Resync { epoch, sequence } => (*epoch, *sequence),
        };
        let position = self.source.subscribe(schemas, None).await?;
        let version = self.source.version_of(&position, epoch)?;
        Ok((Checkpoint { position, version, sequence }, true))
    }

    /// The tables of which rows have been copied: those that are complete, and those with a copy
    /// in the ledger. A table that was dropped and created again is another one.
    fn relied_upon(
        &self,
        remembered: &Remembered,
        schemas: &[Arc<TableSchema>],
    ) -> Result<Vec<TableName>> {
        let tasks = blocking(|| self.store.tasks()).map_err(|error| state_error(&error))?;
        let relied = |schema: &&Arc<TableSchema>| {
            remembered.tables.get(&schema.name).is_some_and(|record| {
                let begun =
                    tasks.iter().any(|task| crate::backfill::task_table(task) == schema.name);
                let copied = match record.status {
                    TableStatus::Live => true,
                    TableStatus::Copying => begun,
                    TableStatus::Stopped { .. } => false,
                };
                copied && record.schema.id == schema.id
            })
        };
        Ok(schemas.iter().filter(relied).map(|schema| schema.name.clone()).collect())
    }

    async fn release_others(
        &self,
        target: &mut dyn Target,
        remembered: &Remembered,
        schemas: &[Arc<TableSchema>],
    ) -> Result<()> {
        let wanted: BTreeSet<&TableName> = schemas.iter().map(|schema| &schema.name).collect();
        let gone: Vec<TableName> =
            remembered.tables.keys().filter(|name| !wanted.contains(name)).cloned().collect();
        if !gone.is_empty() {
            info!(tables = ?gone, "tables are no longer replicated; their rows stay in the target");
            target.release(&gone).await?;
        }
        Ok(())
    }

    fn keep_only_replicated_tasks(&self, schemas: &[Arc<TableSchema>]) -> Result<()> {
        let tasks = blocking(|| self.store.tasks()).map_err(|error| state_error(&error))?;
        for task in tasks {
            let name = crate::backfill::task_table(&task);
            if !schemas.iter().any(|schema| schema.name == name) {
                blocking(|| self.store.remove_task(task.id)).map_err(|e| state_error(&e))?;
            }
        }
        Ok(())
    }

    async fn replicate(&self, ready: Ready, session: &mut Session) -> Result<()> {
        let Ready { mut target, fence, checkpoint, tables, schemas, earlier, fresh } = ready;
        let epoch = checkpoint.version.epoch;
        let opened = self.source.stream(&checkpoint.position, epoch, &schemas, &earlier).await;
        let stream = match opened {
            Ok(stream) => stream,
            Err(error) => return Err(unless_fenced(target.as_mut(), fence, error).await),
        };
        if session.until_current && session.mark.is_none() {
            session.mark = Some(self.source.mark(epoch).await?);
        }
        let tables = Arc::new(tables);
        let floor = Floor::new(checkpoint.version);
        let (queue, queued) = queue::bounded(self.limits.queue_bytes);
        let (requests, requested) = mpsc::channel(1);
        let (orders, ordered) = mpsc::channel(1);
        let (widened_in, widened) = mpsc::unbounded_channel();
        let (durable_in, durable) = watch::channel(checkpoint.position.clone());
        let (reached_in, reached) = watch::channel(checkpoint.version);
        let (stop_in, stop) = watch::channel(false);
        let (finished_in, finished) = watch::channel(false);
        let (left_in, left) = watch::channel(usize::MAX);

        let shared = Shared {
            source: Arc::clone(&self.source),
            connect_target: Arc::clone(&self.connect_target),
            store: Arc::clone(&self.store),
            floor: Arc::clone(&floor),
            tables: Arc::clone(&tables),
            status: Arc::clone(&self.status),
            orders,
            epoch,
            chunk_rows: self.limits.chunk_rows,
            asked: Arc::clone(&self.asked),
        };
        let mut backfills = Backfills::new(shared, self.limits.copy_workers, left_in)?;
        backfills.copy_unfinished(&fresh)?;
        self.status.update(|snapshot| snapshot.state = State::Streaming);
        let resumed_from = checkpoint.version;
        let applier = Applier {
            target,
            source: Arc::clone(&self.source),
            row_reader: None,
            persist: Persist::new(Arc::clone(&self.store), fence),
            floor,
            tables: Arc::clone(&tables),
            status: Arc::clone(&self.status),
            checkpoint,
            stop_on_table_error: self.limits.stop_on_table_error,
            channels: Channels {
                requests,
                orders: ordered,
                widened: widened_in,
                durable: durable_in,
                reached: reached_in,
                stop,
            },
        };
        let mut tasks: JoinSet<(&'static str, Result<()>)> = JoinSet::new();
        let reader = Reader { stream, queue, durable, resumed_from, finished };
        tasks.spawn(async move { ("reader", reader.run().await) });
        let batcher = Batcher::new(queued, requested, self.limits.bounds);
        tasks.spawn(async move { ("batcher", batcher.run().await) });
        tasks.spawn(async move { ("applier", applier.run().await) });
        tasks.spawn(async move { ("backfill", backfills.run(widened).await) });

        let goal = Goal { session, reached, left, asked: &self.asked, tables: &tables };
        let conductor = Conductor { tasks, stop: stop_in, finished: finished_in };
        conductor.conduct(goal).await
    }
}

/// Waits for the first task to end, or for the reason to end them all in order.
struct Conductor {
    tasks: JoinSet<(&'static str, Result<()>)>,
    stop: watch::Sender<bool>,
    finished: watch::Sender<bool>,
}

impl Conductor {
    async fn conduct(mut self, mut goal: Goal<'_>) -> Result<()> {
        tokio::select! {
            biased;
            ended = self.tasks.join_next() => {
                // The next session must not meet the remains of this one in the target.
                self.tasks.shutdown().await;
                return Err(unexpected_end(ended));
            }
            () = goal.reached() => {}
        }
        // The applier finishes the batch under way and writes the state directory; the reader
        // acknowledges; the others have nothing left to do.
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(("applier", Ok(()))) => {
                    self.finished.send_replace(true);
                }
                Ok(("reader", Ok(()))) => break,
                // Whoever lost its partner in the meantime ends too.
                Ok(("batcher" | "backfill", _)) => {}
                other => return Err(unexpected_end(Some(other))),
            }
        }
        self.tasks.shutdown().await;
        goal.verdict()
    }
}

fn unexpected_end(
    ended: Option<std::result::Result<(&'static str, Result<()>), tokio::task::JoinError>>,
) -> Error {
    match ended {
        Some(Ok((_, Err(error)))) => error,
        Some(Ok((task, Ok(())))) => {
            Error::transient(Code::Internal, format!("the {task} task has ended"))
        }
        Some(Err(error)) => Error::stop(Code::Internal, format!("a task has died: {error}")),
        None => Error::stop(Code::Internal, "no task is left"),
    }
}

/// When the session is to end in order.
struct Goal<'a> {
    session: &'a mut Session,
    reached: watch::Receiver<Version>,
    left: watch::Receiver<usize>,
    asked: &'a Waiting,
    tables: &'a Tables,
}

impl Goal<'_> {
    /// Passes requests on until it is time to end.
    async fn reached(&mut self) {
        loop {
            if self.is_met() {
                return;
            }
            tokio::select! {
                biased;
                _ = self.session.stop.wait_for(|stop| *stop) => return,
                Some(ask) = self.session.asks.recv() => self.asked.push(ask),
                Ok(()) = self.reached.changed() => {}
                Ok(()) = self.left.changed() => {}
                else => std::future::pending().await,
            }
        }
    }

    fn is_met(&mut self) -> bool {
        let asked = self.session.asks.is_empty() && self.asked.is_empty();
        let copied = asked && *self.left.borrow() == 0;
        let current = self.session.mark.is_none_or(|mark| *self.reached.borrow() >= mark);
        match (self.session.until_current, self.session.until_copied) {
            (false, false) => false,
            (true, _) => copied && current,
            (false, true) => copied,
        }
    }

    /// A run that was to make everything current has failed if a table stands still.
    fn verdict(&self) -> Result<()> {
        let ends_by_itself = self.session.until_current || self.session.until_copied;
        match self.tables.first_stopped() {
            Some((name, TableStatus::Stopped { code, message, .. })) if ends_by_itself => {
                Err(Error::stop(code, message).context(format!("table {name} is stopped")))
            }
            _ => Ok(()),
        }
    }
}

/// What looks like a gap may be another instance that has taken over and gone on.
async fn unless_fenced(target: &mut dyn Target, fence: u64, error: Error) -> Error {
    match target.recall().await {
        Ok(Some(now)) if now.fence != fence => {
            Error::stop(Code::Fenced, "another instance has taken the pipeline over")
        }
        // The first error says more than that the target cannot be asked.
        Ok(_) | Err(_) => error,
    }
}

/// Makes the target ready for one table; returns its state and whether it was created now.
async fn prepare_table(
    target: &mut dyn Target,
    remembered: &Remembered,
    schema: &Arc<TableSchema>,
    copy_again: bool,
) -> Result<(TableStatus, bool)> {
    let name = &schema.name;
    let record = remembered.tables.get(name);
    if let (Some(record), false) = (record, copy_again) {
        if let stopped @ TableStatus::Stopped { .. } = &record.status {
            warn!(table = %name, "table is stopped; copy it again with `driftless backfill --table {name}`");
            return Ok((stopped.clone(), false));
        }
        let how = match record.schema.evolution(schema) {
            Evolution::Changed(how) => Some(how),
            Evolution::Fewer => Some("a column was dropped".to_owned()),
            Evolution::Same | Evolution::Reordered | Evolution::Added(_) => None,
        };
        if let (Some(how), TableStatus::Live) = (how, &record.status) {
            return Ok((stopped_by(shape_changed(name, &how)), false));
        }
    }
    match target.prepare(schema).await {
        Ok(Prepared::Unchanged) if copy_again => Ok((TableStatus::Copying, false)),
        Ok(Prepared::Unchanged) => {
            Ok((record.map_or(TableStatus::Copying, |record| record.status.clone()), false))
        }
        Ok(Prepared::Created) => Ok((TableStatus::Copying, true)),
        Ok(Prepared::Added(_)) => Ok((TableStatus::Copying, false)),
        // The target cannot take this table as it is now; that is no reason to stop the others.
        Err(error) if record.is_some() && error.code == Code::TargetShape => {
            Ok((stopped_by(error), false))
        }
        Err(Error { kind: Kind::Table(_), code, message }) => Err(Error::stop(code, message)),
        Err(error) => Err(error),
    }
}

/// What the target remembers of tables that have another shape by now.
fn earlier_shapes(remembered: &Remembered, schemas: &[Arc<TableSchema>]) -> Vec<Arc<TableSchema>> {
    let known = |schema: &Arc<TableSchema>| remembered.tables.get(&schema.name);
    let other = |schema: &Arc<TableSchema>| {
        known(schema).map(|record| &record.schema).filter(|earlier| *earlier != schema.as_ref())
    };
    schemas.iter().filter_map(other).cloned().map(Arc::new).collect()
}

fn stopped_by(error: Error) -> TableStatus {
    TableStatus::Stopped { code: error.code, message: error.message, version: Version::ZERO }
}

fn changed(remembered: &Remembered, statuses: &BTreeMap<TableName, TableStatus>) -> bool {
    statuses.iter().any(|(name, status)| {
        remembered.tables.get(name).is_none_or(|record| record.status != *status)
    })
}

/// Records a checkpoint and the tables' states without rows.
async fn record(
    target: &mut dyn Target,
    checkpoint: Checkpoint,
    status: BTreeMap<TableName, TableStatus>,
) -> Result<Checkpoint> {
    let Checkpoint { position, version, sequence } = checkpoint;
    let checkpoint = Checkpoint { position, version, sequence: sequence + 1 };
    let batch =
        Batch { checkpoint: checkpoint.clone(), floor: version, tables: Vec::new(), status };
    target.apply(&batch).await?;
    Ok(checkpoint)
}
