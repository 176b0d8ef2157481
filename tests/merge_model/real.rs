//! The same histories with the code of the product in the place of the model: the source and the
//! target in memory, the merger, and batches. Only the engine's timing is still this file's.
//!
//! Changes reach the merger shuffled and some of them twice; it must not matter.

use std::collections::VecDeque;
use std::sync::Arc;

use connectors::change::{
    Applied, Batch, Cell, Checkpoint, Chunk, Key, Row, TableBatch, Transaction,
};
use connectors::memory::{
    Faults, MemorySource, MemoryTarget, Mutant, Op, SourceServer, TargetServer,
};
use connectors::schema::{Column, ColumnType, Engine, TableName, TableSchema};
use connectors::version::Version;
use connectors::{ChangeStream, ChunkRequest, Claim, KeyScan, Resume, RowReader, Source, Target};
use driftless::merge::{MergedTable, Merger, chunk_batch, complete};
use futures_util::FutureExt;

use crate::loading::{self, Loading, options};
use crate::random::Random;

const KEYS: usize = 6;
const EPOCH: u32 = 1;

/// What is left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Without {
    /// A rule of the source.
    pub rule: Mutant,
    /// Tombstones are kept while a chunk is on its way.
    pub holds: bool,
    /// Upserts after a delete in their own batch get their absent cells from the source.
    pub orphans: bool,
    /// A repeated backfill begins with a marker in the log.
    pub marker: bool,
    /// Rows that were asked for and not found are removed.
    pub missing: bool,
    /// The log does not write a table while a loader does.
    pub gate: bool,
}

/// Where the backfill is; saved by the engine after the target has committed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Backfill {
    Copying(Option<Key>),
    Sweeping(Option<Key>),
    Done,
}

/// A chunk on its way.
struct Read {
    hold: Version,
    ask: Ask,
    chunk: Option<Chunk>,
}

/// Which rows are read, and what is durable with them.
#[derive(Clone)]
enum Ask {
    Range(Option<Key>, usize),
    Sweep(Vec<Key>),
    Repair(Vec<Key>),
}

/// A batch in the hands of the applier.
struct Applying {
    merged: Vec<MergedTable>,
    checkpoint: Checkpoint,
    floor: Version,
}

/// What a crash forgets.
struct Process {
    source: MemorySource,
    stream: Box<dyn ChangeStream>,
    reader: Box<dyn RowReader>,
    target: MemoryTarget,
    checkpoint: Checkpoint,
    announced: Version,
    parts: Vec<Transaction>,
    queue: VecDeque<Vec<Transaction>>,
    applying: Option<Applying>,
    reads: Vec<Read>,
    fence: u64,
    loading: Option<Loading>,
}

struct Case {
    random: Random,
    without: Without,
    soft_deletes: bool,
    table: Arc<TableSchema>,
    server: Arc<SourceServer>,
    target: Arc<TargetServer>,
    process: Process,
    value: u32,
    writes_left: usize,
    damage: bool,
    backfill: Backfill,
    marker: Version,
    repairs: Vec<Key>,
}

/// Runs one random history to its end; the error says how source and target differ.
pub fn run(seed: u64, without: Without) -> Result<(), String> {
    let mut case = Case::new(Random::new(seed), without);
    for _ in 0..8000 {
        if case.is_over() {
            return case.compare().map_err(|error| format!("seed {seed}: {error}"));
        }
        case.step();
    }
    Err(format!("seed {seed}: does not finish"))
}

/// Nothing here waits for a clock or a network: what cannot be done now is tried later.
fn now<T>(future: impl Future<Output = connectors::error::Result<T>>) -> Option<T> {
    future.now_or_never().map(|result| result.expect("nothing fails in memory"))
}

fn at_once<T>(future: impl Future<Output = connectors::error::Result<T>>) -> T {
    now(future).expect("it does not have to wait")
}

fn schema() -> TableSchema {
    let column = |(name, id): (&str, u32)| Column {
        name: name.into(),
        column_type: ColumnType::Text,
        native: None,
        id,
    };
    TableSchema {
        name: TableName::new("public", "t"),
        id: 1,
        engine: Engine::Memory,
        columns: [("k", 1), ("a", 2), ("b", 3)].map(column).to_vec(),
        key: vec![0],
    }
}

fn key(number: usize) -> Key {
    Key::from_values([number.to_string().as_bytes()])
}

fn row(key: usize, a: u32, b: Option<u32>) -> Row {
    let (key, a, b) = (key.to_string(), a.to_string(), b.map(|b| b.to_string()));
    let b = b.as_ref().map_or(Cell::Absent, |b| Cell::Value(b.as_bytes()));
    Row::from_cells([Cell::Value(key.as_bytes()), Cell::Value(a.as_bytes()), b])
}

impl Process {
    /// Also what happens after a crash: the target's checkpoint is the truth.
    fn start(
        server: &Arc<SourceServer>,
        target: &Arc<TargetServer>,
        case: (&Arc<TableSchema>, Mutant, bool, usize),
    ) -> Process {
        let (table, rule, soft_deletes, part_changes_max) = case;
        let mut target = MemoryTarget::new(target, options(soft_deletes), Faults::none());
        let claim = Claim { instance: "one".into(), fence: None, take_over: false };
        let remembered = at_once(target.claim(&claim));
        let source = MemorySource::new(server, Faults::none());
        let source = source.without(rule).in_parts(part_changes_max);
        let tables = [table.clone()];
        let resume = remembered.checkpoint.as_ref().map(|checkpoint| &checkpoint.position);
        let position = at_once(source.subscribe(&tables, resume.map(Resume::at)));
        at_once(target.prepare(table));
        let stream = at_once(source.stream(&position, EPOCH, &tables, &[]));
        let reader = at_once(source.reader());
        let version = source.version_of(&position, EPOCH).expect("its own position");
        let checkpoint =
            remembered.checkpoint.unwrap_or(Checkpoint { position, version, sequence: 0 });
        Process {
            source,
            stream,
            reader,
            target,
            announced: checkpoint.version,
            checkpoint,
            parts: Vec::new(),
            queue: VecDeque::new(),
            applying: None,
            reads: Vec::new(),
            fence: remembered.fence,
            loading: None,
        }
    }

    fn floor(&self, without: Without) -> Version {
        let holds = self.reads.iter().map(|read| read.hold);
        let holds = holds.chain(self.loading.as_ref().map(|loading| loading.hold));
        if without.holds { self.announced } else { holds.fold(self.announced, Version::min) }
    }

    fn apply(
        &mut self,
        checkpoint: Checkpoint,
        floor: Version,
        tables: Vec<Arc<TableBatch>>,
    ) -> Applied {
        let batch = Batch { checkpoint, floor, tables, status: Default::default() };
        let applied = at_once(self.target.apply(&batch));
        if applied == Applied::Done {
            self.checkpoint = batch.checkpoint;
        }
        applied
    }
}

impl Case {
    fn new(mut random: Random, without: Without) -> Case {
        let server = SourceServer::new([schema()]);
        let target = TargetServer::new();
        let table = Arc::new(schema());
        let mut value = 0;
        for number in 0..KEYS {
            if random.percent(60) {
                value += 2;
                let (table, row) = (table.name.clone(), row(number, value, Some(value + 1)));
                server.show(server.commit(&[Op::Insert { table, row }]).expect("a new row"));
            }
        }
        let soft_deletes = random.percent(30);
        let settings = (&table, without.rule, soft_deletes, usize::MAX);
        let mut case = Case {
            without,
            soft_deletes,
            process: Process::start(&server, &target, settings),
            table,
            server,
            target,
            value,
            writes_left: random.between(3, 14),
            damage: random.percent(50),
            backfill: Backfill::Copying(None),
            marker: Version::ZERO,
            repairs: Vec::new(),
            random,
        };
        // The slot begins where some commits are written and not yet visible.
        at_once(case.process.source.unsubscribe());
        for _ in 0..case.random.below(3) {
            case.write();
        }
        case.restart();
        case
    }

    fn is_over(&self) -> bool {
        self.is_still()
            && self.process.reads.is_empty()
            && self.process.loading.is_none()
            && self.repairs.is_empty()
            && self.backfill == Backfill::Done
            && !self.damage
    }

    fn is_still(&self) -> bool {
        let process = &self.process;
        self.writes_left == 0
            && process.queue.is_empty()
            && process.checkpoint.version.log == self.server.head()
            && self.server.pending().is_empty()
    }

    fn compare(&self) -> Result<(), String> {
        let source = self.server.rows(&self.table.name);
        let target = self.target.rows(&self.table);
        let words = |row: &Row| format!("{:?}", row.cells().collect::<Vec<_>>());
        let source: Vec<_> = source.values().map(words).collect();
        let target: Vec<_> = target.values().map(|(_, row)| words(row)).collect();
        if source == target { Ok(()) } else { Err(format!("source {source:?} target {target:?}")) }
    }

    fn step(&mut self) {
        let pending = self.server.pending();
        match self.random.below(200) {
            0..40 if self.writes_left > 0 => {
                self.write();
                self.writes_left -= 1;
            }
            40..75 if !pending.is_empty() => {
                self.server.show(pending[self.random.below(pending.len())]);
            }
            75..100 => self.decode(),
            100..115 => self.hand_over(),
            115..135 => self.apply_batch(),
            135..150 => self.register_read(),
            150..170 => self.take_snapshot(),
            170..185 if self.process.loading.is_some() => self.finish_load(),
            170..185 => self.apply_read(),
            185..187 => self.process.reads.truncate(self.random.below(3)),
            187..190 => self.restart(),
            190..195 if self.damage && self.backfill == Backfill::Done => self.spoil(),
            195..200 => {
                let durable = self.process.checkpoint.position.clone();
                at_once(self.process.stream.acknowledge(&durable));
            }
            _ => {}
        }
    }

    fn restart(&mut self) {
        // The old connections end before the new ones are opened.
        at_once(self.process.source.evict());
        let parts = self.random.between(1, 3);
        let settings = (&self.table, self.without.rule, self.soft_deletes, parts);
        self.process = Process::start(&self.server, &self.target, settings);
    }

    fn write(&mut self) {
        let mut rows = self.server.rows(&self.table.name);
        let mut ops = Vec::new();
        for _ in 0..self.random.between(1, 3) {
            let (number, other) = (self.random.below(KEYS), self.random.below(KEYS));
            let (table, old, new) = (self.table.name.clone(), key(number), key(other));
            self.value += 2;
            let (a, b) = (self.value, Some(self.value + 1));
            let op = match self.random.below(100) {
                0..3 => {
                    rows.clear();
                    Op::Truncate { table }
                }
                _ if !rows.contains_key(&old) => {
                    rows.insert(old, row(number, a, b));
                    Op::Insert { table, row: row(number, a, b) }
                }
                3..25 => {
                    rows.remove(&old);
                    Op::Delete { table, key: old }
                }
                25..45 if !rows.contains_key(&new) => {
                    rows.remove(&old);
                    rows.insert(new, row(other, a, b));
                    Op::Update { table, key: old, row: row(other, a, None) }
                }
                45..80 => Op::Update { table, key: old, row: row(number, a, None) },
                _ => Op::Update { table, key: old, row: row(number, a, b) },
            };
            ops.push(op);
        }
        // A refused one would have waited for a lock; another is written in its place.
        let _ = self.server.commit(&ops);
    }

    fn decode(&mut self) {
        let process = &mut self.process;
        let Some(part) = now(process.stream.next()) else { return };
        let complete = part.complete;
        process.parts.push(part);
        if complete {
            process.queue.push_back(std::mem::take(&mut process.parts));
        }
    }

    fn hand_over(&mut self) {
        let process = &mut self.process;
        if process.queue.is_empty() || process.applying.is_some() {
            return;
        }
        let count = self.random.between(1, 3).min(process.queue.len());
        let transactions: Vec<Transaction> = process.queue.drain(..count).flatten().collect();
        let Some(last) = transactions.last() else { return };
        let checkpoint = Checkpoint {
            position: last.position.clone(),
            version: last.version,
            sequence: process.checkpoint.sequence + 1,
        };
        process.announced = checkpoint.version;
        let floor = process.floor(self.without);
        let timed = |transaction: Transaction| {
            let at = transaction.committed_at;
            transaction.versioned().map(move |(version, change)| (version, at, change))
        };
        let mut changes: Vec<_> = transactions.into_iter().flat_map(timed).collect();
        for place in 0..changes.len() {
            let other = self.random.below(changes.len());
            changes.swap(place, other);
            if self.random.percent(10) {
                changes.push(changes[other].clone());
            }
        }
        let mut merger = Merger::default();
        for (version, at, change) in changes {
            merger.add(version, at, change).expect("one shape, no halt");
        }
        let mut merged = merger.take();
        if self.without.orphans {
            merged.iter_mut().for_each(|merged| merged.orphans.clear());
        }
        process.applying = Some(Applying { merged, checkpoint, floor });
    }

    fn apply_batch(&mut self) {
        if self.process.loading.is_some() && !self.without.gate {
            return;
        }
        let Some(mut applying) = self.process.applying.take() else { return };
        if !self.complete_orphans(&mut applying) {
            self.process.applying = Some(applying);
            return;
        }
        let tables = applying.merged.iter().map(|merged| merged.batch.clone()).collect();
        let (checkpoint, floor) = (applying.checkpoint.clone(), applying.floor);
        if let Applied::NeedsRows(needed) = self.process.apply(checkpoint, floor, tables) {
            for (_, keys) in needed {
                applying.merged[0].orphans.extend(keys);
            }
            self.process.applying = Some(applying);
        }
    }

    /// False if the source does not show the batch's changes yet.
    fn complete_orphans(&mut self, applying: &mut Applying) -> bool {
        for merged in &mut applying.merged {
            let asked = &merged.orphans;
            if asked.is_empty() {
                continue;
            }
            let at = applying.checkpoint.version;
            let Some(rows) = now(self.process.reader.reread(&self.table, asked, at)) else {
                return false;
            };
            complete(Arc::make_mut(&mut merged.batch), &rows, asked);
            merged.orphans.clear();
        }
        true
    }

    fn register_read(&mut self) {
        let hold = self.process.announced;
        let busy = self.process.reads.iter().any(|read| read.chunk.is_none());
        let repairs = self.process.reads.iter().any(|read| matches!(read.ask, Ask::Repair(_)));
        let ask = if !self.repairs.is_empty() && !repairs {
            Some(Ask::Repair(vec![self.repairs[0].clone()]))
        } else if busy {
            None
        } else {
            self.next_ask()
        };
        let ask = ask.map(|ask| Read { hold, ask, chunk: None });
        self.process.reads.extend(ask);
    }

    fn next_ask(&mut self) -> Option<Ask> {
        let size = self.random.between(1, 3);
        let read = |read: &Read| match (&read.ask, &read.chunk) {
            (Ask::Range(..), Some(chunk)) => Some(chunk.next.clone()),
            _ => None,
        };
        if self.process.loading.is_some() {
            return None;
        }
        let swept = self.process.reads.iter().any(|read| matches!(read.ask, Ask::Sweep(_)));
        match &self.backfill {
            Backfill::Copying(ledger) => {
                let after = match self.process.reads.iter().rev().find_map(read) {
                    None => ledger.clone(),
                    Some(None) => return None,
                    Some(next) => next,
                };
                Some(Ask::Range(after, size))
            }
            Backfill::Sweeping(after) if !swept => {
                let (after, below) = (after.as_ref(), Some(self.marker));
                let scan = KeyScan { table: &self.table, after, limit: size, below, filter: None };
                let keys = at_once(self.process.target.read_keys(&scan));
                if keys.is_empty() {
                    self.backfill = Backfill::Done;
                    return None;
                }
                Some(Ask::Sweep(keys))
            }
            Backfill::Sweeping(_) | Backfill::Done => None,
        }
    }

    fn take_snapshot(&mut self) {
        let Process { reads, reader, .. } = &mut self.process;
        let Some(read) = reads.iter_mut().find(|read| read.chunk.is_none()) else { return };
        let not_below = read.hold.max(self.marker);
        let table = &self.table;
        read.chunk = match &read.ask {
            Ask::Range(after, rows_max) => now(reader.read_chunk(&ChunkRequest {
                table,
                after: after.as_ref(),
                filter: None,
                rows_max: *rows_max,
                not_below,
            })),
            Ask::Sweep(keys) | Ask::Repair(keys) => now(reader.read_keys(table, keys, not_below)),
        };
    }

    fn apply_read(&mut self) {
        let process = &mut self.process;
        let ready = process.reads.iter().position(|read| read.chunk.is_some());
        let Some(place) = ready.filter(|_| process.applying.is_none()) else { return };
        let floor = process.floor(self.without);
        let read = process.reads.remove(place);
        let Some(chunk) = read.chunk else { return };
        let next = chunk.next.clone();
        // Before a loader writes a row, the target knows where the log begins.
        let begun = process.checkpoint.sequence > 0;
        if begun && matches!(read.ask, Ask::Range(..)) && self.random.percent(50) {
            let (target, fence) = (&self.target, self.process.fence);
            let rows = chunk_batch(chunk, None);
            let rest = loading::begin(target, options(self.soft_deletes), fence, rows);
            self.process.loading = Some(Loading { hold: read.hold, next, rest });
            return;
        }
        let batch = match &read.ask {
            Ask::Sweep(keys) | Ask::Repair(keys) if !self.without.missing => {
                chunk_batch(chunk, Some(keys))
            }
            Ask::Range(..) | Ask::Sweep(_) | Ask::Repair(_) => chunk_batch(chunk, None),
        };
        let tables = vec![Arc::new(batch)];
        let sequence = process.checkpoint.sequence + 1;
        let checkpoint = Checkpoint { sequence, ..process.checkpoint.clone() };
        assert_eq!(process.apply(checkpoint, floor, tables), Applied::Done, "chunks have it all");
        if self.random.percent(3) {
            // Killed after the target's commit, before the ledger is saved.
            return self.restart();
        }
        match read.ask {
            Ask::Range(..) => {
                self.backfill =
                    next.map_or(Backfill::Sweeping(None), |next| Backfill::Copying(Some(next)));
            }
            Ask::Sweep(keys) => self.backfill = Backfill::Sweeping(keys.last().cloned()),
            Ask::Repair(keys) => self.repairs.retain(|key| !keys.contains(key)),
        }
    }

    fn finish_load(&mut self) {
        let Some(Loading { next, rest, .. }) = self.process.loading.take() else { return };
        at_once(rest);
        self.backfill = next.map_or(Backfill::Sweeping(None), |next| Backfill::Copying(Some(next)));
    }

    /// Somebody spoils the target; a repeated backfill or a repair must mend it. Values are only
    /// altered when no update that would carry a part of them on is to come.
    fn spoil(&mut self) {
        self.damage = false;
        let still = self.is_still();
        let known = self.target.rows(&self.table);
        for number in 0..KEYS {
            let key = key(number);
            let version = self.process.checkpoint.version;
            let wrong = row(number, u32::MAX, Some(u32::MAX));
            match (self.random.below(100), known.get(&key)) {
                (0..20, Some(_)) => self.target.damage(&self.table, &key, None, version),
                (20..40, _) if still => {
                    self.target.damage(&self.table, &key, Some(&wrong), version);
                }
                _ => continue,
            }
            self.repairs.push(key);
        }
        let mark = || at_once(self.process.source.mark(EPOCH));
        let decoded = self.process.announced;
        self.marker = if self.without.marker { decoded } else { mark() };
        if self.random.percent(50) {
            self.repairs.clear();
            self.backfill = Backfill::Copying(None);
        }
    }
}
