//! What tables are called in the target, and which names cannot be there, or not together. Pure.
//!
//! Surprises: names of columns are compared without case, those of tables as the server's
//! `lower_case_table_names` says; and a name cannot have characters beyond U+FFFF, which the
//! server would silently replace.

use std::collections::HashMap;

use crate::error::{Code, Error, Result};
use crate::mysql::sql::{CHECKPOINT, DELETED, TOMBSTONE, UPDATED_AT, VERSION};
use crate::schema::{TableName, TableSchema};

/// The most characters that a name can have.
const NAME_CHARACTERS_MAX: usize = 64;

/// How names of tables are made and compared.
#[derive(Clone, Debug)]
pub struct Naming {
    /// The schema whose tables keep their plain names.
    pub plain_schema: String,
    /// Whether the server compares names of tables without case.
    pub folds_case: bool,
}

impl Naming {
    /// The name of a source table in the target.
    #[must_use]
    pub fn target_name(&self, table: &TableName) -> String {
        match table.schema == self.plain_schema {
            true => table.name.clone(),
            false => format!("{}_{}", table.schema, table.name),
        }
    }

    /// Whether the server takes two names of tables for one.
    #[must_use]
    pub fn is_same(&self, one: &str, other: &str) -> bool {
        self.compared(one) == self.compared(other)
    }

    fn compared(&self, name: &str) -> String {
        if self.folds_case { folded(name) } else { name.to_owned() }
    }

    /// Refuses a table whose name, or a column's, the target cannot have.
    ///
    /// # Errors
    /// `name-collision`, of the table.
    pub fn refuse_names(&self, table: &TableSchema) -> Result<()> {
        let name = self.target_name(&table.name);
        let refused = |what: String| {
            let message = format!(
                "table {0}: {what}; rename it at the source, or leave the table out with \"!{0}\"",
                table.name
            );
            Err(Error::table(&table.name, Code::NameCollision, message))
        };
        if [CHECKPOINT, TOMBSTONE].iter().any(|own| folded(own) == folded(&name)) {
            return refused(format!("its name in the target, {name}, is that of a table of ours"));
        }
        if let Some(flaw) = flaw(&name) {
            return refused(format!("its name in the target, {name}, {flaw}"));
        }
        let ours = [VERSION, UPDATED_AT, DELETED].map(|name| (folded(name), name));
        let mut seen: HashMap<String, &str> = HashMap::from(ours);
        for column in &table.columns {
            if let Some(flaw) = flaw(&column.name) {
                return refused(format!("its column {} {flaw}", column.name));
            }
            if let Some(other) = seen.insert(folded(&column.name), &column.name) {
                return refused(format!(
                    "its column {} has the name of {other} in the target, where case does not \
                     count",
                    column.name
                ));
            }
        }
        Ok(())
    }

    /// Refuses a table that would have one name with another.
    ///
    /// # Errors
    /// `name-collision`, of the pipeline: which of the two gives way is for a person to say.
    pub fn refuse_twin<'a>(
        &self,
        table: &TableName,
        others: impl IntoIterator<Item = &'a TableName>,
    ) -> Result<()> {
        let name = self.target_name(table);
        let same =
            |other: &&TableName| *other != table && self.is_same(&self.target_name(other), &name);
        match others.into_iter().find(same) {
            None => Ok(()),
            Some(other) => Err(Error::stop(
                Code::NameCollision,
                format!(
                    "tables {other} and {table} would both be named {name} in the target; rename \
                     one of them at the source, or replicate it into another database"
                ),
            )),
        }
    }
}

/// Why the server cannot have this name, if it cannot.
fn flaw(name: &str) -> Option<String> {
    if name.chars().count() > NAME_CHARACTERS_MAX {
        return Some(format!("is longer than {NAME_CHARACTERS_MAX} characters"));
    }
    if name.is_empty() || name.ends_with(' ') {
        return Some("is empty or ends with a blank".into());
    }
    if name.chars().any(|character| character == '\0' || character > '\u{ffff}') {
        return Some("has a character that MySQL cannot have in a name".into());
    }
    None
}

fn folded(name: &str) -> String {
    name.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Column, ColumnType, Engine};

    fn naming(folds_case: bool) -> Naming {
        Naming { plain_schema: "shop".into(), folds_case }
    }

    fn check_refused(table: &str, columns: &[&str], expected: Option<&str>) {
        let column = |name: &&str| Column {
            name: (*name).into(),
            column_type: ColumnType::Text,
            native: None,
            id: 1,
        };
        let table = TableSchema {
            name: TableName::new("shop", table),
            id: 1,
            engine: Engine::Postgres,
            columns: columns.iter().map(column).collect(),
            key: vec![0],
        };
        let refused = naming(false).refuse_names(&table);
        assert_eq!(refused.as_ref().err().map(|error| error.code), expected.map(|_| NAMES));
        let message = refused.err().map(|error| error.message).unwrap_or_default();
        assert!(message.contains(expected.unwrap_or_default()), "{message}");
    }

    const NAMES: Code = Code::NameCollision;

    #[test]
    fn only_the_plain_schema_is_left_out_of_a_name() {
        assert_eq!(naming(false).target_name(&TableName::new("shop", "t")), "t");
        assert_eq!(naming(false).target_name(&TableName::new("public", "t")), "public_t");
    }

    #[test]
    fn names_that_the_server_cannot_have_are_refused() {
        check_refused("t", &["k", "a`b", " x", "ä", "é'"], None);
        check_refused(&"x".repeat(64), &[&"ü".repeat(64)], None);
        check_refused(&"x".repeat(65), &["k"], Some("longer than 64"));
        check_refused("t", &["k", &"x".repeat(65)], Some("longer than 64"));
        check_refused("t", &["🦆"], Some("cannot have in a name"));
        check_refused("t", &["x "], Some("ends with a blank"));
        check_refused("_CDC_tombstone", &["k"], Some("a table of ours"));
        check_refused("t", &["k", "_cdc_Version"], Some("_cdc_version"));
        check_refused("t", &["Ab", "aB"], Some("column aB has the name of Ab"));
        check_refused("t", &["Ä", "ä"], Some("case does not count"));
    }

    #[test]
    fn tables_of_one_name_are_refused_and_both_are_named() {
        let (one, two) = (TableName::new("a_b", "c"), TableName::new("a", "b_c"));
        let error = naming(false).refuse_twin(&one, [&one, &two]).unwrap_err();
        assert_eq!((error.code, error.kind), (NAMES, crate::error::Kind::Stop));
        assert!(error.message.contains("a_b.c") && error.message.contains("a.b_c"));
        let (one, two) = (TableName::new("shop", "T"), TableName::new("shop", "t"));
        assert_eq!(naming(false).refuse_twin(&one, [&two]), Ok(()));
        assert_eq!(naming(true).refuse_twin(&one, [&two]).unwrap_err().code, NAMES);
    }
}
