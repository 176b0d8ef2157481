//! What a target table looks like, read from the server's catalog, and whether rows of a source
//! table fit into it. Changes nothing. Used by `prepare.rs`, `check.rs`, and by `apply.rs` when a
//! statement did not fit its table.
//!
//! Surprise: what a user has added to a table (a unique index, a trigger, a foreign key) is
//! refused, because it would see our writes in another order than the source's commits.

use super::{PostgresTarget, text};
use crate::error::{Code, Error, Result};
use crate::postgres::{quote, sql, types};
use crate::schema::{TableName, TableSchema};

/// A table of the target.
pub struct Shape {
    /// Its columns in order, ours too.
    pub columns: Vec<TargetColumn>,
    /// The columns of its primary key, in key order.
    pub key: Vec<String>,
    /// What stands in the way of writing to it, each with the SQL that removes it.
    pub obstacles: Vec<(String, String)>,
}

/// A column of a target table.
pub struct TargetColumn {
    pub name: String,
    pub type_name: String,
    /// Empty for types without one.
    pub collation: String,
    /// A row cannot be written without naming it.
    pub required: bool,
    pub generated: bool,
}

/// What a table lacks that may be added.
#[derive(Default)]
pub struct Lacking {
    /// Places of source columns.
    pub columns: Vec<usize>,
    /// The mark of soft deletes.
    pub deleted: bool,
}

impl PostgresTarget {
    /// What the target has under this name; `None` if there is nothing.
    pub(super) async fn shape(&self, table: &TableName) -> Result<Option<Shape>> {
        let doing = format!("look at target table {table}");
        let query = format!(
            "SELECT c.oid, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = {} AND c.relname = {}",
            quote::literal(&table.schema),
            quote::literal(&table.name)
        );
        let found = self.session.query(&doing, &query).await?;
        let Some(found) = found.first() else {
            return Ok(None);
        };
        let (oid, kind) = (text(found, 0)?, text(found, 1)?);
        if kind != "r" {
            let obstacle = format!("it is no ordinary table (relkind {kind})");
            let remedy = "rename it, so that a table of this name can be created".to_owned();
            let obstacles = vec![(obstacle, remedy)];
            return Ok(Some(Shape { columns: Vec::new(), key: Vec::new(), obstacles }));
        }
        let columns = self.session.query(&doing, &COLUMNS.replace("$1", oid)).await?;
        let key = self.session.query(&doing, &KEY.replace("$1", oid)).await?;
        let obstacles = self.session.query(&doing, &OBSTACLES.replace("$1", oid)).await?;
        let mut shape = Shape { columns: Vec::new(), key: Vec::new(), obstacles: Vec::new() };
        for row in &columns {
            shape.columns.push(TargetColumn {
                name: text(row, 0)?.to_owned(),
                type_name: text(row, 1)?.to_owned(),
                collation: text(row, 2)?.to_owned(),
                required: text(row, 3)? == "t",
                generated: text(row, 4)? == "t",
            });
        }
        for row in &key {
            shape.key.push(text(row, 0)?.to_owned());
        }
        for row in &obstacles {
            shape.obstacles.push((text(row, 0)?.to_owned(), text(row, 1)?.to_owned()));
        }
        Ok(Some(shape))
    }

    /// Fails unless the table is there and takes rows of this shape.
    pub(super) async fn expect_shape(&self, table: &TableSchema) -> Result<()> {
        let Some(shape) = self.shape(&table.name).await? else {
            let name = &table.name;
            let message = format!(
                "target table {name} is gone; restart driftless, which creates and copies it again"
            );
            return Err(Error::table(name, Code::TargetShape, message));
        };
        let lacking = compare(table, &shape, self.session.options.soft_deletes)?;
        match lacking.columns.first() {
            Some(&index) => Err(gone(table, &table.columns[index].name)),
            None if lacking.deleted => Err(gone(table, sql::DELETED)),
            None => Ok(()),
        }
    }
}

fn gone(table: &TableSchema, column: &str) -> Error {
    let message = format!(
        "target table {}: column {column} is gone; restart driftless, which adds it again",
        table.name
    );
    Error::table(&table.name, Code::TargetShape, message)
}

/// Whether rows of `table` fit, and what has to be added for it.
///
/// # Errors
/// `target-shape`, with what does not fit and the SQL that mends it.
pub fn compare(table: &TableSchema, shape: &Shape, soft_deletes: bool) -> Result<Lacking> {
    let name = &table.name;
    let wrong = |what: String, remedy: &str| {
        let message = format!("target table {name}: {what}; {remedy}");
        Err(Error::table(name, Code::TargetShape, message))
    };
    if let Some((obstacle, remedy)) = shape.obstacles.first() {
        let remedy = match remedy.split_once(' ') {
            Some((verb, _)) if verb.chars().all(|c| c.is_ascii_uppercase()) => {
                format!("run `{remedy}` in the target")
            }
            _ => remedy.clone(),
        };
        return wrong(obstacle.clone(), &remedy);
    }
    let quoted = quote::table(name);
    let find = |column: &str| shape.columns.iter().find(|found| found.name == column);
    for (column, expected) in
        [(sql::VERSION, "bytea"), (sql::UPDATED_AT, "timestamp with time zone")]
    {
        if find(column).is_none_or(|found| found.type_name != expected) {
            let what = format!("it has no column {column} of type {expected}, so it is not ours");
            return wrong(what, &format!("run `DROP TABLE {quoted}` in the target, or rename it"));
        }
    }
    let deleted = find(sql::DELETED);
    if deleted.is_some_and(|found| found.type_name != "boolean") {
        let drop = format!("run `ALTER TABLE {quoted} DROP COLUMN {}`", sql::DELETED);
        return wrong(format!("column {} is not boolean", sql::DELETED), &drop);
    }
    if deleted.is_some() && !soft_deletes {
        let mend = format!(
            "run `DELETE FROM {quoted} WHERE {0}; ALTER TABLE {quoted} DROP COLUMN {0}` in the \
             target, or set deletes = \"soft\"",
            sql::DELETED
        );
        return wrong("it keeps deleted rows, but deletes are hard now".into(), &mend);
    }
    let key: Vec<&str> = table.key_columns().map(|column| column.name.as_str()).collect();
    if shape.key != key {
        let what = format!(
            "its primary key is ({}), the source's key is ({})",
            shape.key.join(", "),
            key.join(", ")
        );
        return wrong(what, &format!("run `DROP TABLE {quoted}` in the target, or rename it"));
    }
    let mut lacking = Lacking { columns: Vec::new(), deleted: soft_deletes && deleted.is_none() };
    for index in 0..table.columns.len() {
        match find(&table.columns[index].name) {
            None => lacking.columns.push(index),
            Some(found) => compare_column(table, index, found)?,
        }
    }
    let known = |column: &TargetColumn| {
        column.name.starts_with("_cdc_") || table.columns.iter().any(|c| c.name == column.name)
    };
    if let Some(extra) = shape.columns.iter().find(|column| column.required && !known(column)) {
        let column = quote::identifier(&extra.name);
        let what = format!("column {} must have a value, but the source has none", extra.name);
        let mend = format!("ALTER TABLE {quoted} ALTER COLUMN {column} DROP NOT NULL");
        return wrong(what, &format!("run `{mend}` in the target"));
    }
    Ok(lacking)
}

fn compare_column(table: &TableSchema, index: usize, found: &TargetColumn) -> Result<()> {
    let column = &table.columns[index];
    let is_key = table.is_key(index);
    let expected = types::target_type(table.engine, column, is_key);
    let (quoted, name) = (quote::table(&table.name), quote::identifier(&column.name));
    let bytewise = !is_key
        || !types::is_collatable(&expected)
        || matches!(found.collation.as_str(), "C" | "POSIX");
    let (what, mend) = if found.generated {
        let what = "is generated".to_owned();
        (what, format!("ALTER TABLE {quoted} ALTER COLUMN {name} DROP EXPRESSION"))
    } else if found.type_name != expected {
        let what = format!("has type {}, but the source's needs {expected}", found.type_name);
        (
            what,
            format!(
                "ALTER TABLE {quoted} ALTER COLUMN {name} TYPE {expected} USING {name}::{expected}"
            ),
        )
    } else if !bytewise {
        let what = format!("has collation {}, but a key is compared by bytes", found.collation);
        (what, format!("ALTER TABLE {quoted} ALTER COLUMN {name} TYPE {expected} COLLATE \"C\""))
    } else {
        return Ok(());
    };
    let message = format!(
        "target table {}: column {} {what}; run `{mend}` in the target, or drop the table to have \
         it copied again",
        table.name, column.name
    );
    Err(Error::table(&table.name, Code::TargetShape, message))
}

const COLUMNS: &str = "\
SELECT a.attname, format_type(a.atttypid, a.atttypmod), coalesce(c.collname, ''), \
a.attnotnull AND NOT a.atthasdef AND a.attidentity = '', a.attgenerated <> '' \
FROM pg_attribute a LEFT JOIN pg_collation c ON c.oid = a.attcollation \
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

const KEY: &str = "\
SELECT a.attname FROM pg_index i \
CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place) \
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum \
WHERE i.indrelid = $1 AND i.indisprimary AND k.place <= i.indnkeyatts ORDER BY k.place";

const OBSTACLES: &str = "\
SELECT * FROM (\
SELECT 'it has the foreign key ' || conname, \
format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname) \
FROM pg_constraint WHERE conrelid = $1 AND contype = 'f' \
UNION ALL SELECT format('%s refers to it', conrelid::regclass), \
format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname) \
FROM pg_constraint WHERE confrelid = $1 AND conrelid <> $1 AND contype = 'f' \
UNION ALL SELECT 'its primary key can be deferred', \
format('ALTER TABLE %s DROP CONSTRAINT %I, ADD %s', conrelid::regclass, conname, \
regexp_replace(pg_get_constraintdef(oid), ' DEFERRABLE.*', '')) \
FROM pg_constraint WHERE conrelid = $1 AND contype = 'p' AND condeferrable \
UNION ALL SELECT 'it has the constraint ' || c.conname || ' besides its key', \
format('ALTER TABLE %s DROP CONSTRAINT %I', c.conrelid::regclass, c.conname) \
FROM pg_constraint c WHERE c.conrelid = $1 AND c.contype IN ('u', 'x') \
UNION ALL SELECT format('it has the unique index %s besides its key', i.indexrelid::regclass), \
format('DROP INDEX %s', i.indexrelid::regclass) \
FROM pg_index i WHERE i.indrelid = $1 AND i.indisunique AND NOT i.indisprimary \
AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid \
AND c.contype IN ('u', 'x')) \
UNION ALL SELECT 'it has the trigger ' || tgname, \
format('DROP TRIGGER %I ON %s', tgname, tgrelid::regclass) \
FROM pg_trigger WHERE tgrelid = $1 AND NOT tgisinternal AND tgenabled <> 'D' \
UNION ALL SELECT 'it has the rule ' || rulename, \
format('DROP RULE %I ON %s', rulename, ev_class::regclass) \
FROM pg_rewrite WHERE ev_class = $1 \
UNION ALL SELECT 'it has row level security', \
format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY', oid::regclass) \
FROM pg_class WHERE oid = $1 AND relrowsecurity \
UNION ALL SELECT format('it inherits from %s', inhparent::regclass), \
format('ALTER TABLE %s NO INHERIT %s', inhrelid::regclass, inhparent::regclass) \
FROM pg_inherits WHERE inhrelid = $1 \
UNION ALL SELECT format('%s inherits from it', inhrelid::regclass), \
format('ALTER TABLE %s NO INHERIT %s', inhrelid::regclass, inhparent::regclass) \
FROM pg_inherits WHERE inhparent = $1) AS o (what, remedy) ORDER BY what";
