//! A MySQL or MariaDB database as target: MySQL 8.0.19 and later, MariaDB 10.5 and later. Called
//! by the engine's applier through the `Target` contract; `sql.rs` writes the statements,
//! `target_types.rs` and `target_values.rs` say what becomes of columns and values, and the files
//! of this folder run it all: `writer` (a session), `names` (what tables are called), `records` and `claim`
//! (what is remembered, who writes), `shape` and `prepare` (tables), `rows`, `write`, `new_rows`, `apply`
//! and `poison` (batches), `read` (rows and keys), `grants` and `check`.
//!
//! Surprise: a future that is dropped half-way leaves a session that nobody can go on with, so
//! every method first replaces such a one. Its transaction ends with it, unless it was already
//! committing; that only a claim tells.

mod apply;
mod check;
mod claim;
mod grants;
mod names;
mod new_rows;
mod poison;
mod prepare;
mod read;
mod records;
mod rows;
mod shape;
#[cfg(test)]
mod tests;
pub(super) mod write;
mod writer;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use async_trait::async_trait;

use self::writer::{Door, Writer};
use super::config::Config;
use super::target_values;
use crate::ahead::{Ahead, Bring};
use crate::change::{Applied, Batch, Cell, Key, Row, TableBatch};
use crate::error::{Code, Error, Result};
use crate::records::{Records, not_joined};
use crate::schema::{TableName, TableSchema};
use crate::tombstones::Tombstones;
use crate::version::Version;
use crate::{Claim, Finding, KeyScan, Prepared, Remembered, StageAhead, Target, TargetOptions};

/// A target database, and the session that writes it.
pub struct MysqlTarget {
    door: Door,
    writer: Writer,
    ahead: Arc<Ahead<Writer>>,
    /// What our claim raised it to; `None` before a claim.
    fence: Option<u64>,
    /// Whether one of our sessions holds the lock that says that the pipeline is alive.
    lock_held: Arc<AtomicBool>,
    /// What `_cdc_checkpoint` says of tables, as of our last commit.
    tables: Records,
    tombstones: Tombstones,
    /// Whether a batch may have been committed without our knowing. Only a claim tells.
    unknown_commit: bool,
}

/// Connects to a target.
///
/// # Errors
/// `configuration`, for a URL that cannot be read; the connection.
pub(crate) async fn target(url: &str, options: TargetOptions) -> Result<MysqlTarget> {
    let config = Arc::new(Config::parse(url)?);
    let door = Door { config, options, lessons: Arc::default() };
    Ok(MysqlTarget {
        writer: Writer::open(&door).await?,
        ahead: Ahead::new(door.clone()),
        door,
        fence: None,
        lock_held: Arc::default(),
        tables: Records::new(),
        tombstones: Tombstones::new(true),
        unknown_commit: false,
    })
}

impl MysqlTarget {
    /// Ends what a dropped future may have left: its transaction, or the whole session.
    async fn settle(&mut self) -> Result<()> {
        if !self.writer.session.is_usable() {
            self.writer = Writer::open(&self.door).await?;
        }
        self.writer.settle().await
    }

    /// The fence of our claim.
    fn claimed(&self) -> Result<u64> {
        self.fence.ok_or_else(|| {
            Error::stop(Code::Internal, "the target was written to before it was claimed")
        })
    }
}

#[async_trait]
impl Target for MysqlTarget {
    async fn check(&mut self, tables: &[Arc<TableSchema>]) -> Result<Vec<Finding>> {
        self.settle().await?;
        self.findings(tables).await
    }

    async fn recall(&mut self) -> Result<Option<Remembered>> {
        self.settle().await?;
        self.remembered().await
    }

    async fn claim(&mut self, claim: &Claim) -> Result<Remembered> {
        self.settle().await?;
        self.become_writer(claim).await
    }

    async fn prepare(&mut self, table: &Arc<TableSchema>) -> Result<Prepared> {
        self.settle().await?;
        self.ahead.take_back().await;
        self.prepare_table(table).await
    }

    async fn release(&mut self, tables: &[TableName]) -> Result<()> {
        self.settle().await?;
        self.release_tables(tables).await
    }

    async fn apply(&mut self, batch: &Batch) -> Result<Applied> {
        self.settle().await?;
        if self.unknown_commit {
            let message = "an earlier batch was interrupted, so the target must be claimed again";
            return Err(Error::transient(Code::Unreachable, message));
        }
        self.apply_batch(batch).await
    }

    fn ahead(&self) -> Option<Arc<dyn StageAhead>> {
        Some(self.ahead.clone())
    }

    // A loader would have to lock the row of the checkpoint to prove the fence, and every batch of
    // the log would wait for it.
    async fn join(&mut self, _fence: u64) -> Result<bool> {
        Ok(false)
    }

    async fn load(&mut self, _rows: &TableBatch) -> Result<()> {
        Err(not_joined())
    }

    async fn read_rows(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
    ) -> Result<Vec<(Key, Version, Row)>> {
        self.settle().await?;
        self.rows_of_keys(table, keys).await
    }

    async fn read_keys(&mut self, scan: &KeyScan<'_>) -> Result<Vec<Key>> {
        self.settle().await?;
        self.keys_of_scan(scan).await
    }

    fn stored(&self, table: &TableSchema, row: &Row) -> Row {
        let columns = self.writer.stored_columns(table);
        let texts: Vec<_> = columns
            .iter()
            .zip(row.cells())
            .map(|(column, cell)| match cell {
                Cell::Value(value) => Some(target_values::stored(column.form, value)),
                Cell::Null | Cell::Absent | Cell::Binary(_) => None,
            })
            .collect();
        let cells = texts.iter().zip(row.cells());
        Row::from_cells(cells.map(|(text, cell)| text.as_deref().map_or(cell, Cell::Value)))
    }

    fn table_name(&self, table: &TableName) -> String {
        self.writer.naming.target_name(table)
    }

    async fn forget(&mut self) -> Result<()> {
        self.settle().await?;
        self.forget_pipeline().await
    }
}
