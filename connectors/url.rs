//! URLs of databases that are reached over a network, taken apart: what PostgreSQL's and MySQL's
//! have in common. Used by `postgres/config.rs` and `mysql/config.rs`.
//!
//! Surprise: TLS with full verification is the default away from this machine, and the modes
//! that fall back to plain text without a word (`allow`, `prefer`) are refused.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Code, Error, Result};

/// How one database spells its URLs. Parameters have libpq's names where libpq has them; `user`,
/// `password`, `host` and `port` must be among them.
pub struct Dialect {
    /// The database, for messages.
    pub product: &'static str,
    /// What may stand before `://`.
    pub schemes: &'static [&'static str],
    /// How to write such a URL.
    pub form: &'static str,
    /// The parameter that the path gives.
    pub path: &'static str,
    /// What may follow the `?`; the parts before it have names too.
    pub parameters: &'static [&'static str],
}

/// How the server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A host name or an address.
    Tcp(String),
    /// A Unix socket. PostgreSQL: its directory. MySQL: the socket itself.
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

/// The parts of a URL as text, before defaults.
pub struct Parts {
    dialect: &'static Dialect,
    values: Vec<Option<String>>,
}

impl Dialect {
    /// Takes a URL apart: `scheme://user:password@host:port/path?parameter=value`.
    ///
    /// # Errors
    /// `configuration`, naming the part that is wrong and never its secret.
    pub fn read(&'static self, text: &str) -> Result<Parts> {
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if self.schemes.contains(&scheme) => rest,
            _ => return Err(self.wrong(self.form)),
        };
        if rest.contains('#') {
            return Err(self.wrong("it contains a #; write %23 for that character of a password"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        // Without this, part of a password with a bare ? would be printed as a parameter's name.
        if query.contains('@') {
            return Err(
                self.wrong("an @ follows the ?; write %3F for a ? of a password, %40 for an @")
            );
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let mut parts = Parts { dialect: self, values: vec![None; self.parameters.len()] };
        parts.set_authority(authority)?;
        parts.set_encoded(self.path, path)?;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            parts.set(&self.decode(name)?, self.decode(value)?)?;
        }
        Ok(parts)
    }

    /// The URL cannot be used, and why.
    pub fn wrong(&self, what: impl fmt::Display) -> Error {
        let message = format!("the {} URL is wrong: {what}", self.product);
        Error::stop(Code::Configuration, message)
    }

    fn decode(&self, text: &str) -> Result<String> {
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
            let byte =
                byte.ok_or_else(|| self.wrong("a % is not followed by two hexadecimal digits"))?;
            bytes.push(byte);
            rest = &rest[2..];
        }
        String::from_utf8(bytes).map_err(|_| self.wrong("a percent-encoded part is not UTF-8"))
    }

    fn nearest(&self, name: &str) -> &'static str {
        let distance = |known: &&&str| edits(name.as_bytes(), known.as_bytes());
        self.parameters.iter().min_by_key(distance).copied().unwrap_or("host")
    }
}

impl Parts {
    /// A part as text, once.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let place = self.place(name)?;
        self.values[place].take()
    }

    /// The user, which must be there.
    ///
    /// # Errors
    /// `configuration`.
    pub fn user(&mut self) -> Result<String> {
        let scheme = self.dialect.schemes.first().copied().unwrap_or_default();
        let none = format!("it names no user; write {scheme}://user@host/database");
        let user = self.take("user").filter(|user| !user.is_empty());
        user.ok_or_else(|| self.dialect.wrong(none))
    }

    /// The host. Default: this machine.
    ///
    /// # Errors
    /// `configuration`, for more than one.
    pub fn host(&mut self) -> Result<Host> {
        let text = self.take("host").unwrap_or_else(|| "localhost".into());
        if text.contains(',') {
            let several = "it names several hosts; name the one that is written to";
            return Err(self.dialect.wrong(several));
        }
        Ok(if text.starts_with('/') { Host::Unix(text.into()) } else { Host::Tcp(text) })
    }

    /// A number from 1 to 65535.
    ///
    /// # Errors
    /// `configuration`, for anything else.
    pub fn number(&mut self, name: &str, default: u16) -> Result<u16> {
        let Some(text) = self.take(name) else { return Ok(default) };
        match text.parse() {
            Ok(0) | Err(_) => {
                Err(self.dialect.wrong(format!("{name} is not a number from 1 to 65535")))
            }
            Ok(number) => Ok(number),
        }
    }

    /// How long connecting may take. Default 10 s.
    ///
    /// # Errors
    /// `configuration`, for what is no number of seconds.
    pub fn connect_timeout(&mut self) -> Result<Duration> {
        Ok(Duration::from_secs(u64::from(self.number("connect_timeout", 10)?)))
    }

    /// How the connection to this host is protected.
    ///
    /// # Errors
    /// `configuration`, for a mode that does not exist or that falls back to plain text.
    pub fn tls_mode(&mut self, host: &Host) -> Result<TlsMode> {
        let wrong = |what: String| Err(self.dialect.wrong(what));
        let text = self.place("sslmode").and_then(|place| self.values[place].as_deref());
        let mode = match text {
            None if host.is_local() => TlsMode::Disable,
            None | Some("verify-full") => TlsMode::VerifyFull,
            Some("disable") => TlsMode::Disable,
            Some("require") => TlsMode::Require,
            Some("verify-ca") => TlsMode::VerifyCa,
            Some(mode @ ("allow" | "prefer")) => {
                return wrong(format!(
                    "sslmode={mode} falls back to plain text without a word; write \
                     sslmode=verify-full, or sslmode=disable if plain text is meant"
                ));
            }
            Some(mode) => {
                return wrong(format!(
                    "there is no sslmode {mode:?}; write verify-full, verify-ca, require or \
                     disable"
                ));
            }
        };
        if matches!(host, Host::Unix(_)) && mode != TlsMode::Disable {
            return wrong("a Unix socket has no TLS; leave sslmode out".into());
        }
        Ok(mode)
    }

    /// Our certificate and its private key, where they are given.
    ///
    /// # Errors
    /// `configuration`, for one without the other.
    pub fn client_certificate(&mut self) -> Result<Option<(PathBuf, PathBuf)>> {
        match (self.take("sslcert"), self.take("sslkey")) {
            (Some(certificate), Some(key)) => Ok(Some((certificate.into(), key.into()))),
            (None, None) => Ok(None),
            _ => Err(self.dialect.wrong("sslcert and sslkey go together; give both or neither")),
        }
    }

    /// `user:password@host:port`, each part optional.
    fn set_authority(&mut self, authority: &str) -> Result<()> {
        let dialect = self.dialect;
        let (login, address) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        self.set_encoded("user", user)?;
        self.set_encoded("password", password)?;
        let (host, port) = match address.strip_prefix('[') {
            Some(rest) => rest.split_once(']').ok_or_else(|| dialect.wrong("a [ has no ]"))?,
            None => address.split_at(address.find(':').unwrap_or(address.len())),
        };
        self.set_encoded("host", host)?;
        match port.strip_prefix(':') {
            Some(port) => self.set("port", dialect.decode(port)?),
            None if port.is_empty() => Ok(()),
            None => Err(dialect.wrong("something other than a port follows the address")),
        }
    }

    fn set_encoded(&mut self, name: &str, text: &str) -> Result<()> {
        if text.is_empty() { Ok(()) } else { self.set(name, self.dialect.decode(text)?) }
    }

    fn set(&mut self, name: &str, value: String) -> Result<()> {
        let Some(place) = self.place(name) else {
            let nearest = self.dialect.nearest(name);
            let what = format!("there is no parameter {name:?}; the nearest is {nearest:?}");
            return Err(self.dialect.wrong(what));
        };
        if value.contains('\0') {
            return Err(self.dialect.wrong(format!("{name} contains a zero byte")));
        }
        match self.values[place].replace(value) {
            None => Ok(()),
            Some(_) => Err(self.dialect.wrong(format!("{name} is given twice"))),
        }
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.dialect.parameters.iter().position(|known| *known == name)
    }
}

impl Host {
    /// Whether it is this machine, so that nobody is between it and us.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Host::Unix(_) => true,
            Host::Tcp(name) => {
                name.eq_ignore_ascii_case("localhost")
                    || name.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
            }
        }
    }
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
