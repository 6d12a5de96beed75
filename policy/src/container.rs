//! What the planner knows about a container.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::labels;
use crate::rates::Leaves;
use crate::refusal::Refusal;

/// What becomes of the container's address when it moves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkIdentity {
    /// The address moves along (macvlan, ipvlan, overlay): the target needs the very same networks, driver and subnets included.
    KeepIp,
    /// The target gives another address; networks are matched by name only.
    #[default]
    NewIp,
    /// The container uses its host's network.
    Host,
    /// The container has no network.
    None,
}

/// A network of the container engine, as a container needs it or a host has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// The engine's name for it, the same on every host.
    pub name: String,
    /// The engine's driver: `bridge`, `macvlan`, `overlay`…
    pub driver: String,
    /// Subnets in CIDR notation, as the engine writes them.
    pub subnets: Vec<String>,
}

/// A running container on the source host.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Container {
    /// The engine's id. Unique within a request.
    pub id: String,
    /// The engine's name.
    pub name: String,
    /// From the label `io.spothop.priority`: the higher goes first.
    pub priority: i64,
    /// Memory the container uses now, in bytes. It is sent, and stays in use at the target.
    pub memory_bytes: u64,
    /// Memory the target needs besides, in bytes, only until this migration is over (the images, which lie in a tmpfs).
    pub staging_bytes: u64,
    /// Writable layer and copied volumes, in bytes.
    pub disk_bytes: u64,
    /// The image's architecture in the engine's own words (`amd64`, `arm64`).
    pub architecture: String,
    /// The image's id, looked up in [`Facts::images`](crate::Facts::images).
    pub image: String,
    /// The image's size in bytes; sent to a target that does not have it.
    pub image_bytes: u64,
    /// What becomes of its address.
    pub identity: NetworkIdentity,
    /// Networks that the target must have.
    pub networks: Vec<Network>,
    /// Why this container cannot be migrated to any host at all, each a text for the operator. Empty: it can be.
    pub obstacles: Vec<String>,
    /// Its labels, those of its image included. Those that the planner reads are the constants of [`labels`](crate::labels).
    pub labels: BTreeMap<String, String>,
    /// Processor time that it uses, in thousandths of a processor, on average since it began. 0: nobody has looked.
    pub cpu_milli: u64,
    /// In which way its memory went when moving it from here was last aborted, where part of it was to follow. `None`: it never was.
    #[serde(default)]
    pub failed_by: Option<Leaves>,
    /// Mounts that the target must have already: directories by their path on the host, volumes by their name.
    pub mounts: Vec<String>,
}

/// Without the values of its labels: there may be passwords among them.
impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("priority", &self.priority)
            .field("memory_bytes", &self.memory_bytes)
            .field("staging_bytes", &self.staging_bytes)
            .field("disk_bytes", &self.disk_bytes)
            .field("image", &self.image)
            .field("identity", &self.identity)
            .field("obstacles", &self.obstacles)
            .field("labels", &self.labels.keys().collect::<Vec<_>>())
            .field("cpu_milli", &self.cpu_milli)
            .field("mounts", &self.mounts)
            .finish_non_exhaustive()
    }
}

impl Container {
    /// Groups of which no two containers may be on one host, from the label `io.spothop.group`.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        labels::words(self.labels.get(labels::GROUP))
    }

    /// Names of containers that it must not be on one host with, from the label `io.spothop.avoid-with`.
    pub fn avoids(&self) -> impl Iterator<Item = &str> {
        labels::words(self.labels.get(labels::AVOID_WITH))
    }

    /// Why both must not be on one host; none if they may.
    pub(crate) fn conflict(&self, other: &Self) -> Option<Refusal> {
        if let Some(group) = self.groups().find(|group| other.groups().any(|has| has == *group)) {
            return Some(Refusal::GroupTaken { group: group.to_owned() });
        }
        let avoids = self.avoids().any(|name| name == other.name) || other.avoids().any(|name| name == self.name);
        avoids.then(|| Refusal::AvoidsContainer { name: other.name.clone() })
    }
}
