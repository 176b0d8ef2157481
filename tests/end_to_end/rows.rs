//! What happens to rows: large texts left alone, keys that change, TRUNCATE, tables without a key,
//! values that a target refuses (S64 to S73, S90, S106).

use crate::support::{Target, World};

for_each_target! {
    s64_a_large_text_that_an_update_leaves_alone_keeps_its_value
    s65_keys_change_swap_and_form_chains
    s66_a_key_is_deleted_and_inserted_again
    s67_one_key_is_changed_thousands_of_times
    s68_secondary_unique_values_are_swapped
    s69_a_table_without_replica_identity_is_refused
    s70_a_table_without_a_key_is_refused_whatever_its_identity
    s72_keys_that_a_sloppy_comparison_would_merge_stay_apart
    s73_truncate_takes_effect_at_its_place
    s90_s106_a_refused_row_stops_its_table_only_and_is_not_printed
}

/// Runs SQL once before and once after the first copy, then while a daemon runs; equal each time.
async fn check(target: Target, tables: &str, changes: &[&str]) {
    let mut world = World::new(target, tables).await;
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

async fn s64_a_large_text_that_an_update_leaves_alone_keeps_its_value(target: Target) {
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
    check(target, tables, &changes).await;

    // The target has lost its row: only the source knows the text.
    let mut world = World::new(target, tables).await;
    world.catch_up().await;
    world.execute_in_target("DELETE FROM t WHERE id IN (1, 2)").await;
    let mut daemon = world.run(&[]);
    world.execute("UPDATE t SET n = 77 WHERE id IN (1, 2)").await;
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

async fn s65_keys_change_swap_and_form_chains(target: Target) {
    let tables = "CREATE TABLE t (a int, b text, v text, PRIMARY KEY (b, a));
        INSERT INTO t SELECT n, 'k' || n, 'row ' || n FROM generate_series(1, 20) n";
    let changes = [
        "UPDATE t SET a = a + 1000 WHERE a = 1",
        "BEGIN; UPDATE t SET b = 'swap' WHERE a = 2; UPDATE t SET (a, b) = (2, 'k2') WHERE a = 3;
         UPDATE t SET (a, b) = (3, 'k3') WHERE b = 'swap'; COMMIT",
        "BEGIN; UPDATE t SET b = 'x' WHERE a = 6; UPDATE t SET (a, b) = (6, 'k6') WHERE a = 5;
         UPDATE t SET (a, b) = (5, 'k5') WHERE a = 4; UPDATE t SET a = 4 WHERE b = 'x'; COMMIT",
        "UPDATE t SET a = -a",
        "BEGIN; DELETE FROM t WHERE a = -7; UPDATE t SET (a, b) = (-7, 'k7') WHERE a = -8; COMMIT",
    ];
    check(target, tables, &changes).await;
}

async fn s66_a_key_is_deleted_and_inserted_again(target: Target) {
    let tables = "CREATE TABLE t (id int PRIMARY KEY, v text, w text);
        INSERT INTO t SELECT n, 'old', 'old' FROM generate_series(1, 9) n";
    let changes = [
        "BEGIN; DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (1, 'again', NULL); COMMIT",
        "DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (2, NULL, 'again')",
        "DELETE FROM t WHERE id = 3",
        "INSERT INTO t VALUES (3, 'later', NULL)",
        "BEGIN; DELETE FROM t WHERE id = 4; INSERT INTO t VALUES (4, 'a', 'b'); DELETE FROM t WHERE
         id = 4; COMMIT",
        "BEGIN; INSERT INTO t VALUES (50, 'brief', ''); DELETE FROM t WHERE id = 50; COMMIT",
    ];
    check(target, tables, &changes).await;
}

async fn s67_one_key_is_changed_thousands_of_times(target: Target) {
    let tables =
        "CREATE TABLE t (id int PRIMARY KEY, n int, v text); INSERT INTO t VALUES (1, 0, '')";
    let changes = [
        "DO $$ BEGIN FOR i IN 1..10000 LOOP UPDATE t SET n = n + 1, v = 'v' || i; END LOOP; END $$",
        "DO $$ BEGIN FOR i IN 1..500 LOOP UPDATE t SET n = n + 1; COMMIT; END LOOP; END $$",
    ];
    check(target, tables, &changes).await;
}

async fn s68_secondary_unique_values_are_swapped(target: Target) {
    let tables = "CREATE TABLE t (id int PRIMARY KEY, email text UNIQUE DEFERRABLE INITIALLY
        DEFERRED); INSERT INTO t SELECT n, 'mail' || n FROM generate_series(1, 10) n";
    let changes = [
        "UPDATE t SET email = 'mail' || (11 - id)",
        "BEGIN; UPDATE t SET email = 'mail1' WHERE id = 1; UPDATE t SET email = 'mail10' WHERE
         id = 10; COMMIT",
        "BEGIN; DELETE FROM t WHERE id = 4; INSERT INTO t VALUES (40, 'mail7'); COMMIT",
    ];
    check(target, tables, &changes).await;
}

async fn check_refused(target: Target, table: &str) {
    let world = World::new(target, table).await;
    let outcome = world.command(&["run", "--until-current"]).await.must_stop_with("no-key");
    outcome.must_say("public.t").must_say("ALTER TABLE");
    assert_eq!(world.ask("SELECT count(*) FROM pg_replication_slots").await.as_deref(), Some("0"));
    // Updates of the table must go on working: nothing was published.
    world.execute("UPDATE t SET v = 'still possible'").await;
}

async fn s69_a_table_without_replica_identity_is_refused(target: Target) {
    let nothing = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'v');
        ALTER TABLE t REPLICA IDENTITY NOTHING";
    check_refused(target, nothing).await;
    check_refused(target, "CREATE TABLE t (id int, v text); INSERT INTO t VALUES (1, 'v')").await;
}

async fn s70_a_table_without_a_key_is_refused_whatever_its_identity(target: Target) {
    let full = "CREATE TABLE t (id int, v text); INSERT INTO t VALUES (1, 'v'), (1, 'v');
        ALTER TABLE t REPLICA IDENTITY FULL";
    check_refused(target, full).await;
}

async fn s72_keys_that_a_sloppy_comparison_would_merge_stay_apart(target: Target) {
    let tables = "CREATE TABLE t (k text PRIMARY KEY, v int);
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
    check(target, tables, &changes).await;
}

async fn s73_truncate_takes_effect_at_its_place(target: Target) {
    let tables = "CREATE TABLE t (id int PRIMARY KEY, v text);
        INSERT INTO t SELECT n, 'old' FROM generate_series(1, 50) n;
        CREATE TABLE u (id int PRIMARY KEY, t int REFERENCES t);
        INSERT INTO u SELECT n, n FROM generate_series(1, 50) n";
    let changes = [
        "BEGIN; TRUNCATE t CASCADE; INSERT INTO t VALUES (1, 'after'); COMMIT",
        "INSERT INTO t VALUES (2, 'b'), (3, 'c'); INSERT INTO u VALUES (1, 2)",
        "BEGIN; INSERT INTO t VALUES (4, 'before'); TRUNCATE t, u;
         INSERT INTO t VALUES (5, 'after');
         INSERT INTO u VALUES (9, 5); COMMIT",
        "BEGIN; TRUNCATE t CASCADE; ROLLBACK",
        "BEGIN; UPDATE t SET v = 'x'; TRUNCATE u; COMMIT",
        "TRUNCATE t CASCADE; INSERT INTO t VALUES (6, 'last'); TRUNCATE t CASCADE",
        "INSERT INTO t VALUES (6, 'again')",
    ];
    check(target, tables, &changes).await;
}

/// What the target's message says about the row is not repeated.
async fn s90_s106_a_refused_row_stops_its_table_only_and_is_not_printed(target: Target) {
    let tables = "CREATE TABLE t (id int PRIMARY KEY, email text); INSERT INTO t VALUES (1, 'ok');
        CREATE TABLE other (id int PRIMARY KEY)";
    let mut world = World::new(target, tables).await;
    world.catch_up().await;
    let (refuse, allow) = match target {
        Target::Postgres => (
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
    for part in ["poison-row", "public.t", "key hash", "version="] {
        assert!(daemon.has_said(part), "expected {part:?}: {}", daemon.stderr());
    }
    assert!(daemon.has_said("backfill --table"), "{}", daemon.stderr());
    let outcome = daemon.terminate().await;
    assert!(!outcome.stderr.contains("bob@"), "{outcome}");
    let outcome = world.command(&["run", "--until-current"]).await;
    assert!(!outcome.must_stop_with("poison-row").must_exit(1).stderr.contains("bob@"));

    world.execute_in_target(allow).await;
    world.command(&["backfill", "--table", "public.t"]).await.must_exit(0);
    world.catch_up().await;
    world.must_be_equal().await;
}
