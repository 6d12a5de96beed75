//! Pages as they arrive, one by one and packed, from a peer that may lie in every field, with checksums that are right: what is taken is
//! in the store as it came, what is refused is no page, and nothing is kept for what did not come.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use serde_json::json;
use spothop::migration::fuzzing::{MARKS, packs, pages};
use spothop_criu::memory::{ADDRESSES, PAGE, Store};
use spothop_fuzz::{Rare, Room, block_on, memory};
use spothop_transfer::Limits;
use spothop_transfer::fuzzing::{self, Chunk};

const PACKED: u32 = MARKS[0];
const CLEARED: u32 = MARKS[1];

/// What an object may be the number of, besides 1 to 4.
const OBJECTS: [u32; 8] = [0, 1 << 22, i32::MAX as u32, CLEARED, PACKED, PACKED | CLEARED, u32::MAX, 5];
/// Where addresses begin, or end.
const ADDRESS: [u64; 8] = [0, PAGE, 1, 1 << 40, ADDRESSES - 16 * PAGE, ADDRESSES, 1 << 63, u64::MAX - 4095];

#[derive(Arbitrary, Debug)]
struct Arriving {
    small_limit: Rare<()>,
    /// Not more than 4.
    connections: Vec<Vec<Piece>>,
}

#[derive(Arbitrary, Debug)]
struct Piece {
    /// Below 240 a process as there are, else another number.
    object: u8,
    cleared: bool,
    /// Raw, zstd, zeros of so many bytes (most often pages).
    encoding: u8,
    zeros: u32,
    at: Place,
    contents: Contents,
    /// Instead of what fits.
    raw_length: Rare<u32>,
    checksum: Rare<u64>,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
struct Place {
    base: u8,
    page: u8,
    beside: Rare<u64>,
}

impl Place {
    fn address(self) -> u64 {
        // Low addresses meet more often.
        let base = ADDRESS[usize::from(self.base.saturating_sub(200)) % ADDRESS.len()];
        base.wrapping_add(u64::from(self.page % 32) * PAGE).wrapping_add(self.beside.0.unwrap_or(0))
    }
}

#[derive(Arbitrary, Debug)]
enum Contents {
    /// So many pages, each of another byte from this one on; 0 are zeros.
    Pages {
        first: u8,
        count: u8,
    },
    /// An honest pack.
    Packed(Vec<Few>),
    /// A pack, entry by entry: with other numbers in it than are right.
    Entries {
        entries: Vec<Entry>,
        count: Rare<u32>,
        more: u8,
    },
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
struct Few {
    at: Place,
    count: u8,
    byte: u8,
    gone: u8,
}

#[derive(Arbitrary, Debug)]
struct Entry {
    at: Place,
    pages: u8,
    byte: u8,
    length: Rare<u32>,
}

impl Contents {
    fn is_pack(&self) -> bool {
        matches!(self, Self::Packed(_) | Self::Entries { .. })
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Pages { first, count } => {
                (0..=count % 16).flat_map(|page| [first.saturating_sub(page); PAGE as usize]).collect()
            }
            Self::Packed(few) => {
                let few = few.iter().take(300);
                let ranges: Vec<_> = few
                    .clone()
                    .filter_map(|few| {
                        let start = few.at.address();
                        Some(start..start.checked_add(u64::from(few.count % 8 + 1) * PAGE)?)
                    })
                    .collect();
                let mut contents = few;
                let read = |_: &_, bytes: &mut [u8]| {
                    let few = contents.next().unwrap();
                    bytes.fill(few.byte);
                    Ok(bytes.len().saturating_sub(usize::from(few.gone.saturating_sub(240) / 4) * PAGE as usize))
                };
                packs(ranges, read).unwrap().into_iter().next().unwrap_or_default()
            }
            Self::Entries { entries, count, more } => {
                let entries = &entries[..entries.len().min(300)];
                let mut pack = count.0.unwrap_or(entries.len() as u32).to_le_bytes().to_vec();
                for entry in entries {
                    pack.extend(entry.at.address().to_le_bytes());
                    pack.extend(entry.length.0.unwrap_or(u32::from(entry.pages % 4) * PAGE as u32).to_le_bytes());
                }
                for entry in entries {
                    pack.extend([entry.byte].repeat(usize::from(entry.pages % 4) * PAGE as usize));
                }
                pack.extend([1].repeat((more.saturating_sub(240)).into()));
                pack
            }
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Ok(input) = Arriving::arbitrary_take_rest(Unstructured::new(input)) else { return };
    let room = Room::new();
    let store = room.inside().join("memory");
    Store::at(&store).create().unwrap();
    let mut sent = Sent::default();
    let connections: Vec<_> = input.connections.iter().take(4).map(|pieces| sent.connection(pieces)).collect();
    let max_bytes = if input.small_limit.0.is_some() { 8 * PAGE } else { u64::MAX };
    let received = block_on(async {
        let mut control = fuzzing::frame(
            2,
            json!({ "type": "begin", "transfer": 1, "chunk_bytes": 1 << 20, "content": "extents" })
                .to_string()
                .as_bytes(),
        )
        .await;
        let digest = fuzzing::pieces_digest(sent.pieces.iter().map(|(about, stored)| (*about, &stored[..])));
        control.extend(
            fuzzing::frame(
                2,
                json!({ "type": "finish", "transfer": 1, "raw_bytes": 0, "digests": [digest] }).to_string().as_bytes(),
            )
            .await,
        );
        let mut session = fuzzing::session(control, connections);
        let sink = pages(Store::at(&store));
        let limits = Limits::bytes(max_bytes);
        let received = session.receive_extents(sink, &limits, &|_| {});
        tokio::time::timeout(Duration::from_secs(60), received).await.expect("a transfer comes to its end")
    });
    let fits = sent.raw_bytes <= max_bytes;
    let one = input.connections.len() <= 1;
    let expected = sent.whole && sent.pages.is_some() && fits && !input.connections.is_empty();
    assert!(received.is_err() || expected, "{received:?}: taken, though it is wrong");
    // With several connections it depends on which was first, whether there is a page that is to be forgotten.
    assert!(received.is_ok() || !expected, "{received:?}: refused, though it is right");
    look(&store, &sent, one && received.is_ok());
    room.check();
});

/// What was sent, and what an honest receiver makes of it.
struct Sent {
    /// All pieces, and what they store.
    pieces: Vec<(Chunk, Vec<u8>)>,
    raw_bytes: u64,
    /// Each checksum and length is right.
    whole: bool,
    /// The first byte of each page of each process, as the last piece has it; `None` when a piece is wrong.
    pages: Option<BTreeMap<(u32, u64), u8>>,
    /// Pages with bytes, counted as often as they came.
    came: u64,
}

impl Default for Sent {
    fn default() -> Self {
        Self { pieces: Vec::new(), raw_bytes: 0, whole: true, pages: Some(BTreeMap::new()), came: 0 }
    }
}

impl Sent {
    /// The bytes of a connection.
    fn connection(&mut self, pieces: &[Piece]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let pieces = &pieces[..pieces.len().min(32)];
        for piece in pieces {
            let (about, stored) = self.piece(piece);
            bytes.extend(fuzzing::chunk(about, &stored));
            self.pieces.push((about, stored));
        }
        let end = Chunk {
            encoding: 3,
            transfer: 1,
            object: 0,
            offset: pieces.len() as u64,
            raw_length: 0,
            stored_length: Some(0),
            checksum: Some(0),
        };
        bytes.extend(fuzzing::chunk(end, &[]));
        bytes
    }

    fn piece(&mut self, piece: &Piece) -> (Chunk, Vec<u8>) {
        let zeros = piece.encoding % 3 == 2;
        let mut object = match piece.object.checked_sub(240) {
            None => u32::from(piece.object % 4 + 1),
            Some(other) => OBJECTS[usize::from(other) % OBJECTS.len()],
        };
        if piece.contents.is_pack() && !zeros {
            object |= PACKED;
        }
        if piece.cleared && zeros {
            object |= CLEARED;
        }
        let raw = if zeros { Vec::new() } else { piece.contents.bytes() };
        let raw_length = match zeros {
            // Some are no whole pages.
            true if piece.zeros % 16 == 0 => piece.zeros % (1 << 20),
            true => piece.zeros % 256 * PAGE as u32,
            false => raw.len() as u32,
        };
        let stored = match piece.encoding % 3 {
            0 => raw.clone(),
            1 => zstd::bulk::compress(&raw, 1).unwrap(),
            _ => Vec::new(),
        };
        let checksum = if zeros { 0 } else { fuzzing::checksum(&raw) };
        let about = Chunk {
            encoding: piece.encoding % 3,
            transfer: 1,
            object,
            offset: piece.at.address(),
            raw_length: piece.raw_length.0.unwrap_or(raw_length),
            stored_length: None,
            checksum: Some(piece.checksum.0.unwrap_or(checksum)),
        };
        // Zeros are as many as are said, and have no checksum.
        let right = zeros || about.raw_length == raw_length && about.checksum == Some(checksum);
        // So is what the sender says of itself: a piece has its length, ends where an object may (also a pack, which has its addresses
        // inside), and compressing makes it shorter.
        let lengths = (1..=1 << 20).contains(&about.raw_length)
            && about.offset.checked_add(about.raw_length.into()).is_some()
            && match about.encoding {
                0 => stored.len() == about.raw_length as usize,
                1 => !stored.is_empty() && stored.len() < about.raw_length as usize,
                _ => true,
            };
        self.whole &= lengths && right;
        self.raw_bytes = self.raw_bytes.saturating_add(about.raw_length.into());
        self.came += raw.len() as u64 / PAGE;
        if self.whole && self.take(&about, &raw).is_none() {
            self.pages = None;
        }
        (about, stored)
    }

    fn take(&mut self, about: &Chunk, raw: &[u8]) -> Option<()> {
        if about.encoding == 2 {
            return self.put(about.object & !CLEARED, about.offset, about.raw_length as usize, |_| 0);
        }
        if about.object & CLEARED != 0 {
            return None;
        }
        if about.object & PACKED == 0 {
            return self.put(about.object, about.offset, raw.len(), |at| raw[at]);
        }
        let number = |at: usize, length| {
            raw.get(at..at + length).map(|bytes| bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
        };
        let count = number(0, 4)? as usize;
        let mut bytes = 4 + 12 * count;
        for entry in (4..bytes).step_by(12) {
            let (address, length) = (number(entry, 8)?, number(entry + 8, 4)? as usize);
            let these = raw.get(bytes..bytes + length)?;
            if length > 0 {
                self.put(about.object & !PACKED, address, length, |at| these[at])?;
            }
            bytes += length;
        }
        (bytes == raw.len()).then_some(())
    }

    fn put(&mut self, object: u32, address: u64, length: usize, byte: impl Fn(usize) -> u8) -> Option<()> {
        let end = address.checked_add(length as u64)?;
        let right = (1..=i32::MAX as u32).contains(&object) && end <= ADDRESSES;
        if !right || !address.is_multiple_of(PAGE) || !length.is_multiple_of(PAGE as usize) {
            return None;
        }
        let pages = self.pages.as_mut()?;
        for at in (0..length).step_by(PAGE as usize) {
            pages.insert((object, address + at as u64), byte(at));
        }
        Some(())
    }
}

/// What is in the store: only what was sent and, if it is `known`, all of it.
fn look(directory: &std::path::Path, sent: &Sent, known: bool) {
    let objects: BTreeSet<_> =
        sent.pieces.iter().map(|(about, _)| (about.object & !(PACKED | CLEARED)).to_string()).collect();
    for entry in fs::read_dir(directory).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(objects.contains(&name), "nothing came for {name}");
    }
    let taken = memory::taken(directory);
    assert!(taken <= sent.came * PAGE, "{taken} bytes for {} pages", sent.came);
    if !known {
        return;
    }
    let store = Store::at(directory);
    let pages = sent.pages.as_ref().expect("all pieces are right");
    for ((object, address), byte) in pages {
        let mut page = vec![!byte; PAGE as usize];
        store.read_at(object.cast_signed(), *address, &mut page).unwrap();
        assert_eq!(page[0], *byte, "{address:x} of {object}");
    }
    let filled = pages.values().filter(|byte| **byte != 0).count() as u64;
    // A page that begins with a zero may have other bytes behind it.
    assert!(taken >= filled * PAGE && taken <= pages.len() as u64 * PAGE);
}
