//! One connection to a target database, with what lives and dies with it: the staging tables, an
//! open transaction, the advisory lock. A writer has two of them (`ahead.rs`), a loader one.

use std::sync::Arc;

use tokio_postgres::{Client, SimpleQueryRow};

use super::into_row;
use super::stage::Stage;
use crate::TargetOptions;
use crate::ahead::HeldLock;
use crate::error::Result;
use crate::new_rows::Lessons;
use crate::postgres::config::Config;
use crate::postgres::connect;
use crate::postgres::sql::TableSql;
use crate::schema::TableSchema;

/// Our statements are short, so compiling them costs more than it saves; and a batch should stay in
/// the memory of its staging tables.
const SETTINGS: &str = "SET jit = off; SET temp_buffers = '32MB'";

/// A connection to a target database.
pub struct Session {
    /// Runs statements.
    pub client: Client,
    /// Whose session it is.
    pub options: TargetOptions,
    /// Shared by all sessions of a writer.
    pub lessons: Arc<Lessons>,
    /// Its staging tables.
    pub stages: Vec<Stage>,
    /// Whether a transaction may be open.
    pub in_transaction: bool,
    /// The advisory lock that says that the pipeline is alive, if this session holds it.
    pub lock: Option<HeldLock>,
}

/// What it takes to open one.
#[derive(Clone)]
pub struct Door {
    /// Where the target is.
    pub config: Config,
    /// Whose session it will be.
    pub options: TargetOptions,
    /// Shared by all sessions of a writer.
    pub lessons: Arc<Lessons>,
}

impl Session {
    /// Connects.
    ///
    /// # Errors
    /// The connection.
    pub async fn open(Door { config, options, lessons }: &Door) -> Result<Session> {
        let client = connect::connect(config, &format!("driftless {}", options.pipeline)).await?;
        let set = client.batch_execute(SETTINGS).await;
        set.map_err(|error| connect::error("set up a session with the target", &error))?;
        let (options, lessons, stages) = (options.clone(), lessons.clone(), Vec::new());
        Ok(Session { client, options, lessons, stages, in_transaction: false, lock: None })
    }

    /// The statements for this table.
    pub fn sql<'a>(&'a self, table: &'a TableSchema, stage: &'a str) -> TableSql<'a> {
        TableSql {
            pipeline: &self.options.pipeline,
            soft_deletes: self.options.soft_deletes,
            table,
            stage,
        }
    }

    /// Ends a transaction that a dropped future may have left open.
    ///
    /// # Errors
    /// The connection.
    pub async fn settle(&mut self) -> Result<()> {
        if self.in_transaction {
            self.client
                .batch_execute("ROLLBACK")
                .await
                .map_err(|error| connect::error("end an interrupted transaction", &error))?;
            self.in_transaction = false;
        }
        Ok(())
    }

    /// Runs statements of which we want the rows, all columns in text.
    pub async fn rows(
        &self,
        statements: &str,
    ) -> std::result::Result<Vec<SimpleQueryRow>, tokio_postgres::Error> {
        let messages = self.client.simple_query(statements).await?;
        Ok(messages.into_iter().filter_map(into_row).collect())
    }

    /// Rows of a statement of ours, with an error that says what it was for.
    ///
    /// # Errors
    /// What the server says, or the connection.
    pub async fn query(&self, doing: &str, query: &str) -> Result<Vec<SimpleQueryRow>> {
        self.rows(query).await.map_err(|error| connect::error(doing, &error))
    }
}
