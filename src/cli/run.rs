//! `driftless run`: replicates until a signal, or until the target is current.

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use connectors::error::{Code, Error, Result};

use super::args::{GlobalArguments, RunArguments};
use super::progress::{Progress, on_terminal};
use super::{print, stop_signal};
use crate::daemon::{self, RunOptions, Until};
use crate::status::{Snapshot, Status, TableState};

/// How often bars are drawn.
const DRAW_INTERVAL: Duration = Duration::from_millis(200);

/// Runs the pipeline in this process.
///
/// # Errors
/// What stops the pipeline; with `--until-current` also a stopped table or a signal, because
/// then the target is not current.
pub(super) async fn run(arguments: &RunArguments, global: &GlobalArguments) -> Result<ExitCode> {
    let settings = arguments.pipeline.settings(global)?;
    let status = Arc::new(Status::new(&settings.name));
    let stop = stop_signal()?;
    let until = if arguments.until_current { Until::Current } else { Until::Stopped };
    let options = RunOptions {
        until,
        take_over: arguments.take_over,
        resync: arguments.resync,
        requests: Vec::new(),
    };
    let engine = daemon::run(&settings, options, Arc::clone(&status), stop.clone());
    let shown = arguments.until_current && on_terminal(global.log_format);
    follow(engine, &status, shown.then(|| Progress::new(global.log_format))).await?;
    if !arguments.until_current {
        return Ok(ExitCode::SUCCESS);
    }
    let snapshot = status.snapshot();
    require_all(&snapshot, *stop.borrow())?;
    print(&summary(&snapshot))?;
    Ok(ExitCode::SUCCESS)
}

/// Waits for the engine and shows how far it has come.
pub(super) async fn follow(
    engine: impl Future<Output = Result<()>>,
    status: &Status,
    progress: Option<Progress>,
) -> Result<()> {
    let Some(mut progress) = progress else { return engine.await };
    let mut ticks = tokio::time::interval(DRAW_INTERVAL);
    let mut engine = std::pin::pin!(engine);
    loop {
        tokio::select! {
            ended = &mut engine => {
                progress.show_all(&status.snapshot());
                return ended;
            }
            _ = ticks.tick() => progress.show_all(&status.snapshot()),
        }
    }
}

/// Refuses to call an end success that left something out.
pub(super) fn require_all(snapshot: &Snapshot, signalled: bool) -> Result<()> {
    if signalled {
        let message = "stopped by a signal before everything was done; run the same command \
                       again, it resumes";
        return Err(Error::transient(Code::Unreachable, message));
    }
    let stopped =
        snapshot.tables.iter().find(|(_, progress)| progress.state == TableState::Stopped);
    match stopped {
        None => Ok(()),
        Some((table, progress)) => Err(match &progress.error {
            Some(error) => {
                Error::stop(error.code, format!("table {table} stopped: {}", error.message))
            }
            None => Error::stop(Code::Internal, format!("table {table} stopped")),
        }),
    }
}

fn summary(snapshot: &Snapshot) -> String {
    let copied: u64 = snapshot.tables.values().map(|table| table.rows_copied).sum();
    format!(
        "{} is current: {} tables, {copied} rows copied, {} rows of {} transactions applied\n",
        snapshot.pipeline,
        snapshot.tables.len(),
        snapshot.rows_applied,
        snapshot.transactions_applied
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Failure, TableProgress};

    fn snapshot(state: TableState) -> Snapshot {
        let status = Status::new("main");
        status.update(|snapshot| {
            let error = Failure { code: Code::PoisonRow, message: "no".into() };
            let table =
                TableProgress { state, rows_copied: 7, rows_estimated: None, error: Some(error) };
            snapshot.tables.insert("a.b".into(), table);
        });
        status.snapshot()
    }

    #[test]
    fn a_stopped_table_or_a_signal_is_no_success() {
        assert_eq!(require_all(&snapshot(TableState::Live), false), Ok(()));
        let error = require_all(&snapshot(TableState::Stopped), false).unwrap_err();
        assert_eq!(error.to_string(), "table a.b stopped: no [poison-row]");
        assert!(require_all(&snapshot(TableState::Live), true).is_err());
    }

    #[test]
    fn the_summary_counts() {
        assert_eq!(
            summary(&snapshot(TableState::Live)),
            "main is current: 1 tables, 7 rows copied, 0 rows of 0 transactions applied\n"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn following_ends_with_the_engine() {
        let status = Status::new("main");
        let engine = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            Err(Error::stop(Code::SlotLost, "gone"))
        };
        let ended = follow(engine, &status, Some(Progress::new(crate::logging::LogFormat::Json)));
        assert_eq!(ended.await.unwrap_err().code, Code::SlotLost);
    }
}
