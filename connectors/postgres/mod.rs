//! PostgreSQL, as source and as target.

mod answers;
#[doc(hidden)]
pub mod bench;
mod binary;
mod bulk;
mod bulk_ahead;
mod bulk_reader;
mod bulk_turn;
mod catalog;
mod catalog_session;
mod check;
mod chunk;
mod chunk_rows;
pub mod config;
pub mod connect;
mod copy;
mod copy_binary;
mod copy_session;
mod feed;
mod frames;
mod gap;
mod lsn;
mod outcome;
mod paced;
mod pgoutput;
mod pipeline;
mod publication;
pub mod quote;
mod session;
mod source;
mod source_sql;
mod sql;
mod stream;
mod streamed;
mod streaming;
mod subscribe;
mod target;
#[cfg(test)]
mod testing;
mod tls;
mod transaction;
mod types;
mod values;
mod visibility;
mod walsender;
mod watchdog;
mod wire;

pub use source::{PostgresSource, source};
pub(crate) use target::target;
