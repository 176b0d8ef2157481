//! Sessions without the driver: opened as the configuration says; and one that may read the log is
//! asked which log it is. Used by `source.rs`, `feed.rs` and `chunk.rs`.
//!
//! Surprise: the log's is a replication connection, but it understands SQL too. So the log is read
//! in bulk and streamed over one connection, and who the server is need be proven only once.

use std::sync::Arc;

use super::answers::{only, parsed};
use super::config::{Config, Host, TlsMode};
use super::connect;
use super::copy_session::CopySession;
use super::gap::RESYNC;
use super::lsn::{LogIdentity, Lsn};
use super::paced::Reading;
use super::wire::{Login, Wire};
use crate::error::{Code, Error, Result};

/// What `pg_stat_activity` shows of a pipeline.
pub fn application(slot: &str) -> String {
    format!("{slot} (driftless)")
}

/// Opens a replication connection.
///
/// # Errors
/// As `connect::connect`.
pub async fn login(config: &Config, slot: &str) -> Result<Wire> {
    open(config, &application(slot), true).await
}

/// Opens a connection that reads rows.
///
/// # Errors
/// As `connect::connect`.
pub async fn login_for_rows(config: &Arc<Config>, application: &str) -> Result<CopySession> {
    CopySession::new(open(config, application, false).await?, config).await
}

async fn open(config: &Config, application: &str, replication: bool) -> Result<Wire> {
    let options = connect::startup_options();
    let login = Login {
        user: &config.user,
        password: config.password.as_deref(),
        database: &config.database,
        application,
        options: &options,
        encrypted: config.tls != TlsMode::Disable || matches!(config.host, Host::Unix(_)),
        replication,
    };
    let login = async { Wire::login(connect::dial(config, Reading::Rested).await?, &login).await };
    connect::within(config, login)
        .await
        .map_err(|error| error.context(connect::doing_login(config)))
}

/// Opens a replication connection to the server that has this log. Also says where the log ends.
///
/// # Errors
/// As `login`; as `identify_as`.
pub async fn login_to(config: &Config, slot: &str, log: &LogIdentity) -> Result<(Wire, Lsn)> {
    let mut wire = login(config, slot).await?;
    let end = identify_as(&mut wire, log).await?;
    Ok((wire, end))
}

/// Which log this is, and its end.
///
/// # Errors
/// The connection, or an answer that is not understood.
pub async fn identify(wire: &mut Wire) -> Result<(LogIdentity, Lsn)> {
    let rows = wire.ask("IDENTIFY_SYSTEM").await?;
    let rows = rows.map_err(|error| connect::server_error("identify the source", &error))?;
    let row = only(&rows)?;
    // The system identifier is stored as the server writes it, once it is a number.
    let (system, timeline) = (parsed::<u64>(row, 0)?.to_string(), parsed(row, 1)?);
    Ok((LogIdentity { system, timeline }, parsed(row, 2)?))
}

/// The end of the log, if it is this one.
///
/// # Errors
/// `source-identity`; as `identify`.
pub async fn identify_as(wire: &mut Wire, ours: &LogIdentity) -> Result<Lsn> {
    match identify(wire).await? {
        (here, end) if here == *ours => Ok(end),
        (here, _) => Err(other_source(ours, &here)),
    }
}

/// The position belongs to another server.
#[must_use]
pub fn other_source(ours: &LogIdentity, theirs: &LogIdentity) -> Error {
    Error::stop(
        Code::SourceIdentity,
        format!(
            "the target holds a copy of system {} timeline {}, but the source is system {} \
             timeline {}; correct the source's URL, or, {RESYNC}",
            ours.system, ours.timeline, theirs.system, theirs.timeline
        ),
    )
}
