//! Keys: one file on every host, one key for each checkpoint, one for each of its objects.
//!
//! ```text
//! key file ── HKDF(salt: checkpoint's id) ──► wraps ──► data key (random) ── HKDF(object's name) ──► key of an object
//! ```
//!
//! So no key is ever used twice, and an object that is put in another's place, or into another checkpoint, does not open. HKDF-SHA-256
//! (RFC 5869) and AES-256-GCM (NIST SP 800-38D) are ring's, which signs and seals everything else here too.

use std::fmt;
use std::path::{Path, PathBuf};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use ring::rand::{SecureRandom as _, SystemRandom};

use super::Error;
use crate::hex;
use crate::secret::{self, SecretError};

/// Bytes of every key.
const LENGTH: usize = 32;

/// Every key that seals one message only does so with this nonce.
const ONCE: [u8; 12] = [0; 12];

/// The operator's key.
pub(super) struct MasterKey {
    path: PathBuf,
    secret: [u8; LENGTH],
}

/// The key of one checkpoint.
#[derive(Clone)]
pub(super) struct DataKey([u8; LENGTH]);

/// Nobody is shown it.
impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey")
    }
}

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        LENGTH
    }
}

/// HKDF: a key from a secret, for one purpose.
fn derive(secret: &[u8], salt: &[u8], purpose: &[u8]) -> Result<[u8; LENGTH], Error> {
    let mut key = [0; LENGTH];
    let filled = Salt::new(HKDF_SHA256, salt)
        .extract(secret)
        .expand(&[purpose], Length)
        .and_then(|material| material.fill(&mut key));
    filled.map(|()| key).map_err(|_| Error::Cipher)
}

fn cipher(key: &[u8; LENGTH]) -> Result<LessSafeKey, Error> {
    UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).map_err(|_| Error::Cipher)
}

impl MasterKey {
    /// Reads the key file.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let text = secret::read(path).map_err(|error| match error {
            SecretError::Read { path, source } => Error::KeyFile { path, source },
            SecretError::Exposed { path } => Error::KeyExposed { path },
        })?;
        let secret = hex::decode(text.trim()).and_then(|bytes| bytes.try_into().ok());
        let secret = secret.ok_or_else(|| Error::BadKey { path: path.to_owned() })?;
        Ok(Self { path: path.to_owned(), secret })
    }

    /// By which people tell keys apart; it says nothing of the key.
    pub(super) fn fingerprint(&self) -> Result<String, Error> {
        Ok(hex::encode(&derive(&self.secret, b"", b"spothop parking: fingerprint")?[..4]))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Seals a checkpoint's key; in hexadecimal digits.
    pub(super) fn wrap(&self, checkpoint: &str, key: &DataKey) -> Result<String, Error> {
        seal(&self.wrapping(checkpoint)?, checkpoint.as_bytes(), &key.0)
    }

    /// Opens a checkpoint's key; none if it was sealed with another one or for another checkpoint.
    pub(super) fn unwrap(&self, checkpoint: &str, wrapped: &str) -> Result<Option<DataKey>, Error> {
        let opened = open(&self.wrapping(checkpoint)?, checkpoint.as_bytes(), wrapped)?;
        Ok(opened.and_then(|bytes| bytes.try_into().ok()).map(DataKey))
    }

    fn wrapping(&self, checkpoint: &str) -> Result<[u8; LENGTH], Error> {
        derive(&self.secret, checkpoint.as_bytes(), b"spothop parking: wrapping")
    }
}

impl DataKey {
    /// A new one.
    pub(super) fn random() -> Result<Self, Error> {
        let mut key = [0; LENGTH];
        SystemRandom::new().fill(&mut key).map_err(|_| Error::Cipher)?;
        Ok(Self(key))
    }

    /// The key of an object, by its name.
    pub(super) fn of_object(&self, name: &str) -> Result<LessSafeKey, Error> {
        cipher(&derive(&self.0, b"object", name.as_bytes())?)
    }

    /// Seals the details of a checkpoint, of which there are none but these, together with what is said in the open. In hexadecimal digits.
    pub(super) fn seal_details(&self, open_part: &[u8], details: &[u8]) -> Result<String, Error> {
        seal(&derive(&self.0, b"details", b"")?, open_part, details)
    }

    /// Opens them; none if they, or what is said in the open, are not what was sealed.
    pub(super) fn open_details(&self, open_part: &[u8], sealed: &str) -> Result<Option<Vec<u8>>, Error> {
        open(&derive(&self.0, b"details", b"")?, open_part, sealed)
    }
}

/// With a key that is for this message alone.
fn seal(key: &[u8; LENGTH], beside: &[u8], message: &[u8]) -> Result<String, Error> {
    let mut sealed = message.to_vec();
    let nonce = Nonce::assume_unique_for_key(ONCE);
    cipher(key)?.seal_in_place_append_tag(nonce, Aad::from(beside), &mut sealed).map_err(|_| Error::Cipher)?;
    Ok(hex::encode(&sealed))
}

fn open(key: &[u8; LENGTH], beside: &[u8], sealed: &str) -> Result<Option<Vec<u8>>, Error> {
    let Some(mut bytes) = hex::decode(sealed) else { return Ok(None) };
    let opened = cipher(key)?.open_in_place(Nonce::assume_unique_for_key(ONCE), Aad::from(beside), &mut bytes);
    Ok(opened.ok().map(|message| message.to_vec()))
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A key file in `directory`.
    pub(in crate::parking) fn key_file(directory: &Path, byte: u8) -> PathBuf {
        let path = directory.join(format!("key-{byte}"));
        fs::write(&path, format!("{}\n", hex::encode(&[byte; LENGTH]))).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    #[test]
    fn a_wrapped_key_opens_with_its_own_key_and_for_its_own_checkpoint_only() {
        let scratch = tempfile::tempdir().unwrap();
        let [one, other] = [1, 2].map(|byte| MasterKey::read(&key_file(scratch.path(), byte)).unwrap());
        assert_ne!(one.fingerprint().unwrap(), other.fingerprint().unwrap());
        let key = DataKey::random().unwrap();
        let wrapped = one.wrap("c1", &key).unwrap();
        assert_eq!(one.unwrap("c1", &wrapped).unwrap().unwrap().0, key.0);
        assert!(one.unwrap("c2", &wrapped).unwrap().is_none());
        assert!(other.unwrap("c1", &wrapped).unwrap().is_none());
        assert!(one.unwrap("c1", "no hexadecimal digits").unwrap().is_none());
        assert!(one.unwrap("c1", &wrapped[2..]).unwrap().is_none());
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_none_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let path = key_file(scratch.path(), 1);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(MasterKey::read(&path), Err(Error::KeyExposed { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for wrong in ["", "00", "zz".repeat(32).as_str(), "é".repeat(32).as_str(), "00".repeat(33).as_str()] {
            fs::write(&path, wrong).unwrap();
            assert!(matches!(MasterKey::read(&path), Err(Error::BadKey { .. })), "{wrong}");
        }
        assert!(matches!(MasterKey::read(&scratch.path().join("none")), Err(Error::KeyFile { .. })));
    }

    #[test]
    fn details_open_only_beside_what_they_were_sealed_with() {
        let key = DataKey::random().unwrap();
        let sealed = key.seal_details(b"open", b"secret").unwrap();
        assert_eq!(key.open_details(b"open", &sealed).unwrap().as_deref(), Some(&b"secret"[..]));
        assert_eq!(key.open_details(b"Open", &sealed).unwrap(), None);
        assert_eq!(DataKey::random().unwrap().open_details(b"open", &sealed).unwrap(), None);
    }
}
