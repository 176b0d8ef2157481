//! What was measured, as a table for people and as JSON for machines. Medians, because one
//! disturbed round should not decide.

use std::fmt;
use std::fs;

use driftless::demo::{Error, Result};
use serde::Serialize;

use crate::contestants::Contestant;
use crate::process::Cost;

/// Everything that was measured.
#[derive(Serialize)]
pub struct Report {
    /// What it was measured on.
    pub machine: String,
    /// The servers of each pair.
    pub servers: Vec<String>,
    /// `BENCH_ROWS`.
    pub rows: u64,
    /// In the order in which they were made.
    pub drains: Vec<Drain>,
}

/// One backlog drained once.
#[derive(Clone, Serialize)]
pub struct Drain {
    /// From what to what.
    pub pair: String,
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

    fn is_of(&self, other: &Drain) -> bool {
        (&self.pair, &self.workload) == (&other.pair, &other.workload)
    }
}

impl fmt::Display for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (contestant, seconds) = (self.contestant, self.cost.seconds);
        write!(f, "{contestant:<14} {:>9.0} changes/s in {seconds:.1} s", self.rate())
    }
}

impl Report {
    /// Nothing measured yet.
    pub fn new(rows: u64) -> Report {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = processors.lines().find_map(|line| line.strip_prefix("model name"));
        let model =
            model.map_or("unknown processor", |name| name.trim_start_matches([' ', '\t', ':']));
        let machine = format!("{cores} cores, {model}");
        Report { machine, servers: Vec::new(), rows, drains: Vec::new() }
    }

    /// Writes everything, each round by itself.
    pub fn write_json(&self, file: &str) -> Result<()> {
        let text = serde_json::to_string_pretty(self);
        let text = text.map_err(|error| Error(format!("write JSON: {error}")))?;
        fs::write(file, text + "\n").map_err(|error| Error(format!("write {file}: {error}")))
    }

    /// The rows of one workload in one pair, of which this is the first drain.
    fn write_workload(&self, f: &mut fmt::Formatter<'_>, first: &Drain) -> fmt::Result {
        let all = [Contestant::Driftless, Contestant::Native, Contestant::NativeRelayed];
        let mut rates = Vec::new();
        for contestant in all {
            let is_it = |drain: &&Drain| drain.is_of(first) && drain.contestant == contestant;
            let drains: Vec<&Drain> = self.drains.iter().filter(is_it).collect();
            if !drains.is_empty() {
                rates.push((contestant, median(&drains, Drain::rate)));
                write_row(f, contestant, &drains)?;
            }
        }
        let Some((&(Contestant::Driftless, ours), others)) = rates.split_first() else {
            return Ok(());
        };
        for (contestant, theirs) in others {
            let (pair, workload, ratio) = (&first.pair, &first.workload, ours / theirs);
            let who = format!("driftless / {contestant}");
            writeln!(f, "| {pair} | {workload} | {who} | | {ratio:.2} | | | | | | |")?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; medians; CPU in seconds per million changes", self.machine)?;
        for servers in &self.servers {
            writeln!(f, "{servers}")?;
        }
        writeln!(
            f,
            "\n| pair | workload | who | rounds | changes/s | sender | source | own | target | sum \
             | MiB |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|---|---|")?;
        for (index, drain) in self.drains.iter().enumerate() {
            if !self.drains[..index].iter().any(|earlier| earlier.is_of(drain)) {
                self.write_workload(f, drain)?;
            }
        }
        Ok(())
    }
}

fn write_row(f: &mut fmt::Formatter<'_>, contestant: Contestant, drains: &[&Drain]) -> fmt::Result {
    let cpu = |part: fn(&Cost) -> f64| median(drains, |drain| drain.per_million(part(&drain.cost)));
    let sum = |cost: &Cost| cost.sender_cpu + cost.source_cpu + cost.own_cpu + cost.target_cpu;
    let (sender, source) = (cpu(|cost| cost.sender_cpu), cpu(|cost| cost.source_cpu));
    let (own, target) = (cpu(|cost| cost.own_cpu), cpu(|cost| cost.target_cpu));
    let (rounds, rate, sum) = (drains.len(), median(drains, Drain::rate), cpu(sum));
    let mib = drains.iter().map(|drain| drain.cost.peak_kib).max().unwrap_or(0) / 1024;
    let (pair, workload) = drains.first().map_or(("", ""), |drain| (&drain.pair, &drain.workload));
    writeln!(
        f,
        "| {pair} | {workload} | {contestant} | {rounds} | {rate:.0} | {sender:.2} | {source:.2} | \
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
