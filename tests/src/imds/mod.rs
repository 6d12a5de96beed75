//! A metadata service as an instance of one of several clouds has it ([`Cloud`]), inside a host's network.
//!
//! For AWS (IMDSv2, with tokens required), formats and codes are from "Use the Instance Metadata Service to access instance metadata" and "Spot Instance interruption
//! notices" in the Amazon EC2 User Guide. Only what a migration daemon may ask for is there; anything else is 404, as it is
//! on an instance that does not have it.

pub mod ahead;
mod alibaba;
mod azure;
mod clouds;
pub mod control;
mod gcp;
mod router;
mod tencent;
mod tokens;
mod tree;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use crate::base::remove_if_there;
use crate::error::{Context, Result};

pub use clouds::{ADDRESSES, Cloud};
pub use tokens::Tokens;

/// The service's IPv4 address.
pub const IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The service's IPv6 address.
pub const IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// HTTP without encryption, as on EC2.
const PORT: u16 = 80;

/// The instance that the service tells about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// `i-` and 17 hexadecimal digits.
    pub id: String,
    /// Instance type, like `m7i.large`.
    pub kind: String,
    /// Availability zone; the region is this without its last letter.
    pub zone: String,
    /// The host's name.
    pub name: String,
    /// The private address.
    pub address: Ipv4Addr,
    /// The hardware address of the first interface.
    pub mac: String,
}

/// What happens to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is terminated.
    Terminate,
    /// It is stopped.
    Stop,
    /// It is hibernated.
    Hibernate,
    /// It is started anew; not because it is a spot instance.
    Reboot,
}

/// An interruption notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// What will happen.
    pub action: Action,
    /// When, to the second.
    pub time: Timestamp,
}

/// What the service knows; shared between the listeners and the control socket.
#[derive(Debug)]
pub struct Metadata {
    instance: Mutex<Instance>,
    /// The notice that is out, if one is.
    notice: Mutex<Option<Notice>>,
    /// What else is out, by its path below the version.
    documents: Mutex<BTreeMap<String, String>>,
    /// The tokens given out.
    tokens: Mutex<Tokens>,
    cloud: Mutex<Cloud>,
    /// How often notice or cloud have changed; for those who wait for that.
    version: watch::Sender<u64>,
    /// When the notice that is out was approved (Azure).
    approved: Mutex<Option<Timestamp>>,
}

impl Metadata {
    /// A service without a notice.
    #[must_use]
    pub fn new(instance: Instance) -> Arc<Self> {
        Arc::new(Self {
            instance: Mutex::new(instance),
            notice: Mutex::default(),
            documents: Mutex::default(),
            tokens: Mutex::default(),
            cloud: Mutex::default(),
            version: watch::Sender::new(1),
            approved: Mutex::default(),
        })
    }

    /// The instance that is told of.
    #[must_use]
    pub fn instance(&self) -> Instance {
        locked(&self.instance).clone()
    }

    /// Gives the instance another id, which no instance of EC2 ever gets: for a host that is to be one of an imitation's.
    pub fn identify(&self, id: String) {
        locked(&self.instance).id = id;
    }

    /// Puts a notice out, or takes it back.
    pub fn set_notice(&self, notice: Option<Notice>) {
        *locked(&self.notice) = notice;
        *locked(&self.approved) = None;
        self.version.send_modify(|version| *version += 1);
    }

    /// The cloud that this is an instance of.
    #[must_use]
    pub fn cloud(&self) -> Cloud {
        *locked(&self.cloud)
    }

    /// Makes it an instance of another cloud, without a notice.
    pub fn set_cloud(&self, cloud: Cloud) {
        *locked(&self.cloud) = cloud;
        self.set_notice(None);
    }

    /// When the notice that is out was approved.
    #[must_use]
    pub fn approved(&self) -> Option<Timestamp> {
        *locked(&self.approved)
    }

    fn approve(&self, now: Timestamp) {
        locked(&self.approved).get_or_insert(now);
        self.version.send_modify(|version| *version += 1);
    }

    fn version(&self) -> u64 {
        *self.version.borrow()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Puts a document out, or takes it back.
    pub fn set_document(&self, path: String, body: Option<String>) {
        let mut documents = locked(&self.documents);
        match body {
            Some(body) => documents.insert(path, body),
            None => documents.remove(&path),
        };
        drop(documents);
        self.version.send_modify(|version| *version += 1);
    }

    /// The document at a path below the version, if one was put out there.
    #[must_use]
    pub fn document(&self, path: &str) -> Option<String> {
        locked(&self.documents).get(path).cloned()
    }

    /// The notice that is out.
    #[must_use]
    pub fn notice(&self) -> Option<Notice> {
        *locked(&self.notice)
    }
}

/// The values behind our locks are whole at any time, so a panic elsewhere does not spoil them.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The service with its listeners, bound and not yet answering.
#[derive(Debug)]
pub struct Server {
    metadata: Arc<Metadata>,
    listeners: Vec<(IpAddr, TcpListener)>,
    control: UnixListener,
}

impl Server {
    /// Binds the documented addresses in the network namespace of the caller, and the control socket.
    ///
    /// # Errors
    /// [`crate::Error::Io`] when one cannot be bound.
    pub async fn bind(instance: Instance, cloud: Cloud, control: &Path) -> Result<Self> {
        let mut listeners = Vec::new();
        for address in ADDRESSES {
            let listener = TcpListener::bind((address, PORT)).await;
            listeners.push((address, listener.on("bind", &PathBuf::from(format!("{address} port {PORT}")))?));
        }
        remove_if_there(control)?;
        let metadata = Metadata::new(instance);
        metadata.set_cloud(cloud);
        Ok(Self { metadata, listeners, control: UnixListener::bind(control).on("bind", control)? })
    }

    /// Answers until the task is dropped.
    pub async fn run(self) {
        for (address, listener) in self.listeners {
            let router = clouds::at(address, Arc::clone(&self.metadata));
            tokio::spawn(async move { axum::serve(listener, router).await });
        }
        control::serve(self.control, self.metadata).await;
    }
}
