//! Notices SQL sessions whose network swallows everything without a word.
//!
//! A statement may rightly take long, so silence alone proves nothing: after some of it the
//! server is asked, over a connection of its own, whether it is still at work for the session.
//! The surprise: an answer of "idle" is as bad as none, unless the server's answer is still on its
//! way; so it is given a little more time, and then the session is over.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use tokio::time::timeout;

use super::config::Config;
use super::connect;

/// After this much silence the server is asked.
const SILENCE: Duration = Duration::from_secs(15);
/// How long an answer may still be on its way.
const ON_ITS_WAY: Duration = Duration::from_secs(10);

const CONNECTIONS: &str = "SHOW PROCESSLIST";

/// Who is watched.
#[derive(Clone)]
pub struct Watch {
    config: Arc<Config>,
    connection: u64,
}

/// The server is not at work for the session, and nothing comes.
#[derive(Debug)]
pub struct Silent;

impl Watch {
    /// Watches a connection by the number that the server gave it.
    pub fn new(config: Arc<Config>, connection: u64) -> Watch {
        Watch { config, connection }
    }

    /// Waits for what the server has been asked, as long as it is at work for it.
    ///
    /// # Errors
    /// `Silent`: the session is of no use any more.
    pub async fn over<T>(&self, answer: impl Future<Output = T>) -> Result<T, Silent> {
        let mut answer = pin!(answer);
        loop {
            if let Ok(answer) = timeout(SILENCE, &mut answer).await {
                return Ok(answer);
            }
            let at_work = tokio::select! {
                biased;
                answer = &mut answer => return Ok(answer),
                at_work = self.is_at_work() => at_work,
            };
            if at_work {
                continue;
            }
            return match timeout(ON_ITS_WAY, &mut answer).await {
                Ok(answer) => Ok(answer),
                Err(_) => {
                    let address = self.config.address();
                    tracing::warn!(address, "connection is silent, closing it");
                    Err(Silent)
                }
            };
        }
    }

    async fn is_at_work(&self) -> bool {
        let asked = async {
            let mut probe = connect::login(&self.config).await.ok()?;
            let rows: Vec<mysql_async::Row> = probe.query(CONNECTIONS).await.ok()?;
            drop_quietly(probe).await;
            rows.iter().find(|row| number(row, "Id") == Some(self.connection)).map(at_work)
        };
        timeout(SILENCE, asked).await.ok().flatten().unwrap_or(false)
    }
}

fn at_work(row: &mysql_async::Row) -> bool {
    text(row, "Command").is_some_and(|command| !command.eq_ignore_ascii_case("sleep"))
}

fn number(row: &mysql_async::Row, column: &str) -> Option<u64> {
    text(row, column)?.parse().ok()
}

fn text(row: &mysql_async::Row, column: &str) -> Option<String> {
    row.get_opt::<String, _>(column)?.ok()
}

async fn drop_quietly(connection: Conn) {
    // It was only for a question, so how it ends does not matter.
    let _ = connection.disconnect().await;
}
