//! Tests, on processes that are made up and on a real dump.

use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::images::tests::{
    REAL_DUMPED, anonymous, composed, of_file, real, write_processes, write_rseq, write_task,
};
use super::super::images::{ADDRESSES, PE_PARENT, read_processes, read_stack_pointer, read_vmas};
use super::super::{bytes, holes, pager, write_owed};
use super::*;

/// On a tmpfs: other file systems have no offsets as high as addresses.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn store(scratch: &TempDir) -> Store {
    let store = Store::at(scratch.path().join("memory"));
    store.create().unwrap();
    store
}

/// What a page contains that came through the store; each seventh is zeros.
fn content(vpid: Vpid, page: u64) -> Vec<u8> {
    let byte = (page / PAGE % 7 * 3 + u64::try_from(vpid).unwrap() % 2) as u8;
    vec![byte; PAGE as usize]
}

/// Pages of what is present, by their address.
fn present(images: &Path, vpid: Vpid) -> BTreeMap<u64, Vec<u8>> {
    let pagemap = composed(images, vpid);
    let file = fs::read(images::pages_path(images, pagemap.pages_id)).unwrap();
    let entries = pagemap.entries.iter().filter(|entry| entry.flags == PE_PRESENT);
    let pages = entries.flat_map(|entry| entry.range.clone().step_by(PAGE as usize));
    let (found, rest) = file.as_chunks::<{ PAGE as usize }>();
    assert!(rest.is_empty());
    let pages: Vec<u64> = pages.collect();
    assert_eq!(pages.len(), found.len());
    pages.into_iter().zip(found.iter().map(|page| page.to_vec())).collect()
}

#[test]
fn every_page_of_a_real_dump_ends_up_in_one_place() {
    for restore in [Restore::Lazy, Restore::Eager] {
        let scratch = scratch();
        let images = scratch.path();
        real(images);
        std::os::unix::fs::symlink("../parent", images.join(PARENT_LINK)).unwrap();
        let store = store(&scratch);
        let holes = holes(images).unwrap();
        for (vpid, pages) in &holes {
            for page in super::super::pieces(pages).flat_map(|piece| piece.step_by(PAGE as usize)) {
                store.put(*vpid, page, &content(*vpid, page)).unwrap();
            }
        }
        let composed = compose(images, &store, restore).unwrap();

        assert_eq!(composed.lazy.keys().collect::<Vec<_>>(), [&1, &6, &16]);
        let lazy: u64 = composed.lazy.values().map(bytes).sum();
        assert_eq!(lazy + composed.present, holes.values().map(bytes).sum::<u64>() + REAL_DUMPED as u64);
        assert_eq!(lazy == 0, restore == Restore::Eager);
        assert_eq!(images.join(PARENT_LINK).is_dir(), restore == Restore::Lazy);
        for process in read_processes(images).unwrap() {
            let vpid = process.vpid;
            let (lazy, holes) = (&composed.lazy[&vpid], &holes[&vpid]);
            let present = present(images, vpid);
            let vmas = read_vmas(images, vpid).unwrap();
            for (page, bytes) in &present {
                assert!(!lazy.contains(page));
                if holes.contains(page) {
                    assert_eq!(bytes, &content(vpid, *page), "{page:x}");
                    let mut rest = vec![1; PAGE as usize];
                    store.read_at(vpid, *page, &mut rest).unwrap();
                    assert!(rest.iter().all(|byte| *byte == 0), "{page:x} is still in the store");
                }
            }
            let dumped = present.iter().filter(|(page, _)| !holes.contains(page));
            dumped.zip(1..).for_each(|((_, bytes), number)| assert_eq!(bytes, &vec![number; PAGE as usize]));
            for range in holes.iter() {
                for page in range.clone().step_by(PAGE as usize) {
                    assert_ne!(lazy.contains(&page), present.contains_key(&page), "{page:x}");
                    if lazy.contains(&page) {
                        assert!(vmas.iter().find(|vma| vma.range.contains(&page)).unwrap().can_be_lazy());
                        let mut bytes = vec![0; PAGE as usize];
                        store.read_at(vpid, page, &mut bytes).unwrap();
                        assert_eq!(bytes, content(vpid, page));
                    }
                }
            }
            for thread in process.threads {
                let pointer = read_stack_pointer(images, thread).unwrap();
                assert!(present.contains_key(&(pointer - pointer % PAGE)));
            }
        }
    }
}

#[test]
fn what_can_be_owed_is_known_from_the_dump_alone() {
    let scratch = scratch();
    real(scratch.path());
    let known = can_be_owed(scratch.path()).unwrap();
    assert_eq!(can_be_owed(scratch.path()).unwrap(), known, "nothing was changed");
    let lazy = compose(scratch.path(), &store(&scratch), Restore::Lazy).unwrap().lazy;
    for process in read_processes(scratch.path()).unwrap() {
        let mut allowed = lazy[&process.vpid].clone();
        let rseq: Vec<_> =
            process.threads.iter().filter_map(|thread| images::read_rseq(scratch.path(), *thread).unwrap()).collect();
        for range in rseq {
            allowed.remove(range.start / PAGE * PAGE..range.end.next_multiple_of(PAGE));
        }
        assert_eq!(known[&process.vpid], allowed);
    }
    assert!(known.values().map(bytes).sum::<u64>() > 0);
}

#[test]
fn owed_pages_are_lazy_and_what_came_of_them_before_is_forgotten() {
    let scratch = scratch();
    real(scratch.path());
    let store = store(&scratch);
    let (vpid, pages) = can_be_owed(scratch.path()).unwrap().pop_last().unwrap();
    let all: Vec<u64> = pages.iter().flat_map(|range| range.clone().step_by(PAGE as usize)).collect();
    all.iter().for_each(|page| store.put(vpid, *page, &[7; PAGE as usize]).unwrap());
    let owed = BTreeMap::from([(vpid, Pages::from_iter([all[0]..all[0] + PAGE, all[2]..all[2] + PAGE]))]);
    write_owed(scratch.path(), &owed).unwrap();
    let composed = compose(scratch.path(), &store, Restore::Lazy).unwrap();
    assert_eq!(composed.owed, owed);
    assert!(pages.iter().all(|range| composed.lazy[&vpid].gaps(range).next().is_none()));
    for page in all {
        let mut found = [1; PAGE as usize];
        store.read_at(vpid, page, &mut found).unwrap();
        assert_eq!(found, [if owed[&vpid].contains(&page) { 0 } else { 7 }; PAGE as usize]);
    }
}

#[test]
fn pages_that_tasks_cannot_wait_for_are_not_owed() {
    let (lazy, stack, file) = (PAGE..3 * PAGE, 3 * PAGE..4 * PAGE, 4 * PAGE..5 * PAGE);
    let rseq = 6 * PAGE - 16..6 * PAGE + 16;
    let vmas = [anonymous(lazy.start..stack.end), of_file(file.clone()), anonymous(file.end..8 * PAGE)];
    let entries = vec![Entry { range: lazy.start..8 * PAGE, flags: PE_PARENT }];
    let owing = |owed: Range<u64>, vpid, restore| {
        let scratch = scratch();
        let pagemap = Pagemap { pages_id: 1, entries: entries.clone() };
        write_task(scratch.path(), &pagemap, &vmas, stack.start + 8);
        write_rseq(scratch.path(), stack.start + 8, rseq.clone());
        fs::write(images::pages_path(scratch.path(), 1), "").unwrap();
        write_owed(scratch.path(), &[(vpid, Pages::from_iter([owed]))].into()).unwrap();
        let composed = compose(scratch.path(), &store(&scratch), restore);
        let left = Pagemap::read(scratch.path(), 1, MOST_RUNS).ok().flatten() == Some(pagemap);
        assert!(composed.is_ok() || left, "what is refused is left alone");
        composed
    };
    owing(lazy.clone(), 1, Restore::Lazy).unwrap();
    owing(7 * PAGE..8 * PAGE, 1, Restore::Lazy).unwrap();
    let refused = [
        (lazy.clone(), 1, Restore::Eager, lazy.start),
        (lazy.clone(), 2, Restore::Lazy, lazy.start),
        (lazy.start..stack.end, 1, Restore::Lazy, stack.start),
        (file.clone(), 1, Restore::Lazy, file.start),
        (5 * PAGE..8 * PAGE, 1, Restore::Lazy, 5 * PAGE),
        (6 * PAGE..8 * PAGE, 1, Restore::Lazy, 6 * PAGE),
        (7 * PAGE..9 * PAGE, 1, Restore::Lazy, 8 * PAGE),
    ];
    for (pages, vpid, restore, at) in refused {
        let error = owing(pages, vpid, restore).unwrap_err();
        assert!(matches!(error, ImageError::Owed { address, .. } if address == at), "{error}");
    }
}

#[test]
fn pages_of_zeros_take_no_memory_in_the_images() {
    let scratch = scratch();
    let (store, range) = (store(&scratch), PAGE..PAGE + (64 << 20));
    let pagemap = Pagemap { pages_id: 3, entries: vec![Entry { range: range.clone(), flags: PE_PARENT }] };
    write_task(scratch.path(), &pagemap, &[of_file(range)], 0);
    fs::write(images::pages_path(scratch.path(), 3), "").unwrap();
    let composed = compose(scratch.path(), &store, Restore::Lazy).unwrap();
    let pages = fs::metadata(images::pages_path(scratch.path(), 3)).unwrap();
    assert_eq!((composed.present, pages.len(), pages.blocks()), (64 << 20, 64 << 20, 0));
}

#[test]
fn dumped_pages_that_came_as_zeros_take_no_memory_either() {
    let scratch = scratch();
    let store = store(&scratch);
    let (hole, dumped) = (PAGE..2 * PAGE, 2 * PAGE..2 * PAGE + (64 << 20));
    let entries = [(hole.clone(), PE_PARENT), (dumped.clone(), PE_PRESENT)];
    let entries = entries.map(|(range, flags)| Entry { range, flags }).to_vec();
    write_task(scratch.path(), &Pagemap { pages_id: 3, entries }, &[of_file(hole.start..dumped.end)], 0);
    let path = images::pages_path(scratch.path(), 3);
    let came = File::create(&path).unwrap();
    came.set_len(64 << 20).unwrap();
    came.write_all_at(&[7; PAGE as usize], 5 * PAGE).unwrap();
    store.put(1, PAGE, &[8; PAGE as usize]).unwrap();
    compose(scratch.path(), &store, Restore::Lazy).unwrap();
    let pages = File::open(&path).unwrap();
    assert_eq!(pages.metadata().unwrap().blocks() * 512, 2 * PAGE);
    let first_byte = |page: u64| {
        let mut byte = [1];
        pages.read_exact_at(&mut byte, page * PAGE).unwrap();
        byte[0]
    };
    assert_eq!([0, 1, 5, 6, 7].map(first_byte), [8, 0, 0, 7, 0]);
}

#[test]
fn what_criu_could_have_made_lazy_is_not_skipped_at_the_restore() {
    let scratch = scratch();
    let range = PAGE..3 * PAGE;
    let entries = vec![Entry { range: range.clone(), flags: PE_PRESENT | PE_LAZY }];
    write_task(scratch.path(), &Pagemap { pages_id: 1, entries }, &[anonymous(range.clone())], 0);
    fs::write(images::pages_path(scratch.path(), 1), [7; 2 * PAGE as usize]).unwrap();
    let composed = compose(scratch.path(), &store(&scratch), Restore::Lazy).unwrap();
    let expected = vec![Entry { range, flags: PE_PRESENT }];
    assert_eq!(Pagemap::read(scratch.path(), 1, MOST_RUNS).unwrap().unwrap().entries, expected);
    assert_eq!((composed.present, composed.lazy[&1].is_empty()), (2 * PAGE, true));
}

#[test]
fn what_was_given_back_before_the_freeze_is_zeros_whatever_the_store_has_of_it() {
    let scratch = scratch();
    let entry = |pages: Range<u64>| Entry { range: pages.start * PAGE..pages.end * PAGE, flags: PE_PARENT };
    let entries = vec![entry(1..3), entry(5..6)];
    write_task(scratch.path(), &Pagemap { pages_id: 1, entries }, &[anonymous(0..8 * PAGE)], 0);
    fs::write(images::pages_path(scratch.path(), 1), "").unwrap();
    let store = store(&scratch);
    // All came in a round, and only some were there at the end.
    (0..8).for_each(|page| store.put(1, page * PAGE, &[7; PAGE as usize]).unwrap());
    let composed = compose(scratch.path(), &store, Restore::Lazy).unwrap();
    assert_eq!(composed.lazy[&1], Pages::from_iter([PAGE..3 * PAGE, 5 * PAGE..6 * PAGE]));
    assert_eq!(pager::lazy(scratch.path()).unwrap(), composed.lazy);
}

#[test]
fn what_a_forked_child_must_find_empty_is_not_lazy() {
    let scratch = scratch();
    let range = PAGE..3 * PAGE;
    let entries = vec![Entry { range: range.clone(), flags: PE_PARENT }];
    let wiped = Vma { advice: 1 << libc::MADV_WIPEONFORK, ..anonymous(range) };
    write_task(scratch.path(), &Pagemap { pages_id: 1, entries }, &[wiped], 0);
    fs::write(images::pages_path(scratch.path(), 1), "").unwrap();
    let composed = compose(scratch.path(), &store(&scratch), Restore::Lazy).unwrap();
    assert_eq!((composed.present, composed.lazy[&1].is_empty()), (2 * PAGE, true));
}

/// What is said about one task, and whether its pagemap was left alone.
fn refused(entries: &[Entry], vmas: &[Vma], pages: u64) -> ImageError {
    let scratch = scratch();
    let pagemap = Pagemap { pages_id: 1, entries: entries.to_vec() };
    write_task(scratch.path(), &pagemap, vmas, 0);
    File::create(images::pages_path(scratch.path(), 1)).unwrap().set_len(pages).unwrap();
    let error = compose(scratch.path(), &store(&scratch), Restore::Eager).unwrap_err();
    assert_eq!(Pagemap::read(scratch.path(), 1, MOST_RUNS).unwrap().unwrap(), pagemap);
    error
}

#[test]
fn pages_outside_of_private_memory_are_refused() {
    let entry = |range, flags| Entry { range, flags };
    let shared = Vma { status: 1 | 1 << 7, ..of_file(2 * PAGE..4 * PAGE) };
    for flags in [PE_PARENT, PE_PRESENT] {
        let outside = |vmas: &[Vma], address| {
            let error = refused(&[entry(PAGE..3 * PAGE, flags)], vmas, 2 * PAGE);
            assert!(matches!(error, ImageError::Outside { address: found, .. } if found == address), "{error}");
        };
        outside(&[], PAGE);
        outside(&[anonymous(PAGE..2 * PAGE)], 2 * PAGE);
        outside(&[anonymous(2 * PAGE..3 * PAGE)], PAGE);
        outside(&[anonymous(PAGE..2 * PAGE), shared.clone()], 2 * PAGE);
    }
}

#[test]
fn pages_images_of_another_length_are_refused() {
    let vmas = [anonymous(PAGE..9 * PAGE)];
    for pages in [0, PAGE, 2 * PAGE - 1, 3 * PAGE] {
        let error = refused(&[Entry { range: PAGE..3 * PAGE, flags: PE_PRESENT }], &vmas, pages);
        assert!(matches!(error, ImageError::Size { found, .. } if found == pages), "{error}");
    }
}

#[test]
fn two_tasks_with_the_same_pages_are_refused() {
    let scratch = scratch();
    real(scratch.path());
    let mut pagemap = Pagemap::read(scratch.path(), 6, MOST_RUNS).unwrap().unwrap();
    pagemap.pages_id = Pagemap::read(scratch.path(), 16, MOST_RUNS).unwrap().unwrap().pages_id;
    pagemap.write(scratch.path(), 6).unwrap();
    let error = compose(scratch.path(), &store(&scratch), Restore::Eager).unwrap_err();
    assert!(matches!(error, ImageError::Shared { .. }), "{error}");
}

#[test]
fn a_thread_that_is_named_twice_is_read_once() {
    let scratch = scratch();
    real(scratch.path());
    // A megabyte of names for one image would be as many megabytes to read as it has.
    for (processes, twice) in [(&[(1, &[1, 7, 8, 7][..])][..], 7), (&[(1, &[1, 7]), (6, &[1])], 1)] {
        write_processes(scratch.path(), processes);
        let error = plans(scratch.path(), Restore::Lazy, MOST_RUNS).unwrap_err();
        assert!(matches!(error, ImageError::Pid { pid, .. } if pid == twice), "{error}");
    }
}

#[test]
fn the_runs_and_the_length_of_all_images_are_bounded() {
    let scratch = scratch();
    real(scratch.path());
    let runs = |vpid| {
        let pagemap = Pagemap::read(scratch.path(), vpid, MOST_RUNS).unwrap().unwrap();
        pagemap.entries.len() + read_vmas(scratch.path(), vpid).unwrap().len()
    };
    let all: usize = [1, 6, 16].map(runs).into_iter().sum();
    plans(scratch.path(), Restore::Lazy, all).unwrap();
    for most in [0, 1, runs(1) - 1, runs(1), all - 1] {
        let error = plans(scratch.path(), Restore::Lazy, most).unwrap_err();
        assert!(matches!(error, ImageError::Runs { .. }), "{error}");
    }
    for number in 2..=5 {
        let path = scratch.path().join(format!("core-{number}.img"));
        File::create(path).unwrap().set_len(256 << 20).unwrap();
    }
    let error = plans(scratch.path(), Restore::Lazy, MOST_RUNS).unwrap_err();
    assert!(matches!(error, ImageError::Long { bytes: 0x4000_0000.., .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A task of up to 40 runs of pages, each in a mapping of its own, some of which touch.
    #[test]
    fn every_page_ends_up_once_and_right(
        runs in prop::collection::vec((0_u64..3, 1_u64..5, any::<bool>(), any::<bool>()), 1..40),
        stack in 0_u64..160,
        lazy in any::<bool>(),
    ) {
        let scratch = scratch();
        let store = store(&scratch);
        let (mut at, mut dumped) = (ADDRESSES - 1000 * PAGE, Vec::new());
        let mut wanted = BTreeMap::new();
        let (mut entries, mut vmas) = (Vec::new(), Vec::new());
        let base = at;
        for (gap, pages, hole, file) in runs {
            let range = at + gap * PAGE..at + (gap + pages) * PAGE;
            at = range.end;
            for page in range.clone().step_by(PAGE as usize) {
                let content = content(1, page);
                if hole {
                    store.put(1, page, &content).unwrap();
                } else {
                    dumped.extend_from_slice(&content);
                }
                wanted.insert(page, content);
            }
            vmas.push(if file { of_file(range.clone()) } else { anonymous(range.clone()) });
            entries.push(Entry { range, flags: if hole { PE_PARENT } else { PE_PRESENT | PE_LAZY } });
        }
        let stack = base + stack * PAGE;
        write_task(scratch.path(), &Pagemap { pages_id: 9, entries: entries.clone() }, &vmas, stack + 8);
        fs::write(images::pages_path(scratch.path(), 9), dumped).unwrap();

        let restore = if lazy { Restore::Lazy } else { Restore::Eager };
        let composed = compose(scratch.path(), &store, restore).unwrap();
        prop_assert_eq!(&pager::lazy(scratch.path()).unwrap(), &composed.lazy);
        let present = present(scratch.path(), 1);
        prop_assert_eq!(composed.present, present.len() as u64 * PAGE);
        prop_assert_eq!(bytes(&composed.lazy[&1]) + composed.present, wanted.len() as u64 * PAGE);
        for (page, content) in wanted {
            let at = vmas.partition_point(|vma| vma.range.end <= page);
            let left_out = entries[at].flags == PE_PARENT;
            let expected = lazy && left_out && vmas[at].can_be_lazy() && page != stack;
            prop_assert_eq!(composed.lazy[&1].contains(&page), expected);
            let mut found = vec![0; PAGE as usize];
            match expected {
                true => store.read_at(1, page, &mut found).unwrap(),
                false => found.clone_from(&present[&page]),
            }
            prop_assert_eq!(found, content);
        }
        let entries = super::super::images::tests::composed(scratch.path(), 1).entries;
        let merged = |pair: &[Entry]| pair[0].range.end < pair[1].range.start || pair[0].flags != pair[1].flags;
        prop_assert!(entries.windows(2).all(merged));
    }
}
