//! Two replicators where there should be one, and two pipelines in one table (S94 to S98).

use crate::support::{Daemon, Target, World};

for_each_target! {
    s94_a_second_instance_with_the_same_state_is_refused
    s95_another_instance_wins_only_by_a_take_over
    s96_a_suspended_twin_cannot_commit_one_more_row
    s98_two_pipelines_into_one_table_are_refused
    s100_verify_finds_what_somebody_changed_by_hand_and_repairs_only_that
}

const SQL: &str = "CREATE TABLE t (id int PRIMARY KEY, v text);
    INSERT INTO t SELECT n, 'first ' || n FROM generate_series(1, 200) n";

/// The same pipeline on another machine: the same everything, but a state directory of its own.
fn twin(world: &World, more: &[&str]) -> Daemon {
    let ours = world.state().display().to_string();
    let theirs = world.file("twin-state").display().to_string();
    let mut arguments = world.arguments(&[&["run"], more].concat());
    arguments.iter_mut().filter(|word| **word == ours).for_each(|word| *word = theirs.clone());
    Daemon::start(&arguments)
}

async fn s94_a_second_instance_with_the_same_state_is_refused(target: Target) {
    let mut world = World::new(target, SQL).await;
    let mut daemon = world.run(&[]);
    world.arrival(&mut daemon).await;
    world.command(&["run"]).await.must_stop_with("already-running").must_exit(1);
    world.arrival(&mut daemon).await;
    daemon.terminate().await.must_exit(0);
}

async fn s95_another_instance_wins_only_by_a_take_over(target: Target) {
    let mut world = World::new(target, SQL).await;
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

async fn s96_a_suspended_twin_cannot_commit_one_more_row(target: Target) {
    let mut world = World::new(target, SQL).await;
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

async fn s98_two_pipelines_into_one_table_are_refused(target: Target) {
    let mut world = World::new(target, SQL).await;
    world.catch_up().await;
    let first = world.state();
    world.pipeline = "second".into();
    let second = world.file("second-state").display().to_string();
    let mut arguments = world.arguments(&["run", "--until-current"]);
    let ours = first.display().to_string();
    arguments.iter_mut().filter(|word| **word == ours).for_each(|word| *word = second.clone());
    Daemon::start(&arguments).wait().await.must_stop_with("table-owned").must_say("main");
    world.pipeline = "main".into();
    world.execute("UPDATE t SET v = 'still the first one'").await;
    world.catch_up().await;
    world.must_be_equal().await;
}

async fn s100_verify_finds_what_somebody_changed_by_hand_and_repairs_only_that(target: Target) {
    let world = World::new(target, SQL).await;
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
