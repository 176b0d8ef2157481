//! The comparison against two sides that a test scripts: what happens whenever a marker is
//! written or the target is looked at.
//! Surprise: the target sorts keys backwards and stores `price` without trailing zeros, as a
//! real one may.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use connectors::change::{Applied, Batch, Cell, Checkpoint, Chunk, Key, Row, TableStatus};
use connectors::error::{Code, Result};
use connectors::schema::{Column, ColumnType, Engine, TableName, TablePatterns, TableSchema};
use connectors::version::{Position, Version};
use connectors::{
    ChangeStream, ChunkRequest, Claim, Finding, KeyScan, Prepared, Remembered, RowReader, Source,
    TableRecord, Target,
};

use super::{Options, Outcome, Report, TableReport, Verifier, repairable};

type Event = Box<dyn FnOnce(&mut Sides) + Send>;

#[derive(Default)]
struct Sides {
    source: BTreeMap<i64, (String, String)>,
    target: BTreeMap<i64, (String, String)>,
    /// The source's log, in commits, and how far the target has it.
    log: u64,
    applied: u64,
    /// Whether somebody applies the log.
    follows: bool,
    status: Option<TableStatus>,
    known_columns: Option<usize>,
    /// What happens at the next markers, one each.
    at_marks: VecDeque<Event>,
    /// What happens at every look at the source's keys.
    at_every_look: Option<fn(&mut Sides)>,
}

#[derive(Clone)]
struct World(Arc<Mutex<Sides>>);

impl World {
    /// A thousand equal rows, a daemon that follows.
    fn equal() -> World {
        let row = |id| (format!("item {id}"), format!("{id}.50"));
        let stored = |id| (format!("item {id}"), format!("{id}.5"));
        World(Arc::new(Mutex::new(Sides {
            source: (1..=1000).map(|id| (id, row(id))).collect(),
            target: (1..=1000).map(|id| (id, stored(id))).collect(),
            log: 10,
            applied: 10,
            follows: true,
            status: Some(TableStatus::Live),
            ..Sides::default()
        })))
    }

    fn change(self, change: impl FnOnce(&mut Sides)) -> World {
        change(&mut self.lock());
        self
    }

    fn lock(&self) -> MutexGuard<'_, Sides> {
        self.0.lock().unwrap()
    }

    async fn verify(&self) -> Report {
        self.verify_only(None).await.unwrap()
    }

    async fn verify_only(&self, only: Option<&str>) -> Result<Report> {
        let options = Options {
            pipeline: "shop".into(),
            tables: TablePatterns::parse(&["public.*"]).unwrap(),
            only: only.map(|only| TablePatterns::parse(&[only]).unwrap()),
            chunk_bytes: 2_000,
            daemon_runs: self.lock().follows,
        };
        let mut target = self.clone();
        Verifier::open(self, &mut target, options).await?.compare_tables().await
    }
}

fn schema() -> Arc<TableSchema> {
    let column = |(id, (name, column_type)): (usize, (&str, ColumnType))| Column {
        name: name.into(),
        column_type,
        native: None,
        id: id as u32,
    };
    let columns =
        [("name", ColumnType::Text), ("id", ColumnType::Int64), ("price", ColumnType::Numeric)];
    Arc::new(TableSchema {
        name: TableName::new("public", "items"),
        id: 1,
        engine: Engine::Memory,
        columns: columns.into_iter().enumerate().map(column).collect(),
        key: vec![1],
    })
}

fn key(id: i64) -> Key {
    Key::from_values([id.to_string().as_bytes()])
}

fn id(key: &Key) -> i64 {
    std::str::from_utf8(key.values().next().unwrap()).unwrap().parse().unwrap()
}

/// The columns of a row that `table` has.
fn row(table: &TableSchema, id: i64, (name, price): &(String, String)) -> (Key, Row) {
    let id_text = id.to_string();
    let cell = |column: &Column| match column.name.as_str() {
        "name" => name.clone(),
        "id" => id_text.clone(),
        _ => price.clone(),
    };
    let cells: Vec<String> = table.columns.iter().map(cell).collect();
    (key(id), Row::from_cells(cells.iter().map(|cell| Cell::Value(cell.as_bytes()))))
}

#[async_trait]
impl Source for World {
    async fn check(&self, _: &TablePatterns) -> Result<Vec<Finding>> {
        unreachable!()
    }
    async fn tables(&self, _: &TablePatterns) -> Result<Vec<Arc<TableSchema>>> {
        Ok(vec![schema()])
    }
    async fn subscribe(&self, _: &[Arc<TableSchema>], _: Option<&Position>) -> Result<Position> {
        unreachable!()
    }
    async fn subscription(&self) -> Result<Option<String>> {
        unreachable!()
    }
    async fn unsubscribe(&self) -> Result<()> {
        unreachable!()
    }
    async fn evict(&self) -> Result<()> {
        unreachable!()
    }
    async fn stream(
        &self,
        _: &Position,
        _: u32,
        _: &[Arc<TableSchema>],
    ) -> Result<Box<dyn ChangeStream>> {
        unreachable!()
    }
    fn version_of(&self, _: &Position, _: u32) -> Result<Version> {
        unreachable!()
    }
    async fn mark(&self, epoch: u32) -> Result<Version> {
        let mut sides = self.lock();
        sides.log += 1;
        if let Some(event) = sides.at_marks.pop_front() {
            event(&mut sides);
        }
        if sides.follows {
            sides.applied = sides.log;
        }
        Ok(Version::at_log(epoch, sides.log))
    }
    async fn lag_bytes(&self, _: &Position) -> Result<u64> {
        let sides = self.lock();
        Ok(sides.log - sides.applied)
    }
    async fn estimate_rows(&self, _: &TableSchema) -> Result<u64> {
        unreachable!()
    }
    async fn reader(&self) -> Result<Box<dyn RowReader>> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl RowReader for World {
    async fn read_chunk(&mut self, _: &ChunkRequest<'_>) -> Result<Chunk> {
        unreachable!()
    }
    async fn read_keys(&mut self, _: &Arc<TableSchema>, _: &[Key], _: Version) -> Result<Chunk> {
        unreachable!()
    }
    async fn reread(
        &mut self,
        _: &Arc<TableSchema>,
        _: &[Key],
        _: Version,
    ) -> Result<Vec<(Key, Row)>> {
        unreachable!()
    }
    async fn read_plain(
        &mut self,
        request: &ChunkRequest<'_>,
    ) -> Result<(Vec<(Key, Row)>, Option<Key>)> {
        let sides = self.lock();
        let after = request.after.map_or(i64::MIN, |after| id(after) + 1);
        let rows = sides.source.range(after..).take(request.rows_max);
        let rows: Vec<_> = rows.map(|(&id, values)| row(request.table, id, values)).collect();
        let more = rows.len() == request.rows_max;
        let next = rows.last().filter(|_| more).map(|(key, _)| key.clone());
        Ok((rows, next))
    }
    async fn read_plain_keys(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
    ) -> Result<Vec<(Key, Row)>> {
        let mut sides = self.lock();
        if let Some(event) = sides.at_every_look {
            event(&mut sides);
        }
        let found = |key: &Key| Some(row(table, id(key), sides.source.get(&id(key))?));
        Ok(keys.iter().filter_map(found).collect())
    }
    async fn any_value(&mut self, _: &TableSchema, _: &[String]) -> Result<bool> {
        Ok(self.lock().source.values().any(|(_, price)| price != "NULL"))
    }
}

#[async_trait]
impl Target for World {
    async fn check(&mut self, _: &[Arc<TableSchema>]) -> Result<Vec<Finding>> {
        unreachable!()
    }
    async fn recall(&mut self) -> Result<Option<Remembered>> {
        let sides = self.lock();
        let Some(status) = sides.status.clone() else { return Ok(None) };
        let version = Version::at_log(1, sides.applied);
        let position = Position(format!("log {}", sides.applied));
        let mut known = TableSchema::clone(&schema());
        known.columns.truncate(sides.known_columns.unwrap_or(3));
        let record = TableRecord { schema: known, status };
        Ok(Some(Remembered {
            checkpoint: Some(Checkpoint { position, version, sequence: sides.applied }),
            fence: 1,
            instance: "a".into(),
            tables: BTreeMap::from([(schema().name.clone(), record)]),
        }))
    }
    async fn claim(&mut self, _: &Claim) -> Result<Remembered> {
        unreachable!()
    }
    async fn prepare(&mut self, _: &Arc<TableSchema>) -> Result<Prepared> {
        unreachable!()
    }
    async fn release(&mut self, _: &[TableName]) -> Result<()> {
        unreachable!()
    }
    async fn apply(&mut self, _: &Batch) -> Result<Applied> {
        unreachable!()
    }
    async fn read_rows(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
    ) -> Result<Vec<(Key, Version, Row)>> {
        let sides = self.lock();
        let found = |key: &Key| {
            let (key, row) = row(table, id(key), sides.target.get(&id(key))?);
            Some((key, Version::at_log(1, 1), row))
        };
        Ok(keys.iter().rev().filter_map(found).collect())
    }
    async fn read_keys(&mut self, scan: &KeyScan<'_>) -> Result<Vec<Key>> {
        let sides = self.lock();
        let before = scan.after.map_or(i64::MAX, id);
        Ok(sides.target.range(..before).rev().map(|(&id, _)| key(id)).take(scan.limit).collect())
    }
    fn stored(&self, table: &TableSchema, row: &Row) -> Row {
        let stored = |(column, cell): (&Column, _)| match cell {
            Cell::Value(value) if column.column_type == ColumnType::Numeric => {
                Cell::Value(value.strip_suffix(b"0").unwrap_or(value))
            }
            cell => cell,
        };
        Row::from_cells(table.columns.iter().zip(row.cells()).map(stored))
    }
    fn table_name(&self, table: &TableName) -> String {
        table.name.clone()
    }
    async fn forget(&mut self) -> Result<()> {
        unreachable!()
    }
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

fn text(value: &str, price: &str) -> (String, String) {
    (value.into(), price.into())
}

#[tokio::test(start_paused = true)]
async fn equal_sides_are_equal_although_the_target_stores_values_in_another_form() {
    let report = check(World::equal(), "Equal 1000 rows").await;
    assert_eq!(report.notes, Vec::<String>::new());
    assert_eq!(report.tables[0].digest.len(), 64);
}

#[tokio::test(start_paused = true)]
async fn empty_tables_are_equal() {
    let world = World::equal().change(|sides| {
        sides.source.clear();
        sides.target.clear();
    });
    check(world, "Equal 0 rows").await;
}

#[tokio::test(start_paused = true)]
async fn a_row_that_the_target_lacks_is_missing() {
    let world = World::equal().change(|sides| drop(sides.target.remove(&400)));
    let report = check(world, "Different 1000 rows; 1 missing: id=400").await;
    assert!(repairable(&report).into_values().eq([vec![key(400)]]));
}

#[tokio::test(start_paused = true)]
async fn a_row_with_another_value_is_named_with_the_column() {
    let world = World::equal().change(|sides| {
        sides.target.insert(7, text("item 7", "9"));
        sides.target.insert(1000, text("other", "1000.5"));
    });
    let expected = "Different 1000 rows; 2 differing: id=7 (columns: price), \
                    id=1000 (columns: name)";
    check(world, expected).await;
}

#[tokio::test(start_paused = true)]
async fn a_row_that_the_source_lacks_is_extra() {
    let world = World::equal().change(|sides| {
        sides.source.remove(&1);
        sides.target.insert(2000, text("ghost", "1"));
    });
    check(world, "Different 999 rows; 2 extra: id=1, id=2000").await;
}

#[tokio::test(start_paused = true)]
async fn changes_in_flight_are_waited_for() {
    let world = World::equal().change(|sides| {
        sides.source.insert(5, text("new", "5.50"));
        sides.source.insert(1001, text("item", "1.50"));
        sides.source.remove(&6);
        sides.at_marks.push_back(Box::new(|sides| {
            sides.target.insert(5, text("new", "5.5"));
            sides.target.insert(1001, text("item", "1.5"));
            sides.target.remove(&6);
        }));
    });
    check(world, "Equal 1000 rows").await;
}

#[tokio::test(start_paused = true)]
async fn a_difference_that_is_seen_in_one_round_only_does_not_count() {
    let world = World::equal().change(|sides| {
        sides.target.insert(5, text("first", "5.5"));
        sides.at_marks.push_back(Box::new(|_| {}));
        sides.at_marks.push_back(Box::new(|sides| {
            sides.target.insert(5, text("item 5", "5.5"));
        }));
    });
    check(world, "Equal 1000 rows").await;
}

#[tokio::test(start_paused = true)]
async fn a_row_that_never_stands_still_is_unsettled() {
    let world = World::equal().change(|sides| {
        sides.target.insert(5, text("old", "5.5"));
        sides.at_every_look = Some(|sides| {
            sides.log += 1;
            let value = text(&format!("look {}", sides.log), "5.50");
            sides.source.insert(5, value);
        });
    });
    let report = check(world, "Different 1000 rows; 1 unsettled: id=5").await;
    assert!(report.tables[0].remedy.contains("less often"), "{}", report.tables[0].remedy);
    assert!(repairable(&report).is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_a_daemon_the_sides_are_compared_at_rest() {
    let world = World::equal().change(|sides| {
        sides.follows = false;
        sides.log = 15;
        sides.target.remove(&3);
    });
    let report = check(world, "Different 1000 rows; 1 missing: id=3").await;
    let note = "no daemon answers, so the two sides were compared at rest; the target stands at \
                log 10, 5 bytes of log behind the source; `driftless run --until-current` applies \
                what is missing";
    assert_eq!(report.notes, [note]);
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_stands_still_is_not_waited_for_without_end() {
    let world = World::equal().change(|sides| {
        sides.target.remove(&3);
        sides.at_marks.push_back(Box::new(|sides| sides.follows = false));
    });
    let report = check(world, "Different 1000 rows; 1 missing: id=3").await;
    assert!(report.notes[0].starts_with("the target's checkpoint does not move; "));
}

#[tokio::test(start_paused = true)]
async fn more_suspects_than_are_held_are_all_counted() {
    let world = World::equal().change(|sides| {
        sides.source = (1..=25_000).map(|id| (id, text("new", "1"))).collect();
    });
    let report = world.verify().await;
    let found = &report.tables[0].differences;
    assert_eq!((found.missing.count, found.differing.count), (24_000, 1000));
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
    let with = |status| World::equal().change(|sides| sides.status = status);
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
    let without_price = |price: &str| {
        let price = price.to_owned();
        World::equal().change(move |sides| {
            sides.known_columns = Some(2);
            sides.source.values_mut().for_each(|values| values.1 = price.clone());
        })
    };
    check(without_price("NULL"), "Equal 1000 rows").await;
    check_unproven(without_price("1"), "does not have yet: price").await;
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
        sides.target.remove(&400);
        sides.target.remove(&500);
        sides.target.insert(7, text("other", "7.5"));
    });
    let mut report = world.verify().await;
    let keys = repairable(&report);
    let world = world.change(|sides| {
        sides.target.insert(400, text("item 400", "400.5"));
        sides.target.insert(7, text("item 7", "7.5"));
    });
    let options = Options {
        pipeline: "shop".into(),
        tables: TablePatterns::parse(&["public.*"]).unwrap(),
        only: None,
        chunk_bytes: 2_000,
        daemon_runs: true,
    };
    let mut target = world.clone();
    let mut verifier = Verifier::open(&world, &mut target, options).await.unwrap();
    for (table, keys) in keys {
        report.replace(&table, verifier.compare_keys(&table, &keys).await.unwrap());
    }
    assert_eq!(summary(&report.tables[0]), "Different 1000 rows; 1 missing: id=500");
}

#[tokio::test(start_paused = true)]
async fn the_report_has_its_documented_json_and_text() {
    let world = World::equal().change(|sides| {
        sides.target.remove(&400);
        sides.target.insert(7, text("o\u{1b}[2Jther", "7.5"));
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
            "target_table": "items",
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
