//! The slot: made at the first start, and at each later one proven to have lost nothing since our
//! position. Used by `source.rs`, as `publication.rs` is.
//!
//! Surprise: the publication is made before the slot. A slot that is older than its publication
//! is broken for good up to version 17, and loses changes without a word in 18.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;

use super::gap::RESYNC;
use super::lsn::{Bookmark, LogIdentity, Lsn};
use super::session::other_source;
use super::source_sql as sql;
use super::{connect, quote};
use crate::error::{Code, Error, Result};

/// How long creating a slot waits for other transactions before it says whom it waits for.
const SLOT_TRY: &str = "2s";
const EVICT_WAIT: Duration = Duration::from_secs(10);

/// A slot as the server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// `None` for a physical one.
    pub plugin: Option<String>,
    /// Whether it is of our database.
    pub ours: bool,
    /// The process that reads it.
    pub active_pid: Option<i32>,
    /// Up to where it may have forgotten.
    pub confirmed: Option<Lsn>,
    /// `lost` when the log it needs is gone.
    pub wal_status: Option<String>,
}

/// The slot of this name, if there is one.
///
/// # Errors
/// What the server says.
pub async fn slot(client: &Client, name: &str) -> Result<Option<Slot>> {
    let row = client.query_opt(sql::SLOT, &[&name]).await;
    let Some(row) = row.map_err(|error| connect::error("look at the slot", &error))? else {
        return Ok(None);
    };
    let confirmed: Option<String> = row.get(5);
    Ok(Some(Slot {
        plugin: row.get(0),
        ours: row.get::<_, Option<bool>>(2) == Some(true) && !row.get::<_, bool>(3),
        active_pid: row.get(4),
        confirmed: confirmed.map(|text| text.parse()).transpose()?,
        wal_status: row.get(6),
    }))
}

/// Proves that the slot still has everything after our position.
///
/// # Errors
/// `slot-missing`, `slot-lost`, `slot-gap`, `source-identity`, `position-ahead`.
pub fn prove(
    name: &str,
    ours: &Bookmark,
    (identity, flushed): (&LogIdentity, Lsn),
    slot: Option<&Slot>,
) -> Result<()> {
    if *identity != ours.identity {
        return Err(other_source(&ours.identity, identity));
    }
    let confirmed = slot.and_then(|slot| slot.confirmed);
    let confirmed_text = confirmed.map_or("nothing".to_owned(), |lsn| lsn.to_string());
    let stop = |code, what: &str| {
        let position = ours.lsn;
        Err(Error::stop(
            code,
            format!(
                "slot {name} {what} (our position is {position}, the slot has confirmed \
                 {confirmed_text}, the log ends at {flushed}); {RESYNC}"
            ),
        ))
    };
    if flushed < ours.lsn {
        return stop(Code::PositionAhead, "belongs to a log that ends before our position");
    }
    let Some(slot) = slot else {
        return stop(Code::SlotMissing, "is gone, and the changes since our position with it");
    };
    if slot.plugin.as_deref() != Some("pgoutput") || !slot.ours {
        return stop(Code::SlotMissing, "is of another plug-in, another database or temporary");
    }
    if slot.wal_status.as_deref() == Some("lost") {
        return stop(Code::SlotLost, "was invalidated by the server, which removed log it needs");
    }
    match confirmed {
        None => stop(Code::SlotLost, "was invalidated by the server"),
        Some(confirmed) if confirmed > ours.lsn => {
            stop(Code::SlotGap, "has moved past our position; the changes in between are lost")
        }
        Some(_) => Ok(()),
    }
}

/// Replaces the slot of this name by a new one, and returns where that begins.
///
/// # Errors
/// `slot-in-use` (transient); what the server says.
pub async fn create_slot(client: &Client, name: &str) -> Result<Lsn> {
    if let Some(slot) = slot(client, name).await? {
        drop_slot(client, name, &slot).await?;
    }
    let set = |value: &str| format!("SET lock_timeout = '{value}'");
    let failed = |error: &tokio_postgres::Error| connect::error("create the slot", error);
    client.batch_execute(&set(SLOT_TRY)).await.map_err(|error| failed(&error))?;
    let lsn = loop {
        match client.query_one(sql::CREATE_SLOT, &[&name]).await {
            Ok(row) => break row.get::<_, String>(0).parse()?,
            Err(error) if error.code().is_some_and(|code| code.code() == "55P03") => {
                let waits_for = writers(client).await?.join(", ");
                tracing::warn!(slot = name, waits_for, "slot waits for older transactions to end");
            }
            Err(error) => return Err(with_slot_remedy(failed(&error), &error)),
        }
    };
    client.batch_execute(&set("0")).await.map_err(|error| failed(&error))?;
    Ok(lsn)
}

fn with_slot_remedy(error: Error, cause: &tokio_postgres::Error) -> Error {
    let remedy = match cause.code().map(tokio_postgres::error::SqlState::code) {
        Some("53400") => "raise max_replication_slots, or drop a slot that nobody uses",
        Some("42501") => "run `ALTER ROLE … REPLICATION` for our role",
        Some("55000") => "run `ALTER SYSTEM SET wal_level = 'logical'` and restart the source",
        _ => return error,
    };
    // A server that is full of slots does not mend itself.
    Error::stop(
        if error.code == Code::Permission { Code::Permission } else { Code::SourceSettings },
        format!("{}; {remedy}", error.message),
    )
}

async fn drop_slot(client: &Client, name: &str, slot: &Slot) -> Result<()> {
    if let Some(pid) = slot.active_pid {
        return Err(Error::transient(
            Code::SlotInUse,
            format!("slot {name} is read by process {pid} of the source; stop that one first"),
        ));
    }
    if slot.plugin.as_deref() != Some("pgoutput") || !slot.ours {
        return Err(Error::stop(
            Code::SlotInUse,
            format!(
                "slot {name} is of another plug-in or database; choose another pipeline name, or \
                 run `SELECT pg_drop_replication_slot({})` there if nobody needs it",
                quote::literal(name)
            ),
        ));
    }
    let dropped = client.execute(sql::DROP_SLOT, &[&name]).await;
    dropped.map_err(|error| connect::error("drop the old slot", &error))?;
    Ok(())
}

/// Who has written and not ended, the oldest first, in words.
///
/// # Errors
/// What the server says.
pub async fn writers(client: &Client) -> Result<Vec<String>> {
    let rows = client.query(sql::WRITERS, &[]).await;
    let rows = rows.map_err(|error| connect::error("list the transactions", &error))?;
    let one = |row: &tokio_postgres::Row| {
        let seconds = row.get::<_, Option<i64>>(1).unwrap_or_default();
        format!("{} for {seconds} s", row.get::<_, String>(0))
    };
    Ok(rows.iter().map(one).collect())
}

/// Drops slot and publication, where they are.
///
/// # Errors
/// `slot-in-use`; what the server says.
pub async fn remove(client: &Client, name: &str) -> Result<()> {
    if let Some(slot) = slot(client, name).await? {
        drop_slot(client, name, &slot).await?;
    }
    let drop = format!("DROP PUBLICATION IF EXISTS {}", quote::identifier(name));
    let dropped = client.batch_execute(&drop).await;
    dropped.map_err(|error| connect::error("drop the publication", &error))
}

/// Ends whoever reads the slot, and waits until it is free.
///
/// # Errors
/// `permission`; `slot-in-use` (transient) if it does not let go.
pub async fn evict(client: &Client, name: &str) -> Result<()> {
    let start = Instant::now();
    while let Some(pid) = slot(client, name).await?.and_then(|slot| slot.active_pid) {
        let ended = client.execute("SELECT pg_terminate_backend($1)", &[&pid]).await;
        ended.map_err(|error| connect::error("end the session that reads the slot", &error))?;
        if start.elapsed() > EVICT_WAIT {
            return Err(Error::transient(
                Code::SlotInUse,
                format!("slot {name} is still read by process {pid} of the source"),
            ));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(system: &str, timeline: u32) -> LogIdentity {
        LogIdentity { system: system.into(), timeline }
    }

    fn good() -> Slot {
        Slot {
            plugin: Some("pgoutput".into()),
            ours: true,
            active_pid: None,
            confirmed: Some(Lsn(0x90)),
            wal_status: Some("reserved".into()),
        }
    }

    fn check(there: (LogIdentity, u64), slot: Option<Slot>, expected: Option<Code>) {
        let ours = Bookmark {
            identity: identity("7", 1),
            publication: 5,
            lsn: Lsn(0x100),
            log: Lsn(0xf0),
        };
        let proof = prove("driftless_x", &ours, (&there.0, Lsn(there.1)), slot.as_ref());
        let error = proof.err();
        assert_eq!(error.as_ref().map(|error| error.code), expected, "{slot:?}");
        if let Some(error) = error {
            assert!(!error.is_transient());
            assert!(error.message.ends_with(RESYNC), "{error}");
        }
    }

    #[test]
    fn a_gap_of_any_kind_stops_with_its_name() {
        let here = || identity("7", 1);
        check((here(), 0x100), Some(good()), None);
        check((here(), 0x200), Some(Slot { confirmed: Some(Lsn(0x100)), ..good() }), None);
        check((here(), 0x200), None, Some(Code::SlotMissing));
        let ahead = Slot { confirmed: Some(Lsn(0x101)), ..good() };
        check((here(), 0x200), Some(ahead), Some(Code::SlotGap));
        let lost = Slot { wal_status: Some("lost".into()), ..good() };
        check((here(), 0x200), Some(lost), Some(Code::SlotLost));
        let other = Slot { plugin: Some("test_decoding".into()), ..good() };
        check((here(), 0x200), Some(other), Some(Code::SlotMissing));
        check((here(), 0x200), Some(Slot { ours: false, ..good() }), Some(Code::SlotMissing));
        check((here(), 0xff), Some(good()), Some(Code::PositionAhead));
        check((identity("8", 1), 0x200), Some(good()), Some(Code::SourceIdentity));
        check((identity("7", 2), 0x200), Some(good()), Some(Code::SourceIdentity));
    }
}
