//! A process that does to its memory what a test asks for: this test binary, started once more for the one "test" below, and forked
//! there: what the harness runs a test on is not the main thread.
#![expect(unsafe_code, reason = "mapping, forking and blocking are what is tested")]

use std::ffi::c_int;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, io, ptr, thread};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::memory::PAGE;

/// Set for the child: `fork`, or `stay` in the thread of the harness.
const MARK: &str = "SPOTHOP_TEST_CHILD";
/// Begins the lines that are not the test harness's.
const ANSWER: char = '#';

/// The child, from the test's side. It ends with this.
pub(super) struct Child {
    harness: std::process::Child,
    pid: i32,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Child {
    pub(super) fn start() -> Self {
        let mut harness = Command::new(env::current_exe().unwrap())
            .args(["memory::tracking::tests::child::serve", "--exact", "--ignored", "--nocapture"])
            .env(MARK, "fork")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (harness.stdin.take().unwrap(), BufReader::new(harness.stdout.take().unwrap()));
        let mut child = Self { harness, pid: 0, stdin, stdout };
        child.pid = child.answer().parse().unwrap();
        child
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Has a command done and returns the answer.
    pub(super) fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.answer()
    }

    pub(super) fn tell(&mut self, line: &str) {
        // In one piece: it may be what a system call waits for.
        self.stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    pub(super) fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "the child has ended");
            if let Some(answer) = line.trim_end().strip_prefix(ANSWER) {
                return answer.to_owned();
            }
        }
    }

    /// New memory of the child, with `value` in each page.
    pub(super) fn map(&mut self, pages: u64, value: u64) -> u64 {
        let address = self.number(&format!("map 0 {pages}"));
        self.ask(&format!("fill {address} {pages} {value}"));
        address
    }

    pub(super) fn number(&mut self, command: &str) -> u64 {
        let answer = self.ask(command);
        answer.parse().unwrap_or_else(|_| panic!("'{command}' was answered with '{answer}'"))
    }

    pub(super) fn write(&mut self, address: u64, value: u64) {
        assert_eq!(self.ask(&format!("fill {address} 1 {value}")), "ok");
    }

    /// Sends it a real-time signal, of which none is merged with another.
    pub(super) fn signal(&self) {
        // SAFETY: the call takes two numbers.
        assert_eq!(unsafe { libc::kill(self.pid(), libc::SIGRTMIN()) }, 0);
    }

    /// Has the child call `call`, and returns when it sleeps in it. The answer comes when the call returns.
    pub(super) fn block(&mut self, call: &str, number: libc::c_long) {
        self.tell(&format!("block {call}"));
        // There is no event for a process that falls asleep.
        while !asleep_in(self.pid(), number) {
            thread::yield_now();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // The harness ends with it.
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        let _ = self.harness.wait();
    }
}

/// Does the main thread sleep in the system call `number` (proc_pid_syscall(5))?
fn asleep_in(pid: i32, number: libc::c_long) -> bool {
    let syscall = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
    syscall.split(' ').next().unwrap().parse() == Ok(number)
}

#[test]
#[ignore = "the child of other tests, which start it"]
fn serve() {
    let Ok(how) = env::var(MARK) else { return };
    if how == "fork" {
        // SAFETY: glibc makes its allocator usable in the child, and nothing else of the harness is used there.
        let child = unsafe { libc::fork() };
        if child != 0 {
            // It is reaped, so that nobody takes it for alive.
            let _ = waitpid(Pid::from_raw(child), None);
            std::process::exit(0);
        }
    }
    // SAFETY: the process dies with the thread that started it; the call takes numbers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    say(&std::process::id().to_string());
    while let Some(line) = read_line() {
        let mut words = line.split(' ');
        let name = words.next().unwrap();
        if name == "block" {
            say(&block(words.next().unwrap()));
            continue;
        }
        if name == "direct" {
            let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(words.next().unwrap());
            say(&file.map_or_else(|error| error.to_string(), |file| file.into_raw_fd().to_string()));
            continue;
        }
        let numbers: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
        say(&command(name, numbers.first().copied().unwrap_or(0), &numbers));
    }
}

fn command(name: &str, address: u64, numbers: &[u64]) -> String {
    let length = |index: usize| (numbers[index] * PAGE) as usize;
    let at = address as *mut libc::c_void;
    match name {
        "map" => map(at, length(1), libc::PROT_READ | libc::PROT_WRITE).to_string(),
        "fill" => {
            for page in 0..numbers[1] {
                // SAFETY: the test only names pages that it had mapped, and nothing else uses them.
                unsafe { ((address + page * PAGE) as *mut u64).write_volatile(numbers[2]) };
            }
            "ok".into()
        }
        // SAFETY: as above; a read.
        "read" => unsafe { (address as *const u64).read_volatile() }.to_string(),
        // SAFETY: as above; nothing refers to the pages afterwards.
        "unmap" => done(unsafe { libc::munmap(at, length(1)) }),
        // SAFETY: as above.
        "discard" => done(unsafe { libc::madvise(at, length(1), libc::MADV_DONTNEED) }),
        // SAFETY: as above.
        "huge" => done(unsafe { libc::madvise(at, length(1), libc::MADV_HUGEPAGE) }),
        // SAFETY: as above.
        "small" => done(unsafe { libc::madvise(at, length(1), libc::MADV_NOHUGEPAGE) }),
        // SAFETY: as above.
        "forbid" => done(unsafe { libc::mprotect(at, length(1), libc::PROT_NONE) }),
        // SAFETY: as above.
        "allow" => done(unsafe { libc::mprotect(at, length(1), libc::PROT_READ | libc::PROT_WRITE) }),
        "move" => {
            let new = map(ptr::null_mut(), length(1), libc::PROT_NONE) as *mut libc::c_void;
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            // SAFETY: as above; what is replaced was mapped a moment ago.
            let moved = unsafe { libc::mremap(at, length(1), length(1), flags, new) };
            (moved as u64).to_string()
        }
        "replace" => {
            let (flags, new) = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, numbers[2] as *mut libc::c_void);
            // SAFETY: as above; nothing uses what is replaced.
            (unsafe { libc::mremap(at, length(1), length(1), flags, new) } as u64).to_string()
        }
        // SAFETY: as above; in place, where the test has left room.
        "grow" => (unsafe { libc::mremap(at, length(1), length(2), 0) } as u64).to_string(),
        // The address is a number of steps here.
        "compute" => compute(address),
        "fork" => fork(address, numbers[1]),
        "share" => share().to_string(),
        "spin" => {
            for thread in 0..numbers[1] {
                let counter = address + thread * PAGE;
                thread::spawn(move || {
                    // SAFETY: the page is this thread's alone, and stays mapped as long as the process lives.
                    let counter = unsafe { AtomicU64::from_ptr(counter as *mut u64) };
                    loop {
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            "ok".into()
        }
        "churn" => {
            thread::spawn(|| {
                loop {
                    // As fast as they can be made.
                    let _ = thread::spawn(|| {}).join();
                }
            });
            "ok".into()
        }
        "forks" => {
            // The address is a number of children here.
            thread::spawn(move || {
                (0..address).for_each(|_| fork_idle());
                // They die with the thread.
                loop {
                    thread::park();
                }
            });
            "ok".into()
        }
        "exec" => {
            let error = Command::new(env::current_exe().unwrap()).args(env::args().skip(1)).env(MARK, "stay").exec();
            error.to_string()
        }
        "filter" => filter(),
        "count" => {
            // SAFETY: the handler is async-signal-safe.
            unsafe { libc::signal(libc::SIGRTMIN(), count as *const () as libc::sighandler_t) };
            "ok".into()
        }
        "counted" => SIGNALS.load(Ordering::SeqCst).to_string(),
        other => panic!("the test asks for '{other}'"),
    }
}

fn map(at: *mut libc::c_void, length: usize, protection: c_int) -> u64 {
    let fixed = if at.is_null() { 0 } else { libc::MAP_FIXED_NOREPLACE };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
    // SAFETY: replaces nothing that is mapped.
    let address = unsafe { libc::mmap(at, length, protection, flags, -1, 0) };
    assert_ne!(address, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    address as u64
}

/// What depends on every register keeping its value at every step, whole numbers and fractions.
pub(super) fn compute(steps: u64) -> String {
    let (mut whole, mut fraction) = (1_u64, 1.0_f64);
    for step in 0..steps {
        // Knuth's generator (MMIX), and a logistic map.
        whole = whole.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) ^ step;
        fraction = 3.9 * (fraction / 2.0) * (1.0 - fraction / 2.0);
    }
    format!("{whole} {fraction:e}")
}

/// A child that writes one page and then sleeps for ever.
fn fork(address: u64, value: u64) -> String {
    let (mut reader, writer) = io::pipe().unwrap();
    // SAFETY: the process has one thread, and the child makes system calls only.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: the child's copy of a page that the test had mapped.
            unsafe { (address as *mut u64).write_volatile(value) };
            drop(writer);
            sleep_for_ever()
        }
        child => {
            drop(writer);
            io::copy(&mut reader, &mut io::sink()).unwrap();
            child.to_string()
        }
    }
}

/// A child that shares the memory, as of vfork(2), and sleeps until it is killed. Says `gone` then, unasked.
fn share() -> i32 {
    extern "C" fn sleep(_: *mut libc::c_void) -> c_int {
        sleep_for_ever()
    }
    let caller = thread::spawn(|| {
        let mut stack = vec![0_u128; 1 << 12];
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: the child makes system calls only, on a stack of its own, which lives until this returns: when the child is gone.
        let child = unsafe { libc::clone(sleep, stack.as_mut_ptr_range().end.cast(), flags, ptr::null_mut()) };
        assert!(child > 0, "{}", io::Error::last_os_error());
        say("gone");
    });
    loop {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        let of = |task: io::Result<fs::DirEntry>| fs::read_to_string(task.unwrap().path().join("children"));
        let children: String = tasks.map(|task| of(task).unwrap_or_default()).collect();
        if let Ok(child) = children.trim().parse() {
            drop(caller);
            return child;
        }
        thread::yield_now();
    }
}

/// A child that sleeps for ever.
fn fork_idle() {
    // SAFETY: the child makes system calls only.
    if unsafe { libc::fork() } == 0 {
        sleep_for_ever();
    }
}

/// Until the parent dies.
fn sleep_for_ever() -> ! {
    // SAFETY: calls that take numbers.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        loop {
            libc::pause();
        }
    }
}

/// Forbids userfaultfd(2) as engines do, and kills for it.
fn filter() -> String {
    let rule =
        |code: u32, jump_true, jump_false, k| libc::sock_filter { code: code as u16, jt: jump_true, jf: jump_false, k };
    let mut rules = [
        rule(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        rule(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_userfaultfd as u32),
        rule(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        rule(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: rules.len() as u16, filter: rules.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which lives for the call.
    done(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) })
}

static SIGNALS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: c_int) {
    SIGNALS.fetch_add(1, Ordering::SeqCst);
}

/// Sleeps in a system call and says what it returned; `early` for one that returned before its time.
fn block(call: &str) -> String {
    const TIME: Duration = Duration::from_secs(1);
    let time = libc::timespec { tv_sec: TIME.as_secs() as i64, tv_nsec: 0 };
    let started = Instant::now();
    let mut bytes = [0_u8; 5];
    // SAFETY: each call gets pointers to what lives here, with its true length, or none; the handler is async-signal-safe.
    let returned = unsafe {
        match call {
            // Not read(2), in which it waits for commands.
            "readv" => {
                let part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
                libc::readv(0, &raw const part, 1) as c_int
            }
            "nanosleep" => {
                libc::syscall(libc::SYS_nanosleep, &raw const time, ptr::null_mut::<libc::timespec>()) as c_int
            }
            "poll" => libc::poll(ptr::null_mut(), 0, TIME.as_millis() as c_int),
            "futex" => {
                let word = AtomicU32::new(1);
                libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, 1, &raw const time) as c_int
            }
            "suspend" => {
                libc::signal(libc::SIGUSR1, count as *const () as libc::sighandler_t);
                let mut all = std::mem::zeroed();
                libc::sigfillset(&raw mut all);
                let mut old = std::mem::zeroed();
                libc::sigprocmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
                let suspended = libc::sigsuspend(&raw const old);
                let error = *libc::__errno_location();
                // It is blocked again now, as before the call.
                libc::raise(libc::SIGUSR1);
                let early = SIGNALS.load(Ordering::SeqCst) != 1;
                libc::sigprocmask(libc::SIG_SETMASK, &raw const old, ptr::null_mut());
                assert!(!early, "the signal mask was lost");
                *libc::__errno_location() = error;
                suspended
            }
            other => panic!("the test asks for '{other}'"),
        }
    };
    let error = io::Error::last_os_error().raw_os_error().unwrap();
    let early = started.elapsed() < TIME && !matches!(call, "readv" | "suspend");
    let text = String::from_utf8_lossy(&bytes);
    let signals = SIGNALS.load(Ordering::SeqCst);
    match (early, returned) {
        (true, _) => format!("early {returned} {error}"),
        (false, -1) => format!("error {error} signals {signals}"),
        (false, _) => format!("{returned} {}", text.trim_matches(['\0', '\n'])),
    }
}

fn done(returned: c_int) -> String {
    if returned == 0 { "ok".into() } else { io::Error::last_os_error().to_string() }
}

/// Past the harness's own use of standard output.
fn say(answer: &str) {
    // SAFETY: it is not closed here: `into_raw_fd` gives it back.
    let mut stdout = unsafe { File::from_raw_fd(1) };
    stdout.write_all(format!("\n{ANSWER}{answer}\n").as_bytes()).unwrap();
    let _ = stdout.into_raw_fd();
}

/// Byte by byte: what follows the line may be for a system call.
fn read_line() -> Option<String> {
    let mut line = Vec::new();
    loop {
        let mut byte = 0_u8;
        // SAFETY: one byte is read into one byte.
        match unsafe { libc::read(0, (&raw mut byte).cast(), 1) } {
            1 if byte == b'\n' => return Some(String::from_utf8(line).unwrap()),
            1 => line.push(byte),
            _ => return None,
        }
    }
}
