//! Who may run the container: every decision of the protocol, as a function of what is on record. No I/O, no clock.
//!
//! The right to run belongs to one side at any time, and two journals hand it on:
//!
//! | source's verdict | target's verdict | who may run |
//! |---|---|---|
//! | none, or ABORT | none, or ABORT | the source |
//! | COMMIT | none | nobody: the source keeps its tasks frozen, the target keeps its own stopped |
//! | COMMIT | COMMIT | the target |
//! | COMMIT | ABORT | the source, once it has heard so and has taken the container back |
//! | none, or ABORT unheard | COMMIT | the target: the fence. The source cannot run any more |
//!
//! So COMMIT at the source gives the container away, COMMIT at the target takes it, and ABORT at the target gives it back. Each
//! is one compare-and-set in one journal, on disk before anybody acts on it. `tests/protocol_model` walks through all of it.

use std::time::Duration;

use jiff::Timestamp;

use super::{Phase, Verdict};

/// The source is taken away at its deadline; this much later it cannot run any more, whatever its clock and ours say.
///
/// AWS takes an instance "two minutes after the notice", not before; both clocks are kept by the cloud's own NTP within
/// milliseconds. Half a minute is for clouds that are late.
pub const FENCE: Duration = Duration::from_secs(30);

/// How the ids of notices end that take a host away for good ([`crate::notice::Action::Terminate`]).
const TERMINATES: &str = ":terminate";

/// What the cloud says of the source's instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Instance {
    /// It is gone for good.
    Gone,
    /// It does not run, and may be started again.
    Stopped,
    /// It may be running.
    MayRun,
    /// Nobody can be asked, or there was no answer.
    Unknown,
}

/// Why and until when a migration goes on.
#[derive(Debug, Clone, Copy)]
pub struct Occasion<'a> {
    /// A notice's id, which ends with the cloud's action, or [`super::MANUAL`].
    pub cause: &'a str,
    /// When the source is taken away, if it is.
    pub deadline: Option<Timestamp>,
}

impl Occasion<'_> {
    /// When a cloud takes the source away for good. Only a cloud takes hosts away: a deadline that somebody gave by hand (`spothop
    /// evacuate --in`) stops nothing, and a silent source may be running behind a broken link. And only what is terminated stays
    /// away: an instance that is stopped or hibernated may be started again, with a container that went on there.
    #[must_use]
    pub fn taken_away(&self) -> Option<Timestamp> {
        self.deadline.filter(|_| self.cause.ends_with(TERMINATES))
    }

    /// The target's question: can the source, which is silent, not run any more?
    #[must_use]
    pub fn fences(&self, instance: Instance, now: Timestamp) -> bool {
        match instance {
            Instance::Gone => true,
            // A notice that was withdrawn, or a cloud that is late.
            Instance::MayRun => false,
            // Undecided, it would ask us first, should it ever be started again after its deadline.
            Instance::Stopped | Instance::Unknown => self.taken_away().is_some_and(|deadline| {
                now.duration_since(deadline)
                    > jiff::SignedDuration::try_from(FENCE).unwrap_or(jiff::SignedDuration::MAX)
            }),
        }
    }

    /// The source's question: may it decide ABORT by itself, having come as far as `phase`? Not once the target may have opened the
    /// fence; then the target's verdict counts.
    #[must_use]
    pub fn may_abort_alone(&self, phase: Phase, now: Timestamp) -> bool {
        // The target is told to restore after this phase, so before it there is nothing that a fence could let run.
        let ordered = matches!(phase, Phase::Transferred | Phase::Restored);
        !ordered || self.taken_away().is_none_or(|deadline| now < deadline)
    }
}

/// What CRIU's action script does at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Keep the tasks frozen.
    On,
    /// Exit 0: CRIU kills the tasks.
    Kill,
    /// Exit non-zero: CRIU lets them go on.
    Release,
}

/// What the source's record tells CRIU's action script. Only a confirmed end kills: until the target runs, it may give the container
/// back.
#[must_use]
pub fn hold(phase: Phase, verdict: Option<Verdict>) -> Hold {
    match (verdict, phase) {
        (Some(Verdict::Abort), _) => Hold::Release,
        (Some(Verdict::Commit), Phase::Running | Phase::Cleaned) => Hold::Kill,
        (Some(Verdict::Commit) | None, _) => Hold::On,
    }
}

/// What a target does with a migration that it finds in its journal when it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// Give up and undo everything. Durable before anybody hears of it.
    GiveUp,
    /// The tasks are held: wait for the verdict.
    Wait,
    /// The container is ours: let it run, or restore it once more.
    Run,
    /// The container is ours, and its memory was lost with the host's power: start it as after any power cut.
    Start,
    /// It runs: tidy up.
    CleanUp,
}

/// `holds`: CRIU's images are still there. They lie in memory, so a power cut takes them.
#[must_use]
pub fn returns(phase: Phase, verdict: Option<Verdict>, holds: bool) -> Return {
    match (verdict, phase) {
        (Some(Verdict::Abort), _) => Return::GiveUp,
        (_, Phase::Running | Phase::Cleaned) => Return::CleanUp,
        (Some(Verdict::Commit), _) if holds => Return::Run,
        (Some(Verdict::Commit), _) => Return::Start,
        (None, Phase::Restored) if holds => Return::Wait,
        (None, _) => Return::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use super::super::MANUAL;
    use super::*;

    fn deadline() -> Timestamp {
        Timestamp::from_second(1_700_000_000).unwrap()
    }

    const NOTICE: &str = "aws:i-1:terminate";

    #[test]
    fn only_a_clouds_deadline_long_past_fences_a_source_of_which_nothing_is_known() {
        let at = |after: Duration| deadline() + after;
        let (ours, by_hand) = (
            Occasion { cause: NOTICE, deadline: Some(deadline()) },
            Occasion { cause: MANUAL, deadline: Some(deadline()) },
        );
        for instance in [Instance::Unknown, Instance::Stopped] {
            assert!(ours.fences(instance, at(FENCE + Duration::from_millis(1))));
            assert!(!ours.fences(instance, at(FENCE)));
            assert!(!ours.fences(instance, deadline() - FENCE));
            assert!(!Occasion { cause: NOTICE, deadline: None }.fences(instance, at(FENCE * 100)));
            assert!(!by_hand.fences(instance, at(FENCE * 100)));
            for comes_back in ["aws:i-1:stop", "aws:i-1:hibernate"] {
                assert!(!Occasion { cause: comes_back, deadline: Some(deadline()) }.fences(instance, at(FENCE * 100)));
            }
        }
    }

    #[test]
    fn the_clouds_word_counts_more_than_the_clock() {
        for cause in [NOTICE, MANUAL] {
            let occasion = Occasion { cause, deadline: Some(deadline()) };
            assert!(occasion.fences(Instance::Gone, deadline() - FENCE));
            assert!(!occasion.fences(Instance::MayRun, deadline() + FENCE * 100));
        }
    }

    #[test]
    fn a_source_past_its_deadline_does_not_abort_alone_what_the_target_may_run() {
        let (before, after) = (deadline() - Duration::from_secs(1), deadline());
        let ours = Occasion { cause: NOTICE, deadline: Some(deadline()) };
        for phase in [Phase::Transferred, Phase::Restored] {
            assert!(ours.may_abort_alone(phase, before));
            assert!(!ours.may_abort_alone(phase, after));
            assert!(Occasion { cause: MANUAL, deadline: Some(deadline()) }.may_abort_alone(phase, after));
            assert!(Occasion { cause: NOTICE, deadline: None }.may_abort_alone(phase, after));
        }
        assert!(ours.may_abort_alone(Phase::Frozen, after));
    }

    #[test]
    fn no_target_opens_the_fence_while_its_source_may_still_abort_alone() {
        for seconds in -200..200_i64 {
            let now = deadline() + jiff::SignedDuration::from_secs(seconds);
            let ours = Occasion { cause: NOTICE, deadline: Some(deadline()) };
            assert!(!(ours.fences(Instance::Unknown, now) && ours.may_abort_alone(Phase::Restored, now)));
        }
    }

    #[test]
    fn the_frozen_tasks_are_killed_only_when_the_target_runs() {
        assert_eq!(hold(Phase::Restored, None), Hold::On);
        assert_eq!(hold(Phase::Committed, Some(Verdict::Commit)), Hold::On);
        assert_eq!(hold(Phase::Running, Some(Verdict::Commit)), Hold::Kill);
        assert_eq!(hold(Phase::Aborted, Some(Verdict::Abort)), Hold::Release);
    }

    #[test]
    fn what_is_lost_before_it_was_taken_is_given_back_and_after_that_it_is_started() {
        assert_eq!(returns(Phase::Restored, None, true), Return::Wait);
        assert_eq!(returns(Phase::Restored, None, false), Return::GiveUp);
        assert_eq!(returns(Phase::Transferred, None, true), Return::GiveUp);
        assert_eq!(returns(Phase::Committed, Some(Verdict::Commit), true), Return::Run);
        assert_eq!(returns(Phase::Committed, Some(Verdict::Commit), false), Return::Start);
        assert_eq!(returns(Phase::Running, Some(Verdict::Commit), false), Return::CleanUp);
        assert_eq!(returns(Phase::Aborted, Some(Verdict::Abort), true), Return::GiveUp);
    }
}
