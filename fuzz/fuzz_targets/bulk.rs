//! A transfer of files, of a stream or of extents from a peer that may lie in every field, with checksums that are right.

#![no_main]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use serde_json::json;
use spothop_fuzz::{Room, block_on};
use spothop_transfer::fuzzing::{self, Chunk};
use spothop_transfer::{ExtentSink, Limits};

/// Sizes at which something begins or ends: chunks are between 64 KiB and 4 MiB.
const SIZES: [u64; 12] =
    [0, 1, 4095, 65_535, 65_536, 65_537, 131_072, 1 << 20, 4 << 20, i64::MAX as u64, 1 << 63, u64::MAX];
const NAMES: [&str; 12] = ["a", "b", "pages-1.img", "", ".", "..", "../outside/x", "/x", "a/b", "a\0b", "a\n", "é"];

#[derive(Arbitrary, Debug)]
struct Transfer {
    files: Option<Vec<File>>,
    chunk_bytes: Option<u32>,
    small_limit: bool,
    connections: Vec<Vec<Sent>>,
    /// Instead of the manifest that fits.
    digests: Option<Vec<String>>,
    /// Said over the control connection before the manifest.
    besides: Option<(u8, Vec<u8>)>,
    /// Instead of a stream. Last, so that the seeds of before keep their files and chunks.
    extents: bool,
}

#[derive(Arbitrary, Debug)]
struct File {
    name: u8,
    size: u8,
}

#[derive(Arbitrary, Debug)]
struct Sent {
    /// Raw, zstd, zero, end; more often than not the sender's own.
    encoding: u8,
    transfer: Option<u32>,
    object: u8,
    /// In chunks, and bytes beside that.
    place: u16,
    beside: Option<u64>,
    raw_length: Option<u32>,
    stored_length: Option<u32>,
    checksum: Option<u64>,
    /// Times this byte, so many of them.
    byte: u8,
    length: u8,
}

fuzz_target!(|input: Transfer| {
    let room = Room::new();
    let ended = block_on(async { tokio::time::timeout(Duration::from_secs(60), run(&input, &room)).await });
    ended.expect("a transfer comes to its end");
    room.check();
});

async fn run(input: &Transfer, room: &Room) {
    let chunk_bytes = input.chunk_bytes.unwrap_or(65_536);
    let begin = match &input.files {
        Some(files) => {
            let file = |file: &File| json!({ "name": NAMES[usize::from(file.name) % NAMES.len()], "size": SIZES[usize::from(file.size) % SIZES.len()] });
            let files: Vec<_> = files.iter().map(file).collect();
            json!({ "type": "begin", "transfer": 1, "chunk_bytes": chunk_bytes, "content": "files", "files": files })
        }
        None => {
            let content = if input.extents { "extents" } else { "stream" };
            json!({ "type": "begin", "transfer": 1, "chunk_bytes": chunk_bytes, "content": content })
        }
    };
    let mut manifest = Manifest::default();
    let connections: Vec<_> =
        input.connections.iter().take(16).map(|sent| data(sent, chunk_bytes, &mut manifest)).collect();
    let digests = match &input.digests {
        Some(digests) => digests.clone(),
        None if input.files.is_none() && input.extents => {
            vec![fuzzing::pieces_digest(manifest.pieces.iter().map(|(about, stored)| (*about, &stored[..])))]
        }
        None => manifest.objects,
    };
    let mut control = fuzzing::frame(2, begin.to_string().as_bytes()).await;
    if let Some((kind, payload)) = &input.besides {
        control.extend(fuzzing::frame(*kind, payload).await);
    }
    let finish = json!({ "type": "finish", "transfer": 1, "raw_bytes": 0, "digests": digests });
    control.extend(fuzzing::frame(2, finish.to_string().as_bytes()).await);

    let mut session = fuzzing::session(control, connections);
    let max_bytes = if input.small_limit { 1 << 20 } else { u64::MAX };
    if input.files.is_some() {
        let limits = Limits { max_files: 8, ..Limits::bytes(max_bytes) };
        let received = session.receive_files(room.inside(), &limits, &|_| {}).await;
        let found: Vec<_> = fs::read_dir(room.inside()).unwrap().map(|entry| entry.unwrap()).collect();
        assert!(found.len() <= 8, "more files than were to be taken");
        for entry in found {
            let (about, name) = (entry.metadata().unwrap(), entry.file_name());
            assert!(about.is_file() && NAMES[..3].iter().chain(&NAMES[10..]).any(|known| *known == name), "{name:?}");
            assert!(received.is_err() || about.len() <= max_bytes);
        }
    } else if input.extents {
        let sink = Arc::new(Count::default());
        let received = session.receive_extents(sink.clone(), &Limits::bytes(max_bytes), &|_| {}).await;
        let taken = sink.0.load(Ordering::Relaxed);
        assert!(taken <= max_bytes, "more was handed on than was to be taken");
        assert!(received.is_err() || received.unwrap().raw_bytes == taken);
    } else {
        let mut out = Vec::new();
        // Zeros cost the peer nothing: what is to be taken is limited by the caller, here to 64 MiB.
        let received = session.receive_stream(&mut out, max_bytes.min(64 << 20), &|_| {}).await;
        assert!(received.is_err() || out.len() as u64 <= max_bytes);
    }
}

/// Counts the bytes of the pieces that it gets, which must be such as it was promised.
#[derive(Default)]
struct Count(AtomicU64);

impl Count {
    fn piece(&self, offset: u64, length: u64) {
        assert!((1..=4 << 20).contains(&length) && offset.checked_add(length).is_some(), "{length} bytes at {offset}");
        self.0.fetch_add(length, Ordering::Relaxed);
    }
}

impl ExtentSink for Count {
    fn put(&self, _: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.piece(offset, bytes.len() as u64);
        Ok(())
    }

    fn zero(&self, _: u32, offset: u64, length: u32) -> io::Result<()> {
        self.piece(offset, u64::from(length));
        Ok(())
    }
}

/// What an honest receiver would make of all connections.
#[derive(Default)]
struct Manifest {
    /// The digests of the objects of each connection.
    objects: Vec<String>,
    /// All chunks, and what they store.
    pieces: Vec<(Chunk, Vec<u8>)>,
}

/// The bytes of one connection; what an honest receiver would make of them is added to the manifest.
fn data(sent: &[Sent], chunk_bytes: u32, manifest: &mut Manifest) -> Vec<u8> {
    let (mut bytes, mut chunks) = (Vec::new(), 0);
    let mut objects: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
    for chunk in sent.iter().take(64) {
        let raw = vec![chunk.byte; [usize::from(chunk.length), 4096, 65_536][usize::from(chunk.length) % 3]];
        let object = u32::from(chunk.object % 4);
        let about = Chunk {
            encoding: if chunk.encoding < 200 { chunk.encoding % 3 } else { 3 },
            transfer: chunk.transfer.unwrap_or(1),
            object,
            offset: chunk.beside.unwrap_or(u64::from(chunk.place) * u64::from(chunk_bytes)),
            raw_length: chunk.raw_length.unwrap_or(raw.len() as u32),
            stored_length: chunk.stored_length,
            checksum: chunk.checksum,
        };
        let stored: &[u8] = if about.encoding < 2 { &raw } else { &[] };
        let checksum = if about.encoding == 2 { 0 } else { fuzzing::checksum(&raw) };
        objects.entry(object).or_default().push((checksum, raw.len() as u64));
        let about = if about.encoding >= 2 { Chunk { checksum: about.checksum.or(Some(0)), ..about } } else { about };
        bytes.extend(fuzzing::chunk(about, stored));
        manifest.pieces.push((about, stored.to_vec()));
        chunks += 1;
    }
    manifest.objects.extend(objects.into_values().map(|chunks| fuzzing::digest(&chunks)));
    let end = Chunk {
        encoding: 3,
        transfer: 1,
        object: 0,
        offset: chunks,
        raw_length: 0,
        stored_length: Some(0),
        checksum: Some(0),
    };
    bytes.extend(fuzzing::chunk(end, &[]));
    bytes
}
