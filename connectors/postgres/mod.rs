//! PostgreSQL, as source and as target.

pub mod config;
pub mod connect;
mod copy;
pub mod quote;
mod tls;
