//! What the service tells of an instance's future besides an interruption, as the EC2 and Auto Scaling user guides have it; and Google's server
//! of a planned maintenance, as "Monitor and plan for a host maintenance event" does.

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::tree::seconds;

/// A document that is there only while it has something to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Below the version; of Google's, the whole of it.
    pub path: &'static str,
    /// Its content.
    pub body: String,
}

/// A rebalance recommendation.
#[must_use]
pub fn rebalance(since: Timestamp) -> Document {
    let body = json!({ "noticeTime": seconds(since) }).to_string();
    Document { path: "meta-data/events/recommendations/rebalance", body }
}

/// One scheduled event. `code`: `system-reboot`, `instance-stop`, …; `state`: `active`, `completed` or `canceled`.
#[must_use]
pub fn maintenance(code: &str, not_before: Timestamp, state: &str) -> Document {
    let time = |at: Timestamp| at.strftime("%d %b %Y %H:%M:%S GMT").to_string();
    let event = json!([{
        "NotBefore": time(not_before),
        "Code": code,
        "Description": format!("scheduled {code}"),
        "EventId": "instance-event-0d59937288b749b32",
        "NotAfter": time(not_before),
        "State": state,
    }]);
    Document { path: "meta-data/events/maintenance/scheduled", body: format!("{event:#}") }
}

/// Where the Auto Scaling group wants the instance to be, such as `InService` or `Terminated`.
#[must_use]
pub fn lifecycle(state: &str) -> Document {
    Document { path: "meta-data/autoscaling/target-lifecycle-state", body: state.to_owned() }
}

/// Google's plan to maintain the host of a VM, with a window of two hours.
#[must_use]
pub fn upcoming_maintenance(start: Timestamp) -> Document {
    let time = |at: Timestamp| at.strftime("%Y-%m-%dT%H:%M:%S+00:00").to_string();
    let plan = json!({
        "can_reschedule": "true",
        "latest_window_start_time": time(start),
        "maintenance_reasons": ["PLANNED_UPDATE"],
        "maintenance_status": "PENDING",
        "type": "SCHEDULED",
        "window_end_time": time(start + SignedDuration::from_hours(2)),
        "window_start_time": time(start),
    });
    Document { path: "computeMetadata/v1/instance/upcoming-maintenance", body: plan.to_string() }
}
