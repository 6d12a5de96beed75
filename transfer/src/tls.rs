//! Who this host is, and the TLS settings that follow.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, SecureRandom, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CipherSuite, ClientConfig, RootCertStore, ServerConfig};

use crate::certs::{self, CA_CERTIFICATE, Error, HOST_CERTIFICATE, HOST_KEY};

/// This host's certificate, key and authority, ready for both ends of a connection.
///
/// TLS 1.3 only, ring, a certificate of our authority required from both sides, no resumption. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    name: Arc<str>,
    /// The certificate's file, and its period.
    certificate: Arc<Certificate>,
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
}

#[derive(Debug)]
struct Certificate {
    path: PathBuf,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads [`certs::CA_CERTIFICATE`], [`certs::HOST_CERTIFICATE`] and [`certs::HOST_KEY`] from `dir`.
    ///
    /// # Errors
    /// [`certs::Error::File`], [`certs::Error::Malformed`], [`certs::Error::Nameless`], [`certs::Error::Unusable`] when the
    /// key does not belong to the certificate. An expired certificate loads; peers will refuse it, see
    /// [`Identity::check_period`]. [`certs::CA_CERTIFICATE`] may hold several authorities, any of which may have issued a
    /// peer's certificate.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let unusable = |source| Error::Unusable { directory: dir.to_owned(), source };
        let certificate_path = dir.join(HOST_CERTIFICATE);
        let info = certs::describe(&certificate_path)?;
        let Some(name) = info.names.first() else {
            return Err(Error::Nameless { path: certificate_path });
        };

        let mut roots = RootCertStore::empty();
        for authority in certificates(&dir.join(CA_CERTIFICATE))? {
            roots.add(authority).map_err(unusable)?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(&certificate_path)?;
        let key_path = dir.join(HOST_KEY);
        let key =
            PrivateKeyDer::from_pem_file(&key_path).map_err(|error| pem_error(&key_path, "private key", error))?;

        let provider = Arc::new(provider());
        let verifier_error =
            |error: rustls::server::VerifierBuilderError| unusable(rustls::Error::General(error.to_string()));
        // TLS lets a server name the authorities that it believes. Whoever is no host of ours need not know them.
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .clear_root_hint_subjects()
            .build()
            .map_err(verifier_error)?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(unusable)?;
        // A resumed session would skip the look at the certificates for the sake of a millisecond.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;

        let servers =
            WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build().map_err(verifier_error)?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_webpki_verifier(servers)
            .with_client_auth_cert(chain, key)
            .map_err(unusable)?;
        client.resumption = Resumption::disabled();

        let certificate =
            Certificate { path: certificate_path, not_before: info.not_before, not_after: info.not_after };
        Ok(Self {
            name: name.as_str().into(),
            certificate: Arc::new(certificate),
            server: Arc::new(server),
            client: Arc::new(client),
        })
    }

    /// Whether the certificate is valid at this moment.
    ///
    /// # Errors
    /// [`certs::Error::Expired`], [`certs::Error::NotYet`].
    pub fn check_period(&self, now: SystemTime) -> Result<(), Error> {
        let Certificate { path, not_before, not_after } = &*self.certificate;
        if now > *not_after {
            return Err(Error::Expired { path: path.clone(), until: date(*not_after), name: self.name.to_string() });
        }
        if now < *not_before {
            return Err(Error::NotYet { path: path.clone(), from: date(*not_before) });
        }
        Ok(())
    }

    /// The day on which the certificate ends, such as `2027-11-23`.
    #[must_use]
    pub fn until(&self) -> String {
        date(self.certificate.not_after)
    }

    /// The host's name: the first DNS name of its certificate.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A day in UTC.
pub(crate) fn date(at: SystemTime) -> String {
    Timestamp::try_from(at).map_or_else(|_| "an unknown date".to_owned(), |at| at.strftime("%F").to_string())
}

/// ring, with AES-128-GCM first: with AES instructions it is the fastest of the three suites, and 128 bits suffice.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

/// 16 bytes from the system's random generator, for session tokens and serial numbers.
pub(crate) fn random_bytes() -> [u8; 16] {
    let mut bytes = [0; 16];
    let random: &dyn SecureRandom = ring::default_provider().secure_random;
    // getrandom(2) with a buffer of 16 bytes fails only on kernels older than any that can run this (< 3.17).
    random.fill(&mut bytes).expect("the kernel has getrandom");
    bytes
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| pem_error(path, "certificate", error))
}

fn pem_error(path: &Path, wanted: &'static str, error: rustls::pki_types::pem::Error) -> Error {
    match error {
        rustls::pki_types::pem::Error::Io(source) => {
            Error::File { action: "read", path: path.to_owned(), source: Arc::new(source) }
        }
        error => Error::Malformed { path: path.to_owned(), wanted, reason: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::{CA_KEY, Existing, init, issue};

    #[test]
    fn an_issued_certificate_loads_under_its_name() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), Existing::Keep).unwrap();
        issue(dir.path(), "a", &[], dir.path(), Existing::Keep).unwrap();
        assert_eq!(Identity::load(dir.path()).unwrap().name(), "a");
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), Existing::Keep).unwrap();
        issue(dir.path(), "a", &[], dir.path(), Existing::Keep).unwrap();
        std::fs::copy(dir.path().join(CA_KEY), dir.path().join(HOST_KEY)).unwrap();
        assert!(matches!(Identity::load(dir.path()), Err(Error::Unusable { .. })));
    }

    #[test]
    fn an_authority_is_no_host() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), Existing::Keep).unwrap();
        std::fs::copy(dir.path().join(CA_CERTIFICATE), dir.path().join(HOST_CERTIFICATE)).unwrap();
        std::fs::copy(dir.path().join(CA_KEY), dir.path().join(HOST_KEY)).unwrap();
        assert!(matches!(Identity::load(dir.path()), Err(Error::Nameless { .. })));
    }

    #[test]
    fn missing_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Identity::load(dir.path()).unwrap_err();
        assert!(matches!(&error, Error::File { path, .. } if path.ends_with(HOST_CERTIFICATE)), "{error}");
    }
}
