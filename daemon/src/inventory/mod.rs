//! Who is there: the containers of this host, and the hosts that they may move to.
//!
//! Hosts come from sources: the configuration's `[[peers]]`, and what it names besides, such as [`Etcd`]. A [`Source`] is
//! a task that tells the [`Inventory`] which hosts there are, again and again; a source that cannot be asked changes nothing, so that
//! what was known stays known. Names are unique: what the configuration says goes before what any other source says, and those
//! go in the order of [`SOURCES`].
//!
//! **A source says where a host is, and not who may call itself so.** Every connection is made with certificates of our authority on both
//! sides: whoever writes a name into etcd, or a tag at an instance, without having a certificate of that name, is refused by this host
//! as a target and by the listener as a source.
//!
//! A host that goes while it has part in a migration goes on having it: its last address is kept, and it may go on asking for the
//! verdict on its own migrations ([`Inventory::address`]). It is asked for no room and given none.

mod book;
mod containers;
#[cfg(feature = "aws")]
mod ec2;
mod etcd;
mod hosts;
mod http;
mod kubernetes;

use std::error::Error as StdError;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tracing::{info, warn};

pub use self::book::{Entry, Inventory};
pub use self::containers::{Candidate, container, containers};
#[cfg(feature = "aws")]
pub use self::ec2::Ec2Tags;
pub use self::etcd::{Etcd, Registration};
pub use self::hosts::{for_policy, hosts};
pub use self::http::{Access, HttpError};
pub use self::kubernetes::Kubernetes;
use crate::config::{Address, Config};
use crate::migration::chain;
use crate::notice::Complaint;

/// The configuration's own `[[peers]]`.
pub const STATIC: &str = "static";

/// All sources, the one that is believed first first.
pub const SOURCES: [&str; 4] = [STATIC, "etcd", "ec2", "kubernetes"];

/// A place that tells which hosts there are. Each runs as a task of its own and never ends by itself.
pub trait Source: Send {
    /// One of [`SOURCES`].
    fn name(&self) -> &'static str;

    /// Tells of the hosts until it is dropped, whatever happens meanwhile.
    fn run(self: Box<Self>, teller: Teller) -> BoxFuture<'static, ()>;
}

/// A host, as a source knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its `host.name`; its certificate must say the same.
    pub name: String,
    /// Where its daemon listens.
    pub address: Address,
}

/// Through what a source speaks.
#[derive(Debug)]
pub struct Teller {
    inventory: Arc<Inventory>,
    source: &'static str,
    complaint: Complaint,
}

impl Teller {
    /// For the source of this name.
    #[must_use]
    pub fn new(inventory: Arc<Inventory>, source: &'static str) -> Self {
        Self { inventory, source, complaint: Complaint::default() }
    }

    /// These are all hosts that the source has now.
    pub async fn tell(&mut self, hosts: Vec<Found>) {
        self.works();
        self.inventory.tell(self.source, hosts).await;
    }

    /// Nothing has changed since it last told.
    pub fn confirm(&mut self) {
        self.works();
        self.inventory.confirm(self.source);
    }

    /// It cannot tell at present. What it told before stands.
    pub fn complain(&mut self, error: &(dyn StdError + 'static)) {
        if self.complaint.failed(Instant::now()) {
            let known = self.inventory.count(self.source);
            warn!(
                source = self.source,
                error = chain(error),
                "the inventory is not up to date; the {known} hosts that are known from there stay in it"
            );
        }
    }

    fn works(&mut self) {
        if let Some(failures) = self.complaint.succeeded() {
            info!(source = self.source, "the inventory is up to date again after {failures} failures");
        }
    }
}

/// Starts every source that the configuration names.
///
/// # Errors
/// One of them cannot be used as it is configured.
pub async fn watch(config: &Config, inventory: &Arc<Inventory>) -> Result<(), HttpError> {
    let mut sources: Vec<Box<dyn Source>> = Vec::new();
    if let Some(etcd) = &config.inventory.etcd {
        sources.push(Box::new(Etcd::new(etcd, Registration::of(config))?));
    }
    #[cfg(feature = "aws")]
    if let Some(ec2) = &config.inventory.ec2 {
        let api = spothop_aws::Ec2::new(spothop_aws::Access::Environment).await;
        sources.push(Box::new(Ec2Tags::new(api, ec2.clone())));
    }
    #[cfg(not(feature = "aws"))]
    if config.inventory.ec2.is_some() {
        warn!(
            "[inventory.ec2] is without effect: this program was built without Amazon EC2's API (cargo feature `aws`)"
        );
    }
    if let Some(kubernetes) = &config.inventory.kubernetes {
        sources.push(Box::new(Kubernetes::new(kubernetes)?));
    }
    for source in sources {
        let teller = Teller::new(Arc::clone(inventory), source.name());
        tokio::spawn(source.run(teller));
    }
    Ok(())
}
