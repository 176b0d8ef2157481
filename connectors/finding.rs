//! What `check` found, and how the connectors say it.

use crate::error::{Code, Error};

/// One thing that `check` looked at.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What was looked at, a few words.
    pub subject: String,
    /// How it is.
    pub level: Level,
    /// The stable name of what is wrong, as far as it has one.
    pub code: Option<Code>,
    /// What was found.
    pub message: String,
    /// The exact SQL or command that mends it; empty when nothing is wrong.
    pub remedy: String,
}

impl Finding {
    /// The finding as the one line that stops a pipeline. Many messages name their subject, and
    /// end with their remedy, themselves; neither is said twice.
    #[must_use]
    pub fn into_error(self) -> Error {
        let Finding { subject, message, remedy, code, .. } = self;
        let mut line = match message.contains(&subject) {
            true => message,
            false => format!("{subject}: {message}"),
        };
        let remedy = remedy.trim_end_matches(';');
        if !line.contains(remedy) {
            line += &format!("; to mend it: {remedy}");
        }
        Error::stop(code.unwrap_or(Code::SourceSettings), line)
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Ready.
    Ok,
    /// Replication works, but somebody should know.
    Warning,
    /// Replication cannot start.
    Failure,
}

/// All is well.
#[must_use]
pub fn ok(subject: &str, message: &str) -> Finding {
    finding(Level::Ok, subject, message, "")
}

/// Replication works, but somebody should know.
#[must_use]
pub fn warning(subject: &str, message: &str, remedy: &str) -> Finding {
    finding(Level::Warning, subject, message, remedy)
}

/// Replication cannot start.
#[must_use]
pub fn failure(subject: &str, message: &str, remedy: &str) -> Finding {
    finding(Level::Failure, subject, message, remedy)
}

/// The finding, under another code than that of a setting.
#[must_use]
pub fn coded(code: Code, finding: Finding) -> Finding {
    Finding { code: Some(code), ..finding }
}

fn finding(level: Level, subject: &str, message: &str, remedy: &str) -> Finding {
    let code = (level != Level::Ok).then_some(Code::SourceSettings);
    Finding { subject: subject.into(), level, code, message: message.into(), remedy: remedy.into() }
}
