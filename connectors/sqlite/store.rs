//! The open file: opened for reading until `claim` opens it for writing. All of it blocks, so
//! `target` calls it on threads of its own.
//! Surprise: readers open the file for writing too, but with `query_only`: a crashed writer's
//! log can only be read by somebody who may recover it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use crate::TargetOptions;
use crate::error::{Code, Error, Result};
use crate::sqlite::claim::{PipelineLock, recorded_fence};
use crate::sqlite::failure::Sql;
use crate::version::Version;

/// How long a statement waits for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 10_000 });
/// Pages in the log before it is copied into the file. The default of 1000 copies the same pages
/// again and again when keys are random: five times slower.
const CHECKPOINT_PAGES: i64 = 20_000;
/// Negative means KiB.
const CACHE_SIZE: i64 = -32 * 1024;
const STATEMENTS_MAX: usize = 512;

/// One pipeline's view of one file.
pub(super) struct Store {
    pub(super) path: PathBuf,
    pub(super) options: TargetOptions,
    pub(super) connection: Option<Connection>,
    /// Set by `claim`.
    pub(super) writer: Option<Writer>,
}

/// What the one writer holds.
pub(super) struct Writer {
    pub(super) fence: u64,
    pub(super) lock: PipelineLock,
    /// No tombstone is older; `None` when there is none at all.
    pub(super) oldest_tombstone: Option<Version>,
    /// Which file it is on the disk, whatever the path leads to.
    pub(super) file: FileIdentity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileIdentity(u64, u64);

impl Store {
    pub(super) fn new(path: PathBuf, options: TargetOptions) -> Store {
        Store { path, options, connection: None, writer: None }
    }

    /// A connection to read with; `None` while there is no file.
    pub(super) fn reader(&mut self) -> Result<Option<&mut Connection>> {
        if self.connection.is_none() && self.path.exists() {
            let connection = open(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            connection.pragma_update(None, "query_only", true).sql("open target read-only")?;
            self.connection = Some(connection);
        }
        Ok(self.connection.as_mut())
    }

    /// A connection to read with.
    pub(super) fn existing(&mut self) -> Result<&mut Connection> {
        let missing = format!(
            "the target file {} is not there; `driftless run` makes it",
            self.path.display()
        );
        self.reader()?.ok_or_else(|| Error::stop(Code::TargetLost, missing))
    }

    /// Does work that writes in one transaction, if the fence is still ours.
    pub(super) fn write<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&Transaction<'_>, &TargetOptions) -> Result<T>,
    ) -> Result<T> {
        let (connection, writer, options) = self.writing()?;
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).sql(doing)?;
        let found = recorded_fence(&transaction, &options.pipeline)?;
        verify_fence(&options.pipeline, found, writer.fence)?;
        let outcome = work(&transaction, options)?;
        transaction.commit().sql(doing)?;
        Ok(outcome)
    }

    /// What writing needs; the file must still be the one that was claimed.
    pub(super) fn writing(&mut self) -> Result<(&mut Connection, &mut Writer, &TargetOptions)> {
        let (Some(connection), Some(writer)) = (&mut self.connection, &mut self.writer) else {
            return Err(Error::stop(
                Code::Internal,
                "the target was written before it was claimed",
            ));
        };
        // SQLite would go on writing into a file that nobody can open any more.
        if identity(&self.path)? != writer.file {
            return Err(Error::stop(
                Code::TargetLost,
                format!(
                    "the target file {} was replaced while it was written; restart to resume \
                     from what it holds",
                    self.path.display()
                ),
            ));
        }
        writer.lock.try_lock()?;
        Ok((connection, writer, &self.options))
    }
}

/// Opens the file for writing, and makes it if need be.
pub(super) fn open_for_writing(path: &Path) -> Result<Connection> {
    const DOING: &str = "open target for writing";
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let connection = open(path, flags)?;
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .sql(DOING)?;
    if mode != "wal" {
        return Err(Error::stop(
            Code::Configuration,
            format!(
                "{} cannot have a write-ahead log; put it on a local file system",
                path.display()
            ),
        ));
    }
    // The checkpoint lives in this file: what was committed must survive a power cut.
    connection.pragma_update(None, "synchronous", "FULL").sql(DOING)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES).sql(DOING)?;
    connection.pragma_update(None, "cache_size", CACHE_SIZE).sql(DOING)?;
    // Tables arrive in no particular order, so references between them cannot be enforced.
    connection.pragma_update(None, "foreign_keys", false).sql(DOING)?;
    Ok(connection)
}

/// The file behind the path.
pub(super) fn identity(path: &Path) -> Result<FileIdentity> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let found = std::fs::metadata(path).map_err(|error| {
            Error::stop(
                Code::TargetLost,
                format!("the target file {} cannot be found: {error}", path.display()),
            )
        })?;
        Ok(FileIdentity(found.dev(), found.ino()))
    }
    // Elsewhere an open file cannot be replaced.
    #[cfg(not(unix))]
    {
        let _ = path;
        Ok(FileIdentity(0, 0))
    }
}

/// Refuses to go on when another instance has raised the fence.
pub(super) fn verify_fence(pipeline: &str, found: Option<u64>, ours: u64) -> Result<()> {
    match found {
        Some(fence) if fence == ours => Ok(()),
        Some(fence) => Err(Error::stop(
            Code::Fenced,
            format!(
                "another instance has taken pipeline {pipeline} over (fence {fence}, ours is \
                 {ours}); stop one of the two"
            ),
        )),
        None => Err(Error::stop(
            Code::TargetLost,
            format!("the target no longer knows pipeline {pipeline}; restart to begin afresh"),
        )),
    }
}

/// Whether our own tables are there.
pub(super) fn has_own_tables(connection: &Connection) -> Result<bool> {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' \
               AND name IN ('_cdc_checkpoint', '_cdc_tombstone')";
    let count: i64 = connection.query_row(sql, [], |row| row.get(0)).sql("look for own tables")?;
    Ok(count == 2)
}

fn open(path: &Path, flags: OpenFlags) -> Result<Connection> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let doing = format!("open {}", path.display());
    let connection = Connection::open_with_flags(path, flags).sql(&doing)?;
    connection.busy_timeout(BUSY_TIMEOUT).sql(&doing)?;
    // A misspelled column in double quotes would otherwise be taken for a string.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false).sql(&doing)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false).sql(&doing)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Ok(connection)
}
