//! Asks the source now and then how far it is ahead; that measures lag, and proves idleness.

use std::sync::Arc;
use std::time::Duration;

use connectors::Source;
use tokio::task::JoinHandle;

use crate::status::Status;

const EVERY: Duration = Duration::from_secs(5);

/// Starts the task; it ends when it is aborted. A source that does not answer is no error here:
/// health decays by itself.
pub fn spawn(source: Arc<dyn Source>, status: Arc<Status>) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(EVERY).await;
            let Some(position) = status.snapshot().position else { continue };
            let Ok(lag) = source.lag_bytes(&position).await else { continue };
            if lag == 0 {
                status.proven_idle();
            }
            status.update(|snapshot| snapshot.lag_bytes = Some(lag));
        }
    })
}
