//! One process whose memory is being filled.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::progress::{Progress, Stage};
use super::remaining::Remaining;
use super::source::Source;
use super::uffd::{Event, Refusal, Uffd};
use super::{Counters, PagerError};
use crate::memory::{PAGE, Pages, Vpid};

/// What a fault brings along, in bytes: the block that it is in.
pub(super) const NEIGHBOURHOOD: u64 = 64 << 10;

/// How many bytes the background puts in before it looks for faults: what a fault has to wait for, at most. Half of it is hardly slower
/// and twice as much hardly faster (measured on 1 GiB).
const BACKGROUND: u64 = 128 << 10;

/// Bytes of the longest piece.
pub(super) const BUFFER: usize = if BACKGROUND > NEIGHBOURHOOD { BACKGROUND } else { NEIGHBOURHOOD } as usize;

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    /// Done; there may be more to do.
    Done,
    /// Mappings are changing: read events, then try again.
    Later,
    /// No memory now.
    Starved,
    /// The process is gone, and needs nothing any more.
    Ended,
}

/// One process.
#[derive(Debug)]
pub(super) struct Task {
    vpid: Vpid,
    uffd: Uffd,
    source: Arc<Source>,
    /// What can be put in.
    remaining: Remaining,
    /// What is still at the source.
    owed: Remaining,
    /// Pages that threads wait for.
    faults: Vec<u64>,
    /// Those of them that are still at the source, as far as was known when they were looked at.
    waiting: Vec<u64>,
    /// Where the background goes on: behind the last fault, as what is there is wanted next.
    cursor: u64,
    /// Whether it was forked from one of the restored tasks.
    forked: bool,
}

impl AsFd for Task {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }
}

impl Task {
    /// The task `vpid` that lacks `pages` of `source`, and `owed`, which will be there later.
    pub(super) fn new(vpid: Vpid, uffd: Uffd, source: Arc<Source>, pages: &Pages, owed: &Pages) -> Self {
        let [remaining, owed] = [pages, owed].map(Remaining::new);
        Self { vpid, uffd, source, remaining, owed, faults: Vec::new(), waiting: Vec::new(), cursor: 0, forked: false }
    }

    /// These pages are in the store now.
    pub(super) fn take_over(&mut self, come: &[(Vpid, Range<u64>)]) {
        for (_, places) in come.iter().filter(|(vpid, _)| *vpid == self.vpid) {
            self.owed.hand_over(places, &mut self.remaining);
            self.faults.append(&mut self.waiting);
        }
    }

    /// Whether it has ended, or has become another program. It is not told by an event, and who waits for pages does not see it.
    pub(super) fn has_ended(&self) -> bool {
        self.uffd.has_ended()
    }

    /// Whether it only waits for what is still at the source.
    pub(super) fn only_waits(&self) -> bool {
        self.is_filled() && !self.is_waited_for() && !self.is_whole()
    }

    /// It needs us no more.
    pub(super) fn close(self) {
        self.uffd.close();
    }

    /// Nothing more can be put in.
    pub(super) fn is_filled(&self) -> bool {
        self.remaining.is_empty()
    }

    /// Somebody waits who could not be helped.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.faults.is_empty()
    }

    /// Lacks nothing, and nobody waits.
    pub(super) fn is_whole(&self) -> bool {
        self.is_filled() && !self.is_waited_for() && self.owed.is_empty() && self.waiting.is_empty()
    }

    pub(super) fn is_forked(&self) -> bool {
        self.forked
    }

    /// Reads what has happened and helps who waits; children go to `born`.
    pub(super) fn attend(
        &mut self,
        progress: &Progress<'_>,
        buffer: &mut [u8],
        counters: &mut Counters,
        born: &mut Vec<Task>,
    ) -> Result<Attempt, PagerError> {
        let events = self.uffd.events().map_err(|source| PagerError::Events { vpid: self.vpid, source })?;
        for event in events {
            if !matches!(event, Event::Fault(_)) {
                // The page may be elsewhere now, or gone.
                self.faults.append(&mut self.waiting);
            }
            self.note(event, counters, born)?;
        }
        while let Some(&page) = self.faults.last() {
            if let Some(place) = self.owed.place(page) {
                if !progress.tasks_may_run() {
                    return Err(PagerError::TooEarly { vpid: self.vpid, address: page });
                }
                progress.ledger().want(self.vpid, place);
                self.waiting.extend(self.faults.pop());
                continue;
            }
            match self.help(page, progress, buffer, counters)? {
                Attempt::Done => drop(self.faults.pop()),
                other => return Ok(other),
            }
        }
        Ok(Attempt::Done)
    }

    /// Puts in the next piece that nobody has asked for.
    pub(super) fn advance(
        &mut self,
        progress: &Progress<'_>,
        buffer: &mut [u8],
        counters: &mut Counters,
    ) -> Result<Attempt, PagerError> {
        let Some((piece, place)) = self.remaining.piece(self.cursor, BACKGROUND) else { return Ok(Attempt::Done) };
        let before = counters.pages;
        let attempt = self.fill(&piece, place, progress, buffer, counters)?;
        counters.background_pages += counters.pages - before;
        if attempt == Attempt::Done {
            self.cursor = piece.end;
        }
        Ok(attempt)
    }

    fn note(&mut self, event: Event, counters: &mut Counters, born: &mut Vec<Task>) -> Result<(), PagerError> {
        match event {
            Event::Fault(page) => {
                counters.faults += 1;
                if !self.faults.contains(&page) && !self.waiting.contains(&page) {
                    self.faults.push(page);
                }
            }
            Event::Fork(uffd) => {
                counters.forks += 1;
                born.push(Self {
                    vpid: self.vpid,
                    uffd,
                    source: Arc::clone(&self.source),
                    remaining: self.remaining.clone(),
                    owed: self.owed.clone(),
                    faults: Vec::new(),
                    waiting: Vec::new(),
                    cursor: self.cursor,
                    forked: true,
                });
            }
            Event::Remap { from, to, length } => {
                let free = [&mut self.remaining, &mut self.owed].map(|pages| pages.remap(from, to, length));
                if free != [true, true] {
                    return Err(PagerError::Order { vpid: self.vpid, address: to });
                }
            }
            Event::Remove(range) => {
                self.owed.drop_range(range.clone());
                self.remaining.drop_range(range);
            }
            Event::Unmap(range) => {
                self.owed.unmap(range.clone());
                self.remaining.unmap(range);
            }
        }
        Ok(())
    }

    /// Puts in what a thread waits for.
    fn help(
        &mut self,
        page: u64,
        progress: &Progress<'_>,
        buffer: &mut [u8],
        counters: &mut Counters,
    ) -> Result<Attempt, PagerError> {
        // While mappings are being made its neighbours may have none yet.
        let length = if progress.stage() == Stage::Making { PAGE } else { NEIGHBOURHOOD };
        let Some((piece, place)) = self.remaining.around(page, length) else { return self.zero(page, length) };
        let attempt = self.fill(&piece, place, progress, buffer, counters)?;
        if attempt == Attempt::Done {
            self.cursor = piece.end;
        }
        Ok(attempt)
    }

    /// A page that the task had not used: zeros, and for its neighbours too.
    fn zero(&mut self, page: u64, length: u64) -> Result<Attempt, PagerError> {
        let mut range = self.remaining.gap(page, length);
        range.end = range.end.min(self.owed.gap(page, length).end);
        loop {
            match self.uffd.zero(&range) {
                Ok(_) => return Ok(Attempt::Done),
                Err(Refusal::Gone) if range.end > page + PAGE => range.end = page + PAGE,
                // Put in since it was asked for: who waits is awake, or missed it. Or the mapping was taken away from under a thread that
                // waits for it, which is its affair.
                Err(Refusal::There | Refusal::Gone) => {
                    self.uffd.wake(page);
                    return Ok(Attempt::Done);
                }
                Err(refusal) => return self.attempt(refusal, page),
            }
        }
    }

    /// Puts a piece in, as far as it is still wanted; `place` is where the store has it.
    fn fill(
        &mut self,
        piece: &Range<u64>,
        place: u64,
        progress: &Progress<'_>,
        buffer: &mut [u8],
        counters: &mut Counters,
    ) -> Result<Attempt, PagerError> {
        let read = self.source.read(place, piece.end - piece.start, buffer);
        let mut left = read.map_err(|source| PagerError::Store { vpid: self.vpid, place, source })?;
        let mut at = piece.start;
        let mut step = left.len();
        while !left.is_empty() {
            step = step.min(left.len());
            let over = match self.uffd.copy(at, &left[..step]) {
                Ok(bytes) => {
                    counters.pages += bytes / PAGE;
                    self.remaining.quiet();
                    self.owed.quiet();
                    step *= 2;
                    bytes
                }
                // It crosses the end of a mapping: in halves, down to the page where it ends.
                Err(Refusal::Gone) if step as u64 > PAGE => {
                    step = (step / 2).next_multiple_of(PAGE as usize);
                    continue;
                }
                // Nobody runs who could have taken the mapping away, or put something there.
                Err(Refusal::Gone) if !progress.tasks_may_run() => {
                    return Err(PagerError::NotRegistered { vpid: self.vpid, address: at });
                }
                Err(Refusal::There) if !progress.tasks_may_run() => {
                    return Err(PagerError::There { vpid: self.vpid, address: at });
                }
                // In a child it may not have been inherited; of what is there the task has made a guard.
                Err(Refusal::Gone | Refusal::There) => {
                    self.uffd.wake(at);
                    counters.gone_pages += 1;
                    PAGE
                }
                Err(refusal) => return self.attempt(refusal, at),
            };
            self.remaining.drop_range(at..at + over);
            at += over;
            // At most what is left was put in.
            left = left.get(over as usize..).unwrap_or_default();
        }
        Ok(Attempt::Done)
    }

    fn attempt(&self, refusal: Refusal, address: u64) -> Result<Attempt, PagerError> {
        match refusal {
            Refusal::Changing => Ok(Attempt::Later),
            Refusal::NoMemory => Ok(Attempt::Starved),
            Refusal::Ended => Ok(Attempt::Ended),
            Refusal::There | Refusal::Gone => Ok(Attempt::Done),
            Refusal::Other(errno) => {
                Err(PagerError::Refused { vpid: self.vpid, address, source: io::Error::from(errno) })
            }
        }
    }
}
