//! The real engine against a source, a target and a disk in memory, with every fault that they
//! can have, decided by a seed. `SIMULATION_SEEDS=n` runs more of them, `SIMULATION_SEED=s` tells
//! one of them step by step. A seed that failed once joins `seeds.txt` for ever.
//!
//! In reading order: `world` outlives the processes, `process` is one of them, `script` decides
//! what goes wrong in it, `workload` uses the source meanwhile, `watch` looks at the invariants
//! after every step, `story` puts them together, and `directed` has the told stories.

// What a test cannot expect it must panic about; the lint knows tests only by their attribute.
#![allow(clippy::expect_used)]

mod directed;
mod process;
mod random;
mod script;
mod story;
mod watch;
mod workload;
mod world;

use connectors::memory::Mutant;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The first few seeds that fail, each with what was wrong.
fn failures(seeds: impl Iterator<Item = u64>, mutant: Mutant, limit: usize) -> Vec<String> {
    let failures = seeds.filter_map(|seed| {
        let outcome = story::run(seed, mutant, false);
        outcome.err().map(|why| format!("SIMULATION_SEED={seed}: {why}"))
    });
    failures.take(limit).collect()
}

#[test]
fn whatever_happens_the_target_ends_equal_to_the_source() {
    if let Some(seed) = number("SIMULATION_SEED") {
        tracing_subscriber::fmt().with_writer(std::io::stderr).without_time().init();
        return assert_eq!(story::run(seed, Mutant::None, true), Ok(()));
    }
    let seeds = number("SIMULATION_SEEDS").unwrap_or(1000);
    let failures = failures(0..seeds, Mutant::None, 8);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn seeds_that_failed_once_do_not_fail_again() {
    let saved = include_str!("seeds.txt").lines().filter(|line| !line.starts_with('#'));
    let saved = saved.filter_map(|line| line.split_whitespace().next()?.parse().ok());
    let failures = failures(saved, Mutant::None, usize::MAX);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..40 {
        let run = || story::run_digested(seed, Mutant::None, false);
        assert_eq!(run(), run(), "seed {seed}");
    }
}

fn check_mutant(mutant: Mutant, seeds: u64) {
    let failures = failures(0..seeds, mutant, 1);
    assert!(!failures.is_empty(), "{mutant:?} was not noticed by {seeds} seeds");
}

#[test]
fn s52_a_chunk_that_claims_the_end_of_the_log_is_noticed() {
    check_mutant(Mutant::NaiveChunkVersion, 1000);
}

#[test]
fn a_chunk_that_is_older_than_the_floor_is_noticed() {
    check_mutant(Mutant::ChunkBelowFloor, 3000);
}

#[test]
fn a_chunk_that_does_not_wait_after_a_connect_is_noticed() {
    check_mutant(Mutant::NoWaitAtConnect, 3000);
}

#[test]
fn a_row_that_is_read_again_too_early_is_noticed() {
    check_mutant(Mutant::EarlyReread, 3000);
}
