//! Stories told step by step, each named after its scenario.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use connectors::error::Code;
use connectors::memory::{Fault, Op};
use driftless::control::Request;

use crate::process::{Command, End, live, live_with};
use crate::script::{Plan, ProcessScript};
use crate::story::settle;
use crate::watch::PIPELINE;
use crate::world::{Setup, World, column, delete, insert, key, partial, update};

/// Each point is tried at this many of its occurrences.
const OCCURRENCES_MAX: usize = 4;

fn run<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(story)
}

fn after_millis(millis: u64) -> Option<Duration> {
    Some(Duration::from_millis(millis))
}

/// Runs in order for a while.
fn for_millis(millis: u64) -> Command {
    Command { until_current: false, stop_after: after_millis(millis), ..Command::quiet() }
}

fn backfill(table: &str) -> Request {
    Request::Backfill { tables: vec![table.into()], filter: None }
}

/// Everything that the log can carry, spread over some seconds.
async fn users(world: Arc<World>) {
    let [first, second] = [&world.tables[0], &world.tables[1]];
    let swap = |from: usize, to: usize| Op::Update {
        table: first.clone(),
        key: key(from),
        row: partial(to, "moved"),
    };
    let add = Op::AddColumn {
        table: second.clone(),
        column: column("c1", 101),
        value: Some(b"default".to_vec()),
    };
    let steps: Vec<Vec<Op>> = vec![
        vec![update(first, 1, "a"), update(second, 2, "b"), insert(first, 20, "c")],
        vec![delete(first, 2), insert(first, 2, "again"), update(first, 2, "and again")],
        vec![swap(3, 30), swap(4, 3)],
        vec![Op::Truncate { table: second.clone() }],
        vec![insert(second, 7, "new"), insert(second, 8, "new"), delete(first, 20)],
        vec![add],
        vec![delete(second, 7), update(first, 1, "z")],
    ];
    for step in steps {
        tokio::time::sleep(Duration::from_millis(130)).await;
        world.commit(&step);
        world.look("after a step of the users");
    }
}

/// A process under this plan while the users work, then another one that makes all good.
/// Returns how often each point was reached by the first.
fn told(plan: Plan) -> BTreeMap<&'static str, usize> {
    let world = World::filled(Setup::plain(), 5);
    let counts = run(async {
        let users = tokio::spawn(users(Arc::clone(&world)));
        let store = world.disks[0].open(PIPELINE).expect("a disk").store;
        let script = ProcessScript::new(&world, store.instance(), plan.clone());
        let requests = vec![backfill("public.t0")];
        let command = Command { requests, ..for_millis(4_000) };
        let end = live_with(&world, command, store, Arc::clone(&script)).await;
        assert!(!matches!(end, End::GaveUp(_)), "{plan:?}: {end:?}");
        users.await.expect("the users");
        let settled = settle(&world, false).await;
        assert_eq!(settled, Ok(()), "{plan:?}");
        script.counts()
    });
    assert_eq!(world.watch.verdict(), Ok(()), "{plan:?}");
    counts
}

fn check_each_point(fault: Fault) {
    let counts = told(Plan::Quiet);
    assert!(counts.len() > 20, "only these points were reached: {counts:?}");
    for (point, count) in counts {
        for nth in 1..=count.min(OCCURRENCES_MAX) {
            told(Plan::At(point, nth, fault));
        }
    }
}

#[test]
fn s01_s02_a_kill_at_any_point_loses_nothing() {
    check_each_point(Fault::Kill);
}

#[test]
fn s03_a_lost_answer_at_any_point_loses_nothing() {
    check_each_point(Fault::LoseAnswer);
}

#[test]
fn s33_a_failure_at_any_point_loses_nothing() {
    check_each_point(Fault::Fail);
}

/// A process under this plan that has much to catch up with, while the users go on.
fn caught_up_in_bulk(plan: Plan) -> BTreeMap<&'static str, usize> {
    let world = World::filled(Setup { bulk_read_above: Some(20), ..Setup::plain() }, 5);
    let counts = run(async {
        live(&world, for_millis(2_000)).await;
        users(Arc::clone(&world)).await;
        let more = {
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                for number in 0..40 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    world.commit(&[update(&world.tables[0], 1, &number.to_string())]);
                }
            })
        };
        let store = world.disks[0].open(PIPELINE).expect("a disk").store;
        let script = ProcessScript::new(&world, store.instance(), plan.clone());
        let end = live_with(&world, for_millis(4_000), store, Arc::clone(&script)).await;
        assert!(!matches!(end, End::GaveUp(_)), "{plan:?}: {end:?}");
        more.await.expect("the users");
        assert_eq!(settle(&world, false).await, Ok(()), "{plan:?}");
        script.counts()
    });
    assert_eq!(world.watch.verdict(), Ok(()), "{plan:?}");
    counts
}

fn check_each_point_in_bulk(fault: Fault) {
    let counts = caught_up_in_bulk(Plan::Quiet);
    for point in ["source.bulk.call", "source.bulk.over"] {
        assert!(counts.contains_key(point), "{point} was not reached: {counts:?}");
    }
    for (point, count) in counts {
        for nth in 1..=count.min(OCCURRENCES_MAX) {
            caught_up_in_bulk(Plan::At(point, nth, fault));
        }
    }
}

#[test]
fn a_kill_at_any_point_of_a_bulk_read_and_of_its_end_loses_nothing() {
    check_each_point_in_bulk(Fault::Kill);
}

#[test]
fn a_failure_at_any_point_of_a_bulk_read_and_of_its_end_loses_nothing() {
    check_each_point_in_bulk(Fault::Fail);
}

#[test]
fn a_first_copy_ends_with_its_last_row_and_waits_for_nothing_else() {
    let world = World::filled(Setup::plain(), 5);
    let took = run(async {
        let began = tokio::time::Instant::now();
        let end = live(&world, Command::quiet()).await;
        assert!(matches!(end, End::Done), "{end:?}");
        began.elapsed()
    });
    assert!(took < Duration::from_millis(200), "{took:?}");
}

/// What is done to the world between two runs, with work at the source after each.
fn check_between(break_it: impl Fn(&World)) {
    let world = World::filled(Setup::plain(), 5);
    run(async {
        let users = tokio::spawn(users(Arc::clone(&world)));
        let killed = Command { kill_after: after_millis(450), ..for_millis(4_000) };
        live(&world, killed).await;
        break_it(&world);
        users.await.expect("the users");
        assert_eq!(settle(&world, false).await, Ok(()));
    });
    assert_eq!(world.watch.verdict(), Ok(()));
}

#[test]
fn s04_a_disk_that_lied_about_flushing_loses_nothing() {
    let world = World::filled(Setup::plain(), 5);
    run(async {
        let users = tokio::spawn(users(Arc::clone(&world)));
        live(&world, for_millis(300)).await;
        world.disks[0].lie_about_flush(true);
        live(&world, Command { kill_after: after_millis(300), ..for_millis(4_000) }).await;
        world.disks[0].crash();
        world.watch.local_is_unknown();
        users.await.expect("the users");
        assert_eq!(settle(&world, false).await, Ok(()));
    });
}

#[test]
fn s05_a_deleted_state_directory_is_rebuilt_from_the_target() {
    check_between(|world| {
        world.disks[0].wipe();
        world.watch.local_is_unknown();
    });
}

#[test]
fn s06_a_damaged_state_directory_is_rebuilt_from_the_target() {
    check_between(|world| {
        world.disks[0].damage(PIPELINE);
        world.watch.local_is_unknown();
    });
}

#[test]
fn s07_a_full_disk_acknowledges_nothing_until_it_has_room() {
    let world = World::filled(Setup::plain(), 5);
    run(async {
        live(&world, for_millis(300)).await;
        let before = world.source.acknowledged();
        world.disks[0].fail_next_saves(u32::MAX);
        world.commit(&[update(&world.tables[0], 1, "x")]);
        live(&world, for_millis(5_000)).await;
        assert_eq!(world.source.acknowledged(), before);
        world.disks[0].fail_next_saves(0);
        assert_eq!(settle(&world, false).await, Ok(()));
    });
}

#[test]
fn s10_a_target_restored_from_a_backup_goes_on_from_its_own_position() {
    let world = World::filled(Setup::plain(), 5);
    run(async {
        live(&world, for_millis(2_000)).await;
        let backup = world.target.backup();
        let acknowledged = world.source.acknowledged();
        world.commit(&[update(&world.tables[0], 1, "lost"), delete(&world.tables[0], 2)]);
        // Not long enough for the source to hear of it.
        let brief = Command { kill_after: after_millis(300), ..for_millis(4_000) };
        live(&world, brief).await;
        assert_eq!(world.source.acknowledged(), acknowledged);
        world.target.restore(&backup);
        world.watch.target_went_back(false);
        assert_eq!(settle(&world, false).await, Ok(()));
    });
}

#[test]
fn s10_a_target_older_than_what_the_source_keeps_stops_and_is_copied_on_request() {
    let world = World::filled(Setup::plain(), 5);
    run(async {
        live(&world, for_millis(2_000)).await;
        let backup = world.target.backup();
        world.commit(&[delete(&world.tables[0], 2), update(&world.tables[1], 1, "new")]);
        live(&world, for_millis(5_000)).await;
        world.target.restore(&backup);
        world.watch.target_went_back(true);
        let end = live(&world, Command::quiet()).await;
        assert!(matches!(&end, End::GaveUp(error) if error.code == Code::SlotGap), "{end:?}");
        let resync = Command { resync: true, ..Command::quiet() };
        assert!(matches!(live(&world, resync).await, End::Done));
        world.watch.slot_is_unknown(false);
        assert_eq!(settle(&world, false).await, Ok(()));
    });
}

/// A first start of which so many slots cannot be read.
fn begun_with_spoiled_slots(count: usize) -> End {
    let world = World::filled(Setup::plain(), 5);
    world.source.spoil_slots(count);
    world.watch.slot_is_unknown(true);
    run(async {
        let users = tokio::spawn(users(Arc::clone(&world)));
        let end = live(&world, for_millis(4_000)).await;
        users.await.expect("the users");
        if matches!(end, End::Done) {
            world.watch.slot_is_unknown(false);
            assert_eq!(settle(&world, false).await, Ok(()));
        }
        end
    })
}

#[test]
fn a_new_log_that_cannot_be_read_is_left_for_another_one() {
    assert!(matches!(begun_with_spoiled_slots(2), End::Done));
    let end = begun_with_spoiled_slots(3);
    assert!(matches!(&end, End::GaveUp(error) if error.code == Code::LogUnreadable), "{end:?}");
}

#[test]
fn s19_a_dropped_slot_stops_and_loses_nothing_of_the_target() {
    let world = World::filled(Setup::plain(), 5);
    run(async {
        live(&world, for_millis(2_000)).await;
        world.source.drop_slot();
        let end = live(&world, Command::quiet()).await;
        assert!(matches!(&end, End::GaveUp(error) if error.code == Code::SlotMissing), "{end:?}");
        assert_eq!(world.compare(), Ok(()));
    });
}

#[test]
fn s53_a_row_deleted_while_its_chunk_is_on_the_way_stays_deleted() {
    let world = World::filled(Setup::plain(), 5);
    let [first, second] = [&world.tables[0], &world.tables[1]];
    run(async {
        let late = Fault::Delay(Duration::from_secs(3));
        let plan = Plan::At("source.read_chunk.after", 1, late);
        let users = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            world.commit(&[delete(first, 2), delete(second, 2)]);
            tokio::time::sleep(Duration::from_millis(2_000)).await;
            // The deletes have been applied by now, and the chunk that has the row has not.
            assert!(world.target.tombstones(PIPELINE) > 0);
        };
        tokio::join!(live(&world, Command { plan, ..for_millis(8_000) }), users);
        assert_eq!(world.compare(), Ok(()));
    });
    assert_eq!(world.watch.verdict(), Ok(()));
}

/// The delete is applied when the loader has looked for tombstones and has not written yet, or it
/// would be if nothing kept the two apart.
#[test]
fn s53_a_row_deleted_while_a_loader_writes_its_chunk_stays_deleted() {
    let world = World::filled(Setup::plain(), 5);
    let [first, second] = [&world.tables[0], &world.tables[1]];
    run(async {
        let late = Fault::Delay(Duration::from_secs(3));
        let plan = Plan::At("target.load.before_commit", 1, late);
        let users = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            world.commit(&[delete(first, 2), delete(second, 2)]);
        };
        tokio::join!(live(&world, Command { plan, ..for_millis(8_000) }), users);
        assert_eq!(world.compare(), Ok(()));
    });
    assert_eq!(world.watch.verdict(), Ok(()));
}

#[test]
fn s53_a_table_truncated_while_a_loader_writes_a_chunk_of_it_stays_empty() {
    let world = World::filled(Setup::plain(), 5);
    run(async {
        let late = Fault::Delay(Duration::from_secs(3));
        let plan = Plan::At("target.load.before_commit", 2, late);
        let users = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            world.tables.iter().for_each(|table| {
                world.commit(&[Op::Truncate { table: table.clone() }, insert(table, 4, "new")]);
            });
        };
        tokio::join!(live(&world, Command { plan, ..for_millis(8_000) }), users);
        assert_eq!(world.compare(), Ok(()));
    });
    assert_eq!(world.watch.verdict(), Ok(()));
}

#[test]
fn s55_overlapping_backfills_of_one_table_both_end() {
    let world = World::filled(Setup::plain(), 5);
    run(async {
        let users = tokio::spawn(users(Arc::clone(&world)));
        let requests = vec![backfill("public.t0"); 5];
        live(&world, Command { requests, ..Command::quiet() }).await;
        users.await.expect("the users");
        assert_eq!(settle(&world, false).await, Ok(()));
    });
}

#[test]
fn s57_rows_deleted_during_a_gap_are_removed_by_a_repeated_copy() {
    let world = World::filled(Setup::plain(), 5);
    run(async {
        live(&world, for_millis(2_000)).await;
        world.commit(&[delete(&world.tables[0], 2), delete(&world.tables[0], 5)]);
        world.source.skip_slot();
        world.watch.slot_is_unknown(true);
        let end = live(&world, Command::quiet()).await;
        assert!(matches!(&end, End::GaveUp(error) if error.code == Code::SlotGap), "{end:?}");
        assert_eq!(settle(&world, true).await, Ok(()));
    });
}

#[test]
fn s90_a_refused_row_stops_its_table_alone_and_a_backfill_takes_it_up_again() {
    let world = World::filled(Setup::plain(), 5);
    let [bad, good] = [&world.tables[0], &world.tables[1]];
    run(async {
        live(&world, for_millis(2_000)).await;
        world.watch.may_stop(Code::PoisonRow);
        world.target.refuse(bad, &key(9));
        world.commit(&[insert(bad, 9, "poison"), update(good, 1, "good")]);
        live(&world, for_millis(2_000)).await;
        assert_eq!(world.stopped(), std::slice::from_ref(bad));
        let schema = world.source.schema(good).expect("a table");
        assert_eq!(world.target.rows(&schema).len(), world.source.rows(good).len());
        world.commit(&[delete(bad, 9), update(bad, 1, "while it was stopped")]);
        assert_eq!(settle(&world, false).await, Ok(()));
    });
}

#[test]
fn a_backfill_on_its_own_repairs_a_damaged_row_and_removes_a_surplus_one() {
    let world = World::filled(Setup::plain(), 5);
    let table = &world.tables[0];
    run(async {
        live(&world, for_millis(2_000)).await;
        let schema = world.source.schema(table).expect("a table");
        let old = connectors::version::Version::ZERO;
        world.target.damage(&schema, &key(1), None, old);
        world.target.damage(&schema, &key(77), Some(&crate::world::row(77, "surplus")), old);
        let requests = vec![backfill("public.t0")];
        let command =
            Command { until_current: false, until_copied: true, requests, ..Command::quiet() };
        let end = live(&world, command).await;
        assert!(matches!(end, End::Done), "{end:?}");
        assert_eq!(world.compare(), Ok(()));
    });
    assert_eq!(world.watch.verdict(), Ok(()));
}

#[test]
fn s94_a_second_process_with_the_same_state_directory_is_refused() {
    let world = World::filled(Setup::plain(), 5);
    run(async {
        let _first = world.disks[0].open(PIPELINE).expect("a disk");
        let end = live(&world, Command::quiet()).await;
        let refused = matches!(&end, End::GaveUp(error) if error.code == Code::AlreadyRunning);
        assert!(refused, "{end:?}");
    });
}

#[test]
fn s95_a_second_instance_writes_only_with_take_over_and_the_first_never_again() {
    let world = World::filled(Setup::plain(), 5);
    run(async {
        let first = for_millis(10_000);
        let polite = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            live(&world, Command { machine: 1, ..for_millis(1_000) }).await
        };
        let bold = async {
            tokio::time::sleep(Duration::from_millis(2_000)).await;
            live(&world, Command { machine: 1, take_over: true, ..for_millis(5_000) }).await
        };
        let users = users(Arc::clone(&world));
        let (first, polite, bold, ()) = tokio::join!(live(&world, first), polite, bold, users);
        assert!(gave_up(&first, Code::Fenced), "{first:?}");
        assert!(gave_up(&polite, Code::AlreadyRunning), "{polite:?}");
        assert!(matches!(bold, End::Done), "{bold:?}");
        world.show_all();
        let last = Command { machine: 1, ..Command::quiet() };
        assert!(matches!(live(&world, last).await, End::Done));
        assert_eq!(world.compare(), Ok(()));
    });
    assert_eq!(world.watch.verdict(), Ok(()));
}

/// Another instance takes over while the first one is suspended at this place of its target.
fn must_fail_on_the_fence(point: &'static str, nth: usize) {
    let world = World::filled(Setup::plain(), 5);
    run(async {
        let pause = Fault::Delay(Duration::from_secs(5));
        let plan = Plan::At(point, nth, pause);
        let first = Command { plan, ..for_millis(20_000) };
        let second = async {
            tokio::time::sleep(Duration::from_millis(1_000)).await;
            live(&world, Command { machine: 1, take_over: true, ..for_millis(9_000) }).await
        };
        let users = users(Arc::clone(&world));
        let (first, second, ()) = tokio::join!(live(&world, first), second, users);
        assert!(gave_up(&first, Code::Fenced), "{first:?}");
        assert!(matches!(second, End::Done), "{second:?}");
        assert_eq!(world.compare(), Ok(()));
    });
    assert_eq!(world.watch.verdict(), Ok(()));
}

#[test]
fn s96_an_instance_suspended_before_its_commit_fails_on_the_fence() {
    must_fail_on_the_fence("target.apply.before_commit", 4);
}

#[test]
fn s96_a_loader_suspended_before_its_commit_fails_on_the_fence() {
    must_fail_on_the_fence("target.load.before_commit", 2);
}

fn gave_up(end: &End, code: Code) -> bool {
    matches!(end, End::GaveUp(error) if error.code == code)
}
