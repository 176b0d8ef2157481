//! What processes cost, read from `/proc` while they run.
//!
//! Surprise: the sessions of a server are gone when a drain ends, so they are looked at many times
//! and the last look counts; what they did after it, a few hundredths of a second, is lost.

use std::collections::HashMap;
use std::fs;
use std::process::Command;

use driftless::demo::{Error, Result};
use serde::Serialize;
use tokio_postgres::Client;

/// What one drain took, in seconds of the clock and of the processor.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cost {
    /// By the clock.
    pub seconds: f64,
    /// The process that decodes the log.
    pub walsender_cpu: f64,
    /// Other sessions at the source.
    pub source_cpu: f64,
    /// The driftless process; nothing for the other one.
    pub own_cpu: f64,
    /// The sessions or the apply worker in the target.
    pub target_cpu: f64,
    /// The most memory that the driftless process had, in KiB.
    pub peak_kib: u64,
}

/// Sessions of one database, and how much processor time each has taken.
pub struct Sessions<'a> {
    watch: &'a Client,
    database: &'a str,
    seen: HashMap<u32, (bool, f64)>,
}

impl<'a> Sessions<'a> {
    /// Those of this database; `watch` is connected to another one.
    pub fn of(watch: &'a Client, database: &'a str) -> Sessions<'a> {
        Sessions { watch, database, seen: HashMap::new() }
    }

    /// Looks for sessions that are new.
    pub async fn find(&mut self) -> Result<()> {
        let query = "SELECT pid, backend_type = 'walsender' FROM pg_stat_activity \
             WHERE datname = $1 AND (backend_type = 'walsender' \
             OR backend_type LIKE 'logical replication%' \
             OR application_name LIKE 'driftless%')";
        for row in self.watch.query(query, &[&self.database]).await? {
            let process = row.get::<_, i32>(0).unsigned_abs();
            self.seen.entry(process).or_insert((row.get(1), 0.0));
        }
        Ok(())
    }

    /// Looks at the processor time of those that are known.
    pub fn look(&mut self, clock: Clock) {
        for (process, (_, cpu)) in &mut self.seen {
            if let Some(stat) = clock.stat(*process) {
                *cpu = stat.cpu;
            }
        }
    }

    /// The processor time of walsenders, or of all others.
    pub fn cpu(&self, of_walsenders: bool) -> f64 {
        let wanted = self.seen.values().filter(|(walsender, _)| *walsender == of_walsenders);
        wanted.map(|(_, cpu)| cpu).sum()
    }
}

/// What `/proc` says of a process.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// It has ended, and nobody has waited for it yet.
    pub is_zombie: bool,
    /// Seconds of the processor, in user and system mode.
    pub cpu: f64,
}

/// How many ticks of the kernel's accounting a second has.
#[derive(Clone, Copy, Debug)]
pub struct Clock(f64);

impl Clock {
    /// Asks the system.
    pub fn of_system() -> Result<Clock> {
        let output = Command::new("getconf").arg("CLK_TCK").output();
        let output = output.map_err(|error| Error(format!("run getconf: {error}")))?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim().parse().map(Clock).map_err(|_| Error("getconf CLK_TCK is no number".into()))
    }

    /// Looks at a process; `None` if it is gone.
    pub fn stat(self, process: u32) -> Option<Stat> {
        let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name in parentheses may hold anything, so the fields are counted after it.
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
        let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
        let cpu = (ticks(11)? + ticks(12)?) / self.0;
        Some(Stat { is_zombie: fields.first() == Some(&"Z"), cpu })
    }
}

/// The most memory that a process has had, in KiB; `None` once it has ended.
pub fn peak_kib(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    peak.trim().trim_end_matches(" kB").parse().ok()
}
