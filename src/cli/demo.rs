//! `driftless demo`: the words of the command line for `crate::demo`, which does it.

use std::process::ExitCode;
use std::time::Duration;

use connectors::error::{Code, Error, Result};

use super::args::{DemoArguments, DemoSource};
use crate::demo::narration::{self, DemoOptions};
use crate::demo::server::Engine;

/// Shows it.
///
/// # Errors
/// That something needed is missing, or that the replicator failed.
pub(super) async fn demo(arguments: &DemoArguments) -> Result<ExitCode> {
    let options = DemoOptions {
        source: match arguments.source {
            DemoSource::Postgres => Engine::Postgres,
            DemoSource::Mariadb => Engine::Mariadb,
        },
        out: arguments.out.clone(),
        force: arguments.force,
        open_for: Duration::from_secs(arguments.seconds),
        kills: arguments.kills,
        seed: arguments.seed,
    };
    // What is missing is its own server, or the replicator's end, which has said its code.
    let failed = |error| Error::stop(Code::Unreachable, format!("demo: {error}"));
    let equal = narration::run(&options).await.map_err(failed)?;
    // Differences, as of `verify`.
    Ok(if equal { ExitCode::SUCCESS } else { ExitCode::from(3) })
}
