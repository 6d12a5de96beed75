//! This host's identity as its files have it now: certificates are renewed, and authorities replaced, without a restart.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tracing::{info, warn};

use crate::certs::{CA_CERTIFICATE, Error, HOST_CERTIFICATE, HOST_KEY};
use crate::tls::Identity;

/// Where new connections get their [`Identity`] from. Cheap to clone; the copies are one.
///
/// The three files are looked at (a stat each) before every connection. When one of them has changed they are read again,
/// and taken together if they fit together: certificate and key, valid now, for the same host as before. If they do not, the
/// identity that works stays in use, the reason is logged, and the next change is tried again; so it does not matter in which
/// order the files are replaced, nor how fast. Connections that are there already go on in either case.
#[derive(Debug, Clone)]
pub struct Credentials(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// None: an identity without files.
    directory: Option<PathBuf>,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    identity: Identity,
    /// The files as they were when they were last read, whether or not they were taken.
    seen: Stamps,
}

/// What changes when a file does: device, inode, size in bytes, and times of content and inode in seconds and nanoseconds.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

/// Of each of the three files; none for one that is not there.
type Stamps = [Option<Stamp>; 3];

impl From<&Identity> for Credentials {
    /// An identity that does not change.
    fn from(identity: &Identity) -> Self {
        let current = Current { identity: identity.clone(), seen: Stamps::default() };
        Self(Arc::new(Inner { directory: None, current: Mutex::new(current) }))
    }
}

impl From<&Credentials> for Credentials {
    fn from(credentials: &Credentials) -> Self {
        credentials.clone()
    }
}

impl Credentials {
    /// Reads the files in `directory`, as [`Identity::load`] does.
    ///
    /// # Errors
    /// As [`Identity::load`]. An expired certificate is taken for the time being.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let seen = stamps(directory);
        let current = Current { identity: Identity::load(directory)?, seen };
        Ok(Self(Arc::new(Inner { directory: Some(directory.to_owned()), current: Mutex::new(current) })))
    }

    /// The identity for a new connection, read again if its files have changed.
    #[must_use]
    pub fn current(&self) -> Identity {
        let mut current = self.0.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(directory) = &self.0.directory
            && stamps(directory) != current.seen
        {
            // Told there already, and the next change is tried again.
            let _ = renew(directory, &mut current);
        }
        current.identity.clone()
    }

    /// Reads the files again, whether or not they have changed.
    ///
    /// # Errors
    /// Why they are not taken; the old identity stays in use.
    pub fn reload(&self) -> Result<(), Error> {
        let mut current = self.0.current.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.directory.as_deref().map_or(Ok(()), |directory| renew(directory, &mut current))
    }
}

fn renew(directory: &Path, current: &mut Current) -> Result<(), Error> {
    // Before they are read: a change while they are being read is seen the next time.
    current.seen = stamps(directory);
    let read = Identity::load(directory).and_then(|new| {
        if new.name() != current.identity.name() {
            let (path, name) = (directory.join(HOST_CERTIFICATE), current.identity.name().to_owned());
            return Err(Error::OtherHost { path, found: new.name().to_owned(), name });
        }
        new.check_period(SystemTime::now())?;
        Ok(new)
    });
    match read {
        Ok(new) => {
            info!(directory = %directory.display(), until = %new.until(), "the certificates were read again");
            current.identity = new;
            Ok(())
        }
        Err(error) => {
            warn!(%error, "the certificates on disk are not used; those read before stay in use");
            Err(error)
        }
    }
}

fn stamps(directory: &Path) -> Stamps {
    [CA_CERTIFICATE, HOST_CERTIFICATE, HOST_KEY].map(|name| {
        let file = directory.join(name).metadata().ok()?;
        let (content, inode) = ((file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec()));
        Some((file.dev(), file.ino(), file.size(), content, inode))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::certs::{self, Existing};
    use crate::testing::Authority;

    /// A host's directory, and its certificate's serial number as a name for its identity.
    fn host(authority: &Authority) -> (PathBuf, Credentials) {
        authority.identity("a");
        let directory = authority.path().join("a");
        let credentials = Credentials::open(&directory).unwrap();
        (directory, credentials)
    }

    fn same(one: &Identity, other: &Identity) -> bool {
        Arc::ptr_eq(&one.client, &other.client)
    }

    #[test]
    fn files_that_do_not_change_are_read_once_and_new_ones_are_taken() {
        let authority = Authority::new();
        let (directory, credentials) = host(&authority);
        let first = credentials.current();
        assert!(same(&first, &credentials.current()));
        certs::issue(authority.path(), "a", &[], &directory, Existing::Replace).unwrap();
        let second = credentials.current();
        assert!(!same(&first, &second) && same(&second, &credentials.current()));
    }

    #[test]
    fn half_a_pair_changes_nothing_and_the_other_half_completes_it() {
        let authority = Authority::new();
        let (directory, credentials) = host(&authority);
        let first = credentials.current();
        let new = authority.path().join("new");
        certs::issue(authority.path(), "a", &[], &new, Existing::Keep).unwrap();

        fs::copy(new.join(HOST_CERTIFICATE), directory.join(HOST_CERTIFICATE)).unwrap();
        assert!(same(&first, &credentials.current()), "a certificate without its key");
        let key = fs::read(new.join(HOST_KEY)).unwrap();
        fs::write(directory.join(HOST_KEY), &key[..key.len() / 2]).unwrap();
        assert!(same(&first, &credentials.current()), "half a key");
        assert!(credentials.reload().is_err());
        fs::write(directory.join(HOST_KEY), "").unwrap();
        assert!(same(&first, &credentials.current()), "no key");
        fs::write(directory.join(HOST_KEY), &key).unwrap();
        assert!(!same(&first, &credentials.current()), "the whole pair");
    }

    #[test]
    fn files_that_are_gone_or_empty_change_nothing() {
        let authority = Authority::new();
        let (directory, credentials) = host(&authority);
        let first = credentials.current();
        for name in [CA_CERTIFICATE, HOST_CERTIFICATE, HOST_KEY] {
            let text = fs::read(directory.join(name)).unwrap();
            fs::remove_file(directory.join(name)).unwrap();
            assert!(same(&first, &credentials.current()), "{name} is gone");
            fs::write(directory.join(name), "").unwrap();
            assert!(same(&first, &credentials.current()), "{name} is empty");
            fs::write(directory.join(name), text).unwrap();
        }
    }

    #[test]
    fn an_expired_certificate_and_one_for_another_host_are_not_taken() {
        let authority = Authority::new();
        let (directory, credentials) = host(&authority);
        let first = credentials.current();
        certs::testing::expire(authority.path(), "a", &directory);
        assert!(same(&first, &credentials.current()));
        let error = credentials.reload().unwrap_err();
        assert!(matches!(error, Error::Expired { .. }), "{error}");
        certs::issue(authority.path(), "b", &[], &directory, Existing::Replace).unwrap();
        let error = credentials.reload().unwrap_err();
        assert!(matches!(error, Error::OtherHost { .. }), "{error}");
        assert!(same(&first, &credentials.current()));
    }
}
