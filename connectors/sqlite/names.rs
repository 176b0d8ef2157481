//! What tables are called in the target, and which names cannot be there together.
//! Surprise: SQLite folds the case of ASCII letters in names even when they are quoted.

use std::collections::HashMap;

use crate::TargetOptions;
use crate::error::{Code, Error};
use crate::schema::{TableName, TableSchema};
use crate::sqlite::quote::identifier;

/// Rank of the row: 16 bytes.
pub(super) const VERSION: &str = "_cdc_version";
/// Commit time at the source.
pub(super) const UPDATED_AT: &str = "_cdc_updated_at";
/// Whether the row is deleted; only with soft deletes.
pub(super) const DELETED: &str = "_cdc_deleted";

const OUR_COLUMNS: [&str; 3] = [VERSION, UPDATED_AT, DELETED];
const OUR_TABLES: [&str; 2] = ["_cdc_checkpoint", "_cdc_tombstone"];

/// Something about a table that keeps it from being replicated, and what to type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) table: TableName,
    pub(super) code: Code,
    pub(super) message: String,
    pub(super) remedy: String,
}

/// Whether a table fits, or what is in the way.
pub(super) type Fit<T> = std::result::Result<T, Problem>;

impl From<Problem> for Error {
    fn from(problem: Problem) -> Error {
        let message = format!("{}; {}", problem.message, problem.remedy);
        match problem.code {
            // Which of the two tables should give way is for a person to say.
            Code::NameCollision => Error::stop(problem.code, message),
            _ => Error::table(&problem.table, problem.code, message),
        }
    }
}

/// The name of a source table in the target: `table` for the plain schema, otherwise
/// `schema_table`.
pub(super) fn target_name(table: &TableName, options: &TargetOptions) -> String {
    match table.schema == options.plain_schema {
        true => table.name.clone(),
        false => format!("{}_{}", table.schema, table.name),
    }
}

/// The name as SQLite compares it.
pub(super) fn folded(name: &str) -> String {
    name.to_ascii_lowercase()
}

/// Whether SQLite can have a table of this name and these columns.
pub(super) fn validate(table: &TableSchema, options: &TargetOptions) -> Fit<()> {
    let name = target_name(&table.name, options);
    let folded_name = folded(&name);
    let problem = |message: String, remedy: &str| Problem {
        table: table.name.clone(),
        code: Code::NameCollision,
        message,
        remedy: remedy.into(),
    };
    let exclude = "rename it at the source, or leave it out of `tables`";
    if folded_name.starts_with("sqlite_") {
        let message = format!(
            "table {} would be named {name} in the target, and SQLite keeps names that begin \
             with sqlite_ for itself",
            table.name
        );
        return Err(problem(message, exclude));
    }
    if OUR_TABLES.contains(&folded_name.as_str()) {
        let message =
            format!("table {} would be named {name} in the target, as our own table", table.name);
        return Err(problem(message, exclude));
    }
    let mut seen: HashMap<String, &str> =
        OUR_COLUMNS.iter().map(|name| (folded(name), *name)).collect();
    for column in &table.columns {
        if let Some(other) = seen.insert(folded(&column.name), &column.name) {
            let message = format!(
                "columns {} and {} of table {} have the same name in SQLite, which ignores case",
                identifier(other),
                identifier(&column.name),
                table.name
            );
            return Err(problem(message, "rename one of them at the source"));
        }
    }
    Ok(())
}

/// Whether the table can have its name in the target beside these others.
pub(super) fn beside<'a>(
    table: &TableName,
    others: impl IntoIterator<Item = &'a TableName>,
    options: &TargetOptions,
) -> Fit<()> {
    let name = folded(&target_name(table, options));
    let same = |other: &&TableName| *other != table && folded(&target_name(other, options)) == name;
    match others.into_iter().find(same) {
        None => Ok(()),
        Some(other) => Err(Problem {
            table: table.clone(),
            code: Code::NameCollision,
            message: format!(
                "tables {other} and {table} would both be named {} in the target",
                target_name(table, options)
            ),
            remedy: "rename one of them at the source, or replicate it into another file".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::tests::support::{options, schema};

    fn check_columns(columns: &[&str], expected: Option<&str>) {
        let mut table = schema("t", &[]);
        for name in columns {
            let mut column = table.columns[0].clone();
            column.name = (*name).into();
            table.columns.push(column);
        }
        let found = validate(&table, &options(false)).err();
        assert_eq!(found.as_ref().map(|problem| problem.code), expected.map(|_| NAME_COLLISION));
        for part in expected.unwrap_or_default().split_whitespace() {
            assert!(found.as_ref().unwrap().message.contains(part), "{found:?}");
        }
    }

    const NAME_COLLISION: Code = Code::NameCollision;

    #[test]
    fn columns_that_differ_only_by_case_collide_and_both_are_named() {
        check_columns(&["a", "b"], None);
        check_columns(&["Ab", "aB"], Some("\"Ab\" \"aB\""));
        check_columns(&["_CDC_Version"], Some("\"_CDC_Version\" \"_cdc_version\""));
        check_columns(&["ä", "Ä"], None);
    }

    #[test]
    fn tables_that_would_get_one_name_collide_and_both_are_named() {
        let (one, two) = (TableName::new("a_b", "c"), TableName::new("a", "B_C"));
        let problem = beside(&one, [&one, &two], &options(false)).unwrap_err();
        assert_eq!(problem.code, Code::NameCollision);
        assert!(problem.message.contains("a_b.c") && problem.message.contains("a.B_C"));
        let plain = TableName::new("public", "c");
        assert_eq!(beside(&one, [&one, &plain], &options(false)), Ok(()));
    }

    #[test]
    fn only_the_plain_schema_is_left_out_of_a_name() {
        let shop = TargetOptions { plain_schema: "shop".into(), ..options(false) };
        assert_eq!(target_name(&TableName::new("shop", "t"), &shop), "t");
        assert_eq!(target_name(&TableName::new("public", "t"), &shop), "public_t");
        let twin = TableName::new("shop", "public_t");
        assert!(beside(&twin, [&TableName::new("public", "t")], &shop).is_err());
        assert_eq!(target_name(&twin, &options(false)), "shop_public_t");
    }

    #[test]
    fn names_that_sqlite_or_driftless_keeps_are_refused() {
        for name in ["sqlite_x", "SQLITE_stat", "_cdc_checkpoint", "_CDC_tombstone"] {
            assert_eq!(
                validate(&schema(name, &[]), &options(false)).unwrap_err().code,
                Code::NameCollision
            );
        }
        assert_eq!(validate(&schema("my_sqlite_x", &[]), &options(false)), Ok(()));
    }
}
