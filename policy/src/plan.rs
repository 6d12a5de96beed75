//! What is asked of the planner and what it answers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::container::Container;
use crate::estimates::Estimates;
use crate::fallback::Fallback;
use crate::host::{Host, Source};
use crate::rank::Candidate;
use crate::rates::{Leaves, Times, millis, optional_millis};
use crate::refusal::HostRefusal;

/// Which containers to place, and everything the answer depends on. To ask about one container or one target, pass only that one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The host that the containers are on.
    pub source: Source,
    /// The containers to move.
    pub containers: Vec<Container>,
    /// The possible targets; the source may be among them.
    pub hosts: Vec<Host>,
    /// Time left until the source is taken away; `None` when there is no deadline.
    #[serde(rename = "budget_ms", with = "optional_millis", default)]
    pub budget: Option<Duration>,
    /// Speeds and fixed costs.
    #[serde(default)]
    pub estimates: Estimates,
    /// Migrations that run at the same time; 0 counts as 1. A target needs the staging of that many at once, and while several send
    /// they share the link.
    #[serde(default)]
    pub concurrency: usize,
    /// Connections of each migration; only shown.
    #[serde(default)]
    pub streams: usize,
    /// Why the source is taken away, for the operator's rules.
    #[serde(default)]
    pub notice: Notice,
    /// Whether containers can be parked: there is an object store for them.
    #[serde(default)]
    pub can_park: bool,
    /// Whether nobody would start a container anew elsewhere: then that is not the next best of anything.
    #[serde(default)]
    pub never_cold: bool,
}

/// What rules may know of a notice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Notice {
    /// Who said it: `aws`, `gcp`…; empty: nobody, the plan was asked for by hand.
    pub cloud: String,
    /// What will be done: `terminate`, `stop`, `hibernate`, `reboot`…; empty: nothing.
    pub action: String,
    /// Whether it is certain, and not only likely.
    pub certain: bool,
}

/// How targets of equal standing are told apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The host with the most memory left is the best: load spreads.
    #[default]
    Spread,
    /// The host with the least memory left is the best: large gaps stay whole. Taken only when spreading leaves more behind.
    Pack,
}

/// Every container of the request, each exactly once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// How targets were told apart.
    pub strategy: Strategy,
    /// In the order in which to go. Those that end before the deadline stand before those that do not.
    pub moves: Vec<Move>,
    /// What cannot be moved, in the order of priority and name.
    pub stays: Vec<Stay>,
    /// Whether no plan is better: none has more containers of the higher priorities in time, and none that has as many costs less.
    /// Where there are too many possibilities to look at, a plan may be the best without a proof.
    #[serde(default)]
    pub proven: bool,
    /// What the operator should know of his labels and rules, each a text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A container that has a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// The container's id.
    pub container: String,
    /// The container's name.
    pub name: String,
    /// The container's priority.
    pub priority: i64,
    /// The chosen host: the first of `candidates`.
    pub target: String,
    /// The chosen host, and all others that would do beside the rest of the plan, the cheapest first.
    pub candidates: Vec<Candidate>,
    /// The hosts that would not do, by name.
    pub refusals: Vec<HostRefusal>,
    /// How its memory goes.
    #[serde(default)]
    pub mode: Leaves,
    /// Why so, and in no better way.
    #[serde(default)]
    pub why_mode: String,
    /// Over how many connections.
    #[serde(default)]
    pub streams: usize,
    /// How long this migration takes when it has the link to itself.
    pub predicted: Times,
    /// When it begins, counted from now.
    #[serde(rename = "starts_after_ms", with = "millis", default)]
    pub starts_after: Duration,
    /// When it ends, counted from now, with the others that share the link meanwhile.
    #[serde(rename = "ends_after_ms", with = "millis")]
    pub ends_after: Duration,
    /// Whether that is within the budget. True when there is none.
    pub fits_deadline: bool,
    /// What to do instead, if it does not fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_best: Option<Fallback>,
}

/// A container that has no target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stay {
    /// The container's id.
    pub container: String,
    /// The container's name.
    pub name: String,
    /// The container's priority.
    pub priority: i64,
    /// The container's own obstacles, word for word. Not empty: no host at all would do.
    pub obstacles: Vec<String>,
    /// What speaks against each host, by name; a host missing here would have done but for the obstacles.
    pub refusals: Vec<HostRefusal>,
    /// What to do instead, where the host is taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_best: Option<Fallback>,
}

impl Stay {
    /// Every reason as a line of text, never empty.
    pub fn reasons(&self) -> Vec<String> {
        if !self.obstacles.is_empty() {
            return self.obstacles.clone();
        }
        if self.refusals.is_empty() {
            return vec!["the inventory has no other host; add peers to the configuration".to_owned()];
        }
        self.refusals.iter().map(HostRefusal::to_string).collect()
    }
}
