//! Makes the file ready for rows of a source table, or says what is in the way; `check` asks the
//! same question without doing anything.

use rusqlite::Connection;

use crate::change::TableStatus;
use crate::error::{Code, Result};
use crate::schema::{TableName, TableSchema};
use crate::sqlite::failure::{Sql, unprepared};
use crate::sqlite::names::{Fit, Problem, beside, folded, target_name, validate};
use crate::sqlite::quote::identifier;
use crate::sqlite::records::{self, Records};
use crate::sqlite::shape::{Missing, describe};
use crate::sqlite::sql;
use crate::sqlite::store::Store;
use crate::{Prepared, TableRecord, TargetOptions};

/// What has to be done for a table.
pub(super) enum Plan {
    /// There is no table of its name.
    Create,
    /// There is one that nobody has written yet.
    Adopt(Missing),
    /// It is ours.
    Extend(Missing),
}

impl Store {
    /// Creates the table or adds what is missing, and records its shape, in one transaction.
    pub(super) fn prepare(&mut self, table: &TableSchema) -> Result<Prepared> {
        self.write("prepare table", |transaction, options| {
            let mut records = records::tables(transaction, &options.pipeline)?;
            let others = records::others(transaction, &options.pipeline)?;
            let plan = plan(transaction, table, options, &records, &others)??;
            let prepared = match &plan {
                Plan::Create => {
                    run(transaction, table, &sql::create_table(table, options))?;
                    Prepared::Created
                }
                Plan::Adopt(missing) => {
                    add(transaction, table, missing, options)?;
                    Prepared::Created
                }
                Plan::Extend(missing) => {
                    add(transaction, table, missing, options)?;
                    added(table, missing)
                }
            };
            let status = status_after(&prepared, records.get(&table.name));
            let record = TableRecord { schema: table.clone(), status };
            if records.get(&table.name) != Some(&record) {
                records.insert(table.name.clone(), record);
                records::save_tables(transaction, &options.pipeline, &records)?;
            }
            Ok(prepared)
        })
    }
}

/// What `prepare` would do; the inner error is what is in the way.
pub(super) fn plan(
    connection: &Connection,
    table: &TableSchema,
    options: &TargetOptions,
    ours: &Records,
    others: &[(String, Records)],
) -> Result<Fit<Plan>> {
    let checked = validate(table, options)
        .and_then(|()| beside(&table.name, ours.keys(), options))
        .and_then(|()| not_owned(&table.name, others, options));
    if let Err(problem) = checked {
        return Ok(Err(problem));
    }
    let Some(shape) = describe(connection, &target_name(&table.name, options))? else {
        return Ok(Ok(Plan::Create));
    };
    let owned = ours.contains_key(&table.name);
    if !owned && shape.has_rows {
        return Ok(Err(not_empty(&table.name, options)));
    }
    let plan = if owned { Plan::Extend } else { Plan::Adopt };
    Ok(shape.fit(table, options).map(plan))
}

fn status_after(prepared: &Prepared, before: Option<&TableRecord>) -> TableStatus {
    match (prepared, before.map(|record| &record.status)) {
        (Prepared::Created, _) | (_, None) => TableStatus::Copying,
        // New columns mend nothing of what stopped it.
        (Prepared::Added(_), Some(stopped @ TableStatus::Stopped { .. })) => stopped.clone(),
        (Prepared::Added(_), _) => TableStatus::Copying,
        (Prepared::Unchanged, Some(status)) => status.clone(),
    }
}

fn added(table: &TableSchema, missing: &Missing) -> Prepared {
    if missing.columns.is_empty() {
        return Prepared::Unchanged;
    }
    let name = |&index: &usize| table.columns[index].name.clone();
    Prepared::Added(missing.columns.iter().map(name).collect())
}

fn add(
    connection: &Connection,
    table: &TableSchema,
    missing: &Missing,
    options: &TargetOptions,
) -> Result<()> {
    for &index in &missing.columns {
        run(connection, table, &sql::add_column(table, &table.columns[index], options))?;
    }
    if missing.deleted {
        run(connection, table, &sql::add_deleted(table, options))?;
    }
    Ok(())
}

fn run(connection: &Connection, table: &TableSchema, sql: &str) -> Result<()> {
    let mut statement = connection.prepare(sql).map_err(|error| unprepared(&table.name, &error))?;
    statement.execute([]).sql("change target table")?;
    Ok(())
}

fn not_owned(table: &TableName, others: &[(String, Records)], options: &TargetOptions) -> Fit<()> {
    let name = target_name(table, options);
    for (pipeline, records) in others {
        if records.keys().any(|other| folded(&target_name(other, options)) == folded(&name)) {
            return Err(Problem {
                table: table.clone(),
                code: Code::TableOwned,
                message: format!(
                    "table {} belongs to pipeline {pipeline} in this target, so {table} cannot be \
                     replicated into it",
                    identifier(&name)
                ),
                remedy: format!("leave {table} out of `tables`, or replicate it into another file"),
            });
        }
    }
    Ok(())
}

fn not_empty(table: &TableName, options: &TargetOptions) -> Problem {
    let name = target_name(table, options);
    Problem {
        table: table.clone(),
        code: Code::TargetNotEmpty,
        message: format!(
            "table {} already has rows that this pipeline did not write",
            identifier(&name)
        ),
        remedy: format!(
            "run `ALTER TABLE {} RENAME TO {};` or drop it, and restart",
            identifier(&name),
            identifier(&format!("{name}_old"))
        ),
    }
}
