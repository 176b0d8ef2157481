//! MySQL and MariaDB, as source and as target.

pub mod binlog;
pub mod bookmark;
pub mod bytes;
mod catalog;
pub mod charset;
mod check;
mod chunk;
pub mod config;
pub mod connect;
pub mod ddl;
pub mod decimal;
pub mod failure;
pub mod gtid;
pub mod json;
pub mod layout;
pub mod open;
pub mod quote;
mod replica;
pub mod rows;
pub mod shapes;
mod source;
mod source_sql;
mod stream;
mod subscribe;
pub mod table_map;
#[cfg(test)]
mod testing;
pub mod text;
mod tls;
pub mod transaction;
pub mod types;
pub mod values;
mod visibility;
mod watchdog;

use config::Config;

use crate::TargetOptions;
use crate::error::{Code, Error, Result};
use crate::memory::MemoryTarget;
pub use source::{MysqlSource, source};

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
/// `configuration`, for a URL that cannot be read or that names none.
pub(crate) fn database(url: &str) -> Result<String> {
    Ok(Config::parse(url)?.database)
}
