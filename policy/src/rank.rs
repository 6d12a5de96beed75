//! The order among the hosts that would do.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::plan::Strategy;
use crate::quantity::Bytes;
use crate::rates::Times;

/// What speaks for a host, the weightiest first; a lower field decides only where all above it are equal.
///
/// An order of named figures rather than a sum of weights: nobody has to know what a point is worth to see why a host won.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Score {
    /// The CPU was checked. Without that a restore may fail after the freeze.
    pub cpu_checked: bool,
    /// The image is there already. Sending it may take longer than all the rest.
    pub image_present: bool,
    /// Memory left for other containers afterwards, in bytes.
    pub free_memory_after_bytes: u64,
}

impl Score {
    /// Greater is better.
    fn compare(&self, other: &Self, strategy: Strategy) -> Ordering {
        let by_memory = self.free_memory_after_bytes.cmp(&other.free_memory_after_bytes);
        let standing = |score: &Self| (score.cpu_checked, score.image_present);
        standing(self).cmp(&standing(other)).then(match strategy {
            Strategy::Spread => by_memory,
            Strategy::Pack => by_memory.reverse(),
        })
    }
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
    /// What speaks for it.
    pub score: Score,
    /// The score in words.
    pub reason: String,
    /// How long the migration to this host takes.
    pub predicted: Times,
}

/// Puts the best first; equals by name, so that the answer never depends on the order of the inventory.
pub(crate) fn sort(candidates: &mut [Candidate], strategy: Strategy) {
    candidates.sort_by(|a, b| b.score.compare(&a.score, strategy).then_with(|| a.host.cmp(&b.host)));
}
