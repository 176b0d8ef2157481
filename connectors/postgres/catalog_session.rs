//! The session in which `stream.rs` asks about tables and snapshots while it reads the log.
//!
//! Surprise: a question goes on when the future that asked it is dropped. Asked anew each time, it
//! would never be answered to a caller who is in a hurry.

use std::pin::Pin;
use std::sync::Arc;

use tokio::time::timeout;
use tokio_postgres::Client;

use super::catalog::{self, CatalogTable};
use super::config::Config;
use super::connect;
use super::lsn::Lsn;
use super::pgoutput;
use super::pipeline::{ANSWER, HEARTBEAT};
use super::source_sql as sql;
use super::transaction::Relation;
use super::visibility::Snapshot;
use crate::error::{Code, Error, Result};
use crate::schema::TableSchema;

/// The tables of interest, and a connection to ask about them.
pub struct CatalogSession {
    config: Arc<Config>,
    slot: String,
    client: Option<Arc<Client>>,
    tables: Vec<Arc<TableSchema>>,
    asking: Option<Asking>,
}

/// A question, which has the connection until it is answered.
type Asking = Pin<Box<dyn Future<Output = Result<(Arc<Client>, Answer)>> + Send>>;

/// What the source said.
pub struct Answer {
    /// The snapshot of now.
    pub snapshot: Snapshot,
    /// The end of the log as it is safe on disk.
    pub end: Lsn,
    /// From where the server would read the log again for our slot, if that is there.
    pub restart: Option<Lsn>,
    /// The table that was asked for.
    pub table: Option<CatalogTable>,
}

impl CatalogSession {
    /// Asks in this session, and in another one once it has ended.
    pub fn new(
        config: Arc<Config>,
        slot: &str,
        tables: &[Arc<TableSchema>],
        client: Arc<Client>,
    ) -> CatalogSession {
        let (slot, tables) = (slot.to_owned(), tables.to_vec());
        CatalogSession { config, slot, client: Some(client), tables, asking: None }
    }

    /// A transaction id above all that were given out before.
    ///
    /// # Errors
    /// The connection.
    pub async fn next_xid(&mut self) -> Result<u64> {
        let client = alive(&self.config, self.client.take()).await?;
        let row = client.query_one(sql::NEXT_XID, &[]).await;
        let row = row.map_err(|error| connect::error("read the next transaction id", &error))?;
        self.client = Some(client);
        let number = |_| Error::stop(Code::Protocol, "the source's transaction id is no number");
        row.get::<_, &str>(0).parse().map_err(number)
    }

    /// What a RELATION message means. Cancel-safe.
    ///
    /// # Errors
    /// The connection.
    pub async fn resolve(&mut self, relation: &pgoutput::Relation<'_>) -> Result<Relation> {
        let known = self.tables.iter().any(|table| table.id == relation.id);
        let current = match known {
            true => self.ask(Some(relation.id)).await?.table,
            false => None,
        };
        Ok(catalog::resolve(relation, &self.tables, current.as_ref()))
    }

    /// How things are now, and the table if one is asked for. Cancel-safe; asked again, the
    /// question must be the same.
    ///
    /// # Errors
    /// The connection.
    pub async fn ask(&mut self, table: Option<u32>) -> Result<Answer> {
        let CatalogSession { config, slot, client, asking, .. } = self;
        let answering = asking.get_or_insert_with(|| {
            let answer = answer(config.clone(), slot.clone(), client.take(), table);
            Box::pin(async {
                // A connection that swallows everything must not hold up the log for ever.
                timeout(HEARTBEAT + ANSWER, answer).await.unwrap_or_else(|_| {
                    let message = "the source's catalog does not answer";
                    Err(Error::transient(Code::Unreachable, message))
                })
            })
        });
        let answer = answering.as_mut().await;
        *asking = None;
        let (connected, answer) = answer?;
        *client = Some(connected);
        Ok(answer)
    }
}

/// This session, or another one if it has ended.
async fn alive(config: &Config, client: Option<Arc<Client>>) -> Result<Arc<Client>> {
    match client.filter(|client| !client.is_closed()) {
        Some(client) => Ok(client),
        None => Ok(Arc::new(connect::connect(config, "driftless catalog").await?)),
    }
}

async fn answer(
    config: Arc<Config>,
    slot: String,
    client: Option<Arc<Client>>,
    table: Option<u32>,
) -> Result<(Arc<Client>, Answer)> {
    let client = alive(&config, client).await?;
    let row = client.query_one(sql::NOW, &[&slot]).await;
    let row = row.map_err(|error| connect::error("read the snapshot", &error))?;
    let (snapshot, end) = (Snapshot::parse(row.get(0))?, row.get::<_, &str>(1).parse()?);
    let restart = row.get::<_, Option<&str>>(2).map(str::parse).transpose()?;
    let table = match table {
        Some(id) => catalog::by_ids(&client, &[id]).await?.pop(),
        None => None,
    };
    Ok((client, Answer { snapshot, end, restart, table }))
}
