//! What outlives every process of a simulation: the source, the target, the disks of two
//! machines; and how they are compared in the end.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use connectors::TargetOptions;
use connectors::change::{Cell, Key, Row, TableStatus};
use connectors::memory::{Mutant, Op, SourceServer, TargetServer};
use connectors::schema::{Column, ColumnType, Engine, TableName, TableSchema};
use driftless::control::Ask;
use state::MemoryDisk;
use tokio::sync::mpsc;

use crate::random::Random;
use crate::watch::{PIPELINE, Watch};

/// The columns that every table has: the key, one to filter by, and two more of which updates
/// may lack any.
pub const COLUMNS: [&str; 4] = ["k", "g", "v", "w"];

/// How everything is set up; drawn once.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub tables: usize,
    pub keys: usize,
    pub soft_deletes: bool,
    pub part_changes_max: usize,
    /// How far ahead the log must be to be read in bulk.
    pub bulk_read_above: Option<u64>,
    pub batch_rows: usize,
    pub batch_wait_ms: usize,
    pub queue_kib: usize,
    pub chunk_rows: usize,
    pub copy_workers: usize,
    pub mutant: Mutant,
}

/// The servers and the disks.
pub struct World {
    pub setup: Setup,
    pub random: Random,
    pub source: Arc<SourceServer>,
    pub target: Arc<TargetServer>,
    pub disks: [MemoryDisk; 2],
    pub watch: Watch,
    pub tables: Vec<TableName>,
    state: Mutex<State>,
    /// A hash of all decisions so far.
    digest: AtomicU64,
    /// Print every step.
    pub verbose: bool,
}

/// What the story remembers of what it did.
#[derive(Default)]
pub struct State {
    /// Requests to the process that runs now.
    pub asks: Option<mpsc::Sender<Ask>>,
    /// Rows in the target that somebody changed by hand: their tables must be copied again.
    pub damaged: Vec<TableName>,
    /// Rows that the target refuses.
    pub poisoned: Vec<(TableName, Key)>,
    /// Columns added so far.
    pub columns_added: u32,
}

impl Setup {
    /// A setup for this seed.
    pub fn draw(random: &Random) -> Setup {
        Setup {
            tables: random.between(1, 3),
            keys: random.between(3, 10),
            soft_deletes: random.permille(300),
            part_changes_max: *random.pick(&[1, 2, 3, usize::MAX]).unwrap_or(&1),
            bulk_read_above: None,
            batch_rows: *random.pick(&[1, 2, 5, 1000]).unwrap_or(&1),
            batch_wait_ms: *random.pick(&[0, 20, 200]).unwrap_or(&0),
            queue_kib: *random.pick(&[1, 4, 1024]).unwrap_or(&1),
            chunk_rows: random.between(1, 4),
            copy_workers: random.between(1, 3),
            mutant: Mutant::None,
        }
    }

    /// A plain one, for stories that are told step by step.
    pub fn plain() -> Setup {
        Setup {
            tables: 2,
            keys: 8,
            soft_deletes: false,
            part_changes_max: 2,
            bulk_read_above: None,
            batch_rows: 4,
            batch_wait_ms: 20,
            queue_kib: 64,
            chunk_rows: 2,
            copy_workers: 2,
            mutant: Mutant::None,
        }
    }
}

impl World {
    pub fn new(setup: Setup, random: Random, verbose: bool) -> Arc<World> {
        let name = |number: usize| TableName::new("public", format!("t{number}"));
        let tables: Vec<TableName> = (0..setup.tables).map(name).collect();
        let schemas = tables.iter().zip(1..).map(|(name, id)| schema(name, id));
        Arc::new(World {
            setup,
            random,
            source: SourceServer::new(schemas),
            target: TargetServer::new(),
            disks: [MemoryDisk::new(), MemoryDisk::new()],
            watch: Watch::default(),
            tables,
            state: Mutex::default(),
            digest: AtomicU64::new(0),
            verbose,
        })
    }

    /// A world whose tables have rows with the keys from 1 on already.
    pub fn filled(setup: Setup, rows: usize) -> Arc<World> {
        let world = World::new(setup, Random::new(1), false);
        world.fill(rows);
        world
    }

    /// Inserts rows with the keys from 1 on into every table.
    pub fn fill(&self, rows: usize) {
        for table in &self.tables {
            for key in 1..=rows {
                self.commit(&[insert(table, key, "old")]);
            }
        }
    }

    pub fn target_options(&self) -> TargetOptions {
        TargetOptions {
            pipeline: PIPELINE.into(),
            soft_deletes: self.setup.soft_deletes,
            plain_schema: "public".into(),
        }
    }

    /// Commits and shows at once. These must not be refused.
    pub fn commit(&self, ops: &[Op]) {
        let xid = self.source.commit(ops).expect("a commit of a told story was refused");
        self.source.show(xid);
    }

    /// Makes every commit visible.
    pub fn show_all(&self) {
        for xid in self.source.pending() {
            self.source.show(xid);
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the invariants.
    pub fn look(&self, at: &str) {
        self.watch.look(&self.source, &self.target, at);
    }

    /// Adds a decision to the digest of the run.
    pub fn digest(&self, decision: impl Hash) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.digest.load(Ordering::Relaxed), decision).hash(&mut hasher);
        let digest = hasher.finish();
        self.digest.store(digest, Ordering::Relaxed);
        digest
    }

    /// One line of the trace.
    pub fn tell(&self, what: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("{}", what());
        }
    }

    /// Tables that the target has given up.
    pub fn stopped(&self) -> Vec<TableName> {
        let tables = self.target.remembered(PIPELINE).map(|remembered| remembered.tables);
        let stopped = |status: &TableStatus| matches!(status, TableStatus::Stopped { .. });
        let tables = tables.unwrap_or_default().into_iter();
        tables.filter(|(_, record)| stopped(&record.status)).map(|(name, _)| name).collect()
    }

    /// Compares every table, row by row.
    pub fn compare(&self) -> Result<(), String> {
        for name in &self.tables {
            let Some(schema) = self.source.schema(name) else {
                return Err(format!("{name} is gone"));
            };
            let source = self.source.rows(name);
            let target = self.target.rows(&schema);
            for key in source.keys().chain(target.keys()) {
                let found = target.get(key).map(|(_, row)| row);
                if source.get(key) != found {
                    return Err(format!(
                        "{name} differs at key {}: source {}, target {} of version {:?}",
                        words(key),
                        source.get(key).map_or("none".into(), cells),
                        found.map_or("none".into(), cells),
                        target.get(key).map(|(version, _)| version.to_string()),
                    ));
                }
            }
            self.compare_record(name, &schema)?;
        }
        Ok(())
    }

    fn compare_record(&self, name: &TableName, schema: &TableSchema) -> Result<(), String> {
        let tables = self.target.remembered(PIPELINE).map(|remembered| remembered.tables);
        let tables = tables.unwrap_or_default();
        let Some(record) = tables.get(name) else { return Err(format!("{name} has no record")) };
        if record.status != TableStatus::Live {
            return Err(format!("{name} is not live but {:?}", record.status));
        }
        if record.schema != *schema {
            return Err(format!("{name} was recorded with another shape"));
        }
        Ok(())
    }
}

fn schema(name: &TableName, id: u32) -> TableSchema {
    let columns = COLUMNS.iter().zip(1..).map(|(name, id)| column(name, id));
    TableSchema {
        name: name.clone(),
        id,
        engine: Engine::Memory,
        columns: columns.collect(),
        key: vec![0],
    }
}

pub fn column(name: &str, id: u32) -> Column {
    Column { name: name.into(), column_type: ColumnType::Text, native: None, id }
}

pub fn key(number: usize) -> Key {
    Key::from_values([number.to_string().as_bytes()])
}

/// A row of the first shape.
pub fn row(number: usize, value: &str) -> Row {
    let number = number.to_string();
    let cells = [number.as_bytes(), b"1", value.as_bytes(), b"wide"];
    Row::from_cells(cells.map(Cell::Value))
}

/// A row of the first shape that lacks its last column.
pub fn partial(number: usize, value: &str) -> Row {
    let number = number.to_string();
    let cells = [number.as_bytes(), b"1", value.as_bytes()].map(Cell::Value);
    Row::from_cells(cells.into_iter().chain([Cell::Absent]))
}

pub fn insert(table: &TableName, number: usize, value: &str) -> Op {
    Op::Insert { table: table.clone(), row: row(number, value) }
}

pub fn update(table: &TableName, number: usize, value: &str) -> Op {
    Op::Update { table: table.clone(), key: key(number), row: partial(number, value) }
}

pub fn delete(table: &TableName, number: usize) -> Op {
    Op::Delete { table: table.clone(), key: key(number) }
}

fn words(key: &Key) -> String {
    key.values().map(|value| String::from_utf8_lossy(value).into_owned()).collect()
}

fn cells(row: &Row) -> String {
    let cell = |cell: Cell<'_>| match cell {
        Cell::Value(value) => String::from_utf8_lossy(value).into_owned(),
        Cell::Null => "NULL".into(),
        Cell::Absent => "ABSENT".into(),
        Cell::Binary(_) => "BINARY".into(),
    };
    row.cells().map(cell).collect::<Vec<_>>().join(",")
}
