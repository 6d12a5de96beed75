//! Room that this host has promised to containers that are coming, and what is left for others.
//!
//! The kernel's word for free memory (`MemAvailable`) is about what is used *now*. A container that is coming will use what it has
//! not sent yet, so all of it is promised before it sends anything, and a promise counts until the memory is really in use:
//! what has arrived in the container's own tmpfs is in the kernel's figure already, and is taken off its promise. So nothing is
//! counted twice, and nothing is left out. With disk it is the same, by what was written.
//!
//! Two things are done in an order that matters. What has arrived is read *before* what is free: bytes that come in between are then
//! counted twice for a moment, and never not at all. And reading, deciding and promising happen under one lock, whoever asks.

use std::collections::HashMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use procfs::Current as _;
use spothop_policy::Bytes;

/// What the system says of this host at one moment.
pub trait Readings: Debug + Send + Sync {
    /// Bytes of memory that could be used now without swapping.
    fn memory(&self) -> u64;

    /// Bytes that may be written to the engine's file system.
    fn disk(&self) -> u64;

    /// Bytes of memory that lie in the tmpfs at this place; none if there is no tmpfs of its own.
    fn arrived(&self, images: &Path) -> u64;

    /// The time, of a clock that never goes back.
    fn now(&self) -> Instant;
}

/// The real ones.
#[derive(Debug)]
pub struct System {
    /// The engine's directory.
    pub data: PathBuf,
}

impl Readings for System {
    /// The kernel's `MemAvailable`, or what the cgroup leaves of it that this process sees as its root: so it is on a host that is a container of
    /// another one. 0 when the kernel does not tell.
    fn memory(&self) -> u64 {
        let machine = procfs::Meminfo::current().ok().and_then(|memory| memory.mem_available).unwrap_or(0);
        in_cgroup(Path::new("/sys/fs/cgroup")).map_or(machine, |cgroup| machine.min(cgroup))
    }

    /// As root sees it; 0 when it cannot be asked.
    fn disk(&self) -> u64 {
        nix::sys::statvfs::statvfs(&self.data).map_or(0, |disk| disk.blocks_available() * disk.fragment_size())
    }

    fn arrived(&self, images: &Path) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        let device = |path: &Path| path.metadata().ok().map(|about| about.dev());
        // Before its tmpfs is mounted, and after it is gone, that directory is one in a tmpfs of everybody.
        let own = images.parent().is_some_and(|above| device(above) != device(images) && device(images).is_some());
        let tmpfs = own.then(|| nix::sys::statvfs::statvfs(images).ok()).flatten();
        tmpfs.map_or(0, |tmpfs| (tmpfs.blocks() - tmpfs.blocks_free()) * tmpfs.fragment_size())
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// Bytes that a cgroup leaves below its limit, where it has one: what it uses, less the files that the kernel can drop
/// (cgroup-v2.rst, "memory.stat"; pages of a tmpfs are not among the inactive files).
fn in_cgroup(cgroup: &Path) -> Option<u64> {
    let read = |file: &str| std::fs::read_to_string(cgroup.join(file)).ok();
    let limit: u64 = read("memory.max")?.trim().parse().ok()?; // "max" is no number
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    let statistics = read("memory.stat")?;
    let of = |name: &str| -> u64 {
        let mut lines = statistics.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(key, _)| *key == name).and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
    };
    let droppable = of("inactive_file") + of("slab_reclaimable") / 2;
    Some(limit.saturating_sub(used.saturating_sub(droppable)))
}

/// What a container that is coming needs.
#[derive(Debug, Clone)]
pub struct Promise {
    /// The migration's id; a second promise to the same one takes the first one's place.
    pub migration: String,
    /// Bytes of memory in all.
    pub memory: u64,
    /// Bytes of disk in all.
    pub disk: u64,
    /// The tmpfs into which its memory arrives.
    pub images: PathBuf,
    /// How long the promise holds, from now and from every [`Reservation::renew`]; afterwards its room is given to others.
    pub patience: Duration,
}

#[derive(Debug)]
struct Held {
    /// Which of all promises it is: one that came later to the same migration is not its reservation's to end.
    number: u64,
    promise: Promise,
    /// Bytes of its disk that are written already.
    written: u64,
    until: Instant,
}

#[derive(Debug, Default)]
struct Table {
    held: HashMap<String, Held>,
    numbers: u64,
}

/// What is promised, and what is free besides.
#[derive(Debug)]
pub struct Room {
    readings: Arc<dyn Readings>,
    /// Bytes of memory that are promised to nobody.
    memory_reserve: u64,
    promised: Arc<Mutex<Table>>,
}

/// There is not enough.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no room: the container needs {} of {what} here, {} are free beyond the reserve and what is promised to others",
        Bytes(*.needs), Bytes(*.free))]
pub struct NoRoom {
    /// `memory` or `disk`.
    pub what: &'static str,
    /// Bytes.
    pub needs: u64,
    /// Bytes.
    pub free: u64,
}

/// Room that is a migration's until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    migration: String,
    number: u64,
    promised: Arc<Mutex<Table>>,
    readings: Arc<dyn Readings>,
}

impl Reservation {
    /// The source has said something: the promise holds for its whole patience once more.
    pub fn renew(&self) {
        let now = self.readings.now();
        self.change(|held| held.until = now + held.promise.patience);
    }

    /// So many more bytes of its disk are written.
    pub fn wrote(&self, bytes: u64) {
        self.change(|held| held.written = held.written.saturating_add(bytes));
    }

    fn change(&self, change: impl FnOnce(&mut Held)) {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = promised.held.get_mut(&self.migration).filter(|held| held.number == self.number) {
            change(held);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        if promised.held.get(&self.migration).is_some_and(|held| held.number == self.number) {
            promised.held.remove(&self.migration);
        }
    }
}

impl Room {
    /// With nothing promised.
    #[must_use]
    pub fn new(readings: Arc<dyn Readings>, memory_reserve: u64) -> Self {
        Self { readings, memory_reserve, promised: Arc::default() }
    }

    /// Promises room.
    ///
    /// # Errors
    /// There is not enough, and nothing is promised. What was promised to the same migration before is given up in either case.
    pub fn reserve(&self, promise: Promise) -> Result<Reservation, NoRoom> {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        promised.held.remove(&promise.migration);
        let (memory, disk) = self.outstanding(&mut promised.held);
        let free_memory = self.readings.memory().saturating_sub(self.memory_reserve).saturating_sub(memory);
        let free_disk = self.readings.disk().saturating_sub(disk);
        for (what, needs, free) in [("memory", promise.memory, free_memory), ("disk", promise.disk, free_disk)] {
            if needs > free {
                return Err(NoRoom { what, needs, free });
            }
        }
        let migration = promise.migration.clone();
        let until = self.readings.now() + promise.patience;
        promised.numbers += 1;
        let number = promised.numbers;
        promised.held.insert(migration.clone(), Held { number, promise, written: 0, until });
        Ok(Reservation {
            migration,
            number,
            promised: Arc::clone(&self.promised),
            readings: Arc::clone(&self.readings),
        })
    }

    /// Free memory and how much of that is the reserve or promised; free disk less what is promised. Bytes.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        let (memory, disk) = self.outstanding(&mut promised.held);
        Figures {
            free_memory: self.readings.memory(),
            reserved_memory: self.memory_reserve.saturating_add(memory),
            free_disk: self.readings.disk().saturating_sub(disk),
            promises: promised.held.len(),
        }
    }

    /// Bytes of memory and disk that are promised and not in use yet. Promises that nobody has renewed are dropped.
    fn outstanding(&self, promised: &mut HashMap<String, Held>) -> (u64, u64) {
        let now = self.readings.now();
        promised.retain(|migration, held| {
            let holds = now < held.until;
            if !holds {
                tracing::warn!(migration, "its source is silent; the room that was promised is given to others");
            }
            holds
        });
        promised.values().fold((0, 0), |(memory, disk), held| {
            let arrived = self.readings.arrived(&held.promise.images);
            let rest = held.promise.memory.saturating_sub(arrived);
            (rest.saturating_add(memory), held.promise.disk.saturating_sub(held.written).saturating_add(disk))
        })
    }
}

/// [`Room::figures`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// Bytes of memory that are not used now.
    pub free_memory: u64,
    /// Bytes of it that are kept back or promised.
    pub reserved_memory: u64,
    /// Bytes of disk that are neither used nor promised.
    pub free_disk: u64,
    /// How many migrations have a promise.
    pub promises: usize,
}

#[cfg(test)]
mod tests;
