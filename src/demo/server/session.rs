//! A session with a private server of either engine, speaking text: what a test or a shop needs,
//! and nothing that could be mistaken for the connectors.

use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use tokio::sync::Mutex;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{mariadb, postgres};
use crate::demo::Result;

/// A row as text; `None` is NULL.
pub type TextRow = Vec<Option<String>>;

/// A session.
#[derive(Debug)]
pub enum Session {
    /// With a PostgreSQL.
    Postgres(Client),
    /// With a MariaDB or MySQL, whose protocol answers one question at a time.
    Mariadb(Mutex<Conn>),
}

impl Session {
    /// Connects; the scheme of the URL says to what.
    ///
    /// # Errors
    /// The connection.
    pub async fn connect(url: &str) -> Result<Session> {
        match url.starts_with("mysql:") {
            true => Ok(Session::Mariadb(Mutex::new(mariadb::connect(url).await?))),
            false => Ok(Session::Postgres(postgres::connect(url).await?)),
        }
    }

    /// Runs any number of statements.
    ///
    /// # Errors
    /// The first statement that fails; those after it are not run.
    pub async fn batch_execute(&self, sql: &str) -> Result<()> {
        match self {
            Session::Postgres(client) => Ok(client.batch_execute(sql).await?),
            Session::Mariadb(_) if sql.trim().is_empty() => Ok(()),
            Session::Mariadb(conn) => Ok(conn.lock().await.query_drop(sql).await?),
        }
    }

    /// Runs one statement, and says how many rows it changed.
    ///
    /// # Errors
    /// The statement.
    pub async fn execute(&self, sql: &str) -> Result<u64> {
        match self {
            Session::Postgres(client) => Ok(client.execute(sql, &[]).await?),
            Session::Mariadb(conn) => {
                let mut conn = conn.lock().await;
                let result = conn.query_iter(sql).await?;
                let rows = result.affected_rows();
                result.drop_result().await?;
                Ok(rows)
            }
        }
    }

    /// The rows of one query.
    ///
    /// # Errors
    /// The query.
    pub async fn rows(&self, sql: &str) -> Result<Vec<TextRow>> {
        match self {
            Session::Postgres(client) => {
                let messages = client.simple_query(sql).await?;
                Ok(messages.iter().filter_map(row_of_postgres).collect())
            }
            Session::Mariadb(conn) => {
                let rows: Vec<mysql_async::Row> = conn.lock().await.query(sql).await?;
                Ok(rows.into_iter().map(row_of_mariadb).collect())
            }
        }
    }

    /// The first value of the first row; `None` for NULL and for no row.
    ///
    /// # Errors
    /// The query.
    pub async fn ask(&self, sql: &str) -> Result<Option<String>> {
        let rows = self.rows(sql).await?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
    }
}

fn row_of_postgres(message: &SimpleQueryMessage) -> Option<TextRow> {
    match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|index| row.get(index).map(str::to_owned)).collect())
        }
        _ => None,
    }
}

/// A question in the text protocol is answered in bytes, whatever the type.
fn row_of_mariadb(row: mysql_async::Row) -> TextRow {
    let text = |value| match value {
        mysql_async::Value::NULL => None,
        mysql_async::Value::Bytes(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        other => Some(other.as_sql(true)),
    };
    row.unwrap().into_iter().map(text).collect()
}
