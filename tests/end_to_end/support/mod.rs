//! What the scenarios are made of: a `World` (a source, a target, a state directory), a `Daemon`
//! that runs in it, and a `Proxy` that breaks connections.

pub mod daemon;
pub mod proxy;
pub mod world;

use std::time::{Duration, Instant};

pub use daemon::{Daemon, Outcome};
pub use world::{Target, World};

/// How long anything may take that is waited for.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Makes of each scenario, a function of a `Target`, one test for each kind of target.
macro_rules! for_each_target {
    ($($scenario:ident)*) => { $(
        mod $scenario {
            use crate::support::Target;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                super::$scenario(Target::Sqlite).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                super::$scenario(Target::Postgres).await;
            }
        }
    )* };
}

/// Waits until the condition holds, and fails the test if it takes longer than our patience.
pub async fn wait_until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
