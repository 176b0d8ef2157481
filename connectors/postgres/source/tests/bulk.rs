//! The log read in bulk: the same as streamed, and as careful with what could be lost. The
//! change from one to the other under all kinds of load is in `switch.rs`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::super::lsn::{Bookmark, Lsn};
use super::*;

impl Fixture {
    /// As `new`; the log is read in bulk when more bytes than this are to be read.
    async fn reading_in_bulk(above: u64, sql: &str) -> Fixture {
        let mut fixture = Fixture::new(sql).await;
        fixture.source.bulk_read_above = Some(above);
        fixture
    }

    async fn one<T: for<'a> tokio_postgres::types::FromSql<'a>>(&self, sql: &str) -> T {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// Whether the log is being read in bulk just now; the server is this test's own.
    pub async fn is_in_bulk(&self) -> bool {
        self.one("SELECT count(*) > 0 FROM pg_replication_slots WHERE temporary").await
    }

    /// Up to where the slot may have forgotten.
    pub async fn confirmed(&self) -> Lsn {
        self.place_of_slot("confirmed_flush_lsn").await
    }

    /// From where the log of the slot is read again.
    async fn restart(&self) -> Lsn {
        self.place_of_slot("restart_lsn").await
    }

    async fn place_of_slot(&self, which: &str) -> Lsn {
        let slot = self.slot();
        let sql =
            format!("SELECT {which}::text FROM pg_replication_slots WHERE slot_name = '{slot}'");
        self.one::<String>(&sql).await.parse().unwrap()
    }

    async fn end_of_log(&self) -> Lsn {
        self.one::<String>("SELECT pg_current_wal_lsn()::text").await.parse().unwrap()
    }
}

fn lsn(position: &Position) -> Lsn {
    Bookmark::read(position).unwrap().lsn
}

/// What is promised of a transaction. A part says where the log was before it, and that may be
/// any place without changes.
pub fn essence(mut transaction: Transaction) -> Option<Transaction> {
    if !transaction.complete {
        transaction.position = Position(String::new());
    }
    (!transaction.changes.is_empty() || !transaction.complete).then_some(transaction)
}

/// Reads until everything before a place was given out: the position there, and how many changes.
async fn read_to(stream: &mut Box<dyn ChangeStream>, end: Lsn) -> (Position, usize) {
    let mut changes = 0;
    loop {
        let transaction = stream.next().await.unwrap();
        changes += transaction.changes.len();
        if transaction.complete && lsn(&transaction.position) >= end {
            return (transaction.position, changes);
        }
    }
}

/// Rows until about so many bytes of log are written.
fn flood(rows: u32) -> String {
    format!("INSERT INTO t SELECT k, repeat('x', 100) FROM generate_series(1, {rows}) k")
}

#[tokio::test]
async fn bulk_and_stream_give_the_same_transactions_byte_for_byte() {
    let mut fixture = Fixture::new(
        "CREATE TABLE t (k int PRIMARY KEY, v text); CREATE TABLE u (k int PRIMARY KEY, big text); \
         CREATE TABLE f (k int PRIMARY KEY, v text); ALTER TABLE f REPLICA IDENTITY FULL; \
         CREATE TABLE p (k int PRIMARY KEY, v text) PARTITION BY RANGE (k); \
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100); CREATE SCHEMA other; \
         CREATE TABLE other.unpublished (v text)",
    )
    .await;
    let from = fixture.subscribed().await;
    fixture.run("INSERT INTO t SELECT k, 'a' || k FROM generate_series(1, 30000) k").await;
    for round in 0..20 {
        fixture.run(&format!("INSERT INTO u VALUES ({round}, {LONG})")).await;
        fixture.run(&format!("UPDATE u SET k = -k - 1 WHERE k = {round}")).await;
        fixture
            .run(&format!(
                "BEGIN; INSERT INTO f VALUES ({round}); SAVEPOINT s; \
             INSERT INTO f VALUES (1000); ROLLBACK TO s; UPDATE f SET v = 'b'; COMMIT"
            ))
            .await;
        fixture.run("INSERT INTO other.unpublished SELECT repeat('x', 1000)").await;
        fixture.run("SELECT pg_logical_emit_message(true, 'app', 'x')").await;
        fixture.run("SELECT pg_logical_emit_message(false, 'app', repeat('y', 9000))").await;
        fixture
            .run(&format!("BEGIN; INSERT INTO p VALUES ({round}); DELETE FROM p; ROLLBACK"))
            .await;
        fixture.run(&format!("INSERT INTO p VALUES ({round}, 'x')")).await;
    }
    fixture
        .run(
            "BEGIN; INSERT INTO f VALUES (50, 'a'); ALTER TABLE f ADD COLUMN w int; \
                 INSERT INTO f VALUES (51, 'a', 1); ALTER TABLE f ALTER k TYPE bigint; \
                 INSERT INTO f VALUES (52, 'b', 2); COMMIT",
        )
        .await;
    fixture.run("TRUNCATE u, t; INSERT INTO t VALUES (1, NULL)").await;
    fixture.run("ALTER TABLE p RENAME TO q; INSERT INTO q VALUES (70, 'z')").await;
    let mut read = async |above| {
        fixture.source.bulk_read_above = above;
        let mut stream = fixture.open(&from).await;
        assert_eq!(fixture.is_in_bulk().await, above.is_some());
        let transactions = fixture.read_all(&mut stream).await;
        transactions.into_iter().filter_map(essence).collect::<Vec<_>>()
    };
    let streamed = read(None).await;
    let changes: usize = streamed.iter().map(|transaction| transaction.changes.len()).sum();
    assert!(streamed.iter().any(|part| !part.complete) && changes > 30_000, "{changes}");
    // Calls of 64 KiB and more, and one that takes all there is.
    assert!(read(Some(4 << 10)).await == streamed, "in many calls");
    assert!(read(Some(1 << 20)).await == streamed, "in one call");
}

#[tokio::test]
async fn a_pipeline_that_is_behind_reads_in_bulk_and_streams_when_everything_is_durable() {
    let fixture =
        Fixture::reading_in_bulk(16 << 10, "CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    let from = fixture.subscribed().await;
    // The log can be let go of up to a checkpoint.
    fixture.run(&flood(2000)).await;
    fixture.run("CHECKPOINT").await;
    let (restart, end) = (fixture.restart().await, fixture.end_of_log().await);
    let mut stream = fixture.open(&from).await;
    assert!(fixture.is_in_bulk().await);
    let (durable, changes) = read_to(&mut stream, end).await;
    assert_eq!(changes, 2000);
    // The next one is only streamed: less than the threshold is there.
    fixture.run("INSERT INTO t VALUES (-1, 'a')").await;
    let early = tokio::time::timeout(Duration::from_millis(200), stream.next()).await;
    assert!(early.is_err() && fixture.is_in_bulk().await, "{early:?}");
    assert_eq!(fixture.restart().await, restart);
    stream.acknowledge(&durable).await.unwrap();
    assert_eq!(fixture.log(&mut stream).await, ["t + -1|a"]);
    assert!(!fixture.is_in_bulk().await);
    assert!(fixture.restart().await > restart, "the stream has read all of the log again");
}

#[tokio::test]
async fn the_server_goes_on_while_nobody_asks_for_the_rows_of_a_call() {
    let mut fixture =
        Fixture::reading_in_bulk(2 << 20, "CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    let from = fixture.subscribed().await;
    for _ in 0..40 {
        fixture
            .run("INSERT INTO t SELECT k, repeat('x', 1000) FROM generate_series(1, 1000) k")
            .await;
        fixture.run("TRUNCATE t").await;
    }
    let end = fixture.end_of_log().await;
    let copy = "SELECT max(confirmed_flush_lsn)::text FROM pg_replication_slots WHERE temporary";
    fixture.source.read_ahead = 64 << 20;
    let mut stream = fixture.open(&from).await;
    stream.next().await.unwrap();
    while fixture.one::<String>(copy).await.parse::<Lsn>().unwrap() < end {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(stream);
    // Without room for them it waits in the middle of a call that is larger than what the network holds.
    fixture.source.read_ahead = 4 << 10;
    let mut stream = fixture.open(&from).await;
    let first = stream.next().await.unwrap().changes.len();
    let waits = "SELECT count(*) > 0 FROM pg_stat_activity JOIN pg_replication_slots ON pid = active_pid \
                 WHERE temporary AND wait_event = 'ClientWrite'";
    while !fixture.one::<bool>(waits).await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(fixture.one::<String>(copy).await.parse::<Lsn>().unwrap() < end);
    let (_, changes) = read_to(&mut stream, end).await;
    assert_eq!(first + changes, 40 * 1001);
}

#[tokio::test]
async fn two_sessions_read_and_one_alone_where_there_is_no_other_or_it_is_lost() {
    let table = "CREATE TABLE t (k int PRIMARY KEY, v text)";
    let mut fixture = Fixture::on(Database::alone().await, table).await;
    (fixture.source.bulk_read_above, fixture.source.read_ahead) = (Some(4 << 10), 1 << 10);
    let from = fixture.subscribed().await;
    for first in (0..2000).step_by(10) {
        let rows = format!("generate_series({first}, {}) k", first + 9);
        fixture.run(&format!("INSERT INTO t SELECT k, repeat('x', 100) FROM {rows}")).await;
    }
    let end = fixture.end_of_log().await;
    // While nobody wants rows, one session has sent those of a call, and the other one those of the next.
    // The one that is behind is lost, in the same statement that finds them at rest: it is to copy where the
    // other one is before it makes another call.
    let lose = "WITH resting AS (SELECT pid, confirmed_flush_lsn AS place FROM pg_stat_activity \
                JOIN pg_replication_slots ON pid = active_pid \
                WHERE temporary AND state = 'idle' AND query LIKE 'COPY%') \
                SELECT pg_terminate_backend((SELECT pid FROM resting ORDER BY place LIMIT 1), 10000) \
                WHERE (SELECT count(DISTINCT place) FROM resting) = 2";
    let mut stream = fixture.open(&from).await;
    let first = stream.next().await.unwrap().changes.len();
    while fixture.client.query(lose, &[]).await.unwrap().is_empty() {}
    assert_eq!(first + read_to(&mut stream, end).await.1, 2000);
    drop(stream);
    // One of the slots is ours, and one is left.
    let others = "SELECT count(pg_create_physical_replication_slot('full_' || n)) \
                  FROM generate_series(1, 38) n";
    while fixture.is_in_bulk().await {}
    assert_eq!(fixture.one::<i64>(others).await, 38);
    let mut stream = fixture.open(&from).await;
    assert!(fixture.is_in_bulk().await);
    assert_eq!(read_to(&mut stream, end).await.1, 2000);
    let copies = "SELECT count(*) FROM pg_replication_slots WHERE temporary";
    assert_eq!(fixture.one::<i64>(copies).await, 1);
    assert!(!fixture.source.bulk_read_refused.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_log_that_is_closed_after_a_bulk_read_has_moved_its_slot() {
    let fixture =
        Fixture::reading_in_bulk(16 << 10, "CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    let mut from = fixture.subscribed().await;
    // Of log without a checkpoint nothing can be let go of, so the server is only told.
    let update = "UPDATE t SET v = repeat('y', 100)";
    for (changes, after) in [(flood(2000).as_str(), "CHECKPOINT"), (update, "CREATE SEQUENCE s")] {
        fixture.run(changes).await;
        fixture.run(after).await;
        let (end, restart) = (fixture.end_of_log().await, fixture.restart().await);
        let mut stream = fixture.open(&from).await;
        let (durable, _) = read_to(&mut stream, end).await;
        assert_eq!(fixture.confirmed().await, lsn(&from));
        assert!(fixture.is_in_bulk().await, "it is streamed");
        stream.close(&durable).await.unwrap();
        assert_eq!(fixture.confirmed().await, lsn(&durable));
        assert_eq!(fixture.restart().await > restart, after == "CHECKPOINT");
        drop(stream);
        from = durable;
    }
}

#[tokio::test]
async fn a_stream_that_falls_behind_reads_in_bulk() {
    let fixture =
        Fixture::reading_in_bulk(16 << 10, "CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    let (_, mut stream) = fixture.start().await;
    assert!(!fixture.is_in_bulk().await);
    for k in 0..200 {
        let row = format!("INSERT INTO t VALUES ({k}, repeat('x', 2000))");
        fixture.run(&row).await;
    }
    let (mut seen, mut in_bulk) = (Vec::new(), 0);
    while seen.len() < 200 {
        let transaction = stream.next().await.unwrap();
        seen.extend(transaction.changes.iter().map(words));
        in_bulk += u32::from(fixture.is_in_bulk().await);
    }
    let expected: Vec<String> = (0..200).map(|k| format!("t + {k}|2000 bytes")).collect();
    assert_eq!(seen, expected);
    assert!(in_bulk > 0, "it only streamed");
}

#[tokio::test]
async fn the_slot_moves_to_what_is_durable_and_never_further() {
    let mut fixture =
        Fixture::reading_in_bulk(4 << 10, "CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    // So little that most is read after something has become durable.
    fixture.source.read_ahead = 64 << 10;
    let from = fixture.subscribed().await;
    for k in 0..1200 {
        fixture.run(&format!("INSERT INTO t VALUES ({k}, repeat('x', 2000))")).await;
        // The log can be let go of up to a checkpoint.
        if k % 50 == 0 {
            fixture.run("CHECKPOINT").await;
        }
    }
    let mut stream = fixture.open(&from).await;
    let (mut durable, mut received, mut moved) = (from.clone(), Vec::new(), 0);
    while received.len() < 1200 {
        let transaction = stream.next().await.unwrap();
        received.extend((!transaction.changes.is_empty()).then_some(transaction.position));
        let confirmed = fixture.confirmed().await;
        assert!(confirmed <= lsn(&durable), "{confirmed} is not durable, {durable} is");
        moved += u32::from(confirmed > lsn(&from) && fixture.is_in_bulk().await);
        if received.len() % 50 == 25 {
            durable = received[received.len() - 10].clone();
            stream.acknowledge(&durable).await.unwrap();
        }
    }
    assert!(moved > 0, "the slot never moved while the log was read in bulk");
    // What was never received is not believed.
    let ahead = Bookmark { lsn: Lsn(u64::MAX), ..Bookmark::read(&durable).unwrap() };
    stream.acknowledge(&ahead.position()).await.unwrap();
    fixture.run("INSERT INTO t VALUES (-1, 'a')").await;
    let mut log = Vec::new();
    while log.is_empty() {
        let transaction = stream.next().await.unwrap();
        stream.acknowledge(&transaction.position).await.unwrap();
        log.extend(transaction.changes.iter().map(words));
        received.push(transaction.position);
    }
    assert_eq!(log, ["t + -1|a"]);
    assert!(fixture.confirmed().await <= lsn(received.last().unwrap()));
}

#[tokio::test]
async fn every_commit_is_given_out_once_where_calls_meet() {
    let mut fixture =
        Fixture::reading_in_bulk(4 << 10, "CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    let from = fixture.subscribed().await;
    fixture.run("SET synchronous_commit = off").await;
    for round in 0..30 {
        let (first, last) = (round * 1000, round * 1000 + 999);
        let insert = "INSERT INTO t VALUES (k, repeat('x', k * 7 % 97)); COMMIT;";
        fixture
            .run(&format!("DO $$ BEGIN FOR k IN {first}..{last} LOOP {insert} END LOOP; END $$"))
            .await;
        // From here a call can begin to read.
        fixture.run("CHECKPOINT").await;
    }
    let (begin, end) = (lsn(&from), fixture.end_of_log().await);
    let commits = all_in_bulk(&fixture, &from, end).await;
    // No call reads more than 256 KiB.
    assert!(end.0 - begin.0 > 20 * (256 << 10));
    // The last commit of the first half that is the first record of its page: the first call is to end
    // within that page's header, if it may, and is still at work when the second one begins.
    let half = Lsn(begin.0.midpoint(end.0));
    let is_first = |commit: &&Lsn| commit.0 % 8192 == 24 && **commit < half;
    let first = commits.iter().rfind(is_first).unwrap();
    fixture.source.bulk_read_above = Some((first.0 - 8 - begin.0) / 2);
    assert_eq!(all_in_bulk(&fixture, &from, end).await, commits);
}

/// Reads 30,000 transactions of one row; where each was committed.
async fn all_in_bulk(fixture: &Fixture, from: &Position, end: Lsn) -> Vec<Lsn> {
    let mut stream = fixture.open(from).await;
    let (mut commits, mut reached) = (Vec::new(), lsn(from));
    while reached < end {
        let transaction = stream.next().await.unwrap();
        reached = lsn(&transaction.position);
        for change in &transaction.changes {
            let k = commits.len();
            assert!(words(change).starts_with(&format!("t + {k}|")), "{change:?} in place of {k}");
            commits.push(Lsn(transaction.version.log));
        }
    }
    assert!(fixture.is_in_bulk().await);
    assert_eq!(commits.len(), 30_000);
    commits
}

#[tokio::test]
async fn log_without_changes_moves_the_position_in_bulk_too() {
    let fixture = Fixture::reading_in_bulk(
        4 << 10,
        "CREATE TABLE t (k int PRIMARY KEY); CREATE SCHEMA other; CREATE TABLE other.u (v text)",
    )
    .await;
    let from = fixture.subscribed().await;
    fixture.run("INSERT INTO other.u SELECT repeat('x', 1000) FROM generate_series(1, 500)").await;
    let end = fixture.end_of_log().await;
    let mut stream = fixture.open(&from).await;
    assert!(fixture.is_in_bulk().await);
    let (durable, changes) = read_to(&mut stream, end).await;
    assert_eq!(changes, 0);
    stream.acknowledge(&durable).await.unwrap();
    fixture.run("INSERT INTO t VALUES (1)").await;
    assert_eq!(fixture.log(&mut stream).await, ["t + 1"]);
}

#[tokio::test]
async fn log_that_would_be_read_again_and_again_is_streamed() {
    let fixture =
        Fixture::reading_in_bulk(4 << 10, "CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    let from = fixture.subscribed().await;
    let old = fixture.database.client().await;
    old.batch_execute("BEGIN; INSERT INTO public.t VALUES (-1, 'old')").await.unwrap();
    fixture.run(&flood(2000)).await;
    let mut stream = fixture.open(&from).await;
    let last = fixture.read_all(&mut stream).await.pop().unwrap().position;
    drop(stream);
    // The open transaction keeps the beginning of all that in the log of the slot.
    fixture.run("UPDATE t SET v = 'y' WHERE k BETWEEN 1 AND 100").await;
    let mut stream = fixture.open(&last).await;
    assert!(!fixture.is_in_bulk().await);
    old.batch_execute("COMMIT").await.unwrap();
    let log = fixture.log(&mut stream).await;
    assert_eq!((log.len(), log.last().map(String::as_str)), (101, Some("t + -1|old")));
}

#[tokio::test]
async fn a_slot_that_is_still_read_by_a_predecessor_can_be_read_in_bulk() {
    let fixture =
        Fixture::reading_in_bulk(16 << 10, "CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    let (from, predecessor) = fixture.start().await;
    fixture.run(&flood(2000)).await;
    let mut stream = fixture.open(&from).await;
    assert!(fixture.is_in_bulk().await);
    drop(predecessor);
    assert_eq!(fixture.log(&mut stream).await.len(), 2000);
}

#[tokio::test]
async fn a_slot_that_is_read_in_bulk_is_in_use_until_its_reader_is_evicted() {
    let fixture =
        Fixture::reading_in_bulk(4 << 10, "CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    let from = fixture.subscribed().await;
    fixture.run(&flood(2000)).await;
    let mut stream = fixture.open(&from).await;
    assert!(fixture.is_in_bulk().await);
    assert_eq!(fixture.source.unsubscribe().await.unwrap_err().code, Code::SlotInUse);
    fixture.source.evict().await.unwrap();
    let error = loop {
        match stream.next().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(error.is_transient(), "{error}");
    fixture.source.unsubscribe().await.unwrap();
}

/// Does something to a source that is far ahead; reading it then stops with a name.
async fn check_gap(fault: &str, code: Code) {
    let fixture =
        Fixture::reading_in_bulk(4 << 10, "CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    let from = fixture.subscribed().await;
    fixture.run(&flood(100)).await;
    for statement in fault.replace("SLOT", fixture.slot()).split(';') {
        fixture.run(statement).await;
    }
    fixture.run("INSERT INTO t SELECT -k, 'later' FROM generate_series(1, 1000) k").await;
    let reading = async {
        let mut stream = fixture.source.stream(&from, EPOCH, &fixture.tables().await, &[]).await?;
        loop {
            stream.next().await?;
        }
    };
    let error: crate::error::Error = match reading.await {
        Ok(never) => never,
        Err(error) => error,
    };
    assert_eq!((error.code, error.is_transient()), (code, false), "{fault}: {error}");
    assert!(error.message.contains("driftless run --resync"), "{error}");
}

#[tokio::test]
async fn a_publication_that_is_gone_stops_a_bulk_read() {
    check_gap("DROP PUBLICATION SLOT", Code::Publication).await;
}

#[tokio::test]
async fn a_slot_that_is_gone_or_has_moved_past_our_position_stops_a_bulk_read() {
    check_gap("SELECT pg_drop_replication_slot('SLOT')", Code::SlotMissing).await;
    let moved = "SELECT pg_replication_slot_advance('SLOT', pg_current_wal_lsn())";
    check_gap(moved, Code::SlotGap).await;
}

/// The source refuses something that only bulk reads need; the log is streamed then.
async fn check_refusal(database: Database, refusal: &str) {
    let mut fixture = Fixture::on(database, "CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    fixture.source.bulk_read_above = Some(4 << 10);
    let from = fixture.subscribed().await;
    fixture.run(&flood(2000)).await;
    let role = format!("reader_{}", fixture.slot());
    let sql = format!(
        "CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON t TO {role}; \
         {}",
        refusal.replace("READER", &role)
    );
    for statement in sql.split(';') {
        fixture.run(statement).await;
    }
    let url = fixture.database.url().replace("postgres@", &format!("{role}@"));
    let pipeline = fixture.slot().strip_prefix("driftless_").unwrap();
    let mut limited = source(&url, &SourceOptions::new(pipeline, 1 << 20)).unwrap();
    limited.bulk_read_above = Some(4 << 10);
    let refused = limited.bulk_read_refused.clone();
    fixture.source = limited;
    let mut stream = fixture.open(&from).await;
    let mut rows = 0;
    while rows < 2000 {
        rows += stream.next().await.unwrap().changes.len();
    }
    assert!(refused.load(Ordering::Relaxed), "{refusal}");
    assert!(!fixture.is_in_bulk().await, "{refusal}");
}

#[tokio::test]
async fn a_source_that_refuses_bulk_reads_is_streamed() {
    let function = "REVOKE EXECUTE ON FUNCTION \
                    pg_catalog.pg_copy_logical_replication_slot(name, name, boolean) FROM PUBLIC";
    check_refusal(Database::create().await, function).await;
    let no_files = "ALTER ROLE READER SET temp_file_limit = 0; ALTER ROLE READER SET work_mem = 64";
    check_refusal(Database::create().await, no_files).await;
    let mut no_slots = "SELECT 1".to_owned();
    for number in 0..39 {
        no_slots += &format!(";SELECT pg_create_physical_replication_slot('full_{number}')");
    }
    check_refusal(Database::alone().await, &no_slots).await;
}
