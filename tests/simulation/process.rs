//! One process: the real engine with its sessions, as `daemon.rs` keeps them going, until it is
//! told to stop, is killed, or gives up.

use std::sync::Arc;
use std::time::Duration;

use connectors::error::{Code, Error};
use connectors::memory::{Faults, MemorySource, MemoryTarget};
use connectors::schema::TablePatterns;
use connectors::{Source, Target};
use driftless::backfill::Waiting;
use driftless::batcher::Bounds;
use driftless::connect::TargetFactory;
use driftless::control::{Ask, Request};
use driftless::pipeline::{Limits, Pipeline, Session};
use driftless::status::Status;
use state::Store;
use tokio::sync::{mpsc, watch};

use crate::script::{Plan, ProcessScript, WatchedStore};
use crate::watch::PIPELINE;
use crate::world::World;

/// No process lives longer than this, by the clock of the simulation.
const LIFE_MAX: Duration = Duration::from_secs(3600);

/// What a process is told on its command line.
#[derive(Clone, Debug)]
pub struct Command {
    /// On which machine.
    pub machine: usize,
    pub plan: Plan,
    pub until_current: bool,
    pub until_copied: bool,
    pub take_over: bool,
    pub resync: bool,
    /// Ends it in order after this long.
    pub stop_after: Option<Duration>,
    /// Kills it after this long.
    pub kill_after: Option<Duration>,
    /// What it is asked from the beginning.
    pub requests: Vec<Request>,
}

/// How a process ended.
#[derive(Clone, Debug)]
pub enum End {
    Killed,
    Done,
    GaveUp(Error),
}

impl Command {
    /// Runs until everything is current, and nothing goes wrong.
    pub fn quiet() -> Command {
        Command {
            machine: 0,
            plan: Plan::Quiet,
            until_current: true,
            until_copied: false,
            take_over: false,
            resync: false,
            stop_after: None,
            kill_after: None,
            requests: Vec::new(),
        }
    }
}

/// Runs a process to its end.
pub async fn live(world: &Arc<World>, command: Command) -> End {
    let disk = world.disks[command.machine].open(PIPELINE);
    let store = match disk {
        Ok(opened) => opened.store,
        Err(error) => return End::GaveUp(driftless::persist::state_error(&error)),
    };
    let instance = format!("machine-{}-{}", command.machine, store.instance());
    let script = ProcessScript::new(world, &instance, command.plan.clone());
    live_with(world, command, store, script).await
}

/// The same with a script that the caller keeps.
pub async fn live_with(
    world: &Arc<World>,
    command: Command,
    store: Arc<dyn Store>,
    script: Arc<ProcessScript>,
) -> End {
    let released = Arc::downgrade(&store);
    let pipeline = pipeline(world, store, &script);
    let (stop_in, stop) = watch::channel(false);
    let (asks_in, asks) = mpsc::channel(8);
    let mut answers = Vec::new();
    for request in &command.requests {
        let (reply, answer) = mpsc::channel(16);
        let _ = asks_in.try_send(Ask { request: request.clone(), reply });
        answers.push(answer);
    }
    world.state().asks = Some(asks_in);
    let session = Session {
        fence: None,
        take_over: command.take_over,
        resync: command.resync,
        until_current: command.until_current,
        until_copied: command.until_copied,
        mark: None,
        new_logs: Vec::new(),
        established: false,
        asks,
        stop,
    };
    world.tell(|| format!("process begins: {command:?}"));
    let end = tokio::select! {
        biased;
        () = script.killed() => End::Killed,
        () = after(command.kill_after) => End::Killed,
        () = after(Some(LIFE_MAX)) => {
            world.watch.report("a process was stuck".into());
            End::Killed
        }
        // It only sets the flag and never ends.
        () = tell_stop(stop_in, command.stop_after) => End::Killed,
        end = sessions(world, &pipeline, session) => end,
    };
    drop(pipeline);
    // Aborted tasks are dropped by the runtime a little later.
    while released.strong_count() > 0 {
        tokio::task::yield_now().await;
    }
    if matches!(end, End::Done) {
        answers.into_iter().for_each(|answer| expect_done(world, answer));
    }
    world.look("after a process");
    world.tell(|| format!("process ended: {end:?}"));
    end
}

async fn sessions(world: &World, pipeline: &Pipeline, mut session: Session) -> End {
    loop {
        let error = match pipeline.run(&mut session).await {
            Ok(()) => return End::Done,
            Err(error) if error.is_transient() => error,
            Err(error) => return End::GaveUp(error),
        };
        world.tell(|| format!("session ended: {error}"));
        if *session.stop.borrow() {
            return End::Done;
        }
        if error.code != Code::Resumed {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn pipeline(world: &Arc<World>, store: Arc<dyn Store>, script: &Arc<ProcessScript>) -> Pipeline {
    let setup = world.setup;
    let faults = Faults::new(script.clone());
    let source = MemorySource::new(&world.source, faults.clone())
        .in_parts(setup.part_changes_max)
        .in_bulk(setup.bulk_read_above)
        .without(setup.mutant);
    let instance = script.instance().to_owned();
    let bounds = Bounds {
        rows: setup.batch_rows,
        bytes: 1 << 20,
        wait: Duration::from_millis(setup.batch_wait_ms as u64),
    };
    let limits = Limits {
        bounds,
        queue_bytes: setup.queue_kib * 1024,
        chunk_rows: setup.chunk_rows,
        chunk_bytes: 1 << 20,
        copy_workers: setup.copy_workers,
        stop_on_table_error: false,
    };
    Pipeline {
        source: Arc::new(source) as Arc<dyn Source>,
        connect_target: connect_target(world, faults),
        store: Arc::new(WatchedStore { store, instance, script: Arc::clone(script) }),
        tables: TablePatterns::parse(&["public.*"], "public").expect("a pattern"),
        limits,
        status: Arc::new(Status::new(PIPELINE)),
        asked: Arc::new(Waiting::default()),
    }
}

fn connect_target(world: &World, faults: Faults) -> TargetFactory {
    let (server, options) = (Arc::clone(&world.target), world.target_options());
    Arc::new(move || {
        let target = MemoryTarget::new(&server, options.clone(), faults.clone());
        Box::pin(async move { Ok(Box::new(target) as Box<dyn Target>) })
    })
}

async fn after(delay: Option<Duration>) {
    match delay {
        Some(delay) => tokio::time::sleep(delay).await,
        None => std::future::pending().await,
    }
}

async fn tell_stop(stop: watch::Sender<bool>, delay: Option<Duration>) {
    after(delay).await;
    stop.send_replace(true);
    std::future::pending().await
}

fn expect_done(world: &World, mut answer: mpsc::Receiver<driftless::control::Reply>) {
    let mut last = None;
    while let Ok(reply) = answer.try_recv() {
        last = Some(reply);
    }
    if !matches!(last, Some(driftless::control::Reply::Done { .. })) {
        world.watch.report(format!("a request was not done, but answered {last:?}"));
    }
}
