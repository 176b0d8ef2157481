//! What people get wrong: each time one clear error, exit code 1 or 2, nothing touched.

use crate::support::{Daemon, Outcome, Pair, Source, World};

for_each_pair! {
    a_wrong_url_is_named_and_nothing_is_touched:
        postgres(sqlite / postgres mariadb), mariadb(sqlite / postgres mariadb);
    a_wrong_password_is_named_and_nothing_is_touched:
        postgres(sqlite postgres / mariadb), mariadb(sqlite / postgres mariadb);
    a_source_that_is_down_is_named_and_nothing_is_touched:
        postgres(sqlite postgres / mariadb), mariadb(mariadb / sqlite postgres);
    settings_that_allow_no_replication_are_named_with_what_to_change:
        postgres(sqlite postgres / mariadb), mariadb(sqlite / postgres mariadb);
    a_missing_grant_is_named_with_the_sql_that_mends_it:
        postgres(sqlite postgres / mariadb), mariadb(sqlite / postgres mariadb);
    a_missing_table_is_named_and_nothing_is_touched:
        postgres(sqlite postgres mariadb /), mariadb(postgres / sqlite mariadb);
    a_table_without_a_key_is_named_and_nothing_is_touched:
        postgres(sqlite postgres / mariadb), mariadb(mariadb / sqlite postgres);
    a_pattern_that_matches_nothing_is_named_and_nothing_is_touched:
        postgres(sqlite postgres / mariadb), mariadb(sqlite / postgres mariadb);
    an_unknown_configuration_key_suggests_the_known_one:
        postgres(sqlite / postgres mariadb), mariadb(/ sqlite postgres mariadb);
    the_state_directory_of_another_pipeline_is_refused:
        postgres(sqlite postgres / mariadb), mariadb(sqlite / postgres mariadb);
    a_teardown_leaves_nothing_but_the_rows_and_a_new_pipeline_may_follow:
        postgres(sqlite postgres mariadb /), mariadb(sqlite postgres mariadb /);
    a_target_table_with_another_shape_is_refused:
        postgres(sqlite postgres mariadb /), mariadb(postgres / sqlite mariadb);
    a_target_table_with_rows_of_somebody_else_is_refused:
        postgres(sqlite postgres mariadb /), mariadb(mariadb / sqlite postgres);
}

const SQL: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'v')";

/// The command fails with this code in one line, and leaves neither slot, publication nor tables.
async fn check(world: &World, code: &str, says: &[&str]) {
    let outcome = world.command(&["run", "--until-current"]).await;
    must_be_one_clear_error(outcome, code, says);
    must_be_untouched(world).await;
}

#[track_caller]
fn must_be_one_clear_error(outcome: Outcome, code: &str, says: &[&str]) {
    assert!(matches!(outcome.code, Some(1 | 2)), "{outcome}");
    let outcome = outcome.must_stop_with(code);
    let lines = outcome.stderr.lines().filter(|line| line.contains(&format!("[{code}]")));
    assert_eq!(lines.count(), 1, "not one error: {outcome}");
    assert!(!outcome.stderr.contains("panicked"), "{outcome}");
    for text in says {
        assert!(outcome.stderr.contains(text), "expected {text:?}: {outcome}");
    }
}

async fn must_be_untouched(world: &World) {
    must_leave_nothing_in_the_source(world).await;
    assert_eq!(world.tables_in_target("t").await, 0, "the target was touched");
}

/// A MariaDB keeps nothing for us at any time.
async fn must_leave_nothing_in_the_source(world: &World) {
    if world.pair.source == Source::Mariadb {
        return;
    }
    for catalog in ["pg_replication_slots", "pg_publication"] {
        let left = world.ask(&format!("SELECT count(*) FROM {catalog}")).await;
        assert_eq!(left.as_deref(), Some("0"), "something is left in {catalog}");
    }
}

async fn a_wrong_url_is_named_and_nothing_is_touched(pair: Pair) {
    let mut world = World::new(pair, SQL).await;
    let good = world.from.clone();
    for url in pair.source.either(
        ["oracle://db/shop", "postgres:", "shop", "postgres://h:notaport/db"],
        ["oracle://db/shop", "mysql:", "shop", "mysql://h:notaport/db"],
    ) {
        world.from = url.into();
        let outcome = world.command(&["run", "--until-current"]).await.must_exit(2);
        must_be_one_clear_error(outcome, "configuration", &[]);
    }
    world.from = good;
    must_be_untouched(&world).await;
}

async fn a_wrong_password_is_named_and_nothing_is_touched(pair: Pair) {
    let mut world = World::new(pair, SQL).await;
    world.from = world.source_as(pair.source.superuser(), "wrong");
    check(&world, "authentication", &["127.0.0.1"]).await;
}

async fn a_source_that_is_down_is_named_and_nothing_is_touched(pair: Pair) {
    let mut world = World::new(pair, SQL).await;
    let port = world.server.port().to_string();
    world.from = world.from.replace(&port, "1");
    // The first connection decides: nobody waits for a server that was never there.
    let outcome = world.command(&["check"]).await;
    must_be_one_clear_error(outcome, "unreachable", &["127.0.0.1"]);
    must_be_untouched(&world).await;
}

async fn settings_that_allow_no_replication_are_named_with_what_to_change(pair: Pair) {
    let cases: &[(&str, &str, &str)] = pair.source.either(
        &[("wal_level", "replica", "logical")],
        &[
            ("skip-log-bin", "ON", "log_bin"),
            ("binlog_format", "STATEMENT", "ROW"),
            ("binlog_row_image", "MINIMAL", "FULL"),
        ],
    );
    for (setting, value, remedy) in cases {
        let world = World::with(pair, SQL, &[(setting, value)], false).await;
        let name = setting.replace("skip-log-bin", "log_bin");
        check(&world, "source-settings", &[&name, remedy]).await;
    }
}

async fn a_missing_grant_is_named_with_the_sql_that_mends_it(pair: Pair) {
    let role = pair.source.either(
        "CREATE ROLE reader LOGIN REPLICATION PASSWORD 'reader'",
        "CREATE USER reader@'%' IDENTIFIED BY 'reader'; GRANT SELECT ON shop.* TO reader@'%'",
    );
    let mut world = World::new(pair, &format!("{SQL}; {role}")).await;
    world.from = world.source_as("reader", "reader");
    world.tables = world.name("t");
    check(&world, "permission", &["GRANT"]).await;
}

async fn a_missing_table_is_named_and_nothing_is_touched(pair: Pair) {
    let mut world = World::new(pair, SQL).await;
    world.tables = format!("{},{}", world.name("t"), world.name("nowhere"));
    check(&world, "missing-table", &[&world.name("nowhere")]).await;
}

async fn a_table_without_a_key_is_named_and_nothing_is_touched(pair: Pair) {
    let world = World::new(pair, "CREATE TABLE t (id int, v text)").await;
    check(&world, "no-key", &[&world.name("t"), "PRIMARY KEY"]).await;
}

async fn a_pattern_that_matches_nothing_is_named_and_nothing_is_touched(pair: Pair) {
    let mut world = World::new(pair, SQL).await;
    world.tables += ",elsewhere.*";
    check(&world, "missing-table", &["elsewhere.*"]).await;
}

async fn an_unknown_configuration_key_suggests_the_known_one(pair: Pair) {
    let world = World::new(pair, SQL).await;
    let file = world.file("driftless.toml");
    let text = format!(
        "[pipeline]\nbatch_row = 5\n[source]\nurl = \"{}\"\n[target]\nurl = \"{}\"\n",
        world.from, world.to
    );
    std::fs::write(&file, text).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let config = file.display().to_string();
    let arguments = ["run", "--config", &config].map(str::to_owned);
    let outcome = Daemon::start(&arguments).wait().await.must_exit(2);
    must_be_one_clear_error(outcome, "configuration", &["batch_row", "batch_rows"]);
    must_be_untouched(&world).await;
}

async fn the_state_directory_of_another_pipeline_is_refused(pair: Pair) {
    let mut world = World::new(pair, SQL).await;
    world.pipeline = "other".into();
    world.catch_up().await;
    world.pipeline = "main".into();
    let (other, main) = (world.state().join("other"), world.state().join("main"));
    std::fs::rename(&other, &main).unwrap();
    world.execute("INSERT INTO t VALUES (2, 'not for main')").await;

    for command in [&["run", "--until-current"][..], &["backfill"]] {
        let outcome = world.command(command).await;
        must_be_one_clear_error(outcome, "state-other", &["`other`", "`main`"]);
    }
    let looked = world.command(&["check", "--json"]).await.must_exit(1);
    assert!(looked.stdout.contains("\"state-other\""), "{looked}");
    if pair.source == Source::Postgres {
        let ours = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'driftless_main'";
        assert_eq!(world.ask(ours).await.as_deref(), Some("0"));
    }
    assert_eq!(world.ask_target("SELECT count(*) FROM t").await.as_deref(), Some("1"));

    // Nothing was lost: under its own name the pipeline goes on where it was.
    std::fs::rename(&main, &other).unwrap();
    world.pipeline = "other".into();
    world.catch_up().await;
    world.must_be_equal().await;
}

async fn a_teardown_leaves_nothing_but_the_rows_and_a_new_pipeline_may_follow(pair: Pair) {
    let mut world = World::new(pair, SQL).await;
    world.pipeline = "other".into();
    world.catch_up().await;
    for _ in 0..2 {
        world.command(&["teardown", "--yes"]).await.must_exit(0);
        must_leave_nothing_in_the_source(&world).await;
        assert!(!world.state().exists());
        assert_eq!(world.ask_target("SELECT count(*) FROM t").await.as_deref(), Some("1"));
        for table in ["_cdc_checkpoint", "_cdc_tombstone"] {
            assert_eq!(world.tables_in_target(table).await, 0, "{table} is left in the target");
        }
    }
    world.pipeline = "main".into();
    // The rows are nobody's now, so they have to be taken away first.
    world.command(&["run", "--until-current"]).await.must_stop_with("target-not-empty");
    for table in ["t", "sentinel"] {
        world.execute_in_target(&format!("DROP TABLE {table}")).await;
    }
    world.catch_up().await;
    world.must_be_equal().await;
}

async fn a_target_table_with_another_shape_is_refused(pair: Pair) {
    let world = World::new(pair, SQL).await;
    world.make_target_schema().await;
    world.execute_in_target("CREATE TABLE t (id int PRIMARY KEY, w int)").await;
    let outcome = world.command(&["run", "--until-current"]).await;
    assert!(matches!(outcome.code, Some(1 | 2)), "{outcome}");
    outcome.must_stop_with("target-shape").must_say("t");
    assert_eq!(world.ask_target("SELECT count(w) FROM t").await.as_deref(), Some("0"));
}

async fn a_target_table_with_rows_of_somebody_else_is_refused(pair: Pair) {
    let donor = World::new(pair, SQL).await;
    donor.catch_up().await;
    // The right shape, with a row in it, but no record of any pipeline.
    for table in ["_cdc_checkpoint", "_cdc_tombstone"] {
        donor.execute_in_target(&format!("DROP TABLE {table}")).await;
    }
    std::fs::remove_dir_all(donor.state()).unwrap();
    if pair.source == Source::Postgres {
        donor.execute("SELECT pg_drop_replication_slot('driftless_main')").await;
    }
    let outcome = donor.command(&["run", "--until-current"]).await;
    assert_ne!(outcome.code, Some(0), "{outcome}");
    assert_eq!(donor.ask_target("SELECT count(*) FROM t").await.as_deref(), Some("1"));
}
