//! The scripted disk keeps what it must, and fails as it is told to.

mod support;

use state::{ErrorKind, Found, MemoryDisk};
use support::{checkpoint, contents, repair};

#[test]
fn a_crash_keeps_what_was_saved_and_ends_the_old_process() {
    let disk = MemoryDisk::new();
    let before = disk.open("shop").unwrap();
    assert_eq!(before.found, Found::Fresh);
    before.store.save_checkpoint(&checkpoint(4)).unwrap();
    before.store.save_task(&repair(1, 2)).unwrap();
    disk.crash();
    assert!(before.store.save_checkpoint(&checkpoint(5)).is_err());
    assert!(before.store.checkpoint().is_err());
    let after = disk.open("shop").unwrap();
    assert_eq!(after.found, Found::Existing);
    assert_eq!(contents(&*after.store), (Some(checkpoint(4)), vec![repair(1, 2)]));
    assert_eq!(after.store.instance(), before.store.instance());
}

#[test]
fn a_lying_disk_loses_what_it_acknowledged() {
    let disk = MemoryDisk::new();
    let store = disk.open("shop").unwrap().store;
    store.save_checkpoint(&checkpoint(1)).unwrap();
    disk.lie_about_flush(true);
    store.save_checkpoint(&checkpoint(2)).unwrap();
    assert_eq!(store.checkpoint().unwrap(), Some(checkpoint(2)));
    disk.crash();
    let store = disk.open("shop").unwrap().store;
    assert_eq!(store.checkpoint().unwrap(), Some(checkpoint(1)));
}

#[test]
fn a_full_disk_saves_nothing_and_then_recovers() {
    let disk = MemoryDisk::new();
    let store = disk.open("shop").unwrap().store;
    disk.fail_next_save();
    let error = store.save_checkpoint(&checkpoint(1)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Disk(std::io::ErrorKind::StorageFull));
    assert_eq!(store.checkpoint().unwrap(), None);
    store.save_checkpoint(&checkpoint(1)).unwrap();
    assert_eq!(store.checkpoint().unwrap(), Some(checkpoint(1)));
}

#[test]
fn only_one_has_a_pipeline_open() {
    let disk = MemoryDisk::new();
    let first = disk.open("shop").unwrap();
    assert_eq!(disk.open("shop").err().map(|error| error.kind), Some(ErrorKind::InUse));
    assert_eq!(disk.open("bank").unwrap().found, Found::Fresh);
    drop(first);
    assert_eq!(disk.open("shop").unwrap().found, Found::Existing);
}

#[test]
fn a_damaged_store_is_never_a_first_run_and_a_wiped_disk_is() {
    let disk = MemoryDisk::new();
    let store = disk.open("shop").unwrap().store;
    store.save_checkpoint(&checkpoint(1)).unwrap();
    disk.damage("shop");
    disk.crash();
    for _ in 0..2 {
        let opened = disk.open("shop").unwrap();
        assert!(matches!(opened.found, Found::Quarantined { .. }), "{:?}", opened.found);
        assert_eq!(contents(&*opened.store), (None, vec![]));
    }
    disk.wipe();
    assert_eq!(disk.open("shop").unwrap().found, Found::Fresh);
}
