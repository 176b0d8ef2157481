//! One seed's story: processes live and die while the workload runs, disks and targets are lost
//! between them; then everything is made good, and the target must equal the source.

use std::sync::Arc;
use std::time::Duration;

use connectors::error::Code;
use connectors::memory::{Mutant, Op, TargetBackup};
use driftless::control::Request;

use crate::process::{Command, End, live};
use crate::random::Random;
use crate::script::{Plan, Rates};
use crate::watch::PIPELINE;
use crate::workload::{Meddling, work};
use crate::world::{Setup, World};

/// How often the last part may try to make everything good.
const SETTLE_TRIES: usize = 4;

/// Tells the story of a seed to its end.
pub fn run(seed: u64, mutant: Mutant, verbose: bool) -> Result<(), String> {
    run_digested(seed, mutant, verbose).map(|_digest| ())
}

/// The same; returns a digest of everything that was decided.
pub fn run_digested(seed: u64, mutant: Mutant, verbose: bool) -> Result<u64, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(|error| error.to_string())?;
    let random = Random::new(seed);
    // Not drawn: the seeds of stories from before there were bulk reads still mean the same.
    let bulk_read_above = [None, None, Some(20), None][(seed % 4) as usize];
    let setup = Setup { mutant, bulk_read_above, ..Setup::draw(&random) };
    let world = World::new(setup, random, verbose);
    world.tell(|| format!("seed {seed}: {setup:?}"));
    runtime.block_on(story(&world))?;
    Ok(world.digest(world.target.remembered(PIPELINE).map(|remembered| remembered.fence)))
}

async fn story(world: &Arc<World>) -> Result<(), String> {
    let random = &world.random;
    let meddling = Meddling { damage: random.permille(300), poison: random.permille(200) };
    let steps = random.between(10, 60);
    let users = {
        let world = Arc::clone(world);
        tokio::spawn(async move { work(&world, steps, meddling).await })
    };
    let mut fate = Fate::default();
    for _ in 0..random.between(1, 6) {
        fate.round(world).await;
        world.watch.verdict()?;
        between(world, &mut fate);
    }
    users.await.map_err(|error| error.to_string())?;
    settle(world, fate.needs_resync).await
}

/// What the story carries from round to round.
#[derive(Default)]
struct Fate {
    backup: Option<TargetBackup>,
    needs_resync: bool,
    slot_made_twice: bool,
}

impl Fate {
    /// One or two processes, to their ends.
    async fn round(&mut self, world: &Arc<World>) {
        let random = &world.random;
        let first = self.command(world, 0);
        if random.permille(850) {
            let end = live(world, first).await;
            return self.ended(world, &end);
        }
        let checkpoint = world.target.remembered(PIPELINE).and_then(|r| r.checkpoint);
        if self.needs_resync || checkpoint.is_none() {
            // Both may make the slot; the later one leaves a gap for the other, who must say so.
            self.slot_made_twice = true;
            world.watch.slot_is_unknown(true);
        }
        let second = Command { take_over: random.permille(500), ..self.command(world, 1) };
        let delay = Duration::from_millis([0, 3, 50, 1500][random.below(4)]);
        let late = async {
            tokio::time::sleep(delay).await;
            live(world, second).await
        };
        let (first, second) = tokio::join!(live(world, first), late);
        self.ended(world, &first);
        self.ended(world, &second);
    }

    fn command(&self, world: &World, machine: usize) -> Command {
        let random = &world.random;
        let rates = match random.below(4) {
            0 => Rates { kill: 0, fail: 0, lose: 0, delay: 20, give_way: 100 },
            1 => Rates { kill: 5, fail: 0, lose: 0, delay: 0, give_way: 100 },
            2 => Rates { kill: 2, fail: 5, lose: 10, delay: 20, give_way: 50 },
            _ => Rates { kill: 10, fail: 20, lose: 20, delay: 40, give_way: 200 },
        };
        let life = Duration::from_millis([1, 40, 700, 4000, 15_000][random.below(5)]);
        let kill = random.permille(500);
        Command {
            machine,
            plan: Plan::Random(rates),
            until_current: random.permille(200),
            until_copied: false,
            take_over: false,
            resync: self.needs_resync,
            stop_after: (!kill).then_some(life),
            kill_after: Some(if kill { life } else { life * 20 }),
            requests: Vec::new(),
        }
    }

    fn ended(&mut self, world: &World, end: &End) {
        match end {
            End::GaveUp(error) if error.code == Code::SlotGap => self.expect_resync(world),
            End::GaveUp(error) if may_give_up(world, error.code) => {}
            End::GaveUp(error) => world.watch.report(format!("a process gave up: {error}")),
            End::Done | End::Killed => {
                let Some(acknowledged) = world.source.acknowledged() else { return };
                let checkpoint = world.target.remembered(PIPELINE).and_then(|r| r.checkpoint);
                if checkpoint.is_some_and(|checkpoint| checkpoint.version.log >= acknowledged) {
                    self.needs_resync = false;
                    world.watch.slot_is_unknown(false);
                }
            }
        }
    }

    fn expect_resync(&mut self, world: &World) {
        // Only a target that went back may find that the source keeps too little.
        if self.backup.is_none() && !self.slot_made_twice {
            world.watch.report("the source keeps less than the target needs".into());
        }
        self.needs_resync = true;
        world.watch.slot_is_unknown(true);
    }
}

fn may_give_up(world: &World, code: Code) -> bool {
    match code {
        Code::AlreadyRunning | Code::Fenced => true,
        Code::PoisonRow | Code::SchemaChange => world.watch.expects(code),
        _ => false,
    }
}

/// What happens while no process lives.
fn between(world: &World, fate: &mut Fate) {
    let random = &world.random;
    let disk = &world.disks[random.below(2)];
    match random.below(12) {
        0 if world.target.remembered(PIPELINE).is_some_and(|r| r.checkpoint.is_some()) => {
            fate.backup = Some(world.target.backup());
        }
        1 => {
            if let Some(backup) = fate.backup.clone() {
                world.tell(|| "the target goes back".into());
                world.target.restore(&backup);
                let checkpoint = world.target.remembered(PIPELINE).and_then(|r| r.checkpoint);
                let log = checkpoint.map_or(0, |checkpoint| checkpoint.version.log);
                let behind = world.source.acknowledged().is_some_and(|kept| kept > log);
                fate.needs_resync |= behind || log == 0;
                world.watch.target_went_back(fate.needs_resync);
            }
        }
        2 => {
            world.tell(|| "a disk is wiped".into());
            disk.wipe();
            world.watch.local_is_unknown();
        }
        3 | 4 => {
            world.tell(|| "a machine crashes".into());
            disk.crash();
            world.watch.local_is_unknown();
        }
        5 => {
            world.tell(|| "a state directory is damaged".into());
            disk.damage(PIPELINE);
            world.watch.local_is_unknown();
        }
        6 => disk.lie_about_flush(true),
        7 => disk.lie_about_flush(false),
        _ => {}
    }
}

/// Nothing goes wrong any more; what has to be made good by hand is made good; then compares.
pub async fn settle(world: &Arc<World>, resync: bool) -> Result<(), String> {
    world.tell(|| "all is to be made good".into());
    world.disks.iter().for_each(|disk| disk.lie_about_flush(false));
    world.show_all();
    remove_poison(world);
    let mut command = Command { resync, ..Command::quiet() };
    for _ in 0..SETTLE_TRIES {
        let end = live(world, command.clone()).await;
        world.watch.verdict()?;
        command = Command::quiet();
        match end {
            End::Done => world.watch.slot_is_unknown(false),
            End::GaveUp(error) if error.code == Code::SlotGap => command.resync = true,
            End::GaveUp(error) if may_give_up(world, error.code) => {}
            other => return Err(format!("the last process: {other:?}")),
        }
        let mut copied = world.stopped();
        copied.append(&mut world.state().damaged);
        copied.sort();
        copied.dedup();
        if copied.is_empty() && !command.resync {
            return finish(world).await;
        }
        let tables: Vec<String> = copied.iter().map(ToString::to_string).collect();
        if !tables.is_empty() {
            command.requests = vec![Request::Backfill { tables, filter: None }];
        }
    }
    Err("it could not be made good".into())
}

async fn finish(world: &Arc<World>) -> Result<(), String> {
    world.compare()?;
    // One more position, so that everything before it can be forgotten.
    let end = live(world, Command::quiet()).await;
    world.watch.verdict()?;
    world.compare()?;
    match (end, world.target.tombstones(PIPELINE)) {
        (End::Done, 0) => Ok(()),
        (End::Done, left) => Err(format!("{left} tombstones are left")),
        (end, _) => Err(format!("the process after the last: {end:?}")),
    }
}

fn remove_poison(world: &World) {
    for (table, key) in std::mem::take(&mut world.state().poisoned) {
        if world.source.rows(&table).contains_key(&key) {
            world.commit(&[Op::Delete { table, key }]);
        }
    }
}
