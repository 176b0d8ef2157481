//! Who made a store, and for whom: the sentinel file `instance`, repeated inside the database.
//! A database without its sentinel, or with another one's, is damaged and never "new".

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::format::{self, Kind};
use crate::{Error, ErrorKind, Result};

/// Who made a store, and for whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Instance {
    /// The text of a random UUID.
    pub(crate) mark: String,
    /// The pipeline that it belongs to.
    pub(crate) pipeline: String,
    /// When it was made, in seconds since 1970.
    pub(crate) created: u64,
    /// The damaged store in whose place it was made.
    pub(crate) replaces: Option<Replaced>,
}

/// A damaged store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Replaced {
    /// The name of the directory that it was moved to, beside the store; empty if nothing was
    /// left to move.
    pub(crate) moved_to: String,
    /// What was wrong with it.
    pub(crate) why: String,
}

impl Instance {
    /// A new mark.
    pub(crate) fn new(pipeline: &str, replaces: Option<Replaced>) -> Result<Instance> {
        let mark = random_uuid()?;
        Ok(Instance { mark, pipeline: pipeline.to_owned(), created: unix_seconds(), replaces })
    }

    /// Reads the sentinel file; its absence is damage.
    pub(crate) fn read(path: &Path, pipeline: &str) -> Result<Instance> {
        let record = std::fs::read(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::corrupt("the file `instance` is missing"),
            _ => Error::disk(format_args!("read {}", path.display()), &error),
        })?;
        let instance: Instance = format::decode(Kind::Instance, &record)?;
        if instance.pipeline == pipeline {
            return Ok(instance);
        }
        Err(Error::new(
            ErrorKind::OtherPipeline,
            format!(
                "{} belongs to pipeline `{}`, not to `{pipeline}`; set [pipeline] name or [state] \
                 dir to what they were",
                path.display(),
                instance.pipeline
            ),
        ))
    }
}

/// The time, for names that people read; nothing is ordered by it.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn random_uuid() -> Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        let kind = ErrorKind::Disk(std::io::ErrorKind::Other);
        Error::new(kind, format!("ask the system for random bytes: {error}"))
    })?;
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    Ok(parts.join("-"))
}
