//! The version below which nothing can arrive any more, so that tombstones below it can go.
//!
//! A backfill takes a hold *before* its snapshot; rows that it reads are never older than the
//! hold. The surprise: the floor follows the batch that is about to be applied, not the last one
//! that was. A hold taken while a batch is under way must not be older than the tombstones which
//! that batch leaves out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use connectors::version::Version;

/// The floor of one pipeline, shared by the applier and the backfills.
#[derive(Debug)]
pub struct Floor(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    announced: Version,
    holds: BTreeMap<u64, Version>,
    next: u64,
}

impl Floor {
    /// A floor at the checkpoint from which the pipeline resumes.
    #[must_use]
    pub fn new(checkpoint: Version) -> Arc<Floor> {
        let inner = Inner { announced: checkpoint, holds: BTreeMap::new(), next: 0 };
        Arc::new(Floor(Mutex::new(inner)))
    }

    /// Says that a batch which reaches this version goes to the target now; returns the floor for
    /// it.
    pub fn announce(&self, version: Version) -> Version {
        let mut inner = self.lock();
        assert!(inner.announced <= version, "floor moved back: {} -> {version}", inner.announced);
        inner.announced = version;
        inner.lowest()
    }

    /// The floor for a batch that leaves the checkpoint where it is.
    #[must_use]
    pub fn current(&self) -> Version {
        self.lock().lowest()
    }

    /// Keeps the floor from rising above where it is, until the hold is dropped.
    #[must_use]
    pub fn hold(self: &Arc<Floor>) -> Hold {
        let mut inner = self.lock();
        let (id, version) = (inner.next, inner.announced);
        inner.next += 1;
        inner.holds.insert(id, version);
        Hold { floor: Arc::clone(self), id, version }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change under the lock is complete in itself, so a panic elsewhere spoils nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn lowest(&self) -> Version {
        self.holds.values().copied().fold(self.announced, Version::min)
    }
}

/// Keeps tombstones from `version` on, until it is dropped: after the rows that were read under
/// it are durable, or thrown away.
#[derive(Debug)]
pub struct Hold {
    floor: Arc<Floor>,
    id: u64,
    /// Rows read under this hold must not be older.
    pub version: Version,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.floor.lock().holds.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(log: u64) -> Version {
        Version::at_log(1, log)
    }

    #[test]
    fn a_hold_keeps_the_floor_until_it_is_dropped() {
        let floor = Floor::new(at(10));
        let hold = floor.hold();
        assert_eq!(hold.version, at(10));
        assert_eq!(floor.announce(at(20)), at(10));
        drop(hold);
        assert_eq!(floor.current(), at(20));
    }

    #[test]
    fn a_hold_taken_while_a_batch_is_under_way_starts_at_that_batch() {
        let floor = Floor::new(at(10));
        assert_eq!(floor.announce(at(20)), at(20));
        assert_eq!(floor.hold().version, at(20));
    }
}
