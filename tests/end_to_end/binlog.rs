//! The log of a MariaDB source: its files come and go, its events are compressed, damaged or cut
//! off, and somebody else wants our number (S28 to S36, S42, S97).

use std::time::Duration;

use driftless::demo::dice::Dice;
use driftless::demo::server::Engine;
use driftless::demo::shop::{self, Shop};
use tokio::task::JoinHandle;

use crate::support::proxy::{Fault, Proxy};
use crate::support::world::{private_server, session};
use crate::support::{Pair, World, wait_until};

for_each_pair! {
    s28_log_files_change_all_the_time_under_load: mariadb(sqlite / postgres mariadb);
    s29_the_log_was_purged_past_our_position: mariadb(sqlite postgres / mariadb);
    s30_the_log_was_reset_and_begins_again: mariadb(mariadb / sqlite postgres);
    s30_the_log_was_reset_and_filled_to_the_same_place: mariadb(sqlite / postgres mariadb);
    s31_the_domains_of_several_primaries_are_interleaved: mariadb(postgres / sqlite mariadb);
    s33_cut_off_in_the_middle_of_a_transaction: mariadb(mariadb / sqlite postgres);
    s34_a_log_file_grows_beyond_4_gib: mariadb(/ sqlite);
    s36_compressed_events_and_changing_checksums: mariadb(sqlite mariadb / postgres);
    s36_a_damaged_event_is_read_again: mariadb(postgres / sqlite mariadb);
    s42_a_source_that_became_read_only_is_still_read: mariadb(sqlite / postgres mariadb);
    s97_a_number_that_another_replica_has_is_refused: mariadb(sqlite / postgres mariadb);
}

fn tables(pair: Pair) -> String {
    format!(
        "CREATE TABLE t (id int PRIMARY KEY, v text);
         INSERT INTO t SELECT n, 'first ' || n FROM {}",
        pair.source.series(200)
    )
}

const MORE: &str = "UPDATE t SET v = v || '!' WHERE id % 3 = 0; DELETE FROM t WHERE id % 7 = 0";

async fn replicated(pair: Pair) -> World {
    let world = World::new(pair, &tables(pair)).await;
    world.catch_up().await;
    world
}

async fn with_proxy(pair: Pair) -> (World, Proxy) {
    let mut world = World::new(pair, &tables(pair)).await;
    let proxy = Proxy::start(world.server.port()).await;
    let port = world.server.port().to_string();
    world.from = world.from.replace(&port, &proxy.port().to_string());
    (world, proxy)
}

/// Runs a statement again and again on a session of its own, until it is aborted.
fn again_and_again(world: &World, statement: &str, pause: Duration) -> JoinHandle<()> {
    let (url, statement) = (world.from.clone(), statement.to_owned());
    tokio::spawn(async move {
        let session = session(&url).await;
        loop {
            session.batch_execute(&statement).await.unwrap();
            tokio::time::sleep(pause).await;
        }
    })
}

async fn s28_log_files_change_all_the_time_under_load(pair: Pair) {
    let mut world = World::new(pair, "").await;
    shop::open(&world.source, 2_000).await.unwrap();
    let shop = Shop::start(&world.from, 3, 28, Duration::from_millis(1));
    let flush = again_and_again(&world, "FLUSH BINARY LOGS", Duration::from_millis(100));
    for _ in 0..3 {
        let mut daemon = world.run(&[]);
        world.arrival(&mut daemon).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        daemon.must_be_running();
        daemon.kill().await;
    }
    shop.close().await.unwrap();
    flush.abort();
    world.catch_up().await;
    world.must_be_equal().await;
    let files = world.source.rows("SHOW BINARY LOGS").await.unwrap().len();
    assert!(files > 15, "only {files} files");
}

async fn s29_the_log_was_purged_past_our_position(pair: Pair) {
    let world = replicated(pair).await;
    world.execute(MORE).await;
    world.purge_the_log().await;
    world.execute("INSERT INTO t VALUES (1000, 'after the purge')").await;
    world.must_refuse_then_resync(&["binlog-purged"]).await;
}

/// The statement that empties the log.
fn reset(world: &World) -> &'static str {
    if world.server.is_mysql() { "RESET BINARY LOGS AND GTIDS" } else { "RESET MASTER" }
}

async fn s30_the_log_was_reset_and_begins_again(pair: Pair) {
    let world = replicated(pair).await;
    world.execute(MORE).await;
    world.execute(reset(&world)).await;
    world.execute("INSERT INTO t VALUES (1000, 'with a lower number')").await;
    world.must_refuse_then_resync(&["position-ahead", "source-identity"]).await;
}

/// Our position exists again, in the same file and with the same number, but it is another one.
async fn s30_the_log_was_reset_and_filled_to_the_same_place(pair: Pair) {
    let world = World::new(pair, &tables(pair)).await;
    world.execute(reset(&world)).await;
    for n in 0..10 {
        world.execute(&format!("INSERT INTO t VALUES ({}, 'before')", 1000 + n)).await;
    }
    world.catch_up().await;
    // Logs that were begun in the same second cannot be told apart.
    world.execute("DO sleep(1.1)").await;
    world.execute(reset(&world)).await;
    for n in 0..20 {
        world.execute(&format!("INSERT INTO t VALUES ({}, 'after!')", 2000 + n)).await;
    }
    world.must_refuse_then_resync(&["position-ahead", "source-identity"]).await;
}

async fn s31_the_domains_of_several_primaries_are_interleaved(pair: Pair) {
    // What a target on the same server writes is in the log, too, and would be purged unread.
    let mut world = World::with(pair, &tables(pair), &[], true).await;
    if world.server.is_mysql() {
        return;
    }
    let mut daemon = world.run(&[]);
    for round in 0..30 {
        let domain = [0, 7, 4_000_000_000_u32][round % 3];
        let session = session(&world.from).await;
        let (id, first) = (5_000 + round, 5_000 + round.saturating_sub(4));
        let change = format!(
            "SET SESSION gtid_domain_id = {domain}; INSERT INTO t VALUES ({id}, 'of {domain}');
             UPDATE t SET v = v || '{round}' WHERE id >= {first}"
        );
        session.batch_execute(&change).await.unwrap();
        if round % 10 == 9 {
            daemon.kill().await;
            daemon = world.run(&[]);
        }
    }
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
    // A domain that was given up is no gap.
    world.purge_the_log().await;
    world.catch_up().await;
    world.execute("FLUSH BINARY LOGS DELETE_DOMAIN_ID = (7)").await;
    world.execute(MORE).await;
    world.catch_up().await;
    world.must_be_equal().await;
}

async fn s33_cut_off_in_the_middle_of_a_transaction(pair: Pair) {
    let (mut world, proxy) = with_proxy(pair).await;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    let series = pair.source.series(20_000);
    let mut dice = Dice::new(33);
    for round in 1..=6 {
        // Four megabytes in one transaction, and the cut somewhere in it.
        proxy.to_client(Fault::CutAfter(dice.between(20_000, 3_500_000) as usize));
        world
            .execute(&format!(
                "BEGIN; DELETE FROM t WHERE id >= 10000;
                 INSERT INTO t SELECT n + 10000 * {round}, repeat(sha2(n, 224), 4) FROM {series};
                 UPDATE t SET v = 'round {round}' WHERE id % 100 = 0; COMMIT"
            ))
            .await;
        wait_until("the connection was cut", async || {
            daemon.must_be_running();
            proxy.cuts() >= round
        })
        .await;
        world.arrival(&mut daemon).await;
    }
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

/// A table that stores nothing still fills the log. Takes about 10 GB of room for a while.
async fn s34_a_log_file_grows_beyond_4_gib(pair: Pair) {
    let mut world = World::new(pair, &tables(pair)).await;
    if !world.server.is_mysql() {
        world.execute("INSTALL SONAME 'ha_blackhole'").await;
    }
    world.execute("CREATE TABLE noise (id int PRIMARY KEY, v longblob) ENGINE = BLACKHOLE").await;
    world.tables += ",!shop.noise";
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    world.execute(MORE).await;
    let series = pair.source.series(280);
    world
        .execute(&format!("INSERT INTO noise SELECT n, repeat('x', 16000000) FROM {series}"))
        .await;
    let files = world.source.rows("SHOW BINARY LOGS").await.unwrap();
    let largest = files.iter().filter_map(|file| file[1].as_deref()?.parse::<u64>().ok()).max();
    assert!(largest > Some(4 << 30), "{files:?}");
    world.execute("INSERT INTO t VALUES (1000, 'beyond')").await;
    world.execute(MORE).await;
    world.arrival(&mut daemon).await;
    daemon.kill().await;
    world.execute(MORE).await;
    world.catch_up().await;
    world.must_be_equal().await;
}

async fn s36_compressed_events_and_changing_checksums(pair: Pair) {
    let mut world = World::new(pair, "").await;
    if world.server.is_mysql() {
        world.execute("SET GLOBAL binlog_transaction_compression = ON").await;
    } else {
        world.execute("SET GLOBAL log_bin_compress = ON").await;
        world.execute("SET GLOBAL log_bin_compress_min_len = 10").await;
        world.execute("SET GLOBAL binlog_annotate_row_events = ON").await;
    }
    world.reconnect().await;
    shop::open(&world.source, 1_000).await.unwrap();
    let shop = Shop::start(&world.from, 3, 36, Duration::from_millis(1));
    let mut daemon = world.run(&[]);
    for checksum in ["NONE", "CRC32", "NONE", "CRC32"] {
        world.arrival(&mut daemon).await;
        world.execute(&format!("SET GLOBAL binlog_checksum = {checksum}")).await;
        let done = shop.transactions();
        wait_until("the shop is busy", async || shop.transactions() > done + 50).await;
        if checksum == "NONE" {
            daemon.kill().await;
            daemon = world.run(&[]);
        }
    }
    shop.close().await.unwrap();
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

/// Somewhere in what the server sends, one bit is turned round. Whatever it hits, it must be
/// noticed.
async fn s36_a_damaged_event_is_read_again(pair: Pair) {
    let (mut world, proxy) = with_proxy(pair).await;
    let series = pair.source.series(3_000);
    world.execute(&format!("INSERT INTO t SELECT n + 1000, sha2(n, 224) FROM {series}")).await;
    world.catch_up().await;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    let mut dice = Dice::new(36);
    for round in 0..8 {
        let before = proxy.connections();
        proxy.to_client(Fault::FlipAfter(dice.between(100, 100_000) as usize));
        world.execute(&format!("UPDATE t SET v = sha2(v || '{round}', 224) WHERE id > 1000")).await;
        wait_until("a new connection is tried", async || {
            daemon.must_be_running();
            proxy.connections() > before
        })
        .await;
        world.arrival(&mut daemon).await;
    }
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
    world.command(&["verify"]).await.must_exit(0);
}

async fn s42_a_source_that_became_read_only_is_still_read(pair: Pair) {
    let mut world = World::with(pair, &tables(pair), &[], true).await;
    world.catch_up().await;
    world.execute(MORE).await;
    world.execute("SET GLOBAL read_only = ON").await;
    world.command(&["check"]).await.must_exit(0);
    world.catch_up().await;
    world.must_be_equal().await;
    world.execute("SET GLOBAL read_only = OFF").await;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
}

async fn s97_a_number_that_another_replica_has_is_refused(pair: Pair) {
    let mut world = World::new(pair, &tables(pair)).await;
    world.configure("source.server_id", "1");
    world.command(&["run", "--until-current"]).await.must_stop_with("server-id-in-use");
    if world.server.is_mysql() {
        return;
    }
    let replica = private_server(Engine::Mariadb, &[("server-id", "4242")]).await;
    let at_replica = session(&replica.url(replica.first_database())).await;
    let follow = format!(
        "CHANGE MASTER TO master_host = '127.0.0.1', master_port = {}, master_user = '{}',
         master_password = '{}', master_use_gtid = slave_pos; START SLAVE",
        world.server.port(),
        pair.source.superuser(),
        driftless::demo::server::PASSWORD
    );
    at_replica.batch_execute(&follow).await.unwrap();
    let count = "SELECT count(*) FROM shop.t";
    wait_until("the replica follows", async || {
        at_replica.ask(count).await.ok().flatten().as_deref() == Some("200")
    })
    .await;
    world.environment.clear();
    world.configure("source.server_id", "4242");
    let outcome = world.command(&["run", "--until-current"]).await;
    outcome.must_stop_with("server-id-in-use").must_say("server_id");
    // The replica was left alone.
    world.execute("INSERT INTO t VALUES (1000, 'for the replica')").await;
    wait_until("the replica still follows", async || {
        at_replica.ask(count).await.ok().flatten().as_deref() == Some("201")
    })
    .await;
    drop((replica, at_replica));
    world.environment.clear();
    world.catch_up().await;
    world.must_be_equal().await;
}
