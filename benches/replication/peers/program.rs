//! A contestant that is a program: started, looked at, waited for.
//!
//! Surprise: nobody waits for it while it is measured, because what it has cost, its children
//! included, can be read of an ended process until somebody does.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use driftless::demo::server::signal;
use driftless::demo::{Error, Result};

use crate::measure::process::{Clock, Cost, peak_kib};
use crate::stage::Stage;

/// A program; killed when dropped.
pub struct Program {
    name: &'static str,
    command: Command,
    log: PathBuf,
    /// Whether its children do the work, so that its own memory says nothing.
    delegates: bool,
    process: Option<Child>,
}

impl Program {
    /// One that is not started yet.
    pub fn new(name: &'static str, command: Command, stage: &Stage) -> Program {
        let log = stage.scratch.path().join(format!("{name}.log"));
        Program { name, command, log, delegates: false, process: None }
    }

    /// The same, of one whose children do the work.
    pub fn delegating(name: &'static str, command: Command, stage: &Stage) -> Program {
        let mut program = Program::new(name, command, stage);
        program.delegates = true;
        program
    }

    /// Starts it.
    pub fn start(&mut self) -> Result<()> {
        let failed = |error: std::io::Error| Error(format!("start {}: {error}", self.name));
        let log = File::create(&self.log).map_err(failed)?;
        self.command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.process = Some(self.command.spawn().map_err(failed)?);
        Ok(())
    }

    /// Adds up what it has cost, and says whether it has ended.
    pub fn look(&mut self, clock: Clock, cost: &mut Cost) -> Result<bool> {
        let process = self.process.as_ref().map(Child::id);
        let stat = process.and_then(|process| clock.stat(process));
        let (Some(process), Some(stat)) = (process, stat) else {
            return Err(Error(format!("{} does not run", self.name)));
        };
        cost.own_cpu = stat.cpu + stat.cpu_of_children;
        if !self.delegates {
            cost.peak_kib = peak_kib(process).unwrap_or(0).max(cost.peak_kib);
        }
        Ok(stat.is_zombie)
    }

    /// Waits until it has ended well.
    pub fn succeed(mut self) -> Result<()> {
        let Some(process) = &mut self.process else {
            return Err(Error(format!("{} was not started", self.name)));
        };
        let ended = process.wait();
        let ended = ended.map_err(|error| Error(format!("wait for {}: {error}", self.name)))?;
        if ended.success() {
            return Ok(());
        }
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        Err(Error(format!("{} ended with {ended}:\n{log}", self.name)))
    }

    /// Asks it to end, and waits until it has ended well.
    pub fn stop(self) -> Result<()> {
        if let Some(process) = &self.process {
            signal("TERM", &[process.id()])?;
        }
        self.succeed()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
