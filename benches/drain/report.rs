//! What was measured, as a table for people and as JSON for machines. Medians, because one
//! disturbed round should not decide.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;

use driftless::demo::{Error, Result};
use serde::Serialize;

use crate::contestants::Contestant;
use crate::process::Cost;
use crate::stage::Stage;

/// Everything that was measured.
#[derive(Serialize)]
pub struct Report {
    /// What it was measured on.
    pub machine: String,
    /// `BENCH_ROWS`.
    pub rows: u64,
    /// In the order in which they were made.
    pub drains: Vec<Drain>,
}

/// One backlog drained once.
#[derive(Clone, Serialize)]
pub struct Drain {
    /// Which backlog.
    pub workload: String,
    /// By whom.
    pub contestant: Contestant,
    /// How many rows it changes.
    pub changes: u64,
    /// What it took.
    pub cost: Cost,
}

impl Drain {
    fn rate(&self) -> f64 {
        self.changes as f64 / self.cost.seconds
    }

    fn per_million(&self, seconds: f64) -> f64 {
        seconds * 1e6 / self.changes as f64
    }
}

impl fmt::Display for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (contestant, seconds) = (self.contestant, self.cost.seconds);
        write!(f, "{contestant:<10} {:>9.0} changes/s in {seconds:.1} s", self.rate())
    }
}

impl Report {
    /// Nothing measured yet.
    pub fn new(stage: &Stage, rows: u64) -> Result<Report> {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = processors.lines().find_map(|line| line.strip_prefix("model name"));
        let model =
            model.map_or("unknown processor", |name| name.trim_start_matches([' ', '\t', ':']));
        let version = stage.source.version()?;
        let machine = format!("{cores} cores, {model}; PostgreSQL {version} on both sides");
        Ok(Report { machine, rows, drains: Vec::new() })
    }

    /// Writes everything, each round by itself.
    pub fn write_json(&self, file: &str) -> Result<()> {
        let text = serde_json::to_string_pretty(self);
        let text = text.map_err(|error| Error(format!("write JSON: {error}")))?;
        fs::write(file, text + "\n").map_err(|error| Error(format!("write {file}: {error}")))
    }

    fn of(&self, workload: &str, contestant: Contestant) -> Vec<&Drain> {
        let is_it = |drain: &&Drain| drain.workload == workload && drain.contestant == contestant;
        self.drains.iter().filter(is_it).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; medians; CPU in seconds per million changes\n", self.machine)?;
        writeln!(
            f,
            "| workload | who | rounds | changes/s | walsender | source | own | target | sum | MiB |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|---|")?;
        let workloads: BTreeSet<&str> = self.drains.iter().map(|d| d.workload.as_str()).collect();
        for workload in workloads {
            let mut rates = Vec::new();
            for contestant in [Contestant::Driftless, Contestant::Postgresql] {
                let drains = self.of(workload, contestant);
                if !drains.is_empty() {
                    rates.push(median(&drains, Drain::rate));
                    write_row(f, workload, contestant, &drains)?;
                }
            }
            if let [ours, theirs] = rates.as_slice() {
                writeln!(f, "| {workload} | ratio | | {:.2} | | | | | | |", ours / theirs)?;
            }
        }
        Ok(())
    }
}

fn write_row(
    f: &mut fmt::Formatter<'_>,
    workload: &str,
    contestant: Contestant,
    drains: &[&Drain],
) -> fmt::Result {
    let cpu = |part: fn(&Cost) -> f64| median(drains, |drain| drain.per_million(part(&drain.cost)));
    let sum = |cost: &Cost| cost.walsender_cpu + cost.source_cpu + cost.own_cpu + cost.target_cpu;
    let (walsender, source) = (cpu(|cost| cost.walsender_cpu), cpu(|cost| cost.source_cpu));
    let (own, target) = (cpu(|cost| cost.own_cpu), cpu(|cost| cost.target_cpu));
    let (rounds, rate, sum) = (drains.len(), median(drains, Drain::rate), cpu(sum));
    let mib = drains.iter().map(|drain| drain.cost.peak_kib).max().unwrap_or(0) / 1024;
    writeln!(
        f,
        "| {workload} | {contestant} | {rounds} | {rate:.0} | {walsender:.2} | {source:.2} | \
         {own:.2} | {target:.2} | {sum:.2} | {mib} |"
    )
}

/// The middle one; of an even number the mean of the two in the middle.
fn median(drains: &[&Drain], of: impl Fn(&Drain) -> f64) -> f64 {
    let mut values: Vec<f64> = drains.iter().map(|drain| of(drain)).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}
