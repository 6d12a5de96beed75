//! From what CRIU dumped and what has arrived in the store to images that CRIU restores.
//!
//! A dump with a constant parent says of most pages that they are in the parent's images. At the target there is no parent: each of these
//! pages is either *lazy*, given to the task through its userfaultfd when it is restored, or *present*, moved into the pages image.
//!
//! CRIU registers a userfaultfd for what its `vma_entry_can_be_lazy` says (criu/include/vma.h), and skips at the restore what is marked
//! lazy (criu/mem.c, `restore_priv_vma_content`); all else must be present. It never leaves the page of a stack pointer to the
//! userfaultfd (`is_stack`), nor do we.
//!
//! Lazy pages may be owed ([`super::write_owed`]): they come when the tasks run. What the store has of them is older.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;

use super::images::{self, Entry, ImageError, MOST_RUNS, PARENT_LINK, PE_LAZY, PE_PRESENT, Pagemap, Vma, access};
use super::owed::{self, read_owed};
use super::store::{self, Runs, Store};
use super::{PAGE, PIECE, Pages, Vpid};

/// How the tasks are to be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restore {
    /// With CRIU's `lazy-pages`: whatever can come through a userfaultfd does.
    Lazy,
    /// With all memory in place before the tasks run.
    Eager,
}

/// A set of images that CRIU can restore.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Composed {
    /// What the userfaultfd of each task has to be given out of the store. Every task that has memory is there. Registered pages that
    /// are not in here are zeros.
    pub lazy: BTreeMap<Vpid, Pages>,
    /// Those of them that are not in the store yet.
    pub owed: BTreeMap<Vpid, Pages>,
    /// Bytes that are in the images, for CRIU to restore.
    pub present: u64,
}

/// The pages that the tasks of the dump in `images` can do without until they run, if they are restored lazily. Every task that has
/// memory is there. Nothing is changed.
///
/// # Errors
/// The images cannot be right, or cannot be read.
pub fn can_be_owed(images: &Path) -> Result<BTreeMap<Vpid, Pages>, ImageError> {
    let plans = plans(images, Restore::Lazy, MOST_RUNS)?;
    let mut pages: BTreeMap<Vpid, Pages> = plans.into_iter().map(|(vpid, plan)| (vpid, plan.lazy)).collect();
    for process in images::read_processes(images)? {
        let Some(pages) = pages.get_mut(&process.vpid) else { continue };
        for thread in process.threads {
            // Whoever restores it writes there, and nobody waits for what comes after that.
            if let Some(rseq) = images::read_rseq(images, thread)? {
                pages.remove(rseq.start - rseq.start % PAGE..rseq.end.next_multiple_of(PAGE));
            }
        }
    }
    Ok(pages)
}

/// Rewrites the pagemaps and pages in `images`. Nothing is changed when the images are refused; when writing fails, the images and the
/// store are of no use any more.
///
/// Whether everything has arrived cannot be seen here: a page that never came is a page of zeros.
///
/// # Errors
/// The images cannot be right, or cannot be read or written.
pub fn compose(images: &Path, store: &Store, restore: Restore) -> Result<Composed, ImageError> {
    let plans = plans(images, restore, MOST_RUNS)?;
    let owed = read_owed(images)?;
    check_owed(images, &owed, restore)?;
    keep_huge_pages_away(images, plans.keys(), restore)?;
    // What came of it in former rounds must not be taken for it, and needs no memory.
    for (vpid, pages) in &owed {
        store.forget(*vpid, pages).map_err(access(store.directory()))?;
    }
    let mut composed = Composed { owed, ..Composed::default() };
    let mut buffer = vec![0; PIECE as usize];
    for (vpid, plan) in plans {
        plan.carry_out(images, store, vpid, &mut buffer)?;
        composed.present += plan.bytes();
        composed.lazy.insert(vpid, plan.lazy);
    }
    Ok(composed)
}

/// Looks at all images, changes none. At most `most_runs` pagemap entries and mappings are kept in memory.
fn plans(images: &Path, restore: Restore, most_runs: usize) -> Result<BTreeMap<Vpid, Plan>, ImageError> {
    images::check_length(images)?;
    let mut plans = BTreeMap::new();
    let (mut pages_ids, mut threads, mut runs) = (BTreeSet::new(), HashSet::new(), 0);
    for process in images::read_processes(images)? {
        let vpid = process.vpid;
        let Some(pagemap) = Pagemap::read(images, vpid, most_runs - runs)? else { continue };
        let vmas = images::read_vmas(images, vpid)?;
        runs += pagemap.entries.len() + vmas.len();
        if runs > most_runs {
            return Err(ImageError::Runs { path: images::pagemap_path(images, vpid) });
        }
        let stacks = process.threads.iter().map(|thread| {
            // Each image is read once, however often it is named.
            if !threads.insert(*thread) {
                return Err(ImageError::Pid { path: images::pstree_path(images), pid: *thread });
            }
            let pointer = images::read_stack_pointer(images, *thread)?;
            Ok(pointer - pointer % PAGE)
        });
        let stacks = stacks.collect::<Result<BTreeSet<u64>, ImageError>>()?;
        let outside = |address| ImageError::Outside { path: images::pagemap_path(images, vpid), address };
        let plan = Plan::new(&pagemap, &vmas, &stacks, restore).map_err(|Outside(address)| outside(address))?;
        let path = images::pages_path(images, pagemap.pages_id);
        if !pages_ids.insert(pagemap.pages_id) {
            return Err(ImageError::Shared { path });
        }
        let found = images::open(&path)?.metadata().map_err(access(&path))?.len();
        if found != plan.dumped {
            return Err(ImageError::Size { path, found, expected: plan.dumped });
        }
        plans.insert(vpid, plan);
    }
    Ok(plans)
}

/// Not every page can be waited for.
fn check_owed(images: &Path, owed: &BTreeMap<Vpid, Pages>, restore: Restore) -> Result<(), ImageError> {
    let allowed = match restore {
        Restore::Lazy if !owed.is_empty() => can_be_owed(images)?,
        _ => BTreeMap::new(),
    };
    let none = Pages::new();
    for (&vpid, pages) in owed {
        let allowed = allowed.get(&vpid).unwrap_or(&none);
        if let Some(gap) = pages.iter().find_map(|range| allowed.gaps(range).next()) {
            return Err(ImageError::Owed { path: owed::path(images), vpid, address: gap.start });
        }
    }
    Ok(())
}

/// What becomes of one task's pages.
#[derive(Debug)]
struct Plan {
    pagemap: Pagemap,
    lazy: Pages,
    /// The new pages image, in its order.
    present: Vec<Piece>,
    /// Bytes of the pages image that CRIU wrote.
    dumped: u64,
}

/// Present pages of one origin.
#[derive(Debug)]
struct Piece {
    range: Range<u64>,
    /// Where in the new pages image.
    to: u64,
    /// Where in the old pages image; `None`: out of the store.
    from: Option<u64>,
}

/// An address where the task has no private memory.
#[derive(Debug, PartialEq, Eq)]
struct Outside(u64);

impl Plan {
    fn new(dumped: &Pagemap, vmas: &[Vma], stacks: &BTreeSet<u64>, restore: Restore) -> Result<Self, Outside> {
        let pagemap = Pagemap { pages_id: dumped.pages_id, entries: Vec::new() };
        let mut plan = Self { pagemap, lazy: Pages::new(), present: Vec::new(), dumped: 0 };
        for entry in &dumped.entries {
            for (range, vma) in by_mapping(&entry.range, vmas)? {
                if entry.flags & PE_PRESENT != 0 {
                    let from = plan.dumped;
                    plan.dumped += range.end - range.start;
                    plan.add_present(range, Some(from));
                } else if restore == Restore::Lazy && vma.can_be_lazy() {
                    plan.add_lazy(range, stacks);
                } else {
                    plan.add_present(range, None);
                }
            }
        }
        Ok(plan)
    }

    /// Bytes of the new pages image.
    fn bytes(&self) -> u64 {
        self.present.last().map_or(0, |piece| piece.to + (piece.range.end - piece.range.start))
    }

    fn add_lazy(&mut self, range: Range<u64>, stacks: &BTreeSet<u64>) {
        let mut start = range.start;
        for stack in stacks.range(range.clone()) {
            self.add_registered(start..*stack);
            self.add_present(*stack..stack + PAGE, None);
            start = stack + PAGE;
        }
        self.add_registered(start..range.end);
    }

    fn add_registered(&mut self, range: Range<u64>) {
        if !range.is_empty() {
            self.add_entry(range.clone(), PE_LAZY);
            self.lazy.insert(range);
        }
    }

    fn add_present(&mut self, range: Range<u64>, from: Option<u64>) {
        // Not lazy, whatever CRIU wrote: it would skip the pages then.
        self.add_entry(range.clone(), PE_PRESENT);
        self.present.push(Piece { range, to: self.bytes(), from });
    }

    fn add_entry(&mut self, range: Range<u64>, flags: u32) {
        match self.pagemap.entries.last_mut() {
            Some(last) if last.range.end == range.start && last.flags == flags => last.range.end = range.end,
            _ => self.pagemap.entries.push(Entry { range, flags }),
        }
    }

    fn carry_out(&self, images: &Path, store: &Store, vpid: Vpid, buffer: &mut [u8]) -> Result<(), ImageError> {
        // What CRIU wrote stays in its order.
        if self.present.iter().any(|piece| piece.from.is_none()) {
            let path = images::pages_path(images, self.pagemap.pages_id);
            let dumped = File::options().read(true).write(true).open(&path).map_err(access(&path))?;
            let mut runs = Runs::default();
            let mut store = store.drain(vpid).map_err(access(store.directory()))?;
            images::replace(&path, |new| {
                // Pages of zeros stay holes.
                new.set_len(self.bytes())?;
                self.present.iter().try_for_each(|piece| match piece.from {
                    Some(from) => move_pages(&dumped, &mut runs, from, new, piece, buffer),
                    None => store.range(piece.range.clone(), buffer, |address, bytes| {
                        new.write_all_at(bytes, piece.to + (address - piece.range.start))
                    }),
                })
            })?;
        }
        self.pagemap.write(images, vpid)
    }
}

/// Moves what CRIU dumped to its new place, without ever having much of it twice in memory. What came as zeros is a hole, and stays one.
fn move_pages(
    dumped: &File,
    runs: &mut Runs,
    from: u64,
    new: &File,
    piece: &Piece,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut rest = from..from + (piece.range.end - piece.range.start);
    while let Some(data) = runs.next(dumped, rest.clone(), buffer.len() as u64)? {
        let part = &mut buffer[..(data.end - data.start) as usize];
        dumped.read_exact_at(part, data.start)?;
        new.write_all_at(part, piece.to + (data.start - from))?;
        store::discard(dumped, data.clone())?;
        rest.start = data.end;
    }
    Ok(())
}

/// Cuts `range` at the borders of mappings.
fn by_mapping<'a>(range: &Range<u64>, vmas: &'a [Vma]) -> Result<Vec<(Range<u64>, &'a Vma)>, Outside> {
    let first = vmas.partition_point(|vma| vma.range.end <= range.start);
    let mut parts = Vec::new();
    let mut start = range.start;
    for vma in &vmas[first..] {
        if start >= range.end {
            break;
        }
        if vma.range.start > start || !vma.is_private() {
            return Err(Outside(start));
        }
        let end = range.end.min(vma.range.end);
        parts.push((start..end, vma));
        start = end;
    }
    if start < range.end { Err(Outside(start)) } else { Ok(parts) }
}

/// Where huge pages are always on, one may be given to a task for a single present page, before the userfaultfd is registered: the lazy
/// pages around would be there then, as zeros, and nobody would be asked for them. CRIU turns huge pages off while it restores lazily if
/// there is a parent (criu/mem.c, `maybe_disable_thp`): so there is one, which has nothing.
fn keep_huge_pages_away<'a>(
    images: &Path,
    vpids: impl Iterator<Item = &'a Vpid>,
    restore: Restore,
) -> Result<(), ImageError> {
    let parent = images.join(PARENT_LINK);
    // What the dump has left there is a link, which alone is removed.
    match fs::remove_dir_all(&parent) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(access(&parent)(error)),
        _ => {}
    }
    match restore {
        Restore::Eager => Ok(()),
        Restore::Lazy => {
            DirBuilder::new().mode(0o700).create(&parent).map_err(access(&parent))?;
            vpids.into_iter().try_for_each(|vpid| images::write_parent(&parent, *vpid, None))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::super::images::tests::{
        REAL_DUMPED, anonymous, composed, of_file, real, write_processes, write_rseq, write_task,
    };
    use super::super::images::{ADDRESSES, PE_PARENT, read_processes, read_stack_pointer, read_vmas};
    use super::super::{bytes, holes, write_owed};
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
            let rseq: Vec<_> = process
                .threads
                .iter()
                .filter_map(|thread| images::read_rseq(scratch.path(), *thread).unwrap())
                .collect();
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
}
