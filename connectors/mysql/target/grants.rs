//! What an account may do, read from `SHOW GRANTS`. Pure. Used by `check.rs`.
//!
//! Surprise: a database in a grant is a pattern, in which `_` and `%` stand for other characters;
//! and what comes with a role is not shown, so who has roles may have more than is seen here.

/// Privileges on one database.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Grants {
    privileges: Vec<String>,
    /// Whether the account has roles, whose privileges are not known.
    pub has_roles: bool,
}

impl Grants {
    /// Reads the lines of `SHOW GRANTS`.
    pub fn read<'a>(lines: impl IntoIterator<Item = &'a str>, database: &str) -> Grants {
        let mut grants = Grants::default();
        for line in lines {
            let Some(line) = line.strip_prefix("GRANT ") else { continue };
            let Some((privileges, rest)) = line.split_once(" ON ") else {
                grants.has_roles = true;
                continue;
            };
            // Names of users may hold anything, so only what stands before them is looked at.
            let scope = rest.split(" TO ").next().unwrap_or_default();
            if scope == "*.*" || scope.strip_suffix(".*").is_some_and(|name| covers(name, database))
            {
                grants.privileges.extend(privileges.split(',').map(|p| p.trim().to_uppercase()));
            }
        }
        grants
    }

    /// Which of these privileges are missing.
    pub fn missing<'a>(&self, needed: &[&'a str]) -> Vec<&'a str> {
        let all = ["ALL PRIVILEGES", "ALL"];
        let has = |privilege: &str| {
            self.privileges.iter().any(|held| held == privilege || all.contains(&held.as_str()))
        };
        needed.iter().filter(|privilege| !has(privilege)).copied().collect()
    }
}

/// Whether a quoted pattern of database names is of this one.
fn covers(quoted: &str, database: &str) -> bool {
    let name = quoted.trim_matches(|c| c == '`' || c == '"' || c == '\'');
    let pattern: Vec<char> = name.replace("``", "`").chars().collect();
    let database: Vec<char> = database.chars().collect();
    matches(&pattern, &database)
}

fn matches(pattern: &[char], text: &[char]) -> bool {
    match pattern {
        [] => text.is_empty(),
        ['%', rest @ ..] => (0..=text.len()).any(|at| matches(rest, &text[at..])),
        ['\\', escaped, rest @ ..] => text.first() == Some(escaped) && matches(rest, &text[1..]),
        ['_', rest @ ..] => !text.is_empty() && matches(rest, &text[1..]),
        [first, rest @ ..] => text.first() == Some(first) && matches(rest, &text[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&str], expected: &[&str]) {
        let grants = Grants::read(lines.iter().copied(), "shop_1");
        assert_eq!(grants.missing(&["SELECT", "INSERT", "DROP"]), expected, "{lines:?}");
    }

    #[test]
    fn grants_on_the_database_count() {
        check(&["GRANT ALL PRIVILEGES ON *.* TO `root`@`localhost` WITH GRANT OPTION"], &[]);
        check(
            &["GRANT USAGE ON *.* TO `u`@`%` IDENTIFIED BY PASSWORD '*X'"],
            &["SELECT", "INSERT", "DROP"],
        );
        check(&["GRANT SELECT, INSERT ON `shop\\_1`.* TO `u`@`%`"], &["DROP"]);
        check(&["GRANT SELECT, INSERT, DROP ON `shop_1`.* TO `u`@`%`"], &[]);
        check(&["GRANT SELECT, DROP ON `sh%`.* TO `u`@`%`", "GRANT INSERT ON *.* TO `u`"], &[]);
        check(&["GRANT ALL PRIVILEGES ON `shop\\_2`.* TO `u`@`%`"], &["SELECT", "INSERT", "DROP"]);
        check(&["GRANT SELECT ON `shop_1`.`t` TO `u`@`%`"], &["SELECT", "INSERT", "DROP"]);
    }

    #[test]
    fn a_role_is_noticed() {
        let grants = Grants::read(["GRANT `writer`@`%` TO `u`@`%`"], "shop");
        assert!(grants.has_roles);
    }
}
