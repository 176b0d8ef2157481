//! The source restarts, is restored, replaced, or loses what it kept for us (S16 to S24, S87).

use std::time::{Duration, Instant};

use driftless::demo::server::session::Session;
use driftless::demo::server::{Engine, Server, ServerOptions, Shutdown};
use driftless::demo::shop::{self, Shop};

use crate::support::world::{private_server, session};
use crate::support::{Pair, Source, Target, World, wait_until};

for_each_pair! {
    s16_source_killed_under_load:
        postgres(sqlite postgres mariadb /), mariadb(sqlite / postgres mariadb);
    s17_a_fast_shutdown_is_not_blocked_while_we_lag:
        postgres(sqlite postgres / mariadb), mariadb(mariadb / sqlite postgres);
    s18_our_session_terminated_again_and_again:
        postgres(sqlite postgres / mariadb), mariadb(postgres / sqlite mariadb);
    s19_slot_dropped_while_stopped: postgres(sqlite postgres / mariadb);
    s19_slot_dropped_while_running: postgres(sqlite postgres / mariadb);
    s20_slot_dropped_and_created_again: postgres(sqlite postgres / mariadb);
    s21_slot_advanced_by_somebody_else: postgres(sqlite postgres / mariadb);
    s22_slot_invalidated_by_the_server: postgres(sqlite postgres / mariadb);
    s23_source_replaced_by_another_cluster:
        postgres(sqlite postgres mariadb /), mariadb(sqlite / postgres mariadb);
    s23_source_recovered_onto_another_timeline: postgres(sqlite postgres / mariadb);
    s24_source_restored_from_an_older_backup:
        postgres(sqlite postgres / mariadb), mariadb(mariadb / sqlite postgres);
    s87_idle_tables_beside_busy_ones_do_not_keep_the_log:
        postgres(sqlite postgres / mariadb);
}

fn tables(pair: Pair) -> String {
    format!(
        "CREATE TABLE t (id int PRIMARY KEY, v text);
         INSERT INTO t SELECT n, 'first ' || n FROM {}",
        pair.source.series(200)
    )
}

const MORE: &str = "UPDATE t SET v = v || '!' WHERE id % 3 = 0; DELETE FROM t WHERE id % 7 = 0";
const DROP_SLOT: &str = "SELECT pg_drop_replication_slot('driftless_main')";

async fn replicated(pair: Pair, settings: &[(&str, &str)]) -> World {
    let world = World::with(pair, &tables(pair), settings, false).await;
    world.catch_up().await;
    world
}

async fn s16_source_killed_under_load(pair: Pair) {
    let mut world = World::with(pair, "", &[], true).await;
    shop::open(&world.source, 2_000).await.unwrap();
    world.catch_up().await;
    let shop = Shop::start(&world.from, 3, 16, Duration::from_millis(1));
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    for _ in 0..4 {
        world.server.restart(Shutdown::Kill).await.unwrap();
        world.reconnect().await;
        world.arrival(&mut daemon).await;
    }
    shop.close().await.unwrap();
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

async fn s17_a_fast_shutdown_is_not_blocked_while_we_lag(pair: Pair) {
    let settings = pair.source.either(&[("wal_sender_timeout", "4s")][..], &[]);
    let mut world = World::with(pair, &tables(pair), settings, true).await;
    // A row that arrives does not tell that the first copy of the others has ended.
    world.catch_up().await;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    let lock = TargetLock::take(&world).await;
    world.execute(MORE).await;
    let told = Instant::now();
    world.server.stop(Shutdown::Fast).await.unwrap();
    assert!(told.elapsed() < Duration::from_secs(20), "took {:?}", told.elapsed());
    lock.release().await;
    world.server.start_again().await.unwrap();
    world.reconnect().await;
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

async fn s18_our_session_terminated_again_and_again(pair: Pair) {
    let mut world = World::new(pair, &tables(pair)).await;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    for round in 0..6 {
        end_our_session(&world).await;
        world.execute(&format!("INSERT INTO t VALUES ({}, 'round')", 10_000 + round)).await;
        world.arrival(&mut daemon).await;
    }
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

async fn end_our_session(world: &World) {
    match world.pair.source {
        Source::Postgres => {
            let ended = world.ask(TERMINATE_SENDER).await;
            assert_eq!(ended.as_deref(), Some("t"), "nobody read the slot");
        }
        Source::Mariadb => {
            let reader = "SELECT id FROM information_schema.processlist
                WHERE command LIKE 'Binlog Dump%'";
            let reader = world.ask(reader).await.expect("nobody read the log");
            world.execute(&format!("KILL {reader}")).await;
        }
    }
}

const TERMINATE_SENDER: &str = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
    WHERE slot_name = 'driftless_main' AND active_pid IS NOT NULL";

async fn s19_slot_dropped_while_stopped(pair: Pair) {
    let world = replicated(pair, &[]).await;
    world.execute(DROP_SLOT).await;
    world.execute(MORE).await;
    world.must_refuse_then_resync(&["slot-missing"]).await;
}

async fn s19_slot_dropped_while_running(pair: Pair) {
    let mut world = World::new(pair, &tables(pair)).await;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    let dropped = async || {
        let _ = world.ask(TERMINATE_SENDER).await;
        world.source.batch_execute(DROP_SLOT).await.is_ok()
    };
    wait_until("the slot is dropped", dropped).await;
    daemon.wait().await.must_stop_with("slot-missing").must_say("--resync");
    world.execute(MORE).await;
    world.must_refuse_then_resync(&["slot-missing"]).await;
}

async fn s20_slot_dropped_and_created_again(pair: Pair) {
    let world = replicated(pair, &[]).await;
    world.execute(DROP_SLOT).await;
    world.execute(MORE).await;
    let create = "SELECT pg_create_logical_replication_slot('driftless_main', 'pgoutput')";
    world.execute(create).await;
    world.must_refuse_then_resync(&["slot-gap"]).await;
}

async fn s21_slot_advanced_by_somebody_else(pair: Pair) {
    let world = replicated(pair, &[]).await;
    world.execute(MORE).await;
    let advance =
        "SELECT pg_replication_slot_advance('driftless_main', pg_current_wal_insert_lsn())";
    world.execute(advance).await;
    world.must_refuse_then_resync(&["slot-gap"]).await;
}

async fn s22_slot_invalidated_by_the_server(pair: Pair) {
    let settings =
        [("max_slot_wal_keep_size", "4MB"), ("max_wal_size", "8MB"), ("min_wal_size", "4MB")];
    let world = replicated(pair, &settings).await;
    world.execute("CREATE TABLE noise (v text)").await;
    let lost = async || {
        let noise = "INSERT INTO noise SELECT repeat(md5(n::text), 30) FROM
            generate_series(1, 5000) n; CHECKPOINT";
        for statement in noise.split(';') {
            world.execute(statement).await;
        }
        let status = "SELECT wal_status FROM pg_replication_slots";
        world.ask(status).await.as_deref() == Some("lost")
    };
    wait_until("the server invalidates the slot", lost).await;
    world.execute("DROP TABLE noise").await;
    world.execute(MORE).await;
    world.must_refuse_then_resync(&["slot-lost"]).await;
}

async fn s23_source_replaced_by_another_cluster(pair: Pair) {
    let mut world = replicated(pair, &[]).await;
    let (other, session) = other_server(pair).await;
    session.batch_execute("CREATE TABLE sentinel (n int PRIMARY KEY)").await.unwrap();
    session.batch_execute(&tables(pair)).await.unwrap();
    if pair.source == Source::Postgres {
        pretend_to_know_us(&session).await;
    }
    session.batch_execute(MORE).await.unwrap();
    world.from = other.url(pair.source.either("postgres", "shop"));
    world.source = session;
    world.must_refuse_then_resync(&["source-identity"]).await;
}

/// A server with an identity of its own: for PostgreSQL one that is not a copy of the template, for
/// MariaDB another number.
async fn other_server(pair: Pair) -> (Server, Session) {
    match pair.source {
        Source::Postgres => {
            let options = ServerOptions { careless: true, ..ServerOptions::default() };
            let server = Server::start(options).await.unwrap();
            let session = server.session("postgres").await.unwrap();
            (server, session)
        }
        Source::Mariadb => {
            let server = private_server(Engine::Mariadb, &[("server-id", "77")]).await;
            let first = session(&server.url(server.first_database())).await;
            first.batch_execute("CREATE DATABASE shop").await.unwrap();
            let session = server.session("shop").await.unwrap();
            (server, session)
        }
    }
}

/// Gives a server a slot and a publication of our names, as a copy of the source would have.
async fn pretend_to_know_us(session: &Session) {
    session.batch_execute("CREATE PUBLICATION driftless_main FOR ALL TABLES").await.unwrap();
    let slot = "SELECT pg_create_logical_replication_slot('driftless_main', 'pgoutput')";
    session.batch_execute(slot).await.unwrap();
}

async fn s23_source_recovered_onto_another_timeline(pair: Pair) {
    let mut world = World::with(pair, &tables(pair), &[], true).await;
    world.catch_up().await;
    world.execute(MORE).await;
    world.server.stop(Shutdown::Fast).await.unwrap();
    // A finished recovery puts the cluster on a new timeline; slots survive it.
    let signal = world.server.data_directory().join("recovery.signal");
    std::fs::write(&signal, "").unwrap();
    let owner = std::fs::metadata(world.server.data_directory()).unwrap();
    use std::os::unix::fs::MetadataExt;
    std::os::unix::fs::chown(&signal, Some(owner.uid()), Some(owner.gid())).unwrap();
    world.server.set("restore_command", "false");
    world.server.start_again().await.unwrap();
    world.reconnect().await;
    let promoted = async || world.ask("SELECT pg_is_in_recovery()").await.as_deref() == Some("f");
    wait_until("the recovery is finished", promoted).await;
    world.must_refuse_then_resync(&["source-identity"]).await;
}

async fn s24_source_restored_from_an_older_backup(pair: Pair) {
    let mut world = World::with(pair, &tables(pair), &[], true).await;
    world.catch_up().await;
    world.server.stop(Shutdown::Fast).await.unwrap();
    world.server.back_up("older").unwrap();
    world.server.start_again().await.unwrap();
    world.reconnect().await;
    let series = pair.source.series(2_000);
    world.execute(&format!("INSERT INTO t SELECT n + 999, repeat('x', 500) FROM {series}")).await;
    world.catch_up().await;
    world.server.stop(Shutdown::Fast).await.unwrap();
    world.server.restore("older").unwrap();
    world.server.start_again().await.unwrap();
    world.reconnect().await;
    world.must_refuse_then_resync(&["position-ahead"]).await;
}

async fn s87_idle_tables_beside_busy_ones_do_not_keep_the_log(pair: Pair) {
    let mut world = World::new(pair, &tables(pair)).await;
    world.execute("CREATE TABLE noise (v text)").await;
    world.tables += ",!public.noise";
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    for _ in 0..3 {
        let noise = "INSERT INTO noise SELECT repeat(md5(n::text), 30)
            FROM generate_series(1, 20000) n";
        world.execute(noise).await;
    }
    let end = world.ask("SELECT pg_current_wal_insert_lsn()").await.unwrap();
    let follows = format!(
        "SELECT confirmed_flush_lsn >= '{end}' AND pg_current_wal_lsn() - restart_lsn < 8000000
         FROM pg_replication_slots WHERE slot_name = 'driftless_main'"
    );
    let followed = async || {
        // The server lets go of the log only when it has written where the transactions stand.
        world.execute("CHECKPOINT").await;
        world.ask(&follows).await.as_deref() == Some("t")
    };
    wait_until("the slot follows the log", followed).await;
    daemon.terminate().await.must_exit(0);
}

/// Keeps the replicator from writing into the target.
enum TargetLock {
    Server(Session),
    Sqlite(rusqlite::Connection),
}

impl TargetLock {
    async fn take(world: &World) -> TargetLock {
        let lock = match world.pair.target {
            Target::Postgres => "BEGIN; LOCK TABLE t",
            Target::Mariadb => "LOCK TABLES t WRITE",
            Target::Sqlite => {
                let file = world.target_file();
                file.execute_batch("BEGIN IMMEDIATE").unwrap();
                return TargetLock::Sqlite(file);
            }
        };
        let session = world.target_session().await;
        session.batch_execute(lock).await.unwrap();
        TargetLock::Server(session)
    }

    async fn release(self) {
        match self {
            TargetLock::Server(session @ Session::Postgres(_)) => {
                session.batch_execute("ROLLBACK").await.unwrap();
            }
            TargetLock::Server(session) => session.batch_execute("UNLOCK TABLES").await.unwrap(),
            TargetLock::Sqlite(file) => file.execute_batch("ROLLBACK").unwrap(),
        }
    }
}
