//! Looks every few seconds whether the log that we read is still the one that the server writes.
//! Runs beside `stream.rs`.
//!
//! Surprise: after RESET MASTER a MariaDB goes on sending heartbeats of a file that is gone. The
//! log looks idle, and nothing that is written from then on ever comes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::config::Config;
use super::connect::{self, Role, Session};
use super::subscribe::{self, RESYNC};
use super::visibility::Progress;
use crate::error::{Code, Error, Result};

const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A dump has so much time to send what was in the log when we looked.
const PATIENCE: Duration = Duration::from_secs(5);

/// The task that looks; ends with whoever holds this.
pub struct Guard {
    task: JoinHandle<()>,
    /// What it has found, once.
    found: mpsc::Receiver<Error>,
}

impl Guard {
    /// Begins to look.
    pub fn begin(config: Arc<Config>, server: String, progress: Arc<Progress>) -> Guard {
        let (tell, found) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            // Nobody listens any more, if that fails.
            let _ = tell.send(look_until_wrong(&config, &server, &progress).await).await;
        });
        Guard { task, found }
    }

    /// What is wrong, once it is. Cancel-safe.
    pub async fn found(&mut self) -> Error {
        let found = self.found.recv().await;
        let gone = "nobody looks after the log any more";
        found.unwrap_or_else(|| Error::transient(Code::Internal, gone))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look_until_wrong(config: &Arc<Config>, server: &str, progress: &Progress) -> Error {
    let mut session: Option<Session> = None;
    loop {
        sleep(LOOK_EVERY).await;
        let looked = async {
            let mut session = match session.take().filter(Session::is_fresh) {
                Some(session) => session,
                None => connect::connect(config, Role::Source).await?,
            };
            let wrong = look(&mut session, server, progress).await?;
            Ok::<_, Error>((session, wrong))
        };
        match looked.await {
            Ok((looking, None)) => session = Some(looking),
            Ok((_, Some(wrong))) => return wrong,
            // A server that cannot be reached is noticed by whoever waits for its log.
            Err(error) if error.is_transient() => {}
            Err(error) => return error,
        }
    }
}

/// What is wrong, if anything is.
async fn look(session: &mut Session, server: &str, progress: &Progress) -> Result<Option<Error>> {
    // Our place first, the server's after it: never the other way round.
    let Some(before) = progress.before_snapshot() else { return Ok(None) };
    let now = subscribe::identity(session).await?;
    if now != server {
        return Ok(Some(subscribe::other_source(server, &now)));
    }
    let end = subscribe::end(session).await?;
    let log = end.log()?;
    if log < before.decoded {
        return Ok(Some(Error::stop(
            Code::PositionAhead,
            format!(
                "the server's binary log ends at {}:{}, before what we have read of it: it was \
                 begun anew; {RESYNC}",
                end.file, end.offset
            ),
        )));
    }
    let looked = Instant::now();
    sleep(PATIENCE * 2).await;
    let stands_still =
        progress.idle().is_some_and(|(idle, at)| idle < log && at > looked + PATIENCE);
    Ok(stands_still.then(|| {
        let message = "the server has more log than it sends, so it is asked again";
        Error::transient(Code::Unreachable, message)
    }))
}
