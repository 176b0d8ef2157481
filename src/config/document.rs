//! What was given for each key, and where: in the file, the environment or on the command line.
//! Knows the keys and the kind of their values, not their meaning; `config.rs` does.
//! Surprise: the TOML library only reads the syntax. Its errors about values quote them, and a
//! value may be a password, so kinds are compared here.

use std::collections::BTreeMap;

use connectors::error::{Code, Error, Result};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::references::{self, Environment};

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Text,
    /// Text whose references are replaced as in a URL.
    Url,
    Number,
    Flag,
    List,
}

/// A key: its section and its name in it.
pub(super) type KeyName = (&'static str, &'static str);

/// Every key there is, in the order of the example file.
const KEYS: [(KeyName, Shape); 19] = [
    (("pipeline", "name"), Shape::Text),
    (("pipeline", "tables"), Shape::List),
    (("pipeline", "deletes"), Shape::Text),
    (("pipeline", "on_table_stop"), Shape::Text),
    (("pipeline", "batch_rows"), Shape::Number),
    (("pipeline", "batch_bytes"), Shape::Text),
    (("pipeline", "batch_wait"), Shape::Text),
    (("pipeline", "memory"), Shape::Text),
    (("pipeline", "chunk_rows"), Shape::Number),
    (("pipeline", "copy_workers"), Shape::Number),
    (("source", "url"), Shape::Url),
    (("source", "bulk_read"), Shape::Flag),
    (("source", "streaming"), Shape::Flag),
    (("source", "server_id"), Shape::Number),
    (("source", "zero_dates"), Shape::Text),
    (("source", "cascades"), Shape::Text),
    (("target", "url"), Shape::Url),
    (("state", "dir"), Shape::Text),
    (("http", "listen"), Shape::Text),
];

/// Their names, in order.
#[cfg(test)]
pub(super) fn keys() -> impl Iterator<Item = KeyName> {
    KEYS.into_iter().map(|(key, _)| key)
}

/// Variables that belong to driftless and are no keys.
const OTHER_VARIABLES: [&str; 1] = ["DRIFTLESS_LOG"];

/// A value as it was written, references and all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Number(i64),
    Flag(bool),
    List(Vec<String>),
}

/// A value and where it stands, in words.
struct Given {
    value: Value,
    origin: String,
}

/// What was given, by key. A later layer replaces an earlier one.
#[derive(Default)]
pub(super) struct Document(BTreeMap<KeyName, Given>);

impl Document {
    /// Reads a file's text; `name` is the file's, for errors.
    pub(super) fn parse(name: &str, text: &str) -> Result<Document> {
        let root = DeTable::parse(text).map_err(|error| syntax_error(name, text, &error))?;
        let mut document = Document::default();
        for (section, content) in root.get_ref().iter() {
            let place = Place { name, text, at: section.span().start };
            document.read_section(&place, section.get_ref(), content)?;
        }
        Ok(document)
    }

    fn read_section(
        &mut self,
        place: &Place<'_>,
        section: &str,
        content: &Spanned<DeValue<'_>>,
    ) -> Result<()> {
        let DeValue::Table(content) = content.get_ref() else {
            return Err(place.unknown_key(section, section));
        };
        if !KEYS.iter().any(|((known, _), _)| *known == section) {
            let known = KEYS.iter().map(|((known, _), _)| (*known).to_owned());
            let nearest = nearest(section, known, str::to_owned);
            return Err(place.error(&format!(
                "there is no section [{section}]; the nearest one is [{nearest}]"
            )));
        }
        for (key, value) in content.iter() {
            let place = Place { at: key.span().start, ..*place };
            let Some((name, shape)) = find(section, key.get_ref()) else {
                return Err(
                    place.unknown_key(&format!("{section}.{}", key.get_ref()), key.get_ref())
                );
            };
            let value = Value::from_toml(value.get_ref(), shape);
            let value = value.ok_or_else(|| {
                place.error(&format!("{section}.{} must be {}", name.1, shape.in_words()))
            })?;
            self.0.insert(name, Given { value, origin: place.to_string() });
        }
        Ok(())
    }

    /// Lets `DRIFTLESS_SECTION__KEY` replace what the file says.
    pub(super) fn override_from(&mut self, environment: &Environment) -> Result<()> {
        let ours = |name: &&str| name.starts_with("DRIFTLESS_") && !OTHER_VARIABLES.contains(name);
        for variable in environment.names().filter(ours) {
            let Some((key, shape)) =
                KEYS.into_iter().find(|(key, _)| variable_of(*key) == variable)
            else {
                let known = KEYS.iter().map(|(key, _)| variable_of(*key));
                let nearest = nearest(variable, known, str::to_owned);
                return Err(configuration(format!(
                    "the environment variable {variable} sets no known key; the nearest one is \
                     {nearest}"
                )));
            };
            let text = environment.value(variable).map_err(configuration)?;
            let origin = format!("the environment variable {variable}");
            let value = Value::from_text(text, shape)
                .ok_or_else(|| configuration(format!("{origin} must be {}", shape.in_words())))?;
            self.0.insert(key, Given { value, origin });
        }
        Ok(())
    }

    /// Lets a flag of the command line replace what was said elsewhere.
    pub(super) fn set_flag(&mut self, key: KeyName, value: Value, flag: &str) {
        self.0.insert(key, Given { value, origin: flag.to_owned() });
    }

    /// Whether anything was given for the key.
    pub(super) fn has(&self, key: KeyName) -> bool {
        self.0.contains_key(&key)
    }

    /// Whether one of the URLs holds a password in plain text.
    pub(super) fn has_literal_password(&self) -> bool {
        self.0.values().any(|given| match &given.value {
            Value::Text(text) => references::has_literal_password(text),
            Value::Number(_) | Value::Flag(_) | Value::List(_) => false,
        })
    }

    /// The text given for a key, references replaced.
    pub(super) fn text(&self, key: KeyName, environment: &Environment) -> Result<Option<String>> {
        match self.0.get(&key).map(|given| &given.value) {
            Some(Value::Text(template)) => self.replace(key, template, environment).map(Some),
            Some(Value::Number(_) | Value::Flag(_) | Value::List(_)) | None => Ok(None),
        }
    }

    /// The number given for a key.
    pub(super) fn number(&self, key: KeyName) -> Option<i64> {
        match self.0.get(&key).map(|given| &given.value) {
            Some(Value::Number(number)) => Some(*number),
            Some(Value::Text(_) | Value::Flag(_) | Value::List(_)) | None => None,
        }
    }

    /// Whether the key is set or not, if either was given.
    pub(super) fn flag(&self, key: KeyName) -> Option<bool> {
        match self.0.get(&key).map(|given| &given.value) {
            Some(Value::Flag(flag)) => Some(*flag),
            Some(Value::Text(_) | Value::Number(_) | Value::List(_)) | None => None,
        }
    }

    /// The list given for a key, references replaced in each item.
    pub(super) fn list(
        &self,
        key: KeyName,
        environment: &Environment,
    ) -> Result<Option<Vec<String>>> {
        match self.0.get(&key).map(|given| &given.value) {
            Some(Value::List(items)) => {
                let replaced = items.iter().map(|item| self.replace(key, item, environment));
                replaced.collect::<Result<_>>().map(Some)
            }
            Some(Value::Text(_) | Value::Number(_) | Value::Flag(_)) | None => Ok(None),
        }
    }

    /// An error about the value of a key, with the place where it stands.
    pub(super) fn error(&self, (section, name): KeyName, message: &str) -> Error {
        let origin =
            self.0.get(&(section, name)).map_or("the default", |given| given.origin.as_str());
        configuration(format!("{origin}: {section}.{name} {message}"))
    }

    fn replace(&self, key: KeyName, template: &str, environment: &Environment) -> Result<String> {
        let is_url = matches!(find(key.0, key.1), Some((_, Shape::Url)));
        references::replace(template, is_url, environment)
            .map_err(|message| self.error(key, &format!("cannot be completed: {message}")))
    }
}

impl Value {
    fn from_toml(value: &DeValue<'_>, shape: Shape) -> Option<Value> {
        match (shape, value) {
            (Shape::Text | Shape::Url, DeValue::String(text)) => {
                Some(Value::Text(text.clone().into_owned()))
            }
            (Shape::Number, DeValue::Integer(number)) => {
                i64::from_str_radix(number.as_str(), number.radix()).ok().map(Value::Number)
            }
            (Shape::Flag, DeValue::Boolean(flag)) => Some(Value::Flag(*flag)),
            (Shape::List, DeValue::Array(items)) => {
                let item = |item: &Spanned<DeValue<'_>>| item.get_ref().as_str().map(str::to_owned);
                items.iter().map(item).collect::<Option<_>>().map(Value::List)
            }
            _ => None,
        }
    }

    fn from_text(text: &str, shape: Shape) -> Option<Value> {
        match shape {
            Shape::Text | Shape::Url => Some(Value::Text(text.to_owned())),
            Shape::Number => text.trim().parse().ok().map(Value::Number),
            Shape::Flag => text.trim().parse().ok().map(Value::Flag),
            Shape::List => Some(Value::List(split_list(text))),
        }
    }
}

impl Shape {
    fn in_words(self) -> &'static str {
        match self {
            Shape::Text | Shape::Url => "text in quotes",
            Shape::Number => "a whole number",
            Shape::Flag => "true or false",
            Shape::List => "a list of texts, for instance [\"public.*\", \"!public.audit_*\"]",
        }
    }
}

/// The items of `a, !b`.
pub(super) fn split_list(text: &str) -> Vec<String> {
    text.split(',').map(|item| item.trim().to_owned()).collect()
}

/// A configuration error.
pub(super) fn configuration(message: impl Into<String>) -> Error {
    Error::stop(Code::Configuration, message)
}

/// A place in the file, for people.
#[derive(Clone, Copy)]
struct Place<'a> {
    name: &'a str,
    text: &'a str,
    at: usize,
}

impl Place<'_> {
    fn error(&self, message: &str) -> Error {
        configuration(format!("{self}: {message}"))
    }

    /// `full` is the key as its place in the file makes it, `name` its last part.
    fn unknown_key(&self, full: &str, name: &str) -> Error {
        let known = KEYS.iter().map(|((section, key), _)| format!("{section}.{key}"));
        // A key in the wrong section has the right name, so the section counts for little.
        let bare = |known: &str| known.rsplit('.').next().unwrap_or(known).to_owned();
        let nearest = nearest(name, known, bare);
        self.error(&format!("there is no key {full}; the nearest one is {nearest}"))
    }
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let before = self.text.get(..self.at).unwrap_or(self.text);
        write!(f, "{} line {}", self.name, before.matches('\n').count() + 1)
    }
}

fn find(section: &str, name: &str) -> Option<(KeyName, Shape)> {
    KEYS.into_iter().find(|((known, key), _)| *known == section && *key == name)
}

fn variable_of((section, name): KeyName) -> String {
    format!("DRIFTLESS_{}__{}", section.to_uppercase(), name.to_uppercase())
}

/// The known name most like `name`; `compared` is the part of it that counts.
fn nearest(
    name: &str,
    known: impl Iterator<Item = String>,
    compared: impl Fn(&str) -> String,
) -> String {
    let distance = |known: &String| strsim::damerau_levenshtein(name, &compared(known));
    known.min_by_key(distance).unwrap_or_default()
}

/// The place of a syntax error; what stands there stays unsaid.
fn syntax_error(name: &str, text: &str, error: &toml::de::Error) -> Error {
    let at = error.span().map_or(0, |span| span.start);
    Place { name, text, at }.error(&format!("this is not TOML: {}", error.message()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_error(text: &str, expected: &str) {
        let error = Document::parse("d.toml", text).map(|_| ()).unwrap_err();
        assert_eq!(error.code, Code::Configuration);
        assert_eq!(error.message, expected);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
        check_error(
            "[pipeline]\nname = \"a\"\nbatch_row = 5\n",
            "d.toml line 3: there is no key pipeline.batch_row; the nearest one is \
             pipeline.batch_rows",
        );
        check_error(
            "[source]\nuri = \"x\"",
            "d.toml line 2: there is no key source.uri; the nearest one is source.url",
        );
        check_error(
            "memory = \"1GiB\"",
            "d.toml line 1: there is no key memory; the nearest one is pipeline.memory",
        );
        check_error(
            "\n[pipelines]\n",
            "d.toml line 2: there is no section [pipelines]; the nearest one is [pipeline]",
        );
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_named_but_not_repeated() {
        check_error(
            "[pipeline]\nbatch_rows = \"hunter2\"",
            "d.toml line 2: pipeline.batch_rows must be a whole number",
        );
        check_error("source.url = 5", "d.toml line 1: source.url must be text in quotes");
        check_error(
            "source.bulk_read = \"hunter2\"",
            "d.toml line 1: source.bulk_read must be true or false",
        );
        check_error(
            "pipeline.tables = \"hunter2\"",
            "d.toml line 1: pipeline.tables must be a list of texts, for instance \
             [\"public.*\", \"!public.audit_*\"]",
        );
    }

    #[test]
    fn a_syntax_error_never_repeats_the_line() {
        for text in [
            "[source]\nurl = postgres://u:hunter2@h/d",
            "[source]\nurl = \"postgres://u:hunter2@h/d",
            "[source]\nurl = 'hunter2\n",
            "[source]\nurl = \"hunter2\\q\"",
            "[source]\nurl = hunter2",
            "[source]\nurl \"hunter2\"",
            "[source]\nurl = \"a\" hunter2",
            "[source]\nurl = \"a\"\nurl = \"hunter2\"",
            "[source]\nurl = 0xhunter2",
            "[source]\nurl = 1hunter2",
            "[source]\nurl = [\"hunter2\", ",
            "[source]\nurl = { a = hunter2",
            "[source\nurl = \"hunter2\"",
            "[source]\n= \"hunter2\"",
        ] {
            let error = Document::parse("d.toml", text).map(|_| ()).unwrap_err();
            assert!(!error.message.contains("hunter2"), "{text}: {error}");
            assert!(error.message.starts_with("d.toml line "), "{error}");
            assert!(!error.message.contains('\n'), "{error}");
        }
    }

    #[test]
    fn the_environment_overrides_every_kind_of_key() {
        let mut document = Document::parse("d.toml", "pipeline.batch_rows = 5").unwrap();
        let environment = Environment::from_pairs([
            ("DRIFTLESS_PIPELINE__BATCH_ROWS", "7"),
            ("DRIFTLESS_PIPELINE__TABLES", "a, !b"),
            ("DRIFTLESS_SOURCE__BULK_READ", "false"),
            ("DRIFTLESS_STATE__DIR", "/s"),
            ("DRIFTLESS_LOG", "debug"),
            ("HOME", "/root"),
        ]);
        document.override_from(&environment).unwrap();
        assert_eq!(document.number(("pipeline", "batch_rows")), Some(7));
        assert_eq!(document.flag(("source", "bulk_read")), Some(false));
        let tables = document.list(("pipeline", "tables"), &environment).unwrap();
        assert_eq!(tables, Some(vec!["a".into(), "!b".into()]));
        let state = document.text(("state", "dir"), &environment).unwrap();
        assert_eq!(state.as_deref(), Some("/s"));
    }

    #[test]
    fn a_variable_that_sets_nothing_is_an_error() {
        let environment = Environment::from_pairs([("DRIFTLESS_SOURCE_URL", "hunter2")]);
        let error = Document::default().override_from(&environment).unwrap_err();
        assert_eq!(
            error.message,
            "the environment variable DRIFTLESS_SOURCE_URL sets no known key; the nearest one is \
             DRIFTLESS_SOURCE__URL"
        );
        let environment = Environment::from_pairs([("DRIFTLESS_PIPELINE__BATCH_ROWS", "hunter2")]);
        let error = Document::default().override_from(&environment).unwrap_err();
        assert_eq!(
            error.message,
            "the environment variable DRIFTLESS_PIPELINE__BATCH_ROWS must be a whole number"
        );
    }
}
