//! The command line: one file a command, and here what they have in common. `main.rs` calls
//! `main` and nothing else.

mod args;
mod backfill;
mod init;
mod progress;
mod run;
mod status;

use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use connectors::error::{Code, Error, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use self::args::Command;
pub use self::args::{Arguments, GlobalArguments, PipelineArguments};

/// How a command ended, other than by an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All of it was done.
    Done,
    /// Not all of it was done; the command has said why.
    Failed,
    /// `verify` found differences.
    Differences,
}

impl Exit {
    fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Differences => 3,
        }
    }
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = crate::logging::start(arguments.global.log_format, default_filter(&arguments))
        .and_then(|()| in_runtime(arguments));
    let code = ended.map_or_else(|error| report(&error), Exit::code);
    ExitCode::from(code)
}

/// Says what went wrong, once, and returns the exit code for it.
fn report(error: &Error) -> u8 {
    let line = error.to_string().replace(['\n', '\r'], " ");
    // There is nobody left to tell that stderr is closed.
    let _ = writeln!(io::stderr(), "driftless: {line}");
    if error.code == Code::Configuration { 2 } else { 1 }
}

fn default_filter(arguments: &Arguments) -> &'static str {
    match arguments.command {
        Command::Run(_) => "info",
        Command::Backfill(_) => "warn,driftless::cli::progress=info",
        Command::Status(_) | Command::Init(_) => "warn",
    }
}

/// Runs the command as a task of its own, so that a panic in it becomes an exit code.
fn in_runtime(arguments: Arguments) -> Result<Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::stop(Code::Internal, format!("cannot start threads: {error}")))?;
    let ended = runtime.block_on(async { tokio::spawn(dispatch(arguments)).await });
    // What is left blocks on a disk or a name server; nobody waits for it any more.
    runtime.shutdown_background();
    ended.unwrap_or_else(|_| {
        Err(Error::stop(Code::Internal, "a defect in driftless ended the command; see the log"))
    })
}

async fn dispatch(arguments: Arguments) -> Result<Exit> {
    let global = &arguments.global;
    match &arguments.command {
        Command::Run(arguments) => run::run(arguments, global).await,
        Command::Backfill(arguments) => backfill::backfill(arguments, global).await,
        Command::Status(arguments) => status::status(arguments, global).await,
        Command::Init(arguments) => init::init(arguments, global),
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
                std::process::exit(i32::from(Exit::Failed.code()));
            }
            tracing::info!("signal, stopping");
            // Whoever wanted to know may have ended already.
            let _ = sender.send(true);
        }
    });
    Ok(receiver)
}
