//! What is swept: checkpoints past their time, and what is left of those that never became whole.
//!
//! A checkpoint's time begins when it is given away, by its mark `committed` or, where a person said that its source is gone, by the claim: until then
//! nobody but its source knows whether it is the only copy, and it is kept, however old. A source that knows that its container went on, because
//! its journal has it, removes what it could not remove then.
//!
//! Times are by the store's clock, so that a host whose own is wrong removes nothing before its time but what is younger than the difference.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use spothop_criu::handoff::is_migration_id;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::claim::{self, CLAIMED, COMMITTED, Claim};
use super::store::{Listed, Store};
use super::{Error, manifest};
use crate::api::Outcome;
use crate::migration::{Context, Side, chain, unpanicked};

/// Between two sweeps.
const EVERY: Duration = Duration::from_secs(3600);

/// Objects without a manifest are left alone for so long: somebody may be parking there. A claim is a restore under way for so long: one takes
/// `manual_timeout` at most.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What has to go.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Due {
    /// A checkpoint that is too old.
    Expired(String, Vec<String>),
    /// Parts of none.
    Orphan(String, Vec<String>),
    /// One that was not given away, if its source has given it up.
    GivenUp(String, Vec<String>),
}

/// What of these objects, below a place to park, has to go at `now`. Whatever is not ours by its name stays.
fn due(objects: &[Listed], retention: Option<Duration>, now: Timestamp) -> Vec<Due> {
    let mut checkpoints: BTreeMap<&str, Vec<(&str, &Listed)>> = BTreeMap::new();
    for object in objects {
        if let Some((id, name)) = object.name.split_once('/').filter(|(id, _)| is_migration_id(id)) {
            checkpoints.entry(id).or_default().push((name, object));
        }
    }
    let older = |object: &Listed, age: Duration| {
        now.duration_since(object.modified) > SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX)
    };
    let judge = |(id, objects): (&str, Vec<(&str, &Listed)>)| {
        let find = |wanted: &str| objects.iter().find(|(name, _)| *name == wanted).map(|(_, object)| *object);
        let names = || objects.iter().map(|(name, _)| (*name).to_owned()).collect();
        match find(manifest::NAME) {
            Some(_) => {
                let claim = find(CLAIMED);
                let given_away = find(COMMITTED).into_iter().chain(claim).max_by_key(|mark| mark.modified);
                let Some(given_away) = given_away else { return Some(Due::GivenUp(id.to_owned(), names())) };
                let expired = retention.is_some_and(|retention| older(given_away, retention));
                let being_restored = claim.is_some_and(|claim| !older(claim, DAY));
                (expired && !being_restored).then(|| Due::Expired(id.to_owned(), names()))
            }
            None => objects.iter().all(|(_, object)| older(object, DAY)).then(|| Due::Orphan(id.to_owned(), names())),
        }
    };
    checkpoints.into_iter().filter_map(judge).collect()
}

/// Removes what has to go. `gave_up`: whether this host is the source of the checkpoint of that id and its container went on here. Returns how
/// many checkpoints, whole or not, have gone.
pub(super) async fn sweep<F: Future<Output = bool>>(
    store: &Store,
    host: &str,
    retention: Option<Duration>,
    now: Timestamp,
    gave_up: impl Fn(String) -> F,
) -> Result<usize, Error> {
    let mut swept = 0;
    for due in due(&store.list().await?, retention, now) {
        let (id, names, is_whole) = match due {
            Due::GivenUp(id, _) if !gave_up(id.clone()).await => continue,
            Due::GivenUp(id, names) | Due::Expired(id, names) => (id, names, true),
            Due::Orphan(id, names) => (id, names, false),
        };
        // Nobody begins to restore it from here on. One that was restored is claimed already.
        let claimed = names.iter().any(|name| name == CLAIMED);
        if is_whole && !claimed && Claim::new(host, "sweep").take(&store.of(&id)).await.is_err() {
            continue;
        }
        claim::remove(&store.of(&id), names).await?;
        info!(checkpoint = id, "swept");
        swept += 1;
    }
    Ok(swept)
}

/// Sweeps the configured place from time to time, as long as the daemon runs.
pub async fn keep_swept(context: Arc<Context>) {
    let parking = &context.config.parking;
    let Some(url) = &parking.url else { return };
    let mut times = tokio::time::interval(EVERY);
    loop {
        times.tick().await;
        let gave_up = |id| gave_up(Arc::clone(&context), id);
        let swept = async {
            sweep(&Store::open(url)?, &context.config.host.name, parking.retention, Timestamp::now(), gave_up).await
        };
        if let Err(failure) = swept.await {
            warn!(url, error = chain(&failure), "old checkpoints were not swept; trying again in an hour");
        }
    }
}

/// What the journal cannot tell is not given up.
async fn gave_up(context: Arc<Context>, id: String) -> bool {
    let (journal, wanted) = (Arc::clone(&context.journal), id.clone());
    match unpanicked(spawn_blocking(move || journal.migration(&wanted, Side::Source)).await) {
        Ok(view) => view.is_some_and(|view| view.phase.is_final() && view.outcome == Some(Outcome::Aborted)),
        Err(failure) => {
            warn!(checkpoint = id, error = chain(&failure), "it cannot be read whether this was given up");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use bytes::Bytes;
    use object_store::memory::InMemory;

    use super::*;

    const ID: &str = "0191e0a0-0000-7000-8000-000000000001";
    const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn there(objects: &[(&str, u64)]) -> Vec<Listed> {
        let listed = |(name, hours): &(&str, u64)| Listed {
            name: format!("{ID}/{name}"),
            size: 1,
            modified: now() - SignedDuration::from_secs(*hours as i64 * 3600),
        };
        objects.iter().map(listed).collect()
    }

    fn what(objects: &[(&str, u64)], retention: Option<Duration>) -> &'static str {
        match due(&there(objects), retention, now()).pop() {
            None => "stays",
            Some(Due::Expired(id, names)) => {
                assert_eq!((id.as_str(), names.len()), (ID, objects.len()));
                "expired"
            }
            Some(Due::Orphan(..)) => "orphan",
            Some(Due::GivenUp(..)) => "its source knows",
        }
    }

    #[test]
    fn a_checkpoint_goes_when_it_was_given_away_long_ago_and_nobody_restores_it() {
        let week = Some(WEEK);
        assert_eq!(what(&[("000-files", 200), ("manifest", 200), ("committed", 167)], week), "stays");
        assert_eq!(what(&[("000-files", 200), ("manifest", 200), ("committed", 169)], week), "expired");
        assert_eq!(what(&[("000-files", 200), ("manifest", 200), ("committed", 169)], None), "stays");
        assert_eq!(what(&[("manifest", 200), ("committed", 200), ("claimed", 167)], week), "stays");
        assert_eq!(what(&[("manifest", 200), ("committed", 200), ("claimed", 169)], week), "expired");
        // A restore takes less than a day, but may take longer than a short retention.
        assert_eq!(what(&[("manifest", 30), ("committed", 30), ("claimed", 23)], Some(DAY / 24)), "stays");
        assert_eq!(what(&[("manifest", 200), ("claimed", 169)], week), "expired", "a person gave it away");
    }

    #[test]
    fn what_its_source_has_not_given_away_may_be_the_only_copy_and_stays() {
        assert_eq!(what(&[("000-files", 9999), ("manifest", 9999)], Some(WEEK)), "its source knows");
        assert_eq!(what(&[("000-files", 9999), ("manifest", 9999)], None), "its source knows");
    }

    #[tokio::test]
    async fn what_was_not_given_away_goes_only_by_the_word_of_its_source() {
        let store = Store::over(Arc::new(InMemory::new()));
        for name in ["000-files", "manifest"] {
            store.of(ID).put(name, Bytes::from_static(b"x")).await.unwrap();
        }
        let later = Timestamp::now() + WEEK * 52;
        assert_eq!(sweep(&store, "b", Some(WEEK), later, |_| ready(false)).await.unwrap(), 0);
        assert_eq!(store.list().await.unwrap().len(), 2);
        assert_eq!(sweep(&store, "a", None, later, |id| ready(id == ID)).await.unwrap(), 1);
        assert!(store.list().await.unwrap().is_empty());
    }

    #[test]
    fn parts_without_a_manifest_go_after_a_day_in_which_nothing_was_added() {
        for retention in [None, Some(WEEK)] {
            assert_eq!(what(&[("000-files", 25), ("001-pages", 25)], retention), "orphan");
            assert_eq!(what(&[("000-files", 25), ("001-pages", 23)], retention), "stays");
            assert_eq!(what(&[("claimed", 25)], retention), "orphan");
        }
    }

    #[test]
    fn what_is_not_ours_stays() {
        let mut others = there(&[("000-files", 1000)]);
        for name in ["important", "backup/manifest", "0191e0a0/000-files", ""] {
            others[0].name = name.to_owned();
            assert_eq!(due(&others, Some(WEEK), now()), []);
        }
    }

    #[tokio::test]
    async fn a_sweep_removes_what_is_due_and_nothing_else() {
        let store = Store::over(Arc::new(InMemory::new()));
        let (other, parts) = ("0191e0a0-0000-7000-8000-000000000002", "0191e0a0-0000-7000-8000-000000000003");
        for (id, names) in
            [(ID, ["manifest", "committed"].as_slice()), (other, &["manifest", "claimed"]), (parts, &["000-files"])]
        {
            for name in names {
                store.of(id).put(name, Bytes::from_static(b"x")).await.unwrap();
            }
        }
        store.put("mine", Bytes::from_static(b"x")).await.unwrap();
        let swept = async |retention, after: Duration| {
            sweep(&store, "a", retention, Timestamp::now() + after, |_| ready(false)).await
        };
        assert_eq!(swept(Some(WEEK), DAY / 2).await.unwrap(), 0);
        assert_eq!(swept(Some(DAY / 4), DAY / 2).await.unwrap(), 1, "one is being restored");
        assert!(store.of(ID).list().await.unwrap().is_empty());
        assert_eq!(swept(Some(WEEK), DAY * 2).await.unwrap(), 1, "the parts");
        assert_eq!(swept(Some(WEEK), WEEK * 2).await.unwrap(), 1, "what was restored");
        let left = store.list().await.unwrap();
        assert_eq!(left.iter().map(|object| object.name.as_str()).collect::<Vec<_>>(), ["mine"]);
    }
}
