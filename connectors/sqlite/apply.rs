//! One batch as one transaction: the greater version wins, and the checkpoint moves with the rows.
//! Surprise: "no row was changed" is normal here; it means that something newer is known.

use rusqlite::{CachedStatement, OptionalExtension, Transaction, TransactionBehavior, params};

use crate::TargetOptions;
use crate::calendar::utc_text;
use crate::change::{
    Applied, Batch, Cell, Checkpoint, Key, RowDelete, RowUpsert, TableBatch, Timestamp,
};
use crate::error::{Code, Error, Result};
use crate::schema::TableSchema;
use crate::sqlite::claim::oldest_tombstone;
use crate::sqlite::failure::{Sql, poison, refused, unprepared};
use crate::sqlite::names::target_name;
use crate::sqlite::store::{Store, verify_fence};
use crate::sqlite::time::now;
use crate::sqlite::{records, sql, types};
use crate::version::Version;

impl Store {
    /// Applies a batch.
    pub(super) fn apply(&mut self, batch: &Batch) -> Result<Applied> {
        const DOING: &str = "apply batch";
        let (connection, writer, options) = self.writing()?;
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).sql(DOING)?;
        let checkpoint = &batch.checkpoint;
        match advance(&transaction, &options.pipeline, writer.fence, checkpoint)? {
            Advanced::Earlier => return Ok(Applied::Done),
            Advanced::Now => {}
        }
        let mut work = Work {
            transaction: &transaction,
            options,
            floor: batch.floor,
            oldest_tombstone: writer.oldest_tombstone,
        };
        let mut incomplete = Vec::new();
        for table in &batch.tables {
            let keys = work.table(table)?;
            if !keys.is_empty() {
                incomplete.push((table.table.name.clone(), keys));
            }
        }
        if !incomplete.is_empty() {
            transaction.rollback().sql(DOING)?;
            return Ok(Applied::NeedsRows(incomplete));
        }
        work.collect()?;
        let oldest = work.oldest_tombstone;
        record_status(&transaction, &options.pipeline, batch)?;
        transaction.commit().sql("commit batch")?;
        writer.oldest_tombstone = oldest;
        Ok(Applied::Done)
    }
}

enum Advanced {
    /// By this transaction.
    Now,
    /// By an earlier one, whose answer was lost.
    Earlier,
}

/// Moves the checkpoint by one, if we still may.
fn advance(
    transaction: &Transaction<'_>,
    pipeline: &str,
    fence: u64,
    checkpoint: &Checkpoint,
) -> Result<Advanced> {
    const DOING: &str = "move checkpoint";
    let changed = transaction
        .prepare_cached(sql::ADVANCE)
        .sql(DOING)?
        .execute(params![
            pipeline,
            fence.cast_signed(),
            checkpoint.position.0,
            checkpoint.version.to_bytes(),
            checkpoint.sequence.cast_signed(),
            utc_text(now()),
        ])
        .sql(DOING)?;
    if changed == 1 {
        return Ok(Advanced::Now);
    }
    let sql = "SELECT fence, sequence, position FROM _cdc_checkpoint WHERE pipeline = ?1";
    let found: Option<(i64, i64, Option<String>)> = transaction
        .query_row(sql, [pipeline], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()
        .sql(DOING)?;
    verify_fence(pipeline, found.as_ref().map(|found| found.0.cast_unsigned()), fence)?;
    match found {
        Some((_, sequence, position))
            if sequence.cast_unsigned() == checkpoint.sequence
                && position.as_ref() == Some(&checkpoint.position.0) =>
        {
            Ok(Advanced::Earlier)
        }
        other => Err(Error::stop(
            Code::Internal,
            format!(
                "batch {} of pipeline {pipeline} does not follow the target's batch {}",
                checkpoint.sequence,
                other.map_or(0, |found| found.1)
            ),
        )),
    }
}

/// The rows of one batch on their way into the file.
struct Work<'a> {
    transaction: &'a Transaction<'a>,
    options: &'a TargetOptions,
    floor: Version,
    oldest_tombstone: Option<Version>,
}

impl<'a> Work<'a> {
    /// Applies the part of one table. Returns the keys whose rows must be read again.
    fn table(&mut self, batch: &TableBatch) -> Result<Vec<Key>> {
        let table = &batch.table;
        if let Some((version, at)) = batch.truncated {
            self.truncate(table, version, at)?;
        }
        let truncated = self.tombstone(table, &Key::whole_table())?;
        let truncated = truncated.max(batch.truncated.map(|(version, _)| version));
        if !batch.deletes.is_empty() {
            let mut statement = self.prepare(table, &sql::delete(table, self.options))?;
            for delete in &batch.deletes {
                self.delete(table, &mut statement, delete)?;
            }
        }
        if batch.upserts.is_empty() {
            return Ok(Vec::new());
        }
        let mut incomplete = Vec::new();
        let mut statement = self.prepare(table, &sql::upsert(table, self.options))?;
        for upsert in &batch.upserts {
            let buried = self.tombstone(table, &upsert.key)?;
            if buried >= Some(upsert.version) || truncated > Some(upsert.version) {
                continue;
            }
            if !upsert.row.has_absent() {
                write_row(table, &mut statement, upsert)?;
            } else if !self.update(table, upsert)? {
                incomplete.push(upsert.key.clone());
            }
        }
        Ok(incomplete)
    }

    fn truncate(&mut self, table: &TableSchema, version: Version, at: Timestamp) -> Result<()> {
        let mut statement = self.prepare(table, &sql::truncate(table, self.options))?;
        let whole = Key::whole_table();
        bind_head(&mut statement, version, at, self.options.soft_deletes)
            .and_then(|()| statement.raw_execute())
            .map_err(|error| refused(&table.name, &whole, version, &error))?;
        self.bury(table, &whole, version)
    }

    fn delete(
        &mut self,
        table: &TableSchema,
        statement: &mut CachedStatement<'_>,
        delete: &RowDelete,
    ) -> Result<()> {
        let RowDelete { key, version, updated_at } = delete;
        bind_head(statement, *version, *updated_at, self.options.soft_deletes)
            .map_err(|error| refused(&table.name, key, *version, &error))?;
        bind_key(statement, table, key, *version)?;
        statement.raw_execute().map_err(|error| refused(&table.name, key, *version, &error))?;
        self.bury(table, key, *version)
    }

    /// Writes only the cells that are there. `false` if there is no row that they belong to.
    fn update(&self, table: &TableSchema, upsert: &RowUpsert) -> Result<bool> {
        let present: Vec<usize> = (0..table.columns.len())
            .filter(|&index| !table.is_key(index) && upsert.row.cell(index) != Cell::Absent)
            .collect();
        let mut statement = self.prepare(table, &sql::update(table, &present, self.options))?;
        bind_head(&mut statement, upsert.version, upsert.updated_at, true)
            .map_err(|error| refused(&table.name, &upsert.key, upsert.version, &error))?;
        bind_key(&mut statement, table, &upsert.key, upsert.version)?;
        let first = sql::FIRST + table.key.len();
        bind_cells(&mut statement, table, upsert, first, present.into_iter())?;
        let changed = statement
            .raw_execute()
            .map_err(|error| refused(&table.name, &upsert.key, upsert.version, &error))?;
        // Nothing changed: a newer row (or its deletion) is there, or no row at all.
        Ok(changed > 0 || self.version(table, &upsert.key, upsert.version)? >= Some(upsert.version))
    }

    /// The version of the row that is there, deleted or not. `at` only serves an error.
    fn version(&self, table: &TableSchema, key: &Key, at: Version) -> Result<Option<Version>> {
        let mut statement = self.prepare(table, &sql::select_version(table, self.options))?;
        bind_key(&mut statement, table, key, at)?;
        let mut rows = statement.raw_query();
        let found = match rows.next().sql("read version of row")? {
            None => return Ok(None),
            Some(row) => row.get_ref(0).sql("read version of row")?,
        };
        match found.as_blob().ok().and_then(Version::from_bytes) {
            Some(version) => Ok(Some(version)),
            None => Err(poison(&table.name, key, at, "the version of its row is damaged")),
        }
    }

    /// The version at which a key is known to be deleted.
    fn tombstone(&self, table: &TableSchema, key: &Key) -> Result<Option<Version>> {
        const DOING: &str = "look for tombstone";
        if self.oldest_tombstone.is_none() {
            return Ok(None);
        }
        let mut statement = self.transaction.prepare_cached(sql::TOMBSTONE).sql(DOING)?;
        let name = target_name(&table.name, self.options);
        let found: Option<Vec<u8>> = statement
            .query_row(params![self.options.pipeline, name, key.as_bytes()], |row| row.get(0))
            .optional()
            .sql(DOING)?;
        let Some(bytes) = found else { return Ok(None) };
        let damaged = || Error::stop(Code::TargetLost, "a version in _cdc_tombstone is damaged");
        Version::from_bytes(&bytes).map(Some).ok_or_else(damaged)
    }

    /// Remembers a deletion as long as something older may arrive.
    fn bury(&mut self, table: &TableSchema, key: &Key, version: Version) -> Result<()> {
        const DOING: &str = "write tombstone";
        if version < self.floor {
            return Ok(());
        }
        let mut statement = self.transaction.prepare_cached(sql::BURY).sql(DOING)?;
        let name = target_name(&table.name, self.options);
        statement
            .execute(params![self.options.pipeline, name, key.as_bytes(), version.to_bytes()])
            .sql(DOING)?;
        self.oldest_tombstone = Some(self.oldest_tombstone.map_or(version, |old| old.min(version)));
        Ok(())
    }

    /// Removes tombstones that nothing can need. Strictly below the floor: an idle source gives
    /// a new backfill the very version of the floor.
    fn collect(&mut self) -> Result<()> {
        const DOING: &str = "collect tombstones";
        if self.oldest_tombstone.is_none_or(|oldest| oldest >= self.floor) {
            return Ok(());
        }
        let mut statement = self.transaction.prepare_cached(sql::COLLECT).sql(DOING)?;
        statement.execute(params![self.options.pipeline, self.floor.to_bytes()]).sql(DOING)?;
        self.oldest_tombstone = oldest_tombstone(self.transaction, &self.options.pipeline)?;
        Ok(())
    }

    fn prepare(&self, table: &TableSchema, sql: &str) -> Result<CachedStatement<'a>> {
        self.transaction.prepare_cached(sql).map_err(|error| unprepared(&table.name, &error))
    }
}

fn write_row(
    table: &TableSchema,
    statement: &mut CachedStatement<'_>,
    upsert: &RowUpsert,
) -> Result<()> {
    let refused = |error| refused(&table.name, &upsert.key, upsert.version, &error);
    bind_head(statement, upsert.version, upsert.updated_at, true).map_err(refused)?;
    bind_cells(statement, table, upsert, sql::FIRST, 0..table.columns.len())?;
    statement.raw_execute().map_err(refused)?;
    Ok(())
}

/// Version, and time where the statement has one.
fn bind_head(
    statement: &mut CachedStatement<'_>,
    version: Version,
    at: Timestamp,
    with_time: bool,
) -> rusqlite::Result<()> {
    statement.raw_bind_parameter(1, version.to_bytes())?;
    if with_time { statement.raw_bind_parameter(2, utc_text(at)) } else { Ok(()) }
}

fn bind_key(
    statement: &mut CachedStatement<'_>,
    table: &TableSchema,
    key: &Key,
    version: Version,
) -> Result<()> {
    bind_key_values(statement, table, key)?
        .map_err(|reason| poison(&table.name, key, version, reason))
}

/// Binds the values of a key from `FIRST` on; the inner error says why a value cannot be one.
pub(super) fn bind_key_values(
    statement: &mut CachedStatement<'_>,
    table: &TableSchema,
    key: &Key,
) -> Result<std::result::Result<(), &'static str>> {
    for (number, (column, text)) in (sql::FIRST..).zip(table.key_columns().zip(key.values())) {
        match types::encode(column.column_type, text) {
            Ok(value) => statement.raw_bind_parameter(number, value).sql("bind key")?,
            Err(reason) => return Ok(Err(reason)),
        }
    }
    Ok(Ok(()))
}

fn bind_cells(
    statement: &mut CachedStatement<'_>,
    table: &TableSchema,
    upsert: &RowUpsert,
    first: usize,
    places: impl Iterator<Item = usize>,
) -> Result<()> {
    for (number, index) in (first..).zip(places) {
        let column = &table.columns[index];
        let bound = match upsert.row.cell(index) {
            Cell::Null => statement.raw_bind_parameter(number, rusqlite::types::Null),
            Cell::Value(text) => {
                let value = types::encode(column.column_type, text).map_err(|reason| {
                    let reason = format!("{reason} (column {})", column.name);
                    poison(&table.name, &upsert.key, upsert.version, &reason)
                })?;
                statement.raw_bind_parameter(number, value)
            }
            Cell::Absent => {
                return Err(Error::stop(Code::Internal, "an absent cell cannot be written"));
            }
            Cell::Binary(_) => {
                let message = "a cell has PostgreSQL's binary form";
                return Err(Error::stop(Code::Internal, message));
            }
        };
        bound.map_err(|error| refused(&table.name, &upsert.key, upsert.version, &error))?;
    }
    Ok(())
}

/// Records the tables' states. A table that was never prepared has no record, and is copied from
/// its beginning whenever it gets one.
fn record_status(transaction: &Transaction<'_>, pipeline: &str, batch: &Batch) -> Result<()> {
    if batch.status.is_empty() {
        return Ok(());
    }
    let mut records = records::tables(transaction, pipeline)?;
    for (table, status) in &batch.status {
        if let Some(record) = records.get_mut(table) {
            record.status = status.clone();
        }
    }
    records::save_tables(transaction, pipeline, &records)
}
