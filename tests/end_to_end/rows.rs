//! What happens to rows: large texts left alone, keys that change, TRUNCATE, tables without a key,
//! values that a target refuses (S64 to S73, S90, S106).

use crate::support::{Pair, Source, Target, World};

for_each_pair! {
    s64_a_large_text_that_an_update_leaves_alone_keeps_its_value:
        postgres(sqlite postgres mariadb /);
    s65_keys_change_swap_and_form_chains:
        postgres(sqlite postgres / mariadb), mariadb(sqlite mariadb / postgres);
    s66_a_key_is_deleted_and_inserted_again:
        postgres(sqlite postgres / mariadb), mariadb(postgres / sqlite mariadb);
    s67_one_key_is_changed_thousands_of_times:
        postgres(sqlite postgres / mariadb), mariadb(mariadb / sqlite postgres);
    s68_secondary_unique_values_are_swapped:
        postgres(sqlite postgres mariadb /), mariadb(sqlite / postgres mariadb);
    s69_a_table_without_replica_identity_is_refused: postgres(sqlite postgres / mariadb);
    s70_a_table_without_a_key_is_refused_whatever_its_identity:
        postgres(sqlite postgres / mariadb), mariadb(sqlite / postgres mariadb);
    s72_keys_that_a_sloppy_comparison_would_merge_stay_apart:
        postgres(sqlite postgres mariadb /), mariadb(sqlite postgres mariadb /);
    s73_truncate_takes_effect_at_its_place:
        postgres(sqlite postgres mariadb /), mariadb(postgres mariadb / sqlite);
    s90_s106_a_refused_row_stops_its_table_only_and_is_not_printed:
        postgres(sqlite postgres mariadb /), mariadb(mariadb / sqlite postgres);
    a_deleted_row_is_kept_and_marked_when_deletes_are_soft:
        postgres(sqlite postgres mariadb /), mariadb(sqlite / postgres mariadb);
}

/// Runs SQL once before and once after the first copy, then while a daemon runs; equal each time.
async fn check(pair: Pair, tables: &str, changes: &[&str]) {
    let mut world = World::new(pair, tables).await;
    world.catch_up().await;
    for change in changes {
        world.execute(change).await;
    }
    world.catch_up().await;
    world.must_be_equal().await;
    // Once more from the beginning, each change in a batch of its own.
    let mut daemon = world.run(&[]);
    for change in changes {
        // What cannot happen twice (a key that exists by now) changes nothing.
        let _ = world.source.batch_execute(change).await;
        let _ = world.source.batch_execute("ROLLBACK").await;
        world.arrival(&mut daemon).await;
    }
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

async fn s64_a_large_text_that_an_update_leaves_alone_keeps_its_value(pair: Pair) {
    let tables = "CREATE TABLE t (id int PRIMARY KEY, n int, body text);
        ALTER TABLE t ALTER body SET STORAGE EXTERNAL;
        INSERT INTO t SELECT n, 0, repeat(md5(n::text), 4000) FROM generate_series(1, 12) n;
        CREATE TABLE f (id int PRIMARY KEY, n int, body text);
        ALTER TABLE f ALTER body SET STORAGE EXTERNAL; ALTER TABLE f REPLICA IDENTITY FULL;
        INSERT INTO f SELECT * FROM t";
    let changes = [
        "UPDATE t SET n = 1; UPDATE f SET n = 1",
        "UPDATE t SET id = id + 100 WHERE id < 4; UPDATE f SET id = id + 100 WHERE id < 4",
        "BEGIN; INSERT INTO t VALUES (50, 0, repeat('fresh', 9000)); UPDATE t SET n = 2 WHERE
         id = 50;
         UPDATE t SET id = 51 WHERE id = 50; UPDATE t SET n = 3 WHERE id = 51; COMMIT",
        "BEGIN; UPDATE t SET body = repeat('other', 8000) WHERE id = 5;
         UPDATE t SET n = 9 WHERE id = 5; COMMIT",
        "UPDATE t SET id = 200 WHERE id = 6; UPDATE t SET n = 5 WHERE id = 200; DELETE FROM t WHERE
         id = 200",
        "UPDATE t SET body = NULL WHERE id = 7; UPDATE t SET n = 8 WHERE id = 7",
    ];
    check(pair, tables, &changes).await;

    // The target has lost its row: only the source knows the text.
    let mut world = World::new(pair, tables).await;
    world.catch_up().await;
    world.execute_in_target("DELETE FROM t WHERE id IN (1, 2)").await;
    let mut daemon = world.run(&[]);
    world.execute("UPDATE t SET n = 77 WHERE id IN (1, 2)").await;
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

async fn s65_keys_change_swap_and_form_chains(pair: Pair) {
    let tables = &"CREATE TABLE t (a int, b varchar(20), v text, PRIMARY KEY (b, a));
        INSERT INTO t SELECT n, 'k' || n, 'row ' || n FROM SERIES"
        .replace("SERIES", &pair.source.series(20));
    let changes = [
        "UPDATE t SET a = a + 1000 WHERE a = 1",
        "BEGIN; UPDATE t SET b = 'swap' WHERE a = 2; UPDATE t SET a = 2, b = 'k2' WHERE a = 3;
         UPDATE t SET a = 3, b = 'k3' WHERE b = 'swap'; COMMIT",
        "BEGIN; UPDATE t SET b = 'x' WHERE a = 6; UPDATE t SET a = 6, b = 'k6' WHERE a = 5;
         UPDATE t SET a = 5, b = 'k5' WHERE a = 4; UPDATE t SET a = 4 WHERE b = 'x'; COMMIT",
        "UPDATE t SET a = -a",
        "BEGIN; DELETE FROM t WHERE a = -7; UPDATE t SET a = -7, b = 'k7' WHERE a = -8; COMMIT",
    ];
    check(pair, tables, &changes).await;
}

async fn s66_a_key_is_deleted_and_inserted_again(pair: Pair) {
    let tables = format!(
        "CREATE TABLE t (id int PRIMARY KEY, v text, w text);
         INSERT INTO t SELECT n, 'old', 'old' FROM {}",
        pair.source.series(9)
    );
    let changes = [
        "BEGIN; DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (1, 'again', NULL); COMMIT",
        "DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (2, NULL, 'again')",
        "DELETE FROM t WHERE id = 3",
        "INSERT INTO t VALUES (3, 'later', NULL)",
        "BEGIN; DELETE FROM t WHERE id = 4; INSERT INTO t VALUES (4, 'a', 'b'); DELETE FROM t WHERE
         id = 4; COMMIT",
        "BEGIN; INSERT INTO t VALUES (50, 'brief', ''); DELETE FROM t WHERE id = 50; COMMIT",
    ];
    check(pair, &tables, &changes).await;
}

async fn s67_one_key_is_changed_thousands_of_times(pair: Pair) {
    let table =
        "CREATE TABLE t (id int PRIMARY KEY, n int, v text); INSERT INTO t VALUES (1, 0, '');";
    match pair.source {
        Source::Postgres => {
            let changes = [
                "DO $$ BEGIN FOR i IN 1..10000 LOOP UPDATE t SET n = n + 1, v = 'v' || i; END LOOP;
                 END $$",
                "DO $$ BEGIN FOR i IN 1..500 LOOP UPDATE t SET n = n + 1; COMMIT; END LOOP; END $$",
            ];
            check(pair, table, &changes).await;
        }
        Source::Mariadb => {
            let tables = format!(
                "{table} CREATE PROCEDURE count_to(last int) BEGIN DECLARE i int DEFAULT 0;
                 WHILE i < last DO SET i = i + 1; UPDATE t SET n = n + 1, v = 'v' || i; END WHILE;
                 END"
            );
            check(pair, &tables, &["BEGIN; CALL count_to(10000); COMMIT", "CALL count_to(500)"])
                .await;
        }
    }
}

async fn s68_secondary_unique_values_are_swapped(pair: Pair) {
    let tables = format!(
        "CREATE TABLE t (id int PRIMARY KEY, email varchar(50) UNIQUE {});
         INSERT INTO t SELECT n, 'mail' || n FROM {}",
        pair.source.either("DEFERRABLE INITIALLY DEFERRED", ""),
        pair.source.series(10)
    );
    let changes = [
        "BEGIN; UPDATE t SET email = 'x' || email; UPDATE t SET email = 'mail' || (11 - id); COMMIT",
        "BEGIN; UPDATE t SET email = 'x' WHERE id = 10; UPDATE t SET email = 'mail1' WHERE id = 1;
         UPDATE t SET email = 'mail10' WHERE id = 10; COMMIT",
        "BEGIN; DELETE FROM t WHERE id = 4; INSERT INTO t VALUES (40, 'mail7'); COMMIT",
    ];
    check(pair, &tables, &changes).await;
}

async fn check_refused(pair: Pair, table: &str) {
    let world = World::new(pair, table).await;
    let outcome = world.command(&["run", "--until-current"]).await.must_stop_with("no-key");
    outcome.must_say(&world.name("t")).must_say("ALTER TABLE");
    if pair.source == Source::Postgres {
        let slots = world.ask("SELECT count(*) FROM pg_replication_slots").await;
        assert_eq!(slots.as_deref(), Some("0"));
    }
    // Updates of the table must go on working: nothing was published.
    world.execute("UPDATE t SET v = 'still possible'").await;
}

async fn s69_a_table_without_replica_identity_is_refused(pair: Pair) {
    let nothing = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'v');
        ALTER TABLE t REPLICA IDENTITY NOTHING";
    check_refused(pair, nothing).await;
}

async fn s70_a_table_without_a_key_is_refused_whatever_its_identity(pair: Pair) {
    let rows = "INSERT INTO t VALUES (1, 'v'), (1, 'v')";
    check_refused(pair, &format!("CREATE TABLE t (id int, v text); {rows}")).await;
    let identity = pair.source.either(
        "CREATE TABLE t (id int, v text); ALTER TABLE t REPLICA IDENTITY FULL",
        // A unique key that lets NULL in names no row.
        "CREATE TABLE t (id int, v text, u int UNIQUE, KEY (id))",
    );
    let rows = rows.replace("INTO t", "INTO t (id, v)");
    check_refused(pair, &format!("{identity}; {rows}")).await;
}

async fn s72_keys_that_a_sloppy_comparison_would_merge_stay_apart(pair: Pair) {
    match pair.source {
        Source::Postgres => check_keys_of_postgres(pair).await,
        Source::Mariadb => check_keys_of_mariadb(pair).await,
    }
}

async fn check_keys_of_postgres(pair: Pair) {
    let tables = "CREATE TABLE t (k varchar(40) PRIMARY KEY, v int);
        INSERT INTO t VALUES ('a', 1), ('A', 2), ('á', 3), ('a ', 4), ('a  ', 5), (' a', 6),
            (E'a\\u0301', 7), ('ß', 8), ('ss', 9), ('', 10), ('1', 11), ('01', 12), ('1.0', 13);
        CREATE TABLE p (k char(5) PRIMARY KEY, v int); INSERT INTO p VALUES ('a', 1), ('A', 2);
        CREATE TABLE n (k numeric PRIMARY KEY, v int); INSERT INTO n VALUES (1, 1), (1.5, 2),
            (12345678901234567890.123456789, 3), (12345678901234567890.123456788, 4);
        CREATE TABLE c (k varchar(20) COLLATE \"C\" PRIMARY KEY, v int);
        INSERT INTO c SELECT k, v FROM t";
    let changes = [
        "UPDATE t SET v = v * 10; UPDATE p SET v = v * 10; UPDATE n SET v = v * 10",
        "DELETE FROM t WHERE k IN ('A', 'a '); DELETE FROM p WHERE k = 'A';
         DELETE FROM n WHERE v = 30",
        "INSERT INTO t VALUES ('A', 99), ('á ', 100);
         UPDATE c SET k = upper(k) WHERE k IN ('ss', 'a ')",
        // An equal number in other digits is the same key.
        "UPDATE n SET k = 1.50 WHERE k = 1.5",
    ];
    check(pair, tables, &changes).await;
}

/// What is one key to the source's collation may be written in another way later.
async fn check_keys_of_mariadb(pair: Pair) {
    let tables = "CREATE TABLE t (k varchar(40) COLLATE utf8mb4_nopad_bin PRIMARY KEY, v int);
        INSERT INTO t VALUES ('a', 1), ('A', 2), ('á', 3), ('a ', 4), ('a  ', 5), (' a', 6),
            (concat('a', convert(x'cc81' USING utf8mb4)), 7), ('ß', 8), ('ss', 9), ('', 10),
            ('1', 11), ('01', 12), ('1.0', 13);
        CREATE TABLE b (k varbinary(40) PRIMARY KEY, v int); INSERT INTO b SELECT k, v FROM t;
        INSERT INTO b VALUES (x'00', 14), (x'0000', 15), (x'6100', 16);
        CREATE TABLE f (k binary(3) PRIMARY KEY, v int);
        INSERT INTO f VALUES ('', 1), ('a', 2), ('A', 3), (x'610061', 4);
        CREATE TABLE n (k decimal(40,9) PRIMARY KEY, v int); INSERT INTO n VALUES (1, 1), (1.5, 2),
            (12345678901234567890.123456789, 3), (12345678901234567890.123456788, 4);
        CREATE TABLE c (k varchar(20) COLLATE utf8mb4_general_ci PRIMARY KEY, v int);
        INSERT INTO c VALUES ('one', 1), ('two', 2), ('drei', 3)";
    let changes = [
        "UPDATE t SET v = v * 10; UPDATE b SET v = v * 10; UPDATE n SET v = v * 10;
         UPDATE f SET v = v * 10",
        "DELETE FROM t WHERE k IN ('A', 'a '); DELETE FROM b WHERE k IN ('A', 'a ', x'6100');
         DELETE FROM n WHERE v = 30; DELETE FROM f WHERE v = 30",
        "INSERT INTO t VALUES ('A', 99), ('á ', 100); INSERT INTO b VALUES ('A', 99)",
        "UPDATE c SET k = upper(k) WHERE k = 'ONE'; UPDATE c SET v = 20 WHERE k = 'TWO'",
        "DELETE FROM c WHERE k = 'One'; INSERT INTO c VALUES ('oNE', 5)",
        "UPDATE c SET k = 'DREI', v = 30 WHERE k = 'drei'; DELETE FROM c WHERE k = 'dreI'",
    ];
    // MySQL has another word for a collation that ignores nothing.
    let tables = match std::env::var_os("MYSQL_TREE") {
        Some(_) => tables.replace("utf8mb4_nopad_bin", "utf8mb4_0900_bin"),
        None => tables.to_owned(),
    };
    check(pair, &tables, &changes).await;
}

async fn s73_truncate_takes_effect_at_its_place(pair: Pair) {
    let series = pair.source.series(50);
    let tables = format!(
        "CREATE TABLE t (id int PRIMARY KEY, v text);
         INSERT INTO t SELECT n, 'old' FROM {series};
         CREATE TABLE u (id int PRIMARY KEY, t int {});
         INSERT INTO u SELECT n, n FROM {series}",
        pair.source.either("REFERENCES t", "")
    );
    let changes: [&str; 7] = pair.source.either(
        [
            "BEGIN; TRUNCATE t CASCADE; INSERT INTO t VALUES (1, 'after'); COMMIT",
            "INSERT INTO t VALUES (2, 'b'), (3, 'c'); INSERT INTO u VALUES (1, 2)",
            "BEGIN; INSERT INTO t VALUES (4, 'before'); TRUNCATE t, u;
             INSERT INTO t VALUES (5, 'after');
             INSERT INTO u VALUES (9, 5); COMMIT",
            "BEGIN; TRUNCATE t CASCADE; ROLLBACK",
            "BEGIN; UPDATE t SET v = 'x'; TRUNCATE u; COMMIT",
            "TRUNCATE t CASCADE; INSERT INTO t VALUES (6, 'last'); TRUNCATE t CASCADE",
            "INSERT INTO t VALUES (6, 'again')",
        ],
        // Each TRUNCATE commits what is open.
        [
            "BEGIN; TRUNCATE t; INSERT INTO t VALUES (1, 'after'); COMMIT",
            "INSERT INTO t VALUES (2, 'b'), (3, 'c'); INSERT INTO u VALUES (60, 2)",
            "BEGIN; INSERT INTO t VALUES (4, 'before'); TRUNCATE TABLE `t`; TRUNCATE TABLE shop.u;
             INSERT INTO t VALUES (5, 'after'); INSERT INTO u VALUES (9, 5); COMMIT",
            "BEGIN; INSERT INTO t VALUES (70, 'stays'); TRUNCATE /* this one */ TABLE u; ROLLBACK",
            "BEGIN; UPDATE t SET v = 'x'; TRUNCATE u; COMMIT",
            "TRUNCATE t; INSERT INTO t VALUES (6, 'last'); TRUNCATE t",
            "INSERT INTO t VALUES (6, 'again')",
        ],
    );
    check(pair, &tables, &changes).await;
}

/// What the target's message says about the row is not repeated.
async fn s90_s106_a_refused_row_stops_its_table_only_and_is_not_printed(pair: Pair) {
    let tables = "CREATE TABLE t (id int PRIMARY KEY, email text); INSERT INTO t VALUES (1, 'ok');
        CREATE TABLE other (id int PRIMARY KEY)";
    let mut world = World::new(pair, tables).await;
    let table = world.name("t");
    world.catch_up().await;
    let (refuse, allow) = match pair.target {
        Target::Postgres | Target::Mariadb => (
            "ALTER TABLE t ADD CONSTRAINT picky CHECK (email NOT LIKE 'bob%')",
            "ALTER TABLE t DROP CONSTRAINT picky",
        ),
        Target::Sqlite => (
            "CREATE TRIGGER picky BEFORE INSERT ON t WHEN NEW.email LIKE 'bob%'
             BEGIN SELECT RAISE(ABORT, 'Key (email)=(bob@example.com) refused'); END",
            "DROP TRIGGER picky",
        ),
    };
    world.execute_in_target(refuse).await;
    let mut daemon = world.run(&[]);
    world.execute("INSERT INTO other VALUES (1)").await;
    world.execute("INSERT INTO t VALUES (2, 'bob@example.com'), (3, 'fine')").await;
    world.execute("INSERT INTO other VALUES (2)").await;
    world.until_target_says(&mut daemon, "SELECT count(*) FROM other", "2").await;
    world.arrival(&mut daemon).await;
    for part in ["poison-row", &table, "key hash", "version="] {
        assert!(daemon.has_said(part), "expected {part:?}: {}", daemon.stderr());
    }
    assert!(daemon.has_said("backfill --table"), "{}", daemon.stderr());
    let outcome = daemon.terminate().await;
    assert!(!outcome.stderr.contains("bob@"), "{outcome}");
    let outcome = world.command(&["run", "--until-current"]).await;
    assert!(!outcome.must_stop_with("poison-row").must_exit(1).stderr.contains("bob@"));

    world.execute_in_target(allow).await;
    world.command(&["backfill", "--table", &table]).await.must_exit(0);
    world.catch_up().await;
    world.must_be_equal().await;
}

async fn a_deleted_row_is_kept_and_marked_when_deletes_are_soft(pair: Pair) {
    let tables = "CREATE TABLE t (id int PRIMARY KEY, v text);
        INSERT INTO t VALUES (1, 'one'), (2, 'two'), (3, 'three'), (4, 'four')";
    let mut world = World::new(pair, tables).await;
    world.configure("pipeline.deletes", "soft");
    world.catch_up().await;
    world.execute("DELETE FROM t WHERE id = 2; UPDATE t SET id = 30 WHERE id = 3").await;
    world.execute("DELETE FROM t WHERE id = 4; INSERT INTO t VALUES (4, 'again')").await;
    world.catch_up().await;
    let kept = [
        ("1", "one", "0"),
        ("2", "two", "1"),
        ("3", "three", "1"),
        ("4", "again", "0"),
        ("30", "three", "0"),
    ];
    must_hold(&world, &kept).await;
    world.execute("INSERT INTO t VALUES (2, 'back')").await;
    world.catch_up().await;
    must_hold(&world, &[("2", "back", "0"), ("3", "three", "1"), ("30", "three", "0")]).await;
    world.execute("TRUNCATE TABLE t").await;
    world.catch_up().await;
    must_hold(&world, &[("1", "one", "1"), ("2", "back", "1"), ("30", "three", "1")]).await;
    world.command(&["verify"]).await.must_exit(0);
}

/// The target has these rows: key, value, and whether they are deleted.
async fn must_hold(world: &World, rows: &[(&str, &str, &str)]) {
    for (id, v, deleted) in rows {
        let query = format!(
            "SELECT v || CASE WHEN _cdc_deleted THEN '1' ELSE '0' END FROM t WHERE id = {id}"
        );
        assert_eq!(world.ask_target(&query).await, Some(format!("{v}{deleted}")), "row {id}");
    }
}
