//! The door: an SQLite file as a `Target`.
//! Surprise: every call copies what it needs and runs on a blocking thread. A dropped future does
//! not stop it there; the next call waits until it is done.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use crate::change::{Applied, Batch, Cell, Key, Row, TableBatch};
use crate::error::{Code, Doing, Error, Result};
use crate::records;
use crate::schema::{TableName, TableSchema};
use crate::sqlite::names::target_name;
use crate::sqlite::read::OwnedScan;
use crate::sqlite::store::Store;
use crate::sqlite::{config, types};
use crate::version::Version;
use crate::{Claim, Finding, KeyScan, Prepared, Remembered, Target, TargetOptions};

/// An SQLite file, written by one pipeline.
pub(crate) struct SqliteTarget {
    pub(super) store: Arc<Mutex<Store>>,
    options: TargetOptions,
}

/// The file that the URL names. It is created by `claim`, not here.
///
/// # Errors
/// `configuration`, for a URL that names no file or a directory that is not there.
pub(crate) async fn target(url: &str, options: TargetOptions) -> Result<SqliteTarget> {
    let url = url.to_owned();
    let path = blocking(move || config::path(&url)).await?;
    let store = Arc::new(Mutex::new(Store::new(path, options.clone())));
    Ok(SqliteTarget { store, options })
}

impl SqliteTarget {
    async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = Arc::clone(&self.store);
        blocking(move || match store.lock() {
            Ok(mut store) => work(&mut store),
            Err(_) => Err(Error::stop(Code::Internal, "an earlier call on the target panicked")),
        })
        .await
    }
}

#[async_trait]
impl Target for SqliteTarget {
    async fn check(&mut self, tables: &[Arc<TableSchema>]) -> Result<Vec<Finding>> {
        let tables = tables.to_vec();
        self.with_store(move |store| store.check(&tables)).await.doing("check target")
    }

    async fn recall(&mut self) -> Result<Option<Remembered>> {
        self.with_store(Store::recall).await
    }

    async fn claim(&mut self, claim: &Claim) -> Result<Remembered> {
        let claim = claim.clone();
        self.with_store(move |store| store.claim(&claim)).await
    }

    async fn prepare(&mut self, table: &Arc<TableSchema>) -> Result<Prepared> {
        let table = Arc::clone(table);
        self.with_store(move |store| store.prepare(&table)).await
    }

    async fn release(&mut self, tables: &[TableName]) -> Result<()> {
        let tables = tables.to_vec();
        self.with_store(move |store| store.release(&tables)).await
    }

    async fn apply(&mut self, batch: &Batch) -> Result<Applied> {
        // The copy costs a fiftieth of what SQLite then does with it.
        let batch = batch.clone();
        self.with_store(move |store| store.apply(&batch)).await
    }

    // SQLite has one writer at a time.
    async fn join(&mut self, _fence: u64) -> Result<bool> {
        Ok(false)
    }

    async fn load(&mut self, _rows: &TableBatch) -> Result<()> {
        Err(records::not_joined())
    }

    async fn read_rows(
        &mut self,
        table: &Arc<TableSchema>,
        keys: &[Key],
    ) -> Result<Vec<(Key, Version, Row)>> {
        let (table, keys) = (Arc::clone(table), keys.to_vec());
        self.with_store(move |store| store.read_rows(&table, &keys)).await
    }

    async fn read_keys(&mut self, scan: &KeyScan<'_>) -> Result<Vec<Key>> {
        let scan = OwnedScan {
            table: Arc::clone(scan.table),
            after: scan.after.cloned(),
            limit: scan.limit,
            below: scan.below,
            filter: scan.filter.map(str::to_owned),
        };
        self.with_store(move |store| store.read_keys(&scan)).await
    }

    fn stored(&self, table: &TableSchema, row: &Row) -> Row {
        let texts: Vec<_> = table
            .columns
            .iter()
            .zip(row.cells())
            .map(|(column, cell)| match cell {
                Cell::Value(text) => Some(types::stored(column.column_type, text)),
                Cell::Null | Cell::Absent | Cell::Binary(_) => None,
            })
            .collect();
        let cells = texts.iter().zip(row.cells());
        Row::from_cells(cells.map(|(text, cell)| text.as_deref().map_or(cell, Cell::Value)))
    }

    fn table_name(&self, table: &TableName) -> String {
        target_name(table, &self.options)
    }

    async fn forget(&mut self) -> Result<()> {
        self.with_store(Store::forget).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => {
            // The panic's own words may hold a row.
            let how = if error.is_panic() { "panicked" } else { "was cancelled" };
            Err(Error::stop(Code::Internal, format!("a call on the SQLite target {how}")))
        }
    }
}
