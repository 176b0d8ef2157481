//! How far the log has been read, for those who read rows beside it: the pure half of the chunk
//! rule, which `chunk.rs` states and proves. Written by `stream.rs`, read by `chunk.rs`.
//!
//! Surprise: that a transaction was read in the log does not mean that the server shows it. Both
//! servers write their log before they commit.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::binlog::Xid;
use super::bookmark::Gtids;
use super::ticks::Ticks;

/// How far the log has been read, shared by the stream and the readers of a source.
#[derive(Debug, Default)]
pub struct Progress {
    state: Mutex<State>,
    /// Orders what is read at one place of the log.
    pub ticks: Ticks,
}

#[derive(Debug, Default)]
struct State {
    /// Counts the streams, so that a reader notices a new one.
    stream: u64,
    /// `None` while no stream is open.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    epoch: u32,
    server: String,
    /// Everything at or below it has been read to its end.
    decoded: u64,
    /// The transaction that is being read, and its place; or else `decoded`.
    begun: u64,
    /// The transactions up to `begun`, where a MySQL can be asked by them.
    gtids: Option<Gtids>,
    /// Ends of XA transactions in the log, lately.
    xa: VecDeque<(u64, Xid)>,
    /// Where the server said last that nothing more is there, while it was waited for, and when.
    idle: Option<(u64, Instant)>,
}

/// Where the log was before a snapshot was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    stream: u64,
    /// The epoch of the stream's versions.
    pub epoch: u32,
    /// Who writes the log.
    pub server: String,
    /// Everything at or below it has been read to its end.
    pub decoded: u64,
    /// As `decoded`, with the transaction that is being read.
    pub begun: u64,
    /// The transactions up to `begun`; `None` where the server cannot be asked by them.
    pub gtids: Option<String>,
    /// XA transactions that ended in the log lately, and where.
    xa: Vec<(u64, Xid)>,
}

/// So many ends of XA transactions are remembered. A server has long shown what ended so long ago.
const XA_MAX: usize = 10_000;

impl Progress {
    /// Forgets everything: a stream is being opened.
    pub fn opening(&self) {
        let mut state = self.lock();
        state.stream += 1;
        state.open = None;
    }

    /// A stream is open from this place of this server's log. `gtids` are the transactions before
    /// it, if the server was asked for all others.
    pub fn opened(&self, epoch: u32, server: &str, log: u64, gtids: Option<Gtids>) {
        let server = server.to_owned();
        let (decoded, begun, xa) = (log, log, VecDeque::new());
        let idle = None;
        self.lock().open = Some(Open { epoch, server, decoded, begun, gtids, xa, idle });
    }

    /// A transaction begins in the log; `add` puts its GTID into the set.
    pub fn begun(&self, log: u64, add: impl FnOnce(&mut Gtids)) {
        if let Some(open) = &mut self.lock().open {
            open.begun = open.begun.max(log);
            open.gtids.as_mut().map(add);
        }
    }

    /// An XA transaction has ended in the log; known before it is delivered.
    pub fn xa_ended(&self, log: u64, xid: Xid) {
        // It is said again with each part.
        if let Some(open) = &mut self.lock().open
            && open.xa.back() != Some(&(log, xid.clone()))
        {
            open.xa.push_back((log, xid));
            if open.xa.len() > XA_MAX {
                open.xa.pop_front();
            }
        }
    }

    /// Everything up to here has been read.
    pub fn decoded(&self, log: u64) {
        if let Some(open) = &mut self.lock().open {
            open.decoded = open.decoded.max(log);
            open.begun = open.begun.max(log);
        }
    }

    /// The server was waited for, and said that nothing is there beyond this place.
    pub fn idle_at(&self, log: u64) {
        if let Some(open) = &mut self.lock().open {
            open.idle = Some((log, Instant::now()));
        }
    }

    /// Where and when `idle_at` was told last.
    #[must_use]
    pub fn idle(&self) -> Option<(u64, Instant)> {
        self.lock().open.as_ref()?.idle
    }

    /// Where the log is; to be asked before the snapshot is taken. `None` while no stream is open.
    #[must_use]
    pub fn before_snapshot(&self) -> Option<Before> {
        let state = self.lock();
        let open = state.open.as_ref()?;
        Some(Before {
            stream: state.stream,
            epoch: open.epoch,
            server: open.server.clone(),
            decoded: open.decoded,
            begun: open.begun,
            gtids: open.gtids.as_ref().map(ToString::to_string),
            xa: open.xa.iter().cloned().collect(),
        })
    }

    /// Whether the stream of `before` is still the one that is open.
    #[must_use]
    pub fn is_current(&self, before: &Before) -> bool {
        let state = self.lock();
        state.stream == before.stream && state.open.is_some()
    }

    /// None of the XA transactions that had ended up to `before` is prepared any more.
    pub fn forget_xa(&self, before: &Before) {
        if let Some(open) = &mut self.lock().open {
            open.xa.retain(|(log, _)| *log > before.begun);
        }
    }

    // A reader that panicked has not left a half-made state: every change above is one step.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Before {
    /// Whether it has to be asked which XA transactions are prepared.
    #[must_use]
    pub fn has_xa(&self) -> bool {
        !self.xa.is_empty()
    }

    /// The greatest place at or below which a snapshot shows everything that has been decoded: the
    /// snapshot was taken later, shows all up to `shown`, and before it `prepared` were the XA
    /// transactions that the server had not yet let go of.
    #[must_use]
    pub fn low(&self, shown: u64, prepared: &[Xid]) -> u64 {
        self.unless_hidden(self.decoded.min(shown), prepared)
    }

    /// Whether such a snapshot shows everything up to and including `log`.
    #[must_use]
    pub fn shows(&self, log: u64, shown: u64, prepared: &[Xid]) -> bool {
        log <= self.begun && log <= shown && self.unless_hidden(log, prepared) == log
    }

    /// `log`, or what lies before the first end of an XA transaction that may be hidden yet. Of
    /// several with one name only the last can be: a name is free when the server has let go.
    fn unless_hidden(&self, log: u64, prepared: &[Xid]) -> u64 {
        let end = |xid: &Xid| self.xa.iter().rev().find(|(_, ended)| ended == xid);
        let first = prepared.iter().filter_map(end).map(|(end, _)| *end).min();
        first.map_or(log, |end| log.min(end.saturating_sub(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mysql::bookmark::Flavor;

    fn xid(name: &str) -> Xid {
        Xid { format: 1, global: name.into(), branch: Vec::new() }
    }

    /// A log with transactions up to 300, one of them the end of an XA transaction, and one that
    /// is being read at 400.
    fn before() -> Before {
        let progress = Progress::default();
        progress.opening();
        progress.opened(3, "s", 100, None);
        progress.decoded(200);
        progress.xa_ended(150, xid("a"));
        progress.xa_ended(250, xid("a"));
        progress.decoded(300);
        progress.begun(400, |_| {});
        progress.before_snapshot().unwrap()
    }

    #[test]
    fn a_chunk_claims_what_is_decoded_and_shown() {
        assert_eq!(before().low(1000, &[]), 300);
        assert_eq!(before().low(220, &[]), 220);
    }

    #[test]
    fn an_xa_transaction_that_ended_in_the_log_may_still_be_hidden() {
        assert_eq!(before().low(1000, &[xid("a")]), 249);
        assert_eq!(before().low(1000, &[xid("b")]), 300);
        assert!(!before().shows(300, 1000, &[xid("a")]));
        assert!(before().shows(249, 1000, &[xid("a")]));
    }

    #[test]
    fn a_reread_waits_for_its_own_transaction_while_it_is_delivered() {
        assert!(before().shows(400, 400, &[]));
        assert!(!before().shows(400, 399, &[]));
        assert!(!before().shows(401, 1000, &[]));
    }

    #[test]
    fn a_new_stream_is_noticed() {
        let progress = Progress::default();
        assert_eq!(progress.before_snapshot(), None);
        progress.opening();
        progress.opened(3, "s", 100, Some(Gtids::none(Flavor::Mysql)));
        let before = progress.before_snapshot().unwrap();
        assert!(progress.is_current(&before));
        progress.opening();
        assert!(!progress.is_current(&before));
    }
}
