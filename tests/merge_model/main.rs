//! The design's merge rule as a program: random histories with commits that become visible late,
//! crashes, TRUNCATE, key changes, unchanged columns, damage, repeated backfills and repairs. At
//! the end of each, the target must equal the source; with any one rule left out, some must not.

// What a test cannot expect it must panic about; the lint knows tests only by their attribute.
#![allow(clippy::expect_used)]

mod loading;
mod plain;
mod random;
mod real;
mod source;

use connectors::memory::Mutant as Rule;
use plain::Mutant;
use real::Without;

/// The first case that differs, in words.
fn difference(cases: u64, run: impl Fn(u64) -> Result<(), String>) -> Option<String> {
    (0..cases).find_map(|seed| run(seed).err())
}

/// `MERGE_MODEL_CASES` runs more cases than a test suite has time for.
fn cases(usual: u64) -> u64 {
    std::env::var("MERGE_MODEL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

#[test]
fn the_design_ends_with_equal_rows() {
    assert_eq!(difference(cases(20_000), |seed| plain::run(seed, Mutant::None)), None);
}

#[test]
fn leaving_out_any_rule_of_the_design_ends_in_a_difference() {
    let mutants = [
        Mutant::Now,
        Mutant::NoTombstone,
        Mutant::NoTruncation,
        Mutant::EarlyReread,
        Mutant::NoWait,
        Mutant::BelowFloor,
        Mutant::NoHold,
        Mutant::LateHold,
        Mutant::NoMarker,
    ];
    for mutant in mutants {
        let difference = difference(cases(20_000), |seed| plain::run(seed, mutant));
        assert!(difference.is_some(), "nothing differs with {mutant:?}");
    }
}

#[test]
fn the_code_ends_with_equal_rows() {
    assert_eq!(difference(cases(3_000), |seed| real::run(seed, Without::default())), None);
}

#[test]
fn leaving_out_any_rule_of_the_code_ends_in_a_difference() {
    let all = Without::default();
    let without = [
        Without { rule: Rule::NaiveChunkVersion, ..all },
        Without { rule: Rule::ChunkBelowFloor, ..all },
        Without { rule: Rule::NoWaitAtConnect, ..all },
        Without { rule: Rule::EarlyReread, ..all },
        Without { holds: true, ..all },
        Without { orphans: true, ..all },
        Without { marker: true, ..all },
        Without { missing: true, ..all },
        Without { gate: true, ..all },
    ];
    for without in without {
        let difference = difference(cases(20_000), |seed| real::run(seed, without));
        assert!(difference.is_some(), "nothing differs with {without:?}");
    }
}
