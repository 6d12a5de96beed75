//! What the planner knows about the hosts: the source and the possible targets.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::container::Network;
use crate::version::{ProtocolRange, Version};

/// The host whose containers are planned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name in the inventory. A host of this name is never a target.
    pub name: String,
    /// Its kernel. A target's must be of the same release line or a newer one: an older one may lack what the tasks use.
    pub kernel: Version,
    /// Its CRIU. A target's must be of the same release line or a newer one: CRIU reads older images, not newer ones.
    pub criu: Version,
    /// Protocol versions it speaks.
    pub protocol: ProtocolRange,
    /// The zone it is in, in the cloud's own words (`eu-west-1a`). `None`: nobody has said.
    #[serde(default)]
    pub zone: Option<String>,
    /// The spot pool it is of: machines that a cloud takes back together, such as an instance type in a zone (`c7i.large/eu-west-1a`).
    /// `None`: it is of none, or nobody has said.
    #[serde(default)]
    pub pool: Option<String>,
    /// What the operator says of it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A host of the inventory. Names are unique within a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name in the inventory.
    pub name: String,
    /// What was learnt when it was asked.
    pub state: HostState,
}

/// Whether a host answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(clippy::large_enum_variant, reason = "nearly all hosts answer: a box would only add an allocation to each")]
pub enum HostState {
    /// It answered with these facts.
    Reachable(Facts),
    /// It did not answer.
    Unreachable {
        /// Why, for the operator.
        reason: String,
    },
}

/// What a reachable host said about itself.
///
/// Hosts of an earlier version say less: what they leave out is its default, which speaks neither for nor against them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// In the engine's own words (`amd64`, `arm64`).
    pub architecture: String,
    /// Its kernel.
    pub kernel: Version,
    /// Its CRIU; `None` when it has none that runs.
    pub criu: Option<Version>,
    /// Protocol versions it speaks.
    pub protocol: ProtocolRange,
    /// Memory available now, in bytes (`MemAvailable`).
    pub free_memory_bytes: u64,
    /// How much of that is not for migrated containers, in bytes: the operator's reserve and reservations already accepted.
    pub reserved_memory_bytes: u64,
    /// Room for writable layers, volumes and images, in bytes.
    pub free_disk_bytes: u64,
    /// Networks of its container engine.
    #[serde(default)]
    pub networks: Vec<Network>,
    /// Ids of the images it has.
    #[serde(default)]
    pub images: Vec<String>,
    /// Whether the source's processes can go on on its CPU.
    #[serde(default)]
    pub cpu: CpuVerdict,
    /// Set when the host is itself about to be taken away: what it was told, for the operator.
    pub under_notice: Option<String>,
    /// Set when the host takes no containers at present: why, for the operator (drained, runtime not registered, …).
    pub declines: Option<String>,
    /// The zone it is in, in the cloud's own words (`eu-west-1a`). `None`: nobody has said.
    #[serde(default)]
    pub zone: Option<String>,
    /// Its type, in the cloud's own words (`c7i.large`); only shown. `None`: nobody has said.
    #[serde(default)]
    pub machine_type: Option<String>,
    /// The spot pool it is of, as [`Source::pool`].
    #[serde(default)]
    pub pool: Option<String>,
    /// What its operator says of it (`[host] labels`).
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Processors. 0: nobody has said.
    #[serde(default)]
    pub cpus: u32,
    /// Load average of the last minute, in thousandths (`/proc/loadavg`; 1,500 is a processor and a half).
    #[serde(default)]
    pub load_milli: u64,
    /// What it costs, in millionths of a dollar an hour. `None`: nobody has said.
    #[serde(default)]
    pub price_micros: Option<u64>,
    /// Whether the cloud may take it away at any time. `None`: nobody has said.
    #[serde(default)]
    pub spot: Option<bool>,
    /// How likely the cloud is to have machines of its kind in its zone, from 1 to 10, as EC2's spot placement score. `None`: nobody
    /// has said.
    #[serde(default)]
    pub placement_score: Option<u8>,
    /// Interruption notices it had within the last 24 hours, those that were withdrawn included.
    #[serde(default)]
    pub notices_last_day: u32,
    /// Names of the containers that run there, for `io.spothop.avoid-with`.
    #[serde(default)]
    pub runs: Vec<String>,
    /// Groups ([`Container::groups`](crate::Container::groups)) of the containers that run there, or are about to.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Which of the shared mounts that it was asked about it has, as [`Container::mounts`](crate::Container::mounts) names them. `None`:
    /// it was not asked, or is of an earlier version; it then finds out when it makes the container.
    #[serde(default)]
    pub mounts: Option<Vec<String>>,
}

impl Facts {
    /// Memory that migrated containers may use, in bytes.
    pub const fn room_bytes(&self) -> u64 {
        self.free_memory_bytes.saturating_sub(self.reserved_memory_bytes)
    }
}

/// The answer of `criu cpuinfo check` at the target, given the source's `cpuinfo` image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuVerdict {
    /// It has every feature that the source's processes may use.
    Compatible,
    /// It lacks some.
    Incompatible {
        /// What is lacking, in CRIU's words.
        reason: String,
    },
    /// Not checked (yet). Such a host is a target only when no checked one will do; the restore itself still checks.
    #[default]
    Unknown,
}
