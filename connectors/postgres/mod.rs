//! PostgreSQL, as source and as target.

mod catalog;
mod chunk;
pub mod config;
pub mod connect;
mod copy;
mod lsn;
mod pgoutput;
pub mod quote;
mod source_sql;
mod stream;
mod tls;
mod transaction;
mod visibility;
mod walsender;
