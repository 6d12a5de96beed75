//! What two daemons say to each other: JSON messages over a session's control connection, bulk beside it.
//!
//! ```text
//! source                                   target
//!   Probe ───────────────────────────────► Facts
//!
//!   Offer ───────────────────────────────► Accepted | Refused            Reserved
//!   Image{shipped} [stream] ─────────────► ImageReady | ImageNeeded
//!   Create ──────────────────────────────► Done
//!   Files [stream] ──────────────────────► Done
//!   Start ───────────────────────────────► Done (create waits)           Prepared
//!   LastFiles [stream] ──────────────────► Done                          Frozen
//!   Images [files] ──────────────────────► Done                          Transferred
//!   Restore ─────────────────────────────► Done (held)                   Restored
//!   Decided{commit} ─────────────────────► Running                       Committed, Running
//!   Decided{abort}, at any time before ──► Gone                          Aborted
//!
//!   (target, when the session broke)
//!   Verdict{?} ◄──────────────────────────  Ask
//! ```
//!
//! Every request has one answer; `Failed` answers any of them. `Decided` may come again in a session of its own, as often
//! as the source likes, until it is answered. A session that ends before `Restore` is answered is an abort.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Verdict;
use crate::orchestrator::{Image, Recipe};
use crate::provider::Instance;

/// A request. All but `Ask` are the source's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// What is this host, and could it take a container from a CPU like mine?
    Probe(Box<Probe>),
    /// Will you take this container?
    Offer(Box<Offer>),
    /// Have the image ready. If `shipped`, a stream with it follows (once the answer to the first was `ImageNeeded`).
    Image {
        /// Whether the image comes along.
        shipped: bool,
    },
    /// Make the container and its volumes.
    Create,
    /// A stream with all files follows.
    Files,
    /// Have the engine start the container: its `create` will wait for the images.
    Start,
    /// A stream with the last changes of the files follows.
    LastFiles,
    /// CRIU's images follow.
    Images {
        /// Their total size in bytes.
        bytes: u64,
    },
    /// Restore, and keep the tasks stopped.
    Restore,
    /// The verdict that is durable in the source's journal.
    Decided {
        /// The migration.
        migration: String,
        /// The verdict.
        verdict: Verdict,
        /// Why it was aborted.
        reason: Option<String>,
    },
    /// Target to source: what does your journal say?
    Ask {
        /// The migration.
        migration: String,
    },
}

/// An answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// To `Probe`.
    Facts(Box<spothop_policy::Facts>),
    /// To `Offer`: room is reserved.
    Accepted,
    /// To `Offer`: no, and why.
    Refused {
        /// For the operator.
        reason: String,
    },
    /// To `Image`: it is here.
    ImageReady,
    /// To `Image`: it is not, and cannot be pulled.
    ImageNeeded {
        /// Why not, for the operator.
        reason: String,
    },
    /// The step is done.
    Done,
    /// To `Decided{commit}`: the tasks run.
    Running,
    /// To `Decided{abort}`: nothing of the migration is left here.
    Gone,
    /// To `Ask`.
    Verdict {
        /// None while the source has not decided.
        verdict: Option<Verdict>,
    },
    /// The step failed; the target has undone everything it did (before COMMIT).
    Failed {
        /// What went wrong, for the operator.
        reason: String,
    },
}

/// What a source tells when it looks for targets.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Probe {
    /// `criu cpuinfo dump` of the source, as hexadecimal digits; none where CRIU cannot tell.
    pub cpuinfo: Option<String>,
    /// Images of the containers that look for a place; the answer names those that are there already.
    #[serde(default)]
    pub images: Vec<Image>,
}

/// A container that wants to move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// The migration's id (UUIDv7).
    pub migration: String,
    /// A notice's id, or `manual`.
    pub cause: String,
    /// When the source is taken away, if it is.
    pub deadline: Option<Timestamp>,
    /// How to make the container.
    pub recipe: Recipe,
    /// Memory of its tasks, in bytes.
    pub memory_bytes: u64,
    /// Which instance of a cloud the source is, where it knows: the target asks that cloud when the source falls silent.
    #[serde(default)]
    pub instance: Option<Instance>,
}
