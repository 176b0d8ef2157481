//! The log as the engine sees it: every kind of change in its order, whatever the server does to
//! its files, and whatever happens to the connection.

use std::time::Duration;

use super::*;

/// What the log says of statements, without the name of the database.
async fn check(create: &str, statements: &str, expected: &[&str]) {
    let fixture = Fixture::new(create).await;
    let (_, mut stream) = fixture.start().await;
    fixture.run(statements).await;
    assert_eq!(fixture.log(&mut stream).await, expected, "{statements}");
}

#[tokio::test]
async fn the_log_has_every_change_in_its_order() {
    let create = "CREATE TABLE t (k int, v text, g int AS (k * 2) STORED, PRIMARY KEY (k));
        CREATE TABLE u (a int unsigned, b varchar(9), PRIMARY KEY (b, a))";
    let statements = "INSERT INTO t (k, v) VALUES (1, 'a'), (-2, NULL);
        UPDATE t SET v = 'b' WHERE k = -2;
        UPDATE t SET k = 3 WHERE k = -2;
        DELETE FROM t WHERE k = 1;
        INSERT INTO u VALUES (4294967295, 'x');
        BEGIN;
        INSERT INTO t (k) VALUES (9);
        ROLLBACK;
        BEGIN;
        INSERT INTO t (k) VALUES (10);
        SAVEPOINT s;
        INSERT INTO t (k) VALUES (11);
        ROLLBACK TO s;
        COMMIT;
        TRUNCATE t;
        INSERT INTO u VALUES (2, 'z')";
    let expected = [
        "t + 1|a",
        "t + -2|NULL",
        "t + -2|b",
        "t - -2",
        "t + 3|b",
        "t - 1",
        "u + 4294967295|x",
        "t + 10|NULL",
        "t truncated",
        "u + 2|z",
    ];
    check(create, statements, &expected).await;
}

#[tokio::test]
async fn a_transaction_has_one_version_and_rising_ordinals() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let (start, mut stream) = fixture.start().await;
    fixture.run("BEGIN;\nINSERT INTO t VALUES (1);\nINSERT INTO t VALUES (2);\nCOMMIT").await;
    fixture.run("INSERT INTO t VALUES (3)").await;
    let transactions = fixture.read_all(&mut stream).await;
    let versions: Vec<Version> =
        transactions.iter().cloned().flat_map(Transaction::versioned).map(|(v, _)| v).collect();
    assert_eq!(
        versions.iter().map(|v| (v.epoch, v.ordinal)).collect::<Vec<_>>(),
        [(EPOCH, 1), (EPOCH, 2), (EPOCH, 1)]
    );
    assert!(versions[0].log == versions[1].log && versions[1].log < versions[2].log);
    assert!(fixture.source.version_of(&start, EPOCH).unwrap() < versions[0]);
    for pair in transactions.windows(2) {
        assert!(pair[0].version <= pair[1].version);
    }
    for transaction in &transactions {
        let end = fixture.source.version_of(&transaction.position, EPOCH).unwrap();
        // What only says how far the log was read has an ordinal of its own at that place.
        assert!(end >= transaction.version.with_ordinal(0));
    }
}

#[tokio::test]
async fn a_stream_goes_on_after_the_position_that_was_reached() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let (_, mut stream) = fixture.start().await;
    for k in 1..6 {
        fixture.run(&format!("INSERT INTO t VALUES ({k});\nFLUSH BINARY LOGS")).await;
        let reached = fixture.read_all(&mut stream).await.pop().unwrap().position;
        stream.acknowledge(&reached).await.unwrap();
        drop(stream);
        fixture.run(&format!("INSERT INTO t VALUES (-{k})")).await;
        let tables = fixture.tables().await;
        let resumed = fixture.source.subscribe(&tables, Some(Resume::at(&reached))).await.unwrap();
        assert_eq!(resumed, reached);
        stream = fixture.source.stream(&resumed, EPOCH, &tables, &[]).await.unwrap();
        assert_eq!(fixture.log(&mut stream).await, [format!("t + -{k}")]);
    }
}

#[tokio::test]
async fn next_loses_nothing_when_it_is_dropped_again_and_again() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    let (_, mut stream) = fixture.start().await;
    let rows: String =
        (1..51).map(|k| format!("INSERT INTO t VALUES ({k}, REPEAT('x', 9000));\n")).collect();
    fixture.run(&rows).await;
    fixture.run("ALTER TABLE t ADD COLUMN w int").await;
    fixture.run("INSERT INTO t VALUES (51, 'a', 7)").await;
    let marker = fixture.source.mark(EPOCH).await.unwrap();
    let mut seen = Vec::new();
    loop {
        // Polled at most a few times, then dropped: in the middle of a batch, of a question.
        let step = tokio::time::timeout(Duration::from_micros(50), stream.next()).await;
        let Ok(transaction) = step else { continue };
        let transaction = transaction.unwrap();
        seen.extend(transaction.changes.iter().map(words));
        if transaction.version >= marker {
            break;
        }
    }
    let mut expected: Vec<String> = (1..51).map(|k| format!("t + {k}|9000 bytes")).collect();
    expected.push("t + 51|a|7".into());
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_change_of_shape_that_cannot_be_followed_halts_its_table_only() {
    let create = "CREATE TABLE a (k int PRIMARY KEY, v int);
        CREATE TABLE b (k int PRIMARY KEY, v int);
        CREATE TABLE c (k int PRIMARY KEY)";
    let statements = "INSERT INTO a VALUES (1, 1);
        ALTER TABLE a ADD COLUMN w int DEFAULT 5;
        INSERT INTO a VALUES (2, 2, 2);
        INSERT INTO b VALUES (1, 1);
        ALTER TABLE b DROP COLUMN v;
        INSERT INTO b VALUES (3);
        INSERT INTO c VALUES (1);
        CREATE INDEX i ON c (k);
        INSERT INTO c VALUES (2);
        DROP TABLE c;
        INSERT INTO a VALUES (3, 3, 3)";
    let expected = [
        "a + 1|1",
        "a + 2|2|2",
        "b + 1|1",
        "b halted schema-change",
        "c + 1",
        "c + 2",
        "c halted schema-change",
        "a + 3|3|3",
    ];
    check(create, statements, &expected).await;
}

#[tokio::test]
async fn a_statement_in_the_log_halts_its_table() {
    let create = "CREATE TABLE t (k int PRIMARY KEY, v int);\nCREATE TABLE u (k int PRIMARY KEY)";
    let statements = "INSERT INTO t VALUES (1, 1);
        SET SESSION binlog_format = 'STATEMENT';
        UPDATE t SET v = 2 WHERE k = 1;
        SET SESSION binlog_format = 'ROW';
        INSERT INTO t VALUES (2, 2);
        INSERT INTO u VALUES (1)";
    check(create, statements, &["t + 1|1", "t halted statement-dml", "u + 1"]).await;
}

#[tokio::test]
async fn a_minimal_image_has_absent_columns() {
    let create = "CREATE TABLE t (k int PRIMARY KEY, v int, w int)";
    let statements = "INSERT INTO t VALUES (1, 1, 1), (2, 2, 2);
        SET SESSION binlog_row_image = 'MINIMAL';
        UPDATE t SET v = 9 WHERE k = 1;
        DELETE FROM t WHERE k = 2;
        SET SESSION binlog_row_image = 'FULL'";
    let expected = ["t + 1|1|1", "t + 2|2|2", "t + 1|9|absent", "t - 2"];
    check(create, statements, &expected).await;
}

#[tokio::test]
async fn a_large_transaction_comes_in_parts() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY, v mediumtext)").await;
    let (_, mut stream) = fixture.start().await;
    fixture.run("BEGIN").await;
    for k in 0..8 {
        fixture.run(&format!("INSERT INTO t VALUES ({k}, REPEAT('x', 400000))")).await;
    }
    fixture.run("COMMIT").await;
    let transactions = fixture.read_all(&mut stream).await;
    let parts: Vec<&Transaction> = transactions.iter().filter(|t| !t.changes.is_empty()).collect();
    assert!(parts.len() > 1 && parts.iter().rev().skip(1).all(|part| !part.complete));
    assert!(parts.windows(2).all(|pair| pair[0].version == pair[1].version));
    let count: usize = parts.iter().map(|part| part.changes.len()).sum();
    assert_eq!(count, 8);
}

#[tokio::test]
async fn an_idle_source_moves_the_position_past_what_is_not_replicated() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let (_, mut stream) = fixture.start().await;
    let other = format!("{}_other", fixture.database.name);
    fixture.run(&format!("CREATE DATABASE {other};\nCREATE TABLE {other}.t (k int)")).await;
    fixture.run(&format!("INSERT INTO {other}.t VALUES (1);\nFLUSH BINARY LOGS")).await;
    let transactions = fixture.read_all(&mut stream).await;
    assert!(transactions.iter().all(|t| t.changes.is_empty() && t.complete));
    let reached = &transactions.last().unwrap().position;
    assert_eq!(fixture.source.lag_bytes(reached).await.unwrap(), 0);
}

#[tokio::test]
async fn a_killed_connection_is_worth_another_try() {
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let (position, mut stream) = fixture.start().await;
    fixture.read_all(&mut stream).await;
    let dumps = "SELECT ID FROM information_schema.PROCESSLIST WHERE COMMAND LIKE 'Binlog Dump%'";
    let id = fixture.ask(dumps).await;
    fixture.run(&format!("KILL {id}")).await;
    let error = loop {
        if let Err(error) = stream.next().await {
            break error;
        }
    };
    assert!(error.is_transient(), "{error}");
    drop(stream);
    let tables = fixture.tables().await;
    fixture.run("INSERT INTO t VALUES (1)").await;
    let mut stream = fixture.source.stream(&position, EPOCH, &tables, &[]).await.unwrap();
    assert_eq!(fixture.log(&mut stream).await.len(), 1);
}

#[tokio::test]
async fn a_server_that_was_killed_goes_on_where_it_was() {
    let database = Database::alone(&["--sync-binlog=1"]).await;
    let fixture = Fixture::on(database, "CREATE TABLE t (k int PRIMARY KEY)").await;
    let (_, mut stream) = fixture.start().await;
    fixture.run("INSERT INTO t VALUES (1)").await;
    let reached = fixture.read_all(&mut stream).await.pop().unwrap().position;
    fixture.run("INSERT INTO t VALUES (2)").await;
    fixture.database.server.restart();
    let error = loop {
        if let Err(error) = stream.next().await {
            break error;
        }
    };
    assert!(error.is_transient(), "{error}");
    *fixture.client.lock().await = fixture.database.client().await;
    fixture.run("INSERT INTO t VALUES (3)").await;
    let tables = fixture.tables().await;
    fixture.source.subscribe(&tables, Some(Resume::at(&reached))).await.unwrap();
    let mut stream = fixture.source.stream(&reached, EPOCH, &tables, &[]).await.unwrap();
    assert_eq!(fixture.log(&mut stream).await.len(), 2);
}

#[tokio::test]
async fn a_server_id_that_somebody_has_is_refused_and_our_own_is_evicted() {
    let mut fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let options = |server_id| SourceOptions { server_id, ..SourceOptions::new("x", 1 << 20) };
    fixture.source = source(&fixture.database.url(), &options(Some(1))).unwrap();
    let tables = fixture.tables().await;
    let position = fixture.source.subscribe(&tables, None).await.unwrap();
    let error = fixture.source.stream(&position, EPOCH, &tables, &[]).await.err().unwrap();
    assert_eq!((error.code, error.is_transient()), (Code::ServerIdInUse, false), "{error}");
    fixture.source = source(&fixture.database.url(), &options(Some(77))).unwrap();
    let (_, mut stream) = fixture.start().await;
    fixture.read_all(&mut stream).await;
    let twin = source(&fixture.database.url(), &options(Some(77))).unwrap();
    twin.evict().await.unwrap();
    let error = loop {
        if let Err(error) = stream.next().await {
            break error;
        }
    };
    assert!(error.is_transient(), "{error}");
    let mut stream = twin.stream(&position, EPOCH, &tables, &[]).await.unwrap();
    fixture.read_all(&mut stream).await;
}

#[tokio::test]
async fn several_domains_are_resumed_where_each_of_them_was() {
    if testing::is_mysql() {
        return;
    }
    let fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let (_, mut stream) = fixture.start().await;
    let mut expected = Vec::new();
    for k in 0..12 {
        // Numbers of the domains go on independently, and not always upwards.
        let domain =
            format!("SET SESSION gtid_domain_id = {}, SESSION server_id = {}", k % 3, 1 + k % 2);
        fixture.run(&format!("{domain};\nINSERT INTO t VALUES ({k})")).await;
        expected.push(format!("t + {k}"));
        let tables = fixture.tables().await;
        let transactions = fixture.read_all(&mut stream).await;
        let log: Vec<String> = transactions.iter().flat_map(|t| &t.changes).map(words).collect();
        assert_eq!(log, expected);
        expected.clear();
        let reached = &transactions.last().unwrap().position;
        drop(stream);
        fixture.source.subscribe(&tables, Some(Resume::at(reached))).await.unwrap();
        stream = fixture.source.stream(reached, EPOCH, &tables, &[]).await.unwrap();
    }
}

#[tokio::test]
async fn an_account_with_the_documented_privileges_is_enough() {
    let mut fixture = Fixture::new("CREATE TABLE t (k int PRIMARY KEY)").await;
    let name = fixture.database.name.clone();
    fixture.run("CREATE USER least@localhost IDENTIFIED BY 'x'").await;
    fixture.run("GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO least@localhost").await;
    fixture.run(&format!("GRANT SELECT ON {name}.* TO least@localhost")).await;
    let url = fixture.database.url().replace("root:correct%20horse", "least:x");
    fixture.source = source(&url, &SourceOptions::new("x", 1 << 20)).unwrap();
    let all = TablePatterns::parse(&["*"], &name).unwrap();
    let findings = fixture.source.check(&all).await.unwrap();
    assert!(findings.iter().all(|found| found.level != crate::Level::Failure), "{findings:#?}");
    let (position, mut stream) = fixture.start().await;
    fixture.run("INSERT INTO t VALUES (1)").await;
    assert_eq!(fixture.log(&mut stream).await, ["t + 1"]);
    let mut reader = fixture.source.reader().await.unwrap();
    let table = fixture.tables().await.remove(0);
    let chunk =
        reader.read_keys(&table, &[Key::from_values([b"1".as_slice()])], Version::ZERO).await;
    assert_eq!(chunk.unwrap().rows.len(), 1);
    drop(stream);
    let tables = fixture.tables().await;
    fixture.source.evict().await.unwrap();
    fixture.source.stream(&position, EPOCH, &tables, &[]).await.unwrap();
}

#[tokio::test]
async fn a_log_that_is_begun_anew_while_it_is_read_ends_the_stream() {
    let database = Database::alone(&[]).await;
    let fixture = Fixture::on(database, "CREATE TABLE t (k int PRIMARY KEY)").await;
    let (_, mut stream) = fixture.start().await;
    fixture.run("INSERT INTO t VALUES (1)").await;
    let reached = fixture.read_all(&mut stream).await.pop().unwrap().position;
    let reset = match testing::is_mysql() {
        true => "RESET BINARY LOGS AND GTIDS",
        false => "RESET MASTER",
    };
    fixture.run(&format!("{reset};\nINSERT INTO t VALUES (2)")).await;
    while let Ok(transaction) = stream.next().await {
        assert_eq!(transaction.changes, []);
    }
    let tables = fixture.tables().await;
    let resumed = fixture.source.subscribe(&tables, Some(Resume::at(&reached))).await;
    assert!(!resumed.unwrap_err().is_transient());
}

#[tokio::test]
async fn a_log_that_was_begun_anew_and_has_grown_beyond_our_place_ends_the_stream() {
    if testing::is_mysql() {
        // There the dump ends with an error.
        return;
    }
    let database = Database::alone(&[]).await;
    let fixture = Fixture::on(database, "CREATE TABLE t (k int PRIMARY KEY, v longtext)").await;
    let (_, mut stream) = fixture.start().await;
    fixture.read_all(&mut stream).await;
    let grown = "RESET MASTER;\nINSERT INTO t VALUES (2, REPEAT('x', 100000))";
    fixture.run(grown).await;
    let error = loop {
        match stream.next().await {
            Ok(transaction) => assert_eq!(transaction.changes, []),
            Err(error) => break error,
        }
    };
    assert!(error.is_transient(), "{error}");
}
