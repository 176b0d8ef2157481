//! What is too large for memory: records in a file, written to the end and read from the front.
//!
//! Surprise: the file has no name once it is open, so whatever ends the process removes it. What it
//! holds is worthless afterwards: the log brings it again.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that are written, or read, at a time.
const BLOCK: usize = 256 << 10;
/// Each record begins with its length.
const PREFIX: usize = 4;

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
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        fs::remove_file(&path)?;
        Ok(Spool { file, written: 0, block: Vec::new() })
    }

    /// Where the next record will begin.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.written + self.block.len() as u64
    }

    /// Makes room in memory for the next records.
    ///
    /// # Errors
    /// What the disk says. The same call may be tried again.
    pub fn make_room(&mut self) -> io::Result<()> {
        if self.block.len() >= BLOCK { self.flush() } else { Ok(()) }
    }

    /// Appends a record of less than 4 GiB, made of two pieces.
    pub fn push(&mut self, [first, second]: [&[u8]; 2]) {
        let length = (first.len() + second.len()) as u32;
        self.block.extend_from_slice(&length.to_le_bytes());
        self.block.extend_from_slice(first);
        self.block.extend_from_slice(second);
    }

    /// Forgets the records from this place on, where one begins.
    pub fn truncate(&mut self, end: u64) {
        // The file may stay as long as it is: it is written by place, and read to `end` only.
        match end.checked_sub(self.written) {
            Some(kept) => self.block.truncate(usize::try_from(kept).unwrap_or(usize::MAX)),
            None => {
                self.block.clear();
                self.written = end;
            }
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

    #[derive(Clone, Debug)]
    enum Step {
        Push(Vec<u8>, usize),
        /// Back to the beginning of one of the records.
        Truncate(prop::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let record = (any::<u8>(), 0..3 * BLOCK / 2, any::<bool>());
        let record = record.prop_map(|(byte, length, is_long)| {
            vec![byte; if is_long { length } else { length % 50 }]
        });
        let step = prop_oneof![
            9 => (record, 0..20usize).prop_map(|(record, cut)| Step::Push(record, cut)),
            1 => any::<prop::sample::Index>().prop_map(Step::Truncate),
        ];
        proptest::collection::vec(step, 0..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn records_come_back_in_their_order(steps in steps()) {
            let directory = tempfile::tempdir().unwrap();
            let mut spool = Spool::create(directory.path()).unwrap();
            let mut expected: Vec<(u64, Vec<u8>)> = Vec::new();
            for step in steps {
                match step {
                    Step::Push(record, cut) => {
                        let end = spool.end();
                        let (first, second) = record.split_at(cut.min(record.len()));
                        spool.make_room().unwrap();
                        spool.push([first, second]);
                        expected.push((end, record));
                    }
                    Step::Truncate(index) if !expected.is_empty() => {
                        let at = index.index(expected.len());
                        spool.truncate(expected[at].0);
                        expected.truncate(at);
                    }
                    Step::Truncate(_) => {}
                }
            }
            let records: Vec<Vec<u8>> = expected.into_iter().map(|(_, record)| record).collect();
            prop_assert_eq!(read(spool), records);
        }
    }

    #[test]
    fn nothing_of_it_is_left_in_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::create(directory.path()).unwrap();
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
        assert!(read(spool).is_empty());
    }
}
