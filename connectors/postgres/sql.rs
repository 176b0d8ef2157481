//! The SQL that the target runs, as text. Pure: names and numbers in, statements out; rows travel
//! by COPY and are never part of it.
//!
//! A batch is staged in a temporary table per prepared table (`c0`, `c1` and so on for the row's
//! columns, then `key`, `version`, `updated_at`, `kind`) and applied by statements that read it.
//! `kind` is `DELETE`, `COMPLETE`, `EARLY`, or from `FIRST_PARTIAL` on a set of absent columns.
//!
//! Surprise: statements carry their few constants as literals, so that all that a batch does to
//! all tables is one message to the server.

use super::quote;
use super::types;
use crate::hex;
use crate::schema::{TableName, TableSchema};
use crate::version::Version;

/// One row a pipeline: how far it has come, who writes, which tables.
pub const CHECKPOINT: &str = "public._cdc_checkpoint";
/// One row a deleted key, and one with an empty key a truncated table.
pub const TOMBSTONE: &str = "public._cdc_tombstone";
/// The column with the version of a row.
pub const VERSION: &str = "_cdc_version";
/// The column with the commit time of a row.
pub const UPDATED_AT: &str = "_cdc_updated_at";
/// The column that marks deleted rows.
pub const DELETED: &str = "_cdc_deleted";

/// The `kind` of a staged delete.
pub const DELETE: u32 = 0;
/// The `kind` of a staged row that has all its cells.
pub const COMPLETE: u32 = 1;
/// The `kind` of a staged row that is written before the others.
pub const EARLY: u32 = 2;
/// The `kind` of the first set of absent columns; others count up.
pub const FIRST_PARTIAL: u32 = 3;

/// Our own tables.
pub const CREATE_OWN_TABLES: &str = "\
CREATE TABLE IF NOT EXISTS public._cdc_checkpoint (pipeline text COLLATE \"C\" PRIMARY KEY, \
position text, version bytea, sequence bigint NOT NULL, fence bigint NOT NULL, \
instance text NOT NULL, tables text NOT NULL, updated_at timestamp with time zone NOT NULL); \
CREATE TABLE IF NOT EXISTS public._cdc_tombstone (pipeline text COLLATE \"C\", \
table_schema text COLLATE \"C\", table_name text COLLATE \"C\", key bytea, \
version bytea NOT NULL, PRIMARY KEY (pipeline, table_schema, table_name, key)); \
CREATE INDEX IF NOT EXISTS _cdc_tombstone_version ON public._cdc_tombstone (pipeline, version)";

/// Makes a COPY read its rows in binary.
pub const IN_BINARY: &str = " (FORMAT binary)";

/// A version as an expression.
#[must_use]
pub fn version(version: Version) -> String {
    let mut digits = Vec::new();
    hex::push(&version.to_bytes(), &mut digits);
    format!("decode('{}', 'hex')", String::from_utf8_lossy(&digits))
}

/// The rows of `_cdc_tombstone` that belong to a pipeline and are older than the floor.
#[must_use]
pub fn collect_tombstones(pipeline: &str, floor: Version) -> String {
    format!(
        "DELETE FROM {TOMBSTONE} WHERE pipeline = {} AND version < {}",
        quote::literal(pipeline),
        version(floor)
    )
}

/// Whether a pipeline has tombstones.
#[must_use]
pub fn has_tombstones(pipeline: &str) -> String {
    format!("EXISTS (SELECT FROM {TOMBSTONE} WHERE pipeline = {})", quote::literal(pipeline))
}

/// What is written to one table, staged in `stage`.
#[derive(Clone, Copy, Debug)]
pub struct TableSql<'a> {
    /// Whose tombstones.
    pub pipeline: &'a str,
    /// Whether deleted rows stay, marked.
    pub soft_deletes: bool,
    /// The shape of the rows.
    pub table: &'a TableSchema,
    /// The staging table, as it is written in SQL.
    pub stage: &'a str,
}

impl TableSql<'_> {
    /// The table itself.
    #[must_use]
    pub fn create_table(&self) -> String {
        let mut columns: Vec<String> = (0..self.table.columns.len())
            .map(|index| {
                let null = if self.table.is_key(index) { " NOT NULL" } else { "" };
                format!("{} {}{null}", self.column(index), self.column_type(index))
            })
            .collect();
        columns.push(format!("{VERSION} bytea NOT NULL"));
        columns.push(format!("{UPDATED_AT} timestamp with time zone NOT NULL"));
        if self.soft_deletes {
            columns.push(format!("{DELETED} boolean NOT NULL DEFAULT false"));
        }
        let key = self.key(|index| self.column(index)).join(", ");
        format!("CREATE TABLE {} ({}, PRIMARY KEY ({key}))", self.name(), columns.join(", "))
    }

    /// Columns that the source has and the table has not.
    #[must_use]
    pub fn add_columns(&self, columns: &[usize]) -> String {
        let added: Vec<String> = columns
            .iter()
            .map(|&index| format!("ADD COLUMN {} {}", self.column(index), self.column_type(index)))
            .collect();
        format!("ALTER TABLE {} {}", self.name(), added.join(", "))
    }

    /// The staging table. Without constraints: what is wrong with a row is for the table to say.
    #[must_use]
    pub fn create_stage(&self) -> String {
        let columns: String = (0..self.table.columns.len())
            .map(|index| format!("c{index} {}, ", self.column_type(index)))
            .collect();
        format!(
            "CREATE TEMPORARY TABLE {} ({columns}key bytea, version bytea, \
             updated_at timestamp with time zone, kind integer) ON COMMIT DELETE ROWS",
            self.stage
        )
    }

    /// Fills the staging table.
    #[must_use]
    pub fn copy(&self) -> String {
        format!("COPY {} FROM STDIN", self.stage)
    }

    /// Has the columns that `copy` fills.
    #[must_use]
    pub fn staged_columns(&self) -> String {
        format!("SELECT * FROM {} LIMIT 0", self.stage)
    }

    /// Copies rows into the table itself. A row that is there already is an error.
    #[must_use]
    pub fn copy_new(&self) -> String {
        format!("COPY {} ({}) FROM STDIN", self.name(), self.written_columns())
    }

    /// Has the columns that `copy_new` fills.
    #[must_use]
    pub fn new_columns(&self) -> String {
        format!("SELECT {} FROM {} LIMIT 0", self.written_columns(), self.name())
    }

    /// Removes what is older than a truncation. A marked row is a tombstone too, so it also gets
    /// the truncation's version.
    #[must_use]
    pub fn truncate(&self, truncation: Version, updated_at: &str) -> String {
        let (name, truncation) = (self.name(), version(truncation));
        if self.soft_deletes {
            return format!(
                "UPDATE {name} SET {DELETED} = true, {VERSION} = {truncation}, \
                 {UPDATED_AT} = '{updated_at}' WHERE {VERSION} < {truncation}"
            );
        }
        format!("DELETE FROM {name} WHERE {VERSION} < {truncation}")
    }

    /// Remembers a truncation.
    #[must_use]
    pub fn whole_table_tombstone(&self, truncation: Version) -> String {
        let values = format!("VALUES ({}, ''::bytea, {})", self.owner(), version(truncation));
        insert_tombstones(&values)
    }

    /// Removes, or marks, the rows of the staged deletes.
    #[must_use]
    pub fn delete(&self) -> String {
        let older = format!("s.kind = {DELETE} AND {} AND t.{VERSION} < s.version", self.matches());
        let (name, stage) = (self.name(), self.stage);
        if self.soft_deletes {
            return format!(
                "UPDATE {name} AS t SET {DELETED} = true, {VERSION} = s.version, \
                 {UPDATED_AT} = s.updated_at FROM {stage} AS s WHERE {older}"
            );
        }
        format!("DELETE FROM {name} AS t USING {stage} AS s WHERE {older}")
    }

    /// Remembers the staged deletes that something older may still follow.
    #[must_use]
    pub fn tombstones(&self, floor: Version) -> String {
        insert_tombstones(&format!(
            "SELECT {}, s.key, s.version FROM {} AS s WHERE s.kind = {DELETE} AND s.version >= {}",
            self.owner(),
            self.stage,
            version(floor)
        ))
    }

    /// Writes the staged rows of this kind, which have all their cells.
    #[must_use]
    pub fn upsert(&self, kind: u32, check_tombstones: bool) -> String {
        let all = 0..self.table.columns.len();
        let loose = types::has_loose_key(self.table);
        let key = self.key(|index| self.column(index)).join(", ");
        let columns = self.written_columns();
        let staged: String = all.clone().map(|index| format!("s.c{index}, ")).collect();
        // `1.0` and `1.00` are one key to the server, and it refuses to write a row twice.
        let (distinct, order) = match loose {
            false => (String::new(), String::new()),
            true => {
                let key = self.key(|index| format!("s.c{index}")).join(", ");
                (format!("DISTINCT ON ({key}) "), format!(" ORDER BY {key}, s.version DESC"))
            }
        };
        let mut sets: Vec<String> = all
            .filter(|&index| loose || !self.table.is_key(index))
            .map(|index| format!("{0} = excluded.{0}", self.column(index)))
            .collect();
        sets.push(format!("{VERSION} = excluded.{VERSION}"));
        sets.push(format!("{UPDATED_AT} = excluded.{UPDATED_AT}"));
        let (deleted, live) = if self.soft_deletes {
            sets.push(format!("{DELETED} = false"));
            (format!(", {DELETED}"), ", false")
        } else {
            (String::new(), "")
        };
        let outranked = if check_tombstones { self.not_outranked() } else { String::new() };
        format!(
            "INSERT INTO {} AS t ({columns}{deleted}) \
             SELECT {distinct}{staged}s.version, s.updated_at{live} FROM {} AS s \
             WHERE s.kind = {kind}{outranked}{order} ON CONFLICT ({key}) DO UPDATE SET {} \
             WHERE t.{VERSION} < excluded.{VERSION}",
            self.name(),
            self.stage,
            sets.join(", ")
        )
    }

    /// Writes the cells that the staged rows of this kind have into the rows that are there.
    #[must_use]
    pub fn update_present(&self, kind: u32, absent: &[usize]) -> String {
        let mut sets: Vec<String> = (0..self.table.columns.len())
            .filter(|index| !absent.contains(index) && !self.table.is_key(*index))
            .map(|index| format!("{} = s.c{index}", self.column(index)))
            .collect();
        sets.push(format!("{VERSION} = s.version"));
        sets.push(format!("{UPDATED_AT} = s.updated_at"));
        let live = if self.soft_deletes { format!(" AND NOT t.{DELETED}") } else { String::new() };
        format!(
            "UPDATE {} AS t SET {} FROM {} AS s \
             WHERE s.kind = {kind} AND {} AND t.{VERSION} < s.version{live}",
            self.name(),
            sets.join(", "),
            self.stage,
            self.matches()
        )
    }

    /// The keys of the staged rows with absent cells for which there is no row to keep them from,
    /// and nothing newer either. Asked after `update_present`. `number` tells tables apart.
    #[must_use]
    pub fn missing(&self, number: usize) -> String {
        let known = if self.soft_deletes {
            format!(" AND (NOT t.{DELETED} OR t.{VERSION} >= s.version)")
        } else {
            String::new()
        };
        format!(
            "SELECT 'missing', {number}, encode(s.key, 'hex') FROM {} AS s \
             WHERE s.kind >= {FIRST_PARTIAL} \
             AND NOT EXISTS (SELECT FROM {} AS t WHERE {}{known}){}",
            self.stage,
            self.name(),
            self.matches(),
            self.not_outranked()
        )
    }

    /// Whether a tombstone of the table could outrank a row of this version, as an expression.
    #[must_use]
    pub fn has_tombstones(&self, from: Version) -> String {
        format!(
            "EXISTS (SELECT FROM {TOMBSTONE} AS d WHERE {} AND d.version >= {})",
            self.of_table("d"),
            version(from)
        )
    }

    /// The rows of these keys, each with its key's place in the list. A key is the literals of
    /// its values.
    #[must_use]
    pub fn read_rows(&self, keys: &[Vec<String>]) -> String {
        let rows: Vec<String> = keys
            .iter()
            .enumerate()
            .map(|(number, values)| format!("({number}, {})", self.typed(values).join(", ")))
            .collect();
        let names: String = (0..self.table.key.len()).map(|index| format!(", k{index}")).collect();
        let matches: Vec<String> = self
            .table
            .key
            .iter()
            .enumerate()
            .map(|(place, &index)| format!("t.{} = k.k{place}", self.column(index)))
            .collect();
        let columns: String =
            (0..self.table.columns.len()).map(|i| format!(", t.{}", self.column(i))).collect();
        format!(
            "SELECT k.number, t.{VERSION}{columns} FROM (VALUES {}) AS k (number{names}) \
             JOIN {} AS t ON {}{}",
            rows.join(", "),
            self.name(),
            matches.join(" AND "),
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
        let key = self.key(|index| format!("t.{}", self.column(index))).join(", ");
        let mut sql = format!("SELECT {key} FROM {} AS t WHERE true{}", self.name(), self.live());
        if let Some(after) = after {
            sql += &format!(" AND ({key}) > ({})", self.typed(after).join(", "));
        }
        if let Some(below) = below {
            sql += &format!(" AND t.{VERSION} < {}", version(below));
        }
        if let Some(filter) = filter {
            // On lines of its own, so that a comment in it ends where it ends.
            sql += &format!(" AND (\n{filter}\n)");
        }
        sql + &format!(" ORDER BY {key} LIMIT {limit}")
    }

    /// The columns of a row and its rank.
    fn written_columns(&self) -> String {
        let columns: String =
            (0..self.table.columns.len()).map(|index| self.column(index) + ", ").collect();
        format!("{columns}{VERSION}, {UPDATED_AT}")
    }

    fn live(&self) -> String {
        if self.soft_deletes { format!(" AND NOT t.{DELETED}") } else { String::new() }
    }

    /// No tombstone of the staged row's key or table is newer than it.
    fn not_outranked(&self) -> String {
        let owner = self.of_table("d");
        format!(
            " AND NOT EXISTS (SELECT FROM {TOMBSTONE} AS d WHERE {owner} AND d.key = s.key \
             AND d.version >= s.version) AND s.version >= coalesce((SELECT d.version \
             FROM {TOMBSTONE} AS d WHERE {owner} AND d.key = ''::bytea), ''::bytea)"
        )
    }

    /// The tombstone `alias` is of this table.
    fn of_table(&self, alias: &str) -> String {
        let TableName { schema, name } = &self.table.name;
        let [pipeline, schema, name] = [self.pipeline, schema, name].map(quote::literal);
        format!(
            "{alias}.pipeline = {pipeline} AND {alias}.table_schema = {schema} \
             AND {alias}.table_name = {name}"
        )
    }

    fn owner(&self) -> String {
        let TableName { schema, name } = &self.table.name;
        [self.pipeline, schema, name].map(quote::literal).join(", ")
    }

    /// The table's row is the staged row's.
    fn matches(&self) -> String {
        self.key(|index| format!("t.{} = s.c{index}", self.column(index))).join(" AND ")
    }

    fn key(&self, write: impl Fn(usize) -> String) -> Vec<String> {
        self.table.key.iter().map(|&index| write(index)).collect()
    }

    fn typed(&self, values: &[String]) -> Vec<String> {
        let cast =
            |(&index, value): (&usize, &String)| format!("{value}::{}", self.column_type(index));
        self.table.key.iter().zip(values).map(cast).collect()
    }

    fn name(&self) -> String {
        quote::table(&self.table.name)
    }

    fn column(&self, index: usize) -> String {
        quote::identifier(&self.table.columns[index].name)
    }

    /// Keys are compared by their bytes, whatever the database's own collation is.
    fn column_type(&self, index: usize) -> String {
        let is_key = self.table.is_key(index);
        let name = types::target_type(self.table.engine, &self.table.columns[index], is_key);
        if is_key && types::is_collatable(&name) {
            return format!("{name} COLLATE \"C\"");
        }
        name.into_owned()
    }
}

fn insert_tombstones(rows: &str) -> String {
    format!(
        "INSERT INTO {TOMBSTONE} AS d (pipeline, table_schema, table_name, key, version) {rows} \
         ON CONFLICT (pipeline, table_schema, table_name, key) DO UPDATE \
         SET version = excluded.version WHERE d.version < excluded.version"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Column, ColumnType, Engine};

    fn table(key_type: ColumnType) -> TableSchema {
        let column = |name: &str, column_type, id| Column {
            name: name.into(),
            column_type,
            native: None,
            id,
        };
        TableSchema {
            name: TableName::new("shop", "it's"),
            id: 1,
            engine: Engine::Postgres,
            columns: vec![
                column("k", key_type, 1),
                column("a\"b", ColumnType::Text, 2),
                column("c", ColumnType::Int32, 3),
            ],
            key: vec![0],
        }
    }

    fn sql(table: &TableSchema, soft_deletes: bool) -> TableSql<'_> {
        TableSql { pipeline: "p", soft_deletes, table, stage: "pg_temp.stage" }
    }

    const V: Version = Version { epoch: 1, log: 0x1234, ordinal: 2 };
    const V_SQL: &str = "decode('00000001000000000000123400000002', 'hex')";

    #[test]
    fn a_table_has_the_key_and_our_columns() {
        assert_eq!(
            sql(&table(ColumnType::Text), true).create_table(),
            "CREATE TABLE \"shop\".\"it's\" (\"k\" text COLLATE \"C\" NOT NULL, \
             \"a\"\"b\" text, \"c\" integer, _cdc_version bytea NOT NULL, \
             _cdc_updated_at timestamp with time zone NOT NULL, \
             _cdc_deleted boolean NOT NULL DEFAULT false, PRIMARY KEY (\"k\"))"
        );
        assert_eq!(
            sql(&table(ColumnType::Int64), false).create_stage(),
            "CREATE TEMPORARY TABLE pg_temp.stage (c0 bigint, c1 text, c2 integer, key bytea, \
             version bytea, updated_at timestamp with time zone, kind integer) \
             ON COMMIT DELETE ROWS"
        );
        assert_eq!(
            sql(&table(ColumnType::Int64), false).add_columns(&[1, 2]),
            "ALTER TABLE \"shop\".\"it's\" ADD COLUMN \"a\"\"b\" text, ADD COLUMN \"c\" integer"
        );
    }

    #[test]
    fn a_newer_row_wins_over_an_older_one() {
        assert_eq!(
            sql(&table(ColumnType::Int64), false).upsert(COMPLETE, false),
            "INSERT INTO \"shop\".\"it's\" AS t (\"k\", \"a\"\"b\", \"c\", _cdc_version, \
             _cdc_updated_at) SELECT s.c0, s.c1, s.c2, s.version, s.updated_at \
             FROM pg_temp.stage AS s WHERE s.kind = 1 ON CONFLICT (\"k\") DO UPDATE SET \
             \"a\"\"b\" = excluded.\"a\"\"b\", \"c\" = excluded.\"c\", \
             _cdc_version = excluded._cdc_version, _cdc_updated_at = excluded._cdc_updated_at \
             WHERE t._cdc_version < excluded._cdc_version"
        );
    }

    #[test]
    fn a_tombstone_outranks_a_row() {
        let owner = "d.pipeline = 'p' AND d.table_schema = 'shop' AND d.table_name = 'it''s'";
        assert_eq!(
            sql(&table(ColumnType::Numeric), true).upsert(COMPLETE, true),
            format!(
                "INSERT INTO \"shop\".\"it's\" AS t (\"k\", \"a\"\"b\", \"c\", _cdc_version, \
                 _cdc_updated_at, _cdc_deleted) SELECT DISTINCT ON (s.c0) s.c0, s.c1, s.c2, \
                 s.version, s.updated_at, false FROM pg_temp.stage AS s WHERE s.kind = 1 \
                 AND NOT EXISTS (SELECT FROM public._cdc_tombstone AS d WHERE {owner} \
                 AND d.key = s.key AND d.version >= s.version) AND s.version >= coalesce(\
                 (SELECT d.version FROM public._cdc_tombstone AS d WHERE {owner} \
                 AND d.key = ''::bytea), ''::bytea) ORDER BY s.c0, s.version DESC \
                 ON CONFLICT (\"k\") DO UPDATE SET \"k\" = excluded.\"k\", \
                 \"a\"\"b\" = excluded.\"a\"\"b\", \"c\" = excluded.\"c\", \
                 _cdc_version = excluded._cdc_version, \
                 _cdc_updated_at = excluded._cdc_updated_at, _cdc_deleted = false \
                 WHERE t._cdc_version < excluded._cdc_version"
            )
        );
    }

    #[test]
    fn a_delete_removes_or_marks_what_is_older() {
        assert_eq!(
            sql(&table(ColumnType::Int64), false).delete(),
            "DELETE FROM \"shop\".\"it's\" AS t USING pg_temp.stage AS s \
             WHERE s.kind = 0 AND t.\"k\" = s.c0 AND t._cdc_version < s.version"
        );
        assert_eq!(
            sql(&table(ColumnType::Int64), true).delete(),
            "UPDATE \"shop\".\"it's\" AS t SET _cdc_deleted = true, _cdc_version = s.version, \
             _cdc_updated_at = s.updated_at FROM pg_temp.stage AS s \
             WHERE s.kind = 0 AND t.\"k\" = s.c0 AND t._cdc_version < s.version"
        );
        assert_eq!(
            sql(&table(ColumnType::Int64), false).truncate(V, "2026-01-01 00:00:00+00"),
            format!("DELETE FROM \"shop\".\"it's\" WHERE _cdc_version < {V_SQL}")
        );
    }

    #[test]
    fn a_tombstone_is_written_from_the_floor_on_and_collected_below_it() {
        let conflict = "ON CONFLICT (pipeline, table_schema, table_name, key) DO UPDATE \
                        SET version = excluded.version WHERE d.version < excluded.version";
        let into = "INSERT INTO public._cdc_tombstone AS d \
                    (pipeline, table_schema, table_name, key, version)";
        assert_eq!(
            sql(&table(ColumnType::Int64), false).tombstones(V),
            format!(
                "{into} SELECT 'p', 'shop', 'it''s', s.key, s.version FROM pg_temp.stage AS s \
                 WHERE s.kind = 0 AND s.version >= {V_SQL} {conflict}"
            )
        );
        assert_eq!(
            sql(&table(ColumnType::Int64), false).whole_table_tombstone(V),
            format!("{into} VALUES ('p', 'shop', 'it''s', ''::bytea, {V_SQL}) {conflict}")
        );
        assert_eq!(
            collect_tombstones("p", V),
            format!("DELETE FROM public._cdc_tombstone WHERE pipeline = 'p' AND version < {V_SQL}")
        );
    }

    #[test]
    fn absent_columns_are_not_written() {
        assert_eq!(
            sql(&table(ColumnType::Int64), true).update_present(2, &[1]),
            "UPDATE \"shop\".\"it's\" AS t SET \"c\" = s.c2, _cdc_version = s.version, \
             _cdc_updated_at = s.updated_at FROM pg_temp.stage AS s WHERE s.kind = 2 \
             AND t.\"k\" = s.c0 AND t._cdc_version < s.version AND NOT t._cdc_deleted"
        );
    }

    #[test]
    fn rows_and_keys_are_read_with_the_key_types() {
        assert_eq!(
            sql(&table(ColumnType::Int64), true).read_rows(&[vec!["'1'".into()]]),
            "SELECT k.number, t._cdc_version, t.\"k\", t.\"a\"\"b\", t.\"c\" \
             FROM (VALUES (0, '1'::bigint)) AS k (number, k0) \
             JOIN \"shop\".\"it's\" AS t ON t.\"k\" = k.k0 AND NOT t._cdc_deleted"
        );
        let after = ["'x'".to_owned()];
        assert_eq!(
            sql(&table(ColumnType::Text), false).read_keys(Some(&after), Some(V), Some("c > 1"), 9),
            format!(
                "SELECT t.\"k\" FROM \"shop\".\"it's\" AS t WHERE true \
                 AND (t.\"k\") > ('x'::text COLLATE \"C\") AND t._cdc_version < {V_SQL} \
                 AND (\nc > 1\n) ORDER BY t.\"k\" LIMIT 9"
            )
        );
    }
}
