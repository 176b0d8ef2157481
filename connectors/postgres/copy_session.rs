//! A session without the driver, which is asked for many rows at a time: what has arrived is read in
//! wide pieces and looked at where it lies, where the driver would hand every 8 KiB from one task to
//! another. Used by `chunk.rs` for the rows of tables, and by `bulk_reader.rs` for those of the log.
//!
//! Surprise: a server that goes away says why and then ends the connection, so what it said last is
//! kept, and given out in place of the end.

use std::sync::Arc;

use futures_util::FutureExt as _;
use postgres_protocol::message::backend::Message;

use super::answers::{Rows, only, parsed};
use super::config::Config;
use super::connect::{self, ServerError};
use super::frames::Frames;
use super::source_sql as sql;
use super::watchdog::Patience;
use super::wire::{self, Wire};
use crate::error::Result;

/// The session.
pub struct CopySession {
    wire: Wire,
    patience: Patience,
    /// The server's version, as 150003.
    version: i32,
}

/// A piece of what a COPY gives out.
pub enum Given {
    /// Rows.
    Rows(Frames),
    /// The server has something to say, and goes on.
    Notice(ServerError),
    /// The end; or the server refused to go on with it.
    End(Option<ServerError>),
}

impl CopySession {
    /// Goes on with a connection.
    ///
    /// # Errors
    /// What the server says, or a broken connection.
    pub async fn new(mut wire: Wire, config: &Arc<Config>) -> Result<CopySession> {
        let backend = connect::within(config, wire.ask(sql::BACKEND)).await?;
        let backend = backend.map_err(|error| connect::server_error("log in", &error))?;
        let backend = only(&backend)?;
        let (backend_pid, version) = (parsed(backend, 0)?, parsed(backend, 1)?);
        let patience = Patience::new(config.clone(), backend_pid);
        Ok(CopySession { wire, patience, version })
    }

    /// The number of the server's process.
    pub fn backend_pid(&self) -> i32 {
        self.patience.backend_pid()
    }

    /// The server's version, as 150003.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// Runs a simple query. Not cancel-safe.
    ///
    /// # Errors
    /// Silence (transient), or a broken connection.
    pub async fn ask(&mut self, sql: &str) -> Result<std::result::Result<Rows, ServerError>> {
        self.patience.wait(self.wire.ask(sql)).await?
    }

    /// Runs simple queries that are sent together, so that a distant server costs one wait: their rows,
    /// or what the server has against the first that fails. Not cancel-safe.
    ///
    /// # Errors
    /// As `ask`.
    pub async fn ask_all<const N: usize>(
        &mut self,
        questions: [&str; N],
    ) -> Result<std::result::Result<[Rows; N], ServerError>> {
        for question in questions {
            self.patience.wait(self.wire.send(question)).await??;
        }
        let (mut answers, mut failed) = ([const { Vec::new() }; N], None);
        for answer in &mut answers {
            match self.patience.wait(self.wire.until_ready()).await? {
                Ok(Ok(rows)) => *answer = rows,
                Ok(Err(error)) => failed = failed.or(Some(error)),
                Err(ended) => return failed.map_or(Err(ended), |failed| Ok(Err(failed))),
            }
        }
        Ok(failed.map_or(Ok(answers), Err))
    }

    /// Sends a COPY, whose rows follow.
    ///
    /// # Errors
    /// As `ask`.
    pub async fn begin(&mut self, copy: &str) -> Result<()> {
        self.patience.wait(self.wire.send(copy)).await?
    }

    /// As `begin`, with a COPY that a user's SQL is a part of: it is refused if it is more than one
    /// statement. A session that may read the log cannot ask so.
    ///
    /// # Errors
    /// As `ask`.
    pub async fn begin_one(&mut self, copy: &str) -> Result<()> {
        self.patience.wait(self.wire.send_one(copy)).await?
    }

    /// What the COPY gives out next.
    ///
    /// # Errors
    /// As `ask`.
    pub async fn given(&mut self) -> Result<Given> {
        let mut failed = None;
        loop {
            // What has arrived needs no clock.
            if !self.wire.has_message()?
                && let Err(ended) = self.patience.wait(self.wire.wait()).await?
            {
                return failed.map_or(Err(ended), |failed| Ok(Given::End(Some(failed))));
            }
            let rows = self.wire.take_all(b'd')?;
            if rows.len() > 0 {
                return Ok(Given::Rows(rows));
            }
            match self.wire.take()? {
                Message::ParseComplete
                | Message::BindComplete
                | Message::CopyOutResponse(_)
                | Message::CopyDone
                | Message::CommandComplete(_) => {}
                // An error must not be forgotten for one.
                Message::NoticeResponse(body) if failed.is_none() => {
                    return Ok(Given::Notice(wire::server_error(&mut body.fields())));
                }
                Message::ErrorResponse(body) => {
                    failed = Some(wire::server_error(&mut body.fields()));
                }
                Message::ReadyForQuery(_) => return Ok(Given::End(failed)),
                other => wire::ignore(&other)?,
            }
        }
    }

    /// The session, if it is as its last answer left it: a server that has ended it meanwhile has said
    /// so.
    pub fn if_unchanged(mut self) -> Option<CopySession> {
        self.wire.wait().now_or_never().is_none().then_some(self)
    }

    /// What the server said although it was asked for nothing: why it has ended the connection.
    pub async fn last_word(&mut self) -> Result<ServerError> {
        loop {
            match self.wire.message().await? {
                Message::ErrorResponse(body) => return Ok(wire::server_error(&mut body.fields())),
                other => wire::ignore(&other)?,
            }
        }
    }

    /// The connection, and the patience with it.
    pub fn into_parts(self) -> (Wire, Patience) {
        (self.wire, self.patience)
    }
}
