//! Makes the target ready for rows of a shape: creates the table or adds columns, and records it.
//! What `information_schema` says comes from `shape.rs`.
//!
//! Surprises: DDL commits by itself, so what was made is recorded afterwards; whoever is stopped
//! in between finds it made and not recorded, and goes on there. And a table that fits but that
//! no pipeline has recorded is taken only when it is empty: nobody knows of its rows whether the
//! source ever had them.

use std::sync::Arc;

use super::MysqlTarget;
use super::shape::{Lacking, RUN, compare};
use crate::change::TableStatus;
use crate::error::{Code, Error, Result};
use crate::mysql::quote;
use crate::schema::{TableName, TableSchema};
use crate::{Prepared, TableRecord};

impl MysqlTarget {
    pub(super) async fn prepare_table(&mut self, table: &Arc<TableSchema>) -> Result<Prepared> {
        self.look_at_fence().await?;
        self.writer.naming.refuse_names(table)?;
        self.writer.naming.refuse_twin(&table.name, self.tables.keys())?;
        self.refuse_owned(&table.name).await?;
        let name = self.writer.naming.target_name(&table.name);
        let columns = self.writer.stored_columns(table);
        let Some(shape) = self.shape(&name).await? else {
            let create = self.writer.sql(table, &name, &columns).create_table();
            self.change_table(&table.name, &create).await?;
            self.record(table, Some(TableStatus::Copying)).await?;
            return Ok(Prepared::Created);
        };
        let statements = self.writer.sql(table, &name, &columns);
        let lacking = compare(&statements, &shape)?;
        let Lacking { columns: places, deleted } = &lacking;
        let alter =
            (*deleted || !places.is_empty()).then(|| statements.add_columns(places, *deleted));
        let known = self.tables.contains_key(&table.name);
        if !known {
            self.refuse_rows(&table.name).await?;
        }
        if let Some(alter) = alter {
            self.change_table(&table.name, &alter).await?;
        }
        self.record_existing(table, &lacking).await
    }

    async fn record_existing(
        &mut self,
        table: &Arc<TableSchema>,
        lacking: &Lacking,
    ) -> Result<Prepared> {
        let Some(recorded) = self.tables.get(&table.name) else {
            self.record(table, Some(TableStatus::Copying)).await?;
            return Ok(Prepared::Created);
        };
        // A column that is there but was never recorded was added by somebody who was stopped
        // before saying so: its values have not been copied.
        let unrecorded = |index: &usize| {
            let name = &table.columns[*index].name;
            lacking.columns.contains(index)
                || !recorded.schema.columns.iter().any(|column| column.name == *name)
        };
        let added: Vec<String> = (0..table.columns.len())
            .filter(unrecorded)
            .map(|index| table.columns[index].name.clone())
            .collect();
        let same = recorded.schema == **table;
        match added.is_empty() {
            true if same => Ok(Prepared::Unchanged),
            true => {
                self.record(table, None).await?;
                Ok(Prepared::Unchanged)
            }
            false => {
                self.record(table, Some(TableStatus::Copying)).await?;
                Ok(Prepared::Added(added))
            }
        }
    }

    /// Runs DDL. What the server does not take of a table is that table's trouble.
    async fn change_table(&mut self, table: &TableName, ddl: &str) -> Result<()> {
        let doing = format!("prepare the target table of {table}");
        let changed = self.writer.session.execute(&doing, ddl).await;
        changed.map(drop).map_err(|error| match error.code {
            Code::Protocol | Code::PoisonRow => {
                let message = format!(
                    "{}; leave the table out with \"!{table}\", or create it in the target as \
                     it should be",
                    error.message
                );
                Error::table(table, Code::TargetShape, message)
            }
            _ => error,
        })
    }

    /// Records the table; without a status it keeps the one that it has.
    async fn record(
        &mut self,
        table: &Arc<TableSchema>,
        status: Option<TableStatus>,
    ) -> Result<()> {
        let mut tables = self.tables.clone();
        let kept = tables.get(&table.name).map(|record| record.status.clone());
        let status = status.or(kept).unwrap_or(TableStatus::Copying);
        let record = TableRecord { schema: (**table).clone(), status };
        tables.insert(table.name.clone(), record);
        self.change_records(&[], tables)
            .await
            .map_err(|error| error.context(format!("prepare the target table of {}", table.name)))
    }

    pub(super) async fn refuse_rows(&mut self, table: &TableName) -> Result<()> {
        let name = self.writer.naming.target_name(table);
        let quoted = quote::identifier(&name);
        let doing = format!("look for rows in target table {name}");
        let look = format!("SELECT 1 FROM {quoted} LIMIT 1");
        if self.writer.session.query(&doing, &look).await?.is_empty() {
            return Ok(());
        }
        let message = format!(
            "target table {name} of {table} holds rows that this pipeline did not write; rename \
             it, or to have it copied afresh {RUN}TRUNCATE TABLE {quoted}"
        );
        Err(Error::table(table, Code::TargetNotEmpty, message))
    }

    /// Another pipeline's rows and ours would outrank each other by versions of two logs.
    pub(super) async fn refuse_owned(&mut self, table: &TableName) -> Result<()> {
        let name = self.writer.naming.target_name(table);
        for (pipeline, records) in self.others().await? {
            let same = |other: &TableName| {
                self.writer.naming.is_same(&self.writer.naming.target_name(other), &name)
            };
            if records.keys().any(same) {
                let message = format!(
                    "target table {name} belongs to pipeline {pipeline}; leave {table} out of \
                     this pipeline's tables, or remove it from the other pipeline's first"
                );
                return Err(Error::table(table, Code::TableOwned, message));
            }
        }
        Ok(())
    }
}
