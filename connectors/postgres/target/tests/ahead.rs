//! Batches that are staged ahead of their turn: used when they come as they were staged, and never to
//! anybody's harm.

use std::slice::from_ref;
use std::sync::Arc;

use super::support::*;
use crate::Target;
use crate::change::{Applied, TableBatch};
use crate::error::Code;

/// Updates of the rows that `fixture` begins with.
fn update(log: u64) -> Arc<TableBatch> {
    let text = format!("at {log}");
    Arc::new(part(&usual()).upsert(log, &["1", &text, "b"]).upsert(log, &["2", &text, "b"]))
}

/// A table with two rows, and a session that no longer expects them to be new ones.
async fn fixture() -> Fixture {
    let mut fixture = Fixture::with(&usual(), false).await;
    // A tombstone that is never collected: keys are staged, and nothing is tried as new.
    fixture.done(vec![part(&usual()).delete(1, &["9"])]).await;
    fixture
        .done(vec![part(&usual()).upsert(2, &["1", "a", "b"]).upsert(2, &["2", "a", "b"])])
        .await;
    fixture
}

impl Fixture {
    fn stage(&self, part: &Arc<TableBatch>) {
        self.target.ahead().unwrap().stage(from_ref(part));
    }

    async fn writer(&self) -> String {
        self.target.session.query("look", "SELECT pg_backend_pid()").await.unwrap()[0]
            .get(0)
            .unwrap()
            .to_owned()
    }

    /// Waits until the second session has staged something, and says which one it is.
    async fn staged(&self) -> String {
        let idle = format!(
            "SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction' \
             AND application_name = 'driftless p' AND query NOT LIKE 'BEGIN%' AND pid <> {}",
            self.writer().await
        );
        loop {
            if let [pid] = &self.look(&idle).await[..] {
                return pid.clone();
            }
        }
    }

    async fn texts(&self) -> Vec<String> {
        self.look("SELECT a FROM public.t ORDER BY k").await
    }
}

#[tokio::test]
async fn a_staged_batch_is_applied_by_the_session_that_staged_it() {
    let mut fixture = fixture().await;
    let batches: Vec<_> = (3..9).map(update).collect();
    let mut writers = vec![fixture.writer().await];
    for (place, batch) in batches.iter().enumerate() {
        let applied = fixture.apply_while_staging(batch, batches.get(place + 1)).await;
        assert_eq!(applied, Ok(Applied::Done));
        writers.push(fixture.writer().await);
    }
    assert_eq!(fixture.texts().await, ["at 8", "at 8"]);
    let [first, second] = [&writers[1], &writers[2]];
    assert_ne!(first, second);
    assert_eq!(writers.iter().filter(|writer| *writer == first).count(), 4, "{writers:?}");
    assert_eq!(writers.iter().filter(|writer| *writer == second).count(), 3, "{writers:?}");
}

#[tokio::test]
async fn rows_that_are_there_are_staged_even_if_new_ones_were_tried_before() {
    let mut fixture = Fixture::with(&usual(), false).await;
    fixture.floor = version(2);
    let batches: Vec<_> = (2..40).map(update).collect();
    let mut changes = 0;
    for (place, batch) in batches.iter().enumerate() {
        let before = fixture.writer().await;
        let applied = fixture.apply_while_staging(batch, batches.get(place + 1)).await;
        assert_eq!(applied, Ok(Applied::Done));
        changes += u32::from(fixture.writer().await != before);
    }
    assert_eq!(fixture.texts().await, ["at 39", "at 39"]);
    // Only those few are not staged that are tried as new rows, ever more rarely.
    assert!(changes > 25, "{changes} of 38 batches were staged");
}

#[tokio::test]
async fn a_batch_that_was_changed_since_is_not_what_was_staged() {
    let mut fixture = fixture().await;
    let mut batch = update(3);
    fixture.stage(&batch);
    Arc::make_mut(&mut batch).upserts.truncate(1);
    assert_eq!(fixture.apply_parts(vec![batch]).await, Ok(Applied::Done));
    assert_eq!(fixture.texts().await, ["at 3", "a"]);
}

#[tokio::test]
async fn what_is_never_applied_leaves_no_transaction_open() {
    let mut fixture = fixture().await;
    fixture.stage(&update(3));
    let pid = fixture.staged().await;
    fixture.target.ahead().unwrap().discard();
    let state = format!("SELECT state FROM pg_stat_activity WHERE pid = {pid}");
    while fixture.look(&state).await != ["idle"] {}
    fixture.done(vec![part(&usual()).upsert(4, &["1", "later", "b"])]).await;
    assert_eq!(fixture.texts().await, ["later", "a"]);
}

#[tokio::test]
async fn a_second_session_that_is_lost_is_not_missed() {
    let mut fixture = fixture().await;
    let batch = update(3);
    fixture.stage(&batch);
    let pid = fixture.staged().await;
    fixture.execute(&format!("SELECT pg_terminate_backend({pid}, 10000)")).await;
    assert_eq!(fixture.apply_parts(vec![batch]).await, Ok(Applied::Done));
    assert_eq!(fixture.texts().await, ["at 3", "at 3"]);
}

#[tokio::test]
async fn the_lock_of_a_lost_session_is_taken_again() {
    let mut fixture = fixture().await;
    let (first, second) = (update(3), update(4));
    let holder = fixture.writer().await;
    fixture.stage(&first);
    assert_eq!(fixture.apply_parts(vec![first]).await, Ok(Applied::Done));
    assert_ne!(fixture.writer().await, holder);
    fixture.execute(&format!("SELECT pg_terminate_backend({holder}, 10000)")).await;
    fixture.stage(&second);
    assert_eq!(fixture.apply_parts(vec![second]).await, Ok(Applied::Done));
    fixture.done(vec![]).await;
    let holders = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted";
    assert_eq!(fixture.look(holders).await, [fixture.writer().await]);
}

#[tokio::test]
async fn a_row_that_is_refused_is_named_as_ever() {
    let mut fixture = fixture().await;
    fixture.execute("ALTER TABLE public.t ADD CHECK (a <> 'bad')").await;
    let bad = Arc::new(part(&usual()).upsert(3, &["1", "bad", "b"]).upsert(3, &["2", "good", "b"]));
    fixture.stage(&bad);
    let refused = fixture.apply_parts(vec![bad]).await.unwrap_err();
    assert_eq!(refused.code, Code::PoisonRow, "{refused}");
    fixture.done(vec![part(&usual()).upsert(4, &["2", "good", "b"])]).await;
    assert_eq!(fixture.texts().await, ["a", "good"]);
}

#[tokio::test]
async fn a_value_without_a_binary_form_is_staged_as_text_the_next_time() {
    let table = table("t", &["k bigint", "a numeric", "b text"]);
    let mut fixture = Fixture::with(&table, false).await;
    fixture.done(vec![part(&table).delete(1, &["9"])]).await;
    // Two batches each: the second one finds a session that knows.
    for log in 2..6 {
        let batch = Arc::new(part(&table).upsert(log, &["1", " 1.5", &log.to_string()]));
        fixture.stage(&batch);
        assert_eq!(fixture.apply_parts(vec![batch]).await, Ok(Applied::Done));
        let rows = fixture.look("SELECT a, b FROM public.t").await;
        assert_eq!(rows, [format!("1.5|{log}")]);
    }
}

#[tokio::test]
async fn a_tombstone_that_comes_in_between_outranks_what_was_staged_before_it() {
    let mut fixture = Fixture::with(&usual(), false).await;
    // Nothing older than the second version can come any more, so nobody looks for tombstones.
    fixture.floor = version(2);
    fixture
        .done(vec![part(&usual()).upsert(2, &["1", "a", "b"]).upsert(2, &["2", "a", "b"])])
        .await;
    fixture.done(vec![]).await;
    // With a delete it cannot be all new rows, so it is staged; and without keys.
    let old = Arc::new(TableBatch::clone(&update(3)).delete(3, &["7"]));
    fixture.stage(&old);
    fixture.staged().await;
    fixture.done(vec![part(&usual()).delete(4, &["1"])]).await;
    assert_eq!(fixture.apply_parts(vec![old]).await, Ok(Applied::Done));
    assert_eq!(fixture.texts().await, ["at 3"]);
}

#[tokio::test]
async fn a_new_claim_ends_the_second_session() {
    let mut fixture = fixture().await;
    fixture.stage(&update(3));
    let pid = fixture.staged().await;
    fixture.target.claim(&claim_as("us")).await.unwrap();
    let there = format!("SELECT pid FROM pg_stat_activity WHERE pid = {pid}");
    while !fixture.look(&there).await.is_empty() {}
    fixture.done(vec![part(&usual()).upsert(4, &["1", "later", "b"])]).await;
    assert_eq!(fixture.texts().await, ["later", "a"]);
}
