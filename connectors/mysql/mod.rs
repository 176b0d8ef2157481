//! MySQL and MariaDB, as source and as target.

#[doc(hidden)]
pub mod bench;
mod binlog;
mod bookmark;
mod bytes;
mod catalog;
mod charset;
mod check;
mod chunk;
mod config;
mod connect;
mod ddl;
mod decimal;
mod failure;
#[cfg(test)]
mod fixtures;
pub mod gtid;
mod guard;
mod json;
mod layout;
mod open;
mod parameters;
pub mod quote;
mod replica;
mod rows;
mod selected;
mod shapes;
mod shelf;
mod source;
mod source_sql;
mod spelling;
mod sql;
mod stream;
mod subscribe;
mod table_map;
mod target;
mod target_types;
mod target_values;
#[cfg(test)]
mod testing;
mod text;
mod ticks;
mod tls;
mod transaction;
mod types;
mod values;
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
