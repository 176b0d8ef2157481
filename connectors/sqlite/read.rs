//! Reads rows and keys back, for verification and for removing what is gone from the source.
//! Each call sees one snapshot, and never waits for the writer.

use rusqlite::{CachedStatement, Row as SqlRow, Transaction, TransactionBehavior};

use crate::change::{Cell, Key, Row};
use crate::error::{Code, Error, Result};
use crate::schema::TableSchema;
use crate::sqlite::apply::bind_key_values;
use crate::sqlite::failure::{Sql, failure, unprepared};
use crate::sqlite::store::Store;
use crate::sqlite::{sql, types};
use crate::version::Version;

/// `KeyScan`, with everything owned so that it can go to another thread.
pub(super) struct OwnedScan {
    pub(super) table: std::sync::Arc<TableSchema>,
    pub(super) after: Option<Key>,
    pub(super) limit: usize,
    pub(super) below: Option<Version>,
    pub(super) filter: Option<String>,
}

impl Store {
    /// The rows of these keys, in the order of the keys; deleted ones are left out.
    pub(super) fn read_rows(
        &mut self,
        table: &TableSchema,
        keys: &[Key],
    ) -> Result<Vec<(Key, Version, Row)>> {
        let options = self.options.clone();
        let transaction = snapshot(self)?;
        let mut statement = prepare(&transaction, table, &sql::select_row(table, &options))?;
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            bind(&mut statement, table, key)?;
            let mut rows = statement.raw_query();
            if let Some(row) = rows.next().sql("read row")? {
                found.push((key.clone(), version(table, key, row)?, cells(table, row)?));
            }
        }
        Ok(found)
    }

    /// Keys in key order.
    pub(super) fn read_keys(&mut self, scan: &OwnedScan) -> Result<Vec<Key>> {
        const DOING: &str = "read keys";
        let table = &scan.table;
        let options = self.options.clone();
        let (after, below) = (scan.after.is_some(), scan.below.is_some());
        let transaction = snapshot(self)?;
        let unfiltered = sql::select_keys(table, &options, after, below, None);
        let mut statement = prepare(&transaction, table, &unfiltered)?;
        if let Some(filter) = scan.filter.as_deref() {
            let filtered = sql::select_keys(table, &options, after, below, Some(filter));
            let parameters = statement.parameter_count();
            statement = transaction
                .prepare_cached(&filtered)
                .map_err(|error| bad_filter(table, &failure(&error).message))?;
            if statement.parameter_count() != parameters {
                return Err(bad_filter(table, "it has a parameter"));
            }
        }
        if let Some(key) = &scan.after {
            bind(&mut statement, table, key)?;
        }
        if let Some(version) = scan.below {
            statement.raw_bind_parameter(1, version.to_bytes()).sql(DOING)?;
        }
        let limit = i64::try_from(scan.limit).unwrap_or(i64::MAX);
        statement.raw_bind_parameter(2, limit).sql(DOING)?;
        let mut rows = statement.raw_query();
        let mut keys = Vec::new();
        while let Some(row) = rows.next().map_err(|error| match scan.filter {
            Some(_) => bad_filter(table, "it fails on a row"),
            None => failure(&error).context(DOING),
        })? {
            keys.push(key(table, row)?);
        }
        Ok(keys)
    }
}

fn snapshot(store: &mut Store) -> Result<Transaction<'_>> {
    store.existing()?.transaction_with_behavior(TransactionBehavior::Deferred).sql("read target")
}

fn prepare<'a>(
    transaction: &'a Transaction<'_>,
    table: &TableSchema,
    sql: &str,
) -> Result<CachedStatement<'a>> {
    transaction.prepare_cached(sql).map_err(|error| unprepared(&table.name, &error))
}

fn bind(statement: &mut CachedStatement<'_>, table: &TableSchema, key: &Key) -> Result<()> {
    bind_key_values(statement, table, key)?.map_err(|reason| {
        let hash = key.hash();
        let message =
            format!("a key of {} cannot be looked up (hash {hash}): {reason}", table.name);
        Error::table(&table.name, Code::PoisonRow, message)
    })
}

fn version(table: &TableSchema, key: &Key, row: &SqlRow<'_>) -> Result<Version> {
    let value = row.get_ref(0).sql("read row")?;
    value.as_blob().ok().and_then(Version::from_bytes).ok_or_else(|| {
        let hash = key.hash();
        let message = format!(
            "the version of a row of {} in the target is damaged (key hash {hash}); run \
             `driftless backfill --table {}`",
            table.name, table.name
        );
        Error::table(&table.name, Code::TargetShape, message)
    })
}

fn cells(table: &TableSchema, row: &SqlRow<'_>) -> Result<Row> {
    let texts = table
        .columns
        .iter()
        .enumerate()
        .map(|(at, column)| Ok(types::decode(column.column_type, row.get_ref(at + 1)?)))
        .collect::<rusqlite::Result<Vec<Option<Vec<u8>>>>>()
        .sql("read row")?;
    Ok(Row::from_cells(texts.iter().map(|text| text.as_deref().map_or(Cell::Null, Cell::Value))))
}

fn key(table: &TableSchema, row: &SqlRow<'_>) -> Result<Key> {
    let values = table
        .key_columns()
        .enumerate()
        .map(|(at, column)| Ok(types::decode(column.column_type, row.get_ref(at)?)))
        .collect::<rusqlite::Result<Option<Vec<Vec<u8>>>>>();
    let message = || format!("a key column of {} is NULL in the target", table.name);
    let values = values
        .sql("read key")?
        .ok_or_else(|| Error::table(&table.name, Code::TargetShape, message()))?;
    Ok(Key::from_values(values.iter().map(Vec::as_slice)))
}

fn bad_filter(table: &TableSchema, reason: &str) -> Error {
    Error::table(
        &table.name,
        Code::Configuration,
        format!("the condition on {} is not one that SQLite understands: {reason}", table.name),
    )
}
