//! Extents: what arrives where, and what each side says when something is wrong.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar};

use super::*;
use crate::bulk::{Extent, ExtentSink, ExtentSource};
use crate::session::TransferParts;
use crate::wire::chunk::Encoding;
use crate::wire::message::PiecesDigest;

/// Pieces by their object and offset.
type Pieces = BTreeMap<(u32, u64), Vec<u8>>;

fn bytes(pieces: &Pieces) -> u64 {
    pieces.values().map(|piece| piece.len() as u64).sum()
}

/// Gives extents from the last to the first, and the bytes of each.
struct Memory {
    extents: Mutex<Vec<Extent>>,
    pieces: Pieces,
}

impl Memory {
    fn new(pieces: Pieces) -> Arc<Self> {
        let extent =
            |(&(object, offset), piece): (&(u32, u64), &Vec<u8>)| Extent { object, offset, length: piece.len() as u32 };
        let extents = pieces.iter().map(extent).collect();
        Self::of(extents, pieces)
    }

    /// With the extents in another order, or others than there are pieces.
    fn of(extents: Vec<Extent>, pieces: Pieces) -> Arc<Self> {
        Arc::new(Self { extents: Mutex::new(extents), pieces })
    }
}

impl ExtentSource for Memory {
    fn next(&self) -> Option<Extent> {
        self.extents.lock().unwrap().pop()
    }

    fn read(&self, extent: Extent, buffer: &mut [u8]) -> io::Result<usize> {
        assert_eq!(buffer.len(), extent.length as usize);
        let piece = self.pieces.get(&(extent.object, extent.offset)).ok_or_else(|| io::Error::other("it is gone"))?;
        let length = piece.len().min(buffer.len());
        buffer[..length].copy_from_slice(&piece[..length]);
        // More than there is room for is said, too, so that it can be seen what becomes of that.
        Ok(piece.len())
    }
}

/// Keeps what it gets.
#[derive(Default)]
struct Store {
    pieces: Mutex<Pieces>,
    zeros: Mutex<BTreeMap<(u32, u64), u32>>,
    /// An object that it refuses.
    refuses: Option<u32>,
}

impl Store {
    /// What is there, zeros and all.
    fn all(&self) -> Pieces {
        let mut all = self.pieces.lock().unwrap().clone();
        all.extend(self.zeros.lock().unwrap().iter().map(|(&place, &length)| (place, vec![0; length as usize])));
        all
    }

    fn check(&self, object: u32) -> io::Result<()> {
        if self.refuses == Some(object) { Err(io::Error::other("no room for it")) } else { Ok(()) }
    }
}

impl ExtentSink for Store {
    fn put(&self, object: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(object)?;
        let before = self.pieces.lock().unwrap().insert((object, offset), bytes.to_vec());
        assert!(before.is_none(), "object {object} at {offset} came twice");
        Ok(())
    }

    fn zero(&self, object: u32, offset: u64, length: u32) -> io::Result<()> {
        self.check(object)?;
        let before = self.zeros.lock().unwrap().insert((object, offset), length);
        assert!(before.is_none(), "object {object} at {offset} came twice");
        Ok(())
    }
}

/// Sends and receives at once, for at most ten seconds: both sides must come to an end.
async fn move_extents(
    a: &mut Session,
    b: &mut Session,
    source: &Arc<impl ExtentSource>,
    sink: &Arc<impl ExtentSink>,
    limits: &Limits,
) -> (Result<Stats, Error>, Result<Stats, Error>) {
    let (from, to) = (source.clone(), sink.clone());
    let both = async { tokio::join!(a.send_extents(from, &quiet), b.receive_extents(to, limits, &quiet)) };
    let ended = tokio::time::timeout(Duration::from_secs(10), both).await.expect("both sides end");
    assert_eq!((Arc::strong_count(source), Arc::strong_count(sink)), (1, 1), "a call is still under way");
    ended
}

/// Pieces of all lengths in three objects, some of zeros, at addresses as tasks have them.
fn many() -> Pieces {
    let mut random = noise(1, 4096).into_iter();
    let mut number = || u32::from_le_bytes([(); 4].map(|()| random.next().unwrap()));
    let mut pieces = Pieces::new();
    let mut ends = [0x5555_5555_4000, 0x7fff_ffff_f000, u64::MAX - (100 << 20)];
    for length in [1, 4095, 4096, 4097, Extent::MAX_LENGTH - 1, Extent::MAX_LENGTH]
        .into_iter()
        .chain(std::iter::repeat_with(|| 1 + number() % (32 << 10)).take(100))
        .collect::<Vec<_>>()
    {
        let which = number() as usize % ends.len();
        let length = length as usize;
        let raw = match number() % 3 {
            0 => vec![0; length],
            1 => noise(u64::from(number()), length),
            _ => vec![7; length],
        };
        pieces.insert(([1, 2, u32::MAX][which], ends[which]), raw);
        ends[which] += length as u64 + u64::from(number() % 2) * 4096;
    }
    pieces
}

#[tokio::test]
async fn pieces_of_all_lengths_arrive_in_any_order() {
    let pieces = many();
    let mut extents = Memory::new(pieces.clone()).extents.lock().unwrap().clone();
    let zeros: u64 = pieces.values().filter(|raw| raw.iter().all(|byte| *byte == 0)).map(|raw| raw.len() as u64).sum();
    for connections in [1, 3, 16] {
        let carried: Arc<Vec<AtomicU64>> = Arc::new(std::iter::repeat_with(AtomicU64::default).take(16).collect());
        let (mut a, mut b) = tampered_pair(connections, |index| {
            let carried = carried.clone();
            Some(Box::new(move |_, bytes| {
                carried[index].fetch_add(bytes.len() as u64, Ordering::Relaxed);
                std::ops::ControlFlow::Continue(())
            }))
        });
        // The same connections carry one transfer after the other, each in its own order.
        for round in 0..2u64 {
            let order = noise(connections as u64 + round, 8 * extents.len());
            let mut order = order.chunks(8).map(|bytes| bytes.to_vec()).collect::<Vec<_>>().into_iter();
            extents.sort_by_cached_key(|_| order.next());
            let (source, sink) = (Memory::of(extents.clone(), pieces.clone()), Arc::new(Store::default()));
            let (sent, received) = move_extents(&mut a, &mut b, &source, &sink, &Limits::bytes(bytes(&pieces))).await;
            let (sent, received) = (sent.unwrap(), received.unwrap());
            assert!(sink.all() == pieces, "{connections} connections, round {round}");
            assert_eq!((sent.raw_bytes, sent.zero_bytes), (bytes(&pieces), zeros));
            let most = bytes(&pieces) - zeros + ((pieces.len() + connections) * HEADER) as u64;
            assert!(sent.wire_bytes < most, "headers, and less than the raw bytes: {sent:?}");
            assert_eq!(Stats { elapsed: sent.elapsed, ..received }, sent);
        }
        for carried in &carried[..connections] {
            assert!(carried.load(Ordering::Relaxed) > 4 * HEADER as u64, "more than its two end marks");
        }
    }
}

#[tokio::test]
async fn no_pieces_are_a_transfer_too() {
    let (mut a, mut b) = pair(2);
    let (source, sink) = (Memory::new(Pieces::new()), Arc::new(Store::default()));
    let (sent, received) = move_extents(&mut a, &mut b, &source, &sink, &Limits::bytes(0)).await;
    assert_eq!((sent.unwrap().raw_bytes, received.unwrap().raw_bytes), (0, 0));
}

#[tokio::test]
async fn zeros_are_told_apart_and_cost_a_header() {
    let length = Extent::MAX_LENGTH;
    let places = (0..8).map(|index| (7, u64::from(length) * index));
    let (mut a, mut b) = pair(2);
    let source = Memory::new(places.clone().map(|place| (place, vec![0; length as usize])).collect());
    let sink = Arc::new(Store::default());
    let (sent, received) = move_extents(&mut a, &mut b, &source, &sink, &ALL).await;
    assert_eq!(sent.unwrap().wire_bytes, (8 + 2) * HEADER as u64, "headers only");
    assert_eq!(received.unwrap().zero_bytes, 8 * u64::from(length));
    assert!(sink.pieces.lock().unwrap().is_empty());
    assert_eq!(*sink.zeros.lock().unwrap(), places.map(|place| (place, length)).collect());
}

#[tokio::test]
async fn progress_grows_to_the_total_on_both_sides() {
    let pieces = many();
    let (mut a, mut b) = pair(2);
    let (told_a, told_b) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let (progress_a, progress_b) = (|n| told_a.lock().unwrap().push(n), |n| told_b.lock().unwrap().push(n));
    let (source, sink) = (Memory::new(pieces.clone()), Arc::new(Store::default()));
    let (sent, received) =
        tokio::join!(a.send_extents(source, &progress_a), b.receive_extents(sink, &ALL, &progress_b));
    sent.unwrap();
    received.unwrap();
    for told in [told_a, told_b] {
        let told = told.into_inner().unwrap();
        assert!(told.is_sorted());
        assert_eq!(told.last(), Some(&bytes(&pieces)));
    }
}

/// Holds each call until so many are there at the same time, for at most ten seconds.
struct Meeting {
    there: Mutex<usize>,
    changed: Condvar,
    wanted: usize,
}

impl Meeting {
    fn of(wanted: usize) -> Self {
        Self { there: Mutex::default(), changed: Condvar::new(), wanted }
    }

    fn meet(&self) -> io::Result<()> {
        let mut there = self.there.lock().unwrap();
        *there += 1;
        self.changed.notify_all();
        let wait = Duration::from_secs(10);
        let (_there, waited) = self.changed.wait_timeout_while(there, wait, |there| *there < self.wanted).unwrap();
        if waited.timed_out() { Err(io::Error::other("alone")) } else { Ok(()) }
    }
}

#[tokio::test]
async fn source_and_sink_are_asked_by_all_connections_at_once() {
    struct Meet(Meeting, Arc<Memory>, Store);
    impl ExtentSource for Meet {
        fn next(&self) -> Option<Extent> {
            self.1.next()
        }
        fn read(&self, extent: Extent, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.meet()?;
            self.1.read(extent, buffer)
        }
    }
    impl ExtentSink for Meet {
        fn put(&self, object: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
            self.0.meet()?;
            self.2.put(object, offset, bytes)
        }
        fn zero(&self, object: u32, offset: u64, length: u32) -> io::Result<()> {
            self.put(object, offset, &vec![0; length as usize])
        }
    }
    let pieces: Pieces = (0..3).map(|object| ((object, 0), noise(1, 100))).collect();
    let meet = || Arc::new(Meet(Meeting::of(3), Memory::new(pieces.clone()), Store::default()));
    let (mut a, mut b) = pair(3);
    let (source, sink) = (meet(), meet());
    let (sent, received) = tokio::join!(a.send_extents(source, &quiet), b.receive_extents(sink.clone(), &ALL, &quiet));
    sent.unwrap();
    received.unwrap();
    assert!(sink.2.all() == pieces);
}

#[tokio::test]
async fn what_is_not_there_any_more_is_not_sent() {
    let (mut a, mut b) = pair(3);
    // Every piece was meant to be longer than it is by now, and of most nothing is left.
    let full = many();
    let now: Pieces = full
        .iter()
        .enumerate()
        .map(|(index, (&place, raw))| (place, if index % 3 == 0 { raw[..raw.len() / 2].to_vec() } else { Vec::new() }))
        .collect();
    let source = Memory::of(Memory::new(full).extents.lock().unwrap().clone(), now.clone());
    let sink = Arc::new(Store::default());
    let (sent, received) = move_extents(&mut a, &mut b, &source, &sink, &ALL).await;
    let (sent, received) = (sent.unwrap(), received.unwrap());
    assert_eq!(sent.raw_bytes, bytes(&now));
    assert_eq!(Stats { elapsed: sent.elapsed, ..received }, sent);
    assert!(sink.all() == now.into_iter().filter(|(_, raw)| !raw.is_empty()).collect());
}

#[tokio::test]
async fn a_failing_source_is_named_on_both_sides() {
    let (mut a, mut b) = pair(3);
    let pieces = many();
    let mut extents = Memory::new(pieces.clone()).extents.lock().unwrap().clone();
    extents.insert(extents.len() / 2, Extent { object: 7, offset: 4096, length: 5 });
    let (source, sink) = (Memory::of(extents, pieces), Arc::new(Store::default()));
    let (sent, received) = move_extents(&mut a, &mut b, &source, &sink, &ALL).await;
    assert!(matches!(&sent, Err(Error::Extent { action: "read", object: 7, offset: 4096, .. })), "{sent:?}");
    let cause = "cannot read object 7 at byte 4096: it is gone";
    assert_eq!(sent.unwrap_err().to_string(), cause);
    assert!(
        matches!(&received, Err(Error::Peer { code: AbortCode::Storage, message, .. }) if message == cause),
        "{received:?}"
    );
    still_talking(&mut a, &mut b).await;
}

#[tokio::test]
async fn extents_that_cannot_be_are_not_sent() {
    let longest = Extent::MAX_LENGTH;
    for (offset, length, there) in
        [(0, 0, 0), (0, longest + 1, 5), (0, u32::MAX, 5), (u64::MAX - 5, 6, 6), (4096, 5, 6)]
    {
        let (mut a, mut b) = pair(1);
        let extent = Extent { object: 7, offset, length };
        let source = Memory::of(vec![extent], [((7, offset), noise(1, there))].into());
        let sink = Arc::new(Store::default());
        let (sent, received) = move_extents(&mut a, &mut b, &source, &sink, &ALL).await;
        assert!(matches!(sent, Err(Error::Extent { action: "read", object: 7, .. })), "{extent:?}: {sent:?}");
        assert!(matches!(received, Err(Error::Peer { code: AbortCode::Storage, .. })), "{received:?}");
        assert!(sink.all().is_empty());
    }
}

#[tokio::test]
async fn a_failing_sink_is_named_on_both_sides() {
    for raw in [noise(1, 5), vec![0; 5]] {
        let (mut a, mut b) = pair(3);
        let mut pieces = many();
        pieces.insert((7, 4096), raw);
        let (source, sink) = (Memory::new(pieces), Arc::new(Store { refuses: Some(7), ..Store::default() }));
        let (sent, received) = move_extents(&mut a, &mut b, &source, &sink, &ALL).await;
        assert!(
            matches!(&received, Err(Error::Extent { action: "write", object: 7, offset: 4096, .. })),
            "{received:?}"
        );
        let cause = "cannot write object 7 at byte 4096: no room for it";
        assert!(
            matches!(&sent, Err(Error::Peer { code: AbortCode::Storage, message, .. }) if message == cause),
            "{sent:?}"
        );
        still_talking(&mut a, &mut b).await;
    }
}

#[tokio::test]
async fn a_sink_never_gets_more_than_the_limit() {
    let pieces = many();
    let limit = bytes(&pieces) / 2;
    let (mut a, mut b) = pair(3);
    let (source, sink) = (Memory::new(pieces), Arc::new(Store::default()));
    let (sent, received) = move_extents(&mut a, &mut b, &source, &sink, &Limits::bytes(limit)).await;
    assert!(matches!(received, Err(Error::Limit { limit: told, .. }) if told == limit), "{received:?}");
    assert!(matches!(sent, Err(Error::Peer { code: AbortCode::Limit, .. })), "{sent:?}");
    assert!(bytes(&sink.all()) <= limit);
    still_talking(&mut a, &mut b).await;
}

#[tokio::test]
async fn a_flipped_byte_is_named_by_object_and_offset() {
    let pieces: Pieces = [((7, 4096), noise(1, 9000))].into();
    for (position, damaged) in [(20, "a chunk's header"), (5000, "object 7")] {
        let (mut a, mut b) = tampered_pair(1, |_| Some(flip(position)));
        let (source, sink) = (Memory::new(pieces.clone()), Arc::new(Store::default()));
        let (sent, received) = move_extents(&mut a, &mut b, &source, &sink, &ALL).await;
        let received = received.unwrap_err();
        assert!(matches!(&received, Error::Checksum { object, .. } if object == damaged), "{received}");
        assert!(damaged != "object 7" || received.to_string().contains("at byte 4096"), "{received}");
        assert!(matches!(sent, Err(Error::Peer { code: AbortCode::Corrupt, .. })), "{sent:?}");
        assert!(sink.all().is_empty());
        still_talking(&mut a, &mut b).await;
    }
}

#[tokio::test]
async fn a_cut_fails_both_sides() {
    let pieces: Pieces = (0..8).map(|object| ((object, 0), noise(1, CHUNK_LENGTH))).collect();
    let (mut a, mut b) = tampered_pair(3, |index| (index == 1).then(|| cut(u64::from(CHUNK) / 2)));
    let (source, sink) = (Memory::new(pieces), Arc::new(Store::default()));
    let (sent, received) = move_extents(&mut a, &mut b, &source, &sink, &ALL).await;
    assert_cut(&sent, &received);
    still_talking(&mut a, &mut b).await;
}

/// A peer that sends these chunks over its only connection, after them an end mark counting `end`, and these digests.
async fn hostile(chunks: &[(Header, Vec<u8>)], end: u64, digests: Vec<String>) -> (Result<Stats, Error>, Pieces) {
    let (mut a, mut b) = pair(1);
    let send = async {
        let parts: TransferParts<'_> = a.begin_transfer().unwrap();
        let (mut hostile, mut connections) = Transfer::new(parts, &quiet);
        hostile.announce(Content::Extents).await.unwrap();
        for (header, stored) in chunks {
            // The receiver may have given up already.
            let _ = write_chunk(&mut connections[0], &[&header.encode()[..], stored].concat(), "p").await;
        }
        let _ = write_chunk(&mut connections[0], &Header::end(1, end).encode(), "p").await;
        let _ = hostile.finish(digests).await;
    };
    let sink = Arc::new(Last::default());
    let (received, ()) = tokio::join!(b.receive_extents(sink.clone(), &ALL, &quiet), send);
    let pieces = std::mem::take(&mut *sink.0.lock().unwrap());
    (received, pieces)
}

/// Keeps the last of what comes for a place.
#[derive(Default)]
struct Last(Mutex<Pieces>);

impl ExtentSink for Last {
    fn put(&self, object: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().insert((object, offset), bytes.to_vec());
        Ok(())
    }

    fn zero(&self, object: u32, offset: u64, length: u32) -> io::Result<()> {
        self.put(object, offset, &vec![0; length as usize])
    }
}

/// A chunk as an honest sender makes it.
fn piece(object: u32, offset: u64, raw: &[u8]) -> (Header, Vec<u8>) {
    let mut packer = Packer::new(Link::new(1).into()).unwrap();
    let header = packer.pack(Place { transfer: 1, object, offset }, raw, seal(raw));
    (header, packer.frame()[HEADER..].to_vec())
}

fn manifest(chunks: &[(Header, Vec<u8>)]) -> Vec<String> {
    let mut digest = PiecesDigest::default();
    chunks.iter().for_each(|(header, _)| digest.piece(header));
    vec![digest.finish()]
}

#[tokio::test]
async fn what_differs_from_the_manifest_is_not_taken() {
    let (one, two, zero) = (piece(1, 0, b"one"), piece(2, 4096, b"two"), piece(3, 0, &[0; 100]));
    let honest = [one.clone(), two.clone(), zero.clone()];
    let in_order = |chunks: Vec<(Header, Vec<u8>)>| {
        let manifest = manifest(&honest);
        async move { hostile(&chunks, chunks.len() as u64, manifest).await }
    };
    let (received, pieces) = in_order(vec![zero.clone(), one.clone(), two.clone()]).await;
    assert_eq!(received.unwrap().raw_bytes, 106);
    assert_eq!(pieces.len(), 3);
    for (chunks, what) in [
        (vec![one.clone(), two.clone()], "a dropped one"),
        (vec![one.clone(), two.clone(), zero.clone(), zero.clone()], "a doubled one"),
        (vec![one.clone(), two.clone(), two.clone()], "one instead of another"),
        (vec![one.clone(), piece(1, 4096, b"two"), zero.clone()], "another object"),
        (vec![one.clone(), piece(2, 8192, b"two"), zero.clone()], "another offset"),
        (vec![one.clone(), piece(2, 4096, b"owt"), zero.clone()], "other bytes"),
        (vec![piece(1, 0, b"two"), piece(2, 4096, b"one"), zero.clone()], "bytes in each other's place"),
        (vec![one.clone(), two.clone(), piece(3, 0, &[0; 99])], "fewer zeros"),
    ] {
        let (received, _) = in_order(chunks).await;
        assert!(matches!(received, Err(Error::Digest { .. })), "{what}: {received:?}");
    }
    let digest = manifest(&honest).remove(0);
    for digests in [vec![], vec![digest.clone(), digest], vec!["0".repeat(32)]] {
        let (received, _) = hostile(&honest, 3, digests).await;
        assert!(matches!(received, Err(Error::Digest { .. })), "{received:?}");
    }
}

#[tokio::test]
async fn pieces_that_cannot_be_are_refused() {
    let right = piece(1, 0, b"right");
    let bare = |encoding, raw_length| {
        let stored = if encoding == Encoding::Raw { raw_length } else { 0 };
        let header = Header { encoding, raw_length, stored_length: stored, checksum: 0, ..right.0 };
        (header, vec![1; stored as usize])
    };
    for (chunk, what) in [
        (piece(1, u64::MAX - 4, b"right"), "beyond the last byte"),
        ((Header { offset: u64::MAX, ..bare(Encoding::Zero, 1).0 }, vec![]), "zeros beyond it"),
        (bare(Encoding::Zero, 0), "nothing, as zeros"),
        (bare(Encoding::Raw, 0), "nothing"),
        (bare(Encoding::Zero, CHUNK + 1), "more zeros than agreed"),
        (bare(Encoding::Raw, CHUNK + 1), "more than agreed"),
        ((Header { transfer: 2, ..right.0 }, b"right".to_vec()), "another transfer's"),
    ] {
        let chunks = [chunk];
        let (received, pieces) = hostile(&chunks, 1, manifest(&chunks)).await;
        assert!(matches!(received, Err(Error::Protocol { .. })), "{what}: {received:?}");
        assert!(pieces.is_empty(), "{what}");
    }
    let chunks = [right];
    for end in [0, 2, u64::MAX] {
        let (received, _) = hostile(&chunks, end, manifest(&chunks)).await;
        assert!(matches!(received, Err(Error::Protocol { .. })), "{end}: {received:?}");
    }
    // Just below: the last byte that an object can have.
    let chunks = [piece(u32::MAX, u64::MAX - 5, b"right")];
    let (received, pieces) = hostile(&chunks, 1, manifest(&chunks)).await;
    assert_eq!(received.unwrap().raw_bytes, 5);
    assert_eq!(pieces[&(u32::MAX, u64::MAX - 5)], b"right");
}

#[tokio::test]
async fn a_dropped_transfer_fails_the_other_side_at_once() {
    let pieces: Pieces = (0..8).map(|object| ((object, 0), noise(1, CHUNK_LENGTH))).collect();
    let (mut a, mut b) = pair(2);
    let (begun, mut has_begun) = tokio::sync::mpsc::unbounded_channel();
    let progress = move |bytes| begun.send(bytes).unwrap();
    let receive = async {
        tokio::select! {
            received = b.receive_extents(Arc::new(Store::default()), &ALL, &progress) => panic!("{received:?}"),
            _ = has_begun.recv() => {} // And so the future is dropped.
        }
    };
    let (sent, ()) = tokio::join!(a.send_extents(Memory::new(pieces), &quiet), receive);
    assert!(matches!(sent, Err(Error::Peer { code: AbortCode::Cancelled, .. })), "{sent:?}");
    still_talking(&mut a, &mut b).await;
}

#[tokio::test]
async fn both_sides_must_mean_extents() {
    let (mut a, mut b) = pair(1);
    let source = Memory::new(Pieces::new());
    let (sent, received) =
        tokio::join!(a.send_extents(source, &quiet), b.receive_stream(tokio::io::sink(), u64::MAX, &quiet));
    assert!(matches!(received, Err(Error::Protocol { .. })), "{received:?}");
    assert!(matches!(sent, Err(Error::Peer { code: AbortCode::Protocol, .. })), "{sent:?}");

    let (mut a, mut b) = pair(1);
    let sink = Arc::new(Store::default());
    let (sent, received) = tokio::join!(a.send_stream(&b"x"[..], &quiet), b.receive_extents(sink, &ALL, &quiet));
    assert!(matches!(received, Err(Error::Protocol { .. })), "{received:?}");
    assert!(matches!(sent, Err(Error::Peer { code: AbortCode::Protocol, .. })), "{sent:?}");
}
