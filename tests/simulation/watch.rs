//! The invariants, looked at after every step: `acknowledged <= local <= target`, a checkpoint
//! and a fence that never move back, one writer, and no table that stops without a reason.
//!
//! Surprise: a violation is written down and not panicked about. It is found inside a task of the
//! engine, which would take the panic for its own and carry on with an error.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use connectors::change::TableStatus;
use connectors::error::Code;
use connectors::memory::{SourceServer, TargetServer};
use connectors::version::Version;
use state::SavedCheckpoint;

/// The pipeline's name in all simulations.
pub const PIPELINE: &str = "main";

/// What was seen last, and what was wrong with it.
#[derive(Default)]
pub struct Watch(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    /// The newest checkpoint in each state directory that is known.
    local: BTreeMap<String, Version>,
    target: Option<(u64, Version)>,
    fence: u64,
    /// A slot is being made anew, or the target is behind it: nothing is said of it until then.
    slot_is_unknown: bool,
    /// Why a table may stop.
    may_stop: BTreeSet<&'static str>,
    broken: Option<String>,
}

impl Watch {
    /// Compares what is durable in the three places.
    pub fn look(&self, source: &SourceServer, target: &TargetServer, at: &str) {
        let mut seen = self.lock();
        let Some(remembered) = target.remembered(PIPELINE) else { return };
        let acknowledged = source.acknowledged().unwrap_or(0);
        if remembered.fence < seen.fence {
            let what = format!("{at}: fence {} -> {}", seen.fence, remembered.fence);
            seen.broken(what);
        }
        seen.fence = remembered.fence;
        for (name, record) in &remembered.tables {
            if let TableStatus::Stopped { code, message, .. } = &record.status
                && !seen.may_stop.contains(code.as_str())
            {
                seen.broken(format!("{at}: table {name} stopped: {message} [{code}]"));
            }
        }
        let Some(checkpoint) = &remembered.checkpoint else { return };
        let now = (checkpoint.sequence, checkpoint.version);
        if seen.target.is_some_and(|last| now.0 < last.0 || now.1 < last.1) {
            let what = format!("{at}: checkpoint moved back: {:?} -> {now:?}", seen.target);
            seen.broken(what);
        }
        seen.target = Some(now);
        if seen.slot_is_unknown {
            return;
        }
        if acknowledged > now.1.log {
            seen.broken(format!("{at}: acknowledged {acknowledged}, target {}", now.1));
        }
        if let Some(local) = seen.local.values().copied().max() {
            if acknowledged > local.log {
                seen.broken(format!("{at}: acknowledged {acknowledged}, local {local}"));
            }
            if local > now.1 {
                seen.broken(format!("{at}: local {local}, target {}", now.1));
            }
        }
    }

    /// Somebody other than the last claimer has committed.
    pub fn commit_by(&self, instance: &str, target: &TargetServer) {
        let writer = target.remembered(PIPELINE).map(|remembered| remembered.instance);
        if writer.as_deref() != Some(instance) {
            self.lock().broken(format!("{instance} has committed, the writer is {writer:?}"));
        }
    }

    /// A state directory has saved this.
    pub fn saved(&self, instance: &str, checkpoint: &SavedCheckpoint) {
        let version = Version::from_bytes(&checkpoint.version).unwrap_or(Version::ZERO);
        self.lock().local.insert(instance.to_owned(), version);
    }

    /// A state directory was told to forget.
    pub fn forgotten(&self, instance: &str) {
        self.lock().local.remove(instance);
    }

    /// State directories may have lost what they had saved.
    pub fn local_is_unknown(&self) {
        self.lock().local.clear();
    }

    /// The target went back in time; `behind` if the source keeps less than it needs now.
    pub fn target_went_back(&self, behind: bool) {
        let mut seen = self.lock();
        (seen.target, seen.fence) = (None, 0);
        seen.local.clear();
        seen.slot_is_unknown |= behind;
    }

    /// A new slot is about to be made, or has been.
    pub fn slot_is_unknown(&self, unknown: bool) {
        let mut seen = self.lock();
        seen.slot_is_unknown = unknown;
        seen.local.clear();
    }

    /// From now on tables may stop with this code.
    pub fn may_stop(&self, code: Code) {
        self.lock().may_stop.insert(code.as_str());
    }

    /// Whether tables may stop with this code.
    pub fn expects(&self, code: Code) -> bool {
        self.lock().may_stop.contains(code.as_str())
    }

    /// Something else is wrong.
    pub fn report(&self, what: String) {
        self.lock().broken(what);
    }

    /// The first violation.
    pub fn verdict(&self) -> Result<(), String> {
        self.lock().broken.clone().map_or(Ok(()), Err)
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn broken(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }
}
