//! Reads rows and keys back, for `verify` and for the end of a repeated backfill.
//!
//! Surprise: statements run through the simple protocol, which gives every value in its type's
//! own text form; a cast to text would not (it drops the padding of `character(5)`).

use std::sync::Arc;

use tokio_postgres::error::SqlState;

use super::{PostgresTarget, text};
use crate::KeyScan;
use crate::change::{Cell, Key, Row};
use crate::error::{Code, Error, Result};
use crate::postgres::{connect, quote, types};
use crate::schema::TableSchema;
use crate::version::Version;

/// How many keys are asked for in one statement.
const KEYS_MAX: usize = 2000;

impl PostgresTarget {
    pub(super) async fn rows_of_keys(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
    ) -> Result<Vec<(Key, Version, Row)>> {
        let doing = format!("read rows of target table {}", table.name);
        let damaged = || Error::stop(Code::Protocol, format!("{doing}: not what was asked for"));
        let mut found = Vec::with_capacity(keys.len());
        for keys in keys.chunks(KEYS_MAX) {
            let literals = keys.iter().map(literals).collect::<Result<Vec<_>>>()?;
            let query = self.session.sql(table, "").read_rows(&literals);
            let rows = self.session.rows(&query).await;
            for row in rows.map_err(|error| self.read_error(table, &doing, &error))? {
                let number: usize = text(&row, 0)?.parse().map_err(|_| damaged())?;
                let key = keys.get(number).ok_or_else(damaged)?;
                let version = text(&row, 1)?;
                let version = types::parse_version(version).ok_or_else(|| {
                    let message = format!(
                        "target table {} has a row whose _cdc_version is not 16 bytes; run \
                         `driftless verify --repair`",
                        table.name
                    );
                    Error::table(&table.name, Code::TargetShape, message)
                })?;
                let cells = (2..row.len()).map(|index| match row.get(index) {
                    Some(value) => Cell::Value(value.as_bytes()),
                    None => Cell::Null,
                });
                found.push((key.clone(), version, Row::from_cells(cells)));
            }
        }
        Ok(found)
    }

    pub(super) async fn keys_of_scan(&mut self, scan: &KeyScan<'_>) -> Result<Vec<Key>> {
        let doing = format!("read keys of target table {}", scan.table.name);
        let after = scan.after.map(literals).transpose()?;
        let query = self.session.sql(scan.table, "").read_keys(
            after.as_deref(),
            scan.below,
            scan.filter,
            scan.limit,
        );
        if scan.filter.is_some() {
            // Only one statement can be prepared, so a filter cannot smuggle in another.
            let prepared = self.session.client.prepare(&query).await;
            prepared.map_err(|error| filter_error(scan, &doing, &error))?;
        }
        let rows = self.session.rows(&query).await;
        let rows = rows.map_err(|error| match scan.filter {
            Some(_) => filter_error(scan, &doing, &error),
            None => self.read_error(scan.table, &doing, &error),
        })?;
        let mut keys = Vec::with_capacity(rows.len());
        for row in &rows {
            let values: Vec<&str> =
                (0..row.len()).map(|index| text(row, index)).collect::<Result<_>>()?;
            keys.push(Key::from_values(values.into_iter().map(str::as_bytes)));
        }
        Ok(keys)
    }

    fn read_error(&self, table: &TableSchema, doing: &str, error: &tokio_postgres::Error) -> Error {
        let gone = [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN];
        if error.code().is_some_and(|code| gone.contains(code)) {
            let message = format!(
                "{doing}: it is not as it was prepared; restart driftless, which prepares it again"
            );
            return Error::table(&table.name, Code::TargetShape, message);
        }
        connect::error(doing, error)
    }
}

/// A filter is a person's text: what the server says about it stops only this table. Errors about
/// values could come from it too, a division by zero for instance.
fn filter_error(scan: &KeyScan<'_>, doing: &str, error: &tokio_postgres::Error) -> Error {
    let told = connect::error(doing, error);
    let code = error.code().map(SqlState::code).unwrap_or_default();
    if !code.starts_with("42") && !code.starts_with("22") {
        return told;
    }
    let message = format!("{}; mend the condition given with --where", told.message);
    Error::table(&scan.table.name, Code::Configuration, message)
}

fn literals(key: &Key) -> Result<Vec<String>> {
    let literal = |value: &[u8]| {
        let value = std::str::from_utf8(value)
            .map_err(|_| Error::stop(Code::Internal, "a key value is not UTF-8"))?;
        Ok(quote::literal(value))
    };
    key.values().map(literal).collect()
}
