//! A TCP proxy on loopback that lets everything through until it is told to break something.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to the bytes of one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// They arrive.
    Pass,
    /// They vanish; the connection stays open. What a dead router does.
    Swallow,
    /// The connection is closed at once, and new ones after a moment.
    Cut,
    /// Once, the connection is closed just before these bytes would have arrived.
    CutBefore(&'static [u8]),
    /// Once, the connection is closed after this many more bytes.
    CutAfter(usize),
    /// Once, these bytes arrive, but the connection is closed before the answer to them does.
    CutAnswerTo(&'static [u8]),
    /// Once, a bit of the byte after this many is turned round.
    FlipAfter(usize),
}

/// What one direction suffers.
#[derive(Clone)]
struct Line {
    fault: Fault,
    /// How often it was cut. A connection that was there ends, even if the line is mended at once.
    cuts: u32,
}

#[derive(Default)]
struct Counters {
    connections: AtomicU32,
    cuts: AtomicU32,
}

/// A proxy in front of one server. Dropping it closes all connections.
pub struct Proxy {
    port: u16,
    to_server: watch::Sender<Line>,
    to_client: watch::Sender<Line>,
    counters: Arc<Counters>,
    listener: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy in front of a port of this machine.
    pub async fn start(server_port: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let whole = Line { fault: Fault::Pass, cuts: 0 };
        let (to_server, to_client) = (watch::Sender::new(whole.clone()), watch::Sender::new(whole));
        let counters = Arc::new(Counters::default());
        let faults = (to_server.clone(), to_client.clone());
        let listener = tokio::spawn(accept(listener, server_port, faults, counters.clone()));
        Proxy { port, to_server, to_client, counters, listener }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What happens from now on to the bytes on their way to the server.
    pub fn to_server(&self, fault: Fault) {
        inflict(&self.to_server, fault);
    }

    /// What happens from now on to the bytes on their way to the client.
    pub fn to_client(&self, fault: Fault) {
        inflict(&self.to_client, fault);
    }

    /// How many connections were cut so far.
    pub fn cuts(&self) -> u32 {
        self.counters.cuts.load(Ordering::Relaxed)
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> u32 {
        self.counters.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        inflict(&self.to_server, Fault::Cut);
        inflict(&self.to_client, Fault::Cut);
        self.listener.abort();
    }
}

fn inflict(line: &watch::Sender<Line>, fault: Fault) {
    line.send_modify(|line| {
        line.cuts += u32::from(fault == Fault::Cut);
        line.fault = fault;
    });
}

async fn accept(
    listener: TcpListener,
    server_port: u16,
    (to_server, to_client): (watch::Sender<Line>, watch::Sender<Line>),
    counters: Arc<Counters>,
) {
    while let Ok((client, _)) = listener.accept().await {
        counters.connections.fetch_add(1, Ordering::Relaxed);
        let Ok(server) = TcpStream::connect(("127.0.0.1", server_port)).await else {
            continue;
        };
        let (client_read, client_write) = client.into_split();
        let (server_read, server_write) = server.into_split();
        let doomed = AtomicBool::new(false);
        let (to_server, to_client) = (to_server.clone(), to_client.clone());
        let counters = counters.clone();
        tokio::spawn(async move {
            let there = pump(client_read, server_write, to_server, &doomed);
            let back = pump(server_read, client_write, to_client, &doomed);
            // The first direction to end takes the other with it, as a broken cable does.
            let was_cut = tokio::select! { cut = there => cut, cut = back => cut };
            counters.cuts.fetch_add(u32::from(was_cut), Ordering::Relaxed);
        });
    }
}

/// Carries bytes until one side closes (false) or a fault says so (true). A doomed connection ends
/// with the next bytes of the other direction.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    line: watch::Sender<Line>,
    doomed: &AtomicBool,
) -> bool {
    let mut changes = line.subscribe();
    let cuts = changes.borrow().cuts;
    let is_cut = |line: &Line| line.fault == Fault::Cut || line.cuts > cuts;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return false,
                Ok(length) => length,
            },
            _ = changes.wait_for(is_cut) => return true,
        };
        let now = line.borrow().clone();
        if doomed.load(Ordering::Relaxed) || is_cut(&now) {
            return true;
        }
        match now.fault {
            Fault::Swallow => continue,
            Fault::Cut => return true,
            Fault::CutBefore(pattern) => {
                if contains(&buffer[..length], pattern) {
                    inflict(&line, Fault::Pass);
                    return true;
                }
            }
            Fault::CutAnswerTo(pattern) => {
                if contains(&buffer[..length], pattern) {
                    inflict(&line, Fault::Pass);
                    doomed.store(true, Ordering::Relaxed);
                }
            }
            Fault::FlipAfter(left) if left < length => {
                inflict(&line, Fault::Pass);
                buffer[left] ^= 1;
            }
            Fault::FlipAfter(left) => {
                inflict(&line, Fault::FlipAfter(left - length));
            }
            Fault::CutAfter(left) if left <= length => {
                inflict(&line, Fault::Pass);
                let _ = to.write_all(&buffer[..left]).await;
                return true;
            }
            Fault::CutAfter(left) => {
                inflict(&line, Fault::CutAfter(left - length));
            }
            Fault::Pass => {}
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return false;
        }
    }
}

fn contains(bytes: &[u8], pattern: &[u8]) -> bool {
    bytes.windows(pattern.len()).any(|window| window == pattern)
}
