//! What this host can do and what room it has: its own truth, told to peers that ask.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use procfs::Current as _;
use spothop_criu::cpuinfo::{self, CpuVerdict};
use spothop_criu::features::{self, Features};
use spothop_policy::{Bytes, Facts, ProtocolRange, Version};
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::migration::message::Probe;
use crate::migration::unpanicked;
use crate::orchestrator::Orchestrator;

/// What this host can do, probed once, and the memory it has promised.
#[derive(Debug)]
pub struct Capacity {
    features: Features,
    cpuinfo: Option<Vec<u8>>,
    criu: PathBuf,
    scratch: PathBuf,
    memory_reserve: u64,
    promised: Arc<Mutex<HashMap<String, u64>>>,
}

/// Memory promised to a migration until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    migration: String,
    promised: Arc<Mutex<HashMap<String, u64>>>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.migration);
    }
}

/// There is not enough memory.
#[derive(Debug, thiserror::Error)]
#[error("no room: the container needs {} of memory here, {} are free beyond the reserve and what is promised to others",
        Bytes(*.needs), Bytes(*.free))]
pub struct NoRoom {
    needs: u64,
    free: u64,
}

impl Capacity {
    /// Probes CRIU, runc, kernel and CPU. Blocks for some 100 ms: CRIU looks at the kernel once after boot and keeps what
    /// it found.
    #[must_use]
    pub fn probe(criu: &Path, runc: &Path, scratch: &Path, memory_reserve: u64) -> Self {
        let features = features::probe(criu, runc);
        let cpuinfo = cpuinfo::cpuinfo_dump(criu, scratch)
            .inspect_err(|error| warn!(%error, "targets cannot check whether their CPU will do"))
            .ok();
        Self {
            features,
            cpuinfo,
            criu: criu.to_owned(),
            scratch: scratch.to_owned(),
            memory_reserve,
            promised: Arc::default(),
        }
    }

    /// What CRIU, runc and the kernel are able to do.
    #[must_use]
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// This host as the source of a plan.
    #[must_use]
    pub fn as_source(&self, name: &str) -> spothop_policy::Source {
        spothop_policy::Source {
            name: name.to_owned(),
            kernel: version(self.features.kernel),
            criu: self.features.criu.map(version).unwrap_or_default(),
            protocol: protocol(),
            zone: None,
            pool: None,
            labels: BTreeMap::new(),
        }
    }

    /// This CPU, as CRIU describes it, for [`Probe::cpuinfo`].
    #[must_use]
    pub fn cpuinfo(&self) -> Option<String> {
        self.cpuinfo.as_ref().map(|image| image.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Memory promised to migrations that are not over, in bytes.
    #[must_use]
    pub fn promised(&self) -> u64 {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    /// Promises memory to a migration. Asking again for the same one replaces its promise.
    ///
    /// # Errors
    /// There is not enough.
    pub fn reserve(&self, migration: &str, needs: u64) -> Result<Reservation, NoRoom> {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        let others: u64 = promised.iter().filter(|(id, _)| *id != migration).map(|(_, bytes)| bytes).sum();
        let free = available_memory().saturating_sub(self.memory_reserve).saturating_sub(others);
        if needs > free {
            return Err(NoRoom { needs, free });
        }
        promised.insert(migration.to_owned(), needs);
        Ok(Reservation { migration: migration.to_owned(), promised: Arc::clone(&self.promised) })
    }

    /// Answers a peer's probe.
    ///
    /// # Errors
    /// The engine's.
    pub async fn facts(
        &self,
        engine: &dyn Orchestrator,
        probe: &Probe,
        under_notice: Option<String>,
    ) -> Result<Facts, crate::orchestrator::Error> {
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
        Ok(Facts {
            networks: networks.iter().map(crate::inventory::for_policy).collect(),
            free_disk_bytes: free_disk(&about.data_directory),
            architecture: about.architecture,
            kernel: version(self.features.kernel),
            criu: self.features.criu.map(version),
            protocol: protocol(),
            free_memory_bytes: available_memory(),
            reserved_memory_bytes: self.memory_reserve.saturating_add(self.promised()),
            images,
            cpu: self.check_cpu(probe.cpuinfo.as_deref()).await,
            under_notice,
            declines: (!declines.is_empty()).then(|| declines.join("; ")),
            ..Facts::default()
        })
    }

    /// Whether processes from the CPU that `cpuinfo` describes can go on here.
    async fn check_cpu(&self, cpuinfo: Option<&str>) -> spothop_policy::CpuVerdict {
        let Some(image) = cpuinfo.and_then(from_hex) else { return spothop_policy::CpuVerdict::Unknown };
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

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    text.as_bytes().chunks(2).map(digits).collect()
}

/// The protocol versions that the transfer crate speaks.
fn protocol() -> ProtocolRange {
    let spoken = spothop_transfer::version::SUPPORTED;
    ProtocolRange { min: spoken.min.into(), max: spoken.max.into() }
}

fn version(version: spothop_criu::Version) -> Version {
    Version::new(version.major, version.minor, version.patch)
}

/// `MemAvailable`, in bytes; 0 when the kernel does not tell.
fn available_memory() -> u64 {
    procfs::Meminfo::current().ok().and_then(|memory| memory.mem_available).unwrap_or(0)
}

/// Bytes that root may still write below `directory`; 0 when it cannot be asked.
fn free_disk(directory: &Path) -> u64 {
    nix::sys::statvfs::statvfs(directory).map_or(0, |disk| disk.blocks_available() * disk.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(memory_reserve: u64) -> Capacity {
        let nothing = Path::new("/nonexistent");
        Capacity::probe(nothing, nothing, nothing, memory_reserve)
    }

    #[test]
    fn memory_is_never_promised_twice() {
        let host = host(0);
        let half = available_memory() / 2;
        let first = host.reserve("m1", half).unwrap();
        let refused = host.reserve("m2", half + half / 2).unwrap_err();
        assert_eq!(refused.needs, half + half / 2);
        assert_eq!(host.promised(), half);
        drop(first);
        assert_eq!(host.promised(), 0);
        host.reserve("m2", half).unwrap();
    }

    #[test]
    fn a_reserve_larger_than_the_host_leaves_no_room() {
        let refused = host(u64::MAX).reserve("m1", 1 << 20).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "no room: the container needs 1.0 MiB of memory here, 0 B are free beyond the reserve and what is promised to others"
        );
    }

    #[test]
    fn hexadecimal_reads_back() {
        assert_eq!(from_hex("00ff1a"), Some(vec![0, 255, 26]));
        assert_eq!(from_hex("0g"), None);
    }
}
