//! What is asked of everybody: `drain` a backlog, `copy` what is there, or keep up with a steady
//! stream (`latency`). How each kind of server writes a backlog is in `sides`.

pub mod copy;
pub mod drain;
pub mod latency;

use std::fmt;
use std::str::FromStr;

/// Rows that the hot workload has.
const HOT_ROWS: u64 = 1000;
/// `pgbench -s`, if a million rows are asked for.
const PGBENCH_SCALE: u64 = 10;
/// A quarter of a minute is enough for a thousandth of the transactions to be hundreds.
const LATENCY_SECONDS: (u64, u64) = (3, 30);

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Drain inserted rows of 11 columns, so many a transaction.
    Inserts(u64),
    /// The same in transactions of one row, and a twentieth of the rows: for those who wait for
    /// their disk once a transaction.
    Durable,
    /// Drain half as many updates as there are rows, 100 a transaction, each of another row.
    Updates,
    /// Drain as many updates, all of the same thousand rows.
    Hot,
    /// Drain TPC-B: three updates and an insert a transaction. Only PostgreSQL has the program.
    Pgbench,
    /// Drain one transaction of five times the rows.
    Huge,
    /// Copy a table of five times the rows.
    Copy,
    /// How long a small transaction takes from its commit to being visible.
    Latency,
}

/// How large everything is: `BENCH_ROWS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl Size {
    /// How long the steady stream of transactions lasts.
    pub fn latency_seconds(self) -> u64 {
        let (least, most) = LATENCY_SECONDS;
        (most * self.0 / 1_000_000).clamp(least, most)
    }

    /// `pgbench -s`.
    pub fn pgbench_scale(self) -> u64 {
        (PGBENCH_SCALE * self.0 / 1_000_000).max(1)
    }

    fn large(self) -> u64 {
        5 * self.0
    }
}

/// What a backlog is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// So many rows, so many of them a transaction.
    Inserts { rows: u64, each: u64 },
    /// So many updates of the first rows of the table.
    Updates { count: u64, range: u64 },
    /// So many transactions of pgbench.
    Pgbench { transactions: u64 },
    /// There is none.
    Nothing,
}

/// A backlog that has been written.
#[derive(Clone, Debug)]
pub struct Backlog {
    /// How many rows it changes.
    pub changes: u64,
    /// Where it begins, if the source is a MariaDB: the GTIDs of everything before it.
    pub begins_after: Option<String>,
    /// Where it ends, if the source is a PostgreSQL: everything but the last row is before it.
    pub ends_at: Option<String>,
}

impl Workload {
    /// Those that are measured unless others are asked for.
    pub const USUAL: [Workload; 5] = [
        Workload::Inserts(100),
        Workload::Updates,
        Workload::Pgbench,
        Workload::Copy,
        Workload::Latency,
    ];

    /// Those that `all` means.
    pub const ALL: [Workload; 10] = [
        Workload::Inserts(1),
        Workload::Durable,
        Workload::Inserts(100),
        Workload::Inserts(100_000),
        Workload::Updates,
        Workload::Pgbench,
        Workload::Hot,
        Workload::Copy,
        Workload::Huge,
        Workload::Latency,
    ];

    /// Rows of the table of events before anybody begins.
    pub fn rows_before(self, size: Size) -> u64 {
        match self {
            Workload::Updates => size.0,
            Workload::Hot => HOT_ROWS,
            Workload::Copy => size.large(),
            Workload::Inserts(_)
            | Workload::Durable
            | Workload::Pgbench
            | Workload::Huge
            | Workload::Latency => 0,
        }
    }

    /// What its backlog is made of.
    pub fn writes(self, size: Size) -> Writes {
        match self {
            Workload::Inserts(each) => Writes::Inserts { rows: size.0, each },
            Workload::Durable => Writes::Inserts { rows: (size.0 / 20).max(1), each: 1 },
            Workload::Huge => Writes::Inserts { rows: size.large(), each: size.large() },
            Workload::Updates | Workload::Hot => {
                Writes::Updates { count: size.0 / 2, range: self.rows_before(size) }
            }
            Workload::Pgbench => Writes::Pgbench { transactions: size.0 / 5 },
            Workload::Copy | Workload::Latency => Writes::Nothing,
        }
    }
}

impl FromStr for Workload {
    type Err = ();

    fn from_str(text: &str) -> Result<Workload, ()> {
        match text.strip_prefix("inserts-") {
            Some(rows) => {
                rows.parse().ok().filter(|rows| *rows > 0).map(Workload::Inserts).ok_or(())
            }
            None => Workload::ALL.into_iter().find(|it| it.to_string() == text).ok_or(()),
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Workload::Inserts(rows) => write!(f, "inserts-{rows}"),
            Workload::Durable => f.write_str("durable"),
            Workload::Updates => f.write_str("updates"),
            Workload::Hot => f.write_str("hot"),
            Workload::Pgbench => f.write_str("pgbench"),
            Workload::Huge => f.write_str("huge"),
            Workload::Copy => f.write_str("copy"),
            Workload::Latency => f.write_str("latency"),
        }
    }
}
