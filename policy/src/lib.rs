//! Which container goes where, and why not elsewhere.
//!
//! [`plan`] is a pure function: no I/O, no clock, no randomness. The same request gives the same plan whatever the order of its
//! lists. It works in steps, one file each:
//!
//! 1. `constraints`: what a host must meet; each miss is a typed [`Refusal`] with its figures. [`Rules`] are the operator's own.
//! 2. `cost`: what it costs to send a container to a host, in seconds of moving, by the operator's [`Weights`].
//! 3. [`mode`]: in which way its memory would go there.
//! 4. `table`: both, for every container and every host.
//! 5. `search`: who goes where, so that most are safe in time, and among such plans the cheapest. Nothing is promised twice.
//! 6. `schedule`: the order in which to go, and what ends before the deadline; `timetable` shares the link among those that send.
//! 7. `placement`: all of it in words, and what to do with those that are left ([`Fallback`]).
//!
//! How long each move takes is predicted from what earlier ones measured ([`Sample`]): [`Estimates`] makes [`Rates`] of them.
//! [`simulation`] plays mass reclaims with many sources that plan at once.
//!
//! A container that fits nowhere is a [`Stay`] with all that speaks against each host; nothing is left out silently.

mod constraints;
mod container;
mod cost;
mod estimates;
mod fallback;
mod host;
pub mod labels;
pub mod mode;
mod placement;
mod plan;
pub mod post_copy;
mod quantity;
mod rank;
mod rates;
mod refusal;
pub mod rounds;
pub mod rules;
mod sample;
mod schedule;
mod search;
pub mod simulation;
mod table;
mod timetable;
mod version;

pub use constraints::MINIMUM_CRIU;
pub use container::{Container, Network, NetworkIdentity};
pub use cost::{Cost, Weights};
pub use estimates::Estimates;
pub use fallback::{Fallback, NextBest, NotAFallback};
pub use host::{CpuVerdict, Facts, Host, HostState, Source};
pub use plan::{Move, Notice, Plan, Request, Stay, Strategy};
pub use quantity::Bytes;
pub use rank::{Candidate, Score};
pub use rates::{Habits, Leaves, Load, Rates, Times};
pub use refusal::{HostRefusal, Refusal};
pub use rules::Rules;
pub use sample::{Counted, Sample, Sent};
pub use version::{NotAVersion, ProtocolRange, Version};

/// What the operator has decided: how plans are made, whatever they are about.
#[derive(Debug)]
pub struct Policy {
    /// What things are worth.
    pub weights: Weights,
    /// What becomes of containers that cannot be moved in time and whose labels do not say: the first that is possible.
    pub fallback: Vec<NextBest>,
    /// The operator's rules.
    pub rules: Rules,
}

impl Default for Policy {
    fn default() -> Self {
        Self { weights: Weights::default(), fallback: vec![NextBest::Park, NextBest::Drop], rules: Rules::default() }
    }
}

impl Policy {
    /// Places every container of the request.
    pub fn plan(&self, request: &Request) -> Plan {
        let table = table::Table::new(self, request);
        let found = search::best(&table);
        schedule::schedule(self, &table, found)
    }
}

/// Places every container of the request as it is done where the operator has decided nothing.
pub fn plan(request: &Request) -> Plan {
    Policy::default().plan(request)
}
