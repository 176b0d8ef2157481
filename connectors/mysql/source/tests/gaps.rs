//! Whatever could have lost a change stops with its name.

use super::super::super::bookmark::{Bookmark, Place};
use super::*;

/// Starts, reads one change, stops; then does something to the source and resumes.
async fn check(fault: &str, code: Option<Code>) {
    let database = Database::alone(&[]).await;
    let fixture = Fixture::on(database, "CREATE TABLE t (k int PRIMARY KEY)").await;
    let (_, mut stream) = fixture.start().await;
    fixture.run("INSERT INTO t VALUES (1)").await;
    let reached = fixture.read_all(&mut stream).await.pop().unwrap().position;
    drop(stream);
    // The server keeps files that somebody still reads.
    fixture.source.evict().await.unwrap();
    let reset = match testing::is_mysql() {
        true => "RESET BINARY LOGS AND GTIDS",
        false => "RESET MASTER",
    };
    fixture.run(&fault.replace("RESET", reset)).await;
    if let Some(at) = fault.find("PURGE") {
        // A file that a crash may still need is kept, without a word.
        while fixture.ask("SHOW BINARY LOGS").await == "binlog.000001" {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            fixture.run(&fault[at..]).await;
        }
    }
    resume(&fixture, &reached, code, fault).await;
}

async fn resume(fixture: &Fixture, reached: &Position, code: Option<Code>, what: &str) {
    let tables = fixture.tables().await;
    let result = fixture.source.subscribe(&tables, Some(Resume::at(reached))).await;
    let error = result.as_ref().err();
    assert_eq!(error.map(|error| error.code), code, "{what}: {error:?}");
    if let Some(error) = error {
        assert!(!error.is_transient());
        assert!(error.message.contains("driftless run --resync"), "{error}");
    }
}

#[tokio::test]
async fn a_log_that_goes_on_is_resumed() {
    check("INSERT INTO t VALUES (2);\nFLUSH BINARY LOGS;\nINSERT INTO t VALUES (3)", None).await;
}

#[tokio::test]
async fn a_log_that_was_purged_before_it_was_read_stops() {
    let purge = "INSERT INTO t VALUES (2);\nFLUSH BINARY LOGS;\nINSERT INTO t VALUES (3);\n\
                 FLUSH BINARY LOGS;\nPURGE BINARY LOGS TO 'binlog.000003'";
    check(purge, Some(Code::BinlogPurged)).await;
}

#[tokio::test]
async fn a_log_that_was_purged_after_it_was_read_is_resumed() {
    check("FLUSH BINARY LOGS;\nPURGE BINARY LOGS TO 'binlog.000002'", None).await;
}

#[tokio::test]
async fn a_log_that_was_begun_anew_stops() {
    check("RESET", Some(Code::PositionAhead)).await;
}

#[tokio::test]
async fn a_log_that_was_begun_anew_and_has_grown_stops() {
    let inserts: String = (10..60).map(|k| format!(";\nINSERT INTO t VALUES ({k})")).collect();
    let code = if testing::is_mysql() { Code::PositionAhead } else { Code::SourceIdentity };
    // On MySQL the transactions have the old numbers again, and fewer of them here.
    let few = if testing::is_mysql() { "" } else { &inserts };
    check(&format!("RESET;\nSET @a = 1{few}"), Some(code)).await;
}

#[tokio::test]
async fn another_server_or_a_longer_past_stops() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let tables = fixture.tables().await;
    let position = fixture.source.subscribe(&tables, None).await.unwrap();
    let ours = Bookmark::read(&position).unwrap();
    let other = Bookmark { server: "other".into(), ..ours.clone() };
    resume(&fixture, &other.position(), Some(Code::SourceIdentity), "another server").await;
    let place = Place::new(ours.place.file.replace("000001", "000009"), 4);
    let ahead = Bookmark { place, ..ours };
    resume(&fixture, &ahead.position(), Some(Code::PositionAhead), "ahead").await;
}

#[tokio::test]
async fn the_lag_is_what_the_log_has_beyond_a_position() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let (_, mut stream) = fixture.start().await;
    let reached = fixture.read_all(&mut stream).await.pop().unwrap().position;
    assert_eq!(fixture.source.lag_bytes(&reached).await.unwrap(), 0);
    fixture.run("INSERT INTO t VALUES (1)").await;
    assert!(fixture.source.lag_bytes(&reached).await.unwrap() > 100);
    assert_eq!(fixture.source.subscription().await.unwrap(), None);
    fixture.source.unsubscribe().await.unwrap();
}
