//! Errors in three kinds, because the engine has three reactions. Each carries a stable code,
//! says what happened and what to type next, and never contains a row value or a secret.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::schema::TableName;

/// Result of every connector operation.
pub type Result<T> = std::result::Result<T, Error>;

/// What the engine does about an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Wait and try again: the network, a restart, a deadlock.
    Transient,
    /// Stop this table; the others go on.
    Table(TableName),
    /// Stop the pipeline; a person must decide.
    Stop,
}

/// The stable name of a failure, for scripts and for the reference in the README.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The command line, the configuration or a URL is wrong.
    Configuration,
    /// The server cannot be reached, or the connection broke.
    Unreachable,
    /// The server refused the name or the password.
    Authentication,
    /// TLS was required and could not be established as asked.
    Tls,
    /// A privilege is missing.
    Permission,
    /// A setting of the server does not allow replication.
    SourceSettings,
    /// A table of the configuration does not exist.
    MissingTable,
    /// A table has no usable key.
    NoKey,
    /// Row level security would hide rows from us.
    RowSecurity,
    /// The slot is gone.
    SlotMissing,
    /// The slot was invalidated by the server.
    SlotLost,
    /// The slot has moved past what the target has.
    SlotGap,
    /// The source cannot read its own log for us.
    LogUnreadable,
    /// The slot exists, but neither target nor state knows this pipeline.
    SlotUnknown,
    /// Somebody else reads from the slot.
    SlotInUse,
    /// The publication does not publish all that is needed.
    Publication,
    /// The binary log that we need has been purged.
    BinlogPurged,
    /// The binary log has the text of a statement where it should have rows.
    StatementDml,
    /// The log carried a row only in part, and not enough of it.
    PartialRow,
    /// A date with a zero in it, which no other database can hold.
    ZeroDate,
    /// A foreign key changes rows without telling the log.
    Cascade,
    /// Another replica uses our server id.
    ServerIdInUse,
    /// The source is another server, or another timeline, than the target's position is of.
    SourceIdentity,
    /// Our position is ahead of the source's log.
    PositionAhead,
    /// The source sent what this version does not understand.
    Protocol,
    /// A table changed its shape in a way that is not followed.
    SchemaChange,
    /// A target table exists with another shape.
    TargetShape,
    /// A target table holds rows that this pipeline did not write.
    TargetNotEmpty,
    /// A target table belongs to another pipeline.
    TableOwned,
    /// Two source tables or columns have the same name in the target.
    NameCollision,
    /// The target refused a row.
    PoisonRow,
    /// The target lost what this pipeline had recorded there.
    TargetLost,
    /// Another instance has taken the pipeline over.
    Fenced,
    /// Another instance is running the pipeline.
    AlreadyRunning,
    /// The state directory cannot be read.
    StateCorrupt,
    /// The state directory was written by another version.
    StateVersion,
    /// The state directory belongs to another pipeline.
    StateOther,
    /// The state directory is not safe: its owner or its mode.
    StateUnsafe,
    /// The disk of the state directory is full or failing.
    StateDisk,
    /// Not a failure: a stopped table is taken up again, with new connections.
    Resumed,
    /// A defect in driftless itself.
    Internal,
}

impl Code {
    /// The code as it is printed and documented: `slot-gap`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Code::Configuration => "configuration",
            Code::Unreachable => "unreachable",
            Code::Authentication => "authentication",
            Code::Tls => "tls",
            Code::Permission => "permission",
            Code::SourceSettings => "source-settings",
            Code::MissingTable => "missing-table",
            Code::NoKey => "no-key",
            Code::RowSecurity => "row-security",
            Code::SlotMissing => "slot-missing",
            Code::SlotLost => "slot-lost",
            Code::SlotGap => "slot-gap",
            Code::LogUnreadable => "log-unreadable",
            Code::SlotUnknown => "slot-unknown",
            Code::SlotInUse => "slot-in-use",
            Code::Publication => "publication",
            Code::BinlogPurged => "binlog-purged",
            Code::StatementDml => "statement-dml",
            Code::PartialRow => "partial-row",
            Code::ZeroDate => "zero-date",
            Code::Cascade => "cascade",
            Code::ServerIdInUse => "server-id-in-use",
            Code::SourceIdentity => "source-identity",
            Code::PositionAhead => "position-ahead",
            Code::Protocol => "protocol",
            Code::SchemaChange => "schema-change",
            Code::TargetShape => "target-shape",
            Code::TargetNotEmpty => "target-not-empty",
            Code::TableOwned => "table-owned",
            Code::NameCollision => "name-collision",
            Code::PoisonRow => "poison-row",
            Code::TargetLost => "target-lost",
            Code::Fenced => "fenced",
            Code::AlreadyRunning => "already-running",
            Code::StateCorrupt => "state-corrupt",
            Code::StateVersion => "state-version",
            Code::StateOther => "state-other",
            Code::StateUnsafe => "state-unsafe",
            Code::StateDisk => "state-disk",
            Code::Resumed => "resumed",
            Code::Internal => "internal",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happened, to what, and what to type next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The reaction of the engine.
    pub kind: Kind,
    /// The stable name.
    pub code: Code,
    /// One line, lower case, no final period; ends with the command that mends it, if there is one.
    pub message: String,
}

impl Error {
    /// An error worth another try.
    pub fn transient(code: Code, message: impl Into<String>) -> Error {
        Error { kind: Kind::Transient, code, message: message.into() }
    }

    /// An error that stops one table.
    pub fn table(table: &TableName, code: Code, message: impl Into<String>) -> Error {
        Error { kind: Kind::Table(table.clone()), code, message: message.into() }
    }

    /// An error that stops the pipeline.
    pub fn stop(code: Code, message: impl Into<String>) -> Error {
        Error { kind: Kind::Stop, code, message: message.into() }
    }

    /// The same error, with what was being done in front.
    #[must_use]
    pub fn context(self, doing: impl fmt::Display) -> Error {
        Error { message: format!("{doing}: {}", self.message), ..self }
    }

    /// Whether another try may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.kind == Kind::Transient
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.message, self.code)
    }
}

impl std::error::Error for Error {}

/// Adds a verb phrase to an error: `.doing("read chunk")?`.
pub trait Doing<T> {
    /// Puts what was being done in front of the message.
    ///
    /// # Errors
    /// The same error, with more words.
    fn doing(self, what: &str) -> Result<T>;
}

impl<T> Doing<T> for Result<T> {
    fn doing(self, what: &str) -> Result<T> {
        self.map_err(|error| error.context(what))
    }
}
