//! PostgreSQL, as source and as target.

pub mod config;
pub mod connect;
mod copy;
mod lsn;
mod pgoutput;
pub mod quote;
mod tls;
mod transaction;
mod walsender;
