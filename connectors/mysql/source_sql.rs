//! The SQL that is spoken to a source, as text. Pure; `catalog.rs`, `check.rs`, `subscribe.rs` and
//! `chunk.rs` send it.
//!
//! Surprise: a key of several columns is compared column by column, with a condition on the first
//! one in front. Neither server reads a range of an index for `(a, b) > (1, 2)`.

use super::connect::Server;
use super::quote::literal;

/// Every table that we may see: schema and name.
pub const TABLES: &str = "\
SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES
WHERE TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED')
  AND TABLE_SCHEMA NOT IN ('mysql', 'information_schema', 'performance_schema', 'sys')";

/// Schema, name, kind, storage engine.
pub fn table_details(schema: &str, only: Option<&str>) -> String {
    format!(
        "SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE, ENGINE FROM information_schema.TABLES \
         WHERE {} AND TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED')",
        of("TABLE_SCHEMA", schema, only)
    )
}

/// Schema, table, name, type, character set, further properties; in the server's order.
pub fn columns(schema: &str, only: Option<&str>) -> String {
    format!(
        "SELECT TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME, COLUMN_TYPE, CHARACTER_SET_NAME, EXTRA \
         FROM information_schema.COLUMNS WHERE {} ORDER BY TABLE_NAME, ORDINAL_POSITION",
        of("TABLE_SCHEMA", schema, only)
    )
}

/// Schema, table and clause of the checks that a text is JSON. MariaDB only.
pub fn json_checks(schema: &str, only: Option<&str>) -> String {
    format!(
        "SELECT CONSTRAINT_SCHEMA, TABLE_NAME, CHECK_CLAUSE \
         FROM information_schema.CHECK_CONSTRAINTS \
         WHERE {} AND CHECK_CLAUSE LIKE 'json_valid(%'",
        of("CONSTRAINT_SCHEMA", schema, only)
    )
}

/// Schema, table, index, column (NULL for an expression) and whether it may be NULL, of every
/// unique index; a column of which only the beginning is unique may as well be NULL.
pub fn keys(schema: &str, only: Option<&str>) -> String {
    format!(
        "SELECT TABLE_SCHEMA, TABLE_NAME, INDEX_NAME, COLUMN_NAME, \
         CASE WHEN SUB_PART IS NULL THEN NULLABLE ELSE 'YES' END \
         FROM information_schema.STATISTICS WHERE {} AND NON_UNIQUE = 0 \
         ORDER BY TABLE_NAME, INDEX_NAME, SEQ_IN_INDEX",
        of("TABLE_SCHEMA", schema, only)
    )
}

/// Schema, table and name of the foreign keys that act on the table's own rows.
pub fn cascades(schema: &str, only: Option<&str>) -> String {
    format!(
        "SELECT CONSTRAINT_SCHEMA, TABLE_NAME, CONSTRAINT_NAME \
         FROM information_schema.REFERENTIAL_CONSTRAINTS \
         WHERE {} AND (UPDATE_RULE IN ('CASCADE', 'SET NULL', 'SET DEFAULT') \
         OR DELETE_RULE IN ('CASCADE', 'SET NULL', 'SET DEFAULT')) ORDER BY CONSTRAINT_NAME",
        of("CONSTRAINT_SCHEMA", schema, only)
    )
}

/// Which tables a question about the catalog is for.
fn of(schema_column: &str, schema: &str, only: Option<&str>) -> String {
    let schema = format!("{schema_column} = {}", literal(schema));
    match only {
        Some(table) => format!("{schema} AND TABLE_NAME = {}", literal(table)),
        None => schema,
    }
}

/// MariaDB's name of itself.
pub const SERVER_ID: &str = "SELECT @@GLOBAL.server_id";

/// MySQL's name of itself.
pub const SERVER_UUID: &str = "SELECT @@GLOBAL.server_uuid";

/// Whether transactions of MySQL have GTIDs.
pub const GTID_MODE: &str = "SELECT @@GLOBAL.gtid_mode";

/// The transactions that MySQL has committed: it takes one in after its engines have committed it.
pub const GTID_EXECUTED: &str = "SELECT @@GLOBAL.gtid_executed";

/// Those that are no longer in MySQL's log.
pub const GTID_PURGED: &str = "SELECT @@GLOBAL.gtid_purged";

/// File, offset, and the databases that are logged or not.
pub fn log_status(server: &Server) -> &'static str {
    match !server.is_mariadb() && server.version >= (8, 2, 0) {
        true => "SHOW BINARY LOG STATUS",
        false => "SHOW MASTER STATUS",
    }
}

/// Files and their sizes.
pub const LOG_FILES: &str = "SHOW BINARY LOGS";

/// The first events of a file; what it says is in the sixth column.
pub fn head_of(file: &str) -> String {
    format!("SHOW BINLOG EVENTS IN {} LIMIT 3", plain_literal(file))
}

/// What MariaDB's log holds up to a place.
pub fn gtids_at(file: &str, offset: u64) -> String {
    format!("SELECT BINLOG_GTID_POS({}, {offset})", literal(file))
}

/// Answers 0 once MySQL has committed these, 1 when that takes longer.
pub fn wait_for_gtids(set: &str, seconds: u32) -> String {
    format!("SELECT WAIT_FOR_EXECUTED_GTID_SET({}, {seconds})", literal(set))
}

/// XA transactions that are prepared: format, length of global part, of branch, both.
pub const XA_RECOVER: &str = "XA RECOVER";

/// Names of the log's files where the grammar wants a plain string; quotes and backslashes are no
/// part of what a server calls its files.
fn plain_literal(file: &str) -> String {
    let plain = |c: &char| !matches!(c, '\'' | '\\');
    format!("'{}'", file.chars().filter(plain).collect::<String>())
}
