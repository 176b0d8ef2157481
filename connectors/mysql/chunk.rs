//! Reads rows of the source beside its log, in chunks, with the version that each may claim.
//!
//! # The chunk rule, and why it holds
//!
//! Both servers write a transaction into their log before they commit it, and we may read it there
//! before it is visible. So "the place of the log at which I read" proves nothing by itself. With
//! `D` the end of what this stream had decoded before the snapshot `S` was taken:
//!
//! 1. `S` must show every transaction up to `D`.
//!    - MariaDB: `START TRANSACTION WITH CONSISTENT SNAPSHOT` takes `S` under the lock of the
//!      group commit, and `binlog_snapshot_file/position` is the place `P` of the last transaction
//!      that had been committed by then. `S` shows exactly what lies before `P`. `low = min(D, P)`.
//!    - MySQL with GTIDs: a transaction is put into `gtid_executed` after the engines have
//!      committed it. Before `S` is taken we wait until all that was decoded is in there.
//!      `low = D`.
//!    - MySQL without: with `binlog_order_commits = ON` the commits of the engines come in the
//!      order of the log. Before `S` is taken a statement that changes nothing (`FLUSH STATUS`) is
//!      sent through the log; when it returns, all before it in the log have been committed. All
//!      that was decoded is before it. `low = D`.
//! 2. The end of an XA transaction is written by either server before the engines commit it, beside
//!    the group commit. A server forgets an XA transaction after that, so one that ended in the log
//!    is shown by `S` unless `XA RECOVER`, asked before `S` was taken, still lists it. `low` lies
//!    before the first that is listed.
//! 3. The rows get the version `(low, tick)`. No change has `low` as its place, so any ordinal is
//!    below every change above `low`; `ticks.rs` says what it is for.
//!
//! Every change at or below `low` is in the rows: those from before the stream, too, because (1)
//! is about all transactions up to a place of the log. Every change above `low` is decoded later or
//! has been decoded already, with a greater version: it wins over the row, or has won. A chunk
//! below `not_below` could bring back a row whose tombstone is gone; it is read again.
//!
//! Surprise: a transaction locks a table against being altered when it first reads it, which is
//! after `S` was taken. So the table is looked at after that, in each chunk: with some alterations
//! MariaDB shows the rows of before under the names of after.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::binlog::Xid;
use super::bookmark::log;
use super::catalog::{self, CatalogTable, number, text};
use super::config::Config;
use super::connect::{self, Role, Session};
use super::selected::Turner;
use super::source_sql::{self as sql, KeyColumn, Rows};
use super::types::MysqlType;
use super::visibility::{Before, Progress};
use super::{quote, subscribe, values};
use crate::change::{Chunk, Key, Row, Timestamp};
use crate::error::{Code, Error, Kind, Result};
use crate::schema::{Column, TableName, TableSchema};
use crate::version::Version;
use crate::{ChunkRequest, RowReader, ZeroDates};

const WAIT_MIN: Duration = Duration::from_millis(20);
const WAIT_MAX: Duration = Duration::from_secs(1);
const KEYS_PER_STATEMENT: usize = 200;
const WAIT_SILENT: Duration = Duration::from_secs(5);
/// How long MySQL is asked to wait for its own commits before we look again.
const COMMIT_WAIT_SECONDS: u32 = 1;

/// A connection that reads rows.
pub struct Reader {
    config: Arc<Config>,
    progress: Arc<Progress>,
    zero_dates: ZeroDates,
    /// Taken while a transaction runs, so that a dropped future leaves none open.
    session: Option<Session>,
    shapes: HashMap<TableName, Arc<Shape>>,
}

/// How a table is read.
struct Shape {
    /// What the server said of it when this was made.
    definition: String,
    schema: Arc<TableSchema>,
    types: Vec<MysqlType>,
    key: Vec<KeyColumn>,
}

/// The transaction of a chunk: its snapshot is taken, its table locked and looked at.
struct Opened {
    session: Session,
    /// The snapshot shows all that lies before this place of the log, as far as it was decoded.
    shown: u64,
    /// XA transactions that had not ended before the snapshot was taken.
    prepared: Vec<Xid>,
    read_at: Timestamp,
    shape: Arc<Shape>,
}

impl Reader {
    /// Connects.
    ///
    /// # Errors
    /// The connection.
    pub async fn open(
        config: Arc<Config>,
        progress: Arc<Progress>,
        zero_dates: ZeroDates,
    ) -> Result<Reader> {
        let session = Some(session(&config).await?);
        Ok(Reader { config, progress, zero_dates, session, shapes: HashMap::new() })
    }

    /// Takes snapshots until one is good enough, and returns what was asked of it.
    async fn wait_for<T>(
        &mut self,
        table: &Arc<TableSchema>,
        promising: impl Fn(&Before) -> bool,
        enough: impl Fn(&Before, &Opened) -> Option<T>,
    ) -> Result<(Opened, T)> {
        let start = Instant::now();
        let (mut wait, mut told) = (WAIT_MIN, false);
        loop {
            // The log's place first, the snapshot after it: never the other way round.
            if let Some(before) = self.progress.before_snapshot().filter(&promising)
                && let Some(opened) = self.begin_after(&before, table).await?
            {
                match enough(&before, &opened).filter(|_| self.progress.is_current(&before)) {
                    Some(answer) => return Ok((opened, answer)),
                    None => self.finish(opened.session).await?,
                }
            }
            if !told && start.elapsed() > WAIT_SILENT {
                told = true;
                tracing::info!(
                    table = %table.name,
                    "waiting until the source shows what its log holds before rows are read"
                );
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(WAIT_MAX);
        }
    }

    /// Takes a snapshot that shows all that `before` says; `None` if that takes longer.
    async fn begin_after(
        &mut self,
        before: &Before,
        table: &Arc<TableSchema>,
    ) -> Result<Option<Opened>> {
        let mut session = self.session().await?;
        let server = subscribe::identity(&mut session).await?;
        if server != before.server {
            return Err(subscribe::other_source(&before.server, &server));
        }
        if !session.server().is_mariadb() && !has_committed(&mut session, before).await? {
            self.session = Some(session);
            return Ok(None);
        }
        let prepared = match before.has_xa() {
            true => prepared_xa(&mut session).await?,
            false => Vec::new(),
        };
        if before.has_xa() && prepared.is_empty() {
            self.progress.forget_xa(before);
        }
        match self.begin(session, table, sql::BEGIN_SNAPSHOT).await {
            Ok(opened) => Ok(Some(Opened { prepared, ..opened })),
            // It was altered or truncated between the snapshot and the first look at it.
            Err(error) if error.is_transient() && error.code == Code::SchemaChange => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn session(&mut self) -> Result<Session> {
        match self.session.take().filter(Session::is_fresh) {
            Some(session) => Ok(session),
            None => session(&self.config).await,
        }
    }

    async fn begin(
        &mut self,
        mut session: Session,
        table: &Arc<TableSchema>,
        begin: &str,
    ) -> Result<Opened> {
        let name = &table.name;
        let doing = format!("read rows of {name}");
        session.execute(&doing, begin).await?;
        let shown = match session.server().is_mariadb() {
            true => snapshot_place(&mut session).await?,
            false => u64::MAX,
        };
        let rows = session.query(&doing, sql::NOW_MICROS).await?;
        let read_at = rows.first().map(|row| number(row, 0)).transpose()?.unwrap_or_default();
        let lock = session.query(&doing, &sql::lock(name)).await;
        lock.map_err(|error| table_error(name, error))?;
        let shape = self.shape(&mut session, table).await?;
        let read_at = Timestamp(i64::try_from(read_at).unwrap_or(i64::MAX));
        Ok(Opened { session, shown, prepared: Vec::new(), read_at, shape })
    }

    /// How the table is read, if it still has what was asked for.
    async fn shape(
        &mut self,
        session: &mut Session,
        table: &Arc<TableSchema>,
    ) -> Result<Arc<Shape>> {
        let name = &table.name;
        let shown = session.query("look at a table", &sql::definition(name)).await;
        let shown = shown.map_err(|error| table_error(name, error))?;
        let definition = shown.first().map(|row| text(row, 1)).transpose()?.unwrap_or_default();
        let definition = sql::without_counter(&definition);
        if let Some(shape) = self.shapes.get(name)
            && shape.definition == definition
            && shape.schema == *table
        {
            return Ok(Arc::clone(shape));
        }
        let now = catalog::by_names(session, std::slice::from_ref(name)).await?.pop();
        unchanged(table, now)?;
        let shape = Arc::new(Shape::new(definition, table)?);
        self.shapes.insert(name.clone(), Arc::clone(&shape));
        Ok(shape)
    }

    async fn finish(&mut self, mut session: Session) -> Result<()> {
        session.execute("end the reading of rows", "COMMIT").await?;
        self.session = Some(session);
        Ok(())
    }

    /// The rows of a range in an open transaction, and where to go on.
    async fn rows_in_range(
        &mut self,
        mut opened: Opened,
        request: &ChunkRequest<'_>,
    ) -> Result<(Vec<(Key, Row)>, Option<Key>)> {
        let table = request.table;
        // One more than asked for tells whether there are more.
        let limit = request.rows_max.saturating_add(1);
        let statement = opened.shape.rows().range(request.after, request.filter, limit);
        let statement = statement.ok_or_else(|| unspeakable(table))?;
        let mut rows = self
            .select(&mut opened, &statement)
            .await
            .map_err(|error| filter_error(error, request, table))?;
        self.finish(opened.session).await?;
        let more = rows.len() > request.rows_max;
        rows.truncate(request.rows_max);
        let next = rows.last().filter(|_| more).map(|(key, _)| key.clone());
        Ok((rows, next))
    }

    /// The rows of these keys in an open transaction.
    async fn rows_of(&mut self, mut opened: Opened, keys: &[Key]) -> Result<Vec<(Key, Row)>> {
        let mut rows = Vec::new();
        for keys in keys.chunks(KEYS_PER_STATEMENT) {
            let statement = opened.shape.rows().of_keys(keys);
            let statement = statement.ok_or_else(|| unspeakable(&opened.shape.schema))?;
            let found = self.select(&mut opened, &statement).await?;
            // Values that are equal to the server and spelled otherwise are other keys.
            let wanted: HashSet<&Key> = keys.iter().collect();
            rows.extend(found.into_iter().filter(|(key, _)| wanted.contains(key)));
        }
        self.finish(opened.session).await?;
        Ok(rows)
    }

    async fn select(&self, opened: &mut Opened, statement: &str) -> Result<Vec<(Key, Row)>> {
        let shape = Arc::clone(&opened.shape);
        let mut turner = Turner::new(&shape.schema, &shape.types, self.zero_dates);
        let name = &shape.schema.name;
        let doing = format!("read rows of {name}");
        let rows = opened.session.fetch_typed(&doing, statement, |row| turner.turn(&row)).await;
        rows.map_err(|error| table_error(name, error))
    }
}

/// Opens a session that reads rows as `values.rs` wants them.
async fn session(config: &Arc<Config>) -> Result<Session> {
    let mut session = connect::connect(config, Role::Source).await?;
    session.execute("prepare a session that reads rows", values::SESSION).await?;
    Ok(session)
}

/// Waits a little until a MySQL has committed all that was decoded.
async fn has_committed(session: &mut Session, before: &Before) -> Result<bool> {
    if let Some(set) = &before.gtids {
        let question = sql::wait_for_gtids(set, COMMIT_WAIT_SECONDS);
        return Ok(subscribe::first(session, "wait for commits", &question).await? == "0");
    }
    if subscribe::first(session, "look at the order of commits", sql::ORDERED).await? != "1" {
        return Err(Error::stop(
            Code::SourceSettings,
            "rows cannot be copied while commits come in another order than the log's; run \
             `SET GLOBAL binlog_order_commits = ON`, or switch gtid_mode on",
        ));
    }
    session.execute("send a mark through the log", sql::BARRIER).await?;
    Ok(true)
}

async fn prepared_xa(session: &mut Session) -> Result<Vec<Xid>> {
    let prepared = subscribe::prepared_xa(session).await?;
    prepared.ok_or_else(|| {
        Error::stop(
            Code::Permission,
            "the source has XA transactions, and our account may not ask which of them have \
             ended; run `GRANT XA_RECOVER_ADMIN ON *.* TO` our account",
        )
    })
}

/// The place of the log that MariaDB's snapshot shows.
async fn snapshot_place(session: &mut Session) -> Result<u64> {
    let rows = session.query("read the snapshot's place", sql::SNAPSHOT_PLACE).await?;
    let (mut file, mut offset) = (String::new(), None);
    for row in &rows {
        match text(row, 0)?.to_ascii_lowercase().as_str() {
            "binlog_snapshot_file" => file = text(row, 1)?,
            "binlog_snapshot_position" => offset = Some(number(row, 1)?),
            _ => {}
        }
    }
    match offset.filter(|_| !file.is_empty()) {
        Some(offset) => log(&file, offset),
        // Only for comparing; a chunk finds that it may claim nothing.
        None => Ok(0),
    }
}

impl Shape {
    fn new(definition: String, table: &Arc<TableSchema>) -> Result<Shape> {
        let kind = |column: &Column| {
            let native = column.native.as_deref().unwrap_or_default();
            MysqlType::parse(native).map_err(|why| {
                let what = format!("table {}: column {} {why}", table.name, column.name);
                Error::table(&table.name, Code::SourceSettings, what)
            })
        };
        let types = table.columns.iter().map(kind).collect::<Result<Vec<_>>>()?;
        let column = |&place: &usize| KeyColumn {
            name: quote::identifier(&table.columns[place].name),
            kind: types[place].clone(),
        };
        let key = table.key.iter().map(column).collect();
        Ok(Shape { definition, schema: Arc::clone(table), types, key })
    }

    fn rows(&self) -> Rows<'_> {
        Rows { table: &self.schema, types: &self.types, key: &self.key }
    }
}

/// The version of rows that may claim this place of the log, if it is not below `not_below`. At the
/// place of `not_below` itself they may claim any ordinal.
fn claimed(epoch: u32, low: u64, tick: u32, not_below: Version) -> Option<Version> {
    let at = Version::at_log(epoch, low);
    let version = match at == not_below.with_ordinal(0) {
        true => at.with_ordinal(tick.max(not_below.ordinal)),
        false => at.with_ordinal(tick),
    };
    (version >= not_below).then_some(version)
}

/// What the rows of a snapshot may claim, if it is not below `not_below`.
fn claim(
    progress: Arc<Progress>,
    not_below: Version,
) -> impl Fn(&Before, &Opened) -> Option<Version> {
    move |before, opened| {
        let low = before.low(opened.shown, &opened.prepared);
        claimed(before.epoch, low, progress.ticks.now(), not_below)
    }
}

/// Whether the log has been read so far that a snapshot of now may be good enough.
fn far_enough(not_below: Version) -> impl Fn(&Before) -> bool {
    move |before| Version::at_log(before.epoch, before.decoded) >= not_below.with_ordinal(0)
}

#[async_trait]
impl RowReader for Reader {
    async fn read_chunk(&mut self, request: &ChunkRequest<'_>) -> Result<Chunk> {
        let (table, not_below) = (request.table, request.not_below);
        let claim = claim(self.progress.clone(), not_below);
        let (opened, version) = self.wait_for(table, far_enough(not_below), claim).await?;
        let read_at = opened.read_at;
        let (rows, next) = self.rows_in_range(opened, request).await?;
        Ok(Chunk { table: table.clone(), version, read_at, rows, next })
    }

    async fn read_keys(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
        not_below: Version,
    ) -> Result<Chunk> {
        let claim = claim(self.progress.clone(), not_below);
        let (opened, version) = self.wait_for(table, far_enough(not_below), claim).await?;
        let read_at = opened.read_at;
        let rows = self.rows_of(opened, keys).await?;
        Ok(Chunk { table: table.clone(), version, read_at, rows, next: None })
    }

    async fn reread(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
        at: Version,
    ) -> Result<Vec<(Key, Row)>> {
        let promising = |before: &Before| before.begun >= at.log;
        let seen = |before: &Before, opened: &Opened| {
            before.shows(at.log, opened.shown, &opened.prepared).then_some(())
        };
        let (opened, ()) = self.wait_for(table, promising, seen).await?;
        self.rows_of(opened, keys).await
    }

    async fn read_plain(
        &mut self,
        request: &ChunkRequest<'_>,
    ) -> Result<(Vec<(Key, Row)>, Option<Key>)> {
        let session = self.session().await?;
        let opened = self.begin(session, request.table, sql::BEGIN_PLAIN).await?;
        self.rows_in_range(opened, request).await
    }

    async fn read_plain_keys(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
    ) -> Result<Vec<(Key, Row)>> {
        let session = self.session().await?;
        let opened = self.begin(session, table, sql::BEGIN_PLAIN).await?;
        self.rows_of(opened, keys).await
    }

    async fn any_value(&mut self, table: &TableSchema, columns: &[String]) -> Result<bool> {
        if columns.is_empty() {
            return Ok(false);
        }
        // Any snapshot will do, so there is nothing to wait for, nor to look at.
        let mut session = self.session().await?;
        let statement = sql::any_value(&table.name, columns);
        let doing = format!("read rows of {}", table.name);
        let rows = session.query(&doing, &statement).await;
        let rows = rows.map_err(|error| table_error(&table.name, error))?;
        self.session = Some(session);
        Ok(rows.first().map(|row| text(row, 0)).transpose()?.as_deref() == Some("1"))
    }
}

/// Every column that was asked for is still there as it was.
fn unchanged(table: &TableSchema, now: Option<CatalogTable>) -> Result<()> {
    let name = &table.name;
    let stop = |code, why: &str| {
        let message = format!(
            "table {name} {why}; adapt the target's table if need be, then run `driftless \
             backfill --table {name}`"
        );
        Error::table(name, code, message)
    };
    let now = now.ok_or_else(|| stop(Code::MissingTable, "was dropped or renamed"))?;
    let now = now.schema().map_err(|error| Error::table(name, error.code, error.message))?;
    if !table.columns.iter().all(|column| now.columns.contains(column)) {
        return Err(stop(Code::SchemaChange, "has lost or changed columns"));
    }
    // The order in which a scan goes on must not change under it.
    if !table.key_columns().eq(now.key_columns()) {
        return Err(stop(Code::SchemaChange, "has another key"));
    }
    Ok(())
}

fn unspeakable(table: &TableSchema) -> Error {
    let message = format!(
        "a key of table {} has a value that cannot be written in SQL; run `SET GLOBAL \
         binlog_row_metadata = FULL` if it is an ENUM or SET with unusual labels",
        table.name
    );
    Error::table(&table.name, Code::NoKey, message)
}

/// An error while rows of one table are read concerns that table, unless it is the connection.
fn table_error(table: &TableName, error: Error) -> Error {
    let remedy = match error.code {
        Code::Permission => {
            format!("; run `GRANT SELECT ON {} TO` our account", quote::table(table))
        }
        _ => String::new(),
    };
    match (&error.kind, error.code) {
        (Kind::Transient | Kind::Table(_), _) | (_, Code::Authentication | Code::Configuration) => {
            error
        }
        _ => Error::table(table, error.code, format!("{}{remedy}", error.message)),
    }
}

/// With a condition of the user, an error that speaks of SQL or of values is the condition's.
fn filter_error(error: Error, request: &ChunkRequest<'_>, table: &TableSchema) -> Error {
    let about_sql = matches!(error.code, Code::Protocol | Code::MissingTable | Code::PoisonRow);
    if request.filter.is_none() || error.is_transient() || !about_sql {
        return error;
    }
    let message = format!("{}; correct the condition of --where", error.message);
    Error::table(&table.name, Code::Configuration, message)
}
