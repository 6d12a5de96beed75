//! One data connection of a transfer whose pieces may go in any order: chunks until the end mark.

use std::sync::Arc;

use super::transfer::{Context, Outlet, Worker};
use crate::codec::{Packer, Unpacker};
use crate::error::Error;
use crate::wire::Connection;
use crate::wire::chunk::{self, Encoding, Header};

/// What became of asking for the next piece.
pub(crate) enum Packed {
    /// The packer has a chunk.
    Piece(Header),
    /// Nothing of the piece was there any more.
    Gone,
    /// There are no more.
    End,
}

/// What all connections of a sender take their pieces from: takes, reads and packs one, of the transfer with this number.
pub(crate) trait Pack: Send + Sync + 'static {
    fn pack(&self, transfer: u32, packer: &mut Packer, raw: &mut Vec<u8>) -> Result<Packed, Error>;
}

/// What all connections of a receiver give their pieces to: verifies one and puts it in its place.
pub(crate) trait Put: Send + Sync + 'static {
    fn put(&self, header: &Header, stored: &mut Vec<u8>, unpacker: &mut Unpacker, peer: &str) -> Result<(), Error>;
}

/// Sends pieces over one connection until there are no more.
pub(crate) async fn send(index: usize, connection: Connection, pieces: Arc<impl Pack>, context: Context) -> Worker {
    let mut packer = Packer::new(context.link.clone())?;
    let mut outlet = Outlet::new(index, connection, context.clone());
    let mut raw = Vec::new();
    loop {
        let (pieces, number) = (pieces.clone(), context.number);
        let packed;
        (packer, raw, packed) = context
            .jobs
            .run(move || {
                let packed = pieces.pack(number, &mut packer, &mut raw);
                (packer, raw, packed)
            })
            .await;
        let header = match packed? {
            Packed::Piece(header) => header,
            // Back here after each of them, so that a transfer that is given up does not wait for a long row.
            Packed::Gone => continue,
            Packed::End => break,
        };
        outlet.send(&mut packer, &header).await?;
    }
    outlet.end().await
}

/// Receives pieces over one connection until its end mark.
pub(crate) async fn receive(
    index: usize,
    mut connection: Connection,
    place: Arc<impl Put>,
    chunk_bytes: u32,
    context: Context,
) -> Worker {
    let mut unpacker = Unpacker::new()?;
    let mut stored = Vec::new();
    let mut chunks = 0;
    loop {
        let header = chunk::read(&mut connection, &mut stored, context.number, chunk_bytes, &context.peer).await?;
        if header.encoding == Encoding::End {
            context.check_end(&header, chunks)?;
            return Ok((index, connection));
        }
        let (place, peer) = (place.clone(), context.peer.clone());
        let result;
        (unpacker, stored, result) = context
            .jobs
            .run(move || {
                let result = place.put(&header, &mut stored, &mut unpacker, &peer);
                (unpacker, stored, result)
            })
            .await;
        result?;
        context.meter.add(&header);
        chunks += 1;
    }
}
