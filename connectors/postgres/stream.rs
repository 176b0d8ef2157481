//! The open log: frames of `walsender.rs` in, transactions of `transaction.rs` out, and the
//! acknowledgements. Keeps the readers' commit log up to date.
//!
//! Surprise: time during which nobody asks for the next transaction is not silence of the
//! source; it counts from the moment that we asked the source for a sign of life.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_postgres::Client;

use super::catalog::{self, CatalogTable};
use super::config::{Config, Host, TlsMode};
use super::connect::{self, Socket};
use super::lsn::{Bookmark, LogIdentity, Lsn};
use super::pgoutput::{self, Message};
use super::source_sql as sql;
use super::subscribe::RESYNC;
use super::transaction::{Builder, Relation};
use super::visibility::{CommitLog, Snapshot};
use super::walsender::{Frame, Login, Walsender};
use crate::ChangeStream;
use crate::change::{Timestamp, Transaction};
use crate::error::{Code, Error, Result};
use crate::schema::TableSchema;
use crate::version::Position;

/// After this much silence the source is asked for a sign of life.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long it has to give one; together with `HEARTBEAT` 30 s.
const ANSWER: Duration = Duration::from_secs(20);
/// A call that finds the time already over still looks at what has arrived.
const GRACE: Duration = Duration::from_millis(100);
/// Positions without changes come no more often than this.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// A server that asks for replies this many times in a row within a second is shutting down: it
/// waits until we confirm all of its log, which a slow target may not allow for long.
const HURRY_MAX: u32 = 8;
const HURRY_WINDOW: Duration = Duration::from_secs(1);
/// How long the walsender of our killed predecessor may hold the slot.
const SLOT_WAIT: Duration = Duration::from_secs(10);

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
    /// Shared with the readers.
    pub commits: Arc<CommitLog>,
}

/// The log of one pipeline.
pub struct Stream {
    walsender: Walsender<Box<dyn Socket>>,
    builder: Builder,
    catalog: Catalog,
    commits: Arc<CommitLog>,
    acknowledged: Lsn,
    reply_due: bool,
    /// How often the server has asked for a reply since then, with nothing else to say.
    hurry: (u32, Instant),
    heard: Instant,
    asked: Option<Instant>,
    /// The end of the log beyond what was delivered, and since when a transaction may say so.
    idle: Option<Lsn>,
    idle_from: Instant,
}

/// The tables of interest, and a connection to ask about them.
struct Catalog {
    config: Arc<Config>,
    client: Option<Client>,
    tables: Vec<Arc<TableSchema>>,
    /// A question that goes on when the future that asked it was dropped. Asked anew each time, it
    /// would never be answered to a caller who is in a hurry.
    asking: Option<Pin<Box<dyn Future<Output = Result<Answer>> + Send>>>,
}

/// What the catalog said.
struct Answer {
    client: Client,
    snapshot: Snapshot,
    table: Option<CatalogTable>,
}

impl Stream {
    /// Opens the log.
    ///
    /// # Errors
    /// The connection; `slot-in-use` (transient); `source-identity`.
    pub async fn open(opening: Opening<'_>) -> Result<Stream> {
        opening.commits.opening(opening.epoch, opening.from.log);
        let mut walsender = login(opening.config, opening.slot).await?;
        let here = identify(&mut walsender).await?.0;
        if here != opening.from.identity {
            return Err(other_source(&opening.from.identity, &here));
        }
        start(&mut walsender, &opening).await?;
        let client = connect::connect(opening.config, &application(opening.slot)).await?;
        opening.commits.opened(next_xid(&client).await?);
        let from = opening.from;
        let now = Instant::now();
        Ok(Stream {
            walsender,
            acknowledged: from.lsn,
            builder: Builder::new(from, opening.epoch, opening.part_bytes),
            catalog: Catalog {
                config: opening.config.clone(),
                client: Some(client),
                tables: opening.tables.to_vec(),
                asking: None,
            },
            commits: opening.commits,
            reply_due: false,
            hurry: (0, now),
            heard: now,
            asked: None,
            idle: None,
            idle_from: now,
        })
    }

    /// Works on one frame, or on the lack of one.
    async fn step(&mut self) -> Result<Option<Transaction>> {
        if std::mem::take(&mut self.reply_due) {
            // Also cancel-safe: a reply that was begun is in the walsender's buffer.
            self.walsender.send_status(self.acknowledged, false).await?;
        }
        let silent_at = self.asked.map_or(self.heard + HEARTBEAT, |asked| asked + ANSWER);
        let deadline = match self.idle {
            Some(_) => self.idle_from,
            None => silent_at.max(Instant::now() + GRACE),
        };
        match timeout_at(deadline, self.walsender.peek()).await {
            Ok(frame) => match frame? {
                Frame::Keepalive { wal_end, reply_requested } => {
                    self.walsender.consume();
                    self.keepalive(wal_end, reply_requested);
                    self.unless_shutting_down(reply_requested)?;
                    let due = Instant::now() >= self.idle_from;
                    Ok(if due { self.emit_idle() } else { None })
                }
                Frame::Data(_) => self.message().await,
            },
            Err(_) if self.idle.is_some() => Ok(self.emit_idle()),
            Err(_) => self.silence().await.map(|()| None),
        }
    }

    fn keepalive(&mut self, wal_end: Lsn, reply_requested: bool) {
        self.heard = Instant::now();
        self.asked = None;
        self.reply_due |= reply_requested;
        // Inside a transaction its end says nothing about the commits before it.
        if !self.builder.in_transaction() && wal_end > self.builder.reached().lsn {
            self.idle = Some(wal_end);
        }
    }

    /// Lets go of a server that is only waiting for us to end. Log that we have not confirmed stays
    /// in the slot.
    fn unless_shutting_down(&mut self, reply_requested: bool) -> Result<()> {
        let (asked, since) = self.hurry;
        self.hurry = match reply_requested && since.elapsed() < HURRY_WINDOW {
            true => (asked + 1, since),
            false => (u32::from(reply_requested), Instant::now()),
        };
        match self.hurry.0 < HURRY_MAX {
            true => Ok(()),
            false => Err(Error::transient(Code::Unreachable, "the source is shutting down")),
        }
    }

    fn emit_idle(&mut self) -> Option<Transaction> {
        let wal_end = self.idle.take()?;
        self.idle_from = Instant::now() + IDLE_INTERVAL;
        self.commits.reached(wal_end);
        Some(self.builder.idle(wal_end, now()))
    }

    async fn silence(&mut self) -> Result<()> {
        if self.asked.is_some() {
            let seconds = (HEARTBEAT + ANSWER).as_secs();
            return Err(Error::transient(
                Code::Unreachable,
                format!("the source has said nothing for {seconds} s, not even when asked"),
            ));
        }
        self.asked = Some(Instant::now());
        self.walsender.send_status(self.acknowledged, true).await
    }

    /// Takes the message that was peeked. It is consumed only at the end, so that it is not lost
    /// when the future is dropped while the catalog is asked.
    async fn message(&mut self) -> Result<Option<Transaction>> {
        let Frame::Data(bytes) = self.walsender.peek().await? else { return Ok(None) };
        let message = pgoutput::decode(bytes)?;
        let transaction = match &message {
            Message::Relation(relation) => {
                let meaning = self.catalog.resolve(relation).await?;
                self.builder.relation(relation.id, meaning)?
            }
            Message::Begin { final_lsn, xid, .. } => {
                if self.commits.is_full() {
                    let (now, _) = self.catalog.ask(None).await?;
                    self.commits.prune(&now);
                }
                // Known before its changes are, so that a re-read can wait for it.
                self.commits.begin(*xid, *final_lsn);
                self.idle = None;
                self.builder.feed(&message)?
            }
            _ => self.builder.feed(&message)?,
        };
        self.walsender.consume();
        self.heard = Instant::now();
        self.asked = None;
        self.hurry.0 = 0;
        if transaction.as_ref().is_some_and(|transaction| transaction.complete) {
            self.commits.reached(self.builder.reached().log);
        }
        Ok(transaction)
    }
}

#[async_trait]
impl ChangeStream for Stream {
    async fn next(&mut self) -> Result<Transaction> {
        loop {
            if let Some(transaction) = self.step().await? {
                return Ok(transaction);
            }
        }
    }

    async fn acknowledge(&mut self, durable: &Position) -> Result<()> {
        let durable = Bookmark::read(durable)?;
        let reached = self.builder.reached();
        if durable.identity != reached.identity {
            return Err(other_source(&durable.identity, &reached.identity));
        }
        // The server believes whatever it is told, even what it has not sent.
        let lsn = durable.lsn.min(reached.lsn);
        self.acknowledged = self.acknowledged.max(lsn);
        self.walsender.send_status(self.acknowledged, false).await
    }
}

impl Catalog {
    async fn resolve(&mut self, relation: &pgoutput::Relation<'_>) -> Result<Relation> {
        let known = self.tables.iter().any(|table| table.id == relation.id);
        let current = match known {
            true => self.ask(Some(relation.id)).await?.1,
            false => None,
        };
        Ok(catalog::resolve(relation, &self.tables, current.as_ref()))
    }

    /// The snapshot of now, and the table if one is asked for. Cancel-safe; asked again, the
    /// question must be the same.
    async fn ask(&mut self, table: Option<u32>) -> Result<(Snapshot, Option<CatalogTable>)> {
        let Catalog { config, client, asking, .. } = self;
        let answering = asking.get_or_insert_with(|| {
            let answer = answer(config.clone(), client.take(), table);
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
        let Answer { client: connected, snapshot, table } = answer?;
        *client = Some(connected);
        Ok((snapshot, table))
    }
}

async fn answer(config: Arc<Config>, client: Option<Client>, table: Option<u32>) -> Result<Answer> {
    let client = match client.filter(|client| !client.is_closed()) {
        Some(client) => client,
        None => connect::connect(&config, "driftless catalog").await?,
    };
    let snapshot = snapshot(&client).await?;
    let table = match table {
        Some(id) => catalog::by_ids(&client, &[id]).await?.pop(),
        None => None,
    };
    Ok(Answer { client, snapshot, table })
}

/// What `pg_stat_activity` shows of a pipeline.
pub fn application(slot: &str) -> String {
    format!("{slot} (driftless)")
}

/// Opens a replication connection.
///
/// # Errors
/// As `connect::connect`.
pub async fn login(config: &Config, slot: &str) -> Result<Walsender<Box<dyn Socket>>> {
    let options = connect::startup_options();
    let application = application(slot);
    let login = Login {
        user: &config.user,
        password: config.password.as_deref(),
        database: &config.database,
        application: &application,
        options: &options,
        encrypted: config.tls != TlsMode::Disable || matches!(config.host, Host::Unix(_)),
    };
    let login = async { Walsender::login(connect::dial(config).await?, &login).await };
    connect::within(config, login)
        .await
        .map_err(|error| error.context(connect::doing_login(config)))
}

/// Which log this is, and its end.
///
/// # Errors
/// The connection, or an answer that is not understood.
pub async fn identify(walsender: &mut Walsender<Box<dyn Socket>>) -> Result<(LogIdentity, Lsn)> {
    let rows = walsender.query("IDENTIFY_SYSTEM").await?;
    let cell = |index: usize| {
        let cell = rows.first().and_then(|row| row.get(index)).and_then(|cell| cell.as_deref());
        cell.ok_or_else(|| Error::stop(Code::Protocol, "IDENTIFY_SYSTEM has no answer"))
    };
    let number = |_| Error::stop(Code::Protocol, "IDENTIFY_SYSTEM answers no number");
    // The system identifier is stored as the server writes it, once it is a number.
    let system = cell(0)?.parse::<u64>().map_err(number)?.to_string();
    let timeline = cell(1)?.parse().map_err(number)?;
    Ok((LogIdentity { system, timeline }, cell(2)?.parse()?))
}

/// The position belongs to another server.
#[must_use]
pub fn other_source(ours: &LogIdentity, theirs: &LogIdentity) -> Error {
    Error::stop(
        Code::SourceIdentity,
        format!(
            "the target holds a copy of system {} timeline {}, but the source is system {} \
             timeline {}; correct the source's URL, or, {RESYNC}",
            ours.system, ours.timeline, theirs.system, theirs.timeline
        ),
    )
}

async fn start(walsender: &mut Walsender<Box<dyn Socket>>, opening: &Opening<'_>) -> Result<()> {
    let start = Instant::now();
    let text = sql::start_replication(opening.slot, opening.slot, opening.from.lsn);
    loop {
        match walsender.start(&text).await {
            Err(error) if error.code == Code::SlotInUse && start.elapsed() < SLOT_WAIT => {
                sleep(Duration::from_millis(250)).await;
            }
            result => return result,
        }
    }
}

async fn snapshot(client: &Client) -> Result<Snapshot> {
    let row = client.query_one(sql::SNAPSHOT_NOW, &[]).await;
    Snapshot::parse(row.map_err(|error| connect::error("read the snapshot", &error))?.get(0))
}

async fn next_xid(client: &Client) -> Result<u64> {
    let row = client.query_one(sql::NEXT_XID, &[]).await;
    let row = row.map_err(|error| connect::error("read the next transaction id", &error))?;
    let number = |_| Error::stop(Code::Protocol, "the source's transaction id is no number");
    row.get::<_, &str>(0).parse().map_err(number)
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
