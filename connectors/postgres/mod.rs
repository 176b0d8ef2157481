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

pub(crate) fn source(_u: &str, _o: crate::SourceOptions) -> crate::error::Result<crate::memory::MemorySource> { std::process::abort() }
pub(crate) async fn target(_u: &str, _o: crate::TargetOptions) -> crate::error::Result<crate::memory::MemoryTarget> { std::process::abort() }
