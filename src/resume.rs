//! Where to resume: a pure decision over what the target, the state directory and the source
//! remember. The target's word wins; what cannot be explained stops.

use connectors::Remembered;
use connectors::change::Checkpoint;
use connectors::error::{Code, Error, Result};
use state::SavedCheckpoint;

/// How a pipeline starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing is there, or a first start was interrupted before it knew a position.
    Fresh,
    /// The target knows how far it has come.
    Resume {
        /// The target's checkpoint.
        checkpoint: Checkpoint,
        /// Whether the ledger of the backfills in the state directory belongs to this target as
        /// it is now.
        ledger_holds: bool,
    },
    /// The user has accepted a gap: a new epoch, and every table is copied again.
    Resync {
        /// The epoch to begin with.
        epoch: u32,
        /// The target's last sequence.
        sequence: u64,
    },
}

/// What the three places remember.
#[derive(Clone, Copy, Debug)]
pub struct Memories<'a> {
    /// The target.
    pub target: Option<&'a Remembered>,
    /// The state directory.
    pub saved: Option<&'a SavedCheckpoint>,
    /// The greatest sequence in the ledger of the backfills, which is written more often.
    pub ledger: u64,
    /// The mark of the state directory.
    pub instance: &'a str,
    /// What the source still keeps for the pipeline.
    pub subscription: Option<&'a str>,
}

/// Decides, or says why nobody but a person can.
///
/// # Errors
/// `target-lost`, `slot-unknown`.
pub fn decide(memories: Memories<'_>, resync: bool) -> Result<Start> {
    let Memories { target, saved, ledger, instance, subscription } = memories;
    let checkpoint = target.and_then(|remembered| remembered.checkpoint.clone());
    if resync {
        let saved_epoch =
            saved.map(|saved| u32::from_be_bytes(first_four(&saved.version))).unwrap_or(0);
        let known_epoch = checkpoint.as_ref().map_or(0, |known| known.version.epoch);
        let sequence = checkpoint.map_or(0, |known| known.sequence);
        return Ok(Start::Resync { epoch: known_epoch.max(saved_epoch) + 1, sequence });
    }
    match (checkpoint, target.is_some(), saved) {
        (Some(checkpoint), _, saved) => {
            let same = target.is_some_and(|remembered| remembered.instance == instance);
            let written = saved.map(|saved| saved.sequence.max(ledger));
            let ledger_holds =
                same && written.is_some_and(|sequence| sequence <= checkpoint.sequence);
            Ok(Start::Resume { checkpoint, ledger_holds })
        }
        (None, _, Some(saved)) => Err(Error::stop(
            Code::TargetLost,
            format!(
                "the target knows no position of this pipeline, but the state directory does \
                 ({}); if the target was replaced or emptied on purpose, copy everything again \
                 with `driftless run --resync`",
                saved.position
            ),
        )),
        (None, true, None) => Ok(Start::Fresh),
        (None, false, None) => match subscription {
            None => Ok(Start::Fresh),
            Some(what) => Err(Error::stop(
                Code::SlotUnknown,
                format!(
                    "the source still keeps {what}, but neither the target nor the state \
                     directory knows this pipeline; if it is left over run `driftless teardown`, \
                     if the target was replaced run `driftless run --resync`, and if it belongs \
                     to somebody else choose another --pipeline name"
                ),
            )),
        },
    }
}

fn first_four(version: &[u8; 16]) -> [u8; 4] {
    [version[0], version[1], version[2], version[3]]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use connectors::version::{Position, Version};

    use super::*;

    fn remembered(sequence: Option<u64>) -> Remembered {
        let checkpoint = sequence.map(|sequence| Checkpoint {
            position: Position("p".into()),
            version: Version::at_log(3, 10),
            sequence,
        });
        Remembered { checkpoint, fence: 1, instance: "a".into(), tables: BTreeMap::new() }
    }

    fn saved(sequence: u64) -> SavedCheckpoint {
        let version = Version::at_log(4, 10).to_bytes();
        SavedCheckpoint { position: "p".into(), version, sequence, fence: 1 }
    }

    fn check(target: Option<Option<u64>>, ours: Option<u64>, slot: bool) -> Result<Start> {
        let target = target.map(remembered);
        let ours = ours.map(saved);
        let memories = Memories {
            target: target.as_ref(),
            saved: ours.as_ref(),
            ledger: 0,
            instance: "a",
            subscription: slot.then_some("slot s"),
        };
        decide(memories, false)
    }

    fn ledger(start: Result<Start>) -> bool {
        matches!(start, Ok(Start::Resume { ledger_holds: true, .. }))
    }

    #[test]
    fn an_empty_world_starts_afresh() {
        assert_eq!(check(None, None, false), Ok(Start::Fresh));
        assert_eq!(check(Some(None), None, true), Ok(Start::Fresh));
    }

    #[test]
    fn s05_the_target_alone_is_enough_to_resume_but_not_to_trust_a_ledger() {
        let start = check(Some(Some(7)), None, true);
        assert!(matches!(start, Ok(Start::Resume { ledger_holds: false, .. })));
    }

    #[test]
    fn s10_a_target_that_went_back_in_time_invalidates_the_ledger() {
        assert!(ledger(check(Some(Some(7)), Some(7), true)));
        assert!(ledger(check(Some(Some(7)), Some(6), true)));
        assert!(!ledger(check(Some(Some(7)), Some(8), true)));
    }

    #[test]
    fn s10_a_ledger_that_is_ahead_of_the_target_is_not_trusted() {
        let (target, ours) = (remembered(Some(7)), saved(6));
        let start = |ledger| {
            let memories = Memories {
                target: Some(&target),
                saved: Some(&ours),
                ledger,
                instance: "a",
                subscription: Some("slot s"),
            };
            decide(memories, false)
        };
        assert!(ledger(start(7)));
        assert!(!ledger(start(8)));
    }

    #[test]
    fn a_target_that_lost_its_memory_is_never_a_first_run() {
        let lost = check(None, Some(7), true).unwrap_err();
        assert_eq!(lost.code, Code::TargetLost);
        let unknown = check(None, None, true).unwrap_err();
        assert_eq!(unknown.code, Code::SlotUnknown);
    }

    #[test]
    fn a_resync_begins_an_epoch_above_all_that_is_known() {
        let (target, ours) = (remembered(Some(7)), saved(9));
        let memories = Memories {
            target: Some(&target),
            saved: Some(&ours),
            ledger: 0,
            instance: "b",
            subscription: None,
        };
        assert_eq!(decide(memories, true), Ok(Start::Resync { epoch: 5, sequence: 7 }));
    }
}
