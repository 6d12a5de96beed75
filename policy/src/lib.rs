//! Which container goes where, and why not elsewhere.
//!
//! [`plan`] is a pure function: no I/O, no clock, no randomness. The same request gives the same plan whatever the order of its
//! lists. It works in three steps, one file each:
//!
//! 1. `constraints`: what a host must meet; each miss is a typed [`Refusal`] with its figures.
//! 2. `placement`: containers of higher priority choose first, within a priority the largest; every choice is booked against
//!    the host, so that a plan as a whole never promises memory or disk twice. `rank` orders the hosts that would do.
//! 3. `schedule`: the order in which to go, and what ends before the deadline.
//!
//! How long each move takes is predicted from what earlier ones measured ([`Sample`]): [`Estimates`] makes [`Rates`] of them.
//!
//! A container that fits nowhere is a [`Stay`] with all that speaks against each host; nothing is left out silently.

mod constraints;
mod container;
mod estimates;
mod host;
pub mod labels;
mod placement;
mod plan;
pub mod post_copy;
mod quantity;
mod rank;
mod rates;
mod refusal;
pub mod rounds;
mod sample;
mod schedule;
mod version;

pub use constraints::MINIMUM_CRIU;
pub use container::{Container, Network, NetworkIdentity};
pub use estimates::Estimates;
pub use host::{CpuVerdict, Facts, Host, HostState, Source};
pub use plan::{Move, Plan, Request, Stay, Strategy};
pub use quantity::Bytes;
pub use rank::{Candidate, Score};
pub use rates::{Habits, Leaves, Load, Rates, Times};
pub use refusal::{HostRefusal, Refusal};
pub use sample::{Counted, Sample, Sent};
pub use version::{NotAVersion, ProtocolRange, Version};

/// Places every container of the request.
pub fn plan(request: &Request) -> Plan {
    schedule::schedule(request, placement::place(request))
}
