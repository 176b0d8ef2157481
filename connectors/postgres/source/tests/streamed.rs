//! Transactions that are too large for the server's memory come before they have ended. What is
//! made of them is what would have come at their end.

use super::super::super::pipeline::Early;
use super::*;

impl Fixture {
    /// How many transactions the server has sent before their end.
    async fn sent_early(&self) -> i64 {
        let sql = format!(
            "SELECT coalesce(max(stream_txns), 0) FROM pg_stat_replication_slots \
             WHERE slot_name = '{}'",
            self.slot()
        );
        self.client.query_one(&sql, &[]).await.unwrap().get(0)
    }

    /// The server has sent this many, or more, before their end. Version 14 says so late.
    async fn must_have_sent_early(&self, count: i64) {
        while self.sent_early().await < count {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// From now on the server has no memory to speak of for those who connect.
    async fn with_little_memory(&self) {
        let database: String =
            self.client.query_one("SELECT current_database()::text", &[]).await.unwrap().get(0);
        self.run(&format!("ALTER DATABASE {database} SET logical_decoding_work_mem = '64kB'"))
            .await;
    }
}

fn rows(table: &str, from: u32, what: &str) -> String {
    format!("INSERT INTO {table} SELECT k, '{what}' FROM generate_series({from}, {from} + 2999) k;")
}

#[tokio::test]
async fn a_transaction_sent_before_its_end_is_the_same_as_one_sent_at_its_end() {
    let mut fixture = Fixture::new(
        "CREATE TABLE t (k int PRIMARY KEY, v text); CREATE TABLE u (k int PRIMARY KEY, v text); \
         CREATE TABLE f (k int PRIMARY KEY, v text); ALTER TABLE f REPLICA IDENTITY FULL",
    )
    .await;
    fixture.source.bulk_read_above = None;
    let from = fixture.source.subscribe(&fixture.tables().await, None).await.unwrap();
    let (second, third) = (fixture.database.client().await, fixture.database.client().await);
    let also = async |client: &Client, sql: &str| client.batch_execute(sql).await.unwrap();

    fixture.run(&format!("BEGIN; {}", rows("t", 0, "first"))).await;
    also(&second, &format!("BEGIN; {}", rows("public.t", 10_000, "second"))).await;
    also(&third, &format!("BEGIN; {}", rows("public.f", 0, "aborted"))).await;
    fixture.run(&format!("SAVEPOINT a; {}", rows("t", 20_000, "child"))).await;
    fixture.run(&format!("SAVEPOINT b; {} ROLLBACK TO b", rows("t", 30_000, "gone"))).await;
    fixture.run("UPDATE t SET v = v || '!' WHERE k < 100; RELEASE a").await;
    fixture.run(&rows("u", 5_000, "stays")).await;
    fixture.run(&format!("SAVEPOINT c; {} ROLLBACK TO c", rows("u", 0, "gone"))).await;
    also(&third, "ROLLBACK; INSERT INTO public.f VALUES (1, 'small'), (2, NULL)").await;
    also(
        &second,
        &format!("{} DELETE FROM public.t WHERE k = 10001", rows("public.t", 40_000, "x")),
    )
    .await;
    let wider = "INSERT INTO u SELECT k, 'w', k FROM generate_series(1, 3000) k";
    fixture.run(&format!("ALTER TABLE u ADD COLUMN w int; {wider}")).await;
    also(&second, "COMMIT").await;
    fixture.run("TRUNCATE f; COMMIT").await;

    let read = async |fixture: &Fixture| {
        let mut stream =
            fixture.source.stream(&from, EPOCH, &fixture.tables().await, &[]).await.unwrap();
        let transactions = fixture.read_all(&mut stream).await;
        transactions.into_iter().filter_map(bulk::essence).collect::<Vec<_>>()
    };
    let at_their_end = read(&fixture).await;
    assert_eq!(fixture.sent_early().await, 0);
    fixture.with_little_memory().await;
    let early = read(&fixture).await;
    assert!(early == at_their_end, "{early:#?} {at_their_end:#?}");
    // Newer servers see that one of them was aborted.
    fixture.must_have_sent_early(2).await;
    let changes: usize = early.iter().map(|transaction| transaction.changes.len()).sum();
    assert_eq!(changes, 3000 * 6 + 100 + 1 + 2 + 1);
}

#[tokio::test]
async fn a_server_that_fails_at_sending_early_sends_at_the_end() {
    let mut fixture = Fixture::new(
        "CREATE TABLE t (k int PRIMARY KEY, v text); CREATE TABLE u (k int PRIMARY KEY, v text)",
    )
    .await;
    fixture.source.bulk_read_above = None;
    fixture.with_little_memory().await;
    let (from, mut stream) = fixture.start().await;
    // PostgreSQL 15 then finds no table for what was taken back.
    let gone =
        |name: &str| format!("SAVEPOINT {name}; {} ROLLBACK TO {name};", rows("u", 0, "gone"));
    let shape = "ALTER TABLE u ADD COLUMN w int;";
    let taken_back = format!("SAVEPOINT c; {shape} {} ROLLBACK TO c;", rows("u", 0, "gone"));
    fixture
        .run(&format!(
            "BEGIN; {} SAVEPOINT a; {} SAVEPOINT b; {} ROLLBACK TO b; RELEASE a; {taken_back} {} {} \
             {shape} INSERT INTO u SELECT k, 'w', k FROM generate_series(1, 3000) k; COMMIT",
            rows("t", 0, "x"),
            rows("t", 20_000, "x"),
            rows("t", 30_000, "x"),
            gone("d"),
            rows("u", 5_000, "stays")
        ))
        .await;
    let marker = fixture.source.mark(EPOCH).await.unwrap();
    let mut changes = 0;
    loop {
        match stream.next().await {
            Ok(transaction) => {
                changes += transaction.changes.len();
                if transaction.complete && transaction.version >= marker {
                    break;
                }
            }
            Err(error) => {
                assert!(error.is_transient() && error.message.contains("at their end"), "{error}");
                changes = 0;
                let tables = fixture.tables().await;
                stream = fixture.source.stream(&from, EPOCH, &tables, &[]).await.unwrap();
            }
        }
    }
    assert_eq!(changes, 4 * 3000);
}

#[tokio::test]
async fn nothing_is_lost_when_the_log_is_opened_again_in_the_middle() {
    let mut fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    fixture.source.bulk_read_above = None;
    fixture.with_little_memory().await;
    let (mut from, mut stream) = fixture.start().await;
    let mut seen = Vec::new();
    for round in 0..4 {
        fixture.run(&format!("BEGIN; {}", rows("t", round * 10_000, "a"))).await;
        // Reading goes past the first half of the transaction, and holds it.
        let small = fixture.database.client().await;
        small.batch_execute("SELECT pg_logical_emit_message(true, 'app', 'x')").await.unwrap();
        for transaction in fixture.read_all(&mut stream).await {
            from = transaction.position.clone();
            seen.extend(transaction.changes.iter().map(words));
        }
        stream.acknowledge(&from).await.unwrap();
        if round % 2 == 0 {
            drop(stream);
            stream =
                fixture.source.stream(&from, EPOCH, &fixture.tables().await, &[]).await.unwrap();
        }
        fixture.run(&format!("{} COMMIT", rows("t", round * 10_000 + 5_000, "b"))).await;
        for transaction in fixture.read_all(&mut stream).await {
            if transaction.complete {
                from = transaction.position.clone();
            }
            seen.extend(transaction.changes.iter().map(words));
        }
    }
    let expected: Vec<String> = (0..4)
        .flat_map(|round| [(round * 10_000, "a"), (round * 10_000 + 5_000, "b")])
        .flat_map(|(from, what)| (from..from + 3000).map(move |k| format!("t + {k}|{what}")))
        .collect();
    assert!(seen == expected, "{} of {}", seen.len(), expected.len());
    fixture.must_have_sent_early(4).await;
}

/// The server puts on its own disk what it read before our position. Of a subtransaction with more
/// than 4096 changes there, and none in memory, it forgets that it has sent it.
#[tokio::test]
async fn what_was_taken_back_does_not_come_even_if_the_server_does_not_say_so() {
    let mut fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    fixture.source.bulk_read_above = None;
    fixture.with_little_memory().await;
    let (_, mut stream) = fixture.start().await;
    fixture.run("BEGIN; INSERT INTO t VALUES (-1, 'stays'); SAVEPOINT a").await;
    fixture.run(&[rows("t", 0, "gone"), rows("t", 3000, "gone")].concat()).await;
    fixture.run("SAVEPOINT b").await;
    // Others go on, and what is durable with them.
    let other = fixture.database.client().await;
    other.batch_execute("SELECT pg_logical_emit_message(true, 'app', 'x')").await.unwrap();
    let from = fixture.read_all(&mut stream).await.pop().unwrap().position;
    stream.acknowledge(&from).await.unwrap();
    drop(stream);
    let tables = fixture.tables().await;
    let mut stream = fixture.source.stream(&from, EPOCH, &tables, &[]).await.unwrap();
    fixture.run(&rows("t", 6000, "gone")).await;
    // What is known to be taken back when it is decoded is never sent.
    assert_eq!(fixture.log(&mut stream).await, [""; 0]);
    fixture.run("ROLLBACK TO a; INSERT INTO t VALUES (-2, 'stays'); COMMIT").await;
    assert_eq!(fixture.log(&mut stream).await, ["t + -1|stays", "t + -2|stays"]);
    assert!(fixture.source.early.is_wanted());
    fixture.must_have_sent_early(1).await;
}

#[tokio::test]
async fn thousands_of_subtransactions_are_told_apart() {
    let mut fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    fixture.source.bulk_read_above = None;
    fixture.with_little_memory().await;
    let (_, mut stream) = fixture.start().await;
    let each = "DO $$ BEGIN FOR n IN 1..12000 LOOP BEGIN \
                INSERT INTO t VALUES (n, 'first'), (-n, 'second'); \
                IF n % 2 = 0 THEN RAISE division_by_zero; END IF; \
                EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$";
    fixture.run(each).await;
    let log = fixture.log(&mut stream).await;
    let expected: Vec<String> = (1..12_000)
        .step_by(2)
        .flat_map(|n| [format!("t + {n}|first"), format!("t + {}|second", -n)])
        .collect();
    assert!(log == expected, "{} changes", log.len());
    assert!(fixture.source.early.is_wanted());
    fixture.must_have_sent_early(1).await;
}

#[tokio::test]
async fn a_shape_told_within_what_was_taken_back_is_not_relied_upon() {
    let mut fixture = Fixture::new(
        "CREATE TABLE t (k int PRIMARY KEY, v text); CREATE TABLE u (k int PRIMARY KEY, v text)",
    )
    .await;
    fixture.source.bulk_read_above = None;
    fixture.with_little_memory().await;
    let (from, mut stream) = fixture.start().await;
    fixture.run(&format!("BEGIN; {} SAVEPOINT a", rows("t", 0, "stays"))).await;
    fixture.run(&rows("u", 0, "gone")).await;
    assert_eq!(fixture.log(&mut stream).await, [""; 0]);
    fixture.run(&format!("ROLLBACK TO a; {} COMMIT", rows("u", 0, "stays"))).await;
    let error = loop {
        match stream.next().await {
            Ok(transaction) => assert!(transaction.changes.is_empty(), "{transaction:?}"),
            Err(error) => break error,
        }
    };
    assert!(error.is_transient() && error.message.contains("at their end"), "{error}");
    drop(stream);
    let tables = fixture.tables().await;
    let mut stream = fixture.source.stream(&from, EPOCH, &tables, &[]).await.unwrap();
    assert_eq!(fixture.log(&mut stream).await.len(), 2 * 3000);
}

#[tokio::test]
async fn nothing_comes_early_that_is_not_wanted() {
    let mut fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    (fixture.source.bulk_read_above, fixture.source.early) = (None, Early::new(false));
    fixture.with_little_memory().await;
    let (_, mut stream) = fixture.start().await;
    fixture.run(&rows("t", 0, "x")).await;
    assert_eq!(fixture.log(&mut stream).await.len(), 3000);
    assert_eq!(fixture.sent_early().await, 0);
}
