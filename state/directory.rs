//! The directory of one pipeline: who may see it, the lock on it, and moving a store in and out
//! of its place in one step.
//!
//! ```text
//! DIR/PIPELINE/lock              held while the store is open; notes the mark of the store
//! DIR/PIPELINE/store/            the store: all or nothing of it is there
//! DIR/PIPELINE/store.new/        a store that is being made; nothing was acknowledged from it
//! DIR/PIPELINE/.corrupt-SECONDS/ a store that could not be trusted; never deleted by us
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::instance::unix_seconds;
use crate::{Error, ErrorKind, Result};

const NAME_LENGTH_MAX: usize = 64;
const POLL: Duration = Duration::from_millis(20);

/// Where a pipeline keeps its files under the state directory `dir`.
#[must_use]
pub fn pipeline_directory(dir: &Path, pipeline: &str) -> PathBuf {
    dir.join(pipeline)
}

/// The directory of one pipeline, safe to use.
pub(crate) struct Directory {
    path: PathBuf,
}

/// The right to use a directory, given back when it is dropped.
pub(crate) struct Lock {
    file: File,
}

impl Directory {
    /// Makes the directory if needed; refuses one that others could see into.
    pub(crate) fn prepare(dir: &Path, pipeline: &str) -> Result<Directory> {
        check_name(pipeline)?;
        let path = pipeline_directory(dir, pipeline);
        create(dir)?;
        create(&path)?;
        Ok(Directory { path })
    }

    /// The directory if it is there; makes nothing.
    pub(crate) fn find(dir: &Path, pipeline: &str) -> Result<Option<Directory>> {
        check_name(pipeline)?;
        let path = pipeline_directory(dir, pipeline);
        for path in [dir, &path] {
            if !exists(path)? {
                return Ok(None);
            }
            check_safe(path)?;
        }
        Ok(Some(Directory { path }))
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The place of the store.
    pub(crate) fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    /// Takes the lock before anything else is touched, waiting for another process to end.
    pub(crate) fn lock(&self, wait: Duration) -> Result<Lock> {
        let path = self.path.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Error::disk(format_args!("open {}", path.display()), &error))?;
        self.wait_for(file, wait)
    }

    /// Takes the lock if its file is there; makes nothing.
    pub(crate) fn lock_existing(&self, wait: Duration) -> Result<Option<Lock>> {
        let path = self.path.join("lock");
        match File::open(&path) {
            Ok(file) => self.wait_for(file, wait).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::disk(format_args!("open {}", path.display()), &error)),
        }
    }

    fn wait_for(&self, file: File, wait: Duration) -> Result<Lock> {
        let deadline = Instant::now() + wait;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { file }),
                // Polled, because waiting in the kernel for a lock cannot be given a limit.
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(POLL);
                }
                Err(TryLockError::WouldBlock) => return Err(in_use(&self.path)),
                Err(TryLockError::Error(error)) => {
                    let doing = format_args!("lock {}", self.path.display());
                    return Err(Error::disk(doing, &error));
                }
            }
        }
    }

    /// Makes an empty directory in which to make a store; what a crash left there is removed.
    pub(crate) fn begin_store(&self) -> Result<PathBuf> {
        let new = self.path.join("store.new");
        if exists(&new)? {
            fs::remove_dir_all(&new)
                .map_err(|error| Error::disk(format_args!("remove {}", new.display()), &error))?;
        }
        create(&new)?;
        Ok(new)
    }

    /// Puts the store that was made in its place.
    pub(crate) fn finish_store(&self) -> Result<()> {
        let new = self.path.join("store.new");
        flush_directory(&new)?;
        self.rename(&new, &self.store())
    }

    /// Moves the store out of its place; returns the name that it has now.
    pub(crate) fn quarantine(&self) -> Result<String> {
        let base = format!(".corrupt-{}", unix_seconds());
        let mut name = base.clone();
        let mut copies = 1;
        while exists(&self.path.join(&name))? {
            copies += 1;
            name = format!("{base}-{copies}");
        }
        self.rename(&self.store(), &self.path.join(&name))?;
        Ok(name)
    }

    /// The name of the last store that was moved out of its place.
    pub(crate) fn last_quarantined(&self) -> Result<Option<String>> {
        let doing = |error| Error::disk(format_args!("list {}", self.path.display()), &error);
        let mut last = None;
        for entry in fs::read_dir(&self.path).map_err(doing)? {
            let name = entry.map_err(doing)?.file_name().to_string_lossy().into_owned();
            if name.starts_with(".corrupt-") {
                last = last.max(Some(name));
            }
        }
        Ok(last)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).map_err(|error| {
            Error::disk(format_args!("rename {} to {}", from.display(), to.display()), &error)
        })?;
        flush_directory(&self.path)
    }
}

impl Lock {
    /// Whether a store was in its place when the lock was last held.
    pub(crate) fn notes_a_store(&self) -> Result<bool> {
        let length = self.file.metadata().map(|metadata| metadata.len());
        length.map(|length| length > 0).map_err(|error| Error::disk("read the lock file", &error))
    }

    /// Notes that a store is in its place, so that its absence will be noticed.
    pub(crate) fn note(&self, mark: &str) -> Result<()> {
        let written = self.file.write_all_at(format!("{mark}\n").as_bytes(), 0);
        written
            .and_then(|()| self.file.sync_all())
            .map_err(|error| Error::disk("write the lock file", &error))
    }
}

/// Whether something has this name, a broken link included.
pub(crate) fn exists(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::disk(format_args!("look at {}", path.display()), &error)),
    }
}

/// Makes the names in a directory durable.
pub(crate) fn flush_directory(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| Error::disk(format_args!("flush {}", path.display()), &error))
}

/// Another process has the store.
pub(crate) fn in_use(path: &Path) -> Error {
    Error::new(
        ErrorKind::InUse,
        format!(
            "another driftless is already running with {}; ask it with `driftless status`, or \
             stop it first",
            path.display()
        ),
    )
}

/// A pipeline's name is the name of its directory, so it must not lead anywhere else.
fn check_name(pipeline: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !pipeline.is_empty() && pipeline.len() <= NAME_LENGTH_MAX && pipeline.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsafe,
        format!(
            "the pipeline name {pipeline:?} cannot name a directory; set [pipeline] name to at \
             most {NAME_LENGTH_MAX} letters, digits, `_` and `-`"
        ),
    ))
}

fn create(path: &Path) -> Result<()> {
    if !exists(path)? {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| Error::disk(format_args!("create {}", path.display()), &error))?;
        flush_directory(match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        })?;
    }
    check_safe(path)
}

fn check_safe(path: &Path) -> Result<()> {
    let metadata = fs::symlink_metadata(path)
        .map_err(|error| Error::disk(format_args!("look at {}", path.display()), &error))?;
    match danger(path, &metadata, rustix::process::geteuid().as_raw()) {
        Some(danger) => Err(Error::new(ErrorKind::Unsafe, danger)),
        None => Ok(()),
    }
}

/// Why the user `us` should not keep state in a directory.
fn danger(path: &Path, metadata: &fs::Metadata, us: u32) -> Option<String> {
    let shown = path.display();
    if metadata.is_symlink() {
        Some(format!("{shown} is a symbolic link; set [state] dir to the directory it points to"))
    } else if !metadata.is_dir() {
        Some(format!("{shown} is not a directory; set [state] dir to another path"))
    } else if metadata.uid() != us {
        let owner = metadata.uid();
        Some(format!(
            "{shown} belongs to user {owner}, and this is user {us}; run driftless as user \
             {owner}, or `chown -R {us} {shown}`"
        ))
    } else if metadata.mode() & 0o077 != 0 {
        Some(format!("{shown} is open to other users; run `chmod 700 {shown}`"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_another_user_is_dangerous_and_our_own_is_not() {
        let outer = tempfile::TempDir::new().unwrap();
        let path = outer.path().join("state");
        create(&path).unwrap();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let owner = metadata.uid();
        assert_eq!(danger(&path, &metadata, owner), None);
        let message = danger(&path, &metadata, owner + 1).unwrap();
        let command = format!("chown -R {} {}", owner + 1, path.display());
        assert!(message.contains(&command), "{message}");
    }
}
