//! A PostgreSQL URL, read into what `connect.rs` needs. Parameters have libpq's names.
//!
//! Surprise: TLS with full verification is the default away from this machine, and the modes
//! that fall back to plain text without a word (`allow`, `prefer`) are refused.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Code, Error, Result};

const FORM: &str = "write postgres://user:password@host:port/database and percent-encode special \
                    characters of the password";
const PARAMETERS: [&str; 10] = [
    "user",
    "password",
    "host",
    "port",
    "dbname",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "connect_timeout",
];

/// Where a PostgreSQL server is and who we are there.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// The role.
    pub user: String,
    /// Its password; `None` where the server asks for none. Never printed.
    pub password: Option<String>,
    /// The server.
    pub host: Host,
    /// Its port; for a Unix socket the number in the socket's name. Default 5432.
    pub port: u16,
    /// The database. Default: the name of the user.
    pub database: String,
    /// How the connection is protected.
    pub tls: TlsMode,
    /// PEM file of the authorities to trust instead of the machine's own.
    pub root_certificate: Option<PathBuf>,
    /// PEM files of our certificate and its private key, where the server asks for one.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// How long connecting may take, name resolution to the end of the login. Default 10 s.
    pub connect_timeout: Duration,
}

/// How the server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A host name or an address.
    Tcp(String),
    /// The directory of a Unix socket.
    Unix(PathBuf),
}

/// libpq's `sslmode`, without the modes that fall back silently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// Plain text. The default on this machine.
    Disable,
    /// Encrypted, with whoever answers; as `VerifyCa` when authorities are given (libpq does so).
    Require,
    /// Encrypted, and the certificate is signed by an authority that we trust.
    VerifyCa,
    /// As `VerifyCa`, and it names the host. The default everywhere else.
    VerifyFull,
}

impl Config {
    /// Reads `postgres://user:password@host:port/database?sslmode=verify-full`.
    ///
    /// # Errors
    /// `configuration`, naming the part that is wrong and never its secret.
    pub fn parse(text: &str) -> Result<Config> {
        let rest = match text.split_once("://") {
            Some(("postgres" | "postgresql", rest)) => rest,
            _ => return Err(wrong(FORM)),
        };
        if rest.contains('#') {
            return Err(wrong("it contains a #; write %23 for that character of a password"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        // Without this, part of a password with a bare ? would be printed as a parameter's name.
        if query.contains('@') {
            return Err(wrong("an @ follows the ?; write %3F for a ? of a password, %40 for an @"));
        }
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let mut parts = Parts::default();
        parts.set_authority(authority)?;
        parts.set_encoded("dbname", database)?;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            parts.set(&decode(name)?, decode(value)?)?;
        }
        parts.finish()
    }

    /// `host:port` or the socket, for messages.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.host {
            Host::Tcp(host) if host.contains(':') => format!("[{host}]:{}", self.port),
            Host::Tcp(host) => format!("{host}:{}", self.port),
            Host::Unix(_) => self.socket_path().display().to_string(),
        }
    }

    /// The file of the Unix socket; of no use for another host.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        match &self.host {
            Host::Unix(directory) => directory.join(format!(".s.PGSQL.{}", self.port)),
            Host::Tcp(_) => PathBuf::new(),
        }
    }
}

// The password must not reach a log by way of a debug print.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Config({} at {}, database {})", self.user, self.address(), self.database)
    }
}

/// The parts of a URL as text, before defaults.
#[derive(Default)]
struct Parts {
    values: [Option<String>; PARAMETERS.len()],
}

impl Parts {
    /// `user:password@host:port`, each part optional.
    fn set_authority(&mut self, authority: &str) -> Result<()> {
        let (login, address) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        self.set_encoded("user", user)?;
        self.set_encoded("password", password)?;
        let (host, port) = match address.strip_prefix('[') {
            Some(rest) => rest.split_once(']').ok_or_else(|| wrong("a [ has no ]"))?,
            None => address.split_at(address.find(':').unwrap_or(address.len())),
        };
        self.set_encoded("host", host)?;
        match port.strip_prefix(':') {
            Some(port) => self.set("port", decode(port)?),
            None if port.is_empty() => Ok(()),
            None => Err(wrong("something other than a port follows the address")),
        }
    }

    fn set_encoded(&mut self, name: &str, text: &str) -> Result<()> {
        if text.is_empty() { Ok(()) } else { self.set(name, decode(text)?) }
    }

    fn set(&mut self, name: &str, value: String) -> Result<()> {
        let Some(place) = PARAMETERS.iter().position(|known| *known == name) else {
            let nearest = nearest(name);
            return Err(wrong(format!(
                "there is no parameter {name:?}; the nearest is {nearest:?}"
            )));
        };
        if value.contains('\0') {
            return Err(wrong(format!("{name} contains a zero byte")));
        }
        match self.values[place].replace(value) {
            None => Ok(()),
            Some(_) => Err(wrong(format!("{name} is given twice"))),
        }
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let place = PARAMETERS.iter().position(|known| *known == name)?;
        self.values[place].take()
    }

    fn finish(mut self) -> Result<Config> {
        let user = self
            .take("user")
            .filter(|user| !user.is_empty())
            .ok_or_else(|| wrong("it names no user; write postgres://user@host/database"))?;
        let host = host(self.take("host").unwrap_or_else(|| "localhost".into()))?;
        let tls = tls_mode(self.take("sslmode").as_deref(), &host)?;
        let client_certificate = match (self.take("sslcert"), self.take("sslkey")) {
            (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
            (None, None) => None,
            _ => return Err(wrong("sslcert and sslkey go together; give both or neither")),
        };
        Ok(Config {
            host,
            port: number(self.take("port"), "port", 5432)?,
            database: self.take("dbname").unwrap_or_else(|| user.clone()),
            user,
            password: self.take("password"),
            tls,
            root_certificate: self.take("sslrootcert").map(PathBuf::from),
            client_certificate,
            connect_timeout: Duration::from_secs(u64::from(number(
                self.take("connect_timeout"),
                "connect_timeout",
                10,
            )?)),
        })
    }
}

fn host(text: String) -> Result<Host> {
    if text.contains(',') {
        return Err(wrong("it names several hosts; name the one that is written to"));
    }
    Ok(if text.starts_with('/') { Host::Unix(text.into()) } else { Host::Tcp(text) })
}

fn number(text: Option<String>, name: &str, default: u16) -> Result<u16> {
    let Some(text) = text else { return Ok(default) };
    match text.parse() {
        Ok(0) | Err(_) => Err(wrong(format!("{name} is not a number from 1 to 65535"))),
        Ok(number) => Ok(number),
    }
}

fn tls_mode(text: Option<&str>, host: &Host) -> Result<TlsMode> {
    let mode = match text {
        None if is_local(host) => TlsMode::Disable,
        None | Some("verify-full") => TlsMode::VerifyFull,
        Some("disable") => TlsMode::Disable,
        Some("require") => TlsMode::Require,
        Some("verify-ca") => TlsMode::VerifyCa,
        Some(mode @ ("allow" | "prefer")) => {
            return Err(wrong(format!(
                "sslmode={mode} falls back to plain text without a word; write \
                 sslmode=verify-full, or sslmode=disable if plain text is meant"
            )));
        }
        Some(mode) => {
            return Err(wrong(format!(
                "there is no sslmode {mode:?}; write verify-full, verify-ca, require or disable"
            )));
        }
    };
    if matches!(host, Host::Unix(_)) && mode != TlsMode::Disable {
        return Err(wrong("a Unix socket has no TLS; leave sslmode out"));
    }
    Ok(mode)
}

fn is_local(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name.eq_ignore_ascii_case("localhost")
                || name.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
        }
    }
}

fn decode(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.ok_or_else(|| wrong("a % is not followed by two hexadecimal digits"))?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| wrong("a percent-encoded part is not UTF-8"))
}

fn nearest(name: &str) -> &'static str {
    let distance = |known: &&&str| edits(name.as_bytes(), known.as_bytes());
    PARAMETERS.iter().min_by_key(distance).copied().unwrap_or("host")
}

/// Levenshtein distance, row by row.
fn edits(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn wrong(what: impl fmt::Display) -> Error {
    Error::stop(Code::Configuration, format!("the PostgreSQL URL is wrong: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_error(url: &str, expected: &str) {
        let error = Config::parse(url).unwrap_err();
        assert_eq!(error.code, Code::Configuration);
        assert!(error.message.contains(expected), "{error}");
        assert!(!error.message.contains("secret"), "{error}");
    }

    #[test]
    fn a_full_url_gives_every_part() {
        let config = Config::parse(
            "postgres://ap%40p:p%2Fw%23@db.example:6000/sh%20op?sslmode=verify-ca\
             &sslrootcert=/ca.pem&sslcert=c.pem&sslkey=k.pem&connect_timeout=3",
        )
        .unwrap();
        let expected = Config {
            user: "ap@p".into(),
            password: Some("p/w#".into()),
            host: Host::Tcp("db.example".into()),
            port: 6000,
            database: "sh op".into(),
            tls: TlsMode::VerifyCa,
            root_certificate: Some("/ca.pem".into()),
            client_certificate: Some(("c.pem".into(), "k.pem".into())),
            connect_timeout: Duration::from_secs(3),
        };
        assert!(config == expected, "{config:?}");
        assert_eq!(format!("{config:?}"), "Config(ap@p at db.example:6000, database sh op)");
    }

    #[test]
    fn tls_is_verified_except_on_this_machine() {
        let mode = |url| Config::parse(url).unwrap().tls;
        assert_eq!(mode("postgres://u@db.example"), TlsMode::VerifyFull);
        assert_eq!(mode("postgres://u@db.example?sslmode=require"), TlsMode::Require);
        assert_eq!(mode("postgres://u@localhost"), TlsMode::Disable);
        assert_eq!(mode("postgres://u@[::1]:5433/x"), TlsMode::Disable);
        assert_eq!(mode("postgresql://u@127.0.0.1?sslmode=verify-full"), TlsMode::VerifyFull);
        check_error("postgres://u:secret@h?sslmode=prefer", "falls back to plain text");
        check_error("postgres://u:secret@h?sslmode=full", "write verify-full");
    }

    #[test]
    fn a_unix_socket_is_a_host_that_begins_with_a_slash() {
        let config = Config::parse("postgres://u@/db?host=/run/pg&port=5433").unwrap();
        assert_eq!(config.host, Host::Unix("/run/pg".into()));
        assert_eq!(config.address(), "/run/pg/.s.PGSQL.5433");
        assert_eq!(config.tls, TlsMode::Disable);
        let encoded = Config::parse("postgres://u@%2Frun%2Fpg/db").unwrap();
        assert_eq!(encoded.host, Host::Unix("/run/pg".into()));
        check_error("postgres://u@/db?host=/run&sslmode=require", "has no TLS");
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_keeps_the_secret() {
        check_error("postgres://u:secret@h/db?sslmod=disable", "nearest is \"sslmode\"");
        check_error("postgres://u:secret@h/db?user=v", "user is given twice");
        check_error("postgres://u:secret@h/db?port=x", "port is not a number");
        check_error("postgres://u:secret@h/db?connect_timeout=0", "connect_timeout is not");
        check_error("postgres://u:sec#ret@h/db", "%23");
        check_error("postgres://u:x?secret@h/db", "%3F");
        check_error("postgres://h/db", "names no user");
        check_error("postgres://u:secret%zz@h/db", "two hexadecimal digits");
        check_error("postgres://u:secret@a/db?sslcert=x", "go together");
        check_error("mysql://u:secret@a/db", "write postgres://");
    }
}
