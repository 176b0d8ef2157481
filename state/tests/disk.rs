//! The store on disk: what it keeps, whom it refuses, and what it makes of damage.
//! `crash.rs` kills it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic in a helper too")]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use state::{Error, ErrorKind, Found, Opened, PastShape, Phase, SavedCheckpoint, Task, open, read};
use support::{checkpoint, contents, repair};
use tempfile::TempDir;

/// A state directory inside a temporary one.
struct Place {
    _outer: TempDir,
    dir: PathBuf,
}

impl Place {
    fn new() -> Place {
        let outer = TempDir::new().unwrap();
        let dir = outer.path().join("state");
        Place { _outer: outer, dir }
    }

    /// With a store in which the checkpoint 9 and two tasks were saved last.
    fn filled() -> Place {
        let place = Place::new();
        let opened = open(&place.dir, "shop").unwrap();
        for sequence in 1..=9 {
            opened.store.save_checkpoint(&checkpoint(sequence)).unwrap();
            opened.store.save_task(&repair(1, sequence)).unwrap();
        }
        opened.store.save_task(&repair(2, 5)).unwrap();
        opened.store.save_task(&repair(3, 6)).unwrap();
        opened.store.remove_task(2).unwrap();
        place
    }

    fn store(&self) -> PathBuf {
        self.dir.join("shop/store")
    }

    /// All files of the store.
    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut directories = vec![self.store()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { directories.push(path) } else { files.push(path) }
            }
        }
        files.sort();
        files
    }
}

fn filled_contents() -> (Option<SavedCheckpoint>, Vec<Task>) {
    (Some(checkpoint(9)), vec![repair(1, 9), repair(3, 6)])
}

fn refusal(result: state::Result<Opened>) -> Error {
    match result {
        Ok(opened) => panic!("opened, and found {:?}", opened.found),
        Err(error) => error,
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn what_was_saved_is_there_after_a_restart() {
    let place = Place::filled();
    let opened = open(&place.dir, "shop").unwrap();
    assert_eq!(opened.found, Found::Existing);
    assert_eq!(contents(&*opened.store), filled_contents());
}

#[test]
fn past_shapes_are_there_after_a_restart_and_gone_after_a_reset() {
    let place = Place::filled();
    let shape = |shape: &str| PastShape {
        schema: "public".into(),
        table: "t#1".into(),
        shape: shape.repeat(9000),
    };
    let shapes = [shape("a"), shape("b")];
    let opened = open(&place.dir, "shop").unwrap();
    opened.store.save_past_shapes(&[shape("old")]).unwrap();
    opened.store.save_past_shapes(&shapes).unwrap();
    drop(opened);
    let opened = open(&place.dir, "shop").unwrap();
    assert_eq!(opened.store.past_shapes().unwrap(), shapes);
    opened.store.reset().unwrap();
    assert_eq!(opened.store.past_shapes().unwrap(), []);
}

#[test]
fn the_first_run_is_fresh_and_the_instance_stays_the_same() {
    let place = Place::new();
    let first = open(&place.dir, "shop").unwrap();
    assert_eq!(first.found, Found::Fresh);
    let instance = first.store.instance().to_owned();
    drop(first);
    let second = open(&place.dir, "shop").unwrap();
    assert_eq!((second.found, second.store.instance()), (Found::Existing, instance.as_str()));
}

#[test]
fn a_reset_forgets_everything_and_lets_the_sequence_start_again() {
    let place = Place::filled();
    let opened = open(&place.dir, "shop").unwrap();
    opened.store.reset().unwrap();
    assert_eq!(contents(&*opened.store), (None, vec![]));
    opened.store.save_checkpoint(&checkpoint(2)).unwrap();
    drop(opened);
    let opened = open(&place.dir, "shop").unwrap();
    assert_eq!(contents(&*opened.store), (Some(checkpoint(2)), vec![]));
}

#[test]
#[should_panic(expected = "checkpoint moved back without a reset: sequence 9 -> 8")]
fn a_checkpoint_that_moves_back_stops_the_program() {
    let place = Place::filled();
    let _ = open(&place.dir, "shop").unwrap().store.save_checkpoint(&checkpoint(8));
}

#[test]
fn of_two_checkpoints_with_one_sequence_the_later_counts() {
    let place = Place::filled();
    let later = SavedCheckpoint { fence: 77, ..checkpoint(9) };
    open(&place.dir, "shop").unwrap().store.save_checkpoint(&later).unwrap();
    let reopened = open(&place.dir, "shop").unwrap();
    assert_eq!(reopened.store.checkpoint().unwrap(), Some(later));
}

#[test]
fn large_records_stay_out_of_the_files_that_are_never_flushed() {
    let place = Place::new();
    let opened = open(&place.dir, "shop").unwrap();
    let keys = Some(vec![vec![5; 900]; 1000]);
    let large = Task { keys, ..repair(1, 1) };
    for rows in 0..5 {
        opened.store.save_task(&Task { rows, ..large.clone() }).unwrap();
    }
    assert_eq!(fs::read_dir(place.store().join("db/blobs")).unwrap().count(), 0);
    drop(opened);
    let expected = vec![Task { rows: 4, ..large }];
    assert_eq!(open(&place.dir, "shop").unwrap().store.tasks().unwrap(), expected);
}

#[test]
fn two_pipelines_share_a_directory() {
    let place = Place::filled();
    let shop = open(&place.dir, "shop").unwrap();
    let bank = open(&place.dir, "bank").unwrap();
    assert_eq!((shop.found, bank.found), (Found::Existing, Found::Fresh));
}

#[test]
fn a_second_process_is_refused_until_the_first_has_gone() {
    let place = Place::filled();
    let first = open(&place.dir, "shop").unwrap();
    let error = refusal(open(&place.dir, "shop"));
    assert_eq!(error.kind, ErrorKind::InUse);
    assert!(error.message.contains("already running"), "{error}");
    assert_eq!(read(&place.dir, "shop").unwrap_err().kind, ErrorKind::InUse);
    drop(first);
    assert_eq!(open(&place.dir, "shop").unwrap().found, Found::Existing);
}

#[test]
fn reading_creates_nothing() {
    let place = Place::new();
    assert_eq!(read(&place.dir, "shop").unwrap(), None);
    assert!(!place.dir.exists());
    drop(open(&place.dir, "bank").unwrap());
    assert_eq!(read(&place.dir, "shop").unwrap(), None);
    assert!(!place.dir.join("shop").exists());
}

#[test]
fn reading_sees_what_was_saved() {
    let place = Place::filled();
    let saved = read(&place.dir, "shop").unwrap().unwrap();
    assert_eq!((saved.checkpoint, saved.tasks), filled_contents());
}

#[test]
fn reading_a_damaged_store_moves_nothing() {
    let place = Place::filled();
    fs::write(place.store().join("witness"), "").unwrap();
    assert_eq!(read(&place.dir, "shop").unwrap_err().kind, ErrorKind::Corrupt);
    assert!(place.store().exists());
}

#[test]
fn the_store_of_another_pipeline_is_refused() {
    let place = Place::filled();
    copy(&place.dir.join("shop"), &place.dir.join("bank"));
    let error = refusal(open(&place.dir, "bank"));
    assert_eq!(error.kind, ErrorKind::OtherPipeline);
    assert!(error.message.contains("belongs to pipeline `shop`, not to `bank`"), "{error}");
}

#[test]
fn a_name_that_leads_elsewhere_is_refused() {
    let place = Place::new();
    for name in ["", ".", "..", "a/b", "../shop", "control.sock", "a\nb", &"x".repeat(65)] {
        assert_eq!(refusal(open(&place.dir, name)).kind, ErrorKind::Unsafe, "{name:?}");
    }
    assert!(!place.dir.exists());
}

#[test]
fn a_directory_that_others_can_read_is_refused_with_the_command_that_closes_it() {
    let place = Place::filled();
    for directory in [place.dir.clone(), place.dir.join("shop")] {
        for mode in [0o701, 0o710, 0o740, 0o755] {
            fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
            let error = refusal(open(&place.dir, "shop"));
            assert_eq!(error.kind, ErrorKind::Unsafe, "{mode:o}");
            let command = format!("chmod 700 {}", directory.display());
            assert!(error.message.contains(&command), "{error}");
            assert_eq!(read(&place.dir, "shop").unwrap_err().kind, ErrorKind::Unsafe);
        }
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
    }
    assert_eq!(open(&place.dir, "shop").unwrap().found, Found::Existing);
}

#[test]
fn a_symbolic_link_is_refused() {
    let place = Place::filled();
    let link = place.dir.with_file_name("link");
    symlink(&place.dir, &link).unwrap();
    assert_eq!(refusal(open(&link, "shop")).kind, ErrorKind::Unsafe);
    symlink(place.dir.join("shop"), place.dir.join("bank")).unwrap();
    assert_eq!(refusal(open(&place.dir, "bank")).kind, ErrorKind::Unsafe);
}

#[test]
fn a_new_directory_is_closed_to_others() {
    let place = Place::new();
    drop(open(&place.dir, "shop").unwrap());
    for directory in [place.dir.clone(), place.dir.join("shop"), place.store()] {
        let mode = fs::metadata(&directory).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", directory.display());
    }
}

#[test]
fn a_store_from_the_future_is_left_untouched() {
    let place = Place::filled();
    let mut record = b"drft\xff\xff\x01what a later version keeps here".to_vec();
    record.extend(crc32fast::hash(&record).to_be_bytes());
    fs::write(place.store().join("instance"), record).unwrap();
    let snapshot = || {
        let files = place.files();
        files.into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect::<Vec<_>>()
    };
    let before = snapshot();
    let error = refusal(open(&place.dir, "shop"));
    assert_eq!(error.kind, ErrorKind::Version);
    assert_eq!(read(&place.dir, "shop").unwrap_err().kind, ErrorKind::Version);
    assert_eq!(before, snapshot());
}

#[test]
fn a_half_written_snapshot_is_removed_and_nothing_else() {
    let place = Place::filled();
    let torn = place.store().join("db/snap.7FFFFFFFFFFFFFFF.generating");
    fs::write(&torn, [9; 20]).unwrap();
    let opened = open(&place.dir, "shop").unwrap();
    assert_eq!(opened.found, Found::Existing);
    assert_eq!(contents(&*opened.store), filled_contents());
    assert!(!torn.exists());
}

/// Opens after damage: the same contents, or moved aside with the old files kept.
fn check_after_damage(place: &Place, what: &str) -> bool {
    let opened = open(&place.dir, "shop").unwrap_or_else(|error| panic!("{what}: {error}"));
    match opened.found {
        Found::Existing => {
            assert_eq!(contents(&*opened.store), filled_contents(), "{what}");
            false
        }
        Found::Quarantined { moved_to, .. } => {
            assert!(moved_to.exists(), "{what}");
            assert_eq!(contents(&*opened.store), (None, vec![]), "{what}");
            opened.store.save_checkpoint(&checkpoint(1)).unwrap();
            true
        }
        Found::Fresh => panic!("{what}: taken for a first run"),
    }
}

fn check_missing(name: &str) {
    let place = Place::filled();
    let path = place.store().join(name);
    if path.is_dir() {
        fs::remove_dir_all(&path).unwrap();
        assert!(check_after_damage(&place, name), "{name} was not missed");
    } else {
        fs::remove_file(&path).unwrap();
        assert!(check_after_damage(&place, name), "{name} was not missed");
    }
}

#[test]
fn a_store_that_lacks_a_part_is_moved_aside() {
    for part in ["instance", "witness", "db", "db/db", "db/conf"] {
        check_missing(part);
    }
}

#[test]
fn a_store_without_its_snapshots_is_moved_aside_and_not_taken_for_an_empty_one() {
    let place = Place::filled();
    for path in place.files() {
        if path.file_name().unwrap().to_string_lossy().starts_with("snap.") {
            fs::remove_file(path).unwrap();
        }
    }
    assert!(check_after_damage(&place, "no snap.* files"));
}

#[test]
fn an_emptied_store_is_moved_aside() {
    let place = Place::filled();
    fs::remove_dir_all(place.store()).unwrap();
    fs::create_dir(place.store()).unwrap();
    assert!(check_after_damage(&place, "an empty directory"));
    let place = Place::filled();
    fs::remove_dir_all(place.store()).unwrap();
    assert!(check_after_damage(&place, "no directory"));
}

#[test]
fn a_database_from_another_store_is_moved_aside() {
    let place = Place::filled();
    let other = Place::filled();
    fs::remove_dir_all(place.store().join("db")).unwrap();
    copy(&other.store().join("db"), &place.store().join("db"));
    assert!(check_after_damage(&place, "db of another store"));
}

#[test]
fn an_older_copy_of_the_database_under_a_newer_witness_is_moved_aside() {
    let place = Place::filled();
    let old = place.dir.join("old");
    copy(&place.store().join("db"), &old);
    open(&place.dir, "shop").unwrap().store.save_checkpoint(&checkpoint(10)).unwrap();
    fs::remove_dir_all(place.store().join("db")).unwrap();
    fs::rename(old, place.store().join("db")).unwrap();
    assert!(check_after_damage(&place, "an older db"));
}

#[test]
fn a_store_moved_aside_is_reported_until_something_is_saved_again() {
    let place = Place::filled();
    fs::write(place.store().join("db/db"), "").unwrap();
    let first = open(&place.dir, "shop").unwrap().found;
    assert!(matches!(first, Found::Quarantined { .. }), "{first:?}");
    let second = open(&place.dir, "shop").unwrap();
    assert_eq!(second.found, first);
    second.store.save_checkpoint(&checkpoint(1)).unwrap();
    drop(second);
    assert_eq!(open(&place.dir, "shop").unwrap().found, Found::Existing);
}

#[test]
fn a_crash_between_moving_aside_and_starting_anew_is_not_a_first_run() {
    let place = Place::filled();
    fs::rename(place.store(), place.dir.join("shop/.corrupt-17")).unwrap();
    fs::create_dir(place.dir.join("shop/store.new")).unwrap();
    let Found::Quarantined { moved_to, .. } = open(&place.dir, "shop").unwrap().found else {
        panic!("taken for something else");
    };
    assert_eq!(moved_to, place.dir.join("shop/.corrupt-17"));
}

/// Damages one file in one way after another.
fn check_damaged(kind: &str, damage: impl Fn(&mut Vec<u8>, usize), places_max: usize) {
    let origin = Place::filled();
    let mut moved_aside = 0;
    for path in origin.files() {
        let bytes = fs::read(&path).unwrap();
        // Most of the log is not yet written; damage is of interest where there is something.
        let used: Vec<usize> = (0..bytes.len()).filter(|place| bytes[*place] != 0).collect();
        let step = used.len().div_ceil(places_max).max(1);
        for place in used.into_iter().step_by(step) {
            let mut damaged = bytes.clone();
            damage(&mut damaged, place);
            let copied = Place::new();
            copy(&origin.dir, &copied.dir);
            let name = path.strip_prefix(&origin.dir).unwrap();
            fs::write(copied.dir.join(name), damaged).unwrap();
            let what = format!("{kind} of {} at byte {place}", name.display());
            moved_aside += usize::from(check_after_damage(&copied, &what));
        }
    }
    assert!(moved_aside > 0, "no {kind} was noticed: the test damages nothing of interest");
}

#[test]
fn a_flipped_bit_is_harmless_or_found_out() {
    check_damaged("flip", |bytes, place| bytes[place] ^= 1 << (place % 8), 40);
}

#[test]
fn a_lost_end_is_harmless_or_found_out() {
    check_damaged("truncation", Vec::truncate, 25);
}

#[test]
fn zeros_are_harmless_or_found_out() {
    let zero = |bytes: &mut Vec<u8>, place: usize| {
        let end = bytes.len().min(place + 100);
        bytes[place..end].fill(0);
    };
    check_damaged("zeroing", zero, 25);
}

#[test]
fn an_empty_or_zeroed_file_is_found_out() {
    let all_zero = |bytes: &mut Vec<u8>, _: usize| bytes.fill(0);
    check_damaged("emptying", |bytes, _| bytes.clear(), 1);
    check_damaged("zeroing all", all_zero, 1);
}

fn any_task() -> impl Strategy<Value = Task> {
    let keys = proptest::option::of(proptest::collection::vec(any::<Vec<u8>>(), 0..50));
    let words = (any::<u64>(), ".*", ".*", any::<Option<String>>(), keys);
    let rest = (any::<bool>(), any::<Option<[u8; 16]>>(), any::<bool>());
    let done = (any::<u32>(), any::<Option<Vec<u8>>>(), any::<u64>(), any::<u64>());
    (words, rest, done).prop_map(|(words, rest, done)| {
        let (id, schema, table, filter, keys) = words;
        let (sweep, marker, copying) = rest;
        let phase = if copying { Phase::Copy } else { Phase::Sweep };
        let (columns, after, rows, sequence) = done;
        #[rustfmt::skip]
        let task = Task {
            id, schema, table, filter, keys, sweep, marker, columns, phase, after, rows, sequence,
        };
        task
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn any_value_is_read_as_it_was_saved(
        tasks in proptest::collection::vec(any_task(), 0..8),
        position: String, version: [u8; 16], sequence: u64, fence: u64,
    ) {
        let place = Place::new();
        let checkpoint = SavedCheckpoint { position, version, sequence, fence };
        let mut expected = std::collections::BTreeMap::new();
        let opened = open(&place.dir, "shop").unwrap();
        opened.store.save_checkpoint(&checkpoint).unwrap();
        for task in tasks {
            opened.store.save_task(&task).unwrap();
            expected.insert(task.id, task);
        }
        drop(opened);
        let saved = read(&place.dir, "shop").unwrap().unwrap();
        prop_assert_eq!(saved.checkpoint, Some(checkpoint));
        prop_assert_eq!(saved.tasks, expected.into_values().collect::<Vec<_>>());
    }
}
