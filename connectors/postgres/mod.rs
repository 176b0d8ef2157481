//! PostgreSQL, as source and as target.

pub mod config;
pub mod connect;
mod copy;
pub mod quote;
mod sql;
mod target;
#[cfg(test)]
mod testing;
mod tls;
mod types;

pub(crate) use target::target;
