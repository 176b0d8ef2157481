//! The programs of an installed PostgreSQL, and how a private server of them is started.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tokio_postgres::{Client, NoTls};

use super::leash::{RunAs, command_as, give, unprivileged_user};
use super::{PASSWORD, USER};
use crate::demo::{Doing, Error, Result};

/// The server's programs, and as whom they run.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    pub directory: PathBuf,
    pub run_as: RunAs,
}

impl Programs {
    pub fn find() -> Result<Programs> {
        let chosen = std::env::var_os("POSTGRES_BIN").map(PathBuf::from);
        let complete = |directory: &PathBuf| {
            ["initdb", "postgres"].iter().all(|program| directory.join(program).is_file())
        };
        let found = match &chosen {
            Some(directory) => Some(directory.clone()).filter(complete),
            None => installed().into_iter().find(complete),
        };
        let Some(directory) = found else {
            let place = match chosen {
                Some(directory) => format!("in {} (from POSTGRES_BIN)", directory.display()),
                None => "in PATH or /usr/lib/postgresql/*/bin".into(),
            };
            return Err(Error(format!(
                "no PostgreSQL server programs {place}; install them with `apt-get install \
                 postgresql` (Debian, Ubuntu), `dnf install postgresql-server` (Fedora) or `brew \
                 install postgresql` (macOS), or let POSTGRES_BIN name their directory"
            )));
        };
        Ok(Programs { directory, run_as: unprivileged_user("postgres")? })
    }

    pub fn version(&self) -> Result<String> {
        let output = self.command("postgres").arg("--version").output().doing("run postgres")?;
        let words = String::from_utf8_lossy(&output.stdout);
        Ok(words.trim().trim_start_matches("postgres (PostgreSQL) ").to_owned())
    }

    /// Makes the data directory of a new cluster.
    pub fn initialise(&self, data: &Path) -> Result<()> {
        let password = data.with_extension("password");
        fs::write(&password, PASSWORD).doing("write the password of the private server")?;
        give(self.run_as, &password)?;
        let mut command = self.command("initdb");
        command.arg("-D").arg(data).args(["-U", USER, "-E", "UTF8", "--locale=C", "--no-sync"]);
        command.args(["--auth=scram-sha-256", "--wal-segsize=2"]);
        command.arg(format!("--pwfile={}", password.display()));
        let output = command.stdin(Stdio::null()).output().doing("run initdb")?;
        fs::remove_file(password).doing("remove the password file")?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error(format!("initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim())))
    }

    /// The server itself, not started yet.
    pub fn server(&self, directory: &Path, port: u16, settings: &[(String, String)]) -> Command {
        let mut command = self.command("postgres");
        command.arg("-D").arg(directory.join("data")).arg("-p").arg(port.to_string());
        for (name, value) in settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.arg("-c").arg(format!("unix_socket_directories={}", directory.display()));
        command
    }

    fn command(&self, program: &str) -> Command {
        let mut command = command_as(self.run_as, &self.directory.join(program));
        command.env_remove("PGDATA").env_remove("PGPORT");
        command
    }
}

/// The settings of every private PostgreSQL.
pub(super) fn settings(careless: bool) -> Vec<(&'static str, &'static str)> {
    let fsync = if careless { "off" } else { "on" };
    vec![
        ("listen_addresses", "127.0.0.1"),
        ("fsync", fsync),
        ("full_page_writes", fsync),
        ("wal_level", "logical"),
        ("max_wal_senders", "20"),
        ("max_replication_slots", "20"),
        ("max_wal_size", "256MB"),
        ("min_wal_size", "32MB"),
        ("shared_buffers", "64MB"),
        ("log_min_messages", "warning"),
    ]
}

/// Connects without TLS; the session shows values in the canonical form.
///
/// # Errors
/// The connection.
pub async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    let canonical = "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; \
                     SET IntervalStyle = 'postgres'; SET bytea_output = 'hex'; \
                     SET extra_float_digits = 1; SET client_min_messages = 'warning'";
    client.batch_execute(canonical).await?;
    Ok(client)
}

/// Directories that may hold a server, the best first.
fn installed() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    versions.sort();
    found.extend(versions.into_iter().rev().map(|(_, directory)| directory));
    found
}
