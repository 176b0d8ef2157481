//! Copying while everything changes: the first copy, repeated ones, and interrupted ones (S51 to
//! S58, S61, S62).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use driftless::demo::dice::Dice;
use tokio::task::JoinHandle;

use crate::support::world::session;
use crate::support::{Pair, Source, Target, World, wait_until};

for_each_pair! {
    s51_every_key_changes_while_its_chunk_is_read:
        postgres(sqlite postgres mariadb /), mariadb(sqlite postgres / mariadb);
    s52_commits_become_visible_late:
        postgres(sqlite postgres / mariadb), mariadb(sqlite / postgres mariadb);
    s54_killed_during_the_first_copy_continues_where_it_was:
        postgres(sqlite postgres / mariadb), mariadb(postgres / sqlite mariadb);
    s55_two_backfills_of_one_table_while_it_changes:
        postgres(sqlite postgres mariadb /), mariadb(mariadb / sqlite postgres);
    s56_keys_appear_between_chunks_and_move_across_them:
        postgres(sqlite postgres / mariadb), mariadb(sqlite / postgres mariadb);
    s57_rows_deleted_during_a_gap_are_gone_after_a_resync:
        postgres(sqlite postgres / mariadb), mariadb(mariadb / sqlite postgres);
    s58_backfill_of_an_empty_table_and_of_one_row:
        postgres(sqlite postgres / mariadb), mariadb(postgres / sqlite mariadb);
    s61_keys_of_every_kind_are_chunked_without_a_gap:
        postgres(sqlite postgres mariadb /), mariadb(sqlite postgres mariadb /);
    s62_row_level_security_is_never_taken_for_an_empty_table:
        postgres(sqlite postgres / mariadb);
}

fn table(pair: Pair, rows: u32) -> String {
    format!(
        "CREATE TABLE t (id int PRIMARY KEY, v text, n int NOT NULL DEFAULT 0);
         INSERT INTO t SELECT n * 10, {}, 0 FROM {}",
        pair.source.digits(),
        pair.source.series(rows)
    )
}

/// Runs SQL made by a function, over and over, on a connection of its own, until told to stop.
struct Churn {
    stop: Arc<AtomicBool>,
    worker: JoinHandle<u32>,
}

impl Churn {
    fn start(
        world: &World,
        seed: u64,
        statement: impl Fn(&mut Dice) -> String + Send + 'static,
    ) -> Churn {
        let stop = Arc::new(AtomicBool::new(false));
        let (url, stopped) = (world.from.clone(), stop.clone());
        let worker = tokio::spawn(async move {
            let (session, mut dice, mut done) = (session(&url).await, Dice::new(seed), 0);
            while !stopped.load(Ordering::Relaxed) {
                // A duplicate key is rolled back, as in real life.
                done += u32::from(session.batch_execute(&statement(&mut dice)).await.is_ok());
            }
            done
        });
        Churn { stop, worker }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        assert!(self.worker.await.unwrap() > 0, "nothing changed meanwhile");
    }
}

async fn s51_every_key_changes_while_its_chunk_is_read(pair: Pair) {
    let mut world = World::new(pair, &table(pair, 40_000)).await;
    let churns = [1, 2, 3].map(|seed| {
        Churn::start(&world, seed, |dice| {
            let from = dice.between(0, 400_000);
            let to = from + dice.between(10, 4_000);
            match dice.between(0, 3) {
                0 => format!("UPDATE t SET n = n + 1 WHERE id BETWEEN {from} AND {to}"),
                1 => format!("DELETE FROM t WHERE id BETWEEN {from} AND {}", from + 60),
                _ => format!("INSERT INTO t (id, v) VALUES ({from}, 'new'), ({to}, 'new')"),
            }
        })
    });
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    for churn in churns {
        churn.end().await;
    }
    daemon.terminate().await.must_exit(0);
    world.catch_up().await;
    world.must_be_equal().await;
}

/// A commit that waits for a standby is in the log, but nobody can see it yet.
async fn s52_commits_become_visible_late(pair: Pair) {
    let settings = [("synchronous_standby_names", "nobody"), ("synchronous_commit", "local")];
    let settings = pair.source.either(&settings[..], &[]);
    let mut world = World::with(pair, &table(pair, 40_000), settings, true).await;
    let semi_sync = match world.server.is_mysql() {
        true => {
            let plugin = "INSTALL PLUGIN rpl_semi_sync_source SONAME 'semisync_source.so'";
            world.execute(plugin).await;
            "rpl_semi_sync_source"
        }
        false => "rpl_semi_sync_master",
    };
    let switch = move |to| format!("SET GLOBAL {semi_sync}_enabled = {to}");
    if pair.source == Source::Mariadb {
        let wait = format!(
            "SET GLOBAL {semi_sync}_wait_point = 'AFTER_SYNC';
             SET GLOBAL {semi_sync}_timeout = 60000; {}",
            switch("ON")
        );
        world.execute(&wait).await;
    }
    let late = [1, 2, 3].map(|seed| {
        Churn::start(&world, seed, move |dice| {
            let id = dice.between(1, 40_000) * 10;
            let change = match dice.between(0, 3) {
                0 => format!("DELETE FROM t WHERE id = {id}"),
                1 => format!("UPDATE t SET n = n + 1 WHERE id BETWEEN {id} - 2000 AND {id}"),
                _ => format!("INSERT INTO t (id, v) VALUES ({id} + 5, 'late')"),
            };
            pair.source.either(format!("SET synchronous_commit = on; {change}"), change)
        })
    });
    let release = Churn::start(&world, 9, move |_| {
        let cancel = "SELECT pg_sleep(0.25); SELECT pg_cancel_backend(pid) FROM pg_stat_activity
             WHERE wait_event = 'SyncRep'";
        let toggle = format!("DO sleep(0.25); {}; DO sleep(0.02); {}", switch("OFF"), switch("ON"));
        pair.source.either(cancel.into(), toggle)
    });
    let mut daemon = world.run(&[]);
    let enough = "SELECT CASE WHEN count(*) > 39000 THEN 'yes' ELSE 'no' END FROM t";
    world.until_target_says(&mut daemon, enough, "yes").await;
    world.arrival(&mut daemon).await;
    for churn in late {
        churn.end().await;
    }
    release.end().await;
    daemon.terminate().await.must_exit(0);
    if pair.source == Source::Mariadb {
        world.execute(&switch("OFF")).await;
    }
    world.catch_up().await;
    world.must_be_equal().await;
}

async fn s54_killed_during_the_first_copy_continues_where_it_was(pair: Pair) {
    let world = World::new(pair, &table(pair, 150_000)).await;
    let copied = async || -> u32 {
        let count = world.ask_target("SELECT count(*) FROM t").await;
        count.and_then(|count| count.parse().ok()).unwrap_or(0)
    };
    for part in [1_000, 40_000, 80_000] {
        let mut daemon = world.run(&[]);
        wait_until("a part of the table is copied", async || {
            daemon.must_be_running();
            copied().await > part
        })
        .await;
        daemon.kill().await;
    }
    assert!(copied().await < 150_000, "the copy was over too soon for this test");
    // If the copy began again at the first row, this one would come back.
    world.execute_in_target("DELETE FROM t WHERE id = 10").await;
    world.catch_up().await;
    assert_eq!(copied().await, 149_999, "the copy began again at the first row");
    world
        .command(&["backfill", "--table", &world.name("t"), "--where", "id < 100"])
        .await
        .must_exit(0);
    world.must_be_equal().await;
}

async fn s55_two_backfills_of_one_table_while_it_changes(pair: Pair) {
    let mut world = World::new(pair, &table(pair, 20_000)).await;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    world.execute_in_target("DELETE FROM t WHERE id % 3 = 0").await;
    world.execute_in_target("UPDATE t SET v = 'damaged' WHERE id % 5 = 0").await;
    let churn = Churn::start(&world, 55, |dice| {
        let id = dice.between(1, 20_000) * 10;
        match dice.between(0, 3) {
            0 => format!("DELETE FROM t WHERE id = {id}"),
            1 => format!("UPDATE t SET n = n + 1 WHERE id = {id}"),
            _ => format!("INSERT INTO t (id, v) VALUES ({id}, 'new')"),
        }
    });
    let table = world.name("t");
    let again = ["backfill", "--table", &table];
    let (one, two) = tokio::join!(world.command(&again), world.command(&again));
    one.must_exit(0);
    two.must_exit(0);
    churn.end().await;
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

async fn s56_keys_appear_between_chunks_and_move_across_them(pair: Pair) {
    let mut world = World::new(pair, &table(pair, 40_000)).await;
    let churns = [1, 2].map(|seed| {
        Churn::start(&world, seed, |dice| {
            let id = dice.between(1, 40_000) * 10;
            match dice.between(0, 4) {
                0 => format!("INSERT INTO t (id, v) VALUES ({id} + 3, 'between')"),
                1 => format!("UPDATE t SET id = id + 500001 WHERE id = {id}"),
                2 => format!("UPDATE t SET id = {id} + 1 WHERE id = {id} + 500001"),
                _ => format!("UPDATE t SET id = -id WHERE id = {id}"),
            }
        })
    });
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    for churn in churns {
        churn.end().await;
    }
    daemon.terminate().await.must_exit(0);
    world.catch_up().await;
    world.must_be_equal().await;
}

async fn s57_rows_deleted_during_a_gap_are_gone_after_a_resync(pair: Pair) {
    let world = World::new(pair, &table(pair, 2_000)).await;
    world.catch_up().await;
    world
        .execute(
            pair.source.either("SELECT pg_drop_replication_slot('driftless_main')", "SELECT 1"),
        )
        .await;
    world.execute("DELETE FROM t WHERE id % 3 = 0; UPDATE t SET n = 7 WHERE id % 5 = 0").await;
    world.execute("DELETE FROM t WHERE id > 19000").await;
    if pair.source == Source::Mariadb {
        world.purge_the_log().await;
    }
    world.command(&["run", "--until-current", "--resync"]).await.must_exit(0);
    world.must_be_equal().await;
    world.command(&["verify"]).await.must_exit(0);
}

async fn s58_backfill_of_an_empty_table_and_of_one_row(pair: Pair) {
    let sql = "CREATE TABLE nothing (id int PRIMARY KEY); CREATE TABLE one (id int PRIMARY KEY);
        INSERT INTO one VALUES (1)";
    let world = World::new(pair, sql).await;
    world.catch_up().await;
    world.must_be_equal().await;
    let extra = "INSERT INTO one (id, _cdc_version, _cdc_updated_at)
        SELECT 2, _cdc_version, _cdc_updated_at FROM one";
    world.execute_in_target(extra).await;
    world.command(&["backfill", "--table", &world.name("nothing")]).await.must_exit(0);
    world.command(&["backfill", "--table", &world.name("one")]).await.must_exit(0);
    world.must_be_equal().await;
}

/// Also S53: a delete that comes before the chunk which still has the row. Chunks of a few rows end
/// between any two keys.
async fn s61_keys_of_every_kind_are_chunked_without_a_gap(pair: Pair) {
    let mut sql = String::new();
    let kinds = pair.source.either(POSTGRES_KEYS, MARIADB_KEYS);
    // MariaDB has no such numbers.
    let fits = |value: &&&str| {
        pair.target != Target::Mariadb || !(value.contains("NaN") || value.contains("Infinity"))
    };
    for (number, (kind, values)) in kinds.iter().enumerate() {
        sql += &format!("CREATE TABLE k{number} (k {kind} PRIMARY KEY, n int);");
        let rows =
            values.iter().filter(fits).map(|value| format!("({value}, 0)")).collect::<Vec<_>>();
        sql += &format!("INSERT INTO k{number} VALUES {};", rows.join(", "));
    }
    sql += &format!(
        "CREATE TABLE pair (a varchar(20), b int, n int, PRIMARY KEY (a, b));
         INSERT INTO pair SELECT 'k' || (n % 5), n - 20, 0 FROM {}",
        pair.source.series(40)
    );
    let mut world = World::new(pair, &sql).await;
    world.configure("pipeline.chunk_rows", "3");
    let mut daemon = world.run(&[]);
    for number in 0..kinds.len() {
        world.execute(&format!("UPDATE k{number} SET n = n + 1")).await;
    }
    world.execute("DELETE FROM pair WHERE b % 3 = 0").await;
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
    world.command(&["verify"]).await.must_exit(0);
}

const POSTGRES_KEYS: &[(&str, &[&str])] = &[
    ("bigint", &["-9223372036854775808", "-5", "-1", "0", "1", "9", "10", "9223372036854775807"]),
    ("numeric", &["-1.5", "0", "0.5", "1e20", "'NaN'", "18446744073709551616", "2", "10"]),
    ("double precision", &["'NaN'", "'-Infinity'", "0", "1e300", "-1e-300", "2", "10"]),
    ("text", &["'a'", "'A'", "'á'", "'b'", "'Z'", "''", "' '", "'ß'", "'10'", "'9'"]),
    (
        "uuid",
        &[
            "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
            "'00000000-0000-0000-0000-000000000000'",
            "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
            "'0fffffff-0000-0000-0000-000000000000'",
        ],
    ),
    ("bytea", &["'\\x'", "'\\x00'", "'\\xff'", "'\\x0000'", "'\\x7f'", "'\\x80'"]),
    ("date", &["'2024-02-29'", "'0001-01-01'", "'9999-12-31'", "'1970-01-01'"]),
];

const MARIADB_KEYS: &[(&str, &[&str])] = &[
    ("bigint", &["-9223372036854775808", "-5", "-1", "0", "1", "9", "10", "9223372036854775807"]),
    (
        "bigint unsigned",
        &[
            "0",
            "1",
            "9223372036854775807",
            "9223372036854775808",
            "10",
            "9",
            "18446744073709551615",
        ],
    ),
    ("decimal(30,5)", &["-1.5", "0", "0.5", "1e20", "18446744073709551616", "2", "10"]),
    (
        "varchar(20) COLLATE utf8mb4_general_ci",
        &["'a'", "'B'", "'c'", "'Z'", "''", "'10'", "'9'", "'é'", "'f'", "'É1'"],
    ),
    ("varchar(20) COLLATE utf8mb4_bin", &["'a'", "'A'", "'á'", "'b'", "'Z'", "''", "'ß'", "'10'"]),
    (
        "varchar(20) CHARACTER SET latin1 COLLATE latin1_german2_ci",
        &["'a'", "'ä'", "'z'", "'Ö'", "'ofen'", "'ß'", "'st'"],
    ),
    (
        "char(36) CHARACTER SET ascii",
        &[
            "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
            "'a'",
            "''",
            "'00000000-0000-0000-0000-000000000000'",
            "'B'",
        ],
    ),
    ("varbinary(20)", &["''", "x'00'", "x'ff'", "x'0000'", "x'7f'", "x'80'"]),
    ("binary(4)", &["x'00000000'", "x'00ff'", "x'ff'", "x'61620000'", "x'61'"]),
    ("date", &["'2024-02-29'", "'1000-01-01'", "'9999-12-31'", "'1970-01-01'"]),
    (
        "datetime(6)",
        &[
            "'2024-02-29 12:00:00.000001'",
            "'2024-02-29 12:00:00'",
            "'1000-01-01 00:00:00'",
            "'9999-12-31 23:59:59.999999'",
        ],
    ),
    (
        "time(3)",
        &[
            "'-838:59:59'",
            "'838:59:59'",
            "'00:00:00'",
            "'-00:00:00.001'",
            "'10:00:00'",
            "'9:00:00'",
        ],
    ),
    ("enum('z', 'm', 'a', '')", &["'a'", "'z'", "'m'", "''"]),
    ("year", &["0", "1901", "2155", "2000"]),
];

async fn s62_row_level_security_is_never_taken_for_an_empty_table(pair: Pair) {
    let sql = "CREATE ROLE keeper LOGIN REPLICATION PASSWORD 'keeper';
        GRANT CREATE ON DATABASE postgres TO keeper; GRANT CREATE, USAGE ON SCHEMA public TO keeper;
        SET ROLE keeper;
        CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 10);
        ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER TABLE t FORCE ROW LEVEL SECURITY;
        CREATE POLICY few ON t USING (id < 3);
        RESET ROLE";
    let mut world = World::new(pair, sql).await;
    world.from = world.source_as("keeper", "keeper");
    world.tables = world.name("t");
    world.command(&["run", "--until-current"]).await.must_stop_with("row-security");
    let copied = world.ask_target("SELECT count(*) FROM t").await;
    assert!(matches!(copied.as_deref(), None | Some("0")), "copied {copied:?} rows");
    tokio::time::timeout(Duration::from_secs(60), async {
        world.execute("ALTER TABLE t NO FORCE ROW LEVEL SECURITY").await;
        world.catch_up().await;
        world.must_be_equal().await;
    })
    .await
    .unwrap();
}
