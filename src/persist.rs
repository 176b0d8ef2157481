//! The second copy of the checkpoint, in the state directory; written after the target's commit
//! and before the source is acknowledged.

use std::sync::Arc;
use std::time::Duration;

use connectors::change::Checkpoint;
use connectors::error::{Code, Error, Result};
use connectors::version::Position;
use state::{SavedCheckpoint, Store};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::Instant;

/// What is durable in the target and not yet here.
pub struct Persist {
    store: Arc<dyn Store>,
    fence: u64,
    unsaved: Option<Checkpoint>,
    last: Instant,
}

impl Persist {
    /// For one claim of the target.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, fence: u64) -> Persist {
        Persist { store, fence, unsaved: None, last: Instant::now() }
    }

    /// The store that it writes to.
    #[must_use]
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Notes what the target has made durable.
    pub fn note(&mut self, checkpoint: &Checkpoint) {
        self.unsaved = Some(checkpoint.clone());
    }

    /// When the next write is due; far away when there is nothing to write.
    #[must_use]
    pub fn due(&self, every: Duration) -> Instant {
        let wait = if self.unsaved.is_some() { every } else { Duration::from_secs(3600) };
        self.last + wait
    }

    /// Writes if there is something to write and the last time is long enough ago; returns the
    /// position that may then be acknowledged.
    ///
    /// # Errors
    /// The state directory's disk.
    pub fn save_when_due(&mut self, every: Duration) -> Result<Option<Position>> {
        if self.last.elapsed() < every {
            return Ok(None);
        }
        let Some(checkpoint) = self.unsaved.take() else { return Ok(None) };
        let saved = SavedCheckpoint {
            position: checkpoint.position.0.clone(),
            version: checkpoint.version.to_bytes(),
            sequence: checkpoint.sequence,
            fence: self.fence,
        };
        blocking(|| self.store.save_checkpoint(&saved)).map_err(|error| state_error(&error))?;
        self.last = Instant::now();
        Ok(Some(checkpoint.position))
    }
}

/// Runs a short write to disk without holding up the other tasks of a threaded runtime.
pub fn blocking<T>(work: impl FnOnce() -> T) -> T {
    let threaded = Handle::try_current()
        .is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if threaded { tokio::task::block_in_place(work) } else { work() }
}

/// The engine's error for one of the state directory.
#[must_use]
pub fn state_error(error: &state::Error) -> Error {
    let message = error.message.clone();
    match error.kind {
        state::ErrorKind::InUse => Error::stop(Code::AlreadyRunning, message),
        state::ErrorKind::Corrupt => Error::stop(Code::StateCorrupt, message),
        state::ErrorKind::Version => Error::stop(Code::StateVersion, message),
        state::ErrorKind::OtherPipeline => Error::stop(Code::StateOther, message),
        state::ErrorKind::Unsafe => Error::stop(Code::StateUnsafe, message),
        // A full disk is freed again; nothing is acknowledged until then.
        state::ErrorKind::Disk(_) => Error::transient(Code::StateDisk, message),
    }
}
