//! Opens source and target as the settings say, for the engine and for the commands that look at
//! both ends from outside of it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use connectors::error::Result;
use connectors::{Source, SourceOptions, Target, TargetOptions, open_source, open_target};

use crate::config::Settings;

/// Opens a connection to the target.
pub type TargetFactory =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Box<dyn Target>>> + Send>> + Send + Sync>;

/// The source; it connects when it is used.
///
/// # Errors
/// `configuration`, for a URL that cannot be read.
pub fn source(settings: &Settings) -> Result<Arc<dyn Source>> {
    let options =
        SourceOptions { pipeline: settings.name.clone(), part_bytes: settings.batch_bytes };
    open_source(settings.source_url.expose(), options)
}

/// The target, connected.
///
/// # Errors
/// `configuration`, for a URL that cannot be read; the connection.
pub async fn target(settings: &Settings) -> Result<Box<dyn Target>> {
    open_target(settings.target_url.expose(), target_options(settings)).await
}

/// Opens as many connections to the target as are asked for.
pub fn target_factory(settings: &Settings) -> TargetFactory {
    let (url, options) = (settings.target_url.clone(), target_options(settings));
    Arc::new(move || {
        let (url, options) = (url.clone(), options.clone());
        Box::pin(async move { open_target(url.expose(), options).await })
    })
}

fn target_options(settings: &Settings) -> TargetOptions {
    TargetOptions { pipeline: settings.name.clone(), soft_deletes: settings.soft_deletes }
}
