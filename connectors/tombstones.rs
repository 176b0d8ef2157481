//! What a target's session knows of its pipeline's tombstones, so that it need not ask the server with
//! every batch. Pure; used by the targets that are servers.

use crate::change::Batch;
use crate::version::Version;

/// What is known.
pub struct Tombstones {
    /// Whether there may be any.
    possible: bool,
    /// The floor below which there are none.
    collected: Version,
}

impl Tombstones {
    /// Whether there may be any, and nothing else.
    pub fn new(possible: bool) -> Tombstones {
        Tombstones { possible, collected: Version::ZERO }
    }

    /// Those below a floor are gone; whether any are left.
    pub fn collected(floor: Version, possible: bool) -> Tombstones {
        Tombstones { possible, collected: floor }
    }

    /// Whether a batch must look for them.
    pub fn concern(&self, batch: &Batch) -> bool {
        self.possible || batch.tables.iter().any(|table| table.truncated.is_some())
    }

    /// A batch is about to be applied. To be told before its commit: whoever drops the future of
    /// that must not leave us believing less.
    pub fn expect(&mut self, batch: &Batch) {
        self.possible |= batch.buries();
    }

    /// Whether there may be any below this floor.
    pub fn are_due(&self, floor: Version) -> bool {
        self.possible && floor > self.collected
    }
}
