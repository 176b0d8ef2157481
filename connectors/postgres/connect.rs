//! Sessions with a PostgreSQL server: how they are opened, how each is set up, and what an error
//! of the server means. Used by everything in this folder, for the log and for SQL.
//!
//! Surprise: every session has the same settings, so that a value has one text form whichever
//! way it is read, and nothing that a user made is called by accident.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::AbortHandle;
use tokio_postgres::error::DbError;
use tokio_postgres::{Client, NoTls};

use super::config::{Config, Host, TlsMode};
use super::paced::{Paced, Reading};
use super::tls;
use super::watchdog::{self, Overheard, Talk};
use crate::error::{Code, Error, Result};

/// The settings of every session. A stalled standby must not stall us, hence
/// `synchronous_commit`; row security must be an error, never a filtered copy.
pub const SETTINGS: [(&str, &str); 14] = [
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO,MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("search_path", "pg_catalog"),
    ("row_security", "off"),
    ("synchronous_commit", "local"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("default_transaction_read_only", "off"),
];

// A peer that vanished is noticed within a minute: 20 s of silence, then 4 probes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(20);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 4;

/// A connection to a server, encrypted or not.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// Opens a session for SQL. `application` is what `pg_stat_activity` shows. A session whose
/// network has gone silent ends within a minute.
///
/// # Errors
/// `unreachable` (transient), `authentication`, `tls`, `configuration` (no such database).
pub async fn connect(config: &Config, application: &str) -> Result<Client> {
    let talk = Talk::new();
    let (client, session) = open(config, application, &talk).await?;
    let asked = client.query_one("SELECT pg_catalog.pg_backend_pid()", &[]).await;
    let backend_pid = asked.map_err(|failure| error(&doing_login(config), &failure))?.get(0);
    tokio::spawn(watchdog::watch(config.clone(), talk, backend_pid, session));
    Ok(client)
}

/// As `connect`, for a short question.
///
/// # Errors
/// As `connect`.
pub async fn connect_unwatched(config: &Config, application: &str) -> Result<Client> {
    Ok(open(config, application, &Talk::new()).await?.0)
}

async fn open(
    config: &Config,
    application: &str,
    talk: &Arc<Talk>,
) -> Result<(Client, AbortHandle)> {
    let mut driver = tokio_postgres::Config::new();
    driver
        .user(&config.user)
        .dbname(&config.database)
        .application_name(application)
        .options(startup_options())
        // `dial` has done what is to be done about TLS.
        .ssl_mode(tokio_postgres::config::SslMode::Disable);
    if let Some(password) = &config.password {
        driver.password(password);
    }
    let login = async {
        let socket = Overheard::new(dial(config, Reading::AtOnce).await?, Arc::clone(talk));
        driver
            .connect_raw(socket, NoTls)
            .await
            .map_err(|failure| error(&doing_login(config), &failure))
    };
    let (client, connection) = within(config, login).await?;
    // The client's next call reports why the connection ended.
    let session = tokio::spawn(async move {
        if connection.await.is_err() {
            tracing::debug!("connection ended");
        }
    });
    Ok((client, session.abort_handle()))
}

/// What is being done while a session is opened, for errors.
pub fn doing_login(config: &Config) -> String {
    format!("connect to {} as {}, database {}", config.address(), config.user, config.database)
}

/// Gives an opening session its time.
///
/// # Errors
/// Those of `login`, and `unreachable` when it takes too long.
pub async fn within<T>(config: &Config, login: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(config.connect_timeout, login).await.unwrap_or_else(|_| {
        let seconds = config.connect_timeout.as_secs();
        let message = format!("{}: no answer within {seconds} s", doing_login(config));
        Err(Error::transient(Code::Unreachable, message))
    })
}

/// `SETTINGS` as the `options` of a startup message.
#[must_use]
pub fn startup_options() -> String {
    let mut options = String::new();
    for (name, value) in SETTINGS {
        let _ = write!(options, "-c {name}={value} ");
    }
    options.trim_end().to_owned()
}

/// Opens a connection and, unless it is to be plain, establishes TLS. Nothing has been said about
/// who we are when it returns.
///
/// # Errors
/// `unreachable` (transient), `tls`.
pub async fn dial(config: &Config, reading: Reading) -> Result<Box<dyn Socket>> {
    let host = match &config.host {
        Host::Unix(_) => {
            let socket = UnixStream::connect(config.socket_path()).await;
            let socket = socket.map_err(|error| unreachable(config, &error))?;
            return Ok(Box::new(Paced::new(socket, reading)));
        }
        Host::Tcp(host) => host,
    };
    let socket = TcpStream::connect((host.as_str(), config.port)).await;
    let socket = socket.map_err(|error| unreachable(config, &error))?;
    keep_alive(&socket).map_err(|error| unreachable(config, &error))?;
    let socket = Paced::new(socket, reading);
    if config.tls == TlsMode::Disable {
        return Ok(Box::new(socket));
    }
    Ok(Box::new(tls::establish(config, host, socket).await?))
}

fn keep_alive(socket: &TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

fn unreachable(config: &Config, error: &std::io::Error) -> Error {
    Error::transient(Code::Unreachable, format!("connect to {}: {error}", config.address()))
}

/// What an error of the driver means. `doing` is a verb phrase: "read a chunk of public.orders".
#[must_use]
pub fn error(doing: &str, error: &tokio_postgres::Error) -> Error {
    if let Some(server) = error.as_db_error() {
        return server_error(doing, &ServerError::from(server));
    }
    if error.is_closed() {
        return Error::transient(Code::Unreachable, format!("{doing}: the connection was closed"));
    }
    let cause = std::error::Error::source(error);
    if let Some(io) = cause.and_then(|cause| cause.downcast_ref::<std::io::Error>()) {
        return Error::transient(Code::Unreachable, format!("{doing}: {io}"));
    }
    match error.to_string() {
        // The server asks for a password and none is configured, or speaks of another one.
        text if text.starts_with("invalid configuration") || text.starts_with("authentication") => {
            Error::stop(Code::Authentication, format!("{doing}: {}", with_cause(&text, cause)))
        }
        text => Error::stop(Code::Protocol, format!("{doing}: {text}")),
    }
}

fn with_cause(text: &str, cause: Option<&(dyn std::error::Error + 'static)>) -> String {
    match cause {
        Some(cause) if !text.contains(&cause.to_string()) => format!("{text}: {cause}"),
        _ => text.to_owned(),
    }
}

/// The fields of an error of the server that matter to us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// The SQLSTATE, five characters.
    pub sqlstate: String,
    /// The primary message.
    pub message: String,
    /// `schema.table`, column and constraint, where the server names them.
    pub objects: Vec<String>,
}

impl From<&DbError> for ServerError {
    fn from(error: &DbError) -> ServerError {
        let table = match (error.schema(), error.table()) {
            (Some(schema), Some(table)) => Some(format!("table {schema}.{table}")),
            _ => None,
        };
        let column = error.column().map(|name| format!("column {name}"));
        let constraint = error.constraint().map(|name| format!("constraint {name}"));
        ServerError {
            sqlstate: error.code().code().to_owned(),
            message: error.message().to_owned(),
            objects: [table, column, constraint].into_iter().flatten().collect(),
        }
    }
}

impl ServerError {
    /// The message with its SQLSTATE; where the message may quote a value, only what it is about.
    #[must_use]
    pub fn text(&self) -> String {
        // These classes speak of settings, objects and resources. All others may quote rows.
        const SAFE: [&str; 13] =
            ["08", "0A", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58"];
        let safe = SAFE.contains(&self.class()) || self.class() == "XX";
        match (safe, self.objects.is_empty()) {
            (true, _) => format!("{} (SQLSTATE {})", self.message, self.sqlstate),
            (false, true) => format!("SQLSTATE {}", self.sqlstate),
            (false, false) => format!("SQLSTATE {}, {}", self.sqlstate, self.objects.join(", ")),
        }
    }

    /// The first two letters of its SQLSTATE.
    pub fn class(&self) -> &str {
        self.sqlstate.get(..2).unwrap_or_default()
    }
}

/// What an error of the server means.
#[must_use]
pub fn server_error(doing: &str, error: &ServerError) -> Error {
    let message = format!("{doing}: {}", error.text());
    match error.sqlstate.as_str() {
        "42501" => return Error::stop(Code::Permission, message),
        "42P01" | "42703" | "3F000" => return Error::stop(Code::MissingTable, message),
        "3D000" | "57P04" => return Error::stop(Code::Configuration, message),
        "55006" => return Error::transient(Code::SlotInUse, message),
        "25006" => return Error::stop(Code::Permission, message),
        _ => {}
    }
    match error.class() {
        "28" => Error::stop(Code::Authentication, message),
        "08" | "40" | "53" | "57" | "58" => Error::transient(Code::Unreachable, message),
        "55" if error.sqlstate == "55P03" => Error::transient(Code::Unreachable, message),
        "21" | "22" | "23" | "44" | "P0" => Error::stop(Code::PoisonRow, message),
        "55" => Error::stop(Code::SourceSettings, message),
        _ => Error::stop(Code::Protocol, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn check(sqlstate: &str, kind: Kind, code: Code, message: &str) {
        let error = ServerError {
            sqlstate: sqlstate.into(),
            message: "it says so".into(),
            objects: vec!["table s.t".into(), "constraint c".into()],
        };
        let expected = Error { kind, code, message: format!("do it: {message}") };
        assert_eq!(server_error("do it", &error), expected);
    }

    #[test]
    fn a_server_error_has_one_reaction() {
        check("28P01", Kind::Stop, Code::Authentication, "it says so (SQLSTATE 28P01)");
        check("3D000", Kind::Stop, Code::Configuration, "it says so (SQLSTATE 3D000)");
        check("42501", Kind::Stop, Code::Permission, "it says so (SQLSTATE 42501)");
        check("53300", Kind::Transient, Code::Unreachable, "it says so (SQLSTATE 53300)");
        check("57P01", Kind::Transient, Code::Unreachable, "it says so (SQLSTATE 57P01)");
        check("55006", Kind::Transient, Code::SlotInUse, "it says so (SQLSTATE 55006)");
    }

    #[test]
    fn an_error_about_values_names_objects_only() {
        let names = "SQLSTATE 23505, table s.t, constraint c";
        check("23505", Kind::Stop, Code::PoisonRow, names);
        check("22P02", Kind::Stop, Code::PoisonRow, "SQLSTATE 22P02, table s.t, constraint c");
    }

    #[tokio::test]
    async fn a_closed_port_is_unreachable_and_named() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = Config::parse(&format!("postgres://u:secret@127.0.0.1:{port}/d")).unwrap();
        let error = connect(&config, "test").await.err().unwrap();
        assert_eq!((error.is_transient(), error.code), (true, Code::Unreachable));
        assert!(error.message.contains(&format!("127.0.0.1:{port}")), "{error}");
        assert!(!error.message.contains("secret"), "{error}");
    }

    #[tokio::test]
    async fn a_server_without_tls_gets_no_credential() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 8];
            socket.read_exact(&mut request).await.unwrap();
            socket.write_all(b"N").await.unwrap();
            let mut rest = Vec::new();
            socket.read_to_end(&mut rest).await.unwrap();
            rest
        });
        let url = format!("postgres://u:secret@127.0.0.1:{port}/d?sslmode=require");
        let error = connect(&Config::parse(&url).unwrap(), "test").await.err().unwrap();
        assert_eq!((error.is_transient(), error.code), (false, Code::Tls));
        assert_eq!(server.await.unwrap(), b"");
    }
}
