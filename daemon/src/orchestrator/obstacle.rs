//! Why a container cannot be moved, as far as the engine's settings tell it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One thing that keeps a container from being moved. Its text says what, and what to do about it.
///
/// Serialized as an object with `kind` in kebab-case and the variant's fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Obstacle {
    /// Label `io.spothop.migrate=never`.
    #[error("its label io.spothop.migrate=never keeps it here")]
    Never,
    /// It is paused.
    #[error("it is paused; unpause it first")]
    Paused,
    /// It uses a namespace of the host.
    #[error(
        "it uses the host's {namespace} namespace, whose processes and objects cannot move with it; run it without --{namespace}=host"
    )]
    HostNamespace {
        /// `pid` or `ipc`.
        namespace: String,
    },
    /// It uses a namespace of another container.
    #[error("it shares the {namespace} namespace of container {container}; containers move one by one")]
    SharedNamespace {
        /// `network`, `pid` or `ipc`.
        namespace: String,
        /// The other container, as the engine has it.
        container: String,
    },
    /// Another container uses a namespace of this one.
    #[error("container {container} shares its {namespace} namespace; containers move one by one")]
    LendsNamespace {
        /// `network`.
        namespace: String,
        /// Name of the other container.
        container: String,
    },
    /// `--privileged`.
    #[error(
        "it is privileged: it sees all devices of this host; give it the capabilities it needs with --cap-add instead"
    )]
    Privileged,
    /// `--device`.
    #[error("it has the device {path} of this host")]
    Device {
        /// The device on the host.
        path: PathBuf,
    },
    /// `--gpus` and other requests to device drivers.
    #[error("it has been given devices through the driver {driver} (--gpus)")]
    DeviceRequest {
        /// Name of the driver, or its capabilities when it has no name.
        driver: String,
    },
    /// A directory of this host that no label says to be shared.
    #[error(
        "it has the directory {path} of this host bound to {destination}; if the targets have the same directory there, \
         say so with the label io.spothop.mount.{destination}=shared", path = source_path.display(), destination = destination.display()
    )]
    BindMount {
        /// The directory on this host.
        source_path: PathBuf,
        /// Where the container sees it.
        destination: PathBuf,
    },
    /// A volume whose data is not in a local directory of its own.
    #[error(
        "its volume {volume} at {destination} is kept by the driver {driver} with options of its own; if the targets have the same \
         volume, say so with the label io.spothop.mount.{destination}=shared", destination = destination.display()
    )]
    VolumeDriver {
        /// Name of the volume.
        volume: String,
        /// Its driver, `local` among them (with options such as `type=nfs`).
        driver: String,
        /// Where the container sees it.
        destination: PathBuf,
    },
    /// A volume that another running container uses too.
    #[error("its volume {volume} is also used by the running container {container}; containers move one by one")]
    SharedVolume {
        /// Name of the volume.
        volume: String,
        /// Name of the other container.
        container: String,
    },
    /// A mount of a kind that cannot be made again elsewhere.
    #[error("its mount at {destination} is of the type {mount_type}, which cannot be moved", destination = destination.display())]
    MountType {
        /// `image`, `cluster`, `npipe`…
        mount_type: String,
        /// Where the container sees it.
        destination: PathBuf,
    },
    /// User namespaces are remapped.
    #[error("it runs in a user namespace (userns-remap or rootless engine); run it with --userns=host")]
    UserNamespace,
    /// It runs under another kind of OCI runtime.
    #[error("it runs under the OCI runtime {runtime}; only runc's processes can be moved")]
    Runtime {
        /// The runtime's name.
        runtime: String,
    },
    /// The engine shows no writable layer.
    #[error(
        "the engine's storage driver {driver} shows no writable layer; use the storage driver overlay2 \
         (for Docker's containerd image store: \"features\": {{\"containerd-snapshotter\": false}} in daemon.json)"
    )]
    NoUpperDir {
        /// The storage driver.
        driver: String,
    },
    /// A network whose addresses are managed for the whole swarm.
    #[error("its address in the swarm network {network} cannot be given to another host while it still runs here")]
    SwarmNetwork {
        /// Name of the network.
        network: String,
    },
    /// A task of a swarm service.
    #[error("it belongs to the swarm service {service}, whose manager would replace it")]
    SwarmTask {
        /// Name of the service.
        service: String,
    },
    /// A port published on an address of this host only.
    #[error("it publishes a port on the address {address} of this host; publish it on all addresses instead")]
    HostAddress {
        /// The address.
        address: std::net::IpAddr,
    },
    /// Legacy links between containers of one host.
    #[error("it has links (--link) to other containers of this host: {links}; use a user-defined network instead")]
    Links {
        /// The links as the engine has them, with commas between.
        links: String,
    },
    /// The image has been removed under the running container.
    #[error("its image {image} is not on this host any more, and no other host could be given it; pull it again")]
    NoImage {
        /// What the user calls it.
        image: String,
    },
    /// An image for another operating system.
    #[error("its image is made for {os}, not for linux")]
    ImageOs {
        /// The image's operating system.
        os: String,
    },
}
