//! How other driftless processes talk to the running one: a Unix socket in the pipeline's own
//! directory, one line of JSON for the request, lines of JSON for the replies.
//! Surprise: the socket file of a dead daemon is replaced without asking, because whoever serves
//! holds the lock of the directory, so no other daemon can be alive.

use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use connectors::change::Key;
use connectors::error::{Code, Error, Result};
use connectors::schema::TableName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use crate::status::{Snapshot, Status};

/// A longer line is refused. A repair of many keys is asked for in parts.
pub const LINE_BYTES_MAX: usize = 4 << 20;

/// Whoever connects and says nothing must not hold a place for ever.
const REQUEST_WAIT_MAX: Duration = Duration::from_secs(10);

/// Connections answered at a time; others wait.
const CONNECTIONS_MAX: usize = 32;

/// Replies that wait for a slow reader.
const REPLIES_MAX: usize = 16;

/// What a running daemon can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "request")]
pub enum Request {
    /// How it is.
    Status,
    /// Copy existing rows again.
    Backfill {
        /// Which tables, by `schema.table`; all when empty.
        tables: Vec<String>,
        /// Only rows for which this SQL condition holds.
        filter: Option<String>,
    },
    /// Overwrite these rows of the target with the source's.
    Repair {
        /// The table.
        table: TableName,
        /// The keys of the rows, missing and extra ones included.
        keys: Vec<Key>,
    },
}

/// What it answers. A `Status` or any number of `Progress` and then `Done` or `Failed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reply")]
pub enum Reply {
    /// How it is.
    Status(Box<Snapshot>),
    /// How far it has come.
    Progress {
        /// The table.
        table: String,
        /// Rows done.
        rows: u64,
        /// About how many there are.
        rows_estimated: Option<u64>,
    },
    /// All of it is durable in the target.
    Done {
        /// Rows done.
        rows: u64,
    },
    /// It was refused or failed.
    Failed {
        /// The stable name.
        code: Code,
        /// What happened and what to type next.
        message: String,
    },
}

impl Reply {
    fn is_last(&self) -> bool {
        !matches!(self, Reply::Progress { .. })
    }
}

impl From<Error> for Reply {
    fn from(error: Error) -> Reply {
        Reply::Failed { code: error.code, message: error.message }
    }
}

/// A request on its way to the engine. When whoever asked has gone, `reply` is closed; what was
/// asked for goes on.
#[derive(Debug)]
pub struct Ask {
    /// What is asked; never `Status`.
    pub request: Request,
    /// Where the answers go.
    pub reply: mpsc::Sender<Reply>,
}

/// The open socket; dropping it closes and removes it.
#[derive(Debug)]
pub struct ServerHandle {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl ServerHandle {
    /// Waits for the end of the listening task, which only a defect brings about.
    pub async fn ended(&mut self) {
        // However it ended, nobody listens any more.
        let _ = (&mut self.task).await;
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.task.abort();
        // The next daemon replaces what is left behind.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Listens in `directory`, which is the pipeline's own (`Settings::pipeline_dir`) and whose lock
/// the caller holds. Answers `Status` from `status` and forwards everything else to `asks`.
///
/// # Errors
/// If the socket cannot be made.
pub fn serve(
    directory: &Path,
    status: Arc<Status>,
    asks: mpsc::Sender<Ask>,
) -> Result<ServerHandle> {
    let path = socket_path(directory);
    let failed = |error| failure("listen on", &path, &error);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        Err(_) | Ok(()) => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
    let task = tokio::spawn(accept(listener, status, asks));
    Ok(ServerHandle { path, task })
}

/// Asks the daemon that has this pipeline directory; `None` when none is running.
///
/// # Errors
/// If there is one that may not be asked, or that hangs up.
pub async fn ask(directory: &Path, request: &Request) -> Result<Option<Replies>> {
    let path = socket_path(directory);
    let failed = |error| failure("ask the daemon at", &path, &error);
    let stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    let (reader, mut writer) = stream.into_split();
    let line = to_line(request)?;
    if line.len() > LINE_BYTES_MAX {
        return Err(Error::stop(Code::Internal, "a request to the daemon is too long"));
    }
    writer.write_all(&line).await.map_err(failed)?;
    Ok(Some(Replies { lines: Lines(BufReader::new(reader)), _writer: writer }))
}

/// The answers to one request.
#[derive(Debug)]
pub struct Replies {
    lines: Lines,
    /// The daemon takes a closed connection for somebody who has gone.
    _writer: OwnedWriteHalf,
}

impl Replies {
    /// The next answer; `None` when the daemon has gone, which before a last answer means that
    /// it stopped. Cancel-safe only between answers.
    pub async fn next(&mut self) -> Option<Reply> {
        let line = self.lines.next().await.ok()??;
        Some(serde_json::from_slice(&line).unwrap_or_else(|error| Reply::Failed {
            code: Code::Internal,
            message: format!(
                "the daemon's answer is not understood (line {}, column {}); is it another \
                 version of driftless?",
                error.line(),
                error.column()
            ),
        }))
    }
}

async fn accept(listener: UnixListener, status: Arc<Status>, asks: mpsc::Sender<Ask>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (status, asks) = (Arc::clone(&status), asks.clone());
                tokio::spawn(async move {
                    answer(stream, &status, &asks).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: wait for some to be given back.
                tracing::warn!(%error, "control connection not accepted");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, status: &Status, asks: &mpsc::Sender<Ask>) {
    if !is_ours(&stream) {
        tracing::warn!("control connection of another user refused");
        return;
    }
    let (reader, mut writer) = stream.into_split();
    let mut lines = Lines(BufReader::new(reader));
    let request = match tokio::time::timeout(REQUEST_WAIT_MAX, read_request(&mut lines)).await {
        Ok(Ok(Some(request))) => request,
        Ok(Ok(None)) | Err(_) => return,
        Ok(Err(error)) => return write_reply(&mut writer, &error.into()).await.unwrap_or(()),
    };
    if request == Request::Status {
        let reply = Reply::Status(Box::new(status.snapshot()));
        return write_reply(&mut writer, &reply).await.unwrap_or(());
    }
    forward(request, &mut lines, &mut writer, asks).await;
}

/// Passes the request to the engine, and its answers back for as long as somebody listens.
async fn forward(
    request: Request,
    lines: &mut Lines,
    writer: &mut OwnedWriteHalf,
    asks: &mpsc::Sender<Ask>,
) {
    let (reply, mut replies) = mpsc::channel(REPLIES_MAX);
    let stopping = Reply::Failed {
        code: Code::Unreachable,
        message: "the daemon is stopping; what it had begun goes on when it is started again"
            .into(),
    };
    if asks.send(Ask { request, reply }).await.is_err() {
        return write_reply(writer, &stopping).await.unwrap_or(());
    }
    loop {
        let next = tokio::select! {
            next = replies.recv() => next.unwrap_or_else(|| stopping.clone()),
            // The other side says nothing more, so this is the end of its connection.
            _ = lines.next() => return,
        };
        if write_reply(writer, &next).await.is_err() || next.is_last() {
            return;
        }
    }
}

async fn read_request(lines: &mut Lines) -> Result<Option<Request>> {
    let refused = |message: &str| Error::stop(Code::Configuration, message);
    let Some(line) = lines.next().await.map_err(|_| refused("the request is too long"))? else {
        return Ok(None);
    };
    // The parser's own words may quote a key value.
    let request = serde_json::from_slice(&line).map_err(|_| {
        refused("the request is not understood; is the daemon another version of driftless?")
    })?;
    if let Request::Repair { keys, .. } = &request
        && keys.iter().any(|key| Key::from_bytes(key.as_bytes()).is_none())
    {
        return Err(refused("the request holds a damaged key"));
    }
    Ok(Some(request))
}

async fn write_reply(writer: &mut OwnedWriteHalf, reply: &Reply) -> Result<()> {
    let gone = |_| Error::transient(Code::Unreachable, "whoever asked has gone");
    writer.write_all(&to_line(reply)?).await.map_err(gone)
}

fn to_line(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)
        .map_err(|_| Error::stop(Code::Internal, "a control message cannot be written"))?;
    line.push(b'\n');
    Ok(line)
}

/// The directory keeps others out already; this holds where it was opened up by hand.
fn is_ours(stream: &UnixStream) -> bool {
    let us = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == us || peer.uid() == 0)
}

fn socket_path(directory: &Path) -> PathBuf {
    directory.join("control.sock")
}

fn failure(doing: &str, path: &Path, error: &std::io::Error) -> Error {
    let path = path.display();
    match error.kind() {
        ErrorKind::InvalidInput => Error::stop(
            Code::Configuration,
            format!("cannot {doing} {path}: {error}; give a shorter state.dir"),
        ),
        ErrorKind::PermissionDenied => Error::stop(
            Code::Permission,
            format!("cannot {doing} {path}: {error}; run this as the user who owns it"),
        ),
        _ => Error::stop(Code::StateDisk, format!("cannot {doing} {path}: {error}")),
    }
}

/// Lines of bounded length.
#[derive(Debug)]
struct Lines(BufReader<OwnedReadHalf>);

/// A line that is longer than it may be, or a broken connection.
#[derive(Debug)]
struct Unreadable;

impl Lines {
    async fn next(&mut self) -> std::result::Result<Option<Vec<u8>>, Unreadable> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.0).take(LINE_BYTES_MAX as u64);
        let read = bounded.read_until(b'\n', &mut line).await.map_err(|_| Unreadable)?;
        match line.last() {
            Some(b'\n') => Ok(Some(line)),
            // The other side went in the middle of a line: as good as silent.
            _ if read < LINE_BYTES_MAX => Ok(None),
            _ => Err(Unreadable),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Daemon {
        directory: tempfile::TempDir,
        asks: mpsc::Receiver<Ask>,
        handle: ServerHandle,
    }

    fn daemon() -> Daemon {
        let directory = tempfile::tempdir().unwrap();
        let (sender, asks) = mpsc::channel(1);
        let handle = serve(directory.path(), Arc::new(Status::new("main")), sender).unwrap();
        Daemon { directory, asks, handle }
    }

    async fn ask_raw(directory: &Path, text: &[u8]) -> Option<Reply> {
        let (reader, mut writer) =
            UnixStream::connect(socket_path(directory)).await.unwrap().into_split();
        // The daemon may hang up before everything is written.
        let _ = writer.write_all(text).await;
        Replies { lines: Lines(BufReader::new(reader)), _writer: writer }.next().await
    }

    fn repair() -> Request {
        let key = Key::from_values([b"1".as_slice(), b"\xff"]);
        Request::Repair { table: TableName::new("public", "a"), keys: vec![key] }
    }

    #[tokio::test]
    async fn the_status_is_answered_without_the_engine() {
        let daemon = daemon();
        let mut replies = ask(daemon.directory.path(), &Request::Status).await.unwrap().unwrap();
        let Some(Reply::Status(snapshot)) = replies.next().await else { panic!("no status") };
        assert_eq!(snapshot.pipeline, "main");
        assert_eq!(replies.next().await, None);
    }

    #[tokio::test]
    async fn other_requests_reach_the_engine_and_its_answers_come_back() {
        let mut daemon = daemon();
        let mut replies = ask(daemon.directory.path(), &repair()).await.unwrap().unwrap();
        let ask = daemon.asks.recv().await.unwrap();
        assert_eq!(ask.request, repair());
        let progress = Reply::Progress { table: "a".into(), rows: 1, rows_estimated: None };
        for reply in [progress.clone(), Reply::Done { rows: 1 }] {
            ask.reply.send(reply).await.unwrap();
        }
        assert_eq!(replies.next().await, Some(progress));
        assert_eq!(replies.next().await, Some(Reply::Done { rows: 1 }));
        assert_eq!(replies.next().await, None);
    }

    #[tokio::test]
    async fn an_engine_that_drops_a_request_is_a_failure() {
        let mut daemon = daemon();
        let mut replies = ask(daemon.directory.path(), &repair()).await.unwrap().unwrap();
        drop(daemon.asks.recv().await.unwrap());
        let reply = replies.next().await;
        assert!(matches!(reply, Some(Reply::Failed { code: Code::Unreachable, .. })), "{reply:?}");
    }

    #[tokio::test]
    async fn the_engine_learns_that_whoever_asked_has_gone() {
        let mut daemon = daemon();
        let replies = ask(daemon.directory.path(), &repair()).await.unwrap().unwrap();
        let ask = daemon.asks.recv().await.unwrap();
        drop(replies);
        ask.reply.closed().await;
    }

    #[tokio::test]
    async fn no_daemon_and_a_dead_daemon_are_none() {
        let directory = tempfile::tempdir().unwrap();
        assert!(ask(directory.path(), &Request::Status).await.unwrap().is_none());
        drop(std::os::unix::net::UnixListener::bind(socket_path(directory.path())).unwrap());
        assert!(ask(directory.path(), &Request::Status).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_dead_daemons_socket_is_replaced_and_a_live_ones_is_removed_at_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = socket_path(directory.path());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (sender, _asks) = mpsc::channel(1);
        let handle = serve(directory.path(), Arc::new(Status::new("main")), sender).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(ask(directory.path(), &Request::Status).await.unwrap().is_some());
        drop(handle);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_request_that_is_too_long_is_refused() {
        let mut daemon = daemon();
        let reply = ask_raw(daemon.directory.path(), &vec![b'x'; LINE_BYTES_MAX]).await;
        let refused =
            Reply::Failed { code: Code::Configuration, message: "the request is too long".into() };
        assert_eq!(reply, Some(refused));
        assert!(daemon.asks.try_recv().is_err());
        drop(daemon.handle);
    }

    #[tokio::test]
    async fn a_request_that_is_not_understood_is_refused_without_repeating_it() {
        let daemon = daemon();
        let damaged = to_line(&repair()).unwrap();
        let damaged = String::from_utf8(damaged).unwrap().replace("[0,0,0,1,", "[0,0,0,9,");
        for text in ["{\"request\":\"hunter2\"}\n", "hunter2\n", &damaged] {
            let reply = ask_raw(daemon.directory.path(), text.as_bytes()).await;
            let Some(Reply::Failed { code, message }) = reply else { panic!("{text}: {reply:?}") };
            assert_eq!(code, Code::Configuration);
            assert!(!message.contains("hunter2"), "{message}");
        }
    }
}
