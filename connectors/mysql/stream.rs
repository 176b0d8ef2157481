//! The log of a source as a `ChangeStream`: events from the server's dump, decoded by `binlog.rs`,
//! put together by `transaction.rs`; and, beside them, what the catalog says of tables that change.
//!
//! Surprise: events are received in a task of their own. The client library panics when a packet
//! is shorter than an event can be; so only that task ends, and another session begins.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt};
use mysql_async::BinlogStream;
use mysql_async::binlog::events;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::binlog::{Decoder, Event, Gtid, MariadbKind, RawEvent, Xid};
use super::bookmark::{Bookmark, Gtids};
use super::config::Config;
use super::connect::{self, Role, Session};
use super::ddl::Statement;
use super::guard::Guard;
use super::layout::Layout;
use super::replica::Replica;
use super::subscribe::{self, Start};
use super::transaction::{Builder, Options, Step};
use super::visibility::Progress;
use super::{catalog, failure, source_sql as sql};
use crate::change::{Timestamp, Transaction};
use crate::error::{Code, Error, Result};
use crate::schema::{TableName, TableSchema};
use crate::spool::Room;
use crate::version::{Position, Version};
use crate::{ChangeStream, ZeroDates};

/// The server says something every second; after this much silence it is gone.
const SILENCE: Duration = Duration::from_secs(30);
/// Whoever waited so long for an event had received all that there was.
const WAITED: Duration = Duration::from_millis(300);
/// How long the catalog may take to answer.
const CATALOG: Duration = Duration::from_secs(60);
/// Events wait in batches of about this many bytes, so that a channel's cost is shared.
const BATCH_BYTES: usize = 256 << 10;
const BATCHES: usize = 4;

/// What a stream is opened with.
pub struct Opening<'a> {
    /// The server.
    pub config: &'a Arc<Config>,
    /// What we are called there.
    pub replica: &'a Replica,
    /// Where to begin.
    pub from: Bookmark,
    /// The tables of interest.
    pub tables: &'a [Arc<TableSchema>],
    /// The shapes that they had before.
    pub earlier: &'a [Arc<TableSchema>],
    /// The epoch of its versions.
    pub epoch: u32,
    /// About how large a part of a transaction may be.
    pub part_bytes: usize,
    /// The directory for XA transactions that take too much memory.
    pub spool: &'a Path,
    /// What becomes of dates with a zero in them.
    pub zero_dates: ZeroDates,
    /// Shared with the readers.
    pub progress: Arc<Progress>,
}

/// The log of one pipeline.
pub struct Stream {
    events: Events,
    guard: Guard,
    decoder: Decoder,
    builder: Builder,
    catalog: Catalog,
    progress: Arc<Progress>,
    spool: PathBuf,
    room: Room,
    /// The last version that only said how far the log was read.
    told: Option<Version>,
}

/// Events as they come.
struct Events {
    batches: mpsc::Receiver<Batch>,
    waiting: VecDeque<events::Event>,
    task: JoinHandle<()>,
    /// Since when there has been nothing to take.
    silent_since: Option<Instant>,
    /// Whether the events that wait were waited for, so that nothing else was on its way.
    waited: bool,
}

type Batch = std::result::Result<Vec<events::Event>, mysql_async::Error>;

/// A connection to ask about tables.
struct Catalog {
    config: Arc<Config>,
    session: Option<Session>,
    /// A question that goes on when the future that asked it was dropped. Asked anew each time, it
    /// would never be answered to a caller who is in a hurry.
    asking: Option<Pin<Box<dyn Future<Output = Result<Answer>> + Send>>>,
}

/// What the catalog said.
struct Answer {
    session: Session,
    layout: Option<Layout>,
}

impl Stream {
    /// Opens the log.
    ///
    /// # Errors
    /// The connection; `server-id-in-use`; what `subscribe::prove` finds.
    pub async fn open(opening: Opening<'_>) -> Result<Stream> {
        let Opening { config, replica, from, tables, earlier, progress, .. } = opening;
        progress.opening();
        let mut session = connect::connect(config, Role::Source).await?;
        let start = subscribe::prove(&mut session, &from).await?;
        replica.wait_until_free(&mut session).await?;
        let layouts = layouts(&mut session, tables).await?;
        let options = Options {
            epoch: opening.epoch,
            part_bytes: opening.part_bytes,
            spool: opening.spool.to_owned(),
            zero_dates: opening.zero_dates,
            fold_names: folds_names(&mut session).await?,
        };
        let asking = connect::connect(config, Role::Source).await?;
        let from = match &start {
            Start::Place(place) => Bookmark { place: place.clone(), ..from },
            Start::Gtids => from,
        };
        let dump = replica.ask(asking, &from, &start).await?;
        let gtids = (start == Start::Gtids).then(|| from.gtids.clone());
        progress.opened(options.epoch, &from.server, from.place.log()?, gtids);
        let guard = Guard::begin(config.clone(), from.server.clone(), progress.clone());
        Ok(Stream {
            events: Events::receive(dump),
            guard,
            decoder: Decoder::new(),
            builder: Builder::new(from, layouts, earlier, options)?,
            catalog: Catalog { config: config.clone(), session: Some(session), asking: None },
            progress,
            spool: opening.spool.to_owned(),
            room: Room::default(),
            told: None,
        })
    }

    /// Takes the event that waits in front. It is removed only at the end, so that it is not lost
    /// when the future is dropped while the catalog is asked, nor before the last part of what it ends.
    async fn step(&mut self) -> Result<Option<Transaction>> {
        let (event, waited) = tokio::select! {
            biased;
            peeked = self.events.peek() => peeked?,
            found = self.guard.found() => return Err(found),
        };
        let raw = RawEvent::of(event)?;
        let mut decoder = self.decoder.clone();
        let (header, event) = decoder.decode(&raw)?;
        let xid = ended_xa(&event);
        let taken = loop {
            // Known before it is delivered, so that no chunk overlooks it.
            if let (Some(version), Some(xid)) = (self.builder.open_version(), &xid) {
                self.progress.xa_ended(version.log, xid.clone());
            }
            match self.builder.feed(&header, &event)? {
                Step::Taken(transaction) => break transaction,
                Step::Ask(table) => {
                    let now = self.catalog.ask(&table).await?;
                    self.builder.define(&table, now);
                }
                // The event stays.
                Step::Part(part) => return Ok(Some(part)),
                Step::NoRoom(error) => {
                    self.room.wait(&self.spool, &error).await;
                    return Ok(None);
                }
            }
        };
        self.room.found();
        note(&self.progress, &self.builder, &event);
        let idle = waited && matches!(event, Event::Heartbeat { .. });
        self.decoder = decoder;
        self.events.consume();
        if idle {
            self.progress.idle_at(self.builder.reached().place.log()?);
        }
        let Some(mut transaction) = taken else { return Ok(None) };
        if transaction.complete {
            let reached = self.builder.reached().place.log()?;
            self.progress.decoded(transaction.version.log.max(reached));
        }
        // The builder has no clock: what it does not date says only how far the log was read.
        if transaction.committed_at == Timestamp(0) {
            transaction.committed_at = now();
            return Ok(self.unless_told(transaction));
        }
        Ok(Some(transaction))
    }
}

impl Stream {
    /// A place that was told already is told again only to those who wait for a mark there.
    fn unless_told(&mut self, idle: Transaction) -> Option<Transaction> {
        let ticks = &self.progress.ticks;
        let is_news = self.told.is_none_or(|told| {
            told.with_ordinal(0) != idle.version || ticks.is_awaited(told.ordinal)
        });
        let version = idle.version.with_ordinal(ticks.now());
        is_news.then(|| {
            self.told = Some(version);
            Transaction { version, ..idle }
        })
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

    /// A server keeps its log for nobody in particular, so nobody is to be told.
    async fn acknowledge(&mut self, durable: &Position) -> Result<()> {
        let durable = Bookmark::read(durable)?;
        let ours = &self.builder.reached().server;
        match durable.server == *ours {
            true => Ok(()),
            false => Err(subscribe::other_source(&durable.server, ours)),
        }
    }
}

/// Tells the readers which transaction is being read, before it is delivered.
fn note(progress: &Progress, builder: &Builder, event: &Event<'_>) {
    let (Event::Gtid(gtid), Some(version)) = (event, builder.open_version()) else { return };
    progress.begun(version.log, |gtids| {
        if let (Gtids::Mysql(set), Gtid::Mysql { id: Some((uuid, number)), .. }) = (gtids, gtid) {
            set.add(uuid, *number);
        }
    });
    if let Gtid::Mariadb { kind: MariadbKind::Completed(xid), .. } = gtid {
        progress.xa_ended(version.log, xid.clone());
    }
}

/// The XA transaction that this statement of a MySQL commits.
fn ended_xa(event: &Event<'_>) -> Option<Xid> {
    let Event::Query(query) = event else { return None };
    // Few statements are, so most need not be taken apart for it.
    query.text.get(..3).filter(|word| word.eq_ignore_ascii_case("XA "))?;
    match Statement::read(query) {
        Statement::XaCommit(xid) => Some(xid),
        _ => None,
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

async fn folds_names(session: &mut Session) -> Result<bool> {
    let doing = "read lower_case_table_names";
    Ok(subscribe::first(session, doing, "SELECT @@GLOBAL.lower_case_table_names").await? != "0")
}

/// The tables as the server has them now, those that are still there.
async fn layouts(session: &mut Session, tables: &[Arc<TableSchema>]) -> Result<Vec<Layout>> {
    let names: Vec<TableName> = tables.iter().map(|table| table.name.clone()).collect();
    let now = catalog::by_names(session, &names).await?;
    now.iter().map(catalog::CatalogTable::layout).collect()
}

impl Events {
    fn receive(dump: BinlogStream) -> Events {
        let (sender, batches) = mpsc::channel(BATCHES);
        let task = tokio::spawn(receive(dump, sender));
        Events { batches, waiting: VecDeque::new(), task, silent_since: None, waited: false }
    }

    /// The next event, which stays, and whether it was waited for. Cancel-safe.
    async fn peek(&mut self) -> Result<(&events::Event, bool)> {
        while self.waiting.is_empty() {
            let since = *self.silent_since.get_or_insert_with(Instant::now);
            let received = timeout_at(since + SILENCE, self.batches.recv()).await;
            self.silent_since = None;
            self.waited = since.elapsed() > WAITED;
            match received {
                Ok(Some(Ok(batch))) => self.waiting.extend(batch),
                Ok(Some(Err(failure))) => return Err(dump_error(&failure)),
                Ok(None) => return Err(self.end().await),
                Err(_) => {
                    let seconds = SILENCE.as_secs();
                    let message = format!("the source has said nothing for {seconds} s");
                    return Err(Error::transient(Code::Unreachable, message));
                }
            }
        }
        match self.waiting.front() {
            Some(event) => Ok((event, self.waited)),
            None => Err(Error::stop(Code::Internal, "an event is gone")),
        }
    }

    fn consume(&mut self) {
        self.waiting.pop_front();
    }

    /// Why the task has ended without a word.
    async fn end(&mut self) -> Error {
        match (&mut self.task).await {
            Err(error) if error.is_panic() => Error::transient(
                Code::Protocol,
                "the source has sent a packet that is no event of its log",
            ),
            _ => Error::transient(Code::Unreachable, "the source has ended the log"),
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Receives events until the connection ends, or nobody wants them.
async fn receive(mut dump: BinlogStream, batches: mpsc::Sender<Batch>) {
    while let Some(first) = dump.next().await {
        let mut batch = Vec::new();
        let mut next = Some(first);
        let (mut bytes, mut failure) = (0, None);
        while let Some(event) = next.take() {
            match event {
                Ok(event) => {
                    bytes += event.header().event_size() as usize;
                    batch.push(event);
                }
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
            if bytes < BATCH_BYTES {
                next = dump.next().now_or_never().flatten();
            }
        }
        if batches.send(Ok(batch)).await.is_err() {
            return;
        }
        if let Some(failure) = failure {
            let _ = batches.send(Err(failure)).await;
            return;
        }
    }
}

/// What an error of the dump means.
fn dump_error(error: &mysql_async::Error) -> Error {
    const FATAL: u16 = 1236;
    const SAME_ID: u16 = 4052;
    let doing = "read the binary log";
    let mysql_async::Error::Server(server) = error else { return failure::error(doing, error) };
    let text = server.message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if server.code == SAME_ID || (server.code == FATAL && says(&["same server_uuid"])) {
        let message = format!("{doing}: another connection reads it under our server id");
        return Error::transient(Code::ServerIdInUse, message);
    }
    if server.code != FATAL {
        return failure::error(doing, error);
    }
    let message = format!("{doing}: {} (error {FATAL}); {}", server.message, subscribe::RESYNC);
    if says(&["purged", "could not find first log", "could not find gtid state"]) {
        return Error::stop(Code::BinlogPurged, message);
    }
    if says(&["impossible position", "more gtids than", "not in the master's binlog"]) {
        return Error::stop(Code::PositionAhead, message);
    }
    Error::stop(Code::Protocol, message)
}

impl Catalog {
    /// How a table is defined now. Cancel-safe; asked again, the question must be the same.
    async fn ask(&mut self, table: &TableName) -> Result<Option<Layout>> {
        let Catalog { config, session, asking } = self;
        let answering = asking.get_or_insert_with(|| {
            let answer = answer(config.clone(), session.take(), table.clone());
            Box::pin(async {
                timeout(CATALOG, answer).await.unwrap_or_else(|_| {
                    let message = "the source's catalog does not answer";
                    Err(Error::transient(Code::Unreachable, message))
                })
            })
        });
        let answer = answering.as_mut().await;
        *asking = None;
        let Answer { session: connected, layout } = answer?;
        *session = Some(connected);
        Ok(layout)
    }
}

async fn answer(config: Arc<Config>, session: Option<Session>, table: TableName) -> Result<Answer> {
    let mut session = match session.filter(Session::is_fresh) {
        Some(session) => session,
        None => connect::connect(&config, Role::Source).await?,
    };
    // MySQL writes an ALTER into the log before its catalog shows it. Until it does, the table is
    // locked, and this waits. A table that is gone cannot be read, and the catalog says so.
    if !session.server().is_mariadb()
        && let Err(error) = session.query("look at a table", &sql::lock(&table)).await
        && error.is_transient()
    {
        return Err(error);
    }
    let now = catalog::by_names(&mut session, std::slice::from_ref(&table)).await?.pop();
    // A table that is no longer replicable is as good as gone; the builder says what that means.
    let layout = now.and_then(|now| now.layout().ok());
    Ok(Answer { session, layout })
}
