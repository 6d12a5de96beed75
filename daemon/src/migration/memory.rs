//! Memory on its way out of this host: what the target has of it, what was written since, and what is still to be sent.
//!
//! ```text
//! look ─► to be sent ─► Batch ─► sent ──┐    while the tasks run, again and again; at last once they are frozen
//!          ▲             │ unread       │
//!          └── written since ◄──────────┘
//! owe: what CRIU left out of its dump and the target does not have
//! ```

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::vec::IntoIter;

use nix::time::{ClockId, clock_gettime};
use spothop_criu::memory::pager::Piece;
use spothop_criu::memory::tracking::{Method, Tracker};
use spothop_criu::memory::{self, PIECE, Pages, Process, Vpid};
use spothop_transfer::{Extent, ExtentSource};
use tracing::{info, warn};

use super::Error;
use super::error::chain;
use super::packing::{self, CLEARED, PACKED};

/// From this length on a range of pages goes alone, in bytes; shorter ones are packed together.
const ALONE: u64 = 64 << 10;

/// The memory of one container.
#[derive(Debug)]
pub(super) struct Memory {
    init_pid: i32,
    /// How written pages are found; none where memory is only read once it is frozen.
    method: Option<Method>,
    tasks: BTreeMap<Vpid, Task>,
    /// What the target has and nobody needs any more.
    to_clear: Vec<(Vpid, Pages)>,
    looked: bool,
}

/// The memory of one of its processes.
#[derive(Debug)]
struct Task {
    pid: i32,
    tracker: Option<Arc<RwLock<Tracker>>>,
    /// What the target has, and what was not written since.
    sent: Pages,
    /// What is to be sent next.
    to_send: Pages,
}

/// Whether a process of the container waits for memory that this host has for it.
pub(super) fn is_being_filled(init_pid: i32) -> Result<bool, Error> {
    for Process { pid, .. } in memory::processes(init_pid)? {
        // One that has just ended lacks nothing.
        if memory::is_being_filled(pid).unwrap_or(false) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Pages of a container that is frozen for good, or why they are not to be had any more: processes of it have died.
pub(super) fn of_frozen(init_pid: i32, pages: &[Piece]) -> Result<Result<Arc<Batch>, String>, Error> {
    let mut memory = Memory::new(init_pid, None);
    memory.meet(&memory::processes(init_pid)?);
    for &(vpid, start, end) in pages {
        match memory.tasks.get_mut(&vpid) {
            Some(task) => task.to_send.insert(start..end),
            None => return Ok(Err(format!("process {vpid} of it has died at the source"))),
        }
    }
    Ok(Ok(memory.batch(Stage::Dumped, None)))
}

impl Memory {
    /// That of the container whose first process is `init_pid`. Nothing is looked at yet.
    pub(super) fn new(init_pid: i32, method: Option<Method>) -> Self {
        Self { init_pid, method, tasks: BTreeMap::new(), to_clear: Vec::new(), looked: false }
    }

    /// Finds what was written since the last look. Processes that are there at the first one are followed: a later one is as often as
    /// not a child that shares its parent's memory and is gone soon, and what is left of it goes over under the freeze.
    pub(super) fn look(&mut self) -> Result<(), Error> {
        let Some(method) = self.method else { return Ok(()) };
        let new = self.meet(&memory::processes(self.init_pid)?);
        if !std::mem::replace(&mut self.looked, true) {
            for (_, task) in self.tasks.iter_mut().filter(|(vpid, _)| new.contains(vpid)) {
                task.follow(method);
            }
        }
        for (vpid, task) in &mut self.tasks {
            task.look();
            self.to_clear.extend(task.gone().map(|gone| (*vpid, gone)));
        }
        Ok(())
    }

    /// The last look, at tasks that are frozen: whoever is new by now is not followed any more.
    pub(super) fn look_at_frozen(&mut self) -> Result<(), Error> {
        self.meet(&memory::processes(self.init_pid)?);
        self.tasks.values_mut().for_each(Task::look);
        Ok(())
    }

    /// The processes that there are; returns the new ones.
    fn meet(&mut self, processes: &[Process]) -> Vec<Vpid> {
        let is_there = |vpid: &Vpid, task: &mut Task| processes.iter().any(|p| p.vpid == *vpid && p.pid == task.pid);
        for (vpid, ended) in self.tasks.extract_if(.., |vpid, task| !is_there(vpid, task)) {
            // Another process may bear its name by now; then what is left of the old one does no harm.
            if !ended.sent.is_empty() && !processes.iter().any(|process| process.vpid == vpid) {
                self.to_clear.push((vpid, ended.sent));
            }
        }
        let known = |process: &&Process| !self.tasks.contains_key(&process.vpid);
        let new: Vec<_> = processes.iter().filter(known).copied().collect();
        for &Process { pid, vpid } in &new {
            self.tasks.insert(vpid, Task { pid, tracker: None, sent: Pages::new(), to_send: Pages::new() });
        }
        new.into_iter().map(|process| process.vpid).collect()
    }

    /// Of the pages that CRIU's dump does not have, those that the target does not have either are to be sent.
    pub(super) fn owe(&mut self, holes: BTreeMap<Vpid, Pages>) -> Result<(), Error> {
        for (vpid, mut pages) in holes {
            let task = self.tasks.get_mut(&vpid).ok_or(Error::StrangeTask { vpid })?;
            for sent in task.sent.iter() {
                pages.remove(sent.clone());
            }
            task.to_send = pages;
        }
        Ok(())
    }

    /// Takes what of it may be sent later, and is named in `allowed`, from what is to be sent: at most `ranges` ranges.
    pub(super) fn put_off(&mut self, mut allowed: BTreeMap<Vpid, Pages>, mut ranges: usize) -> BTreeMap<Vpid, Pages> {
        let mut later = BTreeMap::new();
        for (vpid, task) in &mut self.tasks {
            let Some(allowed) = allowed.remove(vpid) else { continue };
            let common: Pages = task.to_send.intersection(&allowed).take(ranges).collect();
            ranges -= common.iter().count();
            common.iter().for_each(|range| task.to_send.remove(range.clone()));
            later.insert(*vpid, common);
        }
        later
    }

    /// How much is to be sent, in bytes.
    pub(super) fn to_send(&self) -> u64 {
        self.tasks.values().map(|task| memory::bytes(&task.to_send)).sum()
    }

    /// Takes all that is to be sent.
    pub(super) fn batch(&mut self, stage: Stage, pace: Option<Pace>) -> Arc<Batch> {
        let (mut pieces, mut packs, mut readers) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (&vpid, task) in &mut self.tasks {
            let pages = std::mem::take(&mut task.to_send);
            let (few, many): (Vec<_>, Vec<_>) =
                memory::pieces(&pages).partition(|range| range.end - range.start < ALONE);
            pieces.extend(many.into_iter().map(|range| (vpid, range)));
            packs.extend(packing::divide(few).into_iter().map(|ranges| (vpid, ranges)));
            if !pages.is_empty() {
                let memory = memory::Reader::open(task.pid);
                readers.insert(vpid, Reader { memory, tracker: task.tracker.clone() });
            }
            task.sent.extend(pages);
        }
        for (vpid, mut pages) in self.to_clear.drain(..) {
            // Pages may have been written again since they were gone, perhaps by another process of that name: pieces come in any order.
            if let Some(task) = self.tasks.get(&vpid) {
                task.sent.iter().for_each(|range| pages.remove(range.clone()));
            }
            // Under the freeze it is not worth the time.
            if stage == Stage::Running {
                pieces.extend(memory::pieces(&pages).map(|range| (vpid | CLEARED.cast_signed(), range)));
            }
        }
        let packed = packs.iter().map(|(_, ranges)| packing::length(ranges) as u64).sum::<u64>();
        let bytes = packed + pieces.iter().map(|(_, range)| range.end - range.start).sum::<u64>();
        let todo = Mutex::new((pieces.into_iter(), 0..packs.len()));
        Arc::new(Batch { bytes, todo, packs, readers, stage, pace, unread: Mutex::default() })
    }

    /// The target has the batch.
    pub(super) fn sent(&mut self, batch: &Batch) {
        let mut unread = batch.unread.lock().unwrap_or_else(PoisonError::into_inner);
        for (vpid, range) in unread.drain(..) {
            if let Some(task) = self.tasks.get_mut(&vpid) {
                task.sent.remove(range);
            }
        }
    }
}

impl Task {
    /// Follows it in this way, or in the one that always does; if not even that, what it has goes over under the freeze.
    fn follow(&mut self, method: Method) {
        let pid = self.pid;
        let attached = Tracker::attach(pid, method).or_else(|failure| {
            info!(pid, %method, error = chain(&failure), "the memory of a process is followed by its content");
            Tracker::attach(pid, Method::Content)
        });
        match attached {
            Ok(tracker) => self.tracker = Some(Arc::new(RwLock::new(tracker))),
            Err(failure) => warn!(pid, error = chain(&failure), "the memory of a process cannot be followed"),
        }
    }

    /// What was sent of it and holds no data any more.
    fn gone(&mut self) -> Option<Pages> {
        if self.sent.is_empty() {
            return None;
        }
        // A process that has just ended is not there at the next look.
        let populated =
            memory::private_anonymous(self.pid).and_then(|areas| memory::populated(self.pid, &areas)).ok()?;
        let mut gone = self.sent.clone();
        populated.iter().for_each(|range| gone.remove(range.clone()));
        gone.iter().for_each(|range| self.sent.remove(range.clone()));
        (!gone.is_empty()).then_some(gone)
    }

    fn look(&mut self) {
        let Some(tracker) = &self.tracker else { return };
        let looked = {
            let mut tracker = tracker.write().unwrap_or_else(PoisonError::into_inner);
            tracker.changed().map_err(|failure| (tracker.method(), failure))
        };
        match looked {
            Ok(changed) => {
                for range in changed.iter() {
                    self.sent.remove(range.clone());
                }
                self.to_send.extend(changed);
            }
            Err((method, failure)) => {
                warn!(pid = self.pid, %method, error = chain(&failure), "the memory of a process cannot be followed like that any more");
                // As if nothing of it had been sent.
                self.tracker = None;
                self.sent.clear();
                self.to_send.clear();
                if method != Method::Content {
                    self.follow(Method::Content);
                    self.look();
                }
            }
        }
    }
}

/// How far the migration is when a batch is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The tasks run. What is gone when it is read is left out.
    Running,
    /// They are frozen. What was found while they ran may be gone, and is left out: the dump will say so too.
    Frozen,
    /// The dump says what there is: all of it must be there.
    Dumped,
}

/// Pages that are being sent.
#[derive(Debug)]
pub(super) struct Batch {
    /// How much it is.
    pub(super) bytes: u64,
    todo: Mutex<Todo>,
    packs: Vec<(Vpid, Vec<Range<u64>>)>,
    readers: BTreeMap<Vpid, Reader>,
    pub(super) stage: Stage,
    pace: Option<Pace>,
    /// What was gone when it was to be read.
    unread: Mutex<Vec<(Vpid, Range<u64>)>>,
}

/// Pieces that go alone, and the numbers of the packs.
type Todo = (IntoIter<(Vpid, Range<u64>)>, Range<usize>);

#[derive(Debug)]
struct Reader {
    /// Of a task that was there when the batch was made.
    memory: io::Result<memory::Reader>,
    tracker: Option<Arc<RwLock<Tracker>>>,
}

impl Batch {
    /// Reads a range; returns how much of it is there.
    fn read_range(&self, vpid: Vpid, range: &Range<u64>, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(Reader { memory, tracker }) = self.readers.get(&vpid) else { return Ok(0) };
        let read = match (memory, self.stage) {
            (Ok(memory), Stage::Dumped) => memory.read_exact(range.start, buffer).map(|()| buffer.len())?,
            (Err(error), Stage::Dumped) => return Err(io::Error::new(error.kind(), error.to_string())),
            // A process that has ended is none at the next look.
            (Ok(memory), _) => memory.read(range.start, buffer).unwrap_or(0),
            (Err(_), _) => 0,
        };
        if let Some(tracker) = tracker {
            tracker.read().unwrap_or_else(PoisonError::into_inner).sent(range.start, &buffer[..read]);
        }
        if read < buffer.len() {
            let gone = range.start + read as u64..range.end;
            self.unread.lock().unwrap_or_else(PoisonError::into_inner).push((vpid, gone));
        }
        Ok(read)
    }
}

impl ExtentSource for Batch {
    fn next(&self) -> Option<Extent> {
        let (pieces, packs) = &mut *self.todo.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((vpid, range)) = pieces.next() {
            // Process ids are positive, and a piece is at most 1 MiB.
            let length = (range.end - range.start) as u32;
            return Some(Extent { object: vpid.cast_unsigned(), offset: range.start, length });
        }
        let number = packs.next()?;
        let (vpid, ranges) = &self.packs[number];
        let (object, offset) = (vpid.cast_unsigned() | PACKED, number as u64 * PIECE);
        Some(Extent { object, offset, length: packing::length(ranges) as u32 })
    }

    fn read(&self, extent: Extent, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(pace) = &self.pace {
            pace.keep();
        }
        if extent.object & CLEARED != 0 {
            buffer.fill(0);
            return Ok(buffer.len());
        }
        if extent.object & PACKED == 0 {
            let range = extent.offset..extent.offset + buffer.len() as u64;
            return self.read_range(extent.object.cast_signed(), &range, buffer);
        }
        let (vpid, ranges) = &self.packs[(extent.offset / PIECE) as usize];
        packing::pack(ranges, buffer, |range, bytes| self.read_range(*vpid, range, bytes))
    }
}

/// Keeps this process to a number of processor cores, by waiting.
#[derive(Debug)]
pub(super) struct Pace {
    cores: f64,
    began: Instant,
    used: Duration,
}

impl Pace {
    /// From now on.
    pub(super) fn new(cores: f64) -> Self {
        Self { cores, began: Instant::now(), used: processor_time() }
    }

    fn keep(&self) {
        let used = processor_time().saturating_sub(self.used);
        sleep(wait(self.cores, used, self.began.elapsed()));
    }
}

/// How long to wait after `elapsed`, if `used` processor time may be so many `cores`.
fn wait(cores: f64, used: Duration, elapsed: Duration) -> Duration {
    Duration::try_from_secs_f64(used.as_secs_f64() / cores).unwrap_or(Duration::MAX).saturating_sub(elapsed)
}

/// What all threads of this process have used of the processors.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages<const N: usize>(ranges: [(u64, u64); N]) -> Pages {
        ranges.into_iter().map(|(start, end)| start..end).collect()
    }

    fn with_tasks(vpids: &[Vpid]) -> Memory {
        let mut memory = Memory::new(1, None);
        let processes: Vec<_> = vpids.iter().map(|&vpid| Process { pid: (1 << 23) + vpid, vpid }).collect();
        memory.meet(&processes);
        memory
    }

    #[test]
    fn only_what_the_target_lacks_is_owed() {
        let mut memory = with_tasks(&[1, 7]);
        memory.tasks.get_mut(&1).unwrap().sent = pages([(0x1000, 0x4000), (0x8000, 0x9000)]);
        memory.owe([(1, pages([(0x2000, 0x6000)])), (7, pages([(0x1000, 0x2000)]))].into()).unwrap();
        assert_eq!(memory.tasks[&1].to_send, pages([(0x4000, 0x6000)]));
        assert_eq!(memory.to_send(), 0x3000);
        assert!(matches!(memory.owe([(8, pages([(0x1000, 0x2000)]))].into()), Err(Error::StrangeTask { vpid: 8 })));
    }

    #[test]
    fn only_what_may_follow_is_put_off() {
        let mut memory = with_tasks(&[1, 7]);
        memory.tasks.get_mut(&1).unwrap().to_send = pages([(0x1000, 0x4000), (0x8000, 0x9000)]);
        memory.tasks.get_mut(&7).unwrap().to_send = pages([(0x1000, 0x2000)]);
        let allowed = [(1, pages([(0x2000, 0x3000), (0x8000, 0xa000)])), (9, pages([(0, 0x1000)]))];
        let later = memory.put_off(allowed.clone().into(), 9);
        assert_eq!(later, [(1, pages([(0x2000, 0x3000), (0x8000, 0x9000)]))].into());
        assert_eq!(memory.tasks[&1].to_send, pages([(0x1000, 0x2000), (0x3000, 0x4000)]));
        assert_eq!(memory.to_send(), 0x3000);
        memory.tasks.get_mut(&1).unwrap().to_send = pages([(0x1000, 0x4000), (0x8000, 0x9000)]);
        let later = memory.put_off(allowed.into(), 1);
        assert_eq!(later, [(1, pages([(0x2000, 0x3000)]))].into());
    }

    #[test]
    fn a_batch_is_sent_but_for_what_could_not_be_read() {
        let (own, gone) = (std::process::id().cast_signed(), (1 << 23) + 1);
        for (pid, stage) in [(gone, Stage::Running), (own, Stage::Running), (gone, Stage::Frozen), (own, Stage::Frozen)]
        {
            let mut memory = with_tasks(&[1]);
            let task = memory.tasks.get_mut(&1).unwrap();
            // Nothing is ever mapped that low: as if it had been unmapped since.
            (task.pid, task.to_send) = (pid, pages([(0x1000, 0x4000), (0x8000, 0x9000), (0x10000, 0x30000)]));
            let batch = memory.batch(stage, None);
            let packed = 4 + 2 * 12 + 0x4000;
            assert_eq!((batch.bytes, memory.to_send()), (0x20000 + u64::from(packed), 0));
            assert_eq!(batch.next(), Some(Extent { object: 1, offset: 0x10000, length: 0x20000 }));
            let pack = Extent { object: 1 | PACKED, offset: 0, length: packed };
            assert_eq!((batch.next(), batch.next()), (Some(pack), None));
            assert_eq!(batch.read(pack, &mut vec![0; packed as usize]).unwrap(), 4 + 2 * 12);
            memory.sent(&batch);
            assert_eq!(memory.tasks[&1].sent, pages([(0x10000, 0x30000)]));
        }
    }

    #[test]
    fn what_the_dump_names_must_be_there() {
        for pid in [std::process::id().cast_signed(), (1 << 23) + 1] {
            let mut memory = with_tasks(&[1]);
            let task = memory.tasks.get_mut(&1).unwrap();
            (task.pid, task.to_send) = (pid, pages([(0x1000, 0x4000)]));
            let batch = memory.batch(Stage::Dumped, None);
            let extent = batch.next().unwrap();
            assert!(batch.read(extent, &mut vec![0; extent.length as usize]).is_err());
        }
    }

    #[test]
    fn what_an_ended_process_has_sent_is_cleared_at_the_target() {
        let mut memory = with_tasks(&[1, 7]);
        memory.tasks.get_mut(&7).unwrap().sent = pages([(0x1000, 0x3000)]);
        memory.meet(&[Process { pid: (1 << 23) + 1, vpid: 1 }]);
        let batch = memory.batch(Stage::Running, None);
        let extent = Extent { object: 7 | CLEARED, offset: 0x1000, length: 0x2000 };
        assert_eq!((batch.next(), batch.next()), (Some(extent), None));
        let mut buffer = vec![1; 0x2000];
        assert_eq!(batch.read(extent, &mut buffer).unwrap(), 0x2000);
        assert_eq!(buffer, [0; 0x2000]);
    }

    #[test]
    fn what_is_written_again_is_sent_and_not_cleared() {
        let gone = || vec![(1, pages([(0x10000, 0x40000)]))];
        for stage in [Stage::Running, Stage::Frozen] {
            let mut memory = with_tasks(&[1]);
            memory.to_clear = gone();
            memory.tasks.get_mut(&1).unwrap().to_send = pages([(0x10000, 0x30000)]);
            let batch = memory.batch(stage, None);
            assert_eq!(batch.next(), Some(Extent { object: 1, offset: 0x10000, length: 0x20000 }));
            let cleared = Extent { object: 1 | CLEARED, offset: 0x30000, length: 0x10000 };
            assert_eq!(batch.next(), (stage == Stage::Running).then_some(cleared));
            assert_eq!((batch.next(), memory.to_clear.len()), (None, 0));
        }
    }

    #[test]
    fn pages_that_hold_no_data_any_more_are_gone() {
        let own = std::process::id().cast_signed();
        let mut task = Task { pid: own, tracker: None, sent: pages([(0x1000, 0x2000)]), to_send: Pages::new() };
        assert_eq!(task.gone(), Some(pages([(0x1000, 0x2000)])), "nothing is ever mapped that low");
        assert_eq!((task.gone(), task.sent.is_empty()), (None, true));
    }

    #[test]
    fn a_process_id_that_is_used_again_is_another_process() {
        let mut memory = with_tasks(&[1]);
        memory.tasks.get_mut(&1).unwrap().sent = pages([(0x1000, 0x2000)]);
        memory.meet(&[Process { pid: (1 << 23) + 1, vpid: 1 }]);
        assert!(!memory.tasks[&1].sent.is_empty());
        memory.meet(&[Process { pid: 4711, vpid: 1 }]);
        assert!(memory.tasks[&1].sent.is_empty());
    }

    #[test]
    fn who_uses_too_much_waits() {
        let second = Duration::from_secs(1);
        assert_eq!(wait(1.0, second, second), Duration::ZERO);
        assert_eq!(wait(0.5, second, second), second);
        assert_eq!(wait(2.0, second, second), Duration::ZERO);
    }
}
