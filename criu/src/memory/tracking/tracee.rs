//! Threads held up for a moment by ptrace(2).
//!
//! The kernel ties tracees to the *thread* that traces them, and lets them all go when that ends. So every tracing is done on a thread
//! of its own ([`on_tracer`]): whatever goes wrong on it, nothing stays stopped.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::errno::Errno;

use super::TrackError;

/// How long a thread may take to stop: it stops in microseconds, unless it sleeps uninterruptibly or has
/// used up its share of the processor (cgroup cpu.max), of which it gets more every 100 ms.
const PATIENCE: Duration = Duration::from_millis(500);

/// How often a thread that shall stop is looked at. There is no event for it but the one SIGCHLD of the whole process, which belongs to
/// the program that we are part of.
const POLL: Duration = Duration::from_micros(50);

/// How long the caller of [`on_tracer`] waits. A thread that is caught by a freezer (cgroup v1) in the middle of an injection can only be put
/// in order when it is thawed; the tracer then does that alone.
const LIMIT: Duration = Duration::from_secs(3);

/// `PTRACE_EVENT_STOP` (linux/ptrace.h): the stop that PTRACE_INTERRUPT asked for, or a group stop.
const EVENT_STOP: i32 = 128;

/// With which a thread is traced.
const OPTIONS: usize = libc::PTRACE_O_TRACESYSGOOD as usize;

/// `PTRACE_O_SUSPEND_SECCOMP` (linux/ptrace.h).
const SUSPEND_SECCOMP: i32 = 1 << 21;

/// Does `work` on a thread that may trace.
///
/// # Errors
/// What `work` says; [`TrackError::Busy`] when it takes longer than three seconds.
pub(super) fn on_tracer<T: Send + 'static>(
    pid: i32,
    work: impl FnOnce() -> Result<T, TrackError> + Send + 'static,
) -> Result<T, TrackError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let named = thread::Builder::new().name("spothop-tracer".into());
    // What comes too late is dropped, and with it whatever it holds.
    let started = named.spawn(move || drop(sender.send(work())));
    started.map_err(|source| TrackError::Thread { pid, source })?;
    receiver.recv_timeout(LIMIT).unwrap_or(Err(TrackError::Busy { pid }))
}

/// The threads of `pid`, its main thread first.
pub(super) fn threads(pid: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut threads: Vec<i32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    threads.sort_by_key(|tid| (*tid != pid, *tid));
    threads
}

/// Does `work` while no thread of `pid` runs. To be called on a tracer.
///
/// # Errors
/// What `work` says; when a thread cannot be stopped, nothing is done.
pub(super) fn while_stopped<T>(pid: i32, work: impl FnOnce() -> Result<T, TrackError>) -> Result<T, TrackError> {
    let mut stopped: BTreeMap<i32, Option<Tracee>> = BTreeMap::new();
    // Whoever was not stopped yet may have made new threads; who is stopped makes none.
    loop {
        let mut new: Vec<i32> = threads(pid).into_iter().filter(|tid| !stopped.contains_key(tid)).collect();
        if new.is_empty() {
            // One that was not stopped yet may have executed a program, which ends all others and takes the id of the first.
            let lost = |held: &Option<Tracee>| held.as_ref().is_some_and(|held| !held.is_held());
            new = stopped.iter().filter(|(_, held)| lost(held)).map(|(tid, _)| *tid).collect();
            new.iter().for_each(|tid| drop(stopped.remove(tid)));
        }
        if new.is_empty() {
            break;
        }
        for tid in new {
            let tracee = match Tracee::stop(pid, tid, Seccomp::Kept) {
                Ok(tracee) => Some(tracee),
                // It ended meanwhile; one that cannot be waited for any more has not left the list yet.
                Err(TrackError::Gone { .. }) => None,
                Err(error) => return Err(error),
            };
            stopped.insert(tid, tracee);
        }
    }
    work()
}

/// What becomes of a thread's seccomp filters while it is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seccomp {
    Kept,
    /// Off, so that they do not judge a call that is not the thread's own.
    Suspended,
}

/// Why a thread stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It was interrupted, or its process is stopped by a signal.
    Event,
    /// It enters or leaves a system call.
    Syscall,
    /// It is about to get a signal.
    Signal(i32),
}

/// A thread that stands still, and goes on when this is dropped.
pub(super) struct Tracee {
    pid: i32,
    tid: i32,
    /// A SIGSTOP was held back.
    stop_again: bool,
}

impl Tracee {
    /// Stops the thread `tid` of `pid` where it is; a system call that it sleeps in is interrupted.
    ///
    /// # Errors
    /// When it is gone, traced by somebody else, or does not stop.
    pub(super) fn stop(pid: i32, tid: i32, seccomp: Seccomp) -> Result<Self, TrackError> {
        seize(pid, tid, seccomp)?;
        let mut interrupt = true;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if interrupt {
                request(libc::PTRACE_INTERRUPT, tid, 0, 0).map_err(|errno| failed(pid, errno))?;
            }
            interrupt = match wait(pid, tid, libc::WNOHANG)? {
                Some(Stop::Event) => return Ok(Self { pid, tid, stop_again: false }),
                // A signal came first, and is given on. Its stop has used up the interruption.
                Some(Stop::Signal(signal)) => {
                    request(libc::PTRACE_INTERRUPT, tid, 0, 0).map_err(|errno| failed(pid, errno))?;
                    request(libc::PTRACE_CONT, tid, 0, signal as usize).map_err(|errno| failed(pid, errno))?;
                    false
                }
                Some(Stop::Syscall) => {
                    request(libc::PTRACE_CONT, tid, 0, 0).map_err(|errno| failed(pid, errno))?;
                    true
                }
                // It is let go when the tracer's thread ends: one that runs cannot be detached.
                None if Instant::now() >= deadline => return Err(TrackError::Busy { pid }),
                None => {
                    thread::sleep(POLL);
                    false
                }
            };
        }
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    pub(super) fn tid(&self) -> i32 {
        self.tid
    }

    /// Is it still the thread that was stopped, and stands still?
    fn is_held(&self) -> bool {
        // Of the requests that need that, one without effect.
        request(libc::PTRACE_SETOPTIONS, self.tid, 0, OPTIONS).is_ok()
    }

    /// Lets it run until it enters or leaves a system call.
    ///
    /// # Errors
    /// When it ended, gets a signal (held back; it was raised by what it does), or does not get there. In the last two cases it stands
    /// where the kernel looks at signals.
    pub(super) fn run_to_syscall(&mut self) -> Result<(), TrackError> {
        self.go(libc::PTRACE_SYSCALL)?;
        let deadline = Instant::now() + PATIENCE;
        let mut late = false;
        loop {
            let flags = if late { 0 } else { libc::WNOHANG };
            match wait(self.pid, self.tid, flags)? {
                Some(Stop::Syscall) => return Ok(()),
                Some(Stop::Event) if late => return Err(TrackError::Busy { pid: self.pid }),
                // Its process is being stopped by a signal: that has to wait.
                Some(Stop::Event) => self.go(libc::PTRACE_SYSCALL)?,
                Some(Stop::Signal(libc::SIGSTOP)) => {
                    self.stop_again = true;
                    self.go(libc::PTRACE_SYSCALL)?;
                }
                Some(Stop::Signal(signal)) => return Err(TrackError::Signal { pid: self.pid, signal }),
                // The freezer of cgroup v2 has caught it: it can still be stopped, and put in order.
                None if Instant::now() >= deadline => {
                    late = true;
                    request(libc::PTRACE_INTERRUPT, self.tid, 0, 0).map_err(|errno| failed(self.pid, errno))?;
                }
                None => thread::sleep(POLL),
            }
        }
    }

    /// Lets it run out of a system call to where the kernel looks at signals, before any instruction of its own.
    pub(super) fn run_to_signals(&mut self) -> Result<(), TrackError> {
        request(libc::PTRACE_INTERRUPT, self.tid, 0, 0).map_err(|errno| failed(self.pid, errno))?;
        self.go(libc::PTRACE_CONT)?;
        loop {
            match wait(self.pid, self.tid, 0)? {
                None | Some(Stop::Event) => return Ok(()),
                Some(Stop::Signal(libc::SIGSTOP)) => {
                    // It stands where we want it.
                    self.stop_again = true;
                    return Ok(());
                }
                Some(Stop::Signal(_)) => return Ok(()),
                Some(Stop::Syscall) => self.go(libc::PTRACE_CONT)?,
            }
        }
    }

    fn go(&self, how: libc::c_uint) -> Result<(), TrackError> {
        request(how, self.tid, 0, 0).map_err(|errno| failed(self.pid, errno))
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        // It may have been killed: then there is nothing to let go.
        let _ = request(libc::PTRACE_DETACH, self.tid, 0, 0);
        if self.stop_again {
            let pid = nix::unistd::Pid::from_raw(self.pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP);
        }
    }
}

fn seize(pid: i32, tid: i32, seccomp: Seccomp) -> Result<(), TrackError> {
    let seize = |options| request(libc::PTRACE_SEIZE, tid, 0, options);
    let refused = match seccomp {
        Seccomp::Kept => seize(OPTIONS),
        // Refused without CAP_SYS_ADMIN, to a tracer with filters of its own, and by kernels without CONFIG_CHECKPOINT_RESTORE.
        Seccomp::Suspended => match seize(OPTIONS | SUSPEND_SECCOMP as usize) {
            Err(Errno::EPERM | Errno::EINVAL) if has_filters(pid, tid) => Err(Errno::EACCES),
            Err(Errno::EPERM | Errno::EINVAL) => seize(OPTIONS),
            other => other,
        },
    };
    refused.map_err(|errno| match errno {
        Errno::EPERM if has_ended(pid, tid) => TrackError::Gone { pid },
        Errno::EPERM => TrackError::Denied { pid },
        Errno::EACCES => TrackError::Seccomp { pid },
        errno => failed(pid, errno),
    })
}

/// Is a thread dead that has not left the list of its process yet? ptrace(2) refuses it like one that it must not trace.
fn has_ended(pid: i32, tid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).unwrap_or_default();
    // Z is a zombie, X is dead (proc(5)).
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    state.is_none_or(|state| state.trim_start().starts_with(['Z', 'X']))
}

/// Is a thread under seccomp (proc_pid_status(5))? If that cannot be known, yes.
fn has_filters(pid: i32, tid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("Seccomp:")).is_none_or(|mode| mode.trim() != "0")
}

/// What a thread of ours stopped for; none if it has not yet, which only WNOHANG says.
#[expect(unsafe_code, reason = "nix loses the status of a thread that is about to get a real-time signal")]
fn wait(pid: i32, tid: i32, flags: i32) -> Result<Option<Stop>, TrackError> {
    let mut status = 0;
    let waited = loop {
        // SAFETY: waitpid writes one number, to `status`.
        match Errno::result(unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | flags) }) {
            Err(Errno::EINTR) => {}
            other => break other,
        }
    };
    match waited {
        Ok(0) => Ok(None),
        // What is not a stop is its end.
        Ok(_) if !libc::WIFSTOPPED(status) => Err(TrackError::Gone { pid }),
        Ok(_) => Ok(Some(match (libc::WSTOPSIG(status), status >> 16) {
            (_, EVENT_STOP) => Stop::Event,
            // 0x80 is what PTRACE_O_TRACESYSGOOD adds.
            (signal, _) if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
            (signal, _) => Stop::Signal(signal),
        })),
        Err(errno) => Err(failed(pid, errno)),
    }
}

/// A request of ptrace whose arguments are plain numbers.
#[expect(unsafe_code, reason = "nix's ptrace takes neither real-time signals nor all options")]
pub(super) fn request(what: libc::c_uint, tid: i32, address: usize, data: usize) -> Result<(), Errno> {
    // SAFETY: for the requests that are made by this function, both are numbers to the kernel, not addresses of ours.
    Errno::result(unsafe { libc::ptrace(what, tid, address, data) }).map(drop)
}

/// What a request that fails says of the thread.
pub(super) fn failed(pid: i32, errno: Errno) -> TrackError {
    match errno {
        // Of a tracee that is gone, and one that was killed while it stood still.
        Errno::ESRCH | Errno::ECHILD => TrackError::Gone { pid },
        errno => TrackError::Ptrace { pid, source: errno.into() },
    }
}
