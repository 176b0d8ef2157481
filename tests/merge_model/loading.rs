//! A chunk in the hands of a loader of the product, stopped between its look for tombstones and its
//! commit, so that something else can happen there.

use std::sync::Arc;

use connectors::change::{Key, TableBatch};
use connectors::error::Result;
use connectors::memory::{Fault, Faults, MemoryTarget, Script, TargetServer};
use connectors::version::Version;
use connectors::{Target, TargetOptions};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

/// What is under way.
pub struct Loading {
    pub hold: Version,
    /// Where the next chunk begins.
    pub next: Option<Key>,
    /// From before the commit on.
    pub rest: BoxFuture<'static, Result<()>>,
}

/// A loader comes to its commit a little later than to its beginning.
struct LateCommit;

impl Script for LateCommit {
    fn decide(&self, point: &'static str) -> Fault {
        if point == "target.load.before_commit" { Fault::Yield } else { Fault::None }
    }
}

/// Begins to load under this fence; the rest is still to be awaited.
pub fn begin(
    target: &Arc<TargetServer>,
    options: TargetOptions,
    fence: u64,
    rows: TableBatch,
) -> BoxFuture<'static, Result<()>> {
    let mut loader = MemoryTarget::new(target, options, Faults::new(Arc::new(LateCommit)));
    let mut load = async move {
        loader.join(fence).await?;
        loader.load(&rows).await
    }
    .boxed();
    assert!((&mut load).now_or_never().is_none(), "it commits later");
    load
}

pub fn options(soft_deletes: bool) -> TargetOptions {
    TargetOptions { pipeline: "main".into(), soft_deletes, plain_schema: "public".into() }
}
