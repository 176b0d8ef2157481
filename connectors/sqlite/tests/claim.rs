//! Who writes: claims, the lock, the fence, and what is left when a pipeline is forgotten.

use super::support::{Fixture, at, claim, delete, open, options, simple, upsert};
use crate::error::Code;
use crate::{Claim, KeyScan, Target, TargetOptions};

#[tokio::test]
async fn a_target_that_was_never_claimed_is_not_created_and_knows_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut target = open(&directory, options(false)).await;
    assert_eq!(target.recall().await.unwrap(), None);
    let findings = target.check(&[simple().into()]).await.unwrap();
    assert!(findings.iter().all(|finding| finding.level == crate::Level::Ok), "{findings:?}");
    target.forget().await.unwrap();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn each_claim_raises_the_fence_and_the_first_has_no_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    for fence in 1..4 {
        let mut target = open(&directory, options(false)).await;
        let remembered = target.claim(&claim()).await.unwrap();
        assert_eq!((remembered.fence, remembered.checkpoint), (fence, None));
    }
}

#[tokio::test]
async fn a_second_instance_is_refused_while_the_first_lives() {
    let f = Fixture::new(simple(), false).await;
    let mut second = open(&f.directory, options(false)).await;
    let error = second.claim(&claim()).await.unwrap_err();
    assert_eq!(error.code, Code::AlreadyRunning);
    assert!(error.message.contains("--take-over"), "{error}");
    assert_eq!(second.forget().await.unwrap_err().code, Code::AlreadyRunning);
    let other = TargetOptions {
        pipeline: "a/b".into(),
        soft_deletes: false,
        plain_schema: "public".into(),
    };
    open(&f.directory, other).await.claim(&claim()).await.unwrap();
    let (directory, target) = (f.directory, f.target);
    drop(target);
    second.claim(&claim()).await.unwrap();
    drop(directory);
}

#[tokio::test]
async fn an_instance_that_was_taken_over_cannot_commit_one_more_row() {
    let mut f = Fixture::new(simple(), false).await;
    let mut second = open(&f.directory, options(false)).await;
    let take_over = Claim { instance: "two".into(), fence: None, take_over: true };
    assert_eq!(second.claim(&take_over).await.unwrap().fence, 2);
    let batch = f.batch(vec![], vec![upsert(1, at(1), &["a", "b"])]);
    assert_eq!(f.apply(&batch).await.unwrap_err().code, Code::Fenced);
    assert_eq!(f.target.prepare(&f.table).await.unwrap_err().code, Code::Fenced);
    assert_eq!(f.target.release(&[]).await.unwrap_err().code, Code::Fenced);
    let again = Claim { fence: Some(1), ..claim() };
    assert_eq!(f.target.claim(&again).await.unwrap_err().code, Code::Fenced);
    assert_eq!(f.target.recall().await.unwrap().unwrap().fence, 2);
    assert_eq!(second.apply(&batch).await.unwrap(), crate::change::Applied::Done);
}

#[tokio::test]
async fn a_reconnection_of_the_same_process_keeps_its_fence() {
    let mut f = Fixture::new(simple(), false).await;
    let again = Claim { fence: Some(1), ..claim() };
    let mut reconnected = open(&f.directory, options(false)).await;
    assert_eq!(reconnected.claim(&again).await.unwrap().fence, 1);
    f.upsert(vec![upsert(1, at(1), &["a", "b"])]).await;
    let lost = Claim { fence: Some(9), ..claim() };
    assert_eq!(reconnected.claim(&lost).await.unwrap_err().code, Code::Fenced);
}

#[tokio::test]
async fn writing_before_a_claim_is_refused() {
    let mut f = Fixture::new(simple(), false).await;
    let mut reader = open(&f.directory, options(false)).await;
    let batch = f.batch(vec![], vec![]);
    assert_eq!(reader.apply(&batch).await.unwrap_err().code, Code::Internal);
    f.upsert(vec![upsert(1, at(1), &["a", "b"])]).await;
}

#[tokio::test]
async fn a_reader_sees_what_the_writer_commits_while_it_writes() {
    let mut f = Fixture::new(simple(), false).await;
    let mut reader = open(&f.directory, options(false)).await;
    let scan =
        KeyScan { table: &f.table.clone(), after: None, limit: 9, below: None, filter: None };
    for count in 1..4 {
        f.upsert(vec![upsert(count, at(1), &["a", "b"])]).await;
        assert_eq!(reader.read_keys(&scan).await.unwrap().len(), count as usize);
    }
    drop(f.target);
    assert_eq!(reader.read_keys(&scan).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_forgotten_pipeline_leaves_its_rows_and_the_other_pipelines() {
    let mut f = Fixture::new(simple(), false).await;
    f.upsert(vec![upsert(1, at(1), &["a", "b"])]).await;
    f.delete(vec![delete(2, at(2))]).await;
    let other = TargetOptions {
        pipeline: "other".into(),
        soft_deletes: false,
        plain_schema: "public".into(),
    };
    let mut other = open(&f.directory, other).await;
    other.claim(&claim()).await.unwrap();
    f.target.forget().await.unwrap();
    f.target.forget().await.unwrap();
    assert_eq!(f.query::<i64>("SELECT count(*) FROM _cdc_tombstone"), 0);
    assert_eq!(f.query::<String>("SELECT group_concat(pipeline) FROM _cdc_checkpoint"), "other");
    other.forget().await.unwrap();
    assert_eq!(f.query::<i64>("SELECT count(*) FROM sqlite_schema WHERE name LIKE '_cdc%'"), 0);
    assert_eq!(f.query::<i64>("SELECT count(*) FROM t"), 1);
    assert_eq!(f.target.recall().await.unwrap(), None);
}

#[tokio::test]
async fn an_instance_that_was_taken_over_cannot_forget_the_pipeline() {
    let mut f = Fixture::new(simple(), false).await;
    let mut second = open(&f.directory, options(false)).await;
    second.claim(&Claim { take_over: true, ..claim() }).await.unwrap();
    assert_eq!(f.target.forget().await.unwrap_err().code, Code::Fenced);
    assert_eq!(second.recall().await.unwrap().unwrap().fence, 2);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_not_taken_for_a_first_run() {
    let mut f = Fixture::new(simple(), false).await;
    f.execute("UPDATE _cdc_checkpoint SET tables = '{'");
    assert_eq!(f.target.recall().await.unwrap_err().code, Code::TargetLost);
    f.execute("UPDATE _cdc_checkpoint SET tables = '[]', version = x'00'");
    assert_eq!(f.target.recall().await.unwrap_err().code, Code::TargetLost);
}
