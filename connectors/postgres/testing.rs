//! A private PostgreSQL server for this crate's tests: one a test process, one database a test.
//! The server's programs are found on the disk; it listens on a socket in a directory of its own
//! and on no network.
//!
//! Surprises: PostgreSQL refuses to run as root, so root runs it as user `postgres`; and a fresh
//! cluster is a copy of a template beside the test's program, because `initdb` is slow.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_postgres::Client;

use super::config::Config;
use super::connect;

/// A server that stops when the last test that uses it is done.
pub struct Server {
    process: Child,
    directory: TempDir,
}

/// A database of a test's own.
pub struct Database {
    server: Arc<Server>,
    name: String,
}

impl Server {
    /// The server of this process, started by whoever asks first.
    pub fn shared() -> Arc<Server> {
        static SHARED: OnceLock<Mutex<Weak<Server>>> = OnceLock::new();
        let mut shared = SHARED.get_or_init(|| Mutex::new(Weak::new())).lock().unwrap();
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let server = Arc::new(Server::start());
        *shared = Arc::downgrade(&server);
        server
    }

    fn start() -> Server {
        // In memory where there is such a place: nothing of it has to last.
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let directory = TempDir::with_prefix_in("driftless-test-", base).unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        if let Some((user, group)) = unprivileged() {
            chown(directory.path(), Some(user), Some(group)).unwrap();
        }
        let data = directory.path().join("data");
        make_cluster(&data);
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let process = program("postgres")
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(directory.path())
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "wal_level=logical"])
            .args(["-c", "max_connections=100", "-c", "max_wal_senders=20"])
            .args(["-c", "max_replication_slots=40", "-c", "shared_buffers=32MB"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Server { process, directory };
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::os::unix::net::UnixStream::connect(server.socket()).is_err()
            || !server.is_ready()
        {
            let log = server.directory.path().join("log");
            assert!(
                Instant::now() < deadline,
                "the server does not start:\n{}",
                std::fs::read_to_string(log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn is_ready(&self) -> bool {
        let mut ask = program("pg_isready");
        ask.arg("-h").arg(self.directory.path()).stdout(Stdio::null());
        ask.status().unwrap().success()
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join(".s.PGSQL.5432")
    }

    /// The URL of a database of this server.
    pub fn url(&self, database: &str) -> String {
        let directory = self.directory.path().to_str().unwrap();
        format!("postgres://postgres@/{database}?host={directory}")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing of it is kept, so it need not be asked kindly.
        let stopped = program("pg_ctl")
            .args(["stop", "-m", "immediate", "-D"])
            .arg(self.directory.path().join("data"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !stopped.is_ok_and(|status| status.success()) {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}

impl Database {
    /// An empty database on the shared server.
    pub async fn create() -> Database {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let database = Database { server: Server::shared(), name };
        let maintenance = Config::parse(&database.server.url("postgres")).unwrap();
        let client = connect::connect(&maintenance, "test").await.unwrap();
        client.batch_execute(&format!("CREATE DATABASE {}", database.name)).await.unwrap();
        database
    }

    /// Where it is.
    pub fn url(&self) -> String {
        self.server.url(&self.name)
    }

    /// A session of the test's own.
    pub async fn client(&self) -> Client {
        connect::connect(&Config::parse(&self.url()).unwrap(), "test").await.unwrap()
    }
}

/// Makes a cluster, from the template if an earlier test has left one.
fn make_cluster(data: &Path) {
    let (major, _) = newest();
    let test = std::env::current_exe().unwrap();
    let template = test.with_file_name(format!("postgres-template-{major}"));
    if template.is_dir() {
        return copy(&template, data);
    }
    let made = program("initdb")
        .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
        .arg(data)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // Renamed when it is whole, so that no other test copies half of one. The first one wins.
    let unfinished = TempDir::with_prefix_in("postgres-", template.parent().unwrap()).unwrap();
    copy(data, &unfinished.path().join("data"));
    let _ = std::fs::rename(unfinished.path().join("data"), template);
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// A program of the newest PostgreSQL on this machine, as a user that it accepts.
fn program(name: &str) -> Command {
    let mut command = match unprivileged() {
        None => Command::new(newest().1.join(name)),
        Some((user, group)) => {
            let mut command = Command::new("setpriv");
            command
                .args([format!("--reuid={user}"), format!("--regid={group}")])
                .args(["--clear-groups", "--"])
                .arg(newest().1.join(name));
            command
        }
    };
    command.current_dir("/");
    command
}

/// Major version and programs of the newest PostgreSQL that is installed.
fn newest() -> (u32, PathBuf) {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .filter(|(_, programs)| programs.join("postgres").exists())
        .collect();
    found.sort();
    found.pop().expect("PostgreSQL is missing; run `apt-get install postgresql`")
}

/// User and group `postgres`, if we are root.
fn unprivileged() -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    if std::fs::metadata(Path::new("/proc/self")).unwrap().uid() != 0 {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let user = users.lines().find(|line| line.starts_with("postgres:"));
    let fields: Vec<&str> = user.expect("user postgres is missing").split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}
