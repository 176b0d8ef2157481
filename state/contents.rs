//! What a store holds, as it is in memory; decoded from the records of the database.

use std::collections::BTreeMap;

use crate::checkpoint::{Generation, newest};
use crate::format::{self, Kind};
use crate::{Error, PastShape, Result, SavedCheckpoint, Task};

const CHECKPOINT_KEYS: [&str; 2] = ["checkpoint-a", "checkpoint-b"];
const TASK_PREFIX: &str = "task-";
/// The key of the shapes that tables had before.
pub(crate) const SHAPES_KEY: &str = "shapes";

/// The checkpoint, the tasks and the past shapes of one pipeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    newest: Option<(Generation, &'static str)>,
    tasks: BTreeMap<u64, Task>,
    shapes: Vec<PastShape>,
}

impl Contents {
    /// Decodes all records; one that is damaged or unknown spoils the store.
    pub(crate) fn decode(mut records: BTreeMap<String, Vec<u8>>) -> Result<Contents> {
        let mut generations = Vec::new();
        for key in CHECKPOINT_KEYS {
            if let Some(record) = records.remove(key) {
                let generation: Generation = format::decode(Kind::Checkpoint, &record)?;
                generations.push((generation, key));
            }
        }
        let shapes = match records.remove(SHAPES_KEY) {
            Some(record) => format::decode(Kind::Shapes, &record)?,
            None => Vec::new(),
        };
        let mut tasks = BTreeMap::new();
        for (key, record) in records {
            if !key.starts_with(TASK_PREFIX) {
                return Err(Error::corrupt(format!("the record {key} is unknown")));
            }
            let task: Task = format::decode(Kind::Task, &record)?;
            if task_key(task.id) != key {
                return Err(Error::corrupt(format!("the record {key} is of another task")));
            }
            tasks.insert(task.id, task);
        }
        Ok(Contents { newest: newest(generations), tasks, shapes })
    }

    /// The key for the next checkpoint: not that of the newest, which must stay whole meanwhile.
    pub(crate) fn next_checkpoint_key(&self) -> &'static str {
        let [a, b] = CHECKPOINT_KEYS;
        match &self.newest {
            Some((_, key)) if *key == a => b,
            _ => a,
        }
    }

    /// The keys of all records.
    pub(crate) fn keys(&self) -> Vec<String> {
        let tasks = self.tasks.keys().map(|id| task_key(*id));
        let [a, b] = CHECKPOINT_KEYS;
        [a, b, SHAPES_KEY].map(str::to_owned).into_iter().chain(tasks).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.newest.is_none() && self.tasks.is_empty()
    }

    pub(crate) fn checkpoint(&self) -> Option<&SavedCheckpoint> {
        self.newest.as_ref().map(|(generation, _)| &generation.checkpoint)
    }

    pub(crate) fn tasks(&self) -> Vec<Task> {
        self.tasks.values().cloned().collect()
    }

    pub(crate) fn set_checkpoint(&mut self, generation: Generation) {
        self.newest = Some((generation, self.next_checkpoint_key()));
    }

    pub(crate) fn set_task(&mut self, task: Task) {
        self.tasks.insert(task.id, task);
    }

    pub(crate) fn remove_task(&mut self, id: u64) {
        self.tasks.remove(&id);
    }

    pub(crate) fn shapes(&self) -> &[PastShape] {
        &self.shapes
    }

    pub(crate) fn set_shapes(&mut self, shapes: Vec<PastShape>) {
        self.shapes = shapes;
    }

    pub(crate) fn clear(&mut self) {
        *self = Contents::default();
    }
}

/// The key of a task, of fixed width.
pub(crate) fn task_key(id: u64) -> String {
    format!("{TASK_PREFIX}{id:016x}")
}
