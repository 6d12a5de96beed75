//! What `fuzz/` needs of the inside: decoders as functions of bytes, and sessions whose peer is a script. Behind the feature `fuzzing`.
//!
//! A checksum keeps a fuzzer out as it keeps damage out. So there are the encoders as well, with which a target puts the right checksum on
//! the wrong contents, as a hostile peer would.

use std::io::Cursor;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::Error;
use crate::session::Session;
use crate::wire::chunk::{self, Encoding, Header};
use crate::wire::hello::{Hello, Role, Welcome};
use crate::wire::message::{Digest, PiecesDigest};
use crate::wire::{Connection, frame};

/// Reads frames until the first error.
pub async fn frames(mut bytes: &[u8]) {
    while frame::read(&mut bytes, "peer").await.is_ok() {}
}

/// Reads chunks of transfer 1 until the first error; never holds more than was sent, and one buffer's growth.
pub async fn chunks(bytes: &[u8]) {
    let (mut rest, mut stored) = (bytes, Vec::new());
    while chunk::read(&mut rest, &mut stored, 1, 4 << 20, "peer").await.is_ok() {}
    assert!(stored.capacity() <= 4 * bytes.len() + (256 << 10), "{} of {}", stored.capacity(), bytes.len());
}

/// Reads a hello, and a welcome; what is understood must be written as it was read, but for the bytes that must be zero.
pub async fn hellos(bytes: &[u8]) {
    if let Ok(hello) = Hello::read(&mut &bytes[..], "peer").await {
        assert_eq!(Hello::read(&mut &hello.encode()[..], "peer").await.unwrap(), hello);
    }
    if let Ok(welcome) = Welcome::read(&mut &bytes[..], "peer").await {
        assert_eq!(Welcome::read(&mut &welcome.encode()[..], "peer").await.unwrap(), welcome);
    }
}

/// The accepting side's handshake after TLS; whether it was a control connection with a number of data connections that is granted.
pub async fn greet(bytes: Vec<u8>) -> Result<bool, Error> {
    let mut stream = Script::new(bytes, false);
    let limit = std::time::Duration::from_secs(5);
    let (_, role) = crate::session::greet(&mut stream, "peer", limit).await?;
    Ok(matches!(role, Role::Control { data_connections: 1.. }))
}

/// A control frame of the application (kind 1), about a transfer (2), or a goodbye (anything else).
pub async fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let kind = match kind {
        1 => frame::Kind::Message,
        2 => frame::Kind::Transfer,
        _ => frame::Kind::Goodbye,
    };
    let mut bytes = Vec::new();
    // Into memory nothing fails.
    let _ = frame::write(&mut bytes, kind, payload, "peer").await;
    bytes
}

/// Of a chunk's header, what a peer may choose; the fields are those of the layout.
#[derive(Debug, Clone, Copy)]
pub struct Chunk {
    /// 0 raw, 1 zstd, 2 zero, else the end mark.
    pub encoding: u8,
    /// Number of the transfer.
    pub transfer: u32,
    /// Number of the object.
    pub object: u32,
    /// In bytes; for an end mark, a number of chunks.
    pub offset: u64,
    /// In bytes.
    pub raw_length: u32,
    /// Stored length in bytes; `None`: as long as the stored bytes are.
    pub stored_length: Option<u32>,
    /// Of the raw bytes; `None`: the right one, if they are stored raw.
    pub checksum: Option<u64>,
}

/// A chunk with a right checksum of its header.
pub fn chunk(about: Chunk, stored: &[u8]) -> Vec<u8> {
    [&header(about, stored).encode()[..], stored].concat()
}

fn header(about: Chunk, stored: &[u8]) -> Header {
    Header {
        encoding: match about.encoding {
            0 => Encoding::Raw,
            1 => Encoding::Zstd,
            2 => Encoding::Zero,
            _ => Encoding::End,
        },
        transfer: about.transfer,
        object: about.object,
        offset: about.offset,
        raw_length: about.raw_length,
        stored_length: about.stored_length.unwrap_or(stored.len() as u32),
        checksum: about.checksum.unwrap_or_else(|| checksum(stored)),
    }
}

/// A chunk's checksum.
pub fn checksum(raw: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(raw)
}

/// An object's digest, from the checksums and raw lengths (bytes) of its chunks.
pub fn digest(chunks: &[(u64, u64)]) -> String {
    let mut digest = Digest::default();
    for (checksum, length) in chunks {
        digest.chunk(*checksum, *length);
    }
    digest.finish()
}

/// The digest of extents, from what their chunks say and store.
pub fn pieces_digest<'a>(chunks: impl IntoIterator<Item = (Chunk, &'a [u8])>) -> String {
    let mut digest = PiecesDigest::default();
    chunks.into_iter().for_each(|(about, stored)| digest.piece(&header(about, stored)));
    digest.finish()
}

/// A session whose peer says these bytes over the control connection and then falls silent, and these over each data connection
/// and then hangs up. What is sent to it is lost.
pub fn session(control: Vec<u8>, data: Vec<Vec<u8>>) -> Session {
    let data = data.into_iter().map(|bytes| Box::new(Script::new(bytes, false)) as Connection).collect();
    let control = Box::new(Script::new(control, true));
    Session::new(control, data, "peer".into(), ([127, 0, 0, 1], 7077).into(), 1)
}

/// A connection to a peer that says what it says.
struct Script {
    bytes: Cursor<Vec<u8>>,
    /// At the end of its words it is silent, instead of hanging up.
    silent: bool,
}

impl Script {
    fn new(bytes: Vec<u8>, silent: bool) -> Self {
        Self { bytes: Cursor::new(bytes), silent }
    }
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.silent && self.bytes.position() >= self.bytes.get_ref().len() as u64 {
            return Poll::Pending;
        }
        Pin::new(&mut self.bytes).poll_read(context, out)
    }
}

impl AsyncWrite for Script {
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
