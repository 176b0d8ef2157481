//! Sessions with a MySQL or MariaDB server: how they are opened, how each is set up, and how
//! they are asked. Used by everything in this folder, for the log and for SQL.
//!
//! Surprise: a session that was dropped in the middle of a statement is never used again, because
//! the driver would read that statement's rows as the next one's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use mysql_async::prelude::{Protocol, Queryable};
use mysql_async::{Conn, Opts, OptsBuilder, Params, QueryResult, Row};
use tokio::sync::mpsc;

use super::config::{Config, Host};
use super::failure::error;
use super::tls;
use super::watchdog::{Silent, Watch};
use crate::error::{Code, Error, Result};
use crate::schema::Engine;

/// A packet may be as large as the protocol allows: a row of the log is no larger than the
/// server's own limit, which we do not choose.
const PACKET_MAX: usize = 1 << 30;
const KEEPALIVE: Duration = Duration::from_secs(20);

/// What every session is told first. Instants are read and written in UTC, and limits that are
/// meant for people at a prompt are not ours.
const SETTINGS: &str = "SET NAMES utf8mb4, SESSION autocommit = 1, SESSION time_zone = '+00:00', \
     SESSION net_read_timeout = 600, SESSION net_write_timeout = 600, \
     SESSION sql_select_limit = DEFAULT, SESSION sql_safe_updates = 0, SESSION sql_big_selects = 1";
/// A source has to show what it holds, whatever modes have let it in. A session that lost its
/// network in the middle of a snapshot must not stay for long: it keeps tables from being altered.
const READING: &str = "SESSION sql_mode = 'NO_ENGINE_SUBSTITUTION', SESSION wait_timeout = 300";
/// How long a session that reads may lie idle and still be used.
const IDLE_MAX: Duration = Duration::from_secs(120);
/// A target stores exactly what it is given, or says that it cannot.
const WRITING: &str = "SESSION wait_timeout = 86400, SESSION sql_mode = 'STRICT_ALL_TABLES,\
     NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION,\
     NO_AUTO_VALUE_ON_ZERO'";
const ISOLATION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ";
const WHO: &str = "SELECT VERSION(), CONNECTION_ID()";

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It reads a source.
    Source,
    /// It writes a target.
    Target,
}

/// Which server it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// MySQL or MariaDB.
    pub engine: Engine,
    /// Its version: 10, 11, 18.
    pub version: (u16, u16, u16),
    /// As the server writes it.
    pub text: String,
}

/// A session for SQL, set up and watched: one whose network has gone silent ends within a minute.
pub struct Session {
    connection: Conn,
    watch: Watch,
    server: Server,
    /// A statement is under way, or was when its future was dropped.
    busy: bool,
    used: Instant,
}

impl Server {
    /// Whether it is MariaDB.
    #[must_use]
    pub fn is_mariadb(&self) -> bool {
        self.engine == Engine::Mariadb
    }

    fn parse(text: &str) -> Server {
        let engine = match text.to_ascii_lowercase().contains("mariadb") {
            true => Engine::Mariadb,
            false => Engine::Mysql,
        };
        // MariaDB was once 5.5.5 to replicas that knew no other first digit.
        let digits = text.strip_prefix("5.5.5-").unwrap_or(text);
        let mut numbers =
            digits.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Server { engine, version: (next(), next(), next()), text: text.to_owned() }
    }
}

/// Opens a session for SQL.
///
/// # Errors
/// `unreachable` (transient), `authentication`, `tls`, `configuration` (no such database).
pub async fn connect(config: &Arc<Config>, role: Role) -> Result<Session> {
    let connection = login(config).await?;
    let watch = Watch::new(Arc::clone(config), u64::from(connection.id()));
    let server = Server::parse("");
    let used = Instant::now();
    let mut session = Session { connection, watch, server, busy: false, used };
    let doing = doing_login(config);
    let who = session.query(&doing, WHO).await?;
    let (version, id): (String, u64) = who
        .into_iter()
        .next()
        .and_then(|row| mysql_async::from_row_opt(row).ok())
        .ok_or_else(|| Error::stop(Code::Protocol, format!("{doing}: no version is told")))?;
    session.watch = Watch::new(Arc::clone(config), id);
    session.server = Server::parse(&version);
    let (mode, no_limit) = match (role, session.server.engine) {
        (Role::Source, Engine::Mariadb) => (READING, "SESSION max_statement_time = 0"),
        (Role::Source, _) => (READING, "SESSION max_execution_time = 0"),
        (Role::Target, Engine::Mariadb) => (WRITING, "SESSION max_statement_time = 0"),
        (Role::Target, _) => (WRITING, "SESSION max_execution_time = 0"),
    };
    session.execute(&doing, &format!("{SETTINGS}, {mode}, {no_limit}")).await?;
    session.execute(&doing, ISOLATION).await?;
    Ok(session)
}

/// Opens a connection without setting it up.
///
/// # Errors
/// As `connect`.
pub async fn login(config: &Config) -> Result<Conn> {
    let opening = Conn::new(options(config)?);
    match tokio::time::timeout(config.connect_timeout, opening).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(failure)) => Err(error(&doing_login(config), &failure)),
        Err(_) => {
            let seconds = config.connect_timeout.as_secs();
            let message = format!("{}: no answer within {seconds} s", doing_login(config));
            Err(Error::transient(Code::Unreachable, message))
        }
    }
}

fn options(config: &Config) -> Result<Opts> {
    let builder = OptsBuilder::default()
        .user(Some(&config.user))
        .pass(config.password.as_deref())
        .db_name(Some(&config.database))
        .tcp_keepalive(Some(KEEPALIVE))
        .tcp_nodelay(true)
        // Without this the driver leaves a verified connection for a socket of its choice.
        .prefer_socket(false)
        // Their defaults, spelled out: no password in clear text, none in the broken old form,
        // and no file of this machine for a server that asks for one.
        .enable_cleartext_plugin(false)
        .secure_auth(true)
        .local_infile_handler(None::<mysql_async::WhiteListFsHandler>)
        .max_allowed_packet(Some(PACKET_MAX))
        .wait_timeout(Some(0))
        .connect_attribute("program_name", "driftless")
        .ssl_opts(tls::options(config)?);
    let builder = match &config.host {
        Host::Tcp(host) => builder.ip_or_hostname(host).tcp_port(config.port),
        Host::Unix(file) => builder.socket(Some(file.display().to_string())),
    };
    Ok(builder.into())
}

/// What is being done while a session is opened, for errors.
#[must_use]
pub fn doing_login(config: &Config) -> String {
    format!("connect to {} as {}, database {}", config.address(), config.user, config.database)
}

impl Session {
    /// Which server it is with.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Whether it can be used: no statement was cut off, and the connection was not lost.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        !self.busy && !self.connection.is_disconnected()
    }

    /// Whether it is usable, and the server has not closed it for lying idle.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.is_usable() && self.used.elapsed() < IDLE_MAX
    }

    /// The rows of a statement; each value is text or NULL. `doing` is a verb phrase for errors.
    ///
    /// # Errors
    /// What the server says; `unreachable` (transient).
    pub async fn query(&mut self, doing: &str, sql: &str) -> Result<Vec<Row>> {
        self.fetch(doing, sql, Ok).await
    }

    /// As `query`, with each row turned into something else as it arrives.
    ///
    /// # Errors
    /// As `query`, and those of `turn`.
    pub async fn fetch<T>(
        &mut self,
        doing: &str,
        sql: &str,
        turn: impl FnMut(Row) -> Result<T>,
    ) -> Result<Vec<T>> {
        self.begin(doing)?;
        let watch = self.watch.clone();
        let asked = match watch.over(self.connection.query_iter(sql)).await {
            Ok(Ok(result)) => drain(&watch, result, turn).await,
            Ok(Err(failure)) => Err(failure.into()),
            Err(silent) => Err(silent.into()),
        };
        self.end(doing, asked)
    }

    /// As `fetch`, but the values have the types of their columns: the binary protocol has floats
    /// to the last digit, which MariaDB's text protocol has not.
    ///
    /// # Errors
    /// As `fetch`.
    pub async fn fetch_typed<T>(
        &mut self,
        doing: &str,
        sql: &str,
        turn: impl FnMut(Row) -> Result<T>,
    ) -> Result<Vec<T>> {
        self.begin(doing)?;
        let watch = self.watch.clone();
        let asked = match watch.over(self.connection.exec_iter(sql, ())).await {
            Ok(Ok(result)) => drain(&watch, result, turn).await,
            Ok(Err(failure)) => Err(failure.into()),
            Err(silent) => Err(silent.into()),
        };
        self.end(doing, asked)
    }

    /// Runs a statement without rows; returns how many rows it changed.
    ///
    /// # Errors
    /// As `query`.
    pub async fn execute(&mut self, doing: &str, sql: &str) -> Result<u64> {
        self.query(doing, sql).await?;
        Ok(self.connection.affected_rows())
    }

    /// Runs a statement once for each row of parameters. MariaDB takes many rows in one command; if
    /// they are more than it takes, this sends several.
    ///
    /// # Errors
    /// As `query`.
    pub async fn execute_many(&mut self, doing: &str, sql: &str, rows: Vec<Params>) -> Result<()> {
        self.begin(doing)?;
        let watch = self.watch.clone();
        let asked = match watch.over(self.connection.exec_batch(sql, rows)).await {
            Ok(done) => done.map_err(Failure::from),
            Err(silent) => Err(silent.into()),
        };
        self.end(doing, asked)
    }

    /// Runs a `LOAD DATA LOCAL` that reads these pieces, one after the other; returns how many rows it
    /// changed. A server may refuse it without reading them.
    ///
    /// # Errors
    /// As `query`.
    pub async fn load(
        &mut self,
        doing: &str,
        sql: &str,
        pieces: mpsc::Receiver<Vec<u8>>,
    ) -> Result<u64> {
        let file = stream::unfold(pieces, |mut pieces| async move {
            let piece = pieces.recv().await?;
            Some((Ok(piece.into()), pieces))
        });
        self.connection.set_infile_handler(async move { Ok(file.boxed()) });
        self.execute(doing, sql).await
    }

    /// How many warnings the last statement has left.
    #[must_use]
    pub fn warnings(&self) -> u16 {
        self.connection.get_warnings()
    }

    /// The connection itself, to make it a stream of the log.
    #[must_use]
    pub fn into_connection(self) -> Conn {
        self.connection
    }

    fn begin(&mut self, doing: &str) -> Result<()> {
        if !self.is_usable() {
            let message = format!("{doing}: an earlier statement of the session was cut off");
            return Err(Error::transient(Code::Unreachable, message));
        }
        self.busy = true;
        self.used = Instant::now();
        Ok(())
    }

    /// The session is free again, unless the driver may be in the middle of an answer.
    fn end<T>(&mut self, doing: &str, asked: std::result::Result<T, Failure>) -> Result<T> {
        self.busy = !matches!(asked, Ok(_) | Err(Failure::Driver(mysql_async::Error::Server(_))));
        asked.map_err(|failure| match failure {
            Failure::Driver(failure) => error(doing, &failure),
            Failure::Ours(error) => error,
            Failure::Silent => {
                let message = format!("{doing}: the server does not answer, nor is it at work");
                Error::transient(Code::Unreachable, message)
            }
        })
    }
}

/// Reads a result to its end.
async fn drain<T, P: Protocol>(
    watch: &Watch,
    mut result: QueryResult<'_, 'static, P>,
    mut turn: impl FnMut(Row) -> Result<T>,
) -> std::result::Result<Vec<T>, Failure> {
    let mut rows = Vec::new();
    while let Some(row) = watch.over(result.next()).await?? {
        rows.push(turn(row).map_err(Failure::Ours)?);
    }
    watch.over(result.drop_result()).await??;
    Ok(rows)
}

/// Why a statement has no answer.
enum Failure {
    Driver(mysql_async::Error),
    Ours(Error),
    Silent,
}

impl From<Silent> for Failure {
    fn from(_: Silent) -> Failure {
        Failure::Silent
    }
}

impl From<mysql_async::Error> for Failure {
    fn from(failure: mysql_async::Error) -> Failure {
        Failure::Driver(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_tells_which_server_it_is() {
        let check = |text, engine, version| {
            let server = Server::parse(text);
            assert_eq!((server.engine, server.version), (engine, version), "{text}");
        };
        check("10.11.18-MariaDB-0+deb12u1-log", Engine::Mariadb, (10, 11, 18));
        check("5.5.5-10.6.4-MariaDB", Engine::Mariadb, (10, 6, 4));
        check("9.7.4-debian", Engine::Mysql, (9, 7, 4));
        check("8.0.mysql_aurora.3.04", Engine::Mysql, (8, 0, 0));
    }

    fn config(port: u16, parameters: &str) -> Arc<Config> {
        let url = format!("mysql://u:secret@127.0.0.1:{port}/d{parameters}");
        Arc::new(Config::parse(&url).unwrap())
    }

    #[tokio::test]
    async fn a_closed_port_is_unreachable_and_named() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = connect(&config(port, ""), Role::Source).await.err().unwrap();
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
            socket.write_all(&greeting()).await.unwrap();
            let mut rest = Vec::new();
            socket.read_to_end(&mut rest).await.unwrap();
            rest
        });
        let config = config(port, "?sslmode=require");
        let error = connect(&config, Role::Source).await.err().unwrap();
        assert_eq!((error.is_transient(), error.code), (false, Code::Tls), "{error}");
        assert_eq!(server.await.unwrap(), b"");
    }

    /// What a server without TLS says first.
    fn greeting() -> Vec<u8> {
        let mut body = b"\x0a8.0.1\0\x01\0\0\0saltsalt\0".to_vec();
        // Capabilities: everything that is usual, CLIENT_SSL not among it.
        body.extend_from_slice(&0xf7ff_u16.to_le_bytes());
        body.extend_from_slice(&[45, 2, 0]);
        body.extend_from_slice(&0x01ff_u16.to_le_bytes());
        body.push(21);
        body.extend_from_slice(&[0; 10]);
        body.extend_from_slice(b"saltsaltsalt\0mysql_native_password\0");
        let mut packet = vec![body.len() as u8, 0, 0, 0];
        packet.extend_from_slice(&body);
        packet
    }
}
