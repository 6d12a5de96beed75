//! Why a container is not parked or not restored.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// What went wrong with a checkpoint or its store. Each text names the object or file and, where there is something, what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No place that we know.
    #[error("`{0}` is no place to park; write s3://BUCKET/PREFIX or file:///DIRECTORY, without a slash at the end")]
    BadUrl(String),
    /// No place was named.
    #[error("it is not said where to park; set [parking] url in /etc/spothop/config.toml, or name a place with --to")]
    NoUrl,
    /// The directory of a `file://` place.
    #[error("cannot use the directory {path}; it must be there already, so that nothing is parked below a mount that is missing", path = path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the store's library says.
        source: object_store::Error,
    },
    /// The file with a store's authorities.
    #[error("cannot read authorities from {path}; check [parking] ca_file, which must be PEM", path = path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// A request to the store.
    #[error("cannot {action} {url}")]
    Store {
        /// What was tried.
        action: &'static str,
        /// The object.
        url: String,
        /// What the store said.
        source: object_store::Error,
    },
    /// The store did not answer.
    #[error("{url} was not read within {limit:?}")]
    Slow {
        /// The object.
        url: String,
        /// The time it had.
        limit: Duration,
    },
    /// Two could claim the same checkpoint.
    #[error(
        "{url} does not keep `If-None-Match`, by which only one host can claim a checkpoint; use a store that does (S3, MinIO, Ceph), or restore with --copy"
    )]
    NoConditions {
        /// The checkpoint.
        url: String,
    },
    /// The key file.
    #[error("cannot read the parking key {path}; make one with `openssl rand -hex 32`, the same for all hosts", path = path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Its content.
    #[error("{path} holds no parking key: it must be 64 hexadecimal digits and nothing else (`openssl rand -hex 32`)", path = path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
    },
    /// Its mode.
    #[error("others than its owner may read the parking key {path}; chmod 600 it", path = path.display())]
    KeyExposed {
        /// The file.
        path: PathBuf,
    },
    /// It is another one.
    #[error("{url} was parked with the key {wanted}, and {path} is the key {found}; put the right key there", path = path.display())]
    WrongKey {
        /// The checkpoint.
        url: String,
        /// Fingerprint of the key with which it was parked.
        wanted: String,
        /// The key file.
        path: PathBuf,
        /// Its fingerprint.
        found: String,
    },
    /// The system's source of randomness, or a cipher's limits.
    #[error("cannot make a key for the checkpoint")]
    Cipher,
    /// Not what was parked.
    #[error("{url} is not what was parked: {what}")]
    Tampered {
        /// The object.
        url: String,
        /// What is wrong with it.
        what: String,
    },
    /// From a later version.
    #[error("{url} is of version {found}, this spothop knows {known}; restore it with a newer one")]
    Version {
        /// The manifest.
        url: String,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// There is no such checkpoint.
    #[error("there is no checkpoint {url}; `spothop parked` lists them")]
    NoCheckpoint {
        /// What was looked for.
        url: String,
    },
    /// None or several could be meant.
    #[error("there are {count} checkpoints to restore at {url}; name one: `spothop parked {url}` lists them")]
    WhichOne {
        /// The place.
        url: String,
        /// How many.
        count: usize,
    },
    /// Its source has not given the container away.
    #[error(
        "{url} was never given away by {host}: the container goes on there, or is frozen; if that host is gone for good, restore with --source-gone"
    )]
    NotCommitted {
        /// The checkpoint.
        url: String,
        /// Its source.
        host: String,
    },
    /// Somebody has it.
    #[error(
        "{url} was claimed by {host} at {at} (migration {migration}); a checkpoint is restored once, unless --copy asks for a second container"
    )]
    Claimed {
        /// The checkpoint.
        url: String,
        /// Who.
        host: String,
        /// Its migration.
        migration: String,
        /// When.
        at: jiff::Timestamp,
    },
    /// This host will not do.
    #[error("{url} cannot be restored here: {reasons}")]
    Unsuitable {
        /// The checkpoint.
        url: String,
        /// All that speaks against it.
        reasons: String,
    },
    /// The container cannot be dumped, or is on its way.
    #[error("container {container} cannot be parked: {reasons}")]
    Unparkable {
        /// Its name.
        container: String,
        /// Why.
        reasons: String,
    },
    /// A restore takes too long.
    #[error("the restore was not done within {0:?} ([limits] manual_timeout)")]
    TimedOut(Duration),
    /// What was being read failed.
    #[error("cannot read what is to be parked")]
    Source(#[source] io::Error),
    /// What was being written failed.
    #[error("cannot write what was parked")]
    Sink(#[source] io::Error),
    /// The work was stopped.
    #[error("the work on {url} was stopped")]
    Stopped {
        /// The object.
        url: String,
    },
    /// A step that has no place here.
    #[error("{url} was asked for {step} out of turn")]
    OutOfTurn {
        /// The place.
        url: String,
        /// The step.
        step: &'static str,
    },
}
