//! The one place where a name becomes SQL. Values are never quoted: they are bound.

/// The name as an SQL identifier, whatever characters it has.
pub(super) fn identifier(name: &str) -> String {
    let mut quoted = String::with_capacity(name.len() + 2);
    quoted.push('"');
    for character in name.chars() {
        if character == '"' {
            quoted.push('"');
        }
        quoted.push(character);
    }
    quoted.push('"');
    quoted
}

/// The names as a list of identifiers.
pub(super) fn identifiers<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(identifier).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_quoted_and_its_quotes_are_doubled() {
        assert_eq!(identifier("order"), "\"order\"");
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(identifier("x'; DROP TABLE t;--"), "\"x'; DROP TABLE t;--\"");
        assert_eq!(identifiers(["a", "🦀"]), "\"a\", \"🦀\"");
    }
}
