//! Maintenance that Google plans days ahead, for machine families that show it: `instance/upcoming-maintenance`.
//!
//! From the Compute Engine documentation, "Monitor and plan for a host maintenance event" and the API's `UpcomingMaintenance`: with
//! `?alt=json` the value is `{"window_start_time": "2025-09-10T09:28:15+00:00", "window_end_time": …, "maintenance_status": "PENDING",
//! "type": "SCHEDULED", …}`, with RFC 3339 times and the statuses `PENDING`, `ONGOING` and `COMPLETE`; without a plan it is `{ }` or
//! `NONE`. Families that do not show it have no such value (404), and a server that has not been told anything yet answers 503.
//!
//! What becomes of the VM is its `scheduling/on-host-maintenance`: one that is migrated as it runs has no reason to leave.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use reqwest::StatusCode;
use serde::Deserialize;

use super::{action_at_maintenance, learn};
use crate::notice::metadata::{Error, Service};
use crate::notice::polling::Poll;
use crate::notice::{Action, Certainty, Cloud, Notice};

pub(super) const UPCOMING: &str = "computeMetadata/v1/instance/upcoming-maintenance";
pub(super) const ON_HOST_MAINTENANCE: &str = "computeMetadata/v1/instance/scheduling/on-host-maintenance";

/// The plan, asked for again and again: waiting for its change would not tell when its time comes near.
pub(super) struct Planned {
    service: Service,
    patience: Duration,
    lead: Duration,
    instance: Arc<OnceLock<String>>,
    /// As it was last told.
    plan: Option<Plan>,
    /// What becomes of the VM, as long as a plan is near.
    fate: Option<Fate>,
}

/// What a VM comes to when its host is maintained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is moved to another host as it runs.
    Moved,
    Ended(Action),
}

impl Planned {
    /// Becomes a notice `lead` before the window begins.
    pub(super) fn new(service: Service, patience: Duration, lead: Duration, instance: Arc<OnceLock<String>>) -> Self {
        Self { service, patience, lead, instance, plan: None, fate: None }
    }

    /// Hears the plan as it is now.
    async fn hear(&mut self) -> Result<(), Error> {
        let answer = match self.service.ask(UPCOMING, &[("alt", "json")], self.patience).await {
            // Nothing is known, so what was said stands; there are VMs that never hear anything else.
            Err(Error::Status { status: StatusCode::SERVICE_UNAVAILABLE, .. }) => return Ok(()),
            answer => answer?,
        };
        let plan = match answer {
            None => None,
            Some(answer) => {
                Plan::parse(&answer.body).map_err(|reason| self.service.malformed(UPCOMING, &answer.body, reason))?
            }
        };
        if plan != self.plan {
            match &plan {
                Some(Plan { window_start_time, .. }) => {
                    tracing::info!("Google plans maintenance from {window_start_time} on")
                }
                None => tracing::info!("Google does not plan maintenance any more"),
            }
        }
        self.plan = plan;
        Ok(())
    }

    async fn fate(&mut self) -> Fate {
        // A VM that does not say is taken for one that ends: leaving it costs less than that.
        let policy = self.service.get(ON_HOST_MAINTENANCE).await.ok().flatten();
        if policy.is_some_and(|answer| answer.body.trim() == "MIGRATE") {
            tracing::info!("the maintenance is near, and Google moves this VM as it runs; containers stay");
            return Fate::Moved;
        }
        Fate::Ended(action_at_maintenance(&mut self.service).await)
    }
}

impl Poll for Planned {
    async fn poll(&mut self) -> Result<Vec<Notice>, Error> {
        self.hear().await?;
        let now = Timestamp::now();
        let Some(deadline) = self.plan.as_ref().and_then(|plan| plan.due(now, self.lead)) else {
            self.fate = None;
            return Ok(Vec::new());
        };
        // It is told for minutes, so it can wait for the name.
        learn(&mut self.service, &self.instance).await;
        let Some(instance) = self.instance.get().cloned() else { return Ok(Vec::new()) };
        let fate = match self.fate {
            Some(fate) => fate,
            None => self.fate().await,
        };
        self.fate = Some(fate);
        let Fate::Ended(action) = fate else { return Ok(Vec::new()) };
        Ok(vec![Notice {
            // Without the time: a plan that is put off or brought forward is the same one.
            id: format!("{}:upcoming-maintenance-{instance}:{action}", Cloud::Gcp),
            cloud: Cloud::Gcp,
            instance,
            action,
            certainty: Certainty::Certain,
            deadline,
            received: now,
        }])
    }
}

/// The value, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Plan {
    window_start_time: Timestamp,
    #[serde(default)]
    window_end_time: Option<Timestamp>,
    #[serde(default)]
    maintenance_status: String,
}

impl Plan {
    /// `None` when nothing is planned.
    fn parse(body: &str) -> Result<Option<Self>, String> {
        if matches!(body.trim(), "NONE" | "\"NONE\"") {
            return Ok(None);
        }
        let fields: serde_json::Map<_, _> = serde_json::from_str(body).map_err(|error| error.to_string())?;
        if fields.is_empty() {
            return Ok(None);
        }
        let plan: Self = serde_json::from_value(fields.into()).map_err(|error| error.to_string())?;
        Ok(Some(plan).filter(|plan| plan.maintenance_status != "COMPLETE"))
    }

    /// Whether it is near, or going on; and when it begins, which nobody knows once its window is open.
    fn due(&self, now: Timestamp, lead: Duration) -> Option<Option<Timestamp>> {
        let start = self.window_start_time;
        if self.window_end_time.is_some_and(|end| end <= now) {
            return None;
        }
        if start <= now || self.maintenance_status == "ONGOING" {
            return Some(None);
        }
        let lead = SignedDuration::try_from(lead).unwrap_or(SignedDuration::MAX);
        (start.duration_since(now) <= lead).then_some(Some(start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAD: Duration = Duration::from_secs(600);

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn plan(status: &str) -> Plan {
        let body = format!(
            r#"{{"can_reschedule": "true", "latest_window_start_time": "2025-09-10T09:28:16+00:00",
                "maintenance_reasons": ["PLANNED_UPDATE"], "maintenance_status": "{status}", "type": "SCHEDULED",
                "window_end_time": "2025-09-10T13:28:15+00:00", "window_start_time": "2025-09-10T09:28:15+00:00"}}"#
        );
        Plan::parse(&body).unwrap().expect("a plan")
    }

    #[test]
    fn a_plan_is_a_notice_from_its_lead_on_until_its_window_closes() {
        let due = |status, now| plan(status).due(at(now), LEAD);
        assert_eq!(due("PENDING", "2025-09-03T09:28:15Z"), None, "a week ahead");
        assert_eq!(due("PENDING", "2025-09-10T09:18:14Z"), None);
        assert_eq!(due("PENDING", "2025-09-10T09:18:15Z"), Some(Some(at("2025-09-10T09:28:15Z"))));
        assert_eq!(due("PENDING", "2025-09-10T09:28:15Z"), Some(None), "any moment now");
        assert_eq!(due("ONGOING", "2025-09-03T09:28:15Z"), Some(None), "brought forward by hand");
        assert_eq!(due("ONGOING", "2025-09-10T13:28:15Z"), None);
    }

    #[test]
    fn what_says_that_nothing_is_planned_is_no_plan_and_nonsense_neither() {
        for nothing in ["{ }", "{}", "NONE\n", "\"NONE\""] {
            assert_eq!(Plan::parse(nothing), Ok(None), "{nothing}");
        }
        let done = r#"{"window_start_time": "2025-09-10T09:28:15Z", "maintenance_status": "COMPLETE"}"#;
        assert_eq!(Plan::parse(done), Ok(None));
        for nonsense in ["", "<html>", "[]", "[ \"some event\" ]", r#"{"window_start_time": "soon"}"#, r#"{"a": 1}"#] {
            Plan::parse(nonsense).unwrap_err();
        }
    }
}
