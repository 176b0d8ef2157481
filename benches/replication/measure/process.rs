//! What processes and their threads cost, read from `/proc` while they run.

use std::collections::HashMap;
use std::fs;
use std::process::Command;

use driftless::demo::{Error, Result};
use serde::Serialize;

/// What one drain took, in seconds of the clock and of the processor.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cost {
    /// By the clock.
    pub seconds: f64,
    /// Who decodes and sends the log: a walsender of PostgreSQL, a dump thread of MariaDB.
    pub sender_cpu: f64,
    /// Other sessions at a PostgreSQL source; everything else that a MariaDB source does.
    pub source_cpu: f64,
    /// The contestant's program with its children; nothing for what lives in the servers.
    pub own_cpu: f64,
    /// The sessions or the apply worker in a PostgreSQL target; a MariaDB target as a whole.
    pub target_cpu: f64,
    /// The most memory that the program had, in KiB; nothing for one whose children do the work.
    pub peak_kib: u64,
}

/// What `/proc` says of a process.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// It has ended, and nobody has waited for it yet.
    pub is_zombie: bool,
    /// Seconds of the processor, in user and system mode.
    pub cpu: f64,
    /// The same of its children that have ended.
    pub cpu_of_children: f64,
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

    /// Looks at a process with all its threads, of the past too; `None` if it is gone.
    pub fn stat(self, process: u32) -> Option<Stat> {
        self.read(&format!("/proc/{process}/stat"))
    }

    /// The seconds of the processor that one thread has taken; `None` if it is gone.
    pub fn task(self, process: u32, thread: u32) -> Option<f64> {
        Some(self.read(&format!("/proc/{process}/task/{thread}/stat"))?.cpu)
    }

    fn read(self, file: &str) -> Option<Stat> {
        let text = fs::read_to_string(file).ok()?;
        // The name in parentheses may hold anything, so the fields are counted after it.
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
        let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
        let cpu = (ticks(11)? + ticks(12)?) / self.0;
        let cpu_of_children = (ticks(13)? + ticks(14)?) / self.0;
        Some(Stat { is_zombie: fields.first() == Some(&"Z"), cpu, cpu_of_children })
    }
}

/// What each thread of a process has taken, in seconds of the processor.
pub fn cpu_of_tasks(clock: Clock, process: u32) -> HashMap<u32, f64> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let ids = tasks.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter_map(|thread| Some((thread, clock.task(process, thread)?))).collect()
}

/// The most memory that a process has had, in KiB; `None` once it has ended.
pub fn peak_kib(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    peak.trim().trim_end_matches(" kB").parse().ok()
}
