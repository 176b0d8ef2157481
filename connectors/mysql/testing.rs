//! A private MariaDB or MySQL server for this crate's tests: one a test process, one database a
//! test. The server's programs are found on the disk, or in the tree that `MYSQL_TREE` names
//! (`scripts/get-mysql` makes one); it listens on a socket and a port of its own.
//!
//! Surprises: the servers refuse to run as root, so root runs them as user `mysql`; and a fresh
//! data directory is a copy of a template beside the test's program, because making one is slow.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts};
use tempfile::TempDir;

use super::config::Config;
use super::connect::{self, Role, Session};

const PASSWORD: &str = "correct horse";

/// A server that stops when the last test that uses it is done.
pub struct Server {
    process: Mutex<Child>,
    directory: TempDir,
    port: u16,
    settings: Vec<String>,
}

/// A database of a test's own.
pub struct Database {
    /// Its server.
    pub server: Arc<Server>,
    /// Its name.
    pub name: String,
}

impl Server {
    /// The server of this process, started by whoever asks first.
    pub async fn shared() -> Arc<Server> {
        static SHARED: OnceLock<Mutex<Weak<Server>>> = OnceLock::new();
        let mut shared = SHARED.get_or_init(|| Mutex::new(Weak::new())).lock().unwrap();
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let server = Arc::new(Server::start(&[]));
        *shared = Arc::downgrade(&server);
        server
    }

    /// A server of a test's own, with these settings besides the usual ones: `--name=value`.
    pub fn start(settings: &[&str]) -> Server {
        // In memory where there is such a place: nothing of it has to last.
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let directory = TempDir::with_prefix_in("driftless-test-", base).unwrap();
        own(directory.path(), 0o755);
        make_data(&directory.path().join("data"));
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        let process = Mutex::new(spawn(directory.path(), port, &settings));
        let server = Server { process, directory, port, settings };
        server.wait_until_ready();
        server
    }

    /// Kills it and starts it again on the same data.
    pub fn restart(&self) {
        let mut process = self.process.lock().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        *process = spawn(self.directory.path(), self.port, &self.settings);
        drop(process);
        self.wait_until_ready();
    }

    fn wait_until_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let socket = self.directory.path().join("socket");
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            let log = self.directory.path().join("log");
            assert!(
                Instant::now() < deadline,
                "the server does not start:\n{}",
                std::fs::read_to_string(log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The URL of a database of this server, by its socket.
    pub fn url(&self, database: &str) -> String {
        let socket = self.directory.path().join("socket");
        let password = PASSWORD.replace(' ', "%20");
        format!("mysql://root:{password}@/{database}?socket={}", socket.display())
    }

    /// Its port on the loopback network.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its files are; `data` is among them.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing of it is kept, so it need not be asked kindly.
        let process = self.process.get_mut().unwrap();
        let _ = process.kill();
        let _ = process.wait();
    }
}

impl Database {
    /// An empty database on the shared server.
    pub async fn create() -> Database {
        Database::on(Server::shared().await).await
    }

    /// An empty database on a server of its own, with these settings.
    pub async fn alone(settings: &[&str]) -> Database {
        Database::on(Arc::new(Server::start(settings))).await
    }

    /// An empty database on this server.
    pub async fn on(server: Arc<Server>) -> Database {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut maintenance = plain(&server, "mysql").await;
        maintenance.query_drop(format!("CREATE DATABASE {name}")).await.unwrap();
        Database { server, name }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        self.server.url(&self.name)
    }

    /// A connection of the test's own, with the server's own settings.
    pub async fn client(&self) -> Conn {
        plain(&self.server, &self.name).await
    }

    /// A session as the connector has them.
    pub async fn session(&self, role: Role) -> Session {
        connect::connect(&Arc::new(Config::parse(&self.url()).unwrap()), role).await.unwrap()
    }
}

async fn plain(server: &Server, database: &str) -> Conn {
    let options = mysql_async::OptsBuilder::default()
        .user(Some("root"))
        .pass(Some(PASSWORD))
        .db_name(Some(database))
        .socket(Some(server.directory().join("socket").display().to_string()));
    Conn::new(Opts::from(options)).await.unwrap()
}

/// Runs several statements, one a line or with semicolons at the ends of lines.
pub async fn run(client: &mut Conn, sql: &str) {
    for statement in sql.split(";\n").map(str::trim).filter(|statement| !statement.is_empty()) {
        client.query_drop(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

fn spawn(directory: &Path, port: u16, settings: &[String]) -> Child {
    let log = std::fs::File::create(directory.join("log")).unwrap();
    let mut command = server_program();
    command
        .args(tree_arguments())
        .arg(format!("--datadir={}", directory.join("data").display()))
        .arg(format!("--socket={}", directory.join("socket").display()))
        .arg(format!("--pid-file={}", directory.join("data/pid").display()))
        .arg(format!("--tmpdir={}", directory.display()))
        .arg(format!("--port={port}"))
        .args(["--bind-address=127.0.0.1", "--skip-name-resolve", "--server-id=1"])
        .args(["--log-bin=binlog", "--binlog-format=ROW", "--sync-binlog=0"])
        .args(["--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=32M"])
        .args(["--character-set-server=utf8mb4", "--log-bin-trust-function-creators=ON"])
        .args(match is_mysql() {
            true => ["--innodb-redo-log-capacity=16M", "--mysqlx=OFF", "--gtid-mode=ON"].as_slice(),
            false => ["--innodb-log-file-size=16M", "--performance-schema=OFF"].as_slice(),
        });
    if is_mysql() {
        command.args(["--enforce-gtid-consistency=ON", "--performance-schema=OFF"]);
    }
    command.args(settings).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

/// Makes a data directory, from the template if an earlier test has left one.
fn make_data(data: &Path) {
    let test = std::env::current_exe().unwrap();
    let kind = if is_mysql() { "mysql" } else { "mariadb" };
    let template = test.with_file_name(format!("{kind}-template"));
    if template.is_dir() {
        return copy(&template, data);
    }
    std::fs::create_dir(data).unwrap();
    own(data, 0o700);
    let superuser = format!(
        "FLUSH PRIVILEGES;\nCREATE USER IF NOT EXISTS root@localhost;\n\
         ALTER USER root@localhost IDENTIFIED BY '{PASSWORD}';\n\
         CREATE USER IF NOT EXISTS root@'127.0.0.1';\n\
         ALTER USER root@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\n\
         GRANT ALL PRIVILEGES ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;\n"
    );
    let statements = data.with_extension("sql");
    std::fs::write(&statements, superuser).unwrap();
    own(&statements, 0o644);
    let file = format!("--init-file={}", statements.display());
    match is_mysql() {
        true => {
            let mut server = server_program();
            server.args(["--initialize-insecure", "--innodb-redo-log-capacity=16M", &file]);
            must_succeed(server.args(tree_arguments()).arg(argument("--datadir", data)));
            // The identity of a server, which each copy makes anew.
            std::fs::remove_file(data.join("auto.cnf")).unwrap();
        }
        false => {
            let mut install = unprivileged(&PathBuf::from("mariadb-install-db"));
            install.args(["--no-defaults", "--auth-root-authentication-method=normal"]);
            install.args(["--skip-test-db", "--innodb-log-file-size=16M"]);
            must_succeed(install.arg(argument("--datadir", data)));
            let mut server = server_program();
            server.args(["--bootstrap", "--innodb-log-file-size=16M"]).args(tree_arguments());
            server.arg(argument("--datadir", data));
            server.stdin(std::fs::File::open(&statements).unwrap());
            must_succeed(&mut server);
        }
    }
    // Renamed when it is whole, so that no other test copies half of one. The first one wins.
    let unfinished = TempDir::with_prefix_in(kind, template.parent().unwrap()).unwrap();
    copy(data, &unfinished.path().join("data"));
    let _ = std::fs::rename(unfinished.path().join("data"), template);
}

fn argument(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

fn must_succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

fn tree() -> Option<PathBuf> {
    std::env::var_os("MYSQL_TREE").map(PathBuf::from)
}

/// Whether the server is a MySQL.
pub fn is_mysql() -> bool {
    tree().is_some_and(|tree| tree.join("root/usr/sbin/mysqld").exists())
}

fn server_program() -> Command {
    let mut command = match tree() {
        Some(tree) => {
            let mut command = unprivileged(&tree.join("run"));
            command.arg(if is_mysql() { "mysqld" } else { "mariadbd" });
            command
        }
        None => unprivileged(&PathBuf::from("/usr/sbin/mariadbd")),
    };
    command.arg("--no-defaults");
    command
}

/// Where the programs of a tree find the files that belong to them.
fn tree_arguments() -> Vec<String> {
    let Some(tree) = tree() else { return Vec::new() };
    let usr = tree.join("root/usr").display().to_string();
    vec![
        format!("--basedir={usr}"),
        format!("--plugin-dir={usr}/lib/mysql/plugin"),
        format!("--lc-messages-dir={usr}/share/mysql"),
        format!("--character-sets-dir={usr}/share/mysql/charsets"),
        // The directory that it would insist on is not there.
        "--secure-file-priv=".to_owned(),
    ]
}

/// A program, run as a user that the servers accept.
fn unprivileged(program: &Path) -> Command {
    let mut command = match user() {
        None => Command::new(program),
        Some((user, group)) => {
            let mut command = Command::new("setpriv");
            command
                .args([format!("--reuid={user}"), format!("--regid={group}")])
                .args(["--clear-groups", "--"])
                .arg(program);
            command
        }
    };
    command.current_dir("/");
    command
}

fn own(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    if let Some((user, group)) = user() {
        chown(path, Some(user), Some(group)).unwrap();
    }
}

/// User and group `mysql`, if we are root.
fn user() -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    if std::fs::metadata(Path::new("/proc/self")).unwrap().uid() != 0 {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let named = |name: &str| users.lines().find(|line| line.starts_with(name));
    let user = named("mysql:").or_else(|| named("nobody:")).expect("user mysql is missing");
    let fields: Vec<&str> = user.split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}
