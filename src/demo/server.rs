//! A private, throw-away PostgreSQL made of the machine's installed binaries: its own directory,
//! its own port, gone when dropped. Used by the demonstration and by the end-to-end tests.
//!
//! Surprise: a small shell, the leash, holds a pipe from this process. When the pipe closes, even
//! because we were killed, it stops the server and removes the directory.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

use super::{Doing, Error, Result};

/// The superuser of every private server.
pub const USER: &str = "postgres";
/// Its password. Distinctive, so that a test can look for it in everything we print.
pub const PASSWORD: &str = "canary-7d3f1b";

const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(15);

/// How a private server differs from the usual one.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// Whether the server may lose data when the machine crashes (`fsync = off`). Much faster.
    pub careless: bool,
    /// Settings in addition to ours; a later one wins.
    pub settings: Vec<(String, String)>,
    /// A directory that keeps a freshly initialised data directory to copy from, for those who
    /// start many servers. Without it, each server runs initdb.
    pub template_cache: Option<PathBuf>,
}

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Ends sessions and waits for replication to drain: what an operator does.
    Fast,
    /// Every process of it gets SIGKILL: what a power switch does.
    Kill,
}

/// A running (or stopped) private PostgreSQL.
#[derive(Debug)]
pub struct Server {
    programs: Programs,
    directory: PathBuf,
    port: u16,
    settings: Vec<(String, String)>,
    postmaster: Option<Child>,
    leash: Child,
}

impl Server {
    /// Makes and starts a server.
    ///
    /// # Errors
    /// That no PostgreSQL is installed, with the command that installs it; or the end of the
    /// server's log when it does not start.
    pub async fn start(options: ServerOptions) -> Result<Server> {
        let programs = Programs::find()?;
        let directory = new_directory(&programs)?;
        let leash = leash(&directory)?;
        let mut server = Server {
            settings: settings(&options),
            programs,
            directory,
            port: free_port()?,
            postmaster: None,
            leash,
        };
        server.initialise(options.template_cache.as_deref())?;
        if server.start_again().await.is_err() {
            // Somebody may have taken the port between our look and the server's start.
            server.port = free_port()?;
            server.start_again().await?;
        }
        Ok(server)
    }

    /// Starts the server after `stop`, on the same port, and waits until it answers.
    ///
    /// # Errors
    /// The end of the server's log.
    pub async fn start_again(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_file());
        let log = log.doing("open the server's log")?;
        let mut command = self.programs.command("postgres");
        command.arg("-D").arg(self.data_directory()).arg("-p").arg(self.port.to_string());
        for (name, value) in &self.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.arg("-c").arg(format!("unix_socket_directories={}", self.directory.display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        self.postmaster = Some(command.spawn().doing("start postgres")?);
        let deadline = Instant::now() + START_TIMEOUT;
        while self.connect_to("postgres").await.is_err() {
            if self.exited()? || Instant::now() > deadline {
                let end = self.log_end();
                return Err(Error(format!("postgres does not start; its log ends with\n{end}")));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Stops the server and waits until all its processes are gone.
    ///
    /// # Errors
    /// If it does not stop within a minute.
    pub async fn stop(&mut self, how: Shutdown) -> Result<()> {
        let Some(postmaster) = self.postmaster.as_ref().map(Child::id) else { return Ok(()) };
        let mut children = Vec::new();
        match how {
            Shutdown::Fast => signal("INT", &[postmaster])?,
            Shutdown::Kill => {
                // Freeze the postmaster first, so that it starts no process behind our back.
                signal("STOP", &[postmaster])?;
                children = children_of(postmaster);
                signal("KILL", &[&children[..], &[postmaster]].concat())?;
            }
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        // The last child to die keeps the shared memory, and no new server starts beside it.
        while !self.exited()? || children.iter().any(|&child| is_alive(child)) {
            if Instant::now() > deadline {
                return Err(Error("postgres does not stop within a minute".into()));
            }
            tokio::time::sleep(POLL).await;
        }
        self.postmaster = None;
        if how == Shutdown::Kill {
            // All processes are gone; a stale file could name somebody else's process one day.
            let _ = fs::remove_file(self.data_directory().join("postmaster.pid"));
        }
        Ok(())
    }

    /// Stops and starts.
    ///
    /// # Errors
    /// As `stop` and `start_again`.
    pub async fn restart(&mut self, how: Shutdown) -> Result<()> {
        self.stop(how).await?;
        self.start_again().await
    }

    /// Gives a setting another value from the next start on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.push((name.into(), value.into()));
    }

    /// Keeps a copy of the stopped server's data under this name.
    ///
    /// # Errors
    /// If the server runs, or the disk fails.
    pub fn back_up(&self, name: &str) -> Result<()> {
        self.must_be_stopped()?;
        copy_tree(&self.data_directory(), &self.directory.join(name))
    }

    /// Puts a copy made by `back_up` in the place of the stopped server's data.
    ///
    /// # Errors
    /// If the server runs, there is no such copy, or the disk fails.
    pub fn restore(&self, name: &str) -> Result<()> {
        self.must_be_stopped()?;
        fs::remove_dir_all(self.data_directory()).doing("remove the data directory")?;
        copy_tree(&self.directory.join(name), &self.data_directory())
    }

    /// Where the server listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What `postgres --version` says, without the program's name.
    ///
    /// # Errors
    /// If the program does not run.
    pub fn version(&self) -> Result<String> {
        self.programs.version()
    }

    /// The directory of the server's programs, for instance to run `pgbench`.
    #[must_use]
    pub fn program_directory(&self) -> &Path {
        &self.programs.directory
    }

    /// The server's data directory.
    #[must_use]
    pub fn data_directory(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The URL of a database of this server, for the superuser.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// Connects to a database of this server. The session shows values in the canonical form.
    ///
    /// # Errors
    /// The connection.
    pub async fn connect_to(&self, database: &str) -> Result<Client> {
        connect(&self.url(database)).await
    }

    /// Ends the server's processes as this signal says; `stop` must not be waiting.
    ///
    /// # Errors
    /// If the server does not run.
    pub fn signal(&self, name: &str) -> Result<()> {
        let Some(postmaster) = &self.postmaster else {
            return Err(Error("postgres does not run".into()));
        };
        signal(name, &[postmaster.id()])
    }

    fn initialise(&self, template_cache: Option<&Path>) -> Result<()> {
        let data = self.data_directory();
        let Some(cache) = template_cache else { return self.programs.initdb(&data) };
        fs::create_dir_all(cache).doing("create the cache of server templates")?;
        let mut hasher = DefaultHasher::new();
        (self.programs.version()?, &self.programs.directory, self.programs.run_as)
            .hash(&mut hasher);
        let template = cache.join(format!("postgres-template-{:016x}", hasher.finish()));
        let lock = File::create(template.with_extension("lock")).doing("create a lock file")?;
        lock.lock().doing("lock the server template")?;
        if !template.exists() {
            self.programs.initdb(&data)?;
            let unfinished = template.with_extension("unfinished");
            let _ = fs::remove_dir_all(&unfinished);
            copy_tree(&data, &unfinished)?;
            return fs::rename(unfinished, template).doing("keep the server template");
        }
        drop(lock);
        copy_tree(&template, &data)
    }

    fn exited(&mut self) -> Result<bool> {
        match &mut self.postmaster {
            None => Ok(true),
            Some(child) => Ok(child.try_wait().doing("wait for postgres")?.is_some()),
        }
    }

    fn must_be_stopped(&self) -> Result<()> {
        match self.postmaster {
            None => Ok(()),
            Some(_) => Err(Error("stop the server before copying its data".into())),
        }
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("log")
    }

    fn log_end(&self) -> String {
        let log = fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(postmaster) = &mut self.postmaster {
            let _ = signal("QUIT", &[postmaster.id()]);
            let _ = postmaster.wait();
        }
        // Closing the pipe tells the leash to remove the directory.
        drop(self.leash.stdin.take());
        let _ = self.leash.wait();
    }
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

/// Sends a signal, by its name without `SIG`, to these processes. One that is gone is fine.
///
/// # Errors
/// If the program `kill` cannot be run.
pub fn signal(name: &str, processes: &[u32]) -> Result<()> {
    let mut command = Command::new("kill");
    command.arg(format!("-{name}")).args(processes.iter().map(u32::to_string));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().doing("run the program kill")?;
    Ok(())
}

/// The server's programs, and as whom they run.
#[derive(Clone, Debug)]
struct Programs {
    directory: PathBuf,
    /// User and group, when we are root, which PostgreSQL refuses to run as.
    run_as: Option<(u32, u32)>,
}

impl Programs {
    fn find() -> Result<Programs> {
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
        Ok(Programs { directory, run_as: unprivileged_user()? })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.directory.join(program));
        if let Some((user, group)) = self.run_as {
            command.uid(user).gid(group);
        }
        command.current_dir("/").env("LC_ALL", "C").env_remove("PGDATA").env_remove("PGPORT");
        command
    }

    fn version(&self) -> Result<String> {
        let output = self.command("postgres").arg("--version").output().doing("run postgres")?;
        let words = String::from_utf8_lossy(&output.stdout);
        Ok(words.trim().trim_start_matches("postgres (PostgreSQL) ").to_owned())
    }

    fn initdb(&self, data: &Path) -> Result<()> {
        let password = data.with_extension("password");
        fs::write(&password, PASSWORD).doing("write the password of the private server")?;
        self.give(&password)?;
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

    fn give(&self, path: &Path) -> Result<()> {
        match self.run_as {
            Some((user, group)) => std::os::unix::fs::chown(path, Some(user), Some(group))
                .doing("give a file to the server's user"),
            None => Ok(()),
        }
    }
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

/// Whom the server runs as when we are root: `postgres` where it exists, else `nobody`.
fn unprivileged_user() -> Result<Option<(u32, u32)>> {
    let output = Command::new("id").arg("-u").output().doing("run the program id")?;
    if output.stdout.trim_ascii() != b"0" {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd").doing("read /etc/passwd")?;
    let user = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2).map(str::parse);
        Some((fields.next()?.ok()?, fields.next()?.ok()?))
    };
    match user("postgres").or_else(|| user("nobody")) {
        Some(found) => Ok(Some(found)),
        None => Err(Error(
            "PostgreSQL refuses to run as root, and there is no user postgres or nobody; run this \
             as an ordinary user"
                .into(),
        )),
    }
}

fn new_directory(programs: &Programs) -> Result<PathBuf> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    // Short, because the path of a Unix socket may have only 107 bytes.
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let name = format!("driftless-pg-{}-{number}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    fs::create_dir(&directory).doing(format!("create {}", directory.display()))?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))
        .doing("protect the server's directory")?;
    programs.give(&directory)?;
    Ok(directory)
}

fn settings(options: &ServerOptions) -> Vec<(String, String)> {
    let fsync = if options.careless { "off" } else { "on" };
    let ours = [
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
    ];
    let ours = ours.map(|(name, value)| (name.to_owned(), value.to_owned()));
    ours.into_iter().chain(options.settings.iter().cloned()).collect()
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).doing("look for a free port")?;
    Ok(listener.local_addr().doing("look for a free port")?.port())
}

/// Starts the shell that cleans up when its standard input ends.
fn leash(directory: &Path) -> Result<Child> {
    let script = r#"
        while read -r line; do :; done
        if pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null); then
            kill -QUIT "$pid" 2>/dev/null
            tries=0
            while [ $tries -lt 100 ] && kill -0 "$pid" 2>/dev/null; do
                sleep 0.1; tries=$((tries + 1))
            done
        fi
        rm -rf "$1""#;
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg("leash").arg(directory);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut leash = command.process_group(0).spawn().doing("run the program sh")?;
    if let Some(pipe) = &mut leash.stdin {
        pipe.write_all(b"ready\n").doing("talk to the shell that cleans up")?;
    }
    Ok(leash)
}

/// The processes that this one started, from /proc; elsewhere none are found.
fn children_of(parent: u32) -> Vec<u32> {
    let is_child =
        |id: &u32| state_and_parent(*id).and_then(|(_, id)| id.parse().ok()) == Some(parent);
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(is_child).collect()
}

/// Whether a process has not ended yet; one that nobody has waited for has.
fn is_alive(process: u32) -> bool {
    state_and_parent(process).is_some_and(|(state, _)| !matches!(state.as_str(), "Z" | "X"))
}

fn state_and_parent(process: u32) -> Option<(String, String)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may hold anything, so the fields are counted after it.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned);
    Some((fields.next()?, fields.next()?))
}

/// Copies a directory with owners and modes, sharing blocks where the file system can.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
    match status.doing("run the program cp")?.success() {
        true => Ok(()),
        false => Err(Error(format!("cannot copy {} to {}", from.display(), to.display()))),
    }
}
