//! What is swept: checkpoints that were restored long ago, and what is left of those that never became whole.
//!
//! | what is there | what becomes of it |
//! |---|---|
//! | manifest, no `committed` | stays: its source may be frozen, or be gone for good. Only the source takes it back, when its journal says that the container went on |
//! | `committed`, no `claimed` | stays: it is the container's only copy |
//! | `committed`, `claimed`, no `restored` | stays: whoever restores it may have vanished before the container ran |
//! | `committed`, `claimed`, `restored` | goes when it has been so for `retention`: the container has been running elsewhere |
//! | no manifest | goes after a day in which nothing was added |
//!
//! Times are by the store's clock, so that a host whose own is wrong removes nothing before its time but what is younger than the difference.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use spothop_criu::handoff::is_migration_id;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::claim::{self, CLAIMED, COMMITTED, Claim, RESTORED};
use super::store::{Listed, Store};
use super::{COPY, Error, manifest};
use crate::api::Outcome;
use crate::journal::Journal;
use crate::migration::{Context, Phase, Side, chain, unpanicked};

/// Between two sweeps.
const EVERY: Duration = Duration::from_secs(3600);

/// Objects without a manifest are left alone for so long: somebody may be parking there.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What has to go.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Due {
    /// A checkpoint that was restored long ago.
    Expired(String, Vec<String>),
    /// Parts of none.
    Orphan(String, Vec<String>),
}

impl Due {
    fn into_parts(self) -> (String, Vec<String>) {
        let (Self::Expired(id, names) | Self::Orphan(id, names)) = self;
        (id, names)
    }
}

/// What of these objects, below a place to park, has to go at `now`. Whatever is not ours by its name stays.
fn due(objects: &[Listed], retention: Option<Duration>, now: Timestamp) -> Vec<Due> {
    let older = |object: &Listed, age: Duration| {
        now.duration_since(object.modified) > SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX)
    };
    let judge = |(id, objects): (&str, Vec<(&str, &Listed)>)| {
        let has = |wanted: &str| objects.iter().any(|(name, _)| *name == wanted);
        let is_older = |wanted: &str, age| objects.iter().any(|(name, object)| *name == wanted && older(object, age));
        let names = || objects.iter().map(|(name, _)| (*name).to_owned()).collect();
        if has(manifest::NAME) {
            // The later of both marks counts. A source that comes back must find who has claimed what it did not give away.
            let expired = |age| has(CLAIMED) && is_older(COMMITTED, age) && is_older(RESTORED, age);
            return retention.is_some_and(expired).then(|| Due::Expired(id.to_owned(), names()));
        }
        objects.iter().all(|(_, object)| older(object, DAY)).then(|| Due::Orphan(id.to_owned(), names()))
    };
    by_checkpoint(objects).into_iter().filter_map(judge).collect()
}

/// The objects of each checkpoint, by their names in it.
fn by_checkpoint(objects: &[Listed]) -> BTreeMap<&str, Vec<(&str, &Listed)>> {
    let mut checkpoints: BTreeMap<&str, Vec<(&str, &Listed)>> = BTreeMap::new();
    for object in objects {
        if let Some((id, name)) = object.name.split_once('/').filter(|(id, _)| is_migration_id(id)) {
            checkpoints.entry(id).or_default().push((name, object));
        }
    }
    checkpoints
}

/// Removes what has to go. Returns how many checkpoints, whole or not, have gone.
pub(super) async fn sweep(store: &Store, retention: Option<Duration>, now: Timestamp) -> Result<usize, Error> {
    let mut swept = 0;
    for due in due(&store.list().await?, retention, now) {
        let (id, names) = due.into_parts();
        claim::remove(&store.of(&id), names).await?;
        info!(checkpoint = id, "swept");
        swept += 1;
    }
    Ok(swept)
}

/// Makes good what the store was not told when it did not answer or the daemon died, as this host's journal knows it: marks what was restored
/// here, and takes back what was parked from here by a parking that was aborted.
pub(super) async fn catch_up(store: &Store, host: &str, journal: &Arc<Journal>) -> Result<(), Error> {
    let there = store.list().await?;
    for (id, objects) in by_checkpoint(&there) {
        let has = |wanted: &str| objects.iter().any(|(name, _)| *name == wanted);
        let place = store.of(id);
        if has(manifest::NAME) && !has(COMMITTED) && !has(CLAIMED) && was_aborted(journal, id).await {
            claim::take_back(&place, host, id).await?;
            continue;
        }
        if !has(CLAIMED) || has(RESTORED) {
            continue;
        }
        let Some(claim) = Claim::read(&place).await?.filter(|claim| claim.host == host) else { continue };
        let (journal, migration) = (Arc::clone(journal), claim.migration.clone());
        let found = unpanicked(spawn_blocking(move || journal.migration(&migration, Side::Target)).await);
        let runs = match found {
            Ok(record) => record.is_some_and(|record| {
                record.cause != COPY && record.phases.iter().any(|entry| entry.phase == Phase::Running)
            }),
            Err(failure) => {
                warn!(checkpoint = id, error = chain(&failure), "whether it was restored here is not known");
                false
            }
        };
        if runs {
            claim::restored(&place, host, &claim.migration).await?;
        }
    }
    Ok(())
}

/// Whether this host began to park that checkpoint, and the container went on here. What the journal cannot tell was not.
async fn was_aborted(journal: &Arc<Journal>, id: &str) -> bool {
    let (journal, migration) = (Arc::clone(journal), id.to_owned());
    match unpanicked(spawn_blocking(move || journal.migration(&migration, Side::Source)).await) {
        Ok(record) => record.is_some_and(|record| record.phase.is_final() && record.outcome == Some(Outcome::Aborted)),
        Err(failure) => {
            warn!(checkpoint = id, error = chain(&failure), "whether it was given up here is not known");
            false
        }
    }
}

/// Sweeps the configured place from time to time, as long as the daemon runs.
pub async fn keep_swept(context: Arc<Context>) {
    let parking = &context.config.parking;
    let Some(url) = &parking.url else { return };
    let mut times = tokio::time::interval(EVERY);
    loop {
        times.tick().await;
        let swept = async {
            let store = Store::open(parking, url)?;
            catch_up(&store, &context.config.host.name, &context.journal).await?;
            sweep(&store, parking.retention, Timestamp::now()).await
        };
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
    use crate::journal::NewMigration;
    use crate::migration::Verdict;

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
    fn a_checkpoint_goes_when_its_container_has_been_running_elsewhere_for_long_enough() {
        let week = Some(WEEK);
        let restored =
            |hours| [("000-files", 900), ("manifest", 900), ("committed", 900), ("claimed", 800), ("restored", hours)];
        assert_eq!(what(&restored(169), week), "expired");
        assert_eq!(what(&restored(167), week), "stays");
        assert_eq!(what(&restored(169), None), "stays");
        // Its source came back, and gave it away after it had been restored as that of a source that is gone.
        let late = [("manifest", 900), ("claimed", 800), ("restored", 800), ("committed", 167)];
        assert_eq!(what(&late, week), "stays");
    }

    #[test]
    fn the_only_copy_stays_however_old_it_is() {
        let years = 100_000;
        let whole = [("000-files", years), ("manifest", years)];
        let with = |marks: &[&'static str]| {
            let all: Vec<_> = whole.iter().copied().chain(marks.iter().map(|mark| (*mark, years))).collect();
            what(&all, Some(WEEK))
        };
        assert_eq!(with(&[]), "stays", "its source may be frozen, or gone");
        assert_eq!(with(&["committed"]), "stays", "nobody has restored it");
        assert_eq!(with(&["committed", "claimed"]), "stays", "whoever restores it may be gone");
        assert_eq!(with(&["claimed"]), "stays");
        assert_eq!(with(&["claimed", "restored"]), "stays", "its source may come back, and must hear who has it");
        assert_eq!(with(&["committed", "restored"]), "stays", "nobody writes that");
        assert_eq!(with(&["committed", "claimed", "restored"]), "expired");
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

    fn id(number: u32) -> String {
        format!("0191e0a0-0000-7000-8000-{number:012}")
    }

    async fn put(store: &Store, checkpoint: &str, names: &[&str]) {
        for name in names {
            store.of(checkpoint).put(name, Bytes::from_static(b"x")).await.unwrap();
        }
    }

    async fn left(store: &Store) -> Vec<String> {
        let mut left: Vec<_> = store.list().await.unwrap().into_iter().map(|object| object.name).collect();
        left.sort();
        left
    }

    #[tokio::test]
    async fn a_sweep_removes_what_is_due_and_nothing_else() {
        let store = Store::over(Arc::new(InMemory::new()));
        put(&store, &id(1), &["000-files", "manifest", "committed", "claimed", "restored"]).await;
        put(&store, &id(2), &["manifest", "committed", "claimed"]).await;
        put(&store, &id(3), &["000-files"]).await;
        store.put("mine", Bytes::from_static(b"x")).await.unwrap();
        let after = |age: Duration| Timestamp::now() + age;
        assert_eq!(sweep(&store, Some(WEEK), after(DAY / 2)).await.unwrap(), 0);
        assert_eq!(sweep(&store, Some(DAY / 4), after(DAY / 2)).await.unwrap(), 1, "it was restored");
        assert!(store.of(&id(1)).list().await.unwrap().is_empty());
        assert_eq!(sweep(&store, Some(WEEK), after(DAY * 2)).await.unwrap(), 1, "the parts");
        assert_eq!(sweep(&store, Some(WEEK), after(WEEK * 2)).await.unwrap(), 0);
        let kept = ["claimed", "committed", "manifest"].map(|name| format!("{}/{name}", id(2)));
        assert_eq!(left(&store).await, [&kept[..], &["mine".to_owned()]].concat());
    }

    #[tokio::test]
    async fn what_a_removal_left_behind_is_no_checkpoint_and_is_swept() {
        for at in 0..5 {
            let store = Store::over(Arc::new(InMemory::new()));
            put(&store, &id(1), &["000-files", "committed", "claimed", "restored"][at.min(3)..]).await;
            assert_eq!(sweep(&store, None, Timestamp::now() + DAY * 2).await.unwrap(), 1);
            assert!(left(&store).await.is_empty());
        }
    }

    #[tokio::test]
    async fn a_restore_that_could_not_say_so_says_it_when_its_host_sweeps() {
        let scratch = tempfile::tempdir().unwrap();
        let journal = Arc::new(Journal::open(&scratch.path().join("journal.db")).unwrap());
        let store = Store::over(Arc::new(InMemory::new()));
        let (runs, on_its_way, unknown, others) = (id(1), id(2), id(3), id(4));
        for (checkpoint, host) in [(&runs, "b"), (&on_its_way, "b"), (&unknown, "b"), (&others, "c")] {
            put(&store, checkpoint, &["manifest", "committed"]).await;
            Claim::new(host, &checkpoint.replace("0191e0a0", "0191e0a1")).take(&store.of(checkpoint)).await.unwrap();
        }
        let before = [Phase::Reserved, Phase::Prepared, Phase::Frozen, Phase::Transferred, Phase::Restored];
        for (checkpoint, runs) in [(&runs, true), (&on_its_way, false), (&others, true)] {
            let migration = checkpoint.replace("0191e0a0", "0191e0a1");
            let new = NewMigration {
                id: migration.clone(),
                side: Side::Target,
                container_id: String::new(),
                container: "redis".into(),
                peer: format!("file:///parked/{checkpoint}"),
                cause: "manual".into(),
                deadline: None,
                predicted: None,
            };
            journal.begin(&new, now()).unwrap();
            let enter = |phase| journal.enter(&migration, Side::Target, phase, now()).unwrap();
            before.into_iter().for_each(enter);
            journal.decide(&migration, Side::Target, Verdict::Commit, None, now()).unwrap();
            if runs {
                [Phase::Running, Phase::Cleaned].into_iter().for_each(enter);
            }
        }
        catch_up(&store, "b", &journal).await.unwrap();
        catch_up(&store, "b", &journal).await.unwrap();
        let marked: Vec<_> = left(&store).await.into_iter().filter(|name| name.ends_with(RESTORED)).collect();
        assert_eq!(marked, [format!("{runs}/{RESTORED}")]);
    }

    #[tokio::test]
    async fn what_was_not_given_away_is_taken_back_by_its_source_once_its_container_went_on() {
        let scratch = tempfile::tempdir().unwrap();
        let journal = Arc::new(Journal::open(&scratch.path().join("journal.db")).unwrap());
        let store = Store::over(Arc::new(InMemory::new()));
        let (aborted, under_way, unknown, claimed) = (id(1), id(2), id(3), id(4));
        for checkpoint in [&aborted, &under_way, &unknown, &claimed] {
            put(&store, checkpoint, &["000-files", "manifest"]).await;
        }
        Claim::new("c", "another").take(&store.of(&claimed)).await.unwrap();
        for checkpoint in [&aborted, &under_way, &claimed] {
            let new = NewMigration {
                id: checkpoint.clone(),
                side: Side::Source,
                container_id: "c0ffee".into(),
                container: "redis".into(),
                peer: "file:///parked".into(),
                cause: "manual".into(),
                deadline: None,
                predicted: None,
            };
            journal.begin(&new, now()).unwrap();
        }
        for checkpoint in [&aborted, &claimed] {
            journal.decide(checkpoint, Side::Source, Verdict::Abort, None, now()).unwrap();
            journal.enter(checkpoint, Side::Source, Phase::Cleaned, now()).unwrap();
        }
        let before = left(&store).await;
        catch_up(&store, "a", &journal).await.unwrap();
        let kept: Vec<_> = before.into_iter().filter(|name| !name.starts_with(aborted.as_str())).collect();
        assert_eq!(left(&store).await, kept);
    }
}
