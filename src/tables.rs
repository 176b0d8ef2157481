//! What the running pipeline knows of its tables: their shape in the target, how complete they
//! are, and whether their rows in the target may complete a partial change.
//!
//! The surprise: while a table is copied again, a row in the target may be stale in columns that a
//! partial change does not carry. Such a change is completed from the source instead.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use connectors::change::TableStatus;
use connectors::error::{Code, Error};
use connectors::schema::{TableName, TableSchema};
use tracing::warn;

/// One table of the pipeline.
#[derive(Clone, Debug)]
pub struct Table {
    /// The shape that the target was prepared for.
    pub schema: Arc<TableSchema>,
    /// How complete it is, as recorded in the target.
    pub status: TableStatus,
    /// How many copies are under way that began with rows in the target.
    pub recopies: usize,
}

impl Table {
    fn is_running(&self) -> bool {
        !matches!(self.status, TableStatus::Stopped { .. })
    }
}

/// All tables of the pipeline, shared by its tasks.
#[derive(Debug, Default)]
pub struct Tables(Mutex<BTreeMap<TableName, Table>>);

impl Tables {
    /// Adds or replaces a table.
    pub fn insert(&self, schema: Arc<TableSchema>, status: TableStatus) {
        let mut tables = self.lock();
        let recopies = tables.get(&schema.name).map_or(0, |table| table.recopies);
        tables.insert(schema.name.clone(), Table { schema, status, recopies });
    }

    /// The table, if the pipeline has it.
    #[must_use]
    pub fn get(&self, name: &TableName) -> Option<Table> {
        self.lock().get(name).cloned()
    }

    /// All of them, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Table> {
        self.lock().values().cloned().collect()
    }

    /// Records a new state of completeness.
    pub fn set_status(&self, name: &TableName, status: TableStatus) {
        if let Some(table) = self.lock().get_mut(name) {
            table.status = status;
        }
    }

    /// Whether the table's changes are applied.
    #[must_use]
    pub fn is_running(&self, name: &TableName) -> bool {
        self.lock().get(name).is_some_and(Table::is_running)
    }

    /// Whether rows of this shape can be written as they are.
    #[must_use]
    pub fn takes(&self, shape: &Arc<TableSchema>) -> bool {
        let tables = self.lock();
        let known = tables.get(&shape.name);
        known.is_some_and(|table| table.is_running() && table.schema == *shape)
    }

    /// Whether nobody copies rows of the table.
    #[must_use]
    pub fn is_at_rest(&self, name: &TableName) -> bool {
        let is_live = |table: &Table| table.status == TableStatus::Live && table.recopies == 0;
        self.lock().get(name).is_some_and(is_live)
    }

    /// Whether rows in the target may lend their columns to a partial change.
    #[must_use]
    pub fn is_trusted(&self, name: &TableName) -> bool {
        self.lock().get(name).is_some_and(|table| table.recopies == 0)
    }

    /// A copy over existing rows begins: distrust the rows until it has ended.
    pub fn begin_recopy(&self, name: &TableName) {
        if let Some(table) = self.lock().get_mut(name) {
            table.recopies += 1;
        }
    }

    /// A copy that `begin_recopy` announced has ended.
    pub fn end_recopy(&self, name: &TableName) {
        if let Some(table) = self.lock().get_mut(name) {
            table.recopies = table.recopies.saturating_sub(1);
        }
    }

    /// The first table that is stopped, with the reason.
    #[must_use]
    pub fn first_stopped(&self) -> Option<(TableName, TableStatus)> {
        let stopped = |table: &&Table| matches!(table.status, TableStatus::Stopped { .. });
        let tables = self.lock();
        let table = tables.values().find(stopped)?;
        Some((table.schema.name.clone(), table.status.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TableName, Table>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error of a table whose shape changed in a way that is not followed.
#[must_use]
pub fn shape_changed(name: &TableName, how: &str) -> Error {
    let message = format!(
        "the shape of table {name} changed: {how}; change or drop the target's table to match, \
         then run `driftless backfill --table {name}`"
    );
    warn!(table = %name, how, "table changed its shape");
    Error::table(name, Code::SchemaChange, message)
}
