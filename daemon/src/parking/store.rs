//! Where checkpoints are kept: a bucket or a directory, and below it one "directory" for each checkpoint.
//!
//! ```text
//! s3://bucket/prefix/<checkpoint>/000-files, 001-pages, …     sealed
//!                                /manifest                    written when all of them are there
//!                                /committed                   written when the source has given the container away
//!                                /claimed                     who restores it, or takes it back: only one can write it
//!                                /restored                    written when the container of who has claimed it runs
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, Error as StoreError, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions,
    RetryConfig,
};
use tokio::time::{sleep, timeout};
use tracing::info;

use super::Error;
use super::http::Connector;
use crate::config::Parking;

/// The most that an object is cut into, uploaded and downloaded at a time, in bytes. S3 has 10,000 parts an object and at least 5 MiB a part:
/// 156 GiB after compression.
pub(super) const PART: usize = 16 << 20;

/// A request that fails for a passing reason is made again for so long, at growing intervals.
const RETRY: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// For one part to be read.
const READ: Duration = Duration::from_secs(60);

/// The longest object that is read as a whole, in bytes: manifests, claims.
const SHORT: u64 = 16 << 20;

/// A place in a store: where all checkpoints are, or where one is.
#[derive(Clone)]
pub(super) struct Store {
    inner: Arc<dyn ObjectStore>,
    prefix: Path,
    url: String,
}

/// An object that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    /// Its name below the place.
    pub(super) name: String,
    /// In bytes.
    pub(super) size: u64,
    /// By the store's clock.
    pub(super) modified: jiff::Timestamp,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.url).finish()
    }
}

/// What a URL names.
#[derive(Debug, PartialEq, Eq)]
enum Place<'u> {
    Bucket { bucket: &'u str, prefix: &'u str },
    Directory(&'u str),
}

fn place(url: &str) -> Option<Place<'_>> {
    if url.ends_with('/') || url.chars().any(|letter| letter.is_control() || letter.is_whitespace()) {
        return None;
    }
    if let Some(directory) = url.strip_prefix("file://") {
        return directory.starts_with('/').then_some(Place::Directory(directory));
    }
    let rest = url.strip_prefix("s3://")?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    (!bucket.is_empty()).then_some(Place::Bucket { bucket, prefix })
}

/// Whether a host's name, as the journal has it, is a place to park.
#[must_use]
pub fn is_url(peer: &str) -> bool {
    peer.contains("://")
}

/// Whether it can be a place to park, by its form.
///
/// # Errors
/// [`Error::BadUrl`].
pub fn check_url(url: &str) -> Result<(), Error> {
    place(url).map(drop).ok_or_else(|| Error::BadUrl(url.to_owned()))
}

impl Store {
    /// Opens a place. Nothing is asked of a bucket yet; the file with its authorities is read.
    pub(super) fn open(config: &Parking, url: &str) -> Result<Self, Error> {
        let bad = || Error::BadUrl(url.to_owned());
        let failed = |source| Error::Store { action: "open", url: url.to_owned(), source };
        let parsed = |text: &str| Path::parse(text).map_err(|source| failed(source.into()));
        match place(url).ok_or_else(bad)? {
            Place::Directory(directory) => {
                // The directory of a checkpoint is no directory of the operator's: it may be there or not.
                let (root, below) = match directory.rsplit_once('/') {
                    Some((root, last)) if spothop_criu::handoff::is_migration_id(last) => (root, last),
                    _ => (directory, ""),
                };
                let store = LocalFileSystem::new_with_prefix(root)
                    .map_err(|source| Error::Directory { path: root.into(), source })?;
                let store = store.with_fsync(true).with_automatic_cleanup(true);
                Ok(Self { inner: Arc::new(store), prefix: parsed(below)?, url: url.to_owned() })
            }
            Place::Bucket { bucket, prefix } => {
                let inner =
                    self::bucket(AmazonS3Builder::from_env(), bucket, Connector::open(config)?).map_err(failed)?;
                Ok(Self { inner, prefix: parsed(prefix)?, url: url.to_owned() })
            }
        }
    }

    /// One for tests.
    #[cfg(test)]
    pub(super) fn over(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, prefix: Path::default(), url: "memory:".to_owned() }
    }

    /// The place of one checkpoint.
    pub(super) fn of(&self, checkpoint: &str) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            prefix: self.path(checkpoint),
            url: format!("{}/{checkpoint}", self.url),
        }
    }

    /// Its URL.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// That of an object.
    pub(super) fn url_of(&self, name: &str) -> String {
        format!("{}/{name}", self.url)
    }

    fn path(&self, name: &str) -> Path {
        self.prefix.parts().chain(name.split('/').map(Into::into)).collect()
    }

    /// The store itself and an object's name in it, for who writes it in parts.
    pub(super) fn target(&self, name: &str) -> (Arc<dyn ObjectStore>, Path) {
        (Arc::clone(&self.inner), self.path(name))
    }

    /// Names the action in an error.
    pub(super) fn failed(&self, action: &'static str, name: &str) -> impl FnOnce(StoreError) -> Error + use<> {
        let url = self.url_of(name);
        move |source| Error::Store { action, url, source }
    }

    /// Writes a short object.
    pub(super) async fn put(&self, name: &str, bytes: Bytes) -> Result<(), Error> {
        self.inner.put(&self.path(name), bytes.into()).await.map(drop).map_err(self.failed("write", name))
    }

    /// Writes a short object unless there is one; false if there is.
    pub(super) async fn create(&self, name: &str, bytes: Bytes) -> Result<bool, Error> {
        let options = PutOptions::from(PutMode::Create);
        match self.inner.put_opts(&self.path(name), bytes.into(), options).await {
            Ok(_) => Ok(true),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(false),
            Err(error) => Err(self.failed("write", name)(error)),
        }
    }

    /// Reads a short object; none if there is none.
    pub(super) async fn get(&self, name: &str) -> Result<Option<Bytes>, Error> {
        let read = async {
            let found = self.inner.get(&self.path(name)).await?;
            if found.meta.size > SHORT {
                let source = format!("it has {} bytes", found.meta.size).into();
                return Err(StoreError::Generic { store: "object", source });
            }
            found.bytes().await
        };
        match read.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("read", name)(error)),
        }
    }

    /// Reads a part of an object, again and again if it must be: what was read before is not read again.
    pub(super) async fn part(&self, name: &str, range: std::ops::Range<u64>) -> Result<Bytes, Error> {
        let path = self.path(name);
        let (mut pause, mut left) = (FIRST_PAUSE, RETRY);
        loop {
            let failure = match timeout(READ, self.inner.get_range(&path, range.clone())).await {
                Ok(Ok(bytes)) => return Ok(bytes),
                Ok(Err(error)) => self.failed("read", name)(error),
                Err(_) => Error::Slow { url: self.url_of(name), limit: READ },
            };
            if left.is_zero() || !is_passing(&failure) {
                return Err(failure);
            }
            info!(error = crate::migration::chain(&failure), "reading on in a moment");
            sleep(pause).await;
            left = left.saturating_sub(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// All objects below this place.
    pub(super) async fn list(&self) -> Result<Vec<Listed>, Error> {
        let prefix = Some(&self.prefix).filter(|prefix| !prefix.is_root());
        let listed = self.inner.list(prefix).try_collect::<Vec<_>>().await.map_err(self.failed("list", ""))?;
        let named = listed.into_iter().filter_map(|meta| {
            let name = meta.location.prefix_match(&self.prefix)?.map(|part| part.as_ref().to_owned());
            let name = name.collect::<Vec<_>>().join("/");
            let modified = jiff::Timestamp::from_millisecond(meta.last_modified.timestamp_millis()).ok()?;
            Some(Listed { name, size: meta.size, modified })
        });
        Ok(named.collect())
    }

    /// Removes an object; one that is not there is a success.
    pub(super) async fn delete(&self, name: &str) -> Result<(), Error> {
        match self.inner.delete(&self.path(name)).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("remove", name)(error)),
        }
    }

    /// Removes these objects, some at a time; goes on after a failure, which is the result.
    pub(super) async fn delete_all(&self, names: impl IntoIterator<Item = String>) -> Result<(), Error> {
        const AT_ONCE: usize = 8;
        let deleted = futures_util::stream::iter(names).map(|name| async move { self.delete(&name).await });
        let results: Vec<_> = deleted.buffer_unordered(AT_ONCE).collect().await;
        results.into_iter().collect()
    }
}

/// A bucket, with what the environment says of it in `builder`.
pub(super) fn bucket(
    builder: AmazonS3Builder,
    name: &str,
    connector: Connector,
) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let backoff = BackoffConfig { init_backoff: FIRST_PAUSE, max_backoff: LONGEST_PAUSE, ..BackoffConfig::default() };
    let retry = RetryConfig { backoff, retry_timeout: RETRY, ..RetryConfig::default() };
    let store = builder
        .with_bucket_name(name)
        .with_http_connector(connector)
        // Whoever names an endpoint without TLS means it; Amazon's own have it.
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .with_retry(retry)
        .build()?;
    Ok(Arc::new(store))
}

/// Whether it may be otherwise in a moment.
fn is_passing(failure: &Error) -> bool {
    match failure {
        Error::Store { source, .. } => {
            matches!(source, StoreError::Generic { .. } | StoreError::JoinError { .. })
        }
        Error::Slow { .. } => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_bucket_or_a_directory() {
        assert_eq!(place("s3://b/p/q"), Some(Place::Bucket { bucket: "b", prefix: "p/q" }));
        assert_eq!(place("s3://b"), Some(Place::Bucket { bucket: "b", prefix: "" }));
        assert_eq!(place("file:///a/b"), Some(Place::Directory("/a/b")));
        for wrong in
            ["s3://", "s3:///p", "s3://b/", "file://h/x", "file:///", "gs://b", "/a", "", "s3://b/a b", "s3://b/\n"]
        {
            assert_eq!(place(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn an_object_is_created_once_and_read_back_by_its_name_below_the_place() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(&Parking::default(), &format!("file://{}", scratch.path().display())).unwrap();
        let id = "0191e0a0-0000-7000-8000-000000000001";
        let checkpoint = store.of(id);
        assert!(checkpoint.create("claimed", Bytes::from_static(b"one")).await.unwrap());
        assert!(!checkpoint.create("claimed", Bytes::from_static(b"two")).await.unwrap());
        assert_eq!(checkpoint.get("claimed").await.unwrap().unwrap(), "one");
        assert_eq!(store.list().await.unwrap()[0].name, format!("{id}/claimed"));
        assert_eq!(checkpoint.list().await.unwrap()[0].name, "claimed");
        let by_url = Store::open(&Parking::default(), checkpoint.url()).unwrap();
        assert_eq!(by_url.get("claimed").await.unwrap().unwrap(), "one");
        assert_eq!(checkpoint.part("claimed", 1..3).await.unwrap(), "ne");
        checkpoint.delete_all(["claimed".to_owned(), "none".to_owned()]).await.unwrap();
        assert_eq!(checkpoint.get("claimed").await.unwrap(), None);
        assert!(store.list().await.unwrap().is_empty());
    }

    #[test]
    fn a_directory_that_is_not_there_is_told() {
        let missing = Store::open(&Parking::default(), "file:///nonexistent/parked").unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/parked"), "{missing}");
    }
}
