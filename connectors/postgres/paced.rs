//! A socket whose reader rests for a moment while much arrives in small pieces. A server that streams
//! its log sends every message by itself, and to be woken for each costs both sides more than the
//! messages do. Used by `connect.rs`.
//!
//! Surprise: tokio is woken by every packet for a socket that it watches, whether or not anybody
//! waits for it, so a socket whose reader rests is not watched. A write does not end the rest: who
//! waits for the next read is woken by its end and by nothing else.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use std::{io, mem, net, os};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep, sleep};

/// How long the other side has to send more.
const REST: Duration = Duration::from_millis(1);
/// The reader rests when so much has come within the time of a rest ...
const MUCH_BYTES: usize = 4 * 1024;
/// ... unless so much was there at once, or more than there was room for.
const ENOUGH_BYTES: usize = 32 * 1024;

/// A socket that tokio can watch, and leave alone.
pub trait Watchable: AsyncRead + AsyncWrite + Unpin + Send + Sized {
    /// The same socket while it is not watched.
    type Unwatched: Send + Unpin;

    /// Stops watching.
    ///
    /// # Errors
    /// The operating system refuses.
    fn unwatch(self) -> io::Result<Self::Unwatched>;

    /// Watches again. What has come meanwhile is seen.
    ///
    /// # Errors
    /// The operating system refuses.
    fn watch(socket: Self::Unwatched) -> io::Result<Self>;
}

impl Watchable for TcpStream {
    type Unwatched = net::TcpStream;

    fn unwatch(self) -> io::Result<net::TcpStream> {
        self.into_std()
    }

    fn watch(socket: net::TcpStream) -> io::Result<TcpStream> {
        TcpStream::from_std(socket)
    }
}

impl Watchable for UnixStream {
    type Unwatched = os::unix::net::UnixStream;

    fn unwatch(self) -> io::Result<os::unix::net::UnixStream> {
        self.into_std()
    }

    fn watch(socket: os::unix::net::UnixStream) -> io::Result<UnixStream> {
        UnixStream::from_std(socket)
    }
}

/// How a socket is read under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// What has come is read at once: answers to SQL come in pieces that are worth it.
    AtOnce,
    /// The reader rests.
    Rested,
}

/// A socket that is read in larger pieces under load, if that is wanted.
pub struct Paced<S: Watchable> {
    socket: Socket<S>,
    reading: Reading,
    rest: Option<Pin<Box<Sleep>>>,
    /// How much has come since then.
    lately: (Instant, usize),
}

enum Socket<S: Watchable> {
    Watched(S),
    Unwatched(S::Unwatched),
    /// A change from one to the other went wrong.
    Lost,
}

impl<S: Watchable> Paced<S> {
    /// Reads this one.
    pub fn new(socket: S, reading: Reading) -> Paced<S> {
        let (socket, lately) = (Socket::Watched(socket), (Instant::now(), 0));
        Paced { socket, reading, rest: None, lately }
    }

    fn watched(&mut self) -> io::Result<Pin<&mut S>> {
        self.socket = match mem::replace(&mut self.socket, Socket::Lost) {
            Socket::Unwatched(socket) => Socket::Watched(S::watch(socket)?),
            other => other,
        };
        match &mut self.socket {
            Socket::Watched(socket) => Ok(Pin::new(socket)),
            Socket::Unwatched(_) | Socket::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn rest(&mut self) -> io::Result<()> {
        if let Socket::Watched(socket) = mem::replace(&mut self.socket, Socket::Lost) {
            self.socket = Socket::Unwatched(socket.unwatch()?);
            self.rest = Some(Box::pin(sleep(REST)));
        }
        Ok(())
    }

    /// Whether more of this kind is worth a rest, after a read of so many bytes.
    fn is_much(&mut self, bytes: usize) -> bool {
        let now = Instant::now();
        let (since, before) = self.lately;
        self.lately = match now - since < REST {
            true => (since, before + bytes),
            false => (now, bytes),
        };
        bytes < ENOUGH_BYTES && self.lately.1 >= MUCH_BYTES
    }
}

impl<S: Watchable> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(rest) = &mut self.rest {
            ready!(rest.as_mut().poll(context));
            self.rest = None;
        }
        let before = buffer.filled().len();
        ready!(self.watched()?.poll_read(context, buffer))?;
        if self.reading == Reading::Rested
            && buffer.remaining() > 0
            && self.is_much(buffer.filled().len() - before)
        {
            self.rest()?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Watchable> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.watched()?.poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watched()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watched()?.poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);
    const PIECES: usize = 2_000;
    const PIECE_BYTES: usize = 500;

    /// Both ends of a connection, of which one is paced.
    fn pair() -> (Paced<UnixStream>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Paced::new(ours, Reading::Rested), theirs)
    }

    /// Reads until the reader rests.
    async fn rest(paced: &mut Paced<UnixStream>, theirs: &mut UnixStream) {
        theirs.write_all(&[7; MUCH_BYTES]).await.unwrap();
        let mut buffer = [0; 2 * MUCH_BYTES];
        while paced.rest.is_none() {
            assert!(paced.read(&mut buffer).await.unwrap() > 0);
        }
    }

    #[tokio::test]
    async fn many_small_pieces_are_read_in_few_and_none_is_lost() {
        let (mut paced, mut theirs) = pair();
        let sent: Vec<u8> = (0..PIECES * PIECE_BYTES).map(|place| (place % 251) as u8).collect();
        let pieces = sent.clone();
        let writer = tokio::spawn(async move {
            for piece in pieces.chunks(PIECE_BYTES) {
                theirs.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let (mut received, mut reads) = (Vec::with_capacity(sent.len()), 0);
        while timeout(LONG, paced.read_buf(&mut received)).await.unwrap().unwrap() > 0 {
            reads += 1;
        }
        writer.await.unwrap();
        assert!(received == sent, "something was lost");
        assert!(reads < PIECES / 4, "{reads} reads of {PIECES} pieces");
    }

    #[tokio::test]
    async fn a_trickle_is_read_at_once() {
        let (mut paced, mut theirs) = pair();
        theirs.write_all(b"a").await.unwrap();
        assert_eq!(paced.read_u8().await.unwrap(), b'a');
        assert!(paced.rest.is_none());
        assert!(matches!(paced.socket, Socket::Watched(_)));
    }

    #[tokio::test]
    async fn who_waits_for_a_read_is_woken_though_something_was_written_meanwhile() {
        let (mut paced, mut theirs) = pair();
        rest(&mut paced, &mut theirs).await;
        theirs.write_all(b"r").await.unwrap();
        let mut polls = 0;
        // A task, because a timeout polls what it is around once more at its end.
        let read = tokio::spawn(async move {
            let mut bytes = [0; 2];
            poll_fn(|context| {
                let mut buffer = ReadBuf::new(&mut bytes);
                let read = Pin::new(&mut paced).poll_read(context, &mut buffer);
                polls += 1;
                if polls == 1 {
                    assert!(read.is_pending(), "it does not rest");
                    assert!(Pin::new(&mut paced).poll_flush(context).is_ready());
                }
                read
            })
            .await
            .unwrap();
            (paced, bytes)
        });
        let (mut paced, bytes) = timeout(LONG, read).await.unwrap().unwrap();
        assert_eq!(&bytes, b"r\0");
        paced.write_all(b"w").await.unwrap();
        assert_eq!(theirs.read_u8().await.unwrap(), b'w');
    }

    #[tokio::test]
    async fn a_small_buffer_is_filled_again_and_again_without_a_rest() {
        let (mut paced, mut theirs) = pair();
        theirs.write_all(&[7; 2 * MUCH_BYTES]).await.unwrap();
        for _ in 0..2 {
            assert!(paced.rest.is_none());
            paced.read_exact(&mut [0; MUCH_BYTES]).await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_end_of_the_connection_is_seen_after_a_rest() {
        let (mut paced, mut theirs) = pair();
        rest(&mut paced, &mut theirs).await;
        drop(theirs);
        assert_eq!(timeout(LONG, paced.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
    }
}
