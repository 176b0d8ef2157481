//! Replaces `${NAME}` and `${file:/path}` in the strings of the configuration, and tells whether
//! a URL still holds a password in plain text.
//! Surprise: between `://` and `@` of a URL a replaced value is percent-encoded, so that a
//! password may hold any character as it is.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// A secret file is a password or a URL, not a disk image.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// The variables of the process, taken once.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, OsString>);

impl Environment {
    /// What this process was started with.
    #[must_use]
    pub fn of_process() -> Environment {
        let named = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value));
        Environment(std::env::vars_os().filter_map(named).collect())
    }

    /// These variables and no others.
    #[must_use]
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Environment {
        Environment(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }

    /// Their names, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The value of a variable.
    pub(super) fn value(&self, name: &str) -> Result<&str, String> {
        match self.0.get(name).map(|value| value.to_str()) {
            Some(Some(value)) => Ok(value),
            Some(None) => Err(format!("the environment variable {name} is not UTF-8")),
            None => Err(format!("the environment variable {name} is not set")),
        }
    }
}

/// `template` with its references replaced; `$${` stands for a plain `${`.
pub(super) fn replace(
    template: &str,
    is_url: bool,
    environment: &Environment,
) -> Result<String, String> {
    let login = if is_url { login_range(template) } else { 0..0 };
    let mut replaced = String::new();
    let mut at = 0;
    while let Some(start) = template[at..].find("${").map(|found| at + found) {
        if template[at..start].ends_with('$') {
            replaced.push_str(&template[at..start - 1]);
            replaced.push_str("${");
            at = start + 2;
            continue;
        }
        let end = template[start..].find('}').map(|found| start + found);
        let end = end.ok_or("a ${ has no closing }; write $${ for a plain ${")?;
        let value = look_up(&template[start + 2..end], environment)?;
        replaced.push_str(&template[at..start]);
        if login.contains(&start) {
            percent_encode(&mut replaced, &value);
        } else {
            replaced.push_str(&value);
        }
        at = end + 1;
    }
    replaced.push_str(&template[at..]);
    Ok(replaced)
}

/// Whether a URL, as written, holds a password that is not a reference.
pub(super) fn has_literal_password(template: &str) -> bool {
    let mut literal = String::new();
    let mut rest = template;
    while let Some((head, tail)) = rest.split_once("${") {
        literal.push_str(head);
        rest = tail.split_once('}').map_or("", |(_, after)| after);
    }
    literal.push_str(rest);
    let login = &literal[login_range(&literal)];
    let in_login = login.split_once(':').is_some_and(|(_, password)| !password.is_empty());
    let in_query = literal.match_indices("password=").any(|(at, word)| {
        literal[at + word.len()..].starts_with(|next: char| !matches!(next, '&' | '#'))
    });
    in_login || in_query
}

/// Where name and password stand in a URL: between `://` and the last `@`.
fn login_range(url: &str) -> std::ops::Range<usize> {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => scheme + 3..at,
        _ => 0..0,
    }
}

fn look_up(reference: &str, environment: &Environment) -> Result<String, String> {
    if let Some(path) = reference.strip_prefix("file:") {
        return read_secret(Path::new(path));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    // What stands there may be a part of a password, so it is not repeated.
    if reference.is_empty() || !reference.chars().all(plain) {
        return Err("between ${ and } stands neither the name of an environment variable nor \
                    file:/path; write $${ for a plain ${"
            .into());
    }
    environment.value(reference).map(str::to_owned)
}

fn read_secret(path: &Path) -> Result<String, String> {
    if !path.is_absolute() {
        return Err(format!("${{file:{}}} needs an absolute path", path.display()));
    }
    let failed = |error| format!("cannot read the secret file {}: {error}", path.display());
    let mut secret = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut secret).map_err(failed)?;
    if secret.len() as u64 > SECRET_BYTES_MAX {
        return Err(format!("the secret file {} is longer than 64 KiB", path.display()));
    }
    // Editors and `echo` end a file with a newline that is no part of the secret.
    let line = secret.strip_suffix('\n').unwrap_or(&secret);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

fn percent_encode(encoded: &mut String, value: &str) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing into a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_replace(template: &str, expected: Result<&str, &str>) {
        let environment = Environment::from_pairs([("PW", "p@s/s"), ("HOST", "db")]);
        let replaced = replace(template, true, &environment);
        assert_eq!(replaced.as_deref().map_err(String::as_str), expected, "{template}");
    }

    #[test]
    fn references_are_replaced_and_a_password_is_encoded() {
        check_replace("postgres://u:${PW}@${HOST}/x", Ok("postgres://u:p%40s%2Fs@db/x"));
        check_replace("${PW}", Ok("p@s/s"));
        check_replace("sqlite:${HOST}.db", Ok("sqlite:db.db"));
        check_replace("a$b $${HOST} ${HOST}", Ok("a$b ${HOST} db"));
    }

    #[test]
    fn a_wrong_reference_is_an_error_that_repeats_no_secret() {
        check_replace("${NONE}", Err("the environment variable NONE is not set"));
        check_replace("u:s${cret", Err("a ${ has no closing }; write $${ for a plain ${"));
        let environment = Environment::default();
        let error = replace("u:s${c-r!et}", true, &environment).unwrap_err();
        assert!(!error.contains("c-r!et"), "{error}");
    }

    #[test]
    fn a_secret_file_loses_one_newline() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, "two\nlines\n\n").unwrap();
        let template = format!("${{file:{}}}", path.display());
        let replaced = replace(&template, false, &Environment::default());
        assert_eq!(replaced.unwrap(), "two\nlines\n");
        let missing = replace("${file:/none/here}", false, &Environment::default());
        assert!(missing.unwrap_err().contains("/none/here"));
        let relative = replace("${file:here}", false, &Environment::default());
        assert!(relative.unwrap_err().contains("absolute"));
    }

    #[test]
    fn a_password_in_plain_text_is_recognized() {
        for url in [
            "postgres://u:secret@h/d",
            "postgres://u:${HALF}secret@h/d",
            "postgres://u:a/b?c@h/d",
            "postgres://h/d?password=secret",
            "postgres://h/d?sslmode=require&password=secret",
        ] {
            assert!(has_literal_password(url), "{url}");
        }
        for url in [
            "postgres://u@h:5432/d",
            "postgres://u:${PW}@h/d",
            "postgres://u:${file:/run/secrets/pw}@h/d",
            "postgres://h/d?password=${PW}&sslmode=require",
            "${URL}",
            "sqlite:a.db",
        ] {
            assert!(!has_literal_password(url), "{url}");
        }
    }
}
