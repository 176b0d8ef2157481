//! The sessions of the target that write chunks of first copies, beside the one that applies the
//! log. All copies of a pipeline share them, so that there are never more than was configured.
//!
//! Surprise: a loader writes only what is plain. Whatever it may not write, because the table has
//! stopped or changed, or because the target refused a row, goes to the applier as it is, which
//! knows what follows from that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use connectors::Target;
use connectors::change::TableBatch;
use connectors::error::{Kind, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::lock;
use crate::connect::TargetFactory;
use crate::floor::Hold;
use crate::gate::Gates;
use crate::tables::Tables;

/// The sessions of one claim.
pub struct Loaders {
    connect: TargetFactory,
    fence: u64,
    gates: Arc<Gates>,
    tables: Arc<Tables>,
    room: Arc<Semaphore>,
    idle: Mutex<Vec<Box<dyn Target>>>,
    one_writer: AtomicBool,
}

/// The right to load, and the session for it.
pub struct Session {
    target: Box<dyn Target>,
    room: OwnedSemaphorePermit,
}

/// A chunk on its way into the target, with the hold that it was read under.
#[derive(Debug)]
pub struct Load {
    /// Its rows.
    pub rows: TableBatch,
    /// Given back when they are durable.
    pub hold: Hold,
}

/// What became of a chunk.
#[derive(Debug)]
pub enum Loaded {
    /// It is durable.
    Done,
    /// Nothing was written, and the applier has to see why.
    Refused(Load),
}

impl Loaders {
    /// At most so many sessions beside the one that claimed with this fence.
    #[must_use]
    pub fn new(
        connect: TargetFactory,
        fence: u64,
        gates: Arc<Gates>,
        tables: Arc<Tables>,
        sessions_max: usize,
    ) -> Arc<Loaders> {
        let room = Arc::new(Semaphore::new(sessions_max));
        let (idle, one_writer) = (Mutex::default(), AtomicBool::new(false));
        Arc::new(Loaders { connect, fence, gates, tables, room, idle, one_writer })
    }

    /// Whether the target has any.
    ///
    /// # Errors
    /// The connection.
    pub async fn exist(&self) -> Result<bool> {
        let session = self.session().await?;
        Ok(session.map(|session| lock(&self.idle).push(session.target)).is_some())
    }

    /// Waits for a session; `None` where the target takes one writer at a time.
    ///
    /// # Errors
    /// The connection.
    pub async fn session(&self) -> Result<Option<Session>> {
        if self.one_writer.load(Ordering::Relaxed) {
            return Ok(None);
        }
        // It is never closed.
        let Ok(room) = Arc::clone(&self.room).acquire_owned().await else { return Ok(None) };
        let idle = lock(&self.idle).pop();
        if let Some(target) = idle {
            return Ok(Some(Session { target, room }));
        }
        let mut target = (self.connect)().await?;
        if target.join(self.fence).await? {
            return Ok(Some(Session { target, room }));
        }
        self.one_writer.store(true, Ordering::Relaxed);
        Ok(None)
    }

    /// Writes a chunk.
    ///
    /// # Errors
    /// Nobody knows whether it was written; the table is closed for this session.
    pub async fn load(&self, session: Session, load: Load) -> Result<Loaded> {
        let Session { mut target, room } = session;
        let Load { rows, hold } = load;
        let share = self.gates.share(&rows.table.name, hold).await?;
        // Looked at behind the gate: the log may have changed the table while we waited.
        let written = match self.tables.takes(&rows.table) {
            true => target.load(&rows).await.map(|()| true),
            false => Ok(false),
        };
        let written = match written {
            Err(error) if matches!(error.kind, Kind::Table(_)) => false,
            other => other?,
        };
        let hold = share.done();
        lock(&self.idle).push(target);
        drop(room);
        Ok(if written { Loaded::Done } else { Loaded::Refused(Load { rows, hold }) })
    }

    /// Closes the sessions that nobody uses.
    pub fn close_idle(&self) {
        lock(&self.idle).clear();
    }
}
