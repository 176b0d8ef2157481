//! The configuration, resolved: every default is decided here, the engine never sees an `Option`.
//! What is given comes from `document.rs` (file, environment, flags); commands call `load`.
//! Surprise: without `--config`, URLs on the command line replace `driftless.toml` altogether, so
//! that a file that happens to lie in the directory never takes part in a one-off run.

mod document;
mod references;
mod units;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use connectors::error::Result;
use connectors::schema::TablePatterns;
use connectors::{SourceOptions, TargetOptions, ZeroDates};

use self::document::{Document, KeyName, Value, configuration, split_list};
pub use self::references::Environment;

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "driftless.toml";

/// The commented file with every key at its default; `driftless init` writes it.
pub const EXAMPLE: &str = include_str!("../driftless.example.toml");

/// A configuration file holds a few dozen lines; a longer one is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// One pipeline: a source, a target, and how to get from one to the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `pipeline.name`: lower case letters, digits and underscores, at most 50. Default `main`.
    /// Also names slot and publication in the source, `driftless_main`. Another name is another
    /// pipeline, which copies everything again.
    pub name: String,
    /// `pipeline.tables`: which tables are replicated, `schema.table` with `*` for any characters
    /// and `!` for exclusion. Default `["*.*"]`; for MySQL, all tables of the URL's database.
    pub tables: TablePatterns,
    /// The schema that a plain table name belongs to; follows from `source.url`.
    pub plain_schema: String,
    /// The same as it was written, for people and for comparison with an earlier start.
    pub table_patterns: Vec<String>,
    /// `pipeline.deletes`: `soft` keeps deleted rows in the target, marked `_cdc_deleted`; `hard`
    /// removes them. Default `hard`.
    pub soft_deletes: bool,
    /// `pipeline.batch_rows`: most rows of one target transaction. Default 20000. Larger batches
    /// are faster and lag more.
    pub batch_rows: usize,
    /// `pipeline.batch_bytes`: most bytes of one target transaction. Default `8MiB`. Two of them
    /// are held at a time.
    pub batch_bytes: usize,
    /// `pipeline.batch_wait`: a batch that is not full is sent after this long. Default `200ms`.
    /// It is the least lag of a busy source; longer waits make fewer, larger transactions.
    pub batch_wait: Duration,
    /// `pipeline.memory`: what the pipeline may hold, in bytes; at least twice `batch_bytes`.
    /// Default `256MiB`. Larger source transactions are applied in parts.
    pub memory: usize,
    /// `pipeline.on_table_stop`: whether a table that cannot go on stops the pipeline (`stop`) or
    /// leaves the others running and the health red (`continue`). Default `continue`.
    pub stop_on_table_error: bool,
    /// `pipeline.chunk_rows`: rows that a backfill reads in one transaction. Default 10000. Larger
    /// chunks are faster and hold back the source's vacuum longer.
    pub chunk_rows: usize,
    /// `pipeline.copy_workers`: tables copied at a time, each read on a connection of its own; and
    /// chunks of first copies written at a time, each on a connection of its own to a PostgreSQL
    /// target. Default 2. More help only while source and target have idle cores.
    pub copy_workers: usize,
    /// `source.url`: `postgres://…` or `mysql://…`. No default.
    pub source_url: Secret,
    /// `source.bulk_read`: whether a PostgreSQL source that is far ahead is read in bulk over SQL
    /// instead of streamed, at little more than half the cost for the source, with temporary files
    /// of about 64 MiB there. Default `true`.
    pub bulk_read: bool,
    /// `source.streaming`: whether a PostgreSQL source sends transactions that are too large for its
    /// memory (`logical_decoding_work_mem`) while they are under way. They wait in files of
    /// `state.dir` for their commit. Default `true`. With `false` the source keeps them on its own
    /// disk, and sends them after their commit.
    pub streaming: bool,
    /// `source.server_id`: what we call ourselves among the replicas of a MySQL source; no two
    /// replicas of a server may have the same. Default: made of the pipeline's name.
    pub server_id: Option<u32>,
    /// `source.zero_dates`: what becomes of MySQL's dates with a zero in them, `stop` (the table)
    /// or `null`. Default `stop`.
    pub zero_dates: ZeroDates,
    /// `source.cascades`: whether MySQL tables are replicated although a foreign key changes their
    /// rows without telling the log, `refuse` or `accept`. Default `refuse`.
    pub accept_cascades: bool,
    /// `target.url`: `postgres://…`, `mysql://…` or `sqlite:path.db`. No default.
    pub target_url: Secret,
    /// `state.dir`: what must survive a restart on this machine. Default `.driftless`. Each
    /// pipeline has a directory of its name in it, so that pipelines may share it.
    pub state_dir: PathBuf,
}

/// Text that never reaches a log or an error by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself; for the connection, and nothing else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

/// What the command line says about the pipeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--config`: the file. Excludes all others.
    pub config: Option<PathBuf>,
    /// `--from`: `source.url`. Replaces the file, together with `--to`.
    pub from: Option<String>,
    /// `--to`: `target.url`.
    pub to: Option<String>,
    /// `--tables`: `pipeline.tables`, with commas.
    pub tables: Option<String>,
    /// `--state`: `state.dir`.
    pub state: Option<String>,
    /// `--pipeline`: `pipeline.name`.
    pub pipeline: Option<String>,
}

impl Settings {
    /// Reads the configuration: flags before environment before file before defaults.
    ///
    /// # Errors
    /// `Code::Configuration`, naming the key and the place where it stands; never a value that
    /// may hold a secret.
    pub fn load(flags: &Flags, environment: &Environment) -> Result<Settings> {
        let mut document = match (&flags.config, &flags.from, &flags.to) {
            (Some(_), _, _) if flags.any_replaces_file() => {
                return Err(configuration(
                    "--config and --from, --to, --tables, --state, --pipeline exclude each \
                     other; put the change into the file or into a DRIFTLESS_ variable",
                ));
            }
            (Some(file), _, _) => read_file(file)?,
            (None, None, None) if flags.any_replaces_file() => {
                return Err(configuration(
                    "--tables, --state and --pipeline belong to --from URL --to URL; without \
                     them, put the change into driftless.toml",
                ));
            }
            (None, None, None) => read_default_file(environment)?,
            (None, Some(_), Some(_)) => Document::default(),
            (None, Some(_), None) => return Err(configuration("--from URL needs --to URL")),
            (None, None, Some(_)) => return Err(configuration("--to URL needs --from URL")),
        };
        document.override_from(environment)?;
        flags.set_in(&mut document);
        resolve(&document, environment)
    }

    /// What the source is opened with.
    #[must_use]
    pub fn source_options(&self) -> SourceOptions {
        SourceOptions {
            pipeline: self.name.clone(),
            part_bytes: self.batch_bytes,
            streaming: self.streaming,
            in_binary: connectors::takes_binary(self.target_url.expose()),
            spool: self.pipeline_dir(),
            bulk_read_above: self.bulk_read.then_some(SourceOptions::BULK_READ_ABOVE),
            read_ahead: self.memory / 32,
            server_id: self.server_id,
            zero_dates: self.zero_dates,
            accept_cascades: self.accept_cascades,
        }
    }

    /// What the target is opened with.
    #[must_use]
    pub fn target_options(&self) -> TargetOptions {
        TargetOptions {
            pipeline: self.name.clone(),
            soft_deletes: self.soft_deletes,
            plain_schema: self.plain_schema.clone(),
        }
    }

    /// The directory of this pipeline in `state_dir`.
    #[must_use]
    pub fn pipeline_dir(&self) -> PathBuf {
        state::pipeline_directory(&self.state_dir, &self.name)
    }
}

impl Flags {
    fn any_replaces_file(&self) -> bool {
        [&self.from, &self.to, &self.tables, &self.state, &self.pipeline]
            .iter()
            .any(|flag| flag.is_some())
    }

    fn set_in(&self, document: &mut Document) {
        let texts = [
            (("source", "url"), "--from", &self.from),
            (("target", "url"), "--to", &self.to),
            (("state", "dir"), "--state", &self.state),
            (("pipeline", "name"), "--pipeline", &self.pipeline),
        ];
        for (key, flag, text) in texts {
            if let Some(text) = text {
                document.set_flag(key, Value::Text(text.clone()), flag);
            }
        }
        if let Some(tables) = &self.tables {
            document.set_flag(("pipeline", "tables"), Value::List(split_list(tables)), "--tables");
        }
    }
}

fn read_default_file(environment: &Environment) -> Result<Document> {
    match read_file(Path::new(DEFAULT_FILE)) {
        Err(_) if !Path::new(DEFAULT_FILE).exists() => {
            // A container may bring everything in its environment.
            let set = |name| environment.value(name).is_ok();
            if set("DRIFTLESS_SOURCE__URL") && set("DRIFTLESS_TARGET__URL") {
                return Ok(Document::default());
            }
            Err(configuration(
                "there is no driftless.toml here; run `driftless init` to write one, name one \
                 with --config FILE, or give --from URL --to URL",
            ))
        }
        other => other,
    }
}

fn read_file(path: &Path) -> Result<Document> {
    let name = path.display().to_string();
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => configuration(format!(
            "there is no file {name}; run `driftless --config {name} init` to write one"
        )),
        _ => configuration(format!("cannot read {name}: {error}")),
    };
    let file = OpenOptions::new().read(true).open(path).map_err(failed)?;
    let mut text = String::new();
    (&file).take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(configuration(format!("{name} is longer than 1 MiB")));
    }
    let document = Document::parse(&name, &text)?;
    if document.has_literal_password() {
        require_private(path, &file)?;
    }
    Ok(document)
}

/// Refuses a file with a password that somebody else can read or put there.
fn require_private(path: &Path, file: &File) -> Result<()> {
    let name = path.display();
    let failed = |error| configuration(format!("cannot read the mode of {name}: {error}"));
    let link = std::fs::symlink_metadata(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let what = "holds a password in plain text and";
    if link.file_type().is_symlink() {
        return Err(configuration(format!(
            "{name} {what} is a symbolic link; name the file itself with --config, or write \
             ${{NAME}} or ${{file:/path}} instead of the password"
        )));
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(configuration(format!(
            "{name} {what} belongs to another user; run `chown \"$(id -un)\" {name}`"
        )));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(configuration(format!(
            "{name} {what} can be read by other users; run `chmod 600 {name}`"
        )));
    }
    Ok(())
}

/// Reads values, knows defaults and bounds.
struct Resolver<'a> {
    document: &'a Document,
    environment: &'a Environment,
}

fn resolve(document: &Document, environment: &Environment) -> Result<Settings> {
    let resolver = Resolver { document, environment };
    if document.has(("http", "listen")) {
        let message = "is not available yet in this version; remove it, and ask for the health \
                       with `driftless status`";
        return Err(document.error(("http", "listen"), message));
    }
    let source_url =
        resolver.url(("source", "url"), &["postgres", "postgresql", "mysql", "mariadb"])?;
    let plain_schema = connectors::plain_schema(source_url.expose())?;
    let (tables, table_patterns) = resolver.tables(&plain_schema)?;
    let batch_bytes = resolver.bytes(("pipeline", "batch_bytes"), "8MiB", 1 << 10)?;
    let memory = resolver.bytes(("pipeline", "memory"), "256MiB", 1 << 20)?;
    if memory / 2 < batch_bytes {
        let message = "must be at least twice pipeline.batch_bytes, because one batch is built \
                       while another is applied";
        return Err(document.error(("pipeline", "memory"), message));
    }
    Ok(Settings {
        name: resolver.name()?,
        tables,
        table_patterns,
        soft_deletes: resolver.choice(("pipeline", "deletes"), ["hard", "soft"])?,
        batch_rows: resolver.count(("pipeline", "batch_rows"), 20_000, 1_000_000)?,
        batch_bytes,
        batch_wait: resolver.duration(("pipeline", "batch_wait"), "200ms")?,
        memory,
        stop_on_table_error: resolver
            .choice(("pipeline", "on_table_stop"), ["continue", "stop"])?,
        chunk_rows: resolver.count(("pipeline", "chunk_rows"), 10_000, 1_000_000)?,
        copy_workers: resolver.count(("pipeline", "copy_workers"), 2, 64)?,
        plain_schema,
        source_url,
        streaming: document.flag(("source", "streaming")).unwrap_or(true),
        bulk_read: document.flag(("source", "bulk_read")).unwrap_or(true),
        server_id: resolver.server_id()?,
        zero_dates: match resolver.choice(("source", "zero_dates"), ["stop", "null"])? {
            false => ZeroDates::Stop,
            true => ZeroDates::Null,
        },
        accept_cascades: resolver.choice(("source", "cascades"), ["refuse", "accept"])?,
        target_url: resolver
            .url(("target", "url"), &["postgres", "postgresql", "mysql", "mariadb", "sqlite"])?,
        state_dir: resolver.state_dir()?,
    })
}

impl Resolver<'_> {
    fn text(&self, key: KeyName) -> Result<Option<String>> {
        self.document.text(key, self.environment)
    }

    fn name(&self) -> Result<String> {
        let key = ("pipeline", "name");
        let name = self.text(key)?.unwrap_or_else(|| "main".into());
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if name.is_empty() || name.len() > 50 || !name.chars().all(plain) {
            let message = "must be 1 to 50 lower case letters, digits and underscores";
            return Err(self.document.error(key, message));
        }
        Ok(name)
    }

    fn tables(&self, plain_schema: &str) -> Result<(TablePatterns, Vec<String>)> {
        let key = ("pipeline", "tables");
        let patterns = self.document.list(key, self.environment)?;
        let all = match plain_schema {
            "public" => "*.*".into(),
            // Other databases of a MySQL server are somebody else's.
            database => format!("{database}.*"),
        };
        let patterns = patterns.unwrap_or_else(|| vec![all]);
        let tables = TablePatterns::parse(&patterns, plain_schema)
            .map_err(|message| self.document.error(key, &format!("is wrong: {message}")))?;
        Ok((tables, patterns))
    }

    /// Whether the second choice was made; the first one is the default.
    fn choice(&self, key: KeyName, [default, other]: [&str; 2]) -> Result<bool> {
        match self.text(key)? {
            None => Ok(false),
            Some(text) if text == default => Ok(false),
            Some(text) if text == other => Ok(true),
            Some(_) => {
                let message = format!("must be \"{default}\" or \"{other}\"");
                Err(self.document.error(key, &message))
            }
        }
    }

    fn count(&self, key: KeyName, default: usize, max: usize) -> Result<usize> {
        let Some(number) = self.document.number(key) else { return Ok(default) };
        let within = usize::try_from(number).ok().filter(|number| (1..=max).contains(number));
        within.ok_or_else(|| self.document.error(key, &format!("must be from 1 to {max}")))
    }

    fn server_id(&self) -> Result<Option<u32>> {
        let key = ("source", "server_id");
        let Some(number) = self.document.number(key) else { return Ok(None) };
        let id = u32::try_from(number).ok().filter(|id| *id > 0);
        id.map(Some).ok_or_else(|| self.document.error(key, "must be from 1 to 4294967295"))
    }

    fn bytes(&self, key: KeyName, default: &str, min: usize) -> Result<usize> {
        let text = self.text(key)?.unwrap_or_else(|| default.into());
        let bytes = units::parse_bytes(&text)
            .map_err(|form| self.document.error(key, &format!("must be {form}")))?;
        if bytes < min {
            let message = format!("must be at least {} KiB", min >> 10);
            return Err(self.document.error(key, &message));
        }
        Ok(bytes)
    }

    fn duration(&self, key: KeyName, default: &str) -> Result<Duration> {
        let text = self.text(key)?.unwrap_or_else(|| default.into());
        let duration = units::parse_duration(&text)
            .map_err(|form| self.document.error(key, &format!("must be {form}")))?;
        if duration > Duration::from_secs(60) {
            return Err(self.document.error(key, "must be at most 1m"));
        }
        Ok(duration)
    }

    fn url(&self, key: KeyName, schemes: &[&str]) -> Result<Secret> {
        let (section, name) = key;
        let url = self.text(key)?.ok_or_else(|| {
            let variable = section.to_uppercase();
            configuration(format!(
                "{section}.{name} is missing; put it into driftless.toml or into the environment \
                 variable DRIFTLESS_{variable}__URL"
            ))
        })?;
        // Only the known beginnings are named: what stands there instead may be a password.
        let known = url.split_once(':').is_some_and(|(scheme, _)| schemes.contains(&scheme));
        if !known {
            let expected = match section {
                "source" => "must begin with postgres:// or mysql://, the sources of this version",
                _ => {
                    "must begin with postgres://, mysql:// or sqlite:, the targets of this version"
                }
            };
            return Err(self.document.error(key, expected));
        }
        Ok(Secret(url))
    }

    fn state_dir(&self) -> Result<PathBuf> {
        let key = ("state", "dir");
        match self.text(key)? {
            None => Ok(".driftless".into()),
            Some(directory) if directory.is_empty() => {
                Err(self.document.error(key, "must not be empty"))
            }
            Some(directory) => Ok(directory.into()),
        }
    }
}

#[cfg(test)]
mod tests;
