//! A MySQL or MariaDB URL, read into what `connect.rs` needs. How a URL is taken apart, and which
//! TLS modes there are, is in `url.rs`.
//!
//! Surprise: a Unix socket is `socket=FILE`, the file itself and not its directory.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::Result;
use crate::url::Dialect;
pub use crate::url::{Host, TlsMode};

static DIALECT: Dialect = Dialect {
    product: "MySQL",
    schemes: &["mysql", "mariadb"],
    form: "write mysql://user:password@host:port/database and percent-encode special characters \
           of the password",
    path: "database",
    parameters: &[
        "user",
        "password",
        "host",
        "port",
        "database",
        "socket",
        "sslmode",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "connect_timeout",
    ],
};

/// Where a server is and who we are there.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// The account's name.
    pub user: String,
    /// Its password; `None` where it has none. Never printed.
    pub password: Option<String>,
    /// The server.
    pub host: Host,
    /// Its port; of no use for a Unix socket. Default 3306.
    pub port: u16,
    /// The database whose tables are meant by their plain names.
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
    /// Reads `mysql://user:password@host:port/database?sslmode=verify-full`.
    ///
    /// # Errors
    /// `configuration`, naming the part that is wrong and never its secret.
    pub fn parse(text: &str) -> Result<Config> {
        let mut parts = DIALECT.read(text)?;
        let user = parts.user()?;
        let database = parts.take("database").filter(|database| !database.is_empty());
        let database = database.ok_or_else(|| {
            DIALECT.wrong("it names no database; write mysql://user@host/database")
        })?;
        let host = match (parts.take("socket"), parts.host()?) {
            (None, host) => host,
            (Some(file), host) if host.is_local() => Host::Unix(file.into()),
            (Some(_), _) => {
                return Err(DIALECT.wrong("socket and host are both given; leave one out"));
            }
        };
        Ok(Config {
            tls: parts.tls_mode(&host)?,
            client_certificate: parts.client_certificate()?,
            port: parts.number("port", 3306)?,
            password: parts.take("password"),
            root_certificate: parts.take("sslrootcert").map(PathBuf::from),
            connect_timeout: parts.connect_timeout()?,
            user,
            host,
            database,
        })
    }

    /// `host:port` or the socket, for messages.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.host {
            Host::Tcp(host) if host.contains(':') => format!("[{host}]:{}", self.port),
            Host::Tcp(host) => format!("{host}:{}", self.port),
            Host::Unix(file) => file.display().to_string(),
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
            "mysql://ap%40p:p%2Fw%23@db.example:3307/sh%20op?sslmode=verify-ca\
             &sslrootcert=/ca.pem&sslcert=c.pem&sslkey=k.pem&connect_timeout=3",
        )
        .unwrap();
        let expected = Config {
            user: "ap@p".into(),
            password: Some("p/w#".into()),
            host: Host::Tcp("db.example".into()),
            port: 3307,
            database: "sh op".into(),
            tls: TlsMode::VerifyCa,
            root_certificate: Some("/ca.pem".into()),
            client_certificate: Some(("c.pem".into(), "k.pem".into())),
            connect_timeout: Duration::from_secs(3),
        };
        assert!(config == expected, "{config:?}");
        assert_eq!(format!("{config:?}"), "Config(ap@p at db.example:3307, database sh op)");
    }

    #[test]
    fn tls_is_verified_except_on_this_machine() {
        let mode = |url| Config::parse(url).unwrap().tls;
        assert_eq!(mode("mysql://u@db.example/d"), TlsMode::VerifyFull);
        assert_eq!(mode("mariadb://u@localhost/d"), TlsMode::Disable);
        assert_eq!(mode("mysql://u@127.0.0.1/d?sslmode=verify-full"), TlsMode::VerifyFull);
        check_error("mysql://u:secret@h/d?sslmode=prefer", "falls back to plain text");
    }

    #[test]
    fn a_unix_socket_is_a_file() {
        let config = Config::parse("mysql://u@/db?socket=/run/mysqld.sock").unwrap();
        assert_eq!(config.host, Host::Unix("/run/mysqld.sock".into()));
        assert_eq!(config.address(), "/run/mysqld.sock");
        let encoded = Config::parse("mysql://u@%2Frun%2Fmysqld.sock/db").unwrap();
        assert_eq!(encoded.host, config.host);
        check_error("mysql://u@h/db?socket=/run/s", "leave one out");
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_keeps_the_secret() {
        check_error("mysql://u:secret@h/db?sslmod=disable", "nearest is \"sslmode\"");
        check_error("mysql://u:secret@h", "names no database");
        check_error("mysql://h/db", "names no user; write mysql://");
        check_error("postgres://u:secret@a/db", "write mysql://");
    }
}
