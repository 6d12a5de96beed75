//! What can go wrong with a container's files.

use std::io;
use std::path::PathBuf;

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
}
