//! The comparison of two sides in memory, of which a test scripts what happens while it goes on:
//! whenever a marker is written, or the source is asked for keys.
//! Surprise: the target stores `price` without a trailing zero, as a real one may.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use connectors::change::{
    Batch, Cell, Checkpoint, Key, Row, RowUpsert, TableBatch, TableStatus, Timestamp,
};
use connectors::error::{Code, Result};
use connectors::memory::{
    Fault, Faults, MemorySource, MemoryTarget, Op, Script, SourceServer, TargetServer,
};
use connectors::schema::{Column, ColumnType, Engine, TableName, TablePatterns, TableSchema};
use connectors::version::{Position, Version};
use connectors::{Claim, Target as _, TargetOptions};
use futures_util::FutureExt as _;

use super::{Options, Outcome, Report, Scanned, TableReport, Verifier, repairable};

type Event = Box<dyn FnOnce(&Sides) + Send>;
/// Name and price of an item; a price of `None` is NULL.
type Item = (&'static str, Option<&'static str>);

/// Both databases, and the daemon between them.
struct Sides {
    source: Arc<SourceServer>,
    target: Arc<TargetServer>,
    /// The daemon's connection; `None` for a pipeline that has never run.
    writer: Option<Mutex<MemoryTarget>>,
    /// Whether the daemon applies what the source commits.
    follows: AtomicBool,
    applied: AtomicU64,
    /// What happens at the next markers, one each.
    at_marks: Mutex<VecDeque<Event>>,
    /// What happens when the checkpoint is looked at, one each.
    at_recalls: Mutex<VecDeque<Event>>,
    /// What happens whenever the source is asked for keys.
    at_every_look: Mutex<Option<fn(&Sides)>>,
}

#[derive(Clone)]
struct World(Arc<Sides>);

impl Script for World {
    fn decide(&self, point: &'static str) -> Fault {
        match point {
            "source.mark.before" => {
                let event = self.0.at_marks.lock().unwrap().pop_front();
                event.into_iter().for_each(|event| event(&self.0));
            }
            "source.mark.after" if self.0.follows.load(Ordering::Relaxed) => {
                self.0.apply(Vec::new(), BTreeMap::new());
            }
            "target.recall" => {
                let event = self.0.at_recalls.lock().unwrap().pop_front();
                event.into_iter().for_each(|event| event(&self.0));
            }
            "source.read_plain_keys" => {
                let event = *self.0.at_every_look.lock().unwrap();
                event.into_iter().for_each(|event| event(&self.0));
            }
            _ => {}
        }
        Fault::None
    }
}

impl Sides {
    fn set_source(&self, id: i64, item: Option<Item>) {
        let (table, key) = (schema(3).name.clone(), key(id));
        let exists = self.source.rows(&table).contains_key(&key);
        let op = match (item, exists) {
            (Some(item), true) => Op::Update { table, key, row: row(3, id, item) },
            (Some(item), false) => Op::Insert { table, row: row(3, id, item) },
            (None, _) => Op::Delete { table, key },
        };
        self.commit(&[op]);
    }

    /// Behind the daemon's back.
    fn set_target(&self, id: i64, item: Option<Item>) {
        let row = item.map(|item| row(3, id, item));
        self.target.damage(&schema(3), &key(id), row.as_ref(), Version::ZERO);
    }

    fn commit(&self, ops: &[Op]) {
        let xid = self.source.commit(ops).unwrap();
        self.source.show(xid);
    }

    /// Records the end of the log as applied, together with these changes.
    fn apply(&self, tables: Vec<TableBatch>, status: BTreeMap<TableName, TableStatus>) {
        let Some(writer) = &self.writer else { return };
        let head = self.source.head();
        let checkpoint = Checkpoint {
            position: Position(format!("memory:first:{head}")),
            version: Version::at_log(1, head),
            sequence: self.applied.fetch_add(1, Ordering::Relaxed) + 1,
        };
        let tables = tables.into_iter().map(Arc::new).collect();
        let batch = Batch { checkpoint, floor: Version::ZERO, tables, status };
        let mut writer = writer.lock().unwrap();
        writer.apply(&batch).now_or_never().unwrap().unwrap();
    }
}

impl World {
    /// Two sides with these rows, the source's written as `1.50`, the target's as `1.5`; the
    /// target knows this many columns and records this status.
    fn new(rows: i64, columns: usize, status: Option<TableStatus>) -> World {
        let price = (columns == 3).then_some("1.50");
        let source = SourceServer::new([TableSchema::clone(&schema(3))]);
        let target = TargetServer::new();
        let writer = status.is_some().then(|| Mutex::new(claimed(&target, columns)));
        let sides = Sides {
            source,
            target,
            writer,
            follows: AtomicBool::new(true),
            applied: AtomicU64::new(0),
            at_marks: Mutex::default(),
            at_recalls: Mutex::default(),
            at_every_look: Mutex::default(),
        };
        let table = schema(3).name.clone();
        let insert = |id| Op::Insert { table: table.clone(), row: row(3, id, ("item", price)) };
        sides.commit(&(1..=rows).map(insert).collect::<Vec<_>>());
        let upsert = |id| RowUpsert {
            key: key(id),
            row: row(columns, id, ("item", Some("1.5"))),
            version: Version::at_log(1, 1),
            updated_at: Timestamp(0),
        };
        let upserts = (1..=rows).map(upsert).collect();
        let batch =
            TableBatch { table: schema(columns), truncated: None, deletes: Vec::new(), upserts };
        let status = status.map(|status| (table.clone(), status));
        sides.apply(vec![batch], status.into_iter().collect());
        World(Arc::new(sides))
    }

    /// A thousand equal rows, and a daemon that follows.
    fn equal() -> World {
        World::new(1000, 3, Some(TableStatus::Live))
    }

    fn change(self, change: impl FnOnce(&Sides)) -> World {
        change(&self.0);
        self
    }

    fn at_next_mark(self, event: impl FnOnce(&Sides) + Send + 'static) -> World {
        self.0.at_marks.lock().unwrap().push_back(Box::new(event));
        self
    }

    fn source(&self) -> MemorySource {
        MemorySource::new(&self.0.source, Faults::new(Arc::new(self.clone())))
    }

    fn target(&self) -> MemoryTarget {
        let faults = Faults::new(Arc::new(self.clone()));
        MemoryTarget::new(&self.0.target, target_options(), faults).storing(stored)
    }

    fn options(&self) -> Options {
        Options {
            pipeline: "shop".into(),
            tables: TablePatterns::parse(&["public.*"], "public").unwrap(),
            only: None,
            chunk_bytes: 2_000,
            daemon_runs: self.0.follows.load(Ordering::Relaxed),
        }
    }

    async fn verify(&self) -> Report {
        self.verify_only(None).await.unwrap()
    }

    async fn verify_only(&self, only: Option<&str>) -> Result<Report> {
        let only = only.map(|only| TablePatterns::parse(&[only], "public").unwrap());
        let (source, mut target) = (self.source(), self.target());
        let options = Options { only, ..self.options() };
        // As the command line does it, the comparison must be able to move between threads.
        fn movable<T: Send>(future: T) -> T {
            future
        }
        let mut verifier = Verifier::open(&source, &mut target, options).await?;
        movable(verifier.compare_tables()).await
    }
}

fn target_options() -> TargetOptions {
    TargetOptions { pipeline: "shop".into(), soft_deletes: false, plain_schema: "public".into() }
}

/// A writer's connection to a target with an empty table of so many columns.
fn claimed(target: &Arc<TargetServer>, columns: usize) -> MemoryTarget {
    let mut writer = MemoryTarget::new(target, target_options(), Faults::none());
    let claim = Claim { instance: "daemon".into(), fence: None, take_over: false };
    writer.claim(&claim).now_or_never().unwrap().unwrap();
    writer.prepare(&schema(columns)).now_or_never().unwrap().unwrap();
    writer
}

/// `public.items (name, id primary key, price)`, of which the first so many columns.
fn schema(columns: usize) -> Arc<TableSchema> {
    let all =
        [("name", ColumnType::Text), ("id", ColumnType::Int64), ("price", ColumnType::Numeric)];
    let column = |(id, (name, column_type)): (usize, (&str, ColumnType))| Column {
        name: name.into(),
        column_type,
        native: None,
        id: id as u32,
    };
    Arc::new(TableSchema {
        name: TableName::new("public", "items"),
        id: 1,
        engine: Engine::Memory,
        columns: all.into_iter().take(columns).enumerate().map(column).collect(),
        key: vec![1],
    })
}

fn key(id: i64) -> Key {
    Key::from_values([id.to_string().as_bytes()])
}

fn row(columns: usize, id: i64, (name, price): Item) -> Row {
    let id = id.to_string();
    let price = price.map_or(Cell::Null, |price| Cell::Value(price.as_bytes()));
    let cells = [Cell::Value(name.as_bytes()), Cell::Value(id.as_bytes()), price];
    Row::from_cells(cells.into_iter().take(columns))
}

fn stored(table: &TableSchema, row: &Row) -> Row {
    let stored = |(column, cell): (&Column, _)| match cell {
        Cell::Value(value) if column.column_type == ColumnType::Numeric => {
            Cell::Value(value.strip_suffix(b"0").unwrap_or(value))
        }
        cell => cell,
    };
    Row::from_cells(table.columns.iter().zip(row.cells()).map(stored))
}

/// Outcome, then `kind id,id (columns)` for each kind that was found.
fn summary(table: &TableReport) -> String {
    let found = &table.differences;
    let kinds = [
        ("missing", &found.missing),
        ("differing", &found.differing),
        ("extra", &found.extra),
        ("unsettled", &found.unsettled),
    ];
    let mut summary = format!("{:?} {} rows", table.outcome, table.rows);
    for (kind, found) in kinds.into_iter().filter(|(_, found)| found.count > 0) {
        let keys: Vec<String> = found.keys.iter().map(|listed| listed.to_string()).collect();
        summary.push_str(&format!("; {} {kind}: {}", found.count, keys.join(", ")));
    }
    summary
}

async fn check(world: World, expected: &str) -> Report {
    let report = world.verify().await;
    assert_eq!(summary(&report.tables[0]), expected);
    assert_eq!(report.outcome, report.tables[0].outcome);
    report
}

#[tokio::test(start_paused = true)]
async fn equal_sides_are_equal_although_the_target_stores_values_in_another_form() {
    let report = check(World::equal(), "Equal 1000 rows").await;
    assert_eq!(report.notes, Vec::<String>::new());
    assert_eq!(report.tables[0].digest, World::equal().verify().await.tables[0].digest);
}

#[tokio::test(start_paused = true)]
async fn empty_tables_are_equal() {
    check(World::new(0, 3, Some(TableStatus::Live)), "Equal 0 rows").await;
}

#[tokio::test(start_paused = true)]
async fn a_row_that_the_target_lacks_is_missing() {
    let world = World::equal().change(|sides| sides.set_target(400, None));
    let report = check(world, "Different 1000 rows; 1 missing: id=400").await;
    assert!(repairable(&report).into_values().eq([vec![key(400)]]));
}

#[tokio::test(start_paused = true)]
async fn a_row_with_another_value_is_named_with_the_column() {
    let world = World::equal().change(|sides| {
        sides.set_target(7, Some(("item", Some("9"))));
        sides.set_target(1000, Some(("other", Some("1.5"))));
    });
    let expected = "Different 1000 rows; 2 differing: id=7 (columns: price), \
                    id=1000 (columns: name)";
    check(world, expected).await;
}

#[tokio::test(start_paused = true)]
async fn a_row_that_the_source_lacks_is_extra() {
    let world = World::equal().change(|sides| {
        sides.set_source(1, None);
        sides.set_target(2000, Some(("ghost", None)));
    });
    check(world, "Different 999 rows; 2 extra: id=1, id=2000").await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_no_source_can_have_is_extra_and_not_asked_for() {
    let world = World::equal().change(|sides| {
        let key = Key::from_values([b"\0text x".as_slice()]);
        let row = Row::from_cells([Cell::Null, Cell::Value(b"\0text x"), Cell::Null]);
        sides.target.damage(&schema(3), &key, Some(&row), Version::ZERO);
    });
    let report = check(world, "Different 1000 rows; 1 extra: id=\\0text x").await;
    assert!(repairable(&report).is_empty());
    assert!(report.tables[0].remedy.contains("by hand"), "{}", report.tables[0].remedy);
}

#[tokio::test(start_paused = true)]
async fn changes_in_flight_are_waited_for() {
    let world = World::equal().change(|sides| {
        sides.set_source(5, Some(("new", Some("1.50"))));
        sides.set_source(1001, Some(("item", Some("1.50"))));
        sides.set_source(6, None);
    });
    let world = world.at_next_mark(|sides| {
        sides.set_target(5, Some(("new", Some("1.5"))));
        sides.set_target(1001, Some(("item", Some("1.5"))));
        sides.set_target(6, None);
    });
    check(world, "Equal 1000 rows").await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_target_is_waited_for() {
    let world = World::equal().change(|sides| sides.set_source(5, Some(("new", None))));
    let world = world.at_next_mark(|sides| {
        sides.follows.store(false, Ordering::Relaxed);
        let mut at_recalls = sides.at_recalls.lock().unwrap();
        at_recalls.extend((0..5).map(|_| Box::new(|_: &Sides| {}) as Event));
        at_recalls.push_back(Box::new(|sides| {
            sides.set_target(5, Some(("new", None)));
            sides.apply(Vec::new(), BTreeMap::new());
            sides.follows.store(true, Ordering::Relaxed);
        }));
    });
    // Two rounds would have passed at the fifth look, had they not waited for the marker.
    check(world, "Equal 1000 rows").await;
}

#[tokio::test(start_paused = true)]
async fn a_difference_that_is_seen_in_one_round_only_does_not_count() {
    let world = World::equal()
        .change(|sides| sides.set_target(5, Some(("first", Some("1.5")))))
        .at_next_mark(|_| {})
        .at_next_mark(|sides| sides.set_target(5, Some(("item", Some("1.5")))));
    check(world, "Equal 1000 rows").await;
}

#[tokio::test(start_paused = true)]
async fn a_row_that_never_stands_still_is_unsettled() {
    let world = World::equal().change(|sides| {
        sides.set_target(5, None);
        *sides.at_every_look.lock().unwrap() = Some(|sides| {
            let rows = sides.source.rows(&schema(3).name);
            let was_tick = rows[&key(5)].cell(0) == Cell::Value(b"tick");
            sides.set_source(5, Some((if was_tick { "tock" } else { "tick" }, None)));
        });
    });
    let report = check(world, "Different 1000 rows; 1 unsettled: id=5").await;
    assert!(report.tables[0].remedy.contains("less often"), "{}", report.tables[0].remedy);
    assert!(repairable(&report).is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_a_daemon_the_sides_are_compared_at_rest() {
    let world = World::equal().change(|sides| {
        sides.follows.store(false, Ordering::Relaxed);
        sides.set_source(1001, Some(("item", Some("1.50"))));
    });
    let report = check(world, "Different 1001 rows; 1 missing: id=1001").await;
    let note = "no daemon answers, so the two sides were compared at rest; the target stands at \
                memory:first:10, 10 bytes of log behind the source; `driftless run \
                --until-current` applies what is missing";
    assert_eq!(report.notes, [note]);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_starts_meanwhile_is_waited_for() {
    let world = World::equal().change(|sides| {
        sides.follows.store(false, Ordering::Relaxed);
        sides.set_source(1001, Some(("item", Some("1.50"))));
        *sides.at_every_look.lock().unwrap() = Some(|sides| {
            sides.follows.store(true, Ordering::Relaxed);
            sides.apply(Vec::new(), BTreeMap::new());
        });
    });
    let world = world.at_next_mark(|_| {});
    let world = world.at_next_mark(|sides| sides.set_target(1001, Some(("item", Some("1.5")))));
    let report = check(world, "Equal 1001 rows").await;
    assert_eq!(report.notes, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_stands_still_is_not_waited_for_without_end() {
    let world = World::equal()
        .change(|sides| sides.set_target(3, None))
        .at_next_mark(|sides| sides.follows.store(false, Ordering::Relaxed));
    let report = check(world, "Different 1000 rows; 1 missing: id=3").await;
    assert!(report.notes[0].starts_with("the target's checkpoint does not move; "));
}

#[tokio::test(start_paused = true)]
async fn more_suspects_than_are_held_are_all_counted() {
    let world = World::equal().change(|sides| {
        let table = schema(3).name.clone();
        let insert =
            |id| Op::Insert { table: table.clone(), row: row(3, id, ("new", Some("1.50"))) };
        sides.commit(&(1001..=25_000).map(insert).collect::<Vec<_>>());
    });
    let report = world.verify().await;
    let found = &report.tables[0].differences;
    assert_eq!((report.rows, found.missing.count, found.count()), (25_000, 24_000, 24_000));
    assert_eq!(found.missing.keys.len(), super::report::LISTED_MAX);
    assert_eq!(report.tables[0].remedy, "`driftless backfill --table public.items`");
}

async fn check_unproven(world: World, reason: &str) {
    let report = world.verify().await;
    assert_eq!(report.outcome, Outcome::Unproven);
    let table = &report.tables[0];
    assert!(table.reason.contains(reason), "{}", table.reason);
    assert!(table.remedy.contains("driftless"), "{}", table.remedy);
}

#[tokio::test(start_paused = true)]
async fn a_table_that_is_not_live_is_not_proven() {
    let with = |status| World::new(1, 3, status);
    check_unproven(with(Some(TableStatus::Copying)), "first copy is not complete").await;
    let stopped = TableStatus::Stopped {
        code: Code::SchemaChange,
        message: "column a changed its type".into(),
        version: Version::ZERO,
    };
    check_unproven(with(Some(stopped)), "stopped [schema-change]: column a changed").await;
    check_unproven(with(None), "knows nothing of it").await;
}

#[tokio::test(start_paused = true)]
async fn an_added_column_counts_as_null_until_it_has_a_value() {
    let without_price = World::new(10, 2, Some(TableStatus::Live));
    check(without_price.clone(), "Equal 10 rows").await;
    let with_price = without_price.change(|sides| sides.set_source(3, Some(("item", Some("1")))));
    check_unproven(with_price, "does not have yet: price").await;
}

#[tokio::test(start_paused = true)]
async fn progress_is_told_up_to_the_last_row() {
    let world = World::equal();
    let told = Arc::new(Mutex::new(Vec::new()));
    let (source, mut target) = (world.source(), world.target());
    let verifier = Verifier::open(&source, &mut target, world.options()).await.unwrap();
    let tell = |scanned: Scanned<'_>| told.lock().unwrap().push((scanned.rows, scanned.done));
    verifier.telling(Box::new(tell)).compare_tables().await.unwrap();
    let told = told.lock().unwrap();
    assert!(told.len() > 3 && told.is_sorted(), "{told:?}");
    assert_eq!((told.first(), told.last()), (Some(&(0, false)), Some(&(1000, true))));
}

#[tokio::test(start_paused = true)]
async fn asking_for_a_table_that_is_not_there_is_an_error() {
    let error = World::equal().verify_only(Some("public.orders")).await.unwrap_err();
    assert_eq!(error.code, Code::Configuration);
    assert!(error.message.contains("--table public.orders matches no table"), "{error}");
    World::equal().verify_only(Some("items")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn repaired_keys_are_looked_at_again() {
    let world = World::equal().change(|sides| {
        sides.set_target(400, None);
        sides.set_target(500, None);
        sides.set_target(7, Some(("other", Some("1.5"))));
    });
    let mut report = world.verify().await;
    let keys = repairable(&report);
    let world = world.change(|sides| {
        sides.set_target(400, Some(("item", Some("1.5"))));
        sides.set_target(7, Some(("item", Some("1.5"))));
    });
    let (source, mut target) = (world.source(), world.target());
    let mut verifier = Verifier::open(&source, &mut target, world.options()).await.unwrap();
    for (table, keys) in keys {
        report.replace(&table, verifier.compare_keys(&table, &keys).await.unwrap());
    }
    assert_eq!(summary(&report.tables[0]), "Different 1000 rows; 1 missing: id=500");
}

#[tokio::test(start_paused = true)]
async fn the_report_has_its_documented_json_and_text() {
    let world = World::equal().change(|sides| {
        sides.set_target(400, None);
        sides.set_target(7, Some(("other", Some("1.5"))));
    });
    let mut report = world.verify().await;
    report.elapsed_ms = 1234;
    report.tables[0].elapsed_ms = 1000;
    let none = serde_json::json!({"count": 0, "keys": []});
    let expected = serde_json::json!({
        "pipeline": "shop",
        "outcome": "different",
        "rows": 1000,
        "notes": [],
        "tables": [{
            "table": "public.items",
            "target_table": "public.items",
            "outcome": "different",
            "rows": 1000,
            "digest": report.tables[0].digest,
            "missing": {"count": 1, "keys": [{"key": {"id": "400"}}]},
            "differing": {"count": 1, "keys": [{"key": {"id": "7"}, "columns": ["name"]}]},
            "extra": none,
            "unsettled": none,
            "reason": "",
            "remedy": "`driftless verify --repair --table public.items`",
            "elapsed_ms": 1000,
        }],
        "elapsed_ms": 1234,
    });
    assert_eq!(serde_json::to_value(&report).unwrap(), expected);
    let text = "public.items: 1 missing, 1 differing\n  missing    id=400\n  differing  id=7 \
                (columns: name)\n  next: `driftless verify --repair --table public.items`\n\
                different: 1 of 1 table, 1,000 rows compared in 1.2 s\n";
    assert_eq!(report.to_string(), text);
}

#[tokio::test(start_paused = true)]
async fn equal_sides_are_reported_in_one_line() {
    let mut report = World::equal().verify().await;
    report.elapsed_ms = 40;
    assert_eq!(report.to_string(), "equal: 1 table, 1,000 rows in 0.0 s\n");
}
