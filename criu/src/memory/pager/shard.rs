//! A thread of the pager, and the tasks that it serves.

use std::collections::VecDeque;
use std::io::PipeReader;
use std::mem::take;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::progress::{Progress, Stage, hush};
use super::task::{Attempt, BUFFER, Task};
use super::{Counters, PagerError};

/// Before the kernel is asked again while mappings are changing. An event that ends this earlier wakes us.
const CHANGING: Duration = Duration::from_micros(50);

/// Before the kernel is asked for memory again. Whoever waits for a page waits like anybody whose container has no memory left.
const STARVED: Duration = Duration::from_millis(10);

/// Between two looks whether tasks that wait for the source are still there.
const STILL_THERE: Duration = Duration::from_secs(1);

/// A share of the tasks.
#[derive(Debug)]
pub(super) struct Shard<'p, 'c> {
    progress: &'p Progress<'c>,
    bell: PipeReader,
    arriving: Receiver<Task>,
    /// How much of what has come from the source was noted.
    seen: usize,
    tasks: VecDeque<Task>,
    counters: Counters,
    buffer: Vec<u8>,
}

impl<'p, 'c> Shard<'p, 'c> {
    pub(super) fn new(progress: &'p Progress<'c>, bell: PipeReader, arriving: Receiver<Task>) -> Self {
        let buffer = vec![0; BUFFER];
        Self { progress, bell, arriving, seen: 0, tasks: VecDeque::new(), counters: Counters::default(), buffer }
    }

    /// Serves what arrives until all of it is whole and nothing more can arrive, or until it is stopped.
    pub(super) fn run(mut self) -> Result<Counters, PagerError> {
        let mut pause = None;
        loop {
            // Before the tasks: each of them was on its way before anything came for it.
            let come = self.progress.ledger().since(self.seen);
            let more = self.take_arrivals();
            self.seen += come.len();
            self.tasks.iter_mut().for_each(|task| task.take_over(&come));
            if self.progress.is_stopped() {
                return Ok(self.counters);
            }
            let may_fill = self.progress.stage() >= Stage::Held;
            if may_fill {
                // Their userfaultfds are closed with them, and what is not there is zeros from now on without us.
                let (whole, lacking): (VecDeque<_>, _) = take(&mut self.tasks).into_iter().partition(Task::is_whole);
                whole.into_iter().for_each(Task::close);
                self.tasks = lacking;
            }
            if !more && self.tasks.is_empty() {
                return Ok(self.counters);
            }
            let at_work = may_fill && self.tasks.iter().any(|task| !task.is_filled());
            let waits = self.tasks.iter().any(Task::only_waits);
            let ready = self.wait(pause.or(at_work.then_some(Duration::ZERO)).or(waits.then_some(STILL_THERE)))?;
            if waits && !at_work && !ready.contains(&true) {
                self.let_ended_go();
            }
            let faults = self.attend(&ready)?;
            let background = if may_fill { self.advance()? } else { Hindrance::Idle };
            pause = faults.max(background).pause();
        }
    }

    /// Who waits for the source is not told that a task has ended.
    fn let_ended_go(&mut self) {
        let (ended, alive): (VecDeque<_>, _) =
            take(&mut self.tasks).into_iter().partition(|task| task.only_waits() && task.has_ended());
        ended.into_iter().for_each(Task::close);
        self.tasks = alive;
    }

    /// False when nothing more can come.
    fn take_arrivals(&mut self) -> bool {
        loop {
            match self.arriving.try_recv() {
                Ok(task) => self.tasks.push_back(task),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Waits for an event of any task, for the bell, or for the end of `timeout`; says which tasks have events.
    fn wait(&self, timeout: Option<Duration>) -> Result<Vec<bool>, PagerError> {
        let mut fds = vec![PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.tasks.iter().map(|task| PollFd::new(task.as_fd(), PollFlags::POLLIN)));
        match ppoll(&mut fds, timeout.map(TimeSpec::from_duration), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(PagerError::System(errno.into())),
        }
        if fds[0].any() == Some(true) {
            hush(&self.bell);
        }
        Ok(fds[1..].iter().map(|fd| fd.any() == Some(true)).collect())
    }

    /// Events of the tasks that are `ready`, and faults that could not be helped before.
    fn attend(&mut self, ready: &[bool]) -> Result<Hindrance, PagerError> {
        let mut worst = Hindrance::Idle;
        // Children come behind the others, and are looked at in the next round.
        for &ready in ready {
            let Some(mut task) = self.tasks.pop_front() else { break };
            if !ready && !task.is_waited_for() {
                self.tasks.push_back(task);
                continue;
            }
            let mut born = Vec::new();
            let attempt = task.attend(self.progress, &mut self.buffer, &mut self.counters, &mut born)?;
            worst = worst.max(attempt.into());
            self.put_back(task, attempt);
            self.tasks.extend(born);
        }
        Ok(worst)
    }

    /// One piece of the task whose turn it is. Children wait until the restored tasks are whole: most of them become another program.
    fn advance(&mut self) -> Result<Hindrance, PagerError> {
        let lacks = |forked| move |task: &Task| !task.is_filled() && task.is_forked() == forked;
        let next = self.tasks.iter().position(lacks(false)).or_else(|| self.tasks.iter().position(lacks(true)));
        let Some(mut task) = next.and_then(|at| self.tasks.remove(at)) else { return Ok(Hindrance::Idle) };
        let attempt = task.advance(self.progress, &mut self.buffer, &mut self.counters)?;
        self.put_back(task, attempt);
        Ok(attempt.into())
    }

    fn put_back(&mut self, task: Task, attempt: Attempt) {
        match attempt {
            Attempt::Ended => task.close(),
            _ => self.tasks.push_back(task),
        }
    }
}

/// What stands in the way, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hindrance {
    /// Nothing to do.
    Idle,
    Changing,
    Starved,
}

impl From<Attempt> for Hindrance {
    fn from(attempt: Attempt) -> Self {
        match attempt {
            Attempt::Done | Attempt::Ended => Self::Idle,
            Attempt::Later => Self::Changing,
            Attempt::Starved => Self::Starved,
        }
    }
}

impl Hindrance {
    fn pause(self) -> Option<Duration> {
        match self {
            Self::Idle => None,
            Self::Changing => Some(CHANGING),
            Self::Starved => Some(STARVED),
        }
    }
}
