//! The databases that driftless reads and writes, behind one contract.
//!
//! In reading order: the words (`version`, `schema`, `change`, `error`), the contract (`Source`,
//! `ChangeStream`, `RowReader`, `Target` in this file), one folder for each database, and a source
//! and a target in memory for the engine's tests. This crate knows nothing of the engine or of
//! the state directory.

mod ahead;
mod calendar;
pub mod change;
mod digits;
pub mod error;
mod finding;
pub mod float;
mod fnv;
mod hex;
mod key_order;
pub mod memory;
pub mod mysql;
mod new_rows;
mod open;
mod part;
pub mod postgres;
mod records;
pub mod schema;
mod spool;
pub mod sqlite;
#[cfg(test)]
mod testing;
mod tombstones;
mod url;
pub mod version;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use crate::change::{
    Applied, Batch, Checkpoint, Chunk, Key, Row, TableBatch, TableStatus, Transaction,
};
use crate::error::Result;
pub use crate::finding::{Finding, Level};
pub use crate::open::{
    SourceOptions, TargetOptions, ZeroDates, open_source, open_target, plain_schema, takes_binary,
};
use crate::schema::{TableName, TablePatterns, TableSchema};
use crate::version::{Position, Version};

/// A database whose log we read. Shared by the tasks of a pipeline; each method opens or borrows
/// the connection that it needs.
#[async_trait]
pub trait Source: Send + Sync {
    /// Looks at everything that replication of these tables needs, and changes nothing.
    ///
    /// # Errors
    /// Only if the source cannot be asked at all; what is not ready is a `Finding`.
    async fn check(&self, tables: &TablePatterns) -> Result<Vec<Finding>>;

    /// The tables that match, in the order of their names, each with a usable key.
    ///
    /// # Errors
    /// The first table that cannot be replicated, with the SQL that mends it; or that a pattern
    /// matches nothing.
    async fn tables(&self, tables: &TablePatterns) -> Result<Vec<Arc<TableSchema>>>;

    /// Makes the source keep and publish the changes of these tables from now on. Without
    /// `resume`, starts the log afresh (what an earlier attempt left behind is replaced) and
    /// returns the position at which it starts. With `resume`, proves that nothing has been lost
    /// since that position and returns it.
    ///
    /// # Errors
    /// A gap, a change of identity, or a missing privilege stops; nothing is skipped.
    async fn subscribe(
        &self,
        tables: &[Arc<TableSchema>],
        resume: Option<Resume<'_>>,
    ) -> Result<Position>;

    /// Whether the source still keeps its log for this pipeline (a slot), in words; `None` when
    /// it does not.
    ///
    /// # Errors
    /// If the source cannot be asked.
    async fn subscription(&self) -> Result<Option<String>>;

    /// Removes what `subscribe` made. Doing it twice is fine.
    ///
    /// # Errors
    /// If somebody else uses it, or a privilege is missing.
    async fn unsubscribe(&self) -> Result<()>;

    /// Ends whatever other session reads this pipeline's log. Only for a take-over.
    ///
    /// # Errors
    /// If a privilege is missing.
    async fn evict(&self) -> Result<()>;

    /// Opens the log at a position that `subscribe` returned. Versions get this epoch. Only one
    /// stream of a source is open at a time; opening it forgets what an earlier one decoded.
    /// `tables` are as `tables` returned them; `earlier` are the shapes that they had before, the
    /// oldest first, for a log that does not describe its rows itself.
    ///
    /// # Errors
    /// The connection, or that somebody else reads the log.
    async fn stream(
        &self,
        from: &Position,
        epoch: u32,
        tables: &[Arc<TableSchema>],
        earlier: &[Arc<TableSchema>],
    ) -> Result<Box<dyn ChangeStream>>;

    /// The version of a position, ordinal 0: its place in the log.
    ///
    /// # Errors
    /// If another connector made the position.
    fn version_of(&self, position: &Position, epoch: u32) -> Result<Version>;

    /// Writes a marker into the log and returns a version above everything committed before and
    /// not above the marker. The stream will pass it even if nothing else is ever written.
    ///
    /// # Errors
    /// The connection, or a read-only source.
    async fn mark(&self, epoch: u32) -> Result<Version>;

    /// How many bytes of log the source holds beyond this position; the lag.
    ///
    /// # Errors
    /// If the source cannot be asked.
    async fn lag_bytes(&self, position: &Position) -> Result<u64>;

    /// About how many rows the table has, for progress; cheap.
    ///
    /// # Errors
    /// If the source cannot be asked.
    async fn estimate_rows(&self, table: &TableSchema) -> Result<u64>;

    /// A connection of its own for reading rows.
    ///
    /// # Errors
    /// The connection.
    async fn reader(&self) -> Result<Box<dyn RowReader>>;
}

/// From where a pipeline resumes, and what it relies on.
#[derive(Clone, Copy, Debug)]
pub struct Resume<'a> {
    /// The target's position.
    pub position: &'a Position,
    /// Tables whose changes up to now must not be missing from the log: those of which rows have
    /// been copied already.
    pub relied_upon: &'a [TableName],
}

impl<'a> Resume<'a> {
    /// Resumes at a position; no table has been copied yet.
    #[must_use]
    pub fn at(position: &'a Position) -> Resume<'a> {
        Resume { position, relied_upon: &[] }
    }
}

/// The log of a source, commit by commit.
#[async_trait]
pub trait ChangeStream: Send {
    /// The next transaction, in commit order; without changes when only the position moved.
    /// Cancel-safe: dropping the future loses nothing. Silence is noticed: when the source says
    /// nothing for twice the heartbeat, not even when asked, the error is `Transient`.
    ///
    /// # Errors
    /// The connection (`Transient`), or something not understood (`Stop`).
    async fn next(&mut self) -> Result<Transaction>;

    /// Tells the source that everything up to this position is durable, and that we are alive.
    /// Called every few seconds whether or not the position moved. Never moves back, and never
    /// goes beyond what was received.
    ///
    /// # Errors
    /// The connection.
    async fn acknowledge(&mut self, durable: &Position) -> Result<()>;

    /// As `acknowledge`, for the last time; may take as long as the source needs to let go of its
    /// log.
    ///
    /// # Errors
    /// The connection.
    async fn close(&mut self, durable: &Position) -> Result<()> {
        self.acknowledge(durable).await
    }
}

/// Which rows of a table a chunk holds.
#[derive(Clone, Debug)]
pub struct ChunkRequest<'a> {
    /// The table, as it was prepared in the target.
    pub table: &'a Arc<TableSchema>,
    /// Only rows after this key, in the source's own key order.
    pub after: Option<&'a Key>,
    /// Only rows for which this SQL condition holds.
    pub filter: Option<&'a str>,
    /// At most this many rows; `next` tells whether there are more.
    pub rows_max: usize,
    /// The chunk must be able to claim at least this version; otherwise it is read again a
    /// little later, until it can.
    pub not_below: Version,
}

/// Reads rows of a source beside its log.
#[async_trait]
pub trait RowReader: Send {
    /// Rows in key order, in one short transaction of its own, with the version they may claim.
    ///
    /// # Errors
    /// `Table` if this table cannot be read (gone, another shape, no privilege).
    async fn read_chunk(&mut self, request: &ChunkRequest<'_>) -> Result<Chunk>;

    /// The rows of these keys, as a chunk. A key that is not among the rows does not exist in
    /// the source at the chunk's version. `next` is `None`.
    ///
    /// # Errors
    /// As `read_chunk`.
    async fn read_keys(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
        not_below: Version,
    ) -> Result<Chunk>;

    /// The rows of these keys in a snapshot that sees every commit up to `at`, for changes that
    /// did not carry all columns. Waits until the source shows them. A key that is not among the
    /// rows has its delete still to come.
    ///
    /// # Errors
    /// As `read_chunk`.
    async fn reread(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
        at: Version,
    ) -> Result<Vec<(Key, Row)>>;

    /// Rows in key order as one statement's snapshot shows them, and where to go on: the last key
    /// if there may be more rows. For comparing: needs no open log, ignores `not_below`, and the
    /// rows may claim no version. They have exactly the columns of the table that was asked for,
    /// which may be fewer than the source has.
    ///
    /// # Errors
    /// As `read_chunk`; also if one of the columns is gone.
    async fn read_plain(
        &mut self,
        request: &ChunkRequest<'_>,
    ) -> Result<(Vec<(Key, Row)>, Option<Key>)>;

    /// The rows of these keys as one statement's snapshot shows them, in any order, otherwise as
    /// `read_plain`. A key that is not among the rows does not exist in that snapshot.
    ///
    /// # Errors
    /// As `read_plain`.
    async fn read_plain_keys(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
    ) -> Result<Vec<(Key, Row)>>;

    /// Whether any row has a value other than NULL in one of these columns; asked after they
    /// were added.
    ///
    /// # Errors
    /// As `read_chunk`.
    async fn any_value(&mut self, table: &TableSchema, columns: &[String]) -> Result<bool>;
}

/// Who writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The instance mark of our state directory.
    pub instance: String,
    /// The fence that an earlier claim of this very process returned: verify it, do not raise it.
    pub fence: Option<u64>,
    /// Take the pipeline over from another instance, whether or not that one is alive.
    pub take_over: bool,
}

/// What the target knows of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// `None` while the first start has not got so far as to know a position.
    pub checkpoint: Option<Checkpoint>,
    /// Raised by every claim; a writer with a smaller one cannot commit.
    pub fence: u64,
    /// The instance that claimed it last.
    pub instance: String,
    /// The source tables replicated into this target by this pipeline.
    pub tables: BTreeMap<TableName, TableRecord>,
}

/// What the target knows of a table.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TableRecord {
    /// The shape it was last prepared for.
    pub schema: TableSchema,
    /// How complete it is.
    pub status: TableStatus,
}

/// What `prepare` had to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// Nothing: it was there with this shape.
    Unchanged,
    /// The table was created.
    Created,
    /// These columns were added; the rows that exist have NULL in them. The table's status is
    /// `Copying` again until the engine has seen to them.
    Added(Vec<String>),
}

/// A database that we write. One process at a time: every method that writes compares the fence.
#[async_trait]
pub trait Target: Send {
    /// Looks at everything that writing needs, and changes nothing.
    ///
    /// # Errors
    /// Only if the target cannot be asked at all.
    async fn check(&mut self, tables: &[Arc<TableSchema>]) -> Result<Vec<Finding>>;

    /// What the target knows of this pipeline; changes nothing.
    ///
    /// # Errors
    /// The connection, or records that cannot be read.
    async fn recall(&mut self) -> Result<Option<Remembered>>;

    /// Makes us the one writer: creates our own tables if need be, refuses while another
    /// instance is alive (unless told to take over), raises the fence and keeps it for all that
    /// follows. Returns what the target knows. No transaction of an earlier session of this
    /// pipeline can commit any more when it returns.
    ///
    /// # Errors
    /// `already-running`, `fenced`.
    async fn claim(&mut self, claim: &Claim) -> Result<Remembered>;

    /// Makes the target ready for rows of this shape: creates the table, or adds the columns
    /// that are new, and records it as `Copying` when it did either. A column that the target
    /// has and `table` has not is left alone. One transaction where the database can.
    ///
    /// # Errors
    /// `target-shape`, `target-not-empty` (rows that no pipeline wrote), `table-owned` (by
    /// another pipeline), `name-collision`.
    async fn prepare(&mut self, table: &Arc<TableSchema>) -> Result<Prepared>;

    /// Forgets tables that are no longer replicated; their rows stay.
    ///
    /// # Errors
    /// The connection.
    async fn release(&mut self, tables: &[TableName]) -> Result<()>;

    /// Applies a batch: rows, tombstones, checkpoint, table states and fence in one transaction.
    /// Durable when it returns. Applying it twice is the same as once. For every key the greater
    /// version wins; tombstones and truncations count as versions of their keys.
    ///
    /// # Errors
    /// `Transient`: nothing is known about whether it was committed. `Table`: nothing was
    /// committed, and this table's part is the reason (`poison-row` names the key's hash and the
    /// version). `Stop` with `fenced`: another instance has taken over.
    async fn apply(&mut self, batch: &Batch) -> Result<Applied>;

    /// What brings rows ahead of their turn; `None` where that would gain nothing.
    fn ahead(&self) -> Option<Arc<dyn StageAhead>> {
        None
    }

    /// Makes this session a loader: a helper of the session that claimed with this fence, on a
    /// connection of its own, which may `load` from now on and nothing else. `false` where the
    /// database takes one writer at a time.
    ///
    /// # Errors
    /// The connection.
    async fn join(&mut self, fence: u64) -> Result<bool>;

    /// A loader writes the rows of a chunk in a transaction of its own, which leaves the
    /// checkpoint where it is and may only be committed while the fence is the one that it joined.
    /// The rows have all their cells; there are no deletes and no truncation. As with `apply`, for
    /// every key the greater version wins, tombstones included, it is durable when it returns, and
    /// doing it twice is the same as once.
    ///
    /// The caller sees to it that meanwhile neither `apply` nor `prepare` touches this table and
    /// that no other loader writes the same keys: the tombstones are looked at before the rows are
    /// written, and a delete that comes in between would find nothing to delete.
    ///
    /// A claim waits until no loader of an earlier session can commit any more.
    ///
    /// # Errors
    /// As `apply`.
    async fn load(&mut self, rows: &TableBatch) -> Result<()>;

    /// The rows of these keys with their versions, in canonical text; deleted ones are left out.
    ///
    /// # Errors
    /// The connection, or a table that is not there.
    async fn read_rows(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
    ) -> Result<Vec<(Key, Version, Row)>>;

    /// Up to `limit` keys of rows that exist, after `after` in the target's own key order; only
    /// those older than `below` and only those for which `filter` holds, where these are given.
    ///
    /// # Errors
    /// The connection, or a filter that this database does not understand (`Table`).
    async fn read_keys(&mut self, scan: &KeyScan<'_>) -> Result<Vec<Key>>;

    /// The row as this target gives it back after storing it, for comparison.
    fn stored(&self, table: &TableSchema, row: &Row) -> Row;

    /// The target's name of a source table, for people.
    fn table_name(&self, table: &TableName) -> String;

    /// Removes our own tables, or this pipeline's part of them; replicated tables stay. Needs no
    /// claim while no instance is alive, and doing it twice is fine.
    ///
    /// # Errors
    /// The connection; `already-running`, or `fenced` after a claim that was taken over.
    async fn forget(&mut self) -> Result<()>;
}

/// A part of the batch after the one that is being applied.
#[derive(Clone, Debug)]
pub struct Upcoming {
    /// What it does to its table.
    pub part: Arc<TableBatch>,
    /// How many of its upserts, from the first, may be written before its turn, in a transaction
    /// that stays open until then: they have all their cells, the batch before touches none of
    /// their keys, and nobody loads chunks of the table.
    pub independent: usize,
}

/// Brings the rows of a batch to a target while `Target::apply` is busy with the one before it.
pub trait StageAhead: Send + Sync {
    /// Begins with these parts of the next batch, and waits for nothing. `apply` uses what was
    /// brought of the same parts, by the same `Arc`s, and takes it back when it gets any other batch;
    /// whatever goes wrong here is as if it had not been tried.
    fn stage(&self, upcoming: Vec<Upcoming>);

    /// Lets go of what was brought and never applied.
    fn discard(&self);
}

/// Which keys `Target::read_keys` returns.
#[derive(Clone, Debug)]
pub struct KeyScan<'a> {
    /// The table.
    pub table: &'a Arc<TableSchema>,
    /// Only keys after this one, in the target's key order.
    pub after: Option<&'a Key>,
    /// At most this many.
    pub limit: usize,
    /// Only rows older than this.
    pub below: Option<Version>,
    /// Only rows for which this SQL condition holds.
    pub filter: Option<&'a str>,
}
