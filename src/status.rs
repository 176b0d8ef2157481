//! What a running pipeline says of itself: position, lag, tables, health. The engine writes it,
//! `control.rs` hands it to other processes, `cli/status.rs` prints it.
//! Surprise: health is not "the process lives". It means that the position advanced, or that the
//! source proved that there is nothing more, within the last minute, and that no table stopped.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use connectors::change::{Checkpoint, TableStatus, Timestamp};
use connectors::error::{Code, Error};
use connectors::schema::TableName;
use connectors::version::{Position, Version};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// A pipeline without progress for longer than this is not healthy.
pub const PROGRESS_AGE_MAX: Duration = Duration::from_secs(60);

/// What the pipeline is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Connecting and deciding where to resume.
    Starting,
    /// Copying existing rows while the log flows.
    Copying,
    /// Following the log.
    Streaming,
    /// Waiting before the next attempt.
    Retrying,
    /// Finishing what is in flight.
    Stopping,
    /// Not running any more.
    Stopped,
}

impl State {
    /// As it is printed: `streaming`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Copying => "copying",
            State::Streaming => "streaming",
            State::Retrying => "retrying",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
        }
    }
}

/// An error as it is reported: for scripts and for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The stable name.
    pub code: Code,
    /// What happened and what to type next.
    pub message: String,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Failure {
        Failure { code: error.code, message: error.message.clone() }
    }
}

/// How complete a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableState {
    /// Not every row has been copied yet.
    Copying,
    /// Complete up to the position.
    Live,
    /// Its changes are not applied any more.
    Stopped,
}

impl TableState {
    /// As it is printed: `copying`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            TableState::Copying => "copying",
            TableState::Live => "live",
            TableState::Stopped => "stopped",
        }
    }
}

/// One replicated table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableProgress {
    /// How complete it is.
    pub state: TableState,
    /// Rows that the first copy has read.
    pub rows_copied: u64,
    /// About how many there are.
    pub rows_estimated: Option<u64>,
    /// Why it stopped.
    pub error: Option<Failure>,
}

/// One backfill that somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackfillProgress {
    /// The table.
    pub table: String,
    /// Rows done.
    pub rows: u64,
    /// About how many there are.
    pub rows_estimated: Option<u64>,
    /// Whether it is done; it stays in the list until the process ends.
    pub done: bool,
}

/// Everything at one moment. Its JSON is what `driftless status --json` prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The pipeline's name.
    pub pipeline: String,
    /// What it is doing.
    pub state: State,
    /// Whether it advanced, or was proven idle, in the last minute, and no table stopped.
    pub healthy: bool,
    /// What is durable in the target.
    pub position: Option<Position>,
    /// The same place of the log as a version.
    pub version: Option<Version>,
    /// Transactions of this pipeline in the target.
    pub sequence: u64,
    /// Bytes of log that the source holds beyond the position.
    pub lag_bytes: Option<u64>,
    /// How long ago the last applied commit was made, in seconds; `None` when there is nothing
    /// more to apply.
    pub lag_seconds: Option<f64>,
    /// The last error, also when it has been overcome.
    pub last_error: Option<Failure>,
    /// Rows applied by this process.
    pub rows_applied: u64,
    /// Source transactions applied by this process.
    pub transactions_applied: u64,
    /// When the process started, in microseconds since 1970 UTC; `None` when none is running.
    pub started_at: Option<Timestamp>,
    /// When any of this last changed.
    pub updated_at: Timestamp,
    /// The tables, by name.
    pub tables: BTreeMap<String, TableProgress>,
    /// Backfills in progress, and those that are done.
    pub backfills: Vec<BackfillProgress>,
}

/// A snapshot that the tasks of a pipeline share.
#[derive(Debug)]
pub struct Status(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    snapshot: Snapshot,
    /// The clock of the machine may jump; health is measured with one that does not.
    progressed_at: Instant,
}

impl Status {
    /// A pipeline that is starting now.
    pub fn new(pipeline: impl Into<String>) -> Status {
        let now = now();
        let snapshot = Snapshot {
            pipeline: pipeline.into(),
            state: State::Starting,
            healthy: true,
            position: None,
            version: None,
            sequence: 0,
            lag_bytes: None,
            lag_seconds: None,
            last_error: None,
            rows_applied: 0,
            transactions_applied: 0,
            started_at: Some(now),
            updated_at: now,
            tables: BTreeMap::new(),
            backfills: Vec::new(),
        };
        Status(Mutex::new(Inner { snapshot, progressed_at: Instant::now() }))
    }

    /// Changes something. If the position or a copy advanced by it, that counts as progress;
    /// `healthy` is computed and cannot be set.
    pub fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut inner = self.lock();
        let before = progress_of(&inner.snapshot);
        change(&mut inner.snapshot);
        inner.snapshot.updated_at = now();
        if progress_of(&inner.snapshot) != before {
            inner.progressed_at = Instant::now();
        }
    }

    /// Whether the position or a copy has advanced since then.
    #[must_use]
    pub fn has_progressed_since(&self, then: Instant) -> bool {
        self.lock().progressed_at > then
    }

    /// The target has made this checkpoint durable.
    pub fn reached(&self, checkpoint: &Checkpoint) {
        self.update(|snapshot| {
            snapshot.position = Some(checkpoint.position.clone());
            snapshot.version = Some(checkpoint.version);
            snapshot.sequence = checkpoint.sequence;
        });
    }

    /// A batch of the log is durable in the target; `committed_at` is of its newest commit.
    pub fn applied(&self, rows: u64, transactions: u64, committed_at: Option<Timestamp>) {
        self.update(|snapshot| {
            snapshot.rows_applied += rows;
            snapshot.transactions_applied += transactions;
            if let Some(Timestamp(micros)) = committed_at {
                let behind = now().0.saturating_sub(micros).max(0);
                snapshot.lag_seconds = Some(behind as f64 / 1e6);
            }
        });
    }

    /// A table's state, as recorded in the target.
    pub fn table_status(&self, table: &TableName, status: &TableStatus) {
        let (state, error) = match status {
            TableStatus::Copying => (TableState::Copying, None),
            TableStatus::Live => (TableState::Live, None),
            TableStatus::Stopped { code, message, .. } => {
                let failure = Failure { code: *code, message: message.clone() };
                (TableState::Stopped, Some(failure))
            }
        };
        self.update(|snapshot| {
            let table = snapshot.tables.entry(table.to_string()).or_insert(TableProgress {
                state,
                rows_copied: 0,
                rows_estimated: None,
                error: None,
            });
            (table.state, table.error) = (state, error);
        });
    }

    /// A copy has made this many rows of a table durable so far.
    pub fn copied(&self, table: &TableName, rows: u64, rows_estimated: Option<u64>) {
        let table = table.to_string();
        self.update(|snapshot| {
            if let Some(progress) = snapshot.tables.get_mut(&table) {
                (progress.rows_copied, progress.rows_estimated) = (rows, rows_estimated);
            }
            let running = snapshot.backfills.iter_mut().find(|b| b.table == table && !b.done);
            match running {
                Some(backfill) => backfill.rows = rows,
                None => snapshot.backfills.push(BackfillProgress {
                    table,
                    rows,
                    rows_estimated,
                    done: false,
                }),
            }
        });
    }

    /// A copy of a table has ended. The list does not grow for ever: one entry a table stays.
    pub fn backfill_done(&self, table: &TableName) {
        let table = table.to_string();
        self.update(|snapshot| {
            snapshot.backfills.retain(|backfill| backfill.table != table || !backfill.done);
            if let Some(backfill) = snapshot.backfills.iter_mut().find(|b| b.table == table) {
                backfill.done = true;
            }
        });
    }

    /// The source has answered that there is nothing beyond what is durable.
    pub fn proven_idle(&self) {
        let mut inner = self.lock();
        inner.progressed_at = Instant::now();
        inner.snapshot.lag_seconds = None;
        inner.snapshot.updated_at = now();
    }

    /// Everything, as of now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let inner = self.lock();
        let fresh = inner.progressed_at.elapsed() <= PROGRESS_AGE_MAX;
        let stopped = inner.snapshot.state == State::Stopped || any_stopped(&inner.snapshot);
        Snapshot { healthy: fresh && !stopped, ..inner.snapshot.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic in an update leaves plain numbers behind, nothing that could be half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What grows when the pipeline does its work.
fn progress_of(snapshot: &Snapshot) -> (Option<Position>, u64, u64) {
    let copied = snapshot.tables.values().map(|table| table.rows_copied).sum::<u64>();
    let backfilled = snapshot.backfills.iter().map(|backfill| backfill.rows).sum::<u64>();
    (snapshot.position.clone(), snapshot.sequence, copied + backfilled)
}

fn any_stopped(snapshot: &Snapshot) -> bool {
    snapshot.tables.values().any(|table| table.state == TableState::Stopped)
}

/// The time of this machine; for people, never for ordering.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(state: TableState) -> TableProgress {
        TableProgress { state, rows_copied: 0, rows_estimated: None, error: None }
    }

    #[tokio::test(start_paused = true)]
    async fn health_needs_progress_within_a_minute() {
        let status = Status::new("main");
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(status.snapshot().healthy);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!status.snapshot().healthy);

        status.update(|snapshot| snapshot.position = Some(Position("1".into())));
        assert!(status.snapshot().healthy);
        tokio::time::advance(Duration::from_secs(61)).await;
        status.update(|snapshot| snapshot.lag_bytes = Some(7));
        assert!(!status.snapshot().healthy, "a lag that is measured is not progress");

        status.proven_idle();
        assert!(status.snapshot().healthy);
    }

    #[tokio::test(start_paused = true)]
    async fn copied_rows_are_progress_too() {
        let status = Status::new("main");
        status.update(|snapshot| {
            snapshot.tables.insert("a.b".into(), table(TableState::Copying));
        });
        tokio::time::advance(Duration::from_secs(61)).await;
        status.update(|snapshot| {
            snapshot.tables.entry("a.b".into()).and_modify(|table| table.rows_copied = 5);
        });
        assert!(status.snapshot().healthy);
    }

    #[tokio::test]
    async fn a_stopped_table_is_not_healthy_however_fast_the_others_go() {
        let status = Status::new("main");
        status.update(|snapshot| {
            snapshot.sequence = 9;
            snapshot.tables.insert("a.b".into(), table(TableState::Stopped));
        });
        assert!(!status.snapshot().healthy);
    }

    #[test]
    fn a_snapshot_survives_json() {
        let status = Status::new("main");
        status.update(|snapshot| {
            snapshot.version = Some(Version::at_log(1, 2));
            snapshot.lag_seconds = Some(0.25);
            snapshot.last_error =
                Some((&Error::transient(Code::Unreachable, "connection refused")).into());
            snapshot.tables.insert("a.b".into(), table(TableState::Live));
        });
        let snapshot = status.snapshot();
        let json = serde_json::to_string(&snapshot).unwrap();
        assert_eq!(serde_json::from_str::<Snapshot>(&json).unwrap(), snapshot);
    }
}
