//! From Docker's answers to a [`Container`]: pure, so that it can be tested without Docker.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use bollard::models::{
    ContainerConfig, ContainerInspectResponse, ContainerSummary, EndpointSettings, HostConfig, ImageInspect,
    MountPoint, MountType, RestartPolicyNameEnum, Volume as DockerVolume,
};

use crate::orchestrator::container::{Container, Image, Volume};
use crate::orchestrator::network::{Attachment, Identity, Mode, Network};
use crate::orchestrator::obstacle::Obstacle;
use crate::orchestrator::recipe::{
    DockerEndpoint, DockerRecipe, EngineRecipe, Recipe, RestartPolicy, SharedMount, VolumeRecipe,
};
use crate::orchestrator::{Error, LABEL_MIGRATE, LABEL_MOUNT, MIGRATION, RUNTIME};

/// Runtimes that are runc under one of its names.
const RUNC_NAMES: [&str; 4] = ["", "runc", "io.containerd.runc.v2", RUNTIME];

/// What has to be known about the host to judge one container.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    /// All networks, by name.
    pub(super) networks: BTreeMap<String, Network>,
    /// The volumes that the container uses, by name.
    pub(super) volumes: HashMap<String, DockerVolume>,
    /// All running containers, itself included.
    pub(super) running: Vec<ContainerSummary>,
    /// User namespaces are remapped for all containers that do not say otherwise.
    pub(super) remapped_users: bool,
    /// Name of the storage driver.
    pub(super) storage_driver: String,
}

/// The image as two hosts can agree on it.
pub(super) fn image(reference: String, id: String, found: ImageInspect) -> Image {
    let mut tags = found.repo_tags.unwrap_or_default();
    let mut digests = found.repo_digests.unwrap_or_default();
    // Docker writes `<none>` for names that an image has lost.
    tags.retain(|tag| !tag.contains("<none>"));
    digests.retain(|digest| !digest.contains("<none>"));
    Image {
        id,
        reference,
        tags,
        digests,
        architecture: found.architecture.unwrap_or_default(),
        os: found.os.unwrap_or_default(),
        variant: found.variant.filter(|variant| !variant.is_empty()),
        size: found.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
    }
}

/// Names of the volumes among a container's mounts.
pub(super) fn volume_names(found: &ContainerInspectResponse) -> BTreeSet<String> {
    let mounts = found.mounts.iter().flatten();
    mounts.filter(|mount| is(mount, "volume")).filter_map(|mount| mount.name.clone()).collect()
}

/// Puts everything together.
pub(super) fn container(
    found: ContainerInspectResponse,
    image: Image,
    around: &Surroundings,
) -> Result<Container, Error> {
    let name = found.name.clone().unwrap_or_default().trim_start_matches('/').to_owned();
    let missing = |field| Error::Incomplete { subject: format!("container {name}"), field };
    let id = found.id.clone().ok_or_else(|| missing("Id"))?;
    let state = found.state.clone().ok_or_else(|| missing("State"))?;
    let config = found.config.clone().ok_or_else(|| missing("Config"))?;
    let host = found.host_config.clone().ok_or_else(|| missing("HostConfig"))?;
    let init_pid = match state.pid.map(u32::try_from) {
        Some(Ok(pid)) if pid > 0 && state.running == Some(true) => pid,
        _ => {
            let status = state.status.map(|status| status.to_string()).unwrap_or_default();
            return Err(Error::NotRunning { container: name, status });
        }
    };
    let labels: BTreeMap<String, String> = config.labels.clone().unwrap_or_default().into_iter().collect();
    let endpoints = endpoints(&found);
    let network = identity(&host, &endpoints, around);
    let mounts = Mounts::sort(&found, &labels, around);
    let (upper_dir, merged_dir) = layer(&found);

    let mut obstacles = Vec::new();
    if labels.get(LABEL_MIGRATE).is_some_and(|value| value == "never") {
        obstacles.push(Obstacle::Never);
    }
    if state.paused == Some(true) {
        obstacles.push(Obstacle::Paused);
    }
    namespaces(&host, around.remapped_users, &mut obstacles);
    neighbours(&id, &name, &mounts.volumes, around, &mut obstacles);
    devices(&host, &mut obstacles);
    networks(&network, &host, around, &mut obstacles);
    if let Some(service) = labels.get("com.docker.swarm.service.name") {
        obstacles.push(Obstacle::SwarmTask { service: service.clone() });
    }
    match image.os.as_str() {
        "linux" => {}
        "" => obstacles.push(Obstacle::NoImage { image: image.reference.clone() }),
        os => obstacles.push(Obstacle::ImageOs { os: os.to_owned() }),
    }
    let runtime = host.runtime.clone().unwrap_or_default();
    if !RUNC_NAMES.contains(&runtime.as_str()) {
        obstacles.push(Obstacle::Runtime { runtime: runtime.clone() });
    }
    if upper_dir.is_none() {
        obstacles.push(Obstacle::NoUpperDir { driver: around.storage_driver.clone() });
    }
    obstacles.extend(mounts.obstacles.iter().cloned());

    let restart_policy = restart_policy(&host);
    let tty = config.tty.unwrap_or(false);
    let memory_limit = host.memory.and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0);
    let recipe = Recipe {
        name: name.clone(),
        image: image.clone(),
        network: network.clone(),
        volumes: mounts.recipes(around),
        shared_mounts: mounts.shared.clone(),
        restart_policy: restart_policy.clone(),
        engine: EngineRecipe::Docker(Box::new(DockerRecipe {
            endpoints: docker_endpoints(&id, &endpoints),
            host_config: portable_host_config(host, &endpoints, &mounts.unnamed),
            config: portable_config(config, &id),
        })),
    };
    Ok(Container {
        id,
        name,
        image,
        init_pid,
        labels,
        network,
        recipe,
        upper_dir,
        merged_dir,
        volumes: mounts.volumes,
        restart_policy,
        runtime,
        tty,
        memory_limit,
        obstacles,
    })
}

fn is(mount: &MountPoint, mount_type: &str) -> bool {
    mount.typ.as_deref() == Some(mount_type)
}

/// Upper and merged directory of the storage driver overlay2.
pub(super) fn layer(found: &ContainerInspectResponse) -> (Option<PathBuf>, Option<PathBuf>) {
    let data = found.graph_driver.as_ref().filter(|driver| driver.name == "overlay2").map(|driver| &driver.data);
    let path = |key: &str| data.and_then(|data| data.get(key)).map(PathBuf::from);
    (path("UpperDir"), path("MergedDir"))
}

fn endpoints(found: &ContainerInspectResponse) -> BTreeMap<String, EndpointSettings> {
    let settings = found.network_settings.as_ref();
    settings.and_then(|settings| settings.networks.clone()).unwrap_or_default().into_iter().collect()
}

fn address(text: Option<&String>) -> Option<IpAddr> {
    text.and_then(|text| text.parse().ok())
}

fn identity(host: &HostConfig, endpoints: &BTreeMap<String, EndpointSettings>, around: &Surroundings) -> Identity {
    match host.network_mode.as_deref() {
        Some("host") => return Identity { mode: Mode::Host, attachments: Vec::new() },
        Some("none") => return Identity { mode: Mode::None, attachments: Vec::new() },
        _ => {}
    }
    let mut mode = if endpoints.is_empty() { Mode::None } else { Mode::KeepIp };
    let mut attachments = Vec::new();
    for (name, endpoint) in endpoints {
        let network = around.networks.get(name);
        let keeps_address = network.is_some_and(|network| network.keeps_addresses);
        if !keeps_address {
            mode = Mode::NewIp;
        }
        attachments.push(Attachment {
            network: name.clone(),
            driver: network.map(|network| network.driver.clone()).unwrap_or_default(),
            ipv4: address(endpoint.ip_address.as_ref()),
            ipv6: address(endpoint.global_ipv6_address.as_ref()),
            mac: endpoint.mac_address.clone().filter(|mac| !mac.is_empty()),
            keeps_address,
        });
    }
    Identity { mode, attachments }
}

fn restart_policy(host: &HostConfig) -> RestartPolicy {
    let policy = host.restart_policy.clone().unwrap_or_default();
    let name = match policy.name {
        None | Some(RestartPolicyNameEnum::EMPTY) => "no".to_owned(),
        Some(name) => name.to_string(),
    };
    RestartPolicy { name, maximum_retries: policy.maximum_retry_count.unwrap_or(0) }
}

fn namespaces(host: &HostConfig, remapped_users: bool, obstacles: &mut Vec<Obstacle>) {
    let modes = [("network", &host.network_mode), ("pid", &host.pid_mode), ("ipc", &host.ipc_mode)];
    for (namespace, mode) in modes {
        let mode = mode.as_deref().unwrap_or_default();
        if let Some(container) = mode.strip_prefix("container:") {
            let (namespace, container) = (namespace.to_owned(), container.to_owned());
            obstacles.push(Obstacle::SharedNamespace { namespace, container });
        } else if mode == "host" && namespace != "network" {
            obstacles.push(Obstacle::HostNamespace { namespace: namespace.to_owned() });
        }
    }
    if remapped_users && host.userns_mode.as_deref() != Some("host") {
        obstacles.push(Obstacle::UserNamespace);
    }
}

/// Other running containers that use this one's network or volumes.
fn neighbours(id: &str, name: &str, volumes: &[Volume], around: &Surroundings, obstacles: &mut Vec<Obstacle>) {
    for other in around.running.iter().filter(|other| other.id.as_deref() != Some(id)) {
        let other_name = other.names.iter().flatten().next().map(|name| name.trim_start_matches('/').to_owned());
        let container = other_name.or_else(|| other.id.clone()).unwrap_or_default();
        let mode = other.host_config.as_ref().and_then(|host| host.network_mode.as_deref()).unwrap_or_default();
        if mode.strip_prefix("container:").is_some_and(|whose| whose == id || whose == name) {
            let (namespace, container) = ("network".to_owned(), container.clone());
            obstacles.push(Obstacle::LendsNamespace { namespace, container });
        }
        let used: BTreeSet<&str> = other.mounts.iter().flatten().filter_map(|mount| mount.name.as_deref()).collect();
        let mut seen = BTreeSet::new();
        for volume in volumes.iter().filter(|volume| used.contains(volume.name.as_str())) {
            if seen.insert(volume.name.as_str()) {
                let (volume, container) = (volume.name.clone(), container.clone());
                obstacles.push(Obstacle::SharedVolume { volume, container });
            }
        }
    }
}

fn devices(host: &HostConfig, obstacles: &mut Vec<Obstacle>) {
    if host.privileged == Some(true) {
        obstacles.push(Obstacle::Privileged);
    }
    for device in host.devices.iter().flatten() {
        let path = PathBuf::from(device.path_on_host.clone().unwrap_or_default());
        obstacles.push(Obstacle::Device { path });
    }
    for request in host.device_requests.iter().flatten() {
        let capabilities = || request.capabilities.iter().flatten().flatten().cloned().collect::<Vec<_>>().join(",");
        let driver = request.driver.clone().filter(|driver| !driver.is_empty()).unwrap_or_else(capabilities);
        obstacles.push(Obstacle::DeviceRequest { driver });
    }
}

fn networks(network: &Identity, host: &HostConfig, around: &Surroundings, obstacles: &mut Vec<Obstacle>) {
    for name in network.networks() {
        if around.networks.get(name).is_some_and(|network| network.scope == "swarm") {
            obstacles.push(Obstacle::SwarmNetwork { network: name.to_owned() });
        }
    }
    let links = host.links.clone().unwrap_or_default();
    if !links.is_empty() {
        obstacles.push(Obstacle::Links { links: links.join(", ") });
    }
    let mut addresses = BTreeSet::new();
    for binding in host.port_bindings.iter().flat_map(HashMap::values).flatten().flatten() {
        let Some(address) = address(binding.host_ip.as_ref()) else { continue };
        if !address.is_unspecified() && !address.is_loopback() {
            addresses.insert(address);
        }
    }
    obstacles.extend(addresses.into_iter().map(|address| Obstacle::HostAddress { address }));
}

/// A container's mounts, sorted by what becomes of them.
#[derive(Debug, Default)]
struct Mounts {
    /// To be copied.
    volumes: Vec<Volume>,
    /// The target has them.
    shared: Vec<SharedMount>,
    /// Volumes whose names the settings do not tell (anonymous ones, and those of `--volumes-from`).
    unnamed: Vec<MountPoint>,
    obstacles: Vec<Obstacle>,
}

impl Mounts {
    fn sort(found: &ContainerInspectResponse, labels: &BTreeMap<String, String>, around: &Surroundings) -> Self {
        let mut sorted = Self::default();
        let named = named_destinations(found.host_config.as_ref());
        let mut points: Vec<MountPoint> = found.mounts.clone().unwrap_or_default();
        points.sort_by(|a, b| a.destination.cmp(&b.destination));
        for point in points {
            let destination = PathBuf::from(point.destination.clone().unwrap_or_default());
            let source = PathBuf::from(point.source.clone().unwrap_or_default());
            let volume = point.name.clone().filter(|_| is(&point, "volume"));
            let label = format!("{LABEL_MOUNT}{}", destination.display());
            let shared = labels.get(&label).is_some_and(|value| value == "shared");
            if volume.is_some() && !named.contains(&destination) {
                sorted.unnamed.push(point.clone());
            }
            if shared && (volume.is_some() || is(&point, "bind")) {
                sorted.shared.push(SharedMount { destination, source, volume });
                continue;
            }
            match (point.typ.as_deref().unwrap_or_default(), volume) {
                (_, Some(name)) => match around.volumes.get(&name) {
                    Some(volume) if volume.driver == "local" && volume.options.is_empty() => {
                        let path = PathBuf::from(&volume.mountpoint);
                        let read_only = point.rw == Some(false);
                        sorted.volumes.push(Volume { name, path, destination, read_only });
                    }
                    other => {
                        let driver = other.map(|volume| volume.driver.clone()).or(point.driver).unwrap_or_default();
                        sorted.obstacles.push(Obstacle::VolumeDriver { volume: name, driver, destination });
                    }
                },
                ("bind", None) => sorted.obstacles.push(Obstacle::BindMount { source_path: source, destination }),
                // CRIU carries a tmpfs with its contents.
                ("tmpfs", None) => {}
                (other, None) => {
                    let mount_type = other.to_owned();
                    sorted.obstacles.push(Obstacle::MountType { mount_type, destination });
                }
            }
        }
        sorted
    }

    /// One for each volume to be copied, without our own label of an earlier migration.
    fn recipes(&self, around: &Surroundings) -> Vec<VolumeRecipe> {
        let names: BTreeSet<&str> = self.volumes.iter().map(|volume| volume.name.as_str()).collect();
        let labels = |name: &str| around.volumes.get(name).map(|volume| volume.labels.clone()).unwrap_or_default();
        let recipe = |name: &str| VolumeRecipe {
            name: name.to_owned(),
            labels: labels(name).into_iter().filter(|(key, _)| key != MIGRATION).collect(),
        };
        names.into_iter().map(recipe).collect()
    }
}

/// Destinations for which the settings name what is mounted there.
fn named_destinations(host: Option<&HostConfig>) -> BTreeSet<PathBuf> {
    let Some(host) = host else { return BTreeSet::new() };
    let binds = host.binds.iter().flatten().filter_map(|bind| bind.split(':').nth(1)).map(PathBuf::from);
    let has_source = |source: &Option<String>| source.as_deref().is_some_and(|source| !source.is_empty());
    let mounts = host.mounts.iter().flatten().filter(|mount| has_source(&mount.source));
    binds.chain(mounts.filter_map(|mount| mount.target.clone()).map(PathBuf::from)).collect()
}

/// `Config` without what is filled in by the engine or belongs to this host.
fn portable_config(mut config: ContainerConfig, id: &str) -> ContainerConfig {
    // The default host name is the short id: the processes have seen it, so it becomes an explicit setting.
    if config.hostname.as_deref().unwrap_or_default().is_empty() {
        config.hostname = Some(id.chars().take(12).collect());
    }
    config
}

/// `HostConfig` without what belongs to this host, and with all volumes by name.
fn portable_host_config(
    mut host: HostConfig,
    endpoints: &BTreeMap<String, EndpointSettings>,
    unnamed: &[MountPoint],
) -> HostConfig {
    host.container_id_file = None;
    host.links = None;
    host.volumes_from = None;
    host.runtime = None;
    if let Some(annotations) = host.annotations.as_mut() {
        annotations.remove(MIGRATION);
    }
    // `--network <id>`: ids differ between hosts, names do not.
    if let Some(mode) = host.network_mode.as_mut() {
        let by_id = |endpoint: &EndpointSettings| endpoint.network_id.as_deref().is_some_and(|id| id == mode.as_str());
        if let Some((name, _)) = endpoints.iter().find(|(_, endpoint)| by_id(endpoint)) {
            *mode = name.clone();
        }
    }
    for point in unnamed {
        let (Some(name), Some(destination)) = (&point.name, &point.destination) else { continue };
        let mounts = host.mounts.iter_mut().flatten();
        let volume = mounts.into_iter().find(|mount| {
            mount.typ == Some(MountType::VOLUME)
                && mount.target.as_deref().map(Path::new) == Some(Path::new(destination))
        });
        if let Some(mount) = volume {
            mount.source = Some(name.clone());
        } else {
            let mode = if point.rw == Some(false) { ":ro" } else { "" };
            host.binds.get_or_insert_default().push(format!("{name}:{destination}{mode}"));
        }
    }
    host
}

fn docker_endpoints(id: &str, endpoints: &BTreeMap<String, EndpointSettings>) -> Vec<DockerEndpoint> {
    let short_id: String = id.chars().take(12).collect();
    let endpoint = |(network, settings): (&String, &EndpointSettings)| {
        let ipam = settings.ipam_config.clone().unwrap_or_default();
        let mut aliases = settings.aliases.clone().unwrap_or_default();
        // Engines before 25 listed the short id among the aliases.
        aliases.retain(|alias| *alias != short_id);
        DockerEndpoint {
            network: network.clone(),
            aliases,
            driver_opts: settings.driver_opts.clone().unwrap_or_default().into_iter().collect(),
            gateway_priority: settings.gw_priority.filter(|priority| *priority != 0),
            requested_ipv4: ipam.ipv4_address.filter(|address| !address.is_empty()),
            requested_ipv6: ipam.ipv6_address.filter(|address| !address.is_empty()),
            link_local: ipam.link_local_ips.unwrap_or_default(),
        }
    };
    endpoints.iter().map(endpoint).collect()
}

#[cfg(test)]
#[path = "inspect_tests.rs"]
pub(crate) mod tests;
