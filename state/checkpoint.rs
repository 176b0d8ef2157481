//! The checkpoint: how far the target was known to be. Two generations are kept, so that the
//! older one is still whole while the newer one is being written.

use serde::{Deserialize, Serialize};

/// A position that was durable in the target when it was saved here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedCheckpoint {
    /// The source's own bookmark, opaque here.
    pub position: String,
    /// The version up to which every change is in the target: 16 bytes, big-endian.
    pub version: [u8; 16],
    /// The number that the target gave to this checkpoint; it only ever rises.
    pub sequence: u64,
    /// The fencing epoch of the writer.
    pub fence: u64,
}

impl SavedCheckpoint {
    /// Stops a caller that would go back without saying so.
    pub(crate) fn assert_follows(&self, last: Option<&SavedCheckpoint>) {
        if let Some(last) = last {
            assert!(
                last.sequence <= self.sequence,
                "checkpoint moved back without a reset: sequence {} -> {}",
                last.sequence,
                self.sequence
            );
        }
    }
}

/// A checkpoint as it is written: with the number of its write, which orders the two generations
/// also when they have the same sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Generation {
    /// The number of the write.
    pub(crate) write: u64,
    /// What was saved.
    pub(crate) checkpoint: SavedCheckpoint,
}

/// The newest of what was found under the two keys.
pub(crate) fn newest<K>(found: Vec<(Generation, K)>) -> Option<(Generation, K)> {
    found.into_iter().max_by_key(|(one, _)| (one.checkpoint.sequence, one.write))
}
