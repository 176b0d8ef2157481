//! Connections that break, and connections that only seem to be alive (S43 to S45).

use driftless::demo::dice::Dice;

use crate::support::proxy::{Fault, Proxy};
use crate::support::{Pair, World, wait_until};

for_each_pair! {
    s43_source_connection_cut_at_any_byte:
        postgres(sqlite postgres / mariadb), mariadb(sqlite / postgres mariadb);
    s44_source_connection_swallows_everything_silently:
        postgres(sqlite / postgres mariadb), mariadb(sqlite / postgres mariadb);
    s45_target_connection_swallows_everything_silently:
        postgres(postgres mariadb /), mariadb(/ postgres mariadb);
}

fn tables(pair: Pair) -> String {
    format!(
        "CREATE TABLE t (id int PRIMARY KEY, v text);
         INSERT INTO t SELECT n, repeat({}, 9) FROM {}",
        pair.source.digits(),
        pair.source.series(5_000)
    )
}

const MORE: &str = "UPDATE t SET v = v || '!' WHERE id % 3 = 0; DELETE FROM t WHERE id % 7 = 0;
    INSERT INTO t SELECT id + 100000, v FROM t
        WHERE id % 50 = 0 AND id + 100000 NOT IN (SELECT id FROM t)";

async fn with_proxy(pair: Pair) -> (World, Proxy) {
    let mut world = World::new(pair, &tables(pair)).await;
    let proxy = Proxy::start(world.server.port()).await;
    let port = world.server.port().to_string();
    world.from = world.from.replace(&port, &proxy.port().to_string());
    (world, proxy)
}

async fn s43_source_connection_cut_at_any_byte(pair: Pair) {
    let (mut world, proxy) = with_proxy(pair).await;
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

async fn s44_source_connection_swallows_everything_silently(pair: Pair) {
    let (mut world, proxy) = with_proxy(pair).await;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    check_silence(&mut world, &proxy).await;
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

async fn s45_target_connection_swallows_everything_silently(pair: Pair) {
    let mut world = World::new(pair, &tables(pair)).await;
    let proxy = Proxy::start(world.target_port()).await;
    let port = world.target_port().to_string();
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
