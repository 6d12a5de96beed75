//! Who this host is, and the TLS settings that follow.

use std::path::Path;
use std::sync::Arc;

use crate::certs;

/// This host's certificate, key and authority, ready for both ends of a connection.
///
/// TLS 1.3 only, ring, a certificate of our authority required from both sides, no resumption. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Identity {
    name: Arc<str>,
}

impl Identity {
    /// Reads [`certs::CA_CERTIFICATE`], [`certs::HOST_CERTIFICATE`] and [`certs::HOST_KEY`] from `dir`.
    ///
    /// # Errors
    /// [`certs::Error::File`], [`certs::Error::Malformed`], [`certs::Error::Nameless`], [`certs::Error::Unusable`] when the key does not belong
    /// to the certificate. An expired certificate loads; peers will refuse it, and [`certs::describe`] shows the date.
    pub fn load(dir: &Path) -> Result<Self, certs::Error> {
        let _ = dir;
        todo!()
    }

    /// The host's name: the first DNS name of its certificate.
    pub fn name(&self) -> &str {
        &self.name
    }
}
