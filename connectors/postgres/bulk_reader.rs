//! A session that reads a slot in bulk, by way of a temporary copy of it, which goes when the session
//! goes. Used by `bulk.rs`, which opens the first one, and by `bulk_ahead.rs`, which has two of them
//! make their calls: a session goes on where the other one's call ends, by copying that one's copy and
//! moving its own.
//!
//! Surprises: an error of the server ends all temporary slots of its session. To move a slot is to read
//! its log once more, for a third of what to decode it again costs; to copy one is not.

use std::sync::Arc;

use super::answers::{only, parsed};
use super::bulk_turn::{CALL, Place, READING_IN_BULK, answer, failure};
use super::connect::ServerError;
use super::copy_session::{CopySession, Given};
use super::gap;
use super::lsn::Lsn;
use super::pipeline::{Early, Pipeline};
use super::source_sql as sql;
use super::walsender::Walsender;
use super::wire::Wire;
use crate::error::{Code, Error, Result};

/// What is read.
#[derive(Clone)]
pub struct Door {
    /// Of which server, which log and which slot.
    pub pipeline: Arc<Pipeline>,
    /// How many bytes behind a pipeline must be.
    pub above: u64,
}

/// The session.
pub struct Reader {
    door: Door,
    session: CopySession,
    /// Its copy of the slot.
    copy: String,
}

impl Reader {
    /// Goes on with a session that may read the log. There is no copy yet.
    ///
    /// # Errors
    /// What the server says, or a broken connection.
    pub async fn new(wire: Wire, door: &Door) -> Result<Reader> {
        let session = CopySession::new(wire, &door.pipeline.config).await?;
        let copy = format!("driftless_bulk_{}", session.backend_pid());
        Ok(Reader { door: door.clone(), session, copy })
    }

    /// The server's version, as 150003.
    pub fn version(&self) -> i32 {
        self.session.version()
    }

    /// A session of its own.
    ///
    /// # Errors
    /// As `session::login_to`; as `new`.
    pub async fn open(door: &Door) -> Result<Reader> {
        let (wire, _) = door.pipeline.login().await?;
        Reader::new(wire, door).await
    }

    /// Makes the copy of the slot. Says why, if the server refuses.
    ///
    /// # Errors
    /// A broken connection.
    pub async fn copy_slot(&mut self) -> Result<std::result::Result<(), ServerError>> {
        let copied = self.session.ask(&sql::copy_slot(self.slot(), &self.copy)).await?;
        Ok(copied.map(|_| ()))
    }

    /// Goes on at a place that another session's copy has before it, or just behind it: then no commit
    /// begins in between. Says where that is.
    ///
    /// # Errors
    /// A gap, what the server says, or a broken connection.
    pub async fn follow(&mut self, other: &str, place: Lsn) -> Result<Lsn> {
        self.drop_copy().await?;
        let copied = answer(self.session.ask(&sql::copy_slot(other, &self.copy)).await?)?;
        let at: Lsn = parsed(only(&copied)?, 0)?;
        if at < place {
            self.skip_to(place).await?;
        }
        Ok(at.max(place))
    }

    /// Moves the copy to a place, as `START_REPLICATION` does with a position ahead of the slot's.
    ///
    /// # Errors
    /// A gap, what the server says, or a broken connection.
    pub async fn skip_to(&mut self, place: Lsn) -> Result<()> {
        let moved = self.session.ask(&sql::move_slot(&self.copy, place)).await?;
        let gaps = [("55000", Code::SlotGap)];
        moved.map_err(|error| gap::failure(READING_IN_BULK, &error, &gaps))?;
        Ok(())
    }

    /// The name of the copy.
    pub fn copy(&self) -> &str {
        &self.copy
    }

    /// Where the copy is.
    ///
    /// # Errors
    /// What the server says, or a broken connection.
    pub async fn place(&mut self) -> Result<Place> {
        let copy = self.copy.clone();
        self.place_of(&copy).await
    }

    /// Where this copy is, which may be another session's.
    ///
    /// # Errors
    /// As `place`.
    pub async fn place_of(&mut self, copy: &str) -> Result<Place> {
        let rows = answer(self.session.ask(&sql::slot_place(copy)).await?)?;
        let place = only(&rows)?;
        let (confirmed, restart) = (parsed(place, 0)?, parsed(place, 1)?);
        Ok(Place { confirmed, restart, end: parsed(place, 2)? })
    }

    /// Moves the slot to what is durable if that lets go of at least so many bytes of log.
    ///
    /// # Errors
    /// What the server says, or a broken connection.
    pub async fn move_slot(&mut self, durable: Lsn, gain: u64) -> Result<()> {
        let moving = sql::move_slot_behind(self.slot(), &self.copy, durable, gain);
        let moved = self.session.ask(&moving).await?;
        moved.map_err(|error| gap::failure("move the slot", &error, &gap::AT_THE_SLOT))?;
        Ok(())
    }

    /// Begins a call that reads up to a place. No more log is read for the slot than for us, so that is
    /// moved first, to what is durable, if it lets go of as much as a call.
    ///
    /// # Errors
    /// What the server says, or a broken connection.
    pub async fn begin_call(&mut self, upto: Lsn, durable: Lsn) -> Result<()> {
        self.move_slot(durable, CALL * self.door.above).await?;
        let in_binary = self.door.pipeline.in_binary.is_some();
        let call = sql::bulk_read(&self.copy, self.slot(), upto, in_binary);
        self.session.begin(&call).await
    }

    /// What the call gives out next. The server gives nothing out before it has decoded the whole call.
    ///
    /// # Errors
    /// A gap, or a broken connection.
    pub async fn given(&mut self) -> Result<Given> {
        self.session.given().await
    }

    /// Why a server that was asked for nothing has ended the connection.
    pub async fn last_word(&mut self) -> Error {
        self.session.last_word().await.map_or_else(|ended| ended, |said| failure(&said))
    }

    /// Says for the last time what is durable. To move the slot is to read its log too, so where
    /// that would let go of little the stream says it, which reads nothing.
    ///
    /// # Errors
    /// What the server says, or a broken connection.
    pub async fn part(mut self, durable: Lsn) -> Result<()> {
        self.move_slot(durable, self.door.above).await?;
        let behind = self.session.ask(&sql::slot_is_behind(self.slot(), durable)).await?;
        if answer(behind)?.is_empty() {
            return Ok(());
        }
        let Reader { door, session, .. } = self;
        let (wire, mut patience) = session.into_parts();
        let told = async {
            let pipeline = &door.pipeline;
            let stream = Walsender::start(wire, pipeline, durable, &Early::new(false)).await?;
            stream.finish(durable).await
        };
        patience.wait(told).await?
    }

    /// The connection, with nothing left of the bulk read. Not cancel-safe.
    ///
    /// # Errors
    /// What the server says, silence (transient), or a broken connection.
    pub async fn into_wire(mut self) -> Result<Wire> {
        self.drop_copy().await?;
        Ok(self.session.into_parts().0)
    }

    async fn drop_copy(&mut self) -> Result<()> {
        answer(self.session.ask(&sql::drop_slot_if_there(&self.copy)).await?).map(|_| ())
    }

    /// The slot; also the name of the publication.
    fn slot(&self) -> &str {
        &self.door.pipeline.slot
    }
}
