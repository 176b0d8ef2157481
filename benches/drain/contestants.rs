//! Those that drain a backlog, and how they are timed.

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use driftless::demo::{Error, Result};
use serde::Serialize;

use crate::meter::Meter;
use crate::peers::{self, Peer};
use crate::process::{Clock, Cost};
use crate::run::Run;
use crate::sides::WORK;
use crate::stage::{LOOK_EVERY, PATIENCE, Stage};
use crate::workload::Backlog;

/// Sessions are looked for once in so many looks; asking costs the servers something.
const FIND_EVERY: u32 = 10;

/// Who drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contestant {
    /// This project's program, `run --until-current`.
    Driftless,
    /// The databases' own replication.
    Native,
    /// The same of MariaDB, with the backlog in the replica's relay log before the clock runs.
    NativeRelayed,
}

impl FromStr for Contestant {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Contestant, ()> {
        let all = [Contestant::Driftless, Contestant::Native, Contestant::NativeRelayed];
        all.into_iter().find(|contestant| contestant.to_string() == text).ok_or(())
    }
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Contestant::Driftless => "driftless",
            Contestant::Native => "native",
            Contestant::NativeRelayed => "native-relayed",
        })
    }
}

impl Contestant {
    /// Copies what is there before the backlog is written, and stops.
    pub async fn prepare(self, stage: &Stage) -> Result<()> {
        match self {
            Contestant::Driftless => Run::first(stage)?.succeed(),
            Contestant::Native | Contestant::NativeRelayed => peers::prepare(stage).await,
        }
    }

    /// Gets ready for the backlog, which has been written.
    pub async fn line_up(self, stage: &Stage, backlog: &Backlog) -> Result<Racer> {
        match self {
            Contestant::Driftless => Ok(Racer::Driftless(None)),
            Contestant::Native | Contestant::NativeRelayed => {
                Ok(Racer::Peer(Peer::at(self, stage, backlog).await?))
            }
        }
    }
}

/// A contestant with the backlog before it.
pub enum Racer {
    /// Its process, once it runs. All that it knows is on disk.
    Driftless(Option<Run>),
    /// What is kept ready in the servers.
    Peer(Peer),
}

impl Racer {
    async fn start(&mut self, stage: &Stage) -> Result<()> {
        match self {
            Racer::Driftless(run) => *run = Some(Run::start(stage)?),
            Racer::Peer(peer) => peer.start().await?,
        }
        Ok(())
    }

    /// Whether the backlog is drained. Adds to the cost what our process has cost until now.
    async fn has_ended(&mut self, clock: Clock, cost: &mut Cost) -> Result<bool> {
        match self {
            Racer::Driftless(run) => {
                run.as_mut().map_or(Ok(false), |run| run.has_ended(clock, cost))
            }
            Racer::Peer(peer) => peer.has_ended().await,
        }
    }

    async fn rest(self, stage: &Stage) -> Result<()> {
        match self {
            Racer::Driftless(run) => run.map_or(Ok(()), Run::succeed),
            Racer::Peer(peer) => peer.rest(stage).await,
        }
    }
}

/// Drains the backlog, and says what that took.
pub async fn drain(contestant: Contestant, mut racer: Racer, stage: &Stage) -> Result<Cost> {
    let clock = Clock::of_system()?;
    let mut source = Meter::of(&stage.source, WORK, clock)?;
    let mut target = Meter::of(&stage.target, stage.database(contestant), clock)?;
    let mut cost = Cost::default();
    let started = Instant::now();
    racer.start(stage).await?;
    for look in 0.. {
        let ended = racer.has_ended(clock, &mut cost).await?;
        cost.seconds = started.elapsed().as_secs_f64();
        source.look();
        target.look();
        if ended {
            break;
        }
        if cost.seconds > PATIENCE.as_secs_f64() {
            return Err(Error(format!("{contestant} has not drained the backlog in time")));
        }
        if look % FIND_EVERY == 0 {
            source.find().await?;
            target.find().await?;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    (cost.sender_cpu, cost.source_cpu) = (source.sender(), source.others());
    cost.target_cpu = target.others();
    racer.rest(stage).await?;
    Ok(cost)
}
