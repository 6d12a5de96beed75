//! What makes a checkpoint: the list of its objects, and how to make the container.
//!
//! Two lines of text. The first is JSON that everybody may read who may read the store, for `spothop parked`; the second is the rest,
//! sealed together with the first line ([`super::key`]), as hexadecimal digits: a container's settings hold passwords.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Error;
use super::key::{DataKey, MasterKey};
use super::store::Store;
use crate::migration::message::Offer;

/// The object's name.
pub(super) const NAME: &str = "manifest";

/// Of the manifest and of everything that it names.
const VERSION: u32 = 1;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// [`VERSION`].
    pub(super) version: u32,
    /// The checkpoint's id, which is that of the migration that parked it.
    pub(super) id: String,
    /// The container's name.
    pub(super) container: String,
    /// Its image, as the user named it.
    pub(super) image: String,
    /// The host that parked it.
    pub(super) host: String,
    /// When it was complete, by that host's clock.
    pub(super) created: Timestamp,
    /// Memory of its tasks, in bytes.
    pub(super) memory_bytes: u64,
    /// Fingerprint of the key file.
    pub(super) key: String,
    /// The checkpoint's key, sealed with it.
    pub(super) wrapped_key: String,
    /// In the order in which they are read.
    pub(super) objects: Vec<Object>,
}

/// An object, after the last byte of which there is nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Object {
    /// Its name beside the manifest.
    pub(super) name: String,
    /// What it is.
    pub(super) kind: Kind,
    /// What its source announced of pages and CRIU's images, in bytes: the most that they take; 0 of anything else.
    pub(super) announced: u64,
    /// Bytes before compression.
    pub(super) raw_bytes: u64,
    /// Bytes in the store.
    pub(super) size: u64,
    /// SHA-256 of these, in hexadecimal digits.
    pub(super) sha256: String,
}

/// What an object is: the same as went over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// The image, as the engine exports it.
    Image,
    /// All files, as [`crate::files`] archives them.
    Files,
    /// Pages of memory, in place of what came before ([`super::records`]).
    Pages,
    /// The last changes of the files.
    LastFiles,
    /// CRIU's images ([`super::records`]).
    Images,
}

impl Kind {
    /// For an object's name.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Files => "files",
            Self::Pages => "pages",
            Self::LastFiles => "last-files",
            Self::Images => "images",
        }
    }
}

/// The second line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Details {
    /// What its source offered.
    pub(super) offer: Offer,
    /// What its source was, for the constraints.
    pub(super) source: spothop_policy::Source,
    /// The source's CPU ([`crate::migration::message::Probe::cpuinfo`]).
    pub(super) cpuinfo: Option<String>,
}

impl Manifest {
    /// One with everything in it that is known before the first byte is sent.
    pub(super) fn of(
        offer: &Offer,
        host: &str,
        memory_bytes: u64,
        master: &MasterKey,
        key: &DataKey,
    ) -> Result<Self, Error> {
        Ok(Self {
            version: VERSION,
            id: offer.migration.clone(),
            container: offer.recipe.name.clone(),
            image: offer.recipe.image.reference.clone(),
            host: host.to_owned(),
            created: Timestamp::UNIX_EPOCH,
            memory_bytes,
            key: master.fingerprint()?,
            wrapped_key: master.wrap(&offer.migration, key)?,
            objects: Vec::new(),
        })
    }

    /// Both lines.
    pub(super) fn seal(&self, details: &Details, key: &DataKey) -> Result<Bytes, Error> {
        // Neither has maps whose keys are no strings, the only thing that JSON cannot say.
        let line = serde_json::to_string(self).unwrap_or_default();
        let details = serde_json::to_vec(details).unwrap_or_default();
        let sealed = key.seal_details(line.as_bytes(), &details)?;
        Ok(Bytes::from(format!("{line}\n{sealed}\n")))
    }

    /// That of the checkpoint at `place`, as far as everybody may read it.
    pub(super) async fn read(place: &Store) -> Result<Sealed, Error> {
        let text = place.get(NAME).await?.ok_or_else(|| Error::NoCheckpoint { url: place.url().to_owned() })?;
        Sealed::parse(place, &text)
    }
}

/// A manifest that was read, and whose second line is not open yet.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) manifest: Manifest,
    line: String,
    sealed: String,
}

impl Sealed {
    fn parse(place: &Store, text: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let url = || place.url_of(NAME);
        let broken = |what: String| Error::Tampered { url: url(), what };
        let text = std::str::from_utf8(text).map_err(|error| broken(error.to_string()))?;
        let (line, sealed) = text.split_once('\n').ok_or_else(|| broken("it has one line".to_owned()))?;
        let head: Head = serde_json::from_str(line).map_err(|error| broken(error.to_string()))?;
        if head.version != VERSION {
            return Err(Error::Version { url: url(), found: head.version, known: VERSION });
        }
        let manifest: Manifest = serde_json::from_str(line).map_err(|error| broken(error.to_string()))?;
        Ok(Self { manifest, line: line.to_owned(), sealed: sealed.trim_end().to_owned() })
    }

    /// Opens it: the manifest is genuine then.
    pub(super) fn open(&self, place: &Store, master: &MasterKey) -> Result<(Details, DataKey), Error> {
        let url = || place.url_of(NAME);
        let found = master.fingerprint()?;
        if found != self.manifest.key {
            let (wanted, path) = (self.manifest.key.clone(), master.path().to_owned());
            return Err(Error::WrongKey { url: place.url().to_owned(), wanted, path, found });
        }
        let tampered = |what: &str| Error::Tampered { url: url(), what: what.to_owned() };
        let key = master.unwrap(&self.manifest.id, &self.manifest.wrapped_key)?;
        let key = key.ok_or_else(|| tampered("its key was changed"))?;
        let details = key.open_details(self.line.as_bytes(), &self.sealed)?;
        let details = details.ok_or_else(|| tampered("it was changed"))?;
        let details = serde_json::from_slice(&details).map_err(|error| tampered(&error.to_string()))?;
        Ok((details, key))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use proptest::prelude::*;

    use super::*;
    use crate::parking::key::tests::key_file;
    use crate::parking::tests::{offer, source};

    fn sealed() -> (tempfile::TempDir, MasterKey, Manifest, Details, Bytes) {
        let scratch = tempfile::tempdir().unwrap();
        let master = MasterKey::read(&key_file(scratch.path(), 1)).unwrap();
        let (offer, key) = (offer(), DataKey::random().unwrap());
        let mut manifest = Manifest::of(&offer, "a", 1 << 20, &master, &key).unwrap();
        manifest.objects.push(Object {
            name: "000-files".into(),
            kind: Kind::Files,
            announced: 0,
            raw_bytes: 3,
            size: 4,
            sha256: "00".repeat(32),
        });
        let details = Details { offer, source: source(), cpuinfo: None };
        let text = manifest.seal(&details, &key).unwrap();
        (scratch, master, manifest, details, text)
    }

    fn place() -> Store {
        Store::over(Arc::new(InMemory::new()))
    }

    #[tokio::test]
    async fn a_manifest_comes_back_as_it_was_written_and_shows_no_secret() {
        let (_scratch, master, manifest, details, text) = sealed();
        let place = place();
        assert!(matches!(Manifest::read(&place).await, Err(Error::NoCheckpoint { .. })));
        place.put(NAME, text.clone()).await.unwrap();
        let read = Manifest::read(&place).await.unwrap();
        assert_eq!(read.manifest, manifest);
        assert_eq!(read.open(&place, &master).unwrap().0, details);
        let text = String::from_utf8(text.to_vec()).unwrap();
        assert!(serde_json::to_string(&details).unwrap().contains("hunter2") && !text.contains("hunter2"));
    }

    #[tokio::test]
    async fn another_key_is_named_and_another_version_too() {
        let (scratch, _, manifest, _, text) = sealed();
        let other = MasterKey::read(&key_file(scratch.path(), 2)).unwrap();
        let place = place();
        let wrong = Sealed::parse(&place, &text).unwrap().open(&place, &other).unwrap_err();
        assert!(matches!(&wrong, Error::WrongKey { wanted, .. } if *wanted == manifest.key), "{wrong}");
        let newer = String::from_utf8(text.to_vec()).unwrap().replacen("\"version\":1", "\"version\":2", 1);
        assert!(matches!(Sealed::parse(&place, newer.as_bytes()), Err(Error::Version { found: 2, .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_byte_of_it_can_be_changed(at: prop::sample::Index, bit in 0..7_u32) {
            let (_scratch, master, _, _, text) = sealed();
            let place = place();
            let mut other = text.to_vec();
            // Its last byte ends the line and means nothing.
            let at = at.index(other.len() - 1);
            other[at] ^= 1 << bit;
            // Digits may be written in either case.
            prop_assume!(!(other[at].eq_ignore_ascii_case(&text[at]) && at > text.iter().position(|&b| b == b'\n').unwrap()));
            let opened = Sealed::parse(&place, &other).and_then(|sealed| sealed.open(&place, &master));
            prop_assert!(opened.is_err());
        }
    }
}
