//! Random histories against a model: a map from key to the change with the greatest version.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::support::{Fixture, at, delete, key, simple, upsert};
use crate::change::{Applied, Batch, Key, RowUpsert, Timestamp};
use crate::version::Version;

const KEYS: i64 = 4;

#[derive(Clone, Debug)]
enum Op {
    Upsert(i64),
    /// Only column `a`.
    Partial(i64),
    Delete(i64),
    Truncate,
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..KEYS).prop_map(Op::Upsert),
        3 => (0..KEYS).prop_map(Op::Partial),
        3 => (0..KEYS).prop_map(Op::Delete),
        1 => Just(Op::Truncate),
    ]
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Puts the change with this version into the batch, if a batch can still have it.
fn add(batch: &mut Batch, op: &Op, version: Version, cells: &[&str]) -> bool {
    let part = Arc::make_mut(&mut batch.tables[0]);
    let taken: BTreeSet<&Key> = part
        .deletes
        .iter()
        .map(|delete| &delete.key)
        .chain(part.upserts.iter().map(|upsert| &upsert.key))
        .collect();
    match op {
        Op::Upsert(id) | Op::Partial(id) if !taken.contains(&key(*id)) => {
            part.upserts.push(upsert(*id, version, cells));
        }
        Op::Delete(id) if !taken.contains(&key(*id)) => part.deletes.push(delete(*id, version)),
        Op::Truncate if part.truncated.is_none() => {
            part.truncated = Some((version, Timestamp(version.log as i64)));
        }
        _ => return false,
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_order_any_batches_and_duplicates_end_at_the_greatest_versions(
        ops in prop::collection::vec(any_op(), 1..16),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        seed in any::<u64>(),
        soft in any::<bool>(),
    ) {
        // Every change at least once, some again, in an order that the seed shuffles.
        let mut order: Vec<usize> =
            (0..ops.len()).chain(order.iter().map(|index| index.index(ops.len()))).collect();
        order.sort_by_key(|&index| {
            (index as u64 + 1).wrapping_mul(seed | 1).rotate_left(seed as u32 % 64)
        });
        block_on(check_order(&ops, &order, seed, soft))?;
    }

    #[test]
    fn a_log_with_a_late_backfill_ends_equal_to_the_source(history in any_history()) {
        block_on(check_history(&history))?;
    }
}

/// Whole rows, deletions and truncations commute.
async fn check_order(
    ops: &[Op],
    order: &[usize],
    seed: u64,
    soft: bool,
) -> Result<(), TestCaseError> {
    let mut f = Fixture::new(simple(), soft).await;
    let mut batch = f.batch(vec![], vec![]);
    for (step, &index) in order.iter().enumerate() {
        let (op, value) = (&ops[index], format!("v{index}"));
        let version = at(index as u64 + 1);
        let cut = (seed >> (step % 60)) & 3 == 0;
        if cut || !add(&mut batch, op, version, &[&value, &value]) {
            prop_assert_eq!(f.apply(&batch).await.unwrap(), Applied::Done);
            batch = f.batch(vec![], vec![]);
            prop_assert!(add(&mut batch, op, version, &[&value, &value]));
        }
    }
    prop_assert_eq!(f.apply(&batch).await.unwrap(), Applied::Done);
    let mut expected = BTreeMap::new();
    for (index, op) in ops.iter().enumerate() {
        match op {
            Op::Upsert(id) | Op::Partial(id) => {
                expected.insert(id, format!("{id} v{index} v{index} @{}", index + 1));
            }
            Op::Delete(id) => drop(expected.remove(id)),
            Op::Truncate => expected.clear(),
        }
    }
    prop_assert_eq!(f.rows().await, expected.into_values().collect::<Vec<_>>());
    Ok(())
}

/// A source with rows from before the log, its log, and a backfill that is read at one place of
/// the log and delivered, once or twice, at later ones.
#[derive(Clone, Debug)]
struct History {
    ops: Vec<Op>,
    /// Rows that exist before the first change.
    old: BTreeSet<i64>,
    read_at: usize,
    delivered_at: (usize, usize),
    /// Where batches end, as bits.
    cuts: u64,
    soft: bool,
}

fn any_history() -> impl Strategy<Value = History> {
    let ops = prop::collection::vec(any_op(), 1..20);
    (ops, prop::collection::btree_set(0..KEYS, 0..4), any::<[prop::sample::Index; 3]>())
        .prop_flat_map(|(ops, old, places)| {
            let mut places = places.map(|place| place.index(ops.len() + 1));
            places.sort_unstable();
            let [read_at, first, second] = places;
            (Just((ops, old, read_at, (first, second))), any::<u64>(), any::<bool>())
        })
        .prop_map(|((ops, old, read_at, delivered_at), cuts, soft)| History {
            ops,
            old,
            read_at,
            delivered_at,
            cuts,
            soft,
        })
}

type Rows = BTreeMap<i64, [String; 2]>;

/// A change with the cells that the log carries.
type Logged = (Op, [String; 2]);

impl History {
    /// The source after each number of changes, and the changes that really happened.
    fn states(&self) -> (Vec<Rows>, Vec<Option<Logged>>) {
        let old = |&id: &i64| (id, ["old".to_owned(), "old".to_owned()]);
        let mut rows: Rows = self.old.iter().map(old).collect();
        let (mut states, mut log) = (vec![rows.clone()], Vec::new());
        for (index, op) in self.ops.iter().enumerate() {
            let value = format!("v{index}");
            let whole = [value.clone(), value.clone()];
            let logged = match op {
                Op::Upsert(id) => {
                    rows.insert(*id, whole.clone());
                    Some((op.clone(), whole))
                }
                Op::Partial(id) => rows.get_mut(id).map(|row| {
                    row[0] = value.clone();
                    (op.clone(), [value, "?".into()])
                }),
                Op::Delete(id) => rows.remove(id).map(|_| (op.clone(), whole)),
                Op::Truncate => {
                    rows.clear();
                    Some((op.clone(), whole))
                }
            };
            states.push(rows.clone());
            log.push(logged);
        }
        (states, log)
    }
}

async fn check_history(history: &History) -> Result<(), TestCaseError> {
    let (states, log) = history.states();
    let mut f = Fixture::new(simple(), history.soft).await;
    let (first, second) = history.delivered_at;
    let mut batch = f.batch(vec![], vec![]);
    for place in 0..=log.len() {
        let backfilling = place >= history.read_at && place <= second;
        if place == history.read_at || place == first || place == second {
            // Nothing decoded may be waiting when the chunk is read or delivered.
            deliver(&mut f, batch, &states[place]).await?;
            f.floor = Version::at_log(1, if backfilling { history.read_at } else { place } as u64);
            for _ in [first, second].iter().filter(|&&delivered_at| delivered_at == place) {
                let mut chunk = f.batch(vec![], vec![]);
                for (id, row) in &states[history.read_at] {
                    let version = Version::at_log(1, history.read_at as u64);
                    add(&mut chunk, &Op::Upsert(*id), version, &[&row[0], &row[1]]);
                }
                deliver(&mut f, chunk, &states[place]).await?;
            }
            batch = f.batch(vec![], vec![]);
        }
        let Some(Some((op, cells))) = log.get(place) else { continue };
        let version = at(place as u64 + 1);
        let cells = [cells[0].as_str(), cells[1].as_str()];
        if (history.cuts >> place) & 1 == 0 || !add(&mut batch, op, version, &cells) {
            deliver(&mut f, batch, &states[place]).await?;
            if !backfilling {
                f.floor = Version::at_log(1, place as u64);
            }
            batch = f.batch(vec![], vec![]);
            prop_assert!(add(&mut batch, op, version, &cells));
        }
    }
    deliver(&mut f, batch, &states[log.len()]).await?;
    let shown: Vec<String> = f.rows().await;
    let found: Vec<&str> = shown.iter().filter_map(|row| row.split(" @").next()).collect();
    let line = |(id, row): (&i64, &[String; 2])| format!("{id} {} {}", row[0], row[1]);
    let expected: Vec<String> = states[log.len()].iter().map(line).collect();
    prop_assert_eq!(found, expected);
    Ok(())
}

/// Applies as the engine does: rows that are asked for are read from the source as it is now, and
/// a row that is not there has its delete still to come.
async fn deliver(f: &mut Fixture, mut batch: Batch, source: &Rows) -> Result<(), TestCaseError> {
    if let Applied::NeedsRows(tables) = f.apply(&batch).await.unwrap() {
        let wanted: BTreeSet<_> = tables.into_iter().flat_map(|(_, keys)| keys).collect();
        let part = Arc::make_mut(&mut batch.tables[0]);
        let (incomplete, complete): (Vec<RowUpsert>, Vec<RowUpsert>) =
            part.upserts.drain(..).partition(|upsert| wanted.contains(&upsert.key));
        part.upserts = complete;
        for (id, row) in source {
            if let Some(old) = incomplete.iter().find(|upsert| upsert.key == key(*id)) {
                part.upserts.push(upsert(*id, old.version, &[&row[0], &row[1]]));
            }
        }
        prop_assert_eq!(f.apply(&batch).await.unwrap(), Applied::Done);
    }
    // Applying it twice is the same as once.
    prop_assert_eq!(f.apply(&batch).await.unwrap(), Applied::Done);
    Ok(())
}
