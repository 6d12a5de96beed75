//! What spothop asks of a container engine, and the engines that answer.
//!
//! [`Orchestrator`] is the whole of it: look at containers, make the same container on another host, start it, and take
//! care that the engine does not restart or remove anything at the wrong moment. An engine knows nothing of CRIU, of the
//! network protocol or of the journal; the saga in `migration` calls it in this order:
//!
//! | source | target |
//! |---|---|
//! | [`inspect`](Orchestrator::inspect) → [`Container`] with its [`Recipe`] | |
//! | | [`has_image`](Orchestrator::has_image), [`pull_image`](Orchestrator::pull_image) or |
//! | [`export_image`](Orchestrator::export_image) | [`import_image`](Orchestrator::import_image) |
//! | | [`create`](Orchestrator::create) → [`Created`], files into its raw directories |
//! | | [`start`](Orchestrator::start): blocks inside the runtime until the restore |
//! | [`hold_restarts`](Orchestrator::hold_restarts) under the freeze | |
//! | *commit* (or [`resume_restarts`](Orchestrator::resume_restarts)) | `start` returns; [`resume_restarts`](Orchestrator::resume_restarts) |
//! | [`remove`](Orchestrator::remove) | (on abort: [`discard`](Orchestrator::discard)) |
//!
//! **Invariants.** Every call is idempotent: said twice it does the same as said once. A call never overwrites or deletes
//! data which a user made: a volume that exists at the target with something in it stops the migration. While the
//! restore waits inside [`start`](Orchestrator::start), nothing may ask the engine about that container: Docker's `inspect`
//! hangs until the runtime's `create` returns. [`Created`] therefore holds every path that is needed until then.

mod container;
mod docker;
mod error;
mod network;
mod obstacle;
mod recipe;

use futures_util::future::BoxFuture;
use tokio::io::AsyncRead;

pub use container::{Container, Image, Volume};
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use docker::judge;
pub use docker::{Docker, Trace};
pub use error::Error;
pub use network::{Attachment, Identity, Mode, Network};
pub use obstacle::Obstacle;
pub use recipe::{
    CreateOptions, Created, CreatedVolume, DockerEndpoint, DockerRecipe, EngineRecipe, OldCopy, Recipe, RestartPolicy,
    SharedMount, VolumeRecipe,
};

/// Label prefix of everything an operator says to spothop on a container.
pub const LABEL_PREFIX: &str = "io.spothop.";
/// Annotation on a container (and label on a volume) that names the migration which made it. Read by `spothop-oci`.
pub const MIGRATION: &str = "io.spothop.migration";
/// Label `io.spothop.migrate=never`: leave this container alone.
pub const LABEL_MIGRATE: &str = "io.spothop.migrate";
/// Label `io.spothop.priority=<integer>`: higher goes first, default 0.
pub const LABEL_PRIORITY: &str = "io.spothop.priority";
/// Label `io.spothop.mount.<destination>=shared`: the target has this mount too, with the same contents.
pub const LABEL_MOUNT: &str = "io.spothop.mount.";
/// Name under which `spothop setup docker` registers the restoring runtime.
pub const RUNTIME: &str = "spothop";

/// A byte stream owned by nobody else, as image exports and imports are.
pub type ByteStream = Box<dyn AsyncRead + Send + Unpin>;

/// One host's container engine. Object-safe: the daemon holds `Arc<dyn Orchestrator>`.
pub trait Orchestrator: Send + Sync {
    /// What the engine is, for `doctor` and for the facts a host tells its peers.
    fn describe(&self) -> BoxFuture<'_, Result<Engine, Error>>;

    /// The running (and paused) containers, each as [`inspect`](Self::inspect) gives it, sorted by name. A container that ends
    /// meanwhile is left out.
    ///
    /// Containers that are being started are left out too: the engine answers no question about them.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Container>, Error>>;

    /// One running container, by name, id or unambiguous start of an id.
    ///
    /// # Errors
    /// [`Error::NoContainer`] when there is none, [`Error::NotRunning`] when it has no process.
    fn inspect<'a>(&'a self, container: &'a str) -> BoxFuture<'a, Result<Container, Error>>;

    /// The networks that containers can be attached to here, sorted by name.
    fn networks(&self) -> BoxFuture<'_, Result<Vec<Network>, Error>>;

    /// Whether this very image (by its id, not by its name) is here.
    fn has_image<'a>(&'a self, image: &'a Image) -> BoxFuture<'a, Result<bool, Error>>;

    /// Pulls the image by each of its registry digests in turn and tags it as the source has it.
    ///
    /// # Errors
    /// [`Error::NoDigest`] when no registry ever had it, [`Error::ImageDiffers`] when a registry gave another image than asked for,
    /// else the last registry's answer. Ship it with [`export_image`](Self::export_image) then.
    fn pull_image<'a>(&'a self, image: &'a Image) -> BoxFuture<'a, Result<(), Error>>;

    /// The image with its layers and tags, in the engine's own archive format (`docker save`).
    fn export_image<'a>(&'a self, image: &'a Image) -> BoxFuture<'a, Result<ByteStream, Error>>;

    /// Reads what [`export_image`](Self::export_image) of another host wrote, and checks that the image's id is the same.
    ///
    /// # Errors
    /// [`Error::ImageDiffers`] when something else was in the archive.
    fn import_image<'a>(&'a self, image: &'a Image, archive: ByteStream) -> BoxFuture<'a, Result<(), Error>>;

    /// Makes the container of the recipe and its volumes, and does not start it. Until it runs its restart policy is `no`.
    ///
    /// The volumes are new and empty, or hold what the engine copies into them from the image: the files of the
    /// source replace all of it ([`crate::files`]). Called again for the same migration it returns the same container.
    ///
    /// # Errors
    /// [`Error::NameTaken`], [`Error::VolumeTaken`], [`Error::NoNetwork`], [`Error::NoUpperDir`] before anything is made; when the engine
    /// itself refuses, what was made so far is taken away again.
    fn create<'a>(&'a self, recipe: &'a Recipe, options: &'a CreateOptions) -> BoxFuture<'a, Result<Created, Error>>;

    /// Starts the container and returns when the engine says that it runs. Has no time limit of its own: the runtime
    /// blocks until the restore is allowed or given up.
    fn start<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Error>>;

    /// Switches the restart policy off, so that the engine does not start a second copy when the source's process is killed.
    /// Does nothing when there is no policy.
    fn hold_restarts<'a>(&'a self, id: &'a str, policy: &'a RestartPolicy) -> BoxFuture<'a, Result<(), Error>>;

    /// Puts the restart policy back: on the source after an abort, on the target once the container runs.
    fn resume_restarts<'a>(&'a self, id: &'a str, policy: &'a RestartPolicy) -> BoxFuture<'a, Result<(), Error>>;

    /// Removes a container whose process has ended; waits a little for the engine to notice that. Named volumes stay; a
    /// container that is already gone is a success.
    ///
    /// # Errors
    /// [`Error::StillRunning`] when its process does not end: nothing is killed here.
    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Error>>;

    /// Undoes [`create`](Self::create), also half of it: removes the container of that name if this migration made
    /// it, then the volumes this migration made. Everything else is left alone.
    ///
    /// A restore that waits inside the runtime must be given up first: until then the engine answers nothing about the
    /// container.
    ///
    /// # Errors
    /// [`Error::Running`] when the container runs: then it is the container, and nothing takes it away.
    fn discard<'a>(&'a self, recipe: &'a Recipe, migration: &'a str) -> BoxFuture<'a, Result<(), Error>>;
}

/// What an engine says about itself.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Engine {
    /// `docker`.
    pub name: String,
    /// The engine's version, such as `28.5.2`.
    pub version: String,
    /// Architecture in the names of OCI images: `amd64`, `arm64`.
    pub architecture: String,
    /// The kernel's release as the engine sees it.
    pub kernel: String,
    /// Storage driver. Only `overlay2` gives us a writable layer to copy.
    pub storage_driver: String,
    /// Directory of the engine's data (`/var/lib/docker`).
    pub data_directory: std::path::PathBuf,
    /// `systemd` or `cgroupfs`.
    pub cgroup_driver: String,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// Names of the registered OCI runtimes.
    pub runtimes: Vec<String>,
    /// User namespaces are remapped, or the engine runs without root.
    pub remapped_users: bool,
}

impl Engine {
    /// Whether `spothop setup docker` has been run and the engine has read its result.
    #[must_use]
    pub fn has_runtime(&self) -> bool {
        self.runtimes.iter().any(|name| name == RUNTIME)
    }
}
