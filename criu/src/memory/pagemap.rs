//! What the kernel knows of another process's pages: `/proc/PID/pagemap`, and its ioctl PAGEMAP_SCAN (Linux 6.7), which finds pages by
//! what they are and can protect them against writing in the same breath (kernel documentation, admin-guide/mm/pagemap).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::OnceLock;

use linux_raw_sys::general::{
    PAGE_IS_GUARD, PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, PAGE_IS_WPALLOWED, PAGE_IS_WRITTEN,
    PM_SCAN_WP_MATCHING, page_region, pm_scan_arg,
};

use super::{MemoryError, PAGE, Pages};

/// `_IOWR('f', 16, struct pm_scan_arg)` (linux/fs.h).
const PAGEMAP_SCAN: libc::c_ulong = (3 << 30) | ((size_of::<pm_scan_arg>() as libc::c_ulong) << 16) | (0x66 << 8) | 16;

/// Ranges that one call can answer with: 96 KiB of them.
const REGIONS: usize = 4096;

/// Entries of `/proc/PID/pagemap` that are read at once: those of 128 MiB of memory.
const ENTRIES: usize = 32 << 10;

/// Bits of an entry of `/proc/PID/pagemap`.
const ENTRY_PRESENT: u64 = 1 << 63;
const ENTRY_SWAPPED: u64 = 1 << 62;
const ENTRY_GUARD: u64 = 1 << 58;
const ENTRY_SOFT_DIRTY: u64 = 1 << 55;
/// The number of the page frame; 0 without CAP_SYS_ADMIN.
const ENTRY_FRAME: u64 = (1 << 55) - 1;

/// Which pages to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Query {
    /// Those that hold data: present or swapped out, neither the kernel's page of zeros nor a guard.
    Populated,
    /// Of those, the ones in areas that can not be protected by the asynchronous mode of userfaultfd. Needs PAGEMAP_SCAN.
    Unprotectable,
    /// Those that hold data, in areas that can; they are protected now. Needs PAGEMAP_SCAN.
    Protect,
    /// Of those, the ones that were written since they were protected; they are again now. Needs PAGEMAP_SCAN.
    Rewritten,
}

/// What PAGEMAP_SCAN can do here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scan {
    Missing,
    /// It does not tell guards (before Linux 6.15): they count as swapped out, and cannot be read.
    WithoutGuards,
    Full,
}

/// The pagemap of a process. It stays that of the program which ran when it was opened.
pub(super) struct Pagemap {
    pid: i32,
    path: PathBuf,
    file: File,
    regions: Vec<page_region>,
}

impl Pagemap {
    /// # Errors
    /// When the process is gone.
    pub(super) fn open(pid: i32) -> Result<Self, MemoryError> {
        let path = PathBuf::from(format!("/proc/{pid}/pagemap"));
        let file = File::open(&path).map_err(|source| MemoryError::of(pid, path.clone(), source))?;
        Ok(Self { pid, path, file, regions: Vec::new() })
    }

    /// Adds to `found` the pages of `range` that `query` is for.
    ///
    /// # Errors
    /// When the process is gone, or the kernel cannot answer the query.
    pub(super) fn query(&mut self, range: &Range<u64>, query: Query, found: &mut Pages) -> Result<(), MemoryError> {
        let done = match (query, scan_here()) {
            (Query::Populated, Scan::Missing) => self.read(range, found),
            (_, scan) => self.scan(range, query, scan, found),
        };
        done.map_err(|source| MemoryError::of(self.pid, self.path.clone(), source))
    }

    fn scan(&mut self, range: &Range<u64>, query: Query, scan: Scan, found: &mut Pages) -> io::Result<()> {
        self.regions.resize(REGIONS, page_region { start: 0, end: 0, categories: 0 });
        let mut argument = argument(query, scan);
        argument.start = range.start;
        argument.end = range.end;
        while argument.start < range.end {
            let filled = ioctl(self.file.as_fd(), &mut argument, &mut self.regions)?;
            found.extend(self.regions[..filled].iter().map(|region| region.start..region.end));
            // Where the walk ended is 0 if it went to the end in some kernels; then it is done.
            if argument.walk_end <= argument.start {
                break;
            }
            argument.start = argument.walk_end;
        }
        Ok(())
    }

    fn read(&self, range: &Range<u64>, found: &mut Pages) -> io::Result<()> {
        self.read_entries(range, |page, entry| {
            if entry.holds_data() {
                found.insert(page..page + PAGE);
            }
        })
    }

    /// Calls `action` with the address of each page of `range`, and what the kernel knows of it.
    ///
    /// # Errors
    /// When the process is gone.
    pub(super) fn entries(&self, range: &Range<u64>, action: impl FnMut(u64, Entry)) -> Result<(), MemoryError> {
        self.read_entries(range, action).map_err(|source| MemoryError::of(self.pid, self.path.clone(), source))
    }

    fn read_entries(&self, range: &Range<u64>, mut action: impl FnMut(u64, Entry)) -> io::Result<()> {
        let mut buffer = vec![0; ENTRIES * size_of::<u64>()];
        for start in (range.start..range.end).step_by(ENTRIES * PAGE as usize) {
            let count = ((range.end - start) / PAGE).min(ENTRIES as u64) as usize;
            let bytes = &mut buffer[..count * size_of::<u64>()];
            self.file.read_exact_at(bytes, start / PAGE * size_of::<u64>() as u64)?;
            let (entries, _) = bytes.as_chunks();
            for (number, entry) in entries.iter().enumerate() {
                action(start + number as u64 * PAGE, Entry(u64::from_ne_bytes(*entry)));
            }
        }
        Ok(())
    }
}

/// What the kernel knows of a page: an entry of `/proc/PID/pagemap`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry(u64);

impl Entry {
    /// It is present or swapped out, and neither the kernel's page of zeros nor a guard.
    pub(super) fn holds_data(self) -> bool {
        holds_data(self.0, zero_frame())
    }

    /// It was written, or its area was made, since the bits were last reset for the process.
    pub(super) fn is_soft_dirty(self) -> bool {
        self.0 & ENTRY_SOFT_DIRTY != 0
    }

    /// Where its data is: a number for the page frame, or for the place where it was swapped to; never 0 for a page that holds data, if
    /// [`has_soft_dirty`].
    pub(super) fn place(self) -> u64 {
        self.0 & (ENTRY_FRAME | ENTRY_SWAPPED)
    }
}

/// Can PAGEMAP_SCAN be used here?
pub(super) fn can_scan() -> bool {
    scan_here() != Scan::Missing
}

/// Does the kernel keep soft-dirty bits (CONFIG_MEM_SOFT_DIRTY), and tell us in which frames pages are (CAP_SYS_ADMIN)? Then a page that
/// was just written has both.
pub(super) fn has_soft_dirty() -> bool {
    own_page(true).is_some_and(|entry| entry & ENTRY_SOFT_DIRTY != 0 && entry & ENTRY_FRAME != 0)
}

fn scan_here() -> Scan {
    static HERE: OnceLock<Scan> = OnceLock::new();
    *HERE.get_or_init(|| {
        let Ok(file) = File::open("/proc/self/pagemap") else { return Scan::Missing };
        let works = |scan| {
            let mut argument = argument(Query::Populated, scan);
            argument.end = PAGE;
            ioctl(file.as_fd(), &mut argument, &mut [page_region { start: 0, end: 0, categories: 0 }]).is_ok()
        };
        match () {
            () if works(Scan::Full) => Scan::Full,
            () if works(Scan::WithoutGuards) => Scan::WithoutGuards,
            () => Scan::Missing,
        }
    })
}

/// The categories that make a page one that `query` is for: all of `mask`, those of `inverted` by their absence, and one of the
/// `anyof` mask.
fn argument(query: Query, scan: Scan) -> pm_scan_arg {
    let guard = if scan == Scan::Full { PAGE_IS_GUARD } else { 0 };
    let absent = PAGE_IS_PFNZERO | guard;
    let (present, also_absent, flags) = match query {
        Query::Populated => (0, 0, 0),
        Query::Unprotectable => (0, PAGE_IS_WPALLOWED, 0),
        // Not PM_SCAN_CHECK_WPASYNC: it fails at the first area that cannot be protected, and what was protected before that in the
        // same call is then never told. Without it, such areas are passed over.
        Query::Protect => (PAGE_IS_WPALLOWED, 0, PM_SCAN_WP_MATCHING),
        Query::Rewritten => (PAGE_IS_WPALLOWED | PAGE_IS_WRITTEN, 0, PM_SCAN_WP_MATCHING),
    };
    let populated = u64::from(PAGE_IS_PRESENT | PAGE_IS_SWAPPED);
    pm_scan_arg {
        size: size_of::<pm_scan_arg>() as u64,
        flags: flags.into(),
        start: 0,
        end: 0,
        walk_end: 0,
        vec: 0,
        vec_len: 0,
        max_pages: 0,
        category_inverted: (absent | also_absent).into(),
        category_mask: (absent | also_absent | present).into(),
        category_anyof_mask: populated,
        return_mask: populated,
    }
}

/// Returns how many of `regions` were filled.
#[expect(unsafe_code, reason = "nix has no PAGEMAP_SCAN")]
fn ioctl(pagemap: BorrowedFd<'_>, argument: &mut pm_scan_arg, regions: &mut [page_region]) -> io::Result<usize> {
    argument.vec = regions.as_mut_ptr() as u64;
    argument.vec_len = regions.len() as u64;
    // SAFETY: the kernel reads and writes `argument`, and writes at most `vec_len` elements to `vec`, which is all of `regions`; both
    // are borrowed for the call.
    let filled = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, std::ptr::from_mut(argument)) };
    Ok(nix::errno::Errno::result(filled)? as usize)
}

fn holds_data(entry: u64, zeros: Option<u64>) -> bool {
    let present = entry & ENTRY_PRESENT != 0;
    let swapped = entry & ENTRY_SWAPPED != 0 && entry & ENTRY_GUARD == 0;
    let zero = present && zeros == Some(entry & ENTRY_FRAME);
    present && !zero || swapped
}

/// The frame of the kernel's page of zeros; none without CAP_SYS_ADMIN: then pages of zeros count as data, which is only slower.
fn zero_frame() -> Option<u64> {
    static FRAME: OnceLock<Option<u64>> = OnceLock::new();
    *FRAME.get_or_init(|| own_page(false).map(|entry| entry & ENTRY_FRAME).filter(|frame| *frame != 0))
}

/// The entry of a page of our own, fresh from the kernel, that was read, or written as well.
fn own_page(write: bool) -> Option<u64> {
    let page = Fresh::map(1).ok()?;
    page.touch(0, write);
    let mut entry = [0; size_of::<u64>()];
    let pagemap = File::open("/proc/self/pagemap").ok()?;
    pagemap.read_exact_at(&mut entry, page.address() / PAGE * size_of::<u64>() as u64).ok()?;
    Some(u64::from_ne_bytes(entry)).filter(|entry| entry & ENTRY_PRESENT != 0)
}

/// Private anonymous memory of our own that nobody has touched: an allocator may give out pages that were used before.
pub(super) struct Fresh {
    start: NonNull<u8>,
    bytes: usize,
}

impl Fresh {
    #[expect(unsafe_code, reason = "nix is built without mmap")]
    pub(super) fn map(pages: u64) -> io::Result<Self> {
        let bytes = (pages * PAGE) as usize;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory that is in use.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { start, bytes }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(super) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Reads the first byte of a page, and writes it as well if asked to.
    #[expect(unsafe_code, reason = "the memory is not one that Rust knows")]
    pub(super) fn touch(&self, page: u64, write: bool) {
        let offset = (page * PAGE) as usize;
        assert!(offset < self.bytes, "page {page} is not one of these {} bytes", self.bytes);
        // SAFETY: the byte is within the mapping, which lives as long as `self`, and nobody holds a reference into it.
        unsafe {
            let byte = self.start.as_ptr().add(offset);
            std::hint::black_box(byte.read_volatile());
            if write {
                byte.write_volatile(1);
            }
        }
    }
}

impl Drop for Fresh {
    #[expect(unsafe_code, reason = "nix is built without mmap")]
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and there are no references into it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::private_anonymous;

    #[test]
    fn the_ioctl_has_the_kernels_number() {
        assert_eq!(PAGEMAP_SCAN, 0xc060_6610);
    }

    #[test]
    fn an_entry_holds_data_unless_it_is_empty_a_guard_or_zeros() {
        let zeros = Some(7);
        assert!(holds_data(ENTRY_PRESENT | 8, zeros) && holds_data(ENTRY_SWAPPED | 7, zeros));
        assert!(!holds_data(0, zeros) && !holds_data(ENTRY_PRESENT | 7, zeros));
        assert!(!holds_data(ENTRY_SWAPPED | ENTRY_GUARD, zeros));
        assert!(holds_data(ENTRY_PRESENT, None));
    }

    #[test]
    fn a_page_has_another_place_in_memory_than_swapped_out() {
        assert_ne!(Entry(ENTRY_PRESENT | 8).place(), Entry(ENTRY_SWAPPED | 8).place());
        assert_eq!(Entry(ENTRY_PRESENT | ENTRY_SOFT_DIRTY | 8).place(), Entry(ENTRY_PRESENT | 8).place());
        assert!(Entry(ENTRY_PRESENT | ENTRY_SOFT_DIRTY).is_soft_dirty() && !Entry(ENTRY_PRESENT).is_soft_dirty());
    }

    #[test]
    fn reading_and_scanning_agree() {
        // A sandbox, or an older kernel, may have no ioctl; without root there are no frames to know zeros by.
        if !can_scan() || zero_frame().is_none() {
            return;
        }
        let memory = Fresh::map(200).unwrap();
        for page in [1, 2, 5, 100] {
            memory.touch(page, true);
        }
        memory.touch(50, false);
        let own = std::process::id().cast_signed();
        assert!(private_anonymous(own).unwrap().contains(&memory.address()));
        let mut pagemap = Pagemap::open(own).unwrap();
        let range = memory.address()..memory.address() + 200 * PAGE;
        let (mut scanned, mut read) = (Pages::new(), Pages::new());
        pagemap.scan(&range, Query::Populated, scan_here(), &mut scanned).unwrap();
        pagemap.read(&range, &mut read).unwrap();
        assert_eq!(scanned, read);
        assert_eq!(crate::memory::bytes(&read), 4 * PAGE);
    }
}
