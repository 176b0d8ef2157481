//! Reads rows and keys back, for `verify` and for the end of a repeated backfill.
//!
//! Surprise: a condition that a user gave is prepared before it is run. Only one statement can be
//! prepared, so a condition cannot smuggle in another.

use std::collections::HashMap;
use std::sync::Arc;

use super::MysqlTarget;
use super::records::optional;
use super::rows::{key_literals, read_key, read_version, stored_key};
use crate::KeyScan;
use crate::change::{Cell, Key, Row};
use crate::error::{Code, Error, Kind, Result};
use crate::mysql::quote;
use crate::mysql::sql::TableSql;
use crate::mysql::target_values::decode;
use crate::schema::TableSchema;
use crate::version::Version;

impl MysqlTarget {
    pub(super) async fn rows_of_keys(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
    ) -> Result<Vec<(Key, Version, Row)>> {
        let name = self.writer.naming.target_name(&table.name);
        let doing = format!("read rows of target table {name}");
        let columns = self.writer.stored_columns(table);
        let statements = self.writer.sql(table, &name, &columns);
        let mut found = Vec::with_capacity(keys.len());
        for keys in self.writer.pieces(keys, |key| key) {
            // A key that the target cannot have is not there.
            let literals: Vec<Vec<String>> =
                keys.iter().filter_map(|key| key_literals(table, &columns, key).ok()).collect();
            if literals.is_empty() {
                continue;
            }
            let asked: HashMap<Key, &Key> =
                keys.iter().map(|key| (stored_key(table, &columns, key), key)).collect();
            let query = statements.read_rows(&literals);
            let rows = self.writer.session.query(&doing, &query).await;
            for row in rows.map_err(|error| read_error(table, error))? {
                let version = read_version(&statements, &row, 0)?;
                let row = read_row(&statements, &row)?;
                let key = Key::of(table, &row).ok_or_else(|| {
                    Error::stop(Code::Protocol, format!("{doing}: a row has no key"))
                })?;
                let key = asked.get(&key).map_or(key, |&asked| asked.clone());
                found.push((key, version, row));
            }
        }
        Ok(found)
    }

    pub(super) async fn keys_of_scan(&mut self, scan: &KeyScan<'_>) -> Result<Vec<Key>> {
        let name = self.writer.naming.target_name(&scan.table.name);
        let doing = format!("read keys of target table {name}");
        let columns = self.writer.stored_columns(scan.table);
        let after = scan.after.map(|key| key_literals(scan.table, &columns, key)).transpose();
        let after = after.map_err(|reason| {
            let message = format!("{doing}: the key to begin after is none: {reason}");
            Error::table(&scan.table.name, Code::Internal, message)
        })?;
        let statements = self.writer.sql(scan.table, &name, &columns);
        let query = statements.read_keys(after.as_deref(), scan.below, scan.filter, scan.limit);
        if scan.filter.is_some() {
            self.prepare_only(scan, &doing, &query).await?;
        }
        let rows = self.writer.session.query(&doing, &query).await;
        let rows = rows.map_err(|error| match scan.filter {
            Some(_) => filter_error(scan, error),
            None => read_error(scan.table, error),
        })?;
        rows.iter().map(|row| read_key(scan.table, &columns, row)).collect()
    }

    async fn prepare_only(&mut self, scan: &KeyScan<'_>, doing: &str, query: &str) -> Result<()> {
        let text = format!("SET @_cdc_scan = {}", quote::literal(query));
        self.writer.session.execute(doing, &text).await?;
        let prepared =
            self.writer.session.execute(doing, "PREPARE _cdc_scan FROM @_cdc_scan").await;
        prepared.map_err(|error| filter_error(scan, error))?;
        self.writer.session.execute(doing, "DEALLOCATE PREPARE _cdc_scan").await?;
        Ok(())
    }
}

/// The columns of a row that begins with its version.
fn read_row(table: &TableSql<'_>, row: &mysql_async::Row) -> Result<Row> {
    let mut values: Vec<Option<Vec<u8>>> = Vec::with_capacity(table.columns.len());
    for (index, column) in table.columns.iter().enumerate() {
        let value = optional(row, index + 1)?;
        values.push(value.map(|value| decode(column.form, value)));
    }
    Ok(Row::from_cells(values.iter().map(|value| value.as_deref().map_or(Cell::Null, Cell::Value))))
}

fn read_error(table: &TableSchema, error: Error) -> Error {
    match error.code {
        Code::MissingTable => {
            let message = format!(
                "{}; it is not as it was prepared: restart driftless, which prepares it again",
                error.message
            );
            Error::table(&table.name, Code::TargetShape, message)
        }
        _ => error,
    }
}

/// The condition is a user's, and so is the mistake in it.
fn filter_error(scan: &KeyScan<'_>, error: Error) -> Error {
    match (&error.kind, error.code) {
        (Kind::Stop, Code::Protocol | Code::PoisonRow | Code::MissingTable) => {
            let message = format!("{}; mend the condition given with --where", error.message);
            Error::table(&scan.table.name, Code::Configuration, message)
        }
        _ => error,
    }
}
