//! Processes by descriptor: what neither std nor nix has.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;
use nix::sys::signal::Signal;

/// A descriptor of the process `pid`; it can be read (poll) when the process is dead, and never means another one.
#[expect(unsafe_code, reason = "neither std nor nix has pidfd_open")]
pub(crate) fn open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: pidfd_open takes two numbers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    owned(fd)
}

/// A duplicate of descriptor `number` of `process`.
#[expect(unsafe_code, reason = "neither std nor nix has pidfd_getfd")]
pub(crate) fn duplicate(process: &OwnedFd, number: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: pidfd_getfd takes three numbers and touches no memory of ours; `process` is open for the call.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    owned(fd)
}

/// Sends `signal` to `process`.
#[expect(unsafe_code, reason = "neither std nor nix has pidfd_send_signal")]
pub(crate) fn send_signal(process: &OwnedFd, signal: Signal) -> Result<(), Errno> {
    let info = ptr::null::<libc::siginfo_t>();
    // SAFETY: without a siginfo_t the kernel touches no memory of ours; `process` is open for the call.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal as i32, info, 0) };
    Errno::result(sent).map(drop)
}

#[expect(unsafe_code, reason = "a descriptor from a raw system call has no owner yet")]
fn owned(returned: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(i32::try_from(returned).unwrap_or(-1))?;
    // SAFETY: both callers return a descriptor that the kernel has just opened for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_taken_from_another_holder() {
        let file = tempfile::tempfile().unwrap();
        let own = std::process::id().cast_signed();
        // A sandbox may forbid these calls.
        let Ok(process) = open(own) else { return };
        let Ok(copy) = duplicate(&process, file.as_raw_fd()) else { return };
        assert_ne!(copy.as_raw_fd(), file.as_raw_fd());
        assert_eq!(duplicate(&process, 1 << 20).unwrap_err(), Errno::EBADF);
    }
}
