//! Notices SQL sessions whose network swallows everything without a word.
//!
//! A statement may rightly take long, so silence alone proves nothing: after some of it the
//! server is asked, over a connection of its own, whether it is still at work for the session.
//! The surprise: an answer of "idle" is as bad as none. It means that what was said got lost.

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

/// After this much silence of the server, with something of ours unanswered, it is asked.
const SILENCE: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_secs(5);

const AT_WORK: &str = "SELECT 1 FROM pg_catalog.pg_stat_activity WHERE pid = $1 AND state <> 'idle' \
     AND state <> 'idle in transaction' AND state <> 'idle in transaction (aborted)'";

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

async fn is_at_work(config: &Config, backend_pid: i32) -> bool {
    let Ok(probe) = connect::connect_unwatched(config, "driftless watchdog").await else {
        return false;
    };
    let asked = async |probe: Client| probe.query_opt(AT_WORK, &[&backend_pid]).await;
    let answer = tokio::time::timeout(SILENCE, asked(probe)).await;
    matches!(answer, Ok(Ok(Some(_))))
}
