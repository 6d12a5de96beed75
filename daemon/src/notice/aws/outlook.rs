//! What EC2 says of an instance's future besides an interruption: all of it minutes or days ahead.
//!
//! From the EC2 and the Auto Scaling user guide, below `meta-data/`; each is absent (404) or empty as long as there is nothing to say:
//!
//! | path | content | notice |
//! |---|---|---|
//! | `events/recommendations/rebalance` | `{"noticeTime": "2020-10-27T08:22:00Z"}` | likely, no deadline: `aws:INSTANCE:rebalance` |
//! | `events/maintenance/scheduled` | a list of events, see [`Maintenance`] | certain, from `lead` before its time on: `aws:EVENT:stop` or `:reboot` |
//! | `autoscaling/target-lifecycle-state` | `InService`, `Terminated`, … | certain, no deadline: `aws:INSTANCE/autoscaling:terminate` |
//!
//! A retired instance is stopped if its root is an EBS volume, and terminated otherwise; which of them is not said here, so it is
//! taken for stopped: what may be started again must not open a fence.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use crate::notice::metadata::identifier;
use crate::notice::{Action, Certainty, Cloud, Notice, NoticeEvent};

const REBALANCE: &str = "latest/meta-data/events/recommendations/rebalance";
const MAINTENANCE: &str = "latest/meta-data/events/maintenance/scheduled";
const LIFECYCLE: &str = "latest/meta-data/autoscaling/target-lifecycle-state";

/// One of the documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Document {
    Rebalance,
    Maintenance,
    Lifecycle,
}

impl Document {
    pub(super) const ALL: [Self; 3] = [Self::Rebalance, Self::Maintenance, Self::Lifecycle];

    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Rebalance => REBALANCE,
            Self::Maintenance => MAINTENANCE,
            Self::Lifecycle => LIFECYCLE,
        }
    }

    /// The notices that are in force by it at a moment; the error says what makes no sense in it.
    pub(super) fn read(self, body: &str, of: &Reading<'_>) -> Result<Vec<Notice>, String> {
        match self {
            Self::Rebalance => {
                let _: RebalanceRecommendation = json(body)?;
                Ok(vec![rebalance(of.instance, of.now)])
            }
            Self::Maintenance => {
                let mut notices = Vec::new();
                for maintenance in json::<Vec<Maintenance>>(body)? {
                    notices.extend(maintenance.notice(of)?);
                }
                Ok(notices)
            }
            // Other states are of no concern: on its way into service, in a warm pool, on standby, detached.
            Self::Lifecycle => match body.trim() {
                "Terminated" | "Warmed:Terminated" => Ok(vec![scale_in(of.instance, of.now)]),
                _ => Ok(Vec::new()),
            },
        }
    }
}

/// From where and when a document is read.
pub(super) struct Reading<'a> {
    pub(super) instance: &'a str,
    pub(super) now: Timestamp,
    /// So long before a maintenance it becomes a notice.
    pub(super) lead: Duration,
}

/// "EC2 instance rebalance recommendation": likelier than usual to be interrupted, at a time that nobody knows.
pub(in crate::notice) fn rebalance(instance: &str, received: Timestamp) -> Notice {
    Notice {
        id: format!("{}:{instance}:rebalance", Cloud::Aws),
        cloud: Cloud::Aws,
        instance: instance.to_owned(),
        action: Action::Terminate,
        certainty: Certainty::Likely,
        deadline: None,
        received,
    }
}

/// The Auto Scaling group terminates it, when its lifecycle hooks have ended: at once if there is none.
pub(in crate::notice) fn scale_in(instance: &str, received: Timestamp) -> Notice {
    let certain = rebalance(instance, received);
    Notice { id: scale_in_id(instance), certainty: Certainty::Certain, ..certain }
}

fn scale_in_id(instance: &str) -> String {
    format!("{}:{instance}/autoscaling:{}", Cloud::Aws, Action::Terminate)
}

/// Whether a notice is that of its Auto Scaling group.
pub(in crate::notice) fn is_scale_in(notice: &Notice) -> bool {
    notice.id == scale_in_id(&notice.instance)
}

fn json<'a, T: Deserialize<'a>>(body: &'a str) -> Result<T, String> {
    serde_json::from_str(body).map_err(|error| error.to_string())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RebalanceRecommendation {
    #[expect(dead_code, reason = "that it can be read is what tells a recommendation from nonsense")]
    notice_time: Timestamp,
}

/// One event of the list (EC2 user guide, "Scheduled events for your instances").
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Maintenance {
    code: String,
    /// Such as `21 Jan 2019 09:00:43 GMT`.
    not_before: String,
    event_id: String,
    /// `active`, `completed` or `canceled`.
    state: String,
}

impl Maintenance {
    fn notice(&self, of: &Reading<'_>) -> Result<Option<Notice>, String> {
        let not_before = time(&self.not_before)?;
        let lead = SignedDuration::try_from(of.lead).unwrap_or(SignedDuration::MAX);
        let event = identifier(&self.event_id).ok_or_else(|| format!("{:?} is no event's id", self.event_id))?;
        if self.state != "active" || not_before.duration_since(of.now) > lead {
            return Ok(None);
        }
        let action = match self.code.as_str() {
            "instance-stop" | "instance-retirement" => Action::Stop,
            // instance-reboot, system-reboot, system-maintenance ("may be rebooted"), and what does not exist yet.
            _ => Action::Reboot,
        };
        Ok(Some(Notice {
            id: format!("{}:{event}:{action}", Cloud::Aws),
            cloud: Cloud::Aws,
            instance: of.instance.to_owned(),
            action,
            certainty: Certainty::Certain,
            deadline: Some(not_before),
            received: of.now,
        }))
    }
}

/// The user guide's format, which is always in GMT.
fn time(text: &str) -> Result<Timestamp, String> {
    let wrong = || format!("{text:?} is not a time such as \"21 Jan 2019 09:00:43 GMT\"");
    let text = text.trim().strip_suffix("GMT").ok_or_else(wrong)?;
    let civil = DateTime::strptime("%d %b %Y %H:%M:%S", text.trim()).map_err(|_| wrong())?;
    TimeZone::UTC.to_timestamp(civil).map_err(|_| wrong())
}

/// What the documents said when they were last read.
#[derive(Debug, Default)]
pub(super) struct Outlook(BTreeMap<Document, BTreeMap<String, Notice>>);

impl Outlook {
    /// What another reading of one of them changes. What is new comes before what is over, so that at no moment the host seems to be safe.
    pub(super) fn digest(&mut self, document: Document, notices: Vec<Notice>) -> Vec<NoticeEvent> {
        let before = self.0.remove(&document).unwrap_or_default();
        let now: BTreeMap<String, Notice> = notices.into_iter().map(|notice| (notice.id.clone(), notice)).collect();
        let is_new = |notice: &&Notice| before.get(&notice.id).is_none_or(|known| known.deadline != notice.deadline);
        let mut events: Vec<_> = now.values().filter(is_new).cloned().map(NoticeEvent::Noticed).collect();
        let over = before.into_keys().filter(|id| !now.contains_key(id));
        events.extend(over.map(|id| NoticeEvent::Cancelled { id }));
        self.0.insert(document, now);
        events
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const INSTANCE: &str = "i-0abc";
    const BEFORE: &str = "2019-01-21T09:00:43Z";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn read(document: Document, body: &str, now: &str) -> Result<Vec<Notice>, String> {
        document.read(body, &Reading { instance: INSTANCE, now: at(now), lead: Duration::from_secs(600) })
    }

    /// The user guide's example, with another code and state.
    fn scheduled(code: &str, state: &str) -> String {
        let event = json!([{
            "NotBefore": "21 Jan 2019 09:00:43 GMT", "Code": code, "Description": "scheduled",
            "EventId": "instance-event-0d59937288b749b32", "NotAfter": "21 Jan 2019 09:17:23 GMT", "State": state,
        }]);
        format!("{event:#}")
    }

    #[test]
    fn a_recommendation_is_likely_and_ends_nothing_for_good() {
        let read = |body| read(Document::Rebalance, body, BEFORE);
        let notice = read(r#"{"noticeTime":"2020-10-27T08:22:00Z"}"#).unwrap().remove(0);
        assert_eq!((notice.id.as_str(), notice.certainty), ("aws:i-0abc:rebalance", Certainty::Likely));
        assert_eq!(notice.deadline, None);
        for nonsense in ["", "{}", r#"{"noticeTime":"soon"}"#, "<html>"] {
            read(nonsense).unwrap_err();
        }
    }

    #[test]
    fn a_maintenance_is_a_notice_from_its_lead_on_while_it_is_active() {
        let read = |code, state, now| read(Document::Maintenance, &scheduled(code, state), now).unwrap();
        assert!(read("system-reboot", "active", "2019-01-14T09:00:43Z").is_empty(), "a week ahead");
        assert!(read("system-reboot", "active", "2019-01-21T08:50:42Z").is_empty());
        let notice = read("system-reboot", "active", "2019-01-21T08:50:43Z").remove(0);
        assert_eq!(notice.id, "aws:instance-event-0d59937288b749b32:reboot");
        assert_eq!((notice.certainty, notice.deadline), (Certainty::Certain, Some(at(BEFORE))));
        for state in ["completed", "canceled"] {
            assert!(read("system-reboot", state, BEFORE).is_empty(), "{state}");
        }
    }

    #[test]
    fn no_maintenance_opens_a_fence() {
        for (code, action) in [
            ("instance-stop", Action::Stop),
            ("instance-retirement", Action::Stop),
            ("instance-reboot", Action::Reboot),
            ("system-reboot", Action::Reboot),
            ("system-maintenance", Action::Reboot),
            ("levitation", Action::Reboot),
        ] {
            let notice = read(Document::Maintenance, &scheduled(code, "active"), BEFORE).unwrap().remove(0);
            assert_eq!(notice.action, action, "{code}");
            assert!(!notice.id.ends_with(":terminate"), "{code}");
        }
    }

    #[test]
    fn nonsense_is_no_maintenance() {
        assert_eq!(read(Document::Maintenance, "[]", BEFORE), Ok(Vec::new()));
        let good = scheduled("system-reboot", "active");
        for (from, to) in
            [("GMT", "CET"), ("21 Jan", "21 Foo"), ("09:00:43", "9 o'clock"), ("instance-event", "in:event")]
        {
            assert!(read(Document::Maintenance, &good.replace(from, to), BEFORE).is_err(), "{to}");
        }
        assert_eq!(time("1 Feb 2026 00:00:00 GMT"), Ok(at("2026-02-01T00:00:00Z")));
    }

    #[test]
    fn only_a_group_that_terminates_the_instance_takes_it_away() {
        for (state, count) in [("InService", 0), ("Standby", 0), ("Warmed:Stopped", 0), ("Terminated\n", 1), ("", 0)] {
            assert_eq!(read(Document::Lifecycle, state, BEFORE).unwrap().len(), count, "{state:?}");
        }
        let notice = read(Document::Lifecycle, "Terminated", BEFORE).unwrap().remove(0);
        assert_eq!((notice.id.as_str(), notice.deadline), ("aws:i-0abc/autoscaling:terminate", None));
    }

    #[test]
    fn what_is_read_again_is_told_once_and_its_end_too() {
        let mut outlook = Outlook::default();
        let mut heard = |body: &str| {
            let notices = read(Document::Maintenance, body, BEFORE).unwrap();
            outlook.digest(Document::Maintenance, notices)
        };
        let active = scheduled("system-reboot", "active");
        assert!(matches!(&heard(&active)[..], [NoticeEvent::Noticed(_)]));
        assert!(heard(&active).is_empty());
        let put_off = active.replace("09:00:43", "09:05:00");
        assert!(matches!(&heard(&put_off)[..], [NoticeEvent::Noticed(notice)] if notice.deadline != Some(at(BEFORE))));
        let id = "aws:instance-event-0d59937288b749b32:reboot".to_owned();
        assert_eq!(heard("[]"), [NoticeEvent::Cancelled { id }]);
        let other = active.replace("0d59", "ffff");
        assert!(matches!(&heard(&other)[..], [NoticeEvent::Noticed(_)]));
        assert_eq!(outlook.digest(Document::Rebalance, Vec::new()), [], "the documents are apart");
    }
}
