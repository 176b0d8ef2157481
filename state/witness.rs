//! A small file beside the database that counts the acknowledged writes.
//!
//! Surprise: it exists because sled takes damage near the end of its log for a write that a crash
//! interrupted, drops it, and opens with older content. A database that has taken fewer writes
//! than were acknowledged is thereby found out.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::format::{self, Kind};
use crate::{Error, Result};

/// Each slot has a disk sector of its own: a write that is torn spares the other.
const SLOT_BYTES: usize = 512;
const SLOTS: usize = 2;

/// The counter of acknowledged writes.
pub(crate) struct Witness {
    file: File,
}

impl Witness {
    /// Makes the file at its full size, so that a full disk does not hinder later writes.
    pub(crate) fn create(path: &Path) -> Result<Witness> {
        let doing = format_args!("create {}", path.display());
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|error| Error::disk(doing, &error))?;
        file.write_all_at(&[0; SLOT_BYTES * SLOTS], 0)
            .map_err(|error| Error::disk(doing, &error))?;
        Ok(Witness { file })
    }

    /// Opens the file and reads the number of acknowledged writes.
    pub(crate) fn open(path: &Path) -> Result<(Witness, u64)> {
        let doing = format_args!("open {}", path.display());
        let file =
            OpenOptions::new().read(true).write(true).open(path).map_err(|error| {
                match error.kind() {
                    std::io::ErrorKind::NotFound => Error::corrupt("the file `witness` is missing"),
                    _ => Error::disk(doing, &error),
                }
            })?;
        let mut bytes = [0; SLOT_BYTES * SLOTS];
        file.read_exact_at(&mut bytes, 0)
            .map_err(|_| Error::corrupt("the file `witness` is too short"))?;
        let length = slot(0)?.len();
        let counts: Vec<u64> = bytes
            .chunks(SLOT_BYTES)
            .filter_map(|bytes| format::decode(Kind::Witness, &bytes[..length]).ok())
            .map(u64::from_be_bytes)
            .collect();
        let newest = counts.into_iter().max();
        let acknowledged =
            newest.ok_or_else(|| Error::corrupt("the file `witness` has no valid count"))?;
        Ok((Witness { file }, acknowledged))
    }

    /// Notes that so many writes are durable in the database. Not flushed: a count that is older
    /// than the database is no alarm, so a power loss costs nothing but some vigilance.
    pub(crate) fn acknowledge(&self, writes: u64) -> Result<()> {
        let place = (writes % SLOTS as u64) * SLOT_BYTES as u64;
        self.file
            .write_all_at(&slot(writes)?, place)
            .map_err(|error| Error::disk("write the file `witness`", &error))
    }

    /// Makes the file itself durable, once, when it is created.
    pub(crate) fn flush(&self) -> Result<()> {
        self.file.sync_all().map_err(|error| Error::disk("flush the file `witness`", &error))
    }
}

/// An array, because its length must not depend on the count.
fn slot(writes: u64) -> Result<Vec<u8>> {
    format::encode(Kind::Witness, &writes.to_be_bytes())
}
