//! How far the next call of a bulk read goes, from where the copy of the slot is; and what the server's
//! answers mean. Pure; used by `bulk_reader.rs` and `bulk_ahead.rs`.
//!
//! Surprise: the server decodes a whole call before it sends the first byte, and begins each time
//! where the slot's log begins (`restart_lsn`), which moves only at records that the server writes
//! every 15 seconds, and not past a transaction that is open. So a call takes as much new log as it
//! has to read again, which makes large transactions cost no more than twice; and where much would
//! be read again for little, streaming is the cheaper way.

use super::answers::Rows;
use super::connect::ServerError;
use super::gap;
use super::lsn::Lsn;
use crate::error::{Code, Error, Result};

/// What is being done, for errors.
pub const READING_IN_BULK: &str = "read the log in bulk";
/// As while streaming; and a slot whose log is gone says so only when it is read.
const GAPS: [(&str, Code); 2] = [gap::WHILE_READING[0], gap::AT_THE_SLOT[1]];

/// How much log a call takes, in multiples of what a pipeline must be behind. The first one is small,
/// so that the target has something to do while the server decodes the second one; and none is
/// so large that the target runs out of work meanwhile.
pub const FIRST_CALL: u64 = 2;
/// As `FIRST_CALL`, for those that follow.
pub const CALL: u64 = 4;
/// How much it takes at most when it has much to read again.
const CALL_MAX: u64 = 64;
/// How much log a call may read again, in multiples of what it reads for the first time. To decode
/// it once more costs the server about an eighth of what streaming it costs (measured: 1.4 and 12 CPU
/// seconds a GiB).
const AGAIN_MAX: u64 = 4;
/// Calls end at a multiple of this, the largest page that a log may have. A record that begins
/// before the end of a page ends there or later, so a call decodes the records that begin before
/// its end, and no other.
const PAGE: u64 = 64 << 10;

/// Where a slot is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Every commit before it was given out.
    pub confirmed: Lsn,
    /// From where the server reads the log again.
    pub restart: Lsn,
    /// The end of the log.
    pub end: Lsn,
}

impl Place {
    /// Up to where the next call reads; `None` if there should be none.
    pub fn next_call(&self, above: u64, least: u64) -> Option<Lsn> {
        let new = self.end.0.saturating_sub(self.confirmed.0);
        let again = self.confirmed.0.saturating_sub(self.restart.0);
        let call = again.clamp(least * above, CALL_MAX * above);
        // A rest is taken along rather than left for a call of its own.
        let call = if new < 2 * call { new } else { call };
        let upto = (self.confirmed.0 + call).next_multiple_of(PAGE).min(self.end.0);
        (new >= above && again <= AGAIN_MAX * call).then_some(Lsn(upto))
    }
}

/// What a server answered while it is read in bulk.
///
/// # Errors
/// What its error means.
pub fn answer(answer: std::result::Result<Rows, ServerError>) -> Result<Rows> {
    answer.map_err(|error| failure(&error))
}

/// What an error means that ends a bulk read.
pub fn failure(error: &ServerError) -> Error {
    gap::failure(READING_IN_BULK, error, &GAPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_takes_a_bounded_piece_but_at_least_what_is_read_again() {
        let check = |(restart, confirmed, end), expected: Option<u64>| {
            let [restart, confirmed, end] =
                [restart, confirmed, end].map(|pages| Lsn(pages * PAGE));
            let next = Place { restart, confirmed, end }.next_call(10 * PAGE, 4);
            assert_eq!(
                next,
                expected.map(|pages| Lsn(pages * PAGE)),
                "{restart} {confirmed} {end}"
            );
        };
        check((1000, 1000, 1009), None);
        check((1000, 1000, 1010), Some(1010));
        check((1000, 1000, 1079), Some(1079));
        check((1000, 1000, 1080), Some(1040));
        check((900, 1000, 1199), Some(1199));
        check((900, 1000, 1200), Some(1100));
        check((0, 1000, 9000), Some(1640));
        check((0, 1000, 1249), None);
        check((0, 1000, 1250), Some(1250));
        check((0, 2560, 9000), Some(3200));
        check((0, 2561, 9000), None);
    }

    #[test]
    fn a_call_ends_with_a_page_or_with_the_log() {
        let upto = |confirmed, end| {
            let place = Place { restart: Lsn(confirmed), confirmed: Lsn(confirmed), end: Lsn(end) };
            place.next_call(100, 4).map(|upto| upto.0)
        };
        assert_eq!(upto(PAGE + 1, 9 * PAGE), Some(2 * PAGE));
        assert_eq!(upto(PAGE - 399, 9 * PAGE), Some(2 * PAGE));
        assert_eq!(upto(PAGE - 400, 9 * PAGE), Some(PAGE));
        assert_eq!(upto(PAGE + 1, PAGE + 5000), Some(PAGE + 5000));
    }
}
