//! CRIU's images from a hostile source, up to where CRIU and the pager get them: whatever they say, they are refused as they are, or every
//! page that they speak of is in one place afterwards, with its contents.

#![no_main]

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use spothop_criu::memory::fuzzing::{self, FLAGS, Mapping, Runs};
use spothop_criu::memory::pager::{self, Memory};
use spothop_criu::memory::{ADDRESSES, Composed, ImageError, PAGE, Restore, Store, bytes, can_be_owed, compose, holes};
use spothop_fuzz::{Rare, Room, memory};

const PARENT: u32 = FLAGS[0];
const LAZY: u32 = FLAGS[1];
const PRESENT: u32 = FLAGS[2];

/// Kinds of mappings: `MAP_*`, `VMA_*` and advice, as CRIU writes them. Private memory, a private file, with pages of its own behind the
/// back, locked, wiped on fork, shared, a shadow stack, vdso, a guard.
const MAPPINGS: [(u32, u32, u64); 9] = [
    (0x22, 1 | 1 << 9, 0),
    (0x02, 1 | 1 << 6, 0),
    (0x22, 1 | 1 << 9 | 1 << 1, 1 << 14),
    (0x2022, 1 | 1 << 9, 0),
    (0x22, 1 | 1 << 9, 1 << 18),
    (0x01, 1 | 1 << 7, 0),
    (0x22, 1 | 1 << 9 | 1 << 15, 0),
    (0x22, 1 | 1 << 3 | 1 << 9, 0),
    (0x22, 1 << 16, 0),
];
const RUN_FLAGS: [u32; 8] = [PARENT, PRESENT, PRESENT | LAZY, PARENT, LAZY, 0, PARENT | PRESENT, 8];
/// Where addresses may begin, and addresses at which something ends.
const ADDRESS: [u64; 8] = [PAGE, 0, 1, 1 << 40, ADDRESSES - 64 * PAGE, ADDRESSES, 1 << 63, u64::MAX - 4095];
/// Files besides those of the tasks.
const NAMES: [&str; 10] = [
    "parent",
    "memory",
    "pagemap-1.new",
    "pages-1.new",
    "pagemap-shmem-1.img",
    "pagemap-+1.img",
    "pagemap-01.img",
    "pagemap-9.img",
    "core-9.img",
    "mm-9.img",
];

#[derive(Arbitrary, Debug)]
struct Made {
    tasks: Vec<Task>,
    /// A name or a task's file, and what it is besides a file: a link to where nothing may be written, a directory, missing.
    odd: Rare<Vec<(u8, u8)>>,
    /// Which file, where, and what is written there instead.
    damage: Rare<Vec<(u8, u16, u8)>>,
    /// Which file, and where it ends.
    cut: Rare<(u8, u16)>,
}

#[derive(Arbitrary, Debug)]
struct Task {
    /// Instead of the next one.
    pid: Rare<u32>,
    /// Of the ids from the task's own on.
    threads: u8,
    /// One more, as often as this.
    again: Rare<(u8, u16)>,
    /// Where a stack begins, in pages after the first address.
    stack: u16,
    /// Threads without registers.
    blank: Rare<()>,
    zombie: Rare<()>,
    /// Instead of its own.
    pages_id: Rare<u32>,
    start: u8,
    runs: Vec<Run>,
    /// Instead of those that fit the runs.
    mappings: Rare<Vec<Part>>,
    /// Sixteen times as many mappings that consist of nothing, and are two bytes long.
    empty: Rare<u16>,
    /// Bytes of the pages image, instead of those that fit.
    length: Rare<u64>,
    /// Of the pages image, everything came as zeros.
    zeros: bool,
}

#[derive(Arbitrary, Debug)]
struct Run {
    flags: u8,
    kind: u8,
    part: Part,
}

#[derive(Arbitrary, Debug)]
struct Part {
    kind: u8,
    /// In pages, behind the one before.
    gap: u8,
    pages: u8,
    /// Twice as many pages so many times.
    doubled: u8,
    /// So many of the same.
    count: u16,
    /// Its first address, instead of that.
    address: Rare<u64>,
}

/// Parts one behind the other, from an address on.
fn lay<'a>(mut at: u64, parts: impl Iterator<Item = &'a Part>) -> impl Iterator<Item = (usize, u64, u64)> {
    parts.enumerate().flat_map(move |(number, part)| {
        let pages = u64::from(part.pages) + 1 << (part.doubled.saturating_sub(160) % 40);
        let laid: Vec<_> = (0..=part.count.saturating_sub(32_768) / 64)
            .map(|_| {
                let start = part.address.0.unwrap_or(at.wrapping_add(u64::from(part.gap) * PAGE));
                at = start.wrapping_add(pages.wrapping_mul(PAGE));
                (number, start, pages)
            })
            .collect();
        laid
    })
}

impl Task {
    fn write(&self, images: &Path, pid: u32, next: u32) -> (u32, Vec<u32>) {
        let mut threads: Vec<u32> = (0..u32::from(self.threads % 8)).map(|thread| pid.wrapping_add(thread)).collect();
        let start = ADDRESS[usize::from(self.start.saturating_sub(200)) % ADDRESS.len()];
        let stack = self.blank.0.is_none().then(|| start.wrapping_add(u64::from(self.stack) * PAGE + 8));
        // Near a stack pointer, of all lengths, also where there is no such address.
        let rseq = stack.filter(|_| self.threads >= 128);
        let rseq = rseq.map(|stack| {
            (stack.wrapping_mul(1 + u64::from(self.threads & 1)), u32::from(self.stack) << (self.threads % 20))
        });
        for thread in &threads {
            write(images, &format!("core-{thread}.img"), &fuzzing::core(stack, rseq));
        }
        if let Some((thread, times)) = self.again.0 {
            threads.extend([u32::from(thread)].repeat(times.into()));
        }
        if self.zombie.0.is_some() {
            return (pid, threads);
        }
        let flags = |number: usize| match self.runs[number].flags {
            right @ ..240 => RUN_FLAGS[usize::from(right) % 4],
            wrong => RUN_FLAGS[usize::from(wrong) % RUN_FLAGS.len()],
        };
        let runs: Vec<_> = lay(start, self.runs.iter().take(8).map(|run| &run.part)).collect();
        let mapping = |kind: u8, start: u64, pages: u64| {
            let (flags, status, advice) = MAPPINGS[usize::from(kind) % MAPPINGS.len()];
            Mapping { start, end: start.wrapping_add(pages.wrapping_mul(PAGE)), flags, status, advice }
        };
        let mappings: Vec<Mapping> = match &self.mappings.0 {
            None => {
                runs.iter().map(|(number, start, pages)| mapping(self.runs[*number].kind % 5, *start, *pages)).collect()
            }
            Some(parts) => lay(start, parts.iter().take(8))
                .map(|(number, start, pages)| mapping(parts[number].kind, start, pages))
                .collect(),
        };
        let dumped = runs.iter().filter(|(number, ..)| flags(*number) & PRESENT != 0);
        let dumped = dumped.fold(0_u64, |sum, (_, _, pages)| sum.saturating_add(pages.saturating_mul(PAGE)));
        let pages_id = self.pages_id.0.unwrap_or(next);
        let runs = runs.into_iter().map(|(number, start, pages)| (start, pages, flags(number)));
        write(images, &format!("pagemap-{pid}.img"), &fuzzing::pagemap(pages_id, runs));
        write(images, &format!("mm-{pid}.img"), &fuzzing::mm(&mappings, 16 * usize::from(self.empty.0.unwrap_or(0))));
        pages(images, pages_id, self.length.0.unwrap_or(dumped), self.zeros);
        (pid, threads)
    }
}

fn write(images: &Path, name: &str, bytes: &[u8]) {
    // What stands in the way stays.
    let _ = fs::write(images.join(name), bytes);
}

/// A pages image; whoever sends one that is long sends zeros.
fn pages(images: &Path, id: u32, length: u64, zeros: bool) {
    let Ok(file) = fs::File::create(images.join(format!("pages-{id}.img"))) else { return };
    // A length that no file has leaves it empty.
    if file.set_len(length).is_ok() && !zeros {
        for page in 0..(length / PAGE).min(64) {
            file.write_all_at(&dumped(page), page * PAGE).unwrap();
        }
    }
}

/// The contents of a dumped page.
fn dumped(page: u64) -> [u8; PAGE as usize] {
    [page as u8 + 1; PAGE as usize]
}

/// The contents of a page that came by itself.
fn came(vpid: i32, address: u64) -> [u8; PAGE as usize] {
    [((address / PAGE) as u8 ^ vpid as u8) | 0x80; PAGE as usize]
}

/// Files as they are: kind, number, length (u16), bytes; of a pages image only its length (u64), and whether it has more than zeros.
fn unpack(images: &Path, mut rest: &[u8]) {
    while let Some(([kind, number, low, high], others)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(others.len());
        let (bytes, others) = others.split_at(length);
        match kind % 5 {
            0 => write(images, "pstree.img", bytes),
            1 => write(images, &format!("pagemap-{number}.img"), bytes),
            2 => write(images, &format!("mm-{number}.img"), bytes),
            3 => write(images, &format!("core-{number}.img"), bytes),
            _ => {
                let length = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
                pages(images, (*number).into(), length, bytes.get(8) == Some(&0));
            }
        }
        rest = others;
    }
}

fn make(images: &Path, room: &Room, made: &Made) {
    let mut processes = Vec::new();
    for (task, next) in made.tasks.iter().take(8).zip([1, 10, 20, 30, 40, 50, 60, 70]) {
        processes.push(task.write(images, task.pid.0.unwrap_or(next), next));
    }
    write(images, "pstree.img", &fuzzing::pstree(&processes));
    let mut names: Vec<_> = fs::read_dir(images).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.retain(|name| name != "memory");
    names.sort();
    for (which, at, byte) in made.damage.0.iter().flatten().take(8) {
        let path = images.join(&names[usize::from(*which) % names.len()]);
        let length = path.metadata().unwrap().len();
        if length > 0 {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.write_all_at(&[*byte], u64::from(*at) % length).unwrap();
        }
    }
    if let Some((which, at)) = made.cut.0 {
        let file = fs::File::options().write(true).open(images.join(&names[usize::from(which) % names.len()])).unwrap();
        file.set_len(at.into()).unwrap();
    }
    for (which, what) in made.odd.0.iter().flatten().take(4) {
        let path = match which.checked_sub(128) {
            Some(which) => images.join(&names[usize::from(which) % names.len()]),
            None => images.join(NAMES[usize::from(*which) % NAMES.len()]),
        };
        let _ = fs::remove_file(&path);
        let _ = match what % 5 {
            0 => symlink(room.outside().join("file"), path),
            1 => symlink(room.outside().join("directory"), path),
            2 => fs::create_dir(path),
            3 => fs::write(path, "no image"),
            _ => Ok(()),
        };
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&which, rest)) = input.split_first() else { return };
    let room = Room::new();
    // Where they lie at the target: the store beside the images.
    let images = room.inside();
    let store = Store::at(images.join("memory"));
    store.create().unwrap();
    if which & 1 == 0 {
        unpack(images, rest);
    } else {
        let Ok(made) = Made::arbitrary_take_rest(Unstructured::new(rest)) else { return };
        make(images, &room, &made);
    }
    let came = fill(images, &store);
    let before = State::of(images);
    let restore = if which & 2 == 0 { Restore::Lazy } else { Restore::Eager };
    let can_be_owed = can_be_owed(images);
    assert_eq!(State::of(images), before);
    let (composed, allocated) = memory::peak(|| compose(images, &store, restore));
    // A piece to move pages with; and of each run and mapping, which are at least ten bytes, a few words.
    assert!(allocated < (2 << 20) + 24 * before.read, "{allocated} bytes allocated for {}", before.read);
    let taken = memory::taken(images);
    // New pagemaps, and two files and a directory for a parent.
    let new = before.taken + 4 * before.read as u64 + (before.pagemaps.len() as u64 + 1) * 8 * PAGE;
    assert!(taken <= new, "{taken} bytes of files after {} and {}", before.taken, before.read);
    match composed {
        Ok(composed) => {
            before.check(images, &store, restore, &composed, &came);
            for (vpid, pages) in can_be_owed.into_iter().flatten().filter(|_| restore == Restore::Lazy) {
                assert!(pages.iter().all(|range| composed.lazy[&vpid].gaps(range).next().is_none()));
            }
        }
        // What could not be written leaves images that nobody uses.
        Err(ImageError::Access { .. }) => {}
        Err(refused) => assert_eq!(State::of(images), before, "{refused}"),
    }
    room.check();
});

/// Has a few of the pages come that the images left out.
fn fill(images: &Path, store: &Store) -> Vec<(i32, u64)> {
    let Ok(holes) = holes(images) else { return Vec::new() };
    let mut came = Vec::new();
    for (vpid, pages) in holes.iter().take(8) {
        for range in pages.iter().take(8) {
            came.extend([range.start, range.end - PAGE].map(|address| (*vpid, address)));
        }
    }
    came.sort_unstable();
    came.dedup();
    for (vpid, address) in &came {
        store.put(*vpid, *address, &self::came(*vpid, *address)).unwrap();
    }
    came
}

/// All that the images say.
#[derive(Debug, PartialEq)]
struct State {
    /// Name and length of each file, and the contents of those that are read.
    files: BTreeMap<String, (u64, Vec<u8>)>,
    pagemaps: BTreeMap<i32, (u32, Runs)>,
    /// The first pages of each pages image.
    dumped: BTreeMap<u32, Vec<u8>>,
    /// Bytes of what is read.
    read: usize,
    taken: u64,
}

impl State {
    fn of(images: &Path) -> Self {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(images).unwrap() {
            let (name, about) = entry.map(|entry| (entry.file_name(), entry.metadata().unwrap())).unwrap();
            let name = name.into_string().unwrap();
            let read = about.is_file() && !name.starts_with("pages-");
            let contents = if read { fs::read(images.join(&name)).unwrap() } else { Vec::new() };
            files.insert(name, (about.len(), contents));
        }
        let read = files.values().map(|(_, contents)| contents.len()).sum();
        let vpids = files.keys().filter_map(|name| name.strip_prefix("pagemap-")?.strip_suffix(".img")?.parse().ok());
        let pagemaps: BTreeMap<i32, (u32, Runs)> =
            vpids.filter_map(|vpid| Some((vpid, fuzzing::runs(images, vpid)?))).collect();
        let first_pages = |id| {
            let mut pages = Vec::new();
            let file = fs::File::open(images.join(format!("pages-{id}.img"))).ok()?;
            file.take(64 * PAGE).read_to_end(&mut pages).ok()?;
            Some((id, pages))
        };
        let dumped = pagemaps.values().filter_map(|(id, _)| first_pages(*id)).collect();
        Self { files, pagemaps, dumped, read, taken: memory::taken(images) }
    }

    /// Every page is in one place, and what the pager and CRIU read there is right.
    fn check(&self, images: &Path, store: &Store, restore: Restore, composed: &Composed, came: &[(i32, u64)]) {
        let after = Self::of(images);
        let lazy = pager::lazy(images);
        let mut present = 0;
        for (vpid, pages) in &composed.lazy {
            let ((old_id, old), (id, runs)) = (&self.pagemaps[vpid], &after.pagemaps[vpid]);
            assert_eq!(old_id, id);
            assert!(runs.iter().all(|(_, flags)| [LAZY, PRESENT].contains(flags)));
            let ranges = |runs: &Runs| runs.iter().map(|(range, _)| range.clone()).collect::<rangemap::RangeSet<u64>>();
            assert_eq!(ranges(old), ranges(runs));
            let of_kind = |kind| runs.iter().filter(move |(_, flags)| *flags == kind).cloned().collect::<Runs>();
            assert_eq!(&ranges(&of_kind(LAZY)), pages);
            assert!(restore == Restore::Lazy || pages.is_empty());
            if let Ok(lazy) = &lazy {
                assert_eq!(&lazy[vpid], pages);
            }
            let file = fs::File::open(images.join(format!("pages-{id}.img"))).unwrap();
            let length = bytes(&ranges(&of_kind(PRESENT)));
            assert_eq!(file.metadata().unwrap().len(), length);
            present += length;

            let place = |address| place(&of_kind(PRESENT), address);
            let read = |place| {
                let mut page = [0; PAGE as usize];
                file.read_exact_at(&mut page, place).unwrap();
                page
            };
            for (_, address) in came.iter().filter(|(of, _)| of == vpid) {
                let mut page = [0; PAGE as usize];
                store.read_at(*vpid, *address, &mut page).unwrap();
                match place(*address) {
                    Some(place) => assert!(read(place) == self::came(*vpid, *address) && page == [0; PAGE as usize]),
                    None => assert!(pages.contains(address) && page == self::came(*vpid, *address)),
                }
            }
            let dumped = old.iter().filter(|(_, flags)| flags & PRESENT != 0);
            let dumped = dumped.flat_map(|(range, _)| range.clone().step_by(PAGE as usize)).take(64);
            let (contents, _) = self.dumped[id].as_chunks::<{ PAGE as usize }>();
            for (page, address) in contents.iter().zip(dumped) {
                assert!(read(place(address).expect("what was dumped is present")) == *page);
            }
        }
        assert_eq!(present, composed.present);
        // A pagemap of nobody may say what it likes; it is refused, or no task gets its pages.
        let only_tasks = after.pagemaps.keys().all(|vpid| composed.lazy.contains_key(vpid));
        match lazy {
            Ok(lazy) => drop(Memory::open(store, lazy).unwrap()),
            Err(error) => assert!(!only_tasks || self.is_odd(&error), "{error}"),
        }
    }

    /// Is there something in the way that came as no file?
    fn is_odd(&self, error: &ImageError) -> bool {
        matches!(error, ImageError::Access { source, .. } if source.kind() != ErrorKind::NotFound)
            || matches!(error, ImageError::Kind { .. })
            || self.files.keys().any(|name| name.starts_with("pagemap-") && !self.is_pagemap(name))
    }

    fn is_pagemap(&self, name: &str) -> bool {
        self.pagemaps.keys().any(|vpid| name == format!("pagemap-{vpid}.img"))
    }
}

/// Where in the pages image the page at `address` is.
fn place(present: &Runs, address: u64) -> Option<u64> {
    let mut place = 0;
    for (range, _) in present {
        if range.contains(&address) {
            return Some(place + (address - range.start));
        }
        place += range.end - range.start;
    }
    None
}
