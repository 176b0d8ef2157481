//! Chunks that are written beside the log: under the same rules, and never after another claim.

use super::support::*;
use crate::change::Applied;
use crate::error::{Code, Kind};
use crate::postgres::target::row_writer::Form;
use crate::postgres::target::{claim, target};
use crate::{Claim, Target};

const ROWS: &str = "SELECT k, a FROM public.t ORDER BY k";

#[tokio::test]
async fn a_loader_respects_newer_rows_tombstones_and_truncations() {
    for soft in [false, true] {
        let mut fixture = Fixture::with(&usual(), soft).await;
        let mut loader = fixture.loader(1).await;
        fixture.done(vec![part(&usual()).upsert(7, &["1", "newer", ""]).delete(6, &["2"])]).await;
        let chunk = part(&usual()).upsert(5, &["1", "a", ""]).upsert(5, &["2", "b", ""]);
        assert_eq!(loader.load(&chunk.upsert(5, &["3", "c", ""])).await, Ok(()));
        assert_eq!(fixture.look(ROWS).await, ["1|newer", "3|c"], "soft: {soft}");
        fixture.execute("DELETE FROM public.t; DELETE FROM public._cdc_tombstone").await;
        fixture.done(vec![part(&usual()).truncate(8)]).await;
        let chunk = part(&usual()).upsert(7, &["4", "old", ""]).upsert(9, &["5", "new", ""]);
        assert_eq!(loader.load(&chunk).await, Ok(()));
        assert_eq!(loader.load(&chunk).await, Ok(()), "once more");
        assert_eq!(fixture.look(ROWS).await, ["5|new"], "soft: {soft}");
    }
}

/// Of the second chunk a row is there already, so that it is staged.
#[tokio::test]
async fn a_chunk_with_a_value_that_is_not_canonical_is_loaded_as_text() {
    let fixture = Fixture::with(&usual(), false).await;
    for (number, value) in [("1", "+2"), ("1", "+3")] {
        let mut loader = fixture.loader(1).await;
        let chunk = part(&usual()).upsert(1, &[number, "a", "\\"]);
        assert_eq!(loader.load(&chunk).await, Ok(()));
        assert!(matches!(loader.session.stages[0].form(), Form::Binary(_)));
        assert_eq!(loader.load(&chunk.upsert(1, &[value, "b", "\t"])).await, Ok(()));
        assert!(matches!(loader.session.stages[0].form(), Form::Text(_)));
    }
    assert_eq!(fixture.look(ROWS).await, ["1|a", "2|b", "3|b"]);
}

#[tokio::test]
async fn a_loader_leaves_the_checkpoint_alone_and_keeps_nobody_from_moving_it() {
    let mut fixture = Fixture::with(&usual(), false).await;
    let other = table("u", &["k bigint"]);
    fixture.target.prepare(&other).await.unwrap();
    let mut loader = fixture.loader(1).await;
    let chunk = part(&usual()).upsert(1, &["1", "a", ""]);
    fixture.execute("BEGIN; LOCK TABLE public.t").await;
    let load = loader.load(&chunk);
    let log = async {
        wait_for_locks(&fixture, "relation = 'public.t'::regclass").await;
        let batch = fixture.batch(vec![part(&other).upsert(2, &["1"])]);
        assert_eq!(fixture.target.apply(&batch).await, Ok(Applied::Done));
        fixture.execute("COMMIT").await;
    };
    let (loaded, ()) = tokio::join!(load, log);
    assert_eq!(loaded, Ok(()));
    let look = "SELECT sequence FROM public._cdc_checkpoint UNION ALL SELECT k FROM public.t";
    assert_eq!(fixture.look(look).await, ["1", "1"]);
}

#[tokio::test]
async fn a_loader_of_an_earlier_claim_writes_nothing() {
    let fixture = Fixture::with(&usual(), false).await;
    let mut loader = fixture.loader(1).await;
    fixture.execute("UPDATE public._cdc_checkpoint SET fence = fence + 1").await;
    let loaded = loader.load(&part(&usual()).upsert(1, &["1", "a", ""])).await;
    check_error(loaded, Kind::Stop, Code::Fenced, &["another instance"]);
    assert_eq!(fixture.look(ROWS).await, Vec::<String>::new());
    let mut nobody = target(&fixture.database.url(), options("p", false)).await.unwrap();
    let loaded = nobody.load(&part(&usual()).upsert(1, &["1", "a", ""])).await;
    check_error(loaded, Kind::Stop, Code::Internal, &["no loader"]);
}

#[tokio::test]
async fn s96_a_claim_ends_a_loader_that_is_half_way_through() {
    let again = Claim { fence: Some(1), ..claim_as("us") };
    let over = Claim { take_over: true, ..claim_as("them") };
    for claim in [again, claim_as("us"), over] {
        let fixture = Fixture::with(&usual(), false).await;
        let mut loader = fixture.loader(1).await;
        fixture.execute("BEGIN; LOCK TABLE public.t").await;
        let chunk = part(&usual()).upsert(1, &["1", "a", ""]);
        let load = loader.load(&chunk);
        let claims = async {
            wait_for_locks(&fixture, "relation = 'public.t'::regclass").await;
            let options = options("p", false);
            let mut next = target(&fixture.database.url(), options).await.unwrap();
            next.claim(&claim).await.unwrap();
            fixture.execute("COMMIT").await;
        };
        let (loaded, ()) = tokio::join!(load, claims);
        assert!(loaded.unwrap_err().is_transient(), "{claim:?}");
        assert_eq!(fixture.look(ROWS).await, Vec::<String>::new(), "{claim:?}");
    }
}

/// A loader whose session cannot be ended, because the claim has no privilege to.
#[tokio::test]
async fn s96_a_claim_waits_for_a_loader_that_may_still_commit() {
    let fixture = Fixture::with(&usual(), false).await;
    let lock = claim::loader_lock_number("p");
    fixture.execute(&format!("BEGIN; SELECT pg_advisory_xact_lock_shared({lock})")).await;
    let mut other = target(&fixture.database.url(), options("p", false)).await.unwrap();
    // Nobody holds the writer's lock, so nothing tells that somebody is alive.
    drop(fixture.target);
    let looking = fixture.database.client().await;
    let claims = async {
        let claimed = other.claim(&claim_as("them")).await;
        claimed.map(|remembered| remembered.fence)
    };
    let releases = async {
        let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'";
        while look(&looking, waits).await != ["1"] {}
        fixture.client.batch_execute("COMMIT").await.unwrap();
    };
    let (fence, ()) = tokio::join!(claims, releases);
    assert_eq!(fence, Ok(2));
}

#[tokio::test]
async fn a_row_that_is_refused_is_named_and_nothing_is_written() {
    let fixture = Fixture::with(&usual(), false).await;
    fixture.execute("ALTER TABLE public.t ADD CHECK (a <> 'bad')").await;
    let mut loader = fixture.loader(1).await;
    let chunk = part(&usual()).upsert(1, &["1", "good", ""]).upsert(1, &["2", "bad", ""]);
    let words = [key(&["2"]).hash()];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    check_error(loader.load(&chunk).await, of_table(&usual()), Code::PoisonRow, &words);
    assert_eq!(fixture.look(ROWS).await, Vec::<String>::new());
    assert_eq!(loader.load(&part(&usual()).upsert(1, &["1", "good", ""])).await, Ok(()));
    assert_eq!(fixture.look(ROWS).await, ["1|good"]);
}

async fn wait_for_locks(fixture: &Fixture, which: &str) {
    let waits = format!("SELECT count(*) FROM pg_locks WHERE NOT granted AND {which}");
    while fixture.look(&waits).await != ["1"] {}
}
