//! The source against a real server: the log, the chunks beside it, and the proofs of gaps.
//! With `MYSQL_TREE` the server is a MySQL or another MariaDB.

mod catalog;
mod chunks;
mod gaps;
mod log;
mod sessions;

use std::sync::Arc;

use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use tokio::sync::Mutex;

use super::super::testing::{self, Database};
use super::{MysqlSource, source};
use crate::change::{Cell, Change, Key, Row, Transaction};
use crate::error::Code;
use crate::schema::{TablePatterns, TableSchema};
use crate::version::{Position, Version};
use crate::{ChangeStream, Resume, Source, SourceOptions};

const EPOCH: u32 = 3;

/// A database with a source on it.
struct Fixture {
    database: Database,
    client: Mutex<Conn>,
    source: MysqlSource,
}

impl Fixture {
    async fn new(sql: &str) -> Fixture {
        Fixture::on(Database::create().await, sql).await
    }

    async fn on(database: Database, sql: &str) -> Fixture {
        let client = Mutex::new(database.client().await);
        testing::run(&mut *client.lock().await, sql).await;
        let options = SourceOptions::new(database.name.as_str(), 1 << 20);
        let source = source(&database.url(), &options).unwrap();
        Fixture { database, client, source }
    }

    /// Statements, each with a semicolon at the end of its line.
    async fn run(&self, sql: &str) {
        testing::run(&mut *self.client.lock().await, sql).await;
    }

    /// What a question is answered with, in the first column.
    async fn ask(&self, sql: &str) -> String {
        let row: mysql_async::Row =
            self.client.lock().await.query_first(sql).await.unwrap().unwrap();
        row.get(0).unwrap()
    }

    async fn tables(&self) -> Vec<Arc<TableSchema>> {
        let all = TablePatterns::parse(&["*"], &self.database.name).unwrap();
        self.source.tables(&all).await.unwrap()
    }

    /// Subscribes afresh and opens the log.
    async fn start(&self) -> (Position, Box<dyn ChangeStream>) {
        let tables = self.tables().await;
        let position = self.source.subscribe(&tables, None).await.unwrap();
        let stream = self.source.stream(&position, EPOCH, &tables, &[]).await.unwrap();
        (position, stream)
    }

    /// Everything that the log has until now.
    async fn read_all(&self, stream: &mut Box<dyn ChangeStream>) -> Vec<Transaction> {
        let marker = self.source.mark(EPOCH).await.unwrap();
        let mut transactions = Vec::new();
        loop {
            let transaction = stream.next().await.unwrap();
            let end = transaction.complete && transaction.version >= marker;
            transactions.push(transaction);
            if end {
                return transactions;
            }
        }
    }

    /// What the log says until now, in words.
    async fn log(&self, stream: &mut Box<dyn ChangeStream>) -> Vec<String> {
        let transactions = self.read_all(stream).await;
        transactions.iter().flat_map(|t| &t.changes).map(words).collect()
    }
}

fn text(cell: Cell<'_>) -> String {
    match cell {
        Cell::Null => "NULL".into(),
        Cell::Absent => "absent".into(),
        Cell::Binary(_) => "binary".into(),
        Cell::Value(value) if value.len() > 100 => format!("{} bytes", value.len()),
        Cell::Value(value) => String::from_utf8_lossy(value).into_owned(),
    }
}

fn row_words(row: &Row) -> String {
    row.cells().map(text).collect::<Vec<_>>().join("|")
}

fn key_words(key: &Key) -> String {
    key.values().map(|value| text(Cell::Value(value))).collect::<Vec<_>>().join("|")
}

fn words(change: &Change) -> String {
    let table = &change.table().name;
    match change {
        Change::Upsert { row, .. } => format!("{table} + {}", row_words(row)),
        Change::Delete { key, .. } => format!("{table} - {}", key_words(key)),
        Change::Truncate { .. } => format!("{table} truncated"),
        Change::Halt { code, .. } => format!("{table} halted {code}"),
    }
}
