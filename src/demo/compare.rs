//! Compares a source table with its replica by plain SQL, sharing nothing with `verify`: a proof
//! that uses the prover's own code proves little.
//!
//! Surprise: rows are sorted here, because no two databases agree on how to sort text.

use std::pin::pin;

use futures_util::StreamExt;
use rusqlite::types::ValueRef;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{Error, Result};

/// The side that was written by the replicator.
pub enum Replica<'a> {
    /// A PostgreSQL, where a table keeps its schema.
    Postgres(&'a Client),
    /// An SQLite file, where a table of the schema `public` is called by its name alone.
    Sqlite(&'a rusqlite::Connection),
}

/// What a comparison found. The examples hold row values: for tests and tables of our own only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Rows in the source.
    pub source_rows: usize,
    /// Rows in the replica.
    pub replica_rows: usize,
    /// Rows that only the source has.
    pub missing: Vec<String>,
    /// Rows that only the replica has.
    pub extra: Vec<String>,
}

impl Comparison {
    /// Whether both sides hold the same rows.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty()
    }
}

/// Compares one table, row by row and value by value.
///
/// # Errors
/// If one of the sides cannot be read, or their columns have different names.
pub async fn compare(
    source: &Client,
    schema: &str,
    table: &str,
    replica: &Replica<'_>,
) -> Result<Comparison> {
    let columns = columns_of(source, schema, table).await?;
    let mut wanted = rows_of_postgres(source, schema, table, &columns).await?;
    let mut found = match replica {
        Replica::Postgres(client) => {
            let theirs = columns_of(client, schema, table).await?;
            same_columns(table, &columns, theirs.iter().map(|column| column.name.as_str()))?;
            rows_of_postgres(client, schema, table, &columns).await?
        }
        Replica::Sqlite(connection) => {
            let name = sqlite_name(schema, table);
            let theirs = columns_of_sqlite(connection, &name)?;
            same_columns(table, &columns, theirs.iter().map(String::as_str))?;
            for row in &mut wanted {
                as_sqlite_keeps_it(row, &columns);
            }
            rows_of_sqlite(connection, &name, &columns)?
        }
    };
    wanted.sort_unstable();
    found.sort_unstable();
    Ok(difference(&wanted, &found))
}

/// The name that a source table has in a database without schemas.
#[must_use]
pub fn sqlite_name(schema: &str, table: &str) -> String {
    if schema == "public" { table.to_owned() } else { format!("{schema}_{table}") }
}

/// A name as SQL writes it.
#[must_use]
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

type TextRow = Vec<Option<String>>;

struct Column {
    name: String,
    form: Form,
}

/// How a value's canonical text differs from what SQLite keeps.
#[derive(Clone, Copy)]
enum Form {
    Bool,
    Float32,
    Float64,
    Same,
}

/// The columns that are replicated: a generated one is computed from the others.
async fn columns_of(client: &Client, schema: &str, table: &str) -> Result<Vec<Column>> {
    let query = "SELECT a.attname, coalesce(nullif(t.typbasetype, 0), t.oid)
         FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
         JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped
         AND a.attgenerated = '' AND left(a.attname, 5) <> '_cdc_' ORDER BY a.attnum";
    let rows = client.query(query, &[&schema, &table]).await?;
    if rows.is_empty() {
        return Err(Error(format!("there is no table {schema}.{table}")));
    }
    let column = |row: &tokio_postgres::Row| Column {
        name: row.get(0),
        form: match row.get::<_, u32>(1) {
            16 => Form::Bool,
            700 => Form::Float32,
            701 => Form::Float64,
            _ => Form::Same,
        },
    };
    Ok(rows.iter().map(column).collect())
}

fn columns_of_sqlite(connection: &rusqlite::Connection, table: &str) -> Result<Vec<String>> {
    let mut query = connection.prepare("SELECT name FROM pragma_table_info(?1) ORDER BY cid")?;
    let names = query.query_map([table], |row| row.get::<_, String>(0))?;
    let names: Vec<String> = names.collect::<rusqlite::Result<_>>()?;
    Ok(names.into_iter().filter(|name| !name.starts_with("_cdc_")).collect())
}

fn same_columns<'a>(
    table: &str,
    ours: &[Column],
    theirs: impl Iterator<Item = &'a str>,
) -> Result<()> {
    let mut ours: Vec<&str> = ours.iter().map(|column| column.name.as_str()).collect();
    let mut theirs: Vec<&str> = theirs.collect();
    ours.sort_unstable();
    theirs.sort_unstable();
    if ours == theirs {
        return Ok(());
    }
    Err(Error(format!("table {table} has columns {ours:?}, its replica has {theirs:?}")))
}

fn selection(columns: &[Column]) -> String {
    columns.iter().map(|column| quoted(&column.name)).collect::<Vec<_>>().join(", ")
}

async fn rows_of_postgres(
    client: &Client,
    schema: &str,
    table: &str,
    columns: &[Column],
) -> Result<Vec<TextRow>> {
    let (schema, table) = (quoted(schema), quoted(table));
    let query = format!("SELECT {} FROM {schema}.{table}", selection(columns));
    let mut messages = pin!(client.simple_query_raw(&query).await?);
    let mut rows = Vec::new();
    while let Some(message) = messages.next().await {
        if let SimpleQueryMessage::Row(row) = message? {
            rows.push((0..row.len()).map(|index| row.get(index).map(str::to_owned)).collect());
        }
    }
    Ok(rows)
}

fn rows_of_sqlite(
    connection: &rusqlite::Connection,
    table: &str,
    columns: &[Column],
) -> Result<Vec<TextRow>> {
    let query = format!("SELECT {} FROM {}", selection(columns), quoted(table));
    let mut query = connection.prepare(&query)?;
    let mut found = query.query([])?;
    let mut rows = Vec::new();
    while let Some(row) = found.next()? {
        let mut cells = TextRow::with_capacity(columns.len());
        for (index, column) in columns.iter().enumerate() {
            cells.push(text_of(row.get_ref(index)?, column.form));
        }
        rows.push(cells);
    }
    Ok(rows)
}

fn text_of(value: ValueRef<'_>, form: Form) -> Option<String> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(float_text(number, form)),
        ValueRef::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => {
            let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
            Some(format!("\\x{}", digits.collect::<String>()))
        }
    }
}

/// Writes what PostgreSQL shows in the form in which `text_of` shows what SQLite keeps.
fn as_sqlite_keeps_it(row: &mut TextRow, columns: &[Column]) {
    for (cell, column) in row.iter_mut().zip(columns) {
        let Some(text) = cell else { continue };
        match (column.form, text.as_str()) {
            (Form::Bool, "t") => *text = "1".into(),
            (Form::Bool, _) => *text = "0".into(),
            // SQLite has no such number and keeps the word.
            (Form::Float32 | Form::Float64, "NaN") | (Form::Same, _) => {}
            (Form::Float32 | Form::Float64, number) => {
                if let Ok(number) = number.parse() {
                    *text = float_text(number, column.form);
                }
            }
        }
    }
}

fn float_text(number: f64, form: Form) -> String {
    match form {
        // SQLite's column may hold the number or, as ours do, the word.
        Form::Float32 | Form::Float64 if number.is_infinite() => {
            if number > 0.0 {
                "Infinity".into()
            } else {
                "-Infinity".into()
            }
        }
        Form::Float32 => format!("{:?}", number as f32),
        Form::Bool | Form::Float64 | Form::Same => format!("{number:?}"),
    }
}

/// Walks two sorted lists at once.
fn difference(wanted: &[TextRow], found: &[TextRow]) -> Comparison {
    let mut result = Comparison {
        source_rows: wanted.len(),
        replica_rows: found.len(),
        ..Comparison::default()
    };
    let show = |row: &TextRow| {
        let cells = row.iter().map(|cell| cell.as_deref().unwrap_or("NULL"));
        cells.map(|cell| cell.chars().take(60).collect()).collect::<Vec<String>>().join(" | ")
    };
    let (mut left, mut right) = (wanted.iter().peekable(), found.iter().peekable());
    loop {
        match (left.peek(), right.peek()) {
            (None, None) => return result,
            (Some(a), Some(b)) if a == b => {
                left.next();
                right.next();
            }
            (Some(a), Some(b)) if a < b => result.missing.extend(left.next().map(show)),
            (Some(_), None) => result.missing.extend(left.next().map(show)),
            (_, Some(_)) => result.extra.extend(right.next().map(show)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[&str]) -> Vec<TextRow> {
        rows.iter().map(|row| vec![Some((*row).to_owned())]).collect()
    }

    #[test]
    fn a_lost_row_and_a_stale_row_are_both_named() {
        let found = difference(&rows(&["a", "b", "d"]), &rows(&["a", "c", "d", "e"]));
        assert_eq!((found.missing, found.extra), (vec!["b".into()], vec!["c".into(), "e".into()]));
        assert!(difference(&rows(&["a", "a"]), &rows(&["a", "a"])).is_equal());
        assert!(!difference(&rows(&["a", "a"]), &rows(&["a"])).is_equal());
    }

    #[test]
    fn floats_are_compared_as_numbers_and_signed_zero_is_kept() {
        assert_eq!(
            float_text(0.1, Form::Float64),
            float_text("1e-1".parse().unwrap(), Form::Float64)
        );
        assert_eq!(float_text(f64::from(0.1_f32), Form::Float32), "0.1");
        assert_ne!(float_text(0.0, Form::Float64), float_text(-0.0, Form::Float64));
    }
}
