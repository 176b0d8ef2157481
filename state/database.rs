//! The database of one store: sled, with every record framed, counted and made durable.
//!
//! Surprises of sled 0.34: `flush` does not make anything durable by itself, hence the extra
//! `fdatasync`; it may panic on damage, hence the guard around every call; values that grow its
//! nodes beyond 128 KiB go to files that it never flushes, hence the pieces; and without its
//! `snap.*` file it opens empty, without an error.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::contents::Contents;
use crate::directory::flush_directory;
use crate::format::{self, Kind};
use crate::instance::Instance;
use crate::witness::Witness;
use crate::{Error, Result};

const CACHE_BYTES: u64 = 1 << 20;
/// A node holds up to 16 values before it is split; so many of this size stay far below 128 KiB.
const PIECE_BYTES: usize = 2048;
/// A database that was just closed keeps its lock for a moment.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
const CLOSE_POLL: Duration = Duration::from_millis(10);

const INSTANCE_KEY: &str = "instance";
const WRITES_KEY: &str = "writes";

/// An open database.
pub(crate) struct Database {
    /// `None` only while it is being dropped.
    sled: Option<sled::Db>,
    log: File,
    witness: Witness,
    writes: u64,
}

impl Database {
    /// Makes the database of a new store in an empty directory.
    pub(crate) fn create(store: &Path, instance: &Instance) -> Result<()> {
        let path = store.join("db");
        let sled = open_sled(&path)?;
        let witness = Witness::create(&store.join("witness"))?;
        let mut database = Database { sled: Some(sled), log: open_log(&path)?, witness, writes: 0 };
        database.put(INSTANCE_KEY, &format::encode(Kind::Instance, instance)?)?;
        database.witness.flush()?;
        drop(database);
        // Opened once more, because only that makes sled write the `snap.*` file.
        drop_guarded(open_sled(&path)?);
        flush_directory(&path)
    }

    /// Opens the database of a store and validates every record in it.
    pub(crate) fn open(store: &Path, instance: &Instance) -> Result<(Database, Contents)> {
        let path = store.join("db");
        prepare(&path)?;
        let (witness, acknowledged) = Witness::open(&store.join("witness"))?;
        let mut database =
            Database { sled: Some(open_sled(&path)?), log: open_log(&path)?, witness, writes: 0 };
        flush_directory(&path)?;
        let mut records = database.records()?;
        let mut take = |key: &str| {
            records
                .remove(key)
                .ok_or_else(|| Error::corrupt(format!("the record {key} is missing")))
        };
        let owner: Instance = format::decode(Kind::Instance, &take(INSTANCE_KEY)?)?;
        database.writes = format::decode(Kind::Writes, &take(WRITES_KEY)?)?;
        if owner != *instance {
            return Err(Error::corrupt("the database belongs to another store"));
        }
        if database.writes < acknowledged {
            return Err(Error::corrupt(format!(
                "the database has taken {} writes, but {acknowledged} were acknowledged",
                database.writes
            )));
        }
        Ok((database, Contents::decode(records)?))
    }

    /// The number of the next write.
    pub(crate) fn next_write(&self) -> u64 {
        self.writes + 1
    }

    /// Writes one record in place of the one with the same key; durable on return.
    pub(crate) fn put(&mut self, key: &str, record: &[u8]) -> Result<()> {
        let mut batch = sled::Batch::default();
        self.remove_pieces(key, &mut batch)?;
        for (number, piece) in record.chunks(PIECE_BYTES).enumerate() {
            batch.insert(piece_key(key, number).as_str(), piece);
        }
        self.commit(batch)
    }

    /// Removes records in one step; durable on return.
    pub(crate) fn remove(&mut self, keys: &[String]) -> Result<()> {
        let mut batch = sled::Batch::default();
        for key in keys {
            self.remove_pieces(key, &mut batch)?;
        }
        self.commit(batch)
    }

    fn remove_pieces(&self, key: &str, batch: &mut sled::Batch) -> Result<()> {
        let sled = self.sled()?;
        let prefix = format!("{key}#");
        for piece in guarded("read", || sled.scan_prefix(prefix).keys().collect::<Vec<_>>())? {
            batch.remove(piece.map_err(|error| failed("read", error))?);
        }
        Ok(())
    }

    fn commit(&mut self, mut batch: sled::Batch) -> Result<()> {
        let writes = self.next_write();
        let count = format::encode(Kind::Writes, &writes)?;
        batch.insert(piece_key(WRITES_KEY, 0).as_str(), count);
        let sled = self.sled()?;
        guarded("write", || sled.apply_batch(batch))?.map_err(|error| failed("write", error))?;
        guarded("flush", || sled.flush())?.map_err(|error| failed("flush", error))?;
        self.log.sync_data().map_err(|error| Error::disk("flush the state database", &error))?;
        self.witness.acknowledge(writes)?;
        self.writes = writes;
        Ok(())
    }

    /// All records, put together from their pieces.
    fn records(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let sled = self.sled()?;
        let mut records: BTreeMap<String, (usize, Vec<u8>)> = BTreeMap::new();
        for entry in guarded("read", || sled.iter().collect::<Vec<_>>())? {
            let (name, piece) = entry.map_err(|error| failed("read", error))?;
            let unknown = || Error::corrupt("the database holds an unknown key");
            let name = std::str::from_utf8(&name).map_err(|_| unknown())?;
            let (key, _) = name.split_once('#').ok_or_else(unknown)?;
            let (pieces, record) = records.entry(key.to_owned()).or_default();
            if piece_key(key, *pieces) != name {
                return Err(Error::corrupt(format!("the record {key} lacks a piece")));
            }
            *pieces += 1;
            record.extend_from_slice(&piece);
        }
        Ok(records.into_iter().map(|(key, (_, record))| (key, record)).collect())
    }

    fn sled(&self) -> Result<&sled::Db> {
        self.sled.as_ref().ok_or_else(|| Error::corrupt("the state database is closed"))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Some(sled) = self.sled.take() {
            drop_guarded(sled);
        }
    }
}

/// Fixed width, so that the pieces are listed in their order.
fn piece_key(key: &str, number: usize) -> String {
    format!("{key}#{number:08x}")
}

/// Looks for what sled would take for an empty database, and removes what would stop it.
fn prepare(path: &Path) -> Result<()> {
    for name in ["conf", "db"] {
        let length = match fs::metadata(path.join(name)) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(Error::disk("look at the state database", &error)),
        };
        if length == 0 {
            return Err(Error::corrupt(format!("the file `db/{name}` is missing or empty")));
        }
    }
    let doing = |error| Error::disk(format_args!("list {}", path.display()), &error);
    let mut snapshots = 0;
    for entry in fs::read_dir(path).map_err(doing)? {
        let entry = entry.map_err(doing)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("snap.") {
            continue;
        }
        // A crash while sled wrote it. The older one is still there, but sled would read this one.
        if name.ends_with(".generating") {
            fs::remove_file(entry.path()).map_err(doing)?;
        } else {
            snapshots += 1;
        }
    }
    if snapshots == 0 {
        return Err(Error::corrupt("the files `db/snap.*` are missing"));
    }
    Ok(())
}

fn open_log(path: &Path) -> Result<File> {
    File::open(path.join("db")).map_err(|error| Error::disk("open the state database", &error))
}

fn open_sled(path: &Path) -> Result<sled::Db> {
    // Sled follows the working directory only while it opens; afterwards the path must stand.
    let path = std::path::absolute(path)
        .map_err(|error| Error::disk(format_args!("find {}", path.display()), &error))?;
    let config = sled::Config::new().path(&path).flush_every_ms(None).cache_capacity(CACHE_BYTES);
    let deadline = Instant::now() + CLOSE_WAIT;
    loop {
        match guarded("open", || config.open())? {
            Ok(sled) => return Ok(sled),
            Err(error) if !is_locked(&error) => return Err(failed("open", error)),
            Err(_) if Instant::now() < deadline => std::thread::sleep(CLOSE_POLL),
            Err(_) => return Err(crate::directory::in_use(&path)),
        }
    }
}

fn is_locked(error: &sled::Error) -> bool {
    let sled::Error::Io(error) = error else { return false };
    error.kind() == io::ErrorKind::WouldBlock
        || error.to_string().contains("could not acquire lock")
}

/// Runs a call of sled, which panics where other libraries return an error.
fn guarded<T>(doing: &str, call: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call))
        .map_err(|_| Error::corrupt(format!("the state database panicked: {doing}")))
}

fn drop_guarded(sled: sled::Db) {
    // Whatever it had to say was said by the call before: nothing is acknowledged by dropping.
    let _ = guarded("close", move || drop(sled));
}

fn failed(doing: &str, error: sled::Error) -> Error {
    let doing = format!("{doing} the state database");
    match error {
        // Only the kind: sled hands its first error on as the `Debug` text of it.
        sled::Error::Io(error) if !tells_of_damage(error.kind()) => {
            Error::disk(doing, &error.kind().into())
        }
        error => Error::corrupt(format!("{doing}: {error}")),
    }
}

/// The errors that come from what a file holds, and not from the disk under it.
fn tells_of_damage(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, NotFound, Other, UnexpectedEof};
    matches!(kind, InvalidData | InvalidInput | NotFound | Other | UnexpectedEof)
}
