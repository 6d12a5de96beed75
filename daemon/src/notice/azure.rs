//! Microsoft Azure: Scheduled Events, from the instance metadata service.
//!
//! From the Azure documentation, "Scheduled Events for Linux VMs" (API version 2020-07-01): every request carries `Metadata: true`;
//! `GET /metadata/scheduledevents` answers `{"DocumentIncarnation": 2, "Events": [...]}` with one entry per event that is scheduled or has
//! started: `EventId`, `EventType` (`Freeze`, `Reboot`, `Redeploy`, `Preempt`, `Terminate`), `Resources` (the names of the VMs that it concerns,
//! which may be others of the same set), `EventStatus` (`Scheduled` or `Started`), `NotBefore` (RFC 1123; empty once it has started),
//! `EventSource`, `DurationInSeconds` (−1 if not known, 0 if the VM does not notice). Preemptions are told 30 s ahead at best, reboots 15
//! minutes, redeployments 10, terminations 5 to 15 as configured; after a failure of hardware there is only `Started`. An event that was
//! called off, or is over, is not listed any more. The first request turns the service on and may take two minutes. It is meant to
//! be asked once a second.
//!
//! `POST {"StartRequests": [{"EventId": ...}]}` to the same address approves an event, which then need not wait for `NotBefore`, *for all*
//! of its VMs. So an event that concerns others too is left to its time.
//!
//! From "Azure Instance Metadata Service", `GET /metadata/instance/compute`: `name` is the VM's name (in a scale set `SET_N`), `evictionPolicy`
//! of a spot VM `Deallocate` or `Delete`.
//!
//! A `Freeze`, and whatever takes no time, is no reason to leave: the VM is paused for some seconds, with memory and connections. A
//! `Redeploy` is a reboot on other hardware; the disks of the VM stay, but for the ephemeral one.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::detect::Probe;
use super::metadata::{Dialect, Error, Service, identifier};
use super::polling::{Poll, poll_forever};
use super::{Acknowledge, Action, Certainty, Cloud, Notice, NoticeEvent, NoticeSource, SourceError};

const DIALECT: Dialect = Dialect { service: "Azure", request: Some(("Metadata", "true")), answer: None, tokens: None };
const EVENTS: &str = "metadata/scheduledevents";
const EVENTS_QUERY: &[(&str, &str)] = &[("api-version", "2020-07-01")];
const COMPUTE: &str = "metadata/instance/compute";
pub(super) const COMPUTE_QUERY: &[(&str, &str)] = &[("api-version", "2021-02-01"), ("format", "json")];
/// How often an approval is tried.
const APPROVALS: u32 = 3;
/// Time between two tries.
const PAUSE: Duration = Duration::from_secs(1);

/// By the id that every VM has, in a document that no other cloud has.
pub(super) static PROBE: Probe = Probe {
    dialect: &DIALECT,
    path: COMPUTE,
    query: COMPUTE_QUERY,
    is_it: |body| serde_json::from_str::<Value>(body).is_ok_and(|document| document["vmId"].is_string()),
};

/// RFC 1123 as Azure writes it; the day of the week in the documentation's own example is a wrong one.
static TIMES: rfc2822::DateTimeParser = rfc2822::DateTimeParser::new().relaxed_weekday(true);

/// Where to ask, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AzureOptions {
    /// Bases of the service's addresses.
    pub(super) endpoints: Vec<String>,
    /// Time from one poll to the next.
    pub(super) poll_interval: Duration,
    /// Time that the first request for events may take. Default 130 s: two minutes are documented.
    pub(super) first_timeout: Duration,
    /// Time that any other request may take. Default 5 s.
    pub(super) request_timeout: Duration,
}

impl Default for AzureOptions {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://169.254.169.254".to_owned()],
            poll_interval: Duration::from_secs(1),
            first_timeout: Duration::from_secs(130),
            request_timeout: Duration::from_secs(5),
        }
    }
}

/// Polls the events of the VM that this runs on.
pub(super) struct AzureSource {
    poller: Poller,
    poll_interval: Duration,
    approver: Arc<Approver>,
}

struct Poller {
    service: Service,
    first_timeout: Duration,
    request_timeout: Duration,
    /// The service has answered once, and so is turned on.
    on: bool,
    compute: Option<Compute>,
    /// Events that were written of in the log.
    told: BTreeSet<String>,
    /// For [`Approver`].
    approvable: Arc<Mutex<HashMap<String, String>>>,
}

impl AzureSource {
    /// A source that has asked nothing yet.
    ///
    /// # Errors
    /// [`SourceError`] for addresses that cannot be asked, and for an interval of zero.
    pub(super) fn new(options: &AzureOptions) -> Result<Self, SourceError> {
        if options.poll_interval.is_zero() {
            return Err(SourceError::PollInterval { service: DIALECT.service });
        }
        let service = || Service::new(&DIALECT, &options.endpoints, options.request_timeout);
        let approvable = Arc::default();
        Ok(Self {
            approver: Arc::new(Approver {
                service: Arc::new(tokio::sync::Mutex::new(service()?)),
                approvable: Arc::clone(&approvable),
            }),
            poller: Poller {
                service: service()?,
                first_timeout: options.first_timeout,
                request_timeout: options.request_timeout,
                on: false,
                compute: None,
                told: BTreeSet::new(),
                approvable,
            },
            poll_interval: options.poll_interval,
        })
    }
}

impl NoticeSource for AzureSource {
    fn name(&self) -> &'static str {
        "azure"
    }

    fn run(self: Box<Self>, events: mpsc::Sender<NoticeEvent>) -> BoxFuture<'static, ()> {
        Box::pin(poll_forever(self.poller, DIALECT.service, self.poll_interval, events))
    }

    fn acknowledger(&self) -> Option<Arc<dyn Acknowledge>> {
        Some(Arc::clone(&self.approver) as Arc<dyn Acknowledge>)
    }
}

impl Poll for Poller {
    async fn poll(&mut self) -> Result<Vec<Notice>, Error> {
        if self.compute.is_none() {
            // Without the name nothing can be made of the events; but asking for them turns the service on.
            self.compute = self.ask_compute().await.inspect_err(|error| tracing::debug!("{error}")).ok();
        }
        let patience = if self.on { self.request_timeout } else { self.first_timeout };
        let answer = self.service.ask(EVENTS, EVENTS_QUERY, patience).await?;
        let Some(answer) = answer else {
            return Err(self.service.malformed(EVENTS, "404 Not Found", "there is no service of scheduled events"));
        };
        let document: Document = match serde_json::from_str(&answer.body) {
            Ok(document) => document,
            Err(error) => return Err(self.service.malformed(EVENTS, &answer.body, error.to_string())),
        };
        self.on = true;
        if document.events.is_empty() {
            self.told.clear();
            self.publish(HashMap::new());
            return Ok(Vec::new());
        }
        let Some(compute) = self.compute.clone() else {
            let reason = "it lists events, and the name of this VM is not known yet";
            return Err(self.service.malformed(EVENTS, &answer.body, reason));
        };
        let mut notices = Vec::new();
        let mut approvable = HashMap::new();
        for value in &document.events {
            match Event::deserialize(value) {
                Ok(event) => {
                    let Some(notice) = self.notice(&event, &compute) else { continue };
                    if event.status == Status::Scheduled && event.resources.iter().all(|name| compute.is_called(name)) {
                        approvable.insert(notice.id.clone(), event.id);
                    }
                    notices.push(notice);
                }
                // One that nobody understands does not hide the others.
                Err(error) => self.tell_once(&value.to_string(), || {
                    tracing::warn!("an event of Azure is not understood ({error}): {value}");
                }),
            }
        }
        self.publish(approvable);
        Ok(notices)
    }
}

impl Poller {
    async fn ask_compute(&mut self) -> Result<Compute, Error> {
        let patience = self.request_timeout;
        let body =
            self.service.ask(COMPUTE, COMPUTE_QUERY, patience).await?.map(|answer| answer.body).unwrap_or_default();
        let compute: Compute =
            serde_json::from_str(&body).map_err(|error| self.service.malformed(COMPUTE, &body, error.to_string()))?;
        match identifier(&compute.name) {
            Some(name) => Ok(Compute { name, ..compute }),
            None => Err(self.service.malformed(COMPUTE, &body, "it does not name this VM")),
        }
    }

    /// What the event is to this host; nothing if it is about others, or no reason to leave.
    fn notice(&mut self, event: &Event, compute: &Compute) -> Option<Notice> {
        if !event.resources.iter().any(|name| compute.is_called(name)) {
            return None;
        }
        let action = match event.kind.as_str() {
            "Preempt" if compute.is_deleted() => Action::Terminate,
            "Preempt" => Action::Stop,
            "Terminate" => Action::Terminate,
            "Reboot" | "Redeploy" if event.takes_time() => Action::Reboot,
            kind => {
                self.tell_once(&event.id, || {
                    tracing::info!(event = event.id, kind, "an event of Azure that is no reason to leave");
                });
                return None;
            }
        };
        Some(Notice {
            id: format!("{}:{}:{action}", Cloud::Azure, identifier(&event.id)?),
            cloud: Cloud::Azure,
            instance: compute.name.clone(),
            action,
            certainty: Certainty::Certain,
            deadline: self.deadline(event),
            received: Timestamp::now(),
        })
    }

    /// `None` once it has started, because it may be over at any moment.
    fn deadline(&mut self, event: &Event) -> Option<Timestamp> {
        if event.not_before.is_empty() {
            return None;
        }
        let time = TIMES.parse_timestamp(&event.not_before);
        if let Err(error) = &time {
            self.tell_once(&event.id, || {
                tracing::warn!(event = event.id, "Azure does not say when: {:?}: {error}", event.not_before);
            });
        }
        time.ok()
    }

    fn tell_once(&mut self, event: &str, tell: impl FnOnce()) {
        if self.told.insert(event.to_owned()) {
            tell();
        }
    }

    fn publish(&self, approvable: HashMap<String, String>) {
        *self.approvable.lock().unwrap_or_else(PoisonError::into_inner) = approvable;
    }
}

/// Approves events that concern nobody but this VM.
struct Approver {
    service: Arc<tokio::sync::Mutex<Service>>,
    /// By the id of its notice, the id of each event that may be approved.
    approvable: Arc<Mutex<HashMap<String, String>>>,
}

impl Acknowledge for Approver {
    fn acknowledge(&self, notice: &Notice) -> BoxFuture<'static, ()> {
        let approvable = self.approvable.lock().unwrap_or_else(PoisonError::into_inner).get(&notice.id).cloned();
        let (service, id) = (Arc::clone(&self.service), notice.id.clone());
        Box::pin(async move {
            let Some(event) = approvable else {
                tracing::info!(
                    notice = id,
                    "Azure is not told: the event has begun, is over, or concerns other VMs too"
                );
                return;
            };
            let request = json!({"StartRequests": [{"EventId": event}]}).to_string();
            let mut service = service.lock().await;
            for attempt in 1..=APPROVALS {
                match service.post(EVENTS, EVENTS_QUERY, request.clone()).await {
                    Ok(()) => {
                        tracing::info!(notice = id, "Azure is told that it need not wait any longer");
                        return;
                    }
                    Err(error) => tracing::warn!(notice = id, attempt, "Azure was not told: {error}"),
                }
                sleep(PAUSE).await;
            }
        })
    }
}

/// What is known of the VM.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Compute {
    name: String,
    #[serde(default)]
    eviction_policy: String,
}

impl Compute {
    /// Names of Azure's resources differ by more than case.
    fn is_called(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// Whether nothing is left of it after an eviction.
    fn is_deleted(&self) -> bool {
        self.eviction_policy.eq_ignore_ascii_case("Delete")
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    events: Vec<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    #[serde(rename = "EventId")]
    id: String,
    #[serde(rename = "EventType")]
    kind: String,
    resources: Vec<String>,
    #[serde(rename = "EventStatus")]
    status: Status,
    #[serde(default)]
    not_before: String,
    /// Absent in older versions of the service.
    duration_in_seconds: Option<i64>,
}

impl Event {
    fn takes_time(&self) -> bool {
        self.duration_in_seconds != Some(0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Status {
    Scheduled,
    Started,
}
