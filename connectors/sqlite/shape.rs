//! What a table in the file looks like, and whether rows of a source table fit into it.
//! Surprise: a key with a collation other than BINARY would merge rows that the source tells
//! apart, so it does not fit.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension};

use crate::TargetOptions;
use crate::error::{Code, Result};
use crate::schema::TableSchema;
use crate::sqlite::failure::Sql;
use crate::sqlite::names::{DELETED, Fit, Problem, UPDATED_AT, VERSION, folded, target_name};
use crate::sqlite::quote::identifier;
use crate::sqlite::types::{Affinity, affinity, declared_type};

/// A table that is in the file.
pub(super) struct Shape {
    /// `table`, `view`, `virtual`, `shadow`.
    kind: String,
    columns: Vec<ShapeColumn>,
    binary_key: bool,
    /// Only ever set for a table.
    pub(super) has_rows: bool,
}

struct ShapeColumn {
    name: String,
    declared: String,
    not_null: bool,
    has_default: bool,
    is_key: bool,
    /// Computed by SQLite.
    generated: bool,
}

/// What has to be added before the rows fit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Missing {
    /// Places of columns.
    pub(super) columns: Vec<usize>,
    /// The mark of soft deletes.
    pub(super) deleted: bool,
}

/// Reads the shape of a table; `None` if there is none of this name.
pub(super) fn describe(connection: &Connection, name: &str) -> Result<Option<Shape>> {
    const DOING: &str = "read shape of target table";
    let sql = "SELECT name, type FROM pragma_table_list \
               WHERE schema = 'main' AND name = ?1 COLLATE NOCASE";
    let found: Option<(String, String)> = connection
        .query_row(sql, [name], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
        .sql(DOING)?;
    let Some((name, kind)) = found else {
        return Ok(None);
    };
    let sql = "SELECT name, type, \"notnull\", dflt_value IS NOT NULL, pk > 0, hidden > 1 \
               FROM pragma_table_xinfo(?1)";
    let mut statement = connection.prepare_cached(sql).sql(DOING)?;
    let columns = statement
        .query_map([&name], |row| {
            Ok(ShapeColumn {
                name: row.get(0)?,
                declared: row.get(1)?,
                not_null: row.get(2)?,
                has_default: row.get(3)?,
                is_key: row.get(4)?,
                generated: row.get(5)?,
            })
        })
        .and_then(Iterator::collect)
        .sql(DOING)?;
    let sql = "SELECT count(*) FROM pragma_index_list(?1) AS list, \
               pragma_index_xinfo(list.name) AS part \
               WHERE list.origin = 'pk' AND part.key AND part.coll <> 'BINARY'";
    let folding: i64 = connection.query_row(sql, [&name], |row| row.get(0)).sql(DOING)?;
    // A view may fail, or run for hours; what is not a table is refused for that anyway.
    let has_rows = kind == "table" && {
        let sql = format!("SELECT EXISTS (SELECT 1 FROM {})", identifier(&name));
        connection.query_row(&sql, [], |row| row.get(0)).sql(DOING)?
    };
    Ok(Some(Shape { kind, columns, binary_key: folding == 0, has_rows }))
}

impl Shape {
    /// What is missing before rows of the source table fit; a problem if they never will.
    pub(super) fn fit(&self, table: &TableSchema, options: &TargetOptions) -> Fit<Missing> {
        if self.kind != "table" {
            let reason = format!("it is not an ordinary table but a {}", self.kind);
            let name = identifier(&target_name(&table.name, options));
            let noun = if self.kind == "view" { "VIEW" } else { "TABLE" };
            let remedy = format!("run `DROP {noun} {name};` and restart");
            return Err(Problem { remedy, ..misfit(table, options, reason) });
        }
        self.fit_key(table, options)?;
        let mut missing = Missing::default();
        for (index, column) in table.columns.iter().enumerate() {
            match self.column(&column.name) {
                None => missing.columns.push(index),
                Some(found) => {
                    let expected = declared_type(column.column_type);
                    found.fit(table, options, expected, !table.is_key(index))?;
                }
            }
        }
        for (name, declared) in [(VERSION, "BLOB"), (UPDATED_AT, "TEXT")] {
            match self.column(name) {
                None => return Err(misfit(table, options, format!("column {name} is missing"))),
                Some(found) => found.fit(table, options, declared, false)?,
            }
        }
        missing.deleted = self.fit_deleted(table, options)?;
        self.fit_extra(table, options)?;
        Ok(missing)
    }

    fn column(&self, name: &str) -> Option<&ShapeColumn> {
        self.columns.iter().find(|column| folded(&column.name) == folded(name))
    }

    fn fit_key(&self, table: &TableSchema, options: &TargetOptions) -> Fit<()> {
        let found: BTreeSet<String> =
            self.columns.iter().filter(|c| c.is_key).map(|c| folded(&c.name)).collect();
        let expected: BTreeSet<String> = table.key_columns().map(|c| folded(&c.name)).collect();
        let list = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
        if found != expected {
            let (found, expected) = (list(&found), list(&expected));
            return Err(misfit(
                table,
                options,
                format!("its primary key is ({found}), not ({expected})"),
            ));
        }
        if !self.binary_key {
            return Err(misfit(
                table,
                options,
                "its primary key has a collation other than BINARY".into(),
            ));
        }
        Ok(())
    }

    /// Whether the mark of soft deletes has to be added.
    fn fit_deleted(&self, table: &TableSchema, options: &TargetOptions) -> Fit<bool> {
        match self.column(DELETED) {
            None => Ok(options.soft_deletes),
            Some(found) if options.soft_deletes => {
                found.fit(table, options, "INTEGER", false).map(|()| false)
            }
            // Its rows would come back to life, or stay marked for ever.
            Some(_) => {
                let name = identifier(&target_name(&table.name, options));
                Err(Problem {
                    remedy: format!(
                        "set deletes = \"soft\", or run `DELETE FROM {name} WHERE {DELETED}; \
                         ALTER TABLE {name} DROP COLUMN {DELETED};` in it"
                    ),
                    ..misfit(table, options, format!("it has {DELETED}, and deletes is \"hard\""))
                })
            }
        }
    }

    /// Columns of dropped source columns stay, but nothing is written into them.
    fn fit_extra(&self, table: &TableSchema, options: &TargetOptions) -> Fit<()> {
        let known = |name: &str| {
            [VERSION, UPDATED_AT, DELETED].contains(&folded(name).as_str())
                || table.columns.iter().any(|column| folded(&column.name) == folded(name))
        };
        let demands = |column: &&ShapeColumn| {
            column.not_null && !column.has_default && !column.generated && !known(&column.name)
        };
        match self.columns.iter().find(demands) {
            None => Ok(()),
            Some(extra) => Err(misfit(
                table,
                options,
                format!("its column {} is NOT NULL and not in the source", identifier(&extra.name)),
            )),
        }
    }
}

impl ShapeColumn {
    fn fit(
        &self,
        table: &TableSchema,
        options: &TargetOptions,
        expected: &str,
        nullable: bool,
    ) -> Fit<()> {
        let name = identifier(&self.name);
        if self.generated {
            return Err(misfit(table, options, format!("its column {name} is generated")));
        }
        if affinity(&self.declared) != affinity(expected) {
            return Err(misfit(
                table,
                options,
                format!(
                    "its column {name} is declared {}, and {} is needed",
                    described(&self.declared),
                    described(expected)
                ),
            ));
        }
        if nullable && self.not_null {
            return Err(misfit(table, options, format!("its column {name} is NOT NULL")));
        }
        Ok(())
    }
}

fn described(declared: &str) -> String {
    match affinity(declared) {
        Affinity::Blob if declared.is_empty() => "without a type".into(),
        _ => declared.into(),
    }
}

fn misfit(table: &TableSchema, options: &TargetOptions, reason: String) -> Problem {
    let name = target_name(&table.name, options);
    Problem {
        table: table.name.clone(),
        code: Code::TargetShape,
        message: format!(
            "table {} cannot hold the rows of {}: {reason}",
            identifier(&name),
            table.name
        ),
        remedy: format!(
            "run `ALTER TABLE {} RENAME TO {};` or drop it, and restart",
            identifier(&name),
            identifier(&format!("{name}_old"))
        ),
    }
}
