//! Opens source and target as the settings say, for the commands that look at both ends from
//! outside the engine.

use std::sync::Arc;

use connectors::error::Result;
use connectors::{Source, Target};

use crate::config::Settings;

/// The source; it connects when it is used.
pub(super) fn source(settings: &Settings) -> Result<Arc<dyn Source>> {
    connectors::open_source(settings.source_url.expose(), settings.source_options())
}

/// The target, connected.
pub(super) async fn target(settings: &Settings) -> Result<Box<dyn Target>> {
    connectors::open_target(settings.target_url.expose(), settings.target_options()).await
}

/// Whether some process of this machine has the pipeline's state open, and so replicates it.
pub(super) fn is_running(settings: &Settings) -> bool {
    let found = state::read(&settings.state_dir, &settings.name);
    found.is_err_and(|error| error.kind == state::ErrorKind::InUse)
}
