//! A userfaultfd that notes writes by itself: asynchronous write-protect mode (kernel documentation, admin-guide/mm/userfaultfd).

use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use linux_raw_sys::general::{
    UFFD_API, UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_FEATURE_WP_ASYNC, UFFD_FEATURE_WP_UNPOPULATED,
    UFFDIO_REGISTER_MODE_WP, uffdio_api, uffdio_range, uffdio_register, uffdio_writeprotect,
};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WRITEPROTECT};
use nix::errno::Errno;

/// One whose process is known by whoever holds it. Dropping it takes all protection off.
pub(super) struct Userfault(OwnedFd);

impl Userfault {
    /// Takes a new userfaultfd into use.
    ///
    /// # Errors
    /// `EINVAL` when the kernel has no such mode (before Linux 6.7).
    pub(super) fn new(descriptor: OwnedFd) -> Result<Self, Errno> {
        let userfault = Self(descriptor);
        // PAGEMAP_SCAN protects anonymous memory only where unpopulated pages could be as well (`userfaultfd_wp_use_markers`).
        let features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED;
        let mut api = uffdio_api { api: UFFD_API.into(), features: features.into(), ioctls: 0 };
        userfault.ioctl(UFFDIO_API, &mut api)?;
        Ok(userfault)
    }

    /// Makes an area one whose pages can be protected; none of them is yet.
    ///
    /// # Errors
    /// `EBUSY` when another userfaultfd has it, `EINVAL` when it is not there any more or cannot be protected, `ESRCH` when the process
    /// has ended or runs another program.
    pub(super) fn register(&self, area: &Range<u64>) -> Result<(), Errno> {
        let mode = UFFDIO_REGISTER_MODE_WP.into();
        let registered = self.ioctl(UFFDIO_REGISTER, &mut uffdio_register { range: of(area), mode, ioctls: 0 });
        match registered {
            Ok(()) => self.unprotect(area).inspect_err(|_| {
                let _ = self.ioctl(UFFDIO_UNREGISTER, &mut of(area));
            }),
            // So says a memory that is gone, too; asked for something else it says ESRCH.
            Err(Errno::ENOMEM) => self.unprotect(area).and(Err(Errno::ENOMEM)),
            Err(errno) => Err(errno),
        }
    }

    /// Kernels before 6.13 leave the marks of protection on pages that mremap(2) has moved out of a registered area, but not the
    /// protection (`clear_uffd_wp_pmd`, mm/mremap.c). Registered again they would count as protected.
    fn unprotect(&self, area: &Range<u64>) -> Result<(), Errno> {
        self.ioctl(UFFDIO_WRITEPROTECT, &mut uffdio_writeprotect { range: of(area), mode: 0 })
    }

    #[expect(unsafe_code, reason = "nix has no userfaultfd")]
    fn ioctl<T>(&self, request: u32, argument: &mut T) -> Result<(), Errno> {
        // SAFETY: the requests of this file are each used with the structure that the kernel reads and writes for it.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), request.into(), std::ptr::from_mut(argument)) };
        Errno::result(done).map(drop)
    }
}

fn of(area: &Range<u64>) -> uffdio_range {
    uffdio_range { start: area.start, len: area.end - area.start }
}
