//! What this host can do and what room it has: its own truth, told to peers that ask; and what is launched when all of that is not
//! enough.

mod facts;
#[cfg(feature = "aws")]
pub mod launch;
pub mod room;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use spothop_criu::cpuinfo;
use spothop_criu::features::{self, Features};
use spothop_policy::{ProtocolRange, Version};
use tracing::warn;

pub use self::room::{NoRoom, Promise, Reservation};
use self::room::{Room, System};
use crate::config::Config;
use crate::hex;

/// What this host can do, probed once, and what it has promised.
#[derive(Debug)]
pub struct Capacity {
    features: Features,
    cpuinfo: Option<Vec<u8>>,
    criu: PathBuf,
    scratch: PathBuf,
    labels: BTreeMap<String, String>,
    zone: Arc<OnceLock<String>>,
    /// Memory and disk.
    pub room: Room,
}

impl Capacity {
    /// Probes CRIU, runc, kernel and CPU. Blocks for some 100 ms: CRIU looks at the kernel once after boot and keeps what
    /// it found. `data` is the engine's directory; `zone` is read whenever somebody asks, so that it may be learnt later.
    #[must_use]
    pub fn probe(config: &Config, scratch: &Path, data: PathBuf, zone: Arc<OnceLock<String>>) -> Self {
        let criu = &config.criu.criu;
        let features = features::probe(criu, &config.criu.runc);
        let cpuinfo = cpuinfo::cpuinfo_dump(criu, scratch)
            .inspect_err(|error| warn!(%error, "targets cannot check whether their CPU will do"))
            .ok();
        if let Some(configured) = &config.host.zone {
            // The operator's word is before the metadata service's.
            let _ = zone.set(configured.clone());
        }
        Self {
            features,
            cpuinfo,
            criu: criu.clone(),
            scratch: scratch.to_owned(),
            labels: config.host.labels.clone(),
            zone,
            room: Room::new(Arc::new(System { data }), config.limits.memory_reserve),
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
            zone: self.zone.get().cloned(),
            pool: None,
            labels: self.labels.clone(),
        }
    }

    /// This CPU, as CRIU describes it, for [`Probe::cpuinfo`](crate::migration::message::Probe::cpuinfo).
    #[must_use]
    pub fn cpuinfo(&self) -> Option<String> {
        self.cpuinfo.as_deref().map(hex::encode)
    }
}

/// The protocol versions that the transfer crate speaks.
fn protocol() -> ProtocolRange {
    let spoken = spothop_transfer::version::SUPPORTED;
    ProtocolRange { min: spoken.min.into(), max: spoken.max.into() }
}

fn version(version: spothop_criu::Version) -> Version {
    Version::new(version.major, version.minor, version.patch)
}
