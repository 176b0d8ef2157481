//! The process of driftless.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use driftless::demo::server::Engine;
use driftless::demo::{Error, Result};

use crate::process::{Clock, Cost, peak_kib};
use crate::sides::{OURS, WORK};
use crate::stage::Stage;

/// A `driftless run --until-current`; killed when dropped.
pub struct Run {
    process: Child,
    log: PathBuf,
}

impl Run {
    /// Starts the one that copies what is there before the backlog.
    pub fn first(stage: &Stage) -> Result<Run> {
        // That of an earlier round is of a database that is gone.
        let _ = std::fs::remove_dir_all(state_directory(stage));
        Run::start(stage)
    }

    /// Starts one that drains.
    pub fn start(stage: &Stage) -> Result<Run> {
        let log = stage.scratch.path().join("log");
        let failed = |error: std::io::Error| Error(format!("start driftless: {error}"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_driftless"));
        // What a developer has exported must not change what is measured.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("DRIFTLESS_")) {
            command.env_remove(name);
        }
        let tables = match stage.source.engine {
            Engine::Postgres => "public.*".to_owned(),
            Engine::Mariadb => format!("{WORK}.*"),
        };
        command.args(["run", "--until-current", "--from", &stage.source.server.url(WORK)]);
        command.args(["--to", &stage.target.server.url(OURS), "--tables", &tables, "--state"]);
        command.arg(state_directory(stage));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&log).map_err(failed)?);
        Ok(Run { process: command.spawn().map_err(failed)?, log })
    }

    /// Whether it has ended. Nobody waits for it here: what it has cost can be read until then.
    pub fn has_ended(&mut self, clock: Clock, cost: &mut Cost) -> Result<bool> {
        let process = self.process.id();
        let stat = clock.stat(process);
        let stat = stat.ok_or_else(|| Error("/proc does not know driftless".into()))?;
        cost.own_cpu = stat.cpu;
        cost.peak_kib = peak_kib(process).unwrap_or(0).max(cost.peak_kib);
        Ok(stat.is_zombie)
    }

    /// Waits until it has ended well.
    pub fn succeed(mut self) -> Result<()> {
        let ended = self.process.wait();
        let ended = ended.map_err(|error| Error(format!("wait for driftless: {error}")))?;
        if ended.success() {
            return Ok(());
        }
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        Err(Error(format!("driftless ended with {ended}:\n{log}")))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn state_directory(stage: &Stage) -> PathBuf {
    stage.scratch.path().join("state")
}
