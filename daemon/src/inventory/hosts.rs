//! What the hosts of the inventory say of themselves, as the planner takes them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use spothop_policy::{Facts, Host, HostState};
use tokio::time::timeout;

use crate::migration::message::{Answer, Probe, Request};
use crate::migration::{Context, Error, chain};
use crate::orchestrator::{Image, Network};

/// A host that does not answer within this time is of no use in an emergency of 120 seconds.
const PROBE: Duration = Duration::from_secs(5);

/// Hosts that are asked at the same time: enough that a thousand with a few dead ones among them are asked in seconds, and no
/// more connections than a process may have open.
const AT_ONCE: usize = 256;

/// Asks all hosts at once what they are and whether they could take containers with these images. In the inventory's order.
pub async fn hosts(context: &Arc<Context>, images: Vec<Image>) -> Vec<Host> {
    let probe = Probe { cpuinfo: context.capacity.cpuinfo(), images, urgent: context.is_leaving() };
    let asked = context.inventory.entries().into_iter().map(|entry| {
        let probe = probe.clone();
        async move {
            let asked = timeout(PROBE, ask(context, &entry.name, probe)).await;
            let state = match asked.unwrap_or(Err(Error::TimedOut { step: "the probe", limit: PROBE })) {
                Ok(facts) => HostState::Reachable(facts),
                Err(failure) => HostState::Unreachable { reason: chain(&failure) },
            };
            Host { name: entry.name, state }
        }
    });
    stream::iter(asked.collect::<Vec<_>>()).buffered(AT_ONCE).collect().await
}

async fn ask(context: &Context, peer: &str, probe: Probe) -> Result<Facts, Error> {
    let mut conversation = context.connect(peer, 1).await?;
    let answer = conversation.ask(&Request::Probe(Box::new(probe)), "the probe", PROBE).await?;
    let Answer::Facts(facts) = answer else { return Err(conversation.out_of_turn("the probe")) };
    // It has answered; how it says goodbye does not matter.
    let _ = conversation.close().await;
    Ok(*facts)
}

/// A network as the planner takes it.
#[must_use]
pub fn for_policy(network: &Network) -> spothop_policy::Network {
    spothop_policy::Network {
        name: network.name.clone(),
        driver: network.driver.clone(),
        subnets: network.subnets.clone(),
    }
}
