//! The migration saga: from a plan to a container that runs elsewhere, or goes on here.
//!
//! | file | noun |
//! |---|---|
//! | `protocol` | every decision, as a function of what is on record |
//! | `phase`, `step` | the words of the journal: how far it is, what was done |
//! | `source`, `ending` | the source's way to COMMIT, and what follows COMMIT or ABORT |
//! | `target`, `arrival`, `handoff` | the target's way to the restored tasks, what becomes of them, and the talk with the restoring runtime |
//! | `outgoing`, `memory`, `packing`, `ways` | memory page by page: the source's rounds, its bookkeeping, scattered pages on the wire, and what a host can do of it |
//! | `lending`, `filling` | memory that follows a container that runs already: the source's side, and the target's |
//! | `gate` | CRIU's action script, which holds the dump until the verdict |
//! | `message`, `conversation`, `peers` | what daemons say to each other |
//! | `context`, `track`, `workspace`, `moving` | what all of them share |
//! | `resolve` | a person's word for a migration whose other host is gone for good |
//! | `evacuation`, `occasion` | several migrations, in the plan's order; why, as the operator's rules see it |
//! | `notices`, `heeding`, `limit` | what this host was told of its end, what is done about it, and how it bears on a migration under way |
//! | `images` | what a target needs before anything else, also of a container that only may come |
//! | `meter` | what the source counts, for the predictions of the next |
//!
//! **Invariants.** The right to run is handed on by one compare-and-set in the source's journal and one in the target's
//! ([`protocol`]). COMMIT is written only when the target holds the tasks restored and stopped. The source's tasks stay frozen from
//! then until the target runs, with all of their memory. The target's tasks run only after COMMIT was heard, or when the source cannot run any more.

mod arrival;
mod context;
mod conversation;
mod ending;
mod error;
pub mod evacuation;
mod filling;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod gate;
mod handoff;
pub mod heeding;
mod images;
mod lending;
mod limit;
mod logs;
mod memory;
pub mod message;
mod meter;
mod moving;
mod notices;
mod occasion;
mod outgoing;
mod packing;
pub mod peers;
mod phase;
pub mod protocol;
pub mod resolve;
mod source;
mod step;
mod target;
mod track;
mod ways;
mod workspace;

use std::sync::Arc;

use tracing::{error, info};

pub use self::context::Context;
pub use self::conversation::Conversation;
pub use self::error::{Error, chain};
pub use self::filling::MEMORY_LOST;
pub use self::logs::{CriuLog, Logs};
pub(crate) use self::moving::Moving;
pub use self::notices::Leave;
pub use self::phase::{Phase, Side, UnknownPhase, Verdict};
pub use self::source::{Job, run};
pub use self::step::{Step, Task};
pub(crate) use self::target::take;
pub use self::track::{Events, Track, unpanicked};
pub use self::ways::Ways;
pub use self::workspace::{RUNTIME_DIRECTORY, Workspace, WorkspaceError};

/// The cause of a migration that somebody asked for; otherwise it is a notice's id.
pub const MANUAL: &str = "manual";

/// Takes up every migration that a former daemon did not finish, each in a task of its own.
///
/// # Errors
/// The journal's.
pub async fn recover(context: &Arc<Context>) -> Result<(), Error> {
    let journal = Arc::clone(&context.journal);
    for left in unpanicked(tokio::task::spawn_blocking(move || journal.unfinished()).await)? {
        info!(migration = left.id, side = %left.side, phase = %left.phase, "taking up a migration that was left unfinished");
        let context = Arc::clone(context);
        // Before anything else is begun.
        let moving = matches!(left.side, Side::Source).then(|| Moving::claim(&context, &left.container_id));
        tokio::spawn(async move {
            let _moving = moving;
            match left.side {
                Side::Source => ending::recover(context, &left).await,
                Side::Target => {
                    if let Err(failure) = arrival::recover(context, &left).await {
                        error!(migration = left.id, error = chain(&failure), "the migration could not be taken up");
                    }
                }
            }
        });
    }
    Ok(())
}
