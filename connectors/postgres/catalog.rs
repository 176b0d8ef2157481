//! What the source's catalog says of its tables: columns, types, keys; and what a RELATION
//! message of the log means in its light. Used by `source.rs`, `stream.rs` and `chunk.rs`.
//!
//! Surprise: generated columns are left out everywhere, because the log does not carry them.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_postgres::Client;

use super::answers::{Row, Rows, of_driver, parsed, text, yes};
use super::frames::broken_protocol;
use super::pgoutput;
use super::source_sql as sql;
use super::transaction::{Relation, Shape};
use super::values::Keep;
use super::{connect, quote};
use crate::error::{Code, Error, Result};
use crate::schema::{Column, ColumnType, Engine, TableName, TablePatterns, TableSchema};

/// A table as the catalog has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogTable {
    /// Its OID.
    pub id: u32,
    /// Its name.
    pub name: TableName,
    /// Whether it has partitions.
    pub partitioned: bool,
    /// Whether its rows survive a crash and reach the log.
    pub permanent: bool,
    /// Whether row security applies to us.
    pub row_security: bool,
    /// `d`, `f`, `i` or `n`.
    pub replica_identity: String,
    /// Its columns, without generated ones.
    pub columns: Vec<CatalogColumn>,
    /// Names of its generated columns.
    pub generated: Vec<String>,
    /// Numbers of the columns of the key that the replica identity gives; empty without one.
    pub key: Vec<u32>,
}

/// A column as the catalog has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogColumn {
    /// What the engine knows of it.
    pub column: Column,
    /// OID of its declared type.
    pub type_id: u32,
    /// OID of its type without domains.
    pub base_type_id: u32,
}

/// The tables that the patterns mean.
///
/// # Errors
/// `missing-table` if an including pattern matches nothing; else what the server says.
pub async fn matching(client: &Client, patterns: &TablePatterns) -> Result<Vec<CatalogTable>> {
    let rows = client.query(sql::TABLES, &[]).await;
    let rows = rows.map_err(|error| connect::error("list the tables", &error))?;
    let mut names = Vec::new();
    let mut ids: Vec<u32> = Vec::new();
    for row in &rows {
        let name = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        if patterns.matches(&name) {
            ids.push(row.get(0));
        }
        names.push(name);
    }
    if let [first, ..] = patterns.unmatched(&names).as_slice() {
        return Err(Error::stop(
            Code::MissingTable,
            format!(
                "no table of the source matches {first:?}; correct `tables` (views, foreign \
                 tables and single partitions are not replicated)"
            ),
        ));
    }
    let mut tables = by_ids(client, &ids).await?;
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tables)
}

/// The tables with these OIDs, those that exist.
///
/// # Errors
/// What the server says.
pub async fn by_ids(client: &Client, ids: &[u32]) -> Result<Vec<CatalogTable>> {
    let [details, columns, keys] = questions(ids);
    // Sent together, so that a distant server costs one wait and not three.
    let asked = tokio::try_join!(
        client.simple_query(&details),
        client.simple_query(&columns),
        client.simple_query(&keys)
    );
    let (details, columns, keys) =
        asked.map_err(|error| connect::error("read the catalog", &error))?;
    tables(ids, &[of_driver(&details), of_driver(&columns), of_driver(&keys)])
}

/// What to ask about the tables with these OIDs.
#[must_use]
pub fn questions(ids: &[u32]) -> [String; 3] {
    [sql::TABLE_DETAILS, sql::COLUMNS, sql::KEYS].map(|question| sql::of_ids(question, ids))
}

/// The tables with these OIDs, from the answers to `questions`.
///
/// # Errors
/// `protocol` if they are none.
pub fn tables(ids: &[u32], answers: &[Rows; 3]) -> Result<Vec<CatalogTable>> {
    let [details, columns, keys] = answers;
    let tables: Result<HashMap<u32, CatalogTable>> =
        details.iter().map(|row| Ok((parsed(row, 0)?, table(row)?))).collect();
    let mut tables = tables?;
    for row in columns {
        let Some(table) = tables.get_mut(&parsed(row, 0)?) else { continue };
        match yes(row, 7)? {
            true => table.generated.push(text(row, 2)?.to_owned()),
            false => table.columns.push(column(row)?),
        }
    }
    for row in keys {
        let Some(table) = tables.get_mut(&parsed(row, 0)?) else { continue };
        let wanted = match table.replica_identity.as_str() {
            "d" | "f" => yes(row, 3)?,
            "i" => yes(row, 4)?,
            _ => false,
        };
        if wanted {
            let numbers: std::result::Result<Vec<u32>, _> =
                text(row, 1)?.split(' ').map(str::parse).collect();
            let numbers = numbers.map_err(broken_protocol)?;
            // Columns that are only included are not part of the key.
            table.key = numbers.into_iter().take(parsed(row, 2)?).collect();
        }
    }
    Ok(ids.iter().filter_map(|id| tables.remove(id)).collect())
}

fn table(row: &Row) -> Result<CatalogTable> {
    Ok(CatalogTable {
        id: parsed(row, 0)?,
        name: TableName::new(text(row, 1)?, text(row, 2)?),
        partitioned: yes(row, 3)?,
        permanent: text(row, 4)? == "p",
        replica_identity: text(row, 5)?.to_owned(),
        row_security: yes(row, 6)?,
        columns: Vec::new(),
        generated: Vec::new(),
        key: Vec::new(),
    })
}

fn column(row: &Row) -> Result<CatalogColumn> {
    let base_type_id = parsed(row, 4)?;
    // Its values are labels.
    let column_type = if yes(row, 8)? { ColumnType::Text } else { column_type(base_type_id) };
    let native = text(row, 5)?.to_owned();
    Ok(CatalogColumn {
        column: Column {
            name: text(row, 2)?.to_owned(),
            column_type,
            native: yes(row, 6)?.then_some(native),
            id: parsed(row, 1)?,
        },
        type_id: parsed(row, 3)?,
        base_type_id,
    })
}

/// What values of a type mean; OIDs of built-in types never change.
#[must_use]
pub fn column_type(id: u32) -> ColumnType {
    match id {
        16 => ColumnType::Bool,
        17 => ColumnType::Bytes,
        20 => ColumnType::Int64,
        21 => ColumnType::Int16,
        23 => ColumnType::Int32,
        // text, bpchar, varchar, name
        25 | 1042 | 1043 | 19 => ColumnType::Text,
        114 | 3802 => ColumnType::Json,
        700 => ColumnType::Float32,
        701 => ColumnType::Float64,
        1082 => ColumnType::Date,
        1083 => ColumnType::Time,
        1114 => ColumnType::Timestamp,
        1184 => ColumnType::TimestampTz,
        1700 => ColumnType::Numeric,
        2950 => ColumnType::Uuid,
        _ => ColumnType::Other,
    }
}

impl CatalogTable {
    /// The table as the engine knows it.
    ///
    /// # Errors
    /// `no-key`, `source-settings` (not in the log), `row-security`, with the SQL that mends it.
    pub fn schema(&self) -> Result<TableSchema> {
        let name = quote::table(&self.name);
        let stop =
            |code, what: String| Err(Error::stop(code, format!("table {}{what}", self.name)));
        let exclude = format!("exclude it with \"!{}\"", self.name);
        if !self.permanent {
            return stop(
                Code::SourceSettings,
                format!(
                    " is unlogged, so its changes are not in the log; run `ALTER TABLE {name} SET \
                     LOGGED` or {exclude}"
                ),
            );
        }
        if self.row_security {
            return stop(
                Code::RowSecurity,
                format!(
                    " has row level security, which would hide rows from us; run `ALTER ROLE … \
                     BYPASSRLS` for our role or {exclude}"
                ),
            );
        }
        let place = |id: &u32| self.columns.iter().position(|column| column.column.id == *id);
        let key: Option<Vec<usize>> = self.key.iter().map(place).collect();
        let Some(key) = key else {
            return stop(
                Code::NoKey,
                format!(
                    " has a generated column in its key, which the log does not carry; {exclude}"
                ),
            );
        };
        if key.is_empty() {
            return stop(
                Code::NoKey,
                format!("{}; run `{}` or {exclude}", self.no_key(), self.key_statement()),
            );
        }
        Ok(TableSchema {
            name: self.name.clone(),
            id: self.id,
            engine: Engine::Postgres,
            columns: self.columns.iter().map(|column| column.column.clone()).collect(),
            key,
        })
    }

    /// The statement that makes `schema` succeed, as far as one statement can.
    #[must_use]
    pub fn remedy(&self, role: &str) -> String {
        let name = quote::table(&self.name);
        match (self.permanent, self.row_security) {
            (false, _) => format!("ALTER TABLE {name} SET LOGGED;"),
            (true, true) => format!("ALTER ROLE {} BYPASSRLS;", quote::identifier(role)),
            (true, false) => format!("{};", self.key_statement()),
        }
    }

    fn no_key(&self) -> &'static str {
        match self.replica_identity.as_str() {
            "n" => " has REPLICA IDENTITY NOTHING, so its updates and deletes cannot be replicated",
            "i" => " has lost the index that its replica identity uses",
            _ => " has no primary key (or a deferrable one)",
        }
    }

    fn key_statement(&self) -> String {
        let name = quote::table(&self.name);
        match self.replica_identity.as_str() {
            "n" | "i" => format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT"),
            _ => format!("ALTER TABLE {name} ADD PRIMARY KEY (…)"),
        }
    }
}

/// What a RELATION message means. `known` are the tables that are replicated; `current` is what
/// the catalog has for the relation now.
#[must_use]
pub fn resolve(
    relation: &pgoutput::Relation<'_>,
    known: &[Arc<TableSchema>],
    current: Option<&CatalogTable>,
) -> Relation {
    let name = TableName::new(relation.schema, relation.name);
    let Some(table) = known.iter().find(|table| table.id == relation.id) else {
        // A new table behind a name that we replicate.
        return match known.iter().find(|table| table.name == name) {
            Some(table) => halted(&table.name, "was dropped and created again"),
            None => Relation::Ignored,
        };
    };
    match shape(relation, table, current) {
        Ok(shape) => Relation::Table(shape),
        Err(why) => halted(&table.name, &why),
    }
}

fn halted(table: &TableName, why: &str) -> Relation {
    let message = format!(
        "table {table} {why}; its changes from here on are not applied; adapt the target's table \
         if need be, then run `driftless backfill --table {table}`"
    );
    Relation::Halted { table: table.clone(), code: Code::SchemaChange, message }
}

fn shape(
    relation: &pgoutput::Relation<'_>,
    known: &TableSchema,
    current: Option<&CatalogTable>,
) -> std::result::Result<Shape, String> {
    let current = current.ok_or("was dropped")?;
    let name = TableName::new(relation.schema, relation.name);
    if name != known.name || current.name != known.name {
        return Err("was renamed".into());
    }
    let mut columns = Vec::new();
    // Where each column of the relation is among ours.
    let mut kept = Vec::new();
    for column in &relation.columns {
        if current.generated.iter().any(|generated| generated == column.name) {
            kept.push(None);
            continue;
        }
        let Some(now) = current.columns.iter().find(|now| now.column.name == column.name) else {
            return Err(format!("has lost column {}, dropped or renamed", column.name));
        };
        if now.type_id != column.type_id {
            return Err(format!("has another type in column {}", column.name));
        }
        kept.push(Some(columns.len()));
        columns.push(now.column.clone());
    }
    let known_key: Vec<u32> = known.key_columns().map(|column| column.id).collect();
    let key: Option<Vec<usize>> =
        known_key.iter().map(|id| columns.iter().position(|column| column.id == *id)).collect();
    let key = key.filter(|key| !key.is_empty()).ok_or("has another key")?;
    // Under FULL all columns are marked, whatever the key is.
    let marked = relation.columns.iter().filter(|column| column.key);
    let as_known = marked.clone().count() == key.len()
        && marked.clone().all(|column| key.iter().any(|&index| columns[index].name == column.name));
    if current.key != known_key || !(relation.identity_full || as_known) {
        return Err("has another key or replica identity".into());
    }
    let schema = TableSchema { columns, key, ..known.clone() };
    let keep = |place: Option<usize>| place.map_or(Keep::No, |place| Keep::of(&schema, place));
    let columns = kept.into_iter().map(keep).collect();
    Ok(Shape { schema: Arc::new(schema), columns })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(columns: &[(&str, u32, u32)], key: &[u32]) -> CatalogTable {
        let column = |&(name, id, type_id): &(&str, u32, u32)| CatalogColumn {
            column: Column {
                name: name.into(),
                column_type: column_type(type_id),
                native: None,
                id,
            },
            type_id,
            base_type_id: type_id,
        };
        CatalogTable {
            id: 9,
            name: TableName::new("public", "t"),
            partitioned: false,
            permanent: true,
            row_security: false,
            replica_identity: "d".into(),
            columns: columns.iter().map(column).collect(),
            generated: vec!["g".into()],
            key: key.to_vec(),
        }
    }

    const COLUMNS: [(&str, u32, u32); 2] = [("k", 1, 20), ("v", 2, 25)];

    fn check(
        columns: &[(bool, &str, u32)],
        current: Option<&CatalogTable>,
        expected: std::result::Result<(&[&str], &[bool]), &str>,
    ) {
        let bytes = pgoutput::encode::relation(9, "t", b'd', columns);
        let pgoutput::Message::Relation(relation) = pgoutput::decode(&bytes).unwrap() else {
            panic!("not a relation")
        };
        let known = [Arc::new(table(&COLUMNS, &[1]).schema().unwrap())];
        match (resolve(&relation, &known, current), expected) {
            (Relation::Table(shape), Ok((names, keep))) => {
                let columns = shape.schema.columns.iter().map(|column| column.name.as_str());
                assert_eq!(columns.collect::<Vec<_>>(), names);
                let kept = shape.columns.iter().map(|column| *column != Keep::No);
                assert_eq!(kept.collect::<Vec<_>>(), keep);
            }
            (Relation::Halted { message, .. }, Err(why)) => {
                assert!(message.contains(why), "{message}");
            }
            (other, expected) => panic!("{other:?} is not {expected:?}"),
        }
    }

    #[test]
    fn a_relation_is_followed_while_the_catalog_agrees() {
        let (k, v) = ((true, "k", 20), (false, "v", 25));
        let now = table(&COLUMNS, &[1]);
        check(&[k, v], Some(&now), Ok((&["k", "v"], &[true, true])));
        check(&[k], Some(&now), Ok((&["k"], &[true])));
        check(&[k, (false, "g", 20), v], Some(&now), Ok((&["k", "v"], &[true, false, true])));
        check(&[k, v, (false, "w", 25)], Some(&now), Err("lost column w"));
        check(&[k, (false, "v", 23)], Some(&now), Err("another type in column v"));
        check(&[k, v], None, Err("was dropped"));
        check(&[k, (true, "v", 25)], Some(&now), Err("replica identity"));
        check(&[(false, "k", 20), (true, "v", 25)], Some(&now), Err("replica identity"));
        check(&[k, v], Some(&table(&COLUMNS, &[2])), Err("replica identity"));
        let renamed = CatalogTable { name: TableName::new("public", "u"), ..now };
        check(&[k, v], Some(&renamed), Err("was renamed"));
    }

    #[test]
    fn a_table_without_a_key_names_the_statement_that_mends_it() {
        let check = |table: CatalogTable, code, text: &str| {
            let error = table.schema().unwrap_err();
            assert_eq!(error.code, code);
            assert!(error.message.contains(text), "{error}");
        };
        check(table(&COLUMNS, &[]), Code::NoKey, "ALTER TABLE \"public\".\"t\" ADD PRIMARY KEY");
        let nothing = CatalogTable { replica_identity: "n".into(), ..table(&COLUMNS, &[]) };
        check(nothing, Code::NoKey, "REPLICA IDENTITY DEFAULT");
        let unlogged = CatalogTable { permanent: false, ..table(&COLUMNS, &[1]) };
        check(unlogged, Code::SourceSettings, "SET LOGGED");
        let secured = CatalogTable { row_security: true, ..table(&COLUMNS, &[1]) };
        check(secured, Code::RowSecurity, "BYPASSRLS");
        check(table(&COLUMNS, &[7]), Code::NoKey, "generated column");
    }
}
