//! One object on its way: bytes, compressed, sealed, in parts; and back.
//!
//! ```text
//! bytes ─► zstd ─► seal ─► SHA-256 ─► parts ─► store        store ─► parts ─► SHA-256 ─► open ─► zstd ─► bytes
//!          └─── a blocking thread ──┘                                         └──── a blocking thread ────┘
//! ```
//!
//! **Bounded memory.** `concurrency` parts of [`PART`] on their way, one that is being filled (or read), and about 5 MiB between the stages,
//! whatever the length of the object: 85 MiB with the four of the default.
//!
//! **Interruptions.** A part that could not be sent is sent again by the store's client; one that could not be read is read again by
//! [`Store::part`]. What has arrived does not travel twice.

use std::io::{self, Read, Write};
use std::time::Instant;

use bytes::{Buf as _, Bytes};
use futures_util::{Stream, StreamExt as _};
use object_store::buffered::BufWriter;
use ring::aead::LessSafeKey;
use ring::digest::{Context, SHA256};
use spothop_transfer::Stats;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::task::AbortOnDropHandle;

use super::Error;
use super::manifest::Object;
use super::seal::{Broken, Opener, PIECE, Sealer};
use super::store::{PART, Store};
use crate::hex;
use crate::migration::unpanicked;

/// zstd's level: the fastest of those that shrink memory well. What is parked waits for longer than any of them takes.
const LEVEL: i32 = 1;

/// Pieces between two stages.
const BETWEEN: usize = 4;

/// Told the raw bytes so far.
pub(super) type Progress<'a> = &'a (dyn Fn(u64) + Send + Sync);

/// What became of an object that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) raw_bytes: u64,
    pub(super) size: u64,
    pub(super) sha256: String,
}

/// What goes from stage to stage. Without an end nothing becomes of it.
enum Piece {
    Bytes(Bytes),
    End,
}

/// Writes an object. `pieces` are its plain bytes.
pub(super) async fn write(
    store: &Store,
    name: &str,
    key: LessSafeKey,
    concurrency: usize,
    mut pieces: impl Stream<Item = io::Result<Bytes>> + Unpin,
    progress: Progress<'_>,
) -> Result<Written, Error> {
    let (plain, plain_pieces) = mpsc::channel(BETWEEN);
    let (sealed, sealed_pieces) = mpsc::channel(BETWEEN);
    let sealing = spawn_blocking(move || seal(plain_pieces, key, sealed));
    let sending = tokio::spawn(send(store.clone(), name.to_owned(), concurrency, sealed_pieces));
    let mut raw_bytes = 0;
    let mut failure = None;
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => {
                raw_bytes += piece.len() as u64;
                if plain.send(Piece::Bytes(piece)).await.is_err() {
                    break;
                }
                progress(raw_bytes);
            }
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    if failure.is_none() {
        // That it has ended is told below.
        let _ = plain.send(Piece::End).await;
    }
    drop(plain);
    // No thread and no request of ours is left when this returns.
    let (sealed, sent) = (unpanicked(sealing.await), unpanicked(sending.await));
    match (failure, sent, sealed) {
        (Some(error), ..) => Err(Error::Source(error)),
        (None, Err(failure), _) => Err(failure),
        (None, Ok(()), Err(error)) => Err(Error::Source(error)),
        (None, Ok(()), Ok((size, sha256))) => Ok(Written { raw_bytes, size, sha256 }),
    }
}

/// Bytes to pieces, with what there is to know about all of them.
struct Outlet {
    pieces: mpsc::Sender<Piece>,
    digest: Context,
    size: u64,
}

impl Outlet {
    fn send(&self, piece: Piece) -> io::Result<()> {
        self.pieces.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.digest.update(bytes);
        self.size += bytes.len() as u64;
        self.send(Piece::Bytes(Bytes::copy_from_slice(bytes)))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Compresses and seals. Returns how much that has become, and its digest.
fn seal(mut plain: mpsc::Receiver<Piece>, key: LessSafeKey, sealed: mpsc::Sender<Piece>) -> io::Result<(u64, String)> {
    let outlet = Outlet { pieces: sealed, digest: Context::new(&SHA256), size: 0 };
    let mut encoder = zstd::stream::write::Encoder::new(Sealer::new(key, outlet), LEVEL)?;
    while let Some(piece) = plain.blocking_recv() {
        match piece {
            Piece::Bytes(bytes) => encoder.write_all(&bytes)?,
            Piece::End => {
                let outlet = encoder.finish()?.finish()?;
                outlet.send(Piece::End)?;
                return Ok((outlet.size, hex::encode(outlet.digest.finish().as_ref())));
            }
        }
    }
    Err(io::ErrorKind::BrokenPipe.into())
}

/// Sends it to the store in parts; there is an object only after the end.
async fn send(store: Store, name: String, concurrency: usize, mut pieces: mpsc::Receiver<Piece>) -> Result<(), Error> {
    let (target, path) = store.target(&name);
    let mut writer = BufWriter::with_capacity(target, path, PART).with_max_concurrency(concurrency);
    let failure = loop {
        match pieces.recv().await {
            Some(Piece::Bytes(bytes)) => {
                if let Err(failure) = writer.put(bytes).await {
                    break store.failed("write", &name)(failure);
                }
            }
            Some(Piece::End) => {
                return writer.shutdown().await.map_err(|source| {
                    store.failed("write", &name)(object_store::Error::Generic {
                        store: "object",
                        source: Box::new(source),
                    })
                });
            }
            None => break Error::Stopped { url: store.url_of(&name) },
        }
    };
    // A bucket keeps the parts of an upload that was not given up until its lifecycle rules remove them.
    let _ = writer.abort().await;
    Err(failure)
}

/// Reads an object. `work` gets its plain bytes on a blocking thread; only `Ok` here means that it got all of them, and the right ones.
pub(super) async fn read<T: Send + 'static>(
    store: &Store,
    object: &Object,
    key: LessSafeKey,
    concurrency: usize,
    progress: Progress<'_>,
    work: impl FnOnce(&mut dyn Read) -> io::Result<T> + Send + 'static,
) -> Result<(T, Stats), Error> {
    let begun = Instant::now();
    let (sender, parts) = mpsc::channel(1);
    // Ends with this, and with it the thread, should this be given up.
    let fetching = AbortOnDropHandle::new(tokio::spawn(fetch(
        store.clone(),
        object.name.clone(),
        object.size,
        concurrency,
        sender,
    )));
    let (counts, mut counted) = mpsc::unbounded_channel();
    let wanted = object.clone();
    let opening = spawn_blocking(move || open(parts, key, &wanted, counts, work));
    while let Some(count) = counted.recv().await {
        progress(count);
    }
    let opened = unpanicked(opening.await);
    // What could not be read explains what did not open.
    unpanicked(fetching.await)?;
    let value = opened.map_err(|failure| match failure {
        Opening::Tampered(what) => Error::Tampered { url: store.url_of(&object.name), what },
        Opening::Sink(error) => Error::Sink(error),
    })?;
    let stats = Stats { raw_bytes: object.raw_bytes, wire_bytes: object.size, zero_bytes: 0, elapsed: begun.elapsed() };
    Ok((value, stats))
}

/// The parts in order, some of them on their way at once.
async fn fetch(
    store: Store,
    name: String,
    size: u64,
    concurrency: usize,
    out: mpsc::Sender<Bytes>,
) -> Result<(), Error> {
    let ranges = (0..size).step_by(PART).map(|start| start..(start + PART as u64).min(size));
    let mut parts = futures_util::stream::iter(ranges).map(|range| store.part(&name, range)).buffered(concurrency);
    while let Some(part) = parts.next().await {
        if out.send(part?).await.is_err() {
            // Whoever reads has stopped, and says why.
            return Ok(());
        }
    }
    Ok(())
}

/// Why an object did not become what it was.
enum Opening {
    Tampered(String),
    Sink(io::Error),
}

/// The sealed bytes as they come.
struct Inlet {
    parts: mpsc::Receiver<Bytes>,
    part: Bytes,
    digest: Context,
}

impl Read for Inlet {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.part.is_empty() {
            match self.parts.blocking_recv() {
                Some(part) => self.part = part,
                None => return Ok(0),
            }
        }
        let count = self.part.len().min(buffer.len());
        self.part.copy_to_slice(&mut buffer[..count]);
        self.digest.update(&buffer[..count]);
        Ok(count)
    }
}

/// The plain bytes, counted; notes an error of the stream itself.
struct Counted<R> {
    from: R,
    total: u64,
    counts: mpsc::UnboundedSender<u64>,
    broken: Option<String>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer).inspect_err(|error| self.broken = Some(error.to_string()))?;
        self.total += count as u64;
        // Nobody may be interested any more.
        let _ = self.counts.send(self.total);
        Ok(count)
    }
}

fn open<T>(
    parts: mpsc::Receiver<Bytes>,
    key: LessSafeKey,
    object: &Object,
    counts: mpsc::UnboundedSender<u64>,
    work: impl FnOnce(&mut dyn Read) -> io::Result<T>,
) -> Result<T, Opening> {
    let inlet = Inlet { parts, part: Bytes::new(), digest: Context::new(&SHA256) };
    let opener = io::BufReader::with_capacity(PIECE, Opener::new(key, inlet));
    let decoder = zstd::stream::read::Decoder::with_buffer(opener).map_err(Opening::Sink)?;
    let mut plain = Counted { from: decoder, total: 0, counts, broken: None };
    let worked = work(&mut plain);
    if let Some(what) = plain.broken.take() {
        return Err(Opening::Tampered(what));
    }
    let value = worked.map_err(Opening::Sink)?;
    // To the end, which alone says that nothing was cut off.
    let rest = io::copy(&mut plain, &mut io::sink());
    let tampered = |what: &str| Opening::Tampered(what.to_owned());
    rest.map_err(|error| Opening::Tampered(error.to_string()))?;
    let total = plain.total;
    let mut opener = plain.from.finish();
    if io::copy(&mut opener, &mut io::sink()).map_err(|_| tampered(&Broken.to_string()))? > 0 {
        return Err(tampered("something follows its end"));
    }
    let digest = hex::encode(opener.into_inner().into_inner().digest.finish().as_ref());
    if total != object.raw_bytes || digest != object.sha256 {
        return Err(tampered("it is another than its manifest names"));
    }
    Ok(value)
}

/// What a blocking job gives, as a stream; with what went wrong in it at the end.
pub(super) fn pieces_of(
    job: impl FnOnce(&super::records::Pieces) -> io::Result<()> + Send + 'static,
) -> (impl Stream<Item = io::Result<Bytes>> + Unpin, JoinHandle<()>) {
    let (sender, mut pieces) = mpsc::channel(BETWEEN);
    let job = spawn_blocking(move || {
        if let Err(error) = job(&sender) {
            // Nobody listens any more if it was given up.
            let _ = sender.blocking_send(Err(error));
        }
    });
    (futures_util::stream::poll_fn(move |context| pieces.poll_recv(context)), job)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use object_store::memory::InMemory;

    use super::*;
    use crate::parking::key::DataKey;
    use crate::parking::manifest::Kind;

    fn noise(length: usize) -> Bytes {
        // Xorshift (Marsaglia 2003): nothing that zstd can shrink.
        let mut state = 88_172_645_463_325_252_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..length).map(|_| next()).collect()
    }

    async fn put(store: &Store, key: &DataKey, name: &str, bytes: &Bytes) -> Object {
        let pieces: Vec<_> = bytes.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let pieces = futures_util::stream::iter(pieces);
        let written = write(store, name, key.of_object(name).unwrap(), 3, pieces, &|_| {}).await.unwrap();
        let Written { raw_bytes, size, sha256 } = written;
        Object { name: name.to_owned(), kind: Kind::Files, announced: 0, raw_bytes, size, sha256 }
    }

    async fn get(store: &Store, key: &DataKey, object: &Object) -> Result<Vec<u8>, Error> {
        let work = |from: &mut dyn Read| {
            let mut all = Vec::new();
            from.read_to_end(&mut all).map(|_| all)
        };
        let key = key.of_object(&object.name).unwrap();
        read(store, object, key, 3, &|_| {}, work).await.map(|(bytes, _)| bytes)
    }

    #[tokio::test]
    async fn an_object_of_several_parts_comes_back_and_progress_is_told() {
        let store = Store::over(Arc::new(InMemory::new()));
        let key = DataKey::random().unwrap();
        for length in [0, 1, PART - 1, 2 * PART + 12345] {
            let bytes = noise(length);
            let object = put(&store, &key, "o", &bytes).await;
            assert_eq!(object.raw_bytes, length as u64);
            assert!(get(&store, &key, &object).await.unwrap() == bytes, "{length}");
            let told = AtomicU64::new(0);
            let count = |count| told.store(count, Ordering::Relaxed);
            let sealed = key.of_object("o").unwrap();
            read(&store, &object, sealed, 1, &count, |from| io::copy(from, &mut io::sink())).await.unwrap();
            assert_eq!(told.load(Ordering::Relaxed), length as u64);
        }
    }

    #[tokio::test]
    async fn an_object_that_was_cut_changed_or_put_in_anothers_place_is_found() {
        let store = Store::over(Arc::new(InMemory::new()));
        let key = DataKey::random().unwrap();
        let bytes = noise(3 * PIECE);
        let object = put(&store, &key, "o", &bytes).await;
        let other = put(&store, &key, "p", &bytes).await;
        let there = store.get("o").await.unwrap().unwrap();
        let mut changed = there.to_vec();
        changed[PIECE + 5] ^= 1;
        for wrong in [Bytes::from(changed), store.get("p").await.unwrap().unwrap()] {
            store.put("o", wrong).await.unwrap();
            assert!(matches!(get(&store, &key, &object).await, Err(Error::Tampered { .. })));
        }
        store.put("o", there.slice(..there.len() - 1)).await.unwrap();
        get(&store, &key, &object).await.unwrap_err();
        store.delete("o").await.unwrap();
        assert!(matches!(get(&store, &key, &object).await, Err(Error::Store { .. })));
        get(&store, &key, &other).await.unwrap();
    }

    #[tokio::test]
    async fn who_reads_only_the_beginning_does_not_make_it_whole() {
        let store = Store::over(Arc::new(InMemory::new()));
        let key = DataKey::random().unwrap();
        let object = put(&store, &key, "o", &noise(PIECE)).await;
        let sealed = key.of_object("o").unwrap();
        let failed =
            read(&store, &object, sealed, 1, &|_| {}, |_| Err::<(), _>(io::ErrorKind::StorageFull.into())).await;
        assert!(matches!(failed, Err(Error::Sink(error)) if error.kind() == io::ErrorKind::StorageFull));
    }

    #[tokio::test]
    async fn a_source_that_fails_leaves_no_object() {
        let store = Store::over(Arc::new(InMemory::new()));
        let key = DataKey::random().unwrap();
        let pieces = futures_util::stream::iter([Ok(noise(PART + 1)), Err(io::ErrorKind::NotFound.into())]);
        let failed = write(&store, "o", key.of_object("o").unwrap(), 2, pieces, &|_| {}).await;
        assert!(matches!(failed, Err(Error::Source(error)) if error.kind() == io::ErrorKind::NotFound));
        assert!(store.list().await.unwrap().is_empty());
    }
}
