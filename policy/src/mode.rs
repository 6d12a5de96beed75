//! In which way the memory of a container goes to a host.
//!
//! The ways are a ladder ([`Leaves`]), and what the configuration and the source allow is its upper end. Of what is left of it:
//!
//! - **Post-copy** where the label allows it, where no earlier one of this container was aborted, where so much is written that something
//!   would follow, and where it has followed twice over before the deadline, as [`post_copy`](crate::post_copy) will ask for again at the
//!   freeze, with what the rounds have measured by then.
//! - Pre-copy where it ends before the deadline, whatever the container has written in earlier migrations: rounds that do not help end
//!   themselves ([`rounds`](crate::rounds)), and cost time. To leave them out because of what was once, in another hour and on another
//!   link, would cost downtime, and nothing would ever be measured that could put it right.
//! - Where none ends in time, the soonest over.
//!
//! Pure, and for one container and one host, each as if it had the link to itself.

use std::fmt;
use std::time::Duration;

use crate::labels;
use crate::post_copy;
use crate::quantity::Bytes;
use crate::rates::{Habits, Leaves, Load, Rates, Stages};
use crate::rounds;

/// What the way depends on.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The best that the configuration and the source allow.
    pub best: Leaves,
    /// Memory of all tasks, in bytes.
    pub memory_bytes: u64,
    /// Files, and the image where the target lacks it, in bytes.
    pub other_bytes: u64,
    /// What earlier migrations of this container found; none of one that has never moved.
    pub habits: Option<Habits>,
    /// How fast it goes to the host.
    pub rates: &'a Rates,
    /// Time left.
    pub budget: Option<Duration>,
    /// Whether its label forbids post-copy.
    pub never_post_copy: bool,
    /// In which way the last attempt to move it went that was aborted while its memory was to follow.
    pub failed_by: Option<Leaves>,
}

/// The way, and why no better one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// How its memory goes.
    pub mode: Leaves,
    /// Each better way that is allowed, and what speaks against it; empty where there is none.
    pub passed: Vec<(Leaves, Against)>,
    pub(crate) stages: Stages,
}

/// What speaks against a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// The container's label.
    Label,
    /// It was tried.
    Aborted,
    /// So little is left for the freeze that nothing would follow.
    Little {
        /// So much.
        left_bytes: u64,
    },
    /// It might not be over before the deadline.
    Late {
        /// So long, with what must be kept in reserve.
        takes: Duration,
        /// Time left.
        left: Duration,
    },
}

impl fmt::Display for Against {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = Duration::as_secs_f64;
        match self {
            Self::Label => write!(f, "label {}", labels::POST_COPY),
            Self::Aborted => f.write_str("the last attempt was aborted"),
            Self::Little { left_bytes } => {
                write!(f, "only {} would be left to follow", Bytes(*left_bytes))
            }
            Self::Late { takes, left } => {
                write!(f, "may take {:.1} s, and only {:.1} s are left", seconds(takes), seconds(left))
            }
        }
    }
}

/// Why this way and no better one.
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.passed.is_empty() {
            return f.write_str("the best that [memory] mode and this host allow");
        }
        for (n, (mode, against)) in self.passed.iter().enumerate() {
            write!(f, "{}not {mode}: {against}", if n == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// Every way, the best first.
const LADDER: [Leaves; 4] = [Leaves::PostCopy, Leaves::PreCopy, Leaves::StopAndCopy, Leaves::Dump];

/// Which way it goes.
pub fn choose(question: &Question<'_>) -> Choice {
    let ways = LADDER.into_iter().filter(|mode| {
        // CRIU's own dump is what is done where nothing else can be done. It is better at nothing.
        *mode >= question.best && (*mode < Leaves::Dump || question.best == Leaves::Dump)
    });
    let mut passed = Vec::new();
    let mut open: Vec<(Leaves, Stages)> = Vec::with_capacity(LADDER.len());
    for mode in ways {
        let stages = question.stages(mode);
        match question.forbids(mode, &stages) {
            Some(against) => passed.push((mode, against)),
            None => open.push((mode, stages)),
        }
    }
    // What is in time is not late at all; of the same worth the better way comes first.
    let late = |stages: &Stages| question.budget.map(|budget| stages.until_whole().saturating_sub(budget));
    let (mode, stages) = open
        .iter()
        .copied()
        .min_by_key(|(_, stages)| late(stages))
        // Every ladder has a lower end that nothing forbids.
        .unwrap_or_else(|| (question.best, question.stages(question.best)));
    let better = open.into_iter().take_while(|(other, _)| *other < mode);
    passed.extend(better.filter_map(|(other, stages)| {
        // Without a deadline the best of what is open was taken.
        question.budget.map(|left| (other, Against::Late { takes: stages.until_whole(), left }))
    }));
    Choice { mode, passed, stages }
}

impl Question<'_> {
    fn stages(&self, leaves: Leaves) -> Stages {
        let Self { memory_bytes, other_bytes, .. } = *self;
        let habits = self.habits.unwrap_or_default();
        self.rates.stages(&Load { memory_bytes, other_bytes, leaves, habits })
    }

    /// What speaks against a way whatever the others are like.
    fn forbids(&self, mode: Leaves, stages: &Stages) -> Option<Against> {
        if mode != Leaves::PostCopy {
            return None;
        }
        if self.never_post_copy {
            return Some(Against::Label);
        }
        if self.failed_by == Some(Leaves::PostCopy) {
            return Some(Against::Aborted);
        }
        // Of one that has never moved nobody knows what it writes, but it cannot write to more than it has.
        let left_bytes = self.habits.map_or(self.memory_bytes, |habits| habits.left_of(self.memory_bytes));
        if left_bytes <= rounds::LITTLE {
            return Some(Against::Little { left_bytes });
        }
        let before = stages.prepare.saturating_add(stages.running).saturating_add(stages.freeze);
        let takes = before.saturating_add(post_copy::in_reserve(stages.frozen));
        self.budget.filter(|left| takes > *left).map(|left| Against::Late { takes, left })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rates::{GIB, WHOLE};

    const QUIET: Habits = Habits { sent_ppm: WHOLE, left_ppm: 0 };
    const BUSY: Habits = Habits { sent_ppm: 2 * WHOLE, left_ppm: WHOLE * 95 / 100 };

    fn ask(change: impl FnOnce(&mut Question<'_>)) -> Choice {
        let rates = Rates::default();
        let mut question = Question {
            best: Leaves::PostCopy,
            memory_bytes: GIB,
            other_bytes: 0,
            habits: None,
            rates: &rates,
            budget: None,
            never_post_copy: false,
            failed_by: None,
        };
        change(&mut question);
        choose(&question)
    }

    fn against(choice: &Choice, mode: Leaves) -> Option<Against> {
        choice.passed.iter().find(|(passed, _)| *passed == mode).map(|(_, against)| *against)
    }

    #[test]
    fn what_the_configuration_allows_is_the_upper_end() {
        for best in LADDER {
            let choice = ask(|question| question.best = best);
            assert_eq!((choice.mode, choice.passed.len()), (best, 0));
            assert_eq!(choice.to_string(), "the best that [memory] mode and this host allow");
        }
    }

    #[test]
    fn post_copy_needs_leave_and_a_reason() {
        let never = ask(|question| question.never_post_copy = true);
        assert_eq!((never.mode, against(&never, Leaves::PostCopy)), (Leaves::PreCopy, Some(Against::Label)));
        let aborted = ask(|question| question.failed_by = Some(Leaves::PostCopy));
        assert_eq!((aborted.mode, against(&aborted, Leaves::PostCopy)), (Leaves::PreCopy, Some(Against::Aborted)));
        let quiet = ask(|question| question.habits = Some(QUIET));
        let little = Against::Little { left_bytes: 0 };
        assert_eq!((quiet.mode, against(&quiet, Leaves::PostCopy)), (Leaves::PreCopy, Some(little)));
        assert_eq!(quiet.to_string(), "not post-copy: only 0 B would be left to follow");
    }

    #[test]
    fn post_copy_must_have_followed_twice_over_before_the_deadline() {
        // 10.737 s of memory, 1 s before it, 0.7 s of freeze; a tenth follows, twice counted, and 5 s for what else may be.
        let within = |millis| ask(|question| question.budget = Some(Duration::from_millis(millis)));
        assert_eq!(within(19_590).mode, Leaves::PostCopy);
        let late = within(19_580);
        assert_eq!(late.mode, Leaves::PreCopy);
        assert!(late.to_string().starts_with("not post-copy: may take 19.6 s, and only 19.6 s are left"), "{late}");
    }

    #[test]
    fn what_it_wrote_once_forbids_no_rounds_while_there_is_time() {
        let habits = |best, habits| ask(|question| (question.best, question.habits) = (best, Some(habits)));
        assert_eq!(habits(Leaves::PreCopy, BUSY).mode, Leaves::PreCopy);
        assert_eq!(habits(Leaves::PostCopy, BUSY).mode, Leaves::PostCopy);
    }

    #[test]
    fn a_deadline_that_pre_copy_would_miss_is_kept_by_stopping() {
        let habits = Habits { sent_ppm: 2 * WHOLE, left_ppm: WHOLE / 10 };
        let within = |seconds| {
            ask(|question| {
                (question.best, question.habits) = (Leaves::PreCopy, Some(habits));
                question.budget = Some(Duration::from_secs(seconds));
            })
        };
        // 24.2 s in rounds, 12.4 s at once.
        assert_eq!(within(25).mode, Leaves::PreCopy);
        assert_eq!(within(20).mode, Leaves::StopAndCopy);
        assert!(within(20).to_string().starts_with("not pre-copy: may take 24."), "{}", within(20));
        assert_eq!(within(1).mode, Leaves::StopAndCopy, "the soonest over where nothing is in time");
    }

    proptest! {
        #[test]
        fn whatever_is_asked_the_way_is_allowed_in_time_if_any_is_and_explained(
            best in prop::sample::select(LADDER.to_vec()),
            memory_bytes in 0..u64::MAX,
            other_bytes in 0..1u64 << 40,
            habits in prop::option::of((0..10_000_000u64, 0..2_000_000u64)),
            rate in (0..1u64 << 34, 0..1u64 << 34),
            budget in prop::option::of(0..200_000u64),
            never_post_copy: bool,
            aborted: bool,
            less in 0..200_000u64,
        ) {
            let rates = Rates { bytes_per_second: rate.0, frozen_bytes_per_second: rate.1, ..Rates::default() };
            let question = Question {
                best,
                memory_bytes: memory_bytes >> (memory_bytes % 40),
                other_bytes,
                habits: habits.map(|(sent_ppm, left_ppm)| Habits { sent_ppm, left_ppm }),
                rates: &rates,
                budget: budget.map(Duration::from_millis),
                never_post_copy,
                failed_by: aborted.then_some(Leaves::PostCopy),
            };
            let choice = choose(&question);
            prop_assert!(choice.mode >= best);
            prop_assert_eq!(choice.mode == Leaves::Dump, best == Leaves::Dump);
            // Every better way that is allowed is spoken of, in its order.
            let better: Vec<_> = LADDER.into_iter().filter(|mode| (best..choice.mode).contains(mode)).collect();
            prop_assert_eq!(choice.passed.iter().map(|(mode, _)| *mode).collect::<Vec<_>>(), better);
            prop_assert!(!choice.to_string().is_empty());

            let chosen = question.stages(choice.mode).until_whole();
            let in_time = |takes: Duration| question.budget.is_none_or(|budget| takes <= budget);
            if choice.mode == Leaves::PostCopy {
                prop_assert!(!never_post_copy && !aborted && in_time(chosen));
            }
            if !in_time(chosen) && best < Leaves::Dump {
                for mode in [Leaves::PreCopy, Leaves::StopAndCopy].into_iter().filter(|mode| *mode >= best) {
                    prop_assert!(question.stages(mode).until_whole() >= chosen);
                }
            }
            // Less time never makes of a no to post-copy a yes.
            if let (Some(budget), true) = (question.budget, choice.mode > Leaves::PostCopy) {
                let sooner = choose(&Question { budget: Some(budget.saturating_sub(Duration::from_millis(less))), ..question });
                let refused = |choice: &Choice| matches!(against(choice, Leaves::PostCopy), Some(Against::Late { .. }));
                prop_assert!(!refused(&choice) || sooner.mode > Leaves::PostCopy);
            }
        }
    }
}
