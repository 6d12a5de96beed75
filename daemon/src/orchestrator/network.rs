//! A container's place in the network: its addresses, and whether it can keep them on another host.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What becomes of a container's addresses when it moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It keeps address and MAC (all its networks reach into the hosts' own layer 2: macvlan, ipvlan in mode l2); established
    /// connections survive.
    KeepIp,
    /// It gets a new address (at least one network ends at the host: bridge); listeners stay, connections are reset.
    NewIp,
    /// It uses the host's own network.
    Host,
    /// It has a loopback device only.
    None,
}

impl fmt::Display for Mode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::KeepIp => "keep-ip",
            Self::NewIp => "new-ip",
            Self::Host => "host",
            Self::None => "none",
        })
    }
}

/// All networks of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// What becomes of the addresses.
    pub mode: Mode,
    /// One for each network, sorted by the network's name. Empty in modes `host` and `none`.
    pub attachments: Vec<Attachment>,
}

impl Identity {
    /// All addresses of the container, in the order of its attachments, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.attachments.iter().flat_map(|attachment| [attachment.ipv4, attachment.ipv6]).flatten().collect()
    }

    /// Names of the networks that the target must have.
    pub fn networks(&self) -> impl Iterator<Item = &str> {
        self.attachments.iter().map(|attachment| attachment.network.as_str())
    }
}

/// One network that a container is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Name of the network; the target must have one of the same name and driver.
    pub network: String,
    /// Driver of the network.
    pub driver: String,
    /// Address in it.
    #[serde(default)]
    pub ipv4: Option<IpAddr>,
    /// IPv6 address in it (not the link-local one).
    #[serde(default)]
    pub ipv6: Option<IpAddr>,
    /// MAC address, `02:42:…`.
    #[serde(default)]
    pub mac: Option<String>,
    /// This address goes along, even where another network of the container makes its mode `new-ip`.
    #[serde(default)]
    pub keeps_address: bool,
}

/// A network of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Its driver: `bridge`, `macvlan`, `ipvlan`, `overlay`, `host`, `null`.
    pub driver: String,
    /// `local` or `swarm`.
    pub scope: String,
    /// Its subnets in CIDR notation.
    pub subnets: Vec<String>,
    /// Addresses stay the same when a container moves to a network of this name on another host.
    pub keeps_addresses: bool,
}

/// Whether a driver puts containers into the hosts' own layer 2, so that an address can go on at another host.
///
/// Overlay networks do so too, but their address management is common to all hosts and gives an address to nobody else
/// while the source still has it: they are refused (see [`super::Obstacle::SwarmNetwork`]).
pub(super) fn keeps_addresses(driver: &str, ipvlan_mode: Option<&str>) -> bool {
    match driver {
        "macvlan" => true,
        // Docker's default for `-o ipvlan_mode` is l2.
        "ipvlan" => matches!(ipvlan_mode, None | Some("" | "l2")),
        _ => false,
    }
}

/// Whether a subnet in CIDR notation contains an address. Nonsense contains nothing.
pub(super) fn contains(subnet: &str, address: IpAddr) -> bool {
    let Some((network, length)) = subnet.split_once('/') else { return false };
    let (Ok(network), Ok(length)) = (network.parse::<IpAddr>(), length.parse::<u32>()) else { return false };
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) if length <= 32 => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            network.to_bits() & mask == address.to_bits() & mask
        }
        (IpAddr::V6(network), IpAddr::V6(address)) if length <= 128 => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            network.to_bits() & mask == address.to_bits() & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_drivers_on_the_hosts_layer_two_keep_addresses() {
        assert!(keeps_addresses("macvlan", None));
        assert!(keeps_addresses("ipvlan", None));
        assert!(keeps_addresses("ipvlan", Some("l2")));
        assert!(!keeps_addresses("ipvlan", Some("l3")));
        assert!(!keeps_addresses("bridge", None));
        assert!(!keeps_addresses("overlay", None));
    }

    #[test]
    fn subnets_contain_their_addresses_and_no_others() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert!(contains("10.7.0.0/16", address("10.7.255.1")));
        assert!(!contains("10.7.0.0/16", address("10.8.0.1")));
        assert!(contains("0.0.0.0/0", address("1.2.3.4")));
        assert!(contains("fd00::/64", address("fd00::9")));
        assert!(!contains("fd00::/64", address("10.7.0.1")));
        assert!(!contains("nonsense", address("10.7.0.1")));
        assert!(!contains("10.0.0.0/99", address("10.0.0.1")));
    }
}
