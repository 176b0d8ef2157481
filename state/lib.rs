//! What must survive a crash on this machine: the checkpoint of a pipeline, and how far each
//! backfill has come.
//!
//! In reading order: what is kept (`checkpoint`, `progress`, `shape`), how a record is written (`format`,
//! `instance`), where (`directory`), the store on disk (`disk`, over `contents`, `database` and
//! `witness`) and the one in memory for simulations (`memory`). Plain synchronous functions; this
//! crate knows no database of a user.
//!
//! Surprise: it is only a second copy. The target keeps the position too, in the transaction of
//! the rows, and the target's word wins. So whatever cannot be read here is moved aside, never
//! deleted and never taken for a first run.

mod checkpoint;
mod contents;
mod database;
mod directory;
mod disk;
mod error;
mod format;
mod instance;
mod memory;
mod progress;
mod shape;
mod witness;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use checkpoint::SavedCheckpoint;
pub use directory::pipeline_directory;
pub use error::{Error, ErrorKind, Result};
pub use memory::MemoryDisk;
pub use progress::{Phase, Task};
pub use shape::PastShape;

/// What one pipeline keeps on this machine. One at a time has it open.
///
/// Calls block until the disk has answered: from an async task, use a blocking thread. After an
/// error of kind `Disk` the same call may be tried again, for example when the disk has room.
pub trait Store: Send + Sync {
    /// The mark of this store, made when it was created: the text of a random UUID.
    fn instance(&self) -> &str;

    /// The last saved checkpoint; `None` before the first one and after a `reset`.
    ///
    /// # Errors
    /// Only after a failed save, if the disk still fails.
    fn checkpoint(&self) -> Result<Option<SavedCheckpoint>>;

    /// Saves a checkpoint; durable on return.
    ///
    /// # Errors
    /// `Disk` or `Corrupt`: it may or may not have been saved.
    ///
    /// # Panics
    /// If its sequence is lower than that of the last one: that is a defect of the caller.
    fn save_checkpoint(&self, checkpoint: &SavedCheckpoint) -> Result<()>;

    /// The backfills that are not finished, by id.
    ///
    /// # Errors
    /// Only after a failed save, if the disk still fails.
    fn tasks(&self) -> Result<Vec<Task>>;

    /// Saves a task in place of the one with the same id; durable on return.
    ///
    /// # Errors
    /// `Disk` or `Corrupt`: it may or may not have been saved.
    fn save_task(&self, task: &Task) -> Result<()>;

    /// Forgets a task; durable on return. One that is not there is no error.
    ///
    /// # Errors
    /// `Disk` or `Corrupt`: it may or may not have been forgotten.
    fn remove_task(&self, id: u64) -> Result<()>;

    /// The shapes that tables had before, the oldest first.
    ///
    /// # Errors
    /// Only after a failed save, if the disk still fails.
    fn past_shapes(&self) -> Result<Vec<PastShape>>;

    /// Saves them in place of those that were there; durable on return.
    ///
    /// # Errors
    /// `Disk` or `Corrupt`: they may or may not have been saved.
    fn save_past_shapes(&self, shapes: &[PastShape]) -> Result<()>;

    /// Forgets the checkpoint, all tasks and all shapes, because the target went back in time or everything
    /// is copied again; durable on return.
    ///
    /// # Errors
    /// `Disk` or `Corrupt`: all or nothing of it may have been forgotten.
    fn reset(&self) -> Result<()>;
}

/// What `open` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing: this pipeline has never run with this directory, or the directory was deleted.
    Fresh,
    /// A store that reads well. It may be without a checkpoint.
    Existing,
    /// A store that cannot be trusted. An empty one is in its place, to be rebuilt from the
    /// target; it goes on being reported as this until something is saved in it.
    Quarantined {
        /// Where the old files are; the pipeline's own directory if none were left.
        moved_to: PathBuf,
        /// What was wrong with them.
        why: String,
    },
}

/// An open store, and how it was found.
pub struct Opened {
    /// The store; dropping it lets others open it.
    pub store: Arc<dyn Store>,
    /// How it was found.
    pub found: Found,
}

/// What a store held when `read` looked at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The mark of the store.
    pub instance: String,
    /// The last checkpoint.
    pub checkpoint: Option<SavedCheckpoint>,
    /// The backfills that are not finished, by id.
    pub tasks: Vec<Task>,
}

/// Opens the store of a pipeline under the state directory `dir`, creating both as needed.
///
/// # Errors
/// `InUse` after five seconds if another process has it; `OtherPipeline`, `Version` and `Unsafe`
/// without touching anything; `Disk`. A corrupt store is not an error: see `Found::Quarantined`.
pub fn open(dir: &Path, pipeline: &str) -> Result<Opened> {
    disk::open(dir, pipeline)
}

/// Reads the store of a pipeline that no process has open; `None` if there is none. Creates no
/// store and moves none aside.
///
/// # Errors
/// As `open`, with `InUse` after one second, and `Corrupt`.
pub fn read(dir: &Path, pipeline: &str) -> Result<Option<Saved>> {
    disk::read(dir, pipeline)
}
