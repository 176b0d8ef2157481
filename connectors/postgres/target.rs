//! A PostgreSQL database as target, 14 and later. Called by the engine's applier through the
//! `Target` contract; `sql.rs` writes the statements, and the files of this folder run them:
//! `claim` (who writes, and what is remembered), `shape` and `prepare` (tables), `apply`, `stage`,
//! `new_rows` and `poison` (batches), `ahead` (the batch that follows), `load` (chunks beside the
//! batches), `session`, `copying` and `row_writer` (how rows are sent), `read` (rows and keys), `check`.
//!
//! Surprise: a future that is dropped half-way leaves its transaction open in the session, so
//! every method first ends what an earlier one may have left.

mod ahead;
mod apply;
mod check;
mod claim;
mod copying;
mod load;
mod new_rows;
mod poison;
mod prepare;
mod read;
pub mod row_writer;
mod session;
mod shape;
mod stage;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use async_trait::async_trait;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use self::row_writer::Unwritten;
pub use self::row_writer::{Form, RowWriter};
use self::session::{Door, Session};
use super::config::Config;
use super::connect;
use crate::ahead::Ahead;
use crate::change::{Applied, Batch, Key, Row, TableBatch};
use crate::error::{Code, Error, Result};
use crate::schema::{TableName, TableSchema};
use crate::tombstones::Tombstones;
use crate::version::Version;
use crate::{
    Claim, Finding, KeyScan, Prepared, Remembered, StageAhead, TableRecord, Target, TargetOptions,
};

/// A target database, and the session that writes it.
pub struct PostgresTarget {
    session: Session,
    ahead: Arc<Ahead<Session>>,
    /// What our claim raised it to; `None` before a claim.
    fence: Option<u64>,
    /// The fence that a loader joined; `None` in a session that is none.
    joined: Option<u64>,
    /// Whether one of our sessions holds the advisory lock that says that the pipeline is alive.
    lock_held: Arc<AtomicBool>,
    /// What `_cdc_checkpoint` says of tables, as of our last commit.
    tables: BTreeMap<TableName, TableRecord>,
    tombstones: Tombstones,
    /// Whether a batch may have been committed without our knowing. Only a claim tells.
    unknown_commit: bool,
}

/// Connects to a target.
///
/// # Errors
/// `configuration`, for a URL that cannot be read; the connection.
pub(crate) async fn target(url: &str, options: TargetOptions) -> Result<PostgresTarget> {
    let config = Config::parse(url)?;
    let door = Door { config, options, lessons: Arc::default() };
    let session = Session::open(&door).await?;
    Ok(PostgresTarget {
        ahead: Ahead::new(door),
        session,
        fence: None,
        joined: None,
        lock_held: Arc::default(),
        tables: BTreeMap::new(),
        tombstones: Tombstones::new(true),
        unknown_commit: false,
    })
}

/// Why a statement did not do its work: the server's own words, for those who look at the
/// SQLSTATE, or an error that is finished.
enum Failure {
    Server(tokio_postgres::Error),
    Ours(Error),
    /// A value of this stage's table can only be written as text. `write_text` helps.
    NoBinary(usize),
}

type Attempt<T> = std::result::Result<T, Failure>;

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Failure {
        Failure::Server(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Ours(error)
    }
}

impl Failure {
    /// A value cannot be written to this stage's table.
    fn unwritten(why: Unwritten, place: usize, table: &TableSchema) -> Failure {
        match why {
            Unwritten::NoBinary => Failure::NoBinary(place),
            Unwritten::Foreign => Failure::Ours(Error::stop(
                Code::Protocol,
                format!(
                    "write rows of table {}: the source sent a value in binary that is none of its \
                     column's type",
                    table.name
                ),
            )),
        }
    }

    fn doing(self, doing: &str) -> Error {
        match self {
            Failure::Server(error) => connect::error(doing, &error),
            Failure::Ours(error) => error,
            Failure::NoBinary(_) => {
                Error::stop(Code::Internal, format!("{doing}: a value has no binary form"))
            }
        }
    }
}

impl PostgresTarget {
    /// Nothing may follow a commit of which nobody knows whether it was made.
    fn refuse_unknown_commit(&self) -> Result<()> {
        if !self.unknown_commit {
            return Ok(());
        }
        let message = "an earlier batch was interrupted, so the target must be claimed again";
        Err(Error::transient(Code::Unreachable, message))
    }

    /// Takes back what this transaction did; a session that cannot is lost, and so is its
    /// transaction.
    async fn roll_back(&mut self) {
        if self.session.client.batch_execute("ROLLBACK").await.is_ok() {
            self.session.in_transaction = false;
            self.unknown_commit = false;
        }
    }

    /// The fence of our claim.
    fn claimed(&self) -> Result<u64> {
        self.fence.ok_or_else(|| {
            Error::stop(Code::Internal, "the target was written to before it was claimed")
        })
    }
}

fn into_row(message: SimpleQueryMessage) -> Option<SimpleQueryRow> {
    match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    }
}

/// How many rows the last statement of a message changed.
fn last_count(messages: &[SimpleQueryMessage]) -> u64 {
    let count = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::CommandComplete(count) => Some(*count),
        _ => None,
    };
    messages.iter().rev().find_map(count).unwrap_or(0)
}

/// A column of a row that our own statement always fills.
fn text(row: &SimpleQueryRow, index: usize) -> Result<&str> {
    let missing = || Error::stop(Code::Protocol, format!("the target sent no column {index}"));
    row.try_get(index).ok().flatten().ok_or_else(missing)
}

#[async_trait]
impl Target for PostgresTarget {
    async fn check(&mut self, tables: &[Arc<TableSchema>]) -> Result<Vec<Finding>> {
        self.session.settle().await?;
        self.findings(tables).await
    }

    async fn recall(&mut self) -> Result<Option<Remembered>> {
        self.session.settle().await?;
        self.remembered().await
    }

    async fn claim(&mut self, claim: &Claim) -> Result<Remembered> {
        self.session.settle().await?;
        self.become_writer(claim).await
    }

    async fn prepare(&mut self, table: &Arc<TableSchema>) -> Result<Prepared> {
        self.session.settle().await?;
        self.ahead.take_back().await;
        self.prepare_table(table).await
    }

    async fn release(&mut self, tables: &[TableName]) -> Result<()> {
        self.session.settle().await?;
        self.release_tables(tables).await
    }

    async fn apply(&mut self, batch: &Batch) -> Result<Applied> {
        self.session.settle().await?;
        self.refuse_unknown_commit()?;
        self.apply_batch(batch).await
    }

    fn ahead(&self) -> Option<Arc<dyn StageAhead>> {
        Some(self.ahead.clone())
    }

    async fn join(&mut self, fence: u64) -> Result<bool> {
        self.joined = Some(fence);
        Ok(true)
    }

    async fn load(&mut self, rows: &TableBatch) -> Result<()> {
        self.session.settle().await?;
        self.refuse_unknown_commit()?;
        self.load_rows(rows).await
    }

    async fn read_rows(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
    ) -> Result<Vec<(Key, Version, Row)>> {
        self.session.settle().await?;
        self.rows_of_keys(table, keys).await
    }

    async fn read_keys(&mut self, scan: &KeyScan<'_>) -> Result<Vec<Key>> {
        self.session.settle().await?;
        self.keys_of_scan(scan).await
    }

    // Values keep their type, and a value whose type only the source knows keeps its text.
    fn stored(&self, _table: &TableSchema, row: &Row) -> Row {
        row.clone()
    }

    fn table_name(&self, table: &TableName) -> String {
        table.to_string()
    }

    async fn forget(&mut self) -> Result<()> {
        self.session.settle().await?;
        self.forget_pipeline().await
    }
}
