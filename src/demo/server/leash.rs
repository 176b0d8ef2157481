//! What every private server needs, whatever its engine: a directory and a port of its own, an
//! unprivileged user, signals, and the leash.
//!
//! Surprise: a small shell, the leash, holds a pipe from this process. When the pipe closes, even
//! because we were killed, it stops the server and removes the directory.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::demo::{Doing, Error, Result};

/// User and group to run as, when we are root, which database servers refuse to run as.
pub(super) type RunAs = Option<(u32, u32)>;

/// Whom a server runs as when we are root: the first of these users that exists, else `nobody`.
pub(super) fn unprivileged_user(preferred: &str) -> Result<RunAs> {
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
    match user(preferred).or_else(|| user("nobody")) {
        Some(found) => Ok(Some(found)),
        None => Err(Error(format!(
            "a database server refuses to run as root, and there is no user {preferred} or \
             nobody; run this as an ordinary user"
        ))),
    }
}

/// A command that runs as this user, away from our directory.
pub(super) fn command_as(run_as: RunAs, program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some((user, group)) = run_as {
        command.uid(user).gid(group);
    }
    command.current_dir("/").env("LC_ALL", "C");
    command
}

/// Lets the server's user have a file that we made.
pub(super) fn give(run_as: RunAs, path: &Path) -> Result<()> {
    match run_as {
        Some((user, group)) => std::os::unix::fs::chown(path, Some(user), Some(group))
            .doing("give a file to the server's user"),
        None => Ok(()),
    }
}

/// A directory that only the server's user can enter.
pub(super) fn new_directory(run_as: RunAs) -> Result<PathBuf> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    // Short, because the path of a Unix socket may have only 107 bytes.
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let name = format!("driftless-db-{}-{number}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    fs::create_dir(&directory).doing(format!("create {}", directory.display()))?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))
        .doing("protect the server's directory")?;
    give(run_as, &directory)?;
    Ok(directory)
}

pub(super) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).doing("look for a free port")?;
    Ok(listener.local_addr().doing("look for a free port")?.port())
}

/// Starts the shell that cleans up when its standard input ends: it sends this signal to the
/// process that the file names in its first line, and removes the directory.
pub(super) fn leash(directory: &Path, process_file: &Path, signal: &str) -> Result<Child> {
    let script = r#"
        while read -r line; do :; done
        if pid=$(head -n 1 "$2" 2>/dev/null); then
            kill "-$3" "$pid" 2>/dev/null
            tries=0
            while [ $tries -lt 100 ] && kill -0 "$pid" 2>/dev/null; do
                sleep 0.1; tries=$((tries + 1))
            done
        fi
        rm -rf "$1""#;
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg("leash").arg(directory).arg(process_file).arg(signal);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut leash = command.process_group(0).spawn().doing("run the program sh")?;
    if let Some(pipe) = &mut leash.stdin {
        pipe.write_all(b"ready\n").doing("talk to the shell that cleans up")?;
    }
    Ok(leash)
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

/// The processes that this one started, from /proc; elsewhere none are found.
pub(super) fn children_of(parent: u32) -> Vec<u32> {
    let is_child =
        |id: &u32| state_and_parent(*id).and_then(|(_, id)| id.parse().ok()) == Some(parent);
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(is_child).collect()
}

/// Whether a process has not ended yet; one that nobody has waited for has.
pub(super) fn is_alive(process: u32) -> bool {
    state_and_parent(process).is_some_and(|(state, _)| !matches!(state.as_str(), "Z" | "X"))
}

fn state_and_parent(process: u32) -> Option<(String, String)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may hold anything, so the fields are counted after it.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned);
    Some((fields.next()?, fields.next()?))
}

/// Copies a directory with owners and modes, sharing blocks where the file system can.
pub(super) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
    match status.doing("run the program cp")?.success() {
        true => Ok(()),
        false => Err(Error(format!("cannot copy {} to {}", from.display(), to.display()))),
    }
}
