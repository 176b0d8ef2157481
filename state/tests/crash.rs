//! A process that is killed, or whose disk is full, loses nothing that it acknowledged.
//! Each test runs this executable again as the process that suffers.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic in a helper too")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use state::{ErrorKind, Found, open};
use support::{checkpoint, repair};

const DIR: &str = "DRIFTLESS_TEST_STATE_DIR";
/// In blocks of 512 bytes; above what a new store takes, below what many saves take.
const FULL_AFTER_BLOCKS: u32 = 1100;

/// Saves without end and says after each save that it returned.
#[test]
#[ignore = "run by the other tests, as the process that is killed"]
fn child_that_saves_without_end() {
    let opened = open(Path::new(&std::env::var(DIR).unwrap()), "shop").unwrap();
    let last = opened.store.checkpoint().unwrap().map_or(0, |last| last.sequence);
    for sequence in last + 1.. {
        opened.store.save_task(&repair(1, sequence)).unwrap();
        opened.store.save_checkpoint(&checkpoint(sequence)).unwrap();
        // A line of its own, whatever the test harness has printed before.
        println!("\nacknowledged {sequence}");
    }
}

/// Saves until the disk is full, then waits for a line on its input, and saves once more.
#[test]
#[ignore = "run by the other tests, as the process whose disk is full"]
fn child_that_fills_its_disk() {
    let opened = open(Path::new(&std::env::var(DIR).unwrap()), "shop").unwrap();
    let mut sequence = 0;
    let error = loop {
        sequence += 1;
        if let Err(error) = opened.store.save_checkpoint(&checkpoint(sequence)) {
            break error;
        }
    };
    assert!(matches!(error.kind, ErrorKind::Disk(_)), "{error:?}");
    assert!(opened.store.save_checkpoint(&checkpoint(sequence)).is_err(), "the disk has room");
    println!("\nfull {sequence}");
    std::io::stdin().lock().read_line(&mut String::new()).unwrap();
    opened.store.save_checkpoint(&checkpoint(sequence)).unwrap();
    let saved = opened.store.checkpoint().unwrap();
    assert_eq!(saved, Some(checkpoint(sequence)));
    println!("\nacknowledged {sequence}");
}

fn child(dir: &Path, test: &str, before: &str) -> Child {
    Command::new("sh")
        .args(["-c", &format!("{before} exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(DIR, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The number in the next line that starts so; `None` at the end of the output.
fn next_number(output: &mut impl BufRead, start: &str) -> Option<u64> {
    let mut line = String::new();
    while output.read_line(&mut line).unwrap() > 0 {
        // A line that the kill has cut short is no acknowledgement.
        if let Some(rest) = line.strip_suffix('\n').and_then(|line| line.strip_prefix(start)) {
            return Some(rest.trim().parse().unwrap());
        }
        line.clear();
    }
    None
}

#[test]
fn a_killed_process_never_loses_what_it_acknowledged() {
    let outer = tempfile::TempDir::new().unwrap();
    let dir = outer.path().join("state");
    let mut last = 0;
    for round in 0..12 {
        let mut child = child(&dir, "child_that_saves_without_end", "");
        let mut output = BufReader::new(child.stdout.take().unwrap());
        for _ in 0..=round * 7 {
            last = next_number(&mut output, "acknowledged ").unwrap();
        }
        child.kill().unwrap();
        while let Some(number) = next_number(&mut output, "acknowledged ") {
            last = number;
        }
        child.wait().unwrap();
        let opened = open(&dir, "shop").unwrap();
        assert_eq!(opened.found, Found::Existing);
        let saved = opened.store.checkpoint().unwrap().unwrap();
        assert!(saved == checkpoint(last) || saved == checkpoint(last + 1), "{last}: {saved:?}");
        let [task] = &opened.store.tasks().unwrap()[..] else { panic!("not one task") };
        let rows = task.rows;
        assert_eq!(*task, repair(1, rows));
        assert!(rows == saved.sequence || rows == saved.sequence + 1, "{rows} rows: {saved:?}");
    }
}

#[test]
fn a_process_killed_while_it_makes_the_store_leaves_all_of_it_or_nothing() {
    for delay_ms in (0..120).step_by(8) {
        let outer = tempfile::TempDir::new().unwrap();
        let dir = outer.path().join("state");
        let mut child = child(&dir, "child_that_saves_without_end", "");
        // Not a wait for anything: the moment of the kill is what varies.
        std::thread::sleep(Duration::from_millis(delay_ms));
        child.kill().unwrap();
        child.wait().unwrap();
        let found = open(&dir, "shop").unwrap().found;
        assert!(matches!(found, Found::Fresh | Found::Existing), "{delay_ms} ms: {found:?}");
    }
}

#[test]
fn a_full_disk_is_an_error_that_ends_when_there_is_room() {
    let outer = tempfile::TempDir::new().unwrap();
    let dir = outer.path().join("state");
    // A limit on the size of files stands for the full disk; the signal of it is ignored, so
    // that the write fails instead.
    let before = format!("trap '' XFSZ; ulimit -S -f {FULL_AFTER_BLOCKS};");
    let mut child = child(&dir, "child_that_fills_its_disk", &before);
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let full = next_number(&mut output, "full ").expect("the child has come to a full disk");
    assert!(full > 1, "the disk was full before anything was saved");
    let pid = rustix::process::Pid::from_child(&child);
    let unlimited = rustix::process::Rlimit { current: None, maximum: None };
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Fsize, unlimited).unwrap();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert_eq!(next_number(&mut output, "acknowledged "), Some(full));
    output.read_to_string(&mut String::new()).unwrap();
    assert!(child.wait().unwrap().success());
    let opened = open(&dir, "shop").unwrap();
    assert_eq!(opened.found, Found::Existing);
    assert_eq!(opened.store.checkpoint().unwrap(), Some(checkpoint(full)));
}
