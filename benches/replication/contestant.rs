//! Who is measured. What each of them does is in `peers`; who can do what, in `pair.rs`.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contestant {
    /// This project's program as it comes.
    Driftless,
    /// The same without the bulk read of a log that is behind.
    DriftlessStreaming,
    /// The databases' own replication as it comes.
    Native,
    /// PostgreSQL's with `synchronous_commit = on`: as durable as everybody else's target.
    NativeDurable,
    /// MariaDB's, with the backlog in the replica's relay log before the clock runs.
    NativeRelayed,
    /// MariaDB's with `innodb_flush_log_at_trx_commit = 2`: a power failure costs it a second.
    NativeRelaxed,
    /// Nobody: PostgreSQL sends its log to a program that throws it away.
    Sender,
    /// Nobody either: the source gives its log in bulk to be thrown away, while the target loads the
    /// same rows from a file.
    BothEnds,
    /// `pgcopydb clone`.
    Pgcopydb,
    /// What comes out of one database is piped into the other, as text.
    Pipe,
    /// The same in PostgreSQL's binary form.
    PipeBinary,
}

impl Contestant {
    /// All of them, ours first.
    pub const ALL: [Contestant; 11] = [
        Contestant::Driftless,
        Contestant::DriftlessStreaming,
        Contestant::Native,
        Contestant::NativeDurable,
        Contestant::NativeRelayed,
        Contestant::NativeRelaxed,
        Contestant::Sender,
        Contestant::BothEnds,
        Contestant::Pgcopydb,
        Contestant::Pipe,
        Contestant::PipeBinary,
    ];

    /// Whether it leaves rows in a target.
    pub fn has_target(self) -> bool {
        self != Contestant::Sender
    }

    /// A name that every database takes.
    pub fn identifier(self) -> String {
        self.to_string().replace('-', "_")
    }
}

impl FromStr for Contestant {
    type Err = ();

    fn from_str(text: &str) -> Result<Contestant, ()> {
        Contestant::ALL.into_iter().find(|contestant| contestant.to_string() == text).ok_or(())
    }
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Contestant::Driftless => "driftless",
            Contestant::DriftlessStreaming => "driftless-streaming",
            Contestant::Native => "native",
            Contestant::NativeDurable => "native-durable",
            Contestant::NativeRelayed => "native-relayed",
            Contestant::NativeRelaxed => "native-relaxed",
            Contestant::Sender => "sender",
            Contestant::BothEnds => "both-ends",
            Contestant::Pgcopydb => "pgcopydb",
            Contestant::Pipe => "pipe",
            Contestant::PipeBinary => "pipe-binary",
        })
    }
}
