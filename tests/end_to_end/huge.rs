//! Transactions that are too large for the memory of a PostgreSQL source, which sends them while
//! they are under way (S84).

use crate::support::world::session;
use crate::support::{Pair, World, wait_until};

for_each_pair! {
    s84_killed_while_a_huge_transaction_is_under_way: postgres(sqlite postgres / mariadb);
    s84_the_disk_is_full_while_a_huge_transaction_is_under_way:
        postgres(postgres / mariadb);
}

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

/// About 100 MB.
fn rows(from: u32) -> String {
    format!(
        "INSERT INTO t SELECT n, repeat(md5(n::text), 30) \
         FROM generate_series({from}, {from} + 99999) n"
    )
}

/// More than the server decodes in memory, so it sends the transaction before its end, and a part of
/// it is taken back.
async fn s84_killed_while_a_huge_transaction_is_under_way(pair: Pair) {
    let mut world = World::new(pair, TABLE).await;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    let huge = session(&world.from).await;
    huge.batch_execute(&format!("BEGIN; {}", rows(0))).await.unwrap();
    // Others go on meanwhile.
    world.arrival(&mut daemon).await;
    let first_peak_kib = daemon.kill().await.memory_peak_kib;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    let taken_back = format!("SAVEPOINT s; {}; ROLLBACK TO SAVEPOINT s", rows(200_000));
    huge.batch_execute(&taken_back).await.unwrap();
    huge.batch_execute("UPDATE t SET v = 'short' WHERE id % 20 = 0; COMMIT").await.unwrap();
    let memory_peak_kib = daemon.kill().await.memory_peak_kib;
    let last = world.command(&["run", "--until-current"]).await.must_exit(0);
    world.must_be_equal().await;
    let memory_peak_kib = first_peak_kib.max(memory_peak_kib).max(last.memory_peak_kib);
    assert!(memory_peak_kib < 256 * 1024, "{memory_peak_kib} KiB were resident");
    let early = "SELECT stream_txns > 0 FROM pg_stat_replication_slots";
    wait_until("it came early", async || world.ask(early).await.as_deref() == Some("t")).await;
}

/// A limit on the size of files stands for the full disk.
async fn s84_the_disk_is_full_while_a_huge_transaction_is_under_way(pair: Pair) {
    let mut world = World::new(pair, TABLE).await;
    let mut daemon = world.run_where_files_can_be_limited();
    world.arrival(&mut daemon).await;
    daemon.limit_files(Some(16 << 20));
    let huge = session(&world.from).await;
    huge.batch_execute(&format!("BEGIN; {}; COMMIT", rows(0))).await.unwrap();
    wait_until("it says that there is no room", async || {
        daemon.must_be_running();
        daemon.has_said("no room on the disk for a large transaction")
    })
    .await;
    assert_eq!(world.ask_target("SELECT count(*) FROM t").await.as_deref(), Some("0"));
    daemon.limit_files(None);
    world.arrival(&mut daemon).await;
    world.must_be_equal().await;
    // What is being kept when the process is killed goes with it.
    huge.batch_execute(&format!("BEGIN; {}", rows(200_000))).await.unwrap();
    world.arrival(&mut daemon).await;
    assert!(!daemon.has_said("connection lost"), "{}", daemon.stderr());
    daemon.kill().await;
    let files = std::fs::read_dir(world.state().join(&world.pipeline)).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    assert!(!names.into_iter().any(|name| name.starts_with("spool")));
}
