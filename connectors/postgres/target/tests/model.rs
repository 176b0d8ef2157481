//! Random batches against a map from key to the greatest version: split anywhere, repeated, in
//! any order; those that a loader may write are written by one, every other time, and many are staged
//! ahead of their turn, whether or not they are applied then.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::support::*;
use crate::Target;
use crate::change::{Applied, Key, TableBatch};
use crate::postgres::target::PostgresTarget;
use crate::version::Version;

/// A change at a version of its own: a row with its text, a delete, or a truncation.
#[derive(Clone, Debug)]
enum Act {
    Upsert(u8, u8),
    Delete(u8),
    Truncate,
}

fn any_upsert() -> impl Strategy<Value = Act> {
    (0..5u8, any::<u8>()).prop_map(|(key, value)| Act::Upsert(key, value))
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => any_upsert(),
        3 => (0..5u8).prop_map(Act::Delete),
        1 => Just(Act::Truncate),
    ]
}

/// The order of delivery, as places in the list of acts; a negative weight ends a batch.
fn any_history(
    act: impl Strategy<Value = Act>,
) -> impl Strategy<Value = (Vec<Act>, Vec<(prop::sample::Index, bool)>)> {
    let acts = proptest::collection::vec(act, 1..14);
    let extra = proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..14);
    (acts, extra)
}

/// What the table must hold in the end: the greatest version of each key, truncations included.
fn oracle(acts: &[Act]) -> Vec<String> {
    let mut rows: BTreeMap<u8, String> = BTreeMap::new();
    for (place, act) in acts.iter().enumerate() {
        match act {
            Act::Upsert(key, value) => {
                rows.insert(*key, format!("{key}|v{value}|{}", place + 1));
            }
            Act::Delete(key) => {
                rows.remove(key);
            }
            Act::Truncate => rows.clear(),
        }
    }
    rows.into_values().collect()
}

/// The acts at these places as one batch: one change a key, the greater version.
fn batch_of(acts: &[Act], places: &[usize]) -> TableBatch {
    let mut batch = part(&usual());
    let mut last: BTreeMap<u8, usize> = BTreeMap::new();
    let mut truncated = None;
    for &place in places {
        match acts[place] {
            Act::Upsert(key, _) | Act::Delete(key) => {
                let newest = last.entry(key).or_default();
                *newest = place.max(*newest);
            }
            Act::Truncate => truncated = truncated.max(Some(place)),
        }
    }
    if let Some(place) = truncated {
        batch = batch.truncate(place as u64 + 1);
    }
    for (key, place) in last {
        let (log, key) = (place as u64 + 1, key.to_string());
        batch = match acts[place] {
            Act::Upsert(_, value) => {
                batch.upsert(log, &[&key, &format!("v{value}"), &log.to_string()])
            }
            _ => batch.delete(log, &[&key]),
        };
    }
    batch
}

async fn deliver(
    fixture: &mut Fixture,
    loader: &mut PostgresTarget,
    batch: &Arc<TableBatch>,
    mut next: Option<&mut Arc<TableBatch>>,
) {
    let independent = next.as_deref_mut().map_or(0, |next| bring_forward(next, batch));
    match is_loaded(batch) {
        true => assert_eq!(loader.load(batch).await, Ok(())),
        false => {
            let applied = fixture.apply_while_staging(batch, next.as_deref(), independent).await;
            assert_eq!(applied, Ok(Applied::Done));
        }
    }
}

fn is_loaded(batch: &TableBatch) -> bool {
    let only_rows = batch.truncated.is_none() && batch.deletes.is_empty();
    only_rows && batch.upserts.len() % 2 == 1
}

/// Moves the rows that do not depend on the batch in front before the others, and counts them.
fn bring_forward(next: &mut Arc<TableBatch>, batch: &TableBatch) -> usize {
    if is_loaded(next) || next.truncated.is_some() || batch.truncated.is_some() {
        return 0;
    }
    let deleted = batch.deletes.iter().map(|delete| &delete.key);
    let touched: Vec<&Key> = batch.upserts.iter().map(|row| &row.key).chain(deleted).collect();
    let upserts = &mut Arc::make_mut(next).upserts;
    upserts.sort_by_key(|row| touched.contains(&&row.key));
    upserts.partition_point(|row| !touched.contains(&&row.key))
}

async fn run(
    (fixture, loader): &mut (Fixture, PostgresTarget),
    soft: bool,
    history: &(Vec<Act>, Vec<(prop::sample::Index, bool)>),
) {
    let (acts, extra) = history;
    // Every act once, at a random place among repetitions.
    let mut order: Vec<(usize, bool)> =
        (0..acts.len()).map(|place| (place, place % 3 == 0)).collect();
    for (index, ends) in extra {
        let at = index.index(order.len());
        order.swap(at, 0);
        order.push((index.index(acts.len()), *ends));
    }
    fixture.execute("TRUNCATE public.t; DELETE FROM public._cdc_tombstone").await;
    let mut places = Vec::new();
    let mut batches = Vec::new();
    for (place, ends) in order {
        places.push(place);
        if ends {
            batches.push(Arc::new(batch_of(acts, &places)));
            places.clear();
        }
    }
    batches.push(Arc::new(batch_of(acts, &places)));
    for place in 0..batches.len() {
        let (done, rest) = batches.split_at_mut(place + 1);
        let next = rest.first_mut().filter(|_| place % 4 != 3);
        deliver(fixture, loader, &done[place], next).await;
    }
    let live = if soft { " WHERE NOT _cdc_deleted" } else { "" };
    let rows = fixture.look(&format!("SELECT k, a, b FROM public.t{live} ORDER BY k")).await;
    assert_eq!(rows, oracle(acts));
}

fn check_any_order(soft: bool, floor: Version, act: impl Strategy<Value = Act>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sessions = runtime.block_on(async {
        let mut fixture = Fixture::with(&usual(), soft).await;
        fixture.floor = floor;
        let loader = fixture.loader(1).await;
        std::cell::RefCell::new((fixture, loader))
    });
    let config = Config { cases: 120, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&any_history(act), |history| {
            runtime.block_on(run(&mut sessions.borrow_mut(), soft, &history));
            Ok(())
        })
        .unwrap();
}

#[test]
fn any_order_any_split_and_any_repetition_give_the_greatest_version() {
    check_any_order(false, Version::ZERO, any_act());
}

#[test]
fn the_same_holds_when_deleted_rows_stay() {
    check_any_order(true, Version::ZERO, any_act());
}

/// Without a tombstone, most rows are written before their turn.
#[test]
fn the_same_holds_for_rows_that_are_written_early() {
    check_any_order(false, version(1), any_upsert());
}

#[tokio::test]
async fn a_batch_applied_twice_is_applied_once() {
    let mut fixture = Fixture::with(&usual(), false).await;
    let batch = || part(&usual()).truncate(3).delete(4, &["1"]).upsert(5, &["2", "a", "b"]);
    assert_eq!(fixture.apply(vec![batch()]).await, Ok(Applied::Done));
    let all = "SELECT * FROM public.t";
    let before = fixture.look(all).await;
    assert_eq!(fixture.apply(vec![batch()]).await, Ok(Applied::Done));
    assert_eq!(fixture.look(all).await, before);
}
