//! What the machine does during a move, seen from outside: when CRIU's images are complete, how busy the cores are, which
//! program uses them, and what the hosts use in all.
//!
//! The hosts of a testbed share the cores and the clock of the machine that carries them, so all of it is seen from here. On
//! a busy machine a step takes longer, and its programs use the same time of a core: that is why both are shown.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use jiff::Timestamp;

use crate::error::Result;
use crate::layout::Layout;
use crate::testbed::Testbed;

use super::usage::{Gauge, Usage, available_bytes};
use super::{SOURCE, TARGET};

/// Time between two looks: short beside every step, and too long to be felt on a core.
const INTERVAL: Duration = Duration::from_millis(5);
/// At every so manieth look all processes are looked through, which takes a millisecond or two.
const PROCESSES_EVERY: usize = 8;
/// Where spothop keeps the images of a dump, in the source's root: `<migration id>/images`.
const DUMPS: &str = "run/spothop/dump";
/// The image that CRIU writes last.
const LAST_IMAGE: &str = "images/inventory.img";
/// Programs whose time is counted.
const PROGRAMS: [&str; 3] = ["spothop", "criu", "dockerd"];
/// Ticks in a second (`USER_HZ` of the kernel's interface, time(7)).
const TICKS: f64 = 100.0;

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Profile {
    /// When the dump was complete.
    pub(super) dumped: Option<Timestamp>,
    /// The cores' clocks at every look, oldest first.
    pub(super) cores: Vec<(Timestamp, Clock)>,
    /// Ticks that each program on each host has used since the first look, oldest first.
    pub(super) programs: Vec<(Timestamp, HashMap<String, u64>)>,
    /// What the hosts have used.
    pub(super) usage: Usage,
}

/// Time that all cores together have spent since the boot, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clock {
    busy: u64,
    all: u64,
}

impl Profile {
    /// How many cores were busy between two moments, on average; none when they are too close to each other for the kernel's
    /// accounting.
    pub(super) fn busy_cores(&self, from: Timestamp, to: Timestamp) -> Option<f64> {
        let (first, last) = (at(&self.cores, from)?, at(&self.cores, to)?);
        let all = last.all.checked_sub(first.all).filter(|ticks| *ticks >= 10)?;
        let cores = u32::try_from(thread::available_parallelism().map_or(1, usize::from)).unwrap_or(1);
        Some(float(last.busy.saturating_sub(first.busy)) / float(all) * f64::from(cores))
    }

    /// Seconds of a core that the programs on the hosts have used between two moments, those that used next to none left out, by name.
    pub(super) fn programs(&self, from: Timestamp, to: Timestamp) -> Vec<(String, f64)> {
        let (Some(first), Some(last)) = (at(&self.programs, from), at(&self.programs, to)) else {
            return Vec::new();
        };
        let mut used: Vec<(String, f64)> = last
            .iter()
            .map(|(name, ticks)| (name.clone(), ticks - first.get(name).unwrap_or(&0)))
            .filter(|(_, ticks)| *ticks >= 3)
            .map(|(name, ticks)| (name, float(ticks) / TICKS))
            .collect();
        used.sort_by(|a, b| a.0.cmp(&b.0));
        used
    }
}

/// What was seen first at or after a moment, or last of all.
fn at<T>(looks: &[(Timestamp, T)], moment: Timestamp) -> Option<&T> {
    looks.iter().find(|(at, _)| *at >= moment).or(looks.last()).map(|(_, seen)| seen)
}

/// Ticks of a benchmark are exact in a float.
fn float(ticks: u64) -> f64 {
    u32::try_from(ticks).map_or(f64::INFINITY, f64::from)
}

/// Somebody who looks.
#[derive(Debug)]
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    /// None once it is joined.
    thread: Option<JoinHandle<Profile>>,
    gauges: [Gauge; 2],
    /// What the gauges of processor time and of the link have shown at first.
    before: ([(f64, f64); 2], u64),
}

impl Watch {
    /// Begins to look at the source and the target of a testbed.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchHost`]; [`crate::Error::Unexpected`] when a daemon does not run.
    pub(super) fn start(bed: &Testbed) -> Result<Self> {
        let gauges = Gauge::both(bed)?;
        for gauge in &gauges {
            gauge.set_peak_back()?;
        }
        let before = (clocks(&gauges)?, gauges[0].sent_bytes());
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let state = bed.state();
        let dumps = PathBuf::from(format!("/proc/{}/root", state.host(SOURCE)?.pid)).join(DUMPS);
        let mut processes = Processes::of(&Layout::new(&state.name)?);
        let looked_at = gauges.clone();
        let thread = thread::spawn(move || {
            let mut profile = Profile::default();
            let available = available_bytes();
            for look in 0_usize.. {
                let now = Timestamp::now();
                if profile.dumped.is_none() && is_dumped(&dumps) {
                    profile.dumped = Some(now);
                }
                let stat = fs::read_to_string("/proc/stat").ok();
                profile.cores.extend(stat.as_deref().and_then(clock).map(|clock| (now, clock)));
                let last = asked.load(Ordering::Relaxed);
                if last || look.is_multiple_of(PROCESSES_EVERY) {
                    processes.look();
                    profile.programs.push((now, processes.used.clone()));
                    profile.usage.look(&looked_at, available);
                }
                if last {
                    break;
                }
                thread::sleep(INTERVAL);
            }
            profile
        });
        Ok(Self { stop, thread: Some(thread), gauges, before })
    }

    /// Ends it.
    ///
    /// # Errors
    /// [`crate::Error::Io`] when a host is gone.
    pub(super) fn stop(mut self) -> Result<Profile> {
        let (clocks, sent) = (clocks(&self.gauges)?, self.gauges[0].sent_bytes());
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.take().map(JoinHandle::join).transpose();
        let mut profile = joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).unwrap_or_default();
        let usage = &mut profile.usage;
        usage.link_bytes = sent.saturating_sub(self.before.1);
        for (index, host) in usage.hosts.iter_mut().enumerate() {
            host.cpu_seconds = clocks[index].0 - self.before.0[index].0;
            host.daemon_cpu_seconds = clocks[index].1 - self.before.0[index].1;
            host.daemon_peak_bytes = self.gauges[index].daemon().peak;
        }
        Ok(profile)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Seconds of a core on each host: of all, and of the daemon and what it has started.
fn clocks(gauges: &[Gauge; 2]) -> Result<[(f64, f64); 2]> {
    let of = |gauge: &Gauge| Ok((gauge.cpu_seconds()?, gauge.daemon_cpu_seconds()?));
    Ok([of(&gauges[0])?, of(&gauges[1])?])
}

fn is_dumped(dumps: &Path) -> bool {
    fs::read_dir(dumps).is_ok_and(|entries| entries.flatten().any(|entry| entry.path().join(LAST_IMAGE).exists()))
}

/// The first line of proc_stat(5): `cpu user nice system idle iowait irq softirq steal …`.
fn clock(stat: &str) -> Option<Clock> {
    let ticks: Vec<u64> =
        stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8).map_while(|n| n.parse().ok()).collect();
    let [user, nice, system, idle, iowait, irq, softirq, steal] = *ticks.as_slice() else {
        return None;
    };
    let busy = user + nice + system + irq + softirq + steal;
    Some(Clock { busy, all: busy + idle + iowait })
}

/// The time that programs use, those that end meanwhile included as far as they were seen.
#[derive(Debug, Default)]
struct Processes {
    /// Part of the names of the cgroups on each host. (Its process namespace would not do: CRIU's children that restore a task are in
    /// the container's already.)
    hosts: Vec<(String, &'static str)>,
    /// Every process that was met: its host, if it is on one, and the ticks that are counted already.
    met: HashMap<i32, (Option<&'static str>, u64)>,
    used: HashMap<String, u64>,
    /// Whether this is not the first look: what a process had used before that does not count.
    begun: bool,
}

impl Processes {
    fn of(layout: &Layout) -> Self {
        let cgroup = |host| format!("/{}", layout.machine_root_cgroup(host).display());
        Self { hosts: [SOURCE, TARGET].map(|host| (cgroup(host), host)).into(), ..Self::default() }
    }

    fn look(&mut self) {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
            self.count(pid);
        }
        self.begun = true;
    }

    fn count(&mut self, pid: i32) {
        let met = self.met.get(&pid).copied();
        if matches!(met, Some((None, _))) {
            return;
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let Some((program, ticks)) = process(&stat) else { return };
        let (host, counted) = met.unwrap_or_else(|| {
            let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let host = self.hosts.iter().find(|(part, _)| cgroups.contains(part)).map(|(_, host)| *host);
            (host, if self.begun { 0 } else { ticks })
        });
        self.met.insert(pid, (host, ticks));
        // By the name that it has now: CRIU was runc before it was CRIU.
        if let (Some(host), true) = (host, PROGRAMS.contains(&program)) {
            *self.used.entry(format!("{program} on {host}")).or_default() += ticks.saturating_sub(counted);
        }
    }
}

/// Name and used ticks, user and system, of a process from proc_pid_stat(5). The name may contain anything.
fn process(stat: &str) -> Option<(&str, u64)> {
    let (before, after) = stat.rsplit_once(") ")?;
    let (_, name) = before.split_once('(')?;
    let mut fields = after.split(' ').skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((name, user + system))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn idle_and_waiting_for_disks_is_not_busy() {
        let stat = "cpu  100 1 20 1000 50 3 4 5 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(clock(stat), Some(Clock { busy: 133, all: 1183 }));
        assert_eq!(clock("cpu 1 2\n"), None);
    }

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 31 12 0 0 20 0 1 0 100 0 0\n";
        assert_eq!(process(stat), Some(("a) b (c)", 43)));
        assert_eq!(process(""), None);
    }

    #[test]
    fn a_program_has_used_what_it_used_between_two_moments() {
        let used = |ticks| HashMap::from([("criu on a".to_owned(), ticks), ("dockerd on b".to_owned(), 1)]);
        let profile = Profile {
            programs: vec![(second(1), HashMap::new()), (second(2), used(50)), (second(3), used(80))],
            ..Profile::default()
        };
        assert_eq!(profile.programs(second(1), second(3)), [("criu on a".to_owned(), 0.8)]);
        assert_eq!(profile.programs(second(2), second(9)), [("criu on a".to_owned(), 0.3)]);
    }
}
