//! The list of pages that follow, from a hostile source, beside images that are right: it is refused and nothing is changed, or whoever
//! restores the images is given none of these pages before they have come.

#![no_main]

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use spothop_criu::memory::fuzzing::{self, FLAGS};
use spothop_criu::memory::pager::{self, Memory, PagerError};
use spothop_criu::memory::{
    ADDRESSES, ImageError, PAGE, Pages, Restore, Store, Vpid, bytes, can_be_owed, compose, holes, read_owed, write_owed,
};
use spothop_fuzz::{Rare, Room, memory};

const NAME: &str = "owed.img";
const MAGIC: &[u8; 8] = b"SPOWED01";
/// Bytes of a range: a task, and two addresses.
const ENTRY: usize = 20;
/// Where addresses may begin or end instead.
const ADDRESS: [u64; 6] = [0, 1, PAGE, ADDRESSES, ADDRESSES + PAGE, u64::MAX - 4095];

/// The images of a real dump (those of the tests of `spothop-criu`), and what of it can be owed.
struct Dump {
    files: Vec<(String, Vec<u8>)>,
    can_be_owed: BTreeMap<Vpid, Pages>,
}

static DUMP: LazyLock<Dump> = LazyLock::new(|| {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../criu/tests/images");
    let file = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    };
    let mut dump = Dump { files: fs::read_dir(directory).unwrap().map(file).collect(), can_be_owed: BTreeMap::new() };
    let room = Room::new();
    dump.write(room.inside());
    dump.can_be_owed = can_be_owed(room.inside()).unwrap();
    dump
});

impl Dump {
    /// The images, and for each pagemap pages of zeros.
    fn write(&self, images: &Path) {
        for (name, contents) in &self.files {
            fs::write(images.join(name), contents).unwrap();
        }
        let pagemaps = self.files.iter().filter_map(|(name, _)| name.strip_prefix("pagemap-")?.strip_suffix(".img"));
        for vpid in pagemaps {
            let (id, runs) = fuzzing::runs(images, vpid.parse().unwrap()).unwrap();
            let dumped = runs.into_iter().filter(|(_, flags)| flags & FLAGS[2] != 0);
            let pages = fs::File::create(images.join(format!("pages-{id}.img"))).unwrap();
            pages.set_len(dumped.map(|(range, _)| range.end - range.start).sum()).unwrap();
        }
    }
}

#[derive(Arbitrary, Debug)]
struct List {
    magic: Rare<[u8; 8]>,
    ranges: Vec<Part>,
    /// Which of them comes once more, and where.
    again: Rare<(u8, u8)>,
    /// Bytes at the end that are no range.
    rest: Rare<Vec<u8>>,
}

/// Some of what can be owed: the pages of one of its ranges, behind those of the part before.
#[derive(Arbitrary, Debug)]
struct Part {
    /// How many ranges are left out.
    skipped: u8,
    /// From which of its pages on, and how many.
    from: u8,
    pages: u8,
    /// Instead of its own.
    vpid: Rare<i32>,
    start: Rare<u8>,
    end: Rare<u8>,
}

impl List {
    fn encode(&self) -> Vec<u8> {
        let mut owed = DUMP.can_be_owed.iter().flat_map(|(vpid, pages)| pages.iter().map(move |range| (*vpid, range)));
        let mut list: Vec<[u8; ENTRY]> = Vec::new();
        for part in &self.ranges {
            let Some((vpid, range)) = owed.nth(usize::from(part.skipped / 16)) else { break };
            let start = (range.start + u64::from(part.from / 32) * PAGE).min(range.end - PAGE);
            let end = (start + (u64::from(part.pages) + 1) * PAGE).min(range.end);
            let instead = |address: Rare<u8>| address.0.map(|which| ADDRESS[usize::from(which) % ADDRESS.len()]);
            list.push(entry(
                part.vpid.0.unwrap_or(vpid),
                instead(part.start).unwrap_or(start)..instead(part.end).unwrap_or(end),
            ));
        }
        if let Some((which, place)) = self.again.0
            && !list.is_empty()
        {
            list.insert(usize::from(place) % list.len(), list[usize::from(which) % list.len()]);
        }
        let rest = self.rest.0.clone().unwrap_or_default();
        [&self.magic.0.unwrap_or(*MAGIC)[..], list.as_flattened(), &rest].concat()
    }
}

fn entry(vpid: Vpid, range: Range<u64>) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    entry[..4].copy_from_slice(&vpid.to_le_bytes());
    entry[4..12].copy_from_slice(&range.start.to_le_bytes());
    entry[12..].copy_from_slice(&range.end.to_le_bytes());
    entry
}

/// What a list of whole ranges says, as it is written.
fn said(list: &[u8]) -> Vec<(Vpid, Range<u64>)> {
    let (entries, rest) = list[MAGIC.len()..].as_chunks::<ENTRY>();
    assert!(rest.is_empty());
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    let range = |entry: &[u8; ENTRY]| {
        (Vpid::from_le_bytes(entry[..4].try_into().unwrap()), number(&entry[4..12])..number(&entry[12..]))
    };
    entries.iter().map(range).collect()
}

fuzz_target!(|input: &[u8]| {
    let Some((&which, rest)) = input.split_first() else { return };
    let list = if which & 1 == 0 {
        rest.to_vec()
    } else {
        let Ok(list) = List::arbitrary_take_rest(Unstructured::new(rest)) else { return };
        list.encode()
    };
    let room = Room::new();
    let images = room.inside();
    DUMP.write(images);
    fs::write(images.join(NAME), &list).unwrap();
    let (owed, allocated) = memory::peak(|| read_owed(images));
    // Two addresses and a share of a node for each range, and what a file is read with.
    assert!(allocated < (64 << 10) + 8 * list.len(), "{allocated} bytes allocated for {}", list.len());
    if let Ok(owed) = &owed {
        check(owed, &list, &room);
    }

    let store = Store::at(images.join("memory"));
    store.create().unwrap();
    let came = fill(images, &store);
    let before = files(images);
    let restore = if which & 2 == 0 { Restore::Lazy } else { Restore::Eager };
    match (compose(images, &store, restore), owed) {
        (Ok(composed), Ok(owed)) => {
            assert_eq!(composed.owed, owed);
            assert!(restore == Restore::Lazy || owed.is_empty());
            let lazy = pager::lazy(images).unwrap();
            assert_eq!(lazy, composed.lazy);
            for (vpid, pages) in &owed {
                assert!(pages.iter().all(|range| DUMP.can_be_owed[vpid].gaps(range).next().is_none()));
            }
            for (vpid, address) in came {
                let is_owed = owed.get(&vpid).is_some_and(|pages| pages.contains(&address));
                let is_lazy = lazy[&vpid].contains(&address);
                assert_eq!(
                    read(&store, vpid, address),
                    if is_lazy && !is_owed { page(address) } else { [0; PAGE as usize] }
                );
            }
            let daemon = UnixListener::bind(room.volume().join("owed.sock")).unwrap();
            drop(Memory::owing(&store, lazy, &owed, daemon).unwrap());
        }
        (Err(refused), owed) => {
            assert!(owed.is_err() || matches!(refused, ImageError::Owed { .. }), "{refused}");
            assert_eq!(files(images), before, "{refused}");
            assert!(came.iter().all(|(vpid, address)| read(&store, *vpid, *address) == page(*address)), "{refused}");
            // The pager believes nobody, not even who should have refused it.
            if let Ok(owed) = owed
                && restore == Restore::Lazy
            {
                let daemon = UnixListener::bind(room.volume().join("owed.sock")).unwrap();
                let memory = Memory::owing(&store, DUMP.can_be_owed.clone(), &owed, daemon);
                assert!(matches!(memory, Err(PagerError::Owed { .. })), "{memory:?}");
            }
        }
        (Ok(_), Err(refused)) => panic!("composed, and {refused}"),
    }
    room.check();
});

/// A list that was read is what it says, and nothing else; written, it reads back.
fn check(owed: &BTreeMap<Vpid, Pages>, list: &[u8], room: &Room) {
    let said = said(list);
    let all: u64 = said.iter().map(|(_, range)| range.end - range.start).sum();
    assert_eq!(owed.values().map(bytes).sum::<u64>(), all);
    for (vpid, range) in said {
        assert!(vpid > 0 && owed[&vpid].gaps(&range).next().is_none());
    }
    for range in owed.values().flat_map(|pages| pages.iter()) {
        assert!(range.end <= ADDRESSES && range.start % PAGE == 0 && range.end % PAGE == 0);
    }
    write_owed(&room.volume(), owed).unwrap();
    assert_eq!(&read_owed(&room.volume()).unwrap(), owed);
}

/// Has the first page of everything come that the images left out.
fn fill(images: &Path, store: &Store) -> Vec<(Vpid, u64)> {
    let mut came = Vec::new();
    for (vpid, pages) in holes(images).unwrap() {
        came.extend(pages.iter().map(|range| (vpid, range.start)));
    }
    for (vpid, address) in &came {
        store.put(*vpid, *address, &page(*address)).unwrap();
    }
    came
}

fn page(address: u64) -> [u8; PAGE as usize] {
    [(address / PAGE) as u8 | 0x80; PAGE as usize]
}

fn read(store: &Store, vpid: Vpid, address: u64) -> [u8; PAGE as usize] {
    let mut page = [0; PAGE as usize];
    store.read_at(vpid, address, &mut page).unwrap();
    page
}

/// All files but the store's, with their lengths, and the contents of those that are no pages.
fn files(images: &Path) -> BTreeMap<String, (u64, Vec<u8>)> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(images).unwrap() {
        let entry = entry.unwrap();
        let (name, about) = (entry.file_name().into_string().unwrap(), entry.metadata().unwrap());
        let read = about.is_file() && !name.starts_with("pages-");
        files.insert(name, (about.len(), if read { fs::read(entry.path()).unwrap() } else { Vec::new() }));
    }
    files
}
