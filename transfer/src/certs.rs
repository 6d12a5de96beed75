//! A small certificate authority: `spothop cert init` and `spothop cert issue`.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// File name of the authority's certificate (PEM), on every host.
pub const CA_CERTIFICATE: &str = "ca.pem";
/// File name of the authority's private key (PEM, 0600), only where [`init`] ran.
pub const CA_KEY: &str = "ca.key";
/// File name of the host's certificate (PEM).
pub const HOST_CERTIFICATE: &str = "host.pem";
/// File name of the host's private key (PEM, 0600).
pub const HOST_KEY: &str = "host.key";

/// Why a certificate could not be made or read.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// `read`, `write`, `create`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The file is there already, and the caller did not ask to replace it.
    #[error("{} exists already; it is not replaced unless asked for, since every certificate made with it would become worthless", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a PEM file with what is wanted in it.
    #[error("{} holds no {wanted}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// `certificate`, `private key`.
        wanted: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// The host's name cannot be in a certificate.
    #[error("{name:?} is not a valid host name for a certificate: letters, digits, hyphens and dots only")]
    HostName {
        /// The name.
        name: String,
    },
    /// The certificate names no host (no DNS name among its alternative names).
    #[error("{} names no host; issue it with `spothop cert issue`", path.display())]
    Nameless {
        /// The file.
        path: PathBuf,
    },
    /// Making the key or signing failed.
    #[error("cannot make the certificate of {subject:?}: {source}")]
    Generate {
        /// Whose certificate.
        subject: String,
        /// What rcgen said.
        source: Arc<rcgen::Error>,
    },
    /// Certificate, key and authority do not fit together, or are not usable for TLS.
    #[error("the certificates in {} cannot be used: {source}; issue them again with `spothop cert issue`", directory.display())]
    Unusable {
        /// The directory.
        directory: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
}

/// What to do when a file to be written exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Refuse with [`Error::Exists`], leaving everything as it is.
    Keep,
    /// Replace it.
    Replace,
}

/// What a certificate says, for people and for `spothop doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// DNS names among the alternative names; the first is the host's name. Empty for the authority.
    pub names: Vec<String>,
    /// IP addresses among the alternative names.
    pub addresses: Vec<IpAddr>,
    /// Subject, as `CN=...`.
    pub subject: String,
    /// Issuer, as `CN=...`.
    pub issuer: String,
    /// Whether it may sign others.
    pub authority: bool,
    /// Not valid before this moment.
    pub not_before: SystemTime,
    /// Not valid after this moment.
    pub not_after: SystemTime,
}

/// Makes an authority: [`CA_CERTIFICATE`] and [`CA_KEY`] in `dir` (made with mode 0700 if absent), valid for 10 years.
///
/// # Errors
/// [`Error::Exists`] when either file is there and `existing` is [`Existing::Keep`]; [`Error::File`], [`Error::Generate`].
pub fn init(dir: &Path, existing: Existing) -> Result<CertificateInfo, Error> {
    let _ = (dir, existing);
    todo!()
}

/// Makes a host's certificate, signed by the authority in `ca_dir`: [`HOST_CERTIFICATE`], [`HOST_KEY`] and a copy of
/// [`CA_CERTIFICATE`] in `out_dir` (made with mode 0700 if absent; may be `ca_dir`), valid for one year.
///
/// `host` becomes the first DNS alternative name, by which peers know the host; `addresses` are further alternative names.
///
/// # Errors
/// [`Error::HostName`]; [`Error::Exists`] when the host's certificate or key is there and `existing` is [`Existing::Keep`],
/// or, in any case, when `out_dir` holds the certificate of *another* authority; [`Error::File`], [`Error::Malformed`] when the
/// authority cannot be read; [`Error::Generate`].
pub fn issue(
    ca_dir: &Path,
    host: &str,
    addresses: &[IpAddr],
    out_dir: &Path,
    existing: Existing,
) -> Result<CertificateInfo, Error> {
    let _ = (ca_dir, host, addresses, out_dir, existing);
    todo!()
}

/// Reads the first certificate in a PEM file. Says nothing about whether it is valid now.
///
/// # Errors
/// [`Error::File`], [`Error::Malformed`].
pub fn describe(path: &Path) -> Result<CertificateInfo, Error> {
    let _ = path;
    todo!()
}
