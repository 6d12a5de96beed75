//! The two ends of an archive as byte streams: the blocking reader or writer runs on a thread of its own.

use std::fmt;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::PollSender;

use super::{Error, Snapshot, Totals};

/// Bytes in one piece on the way between thread and stream.
const PIECE: usize = 256 * 1024;
/// Pieces on the way: enough that neither side waits for the other's scheduling, 1 MiB in all.
const PIECES: usize = 4;

type Piece = Result<Bytes, io::Error>;

/// An archive being made. Read it to its end, then call [`finish`](Self::finish). Dropping it stops the work.
pub struct ArchiveStream {
    pieces: mpsc::Receiver<Piece>,
    piece: Bytes,
    work: JoinHandle<Result<(Snapshot, Totals), Error>>,
}

impl fmt::Debug for ArchiveStream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ArchiveStream").finish_non_exhaustive()
    }
}

impl ArchiveStream {
    /// Runs `work` on a thread; what it writes is the stream.
    pub(super) fn of(work: impl FnOnce(&mut Outlet) -> Result<(Snapshot, Totals), Error> + Send + 'static) -> Self {
        let (sender, pieces) = mpsc::channel(PIECES);
        let work = spawn_blocking(move || {
            let mut outlet = Outlet { sender, buffer: BytesMut::with_capacity(PIECE) };
            let done = work(&mut outlet);
            if let Err(error) = &done {
                // The reader must not take what it has for the whole; that it has gone already is no matter.
                let _ = outlet.sender.blocking_send(Err(io::Error::other(error.to_string())));
            }
            done
        });
        Self { pieces, piece: Bytes::new(), work }
    }

    /// After the end of the stream: what was seen, and what was sent.
    ///
    /// # Errors
    /// What stopped the work. (Reading the stream fails then too, with the same text.) [`Error::Stream`] when it was not read to
    /// its end.
    pub async fn finish(self) -> Result<(Arc<Snapshot>, Totals), Error> {
        drop(self.pieces);
        let (snapshot, totals) = self.work.await.map_err(|_| Error::Stopped)??;
        Ok((Arc::new(snapshot), totals))
    }
}

impl AsyncRead for ArchiveStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.piece.is_empty() {
            match ready!(self.pieces.poll_recv(context)) {
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.piece.len().min(out.remaining());
        out.put_slice(&self.piece[..count]);
        self.piece.advance(count);
        Poll::Ready(Ok(()))
    }
}

/// The writing end for the thread.
pub(super) struct Outlet {
    sender: mpsc::Sender<Piece>,
    buffer: BytesMut,
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        self.buffer.reserve(PIECE);
        self.sender.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// An archive being written to its places. Write all of it, then call [`finish`](Self::finish). Dropping it stops the work and
/// leaves the places half done.
pub struct ArchiveSink {
    /// `None` after `shutdown`.
    pieces: Option<PollSender<Bytes>>,
    work: JoinHandle<Result<Totals, Error>>,
}

impl fmt::Debug for ArchiveSink {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ArchiveSink").finish_non_exhaustive()
    }
}

impl ArchiveSink {
    /// Runs `work` on a thread; what is written to the sink is what it reads.
    pub(super) fn of(work: impl FnOnce(Inlet) -> Result<Totals, Error> + Send + 'static) -> Self {
        let (sender, pieces) = mpsc::channel(PIECES);
        let work = spawn_blocking(move || work(Inlet { pieces, piece: Bytes::new() }));
        Self { pieces: Some(PollSender::new(sender)), work }
    }

    /// Waits until everything is in place.
    ///
    /// # Errors
    /// What stopped the work. When writing to the sink fails, this tells why. An archive without its end mark is
    /// [`Error::Truncated`].
    pub async fn finish(self) -> Result<Totals, Error> {
        drop(self.pieces);
        self.work.await.map_err(|_| Error::Stopped)?
    }
}

/// The thread has stopped reading; [`ArchiveSink::finish`] tells why.
fn stopped<T>(_: T) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the container's files could not be written")
}

impl AsyncWrite for ArchiveSink {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(pieces) = self.pieces.as_mut() else { return Poll::Ready(Err(stopped(()))) };
        ready!(pieces.poll_reserve(context)).map_err(stopped)?;
        let count = bytes.len().min(PIECE);
        pieces.send_item(Bytes::copy_from_slice(&bytes[..count])).map_err(stopped)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pieces = None;
        Poll::Ready(Ok(()))
    }
}

/// The reading end for the thread.
pub(super) struct Inlet {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Inlet {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let count = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
