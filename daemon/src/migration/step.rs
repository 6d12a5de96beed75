//! Side effects, written down before they are done, so that whoever comes back can undo them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::message::Offer;
use crate::orchestrator::{Created, OldCopy, RestartPolicy};

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
        /// Its first process, in the host's pid namespace.
        init_pid: i32,
    },
    /// Source: no packet enters or leaves the container's network namespace.
    Silence {
        /// Its first process.
        init_pid: i32,
    },
    /// Source: `runc checkpoint` runs, held by its action script until the verdict, which the script reads in the journal. Its undo
    /// is to wait for its end, before anything else is undone: CRIU leaves the freezer as it found it.
    Checkpoint,
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
