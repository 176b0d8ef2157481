//! Random batches against a map from key to the greatest version; many are brought ahead of their turn,
//! whether or not they are applied then.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::support::*;
use crate::change::Applied;
use crate::testing::histories::{Act, History, any_act, any_history, any_upsert, bring_forward};
use crate::version::Version;

async fn run(fixture: &mut Fixture, soft: bool, history: &History) {
    fixture.execute("TRUNCATE t;\n DELETE FROM _cdc_tombstone").await;
    let mut batches = history.batches();
    for place in 0..batches.len() {
        let (done, rest) = batches.split_at_mut(place + 1);
        let (batch, mut next) = (&done[place], rest.first_mut().filter(|_| place % 4 != 3));
        let independent = next.as_deref_mut().map_or(0, |next| bring_forward(next, batch));
        let applied = fixture.apply_while_bringing(batch, next.as_deref(), independent).await;
        assert_eq!(applied, Ok(Applied::Done));
    }
    let live = if soft { " WHERE NOT _cdc_deleted" } else { "" };
    let rows = fixture.look(&format!("SELECT k, a, b FROM t{live} ORDER BY k")).await;
    assert_eq!(rows, history.rows());
}

fn check_any_order(soft: bool, floor: Version, act: impl Strategy<Value = Act>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut fixture = runtime.block_on(Fixture::with(&usual(), soft));
    fixture.floor = floor;
    let fixture = std::cell::RefCell::new(fixture);
    let config = Config { cases: 120, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&any_history(act), |history| {
            runtime.block_on(run(&mut fixture.borrow_mut(), soft, &history));
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
    let all = "SELECT * FROM t";
    let before = fixture.look(all).await;
    assert_eq!(fixture.apply(vec![batch()]).await, Ok(Applied::Done));
    assert_eq!(fixture.look(all).await, before);
}
