//! Keeps the log and the loaders of one table apart, in one session of the pipeline.
//!
//! A loader's transaction sees the tombstones that were there when it looked. A delete that
//! commits while it inserts the older row finds no row to delete, and leaves a tombstone that the
//! loader does not see any more: the row would be there for ever. So whoever writes a table for
//! the log is alone with it, and loaders, whose keys are never the same, share it.
//!
//! Surprise: a way through that was lost (the connection broke, the task was ended) closes the
//! gate for the rest of the session. Its transaction may still be committed by the server, and
//! only a new claim of the target waits for that.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use connectors::error::{Code, Error, Result};
use connectors::schema::TableName;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::floor::Hold;

/// One gate for each table.
#[derive(Debug, Default)]
pub struct Gates(Mutex<BTreeMap<TableName, Gate>>);

#[derive(Clone, Debug, Default)]
struct Gate {
    lock: Arc<RwLock<()>>,
    lost: Arc<AtomicBool>,
}

/// What the log does to some tables, until it is `done`.
#[derive(Debug)]
#[must_use]
pub struct Alone(Vec<Way>);

/// What a loader does to a table, until it is `done`. A hold that is lost with it is never given
/// back, so that the tombstones which its transaction may still look for stay.
#[derive(Debug)]
#[must_use]
pub struct Share {
    way: Way,
    hold: ManuallyDrop<Hold>,
}

/// A way through one gate.
#[derive(Debug)]
struct Way {
    lost: Arc<AtomicBool>,
    under_way: bool,
    _lock: Lock,
}

#[derive(Debug)]
enum Lock {
    Shared { _guard: OwnedRwLockReadGuard<()> },
    Alone { _guard: OwnedRwLockWriteGuard<()> },
}

impl Gates {
    /// For a loader with rows read under this hold: waits until the log does not write the table.
    ///
    /// # Errors
    /// An earlier way through was lost.
    pub async fn share(&self, table: &TableName, hold: Hold) -> Result<Share> {
        let Gate { lock, lost } = self.gate(table);
        let lock = Lock::Shared { _guard: lock.read_owned().await };
        let way = Way::new(table, lost, lock)?.go();
        Ok(Share { way, hold: ManuallyDrop::new(hold) })
    }

    /// For the log: waits until nobody else writes these tables.
    ///
    /// # Errors
    /// An earlier way through was lost.
    pub async fn alone<'a>(
        &self,
        tables: impl IntoIterator<Item = &'a TableName>,
    ) -> Result<Alone> {
        let tables: BTreeSet<&TableName> = tables.into_iter().collect();
        let mut ways = Vec::with_capacity(tables.len());
        for table in tables {
            let Gate { lock, lost } = self.gate(table);
            let lock = Lock::Alone { _guard: lock.write_owned().await };
            ways.push(Way::new(table, lost, lock)?);
        }
        Ok(Alone(ways.into_iter().map(Way::go).collect()))
    }

    fn gate(&self, table: &TableName) -> Gate {
        let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gates.entry(table.clone()).or_default().clone()
    }
}

impl Alone {
    /// What was done is committed, or rolled back; others may come.
    pub fn done(mut self) {
        self.0.iter_mut().for_each(|way| way.under_way = false);
    }
}

impl Share {
    /// As `Alone::done`; gives the hold back.
    pub fn done(mut self) -> Hold {
        self.way.under_way = false;
        ManuallyDrop::into_inner(self.hold)
    }
}

impl Way {
    fn new(table: &TableName, lost: Arc<AtomicBool>, lock: Lock) -> Result<Way> {
        if lost.load(Ordering::Acquire) {
            let message = format!("a transaction on target table {table} may still be under way");
            return Err(Error::transient(Code::Unreachable, message));
        }
        Ok(Way { lost, under_way: false, _lock: lock })
    }

    fn go(mut self) -> Way {
        self.under_way = true;
        self
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        // Before the lock is given back, which happens after this.
        if self.under_way {
            self.lost.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use connectors::version::Version;
    use futures_util::FutureExt;

    use super::*;
    use crate::floor::Floor;

    fn table(name: &str) -> TableName {
        TableName::new("public", name)
    }

    #[test]
    fn loaders_share_a_table_and_the_log_is_alone_with_it() {
        let (gates, floor) = (Gates::default(), Floor::new(Version::ZERO));
        let (t, other) = (table("t"), table("other"));
        let share = || gates.share(&t, floor.hold()).now_or_never();
        let alone = |tables: [&TableName; 2]| gates.alone(tables).now_or_never();
        let (one, two) = (share().unwrap().unwrap(), share().unwrap().unwrap());
        assert!(alone([&t, &other]).is_none(), "two loaders write it");
        one.done();
        assert!(alone([&t, &other]).is_none(), "a loader writes it");
        two.done();
        let log = alone([&other, &t]).unwrap().unwrap();
        assert!(share().is_none(), "the log writes it");
        log.done();
        share().unwrap().unwrap().done();
    }

    #[test]
    fn a_lost_way_closes_its_gate_and_keeps_its_hold() {
        let (gates, floor) = (Gates::default(), Floor::new(Version::ZERO));
        let (t, other) = (table("t"), table("other"));
        let share = |table| gates.share(table, floor.hold()).now_or_never().unwrap();
        drop(share(&t).unwrap());
        let refused = gates.alone([&t]).now_or_never().unwrap().unwrap_err();
        assert!(refused.is_transient(), "{refused}");
        assert!(share(&t).is_err());
        assert_eq!(floor.announce(Version::at_log(1, 1)), Version::ZERO);
        drop(gates.alone([&other]).now_or_never().unwrap().unwrap());
        assert!(share(&other).is_err());
    }
}
