//! From what CRIU dumped and what has arrived in the store to images that CRIU restores.
//!
//! A dump with a constant parent says of most pages that they are in the parent's images. At the target there is no parent: each of these
//! pages is either *lazy*, given to the task through its userfaultfd when it is restored, or *present*, moved into the pages image.
//!
//! CRIU registers a userfaultfd for what its `vma_entry_can_be_lazy` says (criu/include/vma.h), and skips at the restore what is marked
//! lazy (criu/mem.c, `restore_priv_vma_content`); all else must be present. It never leaves the page of a stack pointer to the
//! userfaultfd (`is_stack`), nor do we.
//!
//! Entries are as exact as the dump's: of what the task gave back shortly before the freeze the store still has the bytes, and whoever
//! restores knows only by the entries that it is zeros.
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
mod tests;
