//! The SQL that the target runs, as text. Pure: names, versions and literals in, statements out.
//! `target_values.rs` writes the literals of a row's values, `target/` runs the statements.
//!
//! Surprises: `ON DUPLICATE KEY UPDATE` assigns from left to right, so the version, by which every
//! assignment decides, comes last; and MySQL and MariaDB have no common way to say "the value
//! that would have been inserted".

#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use super::quote;
use super::spelling::push_text;
use super::target_types::{StoredColumn, collation};
use crate::calendar::utc_text;
use crate::change::{Checkpoint, Timestamp};
use crate::schema::{Engine, TableSchema};
use crate::version::Version;

/// One row a pipeline: how far it has come, who writes, which tables.
pub const CHECKPOINT: &str = "_cdc_checkpoint";
/// One row a deleted key or truncated table.
pub const TOMBSTONE: &str = "_cdc_tombstone";
/// The column with the version of a row.
pub const VERSION: &str = "_cdc_version";
/// The column with the commit time of a row.
pub const UPDATED_AT: &str = "_cdc_updated_at";
/// The column that marks deleted rows.
pub const DELETED: &str = "_cdc_deleted";

/// What MySQL calls the row that would have been inserted.
const NEW: &str = "_cdc_new";
/// How a file of rows is written, whatever the `sql_mode`.
const LOADED: &str = "FIELDS TERMINATED BY X'09' ESCAPED BY X'5C' LINES TERMINATED BY X'0A'";
const OPTIONS: &str = "ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE";

/// Creates our own tables.
pub const CREATE_OWN_TABLES: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS `_cdc_checkpoint` (`pipeline` varchar(190) NOT NULL PRIMARY KEY, \
     `position` longtext, `version` binary(16), `sequence` bigint unsigned NOT NULL, \
     `fence` bigint unsigned NOT NULL, `instance` varchar(190) NOT NULL, \
     `tables` longtext NOT NULL, `updated_at` datetime(6) NOT NULL) \
     ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    "CREATE TABLE IF NOT EXISTS `_cdc_tombstone` (`pipeline` varchar(190) NOT NULL, \
     `table_name` varchar(64) NOT NULL, `key_digest` binary(32) NOT NULL, \
     `version` binary(16) NOT NULL, PRIMARY KEY (`pipeline`, `table_name`, `key_digest`), \
     KEY `_cdc_version` (`pipeline`, `version`)) \
     ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
];

/// Where our own tables are found again.
pub const OWN_TABLES: &str = "SELECT COUNT(*) FROM information_schema.TABLES \
     WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME IN ('_cdc_checkpoint', '_cdc_tombstone')";

/// A text as a literal.
#[must_use]
pub fn text(text: &str) -> String {
    let mut literal = String::with_capacity(text.len() + 2);
    push_text(&mut literal, text);
    literal
}

/// A version as a literal.
#[must_use]
pub fn version(version: Version) -> String {
    quote::bytes(&version.to_bytes())
}

/// What is recorded of a pipeline. Locked, it also makes a second writer wait.
#[must_use]
pub fn recorded(pipeline: &str, lock: bool) -> String {
    format!(
        "SELECT `fence`, `instance`, `tables`, `sequence`, `position`, `version` \
         FROM `{CHECKPOINT}` WHERE `pipeline` = {}{}",
        text(pipeline),
        if lock { " FOR UPDATE" } else { "" }
    )
}

/// The fence and the checkpoint of a pipeline, locked until the transaction ends.
#[must_use]
pub fn lock_checkpoint(pipeline: &str) -> String {
    format!(
        "SELECT `fence`, `sequence`, `position`, `version` FROM `{CHECKPOINT}` \
         WHERE `pipeline` = {} FOR UPDATE",
        text(pipeline)
    )
}

/// Moves the checkpoint; `tables` where what is recorded of them changes too.
#[must_use]
pub fn advance(pipeline: &str, checkpoint: &Checkpoint, tables: Option<&str>) -> String {
    let tables = tables.map_or(String::new(), |tables| format!(", `tables` = {}", text(tables)));
    format!(
        "UPDATE `{CHECKPOINT}` SET `position` = {}, `version` = {}, `sequence` = {}, \
         `updated_at` = UTC_TIMESTAMP(6){tables} WHERE `pipeline` = {}",
        text(&checkpoint.position.0),
        version(checkpoint.version),
        checkpoint.sequence,
        text(pipeline)
    )
}

/// Records what is known of a pipeline's tables.
#[must_use]
pub fn record_tables(pipeline: &str, tables: &str) -> String {
    format!(
        "UPDATE `{CHECKPOINT}` SET `tables` = {}, `updated_at` = UTC_TIMESTAMP(6) \
         WHERE `pipeline` = {}",
        text(tables),
        text(pipeline)
    )
}

/// Raises the fence of a pipeline, and records it where it is new.
#[must_use]
pub fn raise_fence(pipeline: &str, instance: &str) -> String {
    let (pipeline, instance) = (text(pipeline), text(instance));
    format!(
        "INSERT INTO `{CHECKPOINT}` \
         (`pipeline`, `sequence`, `fence`, `instance`, `tables`, `updated_at`) \
         VALUES ({pipeline}, 0, 1, {instance}, '[]', UTC_TIMESTAMP(6)) ON DUPLICATE KEY UPDATE \
         `fence` = `fence` + 1, `instance` = {instance}, `updated_at` = UTC_TIMESTAMP(6)"
    )
}

/// The versions of the tombstones among these, with their digests.
#[must_use]
pub fn tombstones(pipeline: &str, table: &str, digests: &[[u8; 32]]) -> String {
    let digests: Vec<String> = digests.iter().map(|digest| quote::bytes(digest)).collect();
    format!(
        "SELECT `key_digest`, `version` FROM `{TOMBSTONE}` WHERE `pipeline` = {} \
         AND `table_name` = {} AND `key_digest` IN ({})",
        text(pipeline),
        text(table),
        digests.join(", ")
    )
}

/// Remembers deletions, or a truncation; a newer one that is known stays.
#[must_use]
pub fn bury(
    server: Engine,
    pipeline: &str,
    table: &str,
    deletions: &[([u8; 32], Version)],
) -> String {
    let owner = format!("{}, {}", text(pipeline), text(table));
    let rows: Vec<String> = deletions
        .iter()
        .map(|(digest, deleted)| {
            format!("({owner}, {}, {})", quote::bytes(digest), version(*deleted))
        })
        .collect();
    let (alias, new, old) = match server {
        Engine::Mariadb => ("", "VALUES(`version`)".to_owned(), "`version`".to_owned()),
        _ => (" AS `_cdc_new`", format!("`{NEW}`.`version`"), format!("`{TOMBSTONE}`.`version`")),
    };
    format!(
        "INSERT INTO `{TOMBSTONE}` (`pipeline`, `table_name`, `key_digest`, `version`) \
         VALUES {}{alias} ON DUPLICATE KEY UPDATE `version` = IF({new} > {old}, {new}, {old})",
        rows.join(", ")
    )
}

/// Drops the tombstones of a pipeline that are older than the floor.
#[must_use]
pub fn collect_tombstones(pipeline: &str, floor: Version) -> String {
    format!(
        "DELETE FROM `{TOMBSTONE}` WHERE `pipeline` = {} AND `version` < {}",
        text(pipeline),
        version(floor)
    )
}

/// Whether a pipeline has tombstones.
#[must_use]
pub fn has_tombstones(pipeline: &str) -> String {
    format!("SELECT 1 FROM `{TOMBSTONE}` WHERE `pipeline` = {} LIMIT 1", text(pipeline))
}

/// What is written to one table of the target.
#[derive(Clone, Copy, Debug)]
pub struct TableSql<'a> {
    /// Which dialect.
    pub server: Engine,
    /// Whether deleted rows stay, marked.
    pub soft_deletes: bool,
    /// The table's name in the target.
    pub name: &'a str,
    /// The shape of the rows.
    pub table: &'a TableSchema,
    /// Its columns in the target, in the same order.
    pub columns: &'a [StoredColumn],
}

/// An `INSERT` of which only the rows are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upsert {
    /// Up to the rows.
    pub head: String,
    /// After the rows.
    pub tail: String,
}

impl Upsert {
    /// With one row, of so many parameters.
    #[must_use]
    pub fn prepared(&self, parameters: usize) -> String {
        format!("{}({}){}", self.head, vec!["?"; parameters].join(", "), self.tail)
    }
}

impl TableSql<'_> {
    /// The table itself.
    #[must_use]
    pub fn create_table(&self) -> String {
        let mut columns: Vec<String> = (0..self.columns.len())
            .map(|index| {
                let null = if self.table.is_key(index) { "NOT NULL" } else { "NULL" };
                format!("{} {null}", self.declared(index))
            })
            .collect();
        columns.push(format!("`{VERSION}` binary(16) NOT NULL"));
        columns.push(format!("`{UPDATED_AT}` datetime(6) NOT NULL"));
        if self.soft_deletes {
            columns.push(format!("`{DELETED}` boolean NOT NULL DEFAULT 0"));
        }
        let key: Vec<String> = self.table.key.iter().map(|&index| self.column(index)).collect();
        format!(
            "CREATE TABLE IF NOT EXISTS {} ({}, PRIMARY KEY ({})) {OPTIONS} {}",
            self.quoted(),
            columns.join(", "),
            key.join(", "),
            collation(self.server)
        )
    }

    /// Columns that the source has and the table has not, and the mark of soft deletes.
    #[must_use]
    pub fn add_columns(&self, columns: &[usize], deleted: bool) -> String {
        let mut added: Vec<String> = columns
            .iter()
            .map(|&index| format!("ADD COLUMN {} NULL", self.declared(index)))
            .collect();
        if deleted {
            added.push(format!("ADD COLUMN `{DELETED}` boolean NOT NULL DEFAULT 0"));
        }
        format!("ALTER TABLE {} {}", self.quoted(), added.join(", "))
    }

    /// Gives a column its type.
    #[must_use]
    pub fn modify_column(&self, index: usize) -> String {
        let null = if self.table.is_key(index) { "NOT NULL" } else { "NULL" };
        format!("ALTER TABLE {} MODIFY COLUMN {} {null}", self.quoted(), self.declared(index))
    }

    /// Removes what is older than a truncation. A marked row is a tombstone too, so it also gets
    /// the truncation's version.
    #[must_use]
    pub fn truncate(&self, truncation: Version, updated_at: Timestamp) -> String {
        let (name, truncation) = (self.quoted(), version(truncation));
        if self.soft_deletes {
            return format!(
                "UPDATE {name} SET `{DELETED}` = 1, `{UPDATED_AT}` = {}, `{VERSION}` = {truncation} \
                 WHERE `{VERSION}` < {truncation}",
                instant(updated_at)
            );
        }
        format!("DELETE FROM {name} WHERE `{VERSION}` < {truncation}")
    }

    /// Removes rows that are older than their deletions. A key is the literals of its values.
    #[must_use]
    pub fn delete(&self, deletions: &[(Vec<String>, Version)]) -> String {
        let rows: Vec<String> = deletions
            .iter()
            .map(|(key, deleted)| {
                format!("({} AND `{VERSION}` < {})", self.is_row(key), version(*deleted))
            })
            .collect();
        format!("DELETE FROM {} WHERE {}", self.quoted(), rows.join(" OR "))
    }

    /// Writes rows with the columns at these places, and ours, unless something newer is there.
    /// A row is the literals of these columns, then of `UPDATED_AT`, then the deletion mark with
    /// soft deletes, then of `VERSION`.
    #[must_use]
    pub fn upsert(&self, present: &[usize]) -> Upsert {
        let mut names: Vec<String> = present.iter().map(|&index| self.column(index)).collect();
        let mut ours = vec![format!("`{UPDATED_AT}`")];
        if self.soft_deletes {
            ours.push(format!("`{DELETED}`"));
        }
        let mut assigned: Vec<String> = present
            .iter()
            .filter(|&&index| !self.table.is_key(index))
            .map(|&index| self.column(index))
            .collect();
        assigned.extend(ours.iter().cloned());
        assigned.push(format!("`{VERSION}`"));
        names.extend(ours);
        names.push(format!("`{VERSION}`"));
        let (alias, new, old): (&str, fn(&str) -> String, String) = match self.server {
            Engine::Mariadb => ("", |column| format!("VALUES({column})"), String::new()),
            _ => (
                " AS `_cdc_new`",
                |column| format!("`{NEW}`.{column}"),
                format!("{}.", self.quoted()),
            ),
        };
        let newer = format!("{} > {old}`{VERSION}`", new(&format!("`{VERSION}`")));
        let sets: Vec<String> = assigned
            .iter()
            .map(|column| format!("{column} = IF({newer}, {}, {old}{column})", new(column)))
            .collect();
        Upsert {
            head: format!("INSERT INTO {} ({}) VALUES ", self.quoted(), names.join(", ")),
            tail: format!("{alias} ON DUPLICATE KEY UPDATE {}", sets.join(", ")),
        }
    }

    /// Reads rows that are not there yet from a file of the client's, which has the columns, then
    /// `UPDATED_AT`, the deletion mark with soft deletes, and `VERSION`. Rows that are there are left
    /// as they are.
    #[must_use]
    pub fn load(&self) -> String {
        let mut names: Vec<String> =
            (0..self.columns.len()).map(|index| self.column(index)).collect();
        names.push(format!("`{UPDATED_AT}`"));
        if self.soft_deletes {
            names.push(format!("`{DELETED}`"));
        }
        names.push(format!("`{VERSION}`"));
        format!(
            "LOAD DATA LOCAL INFILE 'rows' IGNORE INTO TABLE {} CHARACTER SET binary {LOADED} ({})",
            self.quoted(),
            names.join(", ")
        )
    }

    /// The rows of these keys that exist, locked: their keys, versions and deletion marks.
    #[must_use]
    pub fn lock_rows(&self, keys: &[Vec<String>]) -> String {
        let mut selected = self.selected_key();
        selected.push(format!("`{VERSION}`"));
        selected.push(if self.soft_deletes { format!("`{DELETED}`") } else { "0".into() });
        format!(
            "SELECT {} FROM {} WHERE {} FOR UPDATE",
            selected.join(", "),
            self.quoted(),
            self.is_any(keys)
        )
    }

    /// The rows of these keys that are not deleted: version, then the columns.
    #[must_use]
    pub fn read_rows(&self, keys: &[Vec<String>]) -> String {
        let columns: String =
            (0..self.columns.len()).map(|index| format!(", {}", self.selected(index))).collect();
        format!(
            "SELECT `{VERSION}`{columns} FROM {} WHERE ({}){}",
            self.quoted(),
            self.is_any(keys),
            self.live()
        )
    }

    /// Up to `limit` keys in key order. `after` is the literals of a key's values.
    #[must_use]
    pub fn read_keys(
        &self,
        after: Option<&[String]>,
        below: Option<Version>,
        filter: Option<&str>,
        limit: usize,
    ) -> String {
        let order: Vec<String> = self.table.key.iter().map(|&index| self.column(index)).collect();
        let mut sql = format!(
            "SELECT {} FROM {} WHERE TRUE{}",
            self.selected_key().join(", "),
            self.quoted(),
            self.live()
        );
        if let Some(after) = after {
            let _ = write!(sql, " AND ({})", self.is_after(after));
        }
        if let Some(below) = below {
            let _ = write!(sql, " AND `{VERSION}` < {}", version(below));
        }
        if let Some(filter) = filter {
            // On lines of its own, so that a comment in it ends where it ends.
            let _ = write!(sql, " AND (\n{filter}\n)");
        }
        let _ = write!(sql, " ORDER BY {} LIMIT {limit}", order.join(", "));
        sql
    }

    fn selected_key(&self) -> Vec<String> {
        self.table.key.iter().map(|&index| self.selected(index)).collect()
    }

    fn live(&self) -> String {
        if self.soft_deletes { format!(" AND NOT `{DELETED}`") } else { String::new() }
    }

    /// The row has one of these keys.
    fn is_any(&self, keys: &[Vec<String>]) -> String {
        if let [index] = self.table.key[..] {
            let values: Vec<&str> = keys.iter().flatten().map(String::as_str).collect();
            return format!("{} IN ({})", self.column(index), values.join(", "));
        }
        // Not every server looks up a list of pairs by its index.
        let rows: Vec<String> = keys.iter().map(|key| format!("({})", self.is_row(key))).collect();
        rows.join(" OR ")
    }

    fn is_row(&self, key: &[String]) -> String {
        let equal =
            |(&index, value): (&usize, &String)| format!("{} = {value}", self.column(index));
        let all: Vec<String> = self.table.key.iter().zip(key).map(equal).collect();
        all.join(" AND ")
    }

    /// The row's key is greater, column by column: no server looks up pairs by an inequality.
    fn is_after(&self, key: &[String]) -> String {
        let mut condition = String::new();
        for (&index, value) in self.table.key.iter().zip(key).rev() {
            let column = self.column(index);
            condition = match condition.is_empty() {
                true => format!("{column} > {value}"),
                false => format!("{column} > {value} OR ({column} = {value} AND ({condition}))"),
            };
        }
        condition
    }

    fn selected(&self, index: usize) -> String {
        self.columns[index].selected(&self.column(index))
    }

    fn declared(&self, index: usize) -> String {
        format!("{} {}", self.column(index), self.columns[index].declaration(self.server))
    }

    fn quoted(&self) -> String {
        quote::identifier(self.name)
    }

    fn column(&self, index: usize) -> String {
        quote::identifier(&self.table.columns[index].name)
    }
}

/// An instant as a literal for `datetime(6)`, in UTC.
#[must_use]
pub fn instant(timestamp: Timestamp) -> String {
    format!("'{}'", utc_text(timestamp))
}
