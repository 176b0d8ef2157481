//! Identifiers and literals for SQL text: the only place where either is quoted.
//!
//! Surprise: a literal with a backslash becomes an `E''` string, which reads the same whatever
//! `standard_conforming_strings` is.

use crate::schema::TableName;

/// A name as an identifier: `"my table"`.
#[must_use]
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table with its schema: `"public"."orders"`.
#[must_use]
pub fn table(table: &TableName) -> String {
    format!("{}.{}", identifier(&table.schema), identifier(&table.name))
}

/// Names as identifiers with commas between them.
#[must_use]
pub fn identifiers<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(identifier).collect::<Vec<_>>().join(", ")
}

/// A text as a string literal: `'it''s'`.
#[must_use]
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        return format!("E'{}'", quoted.replace('\\', "\\\\"));
    }
    format!("'{quoted}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backslashes_stay_inside() {
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(identifiers(["a", "B c"]), "\"a\", \"B c\"");
        assert_eq!(
            table(&TableName::new("s", "x'; DROP TABLE t;--")),
            "\"s\".\"x'; DROP TABLE t;--\""
        );
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'b"), "E'a\\\\''b'");
    }
}
