//! Crashes of the replicator, and damage to its state and to its target (S01 to S12).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use driftless::demo::dice::Dice;
use driftless::demo::shop::{self, Shop};

use crate::support::proxy::{Fault, Proxy};
use crate::support::{Target, World, wait_until};

for_each_target! {
    s01_killed_at_random_moments_under_load
    s05_state_directory_deleted_resumes_from_the_target
    s06_damaged_state_is_never_taken_for_a_first_run
    s09_state_directory_restored_from_an_older_copy
    s10_target_restored_from_an_older_backup
    s12_sigterm_under_load_drains_and_exits_with_0
}

/// A table to replicate, and one whose only row is removed from the target by hand. If that row
/// comes back, the tables were copied afresh: the replicator had taken a damage for a first run.
const WITNESSED: &str = "CREATE TABLE t (id int PRIMARY KEY, v text);
    INSERT INTO t SELECT n, 'first ' || n FROM generate_series(1, 500) n;
    CREATE TABLE witness (id int PRIMARY KEY); INSERT INTO witness VALUES (1)";

const MORE: &str = "UPDATE t SET v = v || '!' WHERE id % 3 = 0; DELETE FROM t WHERE id % 7 = 0;
    INSERT INTO t SELECT n, 'more' FROM generate_series((SELECT max(id) FROM t) + 1,
        (SELECT max(id) FROM t) + 100) n";

async fn witnessed(target: Target) -> World {
    let mut world = World::new(target, WITNESSED).await;
    world.catch_up().await;
    world.execute_in_target("DELETE FROM witness").await;
    world.tables = "public.*".into();
    world
}

async fn must_have_resumed(world: &mut World) {
    let witness = world.ask_target("SELECT count(*) FROM witness").await;
    assert_eq!(witness.as_deref(), Some("0"), "the tables were copied again");
    let compared = std::mem::replace(&mut world.tables, "public.t,public.sentinel".into());
    world.must_be_equal().await;
    world.tables = compared;
}

async fn s01_killed_at_random_moments_under_load(target: Target) {
    let world = World::new(target, "").await;
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

#[tokio::test(flavor = "multi_thread")]
async fn s03_answer_of_a_commit_lost() {
    let mut world = World::new(Target::Postgres, WITNESSED).await;
    let proxy = Proxy::start(world.server.port()).await;
    let port = world.server.port().to_string();
    world.to = world.to.replace(&port, &proxy.port().to_string());
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    for round in 1..=4 {
        proxy.to_client(Fault::CutBefore(b"COMMIT\0"));
        world.execute(MORE).await;
        wait_until("the connection was cut", async || proxy.cuts() >= round).await;
        world.arrival(&mut daemon).await;
    }
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

async fn s05_state_directory_deleted_resumes_from_the_target(target: Target) {
    let mut world = witnessed(target).await;
    world.execute(MORE).await;
    std::fs::remove_dir_all(world.state()).unwrap();
    world.catch_up().await;
    must_have_resumed(&mut world).await;
}

async fn s06_damaged_state_is_never_taken_for_a_first_run(target: Target) {
    let damages: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| bytes.fill(0),
        |bytes| bytes.iter_mut().skip(7).step_by(64).for_each(|byte| *byte ^= 0x10),
        Vec::clear,
    ];
    let mut world = witnessed(target).await;
    for damage in damages {
        for file in files_below(&world.state()) {
            let mut bytes = std::fs::read(&file).unwrap();
            damage(&mut bytes);
            std::fs::write(&file, bytes).unwrap();
        }
        world.execute(MORE).await;
        world.catch_up().await;
        must_have_resumed(&mut world).await;
    }
    let kept = std::fs::read_dir(world.state().join(&world.pipeline)).unwrap();
    let kept = kept.flatten().filter(|e| e.file_name().to_string_lossy().contains("corrupt"));
    assert!(kept.count() >= 1, "no damaged state was put aside");
}

async fn s09_state_directory_restored_from_an_older_copy(target: Target) {
    let mut world = witnessed(target).await;
    let copy = world.file("state.backup");
    copy_directory(&world.state(), &copy);
    world.execute(MORE).await;
    world.catch_up().await;
    std::fs::remove_dir_all(world.state()).unwrap();
    std::fs::rename(copy, world.state()).unwrap();
    world.execute(MORE).await;
    world.catch_up().await;
    must_have_resumed(&mut world).await;
}

async fn s10_target_restored_from_an_older_backup(target: Target) {
    let mut world = World::new(target, WITNESSED).await;
    world.catch_up().await;
    world.back_up_target().await;
    world.execute(MORE).await;
    let before = world.ask("SELECT pg_current_wal_insert_lsn()").await.unwrap();
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    let passed = format!(
        "SELECT confirmed_flush_lsn >= '{before}' FROM pg_replication_slots
         WHERE slot_name = 'driftless_main'"
    );
    let acknowledged = async || world.ask(&passed).await.as_deref() == Some("t");
    wait_until("the source was told that the changes are durable", acknowledged).await;
    daemon.terminate().await.must_exit(0);

    // The slot has left the restored position behind, so the changes in between are gone.
    world.restore_target().await;
    let checkpoint = world.ask_target("SELECT count(*) FROM t").await;
    world
        .command(&["run", "--until-current"])
        .await
        .must_stop_with("slot-gap")
        .must_say("--resync");
    assert_eq!(world.ask_target("SELECT count(*) FROM t").await, checkpoint);
    world.command(&["run", "--until-current", "--resync"]).await.must_exit(0);
    world.must_be_equal().await;
}

async fn s12_sigterm_under_load_drains_and_exits_with_0(target: Target) {
    let mut world = World::new(target, "").await;
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
