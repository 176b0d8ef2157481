//! Keeps a pipeline running: opens what it needs, starts a session, and after a transient error
//! backs off and starts the next one, until a signal or the end that was asked for.

use std::sync::Arc;
use std::time::Duration;

use connectors::error::{Code, Error, Result};
use state::Found;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::backfill::Waiting;
use crate::batcher::Bounds;
use crate::config::Settings;
use crate::connect;
use crate::control::{self, Ask, Reply, Request};
use crate::monitor;
use crate::persist::{blocking, state_error};
use crate::pipeline::{Limits, Pipeline, Session};
use crate::retry::Backoff;
use crate::status::{Failure, State, Status};

/// While nothing has worked yet, an unreachable server is most likely a wrong URL: give up soon.
const FIRST_CONNECT_MAX: Duration = Duration::from_secs(6);
/// A session that lasted this long was healthy: the next wait is short again.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);

/// Larger chunks are no faster.
const CHUNK_BYTES_MAX: usize = 4 << 20;

/// When `run` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// When it is told to stop.
    Stopped,
    /// When everything committed at the source before it began is durable in the target.
    Current,
    /// When the requests are done.
    Requested,
}

/// What is asked of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// When it returns.
    pub until: Until,
    /// Take the pipeline over from another instance.
    pub take_over: bool,
    /// Copy everything again.
    pub resync: bool,
    /// What to do besides following the log.
    pub requests: Vec<Request>,
}

/// Runs the pipeline until `stop` becomes true or what `options` wait for has happened.
///
/// # Errors
/// What stops the pipeline; a transient error only while nothing has worked yet.
pub async fn run(
    settings: &Settings,
    options: RunOptions,
    status: Arc<Status>,
    stop: watch::Receiver<bool>,
) -> Result<()> {
    let outcome = run_sessions(settings, options, &status, stop).await;
    status.update(|snapshot| {
        snapshot.state = State::Stopped;
        if let Err(error) = &outcome {
            snapshot.last_error = Some(Failure::from(error));
        }
    });
    outcome
}

async fn run_sessions(
    settings: &Settings,
    options: RunOptions,
    status: &Arc<Status>,
    stop: watch::Receiver<bool>,
) -> Result<()> {
    let pipeline = open(settings, status)?;
    let (asks_in, asks) = mpsc::channel(8);
    let _socket = control::serve(&settings.pipeline_dir(), Arc::clone(status), asks_in.clone())?;
    let monitor = monitor::spawn(Arc::clone(&pipeline.source), Arc::clone(status));
    let mut session = Session {
        fence: None,
        take_over: options.take_over,
        resync: options.resync,
        until_current: options.until == Until::Current,
        until_copied: options.until == Until::Requested,
        mark: None,
        new_logs: Vec::new(),
        established: false,
        asks,
        stop,
    };
    let answers = ask_all(options.requests, &asks_in);
    let answers = tokio::spawn(collect(answers));
    let outcome = keep_running(&pipeline, &mut session, status).await;
    monitor.abort();
    outcome?;
    if *session.stop.borrow() {
        answers.abort();
        return Ok(());
    }
    // What was not answered until now never will be.
    drop(pipeline);
    drop(session);
    drop(asks_in);
    answers.await.map_err(|_| Error::stop(Code::Internal, "the requests' task has died"))?
}

fn open(settings: &Settings, status: &Arc<Status>) -> Result<Pipeline> {
    let source = connect::source(settings)?;
    let opened = blocking(|| state::open(&settings.state_dir, &settings.name))
        .map_err(|error| state_error(&error))?;
    if let Found::Quarantined { moved_to, why } = &opened.found {
        let moved_to = moved_to.display();
        warn!(%moved_to, why, "state was damaged: set aside, and rebuilt from the target");
    }
    let bounds = Bounds {
        rows: settings.batch_rows,
        bytes: settings.batch_bytes,
        wait: settings.batch_wait,
    };
    let limits = Limits {
        bounds,
        // The rest of the budget: the batch being built, the one being applied in its wire form,
        // rows of a bulk read that wait, and the chunks of the backfills.
        queue_bytes: settings.memory / 8,
        chunk_rows: settings.chunk_rows,
        // One is read, one waits and one is written for each of the workers, each about twice in memory.
        chunk_bytes: (settings.memory / 12 / settings.copy_workers).min(CHUNK_BYTES_MAX),
        copy_workers: settings.copy_workers,
        stop_on_table_error: settings.stop_on_table_error,
    };
    Ok(Pipeline {
        source,
        connect_target: connect::target_factory(settings),
        store: opened.store,
        tables: settings.tables.clone(),
        limits,
        status: Arc::clone(status),
        asked: Arc::new(Waiting::default()),
    })
}

/// Puts the requests of the command itself where those of other commands arrive.
fn ask_all(requests: Vec<Request>, asks: &mpsc::Sender<Ask>) -> Vec<mpsc::Receiver<Reply>> {
    let ask = |request| {
        let (reply, answers) = mpsc::channel(1024);
        // There is room: nobody else asks before the session runs.
        let _ = asks.try_send(Ask { request, reply });
        answers
    };
    requests.into_iter().map(ask).collect()
}

/// Waits for the last answer to each request.
async fn collect(answers: Vec<mpsc::Receiver<Reply>>) -> Result<()> {
    let mut outcome = Ok(());
    for mut answer in answers {
        let interrupted = "the request was interrupted; run the same command again";
        let mut last = Err(Error::transient(Code::Unreachable, interrupted));
        while let Some(reply) = answer.recv().await {
            match reply {
                Reply::Done { .. } => last = Ok(()),
                Reply::Failed { code, message } => last = Err(Error::stop(code, message)),
                Reply::Progress { .. } | Reply::Status(_) => continue,
            }
            break;
        }
        outcome = outcome.and(last);
    }
    outcome
}

async fn keep_running(
    pipeline: &Pipeline,
    session: &mut Session,
    status: &Arc<Status>,
) -> Result<()> {
    let mut backoff = Backoff::default();
    let first_try = Instant::now();
    loop {
        let started = Instant::now();
        let error = match pipeline.run(session).await {
            Ok(()) => return Ok(()),
            Err(error) if !error.is_transient() => return Err(error),
            Err(error) => error,
        };
        if !session.established && first_try.elapsed() > FIRST_CONNECT_MAX {
            return Err(error);
        }
        if *session.stop.borrow() {
            return Ok(());
        }
        // A connection that breaks every few seconds must not end in waits of half a minute.
        if status.has_progressed_since(started) || started.elapsed() > HEALTHY_AFTER {
            backoff.reset();
        }
        status.update(|snapshot| {
            snapshot.state = State::Retrying;
            snapshot.last_error = Some(Failure::from(&error));
        });
        let wait = backoff.next_wait();
        let wait_ms = wait.as_millis() as u64;
        if error.code == Code::Resumed {
            info!(reason = error.message, "session begins again");
            continue;
        }
        warn!(code = %error.code, reason = error.message, wait_ms, "connection lost, trying again");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = session.stop.wait_for(|stop| *stop) => return Ok(()),
        }
    }
}
