//! The pager: fills the memory of tasks that CRIU restores lazily, while they run already.
//!
//! ```text
//! CRIU ── lazy-pages.socket ──► pager     per task: its id, its userfaultfd
//! CRIU: all tasks are made, post-restore hook ──► "held": the pager begins to fill
//! CRIU ── end mark ──► pager              the tasks are about to run
//! task touches a page ── fault ──► pager ── the page and its neighbours ──► task
//!                                  pager ── everything else, piece by piece ──► tasks
//! all in: the userfaultfds are closed, and the kernel forgets that there was a pager
//! ```
//! What a task lacks are its lazy pages as far as the store has bytes for them. Its holes, and what was never dumped, are pages of zeros:
//! whoever faults on one gets it from us, and from the kernel once we are gone.
//!
//! Some pages may be owed: they are still at the source when the tasks run, and the daemon brings them into the store ([`ask`]), those
//! first that a thread waits for. Until then they are neither bytes nor zeros.
//!
//! # Invariants
//! - A page is put in at most once, and never after the task has dropped, unmapped or moved it: nothing is put in while the kernel
//!   has an event that was not read, because it refuses that.
//! - A userfaultfd is closed only when its task lacks nothing. If this process dies before, whoever still has the
//!   userfaultfds open must end the tasks before it closes them, or they would read zeros (see `oci::pager`).
//! - Before the tasks run nothing may stand in the way of a page. If something does (the page is there, or its mapping is not
//!   registered), the images are not as they should be, and the restore fails.

mod clerk;
mod error;
mod ledger;
mod progress;
mod protocol;
mod remaining;
mod shard;
mod source;
mod task;
mod uffd;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, ScopedJoinHandle, available_parallelism};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use self::clerk::Clerk;
pub use self::clerk::{Lacking, Piece, ask, lose};
pub use self::error::PagerError;
use self::ledger::Ledger;
use self::progress::{Progress, Stage};
use self::protocol::Message;
use self::shard::Shard;
use self::source::Source;
use self::task::Task;
use self::uffd::Uffd;
use super::images::{self, Entry, MOST_RUNS, PE_LAZY, Pagemap};
use super::{ADDRESSES, ImageError, PAGE, Pages, Store, Vpid, bytes};
use crate::failpoint;

/// The name of CRIU's socket in its work directory (criu/uffd.c, LAZY_PAGES_SOCK_NAME).
pub const SOCKET: &str = "lazy-pages.socket";

/// More threads than this fill no faster: memory is the limit.
const MOST_THREADS: usize = 8;

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Processes that CRIU restored with memory.
    pub tasks: u64,
    /// Children that they had meanwhile.
    pub forks: u64,
    /// Page faults that waited for us, on pages of zeros too.
    pub faults: u64,
    /// Pages put in, those of children counted again.
    pub pages: u64,
    /// Those of them that nobody had asked for.
    pub background_pages: u64,
    /// Pages that the tasks made inaccessible before they were in.
    pub gone_pages: u64,
    /// From CRIU's first word until all was in.
    pub time: Duration,
    /// From the end mark, with which the tasks run, until all was in.
    pub time_running: Duration,
}

impl Counters {
    fn add(&mut self, other: &Self) {
        self.tasks += other.tasks;
        self.forks += other.forks;
        self.faults += other.faults;
        self.pages += other.pages;
        self.background_pages += other.background_pages;
        self.gone_pages += other.gone_pages;
    }
}

/// How a pager ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All tasks have all their pages, or have ended.
    Whole(Counters),
    /// CRIU ended before it said that the tasks shall run. They never will.
    GivenUp,
}

/// All tasks that may come, with their pages: open files, nothing else is needed of the migration's directory.
#[derive(Debug)]
pub struct Memory {
    tasks: BTreeMap<Vpid, Lack>,
    /// Where the daemon asks for what is owed.
    daemon: Option<UnixListener>,
}

/// What a task lacks.
#[derive(Debug)]
struct Lack {
    source: Arc<Source>,
    /// Pages that are in the store.
    pages: Pages,
    /// Those that will be.
    owed: Pages,
}

impl Memory {
    /// The tasks of `lazy` with the pages that CRIU leaves to us, out of `store`. Every task that CRIU restores must be named, also one
    /// without such pages.
    ///
    /// # Errors
    /// [`PagerError::Open`], or [`PagerError::Pages`] for what is no page.
    pub fn open(store: &Store, lazy: BTreeMap<Vpid, Pages>) -> Result<Self, PagerError> {
        // Without any there were no pages but zeros.
        fs::metadata(store.directory()).map_err(PagerError::Open)?;
        let none = BTreeMap::new();
        let tasks = lazy.into_iter().map(|(vpid, pages)| Ok((vpid, Lack::open(store, vpid, pages, &none)?)));
        Ok(Self { tasks: tasks.collect::<Result<_, _>>()?, daemon: None })
    }

    /// The same, but the pages of `owed` come when the tasks run: whoever connects to `daemon` ([`ask`]) brings them.
    ///
    /// # Errors
    /// As [`Memory::open`]; [`PagerError::Owed`] for what is not in `lazy`.
    pub fn owing(
        store: &Store,
        lazy: BTreeMap<Vpid, Pages>,
        owed: &BTreeMap<Vpid, Pages>,
        daemon: UnixListener,
    ) -> Result<Self, PagerError> {
        fs::metadata(store.directory()).map_err(PagerError::Open)?;
        if let Some((&vpid, pages)) = owed.iter().find(|(vpid, _)| !lazy.contains_key(vpid)) {
            return Err(PagerError::Owed { vpid, address: pages.first().map_or(0, |range| range.start) });
        }
        let tasks = lazy.into_iter().map(|(vpid, pages)| Ok((vpid, Lack::open(store, vpid, pages, owed)?)));
        Ok(Self { tasks: tasks.collect::<Result<_, _>>()?, daemon: Some(daemon) })
    }

    fn ledger(&self) -> Ledger {
        let owed = self.tasks.iter().filter(|(_, lack)| !lack.owed.is_empty());
        Ledger::new(owed.map(|(vpid, lack)| (*vpid, lack.owed.clone())).collect())
    }
}

impl Lack {
    fn open(store: &Store, vpid: Vpid, mut pages: Pages, owed: &BTreeMap<Vpid, Pages>) -> Result<Self, PagerError> {
        let is_page = |address: &u64| address.is_multiple_of(PAGE) && *address <= ADDRESSES;
        if let Some(range) = pages.iter().find(|range| ![range.start, range.end].iter().all(is_page)) {
            return Err(PagerError::Pages { vpid, range: range.clone() });
        }
        let owed = owed.get(&vpid).cloned().unwrap_or_default();
        for range in owed.iter() {
            if let Some(gap) = pages.gaps(range).next() {
                return Err(PagerError::Owed { vpid, address: gap.start });
            }
        }
        owed.iter().for_each(|range| pages.remove(range.clone()));
        let source = Source::open(store, vpid, &owed).map_err(PagerError::Open)?;
        let pages = source.filled(&pages).map_err(PagerError::Open)?;
        Ok(Self { source: Arc::new(source), pages, owed })
    }
}

/// The pages that CRIU leaves to a pager at the restore of `images`: those of [`super::Composed::lazy`], as they were written.
///
/// # Errors
/// The images are not as [`super::compose`] leaves them.
pub fn lazy(images: &Path) -> Result<BTreeMap<Vpid, Pages>, ImageError> {
    let mut lazy = BTreeMap::new();
    // Composing divides runs where a stack begins and ends.
    let mut most_runs = 2 * MOST_RUNS;
    for vpid in images::tasks_with_pages(images)? {
        let Some(pagemap) = Pagemap::read_any(images, vpid, most_runs)? else { continue };
        most_runs -= pagemap.entries.len();
        let mut pages = Pages::new();
        for Entry { range, flags } in pagemap.entries.into_iter().filter(|entry| entry.flags & PE_LAZY != 0) {
            // What is in the images as well, CRIU would leave to us, and we have it not.
            if flags != PE_LAZY {
                let path = images::pagemap_path(images, vpid);
                return Err(ImageError::Flags { path, address: range.start, flags });
            }
            pages.insert(range);
        }
        lazy.insert(vpid, pages);
    }
    Ok(lazy)
}

/// The word that all mappings are registered and the tasks are stopped: CRIU's post-restore hook was called.
#[derive(Debug)]
pub struct Held(PipeWriter);

impl Held {
    /// The word, and where [`serve`] hears it.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> io::Result<(Self, PipeReader)> {
        io::pipe().map(|(reader, writer)| (Self(writer), reader))
    }

    /// Says it: the pager begins to fill. Without it, it begins when the tasks run.
    ///
    /// # Errors
    /// When the pager has ended.
    pub fn say(&mut self) -> io::Result<()> {
        self.0.write_all(&[1])
    }
}

/// Serves the tasks that CRIU announces on `criu`, until all of them have what `memory` has for them.
///
/// # Errors
/// Any. The userfaultfds of tasks that lack pages stay open for as long as this process lives, and theirs is to be ended before it ends.
pub fn serve(criu: &UnixStream, held: PipeReader, mut memory: Memory) -> Result<Ending, PagerError> {
    protocol::prepare(criu).map_err(PagerError::Connection)?;
    let threads = available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let (progress, bells) = Progress::new(criu, threads, memory.ledger()).map_err(PagerError::System)?;
    let (alarm, trouble) = io::pipe().map_err(PagerError::System)?;
    let (closing, open) = io::pipe().map_err(PagerError::System)?;
    let clerk = memory.daemon.take().map(|daemon| Clerk { daemon, progress: &progress, closing });
    let start = Instant::now();
    thread::scope(|scope| {
        let mut desk =
            Desk { criu, held: Some(held), alarm, progress: &progress, memory, shares: Vec::new(), tasks: 0 };
        let mut workers = Vec::new();
        let heard = bells.into_iter().try_for_each(|bell| {
            let (sender, arriving) = channel();
            let shard = Shard::new(&progress, bell, arriving);
            let alarm = Alarm { progress: &progress, desk: &trouble };
            let name = thread::Builder::new().name("pager".into());
            workers.push(name.spawn_scoped(scope, move || work(shard, alarm)).map_err(PagerError::System)?);
            desk.shares.push(Share { sender, bytes: 0 });
            Ok(())
        });
        let heard = heard.and_then(|()| desk.hear());
        let running = Instant::now();
        let mut counters = Counters { tasks: desk.tasks, ..Counters::default() };
        // No more will come, which who waits for more has to be told.
        drop(desk);
        let mut clerks = None;
        if matches!(heard, Ok(Heard::Finished)) {
            // The tasks are with their threads by now, and what comes for them finds them there.
            let alarm = || Alarm { progress: &progress, desk: &trouble };
            clerks = clerk
                .map(|clerk| (clerk, alarm()))
                .map(|(clerk, alarm)| scope.spawn(move || clerk.serve().inspect(|()| std::mem::forget(alarm))));
            progress.ring_all()
        } else {
            progress.stop()
        }
        let done: Vec<_> = workers.into_iter().map(ScopedJoinHandle::join).collect();
        drop(open);
        if let Some(clerk) = clerks {
            clerk.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        }
        for done in done {
            counters.add(&done.unwrap_or_else(|panic| resume_unwind(panic))?);
        }
        (counters.time, counters.time_running) = (start.elapsed(), running.elapsed());
        match heard? {
            Heard::Finished => Ok(Ending::Whole(counters)),
            Heard::Closed | Heard::Alarm => Ok(Ending::GivenUp),
        }
    })
}

/// A thread's work. If it fails, everybody stops.
fn work(shard: Shard<'_, '_>, alarm: Alarm<'_, '_>) -> Result<Counters, PagerError> {
    let done = shard.run();
    if done.is_ok() {
        std::mem::forget(alarm);
    }
    done
}

/// Stops everybody when it is dropped.
struct Alarm<'p, 'c> {
    progress: &'p Progress<'c>,
    desk: &'p PipeWriter,
}

impl Drop for Alarm<'_, '_> {
    fn drop(&mut self) {
        self.progress.stop();
        // The other end is open for as long as anybody listens there.
        let _ = self.desk.write(&[1]);
    }
}

/// Where new tasks of a thread go.
struct Share {
    sender: Sender<Task>,
    /// What was given to it.
    bytes: u64,
}

/// What ended the hearing.
enum Heard {
    /// The tasks run.
    Finished,
    /// CRIU is gone.
    Closed,
    /// A thread has failed, and says why itself.
    Alarm,
}

/// Hears CRIU and the hook, and gives each task to a thread.
struct Desk<'p, 'c> {
    criu: &'c UnixStream,
    held: Option<PipeReader>,
    alarm: PipeReader,
    progress: &'p Progress<'c>,
    memory: Memory,
    shares: Vec<Share>,
    tasks: u64,
}

fn reach(point: &str) -> Result<(), PagerError> {
    failpoint::reach(point).map_err(|injected| PagerError::System(io::Error::other(injected)))
}

impl Desk<'_, '_> {
    fn hear(&mut self) -> Result<Heard, PagerError> {
        loop {
            let [criu, alarm, held] = self.wait()?;
            if alarm {
                return Ok(Heard::Alarm);
            }
            if held && let Some(mut word) = self.held.take() {
                // If it ends without a word there will be none.
                if word.read(&mut [0]).map_err(PagerError::System)? == 1 {
                    reach("target:pager:held")?;
                    self.progress.reach(Stage::Held);
                }
            }
            if criu {
                match protocol::next(self.criu, || self.progress.reach(Stage::Running))? {
                    Message::Task(vpid, uffd) => self.take(vpid, uffd)?,
                    Message::Zombie => {}
                    Message::Finished => {
                        reach("target:pager:running")?;
                        return Ok(Heard::Finished);
                    }
                    Message::Closed => return Ok(Heard::Closed),
                }
            }
        }
    }

    fn wait(&self) -> Result<[bool; 3], PagerError> {
        let mut fds = vec![PollFd::new(self.criu.as_fd(), PollFlags::POLLIN)];
        fds.push(PollFd::new(self.alarm.as_fd(), PollFlags::POLLIN));
        fds.extend(self.held.iter().map(|held| PollFd::new(held.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(PagerError::System(errno.into())),
        }
        Ok([0, 1, 2].map(|at| fds.get(at).and_then(PollFd::any) == Some(true)))
    }

    /// Gives a task to the thread that has been given least.
    fn take(&mut self, vpid: Vpid, uffd: Uffd) -> Result<(), PagerError> {
        let Lack { source, pages, owed } = self.memory.tasks.remove(&vpid).ok_or(PagerError::Unexpected { vpid })?;
        let least = (0..self.shares.len()).min_by_key(|&at| self.shares[at].bytes).unwrap_or_default();
        let share = &mut self.shares[least];
        share.bytes += bytes(&pages) + bytes(&owed);
        self.tasks += 1;
        // A thread that has ended has rung the alarm.
        let _ = share.sender.send(Task::new(vpid, uffd, source, &pages, &owed));
        self.progress.ring(least);
        Ok(())
    }
}
