//! A container as it is on this host, and what of it has to move.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::network::Identity;
use super::obstacle::Obstacle;
use super::recipe::{Recipe, RestartPolicy};
use super::{LABEL_PRIORITY, RUNTIME};

/// A running container: what identifies it, where its parts lie on this host, and the [`Recipe`] for making it elsewhere.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// The engine's id, 64 hexadecimal digits.
    pub id: String,
    /// Name without the leading slash.
    pub name: String,
    /// The image it was made of.
    pub image: Image,
    /// PID of its first process, in the PID namespace of the engine.
    pub init_pid: u32,
    /// Its labels, those of the image included.
    pub labels: BTreeMap<String, String>,
    /// Its addresses and what becomes of them.
    pub network: Identity,
    /// All that another host needs to make it.
    pub recipe: Recipe,
    /// Its writable layer; `None` comes with [`Obstacle::NoUpperDir`].
    pub upper_dir: Option<PathBuf>,
    /// Where the engine has its root filesystem mounted.
    pub merged_dir: Option<PathBuf>,
    /// Its local volumes, which are copied. Shared mounts are not among them.
    pub volumes: Vec<Volume>,
    /// What the engine does when its process ends.
    pub restart_policy: RestartPolicy,
    /// Name of the OCI runtime that runs it.
    pub runtime: String,
    /// It has a terminal.
    pub tty: bool,
    /// Limit of its memory in bytes, when it has one.
    pub memory_limit: Option<u64>,
    /// Why it cannot be moved, as far as the engine's settings say it. Empty: nothing speaks against it.
    pub obstacles: Vec<Obstacle>,
}

/// Without its labels and settings, as [`Recipe`] has it: there may be passwords among them.
impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("image", &self.image.reference)
            .field("obstacles", &self.obstacles)
            .finish_non_exhaustive()
    }
}

impl Container {
    /// The label `io.spothop.priority`: higher goes first. Absent or not a number: 0.
    #[must_use]
    pub fn priority(&self) -> i64 {
        self.labels.get(LABEL_PRIORITY).and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    }

    /// Whether it runs under `spothop-oci` (that is, it has been migrated before).
    #[must_use]
    pub fn has_our_runtime(&self) -> bool {
        self.runtime == RUNTIME
    }
}

/// An image, told so exactly that two hosts cannot mean different ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Id of its configuration, `sha256:…`: the same on every host that has this image.
    pub id: String,
    /// What the user wrote when the container was made: `redis:7`, a digest or an id.
    pub reference: String,
    /// All names it has on the source (`repository:tag`).
    #[serde(default)]
    pub tags: Vec<String>,
    /// Where registries have it (`repository@sha256:…`). Empty for images that were built or loaded on the host.
    #[serde(default)]
    pub digests: Vec<String>,
    /// Architecture: `amd64`, `arm64`…
    pub architecture: String,
    /// Operating system: `linux`.
    pub os: String,
    /// Variant of the architecture (`v8`), if the image says one.
    #[serde(default)]
    pub variant: Option<String>,
    /// Size of all layers in bytes, unpacked.
    #[serde(default)]
    pub size: u64,
}

impl Image {
    /// `os/architecture[/variant]`, as the engines' APIs take it.
    #[must_use]
    pub fn platform(&self) -> String {
        match self.variant.as_deref() {
            Some(variant) if !variant.is_empty() => format!("{}/{}/{variant}", self.os, self.architecture),
            _ => format!("{}/{}", self.os, self.architecture),
        }
    }
}

/// A local volume that a container has mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The engine's name for it; 64 hexadecimal digits for anonymous ones.
    pub name: String,
    /// Its directory on this host.
    pub path: PathBuf,
    /// Where the container sees it. The same volume may be mounted twice; it is copied once.
    pub destination: PathBuf,
    /// The container may only read it.
    pub read_only: bool,
}
