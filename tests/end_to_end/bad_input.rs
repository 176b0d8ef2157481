//! What people get wrong: each time one clear error, exit code 1 or 2, nothing touched.

use crate::support::world::session;
use crate::support::{Daemon, Outcome, Target, World};

for_each_target! {
    a_wrong_url_is_named_and_nothing_is_touched
    a_wrong_password_is_named_and_nothing_is_touched
    a_source_that_is_down_is_named_and_nothing_is_touched
    wal_level_replica_is_named_with_the_setting_to_change
    a_missing_grant_is_named_with_the_sql_that_mends_it
    a_missing_table_is_named_and_nothing_is_touched
    a_table_without_a_key_is_named_and_nothing_is_touched
    a_pattern_that_matches_nothing_is_named_and_nothing_is_touched
    an_unknown_configuration_key_suggests_the_known_one
    the_state_directory_of_another_pipeline_is_refused
    a_teardown_leaves_nothing_but_the_rows_and_a_new_pipeline_may_follow
    a_target_table_with_another_shape_is_refused
    a_target_table_with_rows_of_somebody_else_is_refused
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
    for catalog in ["pg_replication_slots", "pg_publication"] {
        let left = world.ask(&format!("SELECT count(*) FROM {catalog}")).await;
        assert_eq!(left.as_deref(), Some("0"), "something is left in {catalog}");
    }
    let tables = match world.target {
        Target::Postgres => {
            world.ask_target("SELECT count(*) FROM pg_tables WHERE tablename = 't'").await
        }
        Target::Sqlite if !world.file("replica.db").exists() => return,
        Target::Sqlite => {
            world.ask_target("SELECT count(*) FROM sqlite_schema WHERE name = 't'").await
        }
    };
    assert_eq!(tables.as_deref(), Some("0"), "the target was touched");
}

async fn a_wrong_url_is_named_and_nothing_is_touched(target: Target) {
    let mut world = World::new(target, SQL).await;
    let good = world.from.clone();
    for url in ["oracle://db/shop", "postgres:", "shop", "postgres://h:notaport/db"] {
        world.from = url.into();
        let outcome = world.command(&["run", "--until-current"]).await.must_exit(2);
        must_be_one_clear_error(outcome, "configuration", &[]);
    }
    world.from = good;
    must_be_untouched(&world).await;
}

async fn a_wrong_password_is_named_and_nothing_is_touched(target: Target) {
    let mut world = World::new(target, SQL).await;
    world.from = world.source_as("postgres", "wrong");
    check(&world, "authentication", &["127.0.0.1"]).await;
}

async fn a_source_that_is_down_is_named_and_nothing_is_touched(target: Target) {
    let mut world = World::new(target, SQL).await;
    let port = world.server.port().to_string();
    world.from = world.from.replace(&port, "1");
    // The first connection decides: nobody waits for a server that was never there.
    let outcome = world.command(&["check"]).await;
    must_be_one_clear_error(outcome, "unreachable", &["127.0.0.1"]);
    must_be_untouched(&world).await;
}

async fn wal_level_replica_is_named_with_the_setting_to_change(target: Target) {
    let world = World::with(target, SQL, &[("wal_level", "replica")], false).await;
    check(&world, "source-settings", &["wal_level", "logical"]).await;
}

async fn a_missing_grant_is_named_with_the_sql_that_mends_it(target: Target) {
    let sql = format!("{SQL}; CREATE ROLE reader LOGIN REPLICATION PASSWORD 'reader'");
    let mut world = World::new(target, &sql).await;
    world.from = world.source_as("reader", "reader");
    world.tables = "public.t".into();
    check(&world, "permission", &["GRANT"]).await;
}

async fn a_missing_table_is_named_and_nothing_is_touched(target: Target) {
    let mut world = World::new(target, SQL).await;
    world.tables = "public.t,public.nowhere".into();
    check(&world, "missing-table", &["public.nowhere"]).await;
}

async fn a_table_without_a_key_is_named_and_nothing_is_touched(target: Target) {
    let world = World::new(target, "CREATE TABLE t (id int, v text)").await;
    check(&world, "no-key", &["public.t", "PRIMARY KEY"]).await;
}

async fn a_pattern_that_matches_nothing_is_named_and_nothing_is_touched(target: Target) {
    let mut world = World::new(target, SQL).await;
    world.tables = "public.*,shop.*".into();
    check(&world, "missing-table", &["shop.*"]).await;
}

async fn an_unknown_configuration_key_suggests_the_known_one(target: Target) {
    let world = World::new(target, SQL).await;
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

async fn the_state_directory_of_another_pipeline_is_refused(target: Target) {
    let mut world = World::new(target, SQL).await;
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
    let ours = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'driftless_main'";
    assert_eq!(world.ask(ours).await.as_deref(), Some("0"));
    assert_eq!(world.ask_target("SELECT count(*) FROM t").await.as_deref(), Some("1"));

    // Nothing was lost: under its own name the pipeline goes on where it was.
    std::fs::rename(&main, &other).unwrap();
    world.pipeline = "other".into();
    world.catch_up().await;
    world.must_be_equal().await;
}

async fn a_teardown_leaves_nothing_but_the_rows_and_a_new_pipeline_may_follow(target: Target) {
    let mut world = World::new(target, SQL).await;
    world.pipeline = "other".into();
    world.catch_up().await;
    for _ in 0..2 {
        world.command(&["teardown", "--yes"]).await.must_exit(0);
        for catalog in ["pg_replication_slots", "pg_publication"] {
            let left = world.ask(&format!("SELECT count(*) FROM {catalog}")).await;
            assert_eq!(left.as_deref(), Some("0"), "something is left in {catalog}");
        }
        assert!(!world.state().exists());
        assert_eq!(world.ask_target("SELECT count(*) FROM t").await.as_deref(), Some("1"));
        for table in ["_cdc_checkpoint", "_cdc_tombstone"] {
            let left = world.ask_target(&format!("SELECT count(*) FROM {table}")).await;
            assert_eq!(left, None, "{table} is left in the target");
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

async fn a_target_table_with_another_shape_is_refused(target: Target) {
    let world = World::new(target, SQL).await;
    world.execute_in_target("CREATE TABLE t (id int PRIMARY KEY, w int)").await;
    let outcome = world.command(&["run", "--until-current"]).await;
    assert!(matches!(outcome.code, Some(1 | 2)), "{outcome}");
    outcome.must_stop_with("target-shape").must_say("t");
    assert_eq!(world.ask_target("SELECT count(w) FROM t").await.as_deref(), Some("0"));
}

async fn a_target_table_with_rows_of_somebody_else_is_refused(target: Target) {
    let donor = World::new(target, SQL).await;
    donor.catch_up().await;
    // The right shape, with a row in it, but no record of any pipeline.
    for table in ["_cdc_checkpoint", "_cdc_tombstone"] {
        donor.execute_in_target(&format!("DROP TABLE {table}")).await;
    }
    std::fs::remove_dir_all(donor.state()).unwrap();
    let source = session(&donor.from).await;
    source.batch_execute("SELECT pg_drop_replication_slot('driftless_main')").await.unwrap();
    let outcome = donor.command(&["run", "--until-current"]).await;
    assert_ne!(outcome.code, Some(0), "{outcome}");
    assert_eq!(donor.ask_target("SELECT count(*) FROM t").await.as_deref(), Some("1"));
}
