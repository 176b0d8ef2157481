//! `driftless init`: writes the commented configuration file.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;

use connectors::error::{Code, Error, Result};

use super::args::{GlobalArguments, InitArguments};
use super::print;
use crate::config::{DEFAULT_FILE, EXAMPLE};

/// Writes the file, for its owner only, because a password may be put into it.
///
/// # Errors
/// If there is one already, or it cannot be written.
pub(super) fn init(arguments: &InitArguments, global: &GlobalArguments) -> Result<ExitCode> {
    let path = global.config.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
    let name = path.display();
    write(path, arguments.force)?;
    print(&format!(
        "wrote {name}; put the two URLs into it, then run `driftless check` and `driftless run`\n"
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, force: bool) -> Result<()> {
    let name = path.display();
    let failed = |error: std::io::Error| {
        let message = match error.kind() {
            ErrorKind::AlreadyExists => {
                format!("{name} is there already; run `driftless init --force` to replace it")
            }
            _ => format!("cannot write {name}: {error}"),
        };
        Error::stop(Code::Configuration, message)
    };
    if force {
        // A new file has the right owner and mode, whatever the old one had.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            Err(_) | Ok(()) => {}
        }
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(EXAMPLE.as_bytes()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_file_is_the_owners_and_is_not_replaced_unless_told_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("d.toml");
        write(&path, false).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), EXAMPLE);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        std::fs::write(&path, "mine").unwrap();
        let error = write(&path, false).unwrap_err();
        assert_eq!(error.code, Code::Configuration);
        assert!(error.message.contains("init --force"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");

        write(&path, true).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), EXAMPLE);
    }
}
