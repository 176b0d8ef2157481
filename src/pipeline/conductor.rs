//! Runs the tasks of a session until one of them ends or what the session waits for has happened;
//! then ends them all in order.

use connectors::change::TableStatus;
use connectors::error::{Code, Error, Result};
use connectors::version::Version;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Session;
use crate::backfill::Waiting;
use crate::tables::Tables;

/// Waits for the first task to end, or for the reason to end them all in order.
pub(super) struct Conductor {
    pub(super) tasks: JoinSet<(&'static str, Result<()>)>,
    pub(super) stop: watch::Sender<bool>,
    pub(super) finished: watch::Sender<bool>,
}

impl Conductor {
    /// Until the first task ends, or the goal is reached and all have ended in order.
    pub(super) async fn conduct(mut self, mut goal: Goal<'_>) -> Result<()> {
        tokio::select! {
            biased;
            ended = self.tasks.join_next() => {
                // The next session must not meet the remains of this one in the target.
                self.tasks.shutdown().await;
                return Err(unexpected_end(ended));
            }
            () = goal.reached() => {}
        }
        // The applier finishes the batch under way and writes the state directory; the reader
        // acknowledges; the others have nothing left to do.
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(("applier", Ok(()))) => {
                    self.finished.send_replace(true);
                }
                Ok(("reader", Ok(()))) => break,
                // Whoever lost its partner in the meantime ends too.
                Ok(("batcher" | "backfill", _)) => {}
                other => return Err(unexpected_end(Some(other))),
            }
        }
        self.tasks.shutdown().await;
        goal.verdict()
    }
}

fn unexpected_end(
    ended: Option<std::result::Result<(&'static str, Result<()>), tokio::task::JoinError>>,
) -> Error {
    match ended {
        Some(Ok((_, Err(error)))) => error,
        Some(Ok((task, Ok(())))) => {
            Error::transient(Code::Internal, format!("the {task} task has ended"))
        }
        Some(Err(error)) => Error::stop(Code::Internal, format!("a task has died: {error}")),
        None => Error::stop(Code::Internal, "no task is left"),
    }
}

/// When the session is to end in order.
pub(super) struct Goal<'a> {
    pub(super) session: &'a mut Session,
    pub(super) reached: watch::Receiver<Version>,
    pub(super) left: watch::Receiver<usize>,
    pub(super) asked: &'a Waiting,
    pub(super) tables: &'a Tables,
}

impl Goal<'_> {
    /// Passes requests on until it is time to end.
    async fn reached(&mut self) {
        loop {
            if self.is_met() {
                return;
            }
            tokio::select! {
                biased;
                _ = self.session.stop.wait_for(|stop| *stop) => return,
                Some(ask) = self.session.asks.recv() => self.asked.push(ask),
                Ok(()) = self.reached.changed() => {}
                Ok(()) = self.left.changed() => {}
                else => std::future::pending().await,
            }
        }
    }

    fn is_met(&mut self) -> bool {
        let asked = self.session.asks.is_empty() && self.asked.is_empty();
        let copied = asked && *self.left.borrow() == 0;
        let current = self.session.mark.is_none_or(|mark| *self.reached.borrow() >= mark);
        match (self.session.until_current, self.session.until_copied) {
            (false, false) => false,
            (true, _) => copied && current,
            (false, true) => copied,
        }
    }

    /// A run that was to make everything current has failed if a table stands still.
    fn verdict(&self) -> Result<()> {
        let ends_by_itself = self.session.until_current || self.session.until_copied;
        match self.tables.first_stopped() {
            Some((name, TableStatus::Stopped { code, message, .. })) if ends_by_itself => {
                Err(Error::stop(code, message).context(format!("table {name} is stopped")))
            }
            _ => Ok(()),
        }
    }
}
