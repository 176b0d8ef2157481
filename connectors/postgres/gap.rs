//! Which errors of the server mean that the log has a gap for us: a slot or a publication is gone,
//! or log that the slot needs. Used by both ways to read the log, `walsender.rs` and `bulk.rs`.
//!
//! Surprise: one of them is no error. From version 18 on the server only warns of a publication
//! that is missing, and leaves its changes out.

use super::connect::{self, ServerError};
use super::subscribe::RESYNC;
use crate::error::{Code, Error, Result};

/// What is being done while messages come.
pub const READING: &str = "read the log";
/// What SQLSTATEs mean when a slot is opened.
pub const AT_THE_SLOT: [(&str, Code); 2] =
    [("42704", Code::SlotMissing), ("55000", Code::SlotLost)];
/// What they mean when messages come.
pub const WHILE_READING: [(&str, Code); 1] = [("42704", Code::Publication)];

/// What an error of the server means where these SQLSTATEs mean a gap.
#[must_use]
pub fn failure(doing: &str, error: &ServerError, gaps: &[(&str, Code)]) -> Error {
    match gaps.iter().find(|(sqlstate, _)| *sqlstate == error.sqlstate) {
        Some((_, code)) => gap(doing, *code, error),
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
