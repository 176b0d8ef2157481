//! What was measured: `summary` makes medians of it, because one disturbed round should not decide,
//! `table` is for people, JSON for machines.

mod summary;
mod table;

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use driftless::demo::{Error, Result};
use serde::Serialize;

use crate::contestant::Contestant;
use crate::measure::process::Cost;
use crate::pair::Pair;
use crate::workloads::{Size, Workload};

/// Everything that was measured.
#[derive(Serialize)]
pub struct Report {
    /// Which driftless.
    pub version: &'static str,
    /// Whether it was built to be fast; otherwise nothing here means anything.
    pub optimised: bool,
    /// What it was measured on.
    pub machine: String,
    /// The servers of each pair.
    pub servers: Vec<String>,
    /// `--rows`.
    pub rows: u64,
    /// `--rounds`.
    pub rounds: usize,
    /// In the order in which they were done.
    pub works: Vec<Work>,
    /// As `works`.
    pub latencies: Vec<Latency>,
}

/// A workload done once.
#[derive(Clone, Serialize)]
pub struct Work {
    /// From what to what.
    pub pair: String,
    /// Which workload.
    pub workload: String,
    /// By whom.
    pub contestant: Contestant,
    /// How many rows it changes or copies.
    pub changes: u64,
    /// What it took.
    pub cost: Cost,
}

impl Work {
    /// A workload done.
    pub fn new(
        pair: Pair,
        workload: Workload,
        contestant: Contestant,
        changes: u64,
        cost: Cost,
    ) -> Work {
        let (pair, workload) = (pair.to_string(), workload.to_string());
        Work { pair, workload, contestant, changes, cost }
    }

    fn rate(&self) -> f64 {
        self.changes as f64 / self.cost.seconds
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (contestant, seconds) = (self.contestant, self.cost.seconds);
        write!(f, "{contestant:<19} {:>9.0} changes/s, {seconds:.2} s", self.rate())
    }
}

/// A steady stream of transactions followed once.
#[derive(Clone, Serialize)]
pub struct Latency {
    /// From what to what.
    pub pair: String,
    /// By whom.
    pub contestant: Contestant,
    /// How many transactions.
    pub transactions: u64,
    /// How many of them were committed a second; less than a thousand if the source was too slow.
    pub committed_per_second: f64,
    /// From commit to visible, half of them were faster.
    pub median_ms: f64,
    /// Of a hundred, one was slower.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
    /// What it took.
    pub cost: Cost,
}

impl Latency {
    /// A stream followed, whose writers needed so many seconds.
    ///
    /// # Errors
    /// If there was no transaction.
    pub fn new(
        pair: Pair,
        contestant: Contestant,
        mut delays: Vec<Duration>,
        writing: f64,
        cost: Cost,
    ) -> Result<Latency> {
        delays.sort_unstable();
        let of_hundred = |percent: usize| {
            let place = (delays.len() * percent).div_ceil(100).saturating_sub(1);
            delays.get(place).map(|delay| delay.as_secs_f64() * 1e3)
        };
        let (Some(median_ms), Some(p99_ms), Some(max_ms)) =
            (of_hundred(50), of_hundred(99), of_hundred(100))
        else {
            return Err(Error("nothing was committed".into()));
        };
        let transactions = delays.len() as u64;
        let committed_per_second = transactions as f64 / writing;
        let pair = pair.to_string();
        Ok(Latency {
            pair,
            contestant,
            transactions,
            committed_per_second,
            median_ms,
            p99_ms,
            max_ms,
            cost,
        })
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latency { contestant, median_ms, p99_ms, .. } = self;
        write!(f, "{contestant:<19} {median_ms:.1} ms, 99 of 100 within {p99_ms:.1} ms")
    }
}

impl Report {
    /// Nothing measured yet.
    pub fn new(size: Size, rounds: usize) -> Report {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = processors.lines().find_map(|line| line.strip_prefix("model name"));
        let model =
            model.map_or("unknown processor", |name| name.trim_start_matches([' ', '\t', ':']));
        Report {
            version: env!("CARGO_PKG_VERSION"),
            optimised: !cfg!(debug_assertions),
            machine: format!("{cores} cores, {model}"),
            servers: Vec::new(),
            rows: size.0,
            rounds,
            works: Vec::new(),
            latencies: Vec::new(),
        }
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.works.is_empty() && self.latencies.is_empty()
    }

    /// Writes everything, each round by itself, and the medians.
    pub fn write_json(&self, file: &Path) -> Result<()> {
        #[derive(Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            report: &'a Report,
            medians: Vec<summary::Line>,
            latency_medians: Vec<summary::LatencyLine>,
        }
        let whole = Whole {
            report: self,
            medians: summary::lines(&self.works),
            latency_medians: summary::latency_lines(&self.latencies),
        };
        let text = serde_json::to_string_pretty(&whole);
        let text = text.map_err(|error| Error(format!("write JSON: {error}")))?;
        let failed = |error| Error(format!("write {}: {error}", file.display()));
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        fs::write(file, text + "\n").map_err(failed)
    }
}
