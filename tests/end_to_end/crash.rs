//! Crashes of the replicator, and damage to its state and to its target (S01 to S12).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use driftless::demo::dice::Dice;
use driftless::demo::shop::{self, Shop};

use crate::support::proxy::{Fault, Proxy};
use crate::support::{Pair, Source, Target, World, wait_until};

for_each_pair! {
    s01_killed_at_random_moments_under_load:
        postgres(sqlite postgres mariadb /), mariadb(sqlite postgres mariadb /);
    s01_killed_while_it_reads_the_log_in_bulk: postgres(sqlite postgres / mariadb);
    s03_answer_of_a_commit_lost: postgres(postgres mariadb /), mariadb(/ postgres mariadb);
    s05_state_directory_deleted_resumes_from_the_target:
        postgres(sqlite postgres / mariadb), mariadb(mariadb / sqlite postgres);
    s06_damaged_state_is_never_taken_for_a_first_run:
        postgres(sqlite postgres / mariadb), mariadb(sqlite / postgres mariadb);
    s09_state_directory_restored_from_an_older_copy:
        postgres(sqlite postgres / mariadb), mariadb(postgres / sqlite mariadb);
    s10_target_restored_from_an_older_backup:
        postgres(sqlite postgres / mariadb), mariadb(mariadb / sqlite postgres);
    s12_sigterm_under_load_drains_and_exits_with_0:
        postgres(sqlite postgres mariadb /), mariadb(sqlite / postgres mariadb);
}

/// A table to replicate, and one whose only row is removed from the target by hand. If that row
/// comes back, the tables were copied afresh: the replicator had taken a damage for a first run.
fn tables(pair: Pair) -> String {
    format!(
        "CREATE TABLE t (id int PRIMARY KEY, v text);
         INSERT INTO t SELECT n, 'first ' || n FROM {};
         CREATE TABLE witness (id int PRIMARY KEY); INSERT INTO witness VALUES (1)",
        pair.source.series(500)
    )
}

fn more(pair: Pair) -> String {
    format!(
        "UPDATE t SET v = v || '!' WHERE id % 3 = 0; DELETE FROM t WHERE id % 7 = 0;
         INSERT INTO t SELECT n + (SELECT max(id) FROM t), 'more' FROM {}",
        pair.source.series(100)
    )
}

async fn witnessed(pair: Pair) -> World {
    let world = World::new(pair, &tables(pair)).await;
    world.catch_up().await;
    world.execute_in_target("DELETE FROM witness").await;
    world
}

async fn must_have_resumed(world: &mut World) {
    let witness = world.ask_target("SELECT count(*) FROM witness").await;
    assert_eq!(witness.as_deref(), Some("0"), "the tables were copied again");
    let ours = format!("{},{}", world.name("t"), world.name("sentinel"));
    let compared = std::mem::replace(&mut world.tables, ours);
    world.must_be_equal().await;
    world.tables = compared;
}

async fn s01_killed_at_random_moments_under_load(pair: Pair) {
    let world = World::new(pair, "").await;
    shop::open(&world.source, 5_000).await.unwrap();
    let shop = Shop::start(&world.from, 3, 1, Duration::from_millis(1));
    let mut dice = Dice::new(1);
    for _ in 0..8 {
        let mut daemon = world.run(&[]);
        tokio::time::sleep(Duration::from_millis(dice.between(50, 1_200))).await;
        daemon.must_be_running();
        daemon.kill().await;
    }
    let counts = shop.close().await.unwrap();
    assert!(counts.transactions > 100, "{counts:?}");
    world.catch_up().await;
    world.must_be_equal().await;
}

/// Far behind again and again, under load, and killed at any moment after the bulk read has begun:
/// before its first row, in the middle, between two calls, or when it streams already.
async fn s01_killed_while_it_reads_the_log_in_bulk(pair: Pair) {
    let world = World::new(pair, &tables(pair)).await;
    world.execute("CREATE TABLE wide (id bigserial PRIMARY KEY, v text)").await;
    shop::open(&world.source, 500).await.unwrap();
    world.catch_up().await;
    let shop = Shop::start(&world.from, 2, 1, Duration::from_millis(5));
    let flood = "INSERT INTO wide (v) SELECT repeat('x', 1800) FROM generate_series(1, 3000);";
    // By one session or by two.
    let reads_in_bulk = "SELECT least(count(*), 1) FROM pg_replication_slots WHERE temporary";
    let mut dice = Dice::new(4);
    for round in 0..5 {
        // 20 MiB and more.
        for _ in 0..4 {
            world.execute(flood).await;
        }
        let daemon = world.run(&[]);
        let in_bulk = async || world.ask(reads_in_bulk).await.as_deref() == Some("1");
        wait_until("the log is read in bulk", in_bulk).await;
        tokio::time::sleep(Duration::from_millis(dice.between(0, 200 * round + 1))).await;
        daemon.kill().await;
        // Its session goes when the server notices.
        let gone = async || world.ask(reads_in_bulk).await.as_deref() == Some("0");
        wait_until("the copy of the slot is gone", gone).await;
    }
    shop.close().await.unwrap();
    world.catch_up().await;
    world.must_be_equal().await;
}

async fn s03_answer_of_a_commit_lost(pair: Pair) {
    let mut world = World::new(pair, &tables(pair)).await;
    let proxy = Proxy::start(world.target_port()).await;
    let port = world.target_port().to_string();
    world.to = world.to.replace(&port, &proxy.port().to_string());
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    for round in 1..=4 {
        match pair.target {
            // The answer itself says COMMIT.
            Target::Postgres => proxy.to_client(Fault::CutBefore(b"COMMIT\0")),
            // The answer is like any other, but 3 is the byte of a question.
            Target::Mariadb | Target::Sqlite => {
                proxy.to_server(Fault::CutAnswerTo(b"\x03COMMIT"));
            }
        }
        world.execute(&more(pair)).await;
        wait_until("the connection was cut", async || proxy.cuts() >= round).await;
        world.arrival(&mut daemon).await;
    }
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

async fn s05_state_directory_deleted_resumes_from_the_target(pair: Pair) {
    let mut world = witnessed(pair).await;
    world.execute(&more(world.pair)).await;
    std::fs::remove_dir_all(world.state()).unwrap();
    world.catch_up().await;
    must_have_resumed(&mut world).await;
}

async fn s06_damaged_state_is_never_taken_for_a_first_run(pair: Pair) {
    let damages: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| bytes.fill(0),
        |bytes| bytes.iter_mut().skip(7).step_by(64).for_each(|byte| *byte ^= 0x10),
        Vec::clear,
    ];
    let mut world = witnessed(pair).await;
    for damage in damages {
        for file in files_below(&world.state()) {
            let mut bytes = std::fs::read(&file).unwrap();
            damage(&mut bytes);
            std::fs::write(&file, bytes).unwrap();
        }
        world.execute(&more(world.pair)).await;
        world.catch_up().await;
        must_have_resumed(&mut world).await;
    }
    let kept = std::fs::read_dir(world.state().join(&world.pipeline)).unwrap();
    let kept = kept.flatten().filter(|e| e.file_name().to_string_lossy().contains("corrupt"));
    assert!(kept.count() >= 1, "no damaged state was put aside");
}

async fn s09_state_directory_restored_from_an_older_copy(pair: Pair) {
    let mut world = witnessed(pair).await;
    let copy = world.file("state.backup");
    copy_directory(&world.state(), &copy);
    world.execute(&more(world.pair)).await;
    world.catch_up().await;
    std::fs::remove_dir_all(world.state()).unwrap();
    std::fs::rename(copy, world.state()).unwrap();
    world.execute(&more(world.pair)).await;
    world.catch_up().await;
    must_have_resumed(&mut world).await;
}

/// The position went back together with the rows. What is gone from the log since cannot come
/// again, and that must be said; a binlog, which is kept for all, still has it.
async fn s10_target_restored_from_an_older_backup(pair: Pair) {
    let mut world = World::new(pair, &tables(pair)).await;
    world.catch_up().await;
    world.back_up_target().await;
    world.execute(&more(pair)).await;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    until_acknowledged(&world).await;
    daemon.terminate().await.must_exit(0);
    world.restore_target().await;
    let restored = world.ask_target("SELECT count(*) FROM t").await;
    let gap = match pair.source {
        Source::Postgres => "slot-gap",
        Source::Mariadb => {
            world.catch_up().await;
            world.must_be_equal().await;
            return;
        }
    };
    let outcome = world.command(&["run", "--until-current"]).await;
    outcome.must_stop_with(gap).must_say("--resync");
    assert_eq!(world.ask_target("SELECT count(*) FROM t").await, restored);
    world.command(&["run", "--until-current", "--resync"]).await.must_exit(0);
    world.must_be_equal().await;
}

/// Until a source that keeps its log for us has heard that all is durable.
async fn until_acknowledged(world: &World) {
    if world.pair.source == Source::Mariadb {
        return;
    }
    let before = world.ask("SELECT pg_current_wal_insert_lsn()").await.unwrap();
    let passed = format!(
        "SELECT confirmed_flush_lsn >= '{before}' FROM pg_replication_slots
         WHERE slot_name = 'driftless_main'"
    );
    let acknowledged = async || world.ask(&passed).await.as_deref() == Some("t");
    wait_until("the source was told that the changes are durable", acknowledged).await;
}

async fn s12_sigterm_under_load_drains_and_exits_with_0(pair: Pair) {
    let mut world = World::new(pair, "").await;
    shop::open(&world.source, 2_000).await.unwrap();
    let shop = Shop::start(&world.from, 3, 12, Duration::from_millis(1));
    for _ in 0..3 {
        let mut daemon = world.run(&[]);
        world.arrival(&mut daemon).await;
        let told = Instant::now();
        daemon.terminate().await.must_exit(0);
        assert!(told.elapsed() < Duration::from_secs(15), "took {:?}", told.elapsed());
    }
    shop.close().await.unwrap();
    world.catch_up().await;
    world.must_be_equal().await;
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(files_below(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}

fn copy_directory(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}
