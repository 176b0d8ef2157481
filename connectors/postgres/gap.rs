//! Which errors of the server mean that the log has a gap for us: a slot or a publication is gone,
//! or log that the slot needs. Used by both ways to read the log, `walsender.rs` and `bulk.rs`.
//!
//! Surprise: one of them is no error. From version 18 on the server only warns of a publication
//! that is missing, and leaves its changes out.

use super::connect::{self, ServerError};
use crate::error::{Code, Error, Result};

/// What to type when the log has a gap.
pub const RESYNC: &str = "to accept the gap and copy everything again run `driftless run --resync`";
/// What is being done while messages come.
pub const READING: &str = "read the log";
/// What SQLSTATEs mean when a slot is opened.
pub const AT_THE_SLOT: [(&str, Code); 2] =
    [("42704", Code::SlotMissing), ("55000", Code::SlotLost)];
/// What they mean when messages come.
pub const WHILE_READING: [(&str, Code); 1] = [("42704", Code::Publication)];

/// A server has found a defect in itself.
const DEFECT: &str = "XX000";
/// When it does while it reads its log. Seen with version 15, once in fifty slots that were made
/// while tables were being truncated.
const UNREADABLE: &str = "the server cannot read its own log here, as can happen when the slot was \
     made while tables were truncated or rewritten; if a restart does not help";

/// What an error of the server means where these SQLSTATEs mean a gap.
#[must_use]
pub fn failure(doing: &str, error: &ServerError, gaps: &[(&str, Code)]) -> Error {
    match gaps.iter().find(|(sqlstate, _)| *sqlstate == error.sqlstate) {
        Some((_, code)) => gap(doing, *code, error),
        None if error.sqlstate == DEFECT => {
            let message = format!("{doing}: {}; {UNREADABLE}: {RESYNC}", error.text());
            Error::stop(Code::LogUnreadable, message)
        }
        None => connect::server_error(doing, error),
    }
}

/// Looks at a notice that came among the messages.
///
/// # Errors
/// `publication` if it is the one that a publication is missing.
pub fn unless_noticed(notice: &ServerError) -> Result<()> {
    match notice.sqlstate.as_str() {
        "55000" => Err(gap(READING, Code::Publication, notice)),
        _ => Ok(()),
    }
}

/// A gap, which only a person can accept.
fn gap(doing: &str, code: Code, error: &ServerError) -> Error {
    Error::stop(code, format!("{doing}: {}; {RESYNC}", error.text()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_its_server_cannot_read_is_left_behind_by_a_new_slot() {
        let message = "could not map filenode \"base/5/16642\" to relation OID";
        let error =
            ServerError { sqlstate: DEFECT.into(), message: message.into(), objects: Vec::new() };
        let failed = failure(READING, &error, &WHILE_READING);
        assert_eq!((failed.is_transient(), failed.code), (false, Code::LogUnreadable));
        assert!(failed.message.contains(message) && failed.message.ends_with("--resync`"));
    }
}
