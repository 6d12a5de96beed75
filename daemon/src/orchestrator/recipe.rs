//! All that another host needs to make the same container.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;
use std::{fmt, fs, io};

use bollard::models::{ContainerConfig, HostConfig};
use serde::{Deserialize, Serialize};

use super::container::Image;
use super::network::Identity;

/// A container's settings, complete: what the user said, as the engine itself tells it, minus what belongs to one host.
///
/// It goes over the wire as JSON. Fields may be added with a default; a field that a reader does not know is left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Name of the container, the same at the target.
    pub name: String,
    /// The image.
    pub image: Image,
    /// Its networks and addresses.
    pub network: Identity,
    /// The volumes to be made and filled at the target.
    #[serde(default)]
    pub volumes: Vec<VolumeRecipe>,
    /// Mounts that the target has of its own (label `shared`).
    #[serde(default)]
    pub shared_mounts: Vec<SharedMount>,
    /// What the engine does when its process ends, once it runs at the target.
    pub restart_policy: RestartPolicy,
    /// Everything else, in the engine's own terms.
    pub engine: EngineRecipe,
}

/// The part of a [`Recipe`] that only the same kind of engine understands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "engine", rename_all = "kebab-case")]
pub enum EngineRecipe {
    /// Docker.
    Docker(Box<DockerRecipe>),
}

/// Docker's `inspect`, sorted into what `POST /containers/create` takes.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct DockerRecipe {
    /// `Config`: command, environment, user, labels, health check… The host name is always told, as the default is the start of
    /// the source's id, which the processes have seen.
    pub config: ContainerConfig,
    /// `HostConfig`: limits, mounts, ports, capabilities, security, logging… Anonymous volumes appear as bound by name.
    pub host_config: HostConfig,
    /// `NetworkSettings.Networks`, sorted by name, without what the engine fills in itself.
    pub endpoints: Vec<DockerEndpoint>,
}

/// Without the settings: environment, command line, labels and health check are where people keep their passwords, and a log is no
/// place for them.
impl fmt::Debug for DockerRecipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let networks: Vec<_> = self.endpoints.iter().map(|endpoint| &endpoint.network).collect();
        f.debug_struct("DockerRecipe").field("networks", &networks).finish_non_exhaustive()
    }
}

/// One network endpoint of a [`DockerRecipe`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerEndpoint {
    /// Name of the network.
    pub network: String,
    /// Names under which others in the network find it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Driver options (`com.docker.network.endpoint.*`).
    #[serde(default)]
    pub driver_opts: std::collections::BTreeMap<String, String>,
    /// Which network is the default gateway: the highest.
    #[serde(default)]
    pub gateway_priority: Option<i64>,
    /// The user asked for this address (`--ip`).
    #[serde(default)]
    pub requested_ipv4: Option<String>,
    /// The user asked for this address (`--ip6`).
    #[serde(default)]
    pub requested_ipv6: Option<String>,
    /// Link-local addresses that the user asked for (`--link-local-ip`).
    #[serde(default)]
    pub link_local: Vec<String>,
}

/// A volume to be made at the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecipe {
    /// Its name.
    pub name: String,
    /// Its labels.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
}

/// A mount that the target must have already, with the same contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedMount {
    /// Where the container sees it.
    pub destination: PathBuf,
    /// The directory on the host; for a volume, where the source has it.
    pub source: PathBuf,
    /// Name of the volume; `None` for a directory.
    #[serde(default)]
    pub volume: Option<String>,
}

impl SharedMount {
    /// By what another host is asked whether it has it: the volume's name, or the directory's path.
    #[must_use]
    pub fn name(&self) -> String {
        self.volume.clone().unwrap_or_else(|| self.source.to_string_lossy().into_owned())
    }
}

/// What an engine does when a container's process ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// `no`, `always`, `unless-stopped`, `on-failure`.
    pub name: String,
    /// Number of attempts with `on-failure`; 0 is without limit.
    #[serde(default)]
    pub maximum_retries: i64,
}

impl RestartPolicy {
    /// Whether the engine leaves an ended container alone.
    #[must_use]
    pub fn is_no(&self) -> bool {
        matches!(self.name.as_str(), "" | "no")
    }
}

/// What [`create`](super::Orchestrator::create) is told beside the recipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateOptions {
    /// Id of the migration: written onto the container as an annotation and onto new volumes as a label.
    pub migration: String,
    /// Volumes that hold nothing but old copies here, because their container has moved away from this host before; they may be
    /// overwritten. (The daemon knows that from its journal, the engine does not.)
    #[serde(default)]
    pub stale_volumes: Vec<OldCopy>,
}

/// A volume that its container took to another host, and the directory that was left behind.
///
/// A volume that somebody has made since then under the same name is another directory, and holds data of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldCopy {
    /// The volume's name.
    pub name: String,
    /// Device, inode and time of birth of its directory (0 where the filesystem does not keep it), with colons between.
    pub directory: String,
}

impl OldCopy {
    /// The volume `name` as it lies in `directory` now.
    ///
    /// # Errors
    /// The directory cannot be looked at.
    pub fn of(name: &str, directory: &Path) -> io::Result<Self> {
        let about = fs::metadata(directory)?;
        let born = about.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        let directory = format!("{}:{}:{}", about.dev(), about.ino(), born.as_nanos());
        Ok(Self { name: name.to_owned(), directory })
    }

    /// Whether the volume `name` in `directory` is still the one that was left behind.
    #[must_use]
    pub fn is(&self, name: &str, directory: &Path) -> bool {
        Self::of(name, directory).is_ok_and(|now| now == *self)
    }
}

/// A container that was made and not started, with all paths needed until it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// The engine's id.
    pub id: String,
    /// Its writable layer. May be written directly until the container is started, and not after.
    pub upper_dir: PathBuf,
    /// Where the engine will mount its root filesystem when the container is started; then the way to write it.
    pub merged_dir: PathBuf,
    /// Its volumes, in the order of [`Recipe::volumes`].
    pub volumes: Vec<CreatedVolume>,
}

/// A volume of a [`Created`] container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedVolume {
    /// Its name.
    pub name: String,
    /// Its directory on this host.
    pub path: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_made_again_under_the_same_name_is_not_the_old_copy() {
        let volumes = tempfile::tempdir().unwrap();
        let data = volumes.path().join("data");
        fs::create_dir(&data).unwrap();
        let old = OldCopy::of("data", &data).unwrap();
        assert!(old.is("data", &data));
        assert!(!old.is("other", &data));
        // Renamed and not removed, so that its inode is not given to the new one.
        fs::rename(&data, volumes.path().join("kept")).unwrap();
        assert!(!old.is("data", &data));
        fs::create_dir(&data).unwrap();
        assert!(!old.is("data", &data));
    }
}
