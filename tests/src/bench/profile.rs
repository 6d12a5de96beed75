//! What the machine does during a move, seen from outside: when CRIU's images are complete, and how busy the cores are.
//!
//! The hosts of a testbed share the cores and the clock of the machine that carries them, so all of it is seen from here.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use jiff::Timestamp;

/// Time between two looks: short beside every phase, and too long to be felt on a core.
const INTERVAL: Duration = Duration::from_millis(4);
/// Where spothop keeps the images of a dump, in the source's root: `<migration id>/images`.
const DUMPS: &str = "run/spothop/dump";
/// The image that CRIU writes last.
const LAST_IMAGE: &str = "images/inventory.img";

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Profile {
    /// When the dump was complete.
    pub(super) dumped: Option<Timestamp>,
    /// The cores' clocks at every look, oldest first.
    pub(super) clocks: Vec<(Timestamp, Clock)>,
}

/// Time that all cores together have spent since the boot, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clock {
    pub(super) busy: u64,
    pub(super) all: u64,
}

impl Profile {
    /// How many cores were busy between two moments, on average; none when they are too close to each other for the kernel's
    /// accounting (a tick is 10 ms).
    pub(super) fn busy_cores(&self, from: Timestamp, to: Timestamp) -> Option<f64> {
        let at = |moment| self.clocks.iter().find(|(at, _)| *at >= moment).or(self.clocks.last());
        let (first, last) = (at(from)?.1, at(to)?.1);
        let cores =
            thread::available_parallelism().map_or(1.0, |cores| f64::from(u32::try_from(cores.get()).unwrap_or(1)));
        let all = last.all.checked_sub(first.all).filter(|ticks| *ticks >= 10)?;
        // Differences of a few thousand ticks are exact in a float.
        #[expect(clippy::cast_precision_loss, reason = "see above")]
        Some((last.busy.saturating_sub(first.busy)) as f64 / all as f64 * cores)
    }
}

/// Somebody who looks.
#[derive(Debug)]
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Profile>,
}

impl Watch {
    /// Begins to look at the host whose process 1 has this id.
    pub(super) fn start(pid: i32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let dumps = PathBuf::from(format!("/proc/{pid}/root")).join(DUMPS);
        let thread = thread::spawn(move || {
            let mut profile = Profile::default();
            while !asked.load(Ordering::Relaxed) {
                let now = Timestamp::now();
                if profile.dumped.is_none() && is_dumped(&dumps) {
                    profile.dumped = Some(now);
                }
                profile.clocks.extend(clock().map(|clock| (now, clock)));
                thread::sleep(INTERVAL);
            }
            profile
        });
        Self { stop, thread }
    }

    /// Ends it.
    pub(super) fn stop(self) -> Profile {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn is_dumped(dumps: &Path) -> bool {
    fs::read_dir(dumps).is_ok_and(|entries| entries.flatten().any(|entry| entry.path().join(LAST_IMAGE).exists()))
}

fn clock() -> Option<Clock> {
    parse(&fs::read_to_string("/proc/stat").ok()?)
}

/// The first line of proc_stat(5): `cpu user nice system idle iowait irq softirq steal …`.
fn parse(stat: &str) -> Option<Clock> {
    let ticks: Vec<u64> =
        stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8).map_while(|n| n.parse().ok()).collect();
    let [user, nice, system, idle, iowait, irq, softirq, steal] = *ticks.as_slice() else {
        return None;
    };
    let busy = user + nice + system + irq + softirq + steal;
    Some(Clock { busy, all: busy + idle + iowait })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_waiting_for_disks_is_not_busy() {
        let stat = "cpu  100 1 20 1000 50 3 4 5 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(parse(stat), Some(Clock { busy: 133, all: 1183 }));
        assert_eq!(parse("cpu 1 2\n"), None);
    }
}
