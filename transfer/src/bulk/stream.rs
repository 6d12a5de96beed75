//! A stream of bytes in order. Its chunks go round the connections in turn, first, second, ..., first again, and are taken from them in
//! the same turn; so the order needs no buffer but one chunk per connection.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::transfer::{Context, Outlet, Progress, Transfer, Worker};
use super::{CHUNK, Stats};
use crate::codec::{Packer, Place, Unpacker, seal};
use crate::error::Error;
use crate::session::TransferParts;
use crate::wire::Connection;
use crate::wire::chunk::{self, Encoding, Header};
use crate::wire::message::{Content, Digest};

/// The stream's name in errors.
const NAME: &str = "the stream";
/// Chunks that wait between the caller's end and each connection's task.
const WAITING: usize = 1;

/// See [`crate::Session::send_stream`].
pub(crate) async fn send(
    parts: TransferParts<'_>,
    source: impl AsyncRead + Send + Unpin,
    progress: Progress<'_>,
) -> Result<Stats, Error> {
    let (mut transfer, connections) = Transfer::new(parts, progress);
    let outcome = async {
        transfer.announce(Content::Stream).await?;
        let buffers = Buffers::default();
        let mut queues = Vec::new();
        for (index, connection) in connections.into_iter().enumerate() {
            let (queue, pieces) = mpsc::channel(WAITING);
            queues.push(queue);
            let context = transfer.context.clone();
            transfer.workers.spawn(send_chunks(index, connection, pieces, buffers.clone(), context));
        }
        let (digest, connections) = transfer.drive(cut(source, queues, buffers)).await?;
        transfer.finish(vec![digest]).await?;
        Ok(connections)
    }
    .await;
    transfer.conclude(outcome).await
}

/// See [`crate::Session::receive_stream`].
pub(crate) async fn receive(
    parts: TransferParts<'_>,
    mut sink: impl AsyncWrite + Send + Unpin,
    max_bytes: u64,
    progress: Progress<'_>,
) -> Result<Stats, Error> {
    let (mut transfer, connections) = Transfer::new(parts, progress);
    let outcome = async {
        let (Content::Stream, chunk_bytes) = transfer.announced().await? else {
            return Err(transfer.protocol("both sides mean the same kind of transfer, here a stream"));
        };
        let buffers = Buffers::default();
        let mut queues = Vec::new();
        for (index, connection) in connections.into_iter().enumerate() {
            let (queue, pieces) = mpsc::channel(WAITING);
            queues.push(pieces);
            let (buffers, context) = (buffers.clone(), transfer.context.clone());
            transfer.workers.spawn(receive_chunks(index, connection, queue, chunk_bytes, buffers, context));
        }
        let join = join(&mut sink, queues, max_bytes, buffers, transfer.context.clone());
        let (digest, connections) = transfer.drive(join).await?;
        if transfer.finished().await?.digests != [digest] {
            return Err(Error::Digest { peer: transfer.context.peer.to_string(), object: NAME.into() });
        }
        sink.shutdown().await.map_err(sink_error)?;
        transfer.confirm().await?;
        Ok(connections)
    }
    .await;
    transfer.conclude(outcome).await
}

fn sink_error(source: std::io::Error) -> Error {
    Error::Sink { source: Arc::new(source) }
}

/// Buffers that go round, instead of new memory for every chunk.
#[derive(Clone, Default)]
struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn give(&self, buffer: Vec<u8>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

/// Raw bytes on their way from the source to a connection.
struct Piece {
    offset: u64,
    raw: Vec<u8>,
    checksum: Option<u64>,
}

/// Sender: cuts the stream into chunks and deals them out; gives its digest.
async fn cut(
    mut source: impl AsyncRead + Unpin,
    queues: Vec<mpsc::Sender<Piece>>,
    buffers: Buffers,
) -> Result<String, Error> {
    let mut digest = Digest::default();
    for queue in queues.iter().cycle() {
        let mut raw = buffers.take();
        raw.clear();
        let mut chunk = (&mut source).take(u64::from(CHUNK));
        chunk.read_to_end(&mut raw).await.map_err(|source| Error::Source { source: Arc::new(source) })?;
        if raw.is_empty() {
            break;
        }
        let (offset, checksum) = (digest.length(), seal(&raw));
        digest.chunk(checksum.unwrap_or(0), raw.len() as u64);
        if queue.send(Piece { offset, raw, checksum }).await.is_err() {
            break; // That connection's task has failed and says so itself.
        }
    }
    Ok(digest.finish())
}

/// Sender: packs and sends the chunks of one connection.
async fn send_chunks(
    index: usize,
    connection: Connection,
    mut pieces: mpsc::Receiver<Piece>,
    buffers: Buffers,
    context: Context,
) -> Worker {
    let mut packer = Packer::new(context.link.clone())?;
    let mut outlet = Outlet::new(index, connection, context.clone());
    while let Some(Piece { offset, raw, checksum }) = pieces.recv().await {
        let place = Place { transfer: context.number, object: 0, offset };
        let (used, header, raw) = context
            .jobs
            .run(move || {
                let header = packer.pack(place, &raw, checksum);
                (packer, header, raw)
            })
            .await;
        packer = used;
        buffers.give(raw);
        outlet.send(&mut packer, &header).await?;
    }
    outlet.end().await
}

/// Receiver: reads, verifies and unpacks the chunks of one connection.
async fn receive_chunks(
    index: usize,
    mut connection: Connection,
    queue: mpsc::Sender<(Header, Vec<u8>)>,
    chunk_bytes: u32,
    buffers: Buffers,
    context: Context,
) -> Worker {
    let mut unpacker = Unpacker::new()?;
    let mut chunks = 0;
    loop {
        let mut stored = buffers.take();
        let header = chunk::read(&mut connection, &mut stored, context.number, chunk_bytes, &context.peer).await?;
        if header.encoding == Encoding::End {
            context.check_end(&header, chunks)?;
            return Ok((index, connection));
        }
        let peer = context.peer.clone();
        let (used, raw, result) = context
            .jobs
            .run(move || {
                let result = unpacker.unpack(&header, &mut stored, NAME, &peer);
                (unpacker, stored, result)
            })
            .await;
        unpacker = used;
        result?;
        if queue.send((header, raw)).await.is_err() {
            // Nobody takes it: the sink failed, or a connection before this one ended too early.
            return Err(Error::Protocol { peer: context.peer.to_string(), rule: "chunks go round the connections" });
        }
        chunks += 1;
    }
}

/// Receiver: takes the chunks in turn and writes them out; gives the stream's digest.
async fn join(
    mut sink: impl AsyncWrite + Unpin,
    mut queues: Vec<mpsc::Receiver<(Header, Vec<u8>)>>,
    max_bytes: u64,
    buffers: Buffers,
    context: Context,
) -> Result<String, Error> {
    let zeros = vec![0; CHUNK as usize];
    let mut digest = Digest::default();
    let mut turn = 0;
    let count = queues.len();
    // The first connection that has ended, or failed and says so itself, ends the stream.
    while let Some((header, raw)) = queues[turn % count].recv().await {
        if header.offset != digest.length() || header.object != 0 {
            let rule = "the chunks of a stream follow each other";
            return Err(Error::Protocol { peer: context.peer.to_string(), rule });
        }
        digest.chunk(header.checksum, u64::from(header.raw_length));
        if digest.length() > max_bytes {
            return Err(Error::Limit { what: "the stream (bytes)", actual: digest.length(), limit: max_bytes });
        }
        if header.encoding == Encoding::Zero {
            let mut rest = header.raw_length as usize;
            while rest > 0 {
                let part = rest.min(zeros.len());
                sink.write_all(&zeros[..part]).await.map_err(sink_error)?;
                rest -= part;
            }
        } else {
            sink.write_all(&raw).await.map_err(sink_error)?;
        }
        context.meter.add(&header);
        buffers.give(raw);
        turn += 1;
    }
    Ok(digest.finish())
}
