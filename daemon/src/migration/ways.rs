//! The ways in which memory can leave this host and come to it, found out once.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use spothop_criu::features::Features;
use spothop_criu::memory::tracking::{Method, supported};
use spothop_criu::memory::{ConstantParent, Why};
use spothop_policy::Leaves;
use tracing::{info, warn};

use super::memory::Memory;
use crate::config::Memory as Wanted;
use crate::config::memory::{Mode, Restore, Tracking};

/// What is done, of what the configuration asks for and the host can do.
#[derive(Debug)]
pub struct Ways {
    criu: PathBuf,
    scratch: PathBuf,
    /// By which CRIU is kept from dumping pages that we send; none where it dumps them.
    parent: Mutex<Option<ConstantParent>>,
    tracking: Option<Method>,
    lazy: bool,
    /// The best of the ladder that is allowed and can be done.
    best: Leaves,
}

impl Ways {
    /// Needs a directory to write in. Blocks for some 100 ms.
    #[must_use]
    pub fn probe(wanted: &Wanted, features: &Features, scratch: &Path) -> Self {
        let criu = &features.criu_path;
        let parent = (wanted.mode < Mode::Dump).then(|| {
            ConstantParent::probe(criu, scratch)
                .inspect_err(
                    |reason| warn!(%reason, "containers that leave this host are dumped by CRIU, all of their memory"),
                )
                .ok()
        });
        let parent = parent.flatten();
        let tracking =
            parent.as_ref().filter(|_| wanted.mode < Mode::StopAndCopy).and_then(|_| tracking(wanted.tracking));
        let lazy = wanted.restore == Restore::Lazy && features.lazy_pages;
        info!(paged = parent.is_some(), ?tracking, lazy, "ways of memory");
        let best = match (&parent, tracking, wanted.mode) {
            (None, ..) => Leaves::Dump,
            (Some(_), None, _) => Leaves::StopAndCopy,
            (Some(_), Some(_), Mode::PostCopy) => Leaves::PostCopy,
            (Some(_), Some(_), _) => Leaves::PreCopy,
        };
        Self { criu: criu.clone(), scratch: scratch.to_owned(), parent: Mutex::new(parent), tracking, lazy, best }
    }

    /// For a dump without pages; none where CRIU dumps them. Blocks for some 100 ms if CRIU is not the one that it was.
    ///
    /// # Errors
    /// CRIU does not take it any more.
    pub(super) fn parent(&self) -> Result<Option<ConstantParent>, Why> {
        let mut parent = self.lock();
        if parent.as_ref().is_some_and(|parent| !parent.is_current()) {
            *parent = Some(ConstantParent::probe(&self.criu, &self.scratch)?);
        }
        Ok(parent.clone())
    }

    /// The memory of a container that leaves page by page; none where CRIU dumps it.
    pub(super) fn outgoing(&self, init_pid: i32, mode: Leaves) -> Option<Memory> {
        let method = self.tracking.filter(|_| mode < Leaves::StopAndCopy);
        self.lock().as_ref().filter(|_| mode < Leaves::Dump).map(|_| Memory::new(init_pid, method))
    }

    /// The best way in which the memory of a container may leave.
    pub(super) fn best(&self) -> Leaves {
        self.best
    }

    /// Whether what comes page by page runs before all of it is in place.
    pub(super) fn lazy(&self) -> bool {
        self.lazy
    }

    fn lock(&self) -> MutexGuard<'_, Option<ConstantParent>> {
        self.parent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tracking(wanted: Tracking) -> Option<Method> {
    let there = supported();
    let found = there.iter().copied().find(|method| wanted == Tracking::Auto || wanted == Tracking::Only(*method));
    if found.is_none() {
        warn!(
            ?wanted,
            ?there,
            "memory is not followed here; containers that leave this host are frozen for as long as theirs takes"
        );
    }
    found
}
