//! MariaDB's own replication as shipped: one thread fetches the log into the relay log of the
//! replica, another one applies it, both follow GTIDs. `native-relaxed` does not wait for the disk.
//!
//! Surprise: a replica whose two threads have both stopped throws its relay log away and fetches it
//! again. So for `native-relayed` the fetching thread goes on while the applying one starts.

use driftless::demo::server::PASSWORD;
use driftless::demo::server::mariadb::{ADMIN, connect};
use driftless::demo::{Error, Result};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row};

use crate::contestant::Contestant;
use crate::sides::WORK;
use crate::sides::mariadb::relax;
use crate::stage::{Stage, wait_until};
use crate::workloads::Backlog;

/// Its state is asked for once in so many questions for the last row.
const CHECK_EVERY: u64 = 10;

/// A replica, seen from the target.
pub struct Replica {
    conn: Conn,
    questions: u64,
    has_relay_log: bool,
}

impl Replica {
    /// One that has nothing yet; what another one had in the target is removed.
    pub async fn new(stage: &Stage, contestant: Contestant) -> Result<Replica> {
        relax(&stage.target, contestant == Contestant::NativeRelaxed).await?;
        let mut conn = connect(&stage.target.server.url("mysql")).await?;
        let port = stage.source.server.port();
        let change = format!(
            "STOP SLAVE; RESET SLAVE ALL; DROP DATABASE IF EXISTS {WORK}; \
             SET GLOBAL gtid_slave_pos = ''; \
             CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {port}, \
             MASTER_USER = '{ADMIN}', MASTER_PASSWORD = '{PASSWORD}', MASTER_SSL = 0, \
             MASTER_USE_GTID = slave_pos"
        );
        conn.query_drop(change).await?;
        Ok(Replica { conn, questions: 0, has_relay_log: false })
    }

    /// Has everything that was there before the backlog, and stops.
    pub async fn follow_until(&mut self, backlog: &Backlog) -> Result<()> {
        let end = backlog.begins_after.as_deref().unwrap_or_default();
        let start = format!("START SLAVE UNTIL master_gtid_pos = '{end}'");
        self.conn.query_drop(start).await?;
        let stopped = ["Slave_IO_Running", "Slave_SQL_Running"];
        wait_until("MariaDB has copied the tables", async || {
            let [fetching, applying] = self.status(stopped).await?;
            Ok(fetching == "No" && applying == "No")
        })
        .await
    }

    /// Fetches the backlog, and applies nothing of it.
    pub async fn fetch(&mut self, stage: &Stage) -> Result<()> {
        let end = stage.source.watch.ask("SELECT @@gtid_binlog_pos").await?.unwrap_or_default();
        // The fetching thread alone would obey the UNTIL of its last start.
        self.conn.query_drop("RESET SLAVE; START SLAVE IO_THREAD").await?;
        self.has_relay_log = true;
        wait_until("MariaDB has fetched the backlog", async || {
            let [fetching, fetched] = self.status(["Slave_IO_Running", "Gtid_IO_Pos"]).await?;
            match fetched == end {
                false if fetching == "No" => Err(Error("MariaDB has stopped to fetch".into())),
                is_there => Ok(is_there),
            }
        })
        .await
    }

    /// Lets it drain.
    pub async fn start(&mut self) -> Result<()> {
        let start = match self.has_relay_log {
            true => "START SLAVE SQL_THREAD",
            false => "START SLAVE",
        };
        Ok(self.conn.query_drop(start).await?)
    }

    /// Whether it has the last row.
    pub async fn has_ended(&mut self) -> Result<bool> {
        if self.questions.is_multiple_of(CHECK_EVERY) {
            self.status([]).await?;
        }
        self.questions += 1;
        let last: Option<u32> =
            self.conn.query_first(format!("SELECT id FROM {WORK}.finish")).await?;
        Ok(last.is_some())
    }

    /// Stops it. Whoever comes next waits for the disk again.
    pub async fn rest(mut self, stage: &Stage) -> Result<()> {
        self.conn.query_drop("STOP SLAVE").await?;
        relax(&stage.target, false).await
    }

    /// Some fields of its state; an error if it has met one.
    async fn status<const N: usize>(&mut self, fields: [&str; N]) -> Result<[String; N]> {
        let row: Option<Row> = self.conn.query_first("SHOW SLAVE STATUS").await?;
        let row = row.ok_or_else(|| Error("the target is no replica".into()))?;
        let text = |field: &str| row.get::<Option<String>, _>(field).flatten().unwrap_or_default();
        for error in ["Last_IO_Error", "Last_SQL_Error"] {
            if !text(error).is_empty() {
                return Err(Error(format!("MariaDB's own replication stops: {}", text(error))));
            }
        }
        Ok(fields.map(text))
    }
}
