//! Reading another process's memory.
//!
//! By `/proc/PID/mem` (proc_pid_mem(5)) and not by process_vm_readv(2), for which the kernel holds pages fast while it copies: since Linux
//! 5.19 it makes a copy of every page first that the process shares with others since a fork (`gup_must_unshare`, mm/internal.h). To read
//! a server and its hundred forked workers would so cost them a hundred times the memory, and perhaps the container its life.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// The memory of a process. It stays that of the program that ran when it was opened.
#[derive(Debug)]
pub struct Reader(File);

impl Reader {
    /// Opens the memory of `pid`.
    ///
    /// # Errors
    /// `ESRCH` when the process is gone, `EACCES` without CAP_SYS_PTRACE.
    pub fn open(pid: i32) -> io::Result<Self> {
        match File::open(format!("/proc/{pid}/mem")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(gone()),
            opened => opened.map(Self),
        }
    }

    /// Reads from `address` on into `buffer`; the process may run or be frozen. Returns how many bytes could be read from the beginning, at
    /// most all: what is not mapped ends it. What the process itself must not read (PROT_NONE) is read all the same.
    ///
    /// # Errors
    /// `ESRCH` when the process is gone, or has executed another program.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.0.read_at(&mut buffer[done..], address + done as u64) {
                Ok(0) if done == 0 => return Err(gone()),
                // A call ends early where nothing is mapped; asked again, it then says so.
                Err(error) if done == 0 && error.raw_os_error() != Some(libc::EIO) => return Err(error),
                Ok(0) | Err(_) => break,
                Ok(count) => done += count,
            }
        }
        Ok(done)
    }

    /// Reads all of `buffer`.
    ///
    /// # Errors
    /// As for [`Reader::read`], and [`io::ErrorKind::UnexpectedEof`] where nothing is mapped.
    pub fn read_exact(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        let done = self.read(address, buffer)?;
        if done == buffer.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// As [`Reader::read`], once.
///
/// # Errors
/// As [`Reader::open`] and [`Reader::read`].
pub(super) fn read(pid: i32, address: u64, buffer: &mut [u8]) -> io::Result<usize> {
    Reader::open(pid)?.read(address, buffer)
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::process::{Command, Stdio};

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
            Reader::open(own()).unwrap().read_exact(pages.as_ptr() as u64, &mut seen).unwrap();
        }
        assert!(seen.iter().all(|byte| *byte == 7));
        let error = Reader::open(own()).unwrap().read_exact(0, &mut seen).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        // No process has an id above the kernel's limit (2^22).
        assert_eq!(read(1 << 23, PAGE, &mut [0; 8]).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Before it answers it may still have our memory (posix_spawn(3)).
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let memory = Reader::open(child.id().cast_signed()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(memory.read(PAGE, &mut [0; 8]).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
