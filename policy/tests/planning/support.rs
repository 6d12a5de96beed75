//! Hosts and containers that tests start from; each changes what it is about.

use std::collections::BTreeMap;

use spothop_policy::{
    Container, CpuVerdict, Estimates, Facts, Host, HostState, Network, ProtocolRange, Request, Source, Version,
};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

pub(crate) fn source() -> Source {
    Source {
        name: "a".to_owned(),
        kernel: Version::new(6, 1, 140),
        criu: Version::new(4, 2, 1),
        protocol: ProtocolRange { min: 1, max: 2 },
        zone: None,
        pool: None,
        labels: BTreeMap::new(),
    }
}

pub(crate) fn facts() -> Facts {
    Facts {
        architecture: "amd64".to_owned(),
        kernel: Version::new(6, 1, 0),
        criu: Some(Version::new(4, 2, 0)),
        protocol: ProtocolRange { min: 1, max: 1 },
        free_memory_bytes: 8 * GIB,
        reserved_memory_bytes: GIB,
        free_disk_bytes: 100 * GIB,
        networks: vec![bridge()],
        images: vec!["sha256:redis".to_owned()],
        cpu: CpuVerdict::Compatible,
        ..Facts::default()
    }
}

pub(crate) fn host(name: &str, change: impl FnOnce(&mut Facts)) -> Host {
    let mut facts = facts();
    change(&mut facts);
    Host { name: name.to_owned(), state: HostState::Reachable(facts) }
}

pub(crate) fn bridge() -> Network {
    Network { name: "bridge".to_owned(), driver: "bridge".to_owned(), subnets: vec!["172.17.0.0/16".to_owned()] }
}

pub(crate) fn container(name: &str, memory_bytes: u64) -> Container {
    Container {
        id: format!("id-of-{name}"),
        name: name.to_owned(),
        memory_bytes,
        architecture: "amd64".to_owned(),
        image: "sha256:redis".to_owned(),
        image_bytes: 100 * MIB,
        networks: vec![bridge()],
        ..Container::default()
    }
}

pub(crate) fn request(containers: Vec<Container>, hosts: Vec<Host>) -> Request {
    Request { source: source(), containers, hosts, budget: None, estimates: Estimates::default(), concurrency: 1 }
}
