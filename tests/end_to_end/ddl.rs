//! Tables of a MariaDB source that change their shape: ADD COLUMN is followed, everything else
//! stops the table with a name and a remedy (S79 to S82).

use crate::support::{Pair, World, wait_until};

for_each_pair! {
    s79_added_columns_are_followed: mariadb(sqlite postgres mariadb /);
    s79_added_columns_are_followed_with_full_row_metadata: mariadb(sqlite / postgres mariadb);
    s80_a_column_added_while_we_are_stopped: mariadb(mariadb / sqlite postgres);
    s81_every_other_change_stops_its_table: mariadb(sqlite / postgres mariadb);
    s81_a_change_while_we_are_stopped_stops_its_table: mariadb(mariadb / sqlite postgres);
    s82_a_table_dropped_and_made_again_in_another_shape: mariadb(postgres / sqlite mariadb);
}

const SQL: &str = "CREATE TABLE t (id int unsigned PRIMARY KEY, v varchar(20));
    INSERT INTO t VALUES (1, 'one'), (2, 'two'), (4000000000, 'large');
    CREATE TABLE other (id int PRIMARY KEY)";

/// Changes of the shape that are followed, each with rows around it.
const FOLLOWED: [&str; 9] = [
    "ALTER TABLE t ADD COLUMN a int; INSERT INTO t (id, v, a) VALUES (10, 'ten', 10)",
    "INSERT INTO t (id, v) VALUES (11, 'before'); ALTER TABLE shop.t ADD b varchar(10) CHARACTER
     SET latin1 DEFAULT 'ä'; INSERT INTO t (id, b) VALUES (12, 'ö')",
    "UPDATE t SET v = 'x' WHERE id = 1; ALTER TABLE `t` ADD COLUMN (c bigint unsigned, d datetime(3));
     UPDATE t SET c = 18446744073709551615, d = '2024-02-29 12:00:00.125' WHERE id = 1",
    "ALTER TABLE t ADD COLUMN first_one smallint unsigned NOT NULL DEFAULT 65535 FIRST;
     DELETE FROM t WHERE id = 2; INSERT INTO t (id) VALUES (20)",
    "ALTER TABLE t ADD COLUMN between_them enum('x', 'y, z', '') NOT NULL DEFAULT 'y, z' AFTER id,
     ADD COLUMN e decimal(10, 3) DEFAULT 1.5; UPDATE t SET e = -0.001, between_them = '' WHERE id = 1",
    "BEGIN; INSERT INTO t (id, v) VALUES (30, 'in a transaction'); ALTER TABLE t ADD COLUMN f json;
     INSERT INTO t (id, f) VALUES (31, '{\"a\": 1}'); COMMIT",
    "ALTER TABLE t ADD INDEX by_v (v), COMMENT = 'with an index'; CREATE INDEX by_a ON t (a);
     DROP INDEX by_a ON t; INSERT INTO t (id) VALUES (40)",
    "ALTER TABLE t ADD COLUMN g int AS (a + 1) VIRTUAL; UPDATE t SET a = 5 WHERE id = 1",
    "/* a remark */ ALTER /*!50000 TABLE */ t -- another
     ADD COLUMN `odd name, (really)` int DEFAULT 3 COMMENT 'it''s, well; odd'",
];

async fn check_followed(pair: Pair, settings: &[(&str, &str)]) {
    let mut world = World::with(pair, SQL, settings, false).await;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    for (number, change) in FOLLOWED.iter().enumerate() {
        world.execute(change).await;
        world.execute(&format!("INSERT INTO other VALUES ({number})")).await;
        world.arrival(&mut daemon).await;
    }
    daemon.terminate().await.must_exit(0);
    world.catch_up().await;
    world.must_be_equal().await;
    world.command(&["verify"]).await.must_exit(0);
}

async fn s79_added_columns_are_followed(pair: Pair) {
    check_followed(pair, &[]).await;
}

async fn s79_added_columns_are_followed_with_full_row_metadata(pair: Pair) {
    check_followed(pair, &[("binlog-row-metadata", "FULL")]).await;
}

/// Rows of the old shape are read after the catalog knows only the new one.
async fn s80_a_column_added_while_we_are_stopped(pair: Pair) {
    for settings in [&[][..], &[("binlog-row-metadata", "FULL")]] {
        let world = World::with(pair, SQL, settings, false).await;
        world.catch_up().await;
        for (number, change) in FOLLOWED.iter().enumerate() {
            world.execute(&format!("UPDATE t SET v = 'old {number}' WHERE id = 1")).await;
            world.execute(change).await;
            world.execute(&format!("UPDATE t SET v = 'new {number}' WHERE id = 10")).await;
        }
        world.catch_up().await;
        world.must_be_equal().await;
    }
}

const REFUSED: [&str; 12] = [
    "ALTER TABLE t DROP COLUMN v",
    "ALTER TABLE t MODIFY v varchar(30)",
    "ALTER TABLE t MODIFY id bigint unsigned",
    "ALTER TABLE t CHANGE v w varchar(20)",
    "ALTER TABLE t RENAME COLUMN v TO w",
    "ALTER TABLE t MODIFY v varchar(20) CHARACTER SET latin1",
    "ALTER TABLE t CONVERT TO CHARACTER SET latin1",
    "ALTER TABLE t DROP PRIMARY KEY, ADD PRIMARY KEY (id, v)",
    "ALTER TABLE t MODIFY v varchar(20) FIRST",
    "ALTER TABLE t ADD COLUMN c int, DROP COLUMN v",
    "RENAME TABLE t TO u; CREATE TABLE t (id int unsigned PRIMARY KEY, v varchar(20))",
    "DROP TABLE t",
];

async fn s81_every_other_change_stops_its_table(pair: Pair) {
    let mut world = World::new(pair, SQL).await;
    let mut others = 0;
    for change in REFUSED {
        let mut daemon = world.run(&[]);
        world.arrival(&mut daemon).await;
        world.execute("INSERT INTO t (id, v) VALUES (7, 'before')").await;
        world.execute(change).await;
        others += 1;
        world.execute(&format!("INSERT INTO other VALUES ({others})")).await;
        let arrived = "SELECT count(*) FROM other";
        world.until_target_says(&mut daemon, arrived, &others.to_string()).await;
        wait_until(change, async || daemon.has_said("schema-change")).await;
        assert!(daemon.has_said(&world.name("t")), "{}", daemon.stderr());
        daemon.terminate().await;
        let outcome = world.command(&["run", "--until-current"]).await;
        if change != "DROP TABLE t" {
            outcome.must_stop_with("schema-change");
        }
        // Begun again from nothing.
        world
            .execute(
                "DROP TABLE IF EXISTS t, u; CREATE TABLE t (id int unsigned PRIMARY KEY,
            v varchar(20)); INSERT INTO t VALUES (1, 'one')",
            )
            .await;
        world.execute_in_target("DROP TABLE t").await;
        world.command(&["run", "--until-current", "--resync"]).await.must_exit(0);
        world.must_be_equal().await;
    }
}

/// The catalog has only the new shape, and says so before a row is read.
async fn s81_a_change_while_we_are_stopped_stops_its_table(pair: Pair) {
    let world = World::new(pair, SQL).await;
    world.catch_up().await;
    for (number, change) in REFUSED[..4].iter().enumerate() {
        world.execute("INSERT INTO t (id, v) VALUES (7, 'before')").await;
        world.execute(change).await;
        world.execute(&format!("INSERT INTO other VALUES ({number})")).await;
        let outcome = world.command(&["run", "--until-current"]).await;
        outcome.must_stop_with("schema-change").must_say(&world.name("t"));
        let others = world.ask_target("SELECT count(*) FROM other").await;
        assert_eq!(others, Some((number + 1).to_string()), "{change}");
        world
            .execute("DROP TABLE t; CREATE TABLE t (id int unsigned PRIMARY KEY, v varchar(20))")
            .await;
        world.execute_in_target("DROP TABLE t").await;
        world.command(&["run", "--until-current", "--resync"]).await.must_exit(0);
        world.must_be_equal().await;
    }
}

async fn s82_a_table_dropped_and_made_again_in_another_shape(pair: Pair) {
    for again in [
        "CREATE TABLE t (id int unsigned PRIMARY KEY, v varchar(20), w int)",
        // The same types in another order: nothing in a plain row event tells them apart.
        "CREATE TABLE t (v varchar(20), id int unsigned PRIMARY KEY)",
        "CREATE TABLE t (id int PRIMARY KEY, v varchar(20))",
    ] {
        let world = World::new(pair, SQL).await;
        world.catch_up().await;
        world.execute("INSERT INTO t VALUES (7, 'before'); DROP TABLE t").await;
        world.execute(again).await;
        world.execute("INSERT INTO t (id, v) VALUES (8, 'after')").await;
        let outcome = world.command(&["run", "--until-current"]).await;
        outcome.must_stop_with("schema-change").must_say(&world.name("t"));
        assert_eq!(
            world.ask_target("SELECT count(*) FROM t WHERE id = 8").await.as_deref(),
            Some("0")
        );
    }
}
