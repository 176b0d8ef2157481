//! What a source and a target are opened with, and which one the scheme of a URL means.

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Code, Error, Result};
use crate::{Source, Target, mysql, postgres, sqlite};

/// What a target needs to know of its pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetOptions {
    /// The pipeline's name.
    pub pipeline: String,
    /// Whether deleted rows stay, marked `_cdc_deleted`.
    pub soft_deletes: bool,
    /// The schema whose tables keep their plain names in a target without schemas; that of
    /// `plain_schema`.
    pub plain_schema: String,
}

/// What a source needs to know of its pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceOptions {
    /// The pipeline's name; names slot and publication.
    pub pipeline: String,
    /// A larger transaction is delivered in parts of about this many bytes.
    pub part_bytes: usize,
    /// PostgreSQL: whether transactions that are too large for the server's memory are taken
    /// before their end.
    pub streaming: bool,
    /// The directory that holds them until then, and XA transactions of MySQL and MariaDB that are
    /// too large for our memory.
    pub spool: PathBuf,
    /// PostgreSQL: whether values may come as `Cell::Binary`, which only such a target takes
    /// (`takes_binary`).
    pub in_binary: bool,
    /// PostgreSQL: when the log that is still to be read is more than this many bytes, it is read
    /// in bulk; `None`: never.
    pub bulk_read_above: Option<u64>,
    /// PostgreSQL: how many bytes of a bulk read may wait for us, so that the server goes on meanwhile.
    pub read_ahead: usize,
    /// MySQL: what we call ourselves among its replicas; `None` makes it of the pipeline's name.
    pub server_id: Option<u32>,
    /// MySQL: what becomes of dates with a zero in them.
    pub zero_dates: ZeroDates,
    /// MySQL: replicate tables although a foreign key changes their rows without telling the log.
    pub accept_cascades: bool,
}

/// What becomes of a MySQL date with a zero year, month or day, which is no date elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroDates {
    /// Its table stops, and the row is named.
    #[default]
    Stop,
    /// NULL is written in its place.
    Null,
}

impl SourceOptions {
    /// Less log than this is sooner streamed: a bulk read and the change back cost the server some
    /// log that it reads again.
    pub const BULK_READ_ABOVE: u64 = 16 << 20;

    /// What may wait of a bulk read if nobody says how much memory there is.
    const READ_AHEAD: usize = 1 << 20;

    /// The options of a pipeline that asks for nothing special, with its files among the
    /// system's temporary ones.
    pub fn new(pipeline: impl Into<String>, part_bytes: usize) -> SourceOptions {
        SourceOptions {
            pipeline: pipeline.into(),
            part_bytes,
            streaming: true,
            spool: std::env::temp_dir(),
            in_binary: false,
            bulk_read_above: Some(SourceOptions::BULK_READ_ABOVE),
            read_ahead: SourceOptions::READ_AHEAD,
            server_id: None,
            zero_dates: ZeroDates::default(),
            accept_cascades: false,
        }
    }
}

/// Opens the source that the URL's scheme names. Connects only when it is used.
///
/// # Errors
/// `configuration`, for a URL that cannot be read.
pub fn open_source(url: &str, options: SourceOptions) -> Result<Arc<dyn Source>> {
    match scheme(url)? {
        Scheme::Postgres => Ok(Arc::new(postgres::source(url, &options)?)),
        Scheme::Mysql => Ok(Arc::new(mysql::source(url, &options)?)),
        Scheme::Sqlite => Err(Error::stop(
            Code::Configuration,
            "sqlite has no change log, so it can only be a target; give a postgres:// or mysql:// \
             URL as the source",
        )),
    }
}

/// Opens the target that the URL's scheme names, and connects to it.
///
/// # Errors
/// `configuration`, for a URL that cannot be read; the connection.
pub async fn open_target(url: &str, options: TargetOptions) -> Result<Box<dyn Target>> {
    match scheme(url)? {
        Scheme::Postgres => Ok(Box::new(postgres::target(url, options).await?)),
        Scheme::Mysql => Ok(Box::new(mysql::target(url, options).await?)),
        Scheme::Sqlite => Ok(Box::new(sqlite::target(url, options).await?)),
    }
}

/// The schema of a source whose tables are meant by a plain name: `public` for PostgreSQL, the
/// URL's database for MySQL.
///
/// # Errors
/// `configuration`, for a URL that cannot be read or names no database.
pub fn plain_schema(source_url: &str) -> Result<String> {
    match scheme(source_url)? {
        Scheme::Postgres | Scheme::Sqlite => Ok("public".into()),
        Scheme::Mysql => mysql::database(source_url),
    }
}

/// Whether the target that the URL's scheme names takes values in PostgreSQL's binary form.
#[must_use]
pub fn takes_binary(target_url: &str) -> bool {
    matches!(scheme(target_url), Ok(Scheme::Postgres))
}

enum Scheme {
    Postgres,
    Mysql,
    Sqlite,
}

fn scheme(url: &str) -> Result<Scheme> {
    match url.split_once(':').map(|(scheme, _)| scheme) {
        Some("postgres" | "postgresql") => Ok(Scheme::Postgres),
        Some("mysql" | "mariadb") => Ok(Scheme::Mysql),
        Some("sqlite") => Ok(Scheme::Sqlite),
        // The URL itself may hold a password, so only its scheme is repeated.
        other => {
            let what = other.map_or("the URL has no scheme".into(), |scheme| {
                format!("the URL's scheme {scheme:?} is none that driftless knows")
            });
            let known = "write postgres://user@host/database, mysql://user@host/database or \
                         sqlite:path.db";
            Err(Error::stop(Code::Configuration, format!("{what}; {known}")))
        }
    }
}
