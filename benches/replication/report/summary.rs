//! Medians of rounds, and how much faster we are. Pure.
//!
//! Surprise: a ratio of medians hides how much it depends on luck, so the smallest and the largest
//! ratio within one round stand beside it.

use serde::Serialize;

use super::{Latency, Work};
use crate::contestant::Contestant;
use crate::measure::process::Cost;

/// What one contestant needed for one workload.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// From what to what.
    pub pair: String,
    /// Which workload.
    pub workload: String,
    /// By whom.
    pub contestant: Contestant,
    /// How often.
    pub rounds: usize,
    /// How many rows each time.
    pub changes: u64,
    /// How long it took.
    pub seconds: f64,
    /// How many rows a second.
    pub changes_per_second: f64,
    /// How many times as fast `driftless` is.
    pub driftless: Option<Ratio>,
    /// How many times as fast `driftless-streaming` is.
    pub streaming: Option<Ratio>,
    /// Processor seconds for a million rows.
    pub cpu: Cpu,
    /// The most memory of the contestant's program in any round; 0 if that says nothing.
    pub peak_kib: u64,
}

/// Processor seconds for a million rows, by process.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cpu {
    /// Who decodes and sends the log.
    pub sender: f64,
    /// Other sessions at the source.
    pub source: f64,
    /// The contestant's program.
    pub own: f64,
    /// Sessions, or who applies, in the target.
    pub target: f64,
    /// The last two together.
    pub own_and_target: f64,
    /// All of them.
    pub all: f64,
}

/// How many times as fast.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// By the medians.
    pub of_medians: f64,
    /// The smallest within one round.
    pub least: f64,
    /// The largest within one round.
    pub most: f64,
}

/// What one contestant made of a steady stream.
#[derive(Clone, Debug, Serialize)]
pub struct LatencyLine {
    /// From what to what.
    pub pair: String,
    /// By whom.
    pub contestant: Contestant,
    /// How often.
    pub rounds: usize,
    /// How many transactions were committed a second.
    pub committed_per_second: f64,
    /// The median of the rounds' medians.
    pub median_ms: f64,
    /// The median of the rounds' 99th percentiles.
    pub p99_ms: f64,
    /// The slowest of all.
    pub max_ms: f64,
    /// The most memory of the contestant's program in any round; 0 if that says nothing.
    pub peak_kib: u64,
}

/// A line for each contestant, by pair and workload in the order in which they were done.
pub fn lines(works: &[Work]) -> Vec<Line> {
    let place = |work: &Work| (work.pair.clone(), work.workload.clone());
    let mut lines = Vec::new();
    for place in in_order(works.iter().map(place)) {
        let of_place: Vec<&Work> = works.iter().filter(|work| self::is_at(work, &place)).collect();
        for contestant in Contestant::ALL {
            lines.extend(line(&of_place, contestant));
        }
    }
    lines
}

fn is_at(work: &Work, (pair, workload): &(String, String)) -> bool {
    work.pair == *pair && work.workload == *workload
}

fn line(works: &[&Work], contestant: Contestant) -> Option<Line> {
    let its = of(works, contestant);
    let first = its.first()?;
    let per_million = |part: fn(&Cost) -> f64| {
        median(its.iter().map(|work| part(&work.cost) * 1e6 / work.changes as f64))
    };
    Some(Line {
        pair: first.pair.clone(),
        workload: first.workload.clone(),
        contestant,
        rounds: its.len(),
        changes: first.changes,
        seconds: median(its.iter().map(|work| work.cost.seconds)),
        changes_per_second: median(its.iter().map(|work| work.rate())),
        driftless: ratio_of(Contestant::Driftless, contestant, works),
        streaming: ratio_of(Contestant::DriftlessStreaming, contestant, works),
        cpu: Cpu {
            sender: per_million(|cost| cost.sender_cpu),
            source: per_million(|cost| cost.source_cpu),
            own: per_million(|cost| cost.own_cpu),
            target: per_million(|cost| cost.target_cpu),
            own_and_target: per_million(|cost| cost.own_cpu + cost.target_cpu),
            all: per_million(|cost| {
                cost.sender_cpu + cost.source_cpu + cost.own_cpu + cost.target_cpu
            }),
        },
        peak_kib: its.iter().map(|work| work.cost.peak_kib).max().unwrap_or(0),
    })
}

fn of<'a>(works: &[&'a Work], contestant: Contestant) -> Vec<&'a Work> {
    works.iter().filter(|work| work.contestant == contestant).copied().collect()
}

fn ratio_of(ours: Contestant, other: Contestant, works: &[&Work]) -> Option<Ratio> {
    (ours != other).then(|| ratio(&of(works, ours), &of(works, other))).flatten()
}

/// How many times as fast the ones are as the others, round by round.
fn ratio(ones: &[&Work], others: &[&Work]) -> Option<Ratio> {
    if ones.is_empty() || others.is_empty() {
        return None;
    }
    let rate = |works: &[&Work]| median(works.iter().map(|work| work.rate()));
    let each = ones.iter().zip(others).map(|(one, other)| one.rate() / other.rate());
    let (least, most) = each.fold((f64::INFINITY, 0.0), |(least, most): (f64, f64), ratio| {
        (least.min(ratio), most.max(ratio))
    });
    Some(Ratio { of_medians: rate(ones) / rate(others), least, most })
}

/// A line for each contestant that followed a steady stream.
pub fn latency_lines(latencies: &[Latency]) -> Vec<LatencyLine> {
    let mut lines = Vec::new();
    for pair in in_order(latencies.iter().map(|latency| latency.pair.clone())) {
        for contestant in Contestant::ALL {
            let is_it = |it: &&Latency| it.pair == pair && it.contestant == contestant;
            let its: Vec<&Latency> = latencies.iter().filter(is_it).collect();
            if its.is_empty() {
                continue;
            }
            lines.push(LatencyLine {
                pair: pair.clone(),
                contestant,
                rounds: its.len(),
                committed_per_second: median(its.iter().map(|it| it.committed_per_second)),
                median_ms: median(its.iter().map(|it| it.median_ms)),
                p99_ms: median(its.iter().map(|it| it.p99_ms)),
                max_ms: its.iter().map(|it| it.max_ms).fold(0.0, f64::max),
                peak_kib: its.iter().map(|it| it.cost.peak_kib).max().unwrap_or(0),
            });
        }
    }
    lines
}

/// Each once, in the order in which they come.
fn in_order<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for item in items {
        if !seen.contains(&item) {
            seen.push(item);
        }
    }
    seen
}

/// The middle one; of an even number the mean of the two in the middle.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}
