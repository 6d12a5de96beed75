//! What a host must meet to be a target.

use std::collections::BTreeMap;

use crate::container::{Container, Network, NetworkIdentity};
use crate::host::{CpuVerdict, Facts, Host, HostState, Source};
use crate::labels::{self, words};
use crate::refusal::Refusal;
use crate::version::Version;

/// The oldest CRIU that spothop works with: dump and restore were built and tested on 4.2, and its action scripts are relied on.
pub const MINIMUM_CRIU: Version = Version::new(4, 2, 0);

/// All that speaks against `host` for `container` whatever else the plan sends there, in the order of [`Refusal`]'s variants.
/// The facts of the host are returned when it can be judged further.
pub(crate) fn check<'h>(source: &Source, container: &Container, host: &'h Host) -> (Option<&'h Facts>, Vec<Refusal>) {
    if host.name == source.name {
        return (None, vec![Refusal::IsSource]);
    }
    let facts = match &host.state {
        HostState::Unreachable { reason } => {
            return (None, vec![Refusal::Unreachable { reason: reason.clone() }]);
        }
        HostState::Reachable(facts) => facts,
    };
    let mut refusals = Vec::new();
    refusals.extend(facts.under_notice.clone().map(|notice| Refusal::UnderNotice { notice }));
    refusals.extend(facts.declines.clone().map(|reason| Refusal::Declines { reason }));
    if !source.protocol.overlaps(facts.protocol) {
        refusals.push(Refusal::Protocol { needs: source.protocol, has: facts.protocol });
    }
    if facts.architecture != container.architecture {
        refusals.push(Refusal::Architecture { needs: container.architecture.clone(), has: facts.architecture.clone() });
    }
    if let CpuVerdict::Incompatible { reason } = &facts.cpu {
        refusals.push(Refusal::CpuIncompatible { reason: reason.clone() });
    }
    if facts.kernel < source.kernel.line() {
        refusals.push(Refusal::KernelOlder { needs: source.kernel, has: facts.kernel });
    }
    refusals.extend(criu(source, facts.criu));
    refusals
        .extend(container.networks.iter().filter_map(|needed| network(container.identity, needed, &facts.networks)));
    if let Some(present) = &facts.mounts {
        let missing = container.mounts.iter().filter(|mount| !present.contains(mount));
        refusals.extend(missing.map(|mount| Refusal::MountMissing { mount: mount.clone() }));
    }
    refusals.extend(host_labels(container, &facts.labels));
    refusals.extend(company(container, facts));
    (Some(facts), refusals)
}

/// What the container's labels ask of the host's.
fn host_labels<'c>(
    container: &'c Container,
    has: &BTreeMap<String, String>,
) -> impl Iterator<Item = Refusal> + use<'c> {
    let holds = |wanted: &str| match wanted.split_once('=') {
        None => has.contains_key(wanted),
        Some((key, value)) => has.get(key.trim_end()).is_some_and(|has| has == value.trim_start()),
    };
    let required = words(container.labels.get(labels::REQUIRE)).filter(|wanted| !holds(wanted));
    let avoided = words(container.labels.get(labels::AVOID)).filter(|wanted| holds(wanted));
    let missing: Vec<_> = required.map(|label| Refusal::LabelMissing { label: label.to_owned() }).collect();
    let present: Vec<_> = avoided.map(|label| Refusal::LabelAvoided { label: label.to_owned() }).collect();
    missing.into_iter().chain(present)
}

/// Who runs on the host already that the container must not be with.
fn company(container: &Container, facts: &Facts) -> Vec<Refusal> {
    let groups = container.groups().filter(|group| facts.groups.iter().any(|has| has == group));
    let groups = groups.map(|group| Refusal::GroupTaken { group: group.to_owned() });
    let names = container.avoids().filter(|name| facts.runs.iter().any(|runs| runs == name));
    let names = names.map(|name| Refusal::AvoidsContainer { name: name.to_owned() });
    groups.chain(names).collect()
}

fn criu(source: &Source, has: Option<Version>) -> Option<Refusal> {
    let needs = MINIMUM_CRIU.max(source.criu.line());
    match has {
        None => Some(Refusal::CriuMissing { needs }),
        Some(has) if has < needs => Some(Refusal::CriuOlder { needs, has }),
        Some(_) => None,
    }
}

fn network(identity: NetworkIdentity, needed: &Network, present: &[Network]) -> Option<Refusal> {
    let Some(has) = present.iter().find(|network| network.name == needed.name) else {
        return Some(Refusal::NetworkMissing { network: needed.name.clone() });
    };
    let same = has.driver == needed.driver && needed.subnets.iter().all(|subnet| has.subnets.contains(subnet));
    (identity == NetworkIdentity::KeepIp && !same).then(|| Refusal::NetworkDiffers {
        network: needed.name.clone(),
        needs: describe(needed),
        has: describe(has),
    })
}

fn describe(network: &Network) -> String {
    format!("{} {}", network.driver, network.subnets.join(" ")).trim_end().to_owned()
}
