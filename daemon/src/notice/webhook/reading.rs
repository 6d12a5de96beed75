//! What the body of a request means for this host. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::super::{Action, Certainty, Cloud, Notice, NoticeEvent};
use super::signature::TOLERANCE;
use crate::config::webhook::{Meaning, Sender};

/// Who this host is, by all names that it has.
#[derive(Debug, Clone)]
pub(super) struct Us {
    /// `host.name`.
    pub(super) name: String,
    /// The cloud's id of it, where that is known.
    pub(super) instance: Option<String>,
}

/// What an event means here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// A notice, by its id.
    Notice(String, Vec<NoticeEvent>),
    /// A word that means nothing to this host, which is no error: senders have many.
    Nothing {
        /// The word.
        word: String,
    },
}

/// Why a body means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    /// It is not JSON.
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    /// Something is not there, or not a text.
    #[error("there is no text at {pointer}, where the {what} should be; see [webhook.senders.fields]")]
    Missing {
        /// What.
        what: &'static str,
        /// Where.
        pointer: String,
    },
    /// Not a time.
    #[error("{text:?} at {pointer} is not a time as RFC 3339 has it, such as 2026-01-01T00:02:00Z")]
    Time {
        /// What is there.
        text: String,
        /// Where.
        pointer: String,
    },
    /// It is about another host.
    #[error("this is about {instance:?}; this host is {us}")]
    Elsewhere {
        /// Whom it is about.
        instance: String,
        /// This host's names.
        us: String,
    },
    /// It was made too long ago, or the clocks differ.
    #[error("the event is from {time}, more than five minutes away from this host's clock")]
    Stale {
        /// When it was made.
        time: Timestamp,
    },
    /// It came too late.
    #[error("the deadline {deadline} has passed")]
    Late {
        /// Which.
        deadline: Timestamp,
    },
}

/// The event's id, if the body has one where the sender's `fields` say.
pub(super) fn id(body: &[u8], sender: &Sender) -> Option<String> {
    let pointer = sender.fields.id.as_ref()?;
    let body: Value = serde_json::from_slice(body).ok()?;
    text(&body, pointer).map(str::to_owned)
}

/// What a body means.
pub(super) fn read(body: &[u8], sender: &Sender, us: &Us, now: Timestamp) -> Result<Said, Unreadable> {
    let body: Value = serde_json::from_slice(body).map_err(|error| Unreadable::NotJson(error.to_string()))?;
    let fields = &sender.fields;
    let must = |what, pointer: &String| {
        text(&body, pointer).ok_or_else(|| Unreadable::Missing { what, pointer: pointer.clone() })
    };
    let time = |pointer: &Option<String>| match pointer.as_ref().and_then(|at| Some((at, text(&body, at)?))) {
        Some((pointer, text)) => text
            .parse::<Timestamp>()
            .map(Some)
            .map_err(|_| Unreadable::Time { text: text.to_owned(), pointer: pointer.clone() }),
        None => Ok(None),
    };
    let word = must("event", &fields.event)?;
    let Some(&meaning) = sender.events.get(word) else { return Ok(Said::Nothing { word: word.to_owned() }) };
    let instance = must("instance", &fields.instance)?;
    if instance != us.name && Some(instance) != us.instance.as_deref() {
        let names = us.instance.iter().fold(us.name.clone(), |names, id| format!("{names}, {id}"));
        return Err(Unreadable::Elsewhere { instance: instance.to_owned(), us: names });
    }
    let made = time(&fields.time)?;
    if let Some(time) = made.filter(|time| time.duration_since(now).abs() > TOLERANCE) {
        return Err(Unreadable::Stale { time });
    }
    let Some((action, certainty)) = announced(meaning) else {
        return Ok(Said::Notice(notice_id(sender, meaning), withdrawals(sender)));
    };
    let led = |lead: Duration| made.unwrap_or(now).checked_add(SignedDuration::try_from(lead).ok()?).ok();
    let deadline = match certainty {
        Certainty::Certain => time(&fields.deadline)?.or_else(|| sender.lead.and_then(led)),
        Certainty::Likely => None,
    };
    if let Some(deadline) = deadline.filter(|deadline| *deadline <= now) {
        return Err(Unreadable::Late { deadline });
    }
    let id = notice_id(sender, meaning);
    let notice = Notice {
        id: id.clone(),
        cloud: Cloud::Webhook,
        instance: instance.to_owned(),
        action,
        certainty,
        deadline,
        received: now,
    };
    Ok(Said::Notice(id, vec![NoticeEvent::Noticed(notice)]))
}

/// Not `…:terminate`, by which a cloud's word that a host is taken away for good is known: a sender is no cloud, and no target may take
/// this host for gone because of it.
fn notice_id(sender: &Sender, meaning: Meaning) -> String {
    let word = match meaning {
        Meaning::Terminate => "terminate",
        Meaning::Stop => "stop",
        Meaning::Hibernate => "hibernate",
        Meaning::Reboot => "reboot",
        Meaning::Likely => "likely",
        Meaning::Withdrawn => "withdrawn",
    };
    format!("{}:{}/{word}", Cloud::Webhook, sender.name)
}

fn announced(meaning: Meaning) -> Option<(Action, Certainty)> {
    Some(match meaning {
        Meaning::Terminate => (Action::Terminate, Certainty::Certain),
        Meaning::Stop => (Action::Stop, Certainty::Certain),
        Meaning::Hibernate => (Action::Hibernate, Certainty::Certain),
        Meaning::Reboot => (Action::Reboot, Certainty::Certain),
        Meaning::Likely => (Action::Terminate, Certainty::Likely),
        Meaning::Withdrawn => return None,
    })
}

/// Of everything that this sender may have announced.
fn withdrawals(sender: &Sender) -> Vec<NoticeEvent> {
    let all = [Meaning::Terminate, Meaning::Stop, Meaning::Hibernate, Meaning::Reboot, Meaning::Likely];
    all.map(|meaning| NoticeEvent::Cancelled { id: notice_id(sender, meaning) }).into()
}

fn text<'a>(body: &'a Value, pointer: &str) -> Option<&'a str> {
    body.pointer(pointer)?.as_str().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn sender(more: &str) -> Sender {
        let text = format!("[[senders]]\nname = 'saas'\nsecret_file = '/s'\n{more}");
        crate::config::webhook::tests::read(&text).unwrap().senders.remove(0)
    }

    fn ask(sender: &Sender, body: &Value) -> Result<Said, Unreadable> {
        let us = Us { name: "a".to_owned(), instance: Some("i-1".to_owned()) };
        read(body.to_string().as_bytes(), sender, &us, at(NOW))
    }

    fn noticed(said: Result<Said, Unreadable>) -> Notice {
        match said {
            Ok(Said::Notice(id, events)) => match &events[..] {
                [NoticeEvent::Noticed(notice)] if notice.id == id => notice.clone(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    fn event(word: &str, data: &Value) -> Value {
        json!({ "type": word, "timestamp": "2025-12-31T23:59:58Z", "data": data })
    }

    #[test]
    fn an_event_of_ours_is_a_notice() {
        let data = json!({ "instance": "i-1", "deadline": "2026-01-01T00:02:00Z" });
        let notice = noticed(ask(&sender(""), &event("instance.terminate", &data)));
        assert_eq!(notice.to_string(), "webhook will terminate i-1 at 2026-01-01T00:02:00Z");
        assert_eq!((notice.id.as_str(), notice.received), ("webhook:saas/terminate", at(NOW)));
        let by_name = noticed(ask(&sender(""), &event("instance.stop", &json!({ "instance": "a" }))));
        assert_eq!((by_name.action, by_name.deadline), (Action::Stop, None));
        let likely = noticed(ask(&sender("lead = '2m'"), &event("instance.likely", &data)));
        assert_eq!((likely.certainty, likely.deadline), (Certainty::Likely, None));
    }

    #[test]
    fn no_word_of_a_sender_lets_a_target_take_this_host_for_gone() {
        use crate::migration::protocol::Occasion;
        for name in ["saas", "terminate", "x.terminate"] {
            let mut sender = sender("");
            sender.name = name.to_owned();
            let notice = noticed(ask(&sender, &event("instance.terminate", &json!({ "instance": "a" }))));
            let occasion = Occasion { cause: &notice.id, deadline: Some(at(NOW)) };
            assert_eq!(occasion.taken_away(), None, "{}", notice.id);
        }
    }

    #[test]
    fn spot_io_s_words_are_understood_and_those_that_mean_nothing_here_too() {
        let spotio = sender("format = 'spotio'\nlead = '2m'");
        let body =
            |word: &str| json!({ "event": word, "instance_id": "i-1", "resource_id": "sig-1", "resource_name": "g" });
        let notice = noticed(ask(&spotio, &body("AWS_EC2_INSTANCE_TERMINATE")));
        assert_eq!((notice.action, notice.deadline), (Action::Terminate, Some(at("2026-01-01T00:02:00Z"))));
        let other = ask(&spotio, &body("AWS_EC2_INSTANCE_LAUNCH"));
        assert_eq!(other, Ok(Said::Nothing { word: "AWS_EC2_INSTANCE_LAUNCH".to_owned() }));
    }

    #[test]
    fn fields_may_be_anywhere() {
        let eventbridge = sender(
            "[senders.fields]\nevent = '/detail-type'\ninstance = '/detail/instance-id'\nid = '/id'\ntime = '/time'\n\
             [senders.events]\n'EC2 Spot Instance Interruption Warning' = 'terminate'",
        );
        let body = json!({
            "id": "7bf7", "detail-type": "EC2 Spot Instance Interruption Warning", "time": NOW, "detail": { "instance-id": "i-1" },
        });
        assert_eq!(noticed(ask(&eventbridge, &body)).action, Action::Terminate);
        assert_eq!(id(body.to_string().as_bytes(), &eventbridge).as_deref(), Some("7bf7"));
        assert_eq!(id(b"{}", &eventbridge), None);
    }

    #[test]
    fn what_is_withdrawn_is_everything_that_this_sender_has_said() {
        let said = ask(&sender(""), &event("instance.withdrawn", &json!({ "instance": "a" })));
        let Ok(Said::Notice(_, events)) = said else { panic!("{said:?}") };
        for word in ["terminate", "stop", "hibernate", "reboot", "likely"] {
            assert!(events.contains(&NoticeEvent::Cancelled { id: format!("webhook:saas/{word}") }), "{events:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_says_why() {
        let ours = sender("");
        let refused = |body: &Value| ask(&ours, body).unwrap_err();
        let elsewhere = refused(&event("instance.stop", &json!({ "instance": "i-2" })));
        assert_eq!(elsewhere.to_string(), "this is about \"i-2\"; this host is a, i-1");
        let data = |deadline: &str| event("instance.stop", &json!({ "instance": "a", "deadline": deadline }));
        assert!(matches!(refused(&data("2025-12-31T23:59:59Z")), Unreadable::Late { .. }));
        assert!(matches!(refused(&data("soon")), Unreadable::Time { .. }));
        let mut old = data("2026-01-01T00:02:00Z");
        old["timestamp"] = "2025-12-31T23:54:59Z".into();
        assert!(matches!(refused(&old), Unreadable::Stale { .. }));
        assert!(matches!(refused(&json!({})), Unreadable::Missing { what: "event", .. }));
        assert!(matches!(refused(&event("instance.stop", &json!({}))), Unreadable::Missing { what: "instance", .. }));
        let us = Us { name: "a".to_owned(), instance: None };
        assert!(matches!(read(b"{", &ours, &us, at(NOW)), Err(Unreadable::NotJson(_))));
    }
}
