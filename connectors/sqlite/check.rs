//! Whether the file is ready, without changing it or making it.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, params};

use crate::error::Result;
use crate::finding::ok;
use crate::schema::TableSchema;
use crate::sqlite::failure::Sql;
use crate::sqlite::names::{Problem, beside, target_name, validate};
use crate::sqlite::prepare::{Plan, plan};
use crate::sqlite::quote::identifier;
use crate::sqlite::records;
use crate::sqlite::store::Store;
use crate::{Finding, Level, TargetOptions};

impl Store {
    /// Looks at the file, its directory and every table.
    pub(super) fn check(&mut self, tables: &[Arc<TableSchema>]) -> Result<Vec<Finding>> {
        let mut findings = vec![check_place(&self.path)];
        let options = self.options.clone();
        let Some(connection) = self.reader()? else {
            findings.extend(tables.iter().map(|table| {
                let named = validate(table, &options)
                    .and_then(|()| beside(&table.name, names_before(tables, table), &options));
                named.map_or_else(problem, |()| created(table, &options))
            }));
            return Ok(findings);
        };
        let ours = records::tables(connection, &options.pipeline)?;
        let others = records::others(connection, &options.pipeline)?;
        for table in tables {
            let planned = match beside(&table.name, names_before(tables, table), &options) {
                Ok(()) => plan(connection, table, &options, &ours, &others)?,
                Err(problem) => Err(problem),
            };
            match planned {
                Err(found) => findings.push(problem(found)),
                Ok(Plan::Create) => findings.push(created(table, &options)),
                Ok(Plan::Adopt(_) | Plan::Extend(_)) => {
                    findings.push(ready(table, &options));
                    findings.extend(check_extras(connection, table, &options)?);
                }
            }
        }
        Ok(findings)
    }
}

/// Each pair of tables is looked at once.
fn names_before<'a>(
    tables: &'a [Arc<TableSchema>],
    table: &TableSchema,
) -> impl Iterator<Item = &'a crate::schema::TableName> {
    tables.iter().map(|other| &other.name).take_while(move |name| **name != table.name)
}

fn check_place(path: &Path) -> Finding {
    let exists = path.exists();
    let directory = path.parent().unwrap_or(path);
    let written = match exists {
        // Opens it for writing and writes nothing.
        true => OpenOptions::new().write(true).open(path).map(drop).and_then(|()| probe(path)),
        false => probe(path),
    };
    let subject = "target file".to_owned();
    match written {
        Ok(()) => Finding {
            subject,
            level: Level::Ok,
            code: None,
            message: match exists {
                true => format!("{} can be written", path.display()),
                false => format!("{} will be created", path.display()),
            },
            remedy: String::new(),
        },
        Err(error) => Finding {
            subject,
            level: Level::Failure,
            code: None,
            message: format!("{} cannot be written: {error}", path.display()),
            remedy: format!(
                "chown \"$USER\" '{}' && chmod u+rwx '{}'",
                directory.display(),
                directory.display()
            ),
        },
    }
}

/// SQLite puts its log beside the file, so the directory must let us; only trying tells.
fn probe(path: &Path) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".check-{}", std::process::id()));
    OpenOptions::new().write(true).create_new(true).open(&name)?;
    std::fs::remove_file(&name)
}

/// What somebody else put onto the table, which may refuse rows or change them.
fn check_extras(
    connection: &Connection,
    table: &TableSchema,
    options: &TargetOptions,
) -> Result<Vec<Finding>> {
    const DOING: &str = "look for triggers and unique indexes";
    let sql = "SELECT 'trigger', name FROM sqlite_schema \
               WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE \
               UNION ALL SELECT 'unique index', name FROM pragma_index_list(?1) \
               WHERE \"unique\" AND origin <> 'pk'";
    let mut statement = connection.prepare_cached(sql).sql(DOING)?;
    let name = target_name(&table.name, options);
    let mut rows = statement.query(params![name]).sql(DOING)?;
    let mut findings = Vec::new();
    while let Some(row) = rows.next().sql(DOING)? {
        let (kind, extra): (String, String) = (row.get(0).sql(DOING)?, row.get(1).sql(DOING)?);
        let drop = if kind == "trigger" { "TRIGGER" } else { "INDEX" };
        findings.push(Finding {
            subject: subject(table),
            level: Level::Warning,
            code: None,
            message: format!(
                "{kind} {} on {} can refuse rows or change them",
                identifier(&extra),
                identifier(&name)
            ),
            remedy: format!("DROP {drop} {};", identifier(&extra)),
        });
    }
    Ok(findings)
}

fn subject(table: &TableSchema) -> String {
    format!("target table {}", table.name)
}

fn ready(table: &TableSchema, options: &TargetOptions) -> Finding {
    let name = identifier(&target_name(&table.name, options));
    let message = format!("{name} is there and its shape fits");
    ok(&subject(table), &message)
}

fn created(table: &TableSchema, options: &TargetOptions) -> Finding {
    let name = identifier(&target_name(&table.name, options));
    let message = format!("{name} will be created");
    ok(&subject(table), &message)
}

fn problem(problem: Problem) -> Finding {
    Finding {
        subject: format!("target table {}", problem.table),
        level: Level::Failure,
        code: Some(problem.code),
        message: problem.message,
        remedy: problem.remedy,
    }
}
