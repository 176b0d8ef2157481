//! `driftless status`: how a pipeline is, from the daemon that runs it or from what it left on
//! this machine.
//! Surprise: an unhealthy daemon makes the exit code 1, so that a container can ask for its
//! health this way; a pipeline that is not running is an answer like any other, 0.

use std::fmt::Write as _;
use std::process::ExitCode;

use connectors::change::Timestamp;
use connectors::error::{Code, Error, Result};
use connectors::version::{Position, Version};

use super::args::{GlobalArguments, StatusArguments};
use super::print;
use crate::config::Settings;
use crate::control::{self, Reply, Request};
use crate::status::{BackfillProgress, Snapshot, State, Status, TableProgress, now};

/// Prints the status.
///
/// # Errors
/// If neither the daemon nor the state directory can be asked.
pub(super) async fn status(
    arguments: &StatusArguments,
    global: &GlobalArguments,
) -> Result<ExitCode> {
    let settings = arguments.pipeline.settings(global)?;
    let snapshot = match ask_daemon(&settings).await? {
        Some(snapshot) => snapshot,
        None => at_rest(&settings)?,
    };
    let text = if arguments.json { to_json(&snapshot)? } else { to_text(&snapshot, now()) };
    print(&text)?;
    let running = snapshot.state != State::Stopped;
    Ok(if running && !snapshot.healthy { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn ask_daemon(settings: &Settings) -> Result<Option<Snapshot>> {
    let request = Request::Status;
    let Some(mut replies) = control::ask(&settings.pipeline_dir(), &request).await? else {
        return Ok(None);
    };
    match replies.next().await {
        Some(Reply::Status(snapshot)) => Ok(Some(*snapshot)),
        Some(Reply::Failed { code, message }) => Err(Error::stop(code, message)),
        Some(Reply::Progress { .. } | Reply::Done { .. }) => {
            Err(Error::stop(Code::Internal, "the daemon answered another question"))
        }
        // It ended just now.
        None => Ok(None),
    }
}

/// What a pipeline that nobody runs left behind, as far as this machine knows it.
fn at_rest(settings: &Settings) -> Result<Snapshot> {
    let saved = state::read(&settings.state_dir, &settings.name).map_err(state_error)?;
    let idle = Status::new(&settings.name).snapshot();
    let mut snapshot = Snapshot { state: State::Stopped, healthy: false, started_at: None, ..idle };
    let Some(saved) = saved else { return Ok(snapshot) };
    if let Some(checkpoint) = saved.checkpoint {
        snapshot.position = Some(Position(checkpoint.position));
        snapshot.version = Version::from_bytes(&checkpoint.version);
        snapshot.sequence = checkpoint.sequence;
    }
    let backfill = |task: state::Task| BackfillProgress {
        table: format!("{}.{}", task.schema, task.table),
        rows: task.rows,
        rows_estimated: None,
        done: false,
    };
    snapshot.backfills = saved.tasks.into_iter().map(backfill).collect();
    Ok(snapshot)
}

fn state_error(error: state::Error) -> Error {
    let code = match error.kind {
        state::ErrorKind::InUse => Code::AlreadyRunning,
        state::ErrorKind::Corrupt => Code::StateCorrupt,
        state::ErrorKind::Version => Code::StateVersion,
        state::ErrorKind::OtherPipeline => Code::StateOther,
        state::ErrorKind::Unsafe => Code::StateUnsafe,
        state::ErrorKind::Disk(_) => Code::StateDisk,
    };
    Error::stop(code, error.message)
}

fn to_json(snapshot: &Snapshot) -> Result<String> {
    let json = serde_json::to_string_pretty(snapshot)
        .map_err(|_| Error::stop(Code::Internal, "the status cannot be written as JSON"))?;
    Ok(json + "\n")
}

/// The snapshot for people, as of `now`.
fn to_text(snapshot: &Snapshot, now: Timestamp) -> String {
    let mut lines = vec![headline(snapshot)];
    let mut fact = |name: &str, value: String| lines.push(format!("  {name:<11}{value}"));
    match &snapshot.position {
        Some(position) => fact("position", position.to_string()),
        None if snapshot.state == State::Stopped => {
            fact("position", "none on this machine; the target may know one".into());
        }
        None => fact("position", "none yet".into()),
    }
    if let Some(bytes) = snapshot.lag_bytes {
        fact("lag", lag(bytes, snapshot.lag_seconds));
    }
    if let Some(started_at) = snapshot.started_at {
        let (rows, transactions) = (snapshot.rows_applied, snapshot.transactions_applied);
        let since = age(started_at, now);
        fact(
            "applied",
            format!(
                "{} rows of {} transactions since the start {since} ago",
                grouped(rows),
                grouped(transactions),
            ),
        );
    }
    if let Some(error) = &snapshot.last_error {
        fact("last error", format!("{} [{}]", error.message, error.code));
    }
    lines.extend(tables(snapshot));
    lines.extend(backfills(snapshot));
    lines.join("\n") + "\n"
}

fn headline(snapshot: &Snapshot) -> String {
    let name = &snapshot.pipeline;
    if snapshot.state == State::Stopped {
        return format!("{name}: not running");
    }
    let health = if snapshot.healthy { "healthy" } else { "NOT HEALTHY" };
    format!("{name}: {}, {health}", snapshot.state.as_str())
}

fn tables(snapshot: &Snapshot) -> Vec<String> {
    let Some(width) = snapshot.tables.keys().map(|name| name.chars().count()).max() else {
        return Vec::new();
    };
    let width = width.max("table".len());
    let mut lines = vec![String::new(), format!("  {:<width$}  state    rows copied", "table")];
    for (name, table) in &snapshot.tables {
        let rows = rows_of(table);
        lines.push(format!("  {name:<width$}  {:<7}  {rows}", table.state.as_str()));
        if let Some(error) = &table.error {
            lines.push(format!("  {:<width$}  {} [{}]", "", error.message, error.code));
        }
    }
    lines
}

fn rows_of(table: &TableProgress) -> String {
    match table.state {
        crate::status::TableState::Copying => {
            rows_of_about(table.rows_copied, table.rows_estimated)
        }
        // Zero after a restart: nothing was copied by this process.
        crate::status::TableState::Live | crate::status::TableState::Stopped => {
            if table.rows_copied == 0 { "-".into() } else { grouped(table.rows_copied) }
        }
    }
}

fn backfills(snapshot: &Snapshot) -> Vec<String> {
    if snapshot.backfills.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![String::new(), "  backfills".to_owned()];
    for backfill in &snapshot.backfills {
        let rows = match backfill.done {
            true => format!("{} rows, done", grouped(backfill.rows)),
            false => format!("{} rows", rows_of_about(backfill.rows, backfill.rows_estimated)),
        };
        let resumes =
            if snapshot.state == State::Stopped { ", resumes at the next start" } else { "" };
        lines.push(format!("  {}: {rows}{resumes}", backfill.table));
    }
    lines
}

/// `1,200 of about 5,000 (24 %)`
fn rows_of_about(rows: u64, rows_estimated: Option<u64>) -> String {
    match rows_estimated.filter(|estimated| *estimated > 0) {
        None => grouped(rows),
        Some(estimated) => {
            let percent = (u128::from(rows) * 100 / u128::from(estimated)).min(99);
            format!("{} of about {} ({percent} %)", grouped(rows), grouped(estimated))
        }
    }
}

fn lag(bytes: u64, seconds: Option<f64>) -> String {
    match seconds {
        None => format!("{}, nothing more to apply", size(bytes)),
        Some(seconds) => format!("{}, {seconds:.1} s behind", size(bytes)),
    }
}

fn size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.iter().find(|(_, shift)| bytes >> shift > 0) {
        None => format!("{bytes} B"),
        Some((unit, shift)) => {
            let tenths = (u128::from(bytes) * 10) >> shift;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
    }
}

fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = (now.0 - then.0).max(0) / 1_000_000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        // Writing into a string cannot fail.
        let _ = write!(text, "{digit}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Failure, TableState};

    const NOW: Timestamp = Timestamp(3 * 3600 * 1_000_000);

    fn check_text(change: impl FnOnce(&mut Snapshot), expected: &str) {
        let idle = Status::new("shop").snapshot();
        let mut snapshot = Snapshot { started_at: Some(Timestamp(0)), ..idle };
        change(&mut snapshot);
        assert_eq!(to_text(&snapshot, NOW), expected);
    }

    #[test]
    fn a_running_pipeline_is_told_in_aligned_lines() {
        let stopped = Failure { code: Code::PoisonRow, message: "no such luck".into() };
        let table = |state, rows_copied, rows_estimated, error| TableProgress {
            state,
            rows_copied,
            rows_estimated,
            error,
        };
        check_text(
            |snapshot| {
                snapshot.state = State::Copying;
                snapshot.position = Some(Position("0/16B3748".into()));
                snapshot.lag_bytes = Some(1_300_000);
                snapshot.lag_seconds = Some(0.44);
                snapshot.rows_applied = 1_234_567;
                snapshot.transactions_applied = 89;
                snapshot.last_error =
                    Some(Failure { code: Code::Unreachable, message: "refused".into() });
                snapshot.tables.insert("public.a".into(), table(TableState::Live, 0, None, None));
                snapshot.tables.insert(
                    "public.orders".into(),
                    table(TableState::Copying, 12_000, Some(50_000), None),
                );
                snapshot
                    .tables
                    .insert("public.z".into(), table(TableState::Stopped, 7, None, Some(stopped)));
                snapshot.healthy = false;
                let (table, rows, rows_estimated) = ("public.a".into(), 10, Some(5));
                let again = BackfillProgress { table, rows, rows_estimated, done: false };
                snapshot.backfills.push(BackfillProgress { done: true, ..again.clone() });
                snapshot.backfills.push(again);
            },
            "\
shop: copying, NOT HEALTHY
  position   0/16B3748
  lag        1.2 MiB, 0.4 s behind
  applied    1,234,567 rows of 89 transactions since the start 3 h ago
  last error refused [unreachable]

  table          state    rows copied
  public.a       live     -
  public.orders  copying  12,000 of about 50,000 (24 %)
  public.z       stopped  7
                 no such luck [poison-row]

  backfills
  public.a: 10 rows, done
  public.a: 10 of about 5 (99 %) rows
",
        );
    }

    #[test]
    fn a_pipeline_that_nobody_runs_says_what_it_left_behind() {
        check_text(
            |snapshot| {
                snapshot.state = State::Stopped;
                snapshot.started_at = None;
                let (table, rows_estimated) = ("public.a".into(), None);
                let left = BackfillProgress { table, rows: 1000, rows_estimated, done: false };
                snapshot.backfills.push(left);
            },
            "\
shop: not running
  position   none on this machine; the target may know one

  backfills
  public.a: 1,000 rows, resumes at the next start
",
        );
    }

    #[test]
    fn without_a_state_directory_a_pipeline_is_not_running() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("none");
        let flags = crate::config::Flags {
            from: Some("postgres://h/d".into()),
            to: Some("sqlite:a.db".into()),
            state: Some(state.display().to_string()),
            ..crate::config::Flags::default()
        };
        let settings = Settings::load(&flags, &crate::config::Environment::default()).unwrap();
        let snapshot = at_rest(&settings).unwrap();
        assert_eq!((snapshot.state, snapshot.position), (State::Stopped, None));
        assert!(!state.exists(), "asking made a directory");
    }

    #[test]
    fn the_last_checkpoint_is_read_from_the_state_directory() {
        use std::os::unix::fs::PermissionsExt as _;

        let directory = tempfile::tempdir().unwrap();
        let mode = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(directory.path(), mode).unwrap();
        let flags = crate::config::Flags {
            from: Some("postgres://h/d".into()),
            to: Some("sqlite:a.db".into()),
            state: Some(directory.path().display().to_string()),
            ..crate::config::Flags::default()
        };
        let settings = Settings::load(&flags, &crate::config::Environment::default()).unwrap();
        let version = Version::at_log(1, 2);
        let store = state::open(&settings.state_dir, &settings.name).unwrap().store;
        store
            .save_checkpoint(&state::SavedCheckpoint {
                position: "here".into(),
                version: version.to_bytes(),
                sequence: 3,
                fence: 1,
            })
            .unwrap();
        drop(store);
        let snapshot = at_rest(&settings).unwrap();
        assert_eq!(snapshot.position, Some(Position("here".into())));
        assert_eq!((snapshot.version, snapshot.sequence), (Some(version), 3));
    }

    #[test]
    fn sizes_and_ages_have_the_unit_that_fits() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "17179869183.9 GiB");
        let ago = |seconds: i64| age(Timestamp(NOW.0 - seconds * 1_000_000), NOW);
        assert_eq!(ago(-5), "0 s");
        assert_eq!(ago(119), "119 s");
        assert_eq!(ago(120), "2 min");
        assert_eq!(ago(7200), "2 h");
        assert_eq!(ago(200_000), "2 days");
    }
}
