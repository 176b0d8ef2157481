//! What a target's record of a pipeline says of its tables, and what it means when the record is
//! another than expected. How it is read and written is for each database's `claim.rs`.

use std::collections::BTreeMap;

use crate::TableRecord;
use crate::change::Batch;
use crate::error::{Code, Error, Result};
use crate::schema::TableName;

/// What is recorded of tables.
pub type Records = BTreeMap<TableName, TableRecord>;

/// The records as text. A list, because a table's name is no JSON key.
///
/// # Errors
/// `internal`, for a record that cannot be written.
pub fn write(records: &Records) -> Result<String> {
    let records: Vec<&TableRecord> = records.values().collect();
    serde_json::to_string(&records)
        .map_err(|error| Error::stop(Code::Internal, format!("record tables: {error}")))
}

/// What will be recorded after this batch, if it changes anything.
///
/// # Errors
/// `internal`, for a table that was never prepared.
pub fn after(records: &Records, batch: &Batch) -> Result<Option<Records>> {
    if batch.status.is_empty() {
        return Ok(None);
    }
    let mut records = records.clone();
    for (name, status) in &batch.status {
        let record = records.get_mut(name).ok_or_else(|| {
            let message = format!("the state of {name} changed before it was prepared");
            Error::stop(Code::Internal, message)
        })?;
        record.status = status.clone();
    }
    Ok(Some(records))
}

/// Another instance holds the lock and is therefore alive.
#[must_use]
pub fn already_running(pipeline: &str) -> Error {
    let message = format!(
        "another instance is running pipeline {pipeline}; stop it, or type `driftless run \
         --take-over` to take the pipeline away from it"
    );
    Error::stop(Code::AlreadyRunning, message)
}

/// Another writer has raised the fence.
#[must_use]
pub fn fenced(pipeline: &str) -> Error {
    let message = format!(
        "another instance has taken pipeline {pipeline} over; stop it before this one is started \
         again"
    );
    Error::stop(Code::Fenced, message)
}

/// A session was asked to write a chunk beside the writer without having joined it.
#[must_use]
pub fn not_joined() -> Error {
    Error::stop(Code::Internal, "a chunk was to be written by a session that is no loader")
}

/// The record that our claim made is gone from the table that holds it.
#[must_use]
pub fn lost(pipeline: &str, table: &str) -> Error {
    let message = format!(
        "the record of pipeline {pipeline} is gone from {table}; restore the target, or run \
         `driftless teardown` and start again with an empty one"
    );
    Error::stop(Code::TargetLost, message)
}
