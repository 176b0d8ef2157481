//! Errors in the kinds that the engine tells apart. A message says what happened, where, and what
//! to type next; it never holds a row value.

use std::fmt;
use std::io;

/// Result of every operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, as far as a caller reacts differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Another process has the store open.
    InUse,
    /// The store holds what it cannot have been given.
    Corrupt,
    /// The store was written by a newer version.
    Version,
    /// The store belongs to another pipeline.
    OtherPipeline,
    /// Others could read or change the directory, or its name cannot be trusted.
    Unsafe,
    /// The disk is full or failing, or the directory cannot be reached.
    Disk(io::ErrorKind),
}

/// What happened, where, and what to type next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What a caller reacts to.
    pub kind: ErrorKind,
    /// One line, lower case, no final period.
    pub message: String,
}

impl Error {
    /// An error of this kind.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into() }
    }

    /// The store holds what it cannot have been given.
    pub(crate) fn corrupt(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Corrupt, message)
    }

    /// The system refused an operation.
    pub(crate) fn disk(doing: impl fmt::Display, error: &io::Error) -> Error {
        Error::new(ErrorKind::Disk(error.kind()), format!("{doing}: {error}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
