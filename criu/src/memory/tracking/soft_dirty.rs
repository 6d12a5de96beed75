//! Writes found by the kernel's soft-dirty bits (kernel documentation, admin-guide/mm/soft-dirty).
//!
//! The kernel sets them when a page comes into being or is written to. What they do not say:
//!
//! - **Moved page tables.** mremap(2) of 2 MiB and more moves whole tables where both addresses allow it, and leaves the bits in them as they
//!   are (`move_normal_pmd`, mm/mremap.c): other data at an address, and nothing dirty. So we remember in which frame each page was. A page
//!   that is not dirty and in the frame in which it was is the same: were it another one that came into that frame, it would be dirty since.
//!   Pages that the kernel itself moves, swaps, or copies (what is shared since a fork, when it is read) are given out once too often.
//! - **Shared memory tables.** A child of vfork(2) has the bits of its parent until it executes a program: whoever resets its bits takes them
//!   from whoever follows the parent.
//! - **Less than a huge page, or an area.** A write to a huge page makes all of it dirty, and a new mapping the whole area that it becomes
//!   a part of.

use std::collections::HashMap;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;

use super::direct::refuse_direct_io;
use super::tracee::{on_tracer, while_stopped};
use super::{Method, TrackError};
use crate::cgroup::Freezer;
use crate::memory::areas::areas;
use crate::memory::pagemap::{Pagemap, has_soft_dirty};
use crate::memory::{PAGE, Pages, populated, private_anonymous};

/// What resets the bits when it is written to `/proc/PID/clear_refs` (proc_pid_clear_refs(5)).
const SOFT_DIRTY: &str = "4";

/// `KCMP_VM` (linux/kcmp.h).
const KCMP_VM: libc::c_int = 1;

/// Pages whose places lie side by side, 8 bytes each: those of one page table.
const BLOCK_PAGES: u64 = 512;
const BLOCK: u64 = BLOCK_PAGES * PAGE;

pub(super) struct SoftDirty {
    pid: i32,
    /// None before the first look.
    seen: Option<Seen>,
}

/// What a look has left for the next one.
#[derive(Default)]
struct Seen {
    places: Places,
    /// Pages that were written before the bits were last reset and have not been given out: they cannot be read now.
    kept: Pages,
}

/// Where the data of each page is; 0 for none.
#[derive(Default)]
struct Places(HashMap<u64, Box<[u64; BLOCK_PAGES as usize]>>);

impl Places {
    fn get(&self, page: u64) -> u64 {
        self.0.get(&(page / BLOCK)).map_or(0, |block| block[(page % BLOCK / PAGE) as usize])
    }

    fn set(&mut self, page: u64, place: u64) {
        let block = self.0.entry(page / BLOCK).or_insert_with(|| Box::new([0; BLOCK_PAGES as usize]));
        block[(page % BLOCK / PAGE) as usize] = place;
    }
}

impl SoftDirty {
    pub(super) fn attach(pid: i32) -> Result<Self, TrackError> {
        // A kernel that keeps no such bits says nothing when they are reset, and nothing would ever be dirty.
        if !has_soft_dirty() {
            return Err(TrackError::Unsupported { method: Method::SoftDirty });
        }
        refuse_direct_io(pid)?;
        Ok(Self { pid, seen: None })
    }

    pub(super) fn changed(&mut self) -> Result<Pages, TrackError> {
        let pid = self.pid;
        let seen = self.seen.take();
        // One that shares nothing now will share with its own children only, and those find out themselves.
        if shares_memory(pid)? {
            return Ok(populated(pid, &private_anonymous(pid)?)?);
        }
        let (changed, seen) = match seen {
            None => {
                reset(pid)?;
                // What is written between the reset and this is given out, and once more next time.
                look(pid, &Seen::default())?
            }
            Some(seen) if is_frozen(pid) => look_and_reset(pid, &seen)?,
            Some(seen) => look_while_stopped(pid, seen)?,
        };
        // After the look, as for a write protection: what a device writes after this is seen by whoever reads the page, or the file
        // is still open.
        refuse_direct_io(pid)?;
        self.seen = Some(seen);
        Ok(changed)
    }
}

/// No thread of the process runs meanwhile, nor does a child that shares its memory: vfork(2) cannot be interrupted, so its caller
/// is not stopped before that ends.
fn look_while_stopped(pid: i32, seen: Seen) -> Result<(Pages, Seen), TrackError> {
    let given_up = Arc::new(Mutex::new(false));
    let nobody_waits = given_up.clone();
    let work = move || {
        while_stopped(pid, || {
            let nobody_waits = nobody_waits.lock().unwrap_or_else(PoisonError::into_inner);
            if *nobody_waits { Err(TrackError::Busy { pid }) } else { look_and_reset(pid, &seen) }
        })
    };
    on_tracer(pid, work).inspect_err(|_| {
        // A look that comes late must not reset what a later one counts on.
        *given_up.lock().unwrap_or_else(PoisonError::into_inner) = true;
    })
}

/// Between the look and the reset nothing may be written.
fn look_and_reset(pid: i32, seen: &Seen) -> Result<(Pages, Seen), TrackError> {
    let looked = look(pid, seen)?;
    reset(pid)?;
    Ok(looked)
}

fn look(pid: i32, seen: &Seen) -> Result<(Pages, Seen), TrackError> {
    let pagemap = Pagemap::open(pid)?;
    let mut places = Places::default();
    let mut dirty = seen.kept.clone();
    let mut readable = Pages::new();
    // The reset is for all of them, readable or not.
    for area in areas(pid)?.into_iter().filter(|area| area.private_anonymous) {
        let mut run = area.range.start..area.range.start;
        pagemap.entries(&area.range, |page, entry| {
            if !entry.holds_data() {
                return;
            }
            let place = entry.place();
            places.set(page, place);
            if !entry.is_soft_dirty() && seen.places.get(page) == place {
                return;
            }
            if run.end != page {
                dirty.extend((!run.is_empty()).then(|| run.clone()));
                run.start = page;
            }
            run.end = page + PAGE;
        })?;
        dirty.extend((!run.is_empty()).then_some(run));
        if area.readable {
            readable.insert(area.range);
        }
    }
    let changed = dirty.intersection(&readable).collect();
    for range in readable.iter() {
        dirty.remove(range.clone());
    }
    Ok((changed, Seen { places, kept: dirty }))
}

fn reset(pid: i32) -> Result<(), TrackError> {
    fs::write(format!("/proc/{pid}/clear_refs"), SOFT_DIRTY).map_err(|source| match source.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => TrackError::Gone { pid },
        _ => TrackError::Reset { pid, source },
    })
}

/// Has `pid` one memory with its parent, as after vfork(2), posix_spawn(3), clone(2) with CLONE_VM? If that cannot be known, yes.
fn shares_memory(pid: i32) -> Result<bool, TrackError> {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return Err(TrackError::Gone { pid }) };
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
    Ok(match parent {
        // None that we could see; a parent that has ended has no memory.
        Some(0) => false,
        Some(parent) => !matches!(same_memory(pid, parent), Ok(false) | Err(Errno::ESRCH)),
        None => true,
    })
}

#[expect(unsafe_code, reason = "nix has no kcmp")]
fn same_memory(one: i32, other: i32) -> Result<bool, Errno> {
    // SAFETY: a system call on numbers.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_VM, 0, 0) };
    Errno::result(order).map(|order| order == 0)
}

/// One that a freezer of cgroup v1 holds does not stop for ptrace, and need not.
fn is_frozen(pid: i32) -> bool {
    Freezer::of_pid(pid).and_then(|freezer| freezer.is_frozen()).unwrap_or(false)
}
