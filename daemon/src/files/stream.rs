//! The two ends of an archive as byte streams: the blocking reader or writer runs on a thread of its own.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Error, Snapshot, Totals};

/// An archive being made. Read it to its end, then call [`finish`](Self::finish). Dropping it stops the work.
#[derive(Debug, Default)]
pub struct ArchiveStream {}

impl ArchiveStream {
    /// After the end of the stream: what was sent, and what was seen.
    ///
    /// # Errors
    /// What stopped the work. (Reading the stream fails then too, with the same text.)
    pub async fn finish(self) -> Result<(Arc<Snapshot>, Totals), Error> {
        Ok(Default::default())
    }
}

impl AsyncRead for ArchiveStream {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// An archive being written to its places. Write all of it, then call [`finish`](Self::finish). Dropping it stops the work and
/// leaves the places half done.
#[derive(Debug, Default)]
pub struct ArchiveSink {}

impl ArchiveSink {
    /// Waits until everything is in place.
    ///
    /// # Errors
    /// What stopped the work; an archive without its end mark is truncated, and that is an error too.
    pub async fn finish(self) -> Result<Totals, Error> {
        Ok(Totals::default())
    }
}

impl AsyncWrite for ArchiveSink {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
