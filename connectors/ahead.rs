//! Brings the rows of the next batch to a database while the one before it is being applied: on
//! another session, in a transaction that stays open until the batch's turn. When that comes, the
//! target goes on in that transaction, and the two sessions change places. The targets say what is
//! brought, and how.
//!
//! Nothing depends on it: whatever goes wrong here is as if it had not been tried.
//!
//! Surprises: only a batch that comes with the same parts, down to the same `Arc`, is taken for the
//! one that was brought. A part that was changed since is another one. And whoever changes the
//! tables in another way first takes back what was written, because its locks are held by us.

use std::future::pending;
use std::mem;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tracing::info;

use crate::change::{Batch, TableBatch};
use crate::error::{Code, Error, Result};
use crate::{StageAhead, Upcoming};

/// A batch that takes longer may be waiting for the one that was brought.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 10 });

/// After something went wrong, nothing is brought for so long.
const REST: Duration = Duration::from_secs(600);

/// A session that can bring a batch before its turn.
pub trait Bring: Send + Sized + 'static {
    /// What it takes to open one.
    type Door: Clone + Send + Sync + 'static;
    /// What was brought of a part.
    type Brought: Send + 'static;

    /// Connects.
    ///
    /// # Errors
    /// The connection.
    fn open(door: &Self::Door) -> impl Future<Output = Result<Self>> + Send;

    /// Brings these parts in a transaction that stays open; `None` for those that are not worth it.
    /// Rows written early may only be so if nobody has to look for tombstones.
    ///
    /// # Errors
    /// What would be the same the next time. A part that cannot be brought is none: it will say so
    /// when it is applied.
    fn bring(
        &mut self,
        upcoming: &[Upcoming],
        look_for_tombstones: bool,
    ) -> impl Future<Output = Result<Vec<Option<Self::Brought>>>> + Send;

    /// Whether the batch can be applied in the transaction in which it was brought.
    fn is_ready_for(&self, batch: &Batch) -> bool;

    /// Whether it can be used at all.
    fn is_open(&self) -> bool;

    /// Ends a transaction that is open.
    ///
    /// # Errors
    /// The connection.
    fn settle(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// The other sessions of a writer: one that brings the next batch, and one that is left when a
/// session waits for that.
pub struct Ahead<S: Bring> {
    door: S::Door,
    next: Mutex<Next<S>>,
}

struct Next<S: Bring> {
    /// Whether the batch after the one that is being applied must look for tombstones.
    tombstones: bool,
    /// What is being brought, or was.
    parts: Vec<Arc<TableBatch>>,
    /// Who brings it.
    work: Option<Work<S>>,
    /// Sessions with nothing to do, all in order.
    idle: Vec<S>,
    /// Nothing is brought before this, because it went wrong.
    rests_until: Option<Instant>,
}

type Work<S> = JoinHandle<Result<Ready<S>>>;

/// What was brought of each part of a batch.
pub type Parts<S> = Vec<Option<<S as Bring>::Brought>>;

/// A session with what it has brought.
struct Ready<S: Bring> {
    session: S,
    /// In the order of the parts.
    brought: Parts<S>,
    /// Whether it is good for those who look for tombstones.
    with_tombstones: bool,
}

impl<S: Bring> Default for Next<S> {
    fn default() -> Next<S> {
        let (parts, idle) = (Vec::new(), Vec::new());
        Next { tombstones: true, parts, work: None, idle, rests_until: None }
    }
}

impl<S: Bring> Ahead<S> {
    /// Connects when there is something to do.
    pub fn new(door: S::Door) -> Arc<Ahead<S>> {
        Arc::new(Ahead { door, next: Mutex::default() })
    }

    /// Ends the other sessions.
    pub fn close(&self) {
        *self.lock() = Next::default();
    }

    /// Says whether the next batch must look for tombstones.
    pub fn expect_tombstones(&self, expected: bool) {
        self.lock().tombstones = expected;
    }

    /// What was brought of this batch, part by part. The session in whose transaction that is
    /// changes places with this one, which has no transaction open. If it was another batch, or is
    /// of no use any more, it is taken back.
    pub async fn take(
        &self,
        batch: &Batch,
        look_for_tombstones: bool,
        session: &mut S,
    ) -> Option<Parts<S>> {
        let (parts, mut ready) = self.finish().await?;
        let is_in_batch = |part| batch.tables.iter().any(|other| Arc::ptr_eq(part, other));
        let is_of_use = ready.session.is_ready_for(batch)
            && (ready.with_tombstones || !look_for_tombstones)
            && parts.iter().all(is_in_batch);
        if !is_of_use {
            self.put_away(ready.session).await;
            return None;
        }
        mem::swap(session, &mut ready.session);
        self.lock().idle.push(ready.session);
        let place = |part| parts.iter().position(|other| Arc::ptr_eq(part, other));
        let of_part = |part| place(part).and_then(|place| ready.brought[place].take());
        Some(batch.tables.iter().map(of_part).collect())
    }

    /// Takes back whatever was brought.
    pub async fn take_back(&self) {
        if let Some((_, ready)) = self.finish().await {
            self.put_away(ready.session).await;
        }
    }

    /// Waits for a batch that is being applied. If that takes long, it may wait for a lock of what was
    /// brought of the next one, as with a constraint that somebody added in the target, or behind
    /// somebody who alters the table; so that lets go, and nothing more is brought for a while.
    pub async fn beside<T>(&self, applied: impl Future<Output = T>) -> T {
        let give_way = pin!(async {
            sleep(PATIENCE).await;
            info!("a batch takes long; for a while none is brought ahead");
            self.rest();
            self.take_back().await;
            pending().await
        });
        match select(pin!(applied), give_way).await {
            Either::Left((applied, _)) | Either::Right((applied, _)) => applied,
        }
    }

    /// Waits for what is under way.
    async fn finish(&self) -> Option<(Vec<Arc<TableBatch>>, Ready<S>)> {
        let (parts, work) = {
            let mut next = self.lock();
            (mem::take(&mut next.parts), next.work.take()?)
        };
        match finished(work).await {
            Ok(ready) => Some((parts, ready)),
            Err(error) => {
                info!(%error, "for a while no batch is brought ahead");
                self.rest();
                None
            }
        }
    }

    fn rest(&self) {
        self.lock().rests_until = Some(Instant::now() + REST);
    }

    /// A session that cannot be used again is lost, and so is its transaction.
    async fn put_away(&self, mut session: S) {
        if session.settle().await.is_ok() && session.is_open() {
            self.lock().idle.push(session);
        }
    }

    fn begin(&self, next: &mut Next<S>, upcoming: Vec<Upcoming>) {
        let (door, before) = (self.door.clone(), next.work.take());
        let idle = if before.is_none() { next.idle.pop() } else { None };
        let truncates = upcoming.iter().any(|one| one.part.truncated.is_some());
        let with_tombstones = truncates || next.tombstones;
        next.parts = upcoming.iter().map(|one| one.part.clone()).collect();
        next.work = Some(tokio::spawn(async move {
            let mut session = match (before, idle) {
                (Some(before), _) => finished(before).await?.session,
                (None, Some(idle)) if idle.is_open() => idle,
                (None, _) => S::open(&door).await?,
            };
            session.settle().await?;
            let brought = session.bring(&upcoming, with_tombstones).await?;
            Ok(Ready { session, brought, with_tombstones })
        }));
    }

    fn lock(&self) -> MutexGuard<'_, Next<S>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Bring> StageAhead for Ahead<S> {
    fn stage(&self, upcoming: Vec<Upcoming>) {
        let mut next = self.lock();
        if next.rests_until.is_none_or(|until| until <= Instant::now()) {
            self.begin(&mut next, upcoming);
        }
    }

    fn discard(&self) {
        let mut next = self.lock();
        if !next.parts.is_empty() {
            self.begin(&mut next, Vec::new());
        }
    }
}

async fn finished<S: Bring>(work: Work<S>) -> Result<Ready<S>> {
    let died = |_| Error::stop(Code::Internal, "the task that brings batches ahead has died");
    work.await.map_err(died)?
}

/// A lock that says that the pipeline is alive. It ends with its session; the flag tells the others.
pub struct HeldLock(Arc<AtomicBool>);

impl HeldLock {
    /// Sets the flag for as long as this lives.
    pub fn new(flag: &Arc<AtomicBool>) -> HeldLock {
        flag.store(true, Ordering::Relaxed);
        HeldLock(flag.clone())
    }
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
