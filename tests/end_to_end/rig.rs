//! The test rig itself: a comparison that finds nothing and a workload that does nothing would
//! make every other test green.

use std::time::Duration;

use driftless::demo::compare::{Comparison, Replica, compare};
use driftless::demo::server::Shutdown;
use driftless::demo::shop::{self, Shop};

use crate::support::{Target, World, wait_until};

const SQL: &str = "CREATE TABLE t (id int PRIMARY KEY, ok bool, n float8, b bytea, v text);
    INSERT INTO t VALUES (1, true, 0.1, '\\x00ff', 'one'), (2, false, 'NaN', NULL, NULL),
        (3, NULL, '-Infinity', '', '')";

/// The source's table `t` against what this SQL makes of it in the target.
async fn found(world: &World, replica: &str) -> Comparison {
    world.execute_in_target("DROP TABLE IF EXISTS t").await;
    world.execute_in_target(replica).await;
    match world.target {
        Target::Postgres => {
            let session = world.target_session().await;
            compare(&world.source, "public", "t", &Replica::Postgres(&session)).await.unwrap()
        }
        Target::Sqlite => {
            let file = world.target_file();
            compare(&world.source, "public", "t", &Replica::Sqlite(&file)).await.unwrap()
        }
    }
}

#[tokio::test]
async fn the_comparison_with_a_file_accepts_equal_tables_and_finds_every_difference() {
    let world = World::new(Target::Sqlite, SQL).await;
    let equal = "CREATE TABLE t (id integer PRIMARY KEY, ok integer, n real, b blob, v text,
            _cdc_version blob);
        INSERT INTO t VALUES (1, 1, 0.1, x'00ff', 'one', NULL), (2, 0, 'NaN', NULL, NULL, NULL),
            (3, NULL, -9e999, x'', '', NULL);";
    assert!(found(&world, equal).await.is_equal());
    for damage in [
        "DELETE FROM t WHERE id = 2",
        "UPDATE t SET v = 'two' WHERE id = 1",
        "UPDATE t SET v = '' WHERE id = 2",
        "UPDATE t SET v = NULL WHERE id = 3",
        "UPDATE t SET n = 0.10000000000000002 WHERE id = 1",
        "UPDATE t SET b = x'00' WHERE id = 1",
        "UPDATE t SET ok = 0 WHERE id = 1",
    ] {
        assert!(!found(&world, &format!("{equal}{damage}")).await.is_equal(), "{damage}");
    }
}

#[tokio::test]
async fn the_comparison_with_a_server_accepts_equal_tables_and_finds_a_signed_zero() {
    let world = World::new(Target::Postgres, SQL).await;
    assert!(found(&world, SQL).await.is_equal());
    let damaged = format!("{SQL}; UPDATE t SET n = '-0' WHERE id = 1");
    let found = found(&world, &damaged).await;
    assert_eq!((found.missing.len(), found.extra.len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shop_does_everything_it_says_and_survives_its_server() {
    let mut world = World::new(Target::Sqlite, "").await;
    shop::open(&world.source, 2_000).await.unwrap();
    let shop = Shop::start(&world.from, 3, 7, Duration::ZERO);
    wait_until("the shop is busy", async || shop.transactions() > 300).await;
    world.server.restart(Shutdown::Kill).await.unwrap();
    world.reconnect().await;
    let before = shop.transactions();
    wait_until("the shop is busy again", async || shop.transactions() > before + 300).await;
    let counts = shop.close().await.unwrap();
    for (what, count) in [
        ("inserts", counts.inserts),
        ("updates", counts.updates),
        ("deletes", counts.deletes),
        ("key changes", counts.key_changes),
        ("truncates", counts.truncates),
        ("rollbacks", counts.rollbacks),
    ] {
        assert!(count > 0, "no {what}: {counts:?}");
    }
}
