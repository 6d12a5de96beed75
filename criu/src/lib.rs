//! CRIU for spothop: what this host can do, dump, restore at create, log triage.
//!
//! The crate is synchronous and knows nothing of clouds, engines' APIs or the network protocol.
//!
//! | module | noun |
//! |---|---|
//! | [`features`], [`cpuinfo`] | what CRIU, runc, the kernel and the CPU of this host can do |
//! | [`tasks`], [`obstacles`] | a container's tasks, their memory, and what in them CRIU cannot move |
//! | [`watches`] | the names of what they watch |
//! | [`memory`] | the pages of the tasks: followed and read while they run, kept and served at the target |
//! | [`cgroup`] | the freezer of a container |
//! | `stand_in` | what runc and CRIU find before the system's own `criu` and `tar` |
//! | `breakpoints` | what makes those of CRIU quick |
//! | [`dump`], [`hook`] | one checkpoint through runc, and the events of CRIU's action script |
//! | [`netns`] | silence, connection reset, and the namespace a restore starts in |
//! | [`handoff`] | the conversation between the daemon and `spothop-oci` at the target |
//! | [`paged`] | how the pager of a lazy restore has ended |
//! | [`repair`] | getting over a CRIU that was killed while it held a dump |
//! | [`log`] | what a CRIU log means |
//! | [`oci`] | the OCI runtime `spothop-oci` |
//!
//! # Invariants
//! - A dump kills its tasks only when the action script exited 0 at `post-dump` *and* the image set is whole
//!   ([`dump::Outcome::Killed`]); in every other case the tasks go on, and the caller thaws the cgroup.
//! - A restored container runs no user code before its `start` got [`handoff::Verdict::Run`].
//! - `spothop-oci` without our annotation in the bundle is an exec of runc and nothing else.

mod breakpoints;
pub mod cgroup;
mod command;
pub mod cpuinfo;
pub mod criu_config;
pub mod dump;
pub mod failpoint;
pub mod features;
pub mod handoff;
pub mod hook;
pub mod log;
pub mod memory;
pub mod netns;
pub mod obstacles;
pub mod oci;
pub mod paged;
mod pidfd;
mod private_mounts;
pub mod repair;
pub mod runtime_state;
mod stand_in;
pub mod tasks;
pub mod version;
pub mod watches;

pub use criu_config::TcpMode;
pub use version::Version;
