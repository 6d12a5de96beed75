//! The hosts that would do, as the plan shows them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cost::Cost;
use crate::quantity::Bytes;
use crate::rates::{Leaves, Times};

/// What a host is like for a container. What decides is its [`Cost`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Score {
    /// The CPU was checked. Without that a restore may fail after the freeze.
    pub cpu_checked: bool,
    /// The image is there already. Sending it may take longer than all the rest.
    pub image_present: bool,
    /// Memory left for other containers afterwards, in bytes.
    pub free_memory_after_bytes: u64,
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = if self.cpu_checked { "CPU compatible" } else { "CPU not checked" };
        let image = if self.image_present { "image present" } else { "image must be sent" };
        write!(f, "{cpu}, {image}, {} free afterwards", Bytes(self.free_memory_after_bytes))
    }
}

/// A host that would do for a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The host's name.
    pub host: String,
    /// How its memory would go there.
    #[serde(default)]
    pub mode: Leaves,
    /// What it is like.
    pub score: Score,
    /// What it costs to go there.
    #[serde(default)]
    pub cost: Cost,
    /// Both in words.
    pub reason: String,
    /// How long the migration to this host takes.
    pub predicted: Times,
}
