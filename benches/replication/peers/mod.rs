//! What each contestant does: this project's program, the databases' own replication, and the tools
//! beside them. Each is prepared, lines up, starts when it is told to, and rests afterwards.

pub mod driftless;
mod ends;
mod mariadb;
mod postgres;
mod program;
pub mod tools;

use ::driftless::demo::server::Engine;
use ::driftless::demo::{Error, Result};

use crate::contestant::Contestant;
use crate::measure::process::{Clock, Cost};
use crate::stage::Stage;
use crate::workloads::Backlog;

/// A contestant that is about to start, or under way.
pub enum Racer {
    /// driftless or a tool. All that it knows is on disk.
    Program(program::Program),
    /// CREATE SUBSCRIPTION.
    Subscription(postgres::Subscription),
    /// CHANGE MASTER TO.
    Replica(Box<mariadb::Replica>),
}

/// Why a contestant cannot take part on this machine.
pub fn missing(contestant: Contestant) -> Option<&'static str> {
    match contestant {
        Contestant::DriftlessStreaming if !driftless::knows_bulk_read() => {
            Some("this program has no `[source] bulk_read` to turn off, so it always streams")
        }
        _ => tools::missing(contestant),
    }
}

/// Copies what is there before the backlog is written, and stops. MariaDB's own replication needs
/// nothing: it copies by following the log from its beginning, for which there is time later.
pub async fn prepare(contestant: Contestant, stage: &Stage) -> Result<()> {
    match contestant {
        Contestant::Driftless | Contestant::DriftlessStreaming => {
            driftless::prepare(stage, contestant)
        }
        Contestant::Native | Contestant::NativeDurable if is_postgres(stage) => {
            let subscription = postgres::Subscription::of(stage, contestant, false).await?;
            subscription.prepare(stage).await
        }
        Contestant::Sender => tools::keep_log(stage, tools::SLOT).await,
        Contestant::BothEnds => tools::keep_log(stage, ends::SLOT).await,
        Contestant::Native
        | Contestant::NativeDurable
        | Contestant::NativeRelayed
        | Contestant::NativeRelaxed
        | Contestant::Pgcopydb
        | Contestant::Pipe
        | Contestant::PipeBinary => Ok(()),
    }
}

fn is_postgres(stage: &Stage) -> bool {
    stage.target.engine == Engine::Postgres
}

impl Racer {
    /// Gets ready for a backlog, which has been written.
    pub async fn before(backlog: &Backlog, contestant: Contestant, stage: &Stage) -> Result<Racer> {
        Ok(match contestant {
            Contestant::Driftless | Contestant::DriftlessStreaming => {
                Racer::Program(driftless::until_current(stage, contestant))
            }
            Contestant::Native | Contestant::NativeDurable if is_postgres(stage) => {
                Racer::Subscription(postgres::Subscription::of(stage, contestant, false).await?)
            }
            Contestant::Native | Contestant::NativeRelayed | Contestant::NativeRelaxed => {
                let mut replica = mariadb::Replica::new(stage, contestant).await?;
                replica.follow_until(backlog).await?;
                if contestant == Contestant::NativeRelayed {
                    replica.fetch(stage).await?;
                }
                Racer::Replica(Box::new(replica))
            }
            Contestant::Sender => Racer::Program(tools::sender(stage, backlog)?),
            Contestant::BothEnds => Racer::Program(ends::both(stage)?),
            Contestant::NativeDurable
            | Contestant::Pgcopydb
            | Contestant::Pipe
            | Contestant::PipeBinary => return Err(cannot(contestant, "drain a backlog")),
        })
    }

    /// Gets ready to copy.
    pub async fn to_copy(contestant: Contestant, stage: &Stage) -> Result<Racer> {
        Ok(match contestant {
            Contestant::Driftless | Contestant::DriftlessStreaming => {
                driftless::forget(stage, contestant);
                Racer::Program(driftless::until_current(stage, contestant))
            }
            Contestant::Native | Contestant::NativeDurable if is_postgres(stage) => {
                Racer::Subscription(postgres::Subscription::of(stage, contestant, true).await?)
            }
            Contestant::Pgcopydb => Racer::Program(tools::pgcopydb(stage)),
            Contestant::Pipe | Contestant::PipeBinary => {
                Racer::Program(tools::pipe(stage, contestant))
            }
            Contestant::Native
            | Contestant::NativeDurable
            | Contestant::NativeRelayed
            | Contestant::NativeRelaxed
            | Contestant::Sender
            | Contestant::BothEnds => return Err(cannot(contestant, "copy")),
        })
    }

    /// Gets ready to follow whatever comes.
    pub async fn to_follow(contestant: Contestant, stage: &Stage) -> Result<Racer> {
        Ok(match contestant {
            Contestant::Driftless | Contestant::DriftlessStreaming => {
                Racer::Program(driftless::endless(stage, contestant))
            }
            Contestant::Native | Contestant::NativeDurable if is_postgres(stage) => {
                Racer::Subscription(postgres::Subscription::of(stage, contestant, false).await?)
            }
            Contestant::Native | Contestant::NativeRelaxed => {
                Racer::Replica(Box::new(mariadb::Replica::new(stage, contestant).await?))
            }
            Contestant::NativeDurable
            | Contestant::NativeRelayed
            | Contestant::Sender
            | Contestant::BothEnds
            | Contestant::Pgcopydb
            | Contestant::Pipe
            | Contestant::PipeBinary => return Err(cannot(contestant, "follow")),
        })
    }

    /// From here on the clock runs.
    pub async fn start(&mut self, stage: &Stage) -> Result<()> {
        match self {
            Racer::Program(program) => program.start(),
            Racer::Subscription(subscription) => subscription.start(stage).await,
            Racer::Replica(replica) => replica.start().await,
        }
    }

    /// Whether it is done. Adds to the cost what a program has cost until now.
    pub async fn has_ended(&mut self, clock: Clock, cost: &mut Cost) -> Result<bool> {
        match self {
            Racer::Program(program) => program.look(clock, cost),
            Racer::Subscription(subscription) => subscription.has_ended().await,
            Racer::Replica(replica) => replica.has_ended().await,
        }
    }

    /// What it has cost until now; an error if it has stopped by itself.
    pub fn must_go_on(&mut self, clock: Clock, cost: &mut Cost) -> Result<()> {
        match self {
            Racer::Program(program) => match program.look(clock, cost)? {
                true => Err(Error("it ended although it was to follow".into())),
                false => Ok(()),
            },
            // They live in the servers, and what they do is seen there.
            Racer::Subscription(_) | Racer::Replica(_) => Ok(()),
        }
    }

    /// Waits until it has ended well, or stops what never ends by itself.
    pub async fn rest(self, stage: &Stage) -> Result<()> {
        match self {
            Racer::Program(program) => program.succeed(),
            Racer::Subscription(subscription) => subscription.rest(stage).await,
            Racer::Replica(replica) => replica.rest(stage).await,
        }
    }

    /// Stops one that followed.
    pub async fn stop(self, stage: &Stage) -> Result<()> {
        match self {
            Racer::Program(program) => program.stop(),
            others => others.rest(stage).await,
        }
    }
}

fn cannot(contestant: Contestant, what: &str) -> Error {
    Error(format!("{contestant} is not made to {what}"))
}
