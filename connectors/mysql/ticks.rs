//! Tells apart what is read or marked at one and the same place of the log. A source at rest has
//! nothing to write into it for us, and still a second copy must outrank the first, or a row that
//! somebody changed in the target could not be mended.
//!
//! Why an ordinal may say so: the version of a change is made of the end of its GTID event, and a
//! transaction never ends there. So no change ever has the place at which a transaction ends, and
//! all ordinals of that place are free for those who read there.
//!
//! Surprise: it is a clock, and a clock decides nothing here. Whatever is read at one place of the
//! log is the same rows, whoever wins.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// 2026-01-01, in seconds since 1970.
const BEGINNING: u64 = 1_767_225_600;

/// A clock of tenths of a second that never goes back while the process lives.
#[derive(Debug, Default)]
pub struct Ticks {
    last: AtomicU32,
    marked: AtomicU32,
}

impl Ticks {
    /// The tick of now, not below an earlier one.
    pub fn now(&self) -> u32 {
        let now = wall();
        self.last.fetch_max(now, Ordering::AcqRel).max(now)
    }

    /// A tick above all earlier ones, that whoever is idle has to pass.
    pub fn mark(&self) -> u32 {
        let now = wall();
        let next = |last: u32| Some(last.saturating_add(1).max(now));
        let last = self.last.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
        let tick = last.unwrap_or_else(|last| last).saturating_add(1).max(now);
        self.marked.fetch_max(tick, Ordering::AcqRel);
        tick
    }

    /// Whether somebody waits for a tick above this one.
    pub fn is_awaited(&self, after: u32) -> bool {
        self.marked.load(Ordering::Acquire) > after
    }
}

fn wall() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let tenths = since.as_millis().saturating_sub(u128::from(BEGINNING) * 1000) / 100;
    u32::try_from(tenths).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_above_everything_before_and_not_above_what_follows() {
        let ticks = Ticks::default();
        let before = ticks.now();
        let first = ticks.mark();
        assert!(first > before && ticks.is_awaited(before) && !ticks.is_awaited(first));
        assert!(ticks.now() >= first);
        assert!(ticks.mark() > first);
    }
}
