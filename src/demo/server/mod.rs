//! Private, throw-away database servers made of the machine's installed binaries: each with its own
//! directory and its own port, gone when dropped. Used by the demonstration and the end-to-end tests.
//!
//! `postgres` and `mariadb` know their programs, `leash` what both need of the machine, `session`
//! talks to either.

mod leash;
pub mod mariadb;
mod postgres;
pub mod session;

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio_postgres::Client;

pub use self::leash::signal;
use self::leash::{RunAs, children_of, copy_tree, free_port, is_alive, new_directory};
pub use self::postgres::connect;
use self::session::Session;
use super::{Doing, Error, Result};

/// The superuser of every private PostgreSQL.
pub const USER: &str = "postgres";
/// The password of every private server's superuser. Distinctive, so that a test can look for it
/// in everything we print.
pub const PASSWORD: &str = "canary-7d3f1b";

const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(15);

/// The kinds of servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// PostgreSQL; POSTGRES_BIN may name the directory of its programs.
    #[default]
    Postgres,
    /// MariaDB; or what MYSQL_TREE names, which may be a MySQL.
    Mariadb,
}

/// How a private server differs from the usual one.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// What is started.
    pub engine: Engine,
    /// Whether the server may lose data when the machine crashes (`fsync = off`). Much faster.
    pub careless: bool,
    /// Settings in addition to ours; a later one wins.
    pub settings: Vec<(String, String)>,
    /// A directory that keeps a freshly initialised data directory to copy from, for those who
    /// start many servers. Without it, each server makes its own.
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

/// A running (or stopped) private server.
#[derive(Debug)]
pub struct Server {
    programs: Programs,
    directory: PathBuf,
    port: u16,
    settings: Vec<(String, String)>,
    process: Option<Child>,
    leash: Child,
}

impl Server {
    /// Makes and starts a server.
    ///
    /// # Errors
    /// That no such server is installed, with the command that installs it; or the end of the
    /// server's log when it does not start.
    pub async fn start(options: ServerOptions) -> Result<Server> {
        let programs = Programs::find(options.engine)?;
        let directory = new_directory(programs.run_as())?;
        let process_file = programs.process_file(&directory);
        let leash = leash::leash(&directory, &process_file, programs.end_signal())?;
        let ours = programs.settings(options.careless).into_iter();
        let ours = ours.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut server = Server {
            settings: ours.chain(options.settings).collect(),
            programs,
            directory,
            port: free_port()?,
            process: None,
            leash,
        };
        server.initialise(options.template_cache.as_deref())?;
        if server.start_again().await.is_err() {
            // Somebody may have taken the port between our look and the server's start.
            server.stop(Shutdown::Kill).await?;
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
        let mut command = self.programs.server(&self.directory, self.port, &self.settings);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        self.process = Some(command.spawn().doing("start the server")?);
        let deadline = Instant::now() + START_TIMEOUT;
        while let Err(error) = self.session(self.first_database()).await {
            if self.exited()? || Instant::now() > deadline {
                let end = self.log_end();
                return Err(Error(format!(
                    "the server does not start: {error}; its log ends with\n{end}"
                )));
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
        let Some(process) = self.process.as_ref().map(Child::id) else { return Ok(()) };
        let mut children = Vec::new();
        match how {
            Shutdown::Fast => signal(self.programs.fast_signal(), &[process])?,
            Shutdown::Kill => {
                // Freeze it first, so that it starts no further process behind our back.
                signal("STOP", &[process])?;
                children = children_of(process);
                signal("KILL", &[&children[..], &[process]].concat())?;
            }
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        // The last child to die keeps the shared memory, and no new server starts beside it.
        while !self.exited()? || children.iter().any(|&child| is_alive(child)) {
            if Instant::now() > deadline {
                return Err(Error("the server does not stop within a minute".into()));
            }
            tokio::time::sleep(POLL).await;
        }
        self.process = None;
        if how == Shutdown::Kill {
            // All processes are gone; a stale file could name somebody else's process one day.
            let _ = fs::remove_file(self.programs.process_file(&self.directory));
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

    /// What the server's program says about its version, without the words around it.
    ///
    /// # Errors
    /// If the program does not run.
    pub fn version(&self) -> Result<String> {
        self.programs.version()
    }

    /// The directory of the server's programs, for instance to run `pgbench`.
    #[must_use]
    pub fn program_directory(&self) -> &Path {
        self.programs.directory()
    }

    /// Whether this is a MySQL, not a MariaDB.
    #[must_use]
    pub fn is_mysql(&self) -> bool {
        matches!(&self.programs, Programs::Mariadb(programs) if programs.is_mysql)
    }

    /// The server's first process, by the server's own word.
    ///
    /// # Errors
    /// If the server does not run.
    pub fn process_id(&self) -> Result<u32> {
        let file = fs::read_to_string(self.programs.process_file(&self.directory));
        let file = file.doing("read the id of the server's process")?;
        let id = file.lines().next().and_then(|line| line.trim().parse().ok());
        id.ok_or_else(|| Error("the server does not say its process id".into()))
    }

    /// The server's data directory.
    #[must_use]
    pub fn data_directory(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// A database that every server of this kind is born with.
    #[must_use]
    pub fn first_database(&self) -> &'static str {
        match self.programs {
            Programs::Postgres(_) => "postgres",
            Programs::Mariadb(_) => "mysql",
        }
    }

    /// The URL of a database of this server, for the superuser.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        let (scheme, user) = match self.programs {
            Programs::Postgres(_) => ("postgres", USER),
            Programs::Mariadb(_) => ("mysql", mariadb::ADMIN),
        };
        format!("{scheme}://{user}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// Connects to a database of this server. The session shows values in the canonical form.
    ///
    /// # Errors
    /// The connection.
    pub async fn session(&self, database: &str) -> Result<Session> {
        Session::connect(&self.url(database)).await
    }

    /// Connects to a database of this PostgreSQL, for those who need its own client.
    ///
    /// # Errors
    /// The connection.
    pub async fn connect_to(&self, database: &str) -> Result<Client> {
        connect(&self.url(database)).await
    }

    /// Sends a signal to the server's first process; `stop` must not be waiting.
    ///
    /// # Errors
    /// If the server does not run.
    pub fn signal(&self, name: &str) -> Result<()> {
        let Some(process) = &self.process else {
            return Err(Error("the server does not run".into()));
        };
        signal(name, &[process.id()])
    }

    fn initialise(&self, template_cache: Option<&Path>) -> Result<()> {
        let data = self.data_directory();
        let Some(cache) = template_cache else { return self.programs.initialise(&data) };
        fs::create_dir_all(cache).doing("create the cache of server templates")?;
        let mut hasher = DefaultHasher::new();
        (self.programs.version()?, self.programs.directory(), self.programs.run_as())
            .hash(&mut hasher);
        mariadb::superuser().hash(&mut hasher);
        let template = cache.join(format!("server-template-{:016x}", hasher.finish()));
        let lock = File::create(template.with_extension("lock")).doing("create a lock file")?;
        lock.lock().doing("lock the server template")?;
        if !template.exists() {
            self.programs.initialise(&data)?;
            let unfinished = template.with_extension("unfinished");
            let _ = fs::remove_dir_all(&unfinished);
            copy_tree(&data, &unfinished)?;
            return fs::rename(unfinished, template).doing("keep the server template");
        }
        drop(lock);
        copy_tree(&template, &data)
    }

    fn exited(&mut self) -> Result<bool> {
        match &mut self.process {
            None => Ok(true),
            Some(child) => Ok(child.try_wait().doing("wait for the server")?.is_some()),
        }
    }

    fn must_be_stopped(&self) -> Result<()> {
        match self.process {
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
        if let Some(process) = &mut self.process {
            let _ = signal(self.programs.end_signal(), &[process.id()]);
            let _ = process.wait();
        }
        // Closing the pipe tells the leash to remove the directory.
        drop(self.leash.stdin.take());
        let _ = self.leash.wait();
    }
}

/// The programs of one kind of server: what the two kinds do differently.
#[derive(Clone, Debug)]
enum Programs {
    Postgres(postgres::Programs),
    Mariadb(mariadb::Programs),
}

impl Programs {
    fn find(engine: Engine) -> Result<Programs> {
        match engine {
            Engine::Postgres => Ok(Programs::Postgres(postgres::Programs::find()?)),
            Engine::Mariadb => Ok(Programs::Mariadb(mariadb::Programs::find()?)),
        }
    }

    fn run_as(&self) -> RunAs {
        match self {
            Programs::Postgres(programs) => programs.run_as,
            Programs::Mariadb(programs) => programs.run_as(),
        }
    }

    fn directory(&self) -> &Path {
        match self {
            Programs::Postgres(programs) => &programs.directory,
            Programs::Mariadb(programs) => programs.directory(),
        }
    }

    fn version(&self) -> Result<String> {
        match self {
            Programs::Postgres(programs) => programs.version(),
            Programs::Mariadb(programs) => programs.version(),
        }
    }

    fn settings(&self, careless: bool) -> Vec<(&'static str, &'static str)> {
        match self {
            Programs::Postgres(_) => postgres::settings(careless),
            Programs::Mariadb(programs) => programs.settings(careless),
        }
    }

    fn initialise(&self, data: &Path) -> Result<()> {
        match self {
            Programs::Postgres(programs) => programs.initialise(data),
            Programs::Mariadb(programs) => programs.initialise(data),
        }
    }

    fn server(&self, directory: &Path, port: u16, settings: &[(String, String)]) -> Command {
        match self {
            Programs::Postgres(programs) => programs.server(directory, port, settings),
            Programs::Mariadb(programs) => programs.server(directory, port, settings),
        }
    }

    /// The file whose first line is the id of the server's first process.
    fn process_file(&self, directory: &Path) -> PathBuf {
        match self {
            Programs::Postgres(_) => directory.join("data").join("postmaster.pid"),
            Programs::Mariadb(_) => mariadb::process_file(directory),
        }
    }

    /// What an operator's shutdown sends.
    fn fast_signal(&self) -> &'static str {
        match self {
            Programs::Postgres(_) => "INT",
            Programs::Mariadb(_) => "TERM",
        }
    }

    /// What ends a server whose data nobody needs any more, at once and leaving nothing behind.
    fn end_signal(&self) -> &'static str {
        match self {
            Programs::Postgres(_) => "QUIT",
            Programs::Mariadb(_) => "KILL",
        }
    }
}
