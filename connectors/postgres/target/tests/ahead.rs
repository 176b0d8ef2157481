//! Batches that are staged ahead of their turn: used when they come as they were staged, and never to
//! anybody's harm.

use std::sync::Arc;

use futures_util::future::join;

use super::support::*;
use crate::change::{Applied, TableBatch};
use crate::error::Code;
use crate::{Prepared, Target};

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
        self.bring(part, 0);
    }

    fn bring(&self, part: &Arc<TableBatch>, independent: usize) {
        bring(&*self.target.ahead().unwrap(), part, independent);
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
        let applied = fixture.apply_while_bringing(batch, batches.get(place + 1), 0).await;
        assert_eq!(applied, Ok(Applied::Done));
        writers.push(fixture.writer().await);
    }
    assert_eq!(fixture.texts().await, ["at 8", "at 8"]);
    for two in writers[1..].windows(2) {
        assert_ne!(two[0], two[1], "{writers:?}");
    }
    writers.sort();
    writers.dedup();
    assert!(writers.len() <= 3, "{writers:?}");
}

#[tokio::test]
async fn rows_that_are_there_are_staged_even_if_new_ones_were_tried_before() {
    let mut fixture = Fixture::with(&usual(), false).await;
    fixture.floor = version(2);
    let batches: Vec<_> = (2..40).map(update).collect();
    let mut changes = 0;
    for (place, batch) in batches.iter().enumerate() {
        let before = fixture.writer().await;
        let applied = fixture.apply_while_bringing(batch, batches.get(place + 1), 0).await;
        assert_eq!(applied, Ok(Applied::Done));
        changes += u32::from(fixture.writer().await != before);
    }
    assert_eq!(fixture.texts().await, ["at 39", "at 39"]);
    // Only those few are not staged that are tried as new rows, ever more rarely.
    assert!(changes > 25, "{changes} of 38 batches were staged");
}

/// A table with rows 1 and 2, in which nobody looks for tombstones.
async fn settled() -> Fixture {
    let mut fixture = Fixture::with(&usual(), false).await;
    fixture.floor = version(2);
    let rows = part(&usual()).upsert(2, &["1", "a", "b"]).upsert(2, &["2", "a", "b"]);
    fixture.done(vec![rows]).await;
    fixture.done(vec![]).await;
    fixture
}

impl Fixture {
    /// The rows that somebody else could lock.
    async fn unlocked(&self) -> Vec<String> {
        self.look("SELECT k, a FROM public.t ORDER BY k FOR UPDATE SKIP LOCKED").await
    }

    /// Brings a part that depends on nothing, and waits until it is written.
    async fn bring_all(&self, part: &Arc<TableBatch>) {
        self.bring(part, part.upserts.len());
        while !self.unlocked().await.is_empty() {}
    }
}

#[tokio::test]
async fn independent_rows_are_written_before_their_turn_and_seen_at_it() {
    let mut fixture = settled().await;
    let rows = part(&usual()).upsert(3, &["1", "early", "b"]).upsert(3, &["3", "early", "b"]);
    let rows = Arc::new(rows.upsert(3, &["2", "at its turn", "b"]).delete(3, &["4"]));
    fixture.bring(&rows, 2);
    while fixture.unlocked().await != ["2|a"] {}
    assert_eq!(fixture.texts().await, ["a", "a"]);
    fixture.execute("INSERT INTO public.t VALUES (4, 'x', 'x', '\\x00', now())").await;
    assert_eq!(fixture.apply_parts(vec![rows]).await, Ok(Applied::Done));
    assert_eq!(fixture.texts().await, ["early", "at its turn", "early"]);
}

#[tokio::test]
async fn new_rows_are_copied_before_their_turn_and_the_others_follow() {
    let mut fixture = settled().await;
    let rows = part(&usual()).upsert(4, &["4", "new", "b"]).upsert(4, &["5", "new", "b"]);
    let rows = Arc::new(rows.upsert(4, &["2", "newer", "b"]));
    fixture.bring(&rows, 2);
    let pid = fixture.staged().await;
    while fixture.look(HAVE_COPIED).await != ["1"] {}
    assert_eq!(fixture.unlocked().await, ["1|a", "2|a"]);
    assert_eq!(fixture.apply_parts(vec![rows]).await, Ok(Applied::Done));
    assert_eq!(fixture.texts().await, ["a", "newer", "new", "new"]);
    assert_eq!(fixture.writer().await, pid);
}

/// How many sessions have copied rows into a table and wait for their turn.
const HAVE_COPIED: &str = "SELECT count(*) FROM pg_stat_activity \
    WHERE application_name = 'driftless p' AND state = 'idle in transaction' \
    AND query LIKE 'COPY \"public\"%'";

#[tokio::test]
async fn rows_written_early_are_taken_back_for_any_other_batch() {
    let mut fixture = settled().await;
    let early = update(9);
    fixture.bring_all(&early).await;
    let other = part(&usual()).upsert(4, &["1", "other", "b"]);
    fixture.done(vec![other]).await;
    assert_eq!(fixture.texts().await, ["other", "a"]);
    fixture.bring_all(&early).await;
    fixture.done(vec![]).await;
    assert_eq!(fixture.unlocked().await, ["1|other", "2|a"]);
    assert_eq!(fixture.apply_parts(vec![early]).await, Ok(Applied::Done));
    assert_eq!(fixture.texts().await, ["at 9", "at 9"]);
}

#[tokio::test]
async fn a_table_is_altered_although_rows_were_written_early() {
    let mut fixture = settled().await;
    fixture.bring_all(&update(9)).await;
    let wider = table("t", &["k bigint", "a text", "b text", "c text"]);
    let prepared = fixture.target.prepare(&wider).await.unwrap();
    assert_eq!(prepared, Prepared::Added(vec!["c".into()]));
    assert_eq!(fixture.texts().await, ["a", "a"]);
}

#[tokio::test]
async fn a_batch_that_waits_for_the_one_after_it_is_let_through() {
    let mut fixture = settled().await;
    fixture.execute("CREATE UNIQUE INDEX ON public.t (b) WHERE k > 2").await;
    let first = Arc::new(part(&usual()).upsert(3, &["1", "first", "b"]).upsert(3, &["3", "", "c"]));
    let next = Arc::new(part(&usual()).upsert(4, &["4", "next", "c"]));
    let (blocker, watcher) = (fixture.database.client().await, fixture.database.client().await);
    blocker.batch_execute("BEGIN; DELETE FROM public.t WHERE k = 1").await.unwrap();
    let ahead = fixture.target.ahead().unwrap();
    let (applied, ()) = join(fixture.apply_parts(vec![first]), async {
        bring(&*ahead, &next, 1);
        while look(&watcher, HAVE_COPIED).await != ["1"] {}
        blocker.batch_execute("ROLLBACK").await.unwrap();
    })
    .await;
    assert_eq!(applied, Ok(Applied::Done));
    assert_eq!(fixture.texts().await, ["first", "a", ""]);
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
