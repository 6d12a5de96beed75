//! A small certificate authority: `spothop cert init` and `spothop cert issue`.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, DnsName};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Ten years: an authority outlives the machines that trust it.
const CA_VALIDITY: Duration = DAY.saturating_mul(3652);
/// One year: spot hosts live for days, and `spothop doctor` shows the date.
const HOST_VALIDITY: Duration = DAY.saturating_mul(365);
/// Certificates begin this much before now, for hosts whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(60 * 60);

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
    /// The directory of a host holds the certificate of another authority.
    #[error("{} is the certificate of another authority; a host trusts one only, so replace it deliberately or issue elsewhere", path.display())]
    OtherAuthority {
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
    /// The certificate has expired.
    #[error(
        "{} expired on {until}; where the authority is, issue a new one: spothop cert issue {name} --force", path.display()
    )]
    Expired {
        /// The file.
        path: PathBuf,
        /// Its last day.
        until: String,
        /// The host's name.
        name: String,
    },
    /// The certificate begins in the future.
    #[error("{} is not valid before {from}; set this host's clock", path.display())]
    NotYet {
        /// The file.
        path: PathBuf,
        /// Its first day.
        from: String,
    },
    /// The certificate is for another host than the one that was read before.
    #[error("{} is for the host {found:?}, not for {name:?}; a host that changes its name has to be restarted", path.display())]
    OtherHost {
        /// The file.
        path: PathBuf,
        /// The name in it.
        found: String,
        /// The name before.
        name: String,
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
    let (certificate_path, key_path) = (dir.join(CA_CERTIFICATE), dir.join(CA_KEY));
    refuse_existing(&[&certificate_path, &key_path], existing)?;

    let serial = random_serial();
    // The name differs from authority to authority, so that a certificate of another one is "unknown issuer" and not "bad signature".
    let subject = format!("spothop CA {}", serial[..4].iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let generate = |source| Error::Generate { subject: subject.clone(), source: Arc::new(source) };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(generate)?;
    let mut params = parameters(&subject, &serial, CA_VALIDITY);
    // No intermediate authorities below it.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(generate)?;

    make_directory(dir)?;
    write(&key_path, &key.serialize_pem(), 0o600)?;
    write(&certificate_path, &certificate.pem(), 0o644)?;
    describe(&certificate_path)
}

/// Makes a host's certificate, signed by the authority in `ca_dir`: [`HOST_CERTIFICATE`], [`HOST_KEY`] and a copy of
/// [`CA_CERTIFICATE`] in `out_dir` (made with mode 0700 if absent; may be `ca_dir`), valid for one year.
///
/// `host` becomes the first DNS alternative name, by which peers know the host; `addresses` are further alternative names.
///
/// # Errors
/// [`Error::HostName`]; with [`Existing::Keep`], [`Error::Exists`] when the host's certificate or key is there and
/// [`Error::OtherAuthority`] when `out_dir` holds the certificate of another authority; [`Error::File`] or
/// [`Error::Malformed`] when the authority cannot be read; [`Error::Generate`].
pub fn issue(
    ca_dir: &Path,
    host: &str,
    addresses: &[IpAddr],
    out_dir: &Path,
    existing: Existing,
) -> Result<CertificateInfo, Error> {
    // What rustls does not take as a DNS name, no peer could ever verify.
    if DnsName::try_from(host).is_err() || host.parse::<IpAddr>().is_ok() {
        return Err(Error::HostName { name: host.to_owned() });
    }
    let (certificate_path, key_path) = (out_dir.join(HOST_CERTIFICATE), out_dir.join(HOST_KEY));
    refuse_existing(&[&certificate_path, &key_path], existing)?;

    let (ca_path, ca_key_path) = (ca_dir.join(CA_CERTIFICATE), ca_dir.join(CA_KEY));
    let ca_pem = read(&ca_path)?;
    let ca_key = KeyPair::from_pem(&read(&ca_key_path)?).map_err(|error| Error::Malformed {
        path: ca_key_path,
        wanted: "private key",
        reason: error.to_string(),
    })?;
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key).map_err(|error| Error::Malformed {
        path: ca_path,
        wanted: "certificate",
        reason: error.to_string(),
    })?;
    let trusted_path = out_dir.join(CA_CERTIFICATE);
    let trusted = match fs::read_to_string(&trusted_path) {
        Ok(pem) => match holds(&pem, &ca_pem) {
            false if existing == Existing::Keep => return Err(Error::OtherAuthority { path: trusted_path }),
            trusted => trusted,
        },
        Err(_) => false,
    };

    let generate = |source| Error::Generate { subject: host.to_owned(), source: Arc::new(source) };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(generate)?;
    let params = host_parameters(host.try_into().map_err(generate)?, host, addresses);
    let certificate = params.signed_by(&key, &issuer).map_err(generate)?;

    make_directory(out_dir)?;
    write(&key_path, &key.serialize_pem(), 0o600)?;
    write(&certificate_path, &certificate.pem(), 0o644)?;
    if !trusted {
        write(&trusted_path, &ca_pem, 0o644)?;
    }
    describe(&certificate_path)
}

/// Whether one of the certificates in a PEM file is the first of `wanted`: while an authority is replaced, a host trusts the old and
/// the new one.
fn holds(pem: &str, wanted: &str) -> bool {
    let wanted = CertificateDer::from_pem_slice(wanted.as_bytes()).ok();
    wanted.is_some_and(|wanted| CertificateDer::pem_slice_iter(pem.as_bytes()).flatten().any(|one| one == wanted))
}

/// Reads every certificate in a PEM file, such as [`CA_CERTIFICATE`] while an authority is being replaced.
///
/// # Errors
/// [`Error::File`]; [`Error::Malformed`], also when there is none.
pub fn describe_all(path: &Path) -> Result<Vec<CertificateInfo>, Error> {
    let malformed = |reason| Error::Malformed { path: path.to_owned(), wanted: "certificate", reason };
    let text = read(path)?;
    let all = CertificateDer::pem_slice_iter(text.as_bytes())
        .map(|der| parse(&der.map_err(|error| malformed(error.to_string()))?).map_err(malformed))
        .collect::<Result<Vec<_>, _>>()?;
    if all.is_empty() { Err(malformed("it is empty".to_owned())) } else { Ok(all) }
}

/// Reads the first certificate in a PEM file. Says nothing about whether it is valid now.
///
/// # Errors
/// [`Error::File`], [`Error::Malformed`].
pub fn describe(path: &Path) -> Result<CertificateInfo, Error> {
    let malformed = |reason| Error::Malformed { path: path.to_owned(), wanted: "certificate", reason };
    let der = CertificateDer::from_pem_slice(read(path)?.as_bytes()).map_err(|error| malformed(error.to_string()))?;
    parse(&der).map_err(malformed)
}

/// What the DER bytes of a certificate say, or why they are none.
pub(crate) fn parse(der: &[u8]) -> Result<CertificateInfo, String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
    let alternatives = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
    let mut names = Vec::new();
    let mut addresses = Vec::new();
    for alternative in alternatives.iter().flat_map(|extension| &extension.value.general_names) {
        match alternative {
            GeneralName::DNSName(name) => names.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                if let Ok(bytes) = <[u8; 4]>::try_from(*bytes) {
                    addresses.push(IpAddr::from(bytes));
                } else if let Ok(bytes) = <[u8; 16]>::try_from(*bytes) {
                    addresses.push(IpAddr::from(bytes));
                }
            }
            _ => {}
        }
    }
    Ok(CertificateInfo {
        names,
        addresses,
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        authority: certificate.is_ca(),
        not_before: moment(certificate.validity().not_before.timestamp()),
        not_after: moment(certificate.validity().not_after.timestamp()),
    })
}

/// Seconds since 1970, which for odd certificates may be before it.
fn moment(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance }
}

fn parameters(common_name: &str, serial: &[u8], validity: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.serial_number = Some(SerialNumber::from_slice(serial));
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + validity).into();
    params
}

fn host_parameters(name: Ia5String, host: &str, addresses: &[IpAddr]) -> CertificateParams {
    let mut params = parameters(host, &random_serial(), HOST_VALIDITY);
    params.subject_alt_names = vec![SanType::DnsName(name)];
    params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Any host may be source or target.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params
}

/// 16 random bytes with the top bit clear (a serial number is a positive integer of at most 20 bytes, RFC 5280 4.1.2.2).
fn random_serial() -> [u8; 16] {
    let mut serial = crate::tls::random_bytes();
    serial[0] = serial[0] & 0x7f | 0x40;
    serial
}

fn refuse_existing(paths: &[&Path], existing: Existing) -> Result<(), Error> {
    match paths.iter().find(|path| path.symlink_metadata().is_ok()) {
        Some(path) if existing == Existing::Keep => Err(Error::Exists { path: path.to_path_buf() }),
        _ => Ok(()),
    }
}

fn make_directory(dir: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| Error::File {
        action: "create",
        path: dir.to_owned(),
        source: Arc::new(source),
    })
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::File {
        action: "read",
        path: path.to_owned(),
        source: Arc::new(source),
    })
}

/// Puts the whole file in its place at once, so that nobody ever reads half a key or one with too wide a mode.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let put = || -> io::Result<()> {
        // What a crashed run left behind.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    put().map_err(|source| Error::File { action: "write", path: path.to_owned(), source: Arc::new(source) })
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Issues the certificate in `out_dir` again, for the same key, but valid only until yesterday.
    pub(crate) fn expire(ca_dir: &Path, host: &str, out_dir: &Path) {
        let ca_key = KeyPair::from_pem(&read(&ca_dir.join(CA_KEY)).unwrap()).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&read(&ca_dir.join(CA_CERTIFICATE)).unwrap(), ca_key).unwrap();
        let key = KeyPair::from_pem(&read(&out_dir.join(HOST_KEY)).unwrap()).unwrap();
        let mut params = host_parameters(host.try_into().unwrap(), host, &[]);
        params.not_before = (SystemTime::now() - 2 * DAY).into();
        params.not_after = (SystemTime::now() - DAY).into();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        write(&out_dir.join(HOST_CERTIFICATE), &certificate.pem(), 0o644).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn an_authority_lasts_ten_years_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let tls = dir.path().join("tls");
        let info = init(&tls, Existing::Keep).unwrap();
        assert!(info.authority);
        assert_eq!(info.subject, info.issuer);
        assert!(info.subject.starts_with("CN=spothop CA "), "{}", info.subject);
        let years = info.not_after.duration_since(SystemTime::now()).unwrap().as_secs() / (24 * 3600 * 365);
        assert_eq!(years, 10);
        assert_eq!(mode(&tls), 0o700);
        assert_eq!(mode(&tls.join(CA_KEY)), 0o600);
        assert_eq!(describe(&tls.join(CA_CERTIFICATE)).unwrap(), info);
    }

    #[test]
    fn an_authority_is_not_replaced_by_accident() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), Existing::Keep).unwrap();
        let key = fs::read(dir.path().join(CA_KEY)).unwrap();
        assert!(matches!(init(dir.path(), Existing::Keep), Err(Error::Exists { .. })));
        assert_eq!(fs::read(dir.path().join(CA_KEY)).unwrap(), key);
        // Half an authority is one too: its key would be lost.
        fs::remove_file(dir.path().join(CA_CERTIFICATE)).unwrap();
        assert!(matches!(init(dir.path(), Existing::Keep), Err(Error::Exists { path }) if path.ends_with(CA_KEY)));
        init(dir.path(), Existing::Replace).unwrap();
        assert_ne!(fs::read(dir.path().join(CA_KEY)).unwrap(), key);
    }

    #[test]
    fn a_host_certificate_names_the_host_for_one_year() {
        let dir = tempfile::tempdir().unwrap();
        let ca = init(dir.path(), Existing::Keep).unwrap();
        let out = dir.path().join("a");
        let addresses = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let info = issue(dir.path(), "host-a.example", &addresses, &out, Existing::Keep).unwrap();
        assert_eq!(info.names, ["host-a.example"]);
        assert_eq!(info.addresses, addresses);
        assert_eq!(info.issuer, ca.subject);
        assert!(!info.authority);
        let days = info.not_after.duration_since(SystemTime::now()).unwrap().as_secs().div_ceil(24 * 3600);
        assert_eq!(days, 365);
        assert!(info.not_before < SystemTime::now());
        assert_eq!(mode(&out.join(HOST_KEY)), 0o600);
        assert_eq!(fs::read(out.join(CA_CERTIFICATE)).unwrap(), fs::read(dir.path().join(CA_CERTIFICATE)).unwrap());
        assert!(!out.join(CA_KEY).exists(), "the authority's key stays where it was made");
    }

    #[test]
    fn serial_numbers_differ() {
        assert_ne!(random_serial(), random_serial());
    }

    #[test]
    fn a_host_certificate_is_replaced_only_when_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), Existing::Keep).unwrap();
        issue(dir.path(), "a", &[], dir.path(), Existing::Keep).unwrap();
        assert!(matches!(issue(dir.path(), "a", &[], dir.path(), Existing::Keep), Err(Error::Exists { .. })));
        issue(dir.path(), "a", &[], dir.path(), Existing::Replace).unwrap();
    }

    #[test]
    fn a_host_does_not_change_its_authority_by_accident() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        init(one.path(), Existing::Keep).unwrap();
        init(two.path(), Existing::Keep).unwrap();
        assert!(matches!(issue(one.path(), "a", &[], two.path(), Existing::Keep), Err(Error::OtherAuthority { .. })));
        assert!(!two.path().join(HOST_KEY).exists());
    }

    #[test]
    fn a_host_that_trusts_two_authorities_takes_a_certificate_of_either_and_goes_on_trusting_both() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for authority in [&old, &new] {
            init(authority.path(), Existing::Keep).unwrap();
        }
        let [old_pem, new_pem] = [&old, &new].map(|authority| read(&authority.path().join(CA_CERTIFICATE)).unwrap());
        let host = old.path().join("a");
        issue(old.path(), "a", &[], &host, Existing::Keep).unwrap();
        let both = format!("{old_pem}{new_pem}");
        fs::write(host.join(CA_CERTIFICATE), &both).unwrap();
        let info = issue(new.path(), "a", &[], &host, Existing::Replace).unwrap();
        assert_eq!(read(&host.join(CA_CERTIFICATE)).unwrap(), both);
        let subjects: Vec<_> =
            describe_all(&host.join(CA_CERTIFICATE)).unwrap().into_iter().map(|info| info.subject).collect();
        assert_eq!((subjects.len(), &subjects[1]), (2, &info.issuer));
        fs::write(host.join(CA_CERTIFICATE), "").unwrap();
        assert!(matches!(describe_all(&host.join(CA_CERTIFICATE)), Err(Error::Malformed { .. })));
    }

    #[test]
    fn names_that_no_peer_could_verify_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), Existing::Keep).unwrap();
        for name in ["", "a b", "10.0.0.1", "-a", "a/b", "ä"] {
            assert!(
                matches!(issue(dir.path(), name, &[], dir.path(), Existing::Keep), Err(Error::HostName { .. })),
                "{name:?}"
            );
        }
    }

    #[test]
    fn missing_and_broken_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CA_CERTIFICATE);
        assert!(matches!(describe(&path), Err(Error::File { action: "read", .. })));
        fs::write(&path, "no certificate").unwrap();
        assert!(matches!(describe(&path), Err(Error::Malformed { wanted: "certificate", .. })));
        let error = issue(dir.path(), "a", &[], dir.path(), Existing::Keep).unwrap_err();
        assert!(error.to_string().contains(CA_KEY), "{error}");
    }
}
