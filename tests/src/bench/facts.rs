//! What the figures were measured on.

use std::fs;
use std::path::Path;
use std::thread;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};
use crate::testbed::Testbed;

use super::SOURCE;

/// The machine and the programs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Facts {
    /// Cores that all hosts share.
    pub(super) cores: usize,
    /// Memory that all hosts share, in GiB.
    pub(super) memory_gib: f64,
    /// The kernel's release.
    pub(super) kernel: String,
    /// Mean number of tasks that wanted a core in the minute before: well above 0, and others were at work too.
    pub(super) load: String,
    /// Rate of the hosts' links in Mbit/s; none: as fast as the machine can.
    pub(super) link_mbit: Option<u32>,
    /// Programs on the hosts and their versions.
    pub(super) versions: Vec<(String, String)>,
}

/// Programs whose versions are told, and the words that make them tell.
const PROGRAMS: [(&str, &[&str]); 7] = [
    ("spothop", &["spothop", "--version"]),
    ("docker", &["docker", "version", "--format", "{{.Server.Version}}"]),
    ("podman", &["podman", "version", "--format", "{{.Client.Version}}"]),
    ("runc", &["runc", "--version"]),
    ("crun", &["crun", "--version"]),
    ("criu", &["criu", "--version"]),
    ("iperf3", &["iperf3", "--version"]),
];

impl Facts {
    /// What they are, as a sentence goes on after "Measured".
    pub(super) fn sentence(&self) -> String {
        let link =
            self.link_mbit.map_or_else(|| "an unlimited link".to_owned(), |mbit| format!("a link of {mbit} Mbit/s"));
        let versions: Vec<_> = self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        format!(
            "both hosts and the client on one machine with {} cores, {:.0} GiB and Linux {}, {link}; {}; the machine's load before was {}",
            self.cores,
            self.memory_gib,
            self.kernel,
            versions.join(", "),
            self.load,
        )
    }

    /// Asks the machine and the source host.
    ///
    /// # Errors
    /// [`crate::Error::Io`], [`crate::Error::Command`].
    pub(super) fn gather(bed: &Testbed) -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).on("read", Path::new(path));
        let mut versions = Vec::new();
        for (name, words) in PROGRAMS {
            versions.push((name.to_owned(), version(&bed.output(SOURCE, words)?)));
        }
        Ok(Self {
            cores: thread::available_parallelism().map_or(1, usize::from),
            memory_gib: memory_gib(&read("/proc/meminfo")?),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            load: read("/proc/loadavg")?.split(' ').next().unwrap_or_default().to_owned(),
            link_mbit: bed.state().link_mbit,
            versions,
        })
    }
}

/// The first word that begins with a digit.
fn version(text: &str) -> String {
    text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit())).unwrap_or("?").to_owned()
}

/// `MemTotal` of proc_meminfo(5), which is in KiB.
fn memory_gib(meminfo: &str) -> f64 {
    let kib: Option<f64> = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok());
    kib.unwrap_or_default() / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        assert_eq!(version("runc version 1.3.6+ds1\nspec: 1.2.1"), "1.3.6+ds1");
        assert_eq!(version("Version: 4.2.1"), "4.2.1");
        assert_eq!(version("28.5.2+dfsg4"), "28.5.2+dfsg4");
        assert_eq!(version("spothop"), "?");
    }

    #[test]
    fn memory_is_told_in_gib() {
        assert!((memory_gib("MemTotal:       25165824 kB\nMemFree: 1 kB\n") - 24.0).abs() < 1e-9);
    }
}
