//! Network namespaces: of a container at the source, and the one in which a restore starts at the target.

mod announce;
mod connections;
mod nft;
mod own;
mod silence;
mod unix;

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

pub use self::announce::announce;
pub use self::connections::reset_connections;
pub use self::own::{Opening, OwnNetns, Release, hold, open};
pub use self::silence::{Silencing, tables, unsilence};
pub(crate) use self::unix::{Backlog, backlogs};
use crate::command::CommandError;

/// Why a network namespace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The namespace cannot be opened or entered.
    #[error("cannot enter network namespace {path}: {source}; does the container still run?")]
    Enter {
        /// The namespace's file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The container has the host's network, which must not be touched as a whole.
    #[error("process {pid} has the network of the host; it cannot be silenced")]
    OfHost {
        /// The process.
        pid: i32,
    },
    /// `ip` or `nft` failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The kernel's socket diagnostics failed.
    #[error("cannot {what} through the kernel's socket diagnostics: {source}")]
    Diagnostics {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// The inode of the network namespace of `pid`, which tells namespaces apart.
///
/// # Errors
/// When the process is gone.
pub fn inode(pid: i32) -> Result<u64, NetnsError> {
    inode_at(&of_pid(pid))
}

/// That of the namespace at `path`.
pub(crate) fn inode_at(path: &Path) -> Result<u64, NetnsError> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(metadata.ino()),
        Err(source) => Err(NetnsError::Enter { path: path.to_owned(), source }),
    }
}

/// Has `pid` the same network namespace as we, that is, the host's?
///
/// # Errors
/// When the process is gone.
pub fn is_host(pid: i32) -> Result<bool, NetnsError> {
    Ok(inode(pid)? == inode(std::process::id().cast_signed())?)
}

fn of_pid(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

/// Runs `work` on a thread in the network namespace of `pid`; processes that it starts are in it as well.
pub(crate) fn within_pid<T: Send>(
    pid: i32,
    work: impl FnOnce() -> Result<T, NetnsError> + Send,
) -> Result<T, NetnsError> {
    within(&of_pid(pid), work)
}

/// Runs `work` on a thread in the network namespace at `path`; processes that it starts are in it as well.
pub(crate) fn within<T: Send>(
    path: &Path,
    work: impl FnOnce() -> Result<T, NetnsError> + Send,
) -> Result<T, NetnsError> {
    let error = |source| NetnsError::Enter { path: path.to_owned(), source };
    let namespace = File::open(path).map_err(error)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // setns moves only the calling thread, which ends with this scope.
            setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| error(errno.into()))?;
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
