//! How far a copy has come: bars on a terminal, a log line every few seconds elsewhere.
//! Used by `run --until-current` and `backfill`, from a daemon's answers or from a `Status`.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::logging::{self, LogFormat};
use crate::status::{Snapshot, TableState};

/// Between two log lines of one table.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// What is shown of all tables.
pub(super) struct Progress {
    as_bars: bool,
    tables: BTreeMap<String, Table>,
}

struct Table {
    bar: Option<ProgressBar>,
    /// When and where it was first seen: a copy that resumes has rows already.
    began_at: Instant,
    began_rows: u64,
    logged_at: Instant,
    done: bool,
}

/// One table, as of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copied<'a> {
    pub(super) table: &'a str,
    pub(super) rows: u64,
    pub(super) rows_estimated: Option<u64>,
    pub(super) done: bool,
}

impl Progress {
    /// Nothing shown yet.
    pub(super) fn new(format: LogFormat) -> Progress {
        Progress { as_bars: on_terminal(format), tables: BTreeMap::new() }
    }

    /// Shows every copy of a snapshot.
    pub(super) fn show_all(&mut self, snapshot: &Snapshot) {
        for (table, progress) in &snapshot.tables {
            let done = progress.state != TableState::Copying;
            // A table that was complete from the start is no news.
            if !done || self.tables.contains_key(table) {
                let (rows, rows_estimated) = (progress.rows_copied, progress.rows_estimated);
                self.show(Copied { table, rows, rows_estimated, done });
            }
        }
        for backfill in &snapshot.backfills {
            self.show(Copied {
                table: &backfill.table,
                rows: backfill.rows,
                rows_estimated: backfill.rows_estimated,
                done: backfill.done,
            });
        }
    }

    /// Shows one copy.
    pub(super) fn show(&mut self, copied: Copied<'_>) {
        let now = Instant::now();
        let as_bars = self.as_bars;
        let table = self.tables.entry(copied.table.to_owned()).or_insert_with(|| Table {
            bar: as_bars.then(|| new_bar(copied)),
            began_at: now,
            began_rows: copied.rows,
            logged_at: now,
            done: false,
        });
        let finished = copied.done && !table.done;
        table.done = copied.done;
        match &table.bar {
            Some(bar) => draw(bar, copied, finished),
            None if finished || now >= table.logged_at + LINE_INTERVAL => {
                table.logged_at = now;
                let rows = copied.rows.saturating_sub(table.began_rows);
                log(copied, rate(rows, now - table.began_at));
            }
            None => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        for bar in self.tables.values().filter_map(|table| table.bar.as_ref()) {
            bar.abandon();
        }
    }
}

/// Whether bars can be drawn.
pub(super) fn on_terminal(format: LogFormat) -> bool {
    format == LogFormat::Text && std::io::stderr().is_terminal()
}

fn new_bar(copied: Copied<'_>) -> ProgressBar {
    let bar = match copied.rows_estimated {
        Some(rows) => ProgressBar::new(rows),
        None => ProgressBar::no_length(),
    };
    let template = match copied.rows_estimated {
        Some(_) => "{prefix:30!} {bar:24} {human_pos:>13} rows {per_sec:>14} {eta:>4} left",
        None => "{prefix:30!} {spinner:24} {human_pos:>13} rows {per_sec:>14}",
    };
    // The templates are constants that the tests draw.
    let style = ProgressStyle::with_template(template);
    let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(copied.table.to_owned());
    bar.set_position(copied.rows);
    bar.reset_eta();
    logging::bars().add(bar)
}

fn draw(bar: &ProgressBar, copied: Copied<'_>, finished: bool) {
    if let Some(rows) = copied.rows_estimated {
        // An estimate that was too low must not show more than everything.
        bar.set_length(if copied.done { copied.rows } else { rows.max(copied.rows) });
    }
    bar.set_position(copied.rows);
    if finished {
        bar.abandon();
    }
}

fn log(copied: Copied<'_>, rows_per_second: u64) {
    let Copied { table, rows, rows_estimated, done } = copied;
    if done {
        tracing::info!(table, rows, rows_per_second, "copied");
        return;
    }
    let seconds_left = seconds_left(rows, rows_estimated, rows_per_second);
    tracing::info!(table, rows, rows_estimated, rows_per_second, seconds_left, "copying");
}

fn rate(rows: u64, elapsed: Duration) -> u64 {
    let milliseconds = elapsed.as_millis().max(1);
    u64::try_from(u128::from(rows) * 1000 / milliseconds).unwrap_or(u64::MAX)
}

fn seconds_left(rows: u64, rows_estimated: Option<u64>, rows_per_second: u64) -> Option<u64> {
    rows_estimated?.saturating_sub(rows).checked_div(rows_per_second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{BackfillProgress, Status, TableProgress};

    #[test]
    fn rate_and_time_left_are_of_what_was_copied_here() {
        assert_eq!(rate(3000, Duration::from_secs(2)), 1500);
        assert_eq!(rate(1, Duration::ZERO), 1000);
        assert_eq!(seconds_left(100, Some(1100), 50), Some(20));
        assert_eq!(seconds_left(1200, Some(1100), 50), Some(0), "the estimate was too low");
        assert_eq!(seconds_left(0, Some(1100), 0), None);
        assert_eq!(seconds_left(0, None, 50), None);
    }

    #[tokio::test]
    async fn a_bar_shows_rows_and_never_more_than_everything() {
        let copied = |rows, done| Copied { table: "a.b", rows, rows_estimated: Some(100), done };
        let mut progress = Progress { as_bars: true, tables: BTreeMap::new() };
        progress.show(copied(10, false));
        let bar = progress.tables["a.b"].bar.clone().unwrap();
        assert_eq!((bar.position(), bar.length()), (10, Some(100)));
        progress.show(copied(120, false));
        assert_eq!((bar.position(), bar.length()), (120, Some(120)));
        progress.show(copied(80, true));
        assert_eq!((bar.position(), bar.length(), bar.is_finished()), (80, Some(80), true));
    }

    #[tokio::test]
    async fn a_table_that_was_complete_from_the_start_is_not_shown() {
        let table =
            |state| TableProgress { state, rows_copied: 5, rows_estimated: None, error: None };
        let status = Status::new("main");
        status.update(|snapshot| {
            snapshot.tables.insert("live".into(), table(TableState::Live));
            snapshot.tables.insert("copying".into(), table(TableState::Copying));
            let (table, rows, rows_estimated, done) = ("again".into(), 1, None, true);
            snapshot.backfills.push(BackfillProgress { table, rows, rows_estimated, done });
        });
        let mut progress = Progress { as_bars: false, tables: BTreeMap::new() };
        progress.show_all(&status.snapshot());
        let shown = |progress: &Progress| {
            let one = |(name, table): (&String, &Table)| (name.clone(), table.done);
            progress.tables.iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(shown(&progress), [("again".into(), true), ("copying".into(), false)]);
        status.update(|snapshot| {
            snapshot.tables.insert("copying".into(), table(TableState::Live));
        });
        progress.show_all(&status.snapshot());
        assert_eq!(shown(&progress), [("again".into(), true), ("copying".into(), true)]);
    }
}
