//! A PostgreSQL URL, read into what `connect.rs` needs. Parameters have libpq's names; how a URL
//! is taken apart, and which TLS modes there are, is in `url.rs`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::Result;
use crate::url::Dialect;
pub use crate::url::{Host, TlsMode};

static DIALECT: Dialect = Dialect {
    product: "PostgreSQL",
    schemes: &["postgres", "postgresql"],
    form: "write postgres://user:password@host:port/database and percent-encode special \
           characters of the password",
    path: "dbname",
    parameters: &[
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
    ],
};

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

impl Config {
    /// Reads `postgres://user:password@host:port/database?sslmode=verify-full`.
    ///
    /// # Errors
    /// `configuration`, naming the part that is wrong and never its secret.
    pub fn parse(text: &str) -> Result<Config> {
        let mut parts = DIALECT.read(text)?;
        let user = parts.user()?;
        let host = parts.host()?;
        Ok(Config {
            tls: parts.tls_mode(&host)?,
            client_certificate: parts.client_certificate()?,
            port: parts.number("port", 5432)?,
            database: parts.take("dbname").unwrap_or_else(|| user.clone()),
            password: parts.take("password"),
            root_certificate: parts.take("sslrootcert").map(PathBuf::from),
            connect_timeout: parts.connect_timeout()?,
            host,
            user,
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

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
