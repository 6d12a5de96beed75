//! Reading another process's memory.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt as _;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

/// Reads the memory of `pid` from `address` on into `buffer`; it may run or be frozen. Returns how many bytes could be read from the
/// beginning, at most all: what is not mapped or not readable for the process itself ends it.
///
/// # Errors
/// `ESRCH` when the process is gone, `EPERM` without CAP_SYS_PTRACE.
pub fn read(pid: i32, address: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        let left = &mut buffer[done..];
        // An address of this kernel's processes fits: we are of the same size.
        let remote = RemoteIoVec { base: address as usize + done, len: left.len() };
        match process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(left)], &[remote]) {
            // A call ends early at a hole; asked again, it then says so.
            Ok(0) | Err(Errno::EFAULT) => break,
            Ok(count) => done += count,
            // One that ended meanwhile has no memory left either.
            Err(errno) if done == 0 => return Err(errno.into()),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Reads all of `buffer`, also where the process itself must not read (PROT_NONE). For processes that are frozen.
///
/// # Errors
/// As for [`read`], and [`io::ErrorKind::UnexpectedEof`] or `EIO` where nothing is mapped.
pub fn read_exact(pid: i32, address: u64, buffer: &mut [u8]) -> io::Result<()> {
    let done = read(pid, address, buffer)?;
    if done == buffer.len() {
        return Ok(());
    }
    // Unlike the call, the file is for debuggers too, which may read what the process may not (proc(5), `/proc/pid/mem`).
    File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut buffer[done..], address + done as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::PAGE;

    fn own() -> i32 {
        std::process::id().cast_signed()
    }

    #[test]
    fn memory_is_read_as_it_is() {
        let written: Vec<u8> = (0..3 * PAGE).map(|byte| byte as u8).collect();
        let mut seen = vec![0; written.len()];
        assert_eq!(read(own(), written.as_ptr() as u64, &mut seen).unwrap(), written.len());
        assert_eq!(seen, written);
    }

    #[test]
    fn what_is_not_mapped_is_not_read_and_no_error() {
        // The first page is never mapped (vm.mmap_min_addr).
        assert_eq!(read(own(), 0, &mut [0; 8]).unwrap(), 0);
    }

    #[test]
    fn what_the_process_must_not_read_is_read_all_the_same() {
        use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect};
        let length = std::num::NonZeroUsize::new(2 * PAGE as usize).unwrap();
        let (access, private) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        let mut seen = vec![0; length.get()];
        #[expect(unsafe_code, reason = "a mapping of the test's own, which nobody else uses")]
        // SAFETY: it is new, written to while it may be, and protected only after that.
        unsafe {
            let pages = mmap_anonymous(None, length, access, private).unwrap();
            pages.cast::<u8>().write_bytes(7, length.get());
            mprotect(pages.byte_add(PAGE as usize), PAGE as usize, ProtFlags::PROT_NONE).unwrap();
            let address = pages.as_ptr() as u64;
            assert_eq!(read(own(), address, &mut seen).unwrap(), PAGE as usize);
            read_exact(own(), address, &mut seen).unwrap();
        }
        assert!(seen.iter().all(|byte| *byte == 7));
        assert!(read_exact(own(), 0, &mut seen).is_err());
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        // No process has an id above the kernel's limit (2^22).
        assert_eq!(read(1 << 23, PAGE, &mut [0; 8]).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
