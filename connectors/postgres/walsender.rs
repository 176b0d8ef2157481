//! The stream that START_REPLICATION opens on a `wire.rs`: frames in, our status out. Knows
//! nothing of what the plug-in's messages say; `stream.rs` does. Used by `streaming.rs`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BufMut;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::time::{Instant, sleep};

use super::connect::ServerError;
use super::frames::broken_protocol;
use super::gap;
use super::lsn::Lsn;
use super::pgoutput::EPOCH_MICROS;
use super::pipeline::{Early, Pipeline};
use super::source_sql as sql;
use super::values::InBinary;
use super::wire::{self, Wire};
use crate::error::{Code, Result};

/// How long the walsender of our killed predecessor may hold the slot.
const SLOT_WAIT: Duration = Duration::from_secs(10);
/// What stands before the plug-in's message: start and end in the log, and the time.
const DATA_HEADER_BYTES: usize = 25;
/// What a server says of a type that has no binary form.
const UNDEFINED_FUNCTION: &str = "42883";

/// What the server sent on the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A message of the plug-in.
    Data(&'a [u8]),
    /// The server is alive and has read its log up to here.
    Keepalive {
        /// Everything before this has been sent.
        wal_end: Lsn,
        /// Whether it wants an answer.
        reply_requested: bool,
    },
}

/// A connection on which the log is streamed.
pub struct Walsender {
    wire: Wire,
    /// There if transactions come before their end.
    early: Option<Early>,
    /// There if values come in binary.
    in_binary: Option<InBinary>,
}

impl Walsender {
    /// Runs START_REPLICATION; frames follow. Transactions that are too large for the server's
    /// memory come before their end if that is wanted. Not cancel-safe.
    ///
    /// # Errors
    /// `slot-in-use` (transient), a gap, what the server says, or a broken connection.
    pub async fn start(
        mut wire: Wire,
        pipeline: &Pipeline,
        from: Lsn,
        early: &Early,
    ) -> Result<Walsender> {
        let start = Instant::now();
        let early = Some(early).filter(|early| early.is_wanted()).cloned();
        let slot = &pipeline.slot;
        let in_binary = pipeline.in_binary.clone();
        let text = sql::start_replication(slot, slot, from, early.is_some(), in_binary.is_some());
        loop {
            match try_start(&mut wire, &text).await {
                Err(error) if error.code == Code::SlotInUse && start.elapsed() < SLOT_WAIT => {
                    sleep(Duration::from_millis(250)).await;
                }
                Err(error) => return Err(error),
                Ok(()) => return Ok(Walsender { wire, early, in_binary }),
            }
        }
    }

    /// Whether a message has arrived, so that `wait` would not wait for the network.
    ///
    /// # Errors
    /// `protocol`.
    pub fn has_message(&self) -> Result<bool> {
        self.wire.has_message()
    }

    /// Waits until a message is there. Cancel-safe.
    ///
    /// # Errors
    /// `unreachable` when the connection ended, or `protocol`.
    pub async fn wait(&mut self) -> Result<()> {
        self.wire.wait().await
    }

    /// Whether the message that is there is a frame; any other is taken away.
    ///
    /// # Errors
    /// `unreachable` when the stream ended, what the server says, or `protocol`.
    pub fn sift(&mut self) -> Result<bool> {
        match self.wire.head()?.0 {
            b'd' => return Ok(true),
            b'c' | b'C' => return Err(wire::ended("the server ended the stream")),
            _ => {}
        }
        match self.wire.take()? {
            Message::ErrorResponse(body) => {
                let error = wire::server_error(&mut body.fields());
                self.unless_spared(&error)?;
                return Err(gap::failure(gap::READING, &error, &gap::WHILE_READING));
            }
            Message::NoticeResponse(body) => {
                gap::unless_noticed(&wire::server_error(&mut body.fields()))?;
            }
            other => wire::ignore(&other)?,
        }
        Ok(false)
    }

    /// An error that the next session is spared, because it does not ask for what leads to it.
    ///
    /// Some servers cannot read an early transaction that took back a change of a table's shape:
    /// they find a defect in themselves, or that they must not look at what was taken back. And in a
    /// table that is not ours there may be a type without a binary form.
    fn unless_spared(&self, error: &ServerError) -> Result<()> {
        let why = format!("{}: {}", gap::READING, error.text());
        match (&self.early, &self.in_binary) {
            (Some(early), _) if matches!(error.class(), "XX" | "40") => Err(early.give_up(why)),
            (_, Some(in_binary)) if error.sqlstate == UNDEFINED_FUNCTION => {
                Err(in_binary.give_up(Code::Protocol, why))
            }
            _ => Ok(()),
        }
    }

    /// The frame that is there, until `consume`.
    ///
    /// # Errors
    /// `protocol`.
    pub fn frame(&self) -> Result<Frame<'_>> {
        frame(self.wire.head()?.1)
    }

    /// Steps over it.
    pub fn consume(&mut self) {
        self.wire.skip();
    }

    /// Says up to where the log is durable with us. Cancel-safe: what was not sent goes first
    /// next time.
    ///
    /// # Errors
    /// A broken connection.
    pub async fn send_status(&mut self, durable: Lsn, ask: bool) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let micros = i64::try_from(now.as_micros()).unwrap_or_default() - EPOCH_MICROS;
        let status = |outbox: &mut bytes::BytesMut| {
            outbox.put_u8(b'd');
            outbox.put_u32(4 + 34);
            outbox.put_u8(b'r');
            // Written, flushed, applied: one to us.
            for _ in 0..3 {
                outbox.put_u64(durable.0);
            }
            outbox.put_i64(micros);
            outbox.put_u8(u8::from(ask));
        };
        self.wire.put(status).await
    }

    /// Says it for the last time, and waits until the server has heard it and has ended the stream.
    /// What it sends meanwhile is thrown away.
    ///
    /// # Errors
    /// What the server says, or a broken connection.
    pub async fn finish(mut self, durable: Lsn) -> Result<()> {
        self.send_status(durable, false).await?;
        self.wire.put(frontend::copy_done).await?;
        let ended = self.wire.until_ready().await?;
        ended.map_err(|error| gap::failure("end the stream", &error, &gap::WHILE_READING))?;
        Ok(())
    }
}

async fn try_start(wire: &mut Wire, text: &str) -> Result<()> {
    wire.send(text).await?;
    loop {
        wire.wait().await?;
        // The driver's parser does not know CopyBothResponse.
        if wire.head()?.0 == b'W' {
            wire.skip();
            return Ok(());
        }
        match wire.message().await? {
            Message::ErrorResponse(body) => {
                let error = wire::server_error(&mut body.fields());
                let error = gap::failure("start replication", &error, &gap::AT_THE_SLOT);
                let _ = wire.until_ready().await?;
                return Err(error);
            }
            other => wire::ignore(&other)?,
        }
    }
}

fn frame(body: &[u8]) -> Result<Frame<'_>> {
    let number = |at: usize| {
        let bytes = body.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_be_bytes).ok_or_else(|| broken_protocol("a short frame"))
    };
    match body.first() {
        // The plug-in's message has all that matters.
        Some(b'w') if body.len() >= DATA_HEADER_BYTES => {
            Ok(Frame::Data(&body[DATA_HEADER_BYTES..]))
        }
        Some(b'k') if body.len() == 18 => {
            Ok(Frame::Keepalive { wal_end: Lsn(number(1)?), reply_requested: body[17] != 0 })
        }
        _ => Err(broken_protocol("a frame of another kind")),
    }
}
