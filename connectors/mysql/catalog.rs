//! What the server says of its tables: columns, types, keys, and what stands in the way of
//! replicating them. Used by `source.rs`, `stream.rs`, `check.rs` and `chunk.rs`.
//!
//! Surprise: generated columns are left out of a table's shape, but they have their place in row
//! events; `CatalogTable::layout` says which.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mysql_async::Row;

use super::connect::Session;
use super::layout::{Layout, LayoutColumn};
use super::types::MysqlType;
use super::{quote, source_sql as sql};
use crate::error::{Code, Error, Result};
use crate::schema::{Column, ColumnType, Engine, TableName, TablePatterns, TableSchema};

/// A table as the server has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogTable {
    /// Its name.
    pub name: TableName,
    /// Which server it is on.
    pub engine: Engine,
    /// What keeps its rows: `InnoDB`.
    pub storage: String,
    /// Whether it keeps the history of its rows.
    pub versioned: bool,
    /// All its columns in the server's order.
    pub columns: Vec<CatalogColumn>,
    /// Names of the columns of the key that serves; empty without one.
    pub key: Vec<String>,
    /// Foreign keys of its own that change or delete its rows when those of another table change.
    pub cascades: Vec<String>,
}

/// A column as the server has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogColumn {
    /// Its name.
    pub name: String,
    /// Its type, with the character set; see `Column::native`.
    pub native: String,
    /// Whether its values are computed from others.
    pub generated: bool,
    /// Whether the server checks that its text is JSON.
    pub json: bool,
}

/// The tables that the patterns mean.
///
/// # Errors
/// `missing-table` if an including pattern matches nothing; else what the server says.
pub async fn matching(
    session: &mut Session,
    patterns: &TablePatterns,
) -> Result<Vec<CatalogTable>> {
    let rows = session.query("list the tables", sql::TABLES).await?;
    let names = rows.iter().map(|row| name(row, 0)).collect::<Result<Vec<TableName>>>()?;
    if let [first, ..] = patterns.unmatched(&names).as_slice() {
        return Err(Error::stop(
            Code::MissingTable,
            format!(
                "no table of the source that we may see matches {first:?}; correct `tables` or \
                 run `GRANT SELECT ON …` for our account (views are not replicated)"
            ),
        ));
    }
    let names: Vec<TableName> = names.into_iter().filter(|name| patterns.matches(name)).collect();
    let mut tables = by_names(session, &names).await?;
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tables)
}

/// The tables of these names, those that exist.
///
/// # Errors
/// What the server says.
pub async fn by_names(session: &mut Session, names: &[TableName]) -> Result<Vec<CatalogTable>> {
    let schemas: BTreeSet<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let mut tables = BTreeMap::new();
    for schema in schemas {
        let mut of_schema = names.iter().filter(|name| name.schema == schema);
        // The server opens every table that it is asked about; one is often all we want.
        let only = of_schema.next().filter(|_| of_schema.next().is_none());
        let only = only.map(|name| name.name.as_str());
        read_schema(session, schema, only, &mut tables).await?;
    }
    Ok(names.iter().filter_map(|name| tables.remove(name)).collect())
}

async fn read_schema(
    session: &mut Session,
    schema: &str,
    only: Option<&str>,
    tables: &mut BTreeMap<TableName, CatalogTable>,
) -> Result<()> {
    let doing = "read the catalog";
    let engine = session.server().engine;
    for row in session.query(doing, &sql::table_details(schema, only)).await? {
        let table = CatalogTable {
            name: name(&row, 0)?,
            engine,
            versioned: text(&row, 2)? == "SYSTEM VERSIONED",
            storage: optional(&row, 3)?.unwrap_or_default(),
            columns: Vec::new(),
            key: Vec::new(),
            cascades: Vec::new(),
        };
        tables.insert(table.name.clone(), table);
    }
    for row in session.query(doing, &sql::columns(schema, only)).await? {
        if let Some(table) = tables.get_mut(&name(&row, 0)?) {
            table.columns.push(column(&row)?);
        }
    }
    if engine == Engine::Mariadb {
        for row in session.query(doing, &sql::json_checks(schema, only)).await? {
            let (name, clause) = (name(&row, 0)?, text(&row, 2)?);
            let columns = tables.get_mut(&name).map(|table| table.columns.iter_mut());
            for column in columns.into_iter().flatten() {
                column.json |= clause == format!("json_valid({})", quote::identifier(&column.name));
            }
        }
    }
    let keys = session.query(doing, &sql::keys(schema, only)).await?;
    choose_keys(&keys, tables)?;
    for row in session.query(doing, &sql::cascades(schema, only)).await? {
        if let Some(table) = tables.get_mut(&name(&row, 0)?) {
            table.cascades.push(text(&row, 2)?);
        }
    }
    Ok(())
}

fn column(row: &Row) -> Result<CatalogColumn> {
    let (declared, charset, extra) = (text(row, 3)?, optional(row, 4)?, text(row, 5)?);
    let extra = extra.to_ascii_uppercase();
    // MySQL says DEFAULT_GENERATED of a column whose default is an expression.
    let generated = ["VIRTUAL GENERATED", "STORED GENERATED", "PERSISTENT"];
    Ok(CatalogColumn {
        name: text(row, 2)?,
        native: match charset {
            Some(charset) => format!("{declared} character set {charset}"),
            None => declared,
        },
        generated: generated.iter().any(|words| extra.contains(words)),
        json: false,
    })
}

/// The primary key, or else the first unique one whose columns the log has and that are never
/// NULL. The rows come index by index, column by column.
fn choose_keys(rows: &[Row], tables: &mut BTreeMap<TableName, CatalogTable>) -> Result<()> {
    // By table, the primary key before the others, then by name.
    let mut indexes: BTreeMap<(TableName, bool, String), Vec<Option<String>>> = BTreeMap::new();
    for row in rows {
        let (name, index) = (name(row, 0)?, text(row, 2)?);
        let never_null = optional(row, 4)?.is_none_or(|nullable| nullable != "YES");
        let column = optional(row, 3)?.filter(|column| {
            let is = |known: &CatalogColumn| known.name == *column && !known.generated;
            never_null && tables.get(&name).is_some_and(|table| table.columns.iter().any(is))
        });
        indexes.entry((name, index != "PRIMARY", index)).or_default().push(column);
    }
    for ((name, _, _), columns) in indexes {
        let key: Option<Vec<String>> = columns.into_iter().collect();
        if let Some(table) = tables.get_mut(&name).filter(|table| table.key.is_empty()) {
            table.key = key.unwrap_or_default();
        }
    }
    Ok(())
}

impl CatalogTable {
    /// The table as the engine knows it.
    ///
    /// # Errors
    /// `no-key`, `source-settings` (not kept by InnoDB, versioned, a type that is not
    /// replicated), with the SQL that mends it.
    pub fn schema(&self) -> Result<TableSchema> {
        let exclude = format!("exclude it with \"!{}\"", self.name);
        let stop = |code, what: &str| {
            let remedy = self.remedy();
            Err(Error::stop(
                code,
                format!("table {} {what}; run `{remedy}` or {exclude}", self.name),
            ))
        };
        if self.versioned {
            return stop(
                Code::SourceSettings,
                "is system-versioned, so its log mixes rows with history",
            );
        }
        if !self.is_transactional() {
            let what = format!("is kept by {}, whose rows no snapshot holds still", self.storage);
            return stop(Code::SourceSettings, &what);
        }
        if self.key.is_empty() {
            return stop(Code::NoKey, "has no primary key, nor a unique one that is never NULL");
        }
        let mut columns = Vec::new();
        for column in self.columns.iter().filter(|column| !column.generated) {
            let kind = MysqlType::parse(&column.native).map_err(|why| {
                let what = format!("table {}: column {} {why}", self.name, column.name);
                Error::stop(Code::SourceSettings, format!("{what}; change its type or {exclude}"))
            })?;
            columns.push(Column {
                name: column.name.clone(),
                column_type: match (column.json, kind.column_type()) {
                    (true, ColumnType::Text) => ColumnType::Json,
                    (_, other) => other,
                },
                native: Some(column.native.clone()),
                id: column_id(&column.name),
            });
        }
        let place = |name: &String| columns.iter().position(|column| column.name == *name);
        let key = self.key.iter().map(place).collect::<Option<Vec<usize>>>();
        // A key has only columns that are replicated; `choose_keys` saw to it.
        let Some(key) = key else { return stop(Code::NoKey, "has a key that is not replicated") };
        if let Some(&at) = key.iter().find(|&&at| has_empty_label(&columns[at])) {
            let what = format!(
                "table {}: the label '' of key column {} reads like a SET without labels, so two \
                 keys would be one",
                self.name, columns[at].name
            );
            return Err(Error::stop(
                Code::SourceSettings,
                format!("{what}; rename the label or {exclude}"),
            ));
        }
        Ok(TableSchema { name: self.name.clone(), id: 0, engine: self.engine, columns, key })
    }

    /// Where its columns stand in row events.
    ///
    /// # Errors
    /// As `schema`.
    pub fn layout(&self) -> Result<Layout> {
        let schema = self.schema()?;
        let place = |name: &str| schema.columns.iter().position(|column| column.name == name);
        let column = |column: &CatalogColumn| LayoutColumn {
            name: column.name.clone(),
            place: place(&column.name),
        };
        let columns = self.columns.iter().map(column).collect();
        Ok(Layout { columns, schema: Arc::new(schema) })
    }

    /// The statement that makes `schema` succeed, as far as one statement can.
    #[must_use]
    pub fn remedy(&self) -> String {
        let name = quote::table(&self.name);
        match (self.versioned, self.is_transactional()) {
            (true, _) => format!("ALTER TABLE {name} DROP SYSTEM VERSIONING"),
            (false, false) => format!("ALTER TABLE {name} ENGINE = InnoDB"),
            (false, true) => format!("ALTER TABLE {name} ADD PRIMARY KEY (…)"),
        }
    }

    /// Refuses foreign keys that change rows without telling the log.
    ///
    /// # Errors
    /// `cascade`.
    pub fn without_cascades(&self) -> Result<()> {
        let Some(key) = self.cascades.first() else { return Ok(()) };
        let name = quote::table(&self.name);
        let constraint = quote::identifier(key);
        Err(Error::stop(
            Code::Cascade,
            format!(
                "foreign key {key} of table {} changes its rows when those of another table \
                 change, and the server does not tell the log; run `ALTER TABLE {name} DROP \
                 FOREIGN KEY {constraint}` and add it without ON DELETE and ON UPDATE actions, or \
                 set accept_cascades = true under [source] if such changes do not happen, or \
                 exclude the table with \"!{}\"",
                self.name, self.name
            ),
        ))
    }

    /// Whether a snapshot holds its rows still, and a statement that fails leaves nothing behind.
    /// Others are refused: a chunk of them could claim no version, and half of a failed statement
    /// would stay in the table.
    fn is_transactional(&self) -> bool {
        self.storage.eq_ignore_ascii_case("innodb")
    }
}

/// MySQL numbers no columns, so the name stands for one: FNV-1a of its bytes.
#[must_use]
pub fn column_id(name: &str) -> u32 {
    let mix = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    name.bytes().fold(0x811c_9dc5, mix)
}

/// Schema and table in two columns of a row.
fn name(row: &Row, at: usize) -> Result<TableName> {
    Ok(TableName::new(text(row, at)?, text(row, at + 1)?))
}

/// A text that is not NULL.
///
/// # Errors
/// `protocol`.
pub fn text(row: &Row, at: usize) -> Result<String> {
    optional(row, at)?.ok_or_else(not_understood)
}

/// A text, or NULL.
///
/// # Errors
/// `protocol`.
pub fn optional(row: &Row, at: usize) -> Result<Option<String>> {
    match row.get_opt::<Option<String>, usize>(at) {
        Some(Ok(text)) => Ok(text),
        _ => Err(not_understood()),
    }
}

/// A whole number.
///
/// # Errors
/// `protocol`.
pub fn number(row: &Row, at: usize) -> Result<u64> {
    text(row, at)?.parse().map_err(|_| not_understood())
}

/// Whether '' is a label of this SET. No label at all, which is common, prints as '' too.
fn has_empty_label(column: &Column) -> bool {
    let native = column.native.as_deref().unwrap_or_default();
    match MysqlType::parse(native) {
        Ok(MysqlType::Set(labels, _)) => labels.has_empty(),
        _ => false,
    }
}

fn not_understood() -> Error {
    Error::stop(Code::Protocol, "the server's answer about itself is not understood")
}
