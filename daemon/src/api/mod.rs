//! The control API: HTTP + JSON over a unix socket that only root can open.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | [`Status`] |
//! | `GET /v1/containers` | `Vec<`[`ContainerView`]`>` |
//! | `GET /v1/hosts` | `Vec<`[`HostView`]`>` |
//! | `GET /v1/provider` | [`ProviderView`] |
//! | `GET /v1/lifecycle-hook` | [`LifecycleHookView`], or null where none is configured |
//! | `POST /v1/plan` with [`PlanRequest`] | [`spothop_policy::Plan`] |
//! | `POST /v1/migrations` with [`MigrateRequest`] | [`Accepted`] |
//! | `POST /v1/evacuations` with [`EvacuateRequest`] | [`Accepted`] |
//! | `GET /v1/parkings?at=URL` | `Vec<`[`ParkedView`]`>`, newest first |
//! | `POST /v1/parkings` with [`ParkRequest`] | [`Begun`] |
//! | `POST /v1/restores` with [`RestoreRequest`] | [`Begun`] |
//! | `GET /v1/migrations/{id}` | [`MigrationView`], with its [`LogSummary`] |
//! | `GET /v1/migrations/{id}/log` | [`LogView`] |
//! | `GET /v1/events?migration=ID&migration=ID` | one [`Event`] a line (NDJSON); without ids: every event, endless |
//! | `GET /v1/history?limit=N` | `Vec<`[`MigrationView`]`>`, newest first |
//!
//! An answer that is not 2xx carries a [`Problem`]. Event streams that name migrations start with a replay of what those
//! have been through and end when all of them are finished.

mod client;
mod server;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use spothop_criu::log::Triage;
use spothop_policy::{Facts, Times};

pub use self::client::{Client, ClientError, Events};
pub use self::server::serve;
use crate::migration::{Phase, Side};
use crate::notice::Notice;
use crate::notice::lifecycle::Outlook;
use crate::provider::{Instance, Word};

/// What this daemon is and does right now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// This host's name in the inventory.
    pub host: String,
    /// Version of the running daemon.
    pub version: String,
    /// When the daemon started.
    pub since: Timestamp,
    /// What kind of machine it is, as far as anybody has said.
    #[serde(default)]
    pub machine: MachineView,
    /// The notices in force, oldest first.
    pub notices: Vec<Notice>,
    /// Migrations that are not finished, both directions, oldest first.
    pub migrations: Vec<MigrationView>,
}

/// What kind of machine a host is; what nobody has said is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineView {
    /// Its type, in its cloud's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_type: Option<String>,
    /// Its zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Whether the cloud may take it away at any time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spot: Option<bool>,
    /// The machines that are taken back together with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// What it costs, in millionths of a dollar an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_micros: Option<u64>,
    /// How likely its cloud is to have machines of its kind there, from 1 to 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement_score: Option<u8>,
}

impl MachineView {
    /// As a host says it of itself.
    #[must_use]
    pub fn of(facts: &Facts) -> Self {
        Self {
            machine_type: facts.machine_type.clone(),
            zone: facts.zone.clone(),
            spot: facts.spot,
            pool: facts.pool.clone(),
            price_micros: facts.price_micros,
            placement_score: facts.placement_score,
        }
    }
}

/// `c7i.large in eu-central-1a, spot, $0.0312 an hour, placement score 7`; nothing where nobody has said anything.
impl fmt::Display for MachineView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match (&self.machine_type, &self.zone) {
            (Some(kind), Some(zone)) => Some(format!("{kind} in {zone}")),
            (Some(one), None) => Some(one.clone()),
            (None, Some(zone)) => Some(format!("in {zone}")),
            (None, None) => None,
        };
        let spot = self.spot.map(|spot| if spot { "spot" } else { "on demand" }.to_owned());
        // Up to four decimals: a spot machine may cost a cent.
        let price = self.price_micros.map(|micros| format!("${:.4} an hour", micros as f64 / 1e6));
        let score = self.placement_score.map(|score| format!("placement score {score}"));
        let parts: Vec<String> = [place, spot, price, score].into_iter().flatten().collect();
        f.write_str(&parts.join(", "))
    }
}

/// What this host's cloud says of it: what another host would hear if this one fell silent, with its own rights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderView {
    /// Which instance this host is; none where no metadata service says so.
    pub instance: Option<Instance>,
    /// What the cloud says of that instance.
    pub word: Word,
}

/// How things stand with the lifecycle hook of this host's Auto Scaling group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifecycleHookView {
    /// Its name, as configured.
    pub hook: String,
    /// Whether it could be held and completed.
    pub outlook: Outlook,
}

/// One running container, as `spothop ps` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerView {
    /// The engine's full id.
    pub id: String,
    /// The container's name without a leading slash.
    pub name: String,
    /// The image as the user named it.
    pub image: String,
    /// Memory of all its tasks, in bytes.
    pub memory_bytes: u64,
    /// The `io.spothop.priority` label; higher goes first.
    pub priority: i64,
    /// What becomes of its addresses: `keep-ip`, `new-ip`, `host` or `none`.
    pub network: String,
    /// Why it cannot be migrated; empty when it can.
    pub obstacles: Vec<String>,
}

/// One host of the inventory, as `spothop hosts` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostView {
    /// Its name in the inventory.
    pub name: String,
    /// Where its daemon listens.
    pub address: String,
    /// From where it is known: `static` (the configuration), `etcd`, `ec2` or `kubernetes`.
    #[serde(default)]
    pub source: String,
    /// When that source last said so.
    #[serde(default = "Timestamp::default")]
    pub told: Timestamp,
    /// Facts it told, or why it could not be asked.
    pub state: spothop_policy::HostState,
}

/// Body of `POST /v1/plan`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRequest {
    /// Only this container (name, id or unique id prefix); all running ones otherwise.
    #[serde(default)]
    pub container: Option<String>,
    /// Only this host as a target.
    #[serde(default)]
    pub to: Option<String>,
    /// Time until the host is taken away.
    #[serde(default)]
    pub budget: Option<Duration>,
}

/// Body of `POST /v1/migrations`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// Name, id or unique id prefix.
    pub container: String,
    /// The target's name; policy chooses otherwise.
    #[serde(default)]
    pub to: Option<String>,
}

/// Body of `POST /v1/evacuations`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvacuateRequest {
    /// Time until the host is taken away; none means no deadline.
    #[serde(default)]
    pub budget: Option<Duration>,
}

/// What was begun.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Accepted {
    /// The ids of the migrations, in the order in which they go.
    pub migrations: Vec<String>,
    /// The plan that they follow; what stays is in there with its reasons.
    pub plan: spothop_policy::Plan,
}

/// Body of `POST /v1/parkings`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParkRequest {
    /// Name, id or unique id prefix.
    pub container: String,
    /// Where to; the configured place otherwise.
    #[serde(default)]
    pub to: Option<String>,
}

/// Body of `POST /v1/restores`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// A checkpoint's URL or, at the configured place, its id; or the URL of a place with one checkpoint that nobody has.
    pub checkpoint: String,
    /// Another name for the container.
    #[serde(default)]
    pub name: Option<String>,
    /// A second container, whoever has claimed the checkpoint.
    #[serde(default)]
    pub copy: bool,
    /// Its source has not let go of it, and is gone for good.
    #[serde(default)]
    pub source_gone: bool,
}

/// A parking or a restore that was begun; what becomes of it is told like that of any migration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Begun {
    /// The migration's id.
    pub migration: String,
    /// The checkpoint's URL.
    pub checkpoint: String,
}

/// A checkpoint in a store, as `spothop parked` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedView {
    /// What `spothop restore` takes.
    pub url: String,
    /// Its id, which is that of the migration that parked it.
    pub id: String,
    /// The container's name.
    pub container: String,
    /// The image as the user named it.
    pub image: String,
    /// The host that parked it.
    pub host: String,
    /// When it was complete.
    pub created: Timestamp,
    /// Memory of its tasks, in bytes.
    pub memory_bytes: u64,
    /// What it takes in the store, in bytes.
    pub stored_bytes: u64,
    /// Whether its source has let go of it; until then it is nobody's to restore.
    pub committed: bool,
    /// Whether its container runs at whoever has claimed it: what is here is no longer the only copy.
    #[serde(default)]
    pub restored: bool,
    /// The host that restores it or has restored it.
    pub claimed_by: Option<String>,
    /// Since when.
    pub claimed_at: Option<Timestamp>,
}

/// A migration, running or past.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MigrationView {
    /// Its id (UUIDv7).
    pub id: String,
    /// Which end of it this host is.
    pub side: Side,
    /// The container's id on this host (empty at a target that has not made it yet).
    pub container_id: String,
    /// The container's name.
    pub container: String,
    /// The other host.
    pub peer: String,
    /// Why: a notice's id, or `manual`.
    pub cause: String,
    /// When the source host is taken away, if it is.
    pub deadline: Option<Timestamp>,
    /// How far it has come.
    pub phase: Phase,
    /// How it ended; none while it runs.
    pub outcome: Option<Outcome>,
    /// What went wrong, if something did.
    pub reason: Option<String>,
    /// Every phase entered, in order.
    pub phases: Vec<PhaseEntry>,
    /// Bytes of memory, files and image handed to the network so far (before compression).
    pub bytes_sent: u64,
    /// The same after compression.
    pub bytes_on_wire: u64,
    /// How long it was predicted to take when it was planned; only at the source.
    pub predicted: Option<Times>,
    /// How long it took, as this side saw it; none before the container runs.
    pub measured: Option<Times>,
    /// CRIU's log of it on this host. Not in lists, and none when CRIU was not called or newer logs have taken its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogSummary>,
}

/// What is known of CRIU's log of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSummary {
    /// Where it is; compressed by zstd once the migration is over.
    pub path: PathBuf,
    /// CRIU's error, if it made one.
    #[serde(flatten)]
    pub triage: Triage,
}

/// CRIU's log of a migration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogView {
    /// The migration's id.
    pub migration: String,
    /// Which end of it this host is: the source's is a dump, the target's a restore.
    pub side: Side,
    /// Where it is, and what it means.
    #[serde(flatten)]
    pub summary: LogSummary,
    /// The log itself. The middle of a long one is left out.
    pub text: String,
}

impl MigrationView {
    /// From the start and from the freeze to running tasks, by the phases; none before they run.
    #[must_use]
    pub fn times(&self) -> Option<Times> {
        let at = |phase| self.phases.iter().find(|entry| entry.phase == phase).map(|entry| entry.at);
        let running = at(Phase::Running)?;
        // None if the clock was set back meanwhile.
        let since = |phase| Duration::try_from(running.duration_since(at(phase)?)).ok();
        Some(Times { total: since(Phase::Planned)?, frozen: since(Phase::Frozen)? })
    }
}

/// The moment a phase was entered.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct PhaseEntry {
    /// The phase.
    pub phase: Phase,
    /// When.
    pub at: Timestamp,
}

/// How a migration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The container runs on the target.
    Moved,
    /// The container goes on on the source as if nothing had happened.
    Aborted,
}

/// A migration that only a person can end, and what is known about it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Open {
    /// The record.
    pub migration: MigrationView,
    /// Where the container is, as far as this host knows.
    pub known: String,
    /// Why the other host cannot be asked; none if it answers, and then there is nothing to resolve.
    pub unreachable: Option<String>,
    /// When a cloud takes (or took) the source away, if it does.
    pub source_taken_away: Option<Timestamp>,
    /// What happens if the container is said to run on this host.
    pub here: String,
    /// What happens if it is said to run on the other one.
    pub there: String,
}

/// Body of `POST /v1/migrations/{id}/resolution`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// Where the container runs from now on.
    pub runs: Runs,
}

/// One of the two hosts of a migration, as seen from this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runs {
    /// This host.
    Here,
    /// The other one.
    There,
}

impl std::fmt::Display for Runs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Here => "here",
            Self::There => "on the other host",
        })
    }
}

/// Something happened to a migration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    /// The migration's id.
    pub migration: String,
    /// Which end of it this host is.
    pub side: Side,
    /// The container's name.
    pub container: String,
    /// When.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub what: EventKind,
}

/// What happened.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventKind {
    /// A phase was entered.
    Phase {
        /// The phase.
        phase: Phase,
    },
    /// Bytes went over the network.
    Progress {
        /// What is being sent: `image`, `files`, `last files` or `memory`.
        what: String,
        /// Bytes sent so far, before compression.
        sent: u64,
        /// Bytes to send, where known.
        total: Option<u64>,
    },
    /// It is over.
    Finished {
        /// How.
        outcome: Outcome,
        /// What went wrong, if something did.
        reason: Option<String>,
    },
}

/// The body of an answer that is not 2xx.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Problem {
    /// For programs.
    pub code: ProblemCode,
    /// What happened, to what.
    pub message: String,
    /// What to do next, where there is something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// The kinds of [`Problem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemCode {
    /// The request is malformed (400).
    BadRequest,
    /// No such container, host or migration (404).
    NotFound,
    /// Who asks is not who they say (401).
    Unauthorized,
    /// It exists, but cannot be moved; the message says why (409). Or it is another host's business (421).
    Refused,
    /// Not now; the same may be asked again (429, 503).
    Busy,
    /// The daemon or something it needs failed (500).
    Internal,
}
