//! HTTP and HTTPS to others: hyper and rustls, for every client of the daemon but those of metadata services, which have no TLS.
//!
//! reqwest and object_store's own client take TLS with a cryptographic provider for the whole process, which every client would then have to
//! choose before it is made.

use std::path::Path;
use std::sync::Arc;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// A certificate's chain, and its key.
pub(crate) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The authorities that this machine believes. Without any there is TLS to nobody, which its error says.
pub(crate) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// The certificates in a file. Blocks.
///
/// # Errors
/// It cannot be read, or is none of PEM.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    CertificateDer::pem_file_iter(path)?.collect()
}

/// Connections by `tcp`, with TLS where the URL says so, to whom one of `roots` has signed.
///
/// # Errors
/// The certificate of `identity` and its key do not fit together.
pub(crate) fn connector(
    mut tcp: HttpConnector,
    roots: RootCertStore,
    identity: Option<Identity>,
) -> Result<HttpsConnector<HttpConnector>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    tcp.enforce_http(false);
    Ok(HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().wrap_connector(tcp))
}
