//! Copies tables in chunks while the log flows: the first copy, later copies on request, and the
//! repair of single rows. This file decides which copies run; `worker.rs` runs one.
//!
//! Every copy is a `state::Task` in the state directory, so a restart resumes at the chunk.

mod worker;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use connectors::change::TableStatus;
use connectors::error::{Code, Error, Kind, Result};
use connectors::schema::TableName;
use connectors::{RowReader, Source};
use state::{Phase, Store, Task};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::applier::{Order, Widened};
use crate::control::{Ask, Reply, Request};
use crate::floor::Floor;
use crate::persist::{blocking, state_error};
use crate::pipeline::TargetFactory;
use crate::status::Status;
use crate::tables::Tables;
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
    /// Rows a chunk.
    pub chunk_rows: usize,
    /// Who waits for which task; outlives a lost connection.
    pub asked: Arc<Waiting>,
}

/// Who asked for the tasks of these ids.
#[derive(Default)]
pub struct Waiting(Mutex<BTreeMap<u64, Asked>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Asked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that owns all copies of a pipeline.
pub struct Backfills {
    shared: Shared,
    workers_max: usize,
    waiting: VecDeque<Task>,
    running: JoinSet<(Task, Result<()>)>,
    next_id: u64,
    /// For whoever waits for the end.
    left: watch::Sender<Left>,
}

/// What is still to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// Copies that have not ended.
    pub tasks: usize,
    /// Requests that were taken in since the session began; their copies count in `tasks`.
    pub asks_taken: usize,
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

/// What the applier and the control socket bring.
pub struct Incoming {
    /// Tables that got columns.
    pub widened: mpsc::UnboundedReceiver<Widened>,
    /// Requests of other commands.
    pub asks: mpsc::Receiver<Ask>,
}

impl Backfills {
    /// Continues the tasks of the ledger; they count as left at once.
    ///
    /// # Errors
    /// The state directory.
    pub fn new(shared: Shared, workers_max: usize, left: watch::Sender<Left>) -> Result<Backfills> {
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
            let has_task = self.waiting.iter().any(|task| {
                task_table(task) == *name && task.filter.is_none() && task.keys.is_none()
            });
            if table.status == TableStatus::Copying && !has_task {
                // A table that was created empty has no rows to sweep.
                self.create(name, None, None, !fresh.contains(name))?;
            }
        }
        Ok(())
    }

    /// Runs copies until the pipeline ends.
    ///
    /// # Errors
    /// Whatever is not one table's own fault.
    pub async fn run(mut self, mut incoming: Incoming) -> Result<()> {
        loop {
            self.start_workers().await?;
            tokio::select! {
                biased;
                Some(done) = self.running.join_next(), if !self.running.is_empty() => {
                    let (task, outcome) = done.map_err(|error| {
                        Error::stop(Code::Internal, format!("a backfill task has died: {error}"))
                    })?;
                    self.finished(task, outcome).await?;
                }
                Some(widened) = incoming.widened.recv() => self.widened(&widened).await?,
                Some(ask) = incoming.asks.recv() => self.ask(ask).await?,
                else => std::future::pending().await,
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
        let task = Task {
            id: self.next_id,
            schema: table.schema.clone(),
            table: table.name.clone(),
            filter,
            keys,
            sweep,
            marker: None,
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
        let tasks = self.waiting.len() + self.running.len();
        self.left.send_modify(|left| left.tasks = tasks);
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
        let failure = match outcome {
            Ok(()) => None,
            Err(error) if matches!(error.kind, Kind::Table(_)) => Some(error),
            Err(error) => return Err(error),
        };
        blocking(|| self.shared.store.remove_task(task.id)).map_err(|e| state_error(&e))?;
        self.shared.status.backfill_done(&table);
        match &failure {
            None => info!(%table, rows = task.rows, "backfill finished"),
            Some(error) => self.failed(&table, &task, error).await?,
        }
        // Whoever waits for the end would not wait for the answer.
        self.answer(&task, failure).await;
        self.tell_left();
        Ok(())
    }

    /// A table that cannot be copied is stopped, unless only the request was wrong.
    async fn failed(&self, table: &TableName, task: &Task, error: &Error) -> Result<()> {
        warn!(%table, code = %error.code, reason = error.message, "backfill failed");
        let request_only = task.filter.is_some() || task.keys.is_some();
        if request_only || !self.shared.tables.is_running(table) {
            return Ok(());
        }
        let version = self.shared.floor.current();
        let (code, message) = (error.code, error.message.clone());
        order_status(&self.shared, table, TableStatus::Stopped { code, message, version }).await
    }

    async fn answer(&mut self, task: &Task, failure: Option<Error>) {
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
            // Whoever asked may have gone; the copy was made all the same.
            let _ = asked.reply.send(reply).await;
        }
    }

    async fn widened(&mut self, widened: &Widened) -> Result<()> {
        let Some(table) = self.shared.tables.get(&widened.table) else { return Ok(()) };
        let mut reader = self.shared.source.reader().await?;
        if reader.any_value(&table.schema, &widened.columns).await? {
            info!(table = %widened.table, "new columns have values: the table is copied again");
            self.create(&widened.table, None, None, true)?;
        } else if !self.is_being_copied(&widened.table) {
            order_status(&self.shared, &widened.table, TableStatus::Live).await?;
        }
        Ok(())
    }

    fn is_being_copied(&self, table: &TableName) -> bool {
        let in_ledger = blocking(|| self.shared.store.tasks()).unwrap_or_default();
        in_ledger.iter().any(|task| task_table(task) == *table)
    }

    async fn ask(&mut self, ask: Ask) -> Result<()> {
        let reply = ask.reply.clone();
        match self.accept(ask).await {
            Ok(()) => {}
            Err(error) if error.kind == Kind::Stop && error.code == Code::Configuration => {
                let failed = Reply::Failed { code: error.code, message: error.message };
                let _ = reply.send(failed).await;
            }
            Err(error) => return Err(error),
        }
        self.left.send_modify(|left| left.asks_taken += 1);
        Ok(())
    }

    async fn accept(&mut self, ask: Ask) -> Result<()> {
        let (tables, filter, keys) = match ask.request {
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
            let asked = Asked { reply: ask.reply.clone(), group: Arc::clone(&group) };
            self.shared.asked.lock().insert(id, asked);
        }
        for table in &stopped {
            order_status(&self.shared, table, TableStatus::Copying).await?;
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

/// Records a table's state through the applier and waits until it is durable.
pub(crate) async fn order_status(
    shared: &Shared,
    table: &TableName,
    status: TableStatus,
) -> Result<()> {
    let (done, wait) = oneshot::channel();
    let order = Order { table: table.clone(), rows: None, status: Some(status), done };
    shared.orders.send(order).await.map_err(|_| ended())?;
    match wait.await.map_err(|_| ended())? {
        Ok(_) => Ok(()),
        // It was stopped, which is what the order asked for or what came in between.
        Err(error) if matches!(error.kind, Kind::Table(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

pub(crate) fn task_table(task: &Task) -> TableName {
    TableName::new(task.schema.clone(), task.table.clone())
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

fn lock(group: &Mutex<Group>) -> MutexGuard<'_, Group> {
    group.lock().unwrap_or_else(PoisonError::into_inner)
}
