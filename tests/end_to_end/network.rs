//! Connections that break, and connections that only seem to be alive (S43 to S45).

use driftless::demo::dice::Dice;

use crate::support::proxy::{Fault, Proxy};
use crate::support::{Target, World, wait_until};

for_each_target! {
    s43_source_connection_cut_at_any_byte
    s44_source_connection_swallows_everything_silently
}

const SQL: &str = "CREATE TABLE t (id int PRIMARY KEY, v text);
    INSERT INTO t SELECT n, repeat(md5(n::text), 9) FROM generate_series(1, 5000) n";
const MORE: &str = "UPDATE t SET v = v || '!' WHERE id % 3 = 0; DELETE FROM t WHERE id % 7 = 0;
    INSERT INTO t SELECT id + 100000, v FROM t WHERE id % 50 = 0 ON CONFLICT DO NOTHING";

async fn with_proxy(target: Target) -> (World, Proxy) {
    let mut world = World::new(target, SQL).await;
    let proxy = Proxy::start(world.server.port()).await;
    let port = world.server.port().to_string();
    world.from = world.from.replace(&port, &proxy.port().to_string());
    (world, proxy)
}

async fn s43_source_connection_cut_at_any_byte(target: Target) {
    let (mut world, proxy) = with_proxy(target).await;
    let mut dice = Dice::new(43);
    // The first cuts hit the connecting and the first copy, the later ones the log.
    let mut daemon = world.run(&[]);
    for round in 1..=12 {
        let (small, large) = (dice.between(1, 600), dice.between(1, 300_000));
        let bytes = if dice.one_in(2) { small } else { large } as usize;
        match dice.one_in(3) {
            // A stream that runs says little: more bytes than this would be waited for long.
            true => proxy.to_server(Fault::CutAfter(bytes % 150 + 1)),
            false => proxy.to_client(Fault::CutAfter(bytes)),
        }
        wait_until("the connection was cut", async || {
            world.execute(MORE).await;
            daemon.must_be_running();
            proxy.cuts() >= round
        })
        .await;
        // Whoever fails again and again without getting on waits longer and longer.
        if round > 4 {
            world.arrival(&mut daemon).await;
        }
    }
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

async fn s44_source_connection_swallows_everything_silently(target: Target) {
    let (mut world, proxy) = with_proxy(target).await;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    check_silence(&mut world, &proxy).await;
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s45_target_connection_swallows_everything_silently() {
    let mut world = World::new(Target::Postgres, SQL).await;
    let proxy = Proxy::start(world.server.port()).await;
    let port = world.server.port().to_string();
    world.to = world.to.replace(&port, &proxy.port().to_string());
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    check_silence(&mut world, &proxy).await;
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

/// The peer falls silent without closing anything; a new connection must be tried.
async fn check_silence(world: &mut World, proxy: &Proxy) {
    proxy.to_client(Fault::Swallow);
    proxy.to_server(Fault::Swallow);
    let before = proxy.connections();
    world.execute(MORE).await;
    wait_until("a new connection is tried", async || proxy.connections() > before).await;
    // What was swallowed is gone for ever, so the old connections cannot come back to life.
    proxy.to_client(Fault::Cut);
    wait_until("the silent connections are closed", async || proxy.cuts() > 0).await;
    proxy.to_client(Fault::Pass);
    proxy.to_server(Fault::Pass);
}
