//! Writes found by write protection that the kernel lifts and notes by itself.

use std::ops::Range;
use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::direct::refuse_direct_io;
use super::inject;
use super::userfault::Userfault;
use super::{Method, TrackError};
use crate::cgroup::Freezer;
use crate::memory::Pages;
use crate::memory::areas::areas;
use crate::memory::pagemap::{Pagemap, Query, can_scan};

pub(super) struct WriteProtect {
    pid: i32,
    userfault: Userfault,
    /// Where the protection is ours, if there is one. What the process has unmapped since stays here; what it maps there afterwards
    /// has no protection.
    registered: Pages,
}

impl WriteProtect {
    pub(super) fn attach(pid: i32) -> Result<Self, TrackError> {
        if !can_scan() {
            return Err(TrackError::Unsupported { method: Method::WriteProtect });
        }
        refuse_direct_io(pid)?;
        let userfault = userfault(pid, inject::userfaultfd(pid)?)?;
        Ok(Self { pid, userfault, registered: Pages::new() })
    }

    /// What is written while this looks is either given out, or noted for the next time: a page is given out and protected in one step.
    ///
    /// Pages that come into being after their area was registered have no mark of protection, so they count as written; so do pages
    /// that were discarded and written anew.
    pub(super) fn changed(&mut self) -> Result<Pages, TrackError> {
        let changed = self.look();
        if changed.is_err() {
            // Some pages may have been protected again without being given out: next time all are.
            self.registered = Pages::new();
        }
        changed
    }

    fn look(&mut self) -> Result<Pages, TrackError> {
        let mut pagemap = Pagemap::open(self.pid)?;
        let mut areas = areas(self.pid)?;
        areas.retain(|area| area.private_anonymous && area.readable);
        let mut changed = Pages::new();
        let all: Pages = areas.iter().map(|area| area.range.clone()).collect();
        for range in all.intersection(&self.registered).collect::<Pages>().iter() {
            pagemap.query(range, Query::Rewritten, &mut changed)?;
        }
        for area in &areas {
            self.follow(&mut pagemap, &area.range, &mut changed)?;
        }
        // After the look: what a device writes into a page that was just protected is seen by whoever reads the page now, unless the
        // device is still at it; and then the file is still open.
        refuse_direct_io(self.pid)?;
        Ok(changed)
    }

    /// Registers what holds pages without our protection in an area: it is new, lies where another one was, or was moved. All its pages
    /// count as changed.
    fn follow(&mut self, pagemap: &mut Pagemap, area: &Range<u64>, changed: &mut Pages) -> Result<(), TrackError> {
        // What was never registered may be protected by somebody else, whose marks are not ours to reset.
        let new = self.registered.gaps(area).map(|part| (part, Query::Populated));
        let known = self
            .registered
            .overlapping(area)
            .map(|known| (known.start.max(area.start)..known.end.min(area.end), Query::Unprotectable));
        for (part, query) in new.chain(known).collect::<Vec<_>>() {
            let mut unprotected = Pages::new();
            pagemap.query(&part, query, &mut unprotected)?;
            if unprotected.is_empty() {
                continue;
            }
            changed.extend(unprotected);
            match self.register(&part) {
                Ok(()) => {
                    self.registered.insert(part.clone());
                    pagemap.query(&part, Query::Protect, changed)?;
                }
                // Somebody else's, or gone again: all that it holds counts as changed, every time.
                Err(errno) => {
                    tracing::debug!(pid = self.pid, ?part, %errno, "a part of the memory cannot be followed");
                    self.registered.remove(part);
                }
            }
        }
        Ok(())
    }

    /// A program that the process has executed meanwhile has a memory of its own, which needs a userfaultfd of its own.
    fn register(&mut self, part: &Range<u64>) -> Result<(), Errno> {
        match self.userfault.register(part) {
            Err(Errno::ESRCH) => {}
            other => return other,
        }
        // In a frozen process nothing can be done; it is as if its areas were somebody else's.
        if Freezer::of_pid(self.pid).and_then(|freezer| freezer.is_frozen()).unwrap_or(false) {
            return Err(Errno::ESRCH);
        }
        let renewed = inject::userfaultfd(self.pid).and_then(|descriptor| userfault(self.pid, descriptor));
        self.userfault = renewed.map_err(|error| {
            tracing::debug!(pid = self.pid, %error, "a new program cannot be followed");
            Errno::ESRCH
        })?;
        self.registered = Pages::new();
        self.userfault.register(part)
    }
}

fn userfault(pid: i32, descriptor: OwnedFd) -> Result<Userfault, TrackError> {
    Userfault::new(descriptor).map_err(|errno| TrackError::Userfault { pid, source: errno.into() })
}
