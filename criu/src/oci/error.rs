//! Why a call that was ours failed; the engine shows these texts.

use std::io;
use std::path::PathBuf;

use crate::failpoint::Injected;
use crate::handoff::HandoffError;
use crate::netns::NetnsError;

/// Why `create`, `start` or `delete` of a migrated container failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum OciError {
    /// The daemon has marked the migration as under way, and there is nothing to restore from.
    #[error(
        "this container is the unfinished target of spothop migration {migration} and must not start from scratch, that would be a second copy; see `spothop status`, or remove the container (marker: {})",
        marker.display()
    )]
    Pending { migration: String, marker: PathBuf },
    /// The request or the conversation with the daemon failed.
    #[error(transparent)]
    Handoff(#[from] HandoffError),
    /// The daemon answered Abort.
    #[error("the spothop daemon gave the migration up: {reason}")]
    Aborted { reason: String },
    /// The daemon answered something that does not fit the question.
    #[error(
        "the spothop daemon answered {verdict} to a container's {verb}; are spothop and spothop-oci of the same version?"
    )]
    Unexpected { verdict: String, verb: &'static str },
    /// The bundle does not fit the request.
    #[error("cannot restore the bundle {}: {why}", path.display())]
    Bundle { path: PathBuf, why: String },
    /// A file could not be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    /// The network namespace could not be prepared.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A test asked for it.
    #[error(transparent)]
    Injected(#[from] Injected),
    /// A lazy restore without a pager.
    #[error("there is nobody to fill the container's memory: {reason}")]
    Pager { reason: String },
    /// CRIU or the runtime failed.
    #[error("restore failed: {cause}")]
    Restore { cause: String },
}

/// `map_err` helper: what was done to which file.
pub(super) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> OciError {
    let path = path.into();
    move |source| OciError::File { what, path, source }
}
