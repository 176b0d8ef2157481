//! The parts of the hot path that no server takes part in, each alone: decoding, merging, encoding.
//!
//! `make bench` measures whole replication; this finds out which part of ours became slower.
//! `cargo bench --bench hot_path` times the parts, and `make instructions` counts their
//! instructions a row, which come out the same on a busy machine. What is measured is in `parts.rs`.

// The macro that registers a benchmark puts it into a section of the executable.
#![allow(unsafe_code)]

mod parts;

use std::process::ExitCode;

use divan::Bencher;
use divan::counter::ItemsCount;
use parts::{Done, PARTS, ROWS, Ready, part};

/// So that the first time, which fetches pages and fills caches, is one of several.
const COUNTED_TIMES: u64 = 4;

/// With `count PART`, does a part a few times for `scripts/instructions`; with `list`, names the
/// parts; else it is divan's.
fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["list"] => PARTS.iter().for_each(|name| println!("{name}")),
        ["count", name] => return count(name),
        _ => divan::main(),
    }
    ExitCode::SUCCESS
}

fn count(name: &str) -> ExitCode {
    let Some(part) = part(name) else {
        eprintln!("hot_path: there is no part {name}");
        return ExitCode::FAILURE;
    };
    for _ in 0..COUNTED_TIMES {
        drop(measured(part()));
    }
    println!("{}", COUNTED_TIMES * ROWS);
    ExitCode::SUCCESS
}

/// Callgrind counts only while this function is running; it looks for the name.
#[inline(never)]
fn measured(ready: Ready) -> Done {
    ready()
}

#[divan::bench(args = PARTS, counters = [ItemsCount::new(ROWS)])]
fn rows(bencher: Bencher<'_, '_>, name: &str) {
    // Names come from the list.
    let Some(part) = part(name) else { return };
    bencher.with_inputs(part).bench_local_values(measured);
}
