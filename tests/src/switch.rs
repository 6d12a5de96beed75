//! The switch: a bridge in a network namespace of its own, one port for every machine.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use serde::{Deserialize, Serialize};

use crate::base::remove_if_there;
use crate::command::{command, ip, run};
use crate::error::{Context, Result};
use crate::layout::{Layout, NETNS};

/// Which frames a cut takes, as the machine behind the port sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Nothing arrives any more.
    In,
    /// Nothing gets out any more.
    Out,
    /// Nothing passes.
    #[default]
    Both,
}

/// The bridge's name inside its namespace.
const BRIDGE: &str = "br0";

/// The kernel takes a namespace's links away in its own time, but not in more than this.
const UNPLUG_LIMIT: Duration = Duration::from_secs(10);

/// The switch of one testbed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switch {
    namespace: String,
    layout: Layout,
}

impl Switch {
    /// The switch of the testbed with this layout, made or not.
    #[must_use]
    pub fn of(layout: &Layout) -> Self {
        Self { namespace: layout.switch_namespace(), layout: layout.clone() }
    }

    /// Makes it, with no ports.
    ///
    /// # Errors
    /// [`crate::Error::Command`] with the words of `ip`.
    pub fn create(&self) -> Result<()> {
        let namespace = &self.namespace;
        ip(&format!("netns add {namespace}"))?;
        ip(&format!("-n {namespace} link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"))?;
        ip(&format!("-n {namespace} link set {BRIDGE} up"))
    }

    /// Gives the calling process's network namespace an `eth0` whose other end is a port of the switch named `port`. With
    /// `mbit`, traffic in each direction is held to that rate.
    ///
    /// # Errors
    /// [`crate::Error::Command`] with the words of `ip` or `tc`.
    pub fn plug(&self, port: &str, hardware_address: &str, mbit: Option<u32>) -> Result<()> {
        let namespace = &self.namespace;
        ip(&format!("link add eth0 address {hardware_address} type veth peer name {port} netns {namespace}"))?;
        ip(&format!("-n {namespace} link set dev {port} master {BRIDGE} up"))?;
        if let Some(mbit) = mbit {
            shape(&["-n", namespace], port, mbit)?;
            shape(&[], "eth0", mbit)?;
        }
        Ok(())
    }

    /// Holds what goes through a machine's port to another rate in each direction, or to none any more where it was held to one. `inside`
    /// makes a command of words that runs inside the machine.
    ///
    /// # Errors
    /// [`crate::Error::Command`] with the words of `tc`; those of `inside`.
    pub fn shape(&self, port: &str, mbit: Option<u32>, inside: &dyn Fn(&[String]) -> Result<Command>) -> Result<()> {
        run(command("tc", ["-n", &self.namespace]).args(discipline(port, mbit)))?;
        let words = [vec!["tc".to_owned()], discipline("eth0", mbit)].concat();
        run(&mut inside(&words)?).map(drop)
    }

    /// Lets no frame through the port any more, or none in one direction. The machine keeps its carrier, as when a switch further
    /// away has failed. A later cut in another direction adds to it.
    ///
    /// # Errors
    /// [`crate::Error::Command`] with the words of `nft`.
    pub fn cut(&self, port: &str, direction: Direction) -> Result<()> {
        // What the port sends is what the machine gets. Not the bridge's own port state: a late word of the carrier opens a port again.
        let hooks: &[&str] = match direction {
            Direction::Both => &["egress", "ingress"],
            Direction::In => &["egress"],
            Direction::Out => &["ingress"],
        };
        let chain = |hook| {
            format!(
                "add chain netdev {port} {hook} {{ type filter hook {hook} device \"{port}\" priority 0; policy drop; }}"
            )
        };
        let chains: Vec<String> = hooks.iter().map(chain).collect();
        self.nft(&format!("add table netdev {port}; {}", chains.join("; ")))
    }

    /// Undoes every [`Switch::cut`] of the port.
    ///
    /// # Errors
    /// [`crate::Error::Command`] with the words of `nft`.
    pub fn heal(&self, port: &str) -> Result<()> {
        // Added first, because deleting what is not there is an error.
        self.nft(&format!("add table netdev {port}; delete table netdev {port}"))
    }

    /// Takes a machine off the switch: the cable with both its ends. The kernel does the same after the machine's end, but in its
    /// own time.
    ///
    /// # Errors
    /// [`crate::Error::Command`] with the words of `ip`.
    pub fn unplug(&self, port: &str) -> Result<()> {
        let namespace = &self.namespace;
        // "7: a@if6: <BROADCAST,…": the names and nothing else.
        let name = format!(" {port}@");
        let is_there = || {
            let all = run(&mut command("ip", ["-n", namespace, "-o", "link", "show"]))?;
            Ok(String::from_utf8_lossy(&all.stdout).contains(&name))
        };
        // It may go away by itself between the question and the word, and is there for a moment while it does.
        let end = Instant::now() + UNPLUG_LIMIT;
        while is_there()? {
            match ip(&format!("-n {namespace} link delete dev {port}")) {
                Err(error) if Instant::now() > end => return Err(error),
                _ => thread::sleep(Duration::from_millis(10)),
            }
        }
        self.nft(&format!("add table netdev {port}; delete table netdev {port}"))
    }

    /// Removes the switch with all its ports; nothing to do when it is not there.
    ///
    /// # Errors
    /// [`crate::Error::Command`] with the words of `ip`.
    pub fn destroy(&self) -> Result<()> {
        let file = self.layout.switch_namespace_file();
        if !fs::exists(&file).on("look for", &file)? {
            return Ok(());
        }
        if ip(&format!("netns delete {}", self.namespace)).is_err() {
            // An `ip netns add` that died half way leaves a file that is no namespace.
            remove_if_there(&file)?;
        }
        unmount_namespaces();
        Ok(())
    }

    fn nft(&self, commands: &str) -> Result<()> {
        let namespace = format!("--net={}", self.layout.switch_namespace_file().display());
        run(&mut command("nsenter", [&namespace, "nft", commands])).map(drop)
    }
}

/// The first `ip netns add` makes a mount of the directory of namespaces; it goes with the last one in it.
fn unmount_namespaces() {
    let directory = Path::new(NETNS);
    if fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none()) {
        let _ = umount2(directory, MntFlags::empty()); // not a mount, or in use again
    }
}

fn shape(namespace: &[&str], device: &str, mbit: u32) -> Result<()> {
    run(command("tc", namespace).args(discipline(device, Some(mbit)))).map(drop)
}

/// tc(8)'s words for a token bucket on what leaves `device`, or for taking it off. The bucket holds 2 ms at full rate and no less than
/// four of the largest packets that the kernel hands down in one piece (64 KiB), or the rate is not reached; a packet waits at most
/// 50 ms.
fn discipline(device: &str, mbit: Option<u32>) -> Vec<String> {
    let words = match mbit {
        Some(mbit) => {
            let burst = (u64::from(mbit) * 1_000_000 / 8 / 500).max(4 * 65_536);
            format!("qdisc replace dev {device} root tbf rate {mbit}mbit burst {burst} latency 50ms")
        }
        None => format!("qdisc delete dev {device} root"),
    };
    words.split(' ').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_holds_enough_for_its_rate() {
        let words = |mbit| discipline("eth0", mbit).join(" ");
        assert_eq!(words(Some(10)), "qdisc replace dev eth0 root tbf rate 10mbit burst 262144 latency 50ms");
        assert_eq!(words(Some(10_000)), "qdisc replace dev eth0 root tbf rate 10000mbit burst 2500000 latency 50ms");
        assert_eq!(words(None), "qdisc delete dev eth0 root");
    }
}
