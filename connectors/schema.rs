//! What a table looks like, as of one point in the log, and how one shape follows another.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A table's name in the source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "(String, String)", from = "(String, String)")]
pub struct TableName {
    /// PostgreSQL: schema. MySQL: database.
    pub schema: String,
    /// The table itself.
    pub name: String,
}

impl TableName {
    /// A name from its two parts.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> TableName {
        TableName { schema: schema.into(), name: name.into() }
    }
}

impl From<(String, String)> for TableName {
    fn from((schema, name): (String, String)) -> TableName {
        TableName { schema, name }
    }
}

impl From<TableName> for (String, String) {
    fn from(table: TableName) -> (String, String) {
        (table.schema, table.name)
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// The kinds of values, common to all databases. Each has one canonical text form, which is the
/// one of PostgreSQL's output functions with ISO dates, UTC and the shortest exact floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ColumnType {
    /// `t` or `f`.
    Bool,
    /// A signed integer of 16 bits.
    Int16,
    /// A signed integer of 32 bits.
    Int32,
    /// A signed integer of 64 bits.
    Int64,
    /// IEEE single: shortest exact decimal, `NaN`, `Infinity`, `-Infinity`.
    Float32,
    /// IEEE double, as `Float32`.
    Float64,
    /// An exact decimal of any size; also `NaN`, `Infinity`, `-Infinity`.
    Numeric,
    /// UTF-8 text without NUL.
    Text,
    /// Bytes, as `\x` and hexadecimal digits.
    Bytes,
    /// `2026-01-31`, with ` BC` or `infinity` where PostgreSQL has them.
    Date,
    /// `13:59:59.5`.
    Time,
    /// A signed length of time in hours, minutes and seconds: `-838:59:59.5`.
    Duration,
    /// `2026-01-31 13:59:59.5`, no zone.
    Timestamp,
    /// `2026-01-31 13:59:59.5+00`, an instant in UTC.
    TimestampTz,
    /// `a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11`.
    Uuid,
    /// JSON text.
    Json,
    /// Anything else, in the text form of the source: arrays, ranges, intervals, addresses.
    Other,
}

/// One replicated column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// What a value means.
    pub column_type: ColumnType,
    /// The type in the source's own SQL, `numeric(10,2)`, where every server of that engine knows
    /// it; `None` for types that users made.
    pub native: Option<String>,
    /// The source's own number of the column, which a dropped and re-added column does not keep.
    pub id: u32,
}

/// Which database spells `Column::native`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// PostgreSQL.
    Postgres,
    /// MySQL. `native` is what `COLUMN_TYPE` of its `information_schema` says.
    Mysql,
    /// MariaDB, as `Mysql`.
    Mariadb,
    /// The in-memory source of the engine's tests.
    Memory,
}

/// Name, columns and key of a table, as of one point in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    /// The name in the source.
    pub name: TableName,
    /// The source's own number of the table, which a dropped and re-created table does not keep.
    pub id: u32,
    /// The database that it comes from.
    pub engine: Engine,
    /// The replicated columns, in the source's order.
    pub columns: Vec<Column>,
    /// Places in `columns` of the key, never empty, in key order. Key columns are never NULL.
    pub key: Vec<usize>,
}

impl TableSchema {
    /// The columns of the key, in key order.
    pub fn key_columns(&self) -> impl Iterator<Item = &Column> {
        self.key.iter().map(|&index| &self.columns[index])
    }

    /// Whether the column at this place belongs to the key.
    #[must_use]
    pub fn is_key(&self, index: usize) -> bool {
        self.key.contains(&index)
    }

    /// How `new` follows `self`.
    #[must_use]
    pub fn evolution(&self, new: &TableSchema) -> Evolution {
        if self == new {
            return Evolution::Same;
        }
        if self.id != new.id {
            return Evolution::Changed("the table was dropped and created again".into());
        }
        if self.key_ids() != new.key_ids() {
            return Evolution::Changed("its key changed".into());
        }
        for old in &self.columns {
            if let Some(same) = new.columns.iter().find(|column| column.name == old.name)
                && same != old
            {
                return Evolution::Changed(format!("column {} changed its type", old.name));
            }
        }
        let has = |schema: &TableSchema, column: &Column| schema.columns.contains(column);
        let gone = self.columns.iter().find(|column| !has(new, column));
        let added: Vec<String> = new
            .columns
            .iter()
            .filter(|column| !has(self, column))
            .map(|column| column.name.clone())
            .collect();
        match (gone, added.is_empty()) {
            (None, true) => Evolution::Reordered,
            (None, false) => Evolution::Added(added),
            (Some(_), true) => Evolution::Fewer,
            (Some(gone), false) => {
                Evolution::Changed(format!("column {} was dropped or renamed", gone.name))
            }
        }
    }

    fn key_ids(&self) -> Vec<u32> {
        self.key_columns().map(|column| column.id).collect()
    }
}

/// How one shape of a table follows another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evolution {
    /// Nothing changed.
    Same,
    /// The same columns in another order.
    Reordered,
    /// Columns of these names were added, nothing else.
    Added(Vec<String>),
    /// Columns are missing, nothing else: rows from before they were added. A source that knows
    /// that a column was dropped sends `Change::Halt` instead of such a row.
    Fewer,
    /// Anything else, in words.
    Changed(String),
}

/// Which tables are replicated: `public.*`, `!public.audit_*`. `*` stands for any characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePatterns {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    exclude: bool,
    schema: String,
    name: String,
}

impl TablePatterns {
    /// Reads the patterns; a name without a schema is one of `plain_schema`.
    ///
    /// # Errors
    /// Says which pattern is empty, or that none includes anything.
    pub fn parse<S: AsRef<str>>(
        patterns: &[S],
        plain_schema: &str,
    ) -> std::result::Result<TablePatterns, String> {
        let read = |pattern: &S| Pattern::parse(pattern.as_ref(), plain_schema);
        let patterns = patterns.iter().map(read).collect::<Result<Vec<Pattern>, _>>()?;
        if patterns.iter().all(|pattern| pattern.exclude) {
            return Err(format!(
                "no table pattern includes a table; add for instance \"{plain_schema}.*\""
            ));
        }
        Ok(TablePatterns { patterns })
    }

    /// Whether the table is included and no pattern excludes it.
    #[must_use]
    pub fn matches(&self, table: &TableName) -> bool {
        let hits = |pattern: &&Pattern| {
            glob(&pattern.schema, &table.schema) && glob(&pattern.name, &table.name)
        };
        let mut hit = self.patterns.iter().filter(hits).peekable();
        hit.peek().is_some() && hit.all(|pattern| !pattern.exclude)
    }

    /// The including patterns that match none of `tables`, as they were written.
    #[must_use]
    pub fn unmatched(&self, tables: &[TableName]) -> Vec<String> {
        let hit = |pattern: &Pattern| {
            tables.iter().any(|t| glob(&pattern.schema, &t.schema) && glob(&pattern.name, &t.name))
        };
        self.patterns
            .iter()
            .filter(|pattern| !pattern.exclude && !hit(pattern))
            .map(|pattern| format!("{}.{}", pattern.schema, pattern.name))
            .collect()
    }
}

impl Pattern {
    fn parse(text: &str, plain_schema: &str) -> Result<Pattern, String> {
        let (exclude, name) = match text.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (schema, name) = name.split_once('.').unwrap_or((plain_schema, name));
        if schema.is_empty() || name.is_empty() {
            return Err(format!(
                "table pattern {text:?} is empty; write for instance \"{plain_schema}.*\""
            ));
        }
        Ok(Pattern { exclude, schema: schema.into(), name: name.into() })
    }
}

/// Whether `text` matches `pattern`, in which `*` stands for any characters.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len())
                .filter(|&at| rest.is_char_boundary(at))
                .any(|at| glob(tail, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(columns: &[(&str, u32)]) -> TableSchema {
        let column = |&(name, id): &(&str, u32)| Column {
            name: name.into(),
            column_type: ColumnType::Int64,
            native: None,
            id,
        };
        TableSchema {
            name: TableName::new("public", "t"),
            id: 1,
            engine: Engine::Memory,
            columns: columns.iter().map(column).collect(),
            key: vec![0],
        }
    }

    fn check_evolution(old: &[(&str, u32)], new: &[(&str, u32)], expected: Evolution) {
        assert_eq!(schema(old).evolution(&schema(new)), expected);
    }

    #[test]
    fn only_added_columns_are_followed() {
        check_evolution(&[("k", 1)], &[("k", 1)], Evolution::Same);
        let added = Evolution::Added(vec!["a".into()]);
        check_evolution(&[("k", 1)], &[("k", 1), ("a", 2)], added);
        check_evolution(&[("k", 1), ("a", 2)], &[("k", 1)], Evolution::Fewer);
        let renamed = Evolution::Changed("column a was dropped or renamed".into());
        check_evolution(&[("k", 1), ("a", 2)], &[("k", 1), ("b", 2)], renamed);
    }

    #[test]
    fn a_column_dropped_and_added_again_is_a_change() {
        let changed = Evolution::Changed("column a changed its type".into());
        check_evolution(&[("k", 1), ("a", 2)], &[("k", 1), ("a", 3)], changed);
    }

    #[test]
    fn patterns_include_and_exclude() {
        let patterns =
            TablePatterns::parse(&["public.*", "!public.audit_*", "log"], "public").unwrap();
        let matches = |schema, name| patterns.matches(&TableName::new(schema, name));
        assert!(matches("public", "orders"));
        assert!(!matches("public", "audit_orders"));
        assert!(!matches("shop", "orders"));
        assert_eq!(patterns.unmatched(&[TableName::new("public", "a")]), ["public.log"]);
        assert!(TablePatterns::parse(&["!public.*"], "public").is_err());
    }
}
