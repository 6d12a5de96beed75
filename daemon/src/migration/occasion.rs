//! Why a plan is made, as the operator's rules see it.

use std::sync::PoisonError;

use super::Context;
use crate::notice::{Certainty, Notice};

/// The notice in force that is to be done by first; one without a deadline is for at once. None in force: the plan is asked for by hand.
pub(super) fn of(context: &Context) -> spothop_policy::Notice {
    let notices = context.notices.lock().unwrap_or_else(PoisonError::into_inner);
    first(notices.values())
}

fn first<'n>(notices: impl Iterator<Item = &'n Notice>) -> spothop_policy::Notice {
    // What is certain before what is only likely.
    let soonest =
        notices.min_by_key(|notice| (notice.certainty != Certainty::Certain, notice.deadline, notice.id.clone()));
    soonest.map_or_else(spothop_policy::Notice::default, |notice| spothop_policy::Notice {
        cloud: notice.cloud.to_string(),
        action: notice.action.to_string(),
        certain: notice.certainty == Certainty::Certain,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_see_the_notice_that_is_certain_and_soonest() {
        let notice = |id: &str, action: &str, certainty: &str, deadline: &str| -> Notice {
            serde_json::from_value(serde_json::json!({
                "id": id, "cloud": "aws", "instance": "i-1", "action": action, "certainty": certainty,
                "deadline": deadline, "received": "2026-01-01T00:00:00Z",
            }))
            .unwrap()
        };
        let all = [
            notice("1", "reboot", "likely", "2026-01-01T00:01:00Z"),
            notice("2", "stop", "certain", "2026-01-01T00:09:00Z"),
            notice("3", "terminate", "certain", "2026-01-01T00:02:00Z"),
        ];
        let said = first(all.iter());
        assert_eq!((said.cloud.as_str(), said.action.as_str(), said.certain), ("aws", "terminate", true));
        assert_eq!(first(std::iter::empty()), spothop_policy::Notice::default());
    }
}
