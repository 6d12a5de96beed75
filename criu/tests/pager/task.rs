//! What a restored task does: registers its memory, sends its userfaultfd as CRIU does, and then looks whether all is there.

#![expect(unsafe_code, reason = "a restored task is known by what it does with its memory")]

use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use linux_raw_sys::general::{
    UFFD_API, UFFD_FEATURE_EVENT_FORK, UFFD_FEATURE_EVENT_REMAP, UFFD_FEATURE_EVENT_REMOVE, UFFD_FEATURE_EVENT_UNMAP,
    UFFDIO_REGISTER_MODE_MISSING, uffdio_api, uffdio_range, uffdio_register,
};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_REGISTER};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use spothop_criu::memory::{PAGE, Vpid};

/// Says to this program what task it is: `<vpid> <pages> <scenario>`.
pub(crate) const ENVIRONMENT: &str = "SPOTHOP_TEST_TASK";

/// Where its memory begins. Nothing else is there in a process.
pub(crate) const BASE: u64 = 0x2000_0000_0000;

/// What a task says that has seen what it should not, a line.
pub(crate) const WRONG: &str = "wrong\n";

/// LAZY_PAGES_RESTORE_FINISHED of CRIU.
pub(crate) const END_MARK: u32 = 0x5253_5446;

/// Memory behind its pages that nobody has ever used.
pub(crate) const UNUSED: u64 = 100;

/// What a task does once it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Looks at all pages in an order that is no order.
    Touch,
    /// Has children all the time, and both look at everything.
    Fork,
    /// Moves half of its memory elsewhere, and back.
    Move,
    /// Gives up some of its pages in three ways.
    Drop,
    /// Several threads move, drop and look.
    Churn,
    /// Has a page before it is filled.
    Early,
}

impl Scenario {
    fn of(name: &str) -> Self {
        let all = [Self::Touch, Self::Fork, Self::Move, Self::Drop, Self::Churn, Self::Early];
        all.into_iter().find(|scenario| format!("{scenario:?}") == name).unwrap()
    }
}

/// Every seventh page is a hole in the store.
pub(crate) fn is_hole(page: u64) -> bool {
    page % 7 == 3
}

/// What page number `page` of a task contains.
pub(crate) fn content(vpid: Vpid, page: u64) -> [u8; PAGE as usize] {
    let mut bytes = [0; PAGE as usize];
    for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&word_at(vpid, page, at as u64).to_ne_bytes());
    }
    bytes
}

fn word_at(vpid: Vpid, page: u64, at: u64) -> u64 {
    let number = (u64::from(vpid.unsigned_abs()) << 48) | (page << 12) | at;
    (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31) | 1
}

/// A userfaultfd as CRIU makes it.
pub(crate) fn userfaultfd() -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers and returns a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    let fd = Errno::result(fd)?;
    // SAFETY: it is new and ours alone.
    let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) };
    let features =
        UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;
    let mut api = uffdio_api { api: UFFD_API.into(), features: features.into(), ioctls: 0 };
    // SAFETY: the kernel reads and writes `api`.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API.into(), &mut api) })?;
    Ok(fd)
}

/// Does what `order` says and ends the process.
pub(crate) fn run(order: &str) -> ! {
    let words: Vec<_> = order.split(' ').collect();
    let [vpid, pages, scenario] = words[..] else { panic!("{order}") };
    let (vpid, pages, scenario) = (vpid.parse().unwrap(), pages.parse().unwrap(), Scenario::of(scenario));
    let memory = Memory { vpid, pages };
    memory.map();
    if scenario == Scenario::Early {
        memory.write(5, 0);
    }
    announce(vpid, BASE, (pages + UNUSED) * PAGE);
    let mut control = Control::new();
    control.say("announced");
    control.wait();
    let midway = || {
        control.say("midway");
        control.wait();
    };
    match scenario {
        Scenario::Touch | Scenario::Early => touched(&memory, midway),
        Scenario::Fork => fork(&memory, midway),
        Scenario::Move => moved(&memory, midway),
        Scenario::Drop => dropped(&memory, midway),
        Scenario::Churn => churn(&memory),
    }
    std::process::exit(0)
}

/// Sends the userfaultfd, registers the memory, and keeps nothing: the order in which CRIU does it.
fn announce(vpid: Vpid, start: u64, len: u64) {
    let uffd = userfaultfd().unwrap();
    let criu = io::stdin().as_raw_fd();
    let send = |bytes: &[u8], rights: &[ControlMessage<'_>]| {
        sendmsg::<()>(criu, &[IoSlice::new(bytes)], rights, MsgFlags::empty(), None).unwrap();
    };
    send(&vpid.to_ne_bytes(), &[]);
    send(&[0], &[ControlMessage::ScmRights(&[uffd.as_raw_fd()])]);
    let range = uffdio_range { start, len };
    let mut order = uffdio_register { range, mode: UFFDIO_REGISTER_MODE_MISSING.into(), ioctls: 0 };
    // SAFETY: the kernel reads and writes `order`; the memory is ours and nobody uses it yet.
    Errno::result(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_REGISTER.into(), &mut order) }).unwrap();
    drop(uffd);
    let null = File::open("/dev/null").unwrap();
    nix::unistd::dup2_stdin(null).unwrap();
}

/// The connection with the test: our standard output, in both directions.
struct Control(BufReader<File>);

impl Control {
    fn new() -> Self {
        Self(BufReader::new(File::from(nix::unistd::dup(io::stdout()).unwrap())))
    }

    fn say(&mut self, word: &str) {
        self.0.get_mut().write_all(format!("\n{word}\n").as_bytes()).unwrap();
    }

    fn wait(&mut self) {
        self.0.read_line(&mut String::new()).unwrap();
    }
}

/// The task's memory.
#[derive(Clone, Copy)]
struct Memory {
    vpid: Vpid,
    pages: u64,
}

impl Memory {
    fn map(&self) {
        map(BASE, self.pages + UNUSED);
    }

    /// The first and the last word of what is `at` now, and in the whole page the number of wrong words.
    fn read(&self, at: u64, page: Option<u64>) -> Result<(), String> {
        for word in 0..PAGE / 8 {
            // SAFETY: every caller names a page of a mapping of ours.
            let found = unsafe { ptr::read_volatile(ptr::with_exposed_provenance::<u64>((at + word * 8) as usize)) };
            let expected = match page {
                Some(page) if page < self.pages && !is_hole(page) => word_at(self.vpid, page, word),
                _ => 0,
            };
            if found != expected {
                return Err(format!("{at:#x} word {word}: {found:#x} instead of {expected:#x} (page {page:?})"));
            }
        }
        Ok(())
    }

    fn assert(&self, at: u64, page: Option<u64>) {
        if let Err(wrong) = self.read(at, page) {
            complain();
            panic!("{wrong}");
        }
    }

    fn write(&self, page: u64, word: u64) {
        // SAFETY: a page of our mapping.
        unsafe { ptr::write_volatile(ptr::with_exposed_provenance_mut((BASE + page * PAGE) as usize), word) };
    }

    /// All pages, and those behind them, in an order that is no order.
    fn assert_all(&self) {
        for page in shuffled(self.pages + UNUSED) {
            self.assert(BASE + page * PAGE, Some(page));
        }
    }
}

/// Says [`WRONG`] to the test, whatever becomes of us.
fn complain() {
    // SAFETY: the bytes live throughout.
    unsafe { libc::write(1, WRONG.as_ptr().cast(), WRONG.len()) };
}

/// The numbers below `count` in an order that jumps about.
pub(crate) fn shuffled(count: u64) -> impl Iterator<Item = u64> {
    // Coprime to every count that has no such large prime factor.
    (0..count).map(move |number| (number * 1_000_003 + 17) % count)
}

fn map(at: u64, pages: u64) {
    let (at, len) = (ptr::with_exposed_provenance_mut(at as usize), (pages * PAGE) as usize);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
    // SAFETY: a new mapping where there is none.
    let mapped = unsafe { libc::mmap(at, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    assert_eq!(mapped, at, "{}", io::Error::last_os_error());
}

fn unmap(at: u64, pages: u64) {
    // SAFETY: a mapping that we do not use any more.
    let done = unsafe { libc::munmap(ptr::with_exposed_provenance_mut(at as usize), (pages * PAGE) as usize) };
    Errno::result(done).unwrap();
}

fn discard(at: u64, pages: u64) {
    let (start, len) = (ptr::with_exposed_provenance_mut(at as usize), (pages * PAGE) as usize);
    // SAFETY: a mapping whose contents we do not use any more.
    Errno::result(unsafe { libc::madvise(start, len, libc::MADV_DONTNEED) }).unwrap();
}

/// Moves a mapping to where there is none, or to where it replaces another.
fn remap(from: u64, to: u64, pages: u64) {
    let len = (pages * PAGE) as usize;
    let [old, new] = [from, to].map(|at| ptr::with_exposed_provenance_mut::<libc::c_void>(at as usize));
    // SAFETY: a mapping of ours, and nobody holds a pointer into either place.
    let at = unsafe { libc::mremap(old, len, len, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, new) };
    assert_eq!(at, new, "{}", io::Error::last_os_error());
}

fn touched(memory: &Memory, midway: impl FnOnce()) {
    for page in shuffled(memory.pages).take(100) {
        memory.assert(BASE + page * PAGE, Some(page));
    }
    midway();
    memory.assert_all();
}

fn fork(memory: &Memory, midway: impl FnOnce()) {
    let parts = 4;
    let mut children = Vec::new();
    // Closed when children may go on.
    let (halt, start) = io::pipe().unwrap();
    for part in 0..parts {
        for page in shuffled(memory.pages).skip(part * 50).take(50) {
            memory.assert(BASE + page * PAGE, Some(page));
        }
        // SAFETY: the child of this only reads memory and ends.
        match unsafe { libc::fork() } {
            0 => {
                // SAFETY: the child's own, and closed once.
                unsafe { libc::close(start.as_raw_fd()) };
                let mut pages = shuffled(memory.pages);
                let right = |page| memory.read(BASE + page * PAGE, Some(page)).is_ok();
                let half = pages.by_ref().take(memory.pages as usize / 2).all(right);
                let _ = (&halt).read(&mut [0]);
                let good = half && pages.all(right);
                if !good {
                    complain();
                }
                // SAFETY: ends the process.
                unsafe { libc::_exit(if good { 0 } else { 1 }) }
            }
            child => children.push(Errno::result(child).unwrap()),
        }
    }
    midway();
    drop(start);
    memory.assert_all();
    for child in children {
        let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None).unwrap();
        assert!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)), "{status:?}");
    }
}

fn moved(memory: &Memory, midway: impl FnOnce()) {
    let (half, elsewhere) = (memory.pages / 2, BASE + (1 << 40));
    remap(BASE + half * PAGE, elsewhere, half);
    memory.assert(elsewhere, Some(half));
    midway();
    for page in shuffled(half) {
        memory.assert(BASE + page * PAGE, Some(page));
        if page % 3 == 0 {
            memory.assert(elsewhere + page * PAGE, Some(half + page));
        }
    }
    remap(elsewhere, BASE + half * PAGE, half);
    memory.assert_all();
}

/// A third is dropped, a third unmapped, and a third shrinks and grows again; each half untouched and half filled before.
fn dropped(memory: &Memory, midway: impl FnOnce()) {
    let third = memory.pages / 3;
    let start = |part: u64| BASE + part * third * PAGE;
    for page in shuffled(third).take(100) {
        for part in 0..3 {
            memory.assert(start(part) + page * PAGE, Some(part * third + page));
        }
    }
    discard(start(0), third / 2);
    unmap(start(1), third);
    // The last part ends in memory that nobody has used.
    let rest = memory.pages + UNUSED - 2 * third;
    grow(start(2), rest, 10);
    grow(start(2), 10, rest);
    midway();
    for page in shuffled(third) {
        memory.assert(start(0) + page * PAGE, (page >= third / 2).then_some(page));
    }
    for page in shuffled(rest) {
        memory.assert(start(2) + page * PAGE, (page < 10).then_some(2 * third + page));
    }
    map(start(1), third);
    for page in shuffled(third) {
        memory.assert(start(1) + page * PAGE, None);
    }
}

/// Lets a mapping shrink or grow where it is.
fn grow(at: u64, pages: u64, new: u64) {
    let start = ptr::with_exposed_provenance_mut::<libc::c_void>(at as usize);
    // SAFETY: a mapping of ours; what is behind it is free.
    let done = unsafe { libc::mremap(start, (pages * PAGE) as usize, (new * PAGE) as usize, 0) };
    assert_eq!(done, start, "{}", io::Error::last_os_error());
}

/// One thread moves its part to and fro, one drops its part page by page, one forks, and one looks at the rest.
fn churn(memory: &Memory) {
    let quarter = memory.pages / 4;
    let start = |part: u64| BASE + part * quarter * PAGE;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let places = [start(0), BASE + (1 << 40), BASE + (2 << 40)];
            for round in 0..200 {
                remap(places[round % 3], places[(round + 1) % 3], quarter);
                let page = (round as u64 * 37) % quarter;
                memory.assert(places[(round + 1) % 3] + page * PAGE, Some(page));
            }
            for page in shuffled(quarter) {
                memory.assert(places[200 % 3] + page * PAGE, Some(page));
            }
        });
        scope.spawn(|| {
            for page in shuffled(quarter) {
                let at = start(1) + page * PAGE;
                if page % 2 == 0 {
                    memory.assert(at, Some(quarter + page));
                }
                discard(at, 1);
                memory.assert(at, None);
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // SAFETY: the child ends at once.
                let child = unsafe { libc::fork() };
                if child == 0 {
                    let good = memory.read(start(3), Some(3 * quarter)).is_ok();
                    // SAFETY: ends the process.
                    unsafe { libc::_exit(if good { 0 } else { 1 }) }
                }
                let child = nix::unistd::Pid::from_raw(Errno::result(child).unwrap());
                let status = nix::sys::wait::waitpid(child, None).unwrap();
                assert!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)), "{status:?}");
            }
        });
        for page in shuffled(2 * quarter) {
            memory.assert(start(2) + page * PAGE, Some(2 * quarter + page));
        }
        done.store(true, Ordering::Relaxed);
    });
}
