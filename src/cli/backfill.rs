//! `driftless backfill`: asks the running daemon to copy rows again, or does it alone.

use std::process::ExitCode;
use std::sync::Arc;

use connectors::error::{Code, Error, Result};

use super::args::{BackfillArguments, GlobalArguments};
use super::progress::{Copied, Progress};
use super::run::{follow, require_all};
use super::{print, stop_signal};
use crate::config::Settings;
use crate::control::{self, Replies, Reply, Request};
use crate::daemon::{self, RunOptions, Until};
use crate::status::Status;

/// Copies the rows, by whoever has the pipeline, and waits until they are durable.
///
/// # Errors
/// What stopped it.
pub(super) async fn backfill(
    arguments: &BackfillArguments,
    global: &GlobalArguments,
) -> Result<ExitCode> {
    let settings = arguments.pipeline.settings(global)?;
    let request =
        Request::Backfill { tables: arguments.tables.clone(), filter: arguments.filter.clone() };
    let progress = Progress::new(global.log_format);
    let rows = match control::ask(&settings.pipeline_dir(), &request).await? {
        Some(replies) => attend(replies, progress).await?,
        None => alone(&settings, request, arguments.take_over, progress).await?,
    };
    print(&format!("backfill of {} done: {rows} rows\n", settings.name))?;
    Ok(ExitCode::SUCCESS)
}

/// Shows what the daemon does, until it is done; returns the number of rows.
async fn attend(mut replies: Replies, mut progress: Progress) -> Result<u64> {
    let mut stop = stop_signal()?;
    let goes_on = |what: &str| {
        let message = format!("{what}; see `driftless status` for how far it has come");
        Error::transient(Code::Unreachable, message)
    };
    loop {
        let reply = tokio::select! {
            reply = replies.next() => reply,
            _ = stop.changed() => {
                return Err(goes_on("stopped watching, the daemon goes on with the backfill"));
            }
        };
        match reply {
            Some(Reply::Progress { table, rows, rows_estimated }) => {
                progress.show(Copied { table: &table, rows, rows_estimated, done: false });
            }
            Some(Reply::Done { rows }) => return Ok(rows),
            Some(Reply::Failed { code, message }) => return Err(Error::stop(code, message)),
            Some(Reply::Status(_)) => {
                return Err(Error::stop(Code::Internal, "the daemon answered another question"));
            }
            None => {
                return Err(goes_on(
                    "the daemon has gone; it goes on with the backfill when it is started again",
                ));
            }
        }
    }
}

/// Runs the pipeline in this process until the backfill is done; returns the number of rows.
async fn alone(
    settings: &Settings,
    request: Request,
    take_over: bool,
    progress: Progress,
) -> Result<u64> {
    let status = Arc::new(Status::new(&settings.name));
    let stop = stop_signal()?;
    let options =
        RunOptions { until: Until::Requested, take_over, resync: false, requests: vec![request] };
    let engine = daemon::run(settings, options, Arc::clone(&status), stop.clone());
    follow(engine, &status, Some(progress)).await?;
    let snapshot = status.snapshot();
    require_all(&snapshot, *stop.borrow())?;
    Ok(snapshot.backfills.iter().map(|backfill| backfill.rows).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging::LogFormat;
    use tokio::sync::mpsc;

    /// What `attend` makes of these answers of a daemon.
    async fn attended(answers: Vec<Reply>) -> Result<u64> {
        let directory = tempfile::tempdir().unwrap();
        let (sender, mut asks) = mpsc::channel(1);
        let status = Arc::new(Status::new("main"));
        let _handle = control::serve(directory.path(), status, sender).unwrap();
        let request = Request::Backfill { tables: vec!["a".into()], filter: None };
        let replies = control::ask(directory.path(), &request).await.unwrap().unwrap();
        let ask = asks.recv().await.unwrap();
        assert_eq!(ask.request, request);
        for answer in answers {
            ask.reply.send(answer).await.unwrap();
        }
        drop(ask);
        attend(replies, Progress::new(LogFormat::Json)).await
    }

    #[tokio::test]
    async fn a_daemons_answers_are_followed_to_the_end() {
        let progress = Reply::Progress { table: "a".into(), rows: 1, rows_estimated: Some(2) };
        assert_eq!(attended(vec![progress.clone(), Reply::Done { rows: 2 }]).await, Ok(2));
        let failed = Reply::Failed { code: Code::MissingTable, message: "no".into() };
        let error = attended(vec![progress.clone(), failed]).await.unwrap_err();
        assert_eq!(error.to_string(), "no [missing-table]");
        let error = attended(vec![progress]).await.unwrap_err();
        assert_eq!(error.code, Code::Unreachable);
    }
}
