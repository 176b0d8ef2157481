//! A source and a target in memory, for the engine's tests.
//!
//! They keep the contract to the letter and have no clock, no network and no randomness of their
//! own: what happens at each of their await points is decided by a `Script`, so that a test can
//! kill, fail or delay the engine there and repeat the same run from a seed.
//!
//! Surprise: the `servers` outlive the engine. A `SourceServer` and a `TargetServer` are what is
//! durable; a `MemorySource` and a `MemoryTarget` are one process's connections to them.

mod bulk;
mod early;
mod rows;
mod server;
mod source;
mod target;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

pub use server::{Op, Refused, SourceServer};
pub use source::{MemorySource, Mutant};
pub use target::{MemoryTarget, TargetBackup, TargetServer};

use crate::change::{Cell, Row};
use crate::error::{Code, Error, Result};
use crate::schema::TableSchema;

/// What happens at an await point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The other tasks get their turn first.
    Yield,
    /// It takes this long, by tokio's clock, which a test can pause.
    Delay(Duration),
    /// The operation fails with a `Transient` error and has done nothing.
    Fail,
    /// The operation is done, but its answer gets lost: a `Transient` error. As `Fail` at a point
    /// where nothing is about to be made durable.
    LoseAnswer,
    /// The process dies here: the future never comes back, and `Faults::killed` does.
    Kill,
}

/// Decides what happens at each await point. Points are named `target.apply.before_commit`.
pub trait Script: Send + Sync {
    /// What happens this time at this point.
    fn decide(&self, point: &'static str) -> Fault;
}

/// The await points of a source and a target, as told by a script. Clones share it.
#[derive(Clone)]
pub struct Faults {
    script: Arc<dyn Script>,
    killed: Arc<Notify>,
}

/// Whether the answer to something that was made durable arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Arrives,
    IsLost,
}

struct NoFaults;

impl Script for NoFaults {
    fn decide(&self, _point: &'static str) -> Fault {
        Fault::None
    }
}

impl Faults {
    /// Faults as this script wants them.
    pub fn new(script: Arc<dyn Script>) -> Faults {
        Faults { script, killed: Arc::new(Notify::new()) }
    }

    /// Nothing ever goes wrong.
    #[must_use]
    pub fn none() -> Faults {
        Faults::new(Arc::new(NoFaults))
    }

    /// Returns when the script has killed the process at a point. The test then drops the whole
    /// engine, as the operating system would.
    pub async fn killed(&self) {
        self.killed.notified().await;
    }

    async fn point(&self, name: &'static str) -> Result<()> {
        match self.commit_point(name).await? {
            Answer::Arrives => Ok(()),
            Answer::IsLost => Err(fault(name)),
        }
    }

    async fn commit_point(&self, name: &'static str) -> Result<Answer> {
        match self.script.decide(name) {
            Fault::None => {}
            Fault::Yield => tokio::task::yield_now().await,
            Fault::Delay(delay) => tokio::time::sleep(delay).await,
            Fault::Fail => return Err(fault(name)),
            Fault::LoseAnswer => return Ok(Answer::IsLost),
            Fault::Kill => {
                self.killed.notify_one();
                std::future::pending::<()>().await;
            }
        }
        Ok(Answer::Arrives)
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faults")
    }
}

impl Answer {
    fn give<T>(self, answer: T, name: &'static str) -> Result<T> {
        match self {
            Answer::Arrives => Ok(answer),
            Answer::IsLost => Err(fault(name)),
        }
    }
}

fn fault(name: &'static str) -> Error {
    Error::transient(Code::Unreachable, format!("the connection broke at {name}"))
}

/// A condition on rows, in the only form that these databases understand: `column = 'value'`.
struct Filter {
    place: usize,
    value: Vec<u8>,
}

impl Filter {
    fn parse(table: &TableSchema, filter: &str) -> Result<Filter> {
        let parts = filter.split_once('=').and_then(|(column, value)| {
            let value = value.trim().strip_prefix('\'')?.strip_suffix('\'')?;
            let place = table.columns.iter().position(|own| own.name == column.trim())?;
            Some(Filter { place, value: value.as_bytes().to_vec() })
        });
        parts.ok_or_else(|| {
            let message = format!(
                "table {} cannot be filtered by this condition; write column = 'value'",
                table.name
            );
            Error::table(&table.name, Code::Configuration, message)
        })
    }

    fn holds(&self, row: &Row) -> bool {
        row.cell(self.place) == Cell::Value(&self.value)
    }
}

#[cfg(test)]
mod tests;
