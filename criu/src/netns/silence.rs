//! Silence: no packet leaves or enters a frozen container.
//!
//! Between dump and commit two network stacks can know the container's address. Whatever reaches the one that does not
//! know a connection is answered with a reset; and a frozen stack acknowledges data that the dump no longer contains. So
//! from the moment before CRIU reads the sockets everything is dropped at the devices of the source's namespace, where even the stack does
//! not see it.

use std::process::Command;

use super::nft::{self, Nft};
use super::{NetnsError, is_host, of_pid, within};
use crate::command;

/// Our table in the `netdev` family.
const TABLE: &str = "spothop";

/// Silence that waits for its moment: starting `nft` takes longer than what it does, and clients wait meanwhile.
#[derive(Debug)]
pub struct Silencing {
    nft: Nft,
    pid: i32,
}

impl Silencing {
    /// Prepares silence in the namespace of `pid`. Nothing happens if this is dropped.
    ///
    /// # Errors
    /// [`NetnsError::OfHost`] for a container with the host's network; or when `nft` cannot be started.
    pub fn prepare(pid: i32) -> Result<Self, NetnsError> {
        if is_host(pid)? {
            return Err(NetnsError::OfHost { pid });
        }
        within(&of_pid(pid), || Ok(Self { nft: Nft::prepare()?, pid }))
    }

    /// Drops every packet in both directions on every interface but loopback from now on, ARP included; in the place of any silence that
    /// there was.
    ///
    /// # Errors
    /// When `nft` fails (egress needs Linux ≥ 5.16).
    pub fn silence(self) -> Result<(), NetnsError> {
        let interfaces = within(&of_pid(self.pid), interfaces)?;
        Ok(self.nft.apply(&rules(&interfaces))?)
    }
}

/// Undoes [`Silencing::silence`]; no error when there was none.
///
/// # Errors
/// When the namespace is gone or `nft` fails.
pub fn unsilence(pid: i32) -> Result<(), NetnsError> {
    within(&of_pid(pid), || Ok(nft::apply(&absent("netdev"))?))
}

/// The nftables tables in the namespace of `pid`, each as `<family> <name>`, such as `netdev spothop`.
///
/// # Errors
/// When the process is gone or `nft` fails.
pub fn tables(pid: i32) -> Result<Vec<String>, NetnsError> {
    within(&of_pid(pid), || {
        let listing = command::run(Command::new("nft").args(["list", "tables"]), None)?;
        Ok(listed(&String::from_utf8_lossy(&listing.stdout)))
    })
}

/// What `nft list tables` prints: `table inet CRIU-4f1c…`, one a line.
fn listed(listing: &str) -> Vec<String> {
    listing.lines().filter_map(|line| line.trim().strip_prefix("table ")).map(str::to_owned).collect()
}

/// Interfaces of the calling thread's namespace, without loopback.
fn interfaces() -> Result<Vec<String>, NetnsError> {
    let all = nix::net::if_::if_nameindex()
        .map_err(|errno| NetnsError::Diagnostics { what: "list interfaces", source: errno.into() })?;
    Ok(all.iter().map(|i| i.name().to_string_lossy().into_owned()).filter(|name| name != "lo").collect())
}

/// nft commands after which there is no table of ours. `add` first, because deleting what is not there is an error.
pub(super) fn absent(family: &str) -> String {
    format!("add table {family} {TABLE}\ndelete table {family} {TABLE}\n")
}

fn rules(interfaces: &[String]) -> String {
    let mut text = absent("netdev");
    text.push_str(&format!("add table netdev {TABLE}\n"));
    for (at, name) in interfaces.iter().enumerate() {
        for hook in ["ingress", "egress"] {
            text.push_str(&format!(
                "add chain netdev {TABLE} {hook}{at} {{ type filter hook {hook} device \"{name}\" priority 0; policy drop; }}\n"
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interface_is_dropped_both_ways_and_the_table_is_made_anew() {
        let text = rules(&["eth0".into(), "eth1".into()]);
        assert!(text.starts_with("add table netdev spothop\ndelete table netdev spothop\nadd table netdev spothop\n"));
        assert_eq!(text.matches("policy drop").count(), 4);
        assert!(text.contains("hook egress device \"eth1\""));
    }

    #[test]
    fn tables_are_listed_by_family_and_name() {
        assert_eq!(listed("table ip nat\ntable netdev spothop\n"), ["ip nat", "netdev spothop"]);
    }

    #[test]
    fn a_container_with_the_hosts_network_is_not_silenced() {
        let own = std::process::id().cast_signed();
        assert!(matches!(Silencing::prepare(own), Err(NetnsError::OfHost { pid }) if pid == own));
    }
}
