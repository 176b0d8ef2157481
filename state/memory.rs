//! A scripted disk for simulations: it keeps the stores of several pipelines in memory, and fails
//! when it is told to. Nothing in it is random.
//!
//! Surprise: a store that was open at a `crash` stays dead, like the process that held it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::{Error, ErrorKind, Found, Opened, PastShape, Result, SavedCheckpoint, Store, Task};

/// A disk in memory; clones are the same disk.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Default)]
struct Disk {
    /// What the programs see.
    visible: BTreeMap<String, Image>,
    /// What a crash leaves.
    durable: BTreeMap<String, Image>,
    /// Who has a store open; a dropped one has given it back.
    holders: BTreeMap<String, Weak<()>>,
    crashes: u64,
    stores_made: u64,
    saves_to_fail: u32,
    lying: bool,
}

/// One store.
#[derive(Clone, Default)]
struct Image {
    instance: String,
    checkpoint: Option<SavedCheckpoint>,
    tasks: BTreeMap<u64, Task>,
    shapes: Vec<PastShape>,
    /// Set when this store was made in place of a damaged one.
    replaces: Option<String>,
    damaged: bool,
}

impl MemoryDisk {
    /// A disk with nothing on it.
    #[must_use]
    pub fn new() -> MemoryDisk {
        MemoryDisk::default()
    }

    /// Opens the store of a pipeline, as `open` does.
    ///
    /// # Errors
    /// `InUse` if it is open and the machine has not crashed since.
    pub fn open(&self, pipeline: &str) -> Result<Opened> {
        let mut disk = self.lock();
        if disk.holders.get(pipeline).is_some_and(|holder| holder.strong_count() > 0) {
            let message = format!("another driftless is already running pipeline `{pipeline}`");
            return Err(Error::new(ErrorKind::InUse, message));
        }
        let image = disk.visible.get(pipeline);
        let existed = image.is_some_and(|image| !image.damaged);
        if !existed {
            let moved_to = format!(".corrupt-{}", disk.stores_made);
            let replaces = image.map(|_| moved_to);
            disk.stores_made += 1;
            let instance = format!("memory-{}", disk.stores_made);
            let image = Image { instance, replaces, ..Image::default() };
            disk.visible.insert(pipeline.to_owned(), image);
            disk.settle();
        }
        let image = disk.visible.get(pipeline).cloned().unwrap_or_default();
        let found = match image.replaces {
            Some(moved_to) if image.checkpoint.is_none() && image.tasks.is_empty() => {
                let why = "damaged by the simulation".to_owned();
                Found::Quarantined { moved_to: PathBuf::from(moved_to), why }
            }
            _ if existed => Found::Existing,
            _ => Found::Fresh,
        };
        let holder = Arc::new(());
        disk.holders.insert(pipeline.to_owned(), Arc::downgrade(&holder));
        let store = MemoryStore {
            disk: self.clone(),
            pipeline: pipeline.to_owned(),
            instance: image.instance,
            crashes: disk.crashes,
            _holder: holder,
        };
        Ok(Opened { store: Arc::new(store), found })
    }

    /// Ends every process that has a store open and drops what was not made durable.
    pub fn crash(&self) {
        let mut disk = self.lock();
        disk.crashes += 1;
        disk.holders.clear();
        disk.visible = disk.durable.clone();
    }

    /// Deletes everything. Stores that are open fail from now on, as after a `crash`.
    pub fn wipe(&self) {
        let mut disk = self.lock();
        disk.crashes += 1;
        disk.holders.clear();
        disk.visible.clear();
        disk.durable.clear();
    }

    /// Damages the store of a pipeline; found out when it is opened next.
    pub fn damage(&self, pipeline: &str) {
        let mut guard = self.lock();
        let disk = &mut *guard;
        for images in [&mut disk.visible, &mut disk.durable] {
            if let Some(image) = images.get_mut(pipeline) {
                image.damaged = true;
            }
        }
    }

    /// Lets the next save fail as on a full disk, and save nothing.
    pub fn fail_next_save(&self) {
        self.fail_next_saves(1);
    }

    /// Lets so many of the next saves fail as on a full disk, and save nothing.
    pub fn fail_next_saves(&self, count: u32) {
        self.lock().saves_to_fail = count;
    }

    /// While lying, a save is acknowledged without being durable: a `crash` drops it. The first
    /// save afterwards makes everything durable.
    pub fn lie_about_flush(&self, lying: bool) {
        self.lock().lying = lying;
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    fn settle(&mut self) {
        if !self.lying {
            self.durable = self.visible.clone();
        }
    }
}

/// One open store on such a disk.
struct MemoryStore {
    disk: MemoryDisk,
    pipeline: String,
    instance: String,
    crashes: u64,
    _holder: Arc<()>,
}

impl MemoryStore {
    fn read<T>(&self, read: impl FnOnce(&Image) -> T) -> Result<T> {
        let disk = self.disk.lock();
        self.check_alive(&disk)?;
        disk.visible.get(&self.pipeline).map(read).ok_or_else(gone)
    }

    fn write(&self, change: impl FnOnce(&mut Image)) -> Result<()> {
        let mut disk = self.disk.lock();
        self.check_alive(&disk)?;
        if disk.saves_to_fail > 0 {
            disk.saves_to_fail -= 1;
            let kind = ErrorKind::Disk(std::io::ErrorKind::StorageFull);
            return Err(Error::new(kind, "write the state database: no space left on device"));
        }
        change(disk.visible.get_mut(&self.pipeline).ok_or_else(gone)?);
        disk.settle();
        Ok(())
    }

    fn check_alive(&self, disk: &Disk) -> Result<()> {
        if disk.crashes == self.crashes { Ok(()) } else { Err(gone()) }
    }
}

fn gone() -> Error {
    let kind = ErrorKind::Disk(std::io::ErrorKind::NotConnected);
    Error::new(kind, "the machine has crashed since this store was opened")
}

impl Store for MemoryStore {
    fn instance(&self) -> &str {
        &self.instance
    }

    fn checkpoint(&self) -> Result<Option<SavedCheckpoint>> {
        self.read(|image| image.checkpoint.clone())
    }

    fn save_checkpoint(&self, checkpoint: &SavedCheckpoint) -> Result<()> {
        self.write(|image| {
            checkpoint.assert_follows(image.checkpoint.as_ref());
            image.checkpoint = Some(checkpoint.clone());
        })
    }

    fn tasks(&self) -> Result<Vec<Task>> {
        self.read(|image| image.tasks.values().cloned().collect())
    }

    fn save_task(&self, task: &Task) -> Result<()> {
        self.write(|image| {
            image.tasks.insert(task.id, task.clone());
        })
    }

    fn remove_task(&self, id: u64) -> Result<()> {
        self.write(|image| {
            image.tasks.remove(&id);
        })
    }

    fn past_shapes(&self) -> Result<Vec<PastShape>> {
        self.read(|image| image.shapes.clone())
    }

    fn save_past_shapes(&self, shapes: &[PastShape]) -> Result<()> {
        self.write(|image| image.shapes = shapes.to_vec())
    }

    fn reset(&self) -> Result<()> {
        self.write(|image| {
            image.checkpoint = None;
            image.tasks.clear();
            image.shapes.clear();
        })
    }
}
