//! Where the database file is: reads `sqlite:path.db`, `sqlite:/x/y.db` and `sqlite:///x/y.db`.
//! Surprise: nothing is decoded and no parameter is known, so a `?` in the URL is refused.

use std::path::{Path, PathBuf};

use crate::error::{Code, Error, Result};

/// The absolute path that the URL names. The directory is there; the file need not be.
pub(super) fn path(url: &str) -> Result<PathBuf> {
    let written = written_path(url)?;
    let path = std::path::absolute(written)
        .map_err(|error| wrong(format!("cannot make {written:?} an absolute path: {error}")))?;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(wrong(format!("{} is not a file; write sqlite:path.db", path.display())));
    };
    // A file that is reached by two paths must have one lock, so links are followed.
    let directory = directory.canonicalize().map_err(|error| no_directory(directory, &error))?;
    let path = directory.join(name);
    let path = path.canonicalize().unwrap_or(path);
    if path.is_dir() {
        return Err(wrong(format!("{} is a directory; name a file in it", path.display())));
    }
    Ok(path)
}

fn written_path(url: &str) -> Result<&str> {
    let Some(rest) = url.strip_prefix("sqlite:") else {
        return Err(wrong("the URL of an SQLite file begins with sqlite:".into()));
    };
    let path = match rest.strip_prefix("//") {
        Some(absolute) if absolute.starts_with('/') => absolute,
        Some(_) => {
            return Err(wrong(format!(
                "{url:?} names a host, and an SQLite file has none; write sqlite:path.db or \
                 sqlite:///absolute/path.db"
            )));
        }
        None => rest,
    };
    if path.contains('?') {
        return Err(wrong(format!("{url:?} has parameters, and none is known; remove them")));
    }
    if path.is_empty() || path.contains('\0') || path == ":memory:" {
        return Err(wrong(format!("{url:?} names no file; write for instance sqlite:replica.db")));
    }
    Ok(path)
}

fn no_directory(directory: &Path, error: &std::io::Error) -> Error {
    let directory = directory.display();
    wrong(format!(
        "cannot use the directory {directory} of the target file: {error}; run `mkdir -p \
         '{directory}'`"
    ))
}

fn wrong(message: String) -> Error {
    Error::stop(Code::Configuration, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_written(url: &str, expected: Option<&str>) {
        assert_eq!(written_path(url).ok(), expected, "{url}");
    }

    #[test]
    fn a_url_names_a_relative_or_an_absolute_file() {
        check_written("sqlite:replica.db", Some("replica.db"));
        check_written("sqlite:a b/ü.db", Some("a b/ü.db"));
        check_written("sqlite:/x/y.db", Some("/x/y.db"));
        check_written("sqlite:///x/y.db", Some("/x/y.db"));
    }

    #[test]
    fn a_url_that_names_no_file_is_refused() {
        for url in ["sqlite:", "sqlite://", "sqlite://host/x.db", "sqlite::memory:", "x.db"] {
            check_written(url, None);
        }
        check_written("sqlite:x.db?mode=ro", None);
    }

    #[test]
    fn a_missing_directory_is_named_with_the_command_that_makes_it() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}/no/x.db", directory.path().display());
        let error = path(&url).unwrap_err();
        assert_eq!(error.code, Code::Configuration);
        assert!(error.message.contains("mkdir -p"), "{error}");
    }
}
