//! This project's program.

use std::path::PathBuf;
use std::process::Command;

use driftless::config::EXAMPLE;
use driftless::demo::Result;
use driftless::demo::server::Engine;

use super::program::Program;
use crate::contestant::Contestant;
use crate::sides::WORK;
use crate::stage::Stage;

const PROGRAM: &str = env!("CARGO_BIN_EXE_driftless");
/// Tells the program not to read a log that is behind in bulk.
const STREAMING: (&str, &str) = ("DRIFTLESS_SOURCE__BULK_READ", "false");

/// Whether the program has a bulk read that can be turned off. Without the key,
/// `driftless-streaming` would be a second `driftless`.
pub fn knows_bulk_read() -> bool {
    EXAMPLE.lines().any(|line| line.trim_start_matches("# ").starts_with("bulk_read ="))
}

/// Copies what is there before the backlog, and ends.
pub fn prepare(stage: &Stage, contestant: Contestant) -> Result<()> {
    forget(stage, contestant);
    let mut first = until_current(stage, contestant);
    first.start()?;
    first.succeed()
}

/// Forgets what an earlier round has left on this machine.
pub fn forget(stage: &Stage, contestant: Contestant) {
    let _ = std::fs::remove_dir_all(state_directory(stage, contestant));
}

/// One that ends as soon as the target is current.
pub fn until_current(stage: &Stage, contestant: Contestant) -> Program {
    let mut command = command(stage, contestant);
    command.arg("--until-current");
    Program::new("driftless", command, stage)
}

/// One that goes on until it is stopped.
pub fn endless(stage: &Stage, contestant: Contestant) -> Program {
    Program::new("driftless", command(stage, contestant), stage)
}

fn command(stage: &Stage, contestant: Contestant) -> Command {
    let mut command = Command::new(PROGRAM);
    // What a developer has exported must not change what is measured.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("DRIFTLESS_")) {
        command.env_remove(name);
    }
    if contestant == Contestant::DriftlessStreaming {
        command.env(STREAMING.0, STREAMING.1);
    }
    let tables = match stage.source.engine {
        Engine::Postgres => "public.*".to_owned(),
        Engine::Mariadb => format!("{WORK}.*"),
    };
    let target = stage.target.server.url(&stage.database(contestant));
    command.args(["run", "--from", &stage.source.server.url(WORK), "--to", &target]);
    command.args(["--tables", &tables, "--pipeline", &contestant.identifier()]);
    command.arg("--state").arg(state_directory(stage, contestant));
    command
}

fn state_directory(stage: &Stage, contestant: Contestant) -> PathBuf {
    stage.scratch.path().join(contestant.identifier())
}
