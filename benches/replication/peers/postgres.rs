//! PostgreSQL's own logical replication: as it comes, with asynchronous commits, or
//! `native-durable`, which waits for the disk like everybody else.

use driftless::demo::Result;
use driftless::demo::server::session::Session;
use driftless::demo::server::{PASSWORD, USER};

use crate::contestant::Contestant;
use crate::sides::WORK;
use crate::sides::postgres::PUBLICATION;
use crate::stage::{Stage, wait_until};

/// A subscription, seen from its database.
pub struct Subscription {
    name: String,
    durable: bool,
    target: Session,
    /// Whether the first copy is what is measured.
    copies: bool,
}

impl Subscription {
    /// One that may have to be created still.
    pub async fn of(stage: &Stage, contestant: Contestant, copies: bool) -> Result<Subscription> {
        let target = stage.target.session(&stage.database(contestant)).await?;
        let durable = contestant == Contestant::NativeDurable;
        Ok(Subscription { name: contestant.identifier(), durable, target, copies })
    }

    /// Copies what is there before the backlog, then rests. A slot keeps everything from then on.
    pub async fn prepare(&self, stage: &Stage) -> Result<()> {
        self.create(stage).await?;
        wait_until("PostgreSQL has copied the tables", async || self.has_copied().await).await?;
        self.rest(stage).await
    }

    /// Lets it copy, or drain.
    pub async fn start(&self, stage: &Stage) -> Result<()> {
        match self.copies {
            true => self.create(stage).await,
            false => {
                let enable = format!("ALTER SUBSCRIPTION {} ENABLE", self.name);
                self.target.batch_execute(&enable).await
            }
        }
    }

    /// Whether all tables are copied, or the last row can be seen.
    pub async fn has_ended(&self) -> Result<bool> {
        match self.copies {
            true => self.has_copied().await,
            false => Ok(self.target.ask("SELECT id FROM finish").await?.is_some()),
        }
    }

    /// Makes it rest, and waits until its processes are gone.
    pub async fn rest(&self, stage: &Stage) -> Result<()> {
        self.target.batch_execute(&format!("ALTER SUBSCRIPTION {} DISABLE", self.name)).await?;
        let active =
            format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{}'", self.name);
        wait_until("PostgreSQL's subscription rests", async || {
            Ok(stage.source.watch.ask(&active).await?.as_deref() == Some("f"))
        })
        .await
    }

    async fn create(&self, stage: &Stage) -> Result<()> {
        let (name, port) = (&self.name, stage.source.server.port());
        let commit = if self.durable { "on" } else { "off" };
        let create = format!(
            "CREATE SUBSCRIPTION {name} CONNECTION \
             'host=127.0.0.1 port={port} user={USER} password={PASSWORD} dbname={WORK}' \
             PUBLICATION {PUBLICATION} WITH (synchronous_commit = {commit})"
        );
        self.target.batch_execute(&create).await
    }

    async fn has_copied(&self) -> Result<bool> {
        let copied = format!(
            "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel \
             JOIN pg_subscription ON oid = srsubid WHERE subname = '{}'",
            self.name
        );
        Ok(self.target.ask(&copied).await?.as_deref() == Some("t"))
    }
}
