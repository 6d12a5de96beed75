//! The containers of this host, as the planner takes them.

use std::path::Path;

use spothop_criu::{obstacles, tasks};
use tokio::task::spawn_blocking;

use super::for_policy;
use crate::migration::{Context, Error, unpanicked};
use crate::orchestrator::{Container, Mode, Network, SharedMount};

/// A running container with all that speaks for and against moving it.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// As the engine has it.
    pub container: Container,
    /// Its first process, in the host's pid namespace.
    pub init_pid: i32,
    /// Memory of all its tasks, in bytes.
    pub memory_bytes: u64,
    /// Its writable layer and its volumes, in bytes.
    pub disk_bytes: u64,
    /// The networks that a target must have.
    pub networks: Vec<spothop_policy::Network>,
    /// Why it cannot be moved, by its settings or by what its processes do; empty when it can.
    pub obstacles: Vec<String>,
}

impl Candidate {
    /// Looks at a container's processes and files. Blocks.
    #[must_use]
    fn look(container: Container, networks: &[Network]) -> Self {
        let mut reasons: Vec<String> = container.obstacles.iter().map(ToString::to_string).collect();
        // Pids are below 2^22 on Linux.
        let init_pid = i32::try_from(container.init_pid).unwrap_or(i32::MAX);
        match obstacles::obstacles(init_pid) {
            Ok(found) => reasons.extend(found.into_iter().map(|o| format!("{} (pid {}, {})", o.reason, o.pid, o.comm))),
            Err(error) => reasons.push(format!("its processes cannot be looked at: {error}")),
        }
        let volumes = container.volumes.iter().map(|volume| &volume.path);
        Self {
            memory_bytes: tasks::memory(init_pid).unwrap_or(0),
            disk_bytes: container.upper_dir.iter().chain(volumes).map(|path| tree_bytes(path)).sum(),
            init_pid,
            networks: networks
                .iter()
                .filter(|network| container.network.networks().any(|name| name == network.name))
                .map(for_policy)
                .collect(),
            obstacles: reasons,
            container,
        }
    }

    /// As the planner takes it.
    #[must_use]
    pub fn for_policy(&self) -> spothop_policy::Container {
        let Container { id, name, image, network, .. } = &self.container;
        let identity = match network.mode {
            Mode::KeepIp => spothop_policy::NetworkIdentity::KeepIp,
            Mode::NewIp => spothop_policy::NetworkIdentity::NewIp,
            Mode::Host => spothop_policy::NetworkIdentity::Host,
            Mode::None => spothop_policy::NetworkIdentity::None,
        };
        spothop_policy::Container {
            id: id.clone(),
            name: name.clone(),
            priority: self.container.priority(),
            memory_bytes: self.memory_bytes,
            // CRIU's images lie in memory until they are restored.
            staging_bytes: self.memory_bytes,
            disk_bytes: self.disk_bytes,
            architecture: image.architecture.clone(),
            image: image.id.clone(),
            image_bytes: image.size,
            identity,
            networks: self.networks.clone(),
            obstacles: self.obstacles.clone(),
            labels: self.container.labels.clone(),
            // Where nobody can tell, it weighs nothing.
            cpu_milli: tasks::cpu_milli(self.init_pid).unwrap_or(0),
            // Only the journal knows.
            failed_by: None,
            mounts: self.container.recipe.shared_mounts.iter().map(SharedMount::name).collect(),
        }
    }
}

/// All running containers of this host, by name.
///
/// # Errors
/// The engine's.
pub async fn containers(context: &Context) -> Result<Vec<Candidate>, Error> {
    let (containers, networks) = tokio::try_join!(context.engine.list(), context.engine.networks())?;
    let looked =
        spawn_blocking(move || containers.into_iter().map(|container| Candidate::look(container, &networks)).collect());
    Ok(unpanicked(looked.await))
}

/// One running container, by name, id or unambiguous start of an id.
///
/// # Errors
/// There is none, or the engine failed.
pub async fn container(context: &Context, name: &str) -> Result<Candidate, Error> {
    let (container, networks) = tokio::try_join!(context.engine.inspect(name), context.engine.networks())?;
    Ok(unpanicked(spawn_blocking(move || Candidate::look(container, &networks)).await))
}

/// What a tree takes on disk, in bytes. Entries that vanish or cannot be read count nothing: this is an estimate.
fn tree_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = directory.read_dir() else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .map(|(path, about)| {
            // `st_blocks` counts 512 bytes whatever the filesystem's block size (stat(2)).
            let own = about.blocks() * 512;
            if about.is_dir() { own + tree_bytes(&path) } else { own }
        })
        .sum()
}
