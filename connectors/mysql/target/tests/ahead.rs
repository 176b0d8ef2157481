//! Batches that are brought ahead of their turn: used when they come as they were brought, and never to
//! anybody's harm.

use std::sync::Arc;

use futures_util::future::join;

use super::support::*;
use crate::change::{Applied, TableBatch};
use crate::error::Code;
use crate::mysql::target::target;
use crate::mysql::testing::run;
use crate::{Claim, Prepared, Target};

const TEXTS: &str = "SELECT a FROM t ORDER BY k";
/// The rows that somebody else could lock.
const UNLOCKED: &str = "SELECT k, a FROM t ORDER BY k FOR UPDATE SKIP LOCKED";

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
    fn bring(&self, part: &Arc<TableBatch>, independent: usize) {
        bring(&*self.target.ahead().unwrap(), part, independent);
    }

    /// Brings a part that depends on nothing, and waits until it is written.
    async fn bring_all(&mut self, part: &Arc<TableBatch>) {
        self.bring(part, part.upserts.len());
        while !self.look(UNLOCKED).await.is_empty() {}
    }
}

#[tokio::test]
async fn independent_rows_are_written_before_their_turn_and_seen_at_it() {
    let mut fixture = settled().await;
    let rows = part(&usual()).upsert(3, &["1", "early", "b"]).upsert(3, &["3", "early", "b"]);
    let rows = Arc::new(rows.upsert(3, &["2", "at its turn", "b"]).delete(3, &["4"]));
    fixture.bring(&rows, 2);
    while fixture.look(UNLOCKED).await != ["2|a"] {}
    assert_eq!(fixture.look(TEXTS).await, ["a", "a"]);
    assert_eq!(fixture.apply_parts(vec![rows]).await, Ok(Applied::Done));
    assert_eq!(fixture.look(TEXTS).await, ["early", "at its turn", "early"]);
}

#[tokio::test]
async fn sessions_change_places_and_there_are_few_of_them() {
    let mut fixture = settled().await;
    let batches: Vec<_> = (0..9).map(|number| number.to_string()).collect();
    let batches = batches.iter().map(|key| Arc::new(part(&usual()).upsert(9, &[key, key, ""])));
    let batches: Vec<_> = batches.collect();
    let mut writers = Vec::new();
    for (place, batch) in batches.iter().enumerate() {
        let next = batches.get(place + 1);
        assert_eq!(fixture.apply_while_bringing(batch, next, 1).await, Ok(Applied::Done));
        let id = fixture.target.writer.session.query("look", "SELECT CONNECTION_ID()").await;
        writers.push(format!("{:?}", id.unwrap()));
    }
    assert!(writers.windows(2).all(|two| two[0] != two[1]), "{writers:?}");
    writers.sort();
    writers.dedup();
    assert!(writers.len() <= 3, "{writers:?}");
    assert_eq!(fixture.look(TEXTS).await.concat(), "012345678");
}

#[tokio::test]
async fn rows_written_early_are_taken_back_for_any_other_batch() {
    let mut fixture = settled().await;
    let early = update(9);
    fixture.bring_all(&early).await;
    fixture.done(vec![part(&usual()).upsert(4, &["1", "other", "b"])]).await;
    assert_eq!(fixture.look(TEXTS).await, ["other", "a"]);
    fixture.bring_all(&early).await;
    fixture.done(vec![]).await;
    assert_eq!(fixture.look(UNLOCKED).await, ["1|other", "2|a"]);
    assert_eq!(fixture.apply_parts(vec![early]).await, Ok(Applied::Done));
    assert_eq!(fixture.look(TEXTS).await, ["at 9", "at 9"]);
}

#[tokio::test]
async fn a_table_is_altered_although_rows_were_written_early() {
    let mut fixture = settled().await;
    fixture.bring_all(&update(9)).await;
    let wider = table("t", &["k bigint", "a text", "b text", "c text"]);
    let prepared = fixture.target.prepare(&wider).await.unwrap();
    assert_eq!(prepared, Prepared::Added(vec!["c".into()]));
    assert_eq!(fixture.look(TEXTS).await, ["a", "a"]);
}

#[tokio::test]
async fn a_batch_that_waits_for_the_one_after_it_is_let_through() {
    let mut fixture = settled().await;
    let unique = "ALTER TABLE t ADD n INT AS (IF(k > 2, LENGTH(b), NULL)) STORED, ADD UNIQUE (n)";
    fixture.execute(unique).await;
    let first = Arc::new(part(&usual()).upsert(3, &["1", "first", "b"]).upsert(3, &["3", "", "c"]));
    let next = Arc::new(part(&usual()).upsert(4, &["4", "next", "c"]));
    let mut blocker = fixture.database.client().await;
    let mut watcher = fixture.database.client().await;
    run(&mut blocker, "BEGIN;\n DELETE FROM t WHERE k = 1").await;
    let is_written = "SELECT COUNT(*) FROM t WHERE k = 4";
    run(&mut watcher, "SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED").await;
    let ahead = fixture.target.ahead().unwrap();
    let (applied, ()) = join(fixture.apply_parts(vec![first]), async {
        bring(&*ahead, &next, 1);
        while look(&mut watcher, is_written).await != ["1"] {}
        run(&mut blocker, "ROLLBACK").await;
    })
    .await;
    assert_eq!(applied, Ok(Applied::Done));
    assert_eq!(fixture.look(TEXTS).await, ["first", "a", ""]);
}

#[tokio::test]
async fn a_row_that_is_refused_is_named_as_ever() {
    let mut fixture = settled().await;
    fixture.execute("ALTER TABLE t ADD CHECK (a <> 'bad')").await;
    let bad = Arc::new(part(&usual()).upsert(3, &["1", "bad", "b"]).upsert(3, &["2", "good", "b"]));
    fixture.bring(&bad, 2);
    let refused = fixture.apply_parts(vec![bad]).await.unwrap_err();
    assert_eq!(refused.code, Code::PoisonRow, "{refused}");
    fixture.done(vec![part(&usual()).upsert(4, &["2", "good", "b"])]).await;
    assert_eq!(fixture.look(TEXTS).await, ["a", "good"]);
}

#[tokio::test]
async fn a_claim_ends_a_session_that_holds_rows_for_a_batch_that_never_comes() {
    let mut fixture = settled().await;
    // A process that has stopped in the middle keeps its sessions, and so does an earlier session
    // of the same one.
    for claim in [claim_as("us"), Claim { fence: Some(2), ..claim_as("us") }] {
        fixture.bring_all(&update(9)).await;
        let mut again = target(&fixture.database.url(), options("p", false)).await.unwrap();
        assert_eq!(again.claim(&claim).await.unwrap().fence, 2);
        while fixture.look(UNLOCKED).await.len() < 2 {}
        fixture.target = again;
        // It asks for tombstones once, and knows the next time.
        fixture.done(vec![]).await;
        fixture.done(vec![]).await;
    }
    fixture.done(vec![part(&usual()).upsert(4, &["1", "later", "b"])]).await;
    assert_eq!(fixture.look(TEXTS).await, ["later", "a"]);
}
