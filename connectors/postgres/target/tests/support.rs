//! A claimed target for each test, with a session to look at what it did.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::change::{Applied, Batch, Cell, Checkpoint, Row, TableBatch};
use crate::error::Error;
use crate::postgres::binary::Encoding;
use crate::postgres::target::{PostgresTarget, target};
use crate::postgres::testing::Database;
use crate::schema::TableSchema;
pub use crate::testing::*;
use crate::version::{Position, Version};
use crate::{Prepared, Target};

/// The part as a PostgreSQL source sends it, with all values but those of keys in binary.
pub fn in_binary(mut part: TableBatch) -> TableBatch {
    let table = part.table.clone();
    for upsert in &mut part.upserts {
        let binary = |(place, cell)| match cell {
            Cell::Value(text) if !table.is_key(place) => {
                let mut value = Vec::new();
                let encoding = Encoding::of_column(&table.columns[place]).unwrap();
                encoding.push(text, &mut value).unwrap();
                // Without its length.
                Some(value.split_off(4))
            }
            _ => None,
        };
        let values: Vec<_> = upsert.row.cells().enumerate().map(binary).collect();
        let cells = values.iter().zip(upsert.row.cells());
        let row =
            Row::from_cells(cells.map(|(value, cell)| value.as_deref().map_or(cell, Cell::Binary)));
        upsert.row = row;
    }
    part
}

/// A database with a claimed target on it, and a session to look at it.
pub struct Fixture {
    pub database: Database,
    pub target: PostgresTarget,
    pub client: Client,
    pub sequence: u64,
    pub floor: Version,
}

impl Fixture {
    pub async fn new(soft_deletes: bool) -> Fixture {
        let database = Database::create().await;
        let mut target = target(&database.url(), options("p", soft_deletes)).await.unwrap();
        target.claim(&claim_as("us")).await.unwrap();
        let client = database.client().await;
        Fixture { database, target, client, sequence: 0, floor: Version::ZERO }
    }

    /// Also prepares this table.
    pub async fn with(table: &Arc<TableSchema>, soft_deletes: bool) -> Fixture {
        let mut fixture = Fixture::new(soft_deletes).await;
        assert_eq!(fixture.target.prepare(table).await, Ok(Prepared::Created));
        fixture
    }

    /// The batch that follows, with these parts.
    pub fn batch(&self, tables: Vec<TableBatch>) -> Batch {
        self.batch_of(tables.into_iter().map(Arc::new).collect())
    }

    /// The batch that follows, with these very parts.
    pub fn batch_of(&self, tables: Vec<Arc<TableBatch>>) -> Batch {
        Batch {
            checkpoint: Checkpoint {
                position: Position(format!("at {}", self.sequence + 1)),
                version: version(self.sequence + 1),
                sequence: self.sequence + 1,
            },
            floor: self.floor,
            tables,
            status: BTreeMap::new(),
        }
    }

    pub async fn apply(&mut self, tables: Vec<TableBatch>) -> Result<Applied, Error> {
        self.apply_parts(tables.into_iter().map(Arc::new).collect()).await
    }

    pub async fn apply_parts(&mut self, tables: Vec<Arc<TableBatch>>) -> Result<Applied, Error> {
        let batch = self.batch_of(tables);
        let applied = self.target.apply(&batch).await;
        if applied == Ok(Applied::Done) {
            self.sequence += 1;
        }
        applied
    }

    /// Applies a part, and has another one brought, with so many rows that do not depend on it, as
    /// soon as that waits for something.
    pub async fn apply_while_bringing(
        &mut self,
        part: &Arc<TableBatch>,
        next: Option<&Arc<TableBatch>>,
        independent: usize,
    ) -> Result<Applied, Error> {
        let ahead = self.target.ahead().unwrap();
        while_bringing(self.apply_parts(vec![part.clone()]), &*ahead, next, independent).await
    }

    pub async fn done(&mut self, tables: Vec<TableBatch>) {
        assert_eq!(self.apply(tables).await, Ok(Applied::Done));
    }

    /// A loader of this fence.
    pub async fn loader(&self, fence: u64) -> PostgresTarget {
        let options = self.target.session.options.clone();
        let mut loader = target(&self.database.url(), options).await.unwrap();
        assert_eq!(loader.join(fence).await, Ok(true));
        loader
    }

    /// Every row of a query: values separated by `|`, NULL as `~`.
    pub async fn look(&self, query: &str) -> Vec<String> {
        look(&self.client, query).await
    }

    pub async fn execute(&self, statements: &str) {
        self.client.batch_execute(statements).await.unwrap();
    }
}

pub async fn look(client: &Client, query: &str) -> Vec<String> {
    let messages = client.simple_query(query).await.unwrap();
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|i| row.get(i).unwrap_or("~").to_owned()).collect::<Vec<_>>())
        }
        _ => None,
    };
    messages.into_iter().filter_map(row).map(|values| values.join("|")).collect()
}
