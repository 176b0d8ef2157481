//! The design as the shortest program that can be wrong: no batch is merged, no database is
//! asked, every rule is one line, and every rule can be left out.
//!
//! One applier, several readers. A reader takes a *hold* before its snapshot: the version of the
//! last batch handed to the target. Its chunk may claim no less than the hold, and no tombstone
//! at or above a hold is collected while the chunk is on its way. A crash forgets all holds.

use std::collections::{BTreeMap, VecDeque};

use crate::random::Random;
use crate::source::{Cells, KEYS, Op, Rows, Source};

/// (place in the log, ordinal).
type Version = (u64, u32);

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// None is.
    None,
    /// A chunk claims the current end of the log.
    Now,
    /// Deletes leave no tombstone.
    NoTombstone,
    /// The version of a truncation is not kept.
    NoTruncation,
    /// A row is read again before its change is visible.
    EarlyReread,
    /// No wait after a connect for what was not visible then.
    NoWait,
    /// A chunk is used although it claims less than it must.
    BelowFloor,
    /// Tombstones are collected although a chunk is on its way.
    NoHold,
    /// The hold is taken after the snapshot.
    LateHold,
    /// A repeated backfill begins at what was decoded last, without a marker in the log.
    NoMarker,
}

/// What survives a crash: the target, and the ledger of the backfill.
#[derive(Clone, Debug, Default)]
struct Durable {
    rows: BTreeMap<usize, (Version, Cells)>,
    tombstones: BTreeMap<usize, Version>,
    truncated: Version,
    checkpoint: u64,
    backfill: Backfill,
    marker: Version,
    repairs: Vec<usize>,
}

/// How far the backfill has come: keys below this are copied, then checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backfill {
    Copying(usize),
    Sweeping(usize),
    Done,
}

impl Default for Backfill {
    fn default() -> Backfill {
        Backfill::Copying(0)
    }
}

/// What a crash forgets.
#[derive(Debug, Default)]
struct Process {
    /// Where the stream was opened; it knows nothing of commits before that.
    opened: u64,
    decoded: u64,
    queue: VecDeque<usize>,
    /// How many commits of the queue are being applied, and the floor of that batch.
    applying: Option<(usize, Version)>,
    announced: u64,
    waiting: Vec<usize>,
    reads: Vec<Read>,
}

/// A chunk on its way.
#[derive(Debug)]
struct Read {
    hold: Version,
    keys: Vec<usize>,
    /// What becomes durable with it.
    reaches: Option<Backfill>,
    snapshot: Option<(Version, Rows)>,
}

struct Case {
    random: Random,
    mutant: Mutant,
    source: Source,
    start: u64,
    durable: Durable,
    process: Process,
    writes_left: usize,
    damage: bool,
}

/// Runs one random history to its end; the error says how source and target differ.
pub fn run(seed: u64, mutant: Mutant) -> Result<(), String> {
    let mut random = Random::new(seed);
    let mut source = Source::new(&mut random);
    for _ in 0..random.below(3) {
        source.write(&mut random);
    }
    let start = source.head;
    let writes_left = random.between(3, 14);
    let damage = random.percent(50);
    let durable = Durable { checkpoint: start, ..Durable::default() };
    let process = Process::default();
    let mut case = Case { random, mutant, source, start, durable, process, writes_left, damage };
    case.connect();
    for _ in 0..8000 {
        if case.is_over() {
            return case.compare().map_err(|error| format!("seed {seed}: {error}"));
        }
        case.step();
    }
    Err(format!("seed {seed}: does not finish"))
}

impl Case {
    fn is_over(&self) -> bool {
        self.is_still()
            && self.process.reads.is_empty()
            && self.durable.repairs.is_empty()
            && self.durable.backfill == Backfill::Done
            && !self.damage
    }

    /// Whether everything that was ever written has arrived.
    fn is_still(&self) -> bool {
        self.writes_left == 0
            && self.process.decoded == self.source.head
            && self.process.queue.is_empty()
            && self.source.pending().is_empty()
    }

    fn compare(&self) -> Result<(), String> {
        let rows = &self.durable.rows;
        let target: Rows = std::array::from_fn(|key| rows.get(&key).map(|(_, cells)| *cells));
        if target == self.source.rows {
            return Ok(());
        }
        Err(format!("source {:?}, target {target:?}", self.source.rows))
    }

    fn step(&mut self) {
        let pending = self.source.pending();
        match self.random.below(200) {
            0..40 if self.writes_left > 0 => {
                self.source.write(&mut self.random);
                self.writes_left -= 1;
            }
            40..75 if !pending.is_empty() => {
                self.source.show(pending[self.random.below(pending.len())]);
            }
            75..100 => self.decode(),
            100..115 => self.hand_over(),
            115..135 => self.apply_batch(),
            135..150 => self.register_read(),
            150..170 => self.take_snapshot(),
            170..185 => self.apply_read(),
            185..187 => self.discard_read(),
            187..190 => self.connect(),
            190..200 if self.damage && self.durable.backfill == Backfill::Done => self.spoil(),
            _ => {}
        }
    }

    /// Also what happens after a crash: memory is gone, the target's checkpoint is the truth.
    fn connect(&mut self) {
        let waiting =
            if self.mutant == Mutant::NoWait { Vec::new() } else { self.source.pending() };
        let checkpoint = self.durable.checkpoint;
        self.process = Process {
            opened: checkpoint,
            decoded: checkpoint,
            announced: checkpoint,
            waiting,
            ..Process::default()
        };
    }

    fn decode(&mut self) {
        let decoded = self.process.decoded.max(self.start);
        if let Some(next) = self.source.log.iter().position(|commit| commit.lsn > decoded) {
            self.process.queue.push_back(next);
            self.process.decoded = self.source.log[next].lsn;
        }
    }

    /// From now on no new chunk may claim less than this batch reaches.
    fn hand_over(&mut self) {
        let process = &mut self.process;
        if process.queue.is_empty() || process.applying.is_some() {
            return;
        }
        let count = self.random.between(1, 3).min(process.queue.len());
        process.announced = self.source.log[process.queue[count - 1]].lsn;
        let floor = self.floor();
        self.process.applying = Some((count, floor));
    }

    fn floor(&self) -> Version {
        let reached = (self.process.announced, 0);
        let holds = self.process.reads.iter().filter(|read| match self.mutant {
            Mutant::NoHold => false,
            Mutant::LateHold => read.snapshot.is_some(),
            _ => true,
        });
        holds.map(|read| read.hold).fold(reached, Version::min)
    }

    fn apply_batch(&mut self) {
        let Some((count, floor)) = self.process.applying else { return };
        let before = self.durable.clone();
        for place in 0..count {
            let commit = self.process.queue[place];
            for ordinal in 0..self.source.log[commit].ops.len() {
                if !self.apply_op(commit, ordinal) {
                    self.durable = before;
                    return;
                }
            }
        }
        self.process.applying = None;
        self.process.queue.drain(..count);
        self.durable.checkpoint = self.process.announced;
        self.collect(floor);
    }

    fn collect(&mut self, floor: Version) {
        self.durable.tombstones.retain(|_, version| *version >= floor);
        if self.durable.truncated < floor {
            self.durable.truncated = (0, 0);
        }
    }

    /// False if it must wait until its commit is visible.
    fn apply_op(&mut self, commit: usize, ordinal: usize) -> bool {
        let commit = &self.source.log[commit];
        let version = (commit.lsn, ordinal as u32 + 1);
        match commit.ops[ordinal] {
            Op::Truncate => self.truncate(version),
            Op::Delete(key) => self.delete(key, version),
            Op::Upsert(key, a, Some(b)) => self.upsert(key, version, (a, b)),
            Op::Upsert(key, a, None) => {
                if self.durable.outranks(key, version) {
                    return true;
                }
                if let Some((_, (_, b))) = self.durable.rows.get(&key).copied() {
                    self.upsert(key, version, (a, b));
                } else if commit.visible || self.mutant == Mutant::EarlyReread {
                    // Not found: its delete is still to come.
                    if let Some(cells) = self.source.rows[key] {
                        self.upsert(key, version, cells);
                    }
                } else {
                    return false;
                }
            }
        }
        true
    }

    fn upsert(&mut self, key: usize, version: Version, cells: Cells) {
        if !self.durable.outranks(key, version) {
            self.durable.rows.insert(key, (version, cells));
            self.durable.tombstones.remove(&key);
        }
    }

    fn delete(&mut self, key: usize, version: Version) {
        if !self.durable.outranks(key, version) {
            self.durable.rows.remove(&key);
            if self.mutant != Mutant::NoTombstone {
                self.durable.tombstones.insert(key, version);
            }
        }
    }

    fn truncate(&mut self, version: Version) {
        self.durable.rows.retain(|_, (row, _)| *row >= version);
        if self.mutant != Mutant::NoTruncation {
            self.durable.truncated = version.max(self.durable.truncated);
        }
    }

    /// The next chunk of the backfill, the next keys of its sweep, or a repair.
    fn register_read(&mut self) {
        let repairs = &self.durable.repairs;
        let waits = |read: &Read| read.reaches.is_none();
        let (keys, reaches) = if !repairs.is_empty() && !self.process.reads.iter().any(waits) {
            (vec![repairs[0]], None)
        } else {
            let mut on_their_way = self.process.reads.iter().filter_map(|read| read.reaches);
            let Some(next) = self.next_keys(on_their_way.next_back()) else { return };
            next
        };
        let hold = (self.process.announced, 0);
        self.process.reads.push(Read { hold, keys, reaches, snapshot: None });
    }

    fn next_keys(&mut self, last: Option<Backfill>) -> Option<(Vec<usize>, Option<Backfill>)> {
        let size = self.random.between(1, 3);
        match last.unwrap_or(self.durable.backfill) {
            Backfill::Copying(from) if from < KEYS => {
                let to = KEYS.min(from + size);
                Some(((from..to).collect(), Some(Backfill::Copying(to))))
            }
            // The sweep begins when every chunk is durable.
            Backfill::Copying(_) | Backfill::Sweeping(_) if last.is_some() => None,
            Backfill::Copying(_) => {
                self.durable.backfill = Backfill::Sweeping(0);
                None
            }
            Backfill::Sweeping(from) => {
                let marker = self.durable.marker;
                let old = self.durable.rows.iter().filter(|(_, (version, _))| *version < marker);
                let keys: Vec<usize> =
                    old.map(|(key, _)| *key).filter(|key| *key >= from).take(size).collect();
                let Some(last) = keys.last() else {
                    self.durable.backfill = Backfill::Done;
                    return None;
                };
                let reaches = Backfill::Sweeping(last + 1);
                Some((keys, Some(reaches)))
            }
            Backfill::Done => None,
        }
    }

    fn take_snapshot(&mut self) {
        let source = &self.source;
        let visible = |commit: &usize| source.log[*commit].visible;
        let unread = self.process.reads.iter().position(|read| read.snapshot.is_none());
        let Some(place) = unread.filter(|_| self.process.waiting.iter().all(visible)) else {
            return;
        };
        let decoded = self.process.decoded;
        let recent = source.log.iter().filter(|commit| commit.lsn > self.process.opened);
        let mut recent = recent.take_while(|commit| commit.lsn <= decoded);
        let hidden = recent.find(|commit| !commit.visible);
        let low = hidden.map_or(decoded, |commit| commit.lsn - 1);
        let low = if self.mutant == Mutant::Now { source.head } else { low };
        let read = &mut self.process.reads[place];
        if (low, 0) >= read.hold.max(self.durable.marker) || self.mutant == Mutant::BelowFloor {
            read.snapshot = Some(((low, 0), source.rows));
        }
    }

    fn apply_read(&mut self) {
        let ready = |read: &Read| read.snapshot.is_some();
        let Some(place) = self.process.reads.iter().position(ready) else { return };
        if self.process.applying.is_some() {
            return;
        }
        let floor = self.floor();
        let read = self.process.reads.remove(place);
        let Some((version, rows)) = read.snapshot else { return };
        for &key in &read.keys {
            match rows[key] {
                Some(cells) => self.upsert(key, version, cells),
                // A chunk of a range does not know which keys are missing; asked keys are.
                None if matches!(read.reaches, Some(Backfill::Copying(_))) => {}
                None => self.delete(key, version),
            }
        }
        match read.reaches {
            Some(reached) => self.durable.backfill = reached,
            None => self.durable.repairs.retain(|key| !read.keys.contains(key)),
        }
        self.collect(floor);
    }

    /// The reader failed; it and those after it begin again at the ledger.
    fn discard_read(&mut self) {
        let keep = self.random.below(3);
        self.process.reads.truncate(keep);
    }

    /// Somebody spoils the target; a repeated backfill or a repair must mend it. Values are only
    /// altered when no update that would carry a part of them on is to come.
    fn spoil(&mut self) {
        self.damage = false;
        let still = self.is_still();
        let old = (self.start.max(self.durable.checkpoint.saturating_sub(10)), 0);
        let mut spoiled = Vec::new();
        for key in 0..KEYS {
            let known = self.durable.rows.get(&key).copied();
            let buried = self.durable.tombstones.contains_key(&key);
            match (self.random.below(100), known) {
                (0..20, Some(_)) => self.durable.rows.remove(&key),
                (20..40, Some((version, (_, b)))) if still => {
                    self.durable.rows.insert(key, (version, (u32::MAX, b)))
                }
                (40..60, None) if still && !buried => {
                    self.durable.rows.insert(key, (old, (u32::MAX, u32::MAX)))
                }
                _ => continue,
            };
            spoiled.push(key);
        }
        let marker =
            if self.mutant == Mutant::NoMarker { self.process.decoded } else { self.source.mark() };
        self.durable.marker = (marker, 0);
        match self.random.percent(50) {
            true => self.durable.backfill = Backfill::Copying(0),
            false => self.durable.repairs = spoiled,
        }
    }
}

impl Durable {
    /// Whether what the target knows of a key is at least as new as this version.
    fn outranks(&self, key: usize, version: Version) -> bool {
        let row = self.rows.get(&key).map(|(version, _)| *version);
        let tombstone = self.tombstones.get(&key).copied();
        self.truncated > version || row.max(tombstone).is_some_and(|known| known >= version)
    }
}
