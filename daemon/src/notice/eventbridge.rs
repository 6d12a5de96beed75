//! What AWS tells of an instance through EventBridge, as its rules put it into a queue: the same notices as the metadata service's, under
//! the same ids, so that both together are one.
//!
//! | `source`, `detail-type` | notice |
//! |---|---|
//! | `aws.ec2`, EC2 Spot Instance Interruption Warning | `aws:INSTANCE:ACTION`; the event comes two minutes ahead (but for hibernation, which begins at once) |
//! | `aws.ec2`, EC2 Instance Rebalance Recommendation | likely: `aws:INSTANCE:rebalance` |
//! | `aws.ec2`, EC2 Instance State-change Notification | `shutting-down`: `aws:INSTANCE:terminate`, `stopping`: `aws:INSTANCE:stop`, both at any moment |
//! | `aws.autoscaling`, EC2 Instance-terminate Lifecycle Action | `aws:INSTANCE/autoscaling:terminate` |
//! | `aws.health`, AWS Health Event (scheduled change) | `aws:EVENT:stop` or `:reboot`, from its lead on; void when the event is closed |
//!
//! Formats: "Monitor your Spot Instances using EventBridge" and "State change events" in the EC2 user guide, "EventBridge" in that of Auto
//! Scaling, "AWS Health events" in that of AWS Health.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::aws::outlook::{rebalance, scale_in};
use super::metadata::identifier;
use super::{Action, Certainty, Cloud, Notice, NoticeEvent};
use crate::provider::Instance;

/// "Two minutes before Amazon EC2 stops or terminates it".
const WARNING: SignedDuration = SignedDuration::from_secs(120);

/// An event that was in the queue for longer says nothing of now.
const OLDEST: SignedDuration = SignedDuration::from_mins(15);

/// From where and when a message is read.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    /// Which instance this is.
    pub(super) instance: Instance,
    pub(super) now: Timestamp,
    /// What is from before this machine started is over.
    pub(super) booted: Timestamp,
    /// So long before a maintenance it becomes a notice.
    pub(super) lead: Duration,
}

/// What a message means here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// Something happens to this host. `alone`: to no other one.
    Event { event: NoticeEvent, alone: bool },
    /// Something of this host, and nothing to be done about it.
    Nothing,
    /// Something will, and becomes a notice in so long.
    NotYet(Duration),
    /// It is about other instances, or something else altogether.
    Others,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Envelope {
    source: String,
    detail_type: String,
    account: String,
    region: String,
    time: Timestamp,
    detail: Value,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Interruption {
    instance_id: String,
    instance_action: Action,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct OfInstance {
    instance_id: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct StateChange {
    instance_id: String,
    state: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Lifecycle {
    #[serde(rename = "EC2InstanceId")]
    instance: String,
    lifecycle_transition: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Health {
    event_arn: String,
    service: String,
    event_type_code: String,
    event_type_category: String,
    #[serde(default)]
    status_code: Option<String>,
    /// As in mail headers: `Sat, 05 Jun 2021 15:10:09 GMT`.
    #[serde(default)]
    start_time: Option<String>,
    #[serde(default)]
    affected_entities: Vec<Entity>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entity {
    entity_value: String,
}

/// What a message's body means; the error says why it means nothing to anybody.
pub(super) fn read(body: &str, of: &Reading) -> Result<Said, String> {
    let envelope: Envelope = serde_json::from_str(body).map_err(|error| error.to_string())?;
    let Envelope { source, detail_type, account, region, time, detail } = envelope;
    let here = account == of.instance.account() && region == of.instance.region();
    let is_us = |id: &str| here && id == of.instance.id();
    let stale = time < of.booted || of.now.duration_since(time) > OLDEST;
    let said = |notice: Notice| match stale {
        true => Said::Nothing,
        false => Said::Event { event: NoticeEvent::Noticed(notice), alone: true },
    };
    let certain = |action: Action, deadline| Notice {
        id: format!("{}:{}:{action}", Cloud::Aws, of.instance.id()),
        cloud: Cloud::Aws,
        instance: of.instance.id().to_owned(),
        action,
        certainty: Certainty::Certain,
        deadline,
        received: of.now,
    };
    Ok(match (source.as_str(), detail_type.as_str()) {
        ("aws.ec2", "EC2 Spot Instance Interruption Warning") => {
            let Interruption { instance_id, instance_action } = parse(detail)?;
            let announced = instance_action != Action::Hibernate;
            match is_us(&instance_id) {
                true => said(certain(instance_action, announced.then(|| time.checked_add(WARNING).ok()).flatten())),
                false => Said::Others,
            }
        }
        ("aws.ec2", "EC2 Instance Rebalance Recommendation") => {
            let OfInstance { instance_id } = parse(detail)?;
            if is_us(&instance_id) { said(rebalance(&instance_id, of.now)) } else { Said::Others }
        }
        ("aws.ec2", "EC2 Instance State-change Notification") => {
            let StateChange { instance_id, state } = parse(detail)?;
            match state.as_str() {
                _ if !is_us(&instance_id) => Said::Others,
                "shutting-down" => said(certain(Action::Terminate, None)),
                "stopping" => said(certain(Action::Stop, None)),
                // It runs, as we know, or is no place to run any more.
                _ => Said::Nothing,
            }
        }
        ("aws.autoscaling", "EC2 Instance-terminate Lifecycle Action") => {
            let Lifecycle { instance, lifecycle_transition } = parse(detail)?;
            match lifecycle_transition.as_str() {
                _ if !is_us(&instance) => Said::Others,
                "autoscaling:EC2_INSTANCE_TERMINATING" => said(scale_in(&instance, of.now)),
                _ => Said::Nothing,
            }
        }
        ("aws.health", "AWS Health Event") => health(parse(detail)?, of, is_us)?,
        _ => Said::Others,
    })
}

fn health(event: Health, of: &Reading, is_us: impl Fn(&str) -> bool) -> Result<Said, String> {
    let ours = event.affected_entities.iter().any(|entity| is_us(&entity.entity_value));
    if event.service != "EC2" || event.event_type_category != "scheduledChange" || !ours {
        return Ok(Said::Others);
    }
    let alone = event.affected_entities.iter().all(|entity| is_us(&entity.entity_value));
    let code = &event.event_type_code;
    let action = if code.contains("STOP") || code.contains("RETIREMENT") { Action::Stop } else { Action::Reboot };
    let arn = &event.event_arn;
    let name = arn.rsplit('/').next().and_then(identifier).ok_or_else(|| format!("{arn:?} is no event's ARN"))?;
    let id = format!("{}:{name}:{action}", Cloud::Aws);
    if event.status_code.as_deref() == Some("closed") {
        return Ok(Said::Event { event: NoticeEvent::Cancelled { id }, alone });
    }
    let start = event.start_time.ok_or("there is no startTime")?;
    let wrong = |error: jiff::Error| format!("{start:?} is not a time of AWS Health: {error}");
    let start = jiff::fmt::rfc2822::parse(&start).map_err(wrong)?.timestamp();
    let until = Duration::try_from(start.duration_since(of.now)).unwrap_or_default();
    if let Some(wait) = until.checked_sub(of.lead).filter(|wait| !wait.is_zero()) {
        return Ok(Said::NotYet(wait));
    }
    if of.now.duration_since(start) > OLDEST {
        return Ok(Said::Nothing);
    }
    let notice = Notice {
        id,
        cloud: Cloud::Aws,
        instance: of.instance.id().to_owned(),
        action,
        certainty: Certainty::Certain,
        deadline: Some(start),
        received: of.now,
    };
    Ok(Said::Event { event: NoticeEvent::Noticed(notice), alone })
}

fn parse<T: DeserializeOwned>(detail: Value) -> Result<T, String> {
    serde_json::from_value(detail).map_err(|error| format!("in its detail: {error}"))
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    const US: &str = "i-1234567890abcdef0";
    const OTHER: &str = "i-0fedcba0987654321";

    pub(in crate::notice) fn instance() -> Instance {
        Instance::aws("123456789012", "eu-central-1", US).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn reading() -> Reading {
        Reading {
            instance: instance(),
            now: at("2026-01-01T00:00:10Z"),
            booted: at("2025-12-31T00:00:00Z"),
            lead: Duration::from_secs(600),
        }
    }

    pub(in crate::notice) fn event(source: &str, kind: &str, time: &str, detail: Value) -> String {
        json!({
            "version": "0", "id": "7bf73129-1428-4cd3-a780-95db273d1602", "detail-type": kind, "source": source,
            "account": "123456789012", "time": time, "region": "eu-central-1", "resources": [], "detail": detail,
        })
        .to_string()
    }

    pub(in crate::notice) fn interruption(instance: &str, action: &str, time: &str) -> String {
        let detail = json!({ "instance-id": instance, "instance-action": action });
        event("aws.ec2", "EC2 Spot Instance Interruption Warning", time, detail)
    }

    fn state(instance: &str, state: &str, time: &str) -> String {
        let detail = json!({ "instance-id": instance, "state": state });
        event("aws.ec2", "EC2 Instance State-change Notification", time, detail)
    }

    fn health(code: &str, start: &str, status: &str, entities: &[&str]) -> String {
        let entities: Vec<_> = entities.iter().map(|id| json!({ "entityValue": id })).collect();
        let detail = json!({
            "eventArn": "arn:aws:health:eu-central-1::event/EC2/AWS_EC2_X/AWS_EC2_X_90353408594353980",
            "service": "EC2", "eventTypeCode": code, "eventTypeCategory": "scheduledChange", "statusCode": status,
            "startTime": start, "affectedEntities": entities,
        });
        event("aws.health", "AWS Health Event", "2025-12-30T00:00:00Z", detail)
    }

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn noticed(body: &str) -> Notice {
        match read(body, &reading()) {
            Ok(Said::Event { event: NoticeEvent::Noticed(notice), alone: true }) => notice,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_interruption_is_the_notice_that_the_metadata_service_gives() {
        let notice = noticed(&interruption(US, "terminate", NOW));
        assert_eq!(notice.id, format!("aws:{US}:terminate"));
        assert_eq!(notice.deadline, Some(at("2026-01-01T00:02:00Z")));
        assert_eq!(noticed(&interruption(US, "hibernate", NOW)).deadline, None);
    }

    #[test]
    fn each_kind_has_the_id_of_the_same_thing_elsewhere() {
        let detail = json!({ "instance-id": US });
        let likely = noticed(&event("aws.ec2", "EC2 Instance Rebalance Recommendation", NOW, detail));
        assert_eq!((likely.id, likely.certainty), (format!("aws:{US}:rebalance"), Certainty::Likely));
        assert_eq!(noticed(&state(US, "shutting-down", NOW)).id, format!("aws:{US}:terminate"));
        assert_eq!(noticed(&state(US, "stopping", NOW)).id, format!("aws:{US}:stop"));
        let detail = json!({
            "LifecycleActionToken": "87654321", "AutoScalingGroupName": "g", "LifecycleHookName": "h",
            "EC2InstanceId": US, "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
        });
        let scaled = noticed(&event("aws.autoscaling", "EC2 Instance-terminate Lifecycle Action", NOW, detail));
        assert_eq!((scaled.id, scaled.deadline), (format!("aws:{US}/autoscaling:terminate"), None));
    }

    #[test]
    fn what_happens_to_others_is_theirs() {
        let elsewhere = interruption(US, "stop", NOW).replace("eu-central-1", "us-east-1");
        let of_another_account = interruption(US, "stop", NOW).replace("123456789012", "210987654321");
        let unknown = event("aws.s3", "Object Created", NOW, json!({}));
        for body in
            [interruption(OTHER, "stop", NOW), state(OTHER, "stopping", NOW), elsewhere, of_another_account, unknown]
        {
            assert_eq!(read(&body, &reading()), Ok(Said::Others), "{body}");
        }
    }

    #[test]
    fn what_is_over_is_no_notice() {
        for body in [
            state(US, "running", NOW),
            state(US, "stopping", "2025-12-30T23:59:59Z"),
            interruption(US, "terminate", "2025-12-31T23:45:00Z"),
            health("AWS_EC2_X", "Wed, 31 Dec 2025 23:44:00 GMT", "upcoming", &[US]),
        ] {
            assert_eq!(read(&body, &reading()), Ok(Said::Nothing), "{body}");
        }
    }

    #[test]
    fn a_maintenance_waits_for_its_lead_and_can_be_closed() {
        let scheduled = |code, start, status| read(&health(code, start, status, &[US]), &reading());
        let (far, near) = ("Fri, 02 Jan 2026 00:00:10 GMT", "Thu, 01 Jan 2026 00:10:10 GMT");
        let code = "AWS_EC2_PERSISTENT_INSTANCE_RETIREMENT_SCHEDULED";
        assert_eq!(scheduled(code, far, "upcoming"), Ok(Said::NotYet(Duration::from_secs(24 * 3600 - 600))));
        let notice = noticed(&health(code, near, "upcoming", &[US]));
        assert_eq!(notice.id, "aws:AWS_EC2_X_90353408594353980:stop");
        assert_eq!(notice.deadline, Some(at("2026-01-01T00:10:10Z")));
        assert_eq!(
            noticed(&health("AWS_EC2_SYSTEM_REBOOT_MAINTENANCE_SCHEDULED", near, "upcoming", &[US])).action,
            Action::Reboot
        );
        let closed = NoticeEvent::Cancelled { id: notice.id };
        assert_eq!(scheduled(code, far, "closed"), Ok(Said::Event { event: closed, alone: true }));
        assert_eq!(read(&health(code, near, "upcoming", &[OTHER]), &reading()), Ok(Said::Others));
        let shared = read(&health(code, near, "upcoming", &[OTHER, US]), &reading());
        assert!(matches!(shared, Ok(Said::Event { alone: false, .. })), "{shared:?}");
    }

    #[test]
    fn nonsense_says_why() {
        let no_time = health("AWS_EC2_X", "soon", "upcoming", &[US]);
        let no_action = interruption(US, "explode", NOW);
        for body in ["", "{}", "[]", r#"{"Event":"autoscaling:TEST_NOTIFICATION"}"#, &no_time, &no_action] {
            read(body, &reading()).unwrap_err();
        }
    }
}
