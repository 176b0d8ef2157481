//! The test rig itself: a comparison that finds nothing and a workload that does nothing would
//! make every other test green.

use std::time::Duration;

use driftless::demo::compare::{Comparison, Replica, compare};
use driftless::demo::server::Shutdown;
use driftless::demo::shop::{self, Shop};

use crate::support::{Pair, Source, Target, World, wait_until};

for_each_pair! {
    the_comparison_accepts_equal_tables_and_finds_every_difference:
        postgres(sqlite postgres mariadb /), mariadb(sqlite postgres mariadb /);
    the_shop_does_everything_it_says_and_survives_its_server:
        postgres(sqlite /), mariadb(sqlite /);
}

/// The table `t` as one kind of database writes it.
struct Form {
    table: &'static str,
    rows: [&'static str; 3],
}

const POSTGRES: Form = Form {
    table: "CREATE TABLE t (id int PRIMARY KEY, ok bool, r real, n float8, d numeric(6,2), b bytea,
        at timestamptz, v text)",
    rows: [
        "(1, true, 16777217, 0.1, 1.5, '\\x00ff', '2024-02-29 12:00:00.5+02', 'one')",
        "(2, false, 1e-45, 1e300, 0, '\\x', NULL, '')",
        "(3, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
    ],
};

const MARIADB: Form = Form {
    table: "CREATE TABLE t (id int PRIMARY KEY, ok bool, r float, n double, d decimal(6,2), b blob,
        at timestamp(6) NULL, v text)",
    rows: [
        "(1, true, 16777217, 0.1, 1.5, x'00ff', '2024-02-29 10:00:00.5', 'one')",
        "(2, false, 1e-45, 1e300, 0, '', NULL, '')",
        "(3, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
    ],
};

const SQLITE: Form = Form {
    table: "CREATE TABLE t (id integer PRIMARY KEY, ok integer, r, n, d text, b blob, at text,
        v text)",
    rows: [
        "(1, 1, 16777216.0, 0.1, '1.50', x'00ff', '2024-02-29 10:00:00.5+00', 'one')",
        "(2, 0, 1.401298464324817e-45, 1e300, '0.00', x'', NULL, '')",
        "(3, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
    ],
};

impl Form {
    fn sql(&self) -> String {
        format!("{}; INSERT INTO t VALUES {};", self.table, self.rows.join(", "))
    }
}

/// The source's table `t` against what this SQL makes of it in the target.
async fn found(world: &World, replica: &str) -> Comparison {
    world.execute_in_target("DROP TABLE IF EXISTS t").await;
    world.execute_in_target(replica).await;
    let (source, schema) = (&world.source, world.pair.source.schema());
    match world.pair.target {
        Target::Postgres | Target::Mariadb => {
            let session = world.target_session().await;
            compare(source, schema, "t", &Replica::Server(&session)).await.unwrap()
        }
        Target::Sqlite => {
            let file = world.target_file();
            compare(source, schema, "t", &Replica::Sqlite(&file)).await.unwrap()
        }
    }
}

async fn the_comparison_accepts_equal_tables_and_finds_every_difference(pair: Pair) {
    let world = World::new(pair, &pair.source.either(POSTGRES, MARIADB).sql()).await;
    world.make_target_schema().await;
    let mut form = match pair.target {
        Target::Postgres => POSTGRES,
        Target::Mariadb => MARIADB,
        Target::Sqlite => SQLITE,
    };
    if pair.source == Source::Mariadb && pair.target == Target::Postgres {
        // A boolean of MariaDB is a small number.
        form.table = "CREATE TABLE t (id int PRIMARY KEY, ok smallint, r real, n float8,
            d numeric(6,2), b bytea, at timestamptz, v text)";
        form.rows[0] = "(1, 1, 16777217, 0.1, 1.5, '\\x00ff', '2024-02-29 12:00:00.5+02', 'one')";
        form.rows[1] = "(2, 0, 1e-45, 1e300, 0, '\\x', NULL, '')";
    }
    let equal = form.sql();
    let comparison = found(&world, &equal).await;
    assert!(comparison.is_equal() && comparison.source_rows == 3, "{comparison:?}");
    let (bytes, yes) = match pair.target {
        Target::Postgres => ("'\\x00'", if pair.source == Source::Mariadb { "1" } else { "true" }),
        Target::Mariadb | Target::Sqlite => ("x'00'", "1"),
    };
    for damage in [
        "DELETE FROM t WHERE id = 2".to_owned(),
        "UPDATE t SET v = 'two' WHERE id = 1".into(),
        "UPDATE t SET v = NULL WHERE id = 2".into(),
        "UPDATE t SET v = '' WHERE id = 3".into(),
        "UPDATE t SET r = 16777218 WHERE id = 1".into(),
        "UPDATE t SET r = 0 WHERE id = 2".into(),
        "UPDATE t SET n = 0.10000000000000002 WHERE id = 1".into(),
        "UPDATE t SET n = 0 WHERE id = 2".into(),
        "UPDATE t SET d = '1.51' WHERE id = 1".into(),
        format!("UPDATE t SET b = {bytes} WHERE id = 1"),
        format!("UPDATE t SET ok = {yes} WHERE id = 2"),
        format!("UPDATE t SET ok = {yes} WHERE id = 3"),
        "UPDATE t SET at = '2024-02-29 10:00:00' WHERE id = 1".into(),
        "INSERT INTO t (id) VALUES (4)".into(),
    ] {
        assert!(!found(&world, &format!("{equal}{damage}")).await.is_equal(), "{damage}");
    }
}

/// MariaDB does not keep the sign.
#[tokio::test]
async fn the_comparison_finds_a_signed_zero() {
    let table = "CREATE TABLE t (id int PRIMARY KEY, n double precision)";
    let equal = format!("{table}; INSERT INTO t VALUES (1, 0)");
    let world = World::new(Pair::of("postgres", "postgres"), &equal).await;
    assert!(found(&world, &equal).await.is_equal());
    let found = found(&world, &format!("{table}; INSERT INTO t VALUES (1, '-0')")).await;
    assert_eq!((found.missing.len(), found.extra.len()), (1, 1));
}

async fn the_shop_does_everything_it_says_and_survives_its_server(pair: Pair) {
    let mut world = World::new(pair, "").await;
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
