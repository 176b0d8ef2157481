//! Random batches against a map from key to the greatest version: those that a loader may write are
//! written by one, every other time, and many are brought ahead of their turn, whether or not they are
//! applied then. Values come as text, or in binary.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::support::*;
use crate::Target;
use crate::change::{Applied, TableBatch};
use crate::postgres::target::PostgresTarget;
use crate::testing::histories::{Act, History, any_act, any_history, any_upsert, bring_forward};
use crate::version::Version;

async fn deliver(
    fixture: &mut Fixture,
    loader: &mut PostgresTarget,
    batch: &Arc<TableBatch>,
    mut next: Option<&mut Arc<TableBatch>>,
) {
    // A loader is kept away from a table whose rows are written early.
    let early = next.as_deref_mut().filter(|next| !is_loaded(next));
    let independent = early.map_or(0, |next| bring_forward(next, batch));
    match is_loaded(batch) {
        true => assert_eq!(loader.load(batch).await, Ok(())),
        false => {
            let applied = fixture.apply_while_bringing(batch, next.as_deref(), independent).await;
            assert_eq!(applied, Ok(Applied::Done));
        }
    }
}

fn is_loaded(batch: &TableBatch) -> bool {
    let only_rows = batch.truncated.is_none() && batch.deletes.is_empty();
    only_rows && batch.upserts.len() % 2 == 1
}

async fn run((fixture, loader): &mut (Fixture, PostgresTarget), soft: bool, history: &History) {
    fixture.execute("TRUNCATE public.t; DELETE FROM public._cdc_tombstone").await;
    let mut batches = history.batches();
    for (place, batch) in batches.iter_mut().enumerate() {
        if place % 3 == 0 {
            *batch = Arc::new(in_binary((**batch).clone()));
        }
    }
    for place in 0..batches.len() {
        let (done, rest) = batches.split_at_mut(place + 1);
        let next = rest.first_mut().filter(|_| place % 4 != 3);
        deliver(fixture, loader, &done[place], next).await;
    }
    let live = if soft { " WHERE NOT _cdc_deleted" } else { "" };
    let rows = fixture.look(&format!("SELECT k, a, b FROM public.t{live} ORDER BY k")).await;
    assert_eq!(rows, history.rows());
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
