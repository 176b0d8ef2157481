//! The SQL text that the source sends, and nothing else. Pure.
//!
//! Surprise: LOCK TABLE comes before the snapshot of a chunk. A table rewritten by ALTER TABLE
//! looks empty to a snapshot from before, and an empty chunk would be taken for the table's end.

use super::lsn::Lsn;
use super::quote::{identifier, identifiers, literal, table};
use crate::change::Key;
use crate::schema::{TableName, TableSchema};

/// OID, schema, name, kind and persistence of every table that a pattern may mean.
pub const TABLES: &str = "\
SELECT c.oid, n.nspname::text, c.relname::text, c.relpersistence::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
ORDER BY n.nspname, c.relname";

/// Name, kind, persistence, replica identity and row security of the tables `$1`.
pub const TABLE_DETAILS: &str = "\
SELECT c.oid, n.nspname, c.relname, c.relkind = 'p', c.relpersistence, c.relreplident,
       row_security_active(c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = ANY ($1) AND c.relkind IN ('r', 'p')";

/// The columns of the tables `$1`: table, number, name, declared type, base type (domains taken
/// off), its SQL name, whether every server has it, whether the column is generated, whether the
/// type is an enum.
pub const COLUMNS: &str = "\
WITH RECURSIVE typed AS (
  SELECT a.attrelid, a.attnum, a.atttypid AS typid, a.atttypmod AS typmod
  FROM pg_attribute a
  WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped
  UNION ALL
  SELECT d.attrelid, d.attnum, t.typbasetype, t.typtypmod
  FROM typed d JOIN pg_type t ON t.oid = d.typid WHERE t.typtype = 'd'
)
SELECT a.attrelid, a.attnum, a.attname, a.atttypid, t.oid,
       format_type(t.oid, d.typmod),
       t.oid < 16384 AND t.typnamespace = 'pg_catalog'::regnamespace, a.attgenerated <> '',
       t.typtype = 'e'
FROM typed d
JOIN pg_type t ON t.oid = d.typid AND t.typtype <> 'd'
JOIN pg_attribute a ON a.attrelid = d.attrelid AND a.attnum = d.attnum
ORDER BY a.attrelid, a.attnum";

/// The indexes of the tables `$1` that may be a key: table, columns, primary, replica identity.
pub const KEYS: &str = "\
SELECT i.indrelid, i.indkey, i.indnkeyatts, i.indisprimary, i.indisreplident
FROM pg_index i
WHERE i.indrelid = ANY ($1) AND (i.indisprimary OR i.indisreplident)
  AND i.indisvalid AND i.indimmediate AND i.indisunique";

/// A question about `$1`, asked about these OIDs.
pub fn of_ids(question: &str, ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    question.replace("$1", &format!("'{{{}}}'::oid[]", ids.join(",")))
}

/// For each type of `$1` its name, and the operators `>` and `=` of its own order where it has
/// one; enums, arrays and ranges have the general ones. Only those of extensions are elsewhere
/// than in `pg_catalog`. Last, whether it is a composite type.
pub const KEY_TYPES: &str = "\
WITH own AS (
  SELECT o.opcintype, a.amopstrategy,
         CASE WHEN n.nspname <> 'pg_catalog' THEN format('OPERATOR(%I.%s)', n.nspname, p.oprname)
         END AS operator
  FROM pg_opclass o
  JOIN pg_amop a ON a.amopfamily = o.opcfamily
    AND a.amoplefttype = o.opcintype AND a.amoprighttype = o.opcintype
  JOIN pg_operator p ON p.oid = a.amopopr
  JOIN pg_namespace n ON n.oid = p.oprnamespace
  WHERE o.opcmethod = 403 AND o.opcdefault
)
SELECT t.oid, format('%I.%I', n.nspname, t.typname),
       (SELECT operator FROM own WHERE opcintype = t.oid AND amopstrategy = 5),
       (SELECT operator FROM own WHERE opcintype = t.oid AND amopstrategy = 3),
       t.typtype = 'c'
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE t.oid = ANY ($1)";

/// A transaction id above all that were given out before. `pg_snapshot_xmax` is not: it is only
/// above those that have ended, and a commit that is logged but not yet visible has not.
pub const NEXT_XID: &str = "SELECT pg_current_xact_id()::text";

/// The snapshot of this transaction and the time of this statement in microseconds.
pub const SNAPSHOT: &str = "\
SELECT pg_current_snapshot()::text,
       (extract(epoch FROM statement_timestamp()) * 1000000)::bigint";

/// The snapshot of now, the end of the log as it is safe on disk, and from where it would be read
/// again for the slot `$1`.
pub const NOW: &str = "\
SELECT pg_current_snapshot()::text, pg_current_wal_flush_lsn()::text,
       (SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = $1)";

/// The snapshot of now.
pub const NOW_SEEN: &str = "SELECT pg_current_snapshot()::text";

/// What became of the transactions `$1`, in their order.
pub const STATUSES: &str = "\
SELECT pg_xact_status(asked.xid::text::xid8)
FROM unnest($1::int8[]) WITH ORDINALITY AS asked (xid, place) ORDER BY place";

/// Begins the transaction of a chunk, before its snapshot is taken.
pub fn begin_chunk(name: &TableName) -> String {
    format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE {} IN ACCESS SHARE MODE",
        table(name)
    )
}

/// How a column of a key is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyColumn {
    /// The column as an expression of a type that has operators; domains have none.
    pub expression: String,
    /// Its operator `>`.
    pub greater: String,
    /// Its operator `=`.
    pub equal: String,
    /// What stands behind a literal: nothing, because the other side of the operator tells its
    /// type, or the cast to a composite type, whose operators tell only that it is some record.
    pub cast: String,
}

impl KeyColumn {
    // Keys come from a server that speaks UTF-8 to us.
    fn value(&self, bytes: &[u8]) -> String {
        format!("{}{}", literal(&String::from_utf8_lossy(bytes)), self.cast)
    }
}

/// Which rows are copied.
pub struct Rows<'a> {
    /// The table.
    pub table: &'a TableSchema,
    /// Whether it has partitions; otherwise its children do not belong to it.
    pub partitioned: bool,
    /// Its key columns.
    pub key: &'a [KeyColumn],
    /// Whether their values come in binary.
    pub in_binary: bool,
}

impl Rows<'_> {
    /// Copies up to `limit` rows after a key, in the order of the key.
    pub fn copy_range(&self, after: Option<&Key>, filter: Option<&str>, limit: usize) -> String {
        let after = after.map(|key| self.after(key));
        // A comment at the end of the condition must not swallow the parenthesis.
        let filter = filter.map(|filter| format!("({filter}\n)"));
        let conditions: Vec<String> = after.into_iter().chain(filter).collect();
        let condition = match conditions.is_empty() {
            true => String::new(),
            false => format!(" WHERE {}", conditions.join(" AND ")),
        };
        let order = identifiers(self.table.key_columns().map(|column| column.name.as_str()));
        self.copy(&format!("{condition} ORDER BY {order} LIMIT {limit}"))
    }

    /// Copies the rows of these keys.
    pub fn copy_keys(&self, keys: &[Key]) -> String {
        if let [column] = self.key
            && column.equal == EQUAL
        {
            // One array to look up costs the planner far less than a thousand conditions.
            let values = keys.iter().flat_map(Key::values).map(|bytes| column.value(bytes));
            let values: Vec<String> = values.collect();
            return self.copy(&format!(" WHERE {} IN ({})", column.expression, values.join(", ")));
        }
        let one = |key: &Key| format!("({})", self.equal(key, self.key.len()));
        let keys: Vec<String> = keys.iter().map(one).collect();
        self.copy(&format!(" WHERE {}", keys.join(" OR ")))
    }

    fn copy(&self, tail: &str) -> String {
        let columns = identifiers(self.table.columns.iter().map(|column| column.name.as_str()));
        let only = if self.partitioned { "" } else { "ONLY " };
        let form = if self.in_binary { " (FORMAT binary)" } else { "" };
        let name = table(&self.table.name);
        format!("COPY (SELECT {columns} FROM {only}{name}{tail}) TO STDOUT{form}")
    }

    /// `(a, b) > ('x', 'y')`, in words that an index understands.
    fn after(&self, key: &Key) -> String {
        if self.key.iter().all(|column| column.greater == GREATER) {
            let columns: Vec<&str> = self.key.iter().map(|c| c.expression.as_str()).collect();
            let values = self.key.iter().zip(key.values());
            let values: Vec<String> = values.map(|(column, bytes)| column.value(bytes)).collect();
            return format!("({}) > ({})", columns.join(", "), values.join(", "));
        }
        let column = |(place, (column, bytes)): (usize, (&KeyColumn, &[u8]))| {
            let last = format!("{} {} {}", column.expression, column.greater, column.value(bytes));
            match place {
                0 => format!("({last})"),
                _ => format!("({} AND {last})", self.equal(key, place)),
            }
        };
        let columns = self.key.iter().zip(key.values()).enumerate().map(column);
        format!("({})", columns.collect::<Vec<_>>().join(" OR "))
    }

    /// The first `count` columns of the key are these.
    fn equal(&self, key: &Key, count: usize) -> String {
        let columns = self.key.iter().zip(key.values()).take(count);
        let one = |(column, bytes): (&KeyColumn, &[u8])| {
            format!("{} {} {}", column.expression, column.equal, column.value(bytes))
        };
        columns.map(one).collect::<Vec<_>>().join(" AND ")
    }
}

/// The general operator, which the search path finds.
pub const GREATER: &str = ">";
/// As `GREATER`.
pub const EQUAL: &str = "=";

/// Whether any row has a value in one of these columns.
pub fn any_value(rows: &Rows<'_>, columns: &[String]) -> String {
    let some: Vec<String> =
        columns.iter().map(|column| format!("{} IS NOT NULL", identifier(column))).collect();
    let only = if rows.partitioned { "" } else { "ONLY " };
    format!(
        "SELECT EXISTS (SELECT 1 FROM {only}{} WHERE {})",
        table(&rows.table.name),
        some.join(" OR ")
    )
}

/// Tables in a publication's list; children of a plain table do not belong to it.
pub fn publication_tables<'a>(tables: impl IntoIterator<Item = (&'a TableName, bool)>) -> String {
    let one = |(name, partitioned): (&TableName, bool)| match partitioned {
        true => table(name),
        false => format!("ONLY {}", table(name)),
    };
    tables.into_iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Makes the publication.
pub fn create_publication(name: &str, tables: &str) -> String {
    format!(
        "CREATE PUBLICATION {} FOR TABLE {tables} WITH \
         (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)",
        identifier(name)
    )
}

/// Adds tables to it, or takes them out of it.
pub fn alter_publication(name: &str, verb: &str, tables: &str) -> String {
    format!("ALTER PUBLICATION {} {verb} TABLE {tables}", identifier(name))
}

/// What the server says of itself and of our role; read by `check.rs`.
pub const FACTS: &str = "\
SELECT current_setting('server_version_num')::int4, current_setting('server_version'),
       current_setting('wal_level'),
       (SELECT count(*) FROM pg_replication_slots),
       current_setting('max_replication_slots')::int8,
       (SELECT count(*) FROM pg_stat_replication), current_setting('max_wal_senders')::int8,
       current_user::text, r.rolsuper,
       r.rolreplication OR EXISTS (SELECT FROM pg_roles m WHERE m.rolname = 'rds_replication'
                                   AND pg_has_role(m.oid, 'MEMBER')),
       current_database()::text,
       has_database_privilege(current_database(), 'CREATE'),
       current_setting('max_slot_wal_keep_size'),
       (SELECT pg_encoding_to_char(encoding)::text FROM pg_database
        WHERE datname = current_database()),
       pg_is_in_recovery()
FROM pg_roles r WHERE r.rolname = current_user";

/// Whether we may read each of the tables `$1`.
pub const READABLE: &str = "\
SELECT oid, has_table_privilege(oid, 'SELECT') AND has_schema_privilege(relnamespace, 'USAGE')
FROM pg_class WHERE oid = ANY ($1)";

/// Those of the tables `$1` that are not ours.
pub const NOT_OWNED: &str = "\
SELECT format('%I.%I', n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = ANY ($1) AND NOT pg_has_role(c.relowner, 'USAGE') ORDER BY 1";

/// The publication `$1`: OID, whether it has all tables, its operations, the root setting,
/// whether we may alter it.
pub const PUBLICATION: &str = "\
SELECT oid, puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot,
       pg_has_role(pubowner, 'USAGE')
FROM pg_publication WHERE pubname = $1";

/// The tables that the publication `$1` lists: OID, name, whether partitioned, whether it shows
/// only some rows, whether only some columns. `server_version_num` decides the text.
pub fn publication_list(version: i32) -> String {
    // Row filters and column lists came with 15.
    let partial = match version >= 150_000 {
        true => "r.prqual IS NOT NULL, r.prattrs IS NOT NULL",
        false => "false, false",
    };
    format!(
        "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'p', {partial} \
         FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
         JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE p.pubname = $1 ORDER BY n.nspname, c.relname"
    )
}

/// The OIDs of the schemas whose tables the publication `$1` has; from 15 on.
pub const PUBLICATION_SCHEMAS: &str = "\
SELECT n.nspname::text FROM pg_publication p
JOIN pg_publication_namespace s ON s.pnpubid = p.oid
JOIN pg_namespace n ON n.oid = s.pnnspid WHERE p.pubname = $1";

/// The slot `$1`: plug-in, database and whether it is ours, temporary, who reads it, what it
/// confirmed, what state its log is in. Whoever reads in bulk reads a copy of it, and is told by
/// the application's name, which the server cuts. Nothing newer than 14.
pub const SLOT: &str = "\
SELECT plugin::text, database::text, database = current_database(), temporary,
       coalesce(active_pid, (
         SELECT c.active_pid FROM pg_replication_slots c JOIN pg_stat_activity a
           ON a.pid = c.active_pid AND a.application_name = left($1 || ' (driftless)', 63)
         WHERE c.temporary AND starts_with(c.slot_name, 'driftless_bulk_') LIMIT 1)),
       confirmed_flush_lsn::text, wal_status
FROM pg_replication_slots WHERE slot_name = $1";

/// Makes the slot `$1`.
pub const CREATE_SLOT: &str =
    "SELECT lsn::text FROM pg_create_logical_replication_slot($1, 'pgoutput')";

/// Drops the slot `$1`.
pub const DROP_SLOT: &str = "SELECT pg_drop_replication_slot($1)";

/// Transactions that have written and not ended: process or name, and their age in seconds where
/// we may know it. Locks are shown to everybody, `backend_xid` is not.
pub const WRITERS: &str = "\
SELECT 'process ' || l.pid, extract(epoch FROM now() - a.xact_start)::bigint
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted
  AND l.pid <> pg_backend_pid()
UNION ALL
SELECT 'prepared transaction ' || quote_literal(gid),
       extract(epoch FROM now() - prepared)::bigint
FROM pg_prepared_xacts ORDER BY 2 DESC NULLS LAST LIMIT 10";

/// The end of the log as it is safe on disk.
pub const FLUSHED: &str = "SELECT pg_current_wal_flush_lsn()::text";

/// Writes the marker.
pub const MARK: &str = "SELECT pg_logical_emit_message(true, 'driftless', '')::text";

/// About how many rows the table `$1` has, with its partitions; never analysed counts as none.
pub const ESTIMATE: &str = "\
SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_class c
WHERE c.oid = $1 AND c.relkind = 'r'
   OR c.relkind = 'r' AND c.oid IN (SELECT relid FROM pg_partition_tree($1))";

/// Opens the log; transactions that are too large for the server's memory come `early` or not, and
/// values in binary or not.
pub fn start_replication(
    slot: &str,
    publication: &str,
    from: Lsn,
    early: bool,
    in_binary: bool,
) -> String {
    let (version, streaming) = if early { (2, ", streaming 'on'") } else { (1, "") };
    let binary = if in_binary { ", binary 'true'" } else { "" };
    format!(
        "START_REPLICATION SLOT {} LOGICAL {from} (proto_version '{version}', \
         publication_names {}, messages 'true'{streaming}{binary})",
        identifier(slot),
        literal(&identifier(publication))
    )
}

/// Which process serves us, and of which version it is.
pub const BACKEND: &str = "SELECT pg_backend_pid(), current_setting('server_version_num')";

/// Makes a copy of a slot that goes with our session. The copy can be read ahead of what is
/// durable; the slot itself cannot.
pub fn copy_slot(slot: &str, copy: &str) -> String {
    format!(
        "SELECT lsn FROM pg_copy_logical_replication_slot({}, {}, true)",
        literal(slot),
        literal(copy)
    )
}

/// Moves a slot of ours to a place in the log.
pub fn move_slot(slot: &str, to: Lsn) -> String {
    format!("SELECT pg_replication_slot_advance({}, '{to}')", literal(slot))
}

/// Whether a slot that nobody reads is not at a place yet: one row, or none.
pub fn slot_is_behind(slot: &str, place: Lsn) -> String {
    format!("SELECT true FROM pg_replication_slots WHERE {}", is_behind(slot, place))
}

/// As `move_slot`, if the slot's log then begins at least `gain` bytes later, which is known from a
/// copy that is ahead of it. Not while somebody reads it, or if it has got there already: an error
/// would end all temporary slots of the session.
pub fn move_slot_behind(slot: &str, copy: &str, to: Lsn, gain: u64) -> String {
    format!(
        "SELECT pg_replication_slot_advance(slot_name, '{to}') FROM pg_replication_slots s \
         WHERE {} AND (SELECT c.restart_lsn - s.restart_lsn FROM pg_replication_slots c \
                       WHERE c.slot_name = {}) >= {gain}",
        is_behind(slot, to),
        literal(copy)
    )
}

fn is_behind(slot: &str, place: Lsn) -> String {
    format!(
        "slot_name = {} AND active_pid IS NULL AND confirmed_flush_lsn < '{place}'",
        literal(slot)
    )
}

/// Drops a slot if it is there.
pub fn drop_slot_if_there(slot: &str) -> String {
    format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {}",
        literal(slot)
    )
}

/// Up to where a slot was read, from where its log is read again, and the end of the log.
pub fn slot_place(slot: &str) -> String {
    format!(
        "SELECT confirmed_flush_lsn, restart_lsn, pg_current_wal_flush_lsn() \
         FROM pg_replication_slots WHERE slot_name = {}",
        literal(slot)
    )
}

/// Reads a slot in bulk, with the options of `start_replication`, and moves it.
pub fn bulk_read(slot: &str, publication: &str, upto: Lsn, in_binary: bool) -> String {
    let binary = if in_binary { ", 'binary', 'true'" } else { "" };
    format!(
        "COPY (SELECT data FROM pg_logical_slot_get_binary_changes({}, '{upto}', NULL, \
         'proto_version', '1', 'publication_names', {}, 'messages', 'true'{binary})) \
         TO STDOUT (FORMAT binary)",
        literal(slot),
        literal(&identifier(publication))
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::schema::{Column, ColumnType, Engine};

    fn schema() -> Arc<TableSchema> {
        let column = |name: &str, id| Column {
            name: name.into(),
            column_type: ColumnType::Text,
            native: None,
            id,
        };
        Arc::new(TableSchema {
            name: TableName::new("s", "t"),
            id: 1,
            engine: Engine::Postgres,
            columns: vec![column("v", 1), column("a\"b", 2), column("c", 3)],
            key: vec![2, 1],
        })
    }

    fn key(operators: [(&str, &str); 2]) -> Vec<KeyColumn> {
        let column = |(expression, (greater, equal)): (&str, (&str, &str))| KeyColumn {
            expression: expression.into(),
            greater: greater.into(),
            equal: equal.into(),
            cast: String::new(),
        };
        ["\"c\"", "\"a\"\"b\""].into_iter().zip(operators).map(column).collect()
    }

    #[test]
    fn a_range_is_read_in_the_order_of_the_key() {
        let (table, key) = (&schema(), &key([(">", "="); 2]));
        let after = Key::from_values([b"it's".as_slice(), b"2"]);
        let rows = Rows { table, partitioned: false, key, in_binary: false };
        assert_eq!(
            rows.copy_range(Some(&after), Some("v > 0 -- x"), 3),
            "COPY (SELECT \"v\", \"a\"\"b\", \"c\" FROM ONLY \"s\".\"t\" WHERE \
             (\"c\", \"a\"\"b\") > ('it''s', '2') AND (v > 0 -- x\n) \
             ORDER BY \"c\", \"a\"\"b\" LIMIT 3) TO STDOUT"
        );
    }

    #[test]
    fn a_key_of_a_composite_type_says_which_one_it_is() {
        let (table, mut key) = (&schema(), key([(">", "="); 2]));
        key[0].cast = "::s.pair".into();
        let rows = Rows { table, partitioned: false, key: &key, in_binary: false };
        let sql = rows.copy_keys(&[Key::from_values([b"(1,one)".as_slice(), b"2"])]);
        assert!(sql.contains("WHERE (\"c\" = '(1,one)'::s.pair AND \"a\"\"b\" = '2')"), "{sql}");
    }

    #[test]
    fn a_key_with_an_order_of_its_own_is_compared_by_its_own_operators() {
        let (table, key) = (&schema(), &key([("OPERATOR(x.>)", "OPERATOR(x.=)"), (">", "=")]));
        let rows = Rows { table, partitioned: true, key, in_binary: true };
        let after = Key::from_values([b"1".as_slice(), b"2"]);
        let sql = rows.copy_range(Some(&after), None, 1);
        assert!(sql.ends_with(") TO STDOUT (FORMAT binary)"), "{sql}");
        let condition = "FROM \"s\".\"t\" WHERE ((\"c\" OPERATOR(x.>) '1') OR \
                         (\"c\" OPERATOR(x.=) '1' AND \"a\"\"b\" > '2')) ORDER";
        assert!(sql.contains(condition), "{sql}");
        let sql = rows.copy_keys(&[after.clone(), after]);
        let one = "(\"c\" OPERATOR(x.=) '1' AND \"a\"\"b\" = '2')";
        assert!(sql.contains(&format!("WHERE {one} OR {one})")), "{sql}");
    }
}
