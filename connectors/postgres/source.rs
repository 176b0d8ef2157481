//! PostgreSQL as a source: the contract's methods, each a few lines over the files beside it.
//!
//! Surprise: a method opens its own session and closes it; only the stream and the readers keep
//! theirs. A session of a source that is asked once a minute would be in its way. But a pipeline that
//! begins asks one thing after another, in one session, which its stream has from then on.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio_postgres::Client;

use super::catalog::CatalogTable;
use super::chunk::Reader;
use super::config::Config;
use super::lsn::{Bookmark, Lsn};
use super::pipeline::Early;
use super::session;
use super::source_sql as sql;
use super::stream::{Opening, Stream};
use super::values::InBinary;
use super::visibility::CommitLog;
use super::wire::Wire;
use super::{catalog, check, connect, publication, subscribe};
use crate::error::{Code, Error, Result};
use crate::schema::{TablePatterns, TableSchema};
use crate::version::{Position, Version};
use crate::{ChangeStream, Finding, Resume, RowReader, Source, SourceOptions};

/// A PostgreSQL database whose log we read, for one pipeline.
pub struct PostgresSource {
    config: Arc<Config>,
    /// The name of slot and publication.
    slot: String,
    part_bytes: usize,
    spool: PathBuf,
    early: Early,
    in_binary: InBinary,
    bulk_read_above: Option<u64>,
    read_ahead: usize,
    bulk_read_refused: Arc<AtomicBool>,
    commits: Arc<CommitLog>,
    beginning: Mutex<Beginning>,
}

/// The sessions of a pipeline that begins, until its log is open.
#[derive(Default)]
struct Beginning {
    client: Option<Arc<Client>>,
    /// May read the log.
    wire: Option<Wire>,
}

/// A source; nothing is connected yet.
///
/// # Errors
/// `configuration`, for a URL that cannot be read or a pipeline name that no slot can have.
pub fn source(url: &str, options: &SourceOptions) -> Result<PostgresSource> {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
    if options.pipeline.is_empty() || !options.pipeline.bytes().all(allowed) {
        return Err(Error::stop(
            Code::Configuration,
            format!("pipeline name {:?} has other characters than a-z, 0-9, _", options.pipeline),
        ));
    }
    Ok(PostgresSource {
        config: Arc::new(Config::parse(url)?),
        slot: format!("driftless_{}", options.pipeline),
        part_bytes: options.part_bytes,
        spool: options.spool.clone(),
        early: Early::new(options.streaming),
        in_binary: InBinary::new(options.in_binary),
        bulk_read_above: options.bulk_read_above,
        read_ahead: options.read_ahead,
        bulk_read_refused: Arc::default(),
        commits: Arc::default(),
        beginning: Mutex::default(),
    })
}

impl PostgresSource {
    async fn session(&self) -> Result<Client> {
        connect::connect(&self.config, &session::application(&self.slot)).await
    }

    /// The session of a pipeline that begins.
    async fn beginning(&self) -> Result<Arc<Client>> {
        if let Some(client) = self.begun() {
            return Ok(client);
        }
        let client = Arc::new(self.session().await?);
        self.kept(|kept| kept.client = Some(client.clone()));
        Ok(client)
    }

    /// The same, if there is one.
    fn begun(&self) -> Option<Arc<Client>> {
        self.kept(|kept| kept.client.clone()).filter(|client| !client.is_closed())
    }

    fn kept<T>(&self, change: impl FnOnce(&mut Beginning) -> T) -> T {
        change(&mut self.beginning.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The tables as the catalog has them now; each is still the one that is meant.
    async fn current(
        &self,
        client: &Client,
        tables: &[Arc<TableSchema>],
    ) -> Result<Vec<CatalogTable>> {
        let ids: Vec<u32> = tables.iter().map(|table| table.id).collect();
        let current = catalog::by_ids(client, &ids).await?;
        for table in tables {
            let same = |now: &&CatalogTable| now.id == table.id && now.name == table.name;
            let Some(now) = current.iter().find(same) else {
                // Whoever asked looks at the tables again before the next try.
                let message = format!("table {} was dropped or renamed just now", table.name);
                return Err(Error::transient(Code::MissingTable, message));
            };
            now.schema()?;
        }
        Ok(current)
    }
}

#[async_trait]
impl Source for PostgresSource {
    async fn check(&self, tables: &TablePatterns) -> Result<Vec<Finding>> {
        check::check(&*self.beginning().await?, &self.slot, tables).await
    }

    async fn tables(&self, tables: &TablePatterns) -> Result<Vec<Arc<TableSchema>>> {
        let matching = catalog::matching(&*self.beginning().await?, tables).await?;
        matching.iter().map(|table| table.schema().map(Arc::new)).collect()
    }

    async fn subscribe(
        &self,
        tables: &[Arc<TableSchema>],
        resume: Option<Resume<'_>>,
    ) -> Result<Position> {
        let client = self.beginning().await?;
        let current = self.current(&client, tables).await?;
        let mut wire = session::login(&self.config, &self.slot).await?;
        let (identity, _) = session::identify(&mut wire).await?;
        self.kept(|kept| kept.wire = Some(wire));
        let Some(Resume { position, relied_upon }) = resume else {
            let publication = publication::ensure(&client, &self.slot, &current).await?.id;
            let lsn = subscribe::create_slot(&client, &self.slot).await?;
            return Ok(Bookmark { identity, publication, lsn, log: lsn }.position());
        };
        let ours = Bookmark::read(position)?;
        // The slot first: whatever it has confirmed was in the log before.
        let slot = subscribe::slot(&client, &self.slot).await?;
        let flushed = flushed(&client).await?;
        subscribe::prove(&self.slot, &ours, (&identity, flushed), slot.as_ref())?;
        let publication = publication::find(&client, &self.slot).await?;
        publication::prove(&self.slot, &ours, publication.as_ref())?;
        if let Some(publication) = &publication {
            let relied = |table: &&CatalogTable| relied_upon.contains(&table.name);
            publication.prove_tables(&self.slot, current.iter().filter(relied))?;
        }
        publication::ensure(&client, &self.slot, &current).await?;
        Ok(position.clone())
    }

    async fn subscription(&self) -> Result<Option<String>> {
        let client = self.beginning().await?;
        let slot = subscribe::slot(&client, &self.slot).await?;
        let publication = publication::find(&client, &self.slot).await?;
        Ok(match (slot.is_some(), publication.is_some()) {
            (true, true) => Some(format!("replication slot and publication {}", self.slot)),
            (true, false) => Some(format!("replication slot {}", self.slot)),
            // Without a slot nothing is kept: its owner may have prepared the publication for us.
            (false, _) => None,
        })
    }

    async fn unsubscribe(&self) -> Result<()> {
        subscribe::remove(&self.session().await?, &self.slot).await
    }

    async fn evict(&self) -> Result<()> {
        subscribe::evict(&self.session().await?, &self.slot).await
    }

    async fn stream(
        &self,
        from: &Position,
        epoch: u32,
        tables: &[Arc<TableSchema>],
        // PostgreSQL describes each table in the log, before its rows.
        _earlier: &[Arc<TableSchema>],
    ) -> Result<Box<dyn ChangeStream>> {
        let opening = Opening {
            config: &self.config,
            slot: &self.slot,
            from: Bookmark::read(from)?,
            epoch,
            tables,
            part_bytes: self.part_bytes,
            spool: &self.spool,
            early: self.early.clone(),
            in_binary: self.in_binary.clone(),
            bulk_read_above: self.bulk_read_above,
            read_ahead: self.read_ahead,
            bulk_read_refused: self.bulk_read_refused.clone(),
            commits: self.commits.clone(),
            client: self.beginning().await?,
            wire: self.kept(|kept| kept.wire.take()),
        };
        let stream = Stream::open(opening).await?;
        self.kept(|kept| kept.client = None);
        Ok(Box::new(stream))
    }

    fn version_of(&self, position: &Position, epoch: u32) -> Result<Version> {
        Ok(Version::at_log(epoch, Bookmark::read(position)?.log.0))
    }

    async fn mark(&self, epoch: u32) -> Result<Version> {
        let client = match self.begun() {
            Some(client) => client,
            None => Arc::new(self.session().await?),
        };
        let row = client.query_one(sql::MARK, &[]).await;
        let row = row.map_err(|error| connect::error("write a marker into the log", &error))?;
        let marker: Lsn = row.get::<_, String>(0).parse()?;
        Ok(Version::at_log(epoch, marker.0))
    }

    async fn lag_bytes(&self, position: &Position) -> Result<u64> {
        let ours = Bookmark::read(position)?;
        Ok(flushed(&self.session().await?).await?.0.saturating_sub(ours.lsn.0))
    }

    async fn estimate_rows(&self, table: &TableSchema) -> Result<u64> {
        let row = self.session().await?.query_one(sql::ESTIMATE, &[&table.id]).await;
        let row = row.map_err(|error| connect::error("estimate the rows", &error))?;
        Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
    }

    async fn reader(&self) -> Result<Box<dyn RowReader>> {
        let application = session::application(&self.slot);
        let reader = Reader::open(
            self.config.clone(),
            application,
            self.commits.clone(),
            self.in_binary.clone(),
        )
        .await?;
        Ok(Box::new(reader))
    }
}

async fn flushed(client: &Client) -> Result<Lsn> {
    let row = client.query_one(sql::FLUSHED, &[]).await;
    row.map_err(|error| connect::error("read the end of the log", &error))?
        .get::<_, String>(0)
        .parse()
}

#[cfg(test)]
mod tests;
