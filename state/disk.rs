//! The store on disk: opens, validates and, if need be, replaces it; then writes to it through
//! `database`. `directory` knows the paths, `witness` what was acknowledged.
//!
//! Surprise: reads are answered from memory. After a failed write the database is closed, because
//! sled repeats its first error for ever, and the next call opens it again.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::checkpoint::Generation;
use crate::contents::{Contents, SHAPES_KEY, task_key};
use crate::database::Database;
use crate::directory::{Directory, Lock};
use crate::format::{self, Kind};
use crate::instance::{Instance, Replaced};
use crate::{
    Error, ErrorKind, Found, Opened, PastShape, Result, Saved, SavedCheckpoint, Store, Task,
};

const OPEN_WAIT: Duration = Duration::from_secs(5);
const READ_WAIT: Duration = Duration::from_secs(1);

/// The store of one pipeline, on disk.
struct DiskStore {
    directory: Directory,
    instance: Instance,
    state: Mutex<State>,
    // Last, so that the database is closed before others may open it.
    _lock: Lock,
}

struct State {
    /// `None` after a failed write.
    database: Option<Database>,
    contents: Contents,
}

pub(crate) fn open(dir: &Path, pipeline: &str) -> Result<Opened> {
    open_within(dir, pipeline, OPEN_WAIT)
}

pub(crate) fn read(dir: &Path, pipeline: &str) -> Result<Option<Saved>> {
    let Some(directory) = Directory::find(dir, pipeline)? else { return Ok(None) };
    let Some(_lock) = directory.lock_existing(READ_WAIT)? else { return Ok(None) };
    let Some((instance, state)) = load(&directory, pipeline)? else { return Ok(None) };
    Ok(Some(Saved {
        instance: instance.mark,
        checkpoint: state.contents.checkpoint().cloned(),
        tasks: state.contents.tasks(),
    }))
}

fn open_within(dir: &Path, pipeline: &str, wait: Duration) -> Result<Opened> {
    let directory = Directory::prepare(dir, pipeline)?;
    let lock = directory.lock(wait)?;
    let loaded = match load(&directory, pipeline) {
        Ok(Some(loaded)) => Ok(loaded),
        Ok(None) => Err(absent(&directory, &lock)?),
        Err(error) if error.kind == ErrorKind::Corrupt => {
            let moved_to = directory.quarantine()?;
            tracing::warn!(pipeline, moved_to, why = error.message, "state moved aside");
            Err(Some(Replaced { moved_to, why: error.message }))
        }
        Err(error) => return Err(error),
    };
    let (existed, (instance, state)) = match loaded {
        Ok(loaded) => (true, loaded),
        Err(replaces) => (false, create(&directory, pipeline, replaces)?),
    };
    lock.note(&instance.mark)?;
    let found = match &instance.replaces {
        Some(replaced) if state.contents.is_empty() => Found::Quarantined {
            moved_to: directory.path().join(&replaced.moved_to),
            why: replaced.why.clone(),
        },
        _ if existed => Found::Existing,
        _ => Found::Fresh,
    };
    let state = Mutex::new(state);
    Ok(Opened { store: Arc::new(DiskStore { directory, instance, state, _lock: lock }), found })
}

/// The store in its place, validated whole; `None` if there is none.
fn load(directory: &Directory, pipeline: &str) -> Result<Option<(Instance, State)>> {
    let store = directory.store();
    if !crate::directory::exists(&store)? {
        return Ok(None);
    }
    let instance = Instance::read(&store.join("instance"), pipeline)?;
    let (database, contents) = Database::open(&store, &instance)?;
    Ok(Some((instance, State { database: Some(database), contents })))
}

/// Why there is no store: because there never was one, or else what became of it.
fn absent(directory: &Directory, lock: &Lock) -> Result<Option<Replaced>> {
    if let Some(moved_to) = directory.last_quarantined()? {
        let why = "an earlier start moved it aside and did not get further".to_owned();
        return Ok(Some(Replaced { moved_to, why }));
    }
    if lock.notes_a_store()? {
        let why = "the store was removed, and its lock file was not".to_owned();
        return Ok(Some(Replaced { moved_to: String::new(), why }));
    }
    Ok(None)
}

/// Makes an empty store beside its place and moves it there in one step, so that a crash leaves
/// all of it or nothing.
fn create(
    directory: &Directory,
    pipeline: &str,
    replaces: Option<Replaced>,
) -> Result<(Instance, State)> {
    let instance = Instance::new(pipeline, replaces)?;
    let new = directory.begin_store()?;
    Database::create(&new, &instance)?;
    let path = new.join("instance");
    let record = format::encode(Kind::Instance, &instance)?;
    std::fs::write(&path, record)
        .and_then(|()| std::fs::File::open(&path)?.sync_all())
        .map_err(|error| Error::disk(format_args!("write {}", path.display()), &error))?;
    directory.finish_store()?;
    load(directory, pipeline)?
        .ok_or_else(|| Error::corrupt("the store vanished while it was being made"))
}

impl DiskStore {
    /// The state, with the database open.
    fn state(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.database.is_none() {
            let (database, contents) = Database::open(&self.directory.store(), &self.instance)?;
            *state = State { database: Some(database), contents };
        }
        Ok(state)
    }
}

impl State {
    /// Runs one durable write, then the same change in memory.
    fn write(
        &mut self,
        write: impl FnOnce(&mut Database) -> Result<()>,
        change: impl FnOnce(&mut Contents),
    ) -> Result<()> {
        let Some(database) = &mut self.database else {
            return Err(Error::corrupt("the database is closed"));
        };
        let written = write(database);
        match written {
            Ok(()) => change(&mut self.contents),
            Err(_) => self.database = None,
        }
        written
    }
}

impl Store for DiskStore {
    fn instance(&self) -> &str {
        &self.instance.mark
    }

    fn checkpoint(&self) -> Result<Option<SavedCheckpoint>> {
        Ok(self.state()?.contents.checkpoint().cloned())
    }

    fn save_checkpoint(&self, checkpoint: &SavedCheckpoint) -> Result<()> {
        let mut state = self.state()?;
        checkpoint.assert_follows(state.contents.checkpoint());
        let key = state.contents.next_checkpoint_key();
        let write = state.database.as_ref().map_or(0, Database::next_write);
        let generation = Generation { write, checkpoint: checkpoint.clone() };
        let record = format::encode(Kind::Checkpoint, &generation)?;
        state.write(
            |database| database.put(key, &record),
            |contents| contents.set_checkpoint(generation),
        )
    }

    fn tasks(&self) -> Result<Vec<Task>> {
        Ok(self.state()?.contents.tasks())
    }

    fn save_task(&self, task: &Task) -> Result<()> {
        let record = format::encode(Kind::Task, task)?;
        self.state()?.write(
            |database| database.put(&task_key(task.id), &record),
            |contents| contents.set_task(task.clone()),
        )
    }

    fn remove_task(&self, id: u64) -> Result<()> {
        self.state()?
            .write(|database| database.remove(&[task_key(id)]), |contents| contents.remove_task(id))
    }

    fn past_shapes(&self) -> Result<Vec<PastShape>> {
        Ok(self.state()?.contents.shapes().to_vec())
    }

    fn save_past_shapes(&self, shapes: &[PastShape]) -> Result<()> {
        let record = format::encode(Kind::Shapes, &shapes)?;
        self.state()?.write(
            |database| database.put(SHAPES_KEY, &record),
            |contents| contents.set_shapes(shapes.to_vec()),
        )
    }

    fn reset(&self) -> Result<()> {
        let mut state = self.state()?;
        let keys = state.contents.keys();
        state.write(|database| database.remove(&keys), Contents::clear)
    }
}
