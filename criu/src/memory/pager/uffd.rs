//! A userfaultfd that CRIU made and gave to us: events out, pages in.
//!
//! CRIU has done UFFDIO_API (features EVENT_FORK, EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP) and registers every mapping that can be lazy in
//! mode MISSING. Structures and numbers: linux/userfaultfd.h; what the calls return: ioctl_userfaultfd(2) and fs/userfaultfd.c.

use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::OnceLock;

use linux_raw_sys::general::{
    UFFD_EVENT_FORK, UFFD_EVENT_PAGEFAULT, UFFD_EVENT_REMAP, UFFD_EVENT_REMOVE, UFFD_EVENT_UNMAP, uffd_msg,
    uffdio_copy, uffdio_range, uffdio_zeropage,
};
use linux_raw_sys::ioctl::{UFFDIO_COPY, UFFDIO_WAKE, UFFDIO_ZEROPAGE};
use nix::errno::Errno;

use crate::memory::PAGE;

/// An address that every process may have memory at.
const NOWHERE: u64 = 1 << 32;

/// A page that cannot be read.
fn nothing() -> u64 {
    static PAGE_OF_NOTHING: OnceLock<u64> = OnceLock::new();
    *PAGE_OF_NOTHING.get_or_init(reserve)
}

/// An address at which this process never has any memory that can be read.
#[expect(unsafe_code, reason = "std cannot map memory")]
fn reserve() -> u64 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, which stays for as long as the process.
    let page = unsafe { libc::mmap(ptr::null_mut(), PAGE as usize, libc::PROT_NONE, flags, -1, 0) };
    // Where there is none to be had, the address that it returns is no memory either.
    page.addr() as u64
}

/// How many messages one read takes at most.
const MESSAGES: usize = 32;

/// One process's userfaultfd, or that of its child after a fork.
///
/// It stays open until [`Uffd::close`]: what fails or panics with it in its hands must not make missing pages zeros.
#[derive(Debug)]
pub(super) struct Uffd(ManuallyDrop<OwnedFd>);

/// What happened in the process. Whoever caused one of the last four waits until it is read.
#[derive(Debug)]
pub(super) enum Event {
    /// A thread waits for the page at this address.
    Fault(u64),
    /// There is a child, with the same mappings.
    Fork(Uffd),
    /// `length` bytes at `from` are at `to` now.
    Remap { from: u64, to: u64, length: u64 },
    /// The contents of this range are dropped; the mapping remains.
    Remove(Range<u64>),
    /// The mapping is gone.
    Unmap(Range<u64>),
}

/// Why not a single page was put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The mappings are changing: there is, or will be, an event to be read before anything is put in.
    Changing,
    /// The first page is there already.
    There,
    /// The range is not within one registered mapping, and there is no event to be read.
    Gone,
    /// The process has ended, or has become another program.
    Ended,
    /// There is no memory for it now.
    NoMemory,
    /// What must not happen.
    Other(Errno),
}

impl Refusal {
    fn of(errno: Errno) -> Self {
        match errno {
            Errno::EAGAIN => Self::Changing,
            Errno::EEXIST => Self::There,
            Errno::ENOENT => Self::Gone,
            // ENOSPC is what kernels before 4.13 say.
            Errno::ESRCH | Errno::ENOSPC => Self::Ended,
            Errno::ENOMEM => Self::NoMemory,
            other => Self::Other(other),
        }
    }
}

impl From<OwnedFd> for Uffd {
    fn from(fd: OwnedFd) -> Self {
        Self(ManuallyDrop::new(fd))
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Uffd {
    /// Ends it: what the process lacks are pages of zeros from now on.
    pub(super) fn close(self) {
        ManuallyDrop::into_inner(self.0);
    }

    /// Everything that there is to read now, in the kernel's order (faults first, then the other events as they happened).
    pub(super) fn events(&self) -> io::Result<Vec<Event>> {
        let mut events = Vec::new();
        loop {
            match self.read()? {
                few if few.is_empty() => return Ok(events),
                some => events.extend(some),
            }
        }
    }

    #[expect(unsafe_code, reason = "messages are read into a structure of the kernel's")]
    fn read(&self) -> io::Result<Vec<Event>> {
        // SAFETY: `uffd_msg` is plain numbers, for which zero is a value.
        let mut messages: [uffd_msg; MESSAGES] = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes at most the length of `messages`, whole messages, and any bytes are a value of it.
        let read = unsafe { libc::read(self.0.as_raw_fd(), messages.as_mut_ptr().cast(), size_of_val(&messages)) };
        match Errno::result(read) {
            Ok(bytes) => messages[..bytes.cast_unsigned() / size_of::<uffd_msg>()].iter().map(event).collect(),
            // Another thread of the process was helped meanwhile, or nothing has happened.
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Vec::new()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Puts `bytes` (whole pages) in at `to` and wakes who waits there; says how many bytes are in, at least a page. What is left may be
    /// tried again.
    #[expect(unsafe_code, reason = "an ioctl with a structure of the kernel's")]
    pub(super) fn copy(&self, to: u64, bytes: &[u8]) -> Result<u64, Refusal> {
        let length = bytes.len() as u64;
        let mut order = uffdio_copy { dst: to, src: bytes.as_ptr().addr() as u64, len: length, mode: 0, copy: 0 };
        // SAFETY: the kernel reads `bytes`, which live throughout, and writes `order`. It writes the memory of another process, or of
        // ours where that was registered for it.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_COPY.into(), &mut order) };
        self.sure(progress(done, length, order.copy))
    }

    /// Puts zero pages in; otherwise like [`Uffd::copy`].
    #[expect(unsafe_code, reason = "an ioctl with a structure of the kernel's")]
    pub(super) fn zero(&self, at: &Range<u64>) -> Result<u64, Refusal> {
        let mut order = uffdio_zeropage { range: range(at), mode: 0, zeropage: 0 };
        // SAFETY: the kernel reads and writes `order` alone, and puts pages where there are none.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_ZEROPAGE.into(), &mut order) };
        self.sure(progress(done, at.end - at.start, order.zeropage))
    }

    /// A mapping that is gone may have been moved, with an event that is not read yet: the kernel looks for the mapping before it looks
    /// for the event when the two happen at once (mm/userfaultfd.c, `mfill_atomic`). Events stay until they are read, which only we do.
    #[expect(unsafe_code, reason = "an ioctl with a structure of the kernel's")]
    fn sure(&self, done: Result<u64, Refusal>) -> Result<u64, Refusal> {
        if done != Err(Refusal::Gone) {
            return done;
        }
        // Of a length that is none: whether mappings are changing is looked at before that.
        let mut nothing = uffdio_copy { dst: 0, src: 0, len: 0, mode: 0, copy: 0 };
        // SAFETY: the kernel reads and writes `nothing` alone.
        let refused = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_COPY.into(), &mut nothing) };
        match Errno::result(refused) {
            Err(Errno::EAGAIN) => Err(Refusal::Changing),
            _ => done,
        }
    }

    /// Whether the process has ended, or has become another program. Nothing is put in: the bytes that the kernel is asked to copy are
    /// where we have no memory, and it looks for the process before it looks for them.
    #[expect(unsafe_code, reason = "an ioctl with a structure of the kernel's")]
    pub(super) fn has_ended(&self) -> bool {
        let (dst, src) = (NOWHERE, nothing());
        let mut order = uffdio_copy { dst, src, len: PAGE, mode: 0, copy: 0 };
        // SAFETY: the kernel reads and writes `order`, and fails to read `src`.
        let refused = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_COPY.into(), &mut order) };
        Errno::result(refused).err().map(Refusal::of) == Some(Refusal::Ended)
    }

    /// Wakes who waits for a page that is there.
    #[expect(unsafe_code, reason = "an ioctl with a structure of the kernel's")]
    pub(super) fn wake(&self, page: u64) {
        let order = range(&(page..page + PAGE));
        // SAFETY: the kernel reads `order`. It has no reason to refuse, and nobody to wake is no error.
        unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_WAKE.into(), &order) };
    }
}

fn range(of: &Range<u64>) -> uffdio_range {
    uffdio_range { start: of.start, len: of.end - of.start }
}

/// What an ioctl that returned `done` has put in of `length` bytes, where `count` is what it has noted: bytes, or an error's negative
/// number. With part of it done the error is EAGAIN whatever stood in the way.
fn progress(done: libc::c_int, length: u64, count: i64) -> Result<u64, Refusal> {
    match Errno::result(done) {
        Ok(_) => Ok(length),
        Err(_) if count > 0 => Ok(count.cast_unsigned()),
        Err(errno) => Err(Refusal::of(errno)),
    }
}

#[expect(unsafe_code, reason = "which part of the union is valid is said by the number before it")]
fn event(message: &uffd_msg) -> io::Result<Event> {
    let arg = message.arg;
    // SAFETY: each arm reads the part that the kernel fills for this event (userfaultfd(2)); all of them are plain numbers. The
    // descriptor of a fork is open in this process since it was read, and nobody else's.
    unsafe {
        match u32::from(message.event) {
            UFFD_EVENT_PAGEFAULT => Ok(Event::Fault(arg.pagefault.address & !(PAGE - 1))),
            UFFD_EVENT_FORK => Ok(Event::Fork(Uffd::from(OwnedFd::from_raw_fd(arg.fork.ufd.cast_signed())))),
            UFFD_EVENT_REMAP => {
                let remap = arg.remap;
                Ok(Event::Remap { from: remap.from, to: remap.to, length: remap.len })
            }
            UFFD_EVENT_REMOVE => Ok(Event::Remove(arg.remove.start..arg.remove.end)),
            UFFD_EVENT_UNMAP => Ok(Event::Unmap(arg.remove.start..arg.remove.end)),
            unknown => Err(io::Error::other(format!("unknown event {unknown:#x} of a userfaultfd"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_is_done_counts_whatever_stood_in_the_way() {
        assert_eq!(progress(0, 8192, 8192), Ok(8192));
        Errno::EAGAIN.set();
        assert_eq!(progress(-1, 8192, 4096), Ok(4096));
        assert_eq!(progress(-1, 8192, -i64::from(libc::EAGAIN)), Err(Refusal::Changing));
        Errno::ESRCH.set();
        assert_eq!(progress(-1, 8192, 0), Err(Refusal::Ended));
    }
}
