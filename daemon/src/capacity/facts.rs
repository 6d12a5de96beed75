//! What this host tells of itself.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use procfs::Current as _;
use spothop_criu::cpuinfo::{self, CpuVerdict};
use spothop_policy::{Facts, labels};
use tokio::task::spawn_blocking;
use tracing::warn;

use super::{Capacity, protocol, version};
use crate::hex;
use crate::migration::message::Probe;
use crate::migration::{Context, Error, MANUAL, Side, unpanicked};

/// How far back notices count.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// More migrations than these a day are not looked at for the notices that caused them.
const MOST_MIGRATIONS: u32 = 1_000;

impl Capacity {
    /// Answers a peer's probe. `under_notice`: the notice for which this host takes no container from that peer.
    ///
    /// # Errors
    /// The engine's, the journal's.
    pub async fn facts(&self, context: &Context, probe: &Probe, under_notice: Option<String>) -> Result<Facts, Error> {
        let engine = &context.engine;
        let about = engine.describe().await?;
        let mut images = Vec::new();
        for image in &probe.images {
            if engine.has_image(image).await? {
                images.push(image.id.clone());
            }
        }
        let mut declines: Vec<String> = self.features.missing().iter().map(ToString::to_string).collect();
        if !about.has_runtime() {
            declines.push(crate::orchestrator::Error::NoRuntime.to_string());
        }
        let networks = engine.networks().await?;
        let containers = engine.list().await?;
        let groups: BTreeSet<String> = containers
            .iter()
            .filter_map(|container| container.labels.get(labels::GROUP))
            .flat_map(|groups| groups.split(',').map(|group| group.trim().to_owned()))
            .filter(|group| !group.is_empty())
            .collect();
        let (room, market) = (self.room.figures(), self.market());
        Ok(Facts {
            networks: networks.iter().map(crate::inventory::for_policy).collect(),
            free_disk_bytes: room.free_disk,
            architecture: about.architecture,
            kernel: version(self.features.kernel),
            criu: self.features.criu.map(version),
            protocol: protocol(),
            free_memory_bytes: room.free_memory,
            reserved_memory_bytes: room.reserved_memory,
            images,
            cpu: self.check_cpu(probe.cpuinfo.as_deref()).await,
            under_notice,
            declines: (!declines.is_empty()).then(|| declines.join("; ")),
            zone: self.machine.zone.get().cloned(),
            machine_type: self.machine.machine_type.get().cloned(),
            pool: self.machine.pool(),
            spot: self.machine.spot.get().copied(),
            price_micros: market.price_micros,
            placement_score: market.placement_score,
            labels: self.labels.clone(),
            cpus: std::thread::available_parallelism().map_or(0, |all| u32::try_from(all.get()).unwrap_or(u32::MAX)),
            load_milli: load_milli(),
            notices_last_day: notices_last_day(context).await?,
            runs: containers.into_iter().map(|container| container.name).collect(),
            groups: groups.into_iter().collect(),
            ..Facts::default()
        })
    }

    /// Whether processes from the CPU that `cpuinfo` describes can go on here.
    async fn check_cpu(&self, cpuinfo: Option<&str>) -> spothop_policy::CpuVerdict {
        let Some(image) = cpuinfo.and_then(hex::decode) else { return spothop_policy::CpuVerdict::Unknown };
        let (criu, scratch) = (self.criu.clone(), self.scratch.clone());
        let checked = spawn_blocking(move || cpuinfo::cpuinfo_check(&criu, &scratch, &image));
        match unpanicked(checked.await) {
            Ok(CpuVerdict::Compatible) => spothop_policy::CpuVerdict::Compatible,
            Ok(CpuVerdict::Incompatible { reason }) => spothop_policy::CpuVerdict::Incompatible { reason },
            Err(error) => {
                warn!(%error, "a source's CPU was not checked");
                spothop_policy::CpuVerdict::Unknown
            }
        }
    }
}

/// The load of the last minute, in thousandths; 0 when the kernel does not tell.
fn load_milli() -> u64 {
    // The kernel gives two decimals of a number that is never negative.
    procfs::LoadAverage::current().map_or(0, |load| (f64::from(load.one) * 1_000.0).round() as u64)
}

/// Notices that are in force, and those of the last day that moved a container: withdrawn ones among them, and over a restart, because
/// the journal says why each migration was.
async fn notices_last_day(context: &Context) -> Result<u32, Error> {
    let journal = std::sync::Arc::clone(&context.journal);
    let past = unpanicked(spawn_blocking(move || journal.history(MOST_MIGRATIONS)).await)?;
    let since = Timestamp::now().checked_sub(DAY).unwrap_or(Timestamp::MIN);
    let caused = past.into_iter().filter(|migration| {
        migration.side == Side::Source
            && migration.cause != MANUAL
            && migration.phases.iter().any(|entry| entry.at >= since)
    });
    let mut notices: BTreeSet<String> = caused.map(|migration| migration.cause).collect();
    notices.extend(context.notice_against(false).map(|notice| notice.id));
    Ok(u32::try_from(notices.len()).unwrap_or(u32::MAX))
}
