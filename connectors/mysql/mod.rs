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
#[cfg(test)]
mod fixtures;
pub mod gtid;
mod guard;
pub mod json;
pub mod layout;
pub mod open;
pub mod quote;
mod replica;
pub mod rows;
mod selected;
pub mod shapes;
mod source;
mod source_sql;
mod sql;
mod stream;
mod subscribe;
pub mod table_map;
mod target;
mod target_types;
mod target_values;
#[cfg(test)]
mod testing;
pub mod text;
mod ticks;
mod tls;
pub mod transaction;
pub mod types;
pub mod values;
mod visibility;
mod watchdog;

use config::Config;
pub use source::{MysqlSource, source};
pub(crate) use target::target;

use crate::error::Result;

/// The database that a `mysql://` URL names.
///
/// # Errors
/// `configuration`, for a URL that cannot be read or that names none.
pub(crate) fn database(url: &str) -> Result<String> {
    Ok(Config::parse(url)?.database)
}
