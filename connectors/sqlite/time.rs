//! This machine's time, as SQLite's records show it to people.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::change::Timestamp;

/// This machine's time; only ever shown to people.
pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(since.as_micros() as i64)
}
