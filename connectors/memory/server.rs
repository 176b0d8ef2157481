//! The database behind the source in memory: commits, visibility, and a log. No async here.
//!
//! As in PostgreSQL, a commit is *written* to the log before it becomes *visible*, and two commits
//! may become visible in another order than they were written. A test decides both moments:
//! `commit` writes, `show` makes visible. Rows of a commit that is not visible yet are locked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::change::{Cell, Change, Key, Row};
use crate::schema::{Column, TableName, TableSchema};

/// How far the log moves with each commit.
const LSN_STEP: u64 = 10;

/// One statement of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A new row, with every column.
    Insert {
        /// The table.
        table: TableName,
        /// Its cells.
        row: Row,
    },
    /// A row gets new values. An absent cell keeps its value, and the log does not carry it.
    /// Other key columns make it a change of the key.
    Update {
        /// The table.
        table: TableName,
        /// Which row.
        key: Key,
        /// Its new cells; key columns are always there.
        row: Row,
    },
    /// A row goes.
    Delete {
        /// The table.
        table: TableName,
        /// Which row.
        key: Key,
    },
    /// Every row of a table goes.
    Truncate {
        /// The table.
        table: TableName,
    },
    /// A table gets one more column. The log says nothing of it; later changes have it.
    AddColumn {
        /// The table.
        table: TableName,
        /// The column.
        column: Column,
        /// What the rows that exist have in it; `None` is NULL.
        value: Option<Vec<u8>>,
    },
}

/// Why a transaction was not written; nothing of it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A row or a table of it belongs to a commit that is not visible yet.
    Locked,
    /// A row to be inserted is there, or one to be changed is not; or the table is not.
    Conflict,
}

/// A database with a log, shared by all connections to it.
#[derive(Debug)]
pub struct SourceServer {
    state: Mutex<State>,
    /// Tells of everything that happens, in the order in which they began to wait: a `watch`
    /// would wake them in a random one, and a simulation could not be repeated.
    happened: Notify,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) identity: String,
    /// The end of the log.
    pub(super) head: u64,
    pub(super) tables: BTreeMap<TableName, Table>,
    pub(super) log: Vec<Commit>,
    pub(super) slot: Option<Slot>,
    /// How many of the next slots cannot be read.
    pub(super) spoiled_slots: usize,
    /// Counts opened streams.
    pub(super) streams: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) schema: Arc<TableSchema>,
    pub(super) rows: BTreeMap<Key, Row>,
}

/// What the source keeps for a pipeline.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) acknowledged: u64,
    /// From where in the log the changes of a table are published.
    pub(super) published: BTreeMap<TableName, u64>,
    /// The stream that reads it.
    pub(super) reader: Option<u64>,
    /// The streams that read a copy of it.
    pub(super) copies: BTreeSet<u64>,
    /// The server cannot read its log for it.
    pub(super) spoiled: bool,
}

/// A transaction in the log.
#[derive(Clone, Debug)]
pub(super) struct Commit {
    pub(super) xid: u64,
    pub(super) lsn: u64,
    pub(super) changes: Vec<Change>,
    pub(super) visible: bool,
    effects: BTreeMap<TableName, Effect>,
}

/// What a transaction makes of a table.
#[derive(Clone, Debug)]
struct Effect {
    after: Table,
    touched: BTreeSet<Key>,
    whole: bool,
}

impl SourceServer {
    /// A database with these tables, all empty, and an empty log.
    pub fn new(tables: impl IntoIterator<Item = TableSchema>) -> Arc<SourceServer> {
        let table = |schema: TableSchema| {
            let name = schema.name.clone();
            (name, Table { schema: Arc::new(schema), rows: BTreeMap::new() })
        };
        let tables = tables.into_iter().map(table).collect();
        let state = State { identity: "first".into(), tables, ..State::default() };
        Arc::new(SourceServer { state: Mutex::new(state), happened: Notify::new() })
    }

    /// Writes a transaction to the log and returns its number. Its rows stay as they were until
    /// it is shown. Without statements it is a transaction that touches no table of ours.
    ///
    /// # Errors
    /// Where the database would let it wait or refuse it.
    pub fn commit(&self, ops: &[Op]) -> Result<u64, Refused> {
        let mut state = self.lock();
        let mut writing = Writing { state: &state, effects: BTreeMap::new(), changes: Vec::new() };
        ops.iter().try_for_each(|op| writing.write(op))?;
        let Writing { effects, changes, .. } = writing;
        let xid = state.append(changes, effects, false);
        drop(state);
        self.happen();
        Ok(xid)
    }

    /// Makes a written transaction visible. Twice is as once.
    pub fn show(&self, xid: u64) {
        let mut state = self.lock();
        let State { log, tables, .. } = &mut *state;
        let commit = log.iter_mut().find(|commit| commit.xid == xid && !commit.visible);
        for (name, effect) in commit.into_iter().flat_map(Commit::show) {
            let Some(table) = tables.get_mut(&name) else { continue };
            if effect.whole {
                *table = effect.after;
                continue;
            }
            for key in effect.touched {
                match effect.after.rows.get(&key) {
                    Some(row) => table.rows.insert(key, row.clone()),
                    None => table.rows.remove(&key),
                };
            }
        }
        drop(state);
        self.happen();
    }

    /// Written transactions that are not visible, oldest first.
    #[must_use]
    pub fn pending(&self) -> Vec<u64> {
        let state = self.lock();
        state.log.iter().filter(|commit| !commit.visible).map(|commit| commit.xid).collect()
    }

    /// The visible rows of a table.
    #[must_use]
    pub fn rows(&self, table: &TableName) -> BTreeMap<Key, Row> {
        self.lock().tables.get(table).map(|table| table.rows.clone()).unwrap_or_default()
    }

    /// The visible shape of a table.
    #[must_use]
    pub fn schema(&self, table: &TableName) -> Option<Arc<TableSchema>> {
        self.lock().tables.get(table).map(|table| table.schema.clone())
    }

    /// The end of the log: the place of its last transaction.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.lock().head
    }

    /// The place in the log up to which the pipeline has acknowledged it.
    #[must_use]
    pub fn acknowledged(&self) -> Option<u64> {
        self.lock().slot.as_ref().map(|slot| slot.acknowledged)
    }

    /// Somebody drops the slot.
    pub fn drop_slot(&self) {
        self.lock().slot = None;
        self.happen();
    }

    /// Somebody moves the slot to the end of the log.
    pub fn skip_slot(&self) {
        let mut state = self.lock();
        let head = state.head;
        if let Some(slot) = &mut state.slot {
            slot.acknowledged = head;
        }
    }

    /// So many of the next slots turn out to be unreadable at the first commit.
    pub fn spoil_slots(&self, count: usize) {
        self.lock().spoiled_slots = count;
    }

    /// Another server answers at this address from now on.
    pub fn replace(&self, identity: &str) {
        self.lock().identity = identity.to_owned();
    }

    pub(super) fn mark(&self) -> u64 {
        let mut state = self.lock();
        state.append(Vec::new(), BTreeMap::new(), true);
        let head = state.head;
        drop(state);
        self.happen();
        head
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called after each change of what somebody may wait for.
    pub(super) fn happen(&self) {
        self.happened.notify_waiters();
    }

    /// The next thing that happens after this call.
    pub(super) fn next_event(&self) -> Notified<'_> {
        self.happened.notified()
    }
}

impl State {
    fn append(
        &mut self,
        changes: Vec<Change>,
        effects: BTreeMap<TableName, Effect>,
        visible: bool,
    ) -> u64 {
        self.head += LSN_STEP;
        let xid = self.log.len() as u64 + 1;
        self.log.push(Commit { xid, lsn: self.head, changes, visible, effects });
        xid
    }

    /// The first commit after this place in the log.
    pub(super) fn after(&self, lsn: u64) -> Option<&Commit> {
        self.log.get(self.log.partition_point(|commit| commit.lsn <= lsn))
    }

    /// Whether every commit up to this place in the log is visible.
    pub(super) fn shows(&self, lsn: u64) -> bool {
        self.log.iter().take_while(|commit| commit.lsn <= lsn).all(|commit| commit.visible)
    }
}

impl Commit {
    fn show(&mut self) -> BTreeMap<TableName, Effect> {
        self.visible = true;
        std::mem::take(&mut self.effects)
    }
}

/// A transaction before it is written.
struct Writing<'a> {
    state: &'a State,
    effects: BTreeMap<TableName, Effect>,
    changes: Vec<Change>,
}

impl Writing<'_> {
    fn write(&mut self, op: &Op) -> Result<(), Refused> {
        match op {
            Op::Insert { table, row } => self.insert(table, row),
            Op::Update { table, key, row } => self.update(table, key, row),
            Op::Delete { table, key } => self.delete(table, key),
            Op::Truncate { table } => {
                let effect = self.lock_table(table)?;
                effect.after.rows.clear();
                let change = Change::Truncate { table: effect.after.schema.clone() };
                self.changes.push(change);
                Ok(())
            }
            Op::AddColumn { table, column, value } => {
                self.lock_table(table)?.after.add(column, value.as_deref());
                Ok(())
            }
        }
    }

    fn insert(&mut self, table: &TableName, row: &Row) -> Result<(), Refused> {
        let schema = self.table(table)?.after.schema.clone();
        let key = Key::of(&schema, row).ok_or(Refused::Conflict)?;
        let effect = self.lock_row(table, &key)?;
        if row.has_absent() || row.len() != schema.columns.len() {
            return Err(Refused::Conflict);
        }
        match effect.after.rows.insert(key, row.clone()) {
            Some(_) => Err(Refused::Conflict),
            None => {
                self.changes.push(Change::Upsert { table: schema, row: row.clone() });
                Ok(())
            }
        }
    }

    fn update(&mut self, table: &TableName, key: &Key, row: &Row) -> Result<(), Refused> {
        let schema = self.table(table)?.after.schema.clone();
        let new_key = Key::of(&schema, row).ok_or(Refused::Conflict)?;
        self.lock_row(table, &new_key)?;
        let rows = &mut self.lock_row(table, key)?.after.rows;
        let old = rows.remove(key).ok_or(Refused::Conflict)?;
        if row.len() != old.len() || rows.contains_key(&new_key) {
            return Err(Refused::Conflict);
        }
        rows.insert(new_key.clone(), row.filled_from(&old));
        if new_key != *key {
            self.changes.push(Change::Delete { table: schema.clone(), key: key.clone() });
        }
        self.changes.push(Change::Upsert { table: schema, row: row.clone() });
        Ok(())
    }

    fn delete(&mut self, table: &TableName, key: &Key) -> Result<(), Refused> {
        let effect = self.lock_row(table, key)?;
        effect.after.rows.remove(key).ok_or(Refused::Conflict)?;
        let table = effect.after.schema.clone();
        self.changes.push(Change::Delete { table, key: key.clone() });
        Ok(())
    }

    fn lock_row(&mut self, table: &TableName, key: &Key) -> Result<&mut Effect, Refused> {
        let locked = |other: &Effect| other.whole || other.touched.contains(key);
        if self.others(table).any(locked) {
            return Err(Refused::Locked);
        }
        let effect = self.table(table)?;
        effect.touched.insert(key.clone());
        Ok(effect)
    }

    fn lock_table(&mut self, table: &TableName) -> Result<&mut Effect, Refused> {
        if self.others(table).next().is_some() {
            return Err(Refused::Locked);
        }
        let effect = self.table(table)?;
        effect.whole = true;
        Ok(effect)
    }

    /// What commits that are not visible yet make of a table.
    fn others(&self, table: &TableName) -> impl Iterator<Item = &Effect> {
        let state: &State = self.state;
        state.log.iter().filter_map(move |commit| commit.effects.get(table))
    }

    /// The table as this transaction sees it.
    fn table(&mut self, table: &TableName) -> Result<&mut Effect, Refused> {
        let visible = self.state.tables.get(table).ok_or(Refused::Conflict)?;
        Ok(self.effects.entry(table.clone()).or_insert_with(|| Effect {
            after: visible.clone(),
            touched: BTreeSet::new(),
            whole: false,
        }))
    }
}

impl Table {
    fn add(&mut self, column: &Column, value: Option<&[u8]>) {
        let mut schema = (*self.schema).clone();
        schema.columns.push(column.clone());
        self.schema = Arc::new(schema);
        let cell = value.map_or(Cell::Null, Cell::Value);
        for row in self.rows.values_mut() {
            *row = Row::from_cells(row.cells().chain([cell]).collect::<Vec<_>>());
        }
    }
}
