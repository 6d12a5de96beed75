//! Files with secrets.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Why a secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    /// The file.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Its mode.
    #[error("others than its owner may read {path}; chmod 600 it", path = path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
}

/// The text of a file that nobody but its owner may read.
///
/// # Errors
/// It cannot be read, or others may read it as well.
pub(crate) fn read(path: &Path) -> Result<String, SecretError> {
    let failed = |source| SecretError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.mode() & 0o077 != 0 {
        return Err(SecretError::Exposed { path: path.to_owned() });
    }
    fs::read_to_string(path).map_err(failed)
}
