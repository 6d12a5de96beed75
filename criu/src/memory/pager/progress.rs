//! How far the restore is, as all threads of a pager see it.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::ledger::Ledger;

/// How far the restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// CRIU makes the mappings: only what is asked for is put in.
    Making,
    /// The tasks are stopped, and all mappings are registered.
    Held,
    /// The tasks run, or are about to.
    Running,
}

/// What the threads of a pager tell each other.
#[derive(Debug)]
pub(super) struct Progress<'c> {
    criu: &'c UnixStream,
    stage: AtomicU8,
    stopped: AtomicBool,
    bells: Vec<PipeWriter>,
    ledger: Ledger,
}

impl<'c> Progress<'c> {
    /// For `threads` threads, with a bell for each: it can be read when there is something new.
    pub(super) fn new(criu: &'c UnixStream, threads: usize, ledger: Ledger) -> io::Result<(Self, Vec<PipeReader>)> {
        let (readers, bells) = (0..threads).map(|_| io::pipe()).collect::<io::Result<(Vec<_>, Vec<_>)>>()?;
        let stage = AtomicU8::new(Stage::Making as u8);
        Ok((Self { criu, stage, stopped: AtomicBool::new(false), bells, ledger }, readers))
    }

    /// What is still at the source.
    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(super) fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            making if making == Stage::Making as u8 => Stage::Making,
            held if held == Stage::Held as u8 => Stage::Held,
            _ => Stage::Running,
        }
    }

    pub(super) fn reach(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Ordering::AcqRel);
        self.ring_all();
    }

    /// Whether tasks may run already. CRIU says so on its socket before it lets them run; whoever reads that there takes it away only
    /// after [`Progress::reach`], so it is in one of the two places.
    pub(super) fn tasks_may_run(&self) -> bool {
        let nothing = recv(self.criu.as_raw_fd(), &mut [0; 4], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
        nothing != Err(Errno::EAGAIN) || self.stage() == Stage::Running
    }

    /// Has everybody come to an end.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.ring_all();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(super) fn ring(&self, thread: usize) {
        // One that has ended hears nothing, and needs not.
        let _ = (&self.bells[thread]).write(&[1]);
    }

    pub(super) fn ring_all(&self) {
        (0..self.bells.len()).for_each(|thread| self.ring(thread));
    }
}

/// Takes what a bell that can be read has rung.
pub(super) fn hush(mut bell: &PipeReader) {
    // A few more only make it ring once more.
    let _ = bell.read(&mut [0; 64]);
}
