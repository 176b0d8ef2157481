//! What is too large for memory: records in a file, written to the end and read from the front; and
//! what becomes of a disk that is full or fails.
//!
//! Surprise: the file has no name once it is open, so whatever ends the process removes it. What it
//! holds is worthless afterwards: the log brings it again.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::{Code, Error};

/// Bytes that are written, or read, at a time.
const BLOCK: usize = 256 << 10;
/// Each record begins with its length.
const PREFIX: usize = 4;
/// How long a full disk is given before it is tried again, and how often people are told of it.
const ROOM_EVERY: Duration = Duration::from_secs(2);
const TELL_EVERY: Duration = Duration::from_secs(30);

/// A file of records that is being written.
#[derive(Debug)]
pub struct Spool {
    file: File,
    /// Bytes that are in the file; what is in `block` follows them.
    written: u64,
    block: Vec<u8>,
}

impl Spool {
    /// A new file in this directory, for our user alone.
    ///
    /// # Errors
    /// What the disk says.
    pub fn create(directory: &Path) -> io::Result<Spool> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("spool.{}.{number}", std::process::id()));
        // One of the same name is of a process that was killed before it could remove the name.
        let _ = fs::remove_file(&path);
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        fs::remove_file(&path)?;
        Ok(Spool { file, written: 0, block: Vec::new() })
    }

    /// Makes room in memory for the next records.
    ///
    /// # Errors
    /// What the disk says. The same call may be tried again.
    pub fn make_room(&mut self) -> io::Result<()> {
        if self.block.len() >= BLOCK { self.flush() } else { Ok(()) }
    }

    /// Appends a record of less than 4 GiB, made of these pieces.
    pub fn push(&mut self, pieces: [&[u8]; 3]) {
        let length = pieces.iter().map(|piece| piece.len()).sum::<usize>() as u32;
        self.block.extend_from_slice(&length.to_le_bytes());
        for piece in pieces {
            self.block.extend_from_slice(piece);
        }
    }

    /// All records, from the first.
    ///
    /// # Errors
    /// What the disk says.
    pub fn read(mut self) -> Result<Records, (Spool, io::Error)> {
        match self.flush() {
            Ok(()) => Ok(Records {
                file: self.file,
                length: self.written,
                next: 0,
                block: Vec::new(),
                at: 0,
            }),
            Err(error) => Err((self, error)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // After half a success the same bytes go to the same place again.
        self.file.write_all_at(&self.block, self.written)?;
        self.written += self.block.len() as u64;
        self.block.clear();
        Ok(())
    }
}

/// The records of a file, one after another.
#[derive(Debug)]
pub struct Records {
    file: File,
    length: u64,
    /// Where the file goes on behind `block`.
    next: u64,
    block: Vec<u8>,
    /// Where in `block` the next record begins.
    at: usize,
}

impl Records {
    /// Whether there is another record. After that, `record` is the one.
    ///
    /// # Errors
    /// What the disk says.
    pub fn load(&mut self) -> io::Result<bool> {
        if !self.has(PREFIX)? {
            return Ok(false);
        }
        match self.has(PREFIX + self.record_length())? {
            true => Ok(true),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The record that was loaded; the same one until `consume`.
    #[must_use]
    pub fn record(&self) -> &[u8] {
        let start = self.at + PREFIX;
        self.block.get(start..start + self.record_length()).unwrap_or_default()
    }

    /// Steps over it.
    pub fn consume(&mut self) {
        self.at += PREFIX + self.record_length();
    }

    fn record_length(&self) -> usize {
        let prefix = self.block.get(self.at..).and_then(<[u8]>::first_chunk::<PREFIX>);
        prefix.map_or(0, |prefix| u32::from_le_bytes(*prefix) as usize)
    }

    /// Reads on until so many bytes are there; `false` at the end of the file.
    fn has(&mut self, wanted: usize) -> io::Result<bool> {
        let there = self.block.len() - self.at;
        if there >= wanted {
            return Ok(true);
        }
        let left = usize::try_from(self.length - self.next).unwrap_or(usize::MAX);
        if there + left < wanted {
            return Ok(false);
        }
        self.block.drain(..self.at);
        self.at = 0;
        let more = BLOCK.max(wanted - there).min(left);
        self.block.resize(there + more, 0);
        let read = self.file.read_exact_at(&mut self.block[there..], self.next);
        if read.is_err() {
            self.block.truncate(there);
        }
        read?;
        self.next += more as u64;
        Ok(true)
    }
}

/// Waits until there is room on the disk. Nothing is lost meanwhile: the source keeps what we do not
/// read.
#[derive(Debug, Default)]
pub struct Room {
    told: Option<Instant>,
}

impl Room {
    /// Gives the disk some time, and tells people.
    pub async fn wait(&mut self, directory: &Path, error: &io::Error) {
        if self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            tracing::warn!(
                directory = %directory.display(),
                %error,
                "no room on the disk for a large transaction: waiting until there is, so free some"
            );
        }
        sleep(ROOM_EVERY).await;
    }

    /// There was some. The next time that there is none, people are told at once.
    pub fn found(&mut self) {
        self.told = None;
    }
}

/// Why something could not be put away, or be read again.
#[derive(Debug)]
pub enum Failure {
    /// It was not for the disk.
    Ours(Error),
    /// The disk.
    Disk(io::Error),
}

impl Failure {
    /// What a disk without room says: the same may be tried again.
    ///
    /// # Errors
    /// Everything else; `state-disk` (transient) if the disk fails.
    pub fn no_room(self, directory: &Path) -> Result<io::Error, Error> {
        match self {
            Failure::Ours(error) => Err(error),
            Failure::Disk(error) if is_full(&error) => Ok(error),
            Failure::Disk(error) => Err(failure(directory, &error)),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Ours(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Disk(error)
    }
}

/// Whether the disk has no room.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// The disk fails.
fn failure(directory: &Path, error: &io::Error) -> Error {
    let directory = directory.display();
    let message = format!("put away a large transaction in {directory}: {error}");
    Error::transient(Code::StateDisk, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(spool: Spool) -> Vec<Vec<u8>> {
        let mut records = spool.read().map_err(|(_, error)| error).unwrap();
        let mut all = Vec::new();
        while records.load().unwrap() {
            all.push(records.record().to_vec());
            records.consume();
        }
        all
    }

    fn records() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let record = (any::<u8>(), 0..3 * BLOCK / 2, any::<bool>());
        let record = record.prop_map(|(byte, length, is_long)| {
            vec![byte; if is_long { length } else { length % 50 }]
        });
        proptest::collection::vec(record, 0..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn records_come_back_in_their_order(records in records(), cut in 0..20usize) {
            let directory = tempfile::tempdir().unwrap();
            let mut spool = Spool::create(directory.path()).unwrap();
            for record in &records {
                let (first, rest) = record.split_at(cut.min(record.len()));
                let (second, third) = rest.split_at(cut.min(rest.len()));
                spool.make_room().unwrap();
                spool.push([first, second, third]);
            }
            prop_assert_eq!(read(spool), records);
        }
    }

    #[test]
    fn only_a_disk_without_room_is_waited_for() {
        use io::ErrorKind::*;
        for kind in [StorageFull, QuotaExceeded, FileTooLarge] {
            assert!(is_full(&kind.into()), "{kind}");
        }
        for kind in [PermissionDenied, NotFound, ReadOnlyFilesystem, UnexpectedEof, Other] {
            assert!(!is_full(&kind.into()), "{kind}");
        }
        let error = failure(Path::new("/state"), &PermissionDenied.into());
        assert!(error.is_transient() && error.code == Code::StateDisk, "{error}");
        assert!(error.message.contains("/state"), "{error}");
    }

    #[test]
    fn nothing_of_it_is_left_in_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::create(directory.path()).unwrap();
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
        assert!(read(spool).is_empty());
    }
}
