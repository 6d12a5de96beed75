//! The areas of a process's memory that can be copied while it runs, and the pages in them that hold something.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use super::pagemap::{Pagemap, Query};
use super::{MemoryError, Pages};

/// One line of `/proc/PID/maps` (proc_pid_maps(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Area {
    pub(super) range: Range<u64>,
    pub(super) readable: bool,
    pub(super) executable: bool,
    /// Private, and backed by no file.
    pub(super) private_anonymous: bool,
    /// A file's path, or `[heap]`, `[vdso]` and the like; empty for most anonymous memory.
    pub(super) name: String,
}

/// All areas of `pid`, in the order of their addresses.
///
/// # Errors
/// When the process is gone.
pub(super) fn areas(pid: i32) -> Result<Vec<Area>, MemoryError> {
    let path = PathBuf::from(format!("/proc/{pid}/maps"));
    // A path in it may be in any encoding.
    let text = fs::read(&path).map_err(|source| MemoryError::of(pid, path, source))?;
    let areas: Vec<Area> = String::from_utf8_lossy(&text).lines().filter_map(area).collect();
    // That of a zombie can be read, and is empty.
    if areas.is_empty() { Err(MemoryError::Gone { pid }) } else { Ok(areas) }
}

/// The private anonymous memory of `pid` that can be read: heap, stacks, what `malloc` mapped. Without what the kernel itself put there
/// (`[vdso]`, `[vvar]`), huge pages of hugetlbfs, and guard areas.
///
/// # Errors
/// When the process is gone.
pub fn private_anonymous(pid: i32) -> Result<Pages, MemoryError> {
    Ok(areas(pid)?.into_iter().filter(|area| area.private_anonymous && area.readable).map(|area| area.range).collect())
}

/// The pages of `areas` that hold data, in memory or swapped out: not those that were never written, which read as zeros.
///
/// # Errors
/// When the process is gone.
pub fn populated(pid: i32, areas: &Pages) -> Result<Pages, MemoryError> {
    let mut pagemap = Pagemap::open(pid)?;
    let mut pages = Pages::new();
    for range in areas.iter() {
        pagemap.query(range, Query::Populated, &mut pages)?;
    }
    Ok(pages)
}

/// Does somebody give `pid` its memory through a userfaultfd, as our pager does after a lazy restore? Then pages that belong to it may
/// not be there yet: whoever reads or dumps it now gets less than there is, and is not told.
///
/// # Errors
/// When the process is gone.
pub fn is_being_filled(pid: i32) -> Result<bool, MemoryError> {
    let path = PathBuf::from(format!("/proc/{pid}/smaps"));
    let text = fs::read(&path).map_err(|source| MemoryError::of(pid, path, source))?;
    Ok(String::from_utf8_lossy(&text).lines().any(misses_pages))
}

/// `VmFlags: rd wr mr mw me ac um`: the last is VM_UFFD_MISSING (proc_pid_smaps(5)).
fn misses_pages(line: &str) -> bool {
    line.strip_prefix("VmFlags:").is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "um"))
}

/// `7f00-7f01 rw-p 00000000 00:00 0   [stack]`. Memory of hugetlbfs and shared anonymous memory have an inode.
fn area(line: &str) -> Option<Area> {
    let mut rest = line;
    let mut word = || {
        let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = after.trim_start();
        word
    };
    let (range, permissions, _offset, device, inode) = (word(), word(), word(), word(), word());
    let name = rest.to_owned();
    let (start, end) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let has = |permission| permissions.contains(permission);
    let of_the_kernel = name.starts_with("[v") || name == "[uprobes]";
    Some(Area {
        range: number(start)?..number(end)?,
        readable: has('r'),
        executable: has('x'),
        private_anonymous: has('p') && device == "00:00" && inode == "0" && !of_the_kernel,
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::PAGE;
    use crate::memory::pagemap::{Fresh, can_scan};

    #[test]
    fn memory_that_comes_through_a_userfaultfd_is_known_by_its_flags() {
        assert!(misses_pages("VmFlags: rd wr mr mw me ac um "));
        // Written pages are followed by another one.
        assert!(!misses_pages("VmFlags: rd wr mr mw me ac uw "));
        assert!(!misses_pages("Name: um"));
        assert!(!is_being_filled(std::process::id().cast_signed()).unwrap());
    }

    #[test]
    fn a_line_of_maps_is_read_by_its_fields() {
        let heap = area("55d0c9000000-55d0c9021000 rw-p 00000000 00:00 0                          [heap]").unwrap();
        assert_eq!(heap.range, 0x55d0_c900_0000..0x55d0_c902_1000);
        assert!(heap.private_anonymous && heap.readable && !heap.executable);
        assert_eq!(heap.name, "[heap]");
        assert_eq!(area("nonsense"), None);
    }

    #[test]
    fn only_private_memory_without_a_file_counts() {
        let counts = |rest: &str| {
            let area = area(&format!("7f0000000000-7f0000001000 {rest}")).unwrap();
            area.private_anonymous && area.readable
        };
        assert!(counts("rw-p 00000000 00:00 0"));
        assert!(counts("rw-p 00000000 00:00 0                          [stack]"));
        assert!(counts("r--p 00000000 00:00 0                          [anon:glibc: malloc]"));
        assert!(!counts("---p 00000000 00:00 0"));
        assert!(!counts("rw-s 00000000 00:01 1024                       /dev/zero (deleted)"));
        assert!(!counts("rw-p 00000000 00:0f 4097                       /anon_hugepage (deleted)"));
        assert!(!counts("rw-p 00000000 08:01 77                         /usr/lib/a file"));
        assert!(!counts("r--p 00000000 00:00 0                          [vvar]"));
        assert!(!counts("r-xp 00000000 00:00 0                          [vdso]"));
    }

    #[test]
    fn a_page_holds_data_once_it_was_written() {
        const PAGES: u64 = 16;
        let own = std::process::id().cast_signed();
        let memory = Fresh::map(PAGES).unwrap();
        memory.touch(3, true);
        // The kernel's page of zeros.
        memory.touch(5, false);
        let first = memory.address();
        let page = |number: u64| first + number * PAGE..first + (number + 1) * PAGE;
        // Without root, and without PAGEMAP_SCAN, the page of zeros cannot be told from others.
        let mut asked = Pages::new();
        asked.insert(first..page(PAGES).start);
        let found = populated(own, &asked).unwrap();
        assert!(found.contains(&page(3).start) && !found.contains(&page(4).start));
        assert!(!can_scan() || !found.contains(&page(5).start));
        assert!(private_anonymous(own).unwrap().contains(&first));
    }

    #[test]
    fn a_process_that_ended_has_no_areas() {
        assert!(matches!(private_anonymous(1 << 23), Err(MemoryError::Gone { .. })));
    }
}
