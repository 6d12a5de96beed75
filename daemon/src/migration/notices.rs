//! What this host has been told of its end, and what that means at a moment. Pure: it is fed with what the sources say and with the
//! time, and knows no clock of its own.
//!
//! Any number of sources and notices, one answer ([`Notices::stance`]):
//!
//! | in force | answer |
//! |---|---|
//! | nothing | [`Stance::Stay`] |
//! | only what is likely | by `[notice] likely`: stay, prepare, or leave (once in a cool-down) |
//! | something certain, its time not over | [`Stance::Leave`], until the soonest deadline of all |
//! | something certain whose time is over | [`Stance::Stay`]: a cloud is late, and nothing is begun that its fence would overtake |
//!
//! **Two deadlines.** The soonest that anybody has named is the one to be done by. The one that a target is told, and after which its
//! fence may open, is the *last* that was ever named for a notice to terminate: a source must not be taken for gone while a cloud has
//! said that it runs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::protocol::Occasion;
use crate::config::Likely;
use crate::notice::{Certainty, Notice, NoticeEvent};

/// After the first failure a container is tried again so much later, and twice as late after each further one, to the longest.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(16));

/// How a host answers what is only likely.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    pub(super) likely: Likely,
    /// Between two times that it leaves because of that.
    pub(super) cooldown: Duration,
}

/// Why and until when containers leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leave {
    /// The notice that a migration names as its cause.
    pub notice: String,
    /// The deadline that goes with it to the target.
    pub deadline: Option<Timestamp>,
    /// By when everything must be over, which is never later than that.
    pub by: Option<Timestamp>,
    /// Whether this host is taken away for certain.
    pub certain: bool,
}

/// What the host is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stance {
    /// Nothing.
    Stay,
    /// Have the targets get what takes long.
    Prepare,
    /// Move every container away.
    Leave(Leave),
}

/// What an event was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// A notice that was not in force.
    New,
    /// One that was, with another deadline.
    Changed,
    /// Nothing that was not known.
    Known,
    /// One that is not in force any more.
    Withdrawn,
}

/// A notice in force.
#[derive(Debug)]
struct Known {
    notice: Notice,
    /// Every deadline that was named.
    said: BTreeSet<Timestamp>,
    /// The cloud was told that the host is empty.
    acknowledged: bool,
    /// It was said that its time is over.
    overdue: bool,
}

impl Known {
    /// The soonest that has not passed.
    fn deadline(&self, now: Timestamp) -> Option<Timestamp> {
        self.said.range(now..).next().copied()
    }

    fn is_over(&self, now: Timestamp) -> bool {
        !self.said.is_empty() && self.deadline(now).is_none()
    }

    /// When it takes the host away for good, at the latest.
    fn taken_away(&self) -> Option<Timestamp> {
        Occasion { cause: &self.notice.id, deadline: self.said.last().copied() }.taken_away()
    }
}

/// The notices in force.
#[derive(Debug)]
pub(super) struct Notices {
    manner: Manner,
    known: BTreeMap<String, Known>,
}

impl Notices {
    pub(super) fn new(manner: Manner) -> Self {
        Self { manner, known: BTreeMap::new() }
    }

    /// Takes a source's word.
    pub(super) fn hear(&mut self, event: &NoticeEvent) -> Heard {
        match event {
            NoticeEvent::Cancelled { id } => match self.known.remove(id) {
                Some(_) => Heard::Withdrawn,
                None => Heard::Known,
            },
            NoticeEvent::Noticed(notice) => match self.known.get_mut(&notice.id) {
                Some(known) => {
                    let certainly =
                        (known.notice.certainty, notice.certainty) == (Certainty::Likely, Certainty::Certain);
                    if certainly {
                        known.notice.certainty = Certainty::Certain;
                    }
                    let changed = notice.deadline.is_some_and(|deadline| known.said.insert(deadline));
                    if changed || certainly { Heard::Changed } else { Heard::Known }
                }
                None => {
                    let said = notice.deadline.into_iter().collect();
                    self.known.insert(
                        notice.id.clone(),
                        Known { notice: notice.clone(), said, acknowledged: false, overdue: false },
                    );
                    Heard::New
                }
            },
        }
    }

    /// Whether anything is in force.
    pub(super) fn any(&self) -> bool {
        !self.known.is_empty()
    }

    /// The notice of this id as it is to be shown: with the soonest deadline that has not passed, or the last.
    pub(super) fn shown(&self, id: &str, now: Timestamp) -> Option<Notice> {
        let known = self.known.get(id)?;
        let deadline = known.deadline(now).or_else(|| known.said.last().copied());
        Some(Notice { deadline, ..known.notice.clone() })
    }

    /// What is to be done now. `left`: when this host last began to leave because of a notice, or got a container.
    pub(super) fn stance(&self, now: Timestamp, left: Option<Timestamp>) -> Stance {
        let of = |certainty| self.known.values().filter(move |known| known.notice.certainty == certainty);
        let open: Vec<&Known> = of(Certainty::Certain).filter(|known| !known.is_over(now)).collect();
        if let Some(&any) = open.first() {
            return Stance::Leave(Self::certainly(&open, any, now));
        }
        if of(Certainty::Certain).next().is_some() {
            return Stance::Stay;
        }
        let Some(likely) = of(Certainty::Likely).next() else { return Stance::Stay };
        match self.manner.likely {
            Likely::Ignore => Stance::Stay,
            Likely::Prepare => Stance::Prepare,
            Likely::Evacuate if left.is_some_and(|left| within(self.manner.cooldown, left, now)) => Stance::Prepare,
            Likely::Evacuate => {
                let notice = likely.notice.id.clone();
                Stance::Leave(Leave { notice, deadline: None, by: None, certain: false })
            }
        }
    }

    /// Under which of several notices containers leave: one that takes the host away for good, because a target may run what it holds
    /// by itself then; otherwise the one whose time is over first.
    fn certainly(open: &[&Known], any: &Known, now: Timestamp) -> Leave {
        let for_good = open.iter().filter_map(|known| Some((known.taken_away()?, *known))).min_by_key(|(at, _)| *at);
        let soonest = open.iter().filter_map(|known| Some((known.deadline(now)?, *known))).min_by_key(|(at, _)| *at);
        let (deadline, known) = match (for_good, soonest) {
            (Some((at, known)), _) | (None, Some((at, known))) => (Some(at), known),
            (None, None) => (None, any),
        };
        Leave { notice: known.notice.id.clone(), deadline, by: soonest.map(|(at, _)| at), certain: true }
    }

    /// Whether something is in force that is only likely.
    pub(super) fn has_likely(&self) -> bool {
        self.known.values().any(|known| known.notice.certainty == Certainty::Likely)
    }

    /// Those whose cloud may still wait for this host.
    pub(super) fn unacknowledged(&self) -> impl Iterator<Item = &Notice> {
        let open = |known: &&Known| known.notice.certainty == Certainty::Certain && !known.acknowledged;
        self.known.values().filter(open).map(|known| &known.notice)
    }

    /// The notices whose cloud has not been told yet that the host is empty; they count as told from now on.
    pub(super) fn acknowledge(&mut self) -> Vec<Notice> {
        let certain = |known: &&mut Known| known.notice.certainty == Certainty::Certain && !known.acknowledged;
        let tell = |known: &mut Known| {
            known.acknowledged = true;
            known.notice.clone()
        };
        self.known.values_mut().filter(certain).map(tell).collect()
    }

    /// The notices whose time is over, and whose cloud was never told that the host is empty; each is said once.
    pub(super) fn overdue(&mut self, now: Timestamp) -> Vec<Notice> {
        let late = |known: &&mut Known| {
            let is_certain = known.notice.certainty == Certainty::Certain;
            is_certain && !known.acknowledged && !known.overdue && known.is_over(now)
        };
        let tell = |known: &mut Known| {
            known.overdue = true;
            known.notice.clone()
        };
        self.known.values_mut().filter(late).map(tell).collect()
    }
}

fn within(span: Duration, since: Timestamp, now: Timestamp) -> bool {
    SignedDuration::try_from(span).is_ok_and(|span| now.duration_since(since) < span)
}

/// The containers whose moves have failed, and when each may be tried again: every attempt disturbs it.
#[derive(Debug, Default)]
pub(super) struct Failures(HashMap<String, (u32, Timestamp)>);

impl Failures {
    /// Its move has failed; returns when it is tried again.
    pub(super) fn failed(&mut self, container: &str, now: Timestamp) -> Timestamp {
        let (times, again) = self.0.entry(container.to_owned()).or_insert((0, now));
        let pause = AGAIN.0.saturating_mul(1 << (*times).min(10)).min(AGAIN.1);
        *times += 1;
        *again = now.checked_add(pause).unwrap_or(Timestamp::MAX);
        *again
    }

    /// Nothing has failed any more.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Those that are not to be tried now.
    pub(super) fn resting(&self, now: Timestamp) -> BTreeSet<String> {
        self.0.iter().filter(|(_, (_, again))| now < *again).map(|(container, _)| container.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::migration::protocol::{FENCE, Instance};
    use crate::notice::{Action, Cloud};

    const MANNER: Manner = Manner { likely: Likely::Prepare, cooldown: Duration::from_secs(1800) };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn notice(id: &str, certainty: Certainty, deadline: Option<i64>) -> NoticeEvent {
        NoticeEvent::Noticed(Notice {
            id: id.to_owned(),
            cloud: Cloud::Aws,
            instance: "i-1".to_owned(),
            action: Action::Terminate,
            certainty,
            deadline: deadline.map(at),
            received: at(0),
        })
    }

    fn certain(id: &str, deadline: Option<i64>) -> NoticeEvent {
        notice(id, Certainty::Certain, deadline)
    }

    fn cancelled(id: &str) -> NoticeEvent {
        NoticeEvent::Cancelled { id: id.to_owned() }
    }

    fn told(events: &[NoticeEvent]) -> Notices {
        told_to(MANNER, events)
    }

    fn told_to(manner: Manner, events: &[NoticeEvent]) -> Notices {
        let mut notices = Notices::new(manner);
        for event in events {
            notices.hear(event);
        }
        notices
    }

    fn leave(notices: &Notices, now: i64) -> Leave {
        match notices.stance(at(now), None) {
            Stance::Leave(leave) => leave,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_notice_that_is_repeated_changes_nothing() {
        let mut notices = told(&[certain("aws:i-1:terminate", Some(120))]);
        let before = notices.stance(at(1), None);
        assert_eq!(notices.hear(&certain("aws:i-1:terminate", Some(120))), Heard::Known);
        assert_eq!(notices.hear(&certain("aws:i-1:terminate", None)), Heard::Known);
        assert_eq!(notices.stance(at(1), None), before);
        assert_eq!(notices.hear(&cancelled("aws:i-2:terminate")), Heard::Known);
        assert_eq!(notices.stance(at(1), None), before);
    }

    #[test]
    fn a_sooner_deadline_counts_at_once_and_the_target_is_told_the_last_one() {
        let mut notices = told(&[certain("aws:i-1:terminate", Some(120))]);
        assert_eq!(notices.hear(&certain("aws:i-1:terminate", Some(60))), Heard::Changed);
        let sooner = leave(&notices, 1);
        assert_eq!((sooner.by, sooner.deadline), (Some(at(60)), Some(at(120))));
        // And when the host is still there after that one, the other counts.
        let later = leave(&notices, 61);
        assert_eq!((later.by, later.deadline), (Some(at(120)), Some(at(120))));
        assert_eq!(notices.stance(at(121), None), Stance::Stay);
    }

    #[test]
    fn of_several_notices_the_soonest_sets_the_time_and_the_one_for_good_is_the_cause() {
        let notices = told(&[certain("aws:i-1:stop", Some(60)), certain("aws:i-1:terminate", Some(120))]);
        let both = leave(&notices, 0);
        assert_eq!(
            both,
            Leave { notice: "aws:i-1:terminate".into(), deadline: Some(at(120)), by: Some(at(60)), certain: true }
        );
        let notices = told(&[certain("azure:e:reboot", None), certain("aws:i-1:stop", Some(60))]);
        assert_eq!(leave(&notices, 0).notice, "aws:i-1:stop");
        let unnamed = leave(&told(&[certain("gcp:i-1:terminate", None)]), 0);
        assert_eq!((unnamed.deadline, unnamed.by, unnamed.certain), (None, None, true));
    }

    #[test]
    fn a_time_that_is_over_with_something_left_is_said_once() {
        let mut notices = told(&[
            certain("aws:i-1:terminate", Some(60)),
            certain("aws:i-1:stop", Some(120)),
            certain("gcp:i-1:terminate", None),
            notice("aws:i-1:rebalance", Certainty::Likely, Some(10)),
        ]);
        let ids = |overdue: Vec<Notice>| overdue.into_iter().map(|notice| notice.id).collect::<Vec<_>>();
        assert_eq!(ids(notices.overdue(at(60))), Vec::<String>::new());
        assert_eq!(ids(notices.overdue(at(61))), ["aws:i-1:terminate"]);
        assert_eq!(ids(notices.overdue(at(62))), Vec::<String>::new());
        // Nothing was left before the other one's.
        notices.acknowledge();
        assert_eq!(ids(notices.overdue(at(121))), Vec::<String>::new());
    }

    #[test]
    fn what_is_withdrawn_leaves_the_others_in_force() {
        let mut notices = told(&[certain("aws:i-1:terminate", Some(60)), certain("aws:i-1:stop", Some(120))]);
        assert_eq!(notices.hear(&cancelled("aws:i-1:terminate")), Heard::Withdrawn);
        let left = leave(&notices, 1);
        assert_eq!((left.notice.as_str(), left.by), ("aws:i-1:stop", Some(at(120))));
        notices.hear(&cancelled("aws:i-1:stop"));
        assert_eq!(notices.stance(at(1), None), Stance::Stay);
        assert!(!notices.any());
        // It may come back.
        assert_eq!(notices.hear(&certain("aws:i-1:stop", Some(300))), Heard::New);
    }

    #[test]
    fn what_is_likely_is_answered_as_configured_and_not_again_within_the_cooldown() {
        let likely = [notice("aws:i-1:rebalance", Certainty::Likely, None)];
        for (answer, stance) in [(Likely::Ignore, Stance::Stay), (Likely::Prepare, Stance::Prepare)] {
            assert_eq!(told_to(Manner { likely: answer, ..MANNER }, &likely).stance(at(0), None), stance);
        }
        let notices = told_to(Manner { likely: Likely::Evacuate, ..MANNER }, &likely);
        let expected = Leave { notice: "aws:i-1:rebalance".into(), deadline: None, by: None, certain: false };
        assert_eq!(notices.stance(at(0), None), Stance::Leave(expected.clone()));
        assert_eq!(notices.stance(at(1799), Some(at(0))), Stance::Prepare);
        assert_eq!(notices.stance(at(1800), Some(at(0))), Stance::Leave(expected));
    }

    #[test]
    fn what_becomes_certain_is_left_for_whatever_came_lately() {
        let id = "azure:1:terminate";
        let mut notices = told(&[notice(id, Certainty::Likely, None)]);
        assert_eq!(notices.hear(&certain(id, Some(30))), Heard::Changed);
        let Stance::Leave(leave) = notices.stance(at(0), Some(at(0))) else { panic!("it stays") };
        assert!(leave.certain);
    }

    #[test]
    fn a_cloud_is_told_once_for_each_certain_notice() {
        let mut notices =
            told(&[certain("azure:1:reboot", Some(60)), notice("aws:i-1:rebalance", Certainty::Likely, None)]);
        let ids = |notices: Vec<Notice>| notices.into_iter().map(|notice| notice.id).collect::<Vec<_>>();
        let open = |notices: &Notices| notices.unacknowledged().count();
        assert_eq!(open(&notices), 1);
        assert_eq!(ids(notices.acknowledge()), ["azure:1:reboot"]);
        assert_eq!(open(&notices), 0);
        assert!(notices.acknowledge().is_empty());
        notices.hear(&certain("azure:2:reboot", None));
        assert_eq!(ids(notices.acknowledge()), ["azure:2:reboot"]);
    }

    #[test]
    fn a_container_that_fails_again_and_again_is_tried_more_and_more_rarely() {
        let mut failures = Failures::default();
        let pauses: Vec<_> = (0..6)
            .map(|_| {
                let again = failures.failed("c", at(0));
                assert!(failures.resting(again - Duration::from_millis(1)).contains("c"));
                assert!(failures.resting(again).is_empty());
                again.duration_since(at(0)).as_secs()
            })
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 16]);
        failures.clear();
        assert_eq!(failures.failed("c", at(0)), at(1));
    }

    /// Three ids, of which one takes the host away for good, with deadlines and cancellations.
    fn event() -> impl Strategy<Value = NoticeEvent> {
        let id = prop::sample::select(vec!["aws:i-1:terminate", "aws:i-1:stop", "aws:e-1:reboot"]);
        (id, 0..4_u8, -50..200_i64).prop_map(|(id, kind, deadline)| match kind {
            0 => cancelled(id),
            1 => certain(id, None),
            _ => certain(id, Some(deadline)),
        })
    }

    proptest! {
        #[test]
        fn what_is_begun_is_over_before_any_fence_and_in_time(events in prop::collection::vec(event(), 0..12), now in -60..260_i64) {
            let notices = told(&events);
            let Stance::Leave(leave) = notices.stance(at(now), None) else { return Ok(()) };
            prop_assert!(leave.certain);
            let known = &notices.known[&leave.notice];
            prop_assert!(leave.by.is_some() == leave.deadline.is_some());
            if let Some(by) = leave.by {
                prop_assert!(by >= at(now) && Some(by) <= leave.deadline);
                // Nothing that is in force and whose time is not over ends sooner.
                prop_assert!(notices.known.values().filter_map(|known| known.deadline(at(now))).all(|other| by <= other));
            }
            // As long as any cloud's word has the source run, no target's fence opens.
            let occasion = Occasion { cause: &leave.notice, deadline: leave.deadline };
            for said in &known.said {
                prop_assert!(!occasion.fences(Instance::Unknown, *said + FENCE));
            }
        }

        #[test]
        fn said_twice_is_said_once(events in prop::collection::vec(event(), 0..12), now in -60..260_i64) {
            let twice: Vec<_> = events.iter().flat_map(|event| [event.clone(), event.clone()]).collect();
            prop_assert_eq!(told(&events).stance(at(now), None), told(&twice).stance(at(now), None));
        }
    }
}
