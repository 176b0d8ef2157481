//! One connection to a target database, with what lives and dies with it: an open transaction, and
//! named locks. A target has one that commits, and others that bring the batch after it
//! (`crate::ahead`).
//!
//! Surprise: such another one holds a lock that nobody waits for. It tells a claim whom to end, so
//! that rows which nobody will commit do not stay locked until the server notices.

use std::sync::Arc;

use super::names::Naming;
use super::records::{number, optional};
use crate::ahead::{Bring, HeldLock};
use crate::change::Batch;
use crate::error::{Code, Error, Result};
use crate::fnv::fnv_1a;
use crate::mysql::config::Config;
use crate::mysql::connect::{self, Role, Session};
use crate::mysql::quote;
use crate::mysql::sql::TableSql;
use crate::mysql::target_types::{StoredColumn, has_loose_key, stored_columns};
use crate::new_rows::Lessons;
use crate::part::TablePart;
use crate::schema::{Engine, TableSchema};
use crate::version::Version;
use crate::{TargetOptions, Upcoming};

/// A lock that somebody holds on a row or a table must show as a retry, not as silence.
const SETTINGS: &str = "SET SESSION innodb_lock_wait_timeout = 30, SESSION lock_wait_timeout = 30";
/// We are the only writer, and nothing that we read has to stay as it is.
const ISOLATION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";
const LIMITS: &str = "SELECT @@max_allowed_packet, @@lower_case_table_names";

/// How many sessions besides the one that commits there can be: two, and one that the server has not
/// noticed to be gone.
const OTHERS_MAX: usize = 3;

/// What it takes to open one.
#[derive(Clone)]
pub struct Door {
    /// Where the target is.
    pub config: Arc<Config>,
    /// Whose session it will be.
    pub options: TargetOptions,
    /// Shared by all sessions of a pipeline.
    pub lessons: Arc<Lessons>,
}

/// A connection to a target database.
pub struct Writer {
    /// Runs statements.
    pub session: Session,
    /// Whose session it is.
    pub options: TargetOptions,
    /// What tables are called.
    pub naming: Naming,
    /// The most bytes that a statement can have.
    pub packet_max: usize,
    /// Whether the server runs a prepared statement for many rows in one command.
    pub runs_many: bool,
    /// Which tables are worth an attempt to load rows as new ones.
    pub lessons: Arc<Lessons>,
    /// Whether a transaction may be open.
    pub in_transaction: bool,
    /// The lock that says that the pipeline is alive, if this session holds it.
    pub lock: Option<HeldLock>,
}

impl Door {
    /// The name of the pipeline's lock: at most 62 characters. Every release must agree on it.
    pub fn lock_name(&self) -> String {
        let whose = format!("{}\0{}", self.config.database, self.options.pipeline);
        format!("driftless_target_{:016x}", fnv_1a(whose.as_bytes()))
    }

    /// The names of the locks of the other sessions.
    pub fn lock_names_of_others(&self) -> [String; OTHERS_MAX] {
        let name = self.lock_name();
        std::array::from_fn(|place| format!("{name}_{}", place + 1))
    }
}

impl Writer {
    /// Connects.
    ///
    /// # Errors
    /// The connection; `configuration`, if there is no such database.
    pub async fn open(door: &Door) -> Result<Writer> {
        const DOING: &str = "set up the session with the target";
        let connected = connect::connect(&door.config, Role::Target).await;
        let mut session = connected.map_err(|error| {
            let database = quote::identifier(&door.config.database);
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
        let plain_schema = door.options.plain_schema.clone();
        Ok(Writer {
            naming: Naming { plain_schema, folds_case: number(limits, 1)? != 0 },
            packet_max: usize::try_from(number(limits, 0)?).unwrap_or(usize::MAX),
            runs_many: session.server().engine == Engine::Mariadb,
            session,
            options: door.options.clone(),
            lessons: door.lessons.clone(),
            in_transaction: false,
            lock: None,
        })
    }

    /// What a source table's columns are in this target.
    pub fn stored_columns(&self, table: &TableSchema) -> Vec<StoredColumn> {
        stored_columns(table, self.engine())
    }

    /// MySQL or MariaDB.
    pub fn engine(&self) -> Engine {
        self.session.server().engine
    }

    /// The statements for this table.
    pub fn sql<'a>(
        &self,
        table: &'a TableSchema,
        name: &'a str,
        columns: &'a [StoredColumn],
    ) -> TableSql<'a> {
        let (server, soft_deletes) = (self.engine(), self.options.soft_deletes);
        TableSql { server, soft_deletes, name, table, columns }
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// The connection.
    pub async fn begin(&mut self) -> Result<()> {
        self.in_transaction = true;
        self.session.execute("begin a transaction", "START TRANSACTION").await?;
        Ok(())
    }

    /// Commits it.
    ///
    /// # Errors
    /// What the server says; `unreachable` (transient): nobody knows.
    pub async fn commit(&mut self, doing: &str) -> Result<()> {
        self.session.execute(doing, "COMMIT").await?;
        self.in_transaction = false;
        Ok(())
    }

    /// Takes back what this transaction did; a session that cannot is lost, and so is its
    /// transaction.
    pub async fn roll_back(&mut self) {
        if self.session.is_usable() {
            let _ = self.settle().await;
        }
    }

    /// Asks for a lock; says whether it was to be had.
    ///
    /// # Errors
    /// The connection.
    pub async fn get_lock(&mut self, name: &str) -> Result<bool> {
        let query = format!("SELECT GET_LOCK('{name}', 0)");
        let rows = self.session.query("lock the pipeline", &query).await?;
        let held = rows.first().map(|row| optional(row, 0)).transpose()?.flatten();
        Ok(held == Some(b"1"))
    }
}

impl Bring for Writer {
    type Door = Door;
    /// So many upserts, from the first, are in the table.
    type Brought = usize;

    async fn open(door: &Door) -> Result<Writer> {
        let mut writer = Writer::open(door).await?;
        for name in door.lock_names_of_others() {
            if writer.get_lock(&name).await? {
                return Ok(writer);
            }
        }
        let message = "sessions of an earlier process still hold the locks of those of this one";
        Err(Error::transient(Code::Unreachable, message))
    }

    async fn bring(
        &mut self,
        upcoming: &[Upcoming],
        look_for_tombstones: bool,
    ) -> Result<Vec<Option<usize>>> {
        // One who waited for a lock in vain will do so again.
        const WAITED_IN_VAIN: &str = "error 1205";
        let nothing = || Ok(upcoming.iter().map(|_| None).collect());
        if look_for_tombstones {
            return nothing();
        }
        match self.attempt_parts(upcoming).await {
            Err(error) if self.session.is_usable() && !error.message.contains(WAITED_IN_VAIN) => {
                self.settle().await?;
                nothing()
            }
            brought => brought,
        }
    }

    fn is_ready_for(&self, _: &Batch) -> bool {
        self.in_transaction && self.is_open()
    }

    fn is_open(&self) -> bool {
        self.session.is_usable()
    }

    async fn settle(&mut self) -> Result<()> {
        if self.in_transaction {
            self.session.execute("end an interrupted transaction", "ROLLBACK").await?;
            self.in_transaction = false;
        }
        Ok(())
    }
}

impl Writer {
    async fn attempt_parts(&mut self, upcoming: &[Upcoming]) -> Result<Vec<Option<usize>>> {
        let mut all = Vec::with_capacity(upcoming.len());
        for one in upcoming {
            let part = TablePart::from(&*one.part).first_upserts(one.independent);
            let columns = self.stored_columns(part.table);
            if part.is_empty() || has_loose_key(part.table, &columns) {
                all.push(None);
                continue;
            }
            if !self.in_transaction {
                self.begin().await?;
            }
            // They have all their cells, so none is missing, and no delete, so no tombstone is made.
            self.write_part(&part, Version::ZERO, false).await?;
            all.push(Some(one.independent));
        }
        Ok(all)
    }
}
