//! Side effects, written down before they are done, so that whoever comes back can undo them.

use std::path::PathBuf;

use procfs::process::Process;
use serde::{Deserialize, Serialize};

use super::message::Offer;
use crate::orchestrator::{Created, OldCopy, RestartPolicy};

/// A process that cannot be mistaken for another one, also not after a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its id, in the host's pid namespace.
    pub pid: i32,
    /// When it started, in clock ticks since the boot (proc(5), `/proc/pid/stat`, field 22).
    pub started: u64,
}

impl Task {
    /// The process that has this id now, if there is one.
    #[must_use]
    pub fn of_pid(pid: i32) -> Option<Self> {
        let stat = Process::new(pid).and_then(|process| process.stat()).ok()?;
        Some(Self { pid, started: stat.starttime })
    }

    /// Whether it is still there. One that is dead and not reaped yet has nothing left of what was done to it.
    #[must_use]
    pub fn is_alive(self) -> bool {
        let stat = Process::new(self.pid).and_then(|process| process.stat());
        stat.is_ok_and(|stat| stat.starttime == self.started && !matches!(stat.state, 'Z' | 'X'))
    }
}

/// One side effect of a migration on this host. Its undo is idempotent: it may be run whether or not the effect took
/// place, and twice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// Source and target: a directory below the runtime directory, with the tmpfs for CRIU's images in it.
    Workspace {
        /// The directory.
        directory: PathBuf,
    },
    /// Source: the engine's restart policy is switched off, so that it does not start a second copy after the kill.
    HoldRestarts {
        /// The engine's id of the container.
        container: String,
        /// The policy to put back.
        policy: RestartPolicy,
    },
    /// Source: upon COMMIT these volumes hold nothing but old copies here, which the container may overwrite should it come
    /// back. Not undone but done at the end.
    Depart {
        /// Them, as they lie here.
        volumes: Vec<OldCopy>,
    },
    /// Source: the container's cgroup is frozen.
    Freeze {
        /// Its first process.
        task: Task,
    },
    /// Source: no packet enters or leaves the container's network namespace.
    Silence {
        /// Its first process.
        task: Task,
    },
    /// Source: `runc checkpoint` runs, held by its action script until the verdict, which the script reads in the journal. Its undo
    /// is to wait for its end, before anything else is undone: CRIU leaves the freezer as it found it.
    Checkpoint,
    /// Source: objects in the store that is the target. Their undo is to remove them, as far as the store can be reached: what is left
    /// is swept.
    Upload {
        /// The place; the migration's id is the checkpoint's.
        url: String,
    },
    /// Target: memory that was to follow is lost. Not undone but done: the container is killed and started from its files.
    Lost {
        /// Why.
        reason: String,
    },
    /// Target: the marker that keeps the wrapper from cold-starting a half-made container.
    Pending {
        /// The marker.
        marker: PathBuf,
    },
    /// Target: the engine's container and the volumes that this migration made.
    Create {
        /// What it is made from; its undo goes by name and migration.
        offer: Box<Offer>,
    },
    /// Target: the engine has made the container. [`Step::Create`] has the undo; this is what a daemon that comes back needs
    /// to know, because the engine answers no question about a container that is being started.
    Made {
        /// Its id and paths.
        created: Created,
    },
}

impl Step {
    /// The journal's form.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Serialising fails only for maps with keys that are no strings and for failing writers; here is neither.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads the journal's form.
    ///
    /// # Errors
    /// Another version wrote it.
    pub fn from_json(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_not_mistaken_for_one_that_had_its_id_before() {
        let us = Task::of_pid(std::process::id().cast_signed()).unwrap();
        assert!(us.is_alive());
        assert!(!Task { started: us.started + 1, ..us }.is_alive());
        // No process has an id above the kernel's limit (2^22).
        assert_eq!(Task::of_pid(1 << 23), None);
    }

    #[test]
    fn a_process_that_nobody_has_reaped_yet_is_not_alive() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let task = Task::of_pid(child.id().cast_signed()).unwrap();
        assert!(task.is_alive());
        drop(child.stdin.take());
        // Until it has ended, without reaping it.
        let exited = nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT;
        nix::sys::wait::waitid(nix::sys::wait::Id::Pid(nix::unistd::Pid::from_raw(task.pid)), exited).unwrap();
        assert!(!task.is_alive());
        child.wait().unwrap();
    }
}
