//! What a host must meet to be a target.

use crate::container::{Container, Network, NetworkIdentity};
use crate::host::{CpuVerdict, Facts, Host, HostState, Source};
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
    (Some(facts), refusals)
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
