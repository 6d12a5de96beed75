//! The pager of a lazy restore, and the guard beside it.
//!
//! ```text
//! create ──► guard ──► pager ◄── lazy-pages.socket ── CRIU
//!              ▲
//!              └── pager.sock: "held <pid>" ── hook, which goes on when it hears "ok"
//! ```
//! Two processes that share their table of open files (clone(2), CLONE_FILES): whatever userfaultfd the pager gets, from CRIU or by a fork
//! of a task, the guard has open at the same instant. If the pager dies before all pages are in, the guard kills the container and lets
//! the userfaultfds go when everything in it is dead; no task ever reads a zero where there was something else. If the guard dies the
//! pager goes on alone. Either notes down how it ended ([`crate::paged`]). If both die at once tasks may read zeros; where memory was to follow,
//! the daemon finds that out by the missing note, and kills them.
//!
//! Both are children of `create`, and the engine's shim's after that, like the keeper. They have none of the container's standard streams,
//! for whose end the engine waits, and need the migration's directory only until the tasks are held: its files are open then.
//! Until the hook has been answered no task can run, and the guard ends all of it when `create` ends (its standard input).

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, clone};
use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::error::{OciError, file};
use super::gate;
use crate::cgroup::Grip;
use crate::handoff::{Directory, RestoreRequest};
use crate::memory::pager::{self, Ending, Held, Memory, SOCKET};
use crate::memory::{ImageError, Store, read_owed};
use crate::paged::{Note, Paged};
use crate::{failpoint, pidfd, tasks};

/// The hidden verb by which `create` starts the guard.
const VERB: &str = "--spothop-pager";

/// Where the hook finds the guard.
const GUARD: &str = "pager.sock";

/// What the guard says when both are ready, and to a hook that may go on.
const READY: &str = "ready";
const OK: &str = "ok";

/// For an answer of the guard, which has nothing else to do.
const ANSWER: Duration = Duration::from_secs(10);

/// Between two looks whether it lives, in milliseconds.
const STILL_THERE: u16 = 100;

/// The longest reason why there is no pager, in bytes; an error of ours with a path or two.
const LONGEST_REASON: u64 = 16 << 10;

/// The pager's exit statuses: no task needs it any more; CRIU has failed, and its tasks never ran; tasks lack pages that it cannot give.
const WHOLE: isize = 0;
const FAILED: isize = 1;
const GIVEN_UP: isize = 2;

/// The pager's stack; its threads have their own.
const STACK: usize = 1 << 20;

/// Why there is no pager.
#[derive(Debug, thiserror::Error)]
enum NoPager {
    #[error(transparent)]
    Handoff(#[from] crate::handoff::HandoffError),
    #[error("the restore in {0} was to be lazy, and its request does not say so")]
    NotLazy(String),
    #[error(transparent)]
    Images(#[from] ImageError),
    #[error(transparent)]
    Pager(#[from] pager::PagerError),
    #[error("cannot listen on {path}: {source}")]
    Listen { path: String, source: io::Error },
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

/// Starts guard and pager for the restore in `directory` and returns when CRIU may connect. They end when the child's standard input
/// is dropped, unless the tasks are held by then.
pub(super) fn spawn(directory: &Directory) -> Result<Child, OciError> {
    let error = || file("start the pager in", directory.path());
    let mut command = Command::new(std::env::current_exe().map_err(error())?);
    command.arg(VERB).arg(directory.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut guard = command.spawn().map_err(error())?;
    let mut said = String::new();
    if let Some(stdout) = guard.stdout.take() {
        stdout.take(LONGEST_REASON).read_to_string(&mut said).map_err(error())?;
    }
    if said == READY {
        return Ok(guard);
    }
    let _ = guard.wait();
    Err(OciError::Pager { reason: if said.is_empty() { "it was killed".to_owned() } else { said } })
}

/// Takes away what a former attempt has left, by which the hook knows that there is a pager.
pub(super) fn forget(directory: &Path) {
    let _ = fs::remove_file(directory.join(GUARD));
    let _ = fs::remove_file(Directory::at(directory).owed_socket());
}

/// Says to the guard, if the restore is lazy, that all tasks are there and stopped. An error means that they must not run.
pub(super) fn tell_held(directory: &Path, init_pid: i32) -> io::Result<()> {
    let path = directory.join(GUARD);
    if !path.exists() {
        return Ok(());
    }
    let mut guard = UnixStream::connect(path)?;
    // Who listens, as the kernel noted it then; the pager has the socket open too, and would not answer.
    let process = getsockopt(&guard, sockopt::PeerCredentials)?.pid();
    guard.write_all(gate::held_word(init_pid).as_bytes())?;
    let deadline = Instant::now() + ANSWER;
    while !tasks::is_dead(process) && Instant::now() < deadline {
        let mut answer = [PollFd::new(guard.as_fd(), PollFlags::POLLIN)];
        if poll(&mut answer, STILL_THERE) != Ok(0) {
            let mut said = String::new();
            guard.take(OK.len() as u64).read_to_string(&mut said)?;
            return if said == OK { Ok(()) } else { Err(io::Error::other("the tasks' guard has said no")) };
        }
    }
    Err(io::Error::other("the tasks' guard is dead"))
}

/// Does the guard's and the pager's work when this process is to; `None` when it is not.
pub(super) fn called_by_create(arguments: &[OsString]) -> Option<ExitCode> {
    let [_, verb, directory] = arguments else { return None };
    if verb != VERB {
        return None;
    }
    let directory = Directory::at(Path::new(directory));
    Some(match prepare(&directory).and_then(|(work, guard)| start(work, guard, &directory)) {
        Ok(code) => code,
        Err(error) => {
            // If `create` is gone nobody wants to know.
            let _ = write!(io::stdout(), "{error}");
            ExitCode::FAILURE
        }
    })
}

/// Finds what the store has, which takes 10 ms for a gigabyte: while CRIU restores already.
type OpenMemory = Box<dyn FnOnce() -> Result<Memory, pager::PagerError>>;

/// What the pager has.
struct Work {
    note: Arc<Note>,
    criu: UnixListener,
    memory: OpenMemory,
    /// Told when that is done.
    open: PipeWriter,
    held: PipeReader,
}

/// What the guard has.
#[derive(Debug)]
struct Guard {
    note: Arc<Note>,
    /// Where the pager answers the daemon, once more: it is closed when both have ended and the note is written, not when the pager has
    /// answered for the last time. Of whoever finds nobody here the note has to be true.
    _owed: Option<UnixListener>,
    hook: UnixListener,
    /// The pager's word that it has all of its files.
    open: PipeReader,
    held: Held,
    /// The container, once its tasks may run.
    container: Option<Grip>,
}

fn prepare(directory: &Directory) -> Result<(Work, Guard), NoPager> {
    // Best effort: memory is scarcest while it is being filled, and who kills one of us kills the container.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    allow_many_files();
    let not_lazy = || NoPager::NotLazy(directory.path().display().to_string());
    let request = RestoreRequest::read(directory)?.ok_or_else(not_lazy)?;
    let store = Store::at(request.lazy.ok_or_else(not_lazy)?);
    let (lazy, owed) = (pager::lazy(&request.images)?, read_owed(&request.images)?);
    let (memory, daemon): (OpenMemory, _) = match owed.is_empty() {
        true => (Box::new(move || Memory::open(&store, lazy)), None),
        false => {
            let daemon = listen(&directory.owed_socket())?;
            let memory = Memory::owing(&store, lazy, &owed, daemon.try_clone()?)?;
            (Box::new(|| Ok(memory)), Some(daemon))
        }
    };
    let (held, heard) = Held::new()?;
    let (is_open, open) = io::pipe()?;
    let note = Arc::new(Note::begin(directory)?);
    let criu = listen(&directory.work().join(SOCKET))?;
    let work = Work { note: Arc::clone(&note), criu, memory, open, held: heard };
    let hook = listen(&directory.path().join(GUARD))?;
    Ok((work, Guard { note, _owed: daemon, hook, open: is_open, held, container: None }))
}

fn listen(path: &Path) -> Result<UnixListener, NoPager> {
    gate::bind(path).map_err(|source| NoPager::Listen { path: path.display().to_string(), source })
}

/// Each task takes two descriptors: as many as the system lets us have.
#[expect(unsafe_code, reason = "nix has these calls only with a feature that nothing else needs")]
fn allow_many_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes `limit`, and then reads it.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// Makes this process the guard of another, which is the pager.
fn start(work: Work, guard: Guard, directory: &Directory) -> Result<ExitCode, NoPager> {
    let mut work = Some(work);
    let mut stack = vec![0; STACK];
    let pager = fork_with_files(&mut stack, || work.take().map_or(1, |work| page(work, directory)))?;
    // Its files are the pager's alone, and closing them here would close them there.
    std::mem::forget(work);
    let process = pidfd::open(pager.as_raw()).map_err(io::Error::from)?;
    io::stdout().write_all(READY.as_bytes()).and_then(|()| io::stdout().flush())?;
    nix::unistd::dup2_stdout(File::open("/dev/null")?).map_err(io::Error::from)?;
    Ok(guard.watch(pager, &process))
}

/// Starts a process that shares our open files and has a copy of our memory; its exit status is what `work` returns.
#[expect(unsafe_code, reason = "std has no fork, and nix's cannot share open files")]
fn fork_with_files(stack: &mut [u8], work: impl FnMut() -> isize) -> io::Result<Pid> {
    let child = Box::new(work);
    // SAFETY: this process has one thread, so that the copy of its memory is whole; the stack is large enough for a function that
    // starts threads. The child leaves by _exit when `work` returns: nothing of ours is dropped there.
    let pid = unsafe { clone(child, stack, CloneFlags::CLONE_FILES, Some(libc::SIGCHLD)) };
    Ok(pid?)
}

/// The pager's life. What it returns is its exit status.
fn page(work: Work, directory: &Directory) -> isize {
    let Work { note, criu, memory, open, held } = work;
    let serve = |criu: &UnixStream| {
        let memory = memory()?;
        // The guard is there, and if it is not, nobody waits for this.
        let _ = (&open).write_all(&[1]);
        pager::serve(criu, held, memory)
    };
    let served = match accept(&criu) {
        // It takes a while until it needs any of it.
        Ok(Some(criu)) => serve(&criu).map_err(|error| error.to_string()),
        Ok(None) => Ok(Ending::GivenUp),
        Err(error) => Err(format!("cannot hear CRIU: {error}")),
    };
    let served = served.and_then(|ending| match failpoint::reach("target:pager:ended") {
        Ok(()) => Ok(ending),
        Err(injected) => Err(injected.to_string()),
    });
    if let Err(error) = &served {
        log(&format!("restore in {}: the pager cannot go on: {error}", directory.path().display()));
    }
    let (paged, status) = match served {
        Ok(Ending::Whole(counters)) => (Paged::Whole(counters), WHOLE),
        Ok(Ending::GivenUp) => (Paged::GivenUp, GIVEN_UP),
        Err(reason) => (Paged::Failed { reason }, FAILED),
    };
    // Without it the daemon takes the memory for lost, if any was to follow.
    let _ = note.end(&paged);
    status
}

/// CRIU's connection; `None` when `create` ends before there is one.
fn accept(criu: &UnixListener) -> io::Result<Option<UnixStream>> {
    let create = io::stdin();
    let mut fds = [PollFd::new(criu.as_fd(), PollFlags::POLLIN), PollFd::new(create.as_fd(), PollFlags::POLLIN)];
    while poll(&mut fds, PollTimeout::NONE).is_err() {}
    match fds[0].any() {
        Some(true) => criu.accept().map(|(criu, _)| Some(criu)),
        _ => Ok(None),
    }
}

impl Guard {
    /// Waits for the pager's end, and sees to it that no task outlives it that needs it.
    fn watch(mut self, pager: Pid, process: &OwnedFd) -> ExitCode {
        loop {
            let [ended, hook, create] = self.wait(process);
            if ended {
                break;
            }
            if hook && let Ok((hook, _)) = self.hook.accept() {
                // The hook takes silence for a no.
                let _ = self.hear(hook, process);
            }
            if create && self.container.is_none() {
                let _ = pidfd::send_signal(process, Signal::SIGKILL);
            }
        }
        let status = waitpid(pager, None);
        let exited = |with: isize| matches!(status, Ok(WaitStatus::Exited(_, status)) if status as isize == with);
        if exited(WHOLE) {
            return ExitCode::SUCCESS;
        }
        if let Some(container) = &self.container {
            if !exited(GIVEN_UP) {
                // Before anybody can see that the tasks are dead. The pager has said more, unless it was killed.
                let _ = self.note.end(&Paged::Failed { reason: format!("the pager has ended: {status:?}") });
                log(&format!(
                    "the pager has ended ({status:?}): the container lacks pages of its memory and is killed"
                ));
            }
            container.kill();
        }
        ExitCode::FAILURE
    }

    fn wait(&self, process: &OwnedFd) -> [bool; 3] {
        let create = io::stdin();
        let mut fds = vec![PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        fds.push(PollFd::new(self.hook.as_fd(), PollFlags::POLLIN));
        if self.container.is_none() {
            fds.push(PollFd::new(create.as_fd(), PollFlags::POLLIN));
        }
        // Interrupted, nothing is to be read.
        let _ = poll(&mut fds, PollTimeout::NONE);
        [0, 1, 2].map(|at| fds.get(at).and_then(PollFd::any) == Some(true))
    }

    /// Once the tasks may run the migration's directory may go.
    fn wait_until_open(&mut self, pager: &OwnedFd) -> io::Result<()> {
        let mut fds =
            [PollFd::new(self.open.as_fd(), PollFlags::POLLIN), PollFd::new(pager.as_fd(), PollFlags::POLLIN)];
        while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
        match fds[0].any() {
            Some(true) => self.open.read_exact(&mut [0]),
            _ => Err(io::Error::other("the pager has ended")),
        }
    }

    fn hear(&mut self, hook: UnixStream, pager: &OwnedFd) -> io::Result<()> {
        hook.set_read_timeout(Some(ANSWER))?;
        let mut answer = hook.try_clone()?;
        let Some(init_pid) = gate::held_pid(hook) else { return Ok(()) };
        self.wait_until_open(pager)?;
        self.container = Some(Grip::on(init_pid)?);
        self.held.say()?;
        answer.write_all(OK.as_bytes())
    }
}

/// For the host's log (syslog(3), LOG_CRIT): nobody else is there to hear it.
fn log(text: &str) {
    let line = format!("<2>spothop-oci[{}]: {text}", std::process::id());
    let _ = UnixDatagram::unbound().and_then(|socket| socket.send_to(line.as_bytes(), "/dev/log"));
}
