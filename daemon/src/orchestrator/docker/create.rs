//! The same container again: the recipe turned into what `POST /containers/create` takes.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use bollard::models::{
    ContainerConfig, ContainerCreateBody, ContainerInspectResponse, EndpointIpamConfig, EndpointSettings, HostConfig,
    NetworkingConfig, RestartPolicy, RestartPolicyNameEnum, Volume, VolumeCreateRequest,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveVolumeOptionsBuilder,
};

use super::{Docker, by_name, inspect, made_by, status};
use crate::orchestrator::network::contains;
use crate::orchestrator::{
    Attachment, CreateOptions, Created, CreatedVolume, DockerEndpoint, DockerRecipe, EngineRecipe, Error, MIGRATION,
    Network, Orchestrator, RUNTIME, Recipe, VolumeRecipe,
};

/// Docker's network for containers that name none.
const DEFAULT_NETWORK: &str = "bridge";

impl Docker {
    pub(super) async fn make(&self, recipe: &Recipe, options: &CreateOptions) -> Result<Created, Error> {
        let EngineRecipe::Docker(docker) = &recipe.engine;
        let engine = self.describe().await?;
        if !engine.has_runtime() {
            return Err(Error::NoRuntime);
        }
        if engine.storage_driver != "overlay2" {
            return Err(Error::NoUpperDir { driver: engine.storage_driver });
        }
        let existing = match self.look_at(&recipe.name).await {
            Ok(found) if made_by(&found) == Some(&options.migration) => Some(found),
            Ok(_) => return Err(Error::NameTaken { name: recipe.name.clone() }),
            Err(Error::NoContainer { .. }) => None,
            Err(error) => return Err(error),
        };
        let networks = by_name(self.networks().await?);
        check_networks(recipe, &networks)?;
        self.check_shared_mounts(recipe).await?;
        for volume in &recipe.volumes {
            self.check_volume(volume, options, existing.as_ref()).await?;
        }

        let made = self.make_checked(recipe, docker, options, &networks, existing).await;
        if made.is_err()
            && let Err(error) = self.discard(recipe, &options.migration).await
        {
            tracing::warn!(container = recipe.name, %error, "could not take away a container that could not be made");
        }
        made
    }

    async fn make_checked(
        &self,
        recipe: &Recipe,
        docker: &DockerRecipe,
        options: &CreateOptions,
        networks: &BTreeMap<String, Network>,
        existing: Option<ContainerInspectResponse>,
    ) -> Result<Created, Error> {
        let mut volumes = Vec::new();
        for volume in &recipe.volumes {
            volumes.push(self.make_volume(volume, &options.migration).await?);
        }
        let found = match existing {
            Some(found) => found,
            None => {
                let image = &recipe.image;
                let by_reference = self.image_id(&image.reference).await?.is_some_and(|id| id == image.id);
                let name = if by_reference { image.reference.clone() } else { image.id.clone() };
                let body = body(recipe, docker, name, &options.migration, networks);
                let query = CreateContainerOptionsBuilder::default().name(&recipe.name).build();
                let made = self.client.create_container(Some(query), body).await;
                let made = made.map_err(self.failed(format!("create container {}", recipe.name)))?;
                for warning in &made.warnings {
                    tracing::warn!(container = recipe.name, warning, "docker warns about the new container");
                }
                self.look_at(&made.id).await?
            }
        };
        let (upper_dir, merged_dir) = inspect::layer(&found);
        match (found.id, upper_dir, merged_dir) {
            (Some(id), Some(upper_dir), Some(merged_dir)) => Ok(Created { id, upper_dir, merged_dir, volumes }),
            _ => Err(Error::NoUpperDir { driver: found.driver.unwrap_or_default() }),
        }
    }

    async fn find_volume(&self, name: &str) -> Result<Option<Volume>, Error> {
        match self.client.inspect_volume(name).await {
            Ok(volume) => Ok(Some(volume)),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.failed(format!("inspect volume {name}"))(error)),
        }
    }

    /// Nothing of anybody's would be overwritten in this volume.
    async fn check_volume(
        &self,
        recipe: &VolumeRecipe,
        options: &CreateOptions,
        existing: Option<&ContainerInspectResponse>,
    ) -> Result<(), Error> {
        let name = || recipe.name.clone();
        let Some(volume) = self.find_volume(&recipe.name).await? else { return Ok(()) };
        if volume.driver != "local" || !volume.options.is_empty() {
            return Err(Error::VolumeUnusable { name: name(), reason: "its data is not in a local directory" });
        }
        let filter = HashMap::from([("volume".to_owned(), vec![recipe.name.clone()])]);
        let users = ListContainersOptionsBuilder::default().all(true).filters(&filter).build();
        let users = self.client.list_containers(Some(users)).await;
        let users = users.map_err(self.failed(format!("list the containers that use volume {}", recipe.name)))?;
        let ours = existing.and_then(|found| found.id.as_deref());
        // The filter matches destinations as well as names.
        let uses = |user: &bollard::models::ContainerSummary| {
            user.id.as_deref() != ours
                && user.mounts.iter().flatten().any(|mount| mount.name.as_ref() == Some(&recipe.name))
        };
        if users.iter().any(uses) {
            return Err(Error::VolumeUnusable { name: name(), reason: "another container uses it" });
        }
        let made_by_us = volume.labels.get(MIGRATION) == Some(&options.migration);
        let directory = Path::new(&volume.mountpoint);
        let left_behind = options.stale_volumes.iter().any(|old| old.is(&recipe.name, directory));
        if made_by_us || left_behind || is_empty(directory).await? {
            return Ok(());
        }
        Err(Error::VolumeTaken { name: name() })
    }

    async fn make_volume(&self, recipe: &VolumeRecipe, migration: &str) -> Result<CreatedVolume, Error> {
        let volume = match self.find_volume(&recipe.name).await? {
            Some(volume) => volume,
            None => {
                let mut labels: HashMap<String, String> = recipe.labels.clone().into_iter().collect();
                labels.insert(MIGRATION.to_owned(), migration.to_owned());
                let request = VolumeCreateRequest {
                    name: Some(recipe.name.clone()),
                    driver: Some("local".to_owned()),
                    labels: Some(labels),
                    ..VolumeCreateRequest::default()
                };
                let made = self.client.create_volume(request).await;
                made.map_err(self.failed(format!("create volume {}", recipe.name)))?
            }
        };
        Ok(CreatedVolume { name: volume.name, path: PathBuf::from(volume.mountpoint) })
    }

    /// Removes the volumes of the recipe that the migration made.
    pub(super) async fn remove_volumes(&self, recipe: &Recipe, migration: &str) -> Result<(), Error> {
        for recipe in &recipe.volumes {
            let Some(volume) = self.find_volume(&recipe.name).await? else { continue };
            if volume.labels.get(MIGRATION).map(String::as_str) != Some(migration) {
                continue;
            }
            let options = RemoveVolumeOptionsBuilder::default().force(false).build();
            match self.client.remove_volume(&recipe.name, Some(options)).await {
                Ok(()) => {}
                Err(error) if status(&error) == Some(404) => {}
                Err(error) => return Err(self.failed(format!("remove volume {}", recipe.name))(error)),
            }
        }
        Ok(())
    }

    /// What the labels promise is here. Docker itself would make an empty directory or volume instead.
    async fn check_shared_mounts(&self, recipe: &Recipe) -> Result<(), Error> {
        for mount in &recipe.shared_mounts {
            let (what, found) = match &mount.volume {
                Some(name) => (format!("volume {name}"), self.find_volume(name).await?.is_some()),
                None => {
                    let found = tokio::fs::try_exists(&mount.source).await.unwrap_or(false);
                    (format!("directory {}", mount.source.display()), found)
                }
            };
            if !found {
                return Err(Error::NoSharedMount { what, destination: mount.destination.clone() });
            }
        }
        Ok(())
    }
}

async fn is_empty(directory: &Path) -> Result<bool, Error> {
    let failed = |source| Error::Directory { path: directory.to_owned(), source };
    let mut entries = tokio::fs::read_dir(directory).await.map_err(failed)?;
    Ok(entries.next_entry().await.map_err(failed)?.is_none())
}

/// The host has networks of the same names and drivers, and addresses that are kept lie in them.
fn check_networks(recipe: &Recipe, networks: &BTreeMap<String, Network>) -> Result<(), Error> {
    for attachment in &recipe.network.attachments {
        let here = networks.get(&attachment.network).filter(|network| network.driver == attachment.driver);
        let Some(here) = here else {
            let (network, driver) = (attachment.network.clone(), attachment.driver.clone());
            return Err(Error::NoNetwork { network, driver });
        };
        if !attachment.keeps_address {
            continue;
        }
        for address in [attachment.ipv4, attachment.ipv6].into_iter().flatten() {
            if !here.subnets.iter().any(|subnet| contains(subnet, address)) {
                return Err(Error::AddressOutside { network: attachment.network.clone(), address });
            }
        }
    }
    Ok(())
}

/// The request's body.
fn body(
    recipe: &Recipe,
    docker: &DockerRecipe,
    image: String,
    migration: &str,
    networks: &BTreeMap<String, Network>,
) -> ContainerCreateBody {
    let mut host_config: HostConfig = docker.host_config.clone();
    host_config.runtime = Some(RUNTIME.to_owned());
    host_config.restart_policy =
        Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None });
    host_config.annotations.get_or_insert_default().insert(MIGRATION.to_owned(), migration.to_owned());
    let endpoint = |endpoint: &DockerEndpoint| {
        let attachment = recipe.network.attachments.iter().find(|attachment| attachment.network == endpoint.network);
        let settings = settings(endpoint, attachment, networks.get(&endpoint.network));
        (endpoint.network.clone(), settings)
    };
    let endpoints: HashMap<String, EndpointSettings> = docker.endpoints.iter().map(endpoint).collect();
    let networking_config = NetworkingConfig { endpoints_config: Some(endpoints) };
    let ContainerConfig {
        hostname,
        domainname,
        user,
        attach_stdin,
        attach_stdout,
        attach_stderr,
        exposed_ports,
        tty,
        open_stdin,
        stdin_once,
        env,
        cmd,
        healthcheck,
        args_escaped,
        image: _,
        volumes,
        working_dir,
        entrypoint,
        network_disabled,
        on_build,
        labels,
        stop_signal,
        stop_timeout,
        shell,
    } = docker.config.clone();
    // Docker refuses a host name for a container that uses the host's.
    let own_name = host_config.uts_mode.as_deref() != Some("host");
    ContainerCreateBody {
        hostname: hostname.filter(|_| own_name),
        domainname: domainname.filter(|_| own_name),
        user,
        attach_stdin,
        attach_stdout,
        attach_stderr,
        exposed_ports,
        tty,
        open_stdin,
        stdin_once,
        env,
        cmd,
        healthcheck,
        args_escaped,
        image: Some(image),
        volumes,
        working_dir,
        entrypoint,
        network_disabled,
        on_build,
        labels,
        stop_signal,
        stop_timeout,
        shell,
        networking_config: Some(networking_config).filter(|_| !docker.endpoints.is_empty()),
        host_config: Some(host_config),
    }
}

/// One endpoint: the source's address and MAC where they are kept, else what the user asked for, where it fits.
fn settings(endpoint: &DockerEndpoint, attachment: Option<&Attachment>, here: Option<&Network>) -> EndpointSettings {
    let kept = attachment.filter(|attachment| attachment.keeps_address);
    let fits = |address: &String| {
        let address = address.parse().ok()?;
        here?.subnets.iter().any(|subnet| contains(subnet, address)).then_some(())
    };
    let requested = |address: &Option<String>| address.clone().filter(|address| fits(address).is_some());
    let text = |address: std::net::IpAddr| address.to_string();
    let ipv4_address = kept.and_then(|kept| kept.ipv4).map(text).or_else(|| requested(&endpoint.requested_ipv4));
    let ipv6_address = kept.and_then(|kept| kept.ipv6).map(text).or_else(|| requested(&endpoint.requested_ipv6));
    let link_local_ips = Some(endpoint.link_local.clone()).filter(|addresses| !addresses.is_empty());
    let has_addresses = ipv4_address.is_some() || ipv6_address.is_some() || link_local_ips.is_some();
    let ipam_config = EndpointIpamConfig { ipv4_address, ipv6_address, link_local_ips };
    // Docker's default network knows no names.
    let aliases = Some(endpoint.aliases.clone());
    let aliases = aliases.filter(|aliases| !aliases.is_empty() && endpoint.network != DEFAULT_NETWORK);
    // All ipvlan devices have the MAC of their parent.
    let has_mac = attachment.is_some_and(|attachment| attachment.driver != "ipvlan");
    EndpointSettings {
        ipam_config: Some(ipam_config).filter(|_| has_addresses && endpoint.network != DEFAULT_NETWORK),
        mac_address: kept.filter(|_| has_mac).and_then(|kept| kept.mac.clone()),
        aliases,
        driver_opts: Some(endpoint.driver_opts.clone().into_iter().collect())
            .filter(|_| !endpoint.driver_opts.is_empty()),
        gw_priority: endpoint.gateway_priority,
        ..EndpointSettings::default()
    }
}

#[cfg(test)]
#[path = "create_tests.rs"]
mod tests;
