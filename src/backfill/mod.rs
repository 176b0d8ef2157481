//! Copies tables in chunks while the log flows: the first copy, later copies on request, and the
//! repair of single rows. This file decides which copies run; `worker.rs` runs one, with
//! `first_copy.rs` and `loaders.rs` for tables that were created empty.
//!
//! Every copy is a `state::Task` in the state directory, so a restart resumes at the chunk.

mod first_copy;
mod loaders;
mod worker;

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use connectors::change::TableStatus;
use connectors::error::{Code, Error, Kind, Result};
use connectors::schema::{TableName, TableSchema};
use connectors::{ChunkRequest, RowReader, Source};
use state::{Phase, Store, Task};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::connect::TargetFactory;
use crate::control::{Ask, Reply, Request};
use crate::floor::Floor;
use crate::order::{Order, Wanted, Widened, count_columns, is_reshaped};
use crate::persist::{blocking, state_error};
use crate::status::Status;
use crate::tables::Tables;
pub use loaders::Loaders;
use worker::Worker;

/// What all copies share.
#[derive(Clone)]
pub struct Shared {
    /// Read from here.
    pub source: Arc<dyn Source>,
    /// For reading the target's keys, beside the applier.
    pub connect_target: TargetFactory,
    /// Where the ledger is.
    pub store: Arc<dyn Store>,
    /// Shared with the applier.
    pub floor: Arc<Floor>,
    /// Shared with the applier.
    pub tables: Arc<Tables>,
    /// For people.
    pub status: Arc<Status>,
    /// Rows to the applier.
    pub orders: mpsc::Sender<Order>,
    /// The epoch of the log.
    pub epoch: u32,
    /// Write chunks beside the applier.
    pub loaders: Arc<Loaders>,
    /// Rows a chunk.
    pub chunk_rows: usize,
    /// About how many bytes a chunk has, unless a single row is larger.
    pub chunk_bytes: usize,
    /// Held by everything that this session has begun, until it has ended.
    pub remains: mpsc::Sender<Infallible>,
    /// Who waits for which task; outlives a lost connection.
    pub asked: Arc<Waiting>,
}

/// What other commands asked for, and who waits for it. Outlives a session, so that nothing that
/// was asked for is forgotten when a connection breaks before it is in the ledger.
#[derive(Default)]
pub struct Waiting {
    /// Not in the ledger yet.
    asks: Mutex<VecDeque<Ask>>,
    arrived: Notify,
    /// Who asked for the tasks of these ids.
    asked: Mutex<BTreeMap<u64, Asked>>,
}

impl Waiting {
    /// Takes in a request.
    pub fn push(&self, ask: Ask) {
        lock(&self.asks).push_back(ask);
        self.arrived.notify_one();
    }

    /// Whether every request is in the ledger, or refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        lock(&self.asks).is_empty()
    }

    fn first(&self) -> Option<(Request, mpsc::Sender<Reply>)> {
        lock(&self.asks).front().map(|ask| (ask.request.clone(), ask.reply.clone()))
    }

    fn remove_first(&self) {
        lock(&self.asks).pop_front();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Asked>> {
        lock(&self.asked)
    }
}

/// The task that owns all copies of a pipeline.
pub struct Backfills {
    shared: Shared,
    workers_max: usize,
    waiting: VecDeque<Task>,
    running: JoinSet<(Task, Result<()>)>,
    next_id: u64,
    /// Tasks left, for whoever waits for the end.
    left: watch::Sender<usize>,
}

/// Somebody who waits for several tasks.
#[derive(Clone)]
struct Asked {
    reply: mpsc::Sender<Reply>,
    group: Arc<Mutex<Group>>,
}

struct Group {
    tasks: usize,
    rows: u64,
}

impl Backfills {
    /// Continues the tasks of the ledger; they count as left at once.
    ///
    /// # Errors
    /// The state directory.
    pub fn new(
        shared: Shared,
        workers_max: usize,
        left: watch::Sender<usize>,
    ) -> Result<Backfills> {
        let tasks = blocking(|| shared.store.tasks()).map_err(|error| state_error(&error))?;
        let next_id = tasks.iter().map(|task| task.id + 1).max().unwrap_or(1);
        let mut backfills = Backfills {
            shared,
            workers_max,
            waiting: VecDeque::new(),
            running: JoinSet::new(),
            next_id,
            left,
        };
        tasks.into_iter().for_each(|task| backfills.enqueue(task));
        backfills.tell_left();
        Ok(backfills)
    }

    /// Makes a task for every table that is not completely copied and has none.
    ///
    /// # Errors
    /// The state directory.
    pub fn copy_unfinished(&mut self, fresh: &[TableName]) -> Result<()> {
        for table in self.shared.tables.all() {
            let name = &table.schema.name;
            let has_task = self.waiting.iter().any(|task| is_whole_copy(task, name));
            if table.status == TableStatus::Copying && !has_task {
                // A table that was created empty has no rows to sweep.
                self.create(name, None, None, !fresh.contains(name))?;
            }
        }
        Ok(())
    }

    /// Runs copies until the pipeline ends. `widened` tells of tables that got columns.
    ///
    /// # Errors
    /// Whatever is not one table's own fault.
    pub async fn run(mut self, mut widened: mpsc::UnboundedReceiver<Widened>) -> Result<()> {
        let asked = Arc::clone(&self.shared.asked);
        loop {
            self.accept_all().await?;
            self.start_workers().await?;
            tokio::select! {
                biased;
                Some(done) = self.running.join_next(), if !self.running.is_empty() => {
                    let (task, outcome) = done.map_err(|error| {
                        Error::stop(Code::Internal, format!("a backfill task has died: {error}"))
                    })?;
                    self.finished(task, outcome).await?;
                }
                Some(widened) = widened.recv() => self.widened(&widened).await?,
                () = asked.arrived.notified() => {}
            }
        }
    }

    fn create(
        &mut self,
        table: &TableName,
        filter: Option<String>,
        keys: Option<Vec<Vec<u8>>>,
        sweep: bool,
    ) -> Result<u64> {
        let known = self.shared.tables.get(table);
        let columns = known.map_or(0, |known| count_columns(&known.schema));
        let task = Task {
            id: self.next_id,
            schema: table.schema.clone(),
            table: table.name.clone(),
            filter,
            keys,
            sweep,
            marker: None,
            columns,
            phase: Phase::Copy,
            after: None,
            rows: 0,
            sequence: 0,
        };
        self.next_id += 1;
        blocking(|| self.shared.store.save_task(&task)).map_err(|error| state_error(&error))?;
        let id = task.id;
        self.enqueue(task);
        self.tell_left();
        Ok(id)
    }

    fn enqueue(&mut self, task: Task) {
        if task.sweep {
            self.shared.tables.begin_recopy(&task_table(&task));
        }
        self.waiting.push_back(task);
    }

    fn tell_left(&self) {
        self.left.send_replace(self.waiting.len() + self.running.len());
    }

    async fn start_workers(&mut self) -> Result<()> {
        while self.running.len() < self.workers_max {
            let Some(task) = self.waiting.pop_front() else { break };
            let reply = self.shared.asked.lock().get(&task.id).map(|asked| asked.reply.clone());
            let reader: Box<dyn RowReader> = self.shared.source.reader().await?;
            let worker = Worker::new(self.shared.clone(), task, reader, reply);
            self.running.spawn(worker.run());
        }
        Ok(())
    }

    async fn finished(&mut self, task: Task, outcome: Result<()>) -> Result<()> {
        let table = task_table(&task);
        if task.sweep {
            self.shared.tables.end_recopy(&table);
        }
        let outcome = match outcome {
            Ok(()) if is_whole_copy(&task, &table) => self.complete(&table, &task).await,
            other => other,
        };
        let failure = match outcome {
            Ok(()) => None,
            Err(error) if matches!(error.kind, Kind::Table(_)) => Some(error),
            Err(error) if is_reshaped(&error) => return self.copy_again(task),
            Err(error) => return Err(error),
        };
        if self.running.is_empty() {
            self.shared.loaders.close_idle();
        }
        self.shared.status.backfill_done(&table);
        match &failure {
            None => info!(%table, rows = task.rows, "backfill finished"),
            Some(error) => self.failed(&table, &task, error).await?,
        }
        // The answer before all else: a disk that fails now may have forgotten the task, and
        // whoever waits for the last task ends the process.
        self.answer(&task, failure);
        blocking(|| self.shared.store.remove_task(task.id)).map_err(|e| state_error(&e))?;
        self.tell_left();
        Ok(())
    }

    /// Records the table as complete, if this was the last of its whole copies. Decided here and
    /// not by the workers: two that end together would each wait for the other.
    async fn complete(&self, table: &TableName, task: &Task) -> Result<()> {
        if self.whole_copy_in_ledger(table, Some(task.id))? {
            return Ok(());
        }
        order(&self.shared, table, Wanted::Complete { columns: task.columns }).await
    }

    /// The table got columns after the last row of it was copied.
    fn copy_again(&mut self, mut task: Task) -> Result<()> {
        begin_again(&mut task);
        blocking(|| self.shared.store.save_task(&task)).map_err(|error| state_error(&error))?;
        self.enqueue(task);
        Ok(())
    }

    /// Whether the ledger has a copy of the whole table, besides this one.
    fn whole_copy_in_ledger(&self, table: &TableName, besides: Option<u64>) -> Result<bool> {
        let tasks = blocking(|| self.shared.store.tasks()).map_err(|e| state_error(&e))?;
        Ok(tasks.iter().any(|task| Some(task.id) != besides && is_whole_copy(task, table)))
    }

    /// A table that cannot be copied is stopped, unless only the request was wrong.
    async fn failed(&self, table: &TableName, task: &Task, error: &Error) -> Result<()> {
        warn!(%table, code = %error.code, reason = error.message, "backfill failed");
        let request_only = task.filter.is_some() || task.keys.is_some();
        if request_only { Ok(()) } else { self.stop(table, error).await }
    }

    /// Stops a table, unless it is stopped already.
    async fn stop(&self, table: &TableName, error: &Error) -> Result<()> {
        if !self.shared.tables.is_running(table) {
            return Ok(());
        }
        let version = self.shared.floor.current();
        let (code, message) = (error.code, error.message.clone());
        let stopped = TableStatus::Stopped { code, message, version };
        order(&self.shared, table, Wanted::Status(stopped)).await
    }

    fn answer(&self, task: &Task, failure: Option<Error>) {
        let Some(asked) = self.shared.asked.lock().remove(&task.id) else { return };
        let reply = match failure {
            Some(error) => Some(Reply::Failed { code: error.code, message: error.message }),
            None => {
                let mut group = lock(&asked.group);
                group.tasks -= 1;
                group.rows += task.rows;
                (group.tasks == 0).then_some(Reply::Done { rows: group.rows })
            }
        };
        if let Some(reply) = reply {
            tell(&asked.reply, reply);
        }
    }

    /// New columns without values are complete as they are; otherwise all rows are copied again.
    async fn widened(&mut self, widened: &Widened) -> Result<()> {
        let name = &widened.table;
        let Some(table) = self.shared.tables.get(name) else { return Ok(()) };
        // A copy that is under way sees for itself that it has to begin again.
        if self.whole_copy_in_ledger(name, None)? {
            return Ok(());
        }
        let columns = count_columns(&table.schema);
        let outcome = match self.have_values(&table.schema, widened).await {
            Ok(true) => {
                info!(table = %name, "new columns have values: the table is copied again");
                self.create(name, None, None, true).map(|_id| ())
            }
            Ok(false) => order(&self.shared, name, Wanted::Complete { columns }).await,
            Err(error) => Err(error),
        };
        match outcome {
            // More columns in the meantime: another word of it is on its way.
            Err(error) if is_reshaped(&error) => Ok(()),
            Err(error) if matches!(error.kind, Kind::Table(_)) => self.stop(name, &error).await,
            other => other,
        }
    }

    async fn have_values(&self, table: &Arc<TableSchema>, widened: &Widened) -> Result<bool> {
        let mut reader = self.shared.source.reader().await?;
        // The log may have told of the columns before they show: this waits until they do.
        let request = ChunkRequest {
            table,
            after: None,
            filter: None,
            rows_max: 1,
            not_below: widened.since,
        };
        reader.read_chunk(&request).await?;
        reader.any_value(table, &widened.columns).await
    }

    /// Brings what was asked for into the ledger. It counts as asked for until it is there.
    async fn accept_all(&mut self) -> Result<()> {
        while let Some((request, reply)) = self.shared.asked.first() {
            let outcome = self.accept(request, &reply).await;
            match &outcome {
                Err(error) if error.is_transient() && error.code != Code::Resumed => {
                    return outcome;
                }
                Ok(()) | Err(_) => self.shared.asked.remove_first(),
            }
            match outcome {
                Err(error) if error.kind == Kind::Stop && error.code == Code::Configuration => {
                    tell(&reply, Reply::from(error));
                }
                other => other?,
            }
            self.tell_left();
        }
        Ok(())
    }

    async fn accept(&mut self, request: Request, reply: &mpsc::Sender<Reply>) -> Result<()> {
        let (tables, filter, keys) = match request {
            Request::Status => return Ok(()),
            Request::Backfill { tables, filter } => (self.named(&tables)?, filter, None),
            Request::Repair { table, keys } => {
                let keys = keys.iter().map(|key| key.as_bytes().to_vec()).collect();
                (vec![table], None, Some(keys))
            }
        };
        let partly = filter.is_some() || keys.is_some();
        let stopped: Vec<TableName> =
            tables.iter().filter(|t| !self.shared.tables.is_running(t)).cloned().collect();
        if let (true, Some(table)) = (partly, stopped.first()) {
            return Err(needs_whole_copy(table));
        }
        let group = Arc::new(Mutex::new(Group { tasks: tables.len(), rows: 0 }));
        for table in &tables {
            let id = self.create(table, filter.clone(), keys.clone(), true)?;
            let asked = Asked { reply: reply.clone(), group: Arc::clone(&group) };
            self.shared.asked.lock().insert(id, asked);
        }
        for table in &stopped {
            order(&self.shared, table, Wanted::TakeUp).await?;
        }
        match stopped.first() {
            None => Ok(()),
            // The log has been passing over the table; it is taken up again by a new session,
            // which looks at its shape afresh.
            Some(table) => {
                Err(Error::transient(Code::Resumed, format!("table {table} is taken up again")))
            }
        }
    }

    /// The tables of these names, all if there are none.
    fn named(&self, names: &[String]) -> Result<Vec<TableName>> {
        let all: Vec<TableName> =
            self.shared.tables.all().iter().map(|table| table.schema.name.clone()).collect();
        if names.is_empty() {
            return Ok(all);
        }
        let find = |name: &String| {
            let hit = |table: &&TableName| {
                table.to_string() == *name || (table.schema == "public" && table.name == *name)
            };
            all.iter().find(hit).cloned().ok_or_else(|| unknown_table(name, &all))
        };
        names.iter().map(find).collect()
    }
}

/// Gives a last answer. Whoever asked may have gone; the copy was made all the same. It never
/// waits: somebody who does not listen must not hold up the copies of others.
fn tell(asker: &mpsc::Sender<Reply>, reply: Reply) {
    let _ = asker.try_send(reply);
}

/// Has something done by the applier and waits until it is durable.
async fn order(shared: &Shared, table: &TableName, wanted: Wanted) -> Result<()> {
    let (done, wait) = oneshot::channel();
    let order = Order { table: table.clone(), wanted, done };
    shared.orders.send(order).await.map_err(|_| ended())?;
    wait.await.map_err(|_| ended())?.map(|_sequence| ())
}

pub(crate) fn task_table(task: &Task) -> TableName {
    TableName::new(task.schema.clone(), task.table.clone())
}

/// Rows written so far lack columns that the table has now, and so do rows that the log brings
/// from before the change. All must be written over: the new marker is above their versions.
fn begin_again(task: &mut Task) {
    (task.sweep, task.marker) = (true, None);
    (task.phase, task.after) = (Phase::Copy, None);
    (task.columns, task.rows) = (0, 0);
}

fn is_whole_copy(task: &Task, table: &TableName) -> bool {
    task_table(task) == *table && task.filter.is_none() && task.keys.is_none()
}

fn needs_whole_copy(table: &TableName) -> Error {
    let message = format!(
        "table {table} is stopped, so a part of it cannot be copied; copy all of it with \
         `driftless backfill --table {table}`"
    );
    Error::stop(Code::Configuration, message)
}

pub(crate) fn ended() -> Error {
    Error::transient(Code::Internal, "the applier task has ended")
}

fn unknown_table(name: &str, all: &[TableName]) -> Error {
    let known: Vec<String> = all.iter().map(ToString::to_string).collect();
    let known = known.join(", ");
    Error::stop(
        Code::Configuration,
        format!("no replicated table is called {name}; there are: {known}"),
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
