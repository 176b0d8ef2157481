//! `driftless verify`: compares, prints what differs, and with `--repair` has the engine mend it
//! and looks again. The comparison itself is in `crate::verify`.
//!
//! Surprise: a repair is done by the daemon if one runs, because a target has one writer;
//! otherwise by an engine of our own that ends when it is done.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::sync::Arc;

use connectors::change::Key;
use connectors::error::{Code, Error, Result};
use connectors::schema::{TableName, TablePatterns};

use super::progress::{Copied, Progress};
use super::{is_running, print, stop_signal, to_json};
use crate::config::Settings;
use crate::connect;
use crate::control::{self, LINE_BYTES_MAX, Replies, Reply, Request};
use crate::daemon::{self, RunOptions, Until};
use crate::logging::LogFormat;
use crate::status::Status;
use crate::verify::{OnProgress, Options, Outcome, Report, Scanned, Verifier, repairable};

/// The exit code that says: the comparison was made, and the two sides are not proven equal.
const DIFFERENT: u8 = 3;

/// A byte of a key takes up to four characters of a request: `255,`.
const KEY_BYTES_MAX: usize = LINE_BYTES_MAX / 8;

/// Compares and prints. `tables` restricts it to some tables, by name or by pattern.
///
/// # Errors
/// What prevents a comparison, or a repair.
pub async fn run(
    settings: &Settings,
    tables: &[String],
    repair: bool,
    json: bool,
) -> Result<ExitCode> {
    let report = verify(settings, tables, repair).await?;
    print(&match json {
        true => to_json(&report)?,
        false => report.to_string(),
    })?;
    Ok(match report.outcome {
        Outcome::Equal => ExitCode::SUCCESS,
        Outcome::Different | Outcome::Unproven => ExitCode::from(DIFFERENT),
    })
}

async fn verify(settings: &Settings, tables: &[String], repair: bool) -> Result<Report> {
    let wrong = |message: String| Error::stop(Code::Configuration, format!("--table: {message}"));
    let only = match tables {
        [] => None,
        tables => Some(TablePatterns::parse(tables, &settings.plain_schema).map_err(wrong)?),
    };
    let source = connect::source(settings)?;
    let mut target = connect::target(settings).await?;
    let options = Options {
        pipeline: settings.name.clone(),
        tables: settings.tables.clone(),
        only,
        chunk_bytes: settings.batch_bytes,
        daemon_runs: is_running(settings),
    };
    let mut verifier = Verifier::open(source.as_ref(), target.as_mut(), options).await?;
    if io::stderr().is_terminal() {
        verifier = verifier.telling(show_progress());
    }
    let mut report = verifier.compare_tables().await?;
    if !repair {
        return Ok(report);
    }
    let repairs: Vec<(TableName, Vec<Key>)> = repairable(&report).into_iter().collect();
    if repairs.is_empty() {
        return Ok(report);
    }
    mend(settings, &repairs).await?;
    for (table, keys) in &repairs {
        report.replace(table, verifier.compare_keys(table, keys).await?);
    }
    Ok(report)
}

/// Bars, which stay on the terminal as a record of what was compared.
fn show_progress() -> OnProgress<'static> {
    let mut progress = Progress::new(LogFormat::Text);
    Box::new(move |scanned: Scanned<'_>| {
        progress.show(Copied {
            table: &scanned.table.to_string(),
            rows: scanned.rows,
            rows_estimated: Some(scanned.rows_estimated),
            done: scanned.done,
        });
    })
}

/// Returns when the rows of these keys are as the source has them.
async fn mend(settings: &Settings, repairs: &[(TableName, Vec<Key>)]) -> Result<()> {
    let requests: Vec<Request> = repairs
        .iter()
        .flat_map(|(table, keys)| {
            let request = |keys| Request::Repair { table: table.clone(), keys };
            parts(keys, KEY_BYTES_MAX).into_iter().map(request)
        })
        .collect();
    for (index, request) in requests.iter().enumerate() {
        match control::ask(&settings.pipeline_dir(), request).await? {
            Some(replies) => wait(replies).await?,
            None => return mend_alone(settings, requests[index..].to_vec()).await,
        }
    }
    Ok(())
}

async fn mend_alone(settings: &Settings, requests: Vec<Request>) -> Result<()> {
    let stop = stop_signal()?;
    let options = RunOptions { until: Until::Requested, take_over: false, resync: false, requests };
    let status = Arc::new(Status::new(&settings.name));
    daemon::run(settings, options, status, stop.clone()).await?;
    match *stop.borrow() {
        false => Ok(()),
        true => Err(interrupted("a signal stopped the repair")),
    }
}

async fn wait(mut replies: Replies) -> Result<()> {
    loop {
        match replies.next().await {
            Some(Reply::Progress { .. } | Reply::Status(_)) => {}
            Some(Reply::Done { .. }) => return Ok(()),
            Some(Reply::Failed { code, message }) => {
                return Err(Error::stop(code, format!("repair: {message}")));
            }
            None => return Err(interrupted("the daemon stopped before the repair was done")),
        }
    }
}

fn interrupted(what: &str) -> Error {
    let message = format!("{what}; repeat `driftless verify --repair`");
    Error::transient(Code::Unreachable, message)
}

/// Cuts keys into parts of about this many bytes, none of them empty.
fn parts(keys: &[Key], bytes_max: usize) -> Vec<Vec<Key>> {
    let mut parts: Vec<Vec<Key>> = Vec::new();
    let mut bytes = 0;
    for key in keys {
        bytes += key.size();
        match parts.last_mut() {
            Some(part) if bytes <= bytes_max => part.push(key.clone()),
            Some(_) | None => {
                parts.push(vec![key.clone()]);
                bytes = key.size();
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repair_is_cut_into_requests_that_the_daemon_accepts() {
        let keys = vec![Key::from_values([[255; 200].as_slice()]); 10_000];
        let parts = parts(&keys, KEY_BYTES_MAX);
        assert!(parts.len() > 1);
        assert_eq!(parts.concat(), keys);
        for keys in parts {
            let request = Request::Repair { table: TableName::new("public", "items"), keys };
            assert!(serde_json::to_vec(&request).unwrap().len() < LINE_BYTES_MAX);
        }
    }
}
