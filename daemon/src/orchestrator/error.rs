//! What an engine can answer with.

use std::path::PathBuf;

/// An engine did not do what it was asked for. The text says what was asked and what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine's socket is not there or nobody listens.
    #[error(
        "cannot reach the container engine at {socket}: is it running (systemctl status docker), and is this root?"
    )]
    Unreachable {
        /// Path of the socket.
        socket: PathBuf,
        /// What the client library said.
        #[source]
        source: Box<bollard::errors::Error>,
    },
    /// The engine refused, or broke off.
    #[error("the container engine failed to {action}")]
    Engine {
        /// What it was to do, with names: `start container 4f5e…`.
        action: String,
        /// Its answer.
        #[source]
        source: Box<bollard::errors::Error>,
    },
    /// The answer lacks something that it always has.
    #[error(
        "the container engine's answer about {subject} has no {field}: is its version supported (Docker 25 or newer)?"
    )]
    Incomplete {
        /// What was asked about.
        subject: String,
        /// Name of the field in Docker's API.
        field: &'static str,
    },
    /// No such container.
    #[error("there is no container {container} on this host; `spothop ps` lists those that run")]
    NoContainer {
        /// What was asked for.
        container: String,
    },
    /// The container exists and does not run.
    #[error("container {container} does not run (it is {status}); only running containers can be moved")]
    NotRunning {
        /// Its name.
        container: String,
        /// The engine's word for its state.
        status: String,
    },
    /// The container was to have ended and has not.
    #[error("container {container} still runs {seconds} s after its process was to end; not removed")]
    StillRunning {
        /// Its id.
        container: String,
        /// For how long we waited.
        seconds: u64,
    },
    /// An undo came too late.
    #[error("container {container} runs already; it is not taken away")]
    Running {
        /// Its name.
        container: String,
    },
    /// A mount labelled `shared` is not here.
    #[error("this host has no {what}, which the container has mounted at {destination} and labelled as shared", destination = destination.display())]
    NoSharedMount {
        /// `volume x` or `directory /x`.
        what: String,
        /// Where the container sees it.
        destination: PathBuf,
    },
    /// The recipe belongs to another engine.
    #[error("the container was made by another kind of engine ({engine}) than this host has")]
    OtherEngine {
        /// That engine.
        engine: String,
    },
    /// Another container has the name.
    #[error("this host already has a container named {name}, made by something else; remove or rename it first")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// A volume of that name holds data.
    #[error(
        "this host already has a volume named {name} with data in it; remove or rename it first (docker volume rm {name})"
    )]
    VolumeTaken {
        /// The name.
        name: String,
    },
    /// The volume of that name is used, or is not a local directory.
    #[error("this host already has a volume named {name} that cannot be filled: {reason}")]
    VolumeUnusable {
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// A network is missing, or is another one.
    #[error(
        "this host has no network {network} of the driver {driver}, which the container needs; make it with docker network create"
    )]
    NoNetwork {
        /// Its name.
        network: String,
        /// The driver it must have.
        driver: String,
    },
    /// The container keeps its address, which is not in the network of that name.
    #[error("the network {network} of this host does not contain the container's address {address}")]
    AddressOutside {
        /// Name of the network.
        network: String,
        /// The address.
        address: std::net::IpAddr,
    },
    /// The restoring runtime is not registered.
    #[error("this host's Docker does not know the runtime spothop; run `spothop setup docker` and restart Docker")]
    NoRuntime,
    /// The storage driver shows no writable layer.
    #[error("this host's storage driver {driver} shows no writable layer to fill; use overlay2")]
    NoUpperDir {
        /// The storage driver.
        driver: String,
    },
    /// No registry has the image.
    #[error("image {image} has no registry digest; it must be shipped from the source")]
    NoDigest {
        /// What the user calls it.
        image: String,
    },
    /// The image is not what it should be.
    #[error("image {image} is {found} here and {expected} at the source")]
    ImageDiffers {
        /// What the user calls it.
        image: String,
        /// Id at the source.
        expected: String,
        /// Id found, or `missing`.
        found: String,
    },
    /// A volume's directory could not be read.
    #[error("cannot look into {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}
