//! What this host can do and what room it has: its own truth, told to peers that ask; and what is launched when all of that is not
//! enough.

mod facts;
#[cfg(feature = "aws")]
pub mod launch;
#[cfg(feature = "aws")]
pub mod market;
pub mod room;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spothop_criu::cpuinfo;
use spothop_criu::features::{self, Features};
use spothop_policy::{ProtocolRange, Version};
use tracing::warn;

pub use self::room::{NoRoom, Promise, Reservation};
use self::room::{Room, System};
use crate::api::MachineView;
use crate::config::Config;
use crate::hex;
use crate::notice::machine::Machine;

/// What this host can do, probed once, and what it has promised.
#[derive(Debug)]
pub struct Capacity {
    features: Features,
    cpuinfo: Option<Vec<u8>>,
    criu: PathBuf,
    scratch: PathBuf,
    labels: BTreeMap<String, String>,
    /// What kind of machine this is: the operator's word, or else its metadata service's, as soon as one has said so.
    pub machine: Machine,
    market: Mutex<Market>,
    /// Memory and disk.
    pub room: Room,
}

impl Capacity {
    /// Probes CRIU, runc, kernel and CPU. Blocks for some 100 ms: CRIU looks at the kernel once after boot and keeps what
    /// it found. `data` is the engine's directory; what kind of machine this is may be learnt later.
    #[must_use]
    pub fn probe(config: &Config, scratch: &Path, data: PathBuf) -> Self {
        let criu = &config.criu.criu;
        let features = features::probe(criu, &config.criu.runc);
        let cpuinfo = cpuinfo::cpuinfo_dump(criu, scratch)
            .inspect_err(|error| warn!(%error, "targets cannot check whether their CPU will do"))
            .ok();
        let (machine, host) = (Machine::default(), &config.host);
        // The operator's words are before the metadata service's.
        machine.say(host.machine_type.clone(), host.zone.clone(), host.spot);
        Self {
            features,
            cpuinfo,
            criu: criu.clone(),
            scratch: scratch.to_owned(),
            labels: config.host.labels.clone(),
            machine,
            market: Mutex::new(Market { price_micros: host.price, placement_score: None }),
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
            zone: self.machine.zone.get().cloned(),
            pool: self.machine.pool(),
            labels: self.labels.clone(),
        }
    }

    /// What is known of this machine's market.
    #[must_use]
    pub fn market(&self) -> Market {
        *self.lock_market()
    }

    /// The same, with what kind of machine it is, as `spothop status` shows it.
    #[must_use]
    pub fn machine(&self) -> MachineView {
        let (machine, market) = (&self.machine, self.market());
        MachineView {
            machine_type: machine.machine_type.get().cloned(),
            zone: machine.zone.get().cloned(),
            spot: machine.spot.get().copied(),
            pool: machine.pool(),
            price_micros: market.price_micros,
            placement_score: market.placement_score,
        }
    }

    fn lock_market(&self) -> MutexGuard<'_, Market> {
        self.market.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This CPU, as CRIU describes it, for [`Probe::cpuinfo`](crate::migration::message::Probe::cpuinfo).
    #[must_use]
    pub fn cpuinfo(&self) -> Option<String> {
        self.cpuinfo.as_deref().map(hex::encode)
    }
}

/// What a machine costs, and how likely its kind is to be had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Market {
    /// In millionths of a dollar an hour.
    pub price_micros: Option<u64>,
    /// From 1 to 10, as EC2's spot placement score.
    pub placement_score: Option<u8>,
}

/// The protocol versions that the transfer crate speaks.
fn protocol() -> ProtocolRange {
    let spoken = spothop_transfer::version::SUPPORTED;
    ProtocolRange { min: spoken.min.into(), max: spoken.max.into() }
}

fn version(version: spothop_criu::Version) -> Version {
    Version::new(version.major, version.minor, version.patch)
}
