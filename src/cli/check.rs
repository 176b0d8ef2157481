//! `driftless check`: is everything ready? Asks the source, the target and the state directory,
//! and prints each finding with the SQL or the command that mends it.
//!
//! Surprise: a server that cannot be reached is a finding like any other, so that one broken end
//! does not hide what is wrong with the other.

use std::fmt;
use std::fs::DirBuilder;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use connectors::error::{Code, Error, Result};
use connectors::schema::{TablePatterns, TableSchema};
use connectors::{Finding, Level, Source, Target};
use serde::Serialize;

use super::connect;
use crate::config::Settings;

/// With less free space than this, a burst of spooled transactions may fill the disk.
const FREE_BYTES_WARN: u64 = 1 << 30;

/// What was found. Its fields are the schema of `check --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether nothing prevents replication.
    pub ready: bool,
    /// Everything that was looked at, by place.
    pub findings: Vec<Placed>,
}

/// A finding and where it is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Placed {
    /// `source`, `target` or `state`.
    pub place: &'static str,
    /// What was found there.
    #[serde(flatten)]
    pub finding: Finding,
}

/// Checks and prints.
///
/// # Errors
/// Only if the report cannot be printed.
pub async fn run(settings: &Settings, json: bool) -> Result<ExitCode> {
    let target = connect::target(settings).await;
    let report = check(settings, connect::source(settings), target).await;
    let failed = |error: &dyn fmt::Display| {
        Error::stop(Code::Internal, format!("print the report: {error}"))
    };
    let text = match json {
        true => serde_json::to_string_pretty(&report).map_err(|error| failed(&error))? + "\n",
        false => report.to_string(),
    };
    io::stdout().write_all(text.as_bytes()).map_err(|error| failed(&error))?;
    Ok(if report.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Looks at everything that `settings` name, and changes nothing.
async fn check(
    settings: &Settings,
    source: Result<Arc<dyn Source>>,
    target: Result<Box<dyn Target>>,
) -> Report {
    let (of_source, tables) = check_source(source, &settings.tables).await;
    let of_target = check_target(target, &tables).await;
    let of_state = check_state(&settings.state_dir, &settings.name);
    Report::new([("source", of_source), ("target", of_target), ("state", of_state)])
}

impl Report {
    fn new(places: [(&'static str, Vec<Finding>); 3]) -> Report {
        let placed = |(place, findings): (_, Vec<Finding>)| {
            findings.into_iter().map(move |finding| Placed { place, finding })
        };
        let findings: Vec<Placed> = places.into_iter().flat_map(placed).collect();
        let ready = findings.iter().all(|placed| placed.finding.level != Level::Failure);
        Report { ready, findings }
    }
}

async fn check_source(
    source: Result<Arc<dyn Source>>,
    patterns: &TablePatterns,
) -> (Vec<Finding>, Vec<Arc<TableSchema>>) {
    let source = match source {
        Ok(source) => source,
        Err(error) => return (vec![failure("url", &error)], Vec::new()),
    };
    let mut findings = match source.check(patterns).await {
        Ok(findings) => findings,
        Err(error) => return (vec![failure("connection", &error)], Vec::new()),
    };
    match source.tables(patterns).await {
        Ok(tables) => {
            let count = tables.len();
            let plural = if count == 1 { "" } else { "s" };
            findings.push(ok("tables", format!("{count} table{plural} to replicate")));
            (findings, tables)
        }
        // `check` has most likely said so already, with the SQL that mends it.
        Err(_) if findings.iter().any(|finding| finding.level == Level::Failure) => {
            (findings, Vec::new())
        }
        Err(error) => {
            findings.push(failure("tables", &error));
            (findings, Vec::new())
        }
    }
}

async fn check_target(
    target: Result<Box<dyn Target>>,
    tables: &[Arc<TableSchema>],
) -> Vec<Finding> {
    let mut target = match target {
        Ok(target) => target,
        Err(error) => return vec![failure("connection", &error)],
    };
    match target.check(tables).await {
        Ok(findings) => findings,
        Err(error) => vec![failure("connection", &error)],
    }
}

fn check_state(dir: &Path, pipeline: &str) -> Vec<Finding> {
    let shown = dir.display();
    let directory = match state::read(dir, pipeline) {
        Ok(Some(_)) => ok("directory", format!("{shown} holds this pipeline's state")),
        Ok(None) => match can_create(dir) {
            Ok(()) => ok("directory", format!("{shown} will be used")),
            Err(error) => Finding {
                subject: "directory".into(),
                level: Level::Failure,
                code: Some(Code::StateUnsafe),
                message: format!("{shown} cannot be written: {error}"),
                remedy: format!("mkdir -p -m 700 {shown}"),
            },
        },
        Err(error) if error.kind == state::ErrorKind::InUse => {
            ok("directory", format!("{shown} is in use: this pipeline is running"))
        }
        // `open` moves it aside and rebuilds it from the target, so nothing is lost.
        Err(error) if error.kind == state::ErrorKind::Corrupt => Finding {
            subject: "directory".into(),
            level: Level::Warning,
            code: None,
            message: format!("{}; the next run rebuilds it from the target", error.message),
            remedy: "driftless run".into(),
        },
        Err(error) => Finding {
            subject: "directory".into(),
            level: Level::Failure,
            code: Some(Code::StateDisk),
            message: error.message,
            remedy: String::new(),
        },
    };
    let mut findings = vec![directory];
    findings.extend(check_free_space(dir));
    findings
}

/// `None` if the system does not tell; that alone is no reason to worry anybody.
fn check_free_space(dir: &Path) -> Option<Finding> {
    let nearest = nearest_existing(dir);
    let disk = rustix::fs::statvfs(&nearest).ok()?;
    let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
    let free = format!("{:.1} GiB free for state and spool", free_bytes as f64 / (1 << 30) as f64);
    if free_bytes >= FREE_BYTES_WARN {
        return Some(ok("disk", free));
    }
    Some(Finding {
        subject: "disk".into(),
        level: Level::Warning,
        code: None,
        message: format!("{free}; a large transaction of the source may not fit"),
        remedy: "free some space, or set state.dir to another disk".into(),
    })
}

/// Makes a directory where the state would be, and removes it.
fn can_create(dir: &Path) -> io::Result<()> {
    let probe = nearest_existing(dir).join(format!(".driftless-check-{}", std::process::id()));
    DirBuilder::new().mode(0o700).create(&probe)?;
    std::fs::remove_dir(&probe)
}

fn nearest_existing(dir: &Path) -> PathBuf {
    let here = || PathBuf::from(".");
    let existing = dir.ancestors().find(|ancestor| ancestor.is_dir()).map(Path::to_path_buf);
    // The last ancestor of a relative path is empty, and means the current directory.
    existing.filter(|path| !path.as_os_str().is_empty()).unwrap_or_else(here)
}

fn ok(subject: &str, message: String) -> Finding {
    Finding { subject: subject.into(), level: Level::Ok, code: None, message, remedy: String::new() }
}

fn failure(subject: &str, error: &Error) -> Finding {
    Finding {
        subject: subject.into(),
        level: Level::Failure,
        code: Some(error.code),
        message: error.to_string(),
        remedy: String::new(),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widest = |text: fn(&Placed) -> usize| self.findings.iter().map(text).max();
        let width = widest(|placed| placed.finding.subject.chars().count()).unwrap_or(0);
        for Placed { place, finding } in &self.findings {
            let level = word(finding.level);
            let (subject, message) = (&finding.subject, &finding.message);
            writeln!(f, "{level:<7}  {place}  {subject:<width$}  {message}")?;
            for line in finding.remedy.lines() {
                writeln!(f, "           {line}")?;
            }
        }
        let count = |level| self.findings.iter().filter(|p| p.finding.level == level).count();
        match (self.ready, count(Level::Failure), count(Level::Warning)) {
            (true, _, 0) => writeln!(f, "ready"),
            (true, _, warnings) => writeln!(f, "ready, {warnings} to know of"),
            (false, failures, _) => writeln!(f, "not ready: {failures} to mend"),
        }
    }
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Warning => "warning",
        Level::Failure => "FAILURE",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(subject: &str, level: Level, remedy: &str) -> Finding {
        let message = format!("{subject} was looked at");
        Finding { subject: subject.into(), level, code: None, message, remedy: remedy.into() }
    }

    fn report(of_target: Vec<Finding>) -> Report {
        let of_source = vec![finding("wal_level", Level::Ok, "")];
        Report::new([("source", of_source), ("target", of_target), ("state", Vec::new())])
    }

    #[test]
    fn findings_are_aligned_and_the_remedy_stands_below() {
        let report = report(vec![finding("grant", Level::Failure, "GRANT a;\nGRANT b;")]);
        let text = "ok       source  wal_level  wal_level was looked at\n\
                    FAILURE  target  grant      grant was looked at\n\
                    \x20          GRANT a;\n\
                    \x20          GRANT b;\n\
                    not ready: 1 to mend\n";
        assert_eq!(report.to_string(), text);
    }

    #[test]
    fn a_warning_does_not_prevent_replication() {
        let report = report(vec![finding("version", Level::Warning, "")]);
        assert!(report.ready);
        assert!(report.to_string().ends_with("\nready, 1 to know of\n"));
    }

    #[test]
    fn the_report_has_its_documented_json() {
        let report = report(vec![finding("grant", Level::Failure, "GRANT a;")]);
        let expected = serde_json::json!({"ready": false, "findings": [
            {"place": "source", "subject": "wal_level", "level": "ok",
             "message": "wal_level was looked at", "remedy": ""},
            {"place": "target", "subject": "grant", "level": "failure",
             "message": "grant was looked at", "remedy": "GRANT a;"},
        ]});
        assert_eq!(serde_json::to_value(&report).unwrap(), expected);
    }

    #[tokio::test]
    async fn an_unreachable_source_does_not_hide_what_is_wrong_elsewhere() {
        let unreachable =
            || Error::transient(Code::Unreachable, "connect to db.example: connection refused");
        let patterns = TablePatterns::parse(&["public.*"]).unwrap();
        let (of_source, tables) = check_source(Err(unreachable()), &patterns).await;
        let report = Report::new([
            ("source", of_source),
            ("target", check_target(Err(unreachable()), &tables).await),
            ("state", Vec::new()),
        ]);
        let levels: Vec<(&str, Level)> =
            report.findings.iter().map(|placed| (placed.place, placed.finding.level)).collect();
        assert_eq!(levels, [("source", Level::Failure), ("target", Level::Failure)]);
        assert!(!report.ready);
    }

    #[test]
    fn a_state_directory_that_is_not_there_yet_is_left_that_way() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("a/b");
        let findings = check_state(&dir, "shop");
        assert_eq!(findings[0].level, Level::Ok, "{}", findings[0].message);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_state_directory_in_use_is_ready() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state");
        let _open = state::open(&dir, "shop").unwrap();
        let findings = check_state(&dir, "shop");
        assert_eq!(findings[0].level, Level::Ok, "{}", findings[0].message);
        assert!(findings[0].message.ends_with("this pipeline is running"));
    }
}
