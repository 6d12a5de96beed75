//! What can go wrong with a container's files.

use std::io;
use std::path::{Path, PathBuf};

/// Files could not be read, sent or written. The text names the path and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation on a file failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried: `open`, `read`, `set the owner of`…
        action: &'static str,
        /// The file, on this host.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The byte stream to or from the other host broke off.
    #[error("the archive of the container's files broke off")]
    Stream {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The stream ended without the mark that everything was said.
    #[error("the archive of the container's files is cut short: the source stopped before its end")]
    Truncated,
    /// The stream is not an archive of ours, or of a later version.
    #[error("the archive of the container's files is malformed: {what}")]
    Malformed {
        /// What is wrong.
        what: String,
    },
    /// A name in the archive leads out of its tree.
    #[error("the archive of the container's files names {path}, which lies outside of its tree")]
    Escapes {
        /// The name.
        path: PathBuf,
    },
    /// The archive holds a tree that has no place here, or the other way round.
    #[error("the archive of the container's files and this host do not agree on the tree {tree}")]
    UnknownTree {
        /// Name of the tree.
        tree: String,
    },
    /// A first pass must not be written through a mounted overlay: it would hide the image.
    #[error("a complete archive cannot be written through the mounted overlay {path}")]
    FullIntoMounted {
        /// The merged directory.
        path: PathBuf,
    },
    /// Somebody wrote to the tree under the freeze.
    #[error(
        "{path} changed although the container is frozen: a process outside of the container writes there (another \
         container, a backup, `docker cp`); stop it and try again"
    )]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Overlayfs attributes that mean something only together with the unmounted lower layers.
    #[error(
        "{path} was renamed or changed in place by overlayfs (attribute {attribute}) while the container was being moved; \
         try again"
    )]
    OverlayAttribute {
        /// The entry in the upper directory.
        path: PathBuf,
        /// `trusted.overlay.redirect` or `trusted.overlay.metacopy`.
        attribute: &'static str,
    },
    /// The thread that did the work is gone.
    #[error("the work on the container's files was stopped")]
    Stopped,
}

impl Error {
    /// For `map_err`: names the action and the path.
    pub(super) fn io<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source: source.into() }
    }

    pub(super) fn malformed(what: impl Into<String>) -> Self {
        Self::Malformed { what: what.into() }
    }
}
