//! What Amazon EC2 says of an instance's end, from the instance metadata service (version 2 only).
//!
//! From the EC2 user guide, "Spot Instance interruption notices": `spot/instance-action` is absent (404) until the instance
//! is marked for interruption and then reads `{"action": "terminate", "time": "2017-09-18T08:22:00Z"}`; `action` is
//! `terminate`, `stop` or `hibernate`, `time` the approximate moment in UTC. Two minutes ahead at best (hibernation begins
//! at once), and without any promise, so the time that is left is always `time` − now and never an assumed 120 s.
//!
//! A notice is known by its instance and action. `time` is not part of that: some services that imitate the original answer
//! another one at every GET, and no repetition may start a second evacuation or move the deadline of the first.
//!
//! What is said longer ahead ([`outlook`]) is asked for by a loop of its own, so that no answer there keeps this question waiting.

pub(super) mod outlook;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};

use self::outlook::{Document, Outlook, Reading};
use super::complaint::Complaint;
use super::detect::Probe;
use super::metadata::{Answer, Dialect, Error, Service, TokenDialect, identifier};
use super::{Action, Certainty, Cloud, Notice, NoticeEvent, NoticeSource, SourceError, UNKNOWN_INSTANCE};
use crate::provider::Instance;

/// Version 2 alone: every question carries a session token (EC2 user guide, "Use the Instance Metadata Service").
const DIALECT: Dialect = Dialect {
    service: "Amazon EC2",
    request: None,
    answer: None,
    tokens: Some(TokenDialect {
        path: "latest/api/token",
        ttl_header: "X-aws-ec2-metadata-token-ttl-seconds",
        token_header: "X-aws-ec2-metadata-token",
    }),
};
const INSTANCE_ACTION: &str = "latest/meta-data/spot/instance-action";
const INSTANCE_ID: &str = "latest/meta-data/instance-id";
/// A JSON object with, among others, `accountId`, `region` and `instanceId` (EC2 user guide, "Instance identity documents").
const IDENTITY: &str = "latest/dynamic/instance-identity/document";

/// By its token and its id.
pub(super) static PROBE: Probe =
    Probe { dialect: &DIALECT, path: INSTANCE_ID, query: &[], is_it: |body| body.trim().starts_with("i-") };

/// Where to ask, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsOptions {
    /// Bases of the service's addresses. The first is asked, and the next one whenever no answer comes at all.
    ///
    /// Default: the link-local addresses that EC2 documents, IPv4 before IPv6.
    pub endpoints: Vec<String>,
    /// Time from one poll to the next. Default 1 s: of two minutes at best, five seconds (which AWS recommends) are a lot.
    pub poll_interval: Duration,
    /// Time that one request may take. Default 1 s: the service answers within milliseconds, and whatever takes longer
    /// is better asked anew.
    pub request_timeout: Duration,
    /// Time from one look at what is said longer ahead to the next. Default 5 s, as AWS recommends.
    pub outlook_interval: Duration,
    /// A scheduled maintenance becomes a notice so long before it begins. Default 10 min.
    pub maintenance_lead: Duration,
}

impl Default for AwsOptions {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://169.254.169.254".to_owned(), "http://[fd00:ec2::254]".to_owned()],
            poll_interval: Duration::from_secs(1),
            request_timeout: Duration::from_secs(1),
            outlook_interval: Duration::from_secs(5),
            maintenance_lead: Duration::from_secs(600),
        }
    }
}

/// Polls the metadata service of the instance that this runs on.
pub struct AwsSource {
    interruption: Interruption,
    ahead: Ahead,
}

/// The loop that asks for an interruption notice, and for who we are.
struct Interruption {
    service: Service,
    poll_interval: Duration,
    /// As soon as the service has said it.
    instance: Arc<OnceLock<String>>,
    identity: Identity,
    /// The notice in force.
    current: Option<Notice>,
    complaint: Complaint,
    /// The service has answered a poll since the start. Until then this may just not be EC2.
    answered: bool,
}

impl AwsSource {
    /// A source that has asked nothing yet.
    ///
    /// # Errors
    /// [`SourceError`] for addresses that cannot be asked.
    pub fn new(options: AwsOptions) -> Result<Self, SourceError> {
        if options.poll_interval.is_zero() || options.outlook_interval.is_zero() {
            return Err(SourceError::PollInterval { service: DIALECT.service });
        }
        // Each loop has a client and a token of its own, so that neither waits for the other.
        let service = || Service::new(&DIALECT, &options.endpoints, options.request_timeout);
        let instance = Arc::default();
        let ahead = Ahead {
            service: service()?,
            interval: options.outlook_interval,
            lead: options.maintenance_lead,
            instance: Arc::clone(&instance),
            outlook: Outlook::default(),
            complaint: Complaint::default(),
        };
        let interruption = Interruption {
            service: service()?,
            poll_interval: options.poll_interval,
            instance,
            identity: Identity::default(),
            current: None,
            complaint: Complaint::default(),
            answered: false,
        };
        Ok(Self { interruption, ahead })
    }

    /// Writes into `identity` which instance this is, and into `zone` where, as soon as the service says so.
    #[must_use]
    pub fn telling(mut self, identity: Arc<OnceLock<Instance>>, zone: Arc<OnceLock<String>>) -> Self {
        (self.interruption.identity.told, self.interruption.identity.zone) = (identity, zone);
        self
    }
}

impl Interruption {
    async fn poll_forever(&mut self, events: &mpsc::Sender<NoticeEvent>) {
        let mut ticks = interval(self.poll_interval);
        // After a slow answer the next poll is one interval away; there is nothing to be caught up on.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let outcome = self.poll().await;
            self.report(outcome.as_ref().err());
            for event in self.digest(outcome) {
                if events.send(event).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Asks for the notice, and for the instance's id as long as that is not known.
    async fn poll(&mut self) -> Result<Option<InstanceAction>, Error> {
        let body = self.service.get(INSTANCE_ACTION).await?;
        if self.instance.get().is_none() {
            // Asked second, and its failure is passed over, because a notice is worth more than a name: it is tried again
            // at the next poll.
            let id = self.service.get(INSTANCE_ID).await.ok().flatten();
            if let Some(id) = id.and_then(|answer| identifier(&answer.body)) {
                let _ = self.instance.set(id);
            }
        }
        self.identity.learn(&mut self.service).await;
        let Some(Answer { body, .. }) = body else { return Ok(None) };
        match InstanceAction::parse(&body) {
            Ok(action) => Ok(Some(action)),
            Err(reason) => Err(self.service.malformed(INSTANCE_ACTION, &body, reason)),
        }
    }

    /// Writes the log lines about trouble.
    fn report(&mut self, error: Option<&Error>) {
        let Some(error) = error else {
            self.answered = true;
            if let Some(polls) = self.complaint.succeeded() {
                tracing::info!("the AWS metadata service answers again after {polls} failed polls");
            }
            return;
        };
        if self.complaint.failed(Instant::now()) {
            if self.answered {
                tracing::warn!("AWS interruption notices cannot be read, asking on: {error}");
            } else if self.complaint.failures() == 1 {
                // A host that never had an answer is most likely not on EC2: worth a line, but not one a minute for ever.
                tracing::info!("no AWS metadata service here so far, asking on: {error}");
            } else {
                tracing::debug!("still no AWS metadata service: {error}");
            }
        }
        if !error.is_transport() {
            self.answered = true;
        }
    }

    /// What a poll's outcome changes. A poll that failed changes nothing: no answer is not "no notice".
    fn digest(&mut self, outcome: Result<Option<InstanceAction>, Error>) -> Vec<NoticeEvent> {
        let Ok(answer) = outcome else { return Vec::new() };
        let repeated = |notice: &Notice| answer.as_ref().is_some_and(|answer| answer.action == notice.action);
        if self.current.as_ref().is_some_and(repeated) {
            return Vec::new();
        }
        let previous = self.current.take();
        let mut events = Vec::new();
        // A new notice before the end of the one it replaces, so that at no moment the host seems to be safe.
        if let Some(answer) = answer {
            let notice = self.notice(&answer);
            let left = notice.lead_time(notice.received).unwrap_or_default();
            tracing::warn!(notice = notice.id, "interruption notice: {notice}, in {:.0} s", left.as_secs_f64());
            self.current = Some(notice.clone());
            events.push(NoticeEvent::Noticed(notice));
        }
        if let Some(previous) = previous {
            tracing::warn!(notice = previous.id, "interruption notice withdrawn: {previous}");
            events.push(NoticeEvent::Cancelled { id: previous.id });
        }
        events
    }

    fn notice(&self, answer: &InstanceAction) -> Notice {
        let instance = self.instance.get().map_or(UNKNOWN_INSTANCE, String::as_str);
        Notice {
            id: format!("{}:{instance}:{}", Cloud::Aws, answer.action),
            cloud: Cloud::Aws,
            instance: instance.to_owned(),
            action: answer.action,
            certainty: Certainty::Certain,
            deadline: Some(answer.time),
            received: Timestamp::now(),
        }
    }
}

impl NoticeSource for AwsSource {
    fn name(&self) -> &'static str {
        "aws"
    }

    fn run(mut self: Box<Self>, events: mpsc::Sender<NoticeEvent>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Self { interruption, ahead } = &mut *self;
            tokio::select! {
                () = events.closed() => {}
                () = interruption.poll_forever(&events) => {}
                () = ahead.poll_forever(&events) => {}
            }
        })
    }
}

/// The loop that asks for what is said longer ahead.
struct Ahead {
    service: Service,
    interval: Duration,
    lead: Duration,
    instance: Arc<OnceLock<String>>,
    outlook: Outlook,
    complaint: Complaint,
}

impl Ahead {
    /// Begins an interval from now: the first questions are for an interruption, and for who we are.
    async fn poll_forever(&mut self, events: &mpsc::Sender<NoticeEvent>) {
        let mut ticks = interval_at(Instant::now() + self.interval, self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Where nobody says which instance this is, nobody says anything of its future either.
            let Some(instance) = self.instance.get().cloned() else { continue };
            for document in Document::ALL {
                let outcome = self.read(document, &instance).await;
                self.report(outcome.as_ref().err());
                // No answer is not "nothing".
                let Ok(notices) = outcome else { continue };
                for event in self.outlook.digest(document, notices) {
                    if events.send(event).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn read(&mut self, document: Document, instance: &str) -> Result<Vec<Notice>, Error> {
        let Some(Answer { body, .. }) = self.service.get(document.path()).await? else { return Ok(Vec::new()) };
        let reading = Reading { instance, now: Timestamp::now(), lead: self.lead };
        document.read(&body, &reading).map_err(|reason| self.service.malformed(document.path(), &body, reason))
    }

    fn report(&mut self, error: Option<&Error>) {
        let Some(error) = error else {
            self.complaint.succeeded();
            return;
        };
        if self.complaint.failed(Instant::now()) {
            tracing::warn!("what AWS plans for this instance cannot be read, asking on: {error}");
        }
    }
}

/// Which instance this is, so that others can ask its cloud about it. It does not change while the daemon runs.
#[derive(Debug, Default)]
struct Identity {
    told: Arc<OnceLock<Instance>>,
    zone: Arc<OnceLock<String>>,
    /// The service has answered, and not with a document that could be used.
    without: bool,
}

impl Identity {
    /// Asks until there is an answer, whatever it is. Like the id it comes after the notice.
    async fn learn(&mut self, service: &mut Service) {
        if self.without || self.told.get().is_some() {
            return;
        }
        let document = match service.get(IDENTITY).await {
            Ok(Some(document)) => document.body,
            Ok(None) => return self.forgo("there is no instance identity document"),
            Err(_) => return,
        };
        match IdentityDocument::parse(&document) {
            Ok((instance, zone)) => {
                tracing::info!("this host is {instance}");
                // The operator's word stands, if there is one.
                zone.into_iter().for_each(|zone| drop(self.zone.set(zone)));
                let _ = self.told.set(instance);
            }
            Err(reason) => self.forgo(&format!("the instance identity document cannot be used: {reason}")),
        }
    }

    fn forgo(&mut self, reason: &str) {
        self.without = true;
        tracing::warn!("other hosts will not be able to ask AWS whether this one is gone: {reason}");
    }
}

/// The document at `dynamic/instance-identity/document`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IdentityDocument {
    account_id: String,
    region: String,
    instance_id: String,
    #[serde(default)]
    availability_zone: Option<String>,
}

impl IdentityDocument {
    fn parse(text: &str) -> Result<(Instance, Option<String>), String> {
        let document: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let instance = Instance::aws(&document.account_id, &document.region, &document.instance_id);
        Ok((instance.map_err(|error| error.to_string())?, document.availability_zone))
    }
}

/// The document at `spot/instance-action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct InstanceAction {
    action: Action,
    time: Timestamp,
}

impl InstanceAction {
    /// The error is serde's, with line and column. Fields that AWS may add are ignored.
    fn parse(body: &str) -> Result<Self, String> {
        serde_json::from_str(body).map_err(|error| error.to_string())
    }
}
