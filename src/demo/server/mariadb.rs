//! The programs of an installed MariaDB, or of an unpacked MariaDB or MySQL, and how a private
//! server of them is started.
//!
//! MYSQL_TREE names a directory that `scripts/get-mysql` made: the programs of another release
//! with their own libraries, which its script `run` starts.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use mysql_async::{Conn, Opts, OptsBuilder};

use super::PASSWORD;
use super::leash::{RunAs, command_as, unprivileged_user};
use crate::demo::{Doing, Error, Result};

/// The superuser of every private MariaDB or MySQL. Not `root`, which has several accounts from birth.
pub const ADMIN: &str = "admin";

/// A small redo log and no doublewrite, because a data directory is copied for each server.
const REDO_LOG: &str = "--innodb-log-file-size=16M";

/// The server's programs, and as whom they run.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    place: Place,
    pub is_mysql: bool,
    run_as: RunAs,
}

#[derive(Clone, Debug)]
enum Place {
    Installed { server: PathBuf },
    Tree(PathBuf),
}

impl Programs {
    pub fn find() -> Result<Programs> {
        let run_as = unprivileged_user("mysql")?;
        if let Some(tree) = std::env::var_os("MYSQL_TREE").map(PathBuf::from) {
            let has = |program: &str| tree.join("root/usr/sbin").join(program).exists();
            let is_mysql = !has("mariadbd");
            if !tree.join("run").is_file() || (is_mysql && !has("mysqld")) {
                return Err(Error(format!(
                    "no MariaDB or MySQL in {} (from MYSQL_TREE); unpack one with \
                     `scripts/get-mysql`",
                    tree.display()
                )));
            }
            return Ok(Programs { place: Place::Tree(tree), is_mysql, run_as });
        }
        let Some(server) = installed("mariadbd") else {
            return Err(Error(
                "no MariaDB server program (mariadbd) in PATH, /usr/sbin or /usr/libexec; install \
                 it with `apt-get install mariadb-server` (Debian, Ubuntu), `dnf install \
                 mariadb-server` (Fedora) or `brew install mariadb` (macOS), or let MYSQL_TREE \
                 name a directory made by `scripts/get-mysql`"
                    .into(),
            ));
        };
        Ok(Programs { place: Place::Installed { server }, is_mysql: false, run_as })
    }

    /// What `mariadbd --version` says, without the words around the number.
    pub fn version(&self) -> Result<String> {
        let output = self.server_program().arg("--version").output().doing("run the server")?;
        let words = String::from_utf8_lossy(&output.stdout);
        let version = words.split("Ver ").nth(1).and_then(|rest| rest.split(' ').next());
        Ok(version.unwrap_or_else(|| words.trim()).to_owned())
    }

    /// The directory of the programs, to tell templates apart.
    pub fn directory(&self) -> &Path {
        match &self.place {
            Place::Installed { server } => server,
            Place::Tree(tree) => tree,
        }
    }

    pub fn run_as(&self) -> RunAs {
        self.run_as
    }

    /// Makes the data directory of a new server, with a superuser who needs our password.
    pub fn initialise(&self, data: &Path) -> Result<()> {
        if self.is_mysql {
            return self.initialise_mysql(data);
        }
        // The program that makes MariaDB's system tables does not run out of a tree, but a newer
        // server works with those of the installed one.
        let program = installed("mariadb-install-db").ok_or_else(|| {
            Error("mariadb-install-db is missing; install MariaDB's server package".into())
        })?;
        let mut command = command_as(self.run_as, &program);
        command.arg("--no-defaults").arg(format!("--datadir={}", data.display()));
        command.args(["--auth-root-authentication-method=normal", "--skip-test-db"]);
        command.args(["--skip-name-resolve", REDO_LOG]);
        with_room(&mut command, data);
        must_succeed("mariadb-install-db", command.stdin(Stdio::null()).output())?;
        self.bootstrap(data)
    }

    /// Statements before there is a server, one a line.
    fn bootstrap(&self, data: &Path) -> Result<()> {
        let mut command = self.server_program();
        command.args(["--no-defaults", "--bootstrap", REDO_LOG]).args(self.tree_arguments());
        command.arg(format!("--datadir={}", data.display()));
        with_room(&mut command, data);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().doing("start mariadbd")?;
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(superuser().as_bytes()).doing("talk to mariadbd")?;
        }
        must_succeed("mariadbd --bootstrap", child.wait_with_output())
    }

    fn initialise_mysql(&self, data: &Path) -> Result<()> {
        let statements = data.with_extension("sql");
        std::fs::write(&statements, superuser()).doing("write the first statements")?;
        super::leash::give(self.run_as, &statements)?;
        let mut command = self.server_program();
        command.args(["--no-defaults", "--initialize-insecure", "--innodb-redo-log-capacity=16M"]);
        command.args(self.tree_arguments()).arg(format!("--datadir={}", data.display()));
        command.arg(format!("--init-file={}", statements.display()));
        with_room(&mut command, data);
        must_succeed("mysqld --initialize-insecure", command.stdin(Stdio::null()).output())?;
        // The server's identity, which each copy of this directory makes for itself.
        let _ = std::fs::remove_file(data.join("auto.cnf"));
        std::fs::remove_file(statements).doing("remove the first statements")
    }

    /// The server itself, not started yet.
    pub fn server(&self, directory: &Path, port: u16, settings: &[(String, String)]) -> Command {
        let mut command = self.server_program();
        command.arg("--no-defaults").args(self.tree_arguments());
        command.arg(format!("--datadir={}", directory.join("data").display()));
        command.arg(format!("--socket={}", directory.join("socket").display()));
        command.arg(format!("--pid-file={}", process_file(directory).display()));
        with_room(&mut command, &directory.join("data"));
        command.arg(format!("--port={port}"));
        for (name, value) in settings {
            command.arg(format!("--{name}={value}"));
        }
        command
    }

    /// The settings of every private server.
    pub fn settings(&self, careless: bool) -> Vec<(&'static str, &'static str)> {
        let mut settings = vec![
            ("bind-address", "127.0.0.1"),
            ("skip-name-resolve", "ON"),
            ("server-id", "1"),
            ("log-bin", "binlog"),
            ("binlog-format", "ROW"),
            ("character-set-server", "utf8mb4"),
            ("innodb-buffer-pool-size", "64M"),
            ("innodb-lock-wait-timeout", "10"),
            ("sync-binlog", if careless { "0" } else { "1" }),
            // In careless mode the operating system's memory survives a kill of the server.
            ("innodb-flush-log-at-trx-commit", if careless { "2" } else { "1" }),
            ("innodb-doublewrite", if careless { "0" } else { "1" }),
        ];
        settings.extend_from_slice(match self.is_mysql {
            true => &[
                ("innodb-redo-log-capacity", "16M"),
                ("gtid-mode", "ON"),
                ("enforce-gtid-consistency", "ON"),
                ("mysqlx", "OFF"),
                ("secure-file-priv", "NULL"),
                ("cte-max-recursion-depth", "10000000"),
            ],
            false => &[
                ("innodb-log-file-size", "16M"),
                ("performance-schema", "OFF"),
                ("max-recursive-iterations", "10000000"),
            ],
        });
        settings
    }

    fn server_program(&self) -> Command {
        let program = if self.is_mysql { "mysqld" } else { "mariadbd" };
        match &self.place {
            Place::Installed { server } => command_as(self.run_as, server),
            Place::Tree(tree) => {
                let mut command = command_as(self.run_as, &tree.join("run"));
                command.arg(program);
                command
            }
        }
    }

    /// Where the programs of a tree find the files that belong to them.
    fn tree_arguments(&self) -> Vec<String> {
        let Place::Tree(tree) = &self.place else { return Vec::new() };
        let usr = tree.join("root/usr").display().to_string();
        vec![
            format!("--basedir={usr}"),
            format!("--plugin-dir={usr}/lib/mysql/plugin"),
            format!("--lc-messages-dir={usr}/share/mysql"),
            format!("--character-sets-dir={usr}/share/mysql/charsets"),
        ]
    }
}

/// Temporary files go beside the data, because our own directory for them may be closed to the
/// server's user.
fn with_room(command: &mut Command, data: &Path) {
    command.envs(data.parent().map(|directory| ("TMPDIR", directory)));
}

/// Where the running server writes its process id.
pub(super) fn process_file(directory: &Path) -> PathBuf {
    directory.join("data").join("server.pid")
}

/// Connects without TLS. The session works in UTC, and `||` joins texts as it does elsewhere.
///
/// # Errors
/// The connection.
pub async fn connect(url: &str) -> Result<Conn> {
    let options = Opts::from_url(url)
        .map_err(|error| Error(format!("the URL of a private server is wrong: {error}")))?;
    let options = OptsBuilder::from_opts(options)
        // A socket would go round the proxy that a test has put in between.
        .prefer_socket(false)
        .setup(vec!["SET time_zone = '+00:00', sql_mode = concat(@@sql_mode, ',PIPES_AS_CONCAT')"]);
    Ok(Conn::new(options).await?)
}

/// The statements that make the superuser, one a line because a server's first statements must be.
pub(super) fn superuser() -> String {
    format!(
        "FLUSH PRIVILEGES;\n\
         CREATE USER {ADMIN}@'%' IDENTIFIED BY '{PASSWORD}';\n\
         GRANT ALL PRIVILEGES ON *.* TO {ADMIN}@'%' WITH GRANT OPTION;\n"
    )
}

fn must_succeed(what: &str, output: std::io::Result<Output>) -> Result<()> {
    let output = output.doing(format!("run {what}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = said.lines().collect();
    let end = said[said.len().saturating_sub(10)..].join("\n");
    Err(Error(format!("{what} failed; it said\n{end}")))
}

fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let further = ["/usr/sbin", "/usr/libexec", "/usr/local/sbin"].map(PathBuf::from);
    let directories = std::env::split_paths(&path).chain(further);
    directories.map(|directory| directory.join(program)).find(|program| program.is_file())
}
