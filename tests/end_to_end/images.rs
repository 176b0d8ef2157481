//! What a MariaDB source's log may leave out or hold back: statements in place of rows, parts of
//! rows, rows that cascades change, transactions whose end is decided later, and very large ones
//! (S37, S38, S84, S86).

use std::time::Duration;

use driftless::demo::shop::{self, Shop};

use crate::support::world::session;
use crate::support::{Pair, Target, World, wait_until};

for_each_pair! {
    s37_a_statement_in_place_of_rows_stops_the_table: mariadb(sqlite mariadb / postgres);
    s38_columns_that_the_log_leaves_out_keep_their_values: mariadb(sqlite postgres mariadb /);
    s38_a_busy_shop_that_logs_as_little_as_it_can: mariadb(mariadb / sqlite postgres);
    s84_a_huge_transaction_within_256_mib: mariadb(sqlite / postgres mariadb);
    s86_prepared_transactions_count_when_they_are_committed: mariadb(postgres mariadb / sqlite);
    s86_a_transaction_prepared_before_the_first_copy: mariadb(sqlite / postgres mariadb);
    s86_prepared_transactions_larger_than_memory: mariadb(sqlite postgres / mariadb);
    s86_the_disk_is_full_while_a_large_transaction_is_prepared: mariadb(sqlite / postgres mariadb);
    cascades_that_the_log_does_not_have_are_refused: mariadb(sqlite / postgres mariadb);
    every_way_to_write_a_row_arrives: mariadb(sqlite postgres mariadb /);
    the_shop_arrives_with_full_row_metadata: mariadb(postgres / sqlite mariadb);
}

const SQL: &str = "CREATE TABLE t (id int PRIMARY KEY, a int DEFAULT 5, v varchar(50) NOT NULL
        DEFAULT 'unsaid', b longblob);
    INSERT INTO t VALUES (1, 1, 'one', 'blob'), (2, 2, 'two', 'blob'), (3, NULL, 'three', NULL),
        (4, 4, 'four', x'00');
    CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)";

async fn s37_a_statement_in_place_of_rows_stops_the_table(pair: Pair) {
    let world = World::new(pair, SQL).await;
    world.catch_up().await;
    let table = world.name("t");
    let statements = [
        "SET SESSION binlog_format = 'STATEMENT'; UPDATE t SET a = a + 1 WHERE id < 3",
        "SET SESSION binlog_format = 'STATEMENT'; INSERT INTO shop.t (id) VALUES (50)",
        "SET SESSION binlog_format = 'MIXED'; DELETE FROM `t` WHERE id = 4",
        "SET SESSION binlog_format = 'STATEMENT'; REPLACE INTO t (id, v) VALUES (1, 'replaced')",
    ];
    for statement in statements {
        let session = session(&world.from).await;
        session.batch_execute(statement).await.unwrap();
        world.execute("INSERT INTO other SELECT max(id) + 1 FROM other").await;
        let outcome = world.command(&["run", "--until-current"]).await;
        outcome.must_stop_with("statement-dml").must_say(&table).must_say("binlog_format");
        world.command(&["backfill", "--table", &table]).await.must_exit(0);
        world.catch_up().await;
        world.must_be_equal().await;
    }
}

/// The rows before `check` are changed by a session that logs this image; equal, or the table has
/// stopped, but never NULL where there was a value.
async fn s38_columns_that_the_log_leaves_out_keep_their_values(pair: Pair) {
    let changes = [
        "UPDATE t SET a = 10 WHERE id = 1",
        "UPDATE t SET v = 'other' WHERE id = 2; UPDATE t SET v = 'again' WHERE id = 2",
        "UPDATE t SET b = NULL WHERE id = 1; UPDATE t SET a = NULL WHERE id = 2",
        "INSERT INTO t (id) VALUES (10); INSERT INTO t (id, b) VALUES (11, 'only a blob')",
        "UPDATE t SET id = id + 100 WHERE id IN (1, 11)",
        "BEGIN; INSERT INTO t (id) VALUES (20); UPDATE t SET a = 7 WHERE id = 20;
         UPDATE t SET id = 21 WHERE id = 20; COMMIT",
        "DELETE FROM t WHERE id = 4; INSERT INTO t (id, v) VALUES (4, 'back')",
        "BEGIN; DELETE FROM t WHERE id = 3; INSERT INTO t (id) VALUES (3); COMMIT",
    ];
    for image in ["MINIMAL", "NOBLOB"] {
        let world = World::new(pair, SQL).await;
        world.catch_up().await;
        for change in changes {
            let session = session(&world.from).await;
            let image = format!("SET SESSION binlog_row_image = {image}");
            session.batch_execute(&image).await.unwrap();
            session.batch_execute(change).await.unwrap();
            world.catch_up().await;
            world.must_be_equal().await;
        }
        world.command(&["verify"]).await.must_exit(0);
    }
}

async fn s38_a_busy_shop_that_logs_as_little_as_it_can(pair: Pair) {
    let mut world = World::new(pair, "").await;
    shop::open(&world.source, 2_000).await.unwrap();
    world.catch_up().await;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    // What `check` refuses at the start, any session may do later.
    world.execute("SET GLOBAL binlog_row_image = MINIMAL").await;
    let shop = Shop::start(&world.from, 3, 38, Duration::from_millis(2));
    tokio::time::sleep(Duration::from_secs(4)).await;
    let counts = shop.close().await.unwrap();
    assert!(counts.updates > 50, "{counts:?}");
    world.execute("SET GLOBAL binlog_row_image = FULL").await;
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

async fn s84_a_huge_transaction_within_256_mib(pair: Pair) {
    let mut world = World::new(pair, SQL).await;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    // More than 200 MB in the log.
    let series = pair.source.series(200_000);
    world
        .execute(&format!(
            "BEGIN; INSERT INTO t SELECT n + 100, n, left(sha2(n, 224), 50), repeat(sha2(n, 224), 18) FROM {series};
             UPDATE t SET a = 0 WHERE id % 20 = 0; DELETE FROM t WHERE id % 15 = 0; COMMIT"
        ))
        .await;
    world.arrival(&mut daemon).await;
    let outcome = daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
    assert!(outcome.memory_peak_kib < 256 * 1024, "{} KiB were resident", outcome.memory_peak_kib);
}

/// Begins and prepares a transaction in a session of its own, which then goes away.
async fn prepare(world: &World, name: &str, change: &str) {
    let session = session(&world.from).await;
    let xa = format!("XA START '{name}'; {change}; XA END '{name}'; XA PREPARE '{name}'");
    session.batch_execute(&xa).await.unwrap();
}

async fn s86_prepared_transactions_count_when_they_are_committed(pair: Pair) {
    let mut world = World::new(pair, SQL).await;
    world.catch_up().await;
    prepare(
        &world,
        "yes",
        "INSERT INTO t VALUES (10, 1, 'later', NULL); UPDATE t SET a = 11 WHERE
        id = 1",
    )
    .await;
    prepare(
        &world,
        "no",
        "INSERT INTO t VALUES (20, 1, 'never', NULL); DELETE FROM t WHERE id = 2",
    )
    .await;
    prepare(&world, "one", "UPDATE t SET v = 'short' WHERE id = 3").await;
    world.execute("UPDATE t SET v = 'meanwhile' WHERE id = 4").await;
    world.catch_up().await;
    world.must_be_equal().await;
    // The log moves on, and we are killed and started again, before it is decided.
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    daemon.kill().await;
    world
        .execute("XA ROLLBACK 'no'; FLUSH BINARY LOGS; UPDATE t SET v = 'next' WHERE id = 2")
        .await;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    world.execute("XA COMMIT 'yes'; UPDATE t SET a = a + 1 WHERE id = 10").await;
    world.arrival(&mut daemon).await;
    world.execute("XA COMMIT 'one'").await;
    world
        .execute(
            "XA START 'quick'; DELETE FROM t WHERE id = 4; XA END 'quick';
        XA COMMIT 'quick' ONE PHASE",
        )
        .await;
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

/// Its rows are in no snapshot, and in the log before the place where we begin to read.
async fn s86_a_transaction_prepared_before_the_first_copy(pair: Pair) {
    let world = World::new(pair, SQL).await;
    prepare(&world, "old", "INSERT INTO t VALUES (10, 1, 'old', NULL); DELETE FROM t WHERE id = 2")
        .await;
    let daemon = world.run(&["--until-current"]);
    // It may wait for the end of what it cannot see, if it says so.
    wait_until("the first copy waits", async || daemon.has_said("XA")).await;
    world.execute("XA COMMIT 'old'").await;
    daemon.wait().await.must_exit(0);
    world.catch_up().await;
    world.must_be_equal().await;
    // The same for a copy that is repeated.
    prepare(&world, "new", "UPDATE t SET v = 'new' WHERE id = 1; DELETE FROM t WHERE id = 10")
        .await;
    let table = world.name("t");
    let again = world.start(&world.arguments(&["backfill", "--table", &table]));
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.execute("XA COMMIT 'new'").await;
    again.wait().await.must_exit(0);
    world.catch_up().await;
    world.must_be_equal().await;
}

/// Rows of some ten megabytes in the log, with these numbers.
fn many_rows(pair: Pair, from: u32) -> String {
    format!(
        "INSERT INTO t SELECT n + {from}, n, left(sha2(n, 224), 50), repeat(sha2(n, 224), 18)
             FROM {series};
         UPDATE t SET a = 0 WHERE id > {from} AND id % 20 = 0;
         DELETE FROM t WHERE id > {from} AND id % 15 = 0",
        series = pair.source.series(10_000)
    )
}

async fn s86_prepared_transactions_larger_than_memory(pair: Pair) {
    let mut world = World::new(pair, SQL).await;
    world.configure("pipeline.batch_bytes", "64KiB");
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    let change = format!("{}; UPDATE t SET v = 'large' WHERE id < 3", many_rows(pair, 100));
    prepare(&world, "yes", &change).await;
    prepare(&world, "no", &many_rows(pair, 20_000)).await;
    world.execute("UPDATE t SET v = 'meanwhile' WHERE id = 4").await;
    world.arrival(&mut daemon).await;
    let kept = world.ask_target("SELECT count(*) FROM t").await;
    assert_eq!(kept.as_deref(), Some("4"), "what is prepared does not count");
    daemon.kill().await;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    world.execute("XA COMMIT 'yes'").await;
    // In the middle of its parts, or before or behind them.
    tokio::time::sleep(Duration::from_millis(150)).await;
    daemon.kill().await;
    let mut daemon = world.run(&[]);
    world.execute("UPDATE t SET a = a + 1 WHERE id < 9000 AND id % 7 = 0; XA ROLLBACK 'no'").await;
    let quick = many_rows(pair, 40_000);
    world
        .execute(&format!("XA START 'quick'; {quick}; XA END 'quick'; XA COMMIT 'quick' ONE PHASE"))
        .await;
    world.arrival(&mut daemon).await;
    assert!(!daemon.has_said("connection lost"), "{}", daemon.stderr());
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

/// A limit on the size of files stands for the full disk.
async fn s86_the_disk_is_full_while_a_large_transaction_is_prepared(pair: Pair) {
    let mut world = World::new(pair, SQL).await;
    world.configure("pipeline.batch_bytes", "64KiB");
    let mut daemon = world.run_where_files_can_be_limited();
    world.arrival(&mut daemon).await;
    daemon.limit_files(Some(4 << 20));
    prepare(&world, "yes", &many_rows(pair, 100)).await;
    world.execute("UPDATE t SET v = 'behind' WHERE id = 4").await;
    wait_until("it says that there is no room", async || {
        daemon.must_be_running();
        daemon.has_said("no room on the disk for a large transaction")
    })
    .await;
    daemon.limit_files(None);
    world.arrival(&mut daemon).await;
    world.execute("XA COMMIT 'yes'").await;
    world.arrival(&mut daemon).await;
    assert!(!daemon.has_said("connection lost"), "{}", daemon.stderr());
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

async fn cascades_that_the_log_does_not_have_are_refused(pair: Pair) {
    let sql = "CREATE TABLE parent (id int PRIMARY KEY); INSERT INTO parent VALUES (1), (2), (3);
        CREATE TABLE child (id int PRIMARY KEY, p int, FOREIGN KEY (p) REFERENCES parent (id)
            ON DELETE CASCADE);
        CREATE TABLE safe (id int PRIMARY KEY, p int, FOREIGN KEY (p) REFERENCES parent (id));
        INSERT INTO child VALUES (1, 1), (2, 2); INSERT INTO safe VALUES (3, 3)";
    let mut world = World::new(pair, sql).await;
    if world.server.is_mysql() {
        return;
    }
    let outcome = world.command(&["run", "--until-current"]).await.must_stop_with("cascade");
    outcome.must_say(&world.name("child")).must_say("accept");
    assert_eq!(world.tables_in_target("child").await, 0, "the target was touched");
    let all = world.tables.clone();
    world.tables += ",!shop.child";
    world.catch_up().await;
    world.must_be_equal().await;
    world.tables = all;
    world.configure("source.cascades", "accept");
    world.catch_up().await;
    world.must_be_equal().await;
    // What was accepted: the log says nothing, and only `verify` can tell.
    world.execute("DELETE FROM parent WHERE id = 1").await;
    world.catch_up().await;
    assert_eq!(world.ask_target("SELECT count(*) FROM child").await.as_deref(), Some("2"));
    world.command(&["verify"]).await.must_exit(3);
    world.command(&["verify", "--repair"]).await.must_exit(0);
    world.must_be_equal().await;
}

/// S40: what is not a plain INSERT, UPDATE or DELETE is rows in the log all the same.
async fn every_way_to_write_a_row_arrives(pair: Pair) {
    let sql = "CREATE TABLE t (id int AUTO_INCREMENT PRIMARY KEY, u int UNIQUE, v varchar(50),
            g int AS (u * 2) VIRTUAL, s varchar(60) AS (concat(v, '!')) STORED);
        CREATE TABLE log (id int AUTO_INCREMENT PRIMARY KEY, what varchar(50));
        CREATE TRIGGER watch AFTER INSERT ON t FOR EACH ROW INSERT INTO log (what) VALUES (NEW.v);
        CREATE TABLE parts (id int PRIMARY KEY, v varchar(50)) PARTITION BY HASH (id) PARTITIONS 3;
        CREATE TABLE unkeyed (a int NOT NULL, v varchar(50), UNIQUE KEY (a));
        INSERT INTO t (u, v) VALUES (1, 'a'), (2, 'b'), (3, 'c')";
    let world = World::new(pair, sql).await;
    world.catch_up().await;
    world.must_be_equal().await;
    for change in [
        "INSERT INTO t (u, v) VALUES (1, 'x') ON DUPLICATE KEY UPDATE v = 'twice'",
        "REPLACE INTO t (u, v) VALUES (2, 'replaced'), (9, 'new')",
        "INSERT IGNORE INTO t (u, v) VALUES (1, 'ignored'), (10, 'ten')",
        "INSERT INTO t (u, v) SELECT u + 100, v FROM t",
        "UPDATE t a JOIN t b ON a.u = b.u + 100 SET a.v = 'joined', b.v = 'join'",
        "DELETE a FROM t a JOIN t b ON a.u = b.u + 100 WHERE b.u = 9",
        "BEGIN; INSERT INTO t (v) VALUES ('goes'); ROLLBACK",
        "BEGIN; INSERT INTO t (v) VALUES ('in'); SAVEPOINT s; INSERT INTO t (v) VALUES ('out');
         ROLLBACK TO SAVEPOINT s; INSERT INTO t (v) VALUES ('in too'); RELEASE SAVEPOINT s; COMMIT",
        "INSERT INTO parts SELECT id, v FROM t; UPDATE parts SET id = id + 1000 WHERE id % 2 = 0",
        "INSERT INTO unkeyed VALUES (1, 'a'), (2, 'b'); UPDATE unkeyed SET a = a + 5",
        "CREATE TABLE copy (id int PRIMARY KEY) SELECT id, v FROM t; DROP TABLE copy",
        "CREATE TEMPORARY TABLE tmp (id int); INSERT INTO tmp VALUES (1);
         INSERT INTO log (what) SELECT concat('tmp ', id) FROM tmp; DROP TEMPORARY TABLE tmp",
        "CREATE USER somebody@localhost; GRANT SELECT ON shop.t TO somebody@localhost;
         DROP USER somebody@localhost; ANALYZE TABLE t; OPTIMIZE TABLE t; FLUSH TABLES",
        "CREATE DATABASE elsewhere; CREATE TABLE elsewhere.t (id int PRIMARY KEY);
         INSERT INTO elsewhere.t VALUES (1); ALTER TABLE elsewhere.t ADD COLUMN v int;
         DROP DATABASE elsewhere",
        "CREATE VIEW seen AS SELECT id FROM t; CREATE FUNCTION twice(n int) RETURNS int
         DETERMINISTIC RETURN n * 2; DROP VIEW seen; DROP FUNCTION twice",
    ] {
        world.execute(change).await;
        world.catch_up().await;
        world.must_be_equal().await;
    }
    if pair.target != Target::Sqlite {
        world.command(&["verify"]).await.must_exit(0);
    }
}

async fn the_shop_arrives_with_full_row_metadata(pair: Pair) {
    let settings = [("binlog-row-metadata", "FULL")];
    let mut world = World::with(pair, "", &settings, false).await;
    shop::open(&world.source, 2_000).await.unwrap();
    let shop = Shop::start(&world.from, 3, 5, Duration::from_millis(1));
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    daemon.kill().await;
    shop.close().await.unwrap();
    world.catch_up().await;
    world.must_be_equal().await;
}
