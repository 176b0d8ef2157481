//! The source in memory: a slot, a stream, and chunks that claim their version by the same rule
//! as PostgreSQL's.
//!
//! Surprise: `Mutant` leaves out one rule at a time. The tests that prove the engine right must
//! fail with each of them, or they prove nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::bulk::{Turn, Way};
use super::server::{Slot, SourceServer, State, Table};
use super::{Faults, Filter};
use crate::change::{Cell, Change, Chunk, Key, Row, Timestamp, Transaction};
use crate::error::{Code, Error, Result};
use crate::schema::{Column, TableName, TablePatterns, TableSchema};
use crate::version::{Position, Version};
use crate::{ChangeStream, ChunkRequest, Finding, Level, Resume, RowReader, Source};

/// A rule of the design that is left out, to see the tests fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutant {
    /// Every rule is kept.
    #[default]
    None,
    /// A chunk claims the current end of the log.
    NaiveChunkVersion,
    /// A chunk is used although it can claim only less than it must.
    ChunkBelowFloor,
    /// Chunks are read without waiting for what was invisible when the stream was opened.
    NoWaitAtConnect,
    /// A row is read again without waiting for its change to be visible.
    EarlyReread,
}

/// A process's connections to a `SourceServer`.
#[derive(Clone, Debug)]
pub struct MemorySource {
    server: Arc<SourceServer>,
    faults: Faults,
    decoded: Arc<Mutex<Decoded>>,
    mutant: Mutant,
    part_changes_max: usize,
    bulk_read_above: Option<u64>,
}

/// What the open stream has decoded, for the chunks that are read beside it.
#[derive(Debug, Default)]
struct Decoded {
    epoch: u32,
    lsn: u64,
    /// Recently decoded commits: (xid, lsn), in the order of the log.
    commits: Vec<(u64, u64)>,
    /// Transactions that were not visible when the stream was opened; no chunk before they are.
    waiting: BTreeSet<u64>,
}

struct MemoryStream {
    source: MemorySource,
    number: u64,
    tables: BTreeSet<TableName>,
    /// How many changes of the commit after `Decoded::lsn` were delivered already.
    delivered: usize,
    way: Way,
    durable: u64,
}

struct MemoryReader {
    source: MemorySource,
}

impl MemorySource {
    /// Connects.
    #[must_use]
    pub fn new(server: &Arc<SourceServer>, faults: Faults) -> MemorySource {
        MemorySource {
            server: server.clone(),
            faults,
            decoded: Arc::default(),
            mutant: Mutant::None,
            part_changes_max: usize::MAX,
            bulk_read_above: None,
        }
    }

    /// The same, without one of the rules.
    #[must_use]
    pub fn without(self, mutant: Mutant) -> MemorySource {
        MemorySource { mutant, ..self }
    }

    /// The same, with larger transactions in parts of this many changes.
    #[must_use]
    pub fn in_parts(self, part_changes_max: usize) -> MemorySource {
        MemorySource { part_changes_max: part_changes_max.max(1), ..self }
    }

    /// The same, read in bulk when it is this far ahead.
    #[must_use]
    pub fn in_bulk(self, above: Option<u64>) -> MemorySource {
        MemorySource { bulk_read_above: above, ..self }
    }

    fn decoded(&self) -> MutexGuard<'_, Decoded> {
        self.decoded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks again after each thing that happens at the server, until there is an answer.
    async fn wait_for<T>(&self, mut ask: impl FnMut(&State) -> Option<Result<T>>) -> Result<T> {
        loop {
            let event = self.server.next_event();
            if let Some(answer) = ask(&self.server.lock()) {
                return answer;
            }
            event.await;
        }
    }

    /// The version that rows read now may claim; `None` if it is too old to be of use.
    fn chunk_version(&self, state: &State, not_below: Version) -> Option<Version> {
        let decoded = self.decoded();
        let visible = |xid: &u64| state.log[*xid as usize - 1].visible;
        let waiting = !decoded.waiting.iter().all(visible);
        if waiting && self.mutant != Mutant::NoWaitAtConnect {
            return None;
        }
        let hidden = decoded.commits.iter().find(|(xid, _)| !visible(xid));
        let low = hidden.map_or(decoded.lsn, |(_, lsn)| decoded.lsn.min(lsn - 1));
        let low = if self.mutant == Mutant::NaiveChunkVersion { state.head } else { low };
        let version = Version::at_log(decoded.epoch, low);
        let useful = version >= not_below || self.mutant == Mutant::ChunkBelowFloor;
        useful.then_some(version)
    }

    async fn chunk(
        &self,
        table: &TableSchema,
        not_below: Version,
        read: impl Fn(&Table) -> (Vec<(Key, Row)>, Option<Key>) + Send,
    ) -> Result<Chunk> {
        self.wait_for(|state| {
            let version = self.chunk_version(state, not_below)?;
            Some(state.table(&table.name).map(|stored| {
                let (rows, next) = read(stored);
                let (table, read_at) = (stored.schema.clone(), Timestamp(state.head as i64));
                Chunk { table, version, read_at, rows, next }
            }))
        })
        .await
    }
}

#[async_trait]
impl Source for MemorySource {
    async fn check(&self, tables: &TablePatterns) -> Result<Vec<Finding>> {
        let message = format!("{} tables can be read", self.tables(tables).await?.len());
        let (subject, remedy) = ("source".into(), String::new());
        Ok(vec![Finding { subject, level: Level::Ok, code: None, message, remedy }])
    }

    async fn tables(&self, tables: &TablePatterns) -> Result<Vec<Arc<TableSchema>>> {
        self.faults.point("source.tables").await?;
        let state = self.server.lock();
        let names: Vec<TableName> = state.tables.keys().cloned().collect();
        if let Some(pattern) = tables.unmatched(&names).first() {
            let message = format!("no table of the source matches {pattern}");
            return Err(Error::stop(Code::MissingTable, message));
        }
        let included = state.tables.values().filter(|table| tables.matches(&table.schema.name));
        Ok(included.map(|table| table.schema.clone()).collect())
    }

    async fn subscribe(
        &self,
        tables: &[Arc<TableSchema>],
        resume: Option<Resume<'_>>,
    ) -> Result<Position> {
        self.faults.point("source.subscribe.before").await?;
        let position = {
            let mut state = self.server.lock();
            let at = match resume {
                None => state.start_slot(),
                Some(resume) => state.prove(resume.position)?,
            };
            let head = state.head;
            if let Some(slot) = &mut state.slot {
                slot.published.retain(|name, _| tables.iter().any(|table| table.name == *name));
                for table in tables {
                    slot.published.entry(table.name.clone()).or_insert(head);
                }
            }
            position(&state.identity, at)
        };
        self.faults.point("source.subscribe.after").await?;
        Ok(position)
    }

    async fn subscription(&self) -> Result<Option<String>> {
        self.faults.point("source.subscription").await?;
        Ok(self.server.lock().slot.as_ref().map(|_| "a slot".to_owned()))
    }

    async fn unsubscribe(&self) -> Result<()> {
        self.faults.point("source.unsubscribe.before").await?;
        self.server.drop_slot();
        self.faults.point("source.unsubscribe.after").await
    }

    async fn evict(&self) -> Result<()> {
        self.faults.point("source.evict").await?;
        if let Some(slot) = &mut self.server.lock().slot {
            slot.reader = None;
            slot.copies.clear();
        }
        self.server.happen();
        Ok(())
    }

    async fn stream(
        &self,
        from: &Position,
        epoch: u32,
        tables: &[Arc<TableSchema>],
        _earlier: &[Arc<TableSchema>],
    ) -> Result<Box<dyn ChangeStream>> {
        self.faults.point("source.stream").await?;
        let mut state = self.server.lock();
        let lsn = state.prove(from)?;
        state.streams += 1;
        let (number, head) = (state.streams, state.head);
        let above = self.bulk_read_above.filter(|above| head - lsn >= *above);
        let turn = if above.is_some() { Turn::Begin } else { Turn::Over };
        let way = state.take(turn, (number, 0), (lsn, lsn))?;
        let hidden = state.log.iter().filter(|commit| !commit.visible);
        let waiting = hidden.map(|commit| commit.xid).collect();
        *self.decoded() = Decoded { epoch, lsn, commits: Vec::new(), waiting };
        drop(state);
        self.server.happen();
        let tables = tables.iter().map(|table| table.name.clone()).collect();
        let source = self.clone();
        let stream = MemoryStream { source, number, tables, delivered: 0, way, durable: lsn };
        Ok(Box::new(stream))
    }

    fn version_of(&self, position: &Position, epoch: u32) -> Result<Version> {
        Ok(Version::at_log(epoch, lsn_of(position)?.1))
    }

    async fn mark(&self, epoch: u32) -> Result<Version> {
        self.faults.point("source.mark.before").await?;
        let version = Version::at_log(epoch, self.server.mark());
        self.faults.point("source.mark.after").await?;
        Ok(version)
    }

    async fn lag_bytes(&self, position: &Position) -> Result<u64> {
        self.faults.point("source.lag_bytes").await?;
        Ok(self.server.head().saturating_sub(lsn_of(position)?.1))
    }

    async fn estimate_rows(&self, table: &TableSchema) -> Result<u64> {
        self.faults.point("source.estimate_rows").await?;
        Ok(self.server.rows(&table.name).len() as u64)
    }

    async fn reader(&self) -> Result<Box<dyn RowReader>> {
        self.faults.point("source.reader").await?;
        Ok(Box::new(MemoryReader { source: self.clone() }))
    }
}

#[async_trait]
impl ChangeStream for MemoryStream {
    async fn next(&mut self) -> Result<Transaction> {
        self.source.faults.point("source.next").await?;
        let from = self.source.decoded().lsn;
        self.turn(from).await?;
        let source = self.source.clone();
        // Nothing is marked as delivered before the last await, so that dropping loses nothing.
        let (xid, transaction) =
            source.wait_for(|state| self.reads(state, from).transpose()).await?;
        self.delivered += transaction.changes.len();
        if transaction.complete {
            self.delivered = 0;
            let mut decoded = source.decoded();
            decoded.lsn = transaction.version.log;
            decoded.commits.push((xid, transaction.version.log));
        }
        source.server.happen();
        Ok(transaction)
    }

    async fn acknowledge(&mut self, durable: &Position) -> Result<()> {
        self.source.faults.point("source.acknowledge.before").await?;
        let lsn = lsn_of(durable)?.1;
        let decoded = self.source.decoded().lsn;
        if lsn > decoded {
            let message = format!("position {lsn} is acknowledged, but {decoded} was received");
            return Err(Error::stop(Code::Internal, message));
        }
        self.durable = self.durable.max(lsn);
        if self.way == Way::Streaming {
            let mut state = self.source.server.lock();
            let slot = state.slot_mut()?;
            slot.acknowledged = slot.acknowledged.max(lsn);
        }
        self.source.faults.point("source.acknowledge.after").await
    }
}

impl MemoryStream {
    /// Reads in the way that suits the distance to the end of the log. A turn is taken after the
    /// last await before it.
    async fn turn(&mut self, at: u64) -> Result<()> {
        let above = self.source.bulk_read_above;
        while self.delivered == 0 {
            let head = self.source.server.head();
            let Some(turn) = self.way.turn(above, at, head) else { break };
            let point = match turn {
                Turn::Begin => "source.bulk.begin",
                Turn::Call => "source.bulk.call",
                Turn::Over => "source.bulk.over",
            };
            self.source.faults.point(point).await?;
            let mut state = self.source.server.lock();
            self.reader(&state)?;
            let reader = (self.number, above.unwrap_or_default());
            self.way = state.take(turn, reader, (at, self.durable))?;
        }
        Ok(())
    }

    /// The slot, as long as we read it.
    fn reader<'a>(&self, state: &'a State) -> Result<&'a Slot> {
        let ours = |slot: &&Slot| match self.way {
            Way::Streaming => slot.reader == Some(self.number),
            Way::Bulk { .. } => slot.copies.contains(&self.number),
        };
        let slot = state.slot.as_ref().filter(ours);
        slot.ok_or_else(|| Error::transient(Code::Unreachable, "the server ended the stream"))
    }

    /// The next part of the log after this place, if it is there.
    fn reads(&self, state: &State, from: u64) -> Result<Option<(u64, Transaction)>> {
        let slot = self.reader(state)?;
        let Some(commit) = state.after(from) else { return Ok(None) };
        if slot.spoiled {
            return Err(Error::stop(Code::LogUnreadable, "the source cannot read its log"));
        }
        let published = |change: &&Change| {
            let since = slot.published.get(change.table());
            self.tables.contains(change.table()) && since.is_some_and(|since| *since < commit.lsn)
        };
        let rest = commit.changes.iter().filter(published).skip(self.delivered);
        let mut changes: Vec<Change> =
            rest.take(self.source.part_changes_max.saturating_add(1)).cloned().collect();
        let complete = changes.len() <= self.source.part_changes_max;
        changes.truncate(self.source.part_changes_max);
        let transaction = Transaction {
            version: Version::at_log(self.source.decoded().epoch, commit.lsn),
            position: position(&state.identity, commit.lsn),
            committed_at: Timestamp(commit.lsn as i64),
            first_ordinal: self.delivered as u32 + 1,
            changes,
            complete,
        };
        Ok(Some((commit.xid, transaction)))
    }
}

impl Drop for MemoryStream {
    fn drop(&mut self) {
        let mut state = self.source.server.lock();
        if let Some(slot) = &mut state.slot {
            slot.reader = slot.reader.filter(|reader| *reader != self.number);
            slot.copies.remove(&self.number);
        }
    }
}

#[async_trait]
impl RowReader for MemoryReader {
    async fn read_chunk(&mut self, request: &ChunkRequest<'_>) -> Result<Chunk> {
        self.source.faults.point("source.read_chunk.before").await?;
        let filter = request.filter.map(|text| Filter::parse(request.table, text)).transpose()?;
        let read = |table: &Table| table.range(request.after, request.rows_max, filter.as_ref());
        let chunk = self.source.chunk(request.table, request.not_below, read).await?;
        self.source.faults.point("source.read_chunk.after").await?;
        Ok(chunk)
    }

    async fn read_keys(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
        not_below: Version,
    ) -> Result<Chunk> {
        self.source.faults.point("source.read_keys.before").await?;
        let read = |table: &Table| (table.find(keys), None);
        let chunk = self.source.chunk(table, not_below, read).await?;
        self.source.faults.point("source.read_keys.after").await?;
        Ok(chunk)
    }

    async fn reread(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
        at: Version,
    ) -> Result<Vec<(Key, Row)>> {
        self.source.faults.point("source.reread.before").await?;
        let early = self.source.mutant == Mutant::EarlyReread;
        let read = |state: &State| {
            let ready = early || state.shows(at.log);
            ready.then(|| state.table(&table.name).map(|table| table.find(keys)))
        };
        let rows = self.source.wait_for(read).await?;
        self.source.faults.point("source.reread.after").await?;
        Ok(rows)
    }

    async fn read_plain(
        &mut self,
        request: &ChunkRequest<'_>,
    ) -> Result<(Vec<(Key, Row)>, Option<Key>)> {
        self.source.faults.point("source.read_plain").await?;
        let filter = request.filter.map(|text| Filter::parse(request.table, text)).transpose()?;
        let state = self.source.server.lock();
        let stored = state.table(&request.table.name)?;
        let (rows, next) = stored.range(request.after, request.rows_max, filter.as_ref());
        Ok((project(stored, request.table, rows)?, next))
    }

    async fn read_plain_keys(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
    ) -> Result<Vec<(Key, Row)>> {
        self.source.faults.point("source.read_plain_keys").await?;
        let state = self.source.server.lock();
        let stored = state.table(&table.name)?;
        project(stored, table, stored.find(keys))
    }

    async fn any_value(&mut self, table: &TableSchema, columns: &[String]) -> Result<bool> {
        self.source.faults.point("source.any_value").await?;
        let state = self.source.server.lock();
        let stored = state.table(&table.name)?;
        let asked = |name: &String| columns.contains(name);
        let places: Vec<usize> = (0..stored.schema.columns.len())
            .filter(|&place| asked(&stored.schema.columns[place].name))
            .collect();
        let any = |row: &Row| places.iter().any(|&place| row.cell(place) != Cell::Null);
        Ok(stored.rows.values().any(any))
    }
}

impl State {
    fn table(&self, table: &TableName) -> Result<&Table> {
        self.tables.get(table).ok_or_else(|| {
            Error::table(table, Code::MissingTable, format!("table {table} is not in the source"))
        })
    }

    fn slot_mut(&mut self) -> Result<&mut Slot> {
        self.slot.as_mut().ok_or_else(|| Error::stop(Code::SlotMissing, "the slot is gone"))
    }

    fn start_slot(&mut self) -> u64 {
        let (published, reader, copies) = (BTreeMap::new(), None, BTreeSet::new());
        let spoiled = self.spoiled_slots > 0;
        self.spoiled_slots = self.spoiled_slots.saturating_sub(1);
        self.slot = Some(Slot { acknowledged: self.head, published, reader, copies, spoiled });
        self.head
    }

    /// Proves that nothing after this position is lost, and that it is ours.
    fn prove(&mut self, position: &Position) -> Result<u64> {
        let (identity, lsn) = lsn_of(position)?;
        if identity != self.identity {
            let message = format!("the position is of server {identity}, not of {}", self.identity);
            return Err(Error::stop(Code::SourceIdentity, message));
        }
        if lsn > self.head {
            let message =
                format!("position {lsn} is ahead of the log, which ends at {}", self.head);
            return Err(Error::stop(Code::PositionAhead, message));
        }
        let acknowledged = self.slot_mut()?.acknowledged;
        if acknowledged > lsn {
            let message = format!("the slot is at {acknowledged}, beyond our position {lsn}");
            return Err(Error::stop(Code::SlotGap, message));
        }
        Ok(lsn)
    }
}

impl Table {
    /// Up to `rows_max` rows, and the last key if there are more.
    fn range(
        &self,
        after: Option<&Key>,
        rows_max: usize,
        filter: Option<&Filter>,
    ) -> (Vec<(Key, Row)>, Option<Key>) {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rows = self
            .rows
            .range((after, Bound::Unbounded))
            .filter(|(_, row)| filter.is_none_or(|filter| filter.holds(row)))
            .map(|(key, row)| (key.clone(), row.clone()));
        let chunk: Vec<_> = rows.by_ref().take(rows_max).collect();
        let more = rows.next().is_some();
        let next = chunk.last().filter(|_| more).map(|(key, _)| key.clone());
        (chunk, next)
    }

    fn find(&self, keys: &[Key]) -> Vec<(Key, Row)> {
        let keys: BTreeSet<&Key> = keys.iter().collect();
        let row = |key: &Key| self.rows.get(key).map(|row| (key.clone(), row.clone()));
        keys.into_iter().filter_map(row).collect()
    }
}

fn position(identity: &str, lsn: u64) -> Position {
    Position(format!("memory:{identity}:{lsn}"))
}

/// The server and the place in its log.
fn lsn_of(position: &Position) -> Result<(&str, u64)> {
    let parts = position.0.strip_prefix("memory:").and_then(|rest| rest.rsplit_once(':'));
    parts.and_then(|(identity, lsn)| Some((identity, lsn.parse().ok()?))).ok_or_else(|| {
        let message = format!("position {position} is not one of a source in memory");
        Error::stop(Code::Internal, message)
    })
}

/// Rows with only the columns that `asked` has.
fn project(stored: &Table, asked: &TableSchema, rows: Vec<(Key, Row)>) -> Result<Vec<(Key, Row)>> {
    let place = |column: &Column| {
        stored.schema.columns.iter().position(|stored| stored.name == column.name).ok_or_else(
            || {
                let message = format!("column {} of {} is gone", column.name, asked.name);
                Error::table(&asked.name, Code::SchemaChange, message)
            },
        )
    };
    let places: Vec<usize> = asked.columns.iter().map(place).collect::<Result<_>>()?;
    let project = |row: &Row| Row::from_cells(places.iter().map(|&place| row.cell(place)));
    Ok(rows.into_iter().map(|(key, row)| (key, project(&row))).collect())
}
