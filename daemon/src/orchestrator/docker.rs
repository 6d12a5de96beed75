//! Docker, through its API on a unix socket.

mod create;
mod image;
mod inspect;
mod trace;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::errors::Error as DockerError;
use bollard::models::{ContainerInspectResponse, ContainerUpdateBody, ImageInspect, RestartPolicyNameEnum};
use bollard::query_parameters::{
    InspectContainerOptions, ListContainersOptionsBuilder, ListNetworksOptions, RemoveContainerOptionsBuilder,
    WaitContainerOptionsBuilder,
};
use futures_util::future::{BoxFuture, try_join_all};
use futures_util::{FutureExt, StreamExt};
use tokio::time::timeout;

use self::inspect::Surroundings;
pub use self::trace::Trace;
use super::network::keeps_addresses;
use super::{
    ByteStream, Container, CreateOptions, Created, Engine, Error, Image, MIGRATION, Network, Orchestrator, Recipe,
    RestartPolicy,
};

/// A question to the engine is answered in milliseconds; a loaded host may need seconds.
const ANSWER: Duration = Duration::from_secs(60);
/// Calls that last as long as the work behind them: a start waits for a restore, a pull for a registry. Who calls them
/// decides when to give up, by other means than the connection.
const WORK: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long the engine may need to notice that a killed process is gone; it was 0.2 s where we looked.
const EXIT: Duration = Duration::from_secs(10);

/// A host's Docker.
#[derive(Debug, Clone)]
pub struct Docker {
    socket: PathBuf,
    /// For questions.
    client: bollard::Docker,
    /// For work.
    patient: bollard::Docker,
}

impl Docker {
    /// Connects to the engine's socket (`/run/docker.sock`) and agrees on a version of its API.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when nobody answers there.
    pub async fn connect(socket: &Path) -> Result<Self, Error> {
        let unreachable = |source| Error::Unreachable { socket: socket.to_owned(), source: Box::new(source) };
        let path = socket.to_string_lossy();
        let client = bollard::Docker::connect_with_unix(&path, ANSWER.as_secs(), bollard::API_DEFAULT_VERSION);
        let client = client.map_err(unreachable)?.negotiate_version().await.map_err(unreachable)?;
        let patient = client.clone().with_timeout(WORK);
        Ok(Self { socket: socket.to_owned(), client, patient })
    }

    /// Names the action in an error; a socket that has gone is told as such.
    fn failed(&self, action: String) -> impl FnOnce(DockerError) -> Error + '_ {
        move |source| match source {
            DockerError::SocketNotFoundError(_) | DockerError::HyperLegacyError { .. } => {
                Error::Unreachable { socket: self.socket.clone(), source: Box::new(source) }
            }
            source => Error::Engine { action, source: Box::new(source) },
        }
    }

    async fn look_at(&self, container: &str) -> Result<ContainerInspectResponse, Error> {
        match self.client.inspect_container(container, None::<InspectContainerOptions>).await {
            Ok(found) => Ok(found),
            Err(error) if status(&error) == Some(404) => Err(Error::NoContainer { container: container.to_owned() }),
            Err(error) => Err(self.failed(format!("inspect container {container}"))(error)),
        }
    }

    /// The part of the surroundings that is the same for all containers.
    async fn surroundings(&self) -> Result<Surroundings, Error> {
        let (engine, networks) = futures_util::try_join!(self.describe(), self.networks())?;
        let running = self.client.list_containers(Some(ListContainersOptionsBuilder::default().build()));
        Ok(Surroundings {
            networks: networks.into_iter().map(|network| (network.name.clone(), network)).collect(),
            volumes: HashMap::new(),
            running: running.await.map_err(self.failed("list containers".to_owned()))?,
            remapped_users: engine.remapped_users,
            storage_driver: engine.storage_driver,
        })
    }

    async fn container(&self, found: ContainerInspectResponse, around: &mut Surroundings) -> Result<Container, Error> {
        let image_id = found.image.clone().unwrap_or_default();
        let reference = found.config.as_ref().and_then(|config| config.image.clone()).unwrap_or_default();
        let image = match self.client.inspect_image(&image_id).await {
            Ok(image) => image,
            // One such container must not keep the others from being listed.
            Err(error) if status(&error) == Some(404) => ImageInspect::default(),
            Err(error) => return Err(self.failed(format!("inspect image {image_id}"))(error)),
        };
        let image = inspect::image(reference, image_id, image);
        let volumes = inspect::volume_names(&found);
        let volumes = try_join_all(volumes.into_iter().map(|name| async move {
            match self.client.inspect_volume(&name).await {
                Ok(volume) => Ok(Some((name, volume))),
                Err(error) if status(&error) == Some(404) => Ok(None),
                Err(error) => Err(self.failed(format!("inspect volume {name}"))(error)),
            }
        }));
        around.volumes = volumes.await?.into_iter().flatten().collect();
        inspect::container(found, image, around)
    }

    async fn update_policy(&self, id: &str, policy: &RestartPolicy) -> Result<(), Error> {
        let name = match policy.name.as_str() {
            "always" => RestartPolicyNameEnum::ALWAYS,
            "unless-stopped" => RestartPolicyNameEnum::UNLESS_STOPPED,
            "on-failure" => RestartPolicyNameEnum::ON_FAILURE,
            _ => RestartPolicyNameEnum::NO,
        };
        let retries = Some(policy.maximum_retries).filter(|retries| *retries != 0);
        let policy = bollard::models::RestartPolicy { name: Some(name), maximum_retry_count: retries };
        let update = ContainerUpdateBody { restart_policy: Some(policy), ..ContainerUpdateBody::default() };
        let action = format!("set the restart policy of container {id} to {name}");
        self.client.update_container(id, update).await.map_err(self.failed(action))
    }

    /// Removes a container that does not run. One that is gone already, or going, is a success.
    async fn remove_ended(&self, id: &str) -> Result<(), Error> {
        let options = RemoveContainerOptionsBuilder::default().v(false).force(false).build();
        match self.client.remove_container(id, Some(options)).await {
            Ok(()) => Ok(()),
            Err(error) if status(&error) == Some(404) => Ok(()),
            // `--rm`: the engine is removing it itself.
            Err(DockerError::DockerResponseServerError { status_code: 409, message })
                if message.contains("already in progress") =>
            {
                Ok(())
            }
            Err(error) => Err(self.failed(format!("remove container {id}"))(error)),
        }
    }
}

/// The HTTP status that the engine answered with, if it did.
fn status(error: &DockerError) -> Option<u16> {
    match error {
        DockerError::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// The kernel's name of an architecture, in the words of OCI images.
fn oci_architecture(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "armv7l" | "armv6l" => "arm",
        "i386" | "i686" => "386",
        other => other,
    }
}

impl Orchestrator for Docker {
    fn describe(&self) -> BoxFuture<'_, Result<Engine, Error>> {
        async move {
            let info = self.client.info().await.map_err(self.failed("describe itself".to_owned()))?;
            let mut runtimes: Vec<String> = info.runtimes.unwrap_or_default().into_keys().collect();
            runtimes.sort();
            let security = info.security_options.unwrap_or_default();
            let remapped_users = security.iter().any(|option| option.contains("userns") || option.contains("rootless"));
            let cgroup_version = info.cgroup_version.map(|version| version.to_string());
            Ok(Engine {
                name: "docker".to_owned(),
                version: info.server_version.unwrap_or_default(),
                architecture: oci_architecture(info.architecture.as_deref().unwrap_or_default()).to_owned(),
                kernel: info.kernel_version.unwrap_or_default(),
                storage_driver: info.driver.unwrap_or_default(),
                data_directory: info.docker_root_dir.unwrap_or_default().into(),
                cgroup_driver: info.cgroup_driver.map(|driver| driver.to_string()).unwrap_or_default(),
                cgroup_version: cgroup_version.and_then(|version| version.parse().ok()).unwrap_or(1),
                runtimes,
                remapped_users,
            })
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Container>, Error>> {
        async move {
            let mut around = self.surroundings().await?;
            let mut containers = Vec::new();
            let ids: Vec<String> = around.running.iter().filter_map(|summary| summary.id.clone()).collect();
            for id in ids {
                let container = match self.look_at(&id).await {
                    Ok(found) => self.container(found, &mut around).await,
                    Err(error) => Err(error),
                };
                match container {
                    Ok(container) => containers.push(container),
                    Err(Error::NoContainer { .. } | Error::NotRunning { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            containers.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(containers)
        }
        .boxed()
    }

    fn inspect<'a>(&'a self, container: &'a str) -> BoxFuture<'a, Result<Container, Error>> {
        async move {
            let found = self.look_at(container).await?;
            let mut around = self.surroundings().await?;
            self.container(found, &mut around).await
        }
        .boxed()
    }

    fn networks(&self) -> BoxFuture<'_, Result<Vec<Network>, Error>> {
        async move {
            let found = self.client.list_networks(None::<ListNetworksOptions>).await;
            let found = found.map_err(self.failed("list networks".to_owned()))?;
            let network = |network: bollard::models::Network| {
                let driver = network.driver.unwrap_or_default();
                let mode = network.options.as_ref().and_then(|options| options.get("ipvlan_mode")).cloned();
                let subnets = network.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
                Network {
                    name: network.name.unwrap_or_default(),
                    keeps_addresses: keeps_addresses(&driver, mode.as_deref()),
                    driver,
                    scope: network.scope.unwrap_or_default(),
                    subnets: subnets.into_iter().filter_map(|config| config.subnet).collect(),
                }
            };
            let mut networks: Vec<Network> = found.into_iter().map(network).collect();
            networks.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(networks)
        }
        .boxed()
    }

    fn has_image<'a>(&'a self, image: &'a Image) -> BoxFuture<'a, Result<bool, Error>> {
        self.image_is_here(image).boxed()
    }

    fn pull_image<'a>(&'a self, image: &'a Image) -> BoxFuture<'a, Result<(), Error>> {
        self.pull(image).boxed()
    }

    fn export_image<'a>(&'a self, image: &'a Image) -> BoxFuture<'a, Result<ByteStream, Error>> {
        self.save(image).boxed()
    }

    fn import_image<'a>(&'a self, image: &'a Image, archive: ByteStream) -> BoxFuture<'a, Result<(), Error>> {
        self.load(image, archive).boxed()
    }

    fn create<'a>(&'a self, recipe: &'a Recipe, options: &'a CreateOptions) -> BoxFuture<'a, Result<Created, Error>> {
        self.make(recipe, options).boxed()
    }

    fn start<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let started = self.patient.start_container(id, None).await;
            started.map_err(self.failed(format!("start container {id}")))
        }
        .boxed()
    }

    fn hold_restarts<'a>(&'a self, id: &'a str, policy: &'a RestartPolicy) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            if policy.is_no() {
                // With `--rm` the engine refuses any update of the policy, this one too.
                return Ok(());
            }
            let none = RestartPolicy { name: "no".to_owned(), maximum_retries: 0 };
            self.update_policy(id, &none).await
        }
        .boxed()
    }

    fn resume_restarts<'a>(&'a self, id: &'a str, policy: &'a RestartPolicy) -> BoxFuture<'a, Result<(), Error>> {
        async move { if policy.is_no() { Ok(()) } else { self.update_policy(id, policy).await } }.boxed()
    }

    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
            let mut ended = std::pin::pin!(self.patient.wait_container(id, Some(options)));
            match timeout(EXIT, ended.next()).await {
                Err(_) => {
                    return Err(Error::StillRunning { container: id.to_owned(), seconds: EXIT.as_secs() });
                }
                // Killed by CRIU: exit code 137, which the library takes for an error.
                Ok(None | Some(Ok(_) | Err(DockerError::DockerContainerWaitError { .. }))) => {}
                Ok(Some(Err(error))) if status(&error) == Some(404) => return Ok(()),
                Ok(Some(Err(error))) => return Err(self.failed(format!("wait for container {id}"))(error)),
            }
            self.remove_ended(id).await
        }
        .boxed()
    }

    fn discard<'a>(&'a self, recipe: &'a Recipe, migration: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            match self.look_at(&recipe.name).await {
                Ok(found) if made_by(&found) == Some(migration) => {
                    if found.state.as_ref().and_then(|state| state.running) == Some(true) {
                        return Err(Error::Running { container: recipe.name.clone() });
                    }
                    self.remove_ended(found.id.as_deref().unwrap_or(&recipe.name)).await?;
                }
                Ok(_) | Err(Error::NoContainer { .. }) => {}
                Err(error) => return Err(error),
            }
            self.remove_volumes(recipe, migration).await
        }
        .boxed()
    }
}

/// The migration that made a container.
fn made_by(found: &ContainerInspectResponse) -> Option<&str> {
    let annotations = found.host_config.as_ref().and_then(|host| host.annotations.as_ref());
    annotations.and_then(|annotations| annotations.get(MIGRATION)).map(String::as_str)
}

/// Networks by name.
fn by_name(networks: Vec<Network>) -> BTreeMap<String, Network> {
    networks.into_iter().map(|network| (network.name.clone(), network)).collect()
}

/// For `fuzz/`: Docker's answers (a container, the volumes and networks around it) as bytes, and what is made of them.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn judge(container: &[u8], image: &[u8], volume: &[u8]) -> Option<super::Container> {
    let found: ContainerInspectResponse = serde_json::from_slice(container).ok()?;
    let image = inspect::image("x".into(), "sha256:x".into(), serde_json::from_slice(image).ok()?);
    let names = inspect::volume_names(&found);
    let volume: Option<bollard::models::Volume> = serde_json::from_slice(volume).ok();
    let volumes = names.into_iter().filter_map(|name| Some((name, volume.clone()?))).collect();
    inspect::container(found, image, &Surroundings { volumes, ..Surroundings::default() }).ok()
}
