//! Two replicators where there should be one, and two pipelines in one table (S94 to S98).

use crate::support::{Daemon, Pair, World};

for_each_pair! {
    s94_a_second_instance_with_the_same_state_is_refused:
        postgres(sqlite postgres / mariadb), mariadb(sqlite / postgres mariadb);
    s95_another_instance_wins_only_by_a_take_over:
        postgres(sqlite postgres mariadb /), mariadb(mariadb / sqlite postgres);
    s96_a_suspended_twin_cannot_commit_one_more_row:
        postgres(sqlite postgres mariadb /), mariadb(postgres / sqlite mariadb);
    s98_two_pipelines_into_one_table_are_refused:
        postgres(sqlite postgres mariadb /), mariadb(sqlite / postgres mariadb);
    s100_verify_finds_what_somebody_changed_by_hand_and_repairs_only_that:
        postgres(sqlite postgres mariadb /), mariadb(mariadb / sqlite postgres);
}

fn tables(pair: Pair) -> String {
    format!(
        "CREATE TABLE t (id int PRIMARY KEY, v text);
         INSERT INTO t SELECT n, 'first ' || n FROM {}",
        pair.source.series(200)
    )
}

/// The same pipeline on another machine: the same everything, but a state directory of its own.
fn twin(world: &World, more: &[&str]) -> Daemon {
    let ours = world.state().display().to_string();
    let theirs = world.file("twin-state").display().to_string();
    let mut arguments = world.arguments(&[&["run"], more].concat());
    arguments.iter_mut().filter(|word| **word == ours).for_each(|word| *word = theirs.clone());
    world.start(&arguments)
}

async fn s94_a_second_instance_with_the_same_state_is_refused(pair: Pair) {
    let mut world = World::new(pair, &tables(pair)).await;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    world.command(&["run"]).await.must_stop_with("already-running").must_exit(1);
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
}

async fn s95_another_instance_wins_only_by_a_take_over(pair: Pair) {
    let mut world = World::new(pair, &tables(pair)).await;
    world.catch_up().await;
    let mut old = world.run(&[]);
    world.arrival(&mut old).await;
    twin(&world, &[]).wait().await.must_stop_with("already-running").must_say("--take-over");
    world.arrival(&mut old).await;
    let mut new = twin(&world, &["--take-over"]);
    old.wait().await.must_stop_with("fenced").must_exit(1);
    world.execute("UPDATE t SET v = 'by the new one'").await;
    world.arrival(&mut new).await;
    new.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

async fn s96_a_suspended_twin_cannot_commit_one_more_row(pair: Pair) {
    let mut world = World::new(pair, &tables(pair)).await;
    world.catch_up().await;
    let mut old = world.run(&[]);
    world.arrival(&mut old).await;
    // Changes are on their way to the old one when it falls asleep.
    world.execute("UPDATE t SET v = 'while the old one dozes off'").await;
    old.signal("STOP");
    let mut new = twin(&world, &["--take-over"]);
    world.execute("UPDATE t SET v = 'by the new one'").await;
    world.arrival(&mut new).await;
    old.signal("CONT");
    world.execute("DELETE FROM t WHERE id > 100").await;
    old.wait().await.must_stop_with("fenced");
    world.arrival(&mut new).await;
    new.terminate().await.must_exit(0);
    world.must_be_equal().await;
}

async fn s98_two_pipelines_into_one_table_are_refused(pair: Pair) {
    let mut world = World::new(pair, &tables(pair)).await;
    world.catch_up().await;
    let first = world.state();
    world.pipeline = "second".into();
    let second = world.file("second-state").display().to_string();
    let mut arguments = world.arguments(&["run", "--until-current"]);
    let ours = first.display().to_string();
    arguments.iter_mut().filter(|word| **word == ours).for_each(|word| *word = second.clone());
    world.start(&arguments).wait().await.must_stop_with("table-owned").must_say("main");
    world.pipeline = "main".into();
    world.execute("UPDATE t SET v = 'still the first one'").await;
    world.catch_up().await;
    world.must_be_equal().await;
}

async fn s100_verify_finds_what_somebody_changed_by_hand_and_repairs_only_that(pair: Pair) {
    let world = World::new(pair, &tables(pair)).await;
    world.catch_up().await;
    world.command(&["verify"]).await.must_exit(0);
    world.execute_in_target("DELETE FROM t WHERE id = 17").await;
    world.execute_in_target("UPDATE t SET v = 'forged' WHERE id = 23").await;
    let extra = "INSERT INTO t (id, v, _cdc_version, _cdc_updated_at)
        SELECT 9000, 'extra', _cdc_version, _cdc_updated_at FROM t WHERE id = 1";
    world.execute_in_target(extra).await;
    let found = world.command(&["verify"]).await.must_exit(3);
    for key in ["17", "23", "9000"] {
        assert!(found.stdout.contains(key), "key {key} is not named: {found}");
    }
    let started = std::time::Instant::now();
    world.command(&["verify", "--repair"]).await.must_exit(0);
    // Nobody else moves the target's checkpoint, so there is nothing to wait for.
    assert!(started.elapsed().as_secs() < 25, "the repair waited for a daemon that is not there");
    world.command(&["verify"]).await.must_exit(0);
    world.must_be_equal().await;
}
