//! A MySQL or MariaDB database as target: MySQL 8.0.19 and later, MariaDB 10.5 and later. Called
//! by the engine's applier through the `Target` contract; `sql.rs` writes the statements,
//! `target_types.rs` and `target_values.rs` say what becomes of columns and values, and the files
//! of this folder run it all: `names` (what tables are called), `records` and `claim` (what is
//! remembered, who writes), `shape` and `prepare` (tables), `rows`, `write`, `new_rows`, `apply` and
//! `poison` (batches), `read` (rows and keys), `grants` and `check`.
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

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;

use self::names::Naming;
use self::records::number;
use super::config::Config;
use super::connect::{self, Role, Session};
use super::quote;
use super::sql::TableSql;
use super::target_types::{StoredColumn, stored_columns};
use super::target_values;
use crate::change::{Applied, Batch, Cell, Key, Row, TableBatch};
use crate::error::{Code, Error, Result};
use crate::new_rows::NewRows;
use crate::records::{Records, not_joined};
use crate::schema::{Engine, TableName, TableSchema};
use crate::version::Version;
use crate::{Claim, Finding, KeyScan, Prepared, Remembered, Target, TargetOptions};

/// A lock that somebody holds on a row or a table must show as a retry, not as silence.
const SETTINGS: &str = "SET SESSION innodb_lock_wait_timeout = 30, SESSION lock_wait_timeout = 30";
/// We are the only writer, and nothing that we read has to stay as it is.
const ISOLATION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";
const LIMITS: &str = "SELECT @@max_allowed_packet, @@lower_case_table_names";

/// A session with a target database.
pub struct MysqlTarget {
    config: Arc<Config>,
    session: Session,
    options: TargetOptions,
    naming: Naming,
    /// The most bytes that a statement can have.
    packet_max: usize,
    /// Whether the server runs a prepared statement for many rows in one command.
    runs_many: bool,
    /// What our claim raised it to; `None` before a claim.
    fence: Option<u64>,
    /// Whether this session holds the lock that says that the pipeline is alive.
    lock_held: bool,
    /// What `_cdc_checkpoint` says of tables, as of our last commit.
    tables: Records,
    tombstones: apply::Tombstones,
    /// Which tables are worth an attempt to load rows as new ones.
    new_rows: HashMap<TableName, NewRows>,
    /// Whether a transaction may be open.
    in_transaction: bool,
    /// Whether a batch may have been committed without our knowing. Only a claim tells.
    unknown_commit: bool,
}

/// Connects to a target.
///
/// # Errors
/// `configuration`, for a URL that cannot be read; the connection.
pub(crate) async fn target(url: &str, options: TargetOptions) -> Result<MysqlTarget> {
    let config = Arc::new(Config::parse(url)?);
    let (session, packet_max, folds_case) = open(&config).await?;
    let naming = Naming { plain_schema: options.plain_schema.clone(), folds_case };
    Ok(MysqlTarget {
        config,
        runs_many: session.server().engine == Engine::Mariadb,
        session,
        options,
        naming,
        packet_max,
        fence: None,
        lock_held: false,
        tables: Records::new(),
        tombstones: apply::Tombstones::unknown(),
        new_rows: HashMap::new(),
        in_transaction: false,
        unknown_commit: false,
    })
}

async fn open(config: &Arc<Config>) -> Result<(Session, usize, bool)> {
    const DOING: &str = "set up the session with the target";
    let mut session = connect::connect(config, Role::Target).await.map_err(|error| {
        let database = quote::identifier(&config.database);
        match error.code {
            Code::Configuration => Error {
                message: format!(
                    "{}; run in the target: CREATE DATABASE {database}",
                    error.message
                ),
                ..error
            },
            _ => error,
        }
    })?;
    session.execute(DOING, SETTINGS).await?;
    session.execute(DOING, ISOLATION).await?;
    let limits = session.query(DOING, LIMITS).await?;
    let nothing = || Error::stop(Code::Protocol, "the target says nothing of its limits");
    let limits = limits.first().ok_or_else(nothing)?;
    let packet_max = usize::try_from(number(limits, 0)?).unwrap_or(usize::MAX);
    Ok((session, packet_max, number(limits, 1)? != 0))
}

impl MysqlTarget {
    /// What a source table's columns are in this target.
    fn stored_columns(&self, table: &TableSchema) -> Vec<StoredColumn> {
        stored_columns(table, self.engine())
    }

    fn engine(&self) -> Engine {
        self.session.server().engine
    }

    fn sql<'a>(
        &self,
        table: &'a TableSchema,
        name: &'a str,
        columns: &'a [StoredColumn],
    ) -> TableSql<'a> {
        let (server, soft_deletes) = (self.engine(), self.options.soft_deletes);
        TableSql { server, soft_deletes, name, table, columns }
    }

    /// Ends what a dropped future may have left: its transaction, or the whole session.
    async fn settle(&mut self) -> Result<()> {
        if !self.session.is_usable() {
            let (session, packet_max, folds_case) = open(&self.config).await?;
            self.session = session;
            self.packet_max = packet_max;
            self.naming.folds_case = folds_case;
            self.lock_held = false;
            self.in_transaction = false;
        }
        if self.in_transaction {
            self.session.execute("end an interrupted transaction", "ROLLBACK").await?;
            self.in_transaction = false;
        }
        Ok(())
    }

    async fn begin(&mut self) -> Result<()> {
        self.in_transaction = true;
        self.session.execute("begin a transaction", "START TRANSACTION").await?;
        Ok(())
    }

    async fn commit(&mut self, doing: &str) -> Result<()> {
        self.session.execute(doing, "COMMIT").await?;
        self.in_transaction = false;
        Ok(())
    }

    /// Takes back what this transaction did; a session that cannot is lost, and so is its
    /// transaction.
    async fn roll_back(&mut self) {
        if self.in_transaction && self.session.is_usable() {
            let undone = self.session.execute("take a transaction back", "ROLLBACK").await;
            self.in_transaction = undone.is_err();
        }
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
        let columns = self.stored_columns(table);
        let texts: Vec<_> = columns
            .iter()
            .zip(row.cells())
            .map(|(column, cell)| match cell {
                Cell::Value(value) => Some(target_values::stored(column.form, value)),
                Cell::Null | Cell::Absent => None,
            })
            .collect();
        let cells = texts.iter().zip(row.cells());
        Row::from_cells(cells.map(|(text, cell)| text.as_deref().map_or(cell, Cell::Value)))
    }

    fn table_name(&self, table: &TableName) -> String {
        self.naming.target_name(table)
    }

    async fn forget(&mut self) -> Result<()> {
        self.settle().await?;
        self.forget_pipeline().await
    }
}
