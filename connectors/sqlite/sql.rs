//! The text of every statement, as pure functions. Values are always bound, names always quoted.
//! Parameters of statements on replicated tables: ?1 is the version, ?2 the time, and from
//! `FIRST` on what the function says.

use crate::TargetOptions;
use crate::schema::{Column, ColumnType, TableSchema};
use crate::sqlite::names::{DELETED, UPDATED_AT, VERSION, target_name};
use crate::sqlite::quote::{identifier, identifiers};
use crate::sqlite::types::declared_type;

/// Number of the first parameter after version and time.
pub(super) const FIRST: usize = 3;

pub(super) const CREATE_CHECKPOINT: &str = "\
    CREATE TABLE IF NOT EXISTS _cdc_checkpoint (\
    pipeline TEXT NOT NULL PRIMARY KEY, position TEXT, version BLOB, \
    sequence INTEGER NOT NULL, fence INTEGER NOT NULL, instance TEXT NOT NULL, \
    tables TEXT NOT NULL, updated_at TEXT NOT NULL)";

pub(super) const CREATE_TOMBSTONE: &str = "\
    CREATE TABLE IF NOT EXISTS _cdc_tombstone (\
    pipeline TEXT NOT NULL, table_name TEXT NOT NULL, key BLOB NOT NULL, version BLOB NOT NULL, \
    PRIMARY KEY (pipeline, table_name, key)) WITHOUT ROWID";

pub(super) const ADVANCE: &str = "\
    UPDATE _cdc_checkpoint SET position = ?3, version = ?4, sequence = ?5, updated_at = ?6 \
    WHERE pipeline = ?1 AND fence = ?2 AND sequence = ?5 - 1";

pub(super) const BURY: &str = "\
    INSERT INTO _cdc_tombstone AS old (pipeline, table_name, key, version) \
    VALUES (?1, ?2, ?3, ?4) ON CONFLICT (pipeline, table_name, key) \
    DO UPDATE SET version = excluded.version WHERE excluded.version > old.version";

pub(super) const TOMBSTONE: &str = "\
    SELECT version FROM _cdc_tombstone WHERE pipeline = ?1 AND table_name = ?2 AND key = ?3";

pub(super) const OLDEST_TOMBSTONE: &str =
    "SELECT min(version) FROM _cdc_tombstone WHERE pipeline = ?1";

pub(super) const COLLECT: &str = "DELETE FROM _cdc_tombstone WHERE pipeline = ?1 AND version < ?2";

/// Creates the table: the source's columns and ours, and the source's key as the only constraint.
pub(super) fn create_table(table: &TableSchema, options: &TargetOptions) -> String {
    let mut parts: Vec<String> = Vec::with_capacity(table.columns.len() + 4);
    let rowid = single_integer_key(table);
    for (index, column) in table.columns.iter().enumerate() {
        let constraint = match (table.is_key(index), rowid) {
            (true, true) => " NOT NULL PRIMARY KEY",
            (true, false) => " NOT NULL COLLATE BINARY",
            (false, _) => "",
        };
        parts.push(format!("{}{constraint}", definition(column)));
    }
    parts.push(format!("{VERSION} BLOB NOT NULL"));
    parts.push(format!("{UPDATED_AT} TEXT NOT NULL"));
    if options.soft_deletes {
        parts.push(deleted_definition());
    }
    if !rowid {
        parts.push(format!("PRIMARY KEY ({})", key_columns(table)));
    }
    format!("CREATE TABLE {} (\n  {}\n)", name(table, options), parts.join(",\n  "))
}

/// Adds a column that can be NULL.
pub(super) fn add_column(table: &TableSchema, column: &Column, options: &TargetOptions) -> String {
    format!("ALTER TABLE {} ADD COLUMN {}", name(table, options), definition(column))
}

/// Adds the mark of soft deletes.
pub(super) fn add_deleted(table: &TableSchema, options: &TargetOptions) -> String {
    format!("ALTER TABLE {} ADD COLUMN {}", name(table, options), deleted_definition())
}

/// Writes a whole row unless a newer one is there; from `FIRST` on its cells.
pub(super) fn upsert(table: &TableSchema, options: &TargetOptions) -> String {
    let columns: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
    let cells: Vec<String> = (0..columns.len()).map(|at| format!("?{}", FIRST + at)).collect();
    let (deleted, zero) =
        if options.soft_deletes { (format!(", {DELETED}"), ", 0") } else { Default::default() };
    let mut sets: Vec<String> = (0..columns.len())
        .filter(|&index| !table.is_key(index) || is_float(&table.columns[index]))
        .map(|index| identifier(columns[index]))
        .map(|column| format!("{column} = excluded.{column}"))
        .collect();
    sets.push(format!("{VERSION} = excluded.{VERSION}, {UPDATED_AT} = excluded.{UPDATED_AT}"));
    if options.soft_deletes {
        sets.push(format!("{DELETED} = 0"));
    }
    format!(
        "INSERT INTO {} AS old ({VERSION}, {UPDATED_AT}, {}{deleted}) VALUES (?1, ?2, {}{zero}) \
         ON CONFLICT ({}) DO UPDATE SET {} WHERE excluded.{VERSION} > old.{VERSION}",
        name(table, options),
        identifiers(columns.iter().copied()),
        cells.join(", "),
        key_columns(table),
        sets.join(", "),
    )
}

/// Writes the columns at these places into an older row; from `FIRST` on the key, then the cells.
pub(super) fn update(table: &TableSchema, present: &[usize], options: &TargetOptions) -> String {
    let first = FIRST + table.key.len();
    let mut sets = vec![format!("{VERSION} = ?1, {UPDATED_AT} = ?2")];
    sets.extend(present.iter().enumerate().map(|(at, &index)| {
        format!("{} = ?{}", identifier(&table.columns[index].name), first + at)
    }));
    let alive = if options.soft_deletes { format!(" AND {DELETED} = 0") } else { String::new() };
    format!(
        "UPDATE {} SET {} WHERE {} AND {VERSION} < ?1{alive}",
        name(table, options),
        sets.join(", "),
        key_equals(table)
    )
}

/// Removes an older row, or marks it; from `FIRST` on the key.
pub(super) fn delete(table: &TableSchema, options: &TargetOptions) -> String {
    let condition = format!("{} AND {VERSION} < ?1", key_equals(table));
    removal(table, options, &condition)
}

/// Removes or marks all older rows.
pub(super) fn truncate(table: &TableSchema, options: &TargetOptions) -> String {
    let alive = if options.soft_deletes { format!(" AND {DELETED} = 0") } else { String::new() };
    removal(table, options, &format!("{VERSION} < ?1{alive}"))
}

/// The version of a row; from `FIRST` on the key.
pub(super) fn select_version(table: &TableSchema, options: &TargetOptions) -> String {
    format!("SELECT {VERSION} FROM {} WHERE {}", name(table, options), key_equals(table))
}

/// Version and cells of a row that is not deleted; from `FIRST` on the key.
pub(super) fn select_row(table: &TableSchema, options: &TargetOptions) -> String {
    let alive = if options.soft_deletes { format!(" AND {DELETED} = 0") } else { String::new() };
    format!(
        "SELECT {VERSION}, {} FROM {} WHERE {}{alive}",
        identifiers(table.columns.iter().map(|column| column.name.as_str())),
        name(table, options),
        key_equals(table)
    )
}

/// Keys of rows that are not deleted, in key order: ?1 is the version that they must be older
/// than, ?2 how many at most, from `FIRST` on the key that they come after.
pub(super) fn select_keys(
    table: &TableSchema,
    options: &TargetOptions,
    after: bool,
    below: bool,
    filter: Option<&str>,
) -> String {
    let mut conditions = Vec::new();
    if after {
        let values: Vec<String> = key_parameters(table).collect();
        conditions.push(format!("({}) > ({})", key_columns(table), values.join(", ")));
    }
    if below {
        conditions.push(format!("{VERSION} < ?1"));
    }
    if options.soft_deletes {
        conditions.push(format!("{DELETED} = 0"));
    }
    if let Some(filter) = filter {
        // On lines of its own, so that a comment in it ends before the parenthesis.
        conditions.push(format!("(\n{filter}\n)"));
    }
    if conditions.is_empty() {
        conditions.push("1".into());
    }
    format!(
        "SELECT {keys} FROM {} WHERE {} ORDER BY {keys} LIMIT ?2",
        name(table, options),
        conditions.join(" AND "),
        keys = key_columns(table),
    )
}

/// The table's name in the target, quoted.
pub(super) fn name(table: &TableSchema, options: &TargetOptions) -> String {
    identifier(&target_name(&table.name, options))
}

fn removal(table: &TableSchema, options: &TargetOptions, condition: &str) -> String {
    let name = name(table, options);
    if options.soft_deletes {
        format!(
            "UPDATE {name} SET {DELETED} = 1, {VERSION} = ?1, {UPDATED_AT} = ?2 WHERE {condition}"
        )
    } else {
        format!("DELETE FROM {name} WHERE {condition}")
    }
}

/// Whether the key is SQLite's own row number, which is the fastest key that it has.
fn single_integer_key(table: &TableSchema) -> bool {
    let is_integer = |column: &Column| {
        matches!(column.column_type, ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64)
    };
    table.key.len() == 1 && table.key_columns().all(is_integer)
}

/// 0 and -0 are one key to SQLite, so a newer row may bring the other one.
fn is_float(column: &Column) -> bool {
    matches!(column.column_type, ColumnType::Float32 | ColumnType::Float64)
}

fn definition(column: &Column) -> String {
    let definition = format!("{} {}", identifier(&column.name), declared_type(column.column_type));
    definition.trim_end().to_owned()
}

fn deleted_definition() -> String {
    format!("{DELETED} INTEGER NOT NULL DEFAULT 0")
}

fn key_columns(table: &TableSchema) -> String {
    identifiers(table.key_columns().map(|column| column.name.as_str()))
}

fn key_parameters(table: &TableSchema) -> impl Iterator<Item = String> {
    (FIRST..FIRST + table.key.len()).map(|number| format!("?{number}"))
}

fn key_equals(table: &TableSchema) -> String {
    let equals = |(column, parameter): (&Column, String)| {
        format!("{} = {parameter}", identifier(&column.name))
    };
    table.key_columns().zip(key_parameters(table)).map(equals).collect::<Vec<_>>().join(" AND ")
}
