//! Why a host is not a target for a container.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::quantity::Bytes;
use crate::version::{ProtocolRange, Version};

/// One hard constraint that a host does not meet. The message reads after the host's name; see [`HostRefusal`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Refusal {
    /// The host is the one that the container is on.
    #[error("the container is on this host")]
    IsSource,
    /// The host did not answer.
    #[error("unreachable: {reason}")]
    Unreachable {
        /// Why, in the daemon's words.
        reason: String,
    },
    /// The host will be taken away too.
    #[error("under notice itself: {notice}")]
    UnderNotice {
        /// What it was told.
        notice: String,
    },
    /// The host takes no containers at present.
    #[error("takes no containers: {reason}")]
    Declines {
        /// Why, in the host's words.
        reason: String,
    },
    /// The two daemons have no protocol version in common.
    #[error("speaks spothop protocol {has}, the source speaks {needs}; upgrade the older one")]
    Protocol {
        /// What the source speaks.
        needs: ProtocolRange,
        /// What the host speaks.
        has: ProtocolRange,
    },
    /// The image is for another architecture.
    #[error("architecture is {has}, the image is for {needs}")]
    Architecture {
        /// The image's.
        needs: String,
        /// The host's.
        has: String,
    },
    /// The source's processes may use instructions that the host lacks.
    #[error("CPU incompatible: {reason}")]
    CpuIncompatible {
        /// What is lacking, in CRIU's words.
        reason: String,
    },
    /// The kernel is of an older release line than the source's.
    #[error("kernel {has} is older than {needs} of the source")]
    KernelOlder {
        /// The source's kernel.
        needs: Version,
        /// The host's kernel.
        has: Version,
    },
    /// The host has no CRIU that runs.
    #[error("CRIU is missing; install {needs} or newer")]
    CriuMissing {
        /// The oldest that would do.
        needs: Version,
    },
    /// CRIU is too old, either for spothop at all or for the images of the source's CRIU.
    #[error("CRIU {has} is too old; install {needs} or newer")]
    CriuOlder {
        /// The oldest that would do.
        needs: Version,
        /// The host's CRIU.
        has: Version,
    },
    /// The container's network does not exist on the host.
    #[error("network {network} is missing")]
    NetworkMissing {
        /// Its name.
        network: String,
    },
    /// A network that must be the same one, because the address moves along, is another one of the same name.
    #[error("network {network} is {has}, the container needs {needs} to keep its address")]
    NetworkDiffers {
        /// Its name.
        network: String,
        /// Driver and subnets that the container has its address from.
        needs: String,
        /// Driver and subnets on the host.
        has: String,
    },
    /// A mount that the container has labelled as shared does not exist on the host.
    #[error("shared mount {mount} is missing")]
    MountMissing {
        /// The directory, or the volume's name.
        mount: String,
    },
    /// The container requires a label that the host does not have.
    #[error("lacks the label {label} (io.spothop.require)")]
    LabelMissing {
        /// As the container's label says it.
        label: String,
    },
    /// The container avoids hosts with a label that this one has.
    #[error("has the label {label} (io.spothop.avoid)")]
    LabelAvoided {
        /// As the container's label says it.
        label: String,
    },
    /// A container of the same group is there, or the plan sends it there.
    #[error("another container of group {group} is there (io.spothop.group)")]
    GroupTaken {
        /// The group.
        group: String,
    },
    /// A container that this one avoids, or that avoids this one, is there, or the plan sends it there.
    #[error("container {name} is there (io.spothop.avoid-with)")]
    AvoidsContainer {
        /// The other container's name.
        name: String,
    },
    /// A rule of the operator's forbids it.
    #[error("forbidden by rule {rule}")]
    Rule {
        /// The rule's name.
        rule: String,
    },
    /// A rule of the operator's could not be evaluated. What nobody has allowed is refused.
    #[error("rule {rule} could not be evaluated: {reason}")]
    RuleFailed {
        /// The rule's name.
        rule: String,
        /// What went wrong.
        reason: String,
    },
    /// Not enough memory, what the plan already sends there being counted.
    #[error("no room: needs {} of memory, has {}", Bytes(*.needs_bytes), Bytes(*.has_bytes))]
    NoMemory {
        /// The container's memory, and the staging of all migrations to the host that may run at the same time.
        needs_bytes: u64,
        /// What is left after the reserve and the moves already planned.
        has_bytes: u64,
    },
    /// Not enough disk, what the plan already sends there being counted.
    #[error("no room: needs {} of disk, has {}", Bytes(*.needs_bytes), Bytes(*.has_bytes))]
    NoDisk {
        /// Writable layer, volumes, and the image if the host lacks it.
        needs_bytes: u64,
        /// What is left after the moves already planned.
        has_bytes: u64,
    },
}

impl Refusal {
    /// Whether this speaks against restoring the container there only, and not against starting it anew.
    pub(crate) fn is_about_restoring(&self) -> bool {
        matches!(
            self,
            Self::CpuIncompatible { .. } | Self::KernelOlder { .. } | Self::CriuMissing { .. } | Self::CriuOlder { .. }
        )
    }
}

/// Everything that speaks against one host for one container, never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRefusal {
    /// The host's name.
    pub host: String,
    /// All of its reasons, in the order of [`Refusal`]'s variants.
    pub refusals: Vec<Refusal>,
}

impl fmt::Display for HostRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.host)?;
        for (n, refusal) in self.refusals.iter().enumerate() {
            let separator = if n == 0 { "" } else { "; " };
            write!(f, "{separator}{refusal}")?;
        }
        Ok(())
    }
}
