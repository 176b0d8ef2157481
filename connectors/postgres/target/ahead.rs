//! Brings the rows of the next batch to the server while the one before it is being applied: on
//! another session, in a transaction that stays open until the batch's turn. Rows that do not depend
//! on the batch before are written to their tables there; the others wait in staging tables. When
//! the batch's turn comes, `apply.rs` goes on in that transaction, and the two sessions change
//! places.
//!
//! Nothing depends on it: whatever goes wrong here is as if it had not been tried.
//!
//! Surprises: only a batch that `apply` gets with the same parts, down to the same `Arc`, is taken
//! for the one that was brought. A part that was changed since is another one. And whoever changes
//! the tables in another way first takes back what was written, because its locks are held by us.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::JoinHandle;
use tracing::info;

use super::apply::{BEGIN, is_about_data};
use super::claim::loader_lock_number;
use super::new_rows::Lessons;
use super::session::Session;
use super::stage::Staged;
use super::{Attempt, Failure};
use crate::change::{Batch, TableBatch};
use crate::error::{Code, Error, Result};
use crate::part::TablePart;
use crate::postgres::config::Config;
use crate::postgres::{sql, types};
use crate::{StageAhead, TargetOptions, Upcoming};

/// The other sessions of a writer: one that brings the next batch, and one that is left when a
/// session waits for that.
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
    /// What is being brought, or was.
    parts: Vec<Arc<TableBatch>>,
    /// Who brings it.
    work: Option<Work>,
    /// Sessions with nothing to do, all in order.
    idle: Vec<Session>,
    /// It failed in a way that will be the same the next time.
    off: bool,
}

type Work = JoinHandle<Result<Ready>>;

/// A session with what it has brought.
struct Ready {
    session: Session,
    /// In the order of the parts; `None` for those that are not worth it.
    brought: Vec<Option<Brought>>,
    /// Whether keys went along, for those who look for tombstones.
    with_keys: bool,
}

/// What was brought of a part.
pub enum Brought {
    /// So many upserts, from the first, are in the table; the rest is not at the server.
    Copied(usize),
    /// All of it is at the server; this is what has to be written still.
    Staged(Staged),
}

impl Ahead {
    /// Connects when there is something to do.
    pub fn new(config: Config, first: &Session) -> Arc<Ahead> {
        let (options, lessons) = (first.options.clone(), first.lessons.clone());
        let (tombstones, next) = (AtomicBool::new(true), Mutex::default());
        Arc::new(Ahead { config, options, lessons, tombstones, next })
    }

    /// Ends the other sessions.
    pub fn close(&self) {
        *self.lock() = Next::default();
    }

    /// Says whether the next batch must look for tombstones.
    pub fn expect_tombstones(&self, expected: bool) {
        self.tombstones.store(expected, Ordering::Relaxed);
    }

    /// What was brought of this batch, part by part. The session in whose transaction that is
    /// changes places with this one, which has no transaction open. If it was another batch, or is
    /// of no use any more, it is taken back.
    pub async fn take(
        &self,
        batch: &Batch,
        look_for_tombstones: bool,
        session: &mut Session,
    ) -> Option<Vec<Option<Brought>>> {
        let (parts, mut ready) = self.finish().await?;
        let is_in_batch = |part| batch.tables.iter().any(|other| Arc::ptr_eq(part, other));
        let is_of_use = ready.session.in_transaction
            && !ready.session.client.is_closed()
            && (ready.with_keys || !look_for_tombstones)
            && parts.iter().all(is_in_batch)
            && batch.tables.iter().all(|part| ready.session.place(&part.table).is_some());
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

    /// Takes back whatever was brought; says whether something was under way.
    pub async fn take_back(&self) -> bool {
        match self.finish().await {
            Some((_, ready)) => {
                self.put_away(ready.session).await;
                true
            }
            None => false,
        }
    }

    /// Takes back whatever was brought, and brings nothing more until the next claim; says whether
    /// something was under way.
    pub async fn give_way(&self) -> bool {
        let was_there = self.take_back().await;
        if was_there {
            info!("a lock was waited for in vain; batches are not brought ahead any more");
            self.lock().off = true;
        }
        was_there
    }

    /// Waits for what is under way.
    async fn finish(&self) -> Option<(Vec<Arc<TableBatch>>, Ready)> {
        let (parts, work) = {
            let mut next = self.lock();
            (mem::take(&mut next.parts), next.work.take()?)
        };
        match finished(work).await {
            Ok(ready) => Some((parts, ready)),
            Err(error) => {
                info!(%error, "batches are not brought ahead any more");
                self.lock().off = true;
                None
            }
        }
    }

    /// A session that cannot be used again is lost, and so is its transaction.
    async fn put_away(&self, mut session: Session) {
        if session.settle().await.is_ok() {
            self.lock().idle.push(session);
        }
    }

    fn begin(&self, next: &mut Next, upcoming: Vec<Upcoming>) {
        let (config, options) = (self.config.clone(), self.options.clone());
        let (lessons, before) = (self.lessons.clone(), next.work.take());
        let idle = if before.is_none() { next.idle.pop() } else { None };
        let truncates = upcoming.iter().any(|one| one.part.truncated.is_some());
        let with_keys = truncates || self.tombstones.load(Ordering::Relaxed);
        next.parts = upcoming.iter().map(|one| one.part.clone()).collect();
        next.work = Some(tokio::spawn(async move {
            let mut session = match (before, idle) {
                (Some(before), _) => finished(before).await?.session,
                (None, Some(idle)) => idle,
                (None, None) => Session::open(&config, &options, &lessons).await?,
            };
            session.settle().await?;
            let brought = session.bring(&upcoming, with_keys).await?;
            Ok(Ready { session, brought, with_keys })
        }));
    }

    fn lock(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StageAhead for Ahead {
    fn stage(&self, upcoming: Vec<Upcoming>) {
        let mut next = self.lock();
        if !next.off {
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

impl Session {
    /// Brings parts, in a transaction that stays open. A part that cannot be brought will say so to
    /// `apply`.
    async fn bring(
        &mut self,
        upcoming: &[Upcoming],
        with_keys: bool,
    ) -> Result<Vec<Option<Brought>>> {
        match self.attempt_parts(upcoming, with_keys).await {
            Ok(brought) => return Ok(brought),
            Err(Failure::Server(error)) if is_about_data(&error) => self.settle().await?,
            Err(Failure::NoBinary(place)) => {
                self.settle().await?;
                self.write_text(place).await?;
            }
            Err(failure) => return Err(failure.doing("bring a batch ahead")),
        }
        Ok(upcoming.iter().map(|_| None).collect())
    }

    async fn attempt_parts(
        &mut self,
        upcoming: &[Upcoming],
        with_keys: bool,
    ) -> Attempt<Vec<Option<Brought>>> {
        let mut places = Vec::with_capacity(upcoming.len());
        for one in upcoming {
            places.push(self.stage(&one.part.table).await?);
        }
        let mut all = Vec::with_capacity(upcoming.len());
        for (one, place) in upcoming.iter().zip(places) {
            let part = TablePart::from(&*one.part);
            let is_loose = types::has_loose_key(part.table);
            let early = if with_keys || is_loose { 0 } else { one.independent };
            all.push(self.bring_part(place, &part, with_keys, early).await?);
        }
        Ok(all)
    }

    async fn bring_part(
        &mut self,
        place: usize,
        part: &TablePart<'_>,
        with_keys: bool,
        early: usize,
    ) -> Attempt<Option<Brought>> {
        if early == 0 && !with_keys && self.may_be_new(part) {
            return Ok(None);
        }
        if !self.in_transaction {
            self.in_transaction = true;
            // A claim waits for whoever shares this lock, or ends it.
            let lock = loader_lock_number(&self.options.pipeline);
            let begin = format!("{BEGIN}; SELECT pg_advisory_xact_lock_shared({lock})");
            self.client.batch_execute(&begin).await?;
        }
        if early > 0 && self.copy_new(place, &part.first_upserts(early)).await? {
            return Ok(Some(Brought::Copied(early)));
        }
        let staged = self.fill(place, part, with_keys, early).await?;
        if early > 0 {
            let stage = &self.stages[place].name;
            let upsert = self.sql(part.table, stage).upsert(sql::EARLY, with_keys);
            self.client.batch_execute(&upsert).await?;
        }
        Ok(Some(Brought::Staged(staged)))
    }
}

async fn finished(work: Work) -> Result<Ready> {
    let died = |_| Error::stop(Code::Internal, "the task that brings batches ahead has died");
    work.await.map_err(died)?
}
