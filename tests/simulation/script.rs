//! What happens at each await point of one process, and to each write of its state directory.
//!
//! Surprise: a process that was killed in the middle of a write of the state directory (which is
//! no await point) is dead from then on: nothing that it still tries has any effect.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use connectors::memory::{Fault, Script};
use state::{PastShape, SavedCheckpoint, Store, Task};
use tokio::sync::Notify;

use crate::world::World;

/// More decisions than any run needs: it goes round in circles.
const DECISIONS_MAX: usize = 60_000;

/// What is to go wrong.
#[derive(Clone, Debug)]
pub enum Plan {
    /// Nothing.
    Quiet,
    /// Anything, with these chances in a thousand.
    Random(Rates),
    /// This, at the nth time (from 1) that this point is reached.
    At(&'static str, usize, Fault),
}

/// Chances in a thousand decisions.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    pub kill: usize,
    pub fail: usize,
    pub lose: usize,
    pub delay: usize,
    pub give_way: usize,
}

/// The script of one process.
pub struct ProcessScript {
    world: Arc<World>,
    instance: String,
    plan: Plan,
    state: Mutex<State>,
    killed: Notify,
}

#[derive(Default)]
struct State {
    dead: bool,
    decisions: usize,
    counts: BTreeMap<&'static str, usize>,
}

impl ProcessScript {
    pub fn new(world: &Arc<World>, instance: &str, plan: Plan) -> Arc<ProcessScript> {
        let (world, instance) = (Arc::clone(world), instance.to_owned());
        let (state, killed) = (Mutex::default(), Notify::new());
        Arc::new(ProcessScript { world, instance, plan, state, killed })
    }

    /// Returns when the process has been killed.
    pub async fn killed(&self) {
        self.killed.notified().await;
    }

    /// The mark of the process's state directory.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// How often each point was reached.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        self.lock().counts.clone()
    }

    fn next(&self, point: &'static str) -> Fault {
        let mut state = self.lock();
        if state.dead {
            return Fault::Kill;
        }
        self.world.look(point);
        if ["target.apply.after_commit", "target.load.after_commit"].contains(&point) {
            self.world.watch.commit_by(&self.instance, &self.world.target);
        }
        state.decisions += 1;
        let count = state.counts.entry(point).or_default();
        *count += 1;
        let fault = match &self.plan {
            Plan::Quiet => Fault::None,
            Plan::At(at, nth, fault) if *at == point && nth == count => *fault,
            Plan::At(..) => Fault::None,
            Plan::Random(rates) => self.draw(point, rates),
        };
        let fault = if state.decisions > DECISIONS_MAX {
            self.world.watch.report(format!("it goes round in circles, now at {point}"));
            Fault::Kill
        } else {
            fault
        };
        self.world.tell(|| format!("{} {point} {fault:?}", self.instance));
        self.world.digest((&self.instance, point, self.world.source.head()));
        if fault == Fault::Kill {
            state.dead = true;
            self.killed.notify_one();
        }
        fault
    }

    fn draw(&self, point: &str, rates: &Rates) -> Fault {
        let random = &self.world.random;
        let mut drawn = random.below(1000);
        let delay = Duration::from_millis([1, 20, 400, 2500][drawn % 4]);
        let faults = [
            (rates.kill, Fault::Kill),
            (rates.fail, Fault::Fail),
            (rates.lose, Fault::LoseAnswer),
            (rates.delay, Fault::Delay(delay)),
            (rates.give_way, Fault::Yield),
        ];
        for (rate, fault) in faults {
            if drawn < rate {
                return fault;
            }
            drawn -= rate;
        }
        // A chunk is many rows, so more happens while it is written than while a batch is.
        if point == "target.load.before_commit" && random.permille(300) {
            return Fault::Delay(delay);
        }
        // And while a batch is applied, the next one is looked at.
        if point == "target.apply.before_commit" && random.permille(300) {
            return Fault::Delay(Duration::from_millis(20));
        }
        Fault::None
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Script for ProcessScript {
    fn decide(&self, point: &'static str) -> Fault {
        self.next(point)
    }
}

/// The state directory as one process sees it.
pub struct WatchedStore {
    pub store: Arc<dyn Store>,
    /// Two disks in memory give the same marks to their stores, two machines do not.
    pub instance: String,
    pub script: Arc<ProcessScript>,
}

impl WatchedStore {
    fn write(
        &self,
        before: &'static str,
        after: &'static str,
        write: impl FnOnce() -> state::Result<()>,
    ) -> state::Result<()> {
        self.point(before)?;
        write()?;
        self.point(after)
    }

    /// Nothing can be awaited here: a delay is none, and a death is an error and then silence.
    fn point(&self, name: &'static str) -> state::Result<()> {
        match self.script.decide(name) {
            Fault::None | Fault::Yield | Fault::Delay(_) => Ok(()),
            Fault::Fail | Fault::LoseAnswer | Fault::Kill => Err(full()),
        }
    }
}

fn full() -> state::Error {
    let kind = state::ErrorKind::Disk(std::io::ErrorKind::StorageFull);
    state::Error { kind, message: "no space left on device".into() }
}

impl Store for WatchedStore {
    fn instance(&self) -> &str {
        &self.instance
    }

    fn checkpoint(&self) -> state::Result<Option<SavedCheckpoint>> {
        self.store.checkpoint()
    }

    fn save_checkpoint(&self, checkpoint: &SavedCheckpoint) -> state::Result<()> {
        self.write("state.save.before", "state.save.after", || {
            self.store.save_checkpoint(checkpoint)?;
            self.script.world.watch.saved(&self.instance, checkpoint);
            Ok(())
        })
    }

    fn tasks(&self) -> state::Result<Vec<Task>> {
        self.store.tasks()
    }

    fn save_task(&self, task: &Task) -> state::Result<()> {
        self.write("state.task.before", "state.task.after", || self.store.save_task(task))
    }

    fn remove_task(&self, id: u64) -> state::Result<()> {
        self.write("state.remove.before", "state.remove.after", || self.store.remove_task(id))
    }

    fn past_shapes(&self) -> state::Result<Vec<PastShape>> {
        self.store.past_shapes()
    }

    fn save_past_shapes(&self, shapes: &[PastShape]) -> state::Result<()> {
        self.write("state.shapes.before", "state.shapes.after", || {
            self.store.save_past_shapes(shapes)
        })
    }

    fn reset(&self) -> state::Result<()> {
        self.write("state.reset.before", "state.reset.after", || {
            self.store.reset()?;
            self.script.world.watch.forgotten(&self.instance);
            Ok(())
        })
    }
}
