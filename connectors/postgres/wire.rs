//! A connection to a server in the protocol's own words: login, simple queries, and messages that
//! are looked at before they are taken. Thin, on `postgres-protocol`, because the SQL driver has no
//! replication, and reads in small pieces. `walsender.rs` and `copy_session.rs` know what the
//! messages mean.
//!
//! Surprise: a message stays where it is until it is skipped, and half a message stays in the
//! buffer, so that a dropped future loses nothing.

use std::iter;

use bytes::{Buf, BytesMut};
use postgres_protocol::IsNull;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::{self, ErrorFields, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::answers::{Row, Rows};
use super::connect::{self, ServerError, Socket};
use super::frames::{self, Frames, broken_protocol, malformed};
use crate::error::{Code, Error, Result};

// The server puts small messages into each packet; wide reads collect many of them.
const READ_BYTES: usize = 256 * 1024;
/// Room for less than this is not worth a read. What was taken out shares the buffer, so a new one is
/// not made while the old one has room.
const READ_BYTES_MIN: usize = 16 * 1024;

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
    /// Whether it is for logical replication. Such a session understands SQL, too, but the server has
    /// few of them.
    pub replication: bool,
}

/// A connection to a server.
pub struct Wire {
    socket: Box<dyn Socket>,
    inbox: BytesMut,
    outbox: BytesMut,
    unflushed: bool,
}

impl Wire {
    /// Logs in.
    ///
    /// # Errors
    /// `authentication`, what the server says, or a broken connection.
    pub async fn login(socket: Box<dyn Socket>, login: &Login<'_>) -> Result<Wire> {
        let (inbox, outbox) = (BytesMut::new(), BytesMut::new());
        let mut wire = Wire { socket, inbox, outbox, unflushed: false };
        let parameters = [
            ("user", login.user),
            ("database", login.database),
            ("application_name", login.application),
            ("options", login.options),
        ];
        let replication = login.replication.then_some(("replication", "database"));
        let parameters = parameters.into_iter().chain(replication);
        frontend::startup_message(parameters, &mut wire.outbox).map_err(malformed)?;
        wire.flush().await?;
        wire.authenticate(login).await?;
        wire.until_ready().await?.map_err(|error| connect::server_error("log in", &error))?;
        Ok(wire)
    }

    /// Runs a simple query and returns its rows, or what the server has against it. Not
    /// cancel-safe.
    ///
    /// # Errors
    /// A broken connection.
    pub async fn ask(&mut self, sql: &str) -> Result<std::result::Result<Rows, ServerError>> {
        self.send(sql).await?;
        self.until_ready().await
    }

    /// Sends a simple query, whose messages follow.
    ///
    /// # Errors
    /// A broken connection.
    pub async fn send(&mut self, sql: &str) -> Result<()> {
        frontend::query(sql, &mut self.outbox).map_err(malformed)?;
        self.flush().await
    }

    /// Sends one statement, which has no parameters; its messages follow. The server refuses a second
    /// one, which a piece of SQL from a user might hold.
    ///
    /// # Errors
    /// A broken connection.
    pub async fn send_one(&mut self, sql: &str) -> Result<()> {
        let outbox = &mut self.outbox;
        let values = iter::empty::<IsNull>();
        frontend::parse("", sql, [], outbox).map_err(malformed)?;
        frontend::bind("", "", [], values, |null, _| Ok(null), [], outbox)
            .map_err(|_| broken_protocol("a statement cannot be sent"))?;
        frontend::execute("", 0, outbox).map_err(malformed)?;
        frontend::sync(outbox);
        self.flush().await
    }

    /// Sends what `put` writes. Cancel-safe: what was not sent goes first next time.
    ///
    /// # Errors
    /// A broken connection.
    pub async fn put(&mut self, put: impl FnOnce(&mut BytesMut)) -> Result<()> {
        put(&mut self.outbox);
        self.flush().await
    }

    /// Whether a whole message has arrived.
    ///
    /// # Errors
    /// `protocol` if it cannot be one.
    pub fn has_message(&self) -> Result<bool> {
        Ok(frames::length(&self.inbox)?.is_some())
    }

    /// Waits until a whole message has arrived. Cancel-safe.
    ///
    /// # Errors
    /// `unreachable` when the connection ended, or `protocol`.
    pub async fn wait(&mut self) -> Result<()> {
        self.flush().await?;
        self.fill().await.map(|_| ())
    }

    /// Kind and content of the message that has arrived.
    ///
    /// # Errors
    /// `protocol` if it cannot be one, or was not waited for.
    pub fn head(&self) -> Result<(u8, &[u8])> {
        frames::first(&self.inbox)?.ok_or_else(|| broken_protocol("half a message"))
    }

    /// Steps over the message that has arrived.
    pub fn skip(&mut self) {
        frames::skip(&mut self.inbox);
    }

    /// Waits for a message and takes it out.
    ///
    /// # Errors
    /// As `wait`.
    pub async fn message(&mut self) -> Result<Message> {
        self.fill().await?;
        self.take()
    }

    /// Takes the message out that has arrived.
    ///
    /// # Errors
    /// As `head`.
    pub fn take(&mut self) -> Result<Message> {
        let length = frames::length(&self.inbox)?;
        let length = length.ok_or_else(|| broken_protocol("half a message"))?;
        let mut bytes = self.inbox.split_to(length);
        let parsed = Message::parse(&mut bytes).map_err(malformed)?;
        parsed.ok_or_else(|| broken_protocol("half a message"))
    }

    /// Takes the messages of this kind out that have arrived before any other.
    ///
    /// # Errors
    /// `protocol` if one cannot be a message.
    pub fn take_all(&mut self, tag: u8) -> Result<Frames> {
        Frames::take(&mut self.inbox, tag)
    }

    /// Reads to the end of a query; returns its rows.
    ///
    /// # Errors
    /// A broken connection.
    pub async fn until_ready(&mut self) -> Result<std::result::Result<Rows, ServerError>> {
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            match self.message().await {
                Ok(Message::ReadyForQuery(_)) => return Ok(failed.map_or(Ok(rows), Err)),
                Ok(Message::DataRow(body)) => rows.push(row(&body)?),
                Ok(Message::ErrorResponse(body)) => failed = Some(server_error(&mut body.fields())),
                Ok(_) => {}
                // A fatal error is followed by the end of the connection.
                Err(error) => return failed.map_or(Err(error), |failed| Ok(Err(failed))),
            }
        }
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
                Message::ErrorResponse(body) => return Err(login_failed(&mut body.fields())),
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
            Message::ErrorResponse(body) => return Err(login_failed(&mut body.fields())),
            _ => return Err(refused("the server broke off SCRAM")),
        }
        frontend::sasl_response(scram.message(), &mut self.outbox).map_err(malformed)?;
        self.flush().await?;
        match self.message().await? {
            Message::AuthenticationSaslFinal(body) => {
                scram.finish(body.data()).map_err(|error| refused(error.to_string()))
            }
            Message::ErrorResponse(body) => Err(login_failed(&mut body.fields())),
            _ => Err(refused("the server broke off SCRAM")),
        }
    }

    /// Reads until the inbox begins with a whole message; returns its length. Cancel-safe.
    async fn fill(&mut self) -> Result<usize> {
        loop {
            if let Some(length) = frames::length(&self.inbox)? {
                return Ok(length);
            }
            if self.inbox.capacity() - self.inbox.len() < READ_BYTES_MIN {
                self.inbox.reserve(READ_BYTES);
            }
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

fn row(body: &backend::DataRowBody) -> Result<Row> {
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

fn login_failed(fields: &mut ErrorFields<'_>) -> Error {
    connect::server_error("log in", &server_error(fields))
}

/// The fields of an error or a notice.
pub fn server_error(fields: &mut ErrorFields<'_>) -> ServerError {
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
///
/// # Errors
/// `protocol`.
pub fn ignore(message: &Message) -> Result<()> {
    match message {
        Message::NoticeResponse(_)
        | Message::ParameterStatus(_)
        | Message::NotificationResponse(_) => Ok(()),
        _ => Err(broken_protocol("a message out of place")),
    }
}

/// The connection is over.
pub fn ended(why: impl std::fmt::Display) -> Error {
    Error::transient(Code::Unreachable, format!("the connection to the source ended: {why}"))
}

fn refused(why: impl std::fmt::Display) -> Error {
    Error::stop(Code::Authentication, format!("log in: {why}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// A wire whose other end we have; at most so many bytes arrive at a time.
    fn wire(bytes_max: usize) -> (Wire, DuplexStream) {
        let (socket, server) = duplex(bytes_max);
        let (inbox, outbox) = (BytesMut::new(), BytesMut::new());
        (Wire { socket: Box::new(socket), inbox, outbox, unflushed: false }, server)
    }

    fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[tag], length.as_slice(), body].concat()
    }

    #[tokio::test]
    async fn messages_come_out_whole_however_the_network_cuts_them() {
        let bodies = [b"".as_slice(), b"a", &[7; 300], b"the last"];
        for bytes_max in 1..=40 {
            let (mut wire, mut server) = wire(bytes_max);
            let sent: Vec<u8> = bodies.iter().flat_map(|body| framed(b'd', body)).collect();
            let sending = tokio::spawn(async move {
                server.write_all(&sent).await.unwrap();
                server
            });
            for body in bodies {
                // Dropped again and again, in the middle of a message.
                while !wire.has_message().unwrap() {
                    let _ = tokio::time::timeout(Duration::from_micros(1), wire.wait()).await;
                }
                assert_eq!(wire.head().unwrap(), (b'd', body), "{bytes_max}");
                assert_eq!(wire.head().unwrap(), (b'd', body), "{bytes_max}");
                wire.skip();
            }
            assert!(wire.head().is_err(), "there is no message to look at");
            drop(sending.await.unwrap());
            assert_eq!(wire.wait().await.unwrap_err().code, Code::Unreachable);
        }
    }

    #[tokio::test]
    async fn a_length_that_no_message_has_is_an_error() {
        for length in [0, 3, u32::MAX, 1 << 30] {
            let (mut wire, mut server) = wire(64);
            let header = [b"d", length.to_be_bytes().as_slice()].concat();
            server.write_all(&header).await.unwrap();
            assert_eq!(wire.wait().await.unwrap_err().code, Code::Protocol, "{length}");
        }
    }

    #[tokio::test]
    async fn a_query_gives_its_rows_or_what_the_server_has_against_it() {
        let (mut wire, mut server) = wire(1 << 12);
        let row = |cells: &[u8]| framed(b'D', cells);
        let answers = [
            row(&[0, 2, 0, 0, 0, 1, b'x', 0xff, 0xff, 0xff, 0xff]),
            framed(b'C', b"SELECT 1\0"),
            framed(b'Z', b"I"),
            framed(b'E', b"SERROR\0C42501\0Mno\0\0"),
            framed(b'Z', b"I"),
            framed(b'E', b"SFATAL\0C57P01\0Mgoing\0\0"),
        ];
        server.write_all(&answers.concat()).await.unwrap();
        assert_eq!(wire.ask("a").await.unwrap().unwrap(), [vec![Some("x".to_owned()), None]]);
        assert_eq!(wire.ask("b").await.unwrap().unwrap_err().sqlstate, "42501");
        drop(server);
        // The end of the connection is the consequence, not the reason.
        assert_eq!(wire.until_ready().await.unwrap().unwrap_err().sqlstate, "57P01");
        assert!(wire.until_ready().await.is_err());
    }
}
