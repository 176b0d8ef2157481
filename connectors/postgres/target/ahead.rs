//! Brings the rows of the next batch to the server while the one before it is being applied: on a
//! second session, into its own staging tables, in a transaction that touches nothing else. When
//! the batch's turn comes, `apply.rs` goes on in that transaction, and the two sessions change
//! places.
//!
//! Nothing depends on it: whatever goes wrong here is as if it had not been tried.
//!
//! Surprise: only a batch that `apply` gets with the same parts, down to the same `Arc`, is taken
//! for the one that was staged. A part that was changed since is another one.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::JoinHandle;
use tracing::info;

use super::apply::{BEGIN, is_about_data};
use super::new_rows::Lessons;
use super::session::Session;
use super::stage::Staged;
use super::{Attempt, Failure};
use crate::change::{Batch, TableBatch};
use crate::error::{Code, Error, Result};
use crate::part::TablePart;
use crate::postgres::config::Config;
use crate::{StageAhead, TargetOptions};

/// The second session of a writer.
pub struct Ahead {
    config: Config,
    options: TargetOptions,
    lessons: Arc<Lessons>,
    /// Whether the batch after the one that is being applied must look for tombstones.
    tombstones: AtomicBool,
    next: Mutex<Next>,
}

#[derive(Default)]
struct Next {
    /// What the second session has staged, or will have.
    parts: Vec<Arc<TableBatch>>,
    second: Second,
}

#[derive(Default)]
enum Second {
    /// Not connected yet.
    #[default]
    Closed,
    Busy(Task),
    /// `apply` waits for what it does; the other session comes back in its place.
    Away,
    /// It failed in a way that will be the same the next time.
    Off,
}

type Task = JoinHandle<Result<StagedAhead>>;

/// A session with what it has staged.
struct StagedAhead {
    session: Session,
    /// In the order of the parts; `None` for those that are not worth it.
    staged: Vec<Option<Staged>>,
    /// Whether keys went along, for those who look for tombstones.
    with_keys: bool,
}

impl Ahead {
    /// Connects when there is something to do.
    pub fn new(config: Config, first: &Session) -> Arc<Ahead> {
        let (options, lessons) = (first.options.clone(), first.lessons.clone());
        let (tombstones, next) = (AtomicBool::new(true), Mutex::default());
        Arc::new(Ahead { config, options, lessons, tombstones, next })
    }

    /// Ends the second session.
    pub fn close(&self) {
        *self.lock() = Next::default();
    }

    /// Says whether the next batch must look for tombstones.
    pub fn expect_tombstones(&self, expected: bool) {
        self.tombstones.store(expected, Ordering::Relaxed);
    }

    /// What was staged of this batch, part by part. The session in whose transaction that is
    /// changes places with this one, which has no transaction open.
    pub async fn take(
        &self,
        batch: &Batch,
        look_for_tombstones: bool,
        session: &mut Session,
    ) -> Option<Vec<Option<Staged>>> {
        let (parts, task) = self.take_task(batch)?;
        let mut ahead = match finished(task).await {
            Ok(ahead) => ahead,
            Err(error) => {
                info!(%error, "batches are not staged ahead any more");
                self.lock().second = Second::Off;
                return None;
            }
        };
        let is_of_use = ahead.session.in_transaction
            && !ahead.session.client.is_closed()
            && (ahead.with_keys || !look_for_tombstones)
            && batch.tables.iter().all(|part| ahead.session.place(&part.table).is_some());
        let staged = is_of_use.then(|| {
            mem::swap(session, &mut ahead.session);
            let place = |part| parts.iter().position(|other| Arc::ptr_eq(part, other));
            let of_part = |part| place(part).and_then(|place| ahead.staged[place].take());
            batch.tables.iter().map(of_part).collect()
        });
        let mut next = self.lock();
        next.second = Second::Busy(tokio::spawn(async move { Ok(ahead) }));
        if !next.parts.is_empty() {
            self.begin(&mut next);
        }
        staged
    }

    /// The task that stages parts of this batch, if there is one.
    fn take_task(&self, batch: &Batch) -> Option<(Vec<Arc<TableBatch>>, Task)> {
        let mut next = self.lock();
        let is_in_batch = |part| batch.tables.iter().any(|other| Arc::ptr_eq(part, other));
        if !next.parts.iter().any(is_in_batch) {
            return None;
        }
        match mem::replace(&mut next.second, Second::Away) {
            Second::Busy(task) => Some((mem::take(&mut next.parts), task)),
            other => {
                next.second = other;
                None
            }
        }
    }

    fn begin(&self, next: &mut Next) {
        let (config, options) = (self.config.clone(), self.options.clone());
        let lessons = self.lessons.clone();
        let (parts, second) = (next.parts.clone(), mem::take(&mut next.second));
        let truncates = parts.iter().any(|part| part.truncated.is_some());
        let with_keys = truncates || self.tombstones.load(Ordering::Relaxed);
        next.second = Second::Busy(tokio::spawn(async move {
            let mut session = match second {
                Second::Busy(task) => finished(task).await?.session,
                _ => Session::open(&config, &options, &lessons).await?,
            };
            session.settle().await?;
            let staged = session.stage_parts(&parts, with_keys).await?;
            Ok(StagedAhead { session, staged, with_keys })
        }));
    }

    fn lock(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StageAhead for Ahead {
    fn stage(&self, tables: &[Arc<TableBatch>]) {
        let mut next = self.lock();
        next.parts = tables.to_vec();
        if !matches!(next.second, Second::Away | Second::Off) {
            self.begin(&mut next);
        }
    }

    fn discard(&self) {
        let mut next = self.lock();
        if !mem::take(&mut next.parts).is_empty() && matches!(next.second, Second::Busy(_)) {
            self.begin(&mut next);
        }
    }
}

impl Session {
    /// Stages what is not better copied into its table itself, in a transaction that stays open.
    /// A part that cannot be staged will say so to `apply`.
    async fn stage_parts(
        &mut self,
        parts: &[Arc<TableBatch>],
        with_keys: bool,
    ) -> Result<Vec<Option<Staged>>> {
        match self.attempt_parts(parts, with_keys).await {
            Ok(staged) => return Ok(staged),
            Err(Failure::Server(error)) if is_about_data(&error) => self.settle().await?,
            Err(Failure::NoBinary(place)) => {
                self.settle().await?;
                self.write_text(place).await?;
            }
            Err(failure) => return Err(failure.doing("stage a batch")),
        }
        Ok(parts.iter().map(|_| None).collect())
    }

    async fn attempt_parts(
        &mut self,
        parts: &[Arc<TableBatch>],
        with_keys: bool,
    ) -> Attempt<Vec<Option<Staged>>> {
        let mut places = Vec::with_capacity(parts.len());
        for part in parts {
            places.push(self.stage(&part.table).await?);
        }
        let mut all = Vec::with_capacity(parts.len());
        for (part, place) in parts.iter().zip(places) {
            let part = TablePart::from(&**part);
            if !with_keys && self.may_be_new(&part) {
                all.push(None);
                continue;
            }
            if !self.in_transaction {
                self.in_transaction = true;
                self.client.batch_execute(BEGIN).await?;
            }
            all.push(Some(self.fill(place, &part, with_keys).await?));
        }
        Ok(all)
    }
}

async fn finished(task: Task) -> Result<StagedAhead> {
    let died = |_| Error::stop(Code::Internal, "the task that stages batches has died");
    task.await.map_err(died)?
}
