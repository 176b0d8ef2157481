//! Whatever could have lost a change stops with its name (S19 to S24 and their kin).

use super::super::super::lsn::{Bookmark, Lsn};
use super::*;

/// Starts, reads one change, stops; then does something to the source and resumes.
async fn check(fault: &str, code: Option<Code>) {
    check_on(Database::create().await, fault, code).await;
}

async fn check_on(database: Database, fault: &str, code: Option<Code>) {
    let fixture = Fixture::on(database, "CREATE TABLE t (k int PRIMARY KEY)").await;
    let (_, mut stream) = fixture.start().await;
    fixture.run("INSERT INTO t VALUES (1)").await;
    let reached = fixture.read_all(&mut stream).await.pop().unwrap().position;
    stream.acknowledge(&reached).await.unwrap();
    drop(stream);
    fixture.source.evict().await.unwrap();
    fixture.run("INSERT INTO t VALUES (2)").await;
    // One statement at a time: the slot functions want no transaction that has written.
    for statement in fault.replace("SLOT", fixture.slot()).split(';') {
        fixture.run(statement).await;
    }
    let result =
        fixture.source.subscribe(&fixture.tables().await, Some(Resume::at(&reached))).await;
    let error = result.as_ref().err();
    assert_eq!(error.map(|error| error.code), code, "{fault}: {error:?}");
    if let Some(error) = error {
        assert!(!error.is_transient());
        assert!(error.message.contains("driftless run --resync"), "{error}");
        assert!(error.message.contains(fixture.slot()), "{error}");
    }
}

#[tokio::test]
async fn s19_a_slot_that_was_dropped_stops() {
    check("SELECT pg_drop_replication_slot('SLOT')", Some(Code::SlotMissing)).await;
}

#[tokio::test]
async fn s20_a_slot_that_was_created_again_stops() {
    let again = "SELECT pg_drop_replication_slot('SLOT'); \
                 SELECT pg_create_logical_replication_slot('SLOT', 'pgoutput')";
    check(again, Some(Code::SlotGap)).await;
    check(&again.replace("pgoutput", "test_decoding"), Some(Code::SlotMissing)).await;
}

#[tokio::test]
async fn s21_a_slot_that_somebody_advanced_stops() {
    let advance = "SELECT pg_replication_slot_advance('SLOT', pg_current_wal_lsn())";
    check(advance, Some(Code::SlotGap)).await;
    check("SELECT 1", None).await;
}

#[tokio::test]
async fn a_publication_that_was_made_again_stops() {
    check("DROP PUBLICATION SLOT", Some(Code::Publication)).await;
    let again = "DROP PUBLICATION SLOT; CREATE PUBLICATION SLOT FOR ALL TABLES";
    check(again, Some(Code::Publication)).await;
}

#[tokio::test]
async fn s22_a_slot_whose_log_was_removed_stops() {
    // Limits and segments of 16 MB; the checkpoint removes what is beyond.
    let flood = "ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'; \
                 ALTER SYSTEM SET min_wal_size = '32MB'; ALTER SYSTEM SET max_wal_size = '32MB'; \
                 SELECT pg_reload_conf(); CREATE SCHEMA other; CREATE TABLE other.flood (v text)";
    let mut faults = flood.to_owned();
    for _ in 0..5 {
        faults += "; INSERT INTO other.flood SELECT repeat(md5(i::text), 30) FROM \
                   generate_series(1, 8000) i; SELECT pg_switch_wal(); CHECKPOINT";
    }
    check_on(Database::alone().await, &faults, Some(Code::SlotLost)).await;
}

#[tokio::test]
async fn s23_s24_another_server_or_a_shorter_log_stops() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let tables = fixture.tables().await;
    let position = fixture.source.subscribe(&tables, None).await.unwrap();
    let check = async |change: fn(&mut Bookmark), code| {
        let mut other = Bookmark::read(&position).unwrap();
        change(&mut other);
        let resumed = fixture.source.subscribe(&tables, Some(Resume::at(&other.position()))).await;
        assert_eq!(resumed.unwrap_err().code, code);
    };
    check(|other| other.identity.system = "1".into(), Code::SourceIdentity).await;
    check(|other| other.identity.timeline += 1, Code::SourceIdentity).await;
    check(|other| other.lsn = Lsn(u64::MAX), Code::PositionAhead).await;
    assert!(fixture.source.subscribe(&tables, Some(Resume::at(&position))).await.is_ok());
}

#[tokio::test]
async fn a_slot_that_is_read_by_another_is_in_use() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let (_, _stream) = fixture.start().await;
    let error = fixture.source.subscribe(&fixture.tables().await, None).await.unwrap_err();
    assert_eq!((error.code, error.is_transient()), (Code::SlotInUse, true));
}

#[tokio::test]
async fn tables_come_into_our_publication_and_leave_it() {
    let fixture =
        Fixture::new("CREATE TABLE t (k int PRIMARY KEY); CREATE TABLE u (k int PRIMARY KEY)")
            .await;
    let tables = fixture.tables().await;
    let position = fixture.source.subscribe(&tables[..1], None).await.unwrap();
    fixture.source.subscribe(&tables[1..], Some(Resume::at(&position))).await.unwrap();
    let list = "SELECT string_agg(tablename, ',') FROM pg_publication_tables";
    let listed: String = fixture.client.query_one(list, &[]).await.unwrap().get(0);
    assert_eq!(listed, "u");
    fixture.run(&format!("ALTER PUBLICATION {} SET (publish = 'insert')", fixture.slot())).await;
    let error =
        fixture.source.subscribe(&tables[1..], Some(Resume::at(&position))).await.unwrap_err();
    assert_eq!(error.code, Code::Publication);
    assert!(error.message.contains("SET (publish = 'insert, update"), "{error}");
}

#[tokio::test]
async fn a_table_taken_out_of_the_publication_is_a_gap_once_rows_of_it_were_copied() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let tables = fixture.tables().await;
    let position = fixture.source.subscribe(&tables, None).await.unwrap();
    fixture.run(&format!("ALTER PUBLICATION {} DROP TABLE t", fixture.slot())).await;
    let relied_upon = [tables[0].name.clone()];
    let resume = Resume { position: &position, relied_upon: &relied_upon };
    let error = fixture.source.subscribe(&tables, Some(resume)).await.unwrap_err();
    assert_eq!(error.code, Code::Publication);
    assert!(error.message.contains("driftless run --resync"), "{error}");
}

#[tokio::test]
async fn a_publication_dropped_under_the_stream_stops_it() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let (_, mut stream) = fixture.start().await;
    fixture.run(&format!("DROP PUBLICATION {}", fixture.slot())).await;
    fixture.run("INSERT INTO t VALUES (1)").await;
    let error = loop {
        match stream.next().await {
            Ok(transaction) => assert!(transaction.changes.is_empty()),
            Err(error) => break error,
        }
    };
    assert_eq!((error.code, error.is_transient()), (Code::Publication, false), "{error}");
    assert!(error.message.contains("--resync"), "{error}");
}

#[tokio::test]
async fn s60_a_slot_waits_for_transactions_that_have_written() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let other = fixture.database.client().await;
    other.batch_execute("BEGIN; INSERT INTO public.t VALUES (1)").await.unwrap();
    let tables = fixture.tables().await;
    let subscribing = fixture.source.subscribe(&tables, None);
    tokio::pin!(subscribing);
    // Longer than one try, so that a second one is made.
    let patience = tokio::time::sleep(std::time::Duration::from_millis(2500));
    tokio::select! {
        early = &mut subscribing => panic!("{early:?}"),
        () = patience => {}
    }
    other.batch_execute("COMMIT").await.unwrap();
    subscribing.await.unwrap();
}
