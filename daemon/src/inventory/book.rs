//! What all sources together say, and what they said before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::{Found, SOURCES, STATIC};
use crate::config::{Address, Config, is_host_name};
use crate::migration::unpanicked;

/// Hosts that are gone and whose address is still kept. A migration with one of them ends one way or the other long before so many
/// others have gone.
const MOST_DEPARTED: usize = 256;

/// The hosts that containers may move to, as all sources together have them now.
#[derive(Debug)]
pub struct Inventory {
    own_name: String,
    state: Mutex<State>,
    /// Names that the listener takes in.
    admitted: watch::Sender<BTreeSet<String>>,
    /// Where it is kept over a restart, in the directory of the daemon's state.
    file: Option<PathBuf>,
    /// What is written next: the last to write writes the last state.
    writing: Arc<Mutex<Vec<u8>>>,
}

/// A host of the inventory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name; no other entry has it.
    pub name: String,
    /// Where its daemon listens.
    pub address: Address,
    /// Which of [`SOURCES`] it is known from; the first of several.
    pub source: &'static str,
    /// When that source last said so.
    pub told: Timestamp,
}

#[derive(Debug, Default)]
struct State {
    lists: BTreeMap<usize, List>,
    current: Vec<Entry>,
    departed: Vec<(String, Address)>,
    /// Contradictions that were logged, by name and source.
    contradictions: BTreeSet<(String, &'static str)>,
}

/// What one source said last.
#[derive(Debug)]
struct List {
    hosts: Vec<Found>,
    told: Timestamp,
}

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    sources: BTreeMap<String, KeptList>,
    departed: Vec<(String, Address)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptList {
    told: Timestamp,
    hosts: BTreeMap<String, Address>,
}

impl Inventory {
    /// The configuration's peers, and what its other sources said to an earlier daemon that kept it in `file`.
    #[must_use]
    pub fn open(config: &Config, file: Option<PathBuf>) -> Self {
        let listed = config.peers.iter().map(|peer| Found { name: peer.name.clone(), address: peer.address.clone() });
        let mut state = State::default();
        state.lists.insert(0, List { hosts: listed.collect(), told: Timestamp::now() });
        let kept = file.as_deref().map(read).unwrap_or_default();
        for (name, KeptList { told, hosts }) in kept.sources {
            let Some(rank) = SOURCES.iter().position(|source| *source == name && config.inventory.has(source)) else {
                continue;
            };
            let hosts = hosts.into_iter().map(|(name, address)| Found { name, address }).collect();
            state.lists.insert(rank, List { hosts, told });
        }
        if config.inventory.is_dynamic() {
            state.departed = kept.departed;
        }
        state.merge(&config.host.name);
        let admitted = watch::Sender::new(state.admitted());
        Self { own_name: config.host.name.clone(), state: Mutex::new(state), admitted, file, writing: Arc::default() }
    }

    /// The names that may connect, as they change.
    #[must_use]
    pub fn admitted(&self) -> watch::Receiver<BTreeSet<String>> {
        self.admitted.subscribe()
    }

    /// All hosts, those of the configuration first and in its order.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.lock().current.clone()
    }

    /// Whether this is a host that containers may come from and go to.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.lock().current.iter().any(|entry| entry.name == name)
    }

    /// Where that host listens, or did when it was last known.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<Address> {
        let state = self.lock();
        let current = state.current.iter().find(|entry| entry.name == name).map(|entry| &entry.address);
        let departed = || state.departed.iter().find(|(departed, _)| departed == name).map(|(_, address)| address);
        current.or_else(departed).cloned()
    }

    /// How many hosts are known from a source.
    #[must_use]
    pub fn count(&self, source: &str) -> usize {
        self.lock().current.iter().filter(|entry| entry.source == source).count()
    }

    /// What a source has now, all of it. This host itself is passed over.
    pub async fn tell(&self, source: &'static str, hosts: Vec<Found>) {
        if self.note(source, hosts)
            && let Some(file) = self.file.clone()
        {
            let writing = Arc::clone(&self.writing);
            let written = spawn_blocking(move || {
                // Whoever waited for the other finds what that one, or a later one, has left.
                let text = writing.lock().unwrap_or_else(PoisonError::into_inner);
                write(&file, &text)
            });
            if let Err(error) = unpanicked(written.await) {
                warn!(%error, "the inventory is not kept for the next start");
            }
        }
    }

    /// A source has nothing new.
    pub fn confirm(&self, source: &str) {
        let now = Timestamp::now();
        let mut state = self.lock();
        let Some(list) = rank(source).and_then(|rank| state.lists.get_mut(&rank)) else { return };
        list.told = now;
        for entry in state.current.iter_mut().filter(|entry| entry.source == source) {
            entry.told = now;
        }
    }

    /// Takes a list in; whether anything has changed.
    fn note(&self, source: &'static str, hosts: Vec<Found>) -> bool {
        let Some(rank) = rank(source) else { return false };
        let mut state = self.lock();
        let hosts = sound(source, hosts);
        let same = state.lists.get(&rank).is_some_and(|list| list.hosts == hosts);
        state.lists.insert(rank, List { hosts, told: Timestamp::now() });
        let before = state.merge(&self.own_name);
        let names = state.admitted();
        let text = |entry: &Entry| format!("{} at {} ({})", entry.name, entry.address, entry.source);
        let is_in = |all: &[Entry], one: &Entry| all.iter().any(|e| (&e.name, &e.address) == (&one.name, &one.address));
        let come: Vec<String> = state.current.iter().filter(|entry| !is_in(&before, entry)).map(text).collect();
        let gone: Vec<String> = before.iter().filter(|entry| !is_in(&state.current, entry)).map(text).collect();
        // Both under the lock, so that two sources at once cannot leave the older one.
        *self.writing.lock().unwrap_or_else(PoisonError::into_inner) = state.kept();
        self.admitted.send_if_modified(|admitted| {
            let changes = *admitted != names;
            *admitted = names;
            changes
        });
        drop(state);
        if !come.is_empty() || !gone.is_empty() {
            info!(come = come.join(", "), gone = gone.join(", "), "the inventory has changed");
        }
        !same
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The file's text.
    fn kept(&self) -> Vec<u8> {
        let sources = self.lists.iter().filter(|(rank, _)| SOURCES[**rank] != STATIC).map(|(rank, list)| {
            let hosts = list.hosts.iter().map(|host| (host.name.clone(), host.address.clone())).collect();
            (SOURCES[*rank].to_owned(), KeptList { told: list.told, hosts })
        });
        // Maps with text for keys can always be written.
        serde_json::to_vec_pretty(&Kept { sources: sources.collect(), departed: self.departed.clone() })
            .unwrap_or_default()
    }

    /// Makes one list of all; returns the one before.
    fn merge(&mut self, own_name: &str) -> Vec<Entry> {
        let mut merged: Vec<Entry> = Vec::new();
        for (rank, list) in &self.lists {
            let source = SOURCES[*rank];
            for host in list.hosts.iter().filter(|host| host.name != own_name) {
                let Some(first) = merged.iter().find(|entry| entry.name == host.name) else {
                    let (name, address) = (host.name.clone(), host.address.clone());
                    merged.push(Entry { name, address, source, told: list.told });
                    continue;
                };
                if first.address != host.address && self.contradictions.insert((host.name.clone(), source)) {
                    warn!(
                        host = host.name,
                        "{source} has it at {}, but {} at {}, which is taken; let them agree, or give the hosts different names",
                        host.address,
                        first.source,
                        first.address
                    );
                }
            }
        }
        let before = std::mem::replace(&mut self.current, merged);
        let is_current = |name: &str| self.current.iter().any(|entry| entry.name == name);
        self.departed.retain(|(name, _)| !is_current(name));
        let gone = before.iter().filter(|entry| !is_current(&entry.name));
        let gone: Vec<_> = gone.map(|entry| (entry.name.clone(), entry.address.clone())).collect();
        self.departed.extend(gone);
        let too_many = self.departed.len().saturating_sub(MOST_DEPARTED);
        self.departed.drain(..too_many);
        before
    }

    fn admitted(&self) -> BTreeSet<String> {
        let departed = self.departed.iter().map(|(name, _)| name.clone());
        self.current.iter().map(|entry| entry.name.clone()).chain(departed).collect()
    }
}

fn rank(source: &str) -> Option<usize> {
    SOURCES.iter().position(|known| *known == source)
}

/// Without names that no certificate can carry, and each name once.
fn sound(source: &str, mut hosts: Vec<Found>) -> Vec<Found> {
    hosts.retain(|host| {
        let sound = is_host_name(&host.name);
        if !sound {
            warn!(source, host = host.name, "this is not a host name, and is left out of the inventory");
        }
        sound
    });
    hosts.sort_by(|one, other| one.name.cmp(&other.name));
    hosts.dedup_by(|later, first| {
        let same = later.name == first.name;
        if same && later.address != first.address {
            warn!(
                source,
                host = first.name,
                "this name stands for {} and {}; the first is taken",
                first.address,
                later.address
            );
        }
        same
    });
    hosts
}

/// What an earlier daemon kept. A file that cannot be read is none: the sources will tell.
fn read(file: &Path) -> Kept {
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Kept::default(),
        Err(error) => {
            warn!(%error, file = %file.display(), "what is known of the hosts from before cannot be read");
            return Kept::default();
        }
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        warn!(%error, file = %file.display(), "what is known of the hosts from before is no use");
        Kept::default()
    })
}

/// In one step, so that there is always a whole file.
fn write(file: &Path, text: &[u8]) -> io::Result<()> {
    let fresh = file.with_extension("new");
    fs::write(&fresh, text)?;
    fs::rename(&fresh, file)
}

#[cfg(test)]
mod tests;
