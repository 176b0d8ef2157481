//! MySQL and MariaDB, as source and as target.

pub mod binlog;
pub mod bookmark;
pub mod bytes;
pub mod charset;
pub mod ddl;
pub mod decimal;
#[cfg(test)]
mod fixtures;
pub mod gtid;
pub mod json;
pub mod layout;
pub mod open;
pub mod rows;
pub mod shapes;
pub mod table_map;
pub mod text;
pub mod transaction;
pub mod types;
pub mod values;

use crate::error::{Code, Error, Result};
use crate::memory::{MemorySource, MemoryTarget};
use crate::{SourceOptions, TargetOptions};

/// The source of a `mysql://` URL; connects only when it is used.
///
/// # Errors
/// `configuration`, for a URL that cannot be read.
pub(crate) fn source(_url: &str, _options: &SourceOptions) -> Result<MemorySource> {
    Err(Error::stop(Code::Configuration, "mysql sources are not available yet"))
}

/// The target of a `mysql://` URL, connected.
///
/// # Errors
/// `configuration`, for a URL that cannot be read; the connection.
#[allow(clippy::unused_async)]
pub(crate) async fn target(_url: &str, _options: TargetOptions) -> Result<MemoryTarget> {
    Err(Error::stop(Code::Configuration, "mysql targets are not available yet"))
}

/// The database that a `mysql://` URL names.
///
/// # Errors
/// `configuration`, if it names none.
pub(crate) fn database(url: &str) -> Result<String> {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let name = path.splitn(4, '/').nth(3).unwrap_or_default();
    match name.is_empty() {
        true => Err(Error::stop(
            Code::Configuration,
            "the mysql:// URL names no database; write mysql://user@host/database",
        )),
        false => Ok(name.to_owned()),
    }
}
