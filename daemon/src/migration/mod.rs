//! The migration saga: from a plan to a container that runs elsewhere, or goes on here.

mod phase;

pub use self::phase::{Phase, Side, UnknownPhase, Verdict};
