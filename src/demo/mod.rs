//! A private PostgreSQL or MariaDB with a busy shop in it, to show and to test replication against.
//!
//! `server` starts and harms the database, `shop` keeps it busy, `compare` asks both sides by
//! plain SQL whether they are equal, `narration` is the command `driftless demo`. The end-to-end
//! tests are built on the first three, so what the demonstration shows is what is tested.

pub mod compare;
pub mod dice;
pub mod narration;
pub mod server;
pub mod shop;

use std::fmt;

/// Why a demonstration or a test rig could not go on: one line, with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(pub String);

/// Result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Error {
        let reason = match error.as_db_error() {
            Some(reason) => format!("{} ({})", reason.message(), reason.code().code()),
            None => error.to_string(),
        };
        Error(format!("ask PostgreSQL: {reason}"))
    }
}

impl From<mysql_async::Error> for Error {
    fn from(error: mysql_async::Error) -> Error {
        let reason = match &error {
            mysql_async::Error::Server(reason) => {
                format!("{} ({}, {})", reason.message, reason.code, reason.state)
            }
            _ => error.to_string(),
        };
        Error(format!("ask MariaDB: {reason}"))
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Error {
        Error(format!("ask SQLite: {error}"))
    }
}

/// Names what was being done when an input or output failed.
trait Doing<T> {
    fn doing(self, what: impl fmt::Display) -> Result<T>;
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error(format!("{what}: {error}")))
    }
}
