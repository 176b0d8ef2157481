//! PostgreSQL, as source and as target.

mod binary;
mod catalog;
mod check;
mod chunk;
pub mod config;
pub mod connect;
mod copy;
mod lsn;
mod pgoutput;
mod publication;
pub mod quote;
mod source;
mod source_sql;
mod sql;
mod stream;
mod subscribe;
mod target;
#[cfg(test)]
mod testing;
mod tls;
mod transaction;
mod types;
mod visibility;
mod walsender;
mod watchdog;

pub use source::{PostgresSource, source};
pub(crate) use target::target;
