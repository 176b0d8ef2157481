//! The open log: messages of `feed.rs` in, transactions of `transaction.rs` out, and the
//! acknowledgements. Keeps the readers' commit log up to date.
//!
//! Surprise: a message is consumed only after it was understood, so that it is not lost when the
//! future is dropped while the catalog is asked.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Client;

use super::catalog_session::CatalogSession;
use super::config::Config;
use super::feed::Feed;
use super::lsn::{Bookmark, Lsn};
use super::pgoutput::{self, Message};
use super::pipeline::{Early, Pipeline};
use super::session::{self, other_source};
use super::streaming::Item;
use super::transaction::{Builder, Relation};
use super::values::InBinary;
use super::visibility::CommitLog;
use super::wire::Wire;
use crate::ChangeStream;
use crate::change::{Timestamp, Transaction};
use crate::error::Result;
use crate::schema::TableSchema;
use crate::version::Position;

/// Positions without changes come no more often than this.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// What a stream is opened with.
pub struct Opening<'a> {
    /// The server.
    pub config: &'a Arc<Config>,
    /// Name of slot and publication.
    pub slot: &'a str,
    /// Where to begin.
    pub from: Bookmark,
    /// The epoch of its versions.
    pub epoch: u32,
    /// The tables of interest.
    pub tables: &'a [Arc<TableSchema>],
    /// About how large a part of a transaction may be.
    pub part_bytes: usize,
    /// How far behind it must be for bulk reads, in bytes; `None` for never.
    pub bulk_read_above: Option<u64>,
    /// How many bytes of them may wait for us.
    pub read_ahead: usize,
    /// Where transactions that have not ended are put.
    pub spool: &'a Path,
    /// Whether they are taken before their end.
    pub early: Early,
    /// Whether values come in binary.
    pub in_binary: InBinary,
    /// Set once the source has refused them.
    pub bulk_read_refused: Arc<AtomicBool>,
    /// Shared with the readers.
    pub commits: Arc<CommitLog>,
    /// A session to ask in.
    pub client: Arc<Client>,
    /// One that may read the log, if there is one already.
    pub wire: Option<Wire>,
}

/// The log of one pipeline.
pub struct Stream {
    feed: Feed,
    /// There if values come in binary.
    in_binary: Option<InBinary>,
    builder: Builder,
    catalog: CatalogSession,
    commits: Arc<CommitLog>,
    /// The end of the log beyond what was delivered, and since when a transaction may say so.
    idle: Option<Lsn>,
    idle_from: Instant,
    /// When the last transaction was committed.
    committed_at: Option<Timestamp>,
    /// Where we were when we last looked how far away the end of the log is.
    looked_at: Lsn,
    /// What comes next.
    ready: Option<Transaction>,
}

impl Stream {
    /// Opens the log.
    ///
    /// # Errors
    /// The connection; `slot-in-use` (transient); `source-identity`.
    pub async fn open(opening: Opening<'_>) -> Result<Stream> {
        let Opening { config, slot, from, commits, .. } = opening;
        commits.opening(opening.epoch, from.log);
        let mut wire = match opening.wire {
            Some(wire) => wire,
            None => session::login(config, slot).await?,
        };
        let end = session::identify_as(&mut wire, &from.identity).await?;
        let in_binary = Some(opening.in_binary)
            .filter(|values| values.suits(opening.tables.iter().map(Arc::as_ref)));
        let pipeline = Pipeline {
            config: config.clone(),
            slot: slot.to_owned(),
            identity: from.identity.clone(),
            spool: opening.spool.to_owned(),
            early: opening.early,
            in_binary: in_binary.clone(),
            bulk_read_above: opening.bulk_read_above,
            read_ahead: opening.read_ahead,
            bulk_read_refused: opening.bulk_read_refused,
        };
        let feed = Feed::open(pipeline, wire, from.lsn, end).await?;
        let mut catalog = CatalogSession::new(config.clone(), slot, opening.tables, opening.client);
        commits.opened(catalog.next_xid().await?);
        Ok(Stream {
            feed,
            in_binary,
            looked_at: from.lsn,
            builder: Builder::new(from, opening.epoch, opening.part_bytes),
            catalog,
            commits,
            idle: None,
            idle_from: Instant::now(),
            committed_at: None,
            ready: None,
        })
    }

    /// Works on what comes next, or on the lack of it.
    // What comes of it is left in `ready`: to hand it from one to the other is dearer than to make it.
    async fn step(&mut self) -> Result<()> {
        self.look().await?;
        let item = match self.idle {
            None => self.feed.peek().await?,
            Some(_) => match timeout_at(self.idle_from, self.feed.peek()).await {
                Ok(item) => item?,
                Err(_) => {
                    self.be_idle();
                    return Ok(());
                }
            },
        };
        match item {
            Item::Message => self.message().await,
            Item::Reached(place) => {
                // Inside a transaction it says nothing about the commits before it.
                if !self.builder.in_transaction() && place > self.builder.reached().lsn {
                    self.idle = Some(place);
                }
                if Instant::now() >= self.idle_from || self.feed.is_settling() {
                    self.be_idle();
                }
                Ok(())
            }
        }
    }

    /// Looks now and then how far away the end of the log is, and takes the faster way to it.
    async fn look(&mut self) -> Result<()> {
        let at = self.builder.reached().lsn;
        let streamed = at.0.saturating_sub(self.looked_at.0);
        let due = self.feed.look_after().is_some_and(|after| streamed >= after);
        if due && !self.builder.in_transaction() {
            let answer = self.catalog.ask(None).await?;
            self.looked_at = at;
            if let Some(restart) = answer.restart {
                self.feed.catch_up(at, restart, answer.end);
            }
        }
        Ok(())
    }

    fn be_idle(&mut self) {
        let Some(place) = self.idle.take() else { return };
        self.idle_from = Instant::now() + IDLE_INTERVAL;
        self.commits.reached(place);
        // A pipeline that is behind is not current as of now.
        let at = self.committed_at.filter(|_| self.feed.is_behind()).unwrap_or_else(now);
        self.ready = Some(self.builder.idle(place, at));
    }

    /// What of our log is durable. The server believes whatever it is told, even what it has not
    /// sent.
    fn received(&self, durable: &Position) -> Result<Lsn> {
        let durable = Bookmark::read(durable)?;
        let reached = self.builder.reached();
        match durable.identity == reached.identity {
            true => Ok(durable.lsn.min(reached.lsn)),
            false => Err(other_source(&durable.identity, &reached.identity)),
        }
    }

    /// Takes the message that was found.
    async fn message(&mut self) -> Result<()> {
        let message = pgoutput::decode(self.feed.message()?)?;
        self.ready = match &message {
            Message::Relation(relation) => {
                let meaning = self.catalog.resolve(relation).await?;
                if let (Some(in_binary), Relation::Table(shape)) = (&self.in_binary, &meaning) {
                    in_binary.prove(&shape.schema)?;
                }
                self.builder.relation(relation.id, meaning)?
            }
            Message::Begin { final_lsn, xid, committed_at } => {
                if self.commits.is_full() {
                    let now = self.catalog.ask(None).await?.snapshot;
                    self.commits.prune(&now);
                }
                // Known before its changes are, so that a re-read can wait for it.
                self.commits.begin(*xid, *final_lsn);
                self.idle = None;
                self.committed_at = Some(*committed_at);
                self.builder.feed(&message)?
            }
            _ => self.builder.feed(&message)?,
        };
        self.feed.consume();
        if self.ready.as_ref().is_some_and(|transaction| transaction.complete) {
            self.commits.reached(self.builder.reached().log);
        }
        Ok(())
    }
}

#[async_trait]
impl ChangeStream for Stream {
    async fn next(&mut self) -> Result<Transaction> {
        loop {
            self.step().await?;
            if let Some(transaction) = self.ready.take() {
                return Ok(transaction);
            }
        }
    }

    async fn acknowledge(&mut self, durable: &Position) -> Result<()> {
        let durable = self.received(durable)?;
        self.feed.acknowledge(durable).await
    }

    async fn close(&mut self, durable: &Position) -> Result<()> {
        let durable = self.received(durable)?;
        self.feed.close(durable).await
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
