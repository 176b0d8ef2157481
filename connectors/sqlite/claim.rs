//! Who writes: a lock keeps a second living writer out, the fence keeps out one that was
//! suspended or that lost the lock.
//! Surprise: a take-over from a living instance succeeds without the lock and gets it later.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use crate::calendar::utc_text;
use crate::error::{Code, Error, Result};
use crate::schema::TableName;
use crate::sqlite::failure::Sql;
use crate::sqlite::names::target_name;
use crate::sqlite::store::{
    Store, Writer, has_own_tables, identity, open_for_writing, verify_fence,
};
use crate::sqlite::time::now;
use crate::sqlite::{records, sql};
use crate::version::Version;
use crate::{Claim, Remembered};

impl Store {
    /// What is known of the pipeline.
    pub(super) fn recall(&mut self) -> Result<Option<Remembered>> {
        let pipeline = self.options.pipeline.clone();
        match self.reader()? {
            None => Ok(None),
            Some(connection) => records::remembered(connection, &pipeline),
        }
    }

    /// Makes us the one writer.
    pub(super) fn claim(&mut self, claim: &Claim) -> Result<Remembered> {
        let mut lock = match self.writer.take() {
            Some(writer) => writer.lock,
            None => PipelineLock::open(&self.path, &self.options.pipeline)?,
        };
        // With a fence of this very process, a lock that is taken is that of our own earlier
        // connection, which a blocked call still holds; the fence tells.
        if !lock.try_lock()? && !claim.take_over && claim.fence.is_none() {
            return Err(self.already_running(&lock.path));
        }
        self.connection = None;
        let mut connection = open_for_writing(&self.path)?;
        let fence = raise_fence(&mut connection, &self.options.pipeline, claim)?;
        let remembered = records::remembered(&connection, &self.options.pipeline)?
            .ok_or_else(|| Error::stop(Code::Internal, "the claim was not recorded"))?;
        let oldest_tombstone = oldest_tombstone(&connection, &self.options.pipeline)?;
        let file = identity(&self.path)?;
        self.connection = Some(connection);
        self.writer = Some(Writer { fence, lock, oldest_tombstone, file });
        Ok(remembered)
    }

    /// Forgets tables; their rows stay.
    pub(super) fn release(&mut self, tables: &[TableName]) -> Result<()> {
        self.write("release tables", |transaction, options| {
            let mut records = records::tables(transaction, &options.pipeline)?;
            for table in tables {
                records.remove(table);
                let sql = "DELETE FROM _cdc_tombstone WHERE pipeline = ?1 AND table_name = ?2";
                transaction
                    .execute(sql, params![options.pipeline, target_name(table, options)])
                    .sql("release tables")?;
            }
            records::save_tables(transaction, &options.pipeline, &records)
        })
    }

    /// Removes this pipeline's part of our own tables, and the tables when nobody else has one.
    pub(super) fn forget(&mut self) -> Result<()> {
        const DOING: &str = "forget pipeline";
        if !self.path.exists() {
            return Ok(());
        }
        let (mut lock, fence) = match self.writer.take() {
            Some(writer) => (writer.lock, Some(writer.fence)),
            None => (PipelineLock::open(&self.path, &self.options.pipeline)?, None),
        };
        if !lock.try_lock()? {
            return Err(self.already_running(&lock.path));
        }
        self.connection = None;
        let mut connection = open_for_writing(&self.path)?;
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).sql(DOING)?;
        if has_own_tables(&transaction)? {
            if let Some(ours) = fence {
                let found = recorded_fence(&transaction, &self.options.pipeline)?;
                verify_fence(&self.options.pipeline, found, ours)?;
            }
            remove_records(&transaction, &self.options.pipeline)?;
        }
        transaction.commit().sql(DOING)?;
        lock.remove()
    }

    fn already_running(&self, lock: &Path) -> Error {
        Error::stop(
            Code::AlreadyRunning,
            format!(
                "another instance is running pipeline {} into {} (it holds {}); stop it, or type \
                 `driftless run --take-over`",
                self.options.pipeline,
                self.path.display(),
                lock.display()
            ),
        )
    }
}

/// The oldest tombstone of a pipeline.
pub(super) fn oldest_tombstone(connection: &Connection, pipeline: &str) -> Result<Option<Version>> {
    const DOING: &str = "look for tombstones";
    let mut statement = connection.prepare_cached(sql::OLDEST_TOMBSTONE).sql(DOING)?;
    let oldest: Option<Vec<u8>> = statement.query_row([pipeline], |row| row.get(0)).sql(DOING)?;
    // One that cannot be read counts as the oldest of all: it is looked at, not overlooked.
    Ok(oldest.map(|bytes| Version::from_bytes(&bytes).unwrap_or(Version::ZERO)))
}

/// The fence that the last claim of a pipeline raised.
pub(super) fn recorded_fence(connection: &Connection, pipeline: &str) -> Result<Option<u64>> {
    let sql = "SELECT fence FROM _cdc_checkpoint WHERE pipeline = ?1";
    let found = connection.query_row(sql, [pipeline], |row| row.get::<_, i64>(0));
    Ok(found.optional().sql("read fence")?.map(i64::cast_unsigned))
}

fn remove_records(connection: &Connection, pipeline: &str) -> Result<()> {
    const DOING: &str = "forget pipeline";
    for table in ["_cdc_checkpoint", "_cdc_tombstone"] {
        let sql = format!("DELETE FROM {table} WHERE pipeline = ?1");
        connection.execute(&sql, [pipeline]).sql(DOING)?;
    }
    let sql = "SELECT EXISTS (SELECT 1 FROM _cdc_checkpoint)";
    if !connection.query_row(sql, [], |row| row.get::<_, bool>(0)).sql(DOING)? {
        let sql = "DROP TABLE _cdc_checkpoint; DROP TABLE _cdc_tombstone";
        connection.execute_batch(sql).sql(DOING)?;
    }
    Ok(())
}

/// Creates our own tables and returns the fence that is ours from now on.
fn raise_fence(connection: &mut Connection, pipeline: &str, claim: &Claim) -> Result<u64> {
    const DOING: &str = "claim target";
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).sql(DOING)?;
    transaction.execute_batch(sql::CREATE_CHECKPOINT).sql(DOING)?;
    transaction.execute_batch(sql::CREATE_TOMBSTONE).sql(DOING)?;
    let found = recorded_fence(&transaction, pipeline)?;
    if let Some(ours) = claim.fence {
        verify_fence(pipeline, found, ours)?;
        transaction.commit().sql(DOING)?;
        return Ok(ours);
    }
    let fence = found.unwrap_or(0) + 1;
    let sql = "INSERT INTO _cdc_checkpoint \
               (pipeline, sequence, fence, instance, tables, updated_at) \
               VALUES (?1, 0, ?2, ?3, '[]', ?4) ON CONFLICT (pipeline) \
               DO UPDATE SET fence = excluded.fence, instance = excluded.instance";
    transaction
        .execute(sql, params![pipeline, fence.cast_signed(), claim.instance, utc_text(now())])
        .sql(DOING)?;
    transaction.commit().sql(DOING)?;
    Ok(fence)
}

/// A file beside the database that the living writer of a pipeline keeps locked.
pub(super) struct PipelineLock {
    path: PathBuf,
    file: File,
    held: bool,
}

impl PipelineLock {
    fn open(database: &Path, pipeline: &str) -> Result<PipelineLock> {
        let path = lock_path(database, pipeline);
        // Never truncated and never replaced: the lock is on the file, not on its name.
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        match file {
            Ok(file) => Ok(PipelineLock { path, file, held: false }),
            Err(error) => Err(unlockable(&path, &error)),
        }
    }

    /// Takes the lock unless somebody else has it; whether it is ours.
    pub(super) fn try_lock(&mut self) -> Result<bool> {
        if !self.held {
            self.held = match self.file.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => false,
                Err(TryLockError::Error(error)) => return Err(unlockable(&self.path, &error)),
            };
        }
        Ok(self.held)
    }

    fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|error| unlockable(&self.path, &error))
    }
}

/// `replica.db.shop.lock`; what cannot be in every file name is written as its code.
fn lock_path(database: &Path, pipeline: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".");
    for byte in pipeline.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => {
                name.push(char::from(byte).to_string());
            }
            _ => name.push(format!("%{byte:02x}")),
        }
    }
    name.push(".lock");
    PathBuf::from(name)
}

fn unlockable(path: &Path, error: &std::io::Error) -> Error {
    Error::stop(
        Code::Permission,
        format!(
            "cannot use the lock file {}: {error}; make the target's directory writable for this \
             user",
            path.display()
        ),
    )
}
