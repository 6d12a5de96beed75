//! What a CRIU that was killed in the middle of a held dump leaves behind, and how the container gets over it.
//!
//! While a dump is held, every dumped connection is in repair mode: it neither sends nor acknowledges. CRIU undoes that when it resumes the
//! tasks; if it was killed, the connections stay mute for ever. The tasks themselves are whole: their registers and memory were put
//! back before the action script was called.

use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use crate::pidfd;
use crate::tasks::{self, TaskError};

/// `TCP_REPAIR_ON` and `TCP_REPAIR_OFF` (`linux/tcp.h`). Off sends a window probe, which wakes the peer.
const REPAIR_ON: u32 = 1;
const REPAIR_OFF: u32 = 0;

/// Why a container could not be released.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Its tasks cannot be listed.
    #[error(transparent)]
    Tasks(#[from] TaskError),
    /// A socket of it cannot be reached or changed.
    #[error("cannot take a connection of process {pid} out of repair mode: {source}; its clients must connect again")]
    Socket {
        /// The process.
        pid: i32,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What was found and undone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Connections that were in repair mode.
    pub connections: usize,
}

/// Takes the connections of the container whose init is `init_pid` out of repair mode; call it with
/// the tasks frozen, before they are thawed. Harmless and quick when there is nothing to undo, or no CRIU has died; but
/// not to be called while a CRIU holds the container.
///
/// # Errors
/// When the container is gone, or a connection resists; the others are released all the same.
pub fn release(init_pid: i32) -> Result<Released, RepairError> {
    let mut connections = 0;
    let mut failed = None;
    for task in tasks::tasks(init_pid)? {
        match release_task(task.pid) {
            Ok(count) => connections += count,
            Err(errno) => failed = Some(RepairError::Socket { pid: task.pid, source: errno.into() }),
        }
    }
    failed.map_or(Ok(Released { connections }), Err)
}

fn release_task(pid: i32) -> Result<usize, Errno> {
    let sockets: Vec<i32> = tasks::descriptors(pid)
        .into_iter()
        .filter(|(_, link)| tasks::socket_inode(link).is_some())
        .filter_map(|(path, _)| number(&path))
        .collect();
    if sockets.is_empty() {
        return Ok(0);
    }
    let process = pidfd::open(pid)?;
    let mut released = 0;
    for number in sockets {
        let socket = match pidfd::duplicate(&process, number) {
            // Closed meanwhile.
            Err(Errno::EBADF) => continue,
            other => other?,
        };
        // What is not TCP has no such option.
        if getsockopt(&socket, sockopt::TcpRepair) == Ok(REPAIR_ON) {
            setsockopt(&socket, sockopt::TcpRepair, &REPAIR_OFF)?;
            released += 1;
        }
    }
    Ok(released)
}

/// The number of a descriptor in its path `/proc/PID/fd/NUMBER`.
fn number(path: &Path) -> Option<i32> {
    path.file_name()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_dumped_connections_is_left_alone() {
        let _listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(matches!(release_task(std::process::id().cast_signed()), Ok(0) | Err(Errno::EPERM | Errno::ENOSYS)));
    }
}
