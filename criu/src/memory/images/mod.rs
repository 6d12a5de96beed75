//! CRIU's images, as far as the memory of tasks needs them.
//!
//! An image file begins with one or two magic words; messages follow, each after its length (u32, all numbers little-endian). Only the
//! fields that are read here are declared, and all fields of what is written. Layout: CRIU 4.2, `criu/image.c`, `criu/protobuf.c`,
//! `criu/include/magic.h`, `images/*.proto`.
//!
//! At the target these files come from another host: every length, address and flag is checked before it is used.

mod error;
mod file;

use std::collections::HashSet;
use std::fs;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use prost::Message;

pub use error::ImageError;
use file::{Image, write_message};
pub(super) use file::{access, open, replace};

use super::{PAGE, Vpid};

/// `IMG_COMMON_MAGIC`: the first word of every image but the inventory.
const COMMON: u32 = 0x5456_4319;
/// `INVENTORY_MAGIC`.
const INVENTORY: u32 = 0x5831_3116;
/// `PAGEMAP_MAGIC`.
const PAGEMAP: u32 = 0x5608_4025;
/// `PSTREE_MAGIC`.
const PSTREE: u32 = 0x5027_3030;
/// `MM_MAGIC`.
const MM: u32 = 0x5749_2820;
/// `CORE_MAGIC`.
const CORE: u32 = 0x5505_3847;

/// `CRTOOLS_IMAGES_V1_1`: images with the common magic, which every CRIU since 1.8 writes.
const VERSION: u32 = 2;

/// One past the highest address that a task may use (x86-64, four levels of page tables).
pub const ADDRESSES: u64 = 1 << 47;

/// The most tasks of one container.
pub const MOST_TASKS: usize = 1 << 15;

/// The most runs of pages and mappings of all tasks of one container. Enough for 32 GiB of pages none of which has a neighbour; some
/// 150 bytes are kept for each.
pub(super) const MOST_RUNS: usize = 1 << 23;

/// The most bytes of the images that are read for one container: the largest tree has a third of that. Zeros cost whoever sends them
/// nothing, and whoever reads them time.
const MOST_BYTES: u64 = 1 << 30;

/// The link to the parent's directory among the images (`CR_PARENT_LINK`). Whoever sends images leaves it out.
pub const PARENT_LINK: &str = "parent";

/// `PE_PARENT`: the pages are in the parent's images.
pub(super) const PE_PARENT: u32 = 1 << 0;
/// `PE_LAZY`: the pages may be filled in through userfaultfd.
pub(super) const PE_LAZY: u32 = 1 << 1;
/// `PE_PRESENT`: the pages are in the pages image.
pub(super) const PE_PRESENT: u32 = 1 << 2;

/// `pagemap-N.img`: which pages of a task are where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pagemap {
    /// N of the `pages-N.img` that has the bytes.
    pub(super) pages_id: u32,
    /// In the order of their addresses, disjoint.
    pub(super) entries: Vec<Entry>,
}

/// Pages of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) range: Range<u64>,
    /// `PE_*`.
    pub(super) flags: u32,
}

/// One mapping of a task, from `mm-N.img`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vma {
    pub(super) range: Range<u64>,
    /// `MAP_*`.
    pub(super) flags: u32,
    /// `VMA_*` (criu/include/image.h).
    pub(super) status: u32,
    /// Bits by the numbers of `MADV_*`.
    pub(super) advice: u64,
}

/// One process, from `pstree.img`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) vpid: Vpid,
    /// As they stand there: CRIU does not know those of a zombie and writes whatever lies in its memory (criu/pstree.c, `dump_pstree`).
    pub(super) threads: Vec<u32>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct InventoryEntry {
    #[prost(uint32, required, tag = "1")]
    img_version: u32,
    #[prost(uint64, optional, tag = "8")]
    dump_uptime: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct PagemapHead {
    #[prost(uint32, required, tag = "1")]
    pages_id: u32,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct PagemapEntry {
    #[prost(uint64, required, tag = "1")]
    vaddr: u64,
    #[prost(uint32, required, tag = "2")]
    compat_nr_pages: u32,
    #[prost(bool, optional, tag = "3")]
    in_parent: Option<bool>,
    #[prost(uint32, optional, tag = "4")]
    flags: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    nr_pages: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct PstreeEntry {
    #[prost(uint32, required, tag = "1")]
    pid: u32,
    #[prost(uint32, repeated, packed = "false", tag = "5")]
    threads: Vec<u32>,
}

/// The number of `mm_entry.vmas`, messages [`VmaEntry`].
const MM_VMAS: usize = 14;

/// To be written, where mappings need not be right.
#[cfg(any(test, feature = "fuzzing"))]
#[derive(Clone, PartialEq, Eq, Message)]
struct MmEntry {
    #[prost(message, repeated, tag = "14")]
    vmas: Vec<VmaEntry>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct VmaEntry {
    #[prost(uint64, required, tag = "1")]
    start: u64,
    #[prost(uint64, required, tag = "2")]
    end: u64,
    #[prost(uint32, required, tag = "6")]
    flags: u32,
    #[prost(uint32, required, tag = "7")]
    status: u32,
    #[prost(uint64, optional, tag = "9")]
    madv: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct CoreEntry {
    /// `core_entry.march`.
    #[prost(uint32, required, tag = "1")]
    mtype: u32,
    #[prost(message, optional, tag = "2")]
    thread_info: Option<ThreadInfoX86>,
    #[prost(message, optional, tag = "5")]
    thread_core: Option<ThreadCoreEntry>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct ThreadCoreEntry {
    #[prost(message, optional, tag = "15")]
    rseq_entry: Option<RseqEntry>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct RseqEntry {
    #[prost(uint64, required, tag = "1")]
    rseq_abi_pointer: u64,
    #[prost(uint32, required, tag = "2")]
    rseq_abi_size: u32,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct ThreadInfoX86 {
    #[prost(message, optional, tag = "2")]
    gpregs: Option<UserX86Regs>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct UserX86Regs {
    #[prost(uint64, optional, tag = "20")]
    sp: Option<u64>,
}

/// `march.X86_64`.
const X86_64: u32 = 1;

/// `VMA_AREA_REGULAR`.
const VMA_AREA_REGULAR: u32 = 1 << 0;
/// `VMA_AREA_VSYSCALL`.
const VMA_AREA_VSYSCALL: u32 = 1 << 2;
/// `VMA_AREA_VDSO`.
const VMA_AREA_VDSO: u32 = 1 << 3;
/// `VMA_FILE_PRIVATE`.
const VMA_FILE_PRIVATE: u32 = 1 << 6;
/// `VMA_ANON_PRIVATE`.
const VMA_ANON_PRIVATE: u32 = 1 << 9;
/// `VMA_AREA_VVAR`.
const VMA_AREA_VVAR: u32 = 1 << 12;
/// `VMA_AREA_AIORING`.
const VMA_AREA_AIORING: u32 = 1 << 13;
/// `VMA_AREA_SHSTK`.
const VMA_AREA_SHSTK: u32 = 1 << 15;
/// `VMA_AREA_GUARD`: no mapping, a note about guard pages inside of one; these come last and in no order.
const VMA_AREA_GUARD: u32 = 1 << 16;

impl Vma {
    /// Does it have pages of its own (criu/include/vma.h, `vma_entry_is_private`)?
    pub(super) fn is_private(&self) -> bool {
        let mapped = self.is(VMA_AREA_REGULAR) && (self.is(VMA_ANON_PRIVATE) || self.is(VMA_FILE_PRIVATE));
        mapped || self.is(VMA_AREA_SHSTK) || self.is(VMA_AREA_AIORING)
    }

    /// Does CRIU register it with the task's userfaultfd (criu/include/vma.h, `vma_entry_can_be_lazy`)? Not so shadow stacks, whose
    /// contents CRIU copies before it registers them (criu/pie/restorer.c, `vma_remap`); and what a forked child must find empty
    /// (MADV_WIPEONFORK, by which random number generators notice a fork), since a child is given what its parent lacks.
    pub(super) fn can_be_lazy(&self) -> bool {
        let has = |flag: i32| self.flags & flag.cast_unsigned() != 0;
        let special = [VMA_AREA_VDSO, VMA_AREA_VVAR, VMA_AREA_VSYSCALL, VMA_AREA_SHSTK, VMA_AREA_AIORING];
        has(libc::MAP_ANONYMOUS)
            && has(libc::MAP_PRIVATE)
            && !has(libc::MAP_LOCKED)
            && !has(libc::MAP_HUGETLB)
            && self.advice & 1 << libc::MADV_WIPEONFORK == 0
            && !special.into_iter().any(|status| self.is(status))
    }

    fn is(&self, status: u32) -> bool {
        self.status & status != 0
    }
}

/// How the names of the images begin that are read here.
const READ: [&str; 4] = ["pstree", "pagemap-", "mm-", "core-"];

/// `pagemap-<vpid>.img` in `directory`.
pub(super) fn pagemap_path(directory: &Path, vpid: Vpid) -> PathBuf {
    directory.join(format!("pagemap-{vpid}.img"))
}

/// `pstree.img` in `directory`.
pub(super) fn pstree_path(directory: &Path) -> PathBuf {
    directory.join("pstree.img")
}

/// `pages-<id>.img` in `directory`.
pub(super) fn pages_path(directory: &Path, id: u32) -> PathBuf {
    directory.join(format!("pages-{id}.img"))
}

/// The tasks that have a pagemap in `directory`.
///
/// # Errors
/// The directory cannot be read.
pub(super) fn tasks_with_pages(directory: &Path) -> Result<Vec<Vpid>, ImageError> {
    let mut vpids = Vec::new();
    for entry in fs::read_dir(directory).map_err(access(directory))? {
        let name = entry.map_err(access(directory))?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("pagemap-")?.strip_suffix(".img"));
        // Those of shared memory have a word before their number.
        vpids.extend(number.and_then(|number| number.parse::<Vpid>().ok()).filter(|vpid| *vpid > 0));
    }
    vpids.sort_unstable();
    Ok(vpids)
}

/// Looks at the lengths alone of all that may be read in `directory`.
///
/// # Errors
/// It is more than any container has.
pub(super) fn check_length(directory: &Path) -> Result<(), ImageError> {
    let mut bytes: u64 = 0;
    for entry in fs::read_dir(directory).map_err(access(directory))? {
        let entry = entry.map_err(access(directory))?;
        if entry.file_name().to_str().is_some_and(|name| READ.iter().any(|kind| name.starts_with(kind))) {
            bytes = bytes.saturating_add(entry.metadata().map_err(access(&entry.path()))?.len());
        }
    }
    if bytes > MOST_BYTES { Err(ImageError::Long { path: directory.to_owned(), bytes }) } else { Ok(()) }
}

/// Writes the inventory of a parent whose tasks all started before `uptime`, in microseconds since boot.
pub(super) fn write_inventory(directory: &Path, uptime: u64) -> Result<(), ImageError> {
    let path = directory.join("inventory.img");
    let entry = InventoryEntry { img_version: VERSION, dump_uptime: Some(uptime) };
    replace(&path, |mut file| {
        file.write_all(&INVENTORY.to_le_bytes())?;
        write_message(&mut file, &entry)
    })
}

impl Pagemap {
    /// That of `vpid` as a dump wrote it, if it has at most `most_runs` entries; `None` when there is none: a zombie.
    pub(super) fn read(directory: &Path, vpid: Vpid, most_runs: usize) -> Result<Option<Self>, ImageError> {
        let Some(pagemap) = Self::read_any(directory, vpid, most_runs)? else { return Ok(None) };
        // So does CRIU mark what could have been lazy (criu/page-xfer.c, `ppb_xfer_flags`).
        let known = [PE_PARENT, PE_PRESENT, PE_PRESENT | PE_LAZY];
        match pagemap.entries.iter().find(|entry| !known.contains(&entry.flags)) {
            None => Ok(Some(pagemap)),
            Some(Entry { range, flags }) => {
                let path = pagemap_path(directory, vpid);
                Err(ImageError::Flags { path, address: range.start, flags: *flags })
            }
        }
    }

    /// That of `vpid`, whoever wrote it.
    pub(super) fn read_any(directory: &Path, vpid: Vpid, most_runs: usize) -> Result<Option<Self>, ImageError> {
        let path = pagemap_path(directory, vpid);
        let Some(mut image) = Image::open(&path, PAGEMAP)? else { return Ok(None) };
        let head: PagemapHead = image.required()?;
        let mut entries: Vec<Entry> = Vec::new();
        while let Some(message) = image.next::<PagemapEntry>()? {
            let entry = message.checked(&path)?;
            if entries.last().is_some_and(|last| last.range.end > entry.range.start) {
                return Err(ImageError::Order { path, address: entry.range.start });
            }
            if entries.len() == most_runs {
                return Err(ImageError::Runs { path });
            }
            entries.push(entry);
        }
        Ok(Some(Self { pages_id: head.pages_id, entries }))
    }

    /// Writes it for `vpid`, in the place of what is there.
    pub(super) fn write(&self, directory: &Path, vpid: Vpid) -> Result<(), ImageError> {
        replace(&pagemap_path(directory, vpid), |file| {
            let mut file = BufWriter::new(file);
            file.write_all(&COMMON.to_le_bytes())?;
            file.write_all(&PAGEMAP.to_le_bytes())?;
            write_message(&mut file, &PagemapHead { pages_id: self.pages_id })?;
            self.entries.iter().try_for_each(|entry| write_message(&mut file, &PagemapEntry::from(entry)))?;
            file.flush()
        })
    }
}

impl PagemapEntry {
    /// What it says, as CRIU reads it (criu/pagemap.c, `init_compat_pagemap_entry`).
    fn checked(&self, path: &Path) -> Result<Entry, ImageError> {
        let start = self.vaddr;
        let pages = self.nr_pages.unwrap_or(self.compat_nr_pages.into());
        let end = pages.checked_mul(PAGE).and_then(|bytes| bytes.checked_add(start)).unwrap_or(u64::MAX);
        let range = checked(path, start..end)?;
        let old = if self.in_parent == Some(true) { PE_PARENT } else { 0 };
        let flags = self.flags.unwrap_or(if old == 0 { PE_PRESENT } else { 0 }) | old;
        Ok(Entry { range, flags })
    }
}

impl From<&Entry> for PagemapEntry {
    fn from(entry: &Entry) -> Self {
        Self {
            vaddr: entry.range.start,
            compat_nr_pages: 0,
            in_parent: None,
            flags: Some(entry.flags),
            nr_pages: Some((entry.range.end - entry.range.start) / PAGE),
        }
    }
}

/// What a parent's directory has of `vpid`: it claims to have `pages`, and has the bytes of none.
pub(super) fn write_parent(directory: &Path, vpid: Vpid, pages: Option<Range<u64>>) -> Result<(), ImageError> {
    let pages_id = vpid.cast_unsigned();
    let entries = pages.into_iter().map(|range| Entry { range, flags: PE_PRESENT }).collect();
    Pagemap { pages_id, entries }.write(directory, vpid)?;
    replace(&pages_path(directory, pages_id), |_| Ok(()))
}

/// The processes in `pstree.img`.
pub(super) fn read_processes(directory: &Path) -> Result<Vec<Process>, ImageError> {
    let path = pstree_path(directory);
    let mut image = Image::existing(&path, PSTREE)?;
    let mut processes = Vec::new();
    let mut seen = HashSet::new();
    while let Some(entry) = image.next::<PstreeEntry>()? {
        let vpid = Vpid::try_from(entry.pid).ok().filter(|vpid| *vpid > 0 && seen.insert(*vpid));
        let Some(vpid) = vpid else { return Err(ImageError::Pid { path, pid: entry.pid }) };
        processes.push(Process { vpid, threads: entry.threads });
        if processes.len() > MOST_TASKS {
            return Err(ImageError::Tasks { path });
        }
    }
    Ok(processes)
}

/// The mappings of `vpid`, in the order of their addresses.
pub(super) fn read_vmas(directory: &Path, vpid: Vpid) -> Result<Vec<Vma>, ImageError> {
    let path = directory.join(format!("mm-{vpid}.img"));
    let mut vmas: Vec<Vma> = Vec::new();
    Image::existing(&path, MM)?.parts(MM_VMAS, |VmaEntry { start, end, flags, status, madv }| {
        // vsyscall lies above all else.
        if status == VMA_AREA_GUARD || start >= ADDRESSES {
            return Ok(());
        }
        if vmas.last().is_some_and(|last| last.range.end > start) {
            return Err(ImageError::Order { path: path.clone(), address: start });
        }
        vmas.push(Vma { range: checked(&path, start..end)?, flags, status, advice: madv.unwrap_or_default() });
        Ok(())
    })?;
    Ok(vmas)
}

/// Where a thread has its restartable sequences (rseq(2)), if it has: the kernel and CRIU write there before the thread runs
/// (criu/pie/restorer.c, `restore_rseq`; criu/cr-restore.c, `restore_rseq_cs`).
pub(super) fn read_rseq(directory: &Path, thread: u32) -> Result<Option<Range<u64>>, ImageError> {
    let path = directory.join(format!("core-{thread}.img"));
    let core: CoreEntry = Image::existing(&path, CORE)?.required()?;
    let Some(rseq) = core.thread_core.and_then(|core| core.rseq_entry) else { return Ok(None) };
    let start = rseq.rseq_abi_pointer;
    Ok((1..ADDRESSES).contains(&start).then(|| start..(start + u64::from(rseq.rseq_abi_size.max(1))).min(ADDRESSES)))
}

/// The stack pointer of a thread.
pub(super) fn read_stack_pointer(directory: &Path, thread: u32) -> Result<u64, ImageError> {
    let path = directory.join(format!("core-{thread}.img"));
    let core: CoreEntry = Image::existing(&path, CORE)?.required()?;
    let registers = core.thread_info.filter(|_| core.mtype == X86_64).and_then(|info| info.gpregs);
    registers.and_then(|registers| registers.sp).ok_or(ImageError::Registers { path })
}

fn checked(path: &Path, range: Range<u64>) -> Result<Range<u64>, ImageError> {
    let Range { start, end } = range;
    if start < end && end <= ADDRESSES && start.is_multiple_of(PAGE) && end.is_multiple_of(PAGE) {
        return Ok(range);
    }
    Err(ImageError::Range { path: path.to_owned(), start, end })
}

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
pub(super) mod tests;
