//! Opens source and target as the settings say, for the engine and for the commands that look at
//! both ends from outside of it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use connectors::error::Result;
use connectors::{Source, Target, open_source, open_target};

use crate::config::Settings;

/// Opens a connection to the target.
pub type TargetFactory =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Box<dyn Target>>> + Send>> + Send + Sync>;

/// The source; it connects when it is used.
///
/// # Errors
/// `configuration`, for a URL that cannot be read.
pub fn source(settings: &Settings) -> Result<Arc<dyn Source>> {
    open_source(settings.source_url.expose(), settings.source_options())
}

/// The target, connected.
///
/// # Errors
/// `configuration`, for a URL that cannot be read; the connection.
pub async fn target(settings: &Settings) -> Result<Box<dyn Target>> {
    open_target(settings.target_url.expose(), settings.target_options()).await
}

/// Opens as many connections to the target as are asked for.
pub fn target_factory(settings: &Settings) -> TargetFactory {
    let (url, options) = (settings.target_url.clone(), settings.target_options());
    Arc::new(move || {
        let (url, options) = (url.clone(), options.clone());
        Box::pin(async move { open_target(url.expose(), options).await })
    })
}
