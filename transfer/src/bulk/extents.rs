//! Extents: pieces of numbered objects at offsets of the caller's choice. Any connection carries any piece, in any order, so that all of
//! them are busy to the end; and nothing is kept about a piece but its part of one digest, however many there are.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::chunks::{self, Pack, Packed, Put};
use super::transfer::{Progress, Transfer};
use super::{CHUNK, Limits, Stats};
use crate::codec::{Packer, Place, Unpacker, seal};
use crate::error::Error;
use crate::session::TransferParts;
use crate::wire::chunk::{Encoding, Header};
use crate::wire::message::{Content, PiecesDigest};

/// The whole's name in errors.
const NAME: &str = "the set of extents";

/// A piece of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Number of the object; what it stands for, the two callers know.
    pub object: u32,
    /// Where the piece begins in its object, in bytes.
    pub offset: u64,
    /// In bytes: 1 to [`Extent::MAX_LENGTH`], and no further than byte 2^64 - 1 of the object.
    pub length: u32,
}

impl Extent {
    /// The longest piece, in bytes (1 MiB).
    pub const MAX_LENGTH: u32 = CHUNK;

    fn check(self) -> Result<(), &'static str> {
        if self.length == 0 || self.length > Self::MAX_LENGTH {
            return Err("a piece is between 1 byte and 1 MiB long");
        }
        if self.offset.checked_add(u64::from(self.length)).is_none() {
            return Err("a piece ends within the 2^64 bytes of its object");
        }
        Ok(())
    }
}

/// Where the pieces of [`Session::send_extents`](crate::Session::send_extents) come from.
///
/// Called from several of tokio's blocking threads at once. A transfer that is given up still waits for the calls under way.
pub trait ExtentSource: Send + Sync + 'static {
    /// The next piece to be sent, none that overlaps another of the same transfer. Once it gave `None` there are no more.
    fn next(&self) -> Option<Extent>;

    /// Reads a piece that [`ExtentSource::next`] gave. `buffer` has its length, and arbitrary contents.
    ///
    /// Gives the number of bytes, from the start of the piece, that are there any more and are to be sent; 0: none of it.
    ///
    /// # Errors
    /// Any error ends the transfer, and both sides learn it.
    fn read(&self, extent: Extent, buffer: &mut [u8]) -> io::Result<usize>;
}

/// Where the pieces of [`Session::receive_extents`](crate::Session::receive_extents) go, each verified by its checksum.
///
/// Called from several of tokio's blocking threads at once, for the pieces in any order. Which objects and offsets make sense is for the
/// sink to say: they are what the peer says, checked only for `offset` plus length being below 2^64. The pieces that an honest peer
/// sends do not overlap.
pub trait ExtentSink: Send + Sync + 'static {
    /// Takes a piece: at least 1 byte, at most 4 MiB.
    ///
    /// # Errors
    /// Any error ends the transfer, and both sides learn it.
    fn put(&self, object: u32, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Takes a piece of zeros, at least 1 byte and at most 4 MiB, of which only the length came over the wire.
    ///
    /// # Errors
    /// As for [`ExtentSink::put`].
    fn zero(&self, object: u32, offset: u64, length: u32) -> io::Result<()>;
}

/// See [`crate::Session::send_extents`].
pub(crate) async fn send(
    parts: TransferParts<'_>,
    source: Arc<dyn ExtentSource>,
    progress: Progress<'_>,
) -> Result<Stats, Error> {
    let (mut transfer, connections) = Transfer::new(parts, progress);
    let outcome = async {
        transfer.announce(Content::Extents).await?;
        let outgoing = Arc::new(Outgoing { source, digest: Mutex::default() });
        for (index, connection) in connections.into_iter().enumerate() {
            transfer.workers.spawn(chunks::send(index, connection, outgoing.clone(), transfer.context.clone()));
        }
        let ((), connections) = transfer.drive(async { Ok(()) }).await?;
        let digest = outgoing.digest.lock().unwrap_or_else(PoisonError::into_inner).finish();
        transfer.finish(vec![digest]).await?;
        Ok(connections)
    }
    .await;
    transfer.conclude(outcome).await
}

/// See [`crate::Session::receive_extents`].
pub(crate) async fn receive(
    parts: TransferParts<'_>,
    sink: Arc<dyn ExtentSink>,
    limits: &Limits,
    progress: Progress<'_>,
) -> Result<Stats, Error> {
    let (mut transfer, connections) = Transfer::new(parts, progress);
    let outcome = async {
        let (Content::Extents, chunk_bytes) = transfer.announced().await? else {
            return Err(transfer.protocol("both sides mean the same kind of transfer, here extents"));
        };
        let incoming = Arc::new(Incoming { sink, max_bytes: limits.max_bytes, digest: Mutex::default() });
        for (index, connection) in connections.into_iter().enumerate() {
            let (incoming, context) = (incoming.clone(), transfer.context.clone());
            transfer.workers.spawn(chunks::receive(index, connection, incoming, chunk_bytes, context));
        }
        let ((), connections) = transfer.drive(async { Ok(()) }).await?;
        let digest = incoming.digest.lock().unwrap_or_else(PoisonError::into_inner).finish();
        if transfer.finished().await?.digests != [digest] {
            return Err(Error::Digest { peer: transfer.context.peer.to_string(), object: NAME.into() });
        }
        transfer.confirm().await?;
        Ok(connections)
    }
    .await;
    transfer.conclude(outcome).await
}

fn extent_error(action: &'static str, object: u32, offset: u64) -> impl Fn(io::Error) -> Error {
    move |source| Error::Extent { action, object, offset, source: Arc::new(source) }
}

/// What the connections of a sender share.
struct Outgoing {
    source: Arc<dyn ExtentSource>,
    digest: Mutex<PiecesDigest>,
}

impl Pack for Outgoing {
    fn pack(&self, transfer: u32, packer: &mut Packer, raw: &mut Vec<u8>) -> Result<Packed, Error> {
        let Some(extent) = self.source.next() else { return Ok(Packed::End) };
        self.read(extent, raw).map_err(extent_error("read", extent.object, extent.offset))?;
        if raw.is_empty() {
            return Ok(Packed::Gone);
        }
        let place = Place { transfer, object: extent.object, offset: extent.offset };
        let header = packer.pack(place, raw, seal(raw));
        self.digest.lock().unwrap_or_else(PoisonError::into_inner).piece(&header);
        Ok(Packed::Piece(header))
    }
}

impl Outgoing {
    /// Reads what is there of a piece; `raw` then has its length.
    fn read(&self, extent: Extent, raw: &mut Vec<u8>) -> io::Result<()> {
        extent.check().map_err(|rule| io::Error::new(io::ErrorKind::InvalidInput, rule))?;
        raw.resize(extent.length as usize, 0);
        let length = self.source.read(extent, raw)?;
        if length > raw.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its reader gave more bytes than it was asked for"));
        }
        raw.truncate(length);
        Ok(())
    }
}

/// What the connections of a receiver share.
struct Incoming {
    sink: Arc<dyn ExtentSink>,
    max_bytes: u64,
    digest: Mutex<PiecesDigest>,
}

impl Put for Incoming {
    fn put(&self, header: &Header, stored: &mut Vec<u8>, unpacker: &mut Unpacker, peer: &str) -> Result<(), Error> {
        self.admit(header, peer)?;
        let Header { object, offset, raw_length, .. } = *header;
        unpacker.unpack(header, stored, &format!("object {object}"), peer)?;
        let result = match header.encoding {
            Encoding::Zero => self.sink.zero(object, offset, raw_length),
            _ => self.sink.put(object, offset, stored),
        };
        result.map_err(extent_error("write", object, offset))
    }
}

impl Incoming {
    /// Counts a piece whose length fits the agreed one, before anything is done for it: the sink never gets more than the limit.
    fn admit(&self, header: &Header, peer: &str) -> Result<(), Error> {
        let length = u64::from(header.raw_length);
        if header.offset.checked_add(length).is_none() {
            let rule = "a piece ends within the 2^64 bytes of its object";
            return Err(Error::Protocol { peer: peer.into(), rule });
        }
        let mut digest = self.digest.lock().unwrap_or_else(PoisonError::into_inner);
        let (actual, limit) = (digest.length().saturating_add(length), self.max_bytes);
        if actual > limit {
            return Err(Error::Limit { what: "the sum of the extents (bytes)", actual, limit });
        }
        digest.piece(header);
        Ok(())
    }
}
