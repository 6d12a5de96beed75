//! To whom a checkpoint belongs.
//!
//! | objects that are there | whose the container is |
//! |---|---|
//! | no `committed` | its source's, which goes on or is frozen; what is there of the checkpoint is worth nothing yet |
//! | `committed`, no `claimed` | nobody's: it waits |
//! | `claimed` | his who has written it; written with `If-None-Match`, so by one only |
//! | `claimed`, `restored` | his, and it runs there: the checkpoint is no longer the only copy |
//!
//! A restore that has failed takes its claim away again, when it has written ABORT and has undone what it did (`migration::arrival`).
//! A source that gives up after its manifest was written claims the checkpoint before it removes it.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::store::Store;
use super::{Error, manifest};

/// The object that says that the source has let go.
pub(super) const COMMITTED: &str = "committed";

/// The object that says who has it.
pub(super) const CLAIMED: &str = "claimed";

/// The object that says that the container of who has claimed it runs.
pub(super) const RESTORED: &str = "restored";

/// Who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    /// The host.
    pub(super) host: String,
    /// Its migration.
    pub(super) migration: String,
    /// When.
    pub(super) at: Timestamp,
}

impl Claim {
    /// That of a migration of this host.
    pub(super) fn new(host: &str, migration: &str) -> Self {
        Self { host: host.to_owned(), migration: migration.to_owned(), at: Timestamp::now() }
    }

    fn to_bytes(&self) -> Bytes {
        // No maps in it whose keys are no strings.
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    /// Takes the checkpoint, or finds it taken by the same migration.
    ///
    /// # Errors
    /// [`Error::Claimed`]; [`Error::NoConditions`], and then it is not taken.
    pub(super) async fn take(&self, place: &Store) -> Result<(), Error> {
        if place.create(CLAIMED, self.to_bytes()).await? {
            // A store that knows no conditions would have said the same to everybody.
            if place.create(CLAIMED, self.to_bytes()).await? {
                place.delete(CLAIMED).await?;
                return Err(Error::NoConditions { url: place.url().to_owned() });
            }
            return Ok(());
        }
        // Ours, if an answer was lost and the request made again.
        match Self::read(place).await? {
            Some(there) if there.migration == self.migration => Ok(()),
            Some(there) => Err(there.refusal(place)),
            None => Err(Error::NoConditions { url: place.url().to_owned() }),
        }
    }

    /// Who has the checkpoint, if somebody has.
    pub(super) async fn read(place: &Store) -> Result<Option<Self>, Error> {
        let Some(text) = place.get(CLAIMED).await? else { return Ok(None) };
        let tampered =
            |error: serde_json::Error| Error::Tampered { url: place.url_of(CLAIMED), what: error.to_string() };
        serde_json::from_slice(&text).map(Some).map_err(tampered)
    }

    /// Gives the checkpoint back, if this migration has it.
    pub(super) async fn release(place: &Store, migration: &str) -> Result<(), Error> {
        match Self::read(place).await? {
            Some(there) if there.migration == migration => place.delete(CLAIMED).await,
            _ => Ok(()),
        }
    }

    /// What another one who wants it is told.
    pub(super) fn refusal(self, place: &Store) -> Error {
        Error::Claimed { url: place.url().to_owned(), host: self.host, migration: self.migration, at: self.at }
    }
}

/// The source has written COMMIT: from here on the checkpoint is anybody's.
pub(super) async fn commit(place: &Store, host: &str, migration: &str) -> Result<(), Error> {
    place.put(COMMITTED, Claim::new(host, migration).to_bytes()).await
}

/// The container of `migration` runs. False, and nothing was written, if it was not restored from this claim: a copy, or a claim that is gone.
pub(super) async fn restored(place: &Store, host: &str, migration: &str) -> Result<bool, Error> {
    let own = Claim::read(place).await?.is_some_and(|claim| claim.migration == migration);
    if own {
        place.put(RESTORED, Claim::new(host, migration).to_bytes()).await?;
    }
    Ok(own)
}

/// The source gives up, and nothing is to be left of it. False, and nothing was done, if somebody has claimed it: only one who was
/// told that the source is gone can have done that.
pub(super) async fn take_back(place: &Store, host: &str, migration: &str) -> Result<bool, Error> {
    let there = place.list().await?;
    if there.iter().any(|object| object.name == manifest::NAME) {
        match Claim::new(host, migration).take(place).await {
            Ok(()) => {}
            Err(Error::Claimed { host, migration, .. }) => {
                warn!(
                    place = place.url(),
                    host, migration, "a checkpoint that was not given away was restored elsewhere"
                );
                return Ok(false);
            }
            // Then nobody else can have claimed it either.
            Err(Error::NoConditions { .. }) => {}
            Err(failure) => return Err(failure),
        }
    }
    remove(place, there.into_iter().map(|object| object.name)).await?;
    Ok(true)
}

/// Removes a checkpoint. Its manifest first, without which it is none and what a removal leaves is swept as parts of none; its claim last.
pub(super) async fn remove(place: &Store, names: impl IntoIterator<Item = String>) -> Result<(), Error> {
    place.delete(manifest::NAME).await?;
    let own = [manifest::NAME, CLAIMED];
    place.delete_all(names.into_iter().filter(|name| !own.contains(&name.as_str()))).await?;
    place.delete(CLAIMED).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;

    fn place() -> Store {
        Store::over(Arc::new(InMemory::new()))
    }

    #[tokio::test]
    async fn only_one_of_many_claims_a_checkpoint_and_whoever_gives_it_back_lets_the_next_have_it() {
        let place = place();
        let claims = futures_util::future::join_all((0..16).map(|n| {
            let place = place.clone();
            async move { Claim::new("b", &format!("m{n}")).take(&place).await }
        }));
        let claims = claims.await;
        assert_eq!(claims.iter().filter(|taken| taken.is_ok()).count(), 1);
        assert!(claims.iter().flat_map(|taken| taken.as_ref().err()).all(|no| matches!(no, Error::Claimed { .. })));
        let owner = Claim::read(&place).await.unwrap().unwrap();
        owner.take(&place).await.expect("it is its own");
        Claim::release(&place, "another").await.unwrap();
        Claim::new("c", "another").take(&place).await.unwrap_err();
        Claim::release(&place, &owner.migration).await.unwrap();
        Claim::new("c", "another").take(&place).await.unwrap();
    }

    #[tokio::test]
    async fn only_whoever_has_claimed_a_checkpoint_says_that_it_was_restored() {
        let place = place();
        assert!(!restored(&place, "b", "m2").await.unwrap(), "a copy claims nothing");
        Claim::new("b", "m2").take(&place).await.unwrap();
        assert!(!restored(&place, "c", "m3").await.unwrap());
        assert_eq!(place.get(RESTORED).await.unwrap(), None);
        assert!(restored(&place, "b", "m2").await.unwrap());
        assert!(place.get(RESTORED).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_source_takes_back_all_or_learns_who_has_it() {
        let place = place();
        for name in ["000-files", "001-pages", manifest::NAME] {
            place.put(name, Bytes::from_static(b"x")).await.unwrap();
        }
        Claim::new("b", "m2").take(&place).await.unwrap();
        assert!(!take_back(&place, "a", "m1").await.unwrap());
        assert_eq!(place.list().await.unwrap().len(), 4);
        Claim::release(&place, "m2").await.unwrap();
        assert!(take_back(&place, "a", "m1").await.unwrap());
        assert!(place.list().await.unwrap().is_empty());
        assert!(take_back(&place, "a", "m1").await.unwrap(), "said twice it is the same");
    }
}
