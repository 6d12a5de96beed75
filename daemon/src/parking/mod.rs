//! Parking: a container leaves this host for an object store, and is restored anywhere later; no other host need be alive in between.
//!
//! It is a migration whose other end is a store. The saga does not know the difference: where it says something to its target an
//! [`Upload`] answers, which keeps what it gets, and where a target hears something a [`Download`] speaks, which says it again. So the
//! commit protocol, the journal and all that brings a container down or up are those of [`crate::migration`], and a checkpoint is what was
//! said between two hosts, written down.
//!
//! | file | noun |
//! |---|---|
//! | `upload`, `download` | the store as a target, and a checkpoint as a source |
//! | `manifest`, `claim` | what makes a checkpoint, and whose it is |
//! | `pipe`, `seal`, `records`, `key` | bytes on their way: compressed, sealed, in parts |
//! | `store`, `http` | buckets and directories, and how they are reached |
//! | `retention` | what is swept |
//!
//! **Invariants.**
//! 1. The manifest is written when every object is; the mark `committed` when COMMIT is in the source's journal, and the source's tasks are
//!    killed after that. Without the mark nobody restores it (but who says that the source is gone for good).
//! 2. Only one restores a checkpoint: whoever has written `claimed`, which is kept until ABORT is in his own journal.
//! 3. Nothing of a container is readable in the store but its name, its image's name, its sizes and the host that it comes from.
//! 4. Nothing removes a container's only copy: a whole checkpoint is swept after `restored` says that its container runs elsewhere.
//! 5. In memory there are some parts of one object at a time, never the container.
//!
//! **Deliberately absent.** Established connections: their peers will be gone, so they are reset when the container is parked, and the restored
//! one has its listeners only. Parts of a checkpoint from which a later one continues.

mod claim;
mod download;
mod error;
mod http;
mod key;
mod manifest;
mod pipe;
mod records;
mod restore;
mod retention;
mod seal;
mod store;
#[cfg(test)]
mod tests;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;
use tracing::{error, info, warn};
use uuid::Uuid;

pub(crate) use self::download::{Download, Received};
pub use self::error::Error;
pub use self::restore::{Order, restore};
pub use self::retention::keep_swept;
pub use self::store::{check_url, is_url};
pub(crate) use self::upload::Upload;

use self::claim::{CLAIMED, COMMITTED, Claim, RESTORED};
use self::key::MasterKey;
use self::manifest::Manifest;
use self::store::Store;
use crate::api::{Outcome, ParkedView};
use crate::inventory::{self, Candidate};
use crate::migration::{self, Context, Job, MANUAL, Moving, chain};
use crate::orchestrator::{Identity, Mode};

/// The cause of a restore that makes a second container of a checkpoint.
const COPY: &str = "copy";

/// For an earlier migration of the same container to be tidied up, which takes some tens of milliseconds.
const TIDY: Duration = Duration::from_secs(5);

/// For the store to be told how a container's parking or restore has ended; what it does not hear then is made good when it is swept.
const REMOVE: Duration = Duration::from_secs(30);

/// Parks a container at the configured place, and returns how that ended: [`Outcome::Moved`] when it is parked and no longer runs here,
/// [`Outcome::Aborted`] when it goes on here. `cause` is a notice's id; without a `deadline` it may take as long as any migration by hand.
///
/// # Errors
/// Nothing was begun: no such container, one that cannot be dumped or moves already, no place, no key; or the journal's.
pub async fn park(
    context: &Arc<Context>,
    container: &str,
    deadline: Option<Timestamp>,
    cause: &str,
) -> Result<Outcome, migration::Error> {
    let (job, _moving) = prepare(context, container, None, deadline, cause).await?;
    migration::run(Arc::clone(context), job).await
}

/// Begins to park a container because somebody asked for it, and returns the migration's id, which is the checkpoint's too, and its URL.
///
/// # Errors
/// As [`park`].
pub async fn begin(
    context: &Arc<Context>,
    container: &str,
    to: Option<&str>,
) -> Result<(String, String), migration::Error> {
    let (job, moving) = prepare(context, container, to, None, MANUAL).await?;
    let begun = (job.id.clone(), format!("{}/{}", job.target, job.id));
    let context = Arc::clone(context);
    tokio::spawn(async move {
        let (_moving, name) = (moving, job.container.name.clone());
        if let Err(failure) = migration::run(context, job).await {
            error!(container = name, error = chain(&failure), "the parking could not be recorded");
        }
    });
    Ok(begun)
}

/// Looks at everything that can be wrong before anything is begun.
async fn prepare(
    context: &Arc<Context>,
    container: &str,
    to: Option<&str>,
    deadline: Option<Timestamp>,
    cause: &str,
) -> Result<(Job, Moving), migration::Error> {
    let parking = &context.config.parking;
    let url = to.or(parking.url.as_deref()).ok_or(Error::NoUrl)?;
    Store::open(parking, url)?;
    MasterKey::read(&parking.key_file)?;
    let found = context.engine.inspect(container).await?;
    let moving = timeout(TIDY, Moving::wait(context, &found.id)).await.map_err(|_| Error::Unparkable {
        container: found.name.clone(),
        reasons: "it is already moving; `spothop status` shows how far it is".to_owned(),
    })?;
    // Only now nothing changes it any more but its own doing.
    let candidate = inventory::container(context, &found.id).await?;
    if !candidate.obstacles.is_empty() {
        let (container, reasons) = (found.name, candidate.obstacles.join("; "));
        return Err(Error::Unparkable { container, reasons }.into());
    }
    let (memory_bytes, disk_bytes) = (candidate.memory_bytes, candidate.disk_bytes);
    let Candidate { mut container, init_pid, .. } = candidate;
    leave_connections(&mut container.network);
    leave_connections(&mut container.recipe.network);
    let estimates = context.estimates().await?;
    let shipped = if container.image.digests.is_empty() { container.image.size } else { 0 };
    let predicted = estimates.predict(url, &container.name, memory_bytes, disk_bytes.saturating_add(shipped));
    let job = Job {
        id: Uuid::now_v7().to_string(),
        container,
        init_pid,
        memory_bytes,
        disk_bytes,
        target: url.to_owned(),
        predicted,
        mode: estimates.all_at_once(),
        bytes_per_second: estimates.rates(url).bytes_per_second,
        cause: cause.to_owned(),
        deadline,
    };
    Ok((job, moving))
}

/// Peers of its connections will not wait for it. Addresses and hardware addresses go along.
fn leave_connections(network: &mut Identity) {
    if network.mode == Mode::KeepIp {
        network.mode = Mode::NewIp;
    }
}

/// A container is not parked after all, and goes on here: what was uploaded is removed, as far as the store can be reached.
pub(crate) async fn discard(context: &Context, url: &str, migration: &str) {
    let removed = async {
        let place = Store::open(&context.config.parking, url)?.of(migration);
        claim::take_back(&place, &context.config.host.name, migration).await
    };
    match timeout(REMOVE, removed).await {
        Ok(Ok(true)) => info!(migration, url, "what was uploaded is removed"),
        Ok(Ok(false)) => error!(migration, url, "the container goes on here, and was restored elsewhere by hand"),
        Ok(Err(failure)) => warn!(migration, url, error = chain(&failure), "what was uploaded is left to be swept"),
        Err(_) => warn!(migration, url, "what was uploaded is left to be swept: the store does not answer"),
    }
}

/// A restore has failed and is undone: somebody else may have the checkpoint.
pub(crate) async fn release(context: &Context, checkpoint: &str, migration: &str) -> Result<(), Error> {
    Claim::release(&Store::open(&context.config.parking, checkpoint)?, migration).await
}

/// A restore has ended and its container runs: the checkpoint is no longer the only copy, and `retention` counts from here. If the store cannot
/// be told, [`keep_swept`] tells it later; until then the checkpoint is kept.
pub(crate) async fn note_restored(context: Arc<Context>, checkpoint: String, migration: String) {
    let noted = async {
        let place = Store::open(&context.config.parking, &checkpoint)?;
        claim::restored(&place, &context.config.host.name, &migration).await
    };
    let failure = match timeout(REMOVE, noted).await {
        Ok(Ok(_)) => return,
        Ok(Err(failure)) => chain(&failure),
        Err(_) => "the store does not answer".to_owned(),
    };
    warn!(
        migration,
        checkpoint,
        error = failure,
        "the store does not know yet that the container runs; it keeps the checkpoint"
    );
}

/// The checkpoints at a place, the configured one unless told otherwise; the newest first.
///
/// # Errors
/// No place; the store's.
pub async fn parked(context: &Context, url: Option<&str>) -> Result<Vec<ParkedView>, Error> {
    let url = url.or(context.config.parking.url.as_deref()).ok_or(Error::NoUrl)?;
    let mut views = list(&Store::open(&context.config.parking, url)?).await?;
    views.sort_by_key(|view| std::cmp::Reverse(view.created));
    Ok(views)
}

async fn list(store: &Store) -> Result<Vec<ParkedView>, Error> {
    let there = store.list().await?;
    let has = |id: &str, name: &str| there.iter().any(|object| object.name == format!("{id}/{name}"));
    let mut views = Vec::new();
    for object in &there {
        let Some(id) = object.name.strip_suffix(manifest::NAME).and_then(|name| name.strip_suffix('/')) else {
            continue;
        };
        if !spothop_criu::handoff::is_migration_id(id) {
            continue;
        }
        let place = store.of(id);
        let manifest = match Manifest::read(&place).await {
            Ok(sealed) => sealed.manifest,
            // Swept a moment ago.
            Err(Error::NoCheckpoint { .. }) => continue,
            Err(failure) => {
                warn!(url = place.url(), error = chain(&failure), "this checkpoint is not listed");
                continue;
            }
        };
        let claim = if has(id, CLAIMED) { Claim::read(&place).await? } else { None };
        views.push(ParkedView {
            url: place.url().to_owned(),
            id: id.to_owned(),
            container: manifest.container,
            image: manifest.image,
            host: manifest.host,
            created: manifest.created,
            memory_bytes: manifest.memory_bytes,
            stored_bytes: manifest.objects.iter().map(|object| object.size).sum(),
            committed: has(id, COMMITTED),
            restored: has(id, RESTORED),
            claimed_by: claim.as_ref().map(|claim| claim.host.clone()),
            claimed_at: claim.map(|claim| claim.at),
        });
    }
    Ok(views)
}
