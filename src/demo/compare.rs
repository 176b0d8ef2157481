//! Compares a source table with its replica by plain SQL, sharing nothing with `verify`: a proof
//! that uses the prover's own code proves little.
//!
//! Each side writes its rows in one common form (`form`), by SQL of its own (`sides`).
//! Surprise: rows are sorted here, because no two databases agree on how to sort text.

mod form;
mod sides;

use self::form::{Column, canonical};
use super::server::session::{Session, TextRow};
use super::{Error, Result};

/// The side that was written by the replicator.
pub enum Replica<'a> {
    /// A server: a PostgreSQL, where a table keeps its schema, or a MariaDB.
    Server(&'a Session),
    /// An SQLite file.
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
    source: &Session,
    schema: &str,
    table: &str,
    replica: &Replica<'_>,
) -> Result<Comparison> {
    let columns = sides::columns(source, schema, table).await?;
    let plain = sides::plain_schema(source).await?;
    let mut wanted = sides::rows(source, schema, table, &columns).await?;
    let mut found = match replica {
        Replica::Server(session) => {
            let (schema, table) = sides::place(session, &plain, schema, table).await?;
            let theirs = sides::columns(session, &schema, &table).await?;
            sides::rows(session, &schema, &table, &matched(&table, &columns, theirs)?).await?
        }
        Replica::Sqlite(connection) => {
            let table = replica_name(&plain, schema, table);
            let theirs = sides::columns_of_sqlite(connection, &table)?;
            sides::rows_of_sqlite(connection, &table, &matched(&table, &columns, theirs)?)?
        }
    };
    for row in wanted.iter_mut().chain(&mut found) {
        for (cell, column) in row.iter_mut().zip(&columns) {
            if let Some(text) = cell {
                *text = canonical(column.form, std::mem::take(text));
            }
        }
    }
    wanted.sort_unstable();
    found.sort_unstable();
    Ok(difference(&wanted, &found))
}

/// The name that a source table has in a database without schemas.
#[must_use]
pub fn replica_name(plain_schema: &str, schema: &str, table: &str) -> String {
    if schema == plain_schema { table.to_owned() } else { format!("{schema}_{table}") }
}

/// A name as PostgreSQL and SQLite write it.
#[must_use]
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A name as MariaDB and MySQL write it.
#[must_use]
pub fn backticked(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// The replica's columns in the order of the source's, each in the form of the source's.
fn matched(table: &str, ours: &[Column], mut theirs: Vec<Column>) -> Result<Vec<Column>> {
    let names = |columns: &[Column]| {
        let mut names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
        names.sort_unstable();
        names
    };
    let (wanted, found) = (names(ours), names(&theirs));
    if wanted != found {
        return Err(Error(format!("table {table} has columns {wanted:?}, its replica {found:?}")));
    }
    let place = |column: &Column| ours.iter().position(|ours| ours.name == column.name);
    theirs.sort_by_key(place);
    for (column, ours) in theirs.iter_mut().zip(ours) {
        column.form = ours.form;
    }
    Ok(theirs)
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
}
