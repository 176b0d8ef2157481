//! Who may write, and what is remembered.

use super::support::*;
use crate::change::{Applied, TableStatus};
use crate::error::{Code, Kind};
use crate::mysql::target::target;
use crate::mysql::testing::run;
use crate::schema::TableName;
use crate::{Claim, Target};

const NOTHING: [&str; 0] = [];

#[tokio::test]
async fn nothing_is_remembered_of_a_pipeline_that_never_ran() {
    let database = crate::mysql::testing::Database::create().await;
    let mut target = target(&database.url(), options("p", false)).await.unwrap();
    assert_eq!(target.recall().await, Ok(None));
    assert_eq!(look(&mut database.client().await, "SHOW TABLES").await, NOTHING);
}

#[tokio::test]
async fn checkpoint_and_table_states_come_back_as_they_were_written() {
    let mut fixture = Fixture::with(&usual(), false).await;
    let mut batch = fixture.batch(vec![part(&usual()).upsert(1, &["1", "a", "b"])]);
    let stopped = TableStatus::Stopped {
        code: Code::PoisonRow,
        message: "it's \\ 'quoted'".into(),
        version: version(3),
    };
    batch.status.insert(TableName::new("public", "t"), stopped.clone());
    assert_eq!(fixture.target.apply(&batch).await, Ok(Applied::Done));
    let remembered = fixture.target.recall().await.unwrap().unwrap();
    assert_eq!(remembered.checkpoint, Some(batch.checkpoint));
    assert_eq!((remembered.fence, remembered.instance.as_str()), (1, "us"));
    let record = &remembered.tables[&TableName::new("public", "t")];
    assert_eq!((&record.schema, &record.status), (&*usual(), &stopped));
}

#[tokio::test]
async fn a_second_instance_is_refused_until_it_takes_over_and_then_fences_the_first() {
    let mut fixture = Fixture::with(&usual(), false).await;
    let mut second = target(&fixture.database.url(), options("p", false)).await.unwrap();
    let refused = second.claim(&claim_as("them")).await;
    check_error(refused, Kind::Stop, Code::AlreadyRunning, &["--take-over"]);
    // The first one goes on as if nothing had happened.
    fixture.done(vec![part(&usual()).upsert(1, &["1", "a", "b"])]).await;
    let claim = Claim { take_over: true, ..claim_as("them") };
    assert_eq!(second.claim(&claim).await.unwrap().fence, 2);
    // The take-over ended its session; on a new one it finds that it has lost its claim.
    let batch = fixture.batch(vec![part(&usual()).upsert(2, &["1", "lost", "b"])]);
    assert!(fixture.target.apply(&batch).await.unwrap_err().is_transient());
    let mut first = target(&fixture.database.url(), options("p", false)).await.unwrap();
    let again = first.claim(&Claim { fence: Some(1), ..claim_as("us") }).await;
    check_error(again, Kind::Stop, Code::Fenced, &["p"]);
    assert_eq!(fixture.look("SELECT a FROM t").await, ["a"]);
}

#[tokio::test]
async fn a_writer_whose_fence_was_raised_cannot_change_anything() {
    let mut fixture = Fixture::with(&usual(), false).await;
    fixture.execute("UPDATE _cdc_checkpoint SET fence = fence + 1").await;
    let rows = vec![part(&usual()).upsert(2, &["1", "a", "b"])];
    check_error(fixture.apply(rows).await, Kind::Stop, Code::Fenced, &["another instance"]);
    let other = table("u", &["k bigint"]);
    check_error(fixture.target.prepare(&other).await, Kind::Stop, Code::Fenced, &[]);
    let released = fixture.target.release(&[TableName::new("public", "t")]).await;
    check_error(released, Kind::Stop, Code::Fenced, &[]);
    check_error(fixture.target.forget().await, Kind::Stop, Code::Fenced, &[]);
    let tables = "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() \
                  AND TABLE_NAME = 'u'";
    assert_eq!(fixture.look(tables).await, ["0"]);
    assert_eq!(fixture.look("SELECT COUNT(*) FROM t").await, ["0"]);
}

#[tokio::test]
async fn the_same_instance_comes_back_although_its_old_session_lingers() {
    let mut fixture = Fixture::with(&usual(), false).await;
    fixture.done(vec![part(&usual()).upsert(1, &["1", "a", "b"])]).await;
    let mut again = target(&fixture.database.url(), options("p", false)).await.unwrap();
    let remembered = again.claim(&claim_as("us")).await.unwrap();
    assert_eq!((remembered.fence, remembered.checkpoint.unwrap().sequence), (2, 1));
    let mut same = target(&fixture.database.url(), options("p", false)).await.unwrap();
    let verified = same.claim(&Claim { fence: Some(2), ..claim_as("us") }).await.unwrap();
    assert_eq!(verified.fence, 2);
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_recognised() {
    let mut fixture = Fixture::with(&usual(), false).await;
    let batch = fixture.batch(vec![part(&usual()).upsert(1, &["1", "a", "b"])]);
    assert_eq!(fixture.target.apply(&batch).await, Ok(Applied::Done));
    fixture.execute("UPDATE t SET a = 'not applied again'").await;
    assert_eq!(fixture.target.apply(&batch).await, Ok(Applied::Done));
    assert_eq!(fixture.look("SELECT a FROM t").await, ["not applied again"]);
    let mut other = batch.clone();
    other.checkpoint.position.0 = "elsewhere".into();
    check_error(fixture.target.apply(&other).await, Kind::Stop, Code::Internal, &["batch 1"]);
    other.checkpoint.sequence = 3;
    check_error(fixture.target.apply(&other).await, Kind::Stop, Code::Internal, &["batch 3"]);
}

#[tokio::test]
async fn a_dropped_apply_leaves_nothing_behind() {
    let mut fixture = Fixture::with(&usual(), false).await;
    let batch = fixture.batch(vec![part(&usual()).upsert(1, &["1", "dropped", ""])]);
    fixture.execute("LOCK TABLES t WRITE, _cdc_checkpoint WRITE").await;
    tokio::select! {
        biased;
        applied = fixture.target.apply(&batch) => panic!("the table is locked, yet {applied:?}"),
        () = tokio::time::sleep(std::time::Duration::from_millis(300)) => {}
    }
    fixture.execute("UNLOCK TABLES").await;
    // It had not come to its commit, so a new session may go on at once.
    assert_eq!(fixture.target.apply(&batch).await, Ok(Applied::Done));
    fixture.sequence = 1;
    fixture.done(vec![part(&usual()).upsert(2, &["1", "next", ""])]).await;
    assert_eq!(fixture.look("SELECT a FROM t").await, ["next"]);
}

#[tokio::test]
async fn a_dropped_commit_is_known_only_after_the_next_claim() {
    let mut fixture = Fixture::with(&usual(), false).await;
    let batch = fixture.batch(vec![part(&usual()).upsert(1, &["1", "dropped", ""])]);
    fixture.target.unknown_commit = true;
    assert!(fixture.target.apply(&batch).await.unwrap_err().is_transient());
    let claim = Claim { fence: Some(1), ..claim_as("us") };
    assert_eq!(fixture.target.claim(&claim).await.unwrap().checkpoint, None);
    assert_eq!(fixture.target.apply(&batch).await, Ok(Applied::Done));
}

#[tokio::test]
async fn an_earlier_session_of_ours_is_over_before_its_checkpoint_is_believed() {
    let mut fixture = Fixture::with(&usual(), false).await;
    let batch = fixture.batch(vec![part(&usual()).upsert(1, &["1", "dropped", ""])]);
    fixture.execute("LOCK TABLES t WRITE, _cdc_checkpoint WRITE").await;
    let mut again = target(&fixture.database.url(), options("p", false)).await.unwrap();
    let claim = Claim { fence: Some(1), ..claim_as("us") };
    let (applied, ()) = tokio::join!(fixture.target.apply(&batch), async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        run(&mut fixture.client, "UNLOCK TABLES").await;
    });
    let committed = again.claim(&claim).await.unwrap().checkpoint;
    assert_eq!((applied, committed), (Ok(Applied::Done), Some(batch.checkpoint)));
}

#[tokio::test]
async fn a_lost_connection_is_worth_another_try() {
    let mut fixture = Fixture::with(&usual(), false).await;
    let lock = fixture.target.door.lock_name();
    let holder = fixture.look(&format!("SELECT IS_USED_LOCK('{lock}')")).await.remove(0);
    fixture.execute(&format!("KILL {holder}")).await;
    let batch = fixture.batch(vec![part(&usual()).upsert(1, &["1", "a", ""])]);
    assert!(fixture.target.apply(&batch).await.unwrap_err().is_transient());
    assert_eq!(fixture.target.apply(&batch).await, Ok(Applied::Done));
}

#[tokio::test]
async fn released_tables_are_forgotten_and_their_rows_stay() {
    let mut fixture = Fixture::with(&usual(), false).await;
    fixture.done(vec![part(&usual()).upsert(1, &["1", "a", "b"]).delete(1, &["2"])]).await;
    fixture.target.release(&[TableName::new("public", "t")]).await.unwrap();
    assert!(fixture.target.recall().await.unwrap().unwrap().tables.is_empty());
    assert_eq!(fixture.look("SELECT count(*) FROM _cdc_tombstone").await, ["0"]);
    assert_eq!(fixture.look("SELECT k FROM t").await, ["1"]);
}

#[tokio::test]
async fn the_last_pipeline_takes_our_tables_with_it() {
    let mut fixture = Fixture::with(&usual(), false).await;
    let mut other = target(&fixture.database.url(), options("q", false)).await.unwrap();
    other.claim(&claim_as("them")).await.unwrap();
    let own = "SELECT pipeline FROM _cdc_checkpoint";
    fixture.done(vec![part(&usual()).delete(1, &["2"])]).await;
    fixture.target.forget().await.unwrap();
    assert_eq!(fixture.look(own).await, ["q"]);
    assert_eq!(fixture.look("SELECT count(*) FROM _cdc_tombstone").await, ["0"]);
    other.forget().await.unwrap();
    assert_eq!(fixture.look("SHOW TABLES").await, ["t"]);
    assert_eq!(fixture.look("SELECT count(*) FROM t").await, ["0"]);
    other.forget().await.unwrap();
}
