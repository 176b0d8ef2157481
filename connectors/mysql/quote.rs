//! Identifiers and literals for SQL text: the only place where either is quoted.
//!
//! Surprise: texts are written in hexadecimal. What a backslash or a quote means in a string
//! depends on the session's `sql_mode`; hexadecimal digits mean the same in all of them.

use crate::schema::TableName;

/// A name as an identifier: `` `my table` ``.
#[must_use]
pub fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A table with its database: `` `shop`.`orders` ``.
#[must_use]
pub fn table(table: &TableName) -> String {
    format!("{}.{}", identifier(&table.schema), identifier(&table.name))
}

/// Names as identifiers with commas between them.
#[must_use]
pub fn identifiers<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(identifier).collect::<Vec<_>>().join(", ")
}

/// A text as a literal of character set utf8mb4: `_utf8mb4 X'6974'`.
#[must_use]
pub fn literal(text: &str) -> String {
    format!("_utf8mb4 {}", bytes(text.as_bytes()))
}

/// Bytes as a literal without a character set: `X'6974'`.
#[must_use]
pub fn bytes(bytes: &[u8]) -> String {
    let mut quoted = String::with_capacity(bytes.len() * 2 + 3);
    quoted.push_str("X'");
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            quoted.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
        }
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backslashes_stay_inside() {
        assert_eq!(identifier("a`b"), "`a``b`");
        assert_eq!(identifiers(["a", "B c"]), "`a`, `B c`");
        assert_eq!(table(&TableName::new("s", "x`; DROP")), "`s`.`x``; DROP`");
        assert_eq!(literal("it's\\"), "_utf8mb4 X'697427735C'");
        assert_eq!(literal(""), "_utf8mb4 X''");
        assert_eq!(bytes(&[0, 255]), "X'00FF'");
    }
}
