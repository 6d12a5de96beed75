//! Restoring a checkpoint on this host: everything that can be known to be wrong is found before anything is changed.

use std::sync::Arc;

use spothop_criu::handoff::is_migration_id;
use spothop_policy::{Host, HostState, Network, NetworkIdentity, Request};
use tracing::{error, warn};
use uuid::Uuid;

use super::claim::{COMMITTED, Claim};
use super::download::Download;
use super::key::MasterKey;
use super::manifest::{Details, Kind, Manifest};
use super::store::Store;
use super::{COPY, Error, list};
use crate::migration::message::{Offer, Probe};
use crate::migration::{self, Context, Conversation, MANUAL, chain};
use crate::orchestrator::Mode;

/// What is to be restored, and how.
#[derive(Debug, Clone, Default)]
pub struct Order {
    /// A checkpoint's URL or, at the configured place, its id; or the URL of a place with one checkpoint that nobody has.
    pub checkpoint: String,
    /// Another name for the container.
    pub name: Option<String>,
    /// A second container, whoever has claimed the checkpoint.
    pub copy: bool,
    /// Its source has not said that it let go of it, and never will.
    pub source_gone: bool,
}

/// Begins to restore a checkpoint. Returns the migration's id once this host has accepted the container, and the checkpoint's URL.
///
/// # Errors
/// Why it cannot be restored here; nothing was changed then, neither here nor in the store.
pub async fn restore(context: &Arc<Context>, order: &Order) -> Result<(String, String), migration::Error> {
    if let Some(notice) = context.notice_against(false) {
        return Err(migration::Error::UnderNotice { notice: notice.id });
    }
    let place = find(context, &order.checkpoint).await?;
    let parking = &context.config.parking;
    let master = MasterKey::read(&parking.key_file)?;
    let sealed = Manifest::read(&place).await?;
    let (details, key) = sealed.open(&place, &master)?;
    let manifest = &sealed.manifest;
    check(&place, manifest, order).await?;
    suit(context, &place, manifest, &details).await?;
    let id = Uuid::now_v7().to_string();
    let claim = (!order.copy).then(|| Claim::new(&context.config.host.name, &id));
    let limit = context.config.limits.manual_timeout;
    let (download, accepted) = Download::new(place.clone(), key, manifest, claim, parking.concurrency, limit)?;
    let mut offer = details.offer;
    offer.migration.clone_from(&id);
    offer.cause = if order.copy { COPY } else { MANUAL }.to_owned();
    (offer.deadline, offer.instance) = (None, None);
    offer.recipe.name = order.name.clone().unwrap_or(offer.recipe.name);
    let (taking, url) = (Arc::clone(context), place.url().to_owned());
    tokio::spawn(async move {
        if let Err(failure) = migration::take(taking, Conversation::with_checkpoint(download), offer).await {
            error!(url, error = chain(&failure), "the restore ended early");
        }
    });
    match accepted.await {
        Ok(Ok(())) => Ok((id, place.url().to_owned())),
        Ok(Err(reasons)) => Err(Error::Unsuitable { url: place.url().to_owned(), reasons }.into()),
        Err(_) => Err(Error::Stopped { url: place.url().to_owned() }.into()),
    }
}

async fn find(context: &Context, checkpoint: &str) -> Result<Store, Error> {
    let parking = &context.config.parking;
    if is_migration_id(checkpoint) {
        return Ok(Store::open(parking, parking.url.as_deref().ok_or(Error::NoUrl)?)?.of(checkpoint));
    }
    let store = Store::open(parking, checkpoint)?;
    if checkpoint.rsplit_once('/').is_some_and(|(_, last)| is_migration_id(last)) {
        return Ok(store);
    }
    let waiting = list(&store).await?.into_iter().filter(|view| view.committed && view.claimed_by.is_none());
    match &waiting.collect::<Vec<_>>()[..] {
        [only] => Ok(store.of(&only.id)),
        several => Err(Error::WhichOne { url: checkpoint.to_owned(), count: several.len() }),
    }
}

/// It is whole, and may be restored.
async fn check(place: &Store, manifest: &Manifest, order: &Order) -> Result<(), Error> {
    let there = place.list().await?;
    for object in &manifest.objects {
        let found = there.iter().find(|found| found.name == object.name).map(|found| found.size);
        if found != Some(object.size) {
            let what = match found {
                None => "it is missing".to_owned(),
                Some(size) => format!("it has {size} bytes, not {}", object.size),
            };
            return Err(Error::Tampered { url: place.url_of(&object.name), what });
        }
    }
    let committed = there.iter().any(|object| object.name == COMMITTED);
    if !committed && !order.source_gone {
        return Err(Error::NotCommitted { url: place.url().to_owned(), host: manifest.host.clone() });
    }
    if !committed {
        warn!(
            url = place.url(),
            host = manifest.host,
            "restored although its source has not let go of it, as it was said to be gone"
        );
    }
    match Claim::read(place).await? {
        Some(claim) if !order.copy => Err(claim.refusal(place)),
        _ => Ok(()),
    }
}

/// This host will do, by the planner's own rules: CPU, kernel, CRIU, architecture, memory, disk, networks.
async fn suit(
    context: &Context,
    place: &Store,
    manifest: &Manifest,
    details: &Details,
) -> Result<(), migration::Error> {
    let Offer { recipe, memory_bytes, .. } = &details.offer;
    let probe = Probe { cpuinfo: details.cpuinfo.clone(), images: vec![recipe.image.clone()], ..Probe::default() };
    let facts = context.capacity.facts(context, &probe, None).await?;
    let identity = match recipe.network.mode {
        Mode::KeepIp | Mode::NewIp => NetworkIdentity::NewIp,
        Mode::Host => NetworkIdentity::Host,
        Mode::None => NetworkIdentity::None,
    };
    let files = manifest.objects.iter().filter(|object| matches!(object.kind, Kind::Files | Kind::LastFiles));
    let container = spothop_policy::Container {
        id: manifest.id.clone(),
        name: recipe.name.clone(),
        memory_bytes: *memory_bytes,
        staging_bytes: *memory_bytes,
        disk_bytes: files.map(|object| object.raw_bytes).sum(),
        architecture: recipe.image.architecture.clone(),
        image: recipe.image.id.clone(),
        image_bytes: recipe.image.size,
        identity,
        networks: recipe
            .network
            .attachments
            .iter()
            .map(|network| Network {
                name: network.network.clone(),
                driver: network.driver.clone(),
                subnets: Vec::new(),
            })
            .collect(),
        ..spothop_policy::Container::default()
    };
    // It may be the very host that has parked it.
    let source = spothop_policy::Source { name: place.url().to_owned(), ..details.source.clone() };
    let host = Host { name: context.config.host.name.clone(), state: HostState::Reachable(facts) };
    let request =
        Request { source, containers: vec![container], hosts: vec![host], concurrency: 1, ..Request::default() };
    match spothop_policy::plan(&request).stays.first() {
        Some(stay) => {
            let (url, reasons) = (place.url().to_owned(), stay.reasons().join("; "));
            Err(Error::Unsuitable { url, reasons }.into())
        }
        None => Ok(()),
    }
}
