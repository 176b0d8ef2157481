//! What a target table looks like, read from `information_schema`, and whether rows of a source
//! table fit into it. Changes nothing. Used by `prepare.rs`, `check.rs`, and by `apply.rs` when a
//! statement did not fit its table.
//!
//! Surprise: a second unique index would let an upsert overwrite another row without an error, so
//! it is refused, as is everything else that sees our writes in another order than the source's
//! commits. Triggers are seen only by those who have the TRIGGER privilege.

use super::MysqlTarget;
use super::records::{optional, text};
use crate::error::{Code, Error, Result};
use crate::mysql::quote;
use crate::mysql::sql::{self, TableSql};
use crate::mysql::target_types::{StoredColumn, collation};
use crate::mysql::types::MysqlType;
use crate::schema::TableSchema;

/// A table of the target.
#[derive(Default)]
pub struct Shape {
    /// Its columns in order, ours too.
    columns: Vec<TargetColumn>,
    /// The columns of its primary key, in key order.
    key: Vec<String>,
    /// What stands in the way of writing to it, each with what removes it.
    obstacles: Vec<(String, String)>,
}

/// A column of a target table.
struct TargetColumn {
    name: String,
    /// As the server spells its type.
    spelled: String,
    /// `None` for a type that no column of ours has.
    physical: Option<MysqlType>,
    /// Empty for types without one.
    collation: String,
    nullable: bool,
    has_default: bool,
    /// `VIRTUAL GENERATED`, `on update current_timestamp()` and such.
    extra: String,
}

/// What a table lacks that may be added.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lacking {
    /// Places of source columns.
    pub columns: Vec<usize>,
    /// The mark of soft deletes.
    pub deleted: bool,
}

impl MysqlTarget {
    /// What the target has under this name; `None` if there is nothing.
    pub(super) async fn shape(&mut self, name: &str) -> Result<Option<Shape>> {
        let doing = format!("look at target table {name}");
        let literal = sql::text(name);
        let found = self.writer.session.query(&doing, &TABLES.replace("$1", &literal)).await?;
        let mut kind = None;
        for row in &found {
            // Where tables differ by case alone the server may show both.
            if self.writer.naming.is_same(&text(row, 0)?, name) {
                let engine = optional(row, 2)?.map(String::from_utf8_lossy);
                kind = Some((text(row, 1)?, engine.unwrap_or_default().into_owned()));
            }
        }
        let Some((kind, engine)) = kind else {
            return Ok(None);
        };
        let mut shape = Shape::default();
        let quoted = quote::identifier(name);
        if kind != "BASE TABLE" {
            let what = format!("it is no ordinary table but a {}", kind.to_lowercase());
            let remedy = "rename it, so that a table of this name can be created";
            shape.obstacles.push((what, remedy.into()));
            return Ok(Some(shape));
        }
        if !engine.eq_ignore_ascii_case("InnoDB") {
            let what = format!("its engine is {engine}, which has no transactions");
            shape.obstacles.push((what, format!("ALTER TABLE {quoted} ENGINE=InnoDB")));
        }
        for row in self.writer.session.query(&doing, &COLUMNS.replace("$1", &literal)).await? {
            if self.writer.naming.is_same(&text(&row, 0)?, name) {
                shape.columns.push(read_column(&row)?);
            }
        }
        for row in self.writer.session.query(&doing, &INDEXES.replace("$1", &literal)).await? {
            if self.writer.naming.is_same(&text(&row, 0)?, name) {
                shape.add_index_part(&quoted, &text(&row, 1)?, optional(&row, 2)?);
            }
        }
        for (query, what, remedy) in OBSTACLES {
            for row in self.writer.session.query(&doing, &query.replace("$1", &literal)).await? {
                if !self.writer.naming.is_same(&text(&row, 0)?, name) {
                    continue;
                }
                let (table, object) = (text(&row, 1)?, text(&row, 2)?);
                let fill = |pattern: &str, table: &str, object: &str| {
                    pattern.replace("$table", table).replace("$object", object)
                };
                let [table_quoted, object_quoted] = [&table, &object].map(|n| quote::identifier(n));
                shape.obstacles.push((
                    fill(what, &table, &object),
                    fill(remedy, &table_quoted, &object_quoted),
                ));
            }
        }
        Ok(Some(shape))
    }

    /// Fails unless the table is there and takes rows of this shape.
    pub(super) async fn expect_shape(&mut self, table: &TableSchema) -> Result<()> {
        let name = &table.name;
        let target_name = self.writer.naming.target_name(name);
        let Some(shape) = self.shape(&target_name).await? else {
            let message = format!(
                "target table {target_name} is gone; restart driftless, which creates and copies \
                 it again"
            );
            return Err(Error::table(name, Code::TargetShape, message));
        };
        let columns = self.writer.stored_columns(table);
        let lacking = compare(&self.writer.sql(table, &target_name, &columns), &shape)?;
        let gone = |column: &str| {
            let message = format!(
                "target table {target_name}: column {column} is gone; restart driftless, which \
                 adds it again"
            );
            Err(Error::table(name, Code::TargetShape, message))
        };
        match lacking.columns.first() {
            Some(&index) => gone(&table.columns[index].name),
            None if lacking.deleted => gone(sql::DELETED),
            None => Ok(()),
        }
    }
}

fn read_column(row: &mysql_async::Row) -> Result<TargetColumn> {
    let spelled = text(row, 2)?;
    let lossy = |index| {
        optional(row, index).map(|text| text.map(String::from_utf8_lossy).unwrap_or_default())
    };
    let charset = lossy(3)?;
    let native = match charset.as_ref() {
        "" => spelled.clone(),
        charset => format!("{spelled} character set {charset}"),
    };
    Ok(TargetColumn {
        name: text(row, 1)?,
        physical: MysqlType::parse(&native).ok(),
        spelled,
        collation: lossy(4)?.into_owned(),
        nullable: text(row, 5)? == "YES",
        has_default: text(row, 6)? == "1",
        extra: lossy(7)?.to_lowercase(),
    })
}

impl Shape {
    /// Indexes that are not unique are nobody's business but the user's.
    fn add_index_part(&mut self, quoted: &str, index: &str, column: Option<&[u8]>) {
        if index == "PRIMARY" {
            let column = column.map(String::from_utf8_lossy).unwrap_or_default();
            self.key.push(column.into_owned());
            return;
        }
        let what = format!("it has the unique index {index} besides its key");
        let drop = format!("DROP INDEX {} ON {quoted}", quote::identifier(index));
        if !self.obstacles.iter().any(|(_, remedy)| *remedy == drop) {
            self.obstacles.push((what, drop));
        }
    }

    fn column(&self, name: &str) -> Option<&TargetColumn> {
        let name = name.to_lowercase();
        self.columns.iter().find(|column| column.name.to_lowercase() == name)
    }
}

/// Whether rows of a table fit, and what has to be added for it.
///
/// # Errors
/// `target-shape`, with what does not fit and the SQL that mends it.
pub fn compare(table: &TableSql<'_>, shape: &Shape) -> Result<Lacking> {
    let quoted = quote::identifier(table.name);
    if let Some((obstacle, remedy)) = shape.obstacles.first() {
        return Err(misfit(table, obstacle, remedy));
    }
    for (column, expected) in [(sql::VERSION, "binary(16)"), (sql::UPDATED_AT, "datetime(6)")] {
        let fits = |found: &TargetColumn| found.spelled == expected && !found.nullable;
        if !shape.column(column).is_some_and(fits) {
            let what = format!("it has no column {column} {expected} NOT NULL, so it is not ours");
            return Err(misfit(table, &what, &format!("DROP TABLE {quoted}")));
        }
    }
    let key: Vec<&str> = table.table.key_columns().map(|column| column.name.as_str()).collect();
    let same = |(found, name): (&String, &&str)| found.to_lowercase() == name.to_lowercase();
    if shape.key.len() != key.len() || !shape.key.iter().zip(&key).all(same) {
        let what = format!(
            "its primary key is ({}), the source's key is ({})",
            shape.key.join(", "),
            key.join(", ")
        );
        return Err(misfit(table, &what, &format!("DROP TABLE {quoted}")));
    }
    let mut lacking = Lacking { columns: Vec::new(), deleted: lacks_mark(table, shape)? };
    for (index, column) in table.table.columns.iter().enumerate() {
        match shape.column(&column.name) {
            None => lacking.columns.push(index),
            Some(found) => compare_column(table, index, found)?,
        }
    }
    let known = |column: &TargetColumn| {
        column.name.starts_with("_cdc_")
            || table
                .table
                .columns
                .iter()
                .any(|c| c.name.to_lowercase() == column.name.to_lowercase())
    };
    let demands = |column: &&TargetColumn| {
        let filled = column.has_default
            || column.extra.contains("generated")
            || column.extra.contains("auto_increment");
        !column.nullable && !filled && !known(column)
    };
    if let Some(extra) = shape.columns.iter().find(demands) {
        let what = format!("column {} must have a value, but the source has none", extra.name);
        let mend = format!(
            "ALTER TABLE {quoted} MODIFY COLUMN {} {} NULL",
            quote::identifier(&extra.name),
            extra.spelled
        );
        return Err(misfit(table, &what, &mend));
    }
    Ok(lacking)
}

/// Whether the mark of soft deletes has to be added.
fn lacks_mark(table: &TableSql<'_>, shape: &Shape) -> Result<bool> {
    let quoted = quote::identifier(table.name);
    let drop = format!("ALTER TABLE {quoted} DROP COLUMN `{}`", sql::DELETED);
    match shape.column(sql::DELETED) {
        None => Ok(table.soft_deletes),
        Some(found) if !found.spelled.starts_with("tinyint") || found.nullable => {
            let what = format!("column {} is not boolean NOT NULL", sql::DELETED);
            Err(misfit(table, &what, &drop))
        }
        Some(_) if table.soft_deletes => Ok(false),
        // Its rows would come back to life, or stay marked for ever.
        Some(_) => {
            let mend = format!("DELETE FROM {quoted} WHERE `{}`; {drop}", sql::DELETED);
            let what = "it keeps deleted rows, but deletes are hard now; set deletes = \"soft\"";
            Err(misfit(table, what, &mend))
        }
    }
}

fn compare_column(table: &TableSql<'_>, index: usize, found: &TargetColumn) -> Result<()> {
    let is_key = table.table.is_key(index);
    let expected: &StoredColumn = &table.columns[index];
    let fits = found.physical.as_ref().is_some_and(|physical| expected.fits(physical, is_key));
    let bytewise = !is_key
        || !matches!(found.physical, Some(MysqlType::VarChar(..)))
        || found.collation == collation(table.server);
    let what = if found.extra.contains("generated") || found.extra.contains("on update") {
        format!("is filled by the server ({})", found.extra)
    } else if !fits {
        let needed = expected.declaration(table.server);
        format!("has type {}, but the source's needs {needed}", found.spelled)
    } else if !bytewise {
        format!("has collation {}, but a key is compared by bytes", found.collation)
    } else if !is_key && !found.nullable {
        "cannot be NULL".to_owned()
    } else {
        return Ok(());
    };
    Err(misfit(table, &format!("column {} {what}", found.name), &table.modify_column(index)))
}

fn misfit(table: &TableSql<'_>, what: &str, remedy: &str) -> Error {
    let remedy = match remedy.split_once(' ') {
        Some((verb, _)) if verb.chars().all(|c| c.is_ascii_uppercase()) => {
            format!("{RUN}{remedy}")
        }
        _ => remedy.to_owned(),
    };
    let source = &table.table.name;
    let message = format!("target table {} of {source}: {what}; {remedy}", table.name);
    Error::table(source, Code::TargetShape, message)
}

/// What stands before the SQL that mends something. Such SQL has backquotes of its own.
pub const RUN: &str = "run in the target: ";

const TABLES: &str = "SELECT TABLE_NAME, TABLE_TYPE, ENGINE FROM information_schema.TABLES \
    WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = $1";

const COLUMNS: &str = "\
    SELECT TABLE_NAME, COLUMN_NAME, COLUMN_TYPE, CHARACTER_SET_NAME, COLLATION_NAME, IS_NULLABLE, \
    COLUMN_DEFAULT IS NOT NULL, EXTRA FROM information_schema.COLUMNS \
    WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = $1 ORDER BY ORDINAL_POSITION";

const INDEXES: &str = "\
    SELECT TABLE_NAME, INDEX_NAME, COLUMN_NAME FROM information_schema.STATISTICS \
    WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = $1 AND NON_UNIQUE = 0 \
    ORDER BY INDEX_NAME, SEQ_IN_INDEX";

/// Queries of our table's name, another table's and an object's; what is wrong with them; and
/// what removes it.
const OBSTACLES: [(&str, &str, &str); 3] = [
    (
        "SELECT TABLE_NAME, TABLE_NAME, CONSTRAINT_NAME \
         FROM information_schema.REFERENTIAL_CONSTRAINTS \
         WHERE CONSTRAINT_SCHEMA = DATABASE() AND TABLE_NAME = $1 ORDER BY CONSTRAINT_NAME",
        "it has the foreign key $object",
        "ALTER TABLE $table DROP FOREIGN KEY $object",
    ),
    (
        "SELECT REFERENCED_TABLE_NAME, TABLE_NAME, CONSTRAINT_NAME \
         FROM information_schema.REFERENTIAL_CONSTRAINTS \
         WHERE CONSTRAINT_SCHEMA = DATABASE() AND REFERENCED_TABLE_NAME = $1 \
         AND TABLE_NAME <> $1 ORDER BY CONSTRAINT_NAME",
        "$table refers to it",
        "ALTER TABLE $table DROP FOREIGN KEY $object",
    ),
    (
        "SELECT EVENT_OBJECT_TABLE, EVENT_OBJECT_TABLE, TRIGGER_NAME \
         FROM information_schema.TRIGGERS \
         WHERE EVENT_OBJECT_SCHEMA = DATABASE() AND EVENT_OBJECT_TABLE = $1 ORDER BY TRIGGER_NAME",
        "it has the trigger $object",
        "DROP TRIGGER $object",
    ),
];
