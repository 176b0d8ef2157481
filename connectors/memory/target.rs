//! The target in memory: what every target must do, in its plainest form.
//!
//! `TargetServer` is the database and survives the engine; `MemoryTarget` is one connection. The
//! rules of `apply` are those of the SQL of the real targets; `rows` has them, row by row.
//! Surprise: `load` is not one step. What it sees of the tombstones is as old as its beginning, and
//! one that is given up may be committed later, after the next batch or before the next claim. So
//! whoever does not keep loaders and the log apart is found out.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::early::EarlyRows;
use super::rows::{StoredRow, Table, TableWrite, write};
use super::{Answer, Faults, Filter, fault};
use crate::change::{
    Applied, Batch, Checkpoint, Key, Row, RowUpsert, TableBatch, TableStatus, Timestamp,
};
use crate::error::{Code, Error, Result};
use crate::records;
use crate::schema::{Evolution, TableName, TableSchema};
use crate::version::Version;
use crate::{
    Claim, Finding, KeyScan, Level, Prepared, Remembered, StageAhead, TableRecord, Target,
    TargetOptions, Upcoming,
};

/// A database that can be written, shared by all connections to it.
#[derive(Debug, Default)]
pub struct TargetServer {
    database: Mutex<Database>,
}

/// Everything that was durable in a target at one moment.
#[derive(Clone, Debug)]
pub struct TargetBackup(Database);

#[derive(Clone, Debug, Default)]
struct Database {
    pipelines: BTreeMap<String, Pipeline>,
    tables: BTreeMap<TableName, Table>,
    poison: BTreeSet<(TableName, Key)>,
    /// Loads that were given up, and that the server goes on with.
    given_up: Vec<Load>,
    early: EarlyRows,
    connections: u64,
}

/// A loader's transaction that was told to commit.
#[derive(Clone, Debug)]
struct Load {
    options: TargetOptions,
    fence: u64,
    rows: TableBatch,
    /// The tombstones that it saw.
    seen: BTreeMap<(TableName, Key), Version>,
}

/// A load whose answer is waited for.
struct Waiting {
    server: Arc<TargetServer>,
    load: Option<Load>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(load) = self.load.take() else { return };
        let mut database = self.server.lock();
        // A claim has ended it.
        if database.fence(&load.options.pipeline) == Some(load.fence) {
            database.given_up.push(load);
        }
    }
}

#[derive(Clone, Debug)]
struct Pipeline {
    remembered: Remembered,
    tombstones: BTreeMap<(TableName, Key), Version>,
    /// The connection that claimed it, while it is open.
    writer: Option<u64>,
}

impl TargetServer {
    /// An empty database.
    #[must_use]
    pub fn new() -> Arc<TargetServer> {
        Arc::new(TargetServer::default())
    }

    /// What a pipeline has recorded here.
    #[must_use]
    pub fn remembered(&self, pipeline: &str) -> Option<Remembered> {
        self.lock().pipelines.get(pipeline).map(|pipeline| pipeline.remembered.clone())
    }

    /// The rows of a table that are not deleted, as rows of this shape.
    #[must_use]
    pub fn rows(&self, table: &TableSchema) -> BTreeMap<Key, (Version, Row)> {
        let database = self.lock();
        let rows = database.tables.get(&table.name).into_iter().flat_map(|stored| &stored.rows);
        rows.filter(|(_, row)| !row.deleted)
            .map(|(key, row)| (key.clone(), (row.version, row.read(table))))
            .collect()
    }

    /// The keys of the rows that are marked as deleted.
    #[must_use]
    pub fn deleted(&self, table: &TableName) -> Vec<Key> {
        let database = self.lock();
        let rows = database.tables.get(table).into_iter().flat_map(|stored| &stored.rows);
        rows.filter(|(_, row)| row.deleted).map(|(key, _)| key.clone()).collect()
    }

    /// How many tombstones a pipeline has; they must not pile up.
    #[must_use]
    pub fn tombstones(&self, pipeline: &str) -> usize {
        self.lock().pipelines.get(pipeline).map_or(0, |pipeline| pipeline.tombstones.len())
    }

    /// Somebody changes a row by hand: `None` loses it, `Some` replaces it and leaves its version,
    /// or makes one of this version.
    pub fn damage(&self, table: &TableSchema, key: &Key, row: Option<&Row>, version: Version) {
        let mut database = self.lock();
        database.early = EarlyRows::default();
        let Some(stored) = database.tables.get_mut(&table.name) else { return };
        let old = stored.rows.remove(key);
        if let Some(row) = row {
            let version = old.map_or(version, |old| old.version);
            let mut cells = BTreeMap::new();
            write(&mut cells, table, row);
            let row = StoredRow { version, updated_at: Timestamp(0), deleted: false, cells };
            stored.rows.insert(key.clone(), row);
        }
    }

    /// From now on this row is refused, as by a constraint.
    pub fn refuse(&self, table: &TableName, key: &Key) {
        self.lock().poison.insert((table.clone(), key.clone()));
    }

    /// What is durable now.
    #[must_use]
    pub fn backup(&self) -> TargetBackup {
        TargetBackup(self.lock().clone())
    }

    /// Goes back to an earlier time; connections that were open then are not.
    pub fn restore(&self, backup: &TargetBackup) {
        let mut database = self.lock();
        let connections = database.connections;
        *database = backup.0.clone();
        database.connections = connections;
        database.given_up.clear();
        database.early = EarlyRows::default();
        database.pipelines.values_mut().for_each(|pipeline| pipeline.writer = None);
    }

    fn lock(&self) -> MutexGuard<'_, Database> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection of a pipeline to a `TargetServer`.
#[derive(Debug)]
pub struct MemoryTarget {
    server: Arc<TargetServer>,
    options: TargetOptions,
    faults: Faults,
    connection: u64,
    fence: Option<u64>,
    /// The fence that this connection loads chunks under.
    joined: Option<u64>,
    stored: fn(&TableSchema, &Row) -> Row,
}

impl MemoryTarget {
    /// Connects.
    #[must_use]
    pub fn new(server: &Arc<TargetServer>, options: TargetOptions, faults: Faults) -> MemoryTarget {
        let connection = {
            let mut database = server.lock();
            database.connections += 1;
            database.connections
        };
        let stored = |_: &TableSchema, row: &Row| row.clone();
        let (server, fence, joined) = (server.clone(), None, None);
        MemoryTarget { server, options, faults, connection, fence, joined, stored }
    }

    /// The same, for a database that gives rows back in another form; a test has to write them
    /// in that form itself.
    #[must_use]
    pub fn storing(mut self, stored: fn(&TableSchema, &Row) -> Row) -> MemoryTarget {
        self.stored = stored;
        self
    }

    /// The pipeline's part of the database, after comparing the fence of our claim.
    fn fenced<'a>(&self, database: &'a mut Database) -> Result<&'a mut Pipeline> {
        let unclaimed = || defect("the target was written before it was claimed");
        self.under(self.fence.ok_or_else(unclaimed)?, database)
    }

    /// The pipeline's part of the database, if this is its fence.
    fn under<'a>(&self, fence: u64, database: &'a mut Database) -> Result<&'a mut Pipeline> {
        let name = &self.options.pipeline;
        match database.pipelines.get_mut(name) {
            Some(pipeline) if pipeline.remembered.fence == fence => Ok(pipeline),
            _ => Err(Error::stop(
                Code::Fenced,
                format!("another instance has taken over pipeline {name}; this one stops"),
            )),
        }
    }
}

impl Drop for MemoryTarget {
    fn drop(&mut self) {
        let mut database = self.server.lock();
        let pipeline = database.pipelines.get_mut(&self.options.pipeline);
        if let Some(pipeline) = pipeline.filter(|p| p.writer == Some(self.connection)) {
            pipeline.writer = None;
        }
    }
}

impl StageAhead for TargetServer {
    fn stage(&self, upcoming: Vec<Upcoming>) {
        let mut database = self.lock();
        let early = EarlyRows::new(upcoming, |table, key| database.row_version(table, key));
        database.early = early;
    }

    fn discard(&self) {
        self.lock().early = EarlyRows::default();
    }
}

#[async_trait]
impl Target for MemoryTarget {
    async fn check(&mut self, tables: &[Arc<TableSchema>]) -> Result<Vec<Finding>> {
        self.faults.point("target.check").await?;
        let message = format!("{} tables can be written", tables.len());
        let (subject, remedy) = ("target".into(), String::new());
        Ok(vec![Finding { subject, level: Level::Ok, code: None, message, remedy }])
    }

    async fn recall(&mut self) -> Result<Option<Remembered>> {
        self.faults.point("target.recall").await?;
        Ok(self.server.remembered(&self.options.pipeline))
    }

    async fn claim(&mut self, claim: &Claim) -> Result<Remembered> {
        let answer = self.faults.commit_point("target.claim.before_commit").await?;
        let remembered = {
            let mut database = self.server.lock();
            // It waits for whatever may still be committed.
            database.commit_given_up();
            claim_in(&mut database, &self.options.pipeline, claim, self.connection)?
        };
        let remembered = answer.give(remembered, "target.claim.before_commit")?;
        self.fence = Some(remembered.fence);
        self.faults.point("target.claim.after_commit").await?;
        Ok(remembered)
    }

    async fn prepare(&mut self, table: &Arc<TableSchema>) -> Result<Prepared> {
        let answer = self.faults.commit_point("target.prepare.before_commit").await?;
        let prepared = {
            let mut database = self.server.lock();
            self.fenced(&mut database)?;
            database.early = EarlyRows::default();
            prepare_in(&mut database, &self.options.pipeline, table)?
        };
        let prepared = answer.give(prepared, "target.prepare.before_commit")?;
        self.faults.point("target.prepare.after_commit").await?;
        Ok(prepared)
    }

    async fn release(&mut self, tables: &[TableName]) -> Result<()> {
        let answer = self.faults.commit_point("target.release.before_commit").await?;
        {
            let mut database = self.server.lock();
            let pipeline = self.fenced(&mut database)?;
            for table in tables {
                pipeline.remembered.tables.remove(table);
                pipeline.tombstones.retain(|(name, _), _| name != table);
            }
        }
        answer.give((), "target.release.before_commit")
    }

    async fn apply(&mut self, batch: &Batch) -> Result<Applied> {
        // Meanwhile rows of the next batch may be compared.
        let early = std::mem::take(&mut self.server.lock().early);
        let answer = self.faults.commit_point("target.apply.before_commit").await?;
        let applied = {
            let mut database = self.server.lock();
            self.fenced(&mut database)?;
            // A transaction: all of it or nothing.
            early.expect(batch, |table, key| database.row_version(table, key))?;
            let mut after = database.clone();
            let applied = apply_in(&mut after, &self.options, batch)?;
            if applied == Applied::Done {
                *database = after;
                database.commit_given_up();
            }
            applied
        };
        let applied = answer.give(applied, "target.apply.before_commit")?;
        self.faults.point("target.apply.after_commit").await?;
        Ok(applied)
    }

    async fn join(&mut self, fence: u64) -> Result<bool> {
        self.faults.point("target.join").await?;
        self.joined = Some(fence);
        Ok(true)
    }

    fn ahead(&self) -> Option<Arc<dyn StageAhead>> {
        Some(self.server.clone())
    }

    /// As a transaction of a real database: the tombstones are those of its beginning, the rows
    /// that it meets are those of its end.
    async fn load(&mut self, rows: &TableBatch) -> Result<()> {
        let fence = self.joined.ok_or_else(records::not_joined)?;
        self.faults.point("target.load.begin").await?;
        let seen = self.under(fence, &mut self.server.lock())?.tombstones.clone();
        let load = Load { options: self.options.clone(), fence, rows: rows.clone(), seen };
        let mut waiting = Waiting { server: Arc::clone(&self.server), load: Some(load) };
        let answer = self.faults.commit_point("target.load.before_commit").await;
        if let Ok(Answer::IsLost) = answer {
            drop(waiting);
            return Err(fault("target.load.before_commit"));
        }
        let load = waiting.load.take();
        answer?;
        {
            let mut database = self.server.lock();
            // A real claim waits for this transaction, or ends it.
            self.under(fence, &mut database)?;
            load.map_or(Ok(()), |load| load_in(&mut database, load))?;
        }
        self.faults.point("target.load.after_commit").await
    }

    async fn read_rows(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
    ) -> Result<Vec<(Key, Version, Row)>> {
        self.faults.point("target.read_rows").await?;
        let database = self.server.lock();
        let stored = database.table(&table.name)?;
        let read = |key: &Key| {
            let row = stored.rows.get(key).filter(|row| !row.deleted)?;
            Some((key.clone(), row.version, row.read(table)))
        };
        Ok(keys.iter().filter_map(read).collect())
    }

    async fn read_keys(&mut self, scan: &KeyScan<'_>) -> Result<Vec<Key>> {
        self.faults.point("target.read_keys").await?;
        let filter = scan.filter.map(|filter| Filter::parse(scan.table, filter)).transpose()?;
        let database = self.server.lock();
        let stored = database.table(&scan.table.name)?;
        let after = scan.after.map_or(Bound::Unbounded, Bound::Excluded);
        let keys = stored
            .rows
            .range((after, Bound::Unbounded))
            .filter(|(_, row)| !row.deleted)
            .filter(|(_, row)| scan.below.is_none_or(|below| row.version < below))
            .filter(|(_, row)| filter.as_ref().is_none_or(|f| f.holds(&row.read(scan.table))))
            .map(|(key, _)| key.clone());
        Ok(keys.take(scan.limit).collect())
    }

    fn stored(&self, table: &TableSchema, row: &Row) -> Row {
        (self.stored)(table, row)
    }

    fn table_name(&self, table: &TableName) -> String {
        table.to_string()
    }

    async fn forget(&mut self) -> Result<()> {
        let answer = self.faults.commit_point("target.forget.before_commit").await?;
        self.server.lock().pipelines.remove(&self.options.pipeline);
        answer.give((), "target.forget.before_commit")
    }
}

impl Database {
    fn commit_given_up(&mut self) {
        for load in std::mem::take(&mut self.given_up) {
            // Nobody hears of what is refused.
            let _ = load_in(self, load);
        }
    }

    fn fence(&self, pipeline: &str) -> Option<u64> {
        self.pipelines.get(pipeline).map(|pipeline| pipeline.remembered.fence)
    }

    fn row_version(&self, table: &TableName, key: &Key) -> Option<Version> {
        self.tables.get(table)?.rows.get(key).map(|row| row.version)
    }

    fn table(&self, table: &TableName) -> Result<&Table> {
        self.tables.get(table).ok_or_else(|| {
            Error::table(table, Code::MissingTable, format!("table {table} is not in the target"))
        })
    }
}

fn claim_in(
    database: &mut Database,
    name: &str,
    claim: &Claim,
    connection: u64,
) -> Result<Remembered> {
    let pipeline = database.pipelines.entry(name.to_owned()).or_insert_with(|| Pipeline {
        remembered: Remembered {
            checkpoint: None,
            fence: 0,
            instance: claim.instance.clone(),
            tables: BTreeMap::new(),
        },
        tombstones: BTreeMap::new(),
        writer: None,
    });
    let remembered = &mut pipeline.remembered;
    match claim.fence {
        Some(fence) if fence != remembered.fence => {
            let message = format!("another instance has taken over pipeline {name}");
            return Err(Error::stop(Code::Fenced, message));
        }
        Some(_) => {}
        None => {
            let other = remembered.instance != claim.instance;
            if pipeline.writer.is_some() && other && !claim.take_over {
                let message = format!(
                    "another instance is running pipeline {name}; stop it, or run with --take-over"
                );
                return Err(Error::stop(Code::AlreadyRunning, message));
            }
            remembered.fence += 1;
            remembered.instance = claim.instance.clone();
        }
    }
    pipeline.writer = Some(connection);
    Ok(remembered.clone())
}

fn prepare_in(database: &mut Database, name: &str, table: &Arc<TableSchema>) -> Result<Prepared> {
    let Database { pipelines, tables, .. } = database;
    let Some(pipeline) = pipelines.get_mut(name) else {
        return Err(defect("a table was prepared for an unknown pipeline"));
    };
    let records = &mut pipeline.remembered.tables;
    let columns = || table.columns.iter().map(|column| column.name.clone());
    let copying = |schema| TableRecord { schema, status: TableStatus::Copying };
    let Some(stored) = tables.get_mut(&table.name) else {
        let stored =
            Table { pipeline: name.into(), columns: columns().collect(), rows: BTreeMap::new() };
        tables.insert(table.name.clone(), stored);
        records.insert(table.name.clone(), copying((**table).clone()));
        return Ok(Prepared::Created);
    };
    if stored.pipeline != name {
        let message = format!("table {} belongs to pipeline {}", table.name, stored.pipeline);
        return Err(Error::table(&table.name, Code::TableOwned, message));
    }
    let Some(record) = records.get_mut(&table.name) else {
        if stored.rows.is_empty() {
            stored.columns = columns().collect();
            records.insert(table.name.clone(), copying((**table).clone()));
            return Ok(Prepared::Created);
        }
        let message = format!("table {} has rows that this pipeline did not write", table.name);
        return Err(Error::table(&table.name, Code::TargetNotEmpty, message));
    };
    match record.schema.evolution(table) {
        Evolution::Same | Evolution::Fewer => Ok(Prepared::Unchanged),
        Evolution::Reordered => {
            record.schema = (**table).clone();
            Ok(Prepared::Unchanged)
        }
        Evolution::Added(added) => {
            stored.columns.extend(added.iter().cloned());
            *record = copying((**table).clone());
            Ok(Prepared::Added(added))
        }
        Evolution::Changed(how) => {
            let message = format!("table {} changed its shape: {how}", table.name);
            Err(Error::table(&table.name, Code::TargetShape, message))
        }
    }
}

fn apply_in(database: &mut Database, options: &TargetOptions, batch: &Batch) -> Result<Applied> {
    let Database { pipelines, tables, poison, .. } = database;
    let Some(pipeline) = pipelines.get_mut(&options.pipeline) else {
        return Err(defect("a batch was applied for an unknown pipeline"));
    };
    let Pipeline { remembered, tombstones, .. } = pipeline;
    let (floor, soft) = (batch.floor, options.soft_deletes);
    if remembered.checkpoint.as_ref() == Some(&batch.checkpoint) {
        return Ok(Applied::Done);
    }
    follow(remembered.checkpoint.as_ref(), &batch.checkpoint)?;
    let mut needed: BTreeMap<TableName, Vec<Key>> = BTreeMap::new();
    for part in &batch.tables {
        let name = &part.table.name;
        let stored = tables.get_mut(name).filter(|_| remembered.tables.contains_key(name));
        let stored = accept(stored, part, poison)?;
        let missing = TableWrite { name, stored, tombstones, floor, soft }.apply(part);
        if !missing.is_empty() {
            needed.entry(name.clone()).or_default().extend(missing);
        }
    }
    if !needed.is_empty() {
        return Ok(Applied::NeedsRows(needed.into_iter().collect()));
    }
    tombstones.retain(|_, version| *version >= batch.floor);
    for (table, status) in &batch.status {
        let Some(record) = remembered.tables.get_mut(table) else {
            return Err(defect("a batch has the status of a table that was not prepared"));
        };
        record.status = status.clone();
    }
    remembered.checkpoint = Some(batch.checkpoint.clone());
    Ok(Applied::Done)
}

/// Writes a chunk's rows, unless one of them is outranked by what is there or by what was seen of
/// the tombstones.
fn load_in(database: &mut Database, load: Load) -> Result<()> {
    let Load { options, rows, mut seen, .. } = load;
    let name = &rows.table.name;
    let Database { tables, poison, .. } = database;
    let stored = accept(tables.get_mut(name), &rows, poison)?;
    let (tombstones, floor, soft) = (&mut seen, Version::ZERO, options.soft_deletes);
    let missing = TableWrite { name, stored, tombstones, floor, soft }.apply(&rows);
    if missing.is_empty() { Ok(()) } else { Err(defect("a row of a chunk has absent cells")) }
}

/// The table, if it takes all rows of this part.
fn accept<'a>(
    stored: Option<&'a mut Table>,
    part: &TableBatch,
    poison: &BTreeSet<(TableName, Key)>,
) -> Result<&'a mut Table> {
    let name = &part.table.name;
    let Some(stored) = stored.filter(|stored| stored.has(&part.table)) else {
        let message = format!("table {name} was not prepared for the rows of this batch");
        return Err(Error::table(name, Code::TargetShape, message));
    };
    match part.upserts.iter().find(|upsert| is_in(poison, name, upsert)) {
        None => Ok(stored),
        Some(poisoned) => {
            let message = format!("table {name} refuses the row of version {}", poisoned.version);
            Err(Error::table(name, Code::PoisonRow, message))
        }
    }
}

/// Refuses a checkpoint that does not follow the one before it.
fn follow(before: Option<&Checkpoint>, next: &Checkpoint) -> Result<()> {
    let (sequence, version) =
        before.map_or((0, Version::ZERO), |before| (before.sequence, before.version));
    if next.sequence != sequence + 1 || next.version < version {
        return Err(defect(&format!(
            "checkpoint {} of sequence {} does not follow {version} of sequence {sequence}",
            next.version, next.sequence
        )));
    }
    Ok(())
}

fn is_in(poison: &BTreeSet<(TableName, Key)>, table: &TableName, upsert: &RowUpsert) -> bool {
    !poison.is_empty() && poison.contains(&(table.clone(), upsert.key.clone()))
}

fn defect(what: &str) -> Error {
    Error::stop(Code::Internal, what)
}
