//! `driftless check`: is everything ready? Asks the source, the target and the state directory,
//! and prints each finding with the SQL or the command that mends it.
//!
//! Surprise: a server that cannot be reached is a finding like any other, so that one broken end
//! does not hide what is wrong with the other; at the end it is the command's error besides, so
//! that a script finds its code where it finds every other code.

use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use connectors::error::{Code, Error, Result};
use connectors::schema::{TablePatterns, TableSchema};
use connectors::{Finding, Level, Source, Target};
use serde::Serialize;

use super::{print, to_json};
use crate::config::Settings;
use crate::connect;
use crate::persist::state_error;

/// With less free space than this, the state directory may soon be unable to grow.
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
/// The first thing that could not even be looked at, after everything was printed.
pub async fn run(settings: &Settings, json: bool) -> Result<ExitCode> {
    let target = connect::target(settings).await;
    let checked = check(settings, connect::source(settings), target).await;
    print(&match json {
        true => to_json(&checked.report)?,
        false => checked.report.to_string(),
    })?;
    match checked.error {
        Some(error) => Err(error),
        None if checked.report.ready => Ok(ExitCode::SUCCESS),
        None => Ok(ExitCode::FAILURE),
    }
}

struct Checked {
    report: Report,
    error: Option<Error>,
}

/// Looks at everything that `settings` name, and changes nothing.
async fn check(
    settings: &Settings,
    source: Result<Arc<dyn Source>>,
    target: Result<Box<dyn Target>>,
) -> Checked {
    let mut findings = Findings::default();
    let tables = check_source(&mut findings, source, &settings.tables).await;
    check_target(&mut findings, target, &tables).await;
    let of_state = check_state(&settings.state_dir, &settings.name);
    findings.extend("state", of_state);
    let Findings { findings, error } = findings;
    let ready = findings.iter().all(|placed| placed.finding.level != Level::Failure);
    Checked { report: Report { ready, findings }, error }
}

/// What was found so far, and the first error.
#[derive(Default)]
struct Findings {
    findings: Vec<Placed>,
    error: Option<Error>,
}

impl Findings {
    fn extend(&mut self, place: &'static str, findings: impl IntoIterator<Item = Finding>) {
        let placed = findings.into_iter().map(|finding| Placed { place, finding });
        self.findings.extend(placed);
    }

    fn fail(&mut self, place: &'static str, subject: &str, error: Error) {
        let finding = Finding {
            subject: subject.into(),
            level: Level::Failure,
            code: Some(error.code),
            message: error.to_string(),
            remedy: String::new(),
        };
        self.extend(place, [finding]);
        self.error.get_or_insert(error);
    }

    fn any_failure(&self) -> bool {
        self.findings.iter().any(|placed| placed.finding.level == Level::Failure)
    }
}

/// Returns the tables to be replicated, as far as they are known.
async fn check_source(
    findings: &mut Findings,
    source: Result<Arc<dyn Source>>,
    patterns: &TablePatterns,
) -> Vec<Arc<TableSchema>> {
    const PLACE: &str = "source";
    let found = match &source {
        Ok(source) => source.check(patterns).await,
        Err(error) => Err(error.clone()),
    };
    match found {
        Ok(found) => findings.extend(PLACE, found),
        Err(error) => findings.fail(PLACE, "connection", error),
    }
    // What is wrong already has most likely to do with the tables, and says it better.
    let (Ok(source), false) = (source, findings.any_failure()) else { return Vec::new() };
    match source.tables(patterns).await {
        Ok(tables) => {
            let plural = if tables.len() == 1 { "" } else { "s" };
            let message = format!("{} table{plural} to replicate", tables.len());
            findings.extend(PLACE, [ok("tables", message)]);
            tables
        }
        Err(error) => {
            findings.fail(PLACE, "tables", error);
            Vec::new()
        }
    }
}

async fn check_target(
    findings: &mut Findings,
    target: Result<Box<dyn Target>>,
    tables: &[Arc<TableSchema>],
) {
    let found = match target {
        Ok(mut target) => target.check(tables).await,
        Err(error) => Err(error),
    };
    match found {
        Ok(found) => findings.extend("target", found),
        Err(error) => findings.fail("target", "connection", error),
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
            code: Some(state_error(&error).code),
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
    let free = format!("{:.1} GiB free for the state", free_bytes as f64 / (1 << 30) as f64);
    if free_bytes >= FREE_BYTES_WARN {
        return Some(ok("disk", free));
    }
    Some(Finding {
        subject: "disk".into(),
        level: Level::Warning,
        code: None,
        message: format!("{free}; the pipeline pauses when it is full"),
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
    Finding {
        subject: subject.into(),
        level: Level::Ok,
        code: None,
        message,
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
    use connectors::TargetOptions;
    use connectors::error::Code;
    use connectors::memory::{Faults, MemorySource, MemoryTarget, SourceServer, TargetServer};
    use connectors::schema::{Engine, TableName};

    use super::*;

    fn finding(subject: &str, level: Level, remedy: &str) -> Finding {
        let message = format!("{subject} was looked at");
        Finding { subject: subject.into(), level, code: None, message, remedy: remedy.into() }
    }

    fn report(of_target: Finding) -> Report {
        let mut findings = Findings::default();
        findings.extend("source", [finding("wal_level", Level::Ok, "")]);
        findings.extend("target", [of_target]);
        Report { ready: !findings.any_failure(), findings: findings.findings }
    }

    #[test]
    fn findings_are_aligned_and_the_remedy_stands_below() {
        let report = report(finding("grant", Level::Failure, "GRANT a;\nGRANT b;"));
        let text = "ok       source  wal_level  wal_level was looked at\n\
                    FAILURE  target  grant      grant was looked at\n\
                    \x20          GRANT a;\n\
                    \x20          GRANT b;\n\
                    not ready: 1 to mend\n";
        assert_eq!(report.to_string(), text);
    }

    #[test]
    fn a_warning_does_not_prevent_replication() {
        let report = report(finding("version", Level::Warning, ""));
        assert!(report.ready);
        assert!(report.to_string().ends_with("\nready, 1 to know of\n"));
    }

    #[test]
    fn the_report_has_its_documented_json() {
        let report = report(finding("grant", Level::Failure, "GRANT a;"));
        let expected = serde_json::json!({"ready": false, "findings": [
            {"place": "source", "subject": "wal_level", "level": "ok", "code": null,
             "message": "wal_level was looked at", "remedy": ""},
            {"place": "target", "subject": "grant", "level": "failure", "code": null,
             "message": "grant was looked at", "remedy": "GRANT a;"},
        ]});
        assert_eq!(serde_json::to_value(&report).unwrap(), expected);
    }

    #[tokio::test]
    async fn an_unreachable_source_does_not_hide_what_is_wrong_elsewhere() {
        let error = |of| Error::transient(Code::Unreachable, format!("connect to {of}: refused"));
        let patterns = TablePatterns::parse(&["public.*"], "public").unwrap();
        let mut findings = Findings::default();
        let tables = check_source(&mut findings, Err(error("db.example")), &patterns).await;
        check_target(&mut findings, Err(error("replica.example")), &tables).await;
        let found = |placed: &Placed| (placed.place, placed.finding.message.clone());
        let expected = [
            ("source", "connect to db.example: refused [unreachable]".to_owned()),
            ("target", "connect to replica.example: refused [unreachable]".to_owned()),
        ];
        assert!(findings.findings.iter().map(found).eq(expected));
        assert!(findings.any_failure());
        assert_eq!(findings.error, Some(error("db.example")));
    }

    #[tokio::test]
    async fn both_ends_in_order_are_ready() {
        let patterns = TablePatterns::parse(&["*.*"], "public").unwrap();
        let table = TableSchema {
            name: TableName::new("public", "items"),
            id: 1,
            engine: Engine::Memory,
            columns: Vec::new(),
            key: Vec::new(),
        };
        let source = MemorySource::new(&SourceServer::new([table]), Faults::none());
        let options = TargetOptions {
            pipeline: "shop".into(),
            soft_deletes: false,
            plain_schema: "public".into(),
        };
        let target = MemoryTarget::new(&TargetServer::new(), options, Faults::none());
        let mut findings = Findings::default();
        let tables = check_source(&mut findings, Ok(Arc::new(source)), &patterns).await;
        check_target(&mut findings, Ok(Box::new(target)), &tables).await;
        assert!(!findings.any_failure());
        let messages: Vec<&str> =
            findings.findings.iter().map(|placed| placed.finding.message.as_str()).collect();
        assert_eq!(
            messages,
            ["1 tables can be read", "1 table to replicate", "1 tables can be written"]
        );
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
