//! A replication connection: login, simple queries, and the stream of frames that
//! START_REPLICATION opens. Thin, on `postgres-protocol`, because the SQL driver has no
//! replication. Knows nothing of what the frames say; `stream.rs` does.
//!
//! Surprise: `peek` leaves the frame where it is until `consume`, and half a frame stays in the
//! buffer, so that a dropped future loses nothing.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, BytesMut};
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::{self, ErrorFields, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::connect::{self, ServerError};
use super::lsn::Lsn;
use super::pgoutput::EPOCH_MICROS;
use super::subscribe::RESYNC;
use crate::error::{Code, Error, Result};

// The sender puts one small message into each packet; wide reads collect many of them.
const READ_BYTES: usize = 256 * 1024;
// The server allocates no message beyond 1 GiB; a longer one is garbage.
const FRAME_BYTES_MAX: usize = 1 << 30;

/// Who logs in.
pub struct Login<'a> {
    /// The role.
    pub user: &'a str,
    /// Its password, if any.
    pub password: Option<&'a str>,
    /// The database.
    pub database: &'a str,
    /// What `pg_stat_activity` shows.
    pub application: &'a str,
    /// Settings of the session.
    pub options: &'a str,
    /// Whether a password may be sent as it is.
    pub encrypted: bool,
}

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

/// A replication connection.
pub struct Walsender<S> {
    socket: S,
    inbox: BytesMut,
    outbox: BytesMut,
    unflushed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Walsender<S> {
    /// Logs in for logical replication.
    ///
    /// # Errors
    /// `authentication`, what the server says, or a broken connection.
    pub async fn login(socket: S, login: &Login<'_>) -> Result<Walsender<S>> {
        let (inbox, outbox) = (BytesMut::new(), BytesMut::new());
        let mut walsender = Walsender { socket, inbox, outbox, unflushed: false };
        let parameters = [
            ("user", login.user),
            ("database", login.database),
            ("replication", "database"),
            ("application_name", login.application),
            ("options", login.options),
        ];
        frontend::startup_message(parameters, &mut walsender.outbox).map_err(malformed)?;
        walsender.flush().await?;
        walsender.authenticate(login).await?;
        walsender.until_ready().await?;
        Ok(walsender)
    }

    /// Runs a simple query and returns its rows as text. Not cancel-safe.
    ///
    /// # Errors
    /// What the server says, or a broken connection.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        frontend::query(sql, &mut self.outbox).map_err(malformed)?;
        self.flush().await?;
        self.until_ready().await
    }

    /// Runs START_REPLICATION; frames follow.
    ///
    /// # Errors
    /// As `query`.
    pub async fn start(&mut self, sql: &str) -> Result<()> {
        frontend::query(sql, &mut self.outbox).map_err(malformed)?;
        self.flush().await?;
        loop {
            let length = self.fill().await?;
            // The driver's parser does not know CopyBothResponse.
            if self.inbox[0] == b'W' {
                self.inbox.advance(length);
                return Ok(());
            }
            match self.message().await? {
                Message::ErrorResponse(body) => {
                    let codes = [("42704", Code::SlotMissing), ("55000", Code::SlotLost)];
                    let error = failure_of("start replication", &mut body.fields(), &codes);
                    self.until_ready().await?;
                    return Err(error);
                }
                other => ignore(&other)?,
            }
        }
    }

    /// The next frame; the same one until `consume`. Cancel-safe.
    ///
    /// # Errors
    /// `unreachable` when the stream ended, what the server says, or `protocol`.
    pub async fn peek(&mut self) -> Result<Frame<'_>> {
        let length = loop {
            self.flush().await?;
            let length = self.fill().await?;
            match self.inbox[0] {
                b'd' => break length,
                b'c' | b'C' => return Err(ended("the server ended the stream")),
                _ => match self.message().await? {
                    Message::ErrorResponse(body) => {
                        let codes = [("42704", Code::Publication)];
                        return Err(failure_of("read the log", &mut body.fields(), &codes));
                    }
                    // From 18 on a missing publication is a warning, and its changes are gone.
                    Message::NoticeResponse(body) => {
                        let notice = server_error(&mut body.fields());
                        if notice.sqlstate == "55000" {
                            return Err(gap("read the log", Code::Publication, &notice));
                        }
                    }
                    other => ignore(&other)?,
                },
            }
        };
        frame(&self.inbox[5..length])
    }

    /// Steps over the frame that `peek` returned.
    pub fn consume(&mut self) {
        if let Ok(Some(length)) = frame_length(&self.inbox) {
            self.inbox.advance(length);
        }
    }

    /// Says up to where the log is durable with us. Cancel-safe: what was not sent goes first
    /// next time.
    ///
    /// # Errors
    /// A broken connection.
    pub async fn send_status(&mut self, durable: Lsn, ask: bool) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let micros = i64::try_from(now.as_micros()).unwrap_or_default() - EPOCH_MICROS;
        self.outbox.put_u8(b'd');
        self.outbox.put_u32(4 + 34);
        self.outbox.put_u8(b'r');
        // Written, flushed, applied: one to us.
        for _ in 0..3 {
            self.outbox.put_u64(durable.0);
        }
        self.outbox.put_i64(micros);
        self.outbox.put_u8(u8::from(ask));
        self.flush().await
    }

    async fn authenticate(&mut self, login: &Login<'_>) -> Result<()> {
        let password = || {
            login.password.map(str::as_bytes).ok_or_else(|| {
                refused(format!(
                    "the server asks {} for a password; put it into the URL",
                    login.user
                ))
            })
        };
        loop {
            match self.message().await? {
                Message::AuthenticationOk => return Ok(()),
                Message::AuthenticationCleartextPassword if login.encrypted => {
                    frontend::password_message(password()?, &mut self.outbox).map_err(malformed)?;
                }
                Message::AuthenticationCleartextPassword => {
                    return Err(refused(
                        "the server asks for the password in plain text, without TLS; \
                         use scram-sha-256 in pg_hba.conf",
                    ));
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(login.user.as_bytes(), password()?, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut self.outbox)
                        .map_err(malformed)?;
                }
                Message::AuthenticationSasl(body) => {
                    let mut mechanisms = body.mechanisms();
                    let mut scram = false;
                    while let Some(name) = next(&mut mechanisms)? {
                        scram |= name == sasl::SCRAM_SHA_256;
                    }
                    if !scram {
                        return Err(refused("the server offers no SCRAM-SHA-256"));
                    }
                    self.scram(password()?).await?;
                }
                Message::ErrorResponse(body) => return Err(failure("log in", &mut body.fields())),
                Message::NoticeResponse(_) => {}
                _ => return Err(refused("the server asks for a method that is not supported")),
            }
            self.flush().await?;
        }
    }

    async fn scram(&mut self, password: &[u8]) -> Result<()> {
        let mut scram = sasl::ScramSha256::new(password, sasl::ChannelBinding::unsupported());
        frontend::sasl_initial_response(sasl::SCRAM_SHA_256, scram.message(), &mut self.outbox)
            .map_err(malformed)?;
        self.flush().await?;
        match self.message().await? {
            Message::AuthenticationSaslContinue(body) => {
                scram.update(body.data()).map_err(|error| refused(error.to_string()))?;
            }
            Message::ErrorResponse(body) => return Err(failure("log in", &mut body.fields())),
            _ => return Err(refused("the server broke off SCRAM")),
        }
        frontend::sasl_response(scram.message(), &mut self.outbox).map_err(malformed)?;
        self.flush().await?;
        match self.message().await? {
            Message::AuthenticationSaslFinal(body) => {
                scram.finish(body.data()).map_err(|error| refused(error.to_string()))
            }
            Message::ErrorResponse(body) => Err(failure("log in", &mut body.fields())),
            _ => Err(refused("the server broke off SCRAM")),
        }
    }

    /// Reads to the end of a query; returns its rows.
    async fn until_ready(&mut self) -> Result<Vec<Vec<Option<String>>>> {
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            match self.message().await {
                Ok(Message::ReadyForQuery(_)) => return failed.map_or(Ok(rows), Err),
                Ok(Message::DataRow(body)) => rows.push(row(&body)?),
                Ok(Message::ErrorResponse(body)) => {
                    failed = Some(failure("ask the log sender", &mut body.fields()));
                }
                Ok(_) => {}
                // A fatal error is followed by the end of the connection.
                Err(error) => return Err(failed.unwrap_or(error)),
            }
        }
    }

    async fn message(&mut self) -> Result<Message> {
        let length = self.fill().await?;
        let mut bytes = self.inbox.split_to(length);
        let parsed = Message::parse(&mut bytes).map_err(malformed)?;
        parsed.ok_or_else(|| broken_protocol("half a message"))
    }

    /// Reads until the inbox begins with a whole message; returns its length. Cancel-safe.
    async fn fill(&mut self) -> Result<usize> {
        loop {
            if let Some(length) = frame_length(&self.inbox)? {
                return Ok(length);
            }
            self.inbox.reserve(READ_BYTES);
            match self.socket.read_buf(&mut self.inbox).await {
                Ok(0) => return Err(ended("the server closed the connection")),
                Ok(_) => {}
                Err(error) => return Err(ended(error)),
            }
        }
    }

    async fn flush(&mut self) -> Result<()> {
        while self.outbox.has_remaining() {
            self.socket.write_buf(&mut self.outbox).await.map_err(ended)?;
            self.unflushed = true;
        }
        if self.unflushed {
            self.socket.flush().await.map_err(ended)?;
            self.unflushed = false;
        }
        Ok(())
    }
}

/// Length of the message at the beginning, once it is there as a whole.
fn frame_length(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(header) = backend::Header::parse(bytes).map_err(malformed)? else { return Ok(None) };
    let length = usize::try_from(header.len()).unwrap_or(usize::MAX).saturating_add(1);
    if length > FRAME_BYTES_MAX {
        return Err(broken_protocol("a message of more than 1 GiB"));
    }
    Ok((bytes.len() >= length).then_some(length))
}

fn frame(body: &[u8]) -> Result<Frame<'_>> {
    let number = |at: usize| {
        let bytes = body.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_be_bytes).ok_or_else(|| broken_protocol("a short frame"))
    };
    match body.first() {
        // Start and end in the log, and the time; the plug-in's message has all that matters.
        Some(b'w') if body.len() >= 25 => Ok(Frame::Data(&body[25..])),
        Some(b'k') if body.len() == 18 => {
            Ok(Frame::Keepalive { wal_end: Lsn(number(1)?), reply_requested: body[17] != 0 })
        }
        _ => Err(broken_protocol("a frame of another kind")),
    }
}

fn row(body: &backend::DataRowBody) -> Result<Vec<Option<String>>> {
    let mut ranges = body.ranges();
    let mut cells = Vec::new();
    while let Some(range) = next(&mut ranges)? {
        cells.push(match range {
            None => None,
            Some(range) => {
                let bytes =
                    body.buffer().get(range).ok_or_else(|| broken_protocol("a short row"))?;
                Some(String::from_utf8_lossy(bytes).into_owned())
            }
        });
    }
    Ok(cells)
}

/// The next item of one of the protocol crate's fallible iterators.
fn next<I>(items: &mut I) -> Result<Option<I::Item>>
where
    I: tokio_postgres::fallible_iterator::FallibleIterator<Error = std::io::Error>,
{
    items.next().map_err(malformed)
}

fn failure(doing: &str, fields: &mut ErrorFields<'_>) -> Error {
    failure_of(doing, fields, &[])
}

/// As `failure`; these SQLSTATEs mean that the log has a gap for us.
fn failure_of(doing: &str, fields: &mut ErrorFields<'_>, gaps: &[(&str, Code)]) -> Error {
    let error = server_error(fields);
    match gaps.iter().find(|(sqlstate, _)| *sqlstate == error.sqlstate) {
        Some((_, code)) => gap(doing, *code, &error),
        None => connect::server_error(doing, &error),
    }
}

fn gap(doing: &str, code: Code, error: &ServerError) -> Error {
    Error::stop(code, format!("{doing}: {}; {RESYNC}", error.text()))
}

fn server_error(fields: &mut ErrorFields<'_>) -> ServerError {
    let mut error = ServerError::default();
    while let Ok(Some(field)) = next(fields) {
        let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => error.sqlstate = value,
            b'M' => error.message = value,
            b't' => error.objects.push(format!("table {value}")),
            b'c' => error.objects.push(format!("column {value}")),
            b'n' => error.objects.push(format!("constraint {value}")),
            _ => {}
        }
    }
    error
}

/// Messages that may come at any time say nothing to us; all others are out of place.
fn ignore(message: &Message) -> Result<()> {
    match message {
        Message::NoticeResponse(_)
        | Message::ParameterStatus(_)
        | Message::NotificationResponse(_) => Ok(()),
        _ => Err(broken_protocol("a message out of place")),
    }
}

fn ended(why: impl std::fmt::Display) -> Error {
    Error::transient(Code::Unreachable, format!("the connection to the log ended: {why}"))
}

fn refused(why: impl std::fmt::Display) -> Error {
    Error::stop(Code::Authentication, format!("log in: {why}"))
}

fn malformed(error: std::io::Error) -> Error {
    broken_protocol(error)
}

fn broken_protocol(what: impl std::fmt::Display) -> Error {
    Error::stop(Code::Protocol, format!("the log sender does not speak the protocol: {what}"))
}
