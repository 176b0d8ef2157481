//! What SQLite's errors mean to the engine.
//! Surprise: SQLite's messages can hold row values (a trigger's own words), so where values were
//! at work only names of constraints and of error codes are repeated.

use rusqlite::ErrorCode;
use rusqlite::ffi;

use crate::change::Key;
use crate::error::{Code, Error, Result};
use crate::schema::TableName;
use crate::version::Version;

/// Turns SQLite's errors into ours: `.sql("read checkpoint")?`.
pub(super) trait Sql<T> {
    /// Puts what was being done in front.
    fn sql(self, doing: &str) -> Result<T>;
}

impl<T> Sql<T> for rusqlite::Result<T> {
    fn sql(self, doing: &str) -> Result<T> {
        self.map_err(|error| failure(&error).context(doing))
    }
}

/// The error of a statement that carries no row.
pub(super) fn failure(error: &rusqlite::Error) -> Error {
    let words = words(error);
    let transient = |words: String| Error::transient(Code::Unreachable, words);
    let Some(code) = error.sqlite_error_code() else {
        return Error::stop(Code::Internal, words);
    };
    match code {
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
            transient(format!("{words}; another process holds a transaction open"))
        }
        ErrorCode::DiskFull => {
            transient(format!("{words}; the target's disk is full, make room on it"))
        }
        ErrorCode::SystemIoFailure
        | ErrorCode::OutOfMemory
        | ErrorCode::CannotOpen
        | ErrorCode::FileLockingProtocolFailed
        | ErrorCode::SchemaChanged
        | ErrorCode::OperationInterrupted
        | ErrorCode::OperationAborted => transient(words),
        ErrorCode::PermissionDenied
        | ErrorCode::ReadOnly
        | ErrorCode::AuthorizationForStatementDenied => Error::stop(
            Code::Permission,
            format!("{words}; make the file and its directory writable for this user"),
        ),
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Error::stop(
            Code::TargetLost,
            format!("{words}; restore the file from a backup, or move it away and start again"),
        ),
        _ => Error::stop(Code::Internal, words),
    }
}

/// The error of preparing a statement on a replicated table: the table is not as we left it.
pub(super) fn unprepared(table: &TableName, error: &rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(ErrorCode::Unknown) => Error::table(
            table,
            Code::TargetShape,
            format!(
                "the target table of {table} is not as driftless made it: {}; put it back, or \
                 drop it, restart and let it be copied again",
                words(error)
            ),
        ),
        _ => failure(error).context(format_args!("prepare statement on {table}")),
    }
}

/// The error of a statement that carries a row.
pub(super) fn refused(
    table: &TableName,
    key: &Key,
    version: Version,
    error: &rusqlite::Error,
) -> Error {
    match error.sqlite_error_code() {
        Some(
            ErrorCode::ConstraintViolation
            | ErrorCode::TooBig
            | ErrorCode::TypeMismatch
            | ErrorCode::Unknown,
        ) => poison(table, key, version, &row_words(error)),
        _ => failure(error).context(format_args!("write row of {table}")),
    }
}

/// A row that cannot be written, for a reason that names no value.
pub(super) fn poison(table: &TableName, key: &Key, version: Version, reason: &str) -> Error {
    Error::table(
        table,
        Code::PoisonRow,
        format!(
            "the target refused a row of {table} (key hash {}, version {version}): {reason}; \
             mend the row at the source or what refuses it in the target, then run `driftless \
             backfill --table {table}`",
            key.hash()
        ),
    )
}

/// Messages about statements hold SQL at most, and SQL never holds values.
fn words(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
        rusqlite::Error::SqliteFailure(code, None) => ffi::code_to_str(code.extended_code).into(),
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        rusqlite::Error::InvalidColumnType(index, name, _) => {
            format!("column {name} (number {index}) is of an unexpected type")
        }
        rusqlite::Error::QueryReturnedNoRows => "a row is missing".into(),
        _ => "SQLite returned something unexpected".into(),
    }
}

fn row_words(error: &rusqlite::Error) -> String {
    match error {
        // The names of a table, its columns or a constraint; a trigger says what it likes.
        rusqlite::Error::SqliteFailure(code, Some(message))
            if code.code == ErrorCode::ConstraintViolation
                && code.extended_code != ffi::SQLITE_CONSTRAINT_TRIGGER =>
        {
            message.clone()
        }
        rusqlite::Error::SqliteFailure(code, _) => ffi::code_to_str(code.extended_code).into(),
        _ => "SQLite returned an error".into(),
    }
}
