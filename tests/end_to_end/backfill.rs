//! Copying while everything changes: the first copy, repeated ones, and interrupted ones (S51 to
//! S57, S62).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use driftless::demo::dice::Dice;
use tokio::task::JoinHandle;

use crate::support::world::session;
use crate::support::{Target, World, wait_until};

for_each_target! {
    s51_every_key_changes_while_its_chunk_is_read
    s52_commits_become_visible_late
    s54_killed_during_the_first_copy_continues_where_it_was
    s55_two_backfills_of_one_table_while_it_changes
    s56_keys_appear_between_chunks_and_move_across_them
    s57_rows_deleted_during_a_gap_are_gone_after_a_resync
    s58_backfill_of_an_empty_table_and_of_one_row
    s62_row_level_security_is_never_taken_for_an_empty_table
}

fn table(rows: u32) -> String {
    format!(
        "CREATE TABLE t (id int PRIMARY KEY, v text, n int NOT NULL DEFAULT 0);
         INSERT INTO t SELECT n * 10, md5(n::text), 0 FROM generate_series(1, {rows}) n"
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

async fn s51_every_key_changes_while_its_chunk_is_read(target: Target) {
    let mut world = World::new(target, &table(40_000)).await;
    let churns = [1, 2, 3].map(|seed| {
        Churn::start(&world, seed, |dice| {
            let from = dice.between(0, 400_000);
            let to = from + dice.between(10, 4_000);
            match dice.between(0, 3) {
                0 => format!("UPDATE t SET n = n + 1 WHERE id BETWEEN {from} AND {to}"),
                1 => format!("DELETE FROM t WHERE id BETWEEN {from} AND {}", from + 60),
                _ => format!("INSERT INTO t VALUES ({from}, 'new'), ({to}, 'new')"),
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

async fn s52_commits_become_visible_late(target: Target) {
    // A commit that waits for a standby is in the log, but nobody can see it yet.
    let settings = [("synchronous_standby_names", "nobody"), ("synchronous_commit", "local")];
    let mut world = World::with(target, &table(40_000), &settings, true).await;
    let late = [1, 2, 3].map(|seed| {
        Churn::start(&world, seed, |dice| {
            let id = dice.between(1, 40_000) * 10;
            let change = match dice.between(0, 3) {
                0 => format!("DELETE FROM t WHERE id = {id}"),
                1 => format!("UPDATE t SET n = n + 1 WHERE id BETWEEN {id} - 2000 AND {id}"),
                _ => format!("INSERT INTO t VALUES ({id} + 5, 'late')"),
            };
            format!("SET synchronous_commit = on; {change}")
        })
    });
    let release = Churn::start(&world, 9, |_| {
        "SELECT pg_sleep(0.25); SELECT pg_cancel_backend(pid) FROM pg_stat_activity
         WHERE wait_event = 'SyncRep'"
            .into()
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
    world.catch_up().await;
    world.must_be_equal().await;
}

async fn s54_killed_during_the_first_copy_continues_where_it_was(target: Target) {
    let world = World::new(target, &table(150_000)).await;
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
    world.command(&["backfill", "--table", "public.t", "--where", "id < 100"]).await.must_exit(0);
    world.must_be_equal().await;
}

async fn s55_two_backfills_of_one_table_while_it_changes(target: Target) {
    let mut world = World::new(target, &table(20_000)).await;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    world.execute_in_target("DELETE FROM t WHERE id % 3 = 0").await;
    world.execute_in_target("UPDATE t SET v = 'damaged' WHERE id % 5 = 0").await;
    let churn = Churn::start(&world, 55, |dice| {
        let id = dice.between(1, 20_000) * 10;
        match dice.between(0, 3) {
            0 => format!("DELETE FROM t WHERE id = {id}"),
            1 => format!("UPDATE t SET n = n + 1 WHERE id = {id}"),
            _ => format!("INSERT INTO t VALUES ({id}, 'new')"),
        }
    });
    let (one, two) = tokio::join!(
        world.command(&["backfill", "--table", "public.t"]),
        world.command(&["backfill", "--table", "public.t"]),
    );
    one.must_exit(0);
    two.must_exit(0);
    churn.end().await;
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

async fn s56_keys_appear_between_chunks_and_move_across_them(target: Target) {
    let mut world = World::new(target, &table(40_000)).await;
    let churns = [1, 2].map(|seed| {
        Churn::start(&world, seed, |dice| {
            let id = dice.between(1, 40_000) * 10;
            match dice.between(0, 4) {
                0 => format!("INSERT INTO t VALUES ({id} + 3, 'between')"),
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

async fn s57_rows_deleted_during_a_gap_are_gone_after_a_resync(target: Target) {
    let world = World::new(target, &table(2_000)).await;
    world.catch_up().await;
    world.execute("SELECT pg_drop_replication_slot('driftless_main')").await;
    world.execute("DELETE FROM t WHERE id % 3 = 0; UPDATE t SET n = 7 WHERE id % 5 = 0").await;
    world.execute("DELETE FROM t WHERE id > 19000").await;
    world.command(&["run", "--until-current", "--resync"]).await.must_exit(0);
    world.must_be_equal().await;
    world.command(&["verify"]).await.must_exit(0);
}

async fn s58_backfill_of_an_empty_table_and_of_one_row(target: Target) {
    let sql = "CREATE TABLE empty (id int PRIMARY KEY); CREATE TABLE one (id int PRIMARY KEY);
        INSERT INTO one VALUES (1)";
    let world = World::new(target, sql).await;
    world.catch_up().await;
    world.must_be_equal().await;
    let extra = "INSERT INTO one (id, _cdc_version, _cdc_updated_at)
        SELECT 2, _cdc_version, _cdc_updated_at FROM one";
    world.execute_in_target(extra).await;
    world.command(&["backfill", "--table", "public.empty"]).await.must_exit(0);
    world.command(&["backfill", "--table", "public.one"]).await.must_exit(0);
    world.must_be_equal().await;
}

async fn s62_row_level_security_is_never_taken_for_an_empty_table(target: Target) {
    let sql = "CREATE ROLE keeper LOGIN REPLICATION PASSWORD 'keeper';
        GRANT CREATE ON DATABASE postgres TO keeper; GRANT CREATE, USAGE ON SCHEMA public TO keeper;
        SET ROLE keeper;
        CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 10);
        ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER TABLE t FORCE ROW LEVEL SECURITY;
        CREATE POLICY few ON t USING (id < 3);
        RESET ROLE";
    let mut world = World::new(target, sql).await;
    world.from = world.source_as("keeper", "keeper");
    world.tables = "public.t".into();
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
