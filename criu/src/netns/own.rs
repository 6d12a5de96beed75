//! The network namespace in which a restore starts, before the engine has plugged its network into it.
//!
//! A connection's socket can be made only where its address is local and its peer has a route. So the namespace gets the
//! container's addresses on its loopback, and a default route of last resort; and it stays silent until `start`, so that no
//! packet meets a half-restored stack. The engine then plugs its interfaces into the same namespace.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::nft::{self, Nft};
use super::{NetnsError, silence, within};
use crate::command::{self, Started};

/// Where iproute2 names namespaces.
const NAMED: &str = "/run/netns";

/// Where kernel parameters are files; those below `net` are the ones of the reader's namespace.
const SYSCTLS: &str = "/proc/sys";

/// How the names of ours begin.
const PREFIX: &str = "spothop-";

/// Metric of our default route: worse than anything that an engine sets, so it never wins once a real one is there.
const METRIC: u32 = 4_000_000;

/// The mark of packets that CRIU sends to itself (`SOCCR_MARK` in soccr/soccr.h).
const CRIU_MARK: &str = "0xC114";

/// A named network namespace made by us: `/run/netns/spothop-<suffix>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnNetns {
    name: String,
}

impl OwnNetns {
    /// The namespace of `migration`; nothing is created. Its name ends in the id's last 12 digits, the random ones.
    pub fn of(migration: &str) -> Self {
        let start = migration.len().saturating_sub(12);
        Self { name: format!("{PREFIX}{}", migration.get(start..).unwrap_or(migration)) }
    }

    /// The namespace called `name` in `/run/netns`.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// The one whose file is `path`, if that is a namespace made by us.
    pub fn at(path: &Path) -> Option<Self> {
        let name = path.strip_prefix(NAMED).ok()?.to_str()?;
        name.starts_with(PREFIX).then(|| Self::named(name))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file, as OCI bundles name a namespace.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMED).join(&self.name)
    }

    /// Makes the namespace, with `addresses` on its loopback, these kernel parameters (`net.core.somaxconn`, `1024`), and every packet
    /// dropped; one left over is replaced.
    ///
    /// # Errors
    /// When `ip` or `nft` fails; nothing is left then.
    pub fn create(&self, addresses: &[IpAddr], sysctls: &[(String, String)]) -> Result<(), NetnsError> {
        self.delete();
        command::run(Command::new("ip").args(["netns", "add", &self.name]), None)?;
        let configured = self.configure(addresses, sysctls);
        if configured.is_err() {
            self.delete();
        }
        configured
    }

    fn configure(&self, addresses: &[IpAddr], sysctls: &[(String, String)]) -> Result<(), NetnsError> {
        self.ip(&up_commands(addresses))?;
        self.set(sysctls)?;
        hold(&self.path())
    }

    /// A parameter that cannot be set is no reason to give the container up: its connections do not depend on it.
    fn set(&self, sysctls: &[(String, String)]) -> Result<(), NetnsError> {
        within(&self.path(), || {
            for (key, value) in sysctls {
                if let Err(error) = fs::write(sysctl_file(key), value) {
                    tracing::warn!(netns = self.name, key, value, %error, "a kernel parameter is not set");
                }
            }
            Ok(())
        })
    }

    /// Prepares to take the addresses and the route off the loopback again. Nothing happens if this is dropped.
    ///
    /// # Errors
    /// When `ip` cannot be started.
    pub fn prepare_release(&self, addresses: &[IpAddr]) -> Result<Release, NetnsError> {
        Ok(Release { ip: Started::new(&mut self.ip_batch())?, commands: down_commands(addresses) })
    }

    /// Removes the name. The namespace itself lives for as long as tasks are in it; no error when there is none.
    pub fn delete(&self) {
        if self.path().exists() {
            // What remains is a name without use; the next `create` of the same name removes it.
            if let Err(error) = command::run(Command::new("ip").args(["netns", "delete", &self.name]), None) {
                tracing::warn!(netns = self.name, %error, "a network namespace is left over");
            }
        }
    }

    fn ip(&self, batch: &str) -> Result<(), NetnsError> {
        command::run(&mut self.ip_batch(), Some(batch))?;
        Ok(())
    }

    fn ip_batch(&self) -> Command {
        let mut ip = Command::new("ip");
        ip.args(["-netns", &self.name, "-batch", "-"]);
        ip
    }
}

/// The container's addresses, about to leave the loopback: the engine's own count then, and connections live on.
#[derive(Debug)]
pub struct Release {
    ip: Started,
    commands: String,
}

impl Release {
    /// Does it.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn release(self) -> Result<(), NetnsError> {
        Ok(self.ip.finish(&self.commands)?)
    }
}

/// Drops everything that the stack of the namespace at `path` would send or take, until [`open`]. Idempotent.
///
/// # Errors
/// When the namespace cannot be entered or `nft` fails.
pub fn hold(path: &Path) -> Result<(), NetnsError> {
    within(path, || Ok(nft::apply(&drop_rules())?))
}

/// Ends [`hold`]; no error when there was none.
///
/// # Errors
/// When the namespace cannot be entered or `nft` fails.
pub fn open(path: &Path) -> Result<(), NetnsError> {
    Opening::prepare(path)?.open()
}

/// An [`open`] that waits for its moment: starting `nft` takes longer than what it does, and clients wait meanwhile.
#[derive(Debug)]
pub struct Opening {
    nft: Nft,
}

impl Opening {
    /// Prepares [`open`] of the namespace at `path`. Nothing happens if this is dropped.
    ///
    /// # Errors
    /// When the namespace cannot be entered or `nft` cannot be started.
    pub fn prepare(path: &Path) -> Result<Self, NetnsError> {
        within(path, || Ok(Self { nft: Nft::prepare()? }))
    }

    /// Does it.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn open(self) -> Result<(), NetnsError> {
        Ok(self.nft.apply(&silence::absent("inet"))?)
    }
}

/// The file of a kernel parameter. Whichever of `.` and `/` comes first separates, and the other stands for it inside a part: an
/// interface may be called `eth0.7` (sysctl.d(5)).
fn sysctl_file(key: &str) -> PathBuf {
    let slashes = key.find(['.', '/']).is_some_and(|at| key[at..].starts_with('/'));
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    Path::new(SYSCTLS).join(if slashes { key.to_owned() } else { key.chars().map(swap).collect() })
}

fn up_commands(addresses: &[IpAddr]) -> String {
    let mut text = String::from("link set lo up\n");
    for address in addresses {
        text.push_str(&format!("address add {} dev lo\n", host_prefix(address)));
    }
    for prefix in default_prefixes(addresses) {
        text.push_str(&format!("route add {prefix} dev lo metric {METRIC}\n"));
    }
    text
}

fn down_commands(addresses: &[IpAddr]) -> String {
    let mut text = String::new();
    for prefix in default_prefixes(addresses) {
        text.push_str(&format!("route del {prefix} dev lo metric {METRIC}\n"));
    }
    for address in addresses {
        text.push_str(&format!("address del {} dev lo\n", host_prefix(address)));
    }
    text
}

fn host_prefix(address: &IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

/// "Everything" in each family that `addresses` has; `ip -batch` tells the family by the prefix.
fn default_prefixes(addresses: &[IpAddr]) -> impl Iterator<Item = &'static str> {
    let v4 = addresses.iter().any(IpAddr::is_ipv4).then_some("0.0.0.0/0");
    let v6 = addresses.iter().any(IpAddr::is_ipv6).then_some("::/0");
    v4.into_iter().chain(v6)
}

/// Drops what the namespace's own stack would send or take. CRIU brings half-closed connections into their state by packets
/// that it sends to itself, marked: they pass.
fn drop_rules() -> String {
    let mut text = silence::absent("inet");
    text.push_str("add table inet spothop\n");
    for hook in ["input", "output"] {
        text.push_str(&format!(
            "add chain inet spothop {hook} {{ type filter hook {hook} priority -500; policy drop; }}\n\
             add rule inet spothop {hook} meta mark {CRIU_MARK} accept\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_on_the_loopback_is_taken_off_again() {
        let addresses = ["172.30.0.50".parse().unwrap(), "fd00::5".parse().unwrap()];
        let (up, down) = (up_commands(&addresses), down_commands(&addresses));
        assert!(up.contains("address add 172.30.0.50/32 dev lo\n") && up.contains("address add fd00::5/128 dev lo\n"));
        assert!(up.contains("route add ::/0 dev lo metric 4000000\n"));
        let undone: Vec<String> = down.lines().map(|l| l.replace(" del ", " add ")).collect();
        assert!(undone.iter().all(|line| up.lines().any(|l| l == line)), "{down}");
        assert_eq!(undone.len(), 4);
    }

    #[test]
    fn the_file_of_a_kernel_parameter_follows_its_first_separator() {
        for (key, file) in [
            ("net.core.somaxconn", "/proc/sys/net/core/somaxconn"),
            ("net/ipv4/conf/eth0.7/mtu", "/proc/sys/net/ipv4/conf/eth0.7/mtu"),
            ("net.ipv4.conf.eth0/7.mtu", "/proc/sys/net/ipv4/conf/eth0.7/mtu"),
        ] {
            assert_eq!(sysctl_file(key), Path::new(file));
        }
    }

    #[test]
    fn only_our_own_namespaces_are_known_by_their_path() {
        let own = OwnNetns::of("0191e0a0-0000-7000-8000-0000000000ff");
        assert_eq!(OwnNetns::at(&own.path()), Some(own));
        for other in ["/run/netns/cni-1", "/var/run/docker/netns/spothop-1", "/proc/7/ns/net"] {
            assert_eq!(OwnNetns::at(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn a_name_carries_the_random_end_of_the_migration_id() {
        let netns = OwnNetns::of("0191e0a0-0000-7000-8000-00000000abcd");
        assert_eq!(netns.path(), Path::new("/run/netns/spothop-00000000abcd"));
    }
}
