//! What every migration on this host shares.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use jiff::Timestamp;
use spothop_policy::{Estimates, Leaves};
use spothop_transfer::Credentials;
use tokio::sync::{Notify, watch};

use super::notices::Leave;
use super::track::{Events, Track, unpanicked};
use super::{Conversation, Error, Side, Ways, Workspace};
use crate::api::LifecycleHookView;
use crate::capacity::Capacity;
use crate::config::{Config, Likely};
use crate::inventory::Inventory;
use crate::journal::{Journal, NewMigration};
use crate::notice::{Certainty, Notice};
use crate::notification::Notifier;
use crate::orchestrator::Orchestrator;
use crate::parking;
use crate::provider::{Instance, Providers};

/// The daemon's state, shared by all of its tasks.
pub struct Context {
    /// The configuration.
    pub config: Config,
    /// The journal.
    pub journal: Arc<Journal>,
    /// Where the journal is, for CRIU's action script.
    pub journal_path: PathBuf,
    /// The container engine.
    pub engine: Arc<dyn Orchestrator>,
    /// This host's certificate and authorities, as their files have them.
    pub credentials: Credentials,
    /// Where migrations announce themselves.
    pub events: Events,
    /// Whom else to tell what becomes of containers.
    pub notifier: Notifier,
    /// What this host can do and what room it has.
    pub capacity: Capacity,
    /// Launches hosts when none of the inventory has room, if the configuration allows it.
    #[cfg(feature = "aws")]
    pub launcher: Option<Arc<crate::capacity::launch::Launcher>>,
    /// The lifecycle hook of this host's Auto Scaling group, if the configuration names it.
    #[cfg(feature = "aws")]
    pub lifecycle_hook: Option<Arc<crate::notice::lifecycle::LifecycleHook<spothop_aws::AutoScaling>>>,
    /// The other hosts.
    pub inventory: Arc<Inventory>,
    /// The ways in which memory can leave and come.
    pub ways: Ways,
    /// `/run/spothop`.
    pub runtime: PathBuf,
    /// `/var/lib/spothop`.
    pub state: PathBuf,
    /// This very program, which is also CRIU's action script.
    pub program: PathBuf,
    /// When the daemon started.
    pub since: Timestamp,
    /// The notices in force, by id.
    pub notices: Mutex<BTreeMap<String, Notice>>,
    /// Set while this host is certainly to be left; told again whenever a notice comes or goes.
    pub departure: watch::Sender<Option<Leave>>,
    /// Ids of the containers that are on their way.
    pub moving: Mutex<HashSet<String>>,
    /// Rings when one of them is not any more.
    pub released: Notify,
    /// Which instance of a cloud this host is; empty until its metadata service has said so, which on other hosts is never.
    pub instance: Arc<OnceLock<Instance>>,
    /// The clouds that can be asked whether another host is gone.
    pub providers: Providers,
}

impl Context {
    /// How things stand with the lifecycle hook of this host's Auto Scaling group, if one is configured.
    pub async fn examine_lifecycle_hook(&self) -> Option<LifecycleHookView> {
        #[cfg(feature = "aws")]
        if let (Some(name), Some(hook)) = (&self.config.notice.aws.lifecycle_hook, &self.lifecycle_hook) {
            return Some(LifecycleHookView { hook: name.clone(), outlook: hook.examine().await });
        }
        None
    }

    /// Opens a conversation with a host of the inventory, or one that was in it, or with the store that has this URL.
    ///
    /// # Errors
    /// It never was in the inventory, or cannot be reached.
    pub async fn connect(&self, peer: &str, data_connections: usize) -> Result<Conversation, Error> {
        if parking::is_url(peer) {
            return Ok(Conversation::with_store(parking::Upload::open(self, peer)?));
        }
        let address = self.inventory.address(peer).ok_or_else(|| Error::UnknownPeer { peer: peer.to_owned() })?;
        let session =
            spothop_transfer::connect(&address.to_string(), peer, &self.credentials.current(), data_connections)
                .await?;
        Ok(Conversation::new(session))
    }

    /// Enters a migration into the journal and returns the handle on it.
    ///
    /// # Errors
    /// The journal's.
    pub async fn begin(&self, new: NewMigration) -> Result<Track, Error> {
        let journal = Arc::clone(&self.journal);
        let track = self.track(&new.id, new.side, &new.container);
        unpanicked(tokio::task::spawn_blocking(move || journal.begin(&new, Timestamp::now())).await)?;
        track.announce_planned();
        Ok(track)
    }

    /// What earlier migrations say of the next.
    ///
    /// # Errors
    /// The journal's.
    pub async fn estimates(&self) -> Result<Estimates, Error> {
        let journal = Arc::clone(&self.journal);
        let read = tokio::task::spawn_blocking(move || journal.samples(Estimates::SAMPLES));
        Ok(Estimates::learn(&unpanicked(read.await)?, self.ways.best()))
    }

    /// In which way the memory of a container of this host went when moving it was aborted while part of it was to follow.
    ///
    /// # Errors
    /// The journal's.
    pub async fn failed_by(&self) -> Result<HashMap<String, Leaves>, Error> {
        let journal = Arc::clone(&self.journal);
        Ok(unpanicked(tokio::task::spawn_blocking(move || journal.aborted_while_following()).await)?)
    }

    /// The handle on a migration that the journal knows.
    #[must_use]
    pub fn track(&self, id: &str, side: Side, container: &str) -> Track {
        Track::new(id, side, container, Arc::clone(&self.journal), self.events.clone())
    }

    /// The directory of a migration on this host.
    #[must_use]
    pub fn workspace(&self, side: Side, migration: &str) -> Workspace {
        Workspace::of(&self.runtime, side, migration)
    }

    /// Whether this notice was given and not withdrawn.
    #[must_use]
    pub fn is_in_force(&self, notice: &str) -> bool {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).contains_key(notice)
    }

    /// The notice for which this host takes no containers, if one is in force: that which takes it away soonest. A source that is
    /// itself taken away for certain (`urgent`) has nowhere better to go than to a host that is only likely to be.
    #[must_use]
    pub fn notice_against(&self, urgent: bool) -> Option<Notice> {
        let heeds_likely = !urgent && self.config.notice.likely != Likely::Ignore;
        let notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = |notice: &&Notice| heeds_likely || notice.certainty == Certainty::Certain;
        notices.values().filter(counts).min_by_key(|notice| notice.deadline).cloned()
    }

    /// Whether this host is taken away for certain.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.departure.borrow().is_some()
    }
}
