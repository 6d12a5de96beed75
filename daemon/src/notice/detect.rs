//! Finding out which cloud this host is in, and then listening to that one alone.
//!
//! Every cloud's metadata service is asked at the same time for something that only it answers in that way ([`Probe`]), again and again until
//! one does: at boot the network may come up later than the daemon, and a service may be slow or out of order. What is found does not
//! change while the daemon runs. An operator who knows better names the cloud, which is then not looked for.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, join, join3};
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::aws::{self, AwsOptions, AwsSource};
use super::azure::{self, AzureOptions, AzureSource};
use super::complaint::Complaint;
use super::gcp::{self, GcpOptions, GcpSource};
use super::machine::{self, Machine};
use super::metadata::{Dialect, Error, Service};
use super::shutdown::ShutdownSource;
use super::termination::{Place, TerminationOptions, TerminationSource};
use super::{Acknowledge, Action, Cloud, NoticeEvent, NoticeSource, SourceError, alibaba, tencent};
use crate::config::{self, CloudChoice, Reclaim, Shutdown};
use crate::provider::Instance;

/// A metadata service answers within milliseconds; one that takes longer is asked again.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time between the first two rounds; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest time between two rounds: what a host that boots slowly may lose of its first notice.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A question that the service of one cloud answers, and in a way that no other does.
pub(super) struct Probe {
    pub(super) dialect: &'static Dialect,
    pub(super) path: &'static str,
    pub(super) query: &'static [(&'static str, &'static str)],
    /// Whether this is its answer.
    pub(super) is_it: fn(&str) -> bool,
}

/// Listens to the cloud that this host is in, once it knows which.
pub struct CloudSource {
    /// Those that it may be in. With one, there is nothing to find out.
    candidates: Vec<Candidate>,
    /// The cloud was named, so that it is not asked whether it is there.
    named: bool,
    machine: Machine,
    /// What listens to shutdowns, and in which clouds it does.
    shutdown: Option<(ShutdownSource, Shutdown)>,
}

struct Candidate {
    cloud: Cloud,
    /// One for each address, so that all of them are asked at the same time.
    services: Vec<Service>,
    probe: &'static Probe,
    source: Box<dyn NoticeSource>,
}

/// What a metadata service says of this machine; empty until it has.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// Which instance it is.
    pub instance: Arc<OnceLock<Instance>>,
    /// What kind of machine, and where.
    pub machine: Machine,
}

impl CloudSource {
    /// What the configuration says. Which instance of EC2 this is, and where, goes into `identity` when it is one; `host` is the name that notices
    /// of a shutdown carry.
    ///
    /// # Errors
    /// [`SourceError`] for addresses that cannot be asked.
    pub fn new(config: &config::Notice, identity: &Identity, host: &str) -> Result<Self, SourceError> {
        let mut candidates = Vec::new();
        for cloud in [Cloud::Aws, Cloud::Gcp, Cloud::Azure, Cloud::Alibaba, Cloud::Tencent] {
            let wanted = match config.cloud {
                CloudChoice::Auto => true,
                CloudChoice::None => false,
                choice => choice.named() == Some(cloud),
            };
            if !wanted {
                continue;
            }
            let Some((probe, endpoints, source)) = source_of(cloud, config, identity)? else { continue };
            let service = |endpoint: &String| Service::new(probe.dialect, std::slice::from_ref(endpoint), PATIENCE);
            let services = endpoints.iter().map(service).collect::<Result<_, _>>()?;
            candidates.push(Candidate { cloud, services, probe, source });
        }
        let shutdown = match config.shutdown {
            Shutdown::Ignore => None,
            when => Some((ShutdownSource::new(host), when)),
        };
        let machine = identity.machine.clone();
        Ok(Self { candidates, named: config.cloud.named().is_some(), machine, shutdown })
    }

    /// The way to each cloud that wants to know when this host is empty, by the name of the cloud as its notices have it.
    #[must_use]
    pub fn acknowledgers(&self) -> BTreeMap<&'static str, Arc<dyn Acknowledge>> {
        let clouds = self.candidates.iter().map(|candidate| candidate.source.as_ref());
        let machine = self.shutdown.iter().map(|(source, _)| source as &dyn NoticeSource);
        clouds.chain(machine).filter_map(|source| Some((source.name(), source.acknowledger()?))).collect()
    }
}

impl NoticeSource for CloudSource {
    fn name(&self) -> &'static str {
        "cloud"
    }

    fn run(mut self: Box<Self>, events: mpsc::Sender<NoticeEvent>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let named = self.named;
            // Whether a shutdown is listened to may depend on the cloud; where it does not, it is at once.
            let (shutdown, later) = match self.shutdown.take() {
                Some((source, Shutdown::Evacuate)) => (Some(source), None),
                Some((source, _)) => (None, Some(source)),
                None => (None, None),
            };
            let machine = run_if_any(shutdown, events.clone());
            let mut candidates = self.candidates;
            let cloud = async {
                let found = match candidates.len() {
                    0 => return events.closed().await,
                    1 if named => 0,
                    _ => tokio::select! {
                        () = events.closed() => return,
                        found = find(&mut candidates) => found,
                    },
                };
                let Candidate { cloud, source, mut services, .. } = candidates.swap_remove(found);
                tracing::info!(%cloud, "listening to the notices of this cloud");
                // There a preemption is the power button, and everything here would be stopped before it could leave.
                let later = later.filter(|_| cloud == Cloud::Gcp);
                let about = async {
                    tokio::select! {
                        () = machine::ask(cloud, &mut services, &self.machine) => {}
                        () = events.closed() => {}
                    }
                };
                join3(source.run(events.clone()), run_if_any(later, events.clone()), about).await;
            };
            join(machine, cloud).await;
        })
    }
}

async fn run_if_any(source: Option<ShutdownSource>, events: mpsc::Sender<NoticeEvent>) {
    if let Some(source) = source {
        Box::new(source).run(events).await;
    }
}

type SourceOf = (&'static Probe, Vec<String>, Box<dyn NoticeSource>);

/// What listens to a cloud, unless that is switched off.
fn source_of(cloud: Cloud, config: &config::Notice, identity: &Identity) -> Result<Option<SourceOf>, SourceError> {
    Ok(match cloud {
        Cloud::Aws if config.aws.enabled => {
            let endpoints = config.aws.endpoints.clone();
            let source = AwsSource::new(AwsOptions {
                endpoints: endpoints.clone(),
                poll_interval: config.aws.poll_interval,
                maintenance_lead: config.aws.maintenance_lead,
                ..AwsOptions::default()
            })?;
            Some((
                &aws::PROBE,
                endpoints,
                Box::new(source.telling(Arc::clone(&identity.instance), Arc::clone(&identity.machine.zone))),
            ))
        }
        Cloud::Gcp => {
            let options = GcpOptions {
                endpoints: config.gcp.endpoints.clone(),
                notice_period: config.gcp.notice_period,
                reclaim: action(config.gcp.reclaim),
                maintenance_lead: config.gcp.maintenance_lead,
                ..GcpOptions::default()
            };
            let source = GcpSource::new(&options)?;
            Some((&gcp::PROBE, options.endpoints, Box::new(source)))
        }
        Cloud::Azure => {
            let options = AzureOptions {
                endpoints: config.azure.endpoints.clone(),
                poll_interval: config.azure.poll_interval,
                ..AzureOptions::default()
            };
            let source = AzureSource::new(&options)?;
            Some((&azure::PROBE, options.endpoints, Box::new(source)))
        }
        Cloud::Alibaba => {
            let source = spot(&config.alibaba, &alibaba::PLACE)?;
            Some((&alibaba::PROBE, source.0, Box::new(source.1)))
        }
        Cloud::Tencent => {
            let source = spot(&config.tencent, &tencent::PLACE)?;
            Some((&tencent::PROBE, source.0, Box::new(source.1)))
        }
        Cloud::Aws | Cloud::Machine | Cloud::Webhook => None,
    })
}

/// The addresses and the source of a cloud that tells a time.
fn spot(table: &config::SpotNotice, place: &'static Place) -> Result<(Vec<String>, TerminationSource), SourceError> {
    let options = TerminationOptions {
        endpoints: table.endpoints.clone(),
        poll_interval: table.poll_interval,
        reclaim: action(table.reclaim),
        request_timeout: PATIENCE,
    };
    let source = TerminationSource::new(place, &options)?;
    Ok((options.endpoints, source))
}

fn action(reclaim: Reclaim) -> Action {
    match reclaim {
        Reclaim::Stop => Action::Stop,
        Reclaim::Delete => Action::Terminate,
    }
}

/// Asks until one answers; returns its number. Without candidates it never returns.
async fn find(candidates: &mut [Candidate]) -> usize {
    let mut complaint = Complaint::default();
    let mut pause = FIRST_PAUSE;
    loop {
        let trouble = match round(candidates).await {
            Ok(found) => return found,
            Err(trouble) => trouble,
        };
        if complaint.failed(Instant::now()) {
            if complaint.failures() == 1 {
                // A host in no cloud at all is a host, too: worth a line, but not one a minute for ever.
                tracing::info!("no cloud's metadata service answers here so far, asking on");
            }
            tracing::debug!("no cloud found: {trouble}");
        }
        sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// Asks every service of every candidate once; the error is what they said.
async fn round(candidates: &mut [Candidate]) -> Result<usize, String> {
    let mut answers: FuturesUnordered<_> = candidates
        .iter_mut()
        .enumerate()
        .flat_map(|(number, candidate)| {
            let probe = candidate.probe;
            candidate.services.iter_mut().map(move |service| async move { (number, ask(service, probe).await) })
        })
        .collect();
    let mut trouble = Vec::new();
    while let Some((number, answer)) = answers.next().await {
        match answer {
            Ok(true) => return Ok(number),
            Ok(false) => {}
            Err(error) => trouble.push(error.to_string()),
        }
    }
    Err(trouble.join("; "))
}

async fn ask(service: &mut Service, probe: &Probe) -> Result<bool, Error> {
    let answer = service.ask(probe.path, probe.query, PATIENCE).await?;
    Ok(answer.is_some_and(|answer| (probe.is_it)(&answer.body)))
}

/// Which cloud answers right now, for whoever wants to know without waiting for it.
pub(crate) async fn look(config: &config::Notice) -> Result<Option<Cloud>, SourceError> {
    let mut candidates = CloudSource::new(config, &Identity::default(), "")?.candidates;
    let found = round(&mut candidates).await.ok();
    Ok(found.map(|number| candidates[number].cloud))
}
