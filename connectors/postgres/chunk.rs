//! Reads rows of the source beside its log, in chunks, with the version that each may claim.
//!
//! # The chunk rule, and why it holds
//!
//! PostgreSQL writes a commit record before the commit becomes visible, so "the log position at
//! which I read" proves nothing. Instead, with `D` the last commit decoded before the snapshot
//! `S` was taken:
//!
//! 1. After the stream was opened, `X` = a fresh transaction id (not the `xmax` of a snapshot,
//!    which a commit that is logged and not yet visible may reach). Only snapshots with
//!    `xmin >= X` are used: they see everything that committed before the stream's beginning.
//! 2. Among the commits decoded by this stream, find the first (in the order of the log) that
//!    `S` does not see, at `u`. Then `low = min(D, u - 1)`.
//! 3. The rows get the version `(low, ordinal 0)`; real changes have ordinals from 1.
//!
//! Every change at or below `low` is in the rows: commits from before the stream by (1), commits
//! of this stream by (2). Every change above `low` is decoded later or has been decoded already,
//! with a greater version: it wins over the row, or has won. A chunk below `not_below` could
//! bring back a row whose tombstone is gone; it is thrown away and read again.
//!
//! Surprise: the table is locked (against being dropped or rewritten, not against writers)
//! before `S` is taken; see `source_sql.rs`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::answers::{Row as Answer, only, parsed, text, yes};
use super::catalog::{self, CatalogColumn, CatalogTable};
use super::chunk_rows::Decoder;
use super::config::Config;
use super::connect::{self, ServerError};
use super::copy_session::{CopySession, Given};
use super::lsn::Lsn;
use super::quote::identifier;
use super::session;
use super::source_sql::{self as sql, KeyColumn, Rows};
use super::values::InBinary;
use super::visibility::{Before, CommitLog, Snapshot};
use crate::change::{Chunk, Key, Row, Timestamp};
use crate::error::{Code, Error, Kind, Result};
use crate::schema::{TableName, TableSchema};
use crate::version::Version;
use crate::{ChunkRequest, RowReader};

const WAIT_MIN: Duration = Duration::from_millis(20);
const WAIT_MAX: Duration = Duration::from_secs(1);
/// The planner's work grows with the square of the keys when a key has several columns.
const KEYS_PER_STATEMENT: usize = 200;
const WAIT_SILENT: Duration = Duration::from_secs(5);

/// A connection that reads rows.
pub struct Reader {
    config: Arc<Config>,
    application: String,
    commits: Arc<CommitLog>,
    /// Whether values for the target come in binary.
    in_binary: InBinary,
    /// Taken while a transaction runs, so that a dropped future leaves none open.
    session: Option<CopySession>,
    keys: HashMap<u32, Arc<[KeyColumn]>>,
}

/// The transaction of a chunk: its snapshot is taken, its table locked and looked at.
struct Opened {
    session: CopySession,
    snapshot: Snapshot,
    read_at: Timestamp,
    partitioned: bool,
    key: Arc<[KeyColumn]>,
    /// Whether values come in binary.
    in_binary: bool,
}

impl Reader {
    /// Connects.
    ///
    /// # Errors
    /// The connection.
    pub async fn open(
        config: Arc<Config>,
        application: String,
        commits: Arc<CommitLog>,
        in_binary: InBinary,
    ) -> Result<Reader> {
        let session = Some(session::login_for_rows(&config, &application).await?);
        Ok(Reader { config, application, commits, in_binary, session, keys: HashMap::new() })
    }

    /// Takes snapshots until one is good enough, and returns what was asked of it. What is read in it
    /// goes to the target, and may come in binary; what is only compared is text.
    async fn wait_for<T>(
        &mut self,
        table: &TableSchema,
        enough: impl Fn(&CommitLog, Before, &Snapshot) -> Option<T>,
    ) -> Result<(Opened, T)> {
        let start = Instant::now();
        let (mut wait, mut told) = (WAIT_MIN, false);
        loop {
            // The log's place first, the snapshot after it: never the other way round.
            if let Some(before) = self.commits.before_snapshot() {
                let mut opened = self.begin(table).await?;
                if let Some(answer) = enough(&self.commits, before, &opened.snapshot) {
                    opened.in_binary = self.in_binary.suits([table]);
                    return Ok((opened, answer));
                }
                self.finish(opened.session).await?;
            }
            if !told && start.elapsed() > WAIT_SILENT {
                told = true;
                tracing::info!(
                    table = %table.name,
                    "waiting for older transactions of the source to end before its rows are read"
                );
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(WAIT_MAX);
        }
    }

    /// Begins the transaction, and asks in it what there is to know: sent together, so that a distant
    /// server costs one wait.
    async fn begin(&mut self, table: &TableSchema) -> Result<Opened> {
        let mut session = match self.session.take().and_then(CopySession::if_unchanged) {
            Some(session) => session,
            None => session::login_for_rows(&self.config, &self.application).await?,
        };
        let begin = sql::begin_chunk(&table.name);
        let [details, columns, keys] = catalog::questions(&[table.id]);
        let asked = session.ask_all([&begin, sql::SNAPSHOT, &details, &columns, &keys]).await?;
        let failed = |error| table_error(&table.name, &error);
        let [_, snapshot, details, columns, keys] = asked.map_err(failed)?;
        let snapshot = only(&snapshot)?;
        let read_at = Timestamp(parsed(snapshot, 1)?);
        let snapshot = Snapshot::parse(text(snapshot, 0)?)?;
        let now = catalog::tables(&[table.id], &[details, columns, keys])?.pop();
        let now = unchanged(table, now)?;
        let key = match self.keys.get(&table.id) {
            Some(key) => key.clone(),
            None => {
                let key: Arc<[KeyColumn]> = key_columns(&mut session, &now, table).await?.into();
                self.keys.insert(table.id, key.clone());
                key
            }
        };
        let partitioned = now.partitioned;
        Ok(Opened { session, snapshot, read_at, partitioned, key, in_binary: false })
    }

    async fn finish(&mut self, mut session: CopySession) -> Result<()> {
        let ended = session.ask("COMMIT").await?;
        ended.map_err(|error| connect::server_error("end the reading of rows", &error))?;
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
        let text = opened.rows(table).copy_range(request.after, request.filter, limit);
        let mut rows =
            opened.copy(table, &text).await.map_err(|error| filter_error(error, request, table))?;
        self.finish(opened.session).await?;
        let more = rows.len() > request.rows_max;
        rows.truncate(request.rows_max);
        let next = rows.last().filter(|_| more).map(|(key, _)| key.clone());
        Ok((rows, next))
    }

    /// The rows of these keys in an open transaction.
    async fn rows_of(
        &mut self,
        mut opened: Opened,
        table: &TableSchema,
        keys: &[Key],
    ) -> Result<Vec<(Key, Row)>> {
        let mut rows = Vec::new();
        for keys in keys.chunks(KEYS_PER_STATEMENT) {
            let text = opened.rows(table).copy_keys(keys);
            let found = opened.copy(table, &text).await?;
            // Values that are equal to the server and spelled otherwise are other keys.
            let wanted: HashSet<&Key> = keys.iter().collect();
            rows.extend(found.into_iter().filter(|(key, _)| wanted.contains(key)));
        }
        self.finish(opened.session).await?;
        Ok(rows)
    }
}

impl Opened {
    fn rows<'a>(&'a self, table: &'a TableSchema) -> Rows<'a> {
        let Opened { partitioned, key, in_binary, .. } = self;
        Rows { table, partitioned: *partitioned, key, in_binary: *in_binary }
    }

    /// Runs a COPY and reads its rows.
    async fn copy(&mut self, table: &TableSchema, text: &str) -> Result<Vec<(Key, Row)>> {
        self.session.begin_one(text).await?;
        let mut decoder = Decoder::new(table, self.in_binary);
        loop {
            match self.session.given().await? {
                Given::Rows(mut rows) => {
                    while let Some(row) = rows.first()? {
                        decoder.feed(row)?;
                        rows.skip();
                    }
                }
                Given::Notice(_) => {}
                Given::End(None) => return decoder.finish(),
                Given::End(Some(error)) => return Err(table_error(&table.name, &error)),
            }
        }
    }
}

/// The version that rows of this snapshot may claim, if it is not below `not_below`.
fn claim(not_below: Version) -> impl Fn(&CommitLog, Before, &Snapshot) -> Option<Version> {
    move |commits, before, snapshot| {
        let low = commits.low(before, snapshot)?;
        Some(Version::at_log(before.epoch, low.0)).filter(|version| *version >= not_below)
    }
}

#[async_trait]
impl RowReader for Reader {
    async fn read_chunk(&mut self, request: &ChunkRequest<'_>) -> Result<Chunk> {
        let table = request.table;
        let (opened, version) = self.wait_for(table, claim(request.not_below)).await?;
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
        let (opened, version) = self.wait_for(table, claim(not_below)).await?;
        let read_at = opened.read_at;
        let rows = self.rows_of(opened, table, keys).await?;
        Ok(Chunk { table: table.clone(), version, read_at, rows, next: None })
    }

    async fn reread(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
        at: Version,
    ) -> Result<Vec<(Key, Row)>> {
        let seen = |commits: &CommitLog, before, snapshot: &Snapshot| {
            commits.sees(before, snapshot, Lsn(at.log)).then_some(())
        };
        let (opened, ()) = self.wait_for(table, seen).await?;
        self.rows_of(opened, table, keys).await
    }

    async fn read_plain(
        &mut self,
        request: &ChunkRequest<'_>,
    ) -> Result<(Vec<(Key, Row)>, Option<Key>)> {
        let opened = self.begin(request.table).await?;
        self.rows_in_range(opened, request).await
    }

    async fn read_plain_keys(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
    ) -> Result<Vec<(Key, Row)>> {
        let opened = self.begin(table).await?;
        self.rows_of(opened, table, keys).await
    }

    async fn any_value(&mut self, table: &TableSchema, columns: &[String]) -> Result<bool> {
        if columns.is_empty() {
            return Ok(false);
        }
        // Any snapshot will do, so there is nothing to wait for.
        let mut opened = self.begin(table).await?;
        let question = sql::any_value(&opened.rows(table), columns);
        let answer = opened.session.ask(&question).await?;
        let answer = answer.map_err(|error| table_error(&table.name, &error))?;
        self.finish(opened.session).await?;
        yes(only(&answer)?, 0)
    }
}

/// Every column that was asked for is still there as it was.
fn unchanged(table: &TableSchema, now: Option<CatalogTable>) -> Result<CatalogTable> {
    let stop = |code, why: &str| {
        let name = &table.name;
        Error::table(
            name,
            code,
            format!(
                "table {name} {why}; adapt the target's table if need be, then run \
                 `driftless backfill --table {name}`"
            ),
        )
    };
    let now = now.ok_or_else(|| stop(Code::MissingTable, "was dropped"))?;
    if now.name != table.name {
        return Err(stop(Code::SchemaChange, "was renamed"));
    }
    let has = |column: &crate::schema::Column| now.columns.iter().any(|now| now.column == *column);
    if !table.columns.iter().all(has) {
        return Err(stop(Code::SchemaChange, "has lost or changed columns"));
    }
    // The order in which a scan goes on must not change under it.
    if !table.key_columns().map(|column| column.id).eq(now.key.iter().copied()) {
        return Err(stop(Code::SchemaChange, "has another key"));
    }
    if now.row_security {
        return Err(stop(Code::RowSecurity, "has row level security, which hides rows from us"));
    }
    Ok(now)
}

async fn key_columns(
    session: &mut CopySession,
    now: &CatalogTable,
    table: &TableSchema,
) -> Result<Vec<KeyColumn>> {
    let of_key = |column: &&CatalogColumn| table.key_columns().any(|key| *key == column.column);
    let types: Vec<u32> = now.columns.iter().filter(of_key).map(|c| c.base_type_id).collect();
    let rows = session.ask(&sql::of_ids(sql::KEY_TYPES, &types)).await?;
    let rows = rows.map_err(|error| connect::server_error("read the types of a key", &error))?;
    let column = |key: &crate::schema::Column| {
        let column = now.columns.iter().find(|column| column.column == *key)?;
        let is_its = |row: &&Answer| parsed(row, 0) == Ok(column.base_type_id);
        let of_type = rows.iter().find(is_its)?;
        let operator = |place: usize, general: &str| {
            of_type.get(place).cloned().flatten().unwrap_or_else(|| general.to_owned())
        };
        let name = identifier(&key.name);
        let cast = format!("::{}", text(of_type, 1).ok()?);
        Some(KeyColumn {
            expression: match column.type_id == column.base_type_id {
                true => name,
                false => format!("{name}{cast}"),
            },
            cast: if yes(of_type, 4).ok()? { cast } else { String::new() },
            greater: operator(2, sql::GREATER),
            equal: operator(3, sql::EQUAL),
        })
    };
    let key: Option<Vec<KeyColumn>> = table.key_columns().map(column).collect();
    key.ok_or_else(|| {
        let message = format!("the key of table {} changed while it was looked at", table.name);
        Error::table(&table.name, Code::SchemaChange, message)
    })
}

/// An error while rows of one table are read concerns that table, unless it is the connection.
fn table_error(table: &TableName, error: &ServerError) -> Error {
    let error = connect::server_error(&format!("read rows of {table}"), error);
    let remedy = match error.code {
        Code::Permission => {
            format!("; run `GRANT SELECT ON {} TO` our role", super::quote::table(table))
        }
        _ => String::new(),
    };
    match (&error.kind, error.code) {
        (Kind::Transient, _) | (_, Code::Authentication | Code::Configuration) => error,
        _ => Error::table(table, error.code, format!("{}{remedy}", error.message)),
    }
}

/// With a condition of the user, an error that speaks of SQL or of values is the condition's.
fn filter_error(error: Error, request: &ChunkRequest<'_>, table: &TableSchema) -> Error {
    let about_sql = matches!(error.code, Code::Protocol | Code::MissingTable | Code::PoisonRow);
    if request.filter.is_none() || error.is_transient() || !about_sql {
        return error;
    }
    Error::table(
        &table.name,
        Code::Configuration,
        format!(
            "{}; correct the condition of --where (functions of your own need their schema)",
            error.message
        ),
    )
}
