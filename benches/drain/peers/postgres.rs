//! PostgreSQL's own logical replication, with its default of asynchronous commits.

use driftless::demo::Result;
use driftless::demo::server::session::Session;
use driftless::demo::server::{PASSWORD, USER};

use crate::sides::WORK;
use crate::sides::postgres::THEIRS;
use crate::stage::{Stage, wait_until};

/// A subscription that has copied the tables.
pub struct Subscription {
    target: Session,
}

impl Subscription {
    /// The one that `subscribe` has made.
    pub async fn of(stage: &Stage) -> Result<Subscription> {
        Ok(Subscription { target: stage.target.server.session(THEIRS).await? })
    }

    /// Lets it drain.
    pub async fn start(&self) -> Result<()> {
        self.target.batch_execute("ALTER SUBSCRIPTION native ENABLE").await
    }

    /// Whether it has the last row.
    pub async fn has_ended(&self) -> Result<bool> {
        Ok(self.target.ask("SELECT id FROM finish").await?.is_some())
    }
}

/// Copies what is there, then rests. A slot keeps everything from then on.
pub async fn subscribe(stage: &Stage) -> Result<()> {
    let source = stage.source.server.session(WORK).await?;
    source.batch_execute("CREATE PUBLICATION native FOR ALL TABLES").await?;
    let port = stage.source.server.port();
    let target = stage.target.server.session(THEIRS).await?;
    let subscription = format!(
        "CREATE SUBSCRIPTION native CONNECTION \
         'host=127.0.0.1 port={port} user={USER} password={PASSWORD} dbname={WORK}' \
         PUBLICATION native"
    );
    target.batch_execute(&subscription).await?;
    let copied = "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel";
    wait_until("PostgreSQL has copied the tables", async || {
        Ok(target.ask(copied).await?.as_deref() == Some("t"))
    })
    .await?;
    rest(stage).await
}

/// Makes the subscription rest, and waits until its processes are gone.
pub async fn rest(stage: &Stage) -> Result<()> {
    let target = stage.target.server.session(THEIRS).await?;
    target.batch_execute("ALTER SUBSCRIPTION native DISABLE").await?;
    let active = "SELECT active FROM pg_replication_slots WHERE slot_name = 'native'";
    wait_until("PostgreSQL's subscription rests", async || {
        Ok(stage.source.watch.ask(active).await?.as_deref() == Some("f"))
    })
    .await
}
