//! What migrations that are over, or that the journal does not know, have left behind on this host.
//!
//! Every rule, namespace, mount, directory, marker and container that a migration makes is in the journal as an intent before
//! it is there. So things are looked for first and the journal is read after them: what belongs to no migration that is under
//! way is left over. A migration that ends between the two would be blamed wrongly; therefore only what is still there at a second
//! look is told.

mod containers;
mod files;
mod network;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio::task::spawn_blocking;

use super::Check;
use crate::api::{MigrationView, Outcome};
use crate::config::Config;
use crate::journal::{self, Journal, JournalError};
use crate::migration::{Phase, RUNTIME_DIRECTORY, Side, Step, unpanicked};
use crate::orchestrator::{Docker, Trace};

const SUBJECT: &str = "leftovers";

/// Tidying up takes seconds. What is not done after this was tried and did not succeed; the next daemon tries it again.
const TIDY: Duration = Duration::from_secs(300);

/// Where things are looked for.
#[derive(Debug, Clone)]
struct Places {
    /// `/run/spothop`.
    runtime: PathBuf,
    /// `/var/lib/spothop`.
    state: PathBuf,
    /// `/run/netns`.
    netns: PathBuf,
    /// `/proc`.
    proc: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            runtime: RUNTIME_DIRECTORY.into(),
            state: Path::new(journal::DEFAULT_PATH).parent().unwrap_or(Path::new("/")).to_owned(),
            netns: "/run/netns".into(),
            proc: "/proc".into(),
        }
    }
}

/// A thing that is there, before it is known whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Thing {
    /// What it is, such as `tmpfs /run/spothop/dump/…/images`.
    what: String,
    owner: Owner,
    since: Option<SystemTime>,
    /// The command that removes it.
    remove: String,
    /// It keeps a container from working, and does not merely lie about.
    harms: bool,
}

/// By what a thing is ascribed to a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owner {
    /// The migration's id.
    Migration(String),
    /// The end of its id.
    IdEnd(String),
    /// A container, by its id or its name.
    Container { id: String, name: String },
    /// Any that is under way may be using it.
    Any,
    /// No migration ever makes such a thing.
    Nobody,
}

/// What the journal knows.
#[derive(Debug, Default)]
struct Known {
    /// The newest first.
    records: Vec<MigrationView>,
    /// Side effects of migrations that are stuck, which may still have to be undone.
    unsettled: Vec<(String, Step)>,
    now: Timestamp,
}

pub(super) async fn check(config: &Config) -> Vec<Check> {
    let places = Places::default();
    let mut found = match look(config, &places).await {
        Ok(found) => found,
        Err(check) => return vec![check],
    };
    if !found.is_empty() {
        match look(config, &places).await {
            Ok(again) => found.retain(|check| again.contains(check)),
            Err(check) => return vec![check],
        }
    }
    if found.is_empty() {
        found.push(Check::ok(SUBJECT, "none of migrations that are over"));
    }
    found
}

async fn look(config: &Config, places: &Places) -> Result<Vec<Check>, Check> {
    let traces = match Docker::connect(&config.docker.socket).await {
        Ok(engine) => engine.traces().await,
        Err(error) => Err(error),
    };
    // An engine that does not answer is told of elsewhere.
    let traces = traces.unwrap_or_default();
    let places = places.clone();
    unpanicked(spawn_blocking(move || survey(&places, &traces)).await).map_err(|error| {
        Check::warning(
            SUBJECT,
            format!("cannot be looked for: {error}"),
            "run this as root, on a host with a sound journal",
        )
    })
}

/// Everything that is there, held against the journal.
fn survey(places: &Places, traces: &[Trace]) -> Result<Vec<Check>, JournalError> {
    let mut things = files::things(places);
    things.extend(network::things(places, traces));
    things.extend(containers::things(traces));
    let known = Known::read(&places.state)?;
    let mut checks: Vec<_> = things.into_iter().filter_map(|thing| known.left_over(thing)).collect();
    checks.extend(containers::undone(&known, traces));
    Ok(checks)
}

impl Known {
    fn read(state: &Path) -> Result<Self, JournalError> {
        let name = Path::new(journal::DEFAULT_PATH).file_name().unwrap_or_default();
        let path = state.join(name);
        // Opening it would make one.
        if !path.exists() {
            return Ok(Self { now: Timestamp::now(), ..Self::default() });
        }
        let journal = Journal::open(&path)?;
        let mut known = Self { records: journal.history(u32::MAX)?, unsettled: Vec::new(), now: Timestamp::now() };
        let stuck: Vec<_> = known.records.iter().filter(|record| known.is_stuck(record)).collect();
        let mut unsettled = Vec::new();
        for record in stuck {
            let steps = journal.unsettled(&record.id, record.side)?;
            unsettled.extend(steps.into_iter().map(|(_, step)| (record.id.clone(), step)));
        }
        known.unsettled = unsettled;
        Ok(known)
    }

    /// Over but for what could not be tidied up.
    fn is_stuck(&self, record: &MigrationView) -> bool {
        let last = record.phases.last().map(|entry| entry.at);
        let idle = last.and_then(|at| Duration::try_from(self.now.duration_since(at)).ok()).unwrap_or_default();
        matches!(record.phase, Phase::Aborted | Phase::Running) && idle > TIDY
    }

    fn under_way(&self) -> impl Iterator<Item = &MigrationView> {
        self.records.iter().filter(|record| record.phase != Phase::Cleaned && !self.is_stuck(record))
    }

    /// The finding, unless a migration that is under way uses the thing.
    fn left_over(&self, thing: Thing) -> Option<Check> {
        let Thing { what, owner, since, remove, harms } = thing;
        let used = match &owner {
            Owner::Migration(id) => self.under_way().any(|record| record.id == *id),
            Owner::IdEnd(end) => self.under_way().any(|record| record.id.ends_with(end)),
            Owner::Container { id, name } => {
                self.under_way().any(|record| record.container_id == *id || record.container == *name)
            }
            Owner::Any => self.under_way().next().is_some(),
            Owner::Nobody => false,
        };
        if used {
            return None;
        }
        let of = match &owner {
            Owner::Migration(id) => Some(self.records.iter().find(|record| record.id == *id)),
            Owner::IdEnd(end) => Some(self.records.iter().find(|record| record.id.ends_with(end))),
            Owner::Container { .. } | Owner::Any | Owner::Nobody => None,
        };
        let whose = match of {
            None => String::new(),
            Some(None) => ", of a migration that the journal does not know".to_owned(),
            Some(Some(record)) => format!(", of {}", words(record)),
        };
        let since = since
            .and_then(|at| Timestamp::try_from(at).ok())
            .map_or_else(String::new, |at| format!(", since {}", at.strftime("%F %T UTC")));
        // What is stuck the daemon removes with everything that belongs to it.
        let daemon = of.flatten().is_some_and(|record| self.is_stuck(record));
        let advice =
            if daemon { "the daemon tries again when it starts: systemctl restart spothop".to_owned() } else { remove };
        let finding = format!("{what}{whose}{since}");
        Some(if harms { Check::failed(SUBJECT, finding, advice) } else { Check::warning(SUBJECT, finding, advice) })
    }
}

/// A migration in a few words.
fn words(record: &MigrationView) -> String {
    let way = match record.side {
        Side::Source => "to",
        Side::Target => "from",
    };
    let end = match record.outcome {
        Some(Outcome::Moved) => "moved",
        Some(Outcome::Aborted) => "aborted",
        None => "unfinished",
    };
    format!("migration {} ({} {way} {}, {end})", record.id, record.container, record.peer)
}

#[cfg(test)]
mod tests;
