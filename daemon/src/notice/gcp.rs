//! Google Compute Engine: preemption and host maintenance, from the metadata server.
//!
//! From the Compute Engine documentation:
//! - "View and query VM metadata": every request carries `Metadata-Flavor: Google`, and so does every answer of the real server;
//!   `?wait_for_change=true` holds the answer back until the value changes, with `last_etag` from the value that has the `ETag`
//!   of the last answer, and for `timeout_sec` at most, after which it is answered as it is.
//! - "Create and use Spot VMs", "Detect preemption": `instance/preempted` changes from `FALSE` to `TRUE` when preemption begins.
//! - "Spot VMs", "Preemption process": then comes the notice period that was chosen when the VM was made
//!   (`scheduling.preemptionNoticeDuration`, none or 120 s), then an ACPI power button, best effort up to 30 s, and the VM is
//!   stopped, or deleted if `scheduling.instanceTerminationAction` says so. The server names neither the time nor the action.
//! - "Query metadata server for maintenance event notices": `instance/maintenance-event` is `NONE`, `MIGRATE_ON_HOST_MAINTENANCE`
//!   or `TERMINATE_ON_HOST_MAINTENANCE`, 60 s ahead (an hour for VMs with GPUs). `instance/scheduling/automatic-restart` says whether
//!   a VM that was stopped for maintenance is started again.
//!
//! The two values are watched at the same time, each by a request of its own that waits at the server. A live migration is no
//! reason to leave: it keeps memory and connections, and takes less than a second of the VM's time. What is planned days ahead
//! ([`planned`]) is asked for by a loop of its own.

mod planned;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use self::planned::Planned;
use super::detect::Probe;
use super::metadata::{Answer, Dialect, Error, Service, identifier};
use super::polling::{InForce, Trouble, poll_forever};
use super::{Action, Certainty, Cloud, Notice, NoticeEvent, NoticeSource, SourceError, UNKNOWN_INSTANCE};

const DIALECT: Dialect = Dialect {
    service: "Google Compute Engine",
    request: Some(("Metadata-Flavor", "Google")),
    answer: Some(("Metadata-Flavor", "Google")),
    tokens: None,
};
const INSTANCE_ID: &str = "computeMetadata/v1/instance/id";
const PREEMPTED: &str = "computeMetadata/v1/instance/preempted";
const MAINTENANCE: &str = "computeMetadata/v1/instance/maintenance-event";
const AUTOMATIC_RESTART: &str = "computeMetadata/v1/instance/scheduling/automatic-restart";
/// The shortest notice of maintenance that is documented.
const MAINTENANCE_NOTICE: Duration = Duration::from_secs(60);

/// By its number and the header no other cloud has.
pub(super) static PROBE: Probe = Probe {
    dialect: &DIALECT,
    path: INSTANCE_ID,
    query: &[],
    is_it: |body| !body.trim().is_empty() && body.trim().bytes().all(|byte| byte.is_ascii_digit()),
};

/// Where to ask, and what the server does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GcpOptions {
    /// Bases of the server's addresses.
    pub(super) endpoints: Vec<String>,
    /// Time from `preempted` to the end of the VM.
    pub(super) notice_period: Duration,
    /// What a preempted VM comes to: [`Action::Stop`] or [`Action::Terminate`].
    pub(super) reclaim: Action,
    /// How long the server may hold an answer back. Default 60 s.
    pub(super) wait: Duration,
    /// Time that one request may take besides. Default 1 s.
    pub(super) request_timeout: Duration,
    /// Time between two questions when the server does not hold its answers back. Default 1 s.
    pub(super) poll_interval: Duration,
    /// Time from one look at what is planned to the next. Default 5 s.
    pub(super) outlook_interval: Duration,
    /// Planned maintenance becomes a notice so long before its window begins. Default 10 min.
    pub(super) maintenance_lead: Duration,
}

impl Default for GcpOptions {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://169.254.169.254".to_owned(), "http://metadata.google.internal".to_owned()],
            notice_period: Duration::from_secs(30),
            reclaim: Action::Stop,
            wait: Duration::from_secs(60),
            request_timeout: Duration::from_secs(1),
            poll_interval: Duration::from_secs(1),
            outlook_interval: Duration::from_secs(5),
            maintenance_lead: Duration::from_secs(600),
        }
    }
}

/// Waits at the metadata server of the VM that this runs on.
pub(super) struct GcpSource {
    preempted: Watch,
    maintenance: Watch,
    planned: Planned,
    outlook_interval: Duration,
}

impl GcpSource {
    /// A source that has asked nothing yet.
    ///
    /// # Errors
    /// [`SourceError`] for addresses that cannot be asked.
    pub(super) fn new(options: &GcpOptions) -> Result<Self, SourceError> {
        let instance = Arc::default();
        let service = || Service::new(&DIALECT, &options.endpoints, options.request_timeout);
        let watch = |meaning| -> Result<Watch, SourceError> {
            Ok(Watch {
                service: service()?,
                meaning,
                options: options.clone(),
                instance: Arc::clone(&instance),
                trouble: Trouble::with(DIALECT.service),
                in_force: InForce::default(),
            })
        };
        let planned =
            Planned::new(service()?, options.request_timeout, options.maintenance_lead, Arc::clone(&instance));
        Ok(Self {
            preempted: watch(Meaning::Preempted)?,
            maintenance: watch(Meaning::Maintenance)?,
            planned,
            outlook_interval: options.outlook_interval,
        })
    }
}

impl NoticeSource for GcpSource {
    fn name(&self) -> &'static str {
        "gcp"
    }

    fn run(self: Box<Self>, events: mpsc::Sender<NoticeEvent>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Self { mut preempted, mut maintenance, planned, outlook_interval } = *self;
            tokio::select! {
                () = events.closed() => {}
                () = preempted.follow(&events) => {}
                () = maintenance.follow(&events) => {}
                () = poll_forever(planned, DIALECT.service, outlook_interval, events.clone()) => {}
            }
        })
    }
}

/// Which value is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Preempted,
    Maintenance,
}

/// One value of the server, followed by a request that waits for its change.
struct Watch {
    service: Service,
    meaning: Meaning,
    options: GcpOptions,
    /// The VM's number, once one of the two has heard it.
    instance: Arc<OnceLock<String>>,
    trouble: Trouble,
    in_force: InForce,
}

impl Watch {
    /// Until nobody listens any more.
    async fn follow(&mut self, events: &mpsc::Sender<NoticeEvent>) {
        let mut last: Option<Answer> = None;
        loop {
            let asked = Instant::now();
            let outcome = self.ask(last.as_ref()).await;
            let changed = match &outcome {
                Ok((answer, _)) => last.as_ref().is_none_or(|last| last.body != answer.body),
                Err(_) => false,
            };
            self.trouble.report(outcome.as_ref().err());
            match outcome {
                Ok((answer, notices)) => {
                    last = Some(answer);
                    if self.in_force.tell(notices, events).await.is_err() {
                        return;
                    }
                }
                // What it says now is better asked for than waited for.
                Err(_) => last = None,
            }
            if !changed {
                // A server that answers at once although nothing has changed, or fails, is not asked all the time.
                sleep_until(asked + self.options.poll_interval).await;
            }
        }
    }

    /// Asks for the value: at once if none is known, else for its change. Returns it with what it means.
    async fn ask(&mut self, last: Option<&Answer>) -> Result<(Answer, Vec<Notice>), Error> {
        let path = match self.meaning {
            Meaning::Preempted => PREEMPTED,
            Meaning::Maintenance => MAINTENANCE,
        };
        let answer = match last.and_then(|last| last.etag.as_deref()) {
            None => self.service.get(path).await?,
            Some(etag) => {
                let seconds = self.options.wait.as_secs().to_string();
                let query = [("wait_for_change", "true"), ("last_etag", etag), ("timeout_sec", &seconds)];
                self.service.ask(path, &query, self.options.wait + self.options.request_timeout).await?
            }
        };
        let Some(answer) = answer else {
            return Err(self.service.malformed(path, "404 Not Found", "every VM has this value"));
        };
        learn(&mut self.service, &self.instance).await;
        let notices = match (self.meaning, answer.body.trim()) {
            (Meaning::Preempted, "FALSE") | (Meaning::Maintenance, "NONE") => Vec::new(),
            (Meaning::Preempted, "TRUE") | (Meaning::Maintenance, "TERMINATE_ON_HOST_MAINTENANCE") => {
                // Repeated as it was: that the id is known by now does not make it another notice.
                let known = self.in_force.first().cloned();
                vec![match (known, self.meaning) {
                    (Some(notice), _) => notice,
                    (None, Meaning::Preempted) => self.preemption(),
                    (None, Meaning::Maintenance) => self.maintenance().await,
                }]
            }
            // The VM is moved as it runs.
            (Meaning::Maintenance, "MIGRATE_ON_HOST_MAINTENANCE") => {
                if last.is_none_or(|last| last.body != answer.body) {
                    tracing::info!("Google moves this VM to another machine as it runs; containers stay");
                }
                Vec::new()
            }
            (_, body) => return Err(self.service.malformed(path, body, "this value is not documented")),
        };
        Ok((answer, notices))
    }

    fn preemption(&self) -> Notice {
        self.notice("", self.options.reclaim, self.options.notice_period)
    }

    async fn maintenance(&mut self) -> Notice {
        let action = action_at_maintenance(&mut self.service).await;
        self.notice("maintenance-", action, MAINTENANCE_NOTICE)
    }

    fn notice(&self, kind: &str, action: Action, period: Duration) -> Notice {
        let instance = self.instance.get().map_or(UNKNOWN_INSTANCE, String::as_str);
        let received = Timestamp::now();
        Notice {
            id: format!("{}:{kind}{instance}:{action}", Cloud::Gcp),
            cloud: Cloud::Gcp,
            instance: instance.to_owned(),
            action,
            certainty: Certainty::Certain,
            // Counted from when it is heard: the server keeps the answer back for no longer than a moment. A daemon that was
            // started after that believes that it has more time than it has.
            deadline: received.checked_add(period).ok(),
            received,
        }
    }
}

/// Asks for the VM's number, if it is not known. Asked second, and its failure is passed over, because a notice is worth more than a name.
async fn learn(service: &mut Service, instance: &OnceLock<String>) {
    if instance.get().is_none() {
        let id = service.get(INSTANCE_ID).await.ok().flatten();
        if let Some(id) = id.and_then(|answer| identifier(&answer.body)) {
            let _ = instance.set(id);
        }
    }
}

/// What becomes of a VM that is not moved as it runs. Whether it comes back is worth one question, and the notice waits no longer than
/// for that. Its disks stay in either case.
async fn action_at_maintenance(service: &mut Service) -> Action {
    let restart = service.get(AUTOMATIC_RESTART).await.ok().flatten();
    let restarts = restart.is_some_and(|answer| answer.body.trim().eq_ignore_ascii_case("TRUE"));
    if restarts { Action::Reboot } else { Action::Stop }
}
