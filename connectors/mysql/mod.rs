//! MySQL and MariaDB, as source and as target.

pub mod binlog;
pub mod bookmark;
pub mod bytes;
mod catalog;
pub mod charset;
pub mod config;
pub mod connect;
pub mod failure;
pub mod gtid;
pub mod layout;
pub mod quote;
mod source_sql;
mod sql;
mod subscribe;
mod target;
mod target_types;
mod target_values;
#[cfg(test)]
mod testing;
mod tls;
pub mod transaction;
pub mod types;
mod watchdog;

use config::Config;
pub(crate) use target::target;

use crate::SourceOptions;
use crate::error::{Code, Error, Result};
use crate::memory::MemorySource;

/// The source of a `mysql://` URL; connects only when it is used.
///
/// # Errors
/// `configuration`, for a URL that cannot be read.
pub(crate) fn source(_url: &str, _options: &SourceOptions) -> Result<MemorySource> {
    Err(Error::stop(Code::Configuration, "mysql sources are not available yet"))
}

/// The database that a `mysql://` URL names.
///
/// # Errors
/// `configuration`, for a URL that cannot be read or that names none.
pub(crate) fn database(url: &str) -> Result<String> {
    Ok(Config::parse(url)?.database)
}
