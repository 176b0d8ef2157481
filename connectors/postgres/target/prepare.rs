//! Makes the target ready for rows of a shape: creates the table or adds columns, and records it,
//! in one transaction. What the catalog says comes from `shape.rs`.
//!
//! Surprise: a table that fits but that no pipeline has recorded is taken only when it is empty.
//! Nobody knows of its rows whether the source ever had them.

use std::sync::Arc;

use super::PostgresTarget;
use super::shape::{Shape, compare};
use crate::change::TableStatus;
use crate::error::{Code, Error, Result};
use crate::postgres::{quote, sql};
use crate::schema::{TableName, TableSchema};
use crate::{Prepared, TableRecord};

impl PostgresTarget {
    pub(super) async fn prepare_table(&mut self, table: &Arc<TableSchema>) -> Result<Prepared> {
        self.claimed()?;
        refuse_names(table)?;
        self.refuse_owned(&table.name).await?;
        match self.shape(&table.name).await? {
            None => {
                let mut changes = Vec::new();
                if !self.has_schema(&table.name.schema).await? {
                    let schema = quote::identifier(&table.name.schema);
                    changes.push(format!("CREATE SCHEMA IF NOT EXISTS {schema}"));
                }
                changes.push(self.session.sql(table, "").create_table());
                self.record(table, &changes, Some(TableStatus::Copying)).await?;
                Ok(Prepared::Created)
            }
            Some(shape) => self.prepare_existing(table, &shape).await,
        }
    }

    async fn prepare_existing(
        &mut self,
        table: &Arc<TableSchema>,
        shape: &Shape,
    ) -> Result<Prepared> {
        let lacking = compare(table, shape, self.session.options.soft_deletes)?;
        let recorded = self.tables.get(&table.name);
        let known = recorded.is_some();
        let same = recorded.is_some_and(|record| record.schema == **table);
        if !known {
            self.refuse_rows(&table.name).await?;
        }
        let mut changes = Vec::new();
        if lacking.deleted {
            changes.push(format!(
                "ALTER TABLE {} ADD COLUMN {} boolean NOT NULL DEFAULT false",
                quote::table(&table.name),
                sql::DELETED
            ));
        }
        if !lacking.columns.is_empty() {
            changes.push(self.session.sql(table, "").add_columns(&lacking.columns));
        }
        if !known || !lacking.columns.is_empty() {
            self.record(table, &changes, Some(TableStatus::Copying)).await?;
        } else if !same || !changes.is_empty() {
            self.record(table, &changes, None).await?;
        }
        if !known {
            return Ok(Prepared::Created);
        }
        let name = |&index: &usize| table.columns[index].name.clone();
        let added: Vec<String> = lacking.columns.iter().map(name).collect();
        Ok(if added.is_empty() { Prepared::Unchanged } else { Prepared::Added(added) })
    }

    /// Runs the changes and records the table; without a status it keeps the one that it has.
    async fn record(
        &mut self,
        table: &Arc<TableSchema>,
        changes: &[String],
        status: Option<TableStatus>,
    ) -> Result<()> {
        let mut tables = self.tables.clone();
        let kept = tables.get(&table.name).map(|record| record.status.clone());
        let status = status.or(kept).unwrap_or(TableStatus::Copying);
        let record = TableRecord { schema: (**table).clone(), status };
        tables.insert(table.name.clone(), record);
        self.change_records(changes, tables)
            .await
            .map_err(|error| error.context(format!("prepare target table {}", table.name)))
    }

    async fn has_schema(&self, schema: &str) -> Result<bool> {
        let query = format!("SELECT FROM pg_namespace WHERE nspname = {}", quote::literal(schema));
        Ok(!self.session.query("look for a schema in the target", &query).await?.is_empty())
    }

    pub(super) async fn refuse_rows(&self, table: &TableName) -> Result<()> {
        let quoted = quote::table(table);
        let doing = format!("look for rows in target table {table}");
        let rows = self.session.query(&doing, &format!("SELECT FROM {quoted} LIMIT 1")).await?;
        if rows.is_empty() {
            return Ok(());
        }
        let message = format!(
            "target table {table} holds rows that this pipeline did not write; run `TRUNCATE \
             {quoted}` in the target to have it copied afresh, or rename it"
        );
        Err(Error::table(table, Code::TargetNotEmpty, message))
    }

    /// Another pipeline's rows and ours would outrank each other by versions of two logs.
    pub(super) async fn refuse_owned(&self, table: &TableName) -> Result<()> {
        let Some(owner) = self.other_owner(table).await? else {
            return Ok(());
        };
        let message = format!(
            "target table {table} belongs to pipeline {owner}; leave it out of this pipeline's \
             tables, or remove it from the other pipeline's first"
        );
        Err(Error::table(table, Code::TableOwned, message))
    }

    /// The other pipeline that writes this table, if there is one.
    async fn other_owner(&self, table: &TableName) -> Result<Option<String>> {
        let query = format!(
            "SELECT pipeline FROM {} WHERE pipeline <> {} AND EXISTS (\
             SELECT FROM jsonb_array_elements(tables::jsonb) AS t (record) \
             WHERE t.record -> 'schema' -> 'name' = jsonb_build_array({}::text, {}::text))",
            sql::CHECKPOINT,
            quote::literal(&self.session.options.pipeline),
            quote::literal(&table.schema),
            quote::literal(&table.name)
        );
        let rows = self.session.query("look for another pipeline's tables", &query).await?;
        rows.first().map(|row| super::text(row, 0).map(str::to_owned)).transpose()
    }
}

/// The server cuts longer names off, with nothing but a notice.
const NAME_BYTES_MAX: usize = 63;

/// Names that begin with `_cdc_` are ours, and some cannot be names at all.
pub fn refuse_names(table: &TableSchema) -> Result<()> {
    let name = &table.name;
    let columns = || table.columns.iter().map(|column| &column.name);
    let own = [sql::CHECKPOINT, sql::TOMBSTONE];
    let mut names = [&name.schema, &name.name].into_iter().chain(columns());
    let message = if own.contains(&name.to_string().as_str()) {
        format!("table {name} has the name of a table of ours; leave it out with \"!{name}\"")
    } else if let Some(column) = columns().find(|column| column.starts_with("_cdc_")) {
        format!(
            "table {name} has a column {column}, and names that begin with _cdc_ are ours; rename \
             the column, or leave the table out with \"!{name}\""
        )
    } else if let Some(long) = names.find(|name| name.len() > NAME_BYTES_MAX) {
        format!(
            "table {name}: the name {long} is longer than {NAME_BYTES_MAX} bytes, which no name \
             in PostgreSQL can be; rename it, or leave the table out with \"!{name}\""
        )
    } else {
        return Ok(());
    };
    Err(Error::table(name, Code::NameCollision, message))
}
