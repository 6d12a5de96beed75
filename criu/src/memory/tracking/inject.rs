//! A userfaultfd of another process: one that follows its memory, and that only we have.
//!
//! Only the process itself can make one (userfaultfd(2)). So one thread of it is held up for a moment, does that system call, and goes
//! on where it was: with the registers it had, in front of the kernel's own look at signals, which restarts what was interrupted as
//! it does after any signal that nobody handles.

use std::ffi::c_void;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use linux_raw_sys::general::UFFD_USER_MODE_ONLY;
use nix::errno::Errno;
use nix::sys::ptrace::{getregs, setregs};
use nix::unistd::Pid;

use super::TrackError;
use super::tracee::{Seccomp, Tracee, failed, on_tracer, threads};
use crate::memory::{PIECE, areas, reader};
use crate::{pidfd, tasks};

/// The instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// The code segment of a thread that runs 64-bit code (`__USER_CS`, asm/segment.h).
const CODE_64: u64 = 0x33;

/// `PTRACE_GET_RSEQ_CONFIGURATION` (linux/ptrace.h), since Linux 5.13.
const GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;

/// `KCMP_FILE` (linux/kcmp.h): are two descriptors of one open file?
const KCMP_FILE: i32 = 0;

/// What a descriptor of a userfaultfd looks like in /proc.
const LINK: &str = "anon_inode:[userfaultfd]";

/// Opens a userfaultfd in `pid`, takes it over and closes it there.
///
/// # Errors
/// When no thread of the process can be made to do so; it goes on as if nothing had been.
pub(super) fn userfaultfd(pid: i32) -> Result<OwnedFd, TrackError> {
    on_tracer(pid, move || {
        let mut refused = TrackError::Gone { pid };
        for tid in threads(pid) {
            match open_in(pid, tid) {
                Ok((file, number)) => {
                    await_forks(pid, tid);
                    close_in_children(pid, &file, number);
                    return Ok(file);
                }
                // Another thread may be free where this one sleeps, or has ended.
                Err(error @ (TrackError::Busy { .. } | TrackError::Gone { .. })) => refused = error,
                Err(error) => return Err(error),
            }
        }
        Err(refused)
    })
}

/// The descriptor, and the number that it had in the process.
fn open_in(pid: i32, tid: i32) -> Result<(OwnedFd, i32), TrackError> {
    let mut calls = Calls::begin(Tracee::stop(pid, tid, Seccomp::Suspended)?)?;
    // Without privileges a process may follow only what it does itself, not the kernel for it. For following writes that makes no
    // difference: in asynchronous mode the kernel lets all of them pass.
    let flags = libc::O_CLOEXEC as u64 | libc::O_NONBLOCK as u64 | u64::from(UFFD_USER_MODE_ONLY);
    let number = calls.call("userfaultfd", libc::SYS_userfaultfd, flags)?;
    let taken = pidfd::open(pid).and_then(|process| pidfd::duplicate(&process, number));
    let closed = calls.call("close", libc::SYS_close, number as u64);
    let taken = taken.map_err(|errno| TrackError::Take { pid, source: errno.into() })?;
    closed.map(|_| (taken, number))
}

/// Returns when every fork that was under way in another thread than `tid` is done: a thread stops only on its way out of the kernel.
/// Those that sleep interruptibly are in the middle of no fork, and are left asleep.
fn await_forks(pid: i32, tid: i32) {
    for other in threads(pid).into_iter().filter(|other| *other != tid) {
        let stat = fs::read_to_string(format!("/proc/{pid}/task/{other}/stat")).unwrap_or_default();
        // The state follows the name, which is in brackets and may hold some itself (proc(5)).
        if stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['R', 'D'])) {
            // It goes on at once. One that does not stop waits for a disk, or for the child of a vfork, which is there already.
            let _ = Tracee::stop(pid, other, Seccomp::Kept);
        }
    }
}

/// Another thread may have forked while the descriptor was open: then the child has it too, and CRIU would refuse the child.
fn close_in_children(pid: i32, file: &OwnedFd, number: i32) {
    for child in tasks::children(pid) {
        if !is_same(child, file, number) {
            continue;
        }
        let closed = Tracee::stop(child, child, Seccomp::Suspended)
            .and_then(Calls::begin)
            .and_then(|mut calls| calls.call("close", libc::SYS_close, number as u64));
        if let Err(error) = closed {
            tracing::warn!(pid = child, %error, "a userfaultfd stays open in the child of a process whose memory is followed");
        }
        close_in_children(child, file, number);
    }
}

#[expect(unsafe_code, reason = "neither std nor nix has kcmp")]
fn is_same(pid: i32, file: &OwnedFd, number: i32) -> bool {
    if fs::read_link(format!("/proc/{pid}/fd/{number}")).is_ok_and(|link| link == Path::new(LINK)) {
        let own = std::process::id().cast_signed();
        // SAFETY: kcmp takes five numbers and touches no memory of ours.
        return unsafe { libc::syscall(libc::SYS_kcmp, own, pid, KCMP_FILE, file.as_raw_fd(), number) } == 0;
    }
    false
}

/// A thread that does system calls for us; when this is dropped, it is as it was.
struct Calls {
    tracee: Tracee,
    registers: libc::user_regs_struct,
    /// Bits of the signals that it blocks.
    blocked: u64,
    /// Where a `syscall` is in its memory.
    instruction: u64,
    /// It stands at a system call, not where the kernel looks at signals.
    in_call: bool,
}

impl Calls {
    fn begin(tracee: Tracee) -> Result<Self, TrackError> {
        let (pid, tid) = (tracee.pid(), tracee.tid());
        let mut registers = getregs(Pid::from_raw(tid)).map_err(|errno| failed(pid, errno))?;
        if registers.cs != CODE_64 {
            return Err(TrackError::Foreign { pid });
        }
        // It was not in a system call, so it may have been in a restartable sequence.
        if registers.orig_rax.cast_signed() < 0
            && let Some(abort) = aborted_sequence(pid, tid, registers.rip)
        {
            registers.rip = abort;
        }
        let instruction = find_syscall(pid)?;
        let blocked = signal_mask(tid).map_err(|errno| failed(pid, errno))?;
        let calls = Self { tracee, registers, blocked, instruction, in_call: false };
        // Signals wait until it is let go. Those that an instruction itself raises come all the same; `syscall` raises none.
        set_signal_mask(tid, u64::MAX).map_err(|errno| failed(pid, errno))?;
        Ok(calls)
    }

    /// Has the thread do a system call with one argument.
    fn call(&mut self, name: &'static str, number: i64, argument: u64) -> Result<i32, TrackError> {
        let (pid, tid) = (self.tracee.pid(), Pid::from_raw(self.tracee.tid()));
        let mut registers = self.registers;
        registers.rip = self.instruction;
        registers.rax = number.cast_unsigned();
        // Not in a system call: nothing to be restarted.
        registers.orig_rax = u64::MAX;
        registers.rdi = argument;
        setregs(tid, registers).map_err(|errno| failed(pid, errno))?;
        self.in_call = false;
        self.tracee.run_to_syscall()?;
        self.in_call = true;
        // A signal here would be one that the call raised; none of ours does.
        self.tracee.run_to_syscall()?;
        let answer = getregs(tid).map_err(|errno| failed(pid, errno))?.rax.cast_signed();
        match i32::try_from(answer) {
            Ok(answer) if answer >= 0 => Ok(answer),
            answer => {
                Err(TrackError::Call { pid, call: name, source: Errno::from_raw(answer.map_or(0, |e| -e)).into() })
            }
        }
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        // Each step fails only if the thread was killed.
        if self.in_call {
            let _ = self.tracee.run_to_signals();
        }
        let tid = self.tracee.tid();
        let restored = setregs(Pid::from_raw(tid), self.registers).and_then(|()| set_signal_mask(tid, self.blocked));
        if let Err(errno) = restored
            && errno != Errno::ESRCH
        {
            tracing::error!(pid = self.tracee.pid(), tid, %errno, "a thread could not be given its registers back");
        }
    }
}

/// Where the instruction `syscall` is: in the kernel's own page of code as a rule, else in any.
fn find_syscall(pid: i32) -> Result<u64, TrackError> {
    let mut code: Vec<_> = areas::areas(pid)?;
    code.retain(|area| area.executable && area.readable && area.name != "[vsyscall]");
    code.sort_by_key(|area| area.name != "[vdso]");
    let mut buffer = vec![0; PIECE as usize];
    for area in code {
        for start in area.range.clone().step_by(PIECE as usize) {
            let length = (area.range.end - start).min(PIECE) as usize;
            let count =
                reader::read(pid, start, &mut buffer[..length]).map_err(|source| TrackError::Take { pid, source })?;
            if let Some(offset) = buffer[..count].windows(SYSCALL.len()).position(|bytes| bytes == SYSCALL) {
                return Ok(start + offset as u64);
            }
        }
    }
    Err(TrackError::Foreign { pid })
}

/// Where a thread that was interrupted in a restartable sequence goes on (rseq(2)), if it was in one. The kernel would send it there
/// for having been scheduled out; but it forgets the sequence as soon as the thread runs elsewhere, which it does for us.
fn aborted_sequence(pid: i32, tid: i32, at: u64) -> Option<u64> {
    let word = |bytes: &[u8], offset| u64::from_ne_bytes(bytes[offset..][..8].try_into().expect("eight bytes"));
    // struct ptrace_rseq_configuration: the address comes first. struct rseq: `rseq_cs` is at 8. struct rseq_cs: `start_ip` at 8,
    // `post_commit_offset` at 16, `abort_ip` at 24 (linux/rseq.h).
    let configuration: [u8; 24] = filled(GET_RSEQ_CONFIGURATION, tid, 24).ok()?;
    let registered = word(&configuration, 0);
    let mut pointer = [0; 8];
    let mut sequence = [0; 32];
    let is_there = registered != 0 && reader::read(pid, registered + 8, &mut pointer).ok()? == pointer.len();
    let pointer = Some(word(&pointer, 0)).filter(|pointer| is_there && *pointer != 0)?;
    (reader::read(pid, pointer, &mut sequence).ok()? == sequence.len()).then_some(())?;
    let inside = at.wrapping_sub(word(&sequence, 8)) < word(&sequence, 16);
    inside.then(|| word(&sequence, 24))
}

/// The signals that a thread blocks; in a call like sigsuspend(2), those it blocks afterwards.
fn signal_mask(tid: i32) -> Result<u64, Errno> {
    filled(libc::PTRACE_GETSIGMASK, tid, size_of::<u64>()).map(u64::from_ne_bytes)
}

#[expect(unsafe_code, reason = "nix has no PTRACE_SETSIGMASK")]
fn set_signal_mask(tid: i32, mask: u64) -> Result<(), Errno> {
    let data = (&raw const mask).cast::<c_void>();
    // SAFETY: the kernel reads the 8 bytes that the address argument says, from `mask`.
    Errno::result(unsafe { libc::ptrace(libc::PTRACE_SETSIGMASK, tid, size_of::<u64>(), data) }).map(drop)
}

/// What a request fills in that takes the length as its address.
#[expect(unsafe_code, reason = "nix has neither PTRACE_GETSIGMASK nor PTRACE_GET_RSEQ_CONFIGURATION")]
fn filled<const N: usize>(request: libc::c_uint, tid: i32, length: usize) -> Result<[u8; N], Errno> {
    let mut bytes = [0; N];
    assert!(length <= N, "{length} bytes do not fit into {N}");
    // SAFETY: both requests write at most `length` bytes, and `bytes` has as many.
    Errno::result(unsafe { libc::ptrace(request, tid, length, bytes.as_mut_ptr().cast::<c_void>()) })?;
    Ok(bytes)
}
