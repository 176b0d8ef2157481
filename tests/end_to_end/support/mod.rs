//! What the scenarios are made of: a `World` (a source, a target, a state directory), a `Daemon`
//! that runs in it, and a `Proxy` that breaks connections.

pub mod daemon;
pub mod pair;
pub mod proxy;
pub mod replica;
pub mod world;

use std::time::{Duration, Instant};

pub use daemon::{Daemon, Outcome};
pub use pair::{Pair, Source, Target};
pub use world::World;

/// How long anything may take that is waited for.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Makes of each scenario, a function of a `Pair`, one test for each pair that is named: for each
/// source, the targets that are always tried, and after the slash those of `make test-more`.
macro_rules! for_each_pair {
    ($($scenario:ident: $($source:ident($($target:ident)* / $($more:ident)*)),+;)*) => { $(
        mod $scenario { $(
            mod $source {
                use crate::support::Pair;

                $(
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn $target() {
                        let pair = Pair::of(stringify!($source), stringify!($target));
                        super::super::$scenario(pair).await;
                    }
                )*
                $(
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    #[ignore = "tried by `make test-more`"]
                    async fn $more() {
                        let pair = Pair::of(stringify!($source), stringify!($more));
                        super::super::$scenario(pair).await;
                    }
                )*
            }
        )+ }
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
