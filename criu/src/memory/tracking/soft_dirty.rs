//! Writes found by the kernel's soft-dirty bits (kernel documentation, admin-guide/mm/soft-dirty).

use std::fs;

use super::tracee::{on_tracer, while_stopped};
use super::{Method, TrackError};
use crate::cgroup::Freezer;
use crate::memory::areas::areas;
use crate::memory::pagemap::{Pagemap, Query, has_soft_dirty};
use crate::memory::{Pages, populated, private_anonymous};

/// What resets the bits when it is written to `/proc/PID/clear_refs` (proc_pid_clear_refs(5)).
const SOFT_DIRTY: &str = "4";

pub(super) struct SoftDirty {
    pid: i32,
    /// Pages that were written before the bits were last reset and have not been given out: they cannot be read now. None before
    /// the first look.
    kept: Option<Pages>,
}

impl SoftDirty {
    pub(super) fn attach(pid: i32) -> Result<Self, TrackError> {
        // A kernel that keeps no such bits says nothing when they are reset, and nothing would ever be dirty.
        if has_soft_dirty() {
            Ok(Self { pid, kept: None })
        } else {
            Err(TrackError::Unsupported { method: Method::SoftDirty })
        }
    }

    pub(super) fn changed(&mut self) -> Result<Pages, TrackError> {
        let pid = self.pid;
        let Some(kept) = self.kept.take() else {
            reset(pid)?;
            // What is written between the reset and this is given out, and once more next time.
            let all = populated(pid, &private_anonymous(pid)?)?;
            self.kept = Some(Pages::new());
            return Ok(all);
        };
        let look = move || look(pid, kept);
        let (changed, kept) = if is_frozen(pid) { look()? } else { on_tracer(pid, move || while_stopped(pid, look))? };
        self.kept = Some(kept);
        Ok(changed)
    }
}

/// Between the look and the reset nothing may be written.
fn look(pid: i32, mut dirty: Pages) -> Result<(Pages, Pages), TrackError> {
    let mut pagemap = Pagemap::open(pid)?;
    let mut readable = Pages::new();
    // The reset is for all of them, readable or not.
    for area in areas(pid)?.into_iter().filter(|area| area.private_anonymous) {
        pagemap.query(&area.range, Query::SoftDirty, &mut dirty)?;
        if area.readable {
            readable.insert(area.range);
        }
    }
    reset(pid)?;
    let changed = dirty.intersection(&readable).collect();
    for range in readable.iter() {
        dirty.remove(range.clone());
    }
    Ok((changed, dirty))
}

fn reset(pid: i32) -> Result<(), TrackError> {
    fs::write(format!("/proc/{pid}/clear_refs"), SOFT_DIRTY).map_err(|source| match source.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => TrackError::Gone { pid },
        _ => TrackError::Reset { pid, source },
    })
}

/// One that a freezer of cgroup v1 holds does not stop for ptrace, and need not.
fn is_frozen(pid: i32) -> bool {
    Freezer::of_pid(pid).and_then(|freezer| freezer.is_frozen()).unwrap_or(false)
}
