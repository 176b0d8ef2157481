//! The databases' own replication: what we are measured against. Each is prepared before the
//! backlog is drained, starts when it is told to, and rests afterwards.

mod mariadb;
mod postgres;

use driftless::demo::Result;
use driftless::demo::server::Engine;

use crate::contestants::Contestant;
use crate::stage::Stage;
use crate::workload::Backlog;

/// A database's own replication, ready to drain a backlog.
pub enum Peer {
    /// CREATE SUBSCRIPTION.
    Postgres(postgres::Subscription),
    /// CHANGE MASTER TO.
    Mariadb(Box<mariadb::Replica>),
}

/// Copies what is there before the backlog is written, and stops. MariaDB's needs nothing: it
/// copies by following the log from its beginning, for which there is time later.
pub async fn prepare(stage: &Stage) -> Result<()> {
    match stage.target.engine {
        Engine::Postgres => postgres::subscribe(stage).await,
        Engine::Mariadb => Ok(()),
    }
}

impl Peer {
    /// Has everything but the backlog, and rests.
    pub async fn at(contestant: Contestant, stage: &Stage, backlog: &Backlog) -> Result<Peer> {
        Ok(match stage.target.engine {
            Engine::Postgres => Peer::Postgres(postgres::Subscription::of(stage).await?),
            Engine::Mariadb => {
                let mut replica = mariadb::Replica::new(stage).await?;
                replica.follow_until(backlog).await?;
                if contestant == Contestant::NativeRelayed {
                    replica.fetch(stage).await?;
                }
                Peer::Mariadb(Box::new(replica))
            }
        })
    }

    /// From here on the clock runs.
    pub async fn start(&mut self) -> Result<()> {
        match self {
            Peer::Postgres(subscription) => subscription.start().await,
            Peer::Mariadb(replica) => replica.start().await,
        }
    }

    /// Whether the last row of the backlog can be seen.
    pub async fn has_ended(&mut self) -> Result<bool> {
        match self {
            Peer::Postgres(subscription) => subscription.has_ended().await,
            Peer::Mariadb(replica) => replica.has_ended().await,
        }
    }

    /// Stops it, and waits until it has stopped.
    pub async fn rest(self, stage: &Stage) -> Result<()> {
        match self {
            Peer::Postgres(_) => postgres::rest(stage).await,
            Peer::Mariadb(mut replica) => replica.rest().await,
        }
    }
}
