//! Real images (`criu/tests/images`: three processes, four threads in the first, dumped with a constant parent) and damaged ones.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::memory::{bytes, holes};

/// Where the real images are; their pages are made by [`real`].
const REAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/images");

/// Bytes that CRIU dumped itself of the real process 1: 20 pages that nobody may read.
pub(in crate::memory) const REAL_DUMPED: usize = 20 * PAGE as usize;

/// The real images in a directory of their own, with pages that consist of their number.
pub(in crate::memory) fn real(directory: &Path) {
    for entry in fs::read_dir(REAL).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, directory.join(path.file_name().unwrap())).unwrap();
    }
    for vpid in [1, 6, 16] {
        let pagemap = Pagemap::read(directory, vpid, MOST_RUNS).unwrap().unwrap();
        let dumped: Vec<u8> =
            (0..if vpid == 1 { REAL_DUMPED } else { 0 }).map(|at| (at / PAGE as usize) as u8 + 1).collect();
        fs::write(pages_path(directory, pagemap.pages_id), dumped).unwrap();
    }
}

/// The pagemap of a task, composed already.
pub(in crate::memory) fn composed(directory: &Path, vpid: Vpid) -> Pagemap {
    Pagemap::read_any(directory, vpid, MOST_RUNS).unwrap().unwrap()
}

/// Writes the images of one task with one thread.
pub(in crate::memory) fn write_task(directory: &Path, pagemap: &Pagemap, vmas: &[Vma], stack: u64) {
    let vmas = vmas.iter().map(|vma| VmaEntry {
        start: vma.range.start,
        end: vma.range.end,
        flags: vma.flags,
        status: vma.status,
        madv: Some(vma.advice),
    });
    let thread_info = Some(ThreadInfoX86 { gpregs: Some(UserX86Regs { sp: Some(stack) }) });
    write_processes(directory, &[(1, &[1])]);
    write(directory, "mm-1", MM, &[MmEntry { vmas: vmas.collect() }]);
    write(directory, "core-1", CORE, &[CoreEntry { mtype: X86_64, thread_info, thread_core: None }]);
    pagemap.write(directory, 1).unwrap();
}

/// Writes the tree: ids and the threads of each.
pub(in crate::memory) fn write_processes(directory: &Path, processes: &[(u32, &[u32])]) {
    let entries: Vec<_> =
        processes.iter().map(|(pid, threads)| PstreeEntry { pid: *pid, threads: threads.to_vec() }).collect();
    write(directory, "pstree", PSTREE, &entries);
}

/// Gives the task of [`write_task`] restartable sequences.
pub(in crate::memory) fn write_rseq(directory: &Path, stack: u64, rseq: Range<u64>) {
    let thread_info = Some(ThreadInfoX86 { gpregs: Some(UserX86Regs { sp: Some(stack) }) });
    let size = (rseq.end - rseq.start) as u32;
    let rseq_entry = Some(RseqEntry { rseq_abi_pointer: rseq.start, rseq_abi_size: size });
    let thread_core = Some(ThreadCoreEntry { rseq_entry });
    write(directory, "core-1", CORE, &[CoreEntry { mtype: X86_64, thread_info, thread_core }]);
}

/// A private anonymous mapping.
pub(in crate::memory) fn anonymous(range: Range<u64>) -> Vma {
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).cast_unsigned();
    Vma { range, flags, status: VMA_AREA_REGULAR | VMA_ANON_PRIVATE, advice: 0 }
}

/// A private mapping of a file.
pub(in crate::memory) fn of_file(range: Range<u64>) -> Vma {
    Vma { range, flags: libc::MAP_PRIVATE.cast_unsigned(), status: VMA_AREA_REGULAR | VMA_FILE_PRIVATE, advice: 0 }
}

fn write<M: Message>(directory: &Path, name: &str, magic: u32, messages: &[M]) {
    let mut bytes = [COMMON.to_le_bytes(), magic.to_le_bytes()].concat();
    messages.iter().for_each(|message| write_message(&mut bytes, message).unwrap());
    fs::write(directory.join(name).with_extension("img"), bytes).unwrap();
}

fn entry(vaddr: u64, pages: u64, flags: Option<u32>) -> PagemapEntry {
    PagemapEntry { vaddr, compat_nr_pages: 0, in_parent: None, flags, nr_pages: Some(pages) }
}

/// What is said about a pagemap with `entries`.
fn pagemap(entries: &[PagemapEntry]) -> Result<Vec<Entry>, ImageError> {
    let scratch = tempfile::tempdir().unwrap();
    let mut bytes = [COMMON.to_le_bytes(), PAGEMAP.to_le_bytes()].concat();
    write_message(&mut bytes, &PagemapHead { pages_id: 1 }).unwrap();
    entries.iter().for_each(|entry| write_message(&mut bytes, entry).unwrap());
    fs::write(pagemap_path(scratch.path(), 1), bytes).unwrap();
    Pagemap::read(scratch.path(), 1, MOST_RUNS).map(|pagemap| pagemap.unwrap().entries)
}

#[test]
fn real_images_are_read() {
    let images = Path::new(REAL);
    let processes = read_processes(images).unwrap();
    let threads: Vec<_> = processes.iter().map(|p| (p.vpid, p.threads.len())).collect();
    assert_eq!(threads, [(1, 4), (6, 1), (16, 1)]);
    assert_eq!(tasks_with_pages(images).unwrap(), [1, 6, 16]);
    for process in processes {
        let vmas = read_vmas(images, process.vpid).unwrap();
        let pagemap = Pagemap::read(images, process.vpid, MOST_RUNS).unwrap().unwrap();
        for Entry { range, .. } in &pagemap.entries {
            let vma = vmas.iter().find(|vma| vma.range.contains(&range.start)).unwrap();
            assert!(vma.is_private(), "{range:x?} in {vma:x?}");
        }
        for thread in process.threads {
            let pointer = read_stack_pointer(images, thread).unwrap();
            let stack = vmas.iter().find(|vma| vma.range.contains(&pointer)).unwrap();
            assert!(stack.can_be_lazy(), "{pointer:x} in {stack:x?}");
        }
    }
    let dumped =
        Pagemap::read(images, 1, MOST_RUNS).unwrap().unwrap().entries.into_iter().filter(|e| e.flags & PE_PRESENT != 0);
    assert_eq!(dumped.map(|e| e.range.end - e.range.start).sum::<u64>(), REAL_DUMPED as u64);
    let holes = holes(images).unwrap();
    assert_eq!(holes.values().map(|pages| bytes(pages) >> 10).collect::<Vec<_>>(), [10224, 120, 112]);
}

#[test]
fn a_pagemap_is_written_as_criu_writes_it() {
    let scratch = tempfile::tempdir().unwrap();
    for vpid in [1, 6, 16] {
        let pagemap = Pagemap::read(Path::new(REAL), vpid, MOST_RUNS).unwrap().unwrap();
        pagemap.write(scratch.path(), vpid).unwrap();
        assert_eq!(Pagemap::read(scratch.path(), vpid, MOST_RUNS).unwrap().unwrap(), pagemap);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
        fs::remove_file(pagemap_path(scratch.path(), vpid)).unwrap();
    }
    assert_eq!(Pagemap::read(scratch.path(), 1, MOST_RUNS).unwrap(), None);
}

#[test]
fn entries_of_older_dumps_are_understood() {
    let old = |in_parent| PagemapEntry { vaddr: PAGE, compat_nr_pages: 2, in_parent, flags: None, nr_pages: None };
    let expected = |flags| vec![Entry { range: PAGE..3 * PAGE, flags }];
    assert_eq!(pagemap(&[old(None)]).unwrap(), expected(PE_PRESENT));
    assert_eq!(pagemap(&[old(Some(true))]).unwrap(), expected(PE_PARENT));
}

#[test]
fn impossible_entries_are_refused() {
    for (vaddr, pages) in [(1, 1), (PAGE, 0), (PAGE, u64::MAX), (ADDRESSES, 1), (u64::MAX - PAGE + 1, 1), (0, 1 << 52)]
    {
        let refused = pagemap(&[entry(vaddr, pages, Some(PE_PARENT))]);
        assert!(matches!(refused, Err(ImageError::Range { .. })), "{vaddr:x} {pages:x}: {refused:?}");
    }
    let overlap = pagemap(&[entry(PAGE, 2, Some(PE_PARENT)), entry(2 * PAGE, 1, Some(PE_PARENT))]);
    assert!(matches!(overlap, Err(ImageError::Order { address, .. }) if address == 2 * PAGE), "{overlap:?}");
    for flags in [0, PE_LAZY, PE_PARENT | PE_PRESENT, 8] {
        let refused = pagemap(&[entry(PAGE, 1, Some(flags))]);
        assert!(matches!(refused, Err(ImageError::Flags { .. })), "{flags}: {refused:?}");
    }
}

#[test]
fn other_files_are_no_images() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    fs::write(at("pagemap-1.img"), "").unwrap();
    assert!(matches!(Pagemap::read(scratch.path(), 1, MOST_RUNS), Err(ImageError::Kind { .. })));
    fs::copy(Path::new(REAL).join("mm-1.img"), at("pagemap-2.img")).unwrap();
    assert!(matches!(Pagemap::read(scratch.path(), 2, MOST_RUNS), Err(ImageError::Kind { .. })));
    std::os::unix::fs::symlink(Path::new(REAL).join("pagemap-1.img"), at("pagemap-3.img")).unwrap();
    assert!(matches!(Pagemap::read(scratch.path(), 3, MOST_RUNS), Err(ImageError::Access { .. })));
    nix::unistd::mkfifo(&at("pagemap-4.img"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(Pagemap::read(scratch.path(), 4, MOST_RUNS), Err(ImageError::Kind { .. })));
    fs::File::create(at("pagemap-5.img")).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(Pagemap::read(scratch.path(), 5, MOST_RUNS), Err(ImageError::Long { .. })));
    let error = read_vmas(scratch.path(), 1).unwrap_err();
    assert!(error.to_string().contains("mm-1.img"), "{error}");
}

#[test]
fn an_image_that_is_cut_off_anywhere_is_not_taken_for_whole() {
    let scratch = tempfile::tempdir().unwrap();
    let whole = fs::read(Path::new(REAL).join("pagemap-6.img")).unwrap();
    let entries = Pagemap::read(Path::new(REAL), 6, MOST_RUNS).unwrap().unwrap().entries;
    for length in 0..whole.len() {
        fs::write(pagemap_path(scratch.path(), 6), &whole[..length]).unwrap();
        // Between two messages nothing shows; that pages are missing then shows in the length of the pages.
        if let Ok(read) = Pagemap::read(scratch.path(), 6, MOST_RUNS) {
            assert!(read.unwrap().entries.len() < entries.len());
        }
    }
}

#[test]
fn mappings_are_read_one_by_one() {
    let scratch = tempfile::tempdir().unwrap();
    // Two bytes each, and the last one is cut off: whoever decodes them all first has taken much memory and hears only of that.
    let empty = [(MM_VMAS << 3 | 2) as u8, 0].repeat(1000);
    let message = [&empty[..], &[(MM_VMAS << 3 | 2) as u8, 9]].concat();
    let words = [COMMON.to_le_bytes(), MM.to_le_bytes(), (message.len() as u32).to_le_bytes()].concat();
    fs::write(scratch.path().join("mm-1.img"), [words, message].concat()).unwrap();
    let error = read_vmas(scratch.path(), 1).unwrap_err();
    assert!(matches!(error, ImageError::Range { start: 0, end: 0, .. }), "{error}");
}

#[test]
fn what_else_is_in_an_image_of_mappings_is_passed_over() {
    let scratch = tempfile::tempdir().unwrap();
    let vma = VmaEntry { start: PAGE, end: 2 * PAGE, flags: 1, status: 2, madv: None }.encode_to_vec();
    let with = |others: &[u8]| {
        let vma = [&[(MM_VMAS << 3 | 2) as u8, vma.len() as u8], &vma[..]].concat();
        let message = [others, &vma].concat();
        let words = [COMMON.to_le_bytes(), MM.to_le_bytes(), (message.len() as u32).to_le_bytes()].concat();
        fs::write(scratch.path().join("mm-1.img"), [words, message].concat()).unwrap();
        read_vmas(scratch.path(), 1)
    };
    // A number, eight bytes, text, and four bytes; then none of these.
    let others =
        [&[1 << 3, 0xff, 0x7f, 2 << 3 | 1, 1, 2, 3, 4, 5, 6, 7, 8, 3 << 3 | 2, 1, b'x'][..], &[4 << 3 | 5, 1, 2, 3, 4]];
    assert_eq!(with(&others.concat()).unwrap().len(), 1);
    assert!(matches!(with(&[1 << 3 | 3]), Err(ImageError::Kind { .. })));
    assert!(matches!(with(&[1 << 3 | 2, 0x7f]), Err(ImageError::Torn { .. })));
    assert!(matches!(with(&[0xff; 11]), Err(ImageError::Message { .. })));
}

#[test]
fn process_ids_that_cannot_be_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    for pids in [vec![0], vec![u32::MAX], vec![5, 5]] {
        let processes: Vec<(u32, &[u32])> = pids.iter().map(|pid| (*pid, &[][..])).collect();
        write_processes(scratch.path(), &processes);
        assert!(matches!(read_processes(scratch.path()), Err(ImageError::Pid { .. })), "{pids:?}");
    }
}

#[test]
fn what_criu_writes_of_a_zombies_threads_means_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    write_task(scratch.path(), &Pagemap { pages_id: 1, entries: vec![] }, &[anonymous(PAGE..2 * PAGE)], PAGE);
    write_processes(scratch.path(), &[(1, &[1]), (7, &[0, u32::MAX])]);
    fs::write(pages_path(scratch.path(), 1), "").unwrap();
    let store = crate::memory::Store::at(scratch.path().join("memory"));
    store.create().unwrap();
    let composed = crate::memory::compose(scratch.path(), &store, crate::memory::Restore::Lazy).unwrap();
    assert_eq!(composed.lazy.keys().collect::<Vec<_>>(), [&1]);
}

#[test]
fn a_thread_of_another_machine_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let gpregs = Some(UserX86Regs { sp: Some(PAGE) });
    write(
        scratch.path(),
        "core-1",
        CORE,
        &[CoreEntry { mtype: 3, thread_info: Some(ThreadInfoX86 { gpregs }), thread_core: None }],
    );
    assert!(matches!(read_stack_pointer(scratch.path(), 1), Err(ImageError::Registers { .. })));
}

proptest! {
    #[test]
    fn hostile_bytes_are_refused_or_right(
        name in prop::sample::select(vec!["pagemap-1.img", "mm-1.img", "core-1.img", "pstree.img"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let scratch = tempfile::tempdir().unwrap();
        let mut bytes = fs::read(Path::new(REAL).join(name)).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        fs::write(scratch.path().join(name), bytes).unwrap();
        let in_order = |ranges: Vec<Range<u64>>| {
            let right = |range: &Range<u64>| range.start < range.end && range.end <= ADDRESSES && range.start.is_multiple_of(PAGE);
            ranges.iter().all(right) && ranges.windows(2).all(|pair| pair[0].end <= pair[1].start)
        };
        match name {
            "pagemap-1.img" => if let Ok(pagemap) = Pagemap::read(scratch.path(), 1, MOST_RUNS) {
                prop_assert!(in_order(pagemap.unwrap().entries.into_iter().map(|entry| entry.range).collect()));
            },
            "mm-1.img" => if let Ok(vmas) = read_vmas(scratch.path(), 1) {
                prop_assert!(in_order(vmas.into_iter().map(|vma| vma.range).collect()));
            },
            "core-1.img" => drop(read_stack_pointer(scratch.path(), 1)),
            _ => drop(read_processes(scratch.path())),
        }
    }
}
