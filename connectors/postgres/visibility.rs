//! What a snapshot of the source saw of the commits that the log told us: the pure half of the
//! chunk rule, which `chunk.rs` states and proves. Written by `stream.rs`, read by `chunk.rs`.
//!
//! Surprise: the log names transactions by 32 bits and a snapshot by 64, so the upper half is
//! taken from the snapshot.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::lsn::Lsn;
use crate::error::{Code, Error, Result};

/// `pg_snapshot` of the server: which transactions a read sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Every transaction below it is over and, if it committed, seen.
    pub xmin: u64,
    /// No transaction from it on is seen.
    pub xmax: u64,
    /// Those in between that were running, sorted.
    running: Vec<u64>,
}

impl Snapshot {
    /// Reads `xmin:xmax:running,…`.
    ///
    /// # Errors
    /// `protocol` if it is written otherwise.
    pub fn parse(text: &str) -> Result<Snapshot> {
        let wrong = || Error::stop(Code::Protocol, "the source's snapshot cannot be read");
        let mut parts = text.splitn(3, ':');
        let mut part = || parts.next().ok_or_else(wrong);
        let (xmin, xmax, running) = (part()?, part()?, part()?);
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
        let running = running.split(',').filter(|text| !text.is_empty());
        let mut running = running.map(number).collect::<Result<Vec<_>>>()?;
        running.sort_unstable();
        Ok(Snapshot { xmin: number(xmin)?, xmax: number(xmax)?, running })
    }

    /// Whether what this committed transaction did is seen.
    #[must_use]
    pub fn sees(&self, xid: u32) -> bool {
        let xid = self.widen(xid);
        xid < self.xmin || (xid < self.xmax && self.running.binary_search(&xid).is_err())
    }

    fn is_below(&self, xid: u32) -> bool {
        self.widen(xid) < self.xmin
    }

    /// The 64 bits of a transaction id: those nearest to the snapshot, within half the circle.
    #[must_use]
    pub fn widen(&self, xid: u32) -> u64 {
        let behind = (self.xmax as u32).wrapping_sub(xid).cast_signed();
        self.xmax.saturating_add_signed(-i64::from(behind))
    }
}

/// The commits that the log told us lately, shared by the stream and the readers of a source.
#[derive(Debug, Default)]
pub struct CommitLog(Mutex<Commits>);

#[derive(Debug, Default)]
struct Commits {
    /// Counts the streams, so that a reader notices a new one.
    stream: u64,
    epoch: u32,
    /// The last commit that was decoded to its end, or the end of the log if that is later.
    decoded: Lsn,
    /// Commits of this stream, in the order of the log, as of their beginning. Transactions from
    /// before it have ids below `barrier`.
    commits: Vec<(u32, Lsn)>,
    /// `None` while no stream is open.
    barrier: Option<u64>,
    prune_at: usize,
}

/// Where the log was before a snapshot was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    stream: u64,
    decoded: Lsn,
    /// The epoch of the stream's versions.
    pub epoch: u32,
}

// A waiting reader checks soon enough if the list is pruned at this length.
const COMMITS_MAX: usize = 100_000;

impl CommitLog {
    /// Forgets everything: a stream is being opened after this commit.
    pub fn opening(&self, epoch: u32, after: Lsn) {
        let mut commits = self.lock();
        let stream = commits.stream + 1;
        *commits =
            Commits { stream, epoch, decoded: after, prune_at: COMMITS_MAX, ..Commits::default() };
    }

    /// The stream is open, and `barrier` was got after that: a transaction id above all that had
    /// been given out.
    pub fn opened(&self, barrier: u64) {
        self.lock().barrier = Some(barrier);
    }

    /// A transaction begins in the log.
    pub fn begin(&self, xid: u32, commit: Lsn) {
        self.lock().commits.push((xid, commit));
    }

    /// Whether it is time to `prune`.
    pub fn is_full(&self) -> bool {
        let commits = self.lock();
        commits.commits.len() >= commits.prune_at
    }

    /// Everything up to here has been decoded.
    pub fn reached(&self, log: Lsn) {
        let mut commits = self.lock();
        commits.decoded = commits.decoded.max(log);
    }

    /// Forgets what every snapshot from now on sees.
    pub fn prune(&self, now: &Snapshot) {
        let mut commits = self.lock();
        commits.forget(now);
        // A transaction that runs for hours must not make this quadratic.
        commits.prune_at = COMMITS_MAX.max(2 * commits.commits.len());
    }

    /// Where the log is; to be asked before the snapshot is taken. `None` while no stream is open.
    #[must_use]
    pub fn before_snapshot(&self) -> Option<Before> {
        let commits = self.lock();
        commits.barrier.map(|_| Before {
            stream: commits.stream,
            decoded: commits.decoded,
            epoch: commits.epoch,
        })
    }

    /// The greatest log place at or below which the snapshot sees everything; `None` if the
    /// snapshot is too old to tell or another stream was opened meanwhile.
    #[must_use]
    pub fn low(&self, before: Before, snapshot: &Snapshot) -> Option<Lsn> {
        let mut commits = self.lock();
        if !commits.knows(before, snapshot) {
            return None;
        }
        let unseen = commits.commits.iter().find(|(xid, _)| !snapshot.sees(*xid));
        let low = match unseen {
            Some((_, commit)) => before.decoded.min(Lsn(commit.0.saturating_sub(1))),
            None => before.decoded,
        };
        commits.forget(snapshot);
        Some(low)
    }

    /// Whether the snapshot sees every commit up to and including `log`.
    #[must_use]
    pub fn sees(&self, before: Before, snapshot: &Snapshot, log: Lsn) -> bool {
        let commits = self.lock();
        let mut until = commits.commits.iter().take_while(|(_, commit)| *commit <= log);
        commits.knows(before, snapshot) && until.all(|(xid, _)| snapshot.sees(*xid))
    }

    // A reader that panicked has not left a half-made list: every change above is one step.
    fn lock(&self) -> MutexGuard<'_, Commits> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Commits {
    fn knows(&self, before: Before, snapshot: &Snapshot) -> bool {
        before.stream == self.stream && self.barrier.is_some_and(|xid| snapshot.xmin >= xid)
    }

    fn forget(&mut self, snapshot: &Snapshot) {
        self.commits.retain(|(xid, _)| !snapshot.is_below(*xid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        Snapshot::parse(text).unwrap()
    }

    #[test]
    fn a_snapshot_sees_what_was_over_when_it_was_taken() {
        let seen = snapshot("100:105:100,103");
        let visible: Vec<u32> = (98..107).filter(|&xid| seen.sees(xid)).collect();
        assert_eq!(visible, [98, 99, 101, 102, 104]);
        assert!(snapshot("5:5:").sees(4));
        for text in ["", "1:2", "a:2:", "1:2:x", "1:2:3:4"] {
            assert!(Snapshot::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn transaction_ids_that_wrapped_are_compared_by_all_their_bits() {
        let after_wrap = snapshot("4294967290:4294967300:4294967295,4294967298");
        assert!(after_wrap.sees(u32::MAX - 6), "4294967289");
        assert!(!after_wrap.sees(u32::MAX), "4294967295 runs");
        assert!(after_wrap.sees(1), "4294967297");
        assert!(!after_wrap.sees(2), "4294967298 runs");
        assert!(!after_wrap.sees(4), "4294967300 has not begun");
    }

    /// A log with commits (10, 0x100), (12, 0x200), (11, 0x300), all decoded.
    fn log() -> CommitLog {
        let log = CommitLog::default();
        log.opening(3, Lsn(0x80));
        for (xid, commit) in [(10, 0x100), (12, 0x200), (11, 0x300)] {
            log.begin(xid, Lsn(commit));
            log.reached(Lsn(commit));
        }
        log.opened(10);
        log
    }

    fn check_low(text: &str, expected: Option<u64>) {
        let log = log();
        let before = log.before_snapshot().unwrap();
        assert_eq!(log.low(before, &snapshot(text)), expected.map(Lsn), "{text}");
    }

    #[test]
    fn a_chunk_claims_what_lies_before_the_first_commit_it_did_not_see() {
        check_low("13:13:", Some(0x300));
        check_low("11:13:11", Some(0x2ff));
        check_low("12:13:12", Some(0x1ff));
        check_low("10:13:10,11,12", Some(0xff));
        check_low("9:13:9", None);
    }

    #[test]
    fn a_reread_waits_for_its_own_transaction_while_it_is_delivered() {
        let log = log();
        log.begin(14, Lsn(0x400));
        let before = log.before_snapshot().unwrap();
        assert!(log.sees(before, &snapshot("14:15:14"), Lsn(0x300)));
        assert!(!log.sees(before, &snapshot("14:15:14"), Lsn(0x400)));
        assert!(log.sees(before, &snapshot("15:15:"), Lsn(0x400)));
        assert!(!log.sees(before, &snapshot("9:15:9"), Lsn(0x100)), "before the barrier");
    }

    #[test]
    fn a_snapshot_that_spans_two_streams_claims_nothing() {
        let log = log();
        let before = log.before_snapshot().unwrap();
        log.opening(3, Lsn(0x300));
        assert_eq!(log.before_snapshot(), None);
        log.opened(13);
        assert_eq!(log.low(before, &snapshot("20:20:")), None);
        assert_eq!(log.low(log.before_snapshot().unwrap(), &snapshot("20:20:")), Some(Lsn(0x300)));
    }
}
