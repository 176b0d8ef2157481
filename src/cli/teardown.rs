//! `driftless teardown`: removes what a pipeline made: slot and publication in the source, our
//! own tables in the target, the state on this machine. Replicated tables stay.
//!
//! Surprise: it goes on when the source cannot be reached, and then fails with the SQL for what
//! remains there, because a forgotten slot keeps the source's log for ever.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use connectors::error::{Code, Error, Result};
use connectors::{Source, Target};

use super::{is_running, print};
use crate::config::Settings;
use crate::connect;

/// What became of each step, in the order in which they were taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// One line for people each.
    pub steps: Vec<Step>,
}

/// One thing that was to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Whether nothing remains of it.
    pub done: bool,
    /// What happened, and what remains.
    pub message: String,
}

impl Report {
    /// Whether nothing remains.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.steps.iter().all(|step| step.done)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Step { done, message } in &self.steps {
            let word = if *done { "done  " } else { "FAILED" };
            writeln!(f, "{word}  {message}")?;
        }
        match self.is_complete() {
            true => writeln!(f, "torn down; the replicated tables stay in the target"),
            false => writeln!(f, "not everything is removed; `driftless teardown` can be repeated"),
        }
    }
}

/// Asks, removes and prints.
///
/// # Errors
/// `configuration` if there is nobody to ask; `already-running` or `slot-in-use` if the pipeline
/// is running, and then nothing was removed.
pub async fn run(settings: &Settings, yes: bool) -> Result<ExitCode> {
    if is_running(settings) {
        return Err(already_running(settings));
    }
    if !confirm(settings, yes)? {
        eprintln!("nothing was removed");
        return Ok(ExitCode::SUCCESS);
    }
    let target = connect::target(settings).await;
    let report = tear_down(settings, connect::source(settings), target).await?;
    print(&report.to_string())?;
    Ok(if report.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Asks on the terminal, unless `yes`; `Ok(false)` if the answer is no.
fn confirm(settings: &Settings, yes: bool) -> Result<bool> {
    if yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        return Err(Error::stop(
            Code::Configuration,
            "teardown asks before it removes anything, and this is no terminal; repeat it with --yes",
        ));
    }
    let failed = |error| Error::stop(Code::Internal, format!("ask on the terminal: {error}"));
    eprint!(
        "Remove pipeline {}: its slot and publication, its records in the target, and its state \
         in {}? The replicated tables stay. [y/N] ",
        settings.name,
        settings.state_dir.display()
    );
    io::stderr().flush().map_err(failed)?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Removes everything; each step can be repeated.
async fn tear_down(
    settings: &Settings,
    source: Result<Arc<dyn Source>>,
    target: Result<Box<dyn Target>>,
) -> Result<Report> {
    let mut steps = vec![leave_source(source, settings).await?];
    steps.push(leave_target(target).await);
    steps.push(remove_state(&settings.state_dir, &settings.name));
    Ok(Report { steps })
}

/// A slot that somebody reads ends the command before anything was removed.
async fn leave_source(source: Result<Arc<dyn Source>>, settings: &Settings) -> Result<Step> {
    let left = match source {
        Ok(source) => source.unsubscribe().await,
        Err(error) => Err(error),
    };
    match left {
        Ok(()) => Ok(done("source: slot and publication are gone")),
        Err(error) if matches!(error.code, Code::SlotInUse | Code::AlreadyRunning) => Err(error),
        Err(error) => {
            let name = &settings.name;
            Ok(failed(format!(
                "source: {error}; its slot, if it is still there, keeps the source's log until \
                 the disk is full; drop it there: SELECT \
                 pg_drop_replication_slot('driftless_{name}'); DROP PUBLICATION IF EXISTS \
                 driftless_{name};"
            )))
        }
    }
}

async fn leave_target(target: Result<Box<dyn Target>>) -> Step {
    let forgotten = match target {
        Ok(mut target) => target.forget().await,
        Err(error) => Err(error),
    };
    match forgotten {
        Ok(()) => done("target: nothing of this pipeline is recorded there any more"),
        Err(error) => failed(format!(
            "target: {error}; _cdc_checkpoint and _cdc_tombstone may still be there, and do no harm"
        )),
    }
}

fn remove_state(dir: &Path, pipeline: &str) -> Step {
    let path = state::pipeline_directory(dir, pipeline);
    match fs::remove_dir_all(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return failed(format!("state: remove {}: {error}", path.display())),
    }
    // What else lies in the directory is not ours, and then it stays.
    match fs::remove_dir(dir) {
        Ok(()) => {}
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {}
        Err(error) => return failed(format!("state: remove {}: {error}", dir.display())),
    }
    done(format!("state: {} is gone", path.display()))
}

fn already_running(settings: &Settings) -> Error {
    Error::stop(
        Code::AlreadyRunning,
        format!(
            "pipeline {} is running with the state directory {}; stop it, then tear it down",
            settings.name,
            settings.state_dir.display()
        ),
    )
}

fn done(message: impl Into<String>) -> Step {
    Step { done: true, message: message.into() }
}

fn failed(message: impl Into<String>) -> Step {
    Step { done: false, message: message.into() }
}

#[cfg(test)]
mod tests {
    use connectors::TargetOptions;
    use connectors::memory::{Fault, Faults, MemorySource, MemoryTarget, Script};
    use connectors::memory::{SourceServer, TargetServer};

    use super::*;
    use crate::config::{Environment, Flags};

    /// Fails at one point, always.
    struct FailAt(&'static str);

    impl Script for FailAt {
        fn decide(&self, point: &'static str) -> Fault {
            if point == self.0 { Fault::Fail } else { Fault::None }
        }
    }

    fn settings(dir: &Path) -> Settings {
        let flags = Flags {
            from: Some("postgres://nobody@localhost/none".into()),
            to: Some("sqlite:replica.db".into()),
            state: Some(dir.join("state").display().to_string()),
            pipeline: Some("shop".into()),
            ..Flags::default()
        };
        Settings::load(&flags, &Environment::default()).unwrap()
    }

    /// Tears down a pipeline that has a state directory, with a connection that breaks there.
    async fn tear_down_failing_at(settings: &Settings, point: &'static str) -> Report {
        let faults = Faults::new(Arc::new(FailAt(point)));
        let source = MemorySource::new(&SourceServer::new([]), faults.clone());
        let options = TargetOptions {
            pipeline: settings.name.clone(),
            soft_deletes: false,
            plain_schema: "public".into(),
        };
        let target = MemoryTarget::new(&TargetServer::new(), options, faults);
        tear_down(settings, Ok(Arc::new(source)), Ok(Box::new(target))).await.unwrap()
    }

    async fn check(point: &'static str, expected: [bool; 3]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path());
        drop(state::open(&settings.state_dir, "shop").unwrap());
        let report = tear_down_failing_at(&settings, point).await;
        let done: Vec<bool> = report.steps.iter().map(|step| step.done).collect();
        assert_eq!(done, expected, "{report}");
        assert!(!settings.state_dir.exists());
        report.to_string()
    }

    #[tokio::test]
    async fn everything_is_removed_and_once_more_is_fine() {
        check("nowhere", [true; 3]).await;
        let dir = tempfile::tempdir().unwrap();
        assert!(tear_down_failing_at(&settings(dir.path()), "nowhere").await.is_complete());
    }

    #[tokio::test]
    async fn an_unreachable_source_leaves_a_command_for_what_remains() {
        let report = check("source.unsubscribe.before", [false, true, true]).await;
        assert!(report.contains("pg_drop_replication_slot('driftless_shop')"), "{report}");
    }

    #[tokio::test]
    async fn an_unreachable_target_does_not_keep_the_slot_alive() {
        check("target.forget.before_commit", [true, false, true]).await;
    }

    #[tokio::test]
    async fn a_running_pipeline_is_not_torn_down() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path());
        let _open = state::open(&settings.state_dir, "shop").unwrap();
        let error = run(&settings, true).await.unwrap_err();
        assert_eq!(error.code, Code::AlreadyRunning);
        assert!(settings.state_dir.join("shop").is_dir());
    }

    #[test]
    fn removing_the_state_leaves_the_files_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("state");
        drop(state::open(&state_dir, "shop").unwrap());
        fs::write(state_dir.join("notes.txt"), "mine").unwrap();
        assert!(remove_state(&state_dir, "shop").done);
        assert!(state_dir.join("notes.txt").is_file());
    }
}
