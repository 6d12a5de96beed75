//! `[host]`: who this host is, and what its operator says of it.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::{Address, ConfigError, DEFAULT_PORT, Place, Problem, address::is_host_name, capacity};

/// `[host]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The name by which peers know this host; its certificate carries it as DNS name. Default: the kernel's host name.
    pub name: String,
    /// Where to listen for peers. Default: port 7077 on every IPv4 address.
    pub listen: SocketAddr,
    /// The address that peers should use for this host, where it differs from what they would see (NAT, several
    /// interfaces). Default: none.
    pub advertise: Option<Address>,
    /// The zone that this host is in, in its cloud's words (`eu-west-1a`). Default: what the metadata service says, if there is one.
    pub zone: Option<String>,
    /// Its type, in its cloud's words (`c7i.large`). Default: what the metadata service says, if there is one.
    pub machine_type: Option<String>,
    /// Whether the cloud may take it away at any time. Default: what the metadata service says, if it does.
    pub spot: Option<bool>,
    /// What it costs, in millionths of a dollar an hour. Default: nobody knows, or `[provider.aws] spot_price`.
    pub price: Option<u64>,
    /// What the operator says of this host, as keys and values, for whoever chooses a target. Default: nothing.
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Table {
    name: Option<Spanned<String>>,
    listen: Option<SocketAddr>,
    advertise: Option<Address>,
    zone: Option<String>,
    machine_type: Option<String>,
    spot: Option<bool>,
    #[serde(deserialize_with = "price")]
    price: Option<u64>,
    labels: BTreeMap<String, String>,
}

impl Table {
    /// `host_name` is the name if the table gives none. `text` and `path` are the file's, for messages.
    pub(super) fn validate(self, text: &str, path: &Path, host_name: &str) -> Result<Host, ConfigError> {
        let name = match self.name {
            Some(name) if !is_host_name(name.get_ref()) => {
                return Err(ConfigError::At {
                    path: path.to_owned(),
                    place: Place::of(text, &name.span()),
                    problem: Problem::BadName(name.into_inner()),
                });
            }
            Some(name) => name.into_inner(),
            None if !is_host_name(host_name) => {
                return Err(ConfigError::HostName {
                    problem: Problem::BadName(host_name.to_owned()),
                    path: path.to_owned(),
                });
            }
            None => host_name.to_owned(),
        };
        Ok(Host {
            name,
            listen: self.listen.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, DEFAULT_PORT))),
            advertise: self.advertise,
            zone: self.zone,
            machine_type: self.machine_type,
            spot: self.spot,
            price: self.price,
            labels: self.labels,
        })
    }
}

fn price<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    capacity::dollars(from).map(Some)
}

/// The kernel's host name, or nothing that would pass as one.
pub(super) fn kernel_host_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
