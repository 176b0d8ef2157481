//! What everything that reads the log of a pipeline needs to know: of which server, which slot, and in
//! which way; and how long the server may be silent. Made by `stream.rs`, which is told by `source.rs`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::config::Config;
use super::lsn::{LogIdentity, Lsn};
use super::session;
use super::values::InBinary;
use super::wire::Wire;
use crate::error::{Code, Error, Result};

/// After this much silence the source is asked for a sign of life.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long it has to give one; together with `HEARTBEAT` 30 s.
pub const ANSWER: Duration = Duration::from_secs(20);
/// A call that finds the time already over still looks at what has arrived.
pub const GRACE: Duration = Duration::from_millis(100);

/// What every feed of a pipeline needs to know.
pub struct Pipeline {
    /// The server.
    pub config: Arc<Config>,
    /// Name of slot and publication.
    pub slot: String,
    /// Which log it is.
    pub identity: LogIdentity,
    /// Where transactions that have not ended are put.
    pub spool: PathBuf,
    /// Whether they are taken before their end.
    pub early: Early,
    /// There if values come in binary.
    pub in_binary: Option<InBinary>,
    /// How far behind it must be for bulk reads, in bytes; `None` for never.
    pub bulk_read_above: Option<u64>,
    /// How many bytes of a bulk read may wait for us.
    pub read_ahead: usize,
    /// Set once the source has refused them.
    pub bulk_read_refused: Arc<AtomicBool>,
}

/// Whether transactions are taken before their end. Shared by all sessions of a source.
#[derive(Clone, Debug)]
pub struct Early(Arc<AtomicBool>);

impl Early {
    /// As the settings say.
    #[must_use]
    pub fn new(wanted: bool) -> Early {
        Early(Arc::new(AtomicBool::new(wanted)))
    }

    /// Whether the next session asks for it.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// From the next session on, as long as we run, they are taken at their end. The same log is no
    /// trouble to the server then, and there is nothing that we would have to find out.
    #[must_use]
    pub fn give_up(&self, why: impl std::fmt::Display) -> Error {
        self.0.store(false, Ordering::Relaxed);
        let message = format!("{why}; large transactions will be read at their end");
        Error::transient(Code::Protocol, message)
    }
}

impl Pipeline {
    /// Opens a session that may read the log. Also says where the log ends.
    ///
    /// # Errors
    /// As `session::login_to`.
    pub async fn login(&self) -> Result<(Wire, Lsn)> {
        session::login_to(&self.config, &self.slot, &self.identity).await
    }

    /// How far behind it must be for bulk reads as things are; `None` once the source has refused them.
    #[must_use]
    pub fn bulk_read_above(&self) -> Option<u64> {
        self.bulk_read_above.filter(|_| !self.bulk_read_refused.load(Ordering::Relaxed))
    }
}
