//! Notices SQL sessions whose network swallows everything without a word.
//!
//! A statement may rightly take long, so silence alone proves nothing: after some of it the
//! server is asked, over a connection of its own, whether it is still at work for the session.
//! The surprise: an answer of "idle" is as bad as none. It means that what was said got lost. So is
//! "I am sending", when nothing has come for so long.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_postgres::Client;

use super::config::Config;
use super::connect::{self, Socket};
use crate::error::{Code, Error, Result};

/// After this much silence of the server, with something of ours unanswered, it is asked.
const SILENCE: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_millis(100);

const AT_WORK: &str = "SELECT 1 FROM pg_catalog.pg_stat_activity WHERE pid = $1 AND state <> 'idle' \
     AND state <> 'idle in transaction' AND state <> 'idle in transaction (aborted)' \
     AND wait_event IS DISTINCT FROM 'ClientWrite'";

/// When the two sides last spoke, in milliseconds since the session began.
#[derive(Debug)]
pub struct Talk {
    began: Instant,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Talk {
    /// A session that begins now.
    pub fn new() -> Arc<Talk> {
        Arc::new(Talk {
            began: Instant::now(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// How long we have been waiting for anything since we last said something.
    fn unanswered(&self) -> Option<Duration> {
        let sent = self.sent.load(Ordering::Relaxed);
        let waiting = sent > self.received.load(Ordering::Relaxed);
        waiting.then(|| Duration::from_millis(self.now().saturating_sub(sent)))
    }
}

/// A socket that notes when something passes.
pub struct Overheard {
    socket: Box<dyn Socket>,
    talk: Arc<Talk>,
}

impl Overheard {
    /// Notes in `talk` what passes through `socket`.
    pub fn new(socket: Box<dyn Socket>, talk: Arc<Talk>) -> Overheard {
        Overheard { socket, talk }
    }
}

impl AsyncRead for Overheard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let read = Pin::new(&mut self.socket).poll_read(context, buffer);
        if read.is_ready() {
            self.talk.received.store(self.talk.now() + 1, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Overheard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.talk.sent.store(self.talk.now() + 1, Ordering::Relaxed);
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

/// Watches a session until it ends, or ends it when the server is not at work for it.
pub async fn watch(config: Config, talk: Arc<Talk>, backend_pid: i32, session: AbortHandle) {
    while !session.is_finished() {
        tokio::time::sleep(LOOK_EVERY).await;
        if talk.unanswered().is_none_or(|silence| silence < SILENCE) {
            continue;
        }
        let at_work = is_at_work(&config, backend_pid).await;
        // It may have answered in the meantime.
        if !at_work && talk.unanswered().is_some() {
            tracing::warn!(address = config.address(), "connection is silent, closing it");
            session.abort();
            return;
        }
    }
}

/// The patience with a session that is read without the driver, in bulk.
///
/// Cancel-safe: a question about the session goes on when the future that asked it is dropped.
pub struct Patience {
    config: Arc<Config>,
    backend_pid: i32,
    /// How long it may say nothing before it is asked after.
    silence: Duration,
    /// When it last said something, or was last known to be at work.
    since: Instant,
    asking: Option<Pin<Box<dyn Future<Output = bool> + Send>>>,
}

impl Patience {
    /// With the session of this server process.
    pub fn new(config: Arc<Config>, backend_pid: i32) -> Patience {
        Patience { config, backend_pid, silence: SILENCE, since: Instant::now(), asking: None }
    }

    /// The number of the server's process.
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// Waits for the server to say something, as long as it is at work for us.
    ///
    /// # Errors
    /// `unreachable` (transient) when it is not.
    pub async fn wait<T>(&mut self, something: impl Future<Output = T>) -> Result<T> {
        tokio::pin!(something);
        loop {
            let Some(asking) = &mut self.asking else {
                // A call that finds the time already over still looks at what has arrived.
                let deadline = (self.since + self.silence).max(Instant::now() + GRACE);
                if let Ok(done) = tokio::time::timeout_at(deadline, &mut something).await {
                    self.since = Instant::now();
                    return Ok(done);
                }
                let (config, backend_pid) = (self.config.clone(), self.backend_pid);
                self.asking = Some(Box::pin(async move { is_at_work(&config, backend_pid).await }));
                continue;
            };
            let at_work = tokio::select! {
                biased;
                done = &mut something => {
                    (self.since, self.asking) = (Instant::now(), None);
                    return Ok(done);
                }
                at_work = asking => at_work,
            };
            (self.since, self.asking) = (Instant::now(), None);
            if at_work {
                continue;
            }
            // It may have answered in the meantime.
            return tokio::time::timeout(GRACE, something).await.map_err(|_| {
                let message = "the source says nothing, and is not at work for us any more";
                Error::transient(Code::Unreachable, message)
            });
        }
    }
}

async fn is_at_work(config: &Config, backend_pid: i32) -> bool {
    let Ok(probe) = connect::connect_unwatched(config, "driftless watchdog").await else {
        return false;
    };
    let asked = async |probe: Client| probe.query_opt(AT_WORK, &[&backend_pid]).await;
    let answer = tokio::time::timeout(SILENCE, asked(probe)).await;
    matches!(answer, Ok(Ok(Some(_))))
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::super::session;
    use super::super::testing::Database;
    use super::*;

    #[tokio::test]
    async fn patience_lasts_as_long_as_the_server_is_at_work_for_us() {
        let database = Database::create().await;
        let config = Arc::new(Config::parse(&database.url()).unwrap());
        let mut wire = session::login(&config, "test").await.unwrap();
        let rows = wire.ask("SELECT pg_backend_pid()").await.unwrap().unwrap();
        let pid = rows[0][0].as_deref().unwrap().parse().unwrap();
        let mut patience = Patience::new(config, pid);
        patience.silence = Duration::from_millis(20);
        let slept = patience.wait(wire.ask("SELECT pg_sleep(1)")).await.unwrap();
        assert!(slept.unwrap().is_ok());
        let mut must_end = async |what| {
            let error = patience.wait(pending::<()>()).await.expect_err(what);
            assert!(error.is_transient(), "{error}");
        };
        must_end("it is idle, so what we said got lost").await;
        let much = "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000)) TO STDOUT";
        wire.send(much).await.unwrap();
        must_end("it is sending, so what it said got lost").await;
    }
}
