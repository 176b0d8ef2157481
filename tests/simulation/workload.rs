//! Those who use the source, and those who meddle with the target, while the engine runs.

use std::time::Duration;

use connectors::change::{Cell, Key, Row};
use connectors::error::Code;
use connectors::memory::Op;
use connectors::schema::{TableName, TableSchema};
use driftless::control::{Ask, Request};
use tokio::sync::mpsc;

use crate::watch::PIPELINE;
use crate::world::{World, column, key};

/// Whether somebody changes rows in the target, or makes it refuse some.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meddling {
    pub damage: bool,
    pub poison: bool,
}

/// Works until so many steps are done.
pub async fn work(world: &World, steps: usize, meddling: Meddling) {
    for _ in 0..steps {
        let pause = [0, 0, 1, 5, 20, 300, 2500][world.random.below(7)];
        match pause {
            0 => tokio::task::yield_now().await,
            millis => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
        step(world, meddling);
        world.look("after a step of the workload");
    }
}

fn step(world: &World, meddling: Meddling) {
    let random = &world.random;
    let Some(table) = random.pick(&world.tables) else { return };
    match random.below(100) {
        0..=1 => add_column(world, table),
        2..=3 => commit(world, &[Op::Truncate { table: table.clone() }]),
        4..=6 => commit(world, &[]),
        7..=20 => show_one(world),
        21..=24 => ask(world, table),
        25..=27 if meddling.damage => damage(world, table),
        28 if meddling.poison => poison(world, table),
        _ => transaction(world),
    }
}

fn transaction(world: &World) {
    let random = &world.random;
    let mut ops = Vec::new();
    for _ in 0..random.between(1, 4) {
        let Some(table) = random.pick(&world.tables) else { return };
        ops.extend(operation(world, table));
    }
    commit(world, &ops);
}

/// A statement that may well conflict with what is there; then the transaction is not made.
fn operation(world: &World, table: &TableName) -> Option<Op> {
    let random = &world.random;
    let schema = world.source.schema(table)?;
    let rows: Vec<Key> = world.source.rows(table).into_keys().collect();
    let number = random.between(1, world.setup.keys);
    let table = table.clone();
    let known = random.pick(&rows).cloned();
    match (random.below(10), known) {
        (0..=3, _) | (_, None) => {
            let row = any_row(world, &schema, number, false);
            Some(Op::Insert { table, row })
        }
        (4..=6, Some(key)) => {
            let number = String::from_utf8_lossy(key.values().next()?).parse().ok()?;
            let row = any_row(world, &schema, number, true);
            Some(Op::Update { table, key, row })
        }
        (7, Some(key)) => {
            let row = any_row(world, &schema, number, true);
            Some(Op::Update { table, key, row })
        }
        (_, Some(key)) => Some(Op::Delete { table, key }),
    }
}

fn any_row(world: &World, schema: &TableSchema, number: usize, partly: bool) -> Row {
    let random = &world.random;
    let number = number.to_string();
    let values: Vec<String> = schema.columns.iter().map(|_| random.below(4).to_string()).collect();
    let cell = |place: usize| match random.below(10) {
        _ if place == 0 => Cell::Value(number.as_bytes()),
        0..=2 if partly => Cell::Absent,
        3 => Cell::Null,
        _ => Cell::Value(values[place].as_bytes()),
    };
    Row::from_cells((0..schema.columns.len()).map(cell))
}

/// Most commits are visible at once, some later.
fn commit(world: &World, ops: &[Op]) {
    let Ok(xid) = world.source.commit(ops) else { return };
    let shown = world.random.permille(700);
    world.tell(|| format!("commit {xid} at {}, shown: {shown}: {ops:?}", world.source.head()));
    if shown {
        world.source.show(xid);
    }
}

fn show_one(world: &World) {
    if let Some(xid) = world.random.pick(&world.source.pending()) {
        world.tell(|| format!("show {xid}"));
        world.source.show(*xid);
    }
}

fn add_column(world: &World, table: &TableName) {
    let number = {
        let mut state = world.state();
        state.columns_added += 1;
        state.columns_added
    };
    if number > 4 {
        return;
    }
    let value = world.random.permille(500).then(|| b"default".to_vec());
    let column = column(&format!("c{number}"), 100 + number);
    let mut ops = vec![Op::AddColumn { table: table.clone(), column, value }];
    if world.random.permille(300) {
        // The log tells of the column, and a process that starts before it shows takes it for
        // a dropped one: it stops the table, which is safe.
        world.watch.may_stop(Code::SchemaChange);
        ops.extend(operation(world, table));
    }
    commit(world, &ops);
}

fn ask(world: &World, table: &TableName) {
    let random = &world.random;
    let request = match random.below(4) {
        0 => Request::Backfill { tables: Vec::new(), filter: None },
        1 => Request::Backfill { tables: vec![table.to_string()], filter: None },
        2 => {
            let filter = Some(format!("g = '{}'", random.below(4)));
            Request::Backfill { tables: vec![table.to_string()], filter }
        }
        _ => {
            let keys = (0..3).map(|_| key(random.between(1, world.setup.keys))).collect();
            Request::Repair { table: table.clone(), keys }
        }
    };
    world.tell(|| format!("ask {request:?}"));
    // Whether it is done is looked at elsewhere; this one does not wait for the answer.
    let (reply, _) = mpsc::channel(1);
    if let Some(asks) = &world.state().asks {
        let _ = asks.try_send(Ask { request, reply });
    }
}

fn damage(world: &World, table: &TableName) {
    let random = &world.random;
    let Some(remembered) = world.target.remembered(PIPELINE) else { return };
    let (Some(checkpoint), Some(record)) = (remembered.checkpoint, remembered.tables.get(table))
    else {
        return;
    };
    let number = random.between(1, world.setup.keys);
    let row = random.permille(600).then(|| any_row(world, &record.schema, number, false));
    world.tell(|| format!("damage {table} {number}, row: {}", row.is_some()));
    world.target.damage(&record.schema, &key(number), row.as_ref(), checkpoint.version);
    world.state().damaged.push(table.clone());
}

fn poison(world: &World, table: &TableName) {
    let key = key(world.random.between(1, world.setup.keys));
    world.tell(|| format!("poison {table}"));
    world.watch.may_stop(Code::PoisonRow);
    world.target.refuse(table, &key);
    world.state().poisoned.push((table.clone(), key));
}
