//! The command line: one file a command, and here what they have in common. `main.rs` calls
//! `main` and nothing else.

mod args;
mod backfill;
pub mod check;
mod demo;
mod init;
mod progress;
mod run;
mod status;
pub mod teardown;
pub mod verify;

use std::io::{self, ErrorKind, Write as _};
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use clap::Parser as _;
use connectors::error::{Code, Error, Result};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use self::args::Command;
pub use self::args::{Arguments, GlobalArguments, PipelineArguments};
use crate::config::Settings;

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = crate::logging::start(arguments.global.log_format, default_filter(&arguments))
        .and_then(|()| in_runtime(arguments));
    ended.unwrap_or_else(|error| report(&error))
}

/// Says what went wrong, once, and returns the exit code for it.
fn report(error: &Error) -> ExitCode {
    let line = error.to_string().replace(['\n', '\r'], " ");
    // There is nobody left to tell that stderr is closed.
    let _ = writeln!(io::stderr(), "driftless: {line}");
    if error.code == Code::Configuration { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// Whether some process of this machine has the pipeline's state open, and so replicates it.
fn is_running(settings: &Settings) -> bool {
    let found = state::read(&settings.state_dir, &settings.name);
    found.is_err_and(|error| error.kind == state::ErrorKind::InUse)
}

fn default_filter(arguments: &Arguments) -> &'static str {
    match arguments.command {
        Command::Run(_) => "info",
        Command::Backfill(_) => "warn,driftless::cli::progress=info",
        Command::Check(_)
        | Command::Status(_)
        | Command::Verify(_)
        | Command::Init(_)
        | Command::Teardown(_)
        | Command::Demo(_) => "warn",
    }
}

/// Runs the command on threads of its own; a panic in it becomes an error.
fn in_runtime(arguments: Arguments) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::stop(Code::Internal, format!("cannot start threads: {error}")))?;
    // Nothing is used after a panic but the exit code.
    let command = AssertUnwindSafe(|| runtime.block_on(dispatch(arguments)));
    let ended = std::panic::catch_unwind(command);
    // What is left blocks on a disk or a name server; nobody waits for it any more.
    runtime.shutdown_background();
    ended.unwrap_or_else(|_| {
        Err(Error::stop(Code::Internal, "a defect in driftless ended the command; see the log"))
    })
}

async fn dispatch(arguments: Arguments) -> Result<ExitCode> {
    let global = &arguments.global;
    match &arguments.command {
        Command::Run(arguments) => run::run(arguments, global).await,
        Command::Backfill(arguments) => backfill::backfill(arguments, global).await,
        Command::Check(arguments) => {
            check::run(&arguments.pipeline.settings(global)?, arguments.json).await
        }
        Command::Status(arguments) => status::status(arguments, global).await,
        Command::Verify(arguments) => {
            let settings = arguments.pipeline.settings(global)?;
            verify::run(&settings, &arguments.tables, arguments.repair, arguments.json).await
        }
        Command::Init(arguments) => init::init(arguments, global),
        Command::Teardown(arguments) => {
            teardown::run(&arguments.pipeline.settings(global)?, arguments.yes).await
        }
        Command::Demo(arguments) => demo::demo(arguments).await,
    }
}

/// Prints a result. That nobody reads it is no error: `driftless status | head`.
///
/// # Errors
/// If stdout cannot be written, a full disk for instance.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::stop(Code::Internal, format!("cannot write to stdout: {error}")))
        }
        Err(_) | Ok(()) => Ok(()),
    }
}

/// A result for machines.
fn to_json(result: &impl Serialize) -> Result<String> {
    let failed = |error| Error::stop(Code::Internal, format!("write the result as JSON: {error}"));
    Ok(serde_json::to_string_pretty(result).map_err(failed)? + "\n")
}

/// Becomes true at the first SIGTERM or SIGINT. The second one ends the process at once, which
/// loses nothing: the next start resumes.
///
/// # Errors
/// If signals cannot be watched.
pub fn stop_signal() -> Result<watch::Receiver<bool>> {
    let failed = |error| Error::stop(Code::Internal, format!("cannot watch signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        for signals in 0.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if signals > 0 {
                tracing::warn!("second signal, not waiting for what is in flight");
                std::process::exit(1);
            }
            tracing::info!("signal, stopping");
            // Whoever wanted to know may have ended already.
            let _ = sender.send(true);
        }
    });
    Ok(receiver)
}
