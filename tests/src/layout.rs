//! Names, places and addresses of a testbed. Everything it leaves on the machine can be found again from these alone.
//!
//! Several testbeds may be up at once, each under a name of its own; their networks do not see each other, so all of them use
//! the same addresses.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Where Debian bases are kept between runs.
pub const CACHE: &str = "/var/cache/spothop-testbed";
/// Where the roots and engine data of running hosts are.
const DATA: &str = "/var/lib/spothop-testbed";
/// Where the state of running testbeds is.
const RUN: &str = "/run/spothop-testbed";
/// Prefix of our named network namespaces.
const NETNS_PREFIX: &str = "spothop-testbed-";
/// Where `ip netns` keeps named network namespaces (ip-netns(8)).
pub(crate) const NETNS: &str = "/run/netns";

/// The client's name; hosts are called `a`, `b`, `c`…
pub const CLIENT: &str = "client";
/// Hosts at most: each has 16 addresses for its containers between .128 and .255.
pub const MAX_HOSTS: u8 = 8;
/// The one subnet of the switch.
pub const SUBNET: &str = "172.30.0.0/24";
/// Length of the subnet's prefix.
pub const PREFIX: u8 = 24;
/// The subnet's gateway (an address of the client machine: nothing lies beyond the switch).
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 254);
/// The client's address.
pub const CLIENT_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 100);
/// Docker's macvlan network, the same on every host.
pub const LAN: &str = "lan";

/// Name of the host number `index`, from 0: `a`, `b`, `c`…
#[must_use]
pub fn host_name(index: u8) -> String {
    char::from(b'a' + index).to_string()
}

/// Address of the host number `index`, from 0: 172.30.0.1, .2, .3…
#[must_use]
pub fn host_address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, index + 1)
}

/// The addresses that host number `index` gives to containers which ask for none: 172.30.0.128/28, .144/28…
#[must_use]
pub fn container_range(index: u8) -> String {
    format!("172.30.0.{}/28", 128 + 16 * u16::from(index))
}

/// Hardware address of the machine with this IPv4 address: locally administered, readable in a packet dump.
#[must_use]
pub fn hardware_address(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:54:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// The places of one testbed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    name: String,
}

impl Layout {
    /// The testbed of this name.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless it is 1 to 16 lower-case letters, digits or `-`: it becomes part of file and link names.
    pub fn new(name: &str) -> Result<Self> {
        let fits = (1..=16).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !fits {
            return Err(Error::OutOfRange {
                what: "the testbed's name",
                value: format!("{name:?}"),
                allowed: "1 to 16 lower-case letters, digits or '-'".to_owned(),
            });
        }
        Ok(Self { name: name.to_owned() })
    }

    /// The testbed's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// State and sockets; gone after `down`.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        Path::new(RUN).join(&self.name)
    }

    /// The JSON state.
    #[must_use]
    pub fn state_file(&self) -> PathBuf {
        self.run_dir().join("state.json")
    }

    /// Certificates of the hosts, issued at `up`.
    #[must_use]
    pub fn tls_dir(&self) -> PathBuf {
        self.run_dir().join("tls")
    }

    /// State and sockets of one machine.
    #[must_use]
    pub fn machine_run_dir(&self, machine: &str) -> PathBuf {
        self.run_dir().join(machine)
    }

    /// What the supervisor of a machine is told.
    #[must_use]
    pub fn spec_file(&self, machine: &str) -> PathBuf {
        self.machine_run_dir(machine).join("spec.json")
    }

    /// What a machine's supervisor and first process print.
    #[must_use]
    pub fn console(&self, machine: &str) -> PathBuf {
        self.machine_run_dir(machine).join("console.log")
    }

    /// Control socket of a host's metadata service.
    #[must_use]
    pub fn imds_socket(&self, machine: &str) -> PathBuf {
        self.machine_run_dir(machine).join("imds.sock")
    }

    /// Roots and engine data of all machines; gone after `down`.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        Path::new(DATA).join(&self.name)
    }

    /// Root and engine data of one machine.
    #[must_use]
    pub fn machine_data_dir(&self, machine: &str) -> PathBuf {
        self.data_dir().join(machine)
    }

    /// What is /var/lib/spothop on one machine.
    #[must_use]
    pub fn state_disk(&self, machine: &str) -> PathBuf {
        self.machine_data_dir(machine).join("spothop")
    }

    /// The network namespace that is the switch.
    #[must_use]
    pub fn switch_namespace(&self) -> String {
        format!("{NETNS_PREFIX}{}", self.name)
    }

    /// Where that namespace is found.
    #[must_use]
    pub fn switch_namespace_file(&self) -> PathBuf {
        Path::new(NETNS).join(self.switch_namespace())
    }

    /// The testbed's cgroup, relative to the root of the unified hierarchy.
    #[must_use]
    pub fn cgroup(&self) -> PathBuf {
        Path::new("spothop-testbed").join(&self.name)
    }

    /// The cgroup of one machine with all its processes, the supervisor's included.
    #[must_use]
    pub fn machine_cgroup(&self, machine: &str) -> PathBuf {
        self.cgroup().join(machine)
    }

    /// The cgroup that the machine sees as the root.
    #[must_use]
    pub fn machine_root_cgroup(&self, machine: &str) -> PathBuf {
        self.machine_cgroup(machine).join("root")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_ranges_neither_overlap_nor_meet_the_machines() {
        let ranges: Vec<_> = (0..MAX_HOSTS).map(container_range).collect();
        assert_eq!(ranges.first().map(String::as_str), Some("172.30.0.128/28"));
        assert_eq!(ranges.last().map(String::as_str), Some("172.30.0.240/28"));
        assert_eq!(host_address(MAX_HOSTS - 1), Ipv4Addr::new(172, 30, 0, 8));
    }

    #[test]
    fn names_that_would_break_paths_are_refused() {
        assert!(Layout::new("default").is_ok());
        for name in ["", "../x", "Name", "a/b", "seventeen-letters"] {
            assert!(Layout::new(name).is_err(), "{name}");
        }
    }
}
