//! What hosts use: processor time by their cgroups, which forget nobody, memory by the kernel's own marks and by looking often.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use crate::testbed::Testbed;
use crate::torture::inside::Inside;

use super::HOSTS;

/// What a move has used, host by host: the source first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Usage {
    pub(super) hosts: [HostUsage; 2],
    /// Bytes that left the source on its link, with the headers of every protocol.
    pub(super) link_bytes: u64,
    /// By how much the memory that is free for programs on the whole machine was less than before, in bytes, at the worst.
    pub(super) machine_bytes: u64,
}

/// What one host has used.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct HostUsage {
    /// Seconds of a core, all of its processes, the container's own included.
    pub(super) cpu_seconds: f64,
    /// Those of spothop's daemon and of what it has started.
    pub(super) daemon_cpu_seconds: f64,
    /// The most that the daemon had in memory, in bytes (VmHWM).
    pub(super) daemon_peak_bytes: u64,
    /// The most that it had of its own, and in shared memory, in bytes, as far as it was seen.
    pub(super) daemon_own_bytes: u64,
    pub(super) daemon_shared_bytes: u64,
    /// The most that was in spothop's file systems in memory, in bytes, as far as it was seen.
    pub(super) store_bytes: u64,
}

impl Usage {
    /// Keeps what is more than was seen before. `available` is what was free for programs at first, in bytes.
    pub(super) fn look(&mut self, gauges: &[Gauge; 2], available: u64) {
        self.machine_bytes = self.machine_bytes.max(available.saturating_sub(available_bytes()));
        for (host, gauge) in self.hosts.iter_mut().zip(gauges) {
            let daemon = gauge.daemon();
            host.daemon_own_bytes = host.daemon_own_bytes.max(daemon.own);
            host.daemon_shared_bytes = host.daemon_shared_bytes.max(daemon.shared);
            host.store_bytes = host.store_bytes.max(gauge.store_bytes());
        }
    }
}

/// One host, as it is measured from outside.
#[derive(Debug, Clone)]
pub(super) struct Gauge {
    inside: Inside,
    cgroup: PathBuf,
    /// Its process 1.
    pid: i32,
    daemon: i32,
}

/// What a process has in memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Resident {
    /// The most that it ever had, or since the mark was set back.
    pub(super) peak: u64,
    /// What it has now: its own, of files, shared.
    pub(super) own: u64,
    pub(super) files: u64,
    pub(super) shared: u64,
}

impl Resident {
    /// All that it has now.
    pub(super) fn all(&self) -> u64 {
        self.own + self.files + self.shared
    }

    /// `VmHWM`, `RssAnon`, `RssFile` and `RssShmem` of proc_pid_status(5).
    fn parse(status: &str) -> Self {
        let of = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
        };
        Self { peak: of("VmHWM:"), own: of("RssAnon:"), files: of("RssFile:"), shared: of("RssShmem:") }
    }
}

impl Gauge {
    /// The host as it runs now, with the daemon that runs on it now.
    pub(super) fn of(bed: &Testbed, host: &str) -> Result<Self> {
        let inside = Inside::of(bed, host)?;
        let daemon = inside.daemon().map(|process| process.pid).ok_or_else(|| Error::Unexpected {
            what: "the daemon's process".to_owned(),
            text: format!("none on host {host}"),
        })?;
        let cgroup = Cgroup::at(&bed.layout().machine_root_cgroup(host))?.path().to_owned();
        Ok(Self { inside, cgroup, pid: bed.state().host(host)?.pid, daemon })
    }

    /// Those of both hosts.
    pub(super) fn both(bed: &Testbed) -> Result<[Self; 2]> {
        Ok([Self::of(bed, HOSTS[0])?, Self::of(bed, HOSTS[1])?])
    }

    /// Seconds of a core that all processes of the host have used so far.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(&self.cgroup)
    }

    /// Seconds of a core that the daemon and what it has started have used so far.
    pub(super) fn daemon_cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(&self.cgroup.join("system.slice/spothop.service"))
    }

    /// What the daemon has in memory.
    pub(super) fn daemon(&self) -> Resident {
        Resident::parse(&fs::read_to_string(format!("/proc/{}/status", self.daemon)).unwrap_or_default())
    }

    /// Lets the daemon's peak begin with what it has now (`5` in proc_pid_clear_refs(5)).
    pub(super) fn set_peak_back(&self) -> Result<()> {
        let path = PathBuf::from(format!("/proc/{}/clear_refs", self.daemon));
        fs::write(&path, "5").on("write", &path)
    }

    /// Bytes in spothop's own file systems in memory.
    pub(super) fn store_bytes(&self) -> u64 {
        let mounts = self.inside.mounts();
        let ours =
            mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| at.starts_with("/run/spothop/"));
        let used = ours.filter_map(|at| statvfs(&self.inside.path(at)).ok());
        used.map(|fs| (fs.blocks() - fs.blocks_free()) * fs.fragment_size()).sum()
    }

    /// Bytes that have left the host on its link.
    pub(super) fn sent_bytes(&self) -> u64 {
        sent_bytes(&fs::read_to_string(format!("/proc/{}/net/dev", self.pid)).unwrap_or_default(), "eth0").unwrap_or(0)
    }
}

/// `usage_usec` of `cpu.stat` (cgroup-v2.rst): of all that are or were in the cgroup and below.
fn cpu_seconds(cgroup: &Path) -> Result<f64> {
    let path = cgroup.join("cpu.stat");
    let text = fs::read_to_string(&path).on("read", &path)?;
    parse_cpu(&text).ok_or_else(|| Error::Unexpected { what: path.display().to_string(), text })
}

fn parse_cpu(stat: &str) -> Option<f64> {
    let micros: u64 = stat.lines().find_map(|line| line.strip_prefix("usage_usec "))?.parse().ok()?;
    Some(micros as f64 / 1e6)
}

/// The ninth number of an interface in proc_pid_net(5), `dev`.
fn sent_bytes(dev: &str, interface: &str) -> Option<u64> {
    let line = dev.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))?;
    line.split_whitespace().nth(8)?.parse().ok()
}

/// `MemAvailable` of proc_meminfo(5), in bytes.
pub(super) fn available_bytes() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_figures_are_read() {
        let status = "Name:\tx\nVmHWM:\t   48000 kB\nVmRSS:\t   400 kB\nRssAnon:\t 100 kB\nRssFile:\t 200 kB\nRssShmem:\t 100 kB\n";
        let resident = Resident::parse(status);
        assert_eq!((resident.peak, resident.own, resident.all()), (48_000 << 10, 100 << 10, 400 << 10));
        assert_eq!(parse_cpu("usage_usec 2500000\nuser_usec 1\n"), Some(2.5));
        assert_eq!(parse_cpu(""), None);
        let dev = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes\n    \
                   lo: 1 2 3 4 5 6 7 8 9 10 11\n  eth0: 100 2 0 0 0 0 0 0 4711 3 0 0 0 0 0 0\n";
        assert_eq!(sent_bytes(dev, "eth0"), Some(4711));
        assert_eq!(sent_bytes(dev, "eth1"), None);
        assert!(available_bytes() > 0);
    }
}
