//! PostgreSQL, as source and as target.

pub mod config;
pub mod connect;
mod copy;
mod lsn;
mod pgoutput;
pub mod quote;
mod sql;
mod target;
#[cfg(test)]
mod testing;
mod tls;
mod transaction;
mod types;
mod walsender;

pub(crate) use target::target;

pub(crate) fn source(
    _u: &str,
    _o: crate::SourceOptions,
) -> crate::error::Result<crate::memory::MemorySource> {
    std::process::abort()
}
