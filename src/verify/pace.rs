//! Waits until the target has applied what the source had committed. Used by `settle.rs`.
//!
//! Surprise: whether somebody replicates is not known for certain (the daemon may run on another
//! machine), so a checkpoint that moves, or that stands still, changes our mind.

use std::time::Duration;

use connectors::change::Checkpoint;
use connectors::error::Result;
use connectors::{Source, Target};
use tokio::time::{Instant, sleep};

/// How often the target's checkpoint is looked at.
const POLL: Duration = Duration::from_millis(100);
/// A checkpoint that has not moved for this long is not moved by anybody.
const STANDSTILL: Duration = Duration::from_secs(30);
/// Between two looks when nobody replicates, for a commit that is not visible yet.
const REST: Duration = Duration::from_millis(250);

/// Whether the target follows the source while we compare.
pub(super) struct Pace {
    mode: Mode,
    /// The checkpoint that was seen last.
    seen: Option<Checkpoint>,
    /// Whether a comparison relied on nobody replicating.
    rested: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Somebody applies changes: a marker in the log arrives in the target.
    Following,
    /// Nobody does: waiting would change nothing.
    AtRest(&'static str),
}

impl Pace {
    pub(super) fn new(daemon_runs: bool, checkpoint: Option<Checkpoint>) -> Pace {
        let mode = match daemon_runs {
            true => Mode::Following,
            false => Mode::AtRest("no daemon answers, so the two sides were compared at rest"),
        };
        Pace { mode, seen: checkpoint, rested: false }
    }

    /// Forgets how the checkpoint was before a repair, which moves it even when nobody follows
    /// the log; whoever does moves it again.
    pub(super) fn begin_again(&mut self, checkpoint: Option<Checkpoint>) {
        self.seen = checkpoint;
    }

    /// Waits until the target has everything that the source had committed before, or until it is
    /// clear that nobody applies it.
    pub(super) async fn catch_up(
        &mut self,
        source: &dyn Source,
        target: &mut dyn Target,
    ) -> Result<()> {
        if let Mode::AtRest(_) = self.mode {
            self.rested = true;
            sleep(REST).await;
            if !self.moved(target).await? {
                return Ok(());
            }
            self.mode = Mode::Following;
        }
        let epoch = self.seen.as_ref().map_or(0, |seen| seen.version.epoch);
        let mark = source.mark(epoch).await?;
        let mut moved_at = Instant::now();
        loop {
            if self.moved(target).await? {
                moved_at = Instant::now();
            }
            if self.seen.as_ref().is_some_and(|seen| seen.version >= mark) {
                return Ok(());
            }
            if moved_at.elapsed() >= STANDSTILL {
                self.mode = Mode::AtRest("the target's checkpoint does not move");
                self.rested = true;
                return Ok(());
            }
            sleep(POLL).await;
        }
    }

    /// What a reader must know; `None` when every difference was seen after a marker.
    pub(super) fn note(&self) -> Option<String> {
        match self.mode {
            Mode::AtRest(why) if self.rested => Some(why.to_owned()),
            Mode::AtRest(_) | Mode::Following => None,
        }
    }

    async fn moved(&mut self, target: &mut dyn Target) -> Result<bool> {
        let now = target.recall().await?.and_then(|remembered| remembered.checkpoint);
        let moved = now != self.seen;
        self.seen = now;
        Ok(moved)
    }
}
