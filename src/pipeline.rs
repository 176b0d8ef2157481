//! One source into one target, for one session: `start` decides where to resume, this file makes
//! the tasks and what they talk through, `conductor` runs them. Any task's end or panic ends them
//! all; `daemon.rs` decides whether to begin again.

mod conductor;
mod start;

use std::sync::Arc;
use std::time::Duration;

use connectors::error::{Code, Error, Result};
use connectors::schema::TablePatterns;
use connectors::version::Version;
use connectors::{Source, Target};
use state::Store;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::warn;

use crate::applier::{Applier, Channels};
use crate::backfill::{Backfills, Loaders, Shared, Waiting};
use crate::batcher::{Batcher, Bounds};
use crate::connect::TargetFactory;
use crate::control::Ask;
use crate::floor::Floor;
use crate::gate::Gates;
use crate::persist::Persist;
use crate::queue;
use crate::reader::Reader;
use crate::status::{State, Status};
use crate::supply;
use conductor::{Conductor, Goal};
use start::Ready;

/// So long after its beginning a log that cannot be read is left for another one ...
const YOUNG: Duration = Duration::from_secs(300);
/// ... until a process has begun so many.
const NEW_LOGS_MAX: usize = 3;

/// How a pipeline runs.
#[derive(Clone, Debug)]
pub struct Limits {
    /// When a batch is full.
    pub bounds: Bounds,
    /// Bytes that wait between the log and the target.
    pub queue_bytes: usize,
    /// Rows a chunk.
    pub chunk_rows: usize,
    /// About how many bytes a chunk has.
    pub chunk_bytes: usize,
    /// Tables copied at the same time, and chunks of first copies written at the same time.
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
    /// When this process began a new log, each time.
    pub new_logs: Vec<Instant>,
    /// Whether a session of this process has been running.
    pub established: bool,
    /// Requests of other commands.
    pub asks: mpsc::Receiver<Ask>,
    /// Ends the pipeline in order.
    pub stop: watch::Receiver<bool>,
}

impl Session {
    /// What comes of an error: a log that cannot be read is left for another one while it is so young
    /// that nothing is lost but the copies of a few minutes.
    fn or_another_log(&mut self, error: Error) -> Error {
        let is_young = self.new_logs.last().is_some_and(|begun| begun.elapsed() < YOUNG);
        if error.code != Code::LogUnreadable || !is_young || self.new_logs.len() >= NEW_LOGS_MAX {
            return error;
        }
        warn!(reason = error.message, "a new log cannot be read; another one is begun");
        (self.resync, self.mark) = (true, None);
        Error::transient(Code::Resumed, error.message)
    }
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
        if ready.new_log {
            session.new_logs.push(Instant::now());
        }
        let outcome = self.replicate(ready, session).await;
        outcome.map_err(|error| session.or_another_log(error))
    }

    async fn replicate(&self, ready: Ready, session: &mut Session) -> Result<()> {
        let Ready { mut target, fence, checkpoint, tables, schemas, earlier, fresh, .. } = ready;
        let epoch = checkpoint.version.epoch;
        if session.until_current && session.mark.is_none() {
            session.mark = Some(self.source.mark(epoch).await?);
        }
        let opened = self.source.stream(&checkpoint.position, epoch, &schemas, &earlier).await;
        let stream = match opened {
            Ok(stream) => stream,
            Err(error) => return Err(unless_fenced(target.as_mut(), fence, error).await),
        };
        let tables = Arc::new(tables);
        let floor = Floor::new(checkpoint.version);
        let gates = Arc::new(Gates::default());
        let (queue, queued) = queue::bounded(self.limits.queue_bytes);
        let (supply, demand) = supply::supply();
        let (orders, ordered) = mpsc::channel(1);
        let (widened_in, widened) = mpsc::unbounded_channel();
        let (durable_in, durable) = watch::channel(checkpoint.position.clone());
        let (reached_in, reached) = watch::channel(checkpoint.version);
        let (stop_in, stop) = watch::channel(false);
        let (finished_in, finished) = watch::channel(false);
        let (left_in, left) = watch::channel(usize::MAX);
        let (remains, mut ended) = mpsc::channel(1);

        let shared = Shared {
            source: Arc::clone(&self.source),
            connect_target: Arc::clone(&self.connect_target),
            store: Arc::clone(&self.store),
            floor: Arc::clone(&floor),
            tables: Arc::clone(&tables),
            status: Arc::clone(&self.status),
            orders,
            epoch,
            loaders: Loaders::new(
                Arc::clone(&self.connect_target),
                fence,
                Arc::clone(&gates),
                Arc::clone(&tables),
                self.limits.copy_workers,
            ),
            chunk_rows: self.limits.chunk_rows,
            chunk_bytes: self.limits.chunk_bytes,
            remains,
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
            gates,
            status: Arc::clone(&self.status),
            checkpoint,
            moved: None,
            stop_on_table_error: self.limits.stop_on_table_error,
            channels: Channels {
                supply,
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
        let batcher = Batcher::new(queued, demand, self.limits.bounds);
        tasks.spawn(async move { ("batcher", batcher.run().await) });
        tasks.spawn(async move { ("applier", applier.run().await) });
        tasks.spawn(async move { ("backfill", backfills.run(widened).await) });

        let goal = Goal { session, reached, left, asked: &self.asked, tables: &tables };
        let conductor = Conductor { tasks, stop: stop_in, finished: finished_in };
        let outcome = conductor.conduct(goal).await;
        // Tasks of tasks end a little later. What they leave in the target is for the next claim,
        // but it must know of all of it.
        while ended.recv().await.is_some() {}
        outcome
    }
}

/// What looks like a gap may be another instance that has taken over and gone on.
async fn unless_fenced(target: &mut dyn Target, fence: u64, error: Error) -> Error {
    match target.recall().await {
        Ok(Some(now)) if now.fence != fence => {
            Error::stop(Code::Fenced, "another instance has taken the pipeline over")
        }
        // Unless the target can be asked, nobody knows; the next session sees it again.
        Err(unasked) if unasked.is_transient() => unasked,
        Ok(_) | Err(_) => error,
    }
}
