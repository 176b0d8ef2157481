//! What a backlog is made of. How each kind of server makes it is in `sides`.

use std::fmt;
use std::str::FromStr;

/// Rows that the hot workload has.
pub const HOT_ROWS: u64 = 1000;

/// What the backlog is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Rows of 11 columns, so many a transaction.
    Inserts(u64),
    /// Half as many updates as there are rows, 100 a transaction, each of another row.
    Updates,
    /// As many updates, all of the same thousand rows.
    Hot,
    /// TPC-B: three updates and an insert a transaction. Only PostgreSQL has the program for it.
    Pgbench,
}

/// A backlog that has been written.
#[derive(Clone, Debug)]
pub struct Backlog {
    /// How many rows it changes.
    pub changes: u64,
    /// Where it begins, if the source is a MariaDB: the GTIDs of everything before it.
    pub begins_after: Option<String>,
}

impl Workload {
    /// Rows of the table of events before the backlog, if `rows` are asked for.
    pub fn rows_before(self, rows: u64) -> u64 {
        match self {
            Workload::Updates => rows,
            Workload::Hot => HOT_ROWS,
            Workload::Inserts(_) | Workload::Pgbench => 0,
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
            None => match text {
                "updates" => Ok(Workload::Updates),
                "hot" => Ok(Workload::Hot),
                "pgbench" => Ok(Workload::Pgbench),
                _ => Err(()),
            },
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Workload::Inserts(rows) => write!(f, "inserts-{rows}"),
            Workload::Updates => f.write_str("updates"),
            Workload::Hot => f.write_str("hot"),
            Workload::Pgbench => f.write_str("pgbench"),
        }
    }
}
