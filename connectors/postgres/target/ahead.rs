//! What a session brings of a batch before its turn: rows that do not depend on the batch before are
//! written to their tables, the others wait in staging tables. `crate::ahead` says when.

use super::apply::{BEGIN, is_about_data};
use super::claim::loader_lock_number;
use super::session::{Door, Session};
use super::stage::Staged;
use super::{Attempt, Failure};
use crate::Upcoming;
use crate::ahead::Bring;
use crate::change::Batch;
use crate::error::Result;
use crate::part::TablePart;
use crate::postgres::{sql, types};

/// What was brought of a part.
pub enum Brought {
    /// So many upserts, from the first, are in the table; the rest is not at the server.
    Copied(usize),
    /// All of it is at the server; this is what has to be written still.
    Staged(Staged),
}

impl Bring for Session {
    type Door = Door;
    type Brought = Brought;

    async fn open(door: &Door) -> Result<Session> {
        Session::open(door).await
    }

    async fn bring(
        &mut self,
        upcoming: &[Upcoming],
        look_for_tombstones: bool,
    ) -> Result<Vec<Option<Brought>>> {
        match self.attempt_parts(upcoming, look_for_tombstones).await {
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

    fn is_ready_for(&self, batch: &Batch) -> bool {
        self.in_transaction
            && self.is_open()
            && batch.tables.iter().all(|part| self.place(&part.table).is_some())
    }

    fn is_open(&self) -> bool {
        !self.client.is_closed()
    }

    async fn settle(&mut self) -> Result<()> {
        Session::settle(self).await
    }
}

impl Session {
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
