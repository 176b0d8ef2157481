//! Keeps a pipeline running: start, back off, stop on a signal.

use std::sync::Arc;

use connectors::error::{Code, Error, Result};
use tokio::sync::watch;

use crate::config::Settings;
use crate::control::Request;
use crate::status::Status;

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

/// Runs the pipeline.
///
/// # Errors
/// What stops the pipeline.
pub async fn run(
    _settings: &Settings,
    _options: RunOptions,
    _status: Arc<Status>,
    _stop: watch::Receiver<bool>,
) -> Result<()> {
    Err(Error::stop(Code::Internal, "the engine is not part of this branch"))
}
