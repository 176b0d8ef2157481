//! Reads one side of a comparison: its columns from its own catalog, its rows by its own SQL.

use rusqlite::types::ValueRef;

use super::form::{Column, Form};
use super::{backticked, quoted, replica_name};
use crate::demo::server::session::{Session, TextRow};
use crate::demo::{Error, Result};

/// The schema whose tables are called by their names alone where there are no schemas.
pub(super) async fn plain_schema(source: &Session) -> Result<String> {
    match source {
        Session::Postgres(_) => Ok("public".into()),
        Session::Mariadb(_) => database(source).await,
    }
}

/// Schema and name that a source table has in a replica that is a server.
pub(super) async fn place(
    replica: &Session,
    plain_schema: &str,
    schema: &str,
    table: &str,
) -> Result<(String, String)> {
    match replica {
        Session::Postgres(_) => Ok((schema.to_owned(), table.to_owned())),
        Session::Mariadb(_) => {
            Ok((database(replica).await?, replica_name(plain_schema, schema, table)))
        }
    }
}

async fn database(session: &Session) -> Result<String> {
    let name = session.ask("SELECT database()").await?;
    name.ok_or_else(|| Error("the session has no database".into()))
}

/// The columns that are replicated: a generated one is computed from the others, and ours are
/// nobody's.
pub(super) async fn columns(session: &Session, schema: &str, table: &str) -> Result<Vec<Column>> {
    let query = match session {
        Session::Postgres(_) => format!(
            "SELECT a.attname, coalesce(nullif(t.typbasetype, 0), t.oid)
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
             JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = '{}' AND c.relname = '{}' AND a.attnum > 0 AND NOT a.attisdropped
             AND a.attgenerated = '' ORDER BY a.attnum",
            schema.replace('\'', "''"),
            table.replace('\'', "''")
        ),
        // In hexadecimal digits a name means the same under every sql_mode.
        Session::Mariadb(_) => format!(
            "SELECT column_name, column_type FROM information_schema.columns
             WHERE table_schema = convert(x'{}' USING utf8mb4)
             AND table_name = convert(x'{}' USING utf8mb4)
             AND coalesce(generation_expression, '') = '' ORDER BY ordinal_position",
            hexadecimal(schema.as_bytes()),
            hexadecimal(table.as_bytes())
        ),
    };
    let mut columns = Vec::new();
    for row in session.rows(&query).await? {
        let [Some(name), Some(native)] = row.as_slice() else { continue };
        let form = match session {
            Session::Postgres(_) => form_of_postgres(native),
            Session::Mariadb(_) => form_of_mariadb(native),
        };
        columns.push(Column { name: name.clone(), native: native.clone(), form });
    }
    columns.retain(|column| !column.name.starts_with("_cdc_"));
    match columns.is_empty() {
        true => Err(Error(format!("there is no table {schema}.{table}"))),
        false => Ok(columns),
    }
}

/// By the number of a built-in type.
fn form_of_postgres(number: &str) -> Form {
    match number {
        "16" => Form::Bool,
        "17" => Form::Bytes,
        "700" => Form::Float32,
        "701" => Form::Float64,
        // time, timestamp, interval.
        "1083" | "1114" | "1186" => Form::Time,
        "1184" => Form::Instant,
        _ => Form::Plain,
    }
}

fn form_of_mariadb(column_type: &str) -> Form {
    match word(column_type) {
        "float" => Form::Float32,
        "double" => Form::Float64,
        "timestamp" => Form::Instant,
        "time" | "datetime" => Form::Time,
        name if is_binary(name) => Form::Bytes,
        _ => Form::Plain,
    }
}

/// The first word of a type: `varchar` of `varchar(20)`.
fn word(column_type: &str) -> &str {
    column_type.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default()
}

fn is_binary(name: &str) -> bool {
    name.ends_with("binary")
        || name.ends_with("blob")
        || name == "vector"
        || [
            "geometry",
            "point",
            "linestring",
            "polygon",
            "multipoint",
            "multilinestring",
            "multipolygon",
            "geometrycollection",
            "geomcollection",
        ]
        .contains(&name)
}

/// All rows, each value as text in the form of its column.
pub(super) async fn rows(
    session: &Session,
    schema: &str,
    table: &str,
    columns: &[Column],
) -> Result<Vec<TextRow>> {
    let (values, from): (Vec<String>, String) = match session {
        Session::Postgres(_) => (
            columns.iter().map(|column| quoted(&column.name)).collect(),
            format!("{}.{}", quoted(schema), quoted(table)),
        ),
        Session::Mariadb(_) => (
            columns.iter().map(expression_of_mariadb).collect(),
            format!("{}.{}", backticked(schema), backticked(table)),
        ),
    };
    session.rows(&format!("SELECT {} FROM {from}", values.join(", "))).await
}

/// PostgreSQL's text is the common form but for details; MariaDB has to be asked for it.
fn expression_of_mariadb(column: &Column) -> String {
    let name = backticked(&column.name);
    let native = word(&column.native);
    match column.form {
        Form::Bytes => format!("concat(char(92), 'x', lower(hex({name})))"),
        // A float is printed with six digits only.
        Form::Float32 if native == "float" => format!("cast({name} AS double)"),
        Form::Instant if matches!(native, "timestamp" | "datetime") => {
            format!("concat({name}, '+00')")
        }
        Form::Plain if native == "bit" => {
            let digits: String = column.native.chars().filter(char::is_ascii_digit).collect();
            format!("lpad(bin({name} + 0), {digits}, '0')")
        }
        Form::Plain if native == "year" || column.native.contains("zerofill") => {
            format!("{name} + 0")
        }
        // Text that is kept in bytes.
        Form::Plain if is_binary(native) => format!("convert({name} USING utf8mb4)"),
        _ => name,
    }
}

pub(super) fn columns_of_sqlite(
    connection: &rusqlite::Connection,
    table: &str,
) -> Result<Vec<Column>> {
    let mut query =
        connection.prepare("SELECT name, type FROM pragma_table_info(?1) ORDER BY cid")?;
    let columns = query.query_map([table], |row| {
        Ok(Column { name: row.get(0)?, native: row.get(1)?, form: Form::Plain })
    })?;
    let columns: Vec<Column> = columns.collect::<rusqlite::Result<_>>()?;
    Ok(columns.into_iter().filter(|column| !column.name.starts_with("_cdc_")).collect())
}

pub(super) fn rows_of_sqlite(
    connection: &rusqlite::Connection,
    table: &str,
    columns: &[Column],
) -> Result<Vec<TextRow>> {
    let names: Vec<String> = columns.iter().map(|column| quoted(&column.name)).collect();
    let query = format!("SELECT {} FROM {}", names.join(", "), quoted(table));
    let mut query = connection.prepare(&query)?;
    let mut found = query.query([])?;
    let mut rows = Vec::new();
    while let Some(row) = found.next()? {
        let mut cells = TextRow::with_capacity(columns.len());
        for index in 0..columns.len() {
            cells.push(text_of_sqlite(row.get_ref(index)?));
        }
        rows.push(cells);
    }
    Ok(rows)
}

fn text_of_sqlite(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(format!("{number:?}")),
        ValueRef::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Some(format!("\\x{}", hexadecimal(bytes))),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
