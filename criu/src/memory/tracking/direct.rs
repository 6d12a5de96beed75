//! Direct I/O, by which devices write into a process's memory.
//!
//! The kernel looks at a page's protection when it hands the page to the device, not when the device writes into it; in between, the page
//! may have been read and protected again. Soft-dirty bits are no better: newer kernels do not reset them while a page is handed out
//! (`pte_is_pinned`, fs/proc/task_mmu.c), but before Linux 6.3 direct I/O does not pin its pages, and of huge pages they are always reset.

use std::fs;
use std::path::PathBuf;

use super::TrackError;
use crate::tasks;

/// For methods that do not see what devices write.
///
/// # Errors
/// [`TrackError::DirectIo`] if `pid` has a file open past the page cache.
pub(super) fn refuse_direct_io(pid: i32) -> Result<(), TrackError> {
    if direct_io(pid) { Err(TrackError::DirectIo { pid }) } else { Ok(()) }
}

/// Has `pid` a file open past the page cache?
fn direct_io(pid: i32) -> bool {
    tasks::descriptors(pid).into_iter().any(|(descriptor, link)| {
        // Of a pipe the flag says that it keeps packets apart (pipe(2)).
        let is_file = link.is_absolute();
        let number = descriptor.file_name().unwrap_or_default();
        let about = || fs::read_to_string(PathBuf::from(format!("/proc/{pid}/fdinfo")).join(number));
        is_file && about().is_ok_and(|about| says_direct(&about))
    })
}

/// `flags:  0140002`, in octal (proc_pid_fdinfo(5)).
fn says_direct(about: &str) -> bool {
    let flags = about.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_DIRECT != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_is_read_in_octal() {
        assert!(says_direct(&format!("pos:\t0\nflags:\t0{:o}\nmnt_id:\t30\n", libc::O_DIRECT | libc::O_RDWR)));
        assert!(!says_direct("pos:\t0\nflags:\t0100002\nmnt_id:\t30\n"));
        assert!(!says_direct(""));
    }
}
