//! What a running testbed knows about itself: one JSON file, also what `--json` prints.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::layout::Layout;

/// A testbed that is up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The testbed's name.
    pub name: String,
    /// The container engine of its hosts.
    pub engine: Engine,
    /// The hosts, in the order of their names.
    pub hosts: Vec<Machine>,
    /// The client machine.
    pub client: Machine,
    /// Rate of every host's port in each direction, in Mbit/s; `None`: as fast as the machine can.
    pub link_mbit: Option<u32>,
    /// The Debian base under all roots.
    pub base: PathBuf,
    /// Whether spothop is installed on the hosts.
    pub spothop: bool,
    /// Seconds that `up` took, base and build included.
    pub up_seconds: f64,
}

/// One machine of a testbed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// `a`, `b`, `c`… or `client`.
    pub name: String,
    /// Its address on the switch.
    pub address: Ipv4Addr,
    /// Its first process, as the carrying machine numbers it.
    pub pid: i32,
    /// Its supervisor, which serves the metadata service.
    pub supervisor: i32,
    /// Whether it runs, as far as commands of the testbed have changed that.
    pub power: Power,
}

/// Whether a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// It was booted.
    On,
    /// It was powered off.
    Off,
}

/// The container engine of the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// Docker, with its macvlan network `lan`.
    Docker,
    /// Podman (installed in the base; not set up yet).
    Podman,
    /// containerd alone (installed in the base; not set up yet).
    Containerd,
}

impl State {
    /// The state of the testbed with this layout.
    ///
    /// # Errors
    /// [`Error::NotUp`] when there is none.
    pub fn load(layout: &Layout) -> Result<Self> {
        let path = layout.state_file();
        let text = fs::read_to_string(&path).map_err(|_| Error::NotUp(layout.name().to_owned()))?;
        serde_json::from_str(&text).map_err(|source| Error::Json { what: path.display().to_string(), source })
    }

    /// Writes it where [`State::load`] finds it, in one step.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written.
    pub fn save(&self, layout: &Layout) -> Result<()> {
        let path = layout.state_file();
        let fresh = path.with_extension("new");
        fs::write(&fresh, json(self)?).on("write", &fresh)?;
        fs::rename(&fresh, &path).on("replace", &path)
    }

    /// The host of this name.
    ///
    /// # Errors
    /// [`Error::NoSuchHost`].
    pub fn host(&self, name: &str) -> Result<&Machine> {
        self.hosts.iter().find(|host| host.name == name).ok_or_else(|| Error::NoSuchHost {
            name: name.to_owned(),
            known: self.hosts.iter().map(|host| host.name.clone()).collect(),
        })
    }
}

/// Readable JSON of anything of ours.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|source| Error::Json { what: "our own state".to_owned(), source })
}
