//! What is swept: checkpoints past their time, and what is left of those that never became whole.
//!
//! Times are by the store's clock, so that a host whose own is wrong removes nothing before its time but what is younger than the difference.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use spothop_criu::handoff::is_migration_id;
use tracing::{info, warn};

use super::claim::{self, CLAIMED, Claim};
use super::store::{Listed, Store};
use super::{Error, manifest};
use crate::migration::{Context, chain};

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
            Some(manifest) => {
                let expired = retention.is_some_and(|retention| older(manifest, retention));
                let being_restored = find(CLAIMED).is_some_and(|claim| !older(claim, DAY));
                (expired && !being_restored).then(|| Due::Expired(id.to_owned(), names()))
            }
            None => objects.iter().all(|(_, object)| older(object, DAY)).then(|| Due::Orphan(id.to_owned(), names())),
        }
    };
    checkpoints.into_iter().filter_map(judge).collect()
}

/// Removes what has to go. Returns how many checkpoints, whole or not, have gone.
pub(super) async fn sweep(
    store: &Store,
    host: &str,
    retention: Option<Duration>,
    now: Timestamp,
) -> Result<usize, Error> {
    let mut swept = 0;
    for due in due(&store.list().await?, retention, now) {
        let (id, names) = match due {
            Due::Expired(id, names) => {
                let place = store.of(&id);
                // Nobody begins to restore it from here on. One that was restored is claimed already.
                let claimed = names.iter().any(|name| name == CLAIMED);
                if !claimed && Claim::new(host, "sweep").take(&place).await.is_err() {
                    continue;
                }
                (id, names)
            }
            Due::Orphan(id, names) => (id, names),
        };
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
        let swept =
            async { sweep(&Store::open(url)?, &context.config.host.name, parking.retention, Timestamp::now()).await };
        if let Err(failure) = swept.await {
            warn!(url, error = chain(&failure), "old checkpoints were not swept; trying again in an hour");
        }
    }
}

#[cfg(test)]
mod tests {
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
        }
    }

    #[test]
    fn a_checkpoint_goes_when_it_is_too_old_and_nobody_restores_it() {
        let week = Some(WEEK);
        assert_eq!(what(&[("000-files", 200), ("manifest", 167)], week), "stays");
        assert_eq!(what(&[("000-files", 200), ("manifest", 169)], week), "expired");
        assert_eq!(what(&[("000-files", 200), ("manifest", 169)], None), "stays");
        assert_eq!(what(&[("manifest", 169), ("committed", 169), ("claimed", 23)], week), "stays");
        assert_eq!(what(&[("manifest", 169), ("committed", 169), ("claimed", 25)], week), "expired");
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
            [(ID, ["000-files", "manifest"].as_slice()), (other, &["manifest", "claimed"]), (parts, &["000-files"])]
        {
            for name in names {
                store.of(id).put(name, Bytes::from_static(b"x")).await.unwrap();
            }
        }
        store.put("mine", Bytes::from_static(b"x")).await.unwrap();
        let after = |age: Duration| Timestamp::now() + age;
        assert_eq!(sweep(&store, "a", Some(WEEK), after(DAY / 2)).await.unwrap(), 0);
        assert_eq!(sweep(&store, "a", Some(DAY / 4), after(DAY / 2)).await.unwrap(), 1, "one is being restored");
        assert!(store.of(ID).list().await.unwrap().is_empty());
        assert_eq!(sweep(&store, "a", Some(WEEK), after(DAY * 2)).await.unwrap(), 1, "the parts");
        assert_eq!(sweep(&store, "a", Some(WEEK), after(WEEK * 2)).await.unwrap(), 1, "what was restored");
        let left = store.list().await.unwrap();
        assert_eq!(left.iter().map(|object| object.name.as_str()).collect::<Vec<_>>(), ["mine"]);
    }
}
