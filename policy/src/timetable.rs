//! When migrations begin and end that share this host's link.
//!
//! So many run at the same time; the next begins when one is over. Whoever sends has the link to itself or shares it with the others that
//! send: each goes at the rate that its target takes, or all slower by the same factor where that is more than the link takes. Nobody
//! shares preparations or freezes. The link is taken to be as fast as the fastest target was ([`Estimates`](crate::Estimates)).

use std::time::Duration;

use crate::rates::{LONGEST, Stages, nanos, whole};

/// A part of a link's rate is counted in so many parts.
const WHOLE_LINK: u128 = 1_000_000;

/// One migration, as the link sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    /// What is left of each stage, in nanoseconds at its own rate, and which part of the link it takes at that rate.
    stages: [(u128, u128); 4],
    /// All of it, when it is alone.
    pub(crate) alone: Duration,
}

impl Job {
    /// With what follows the container: until then the source is needed.
    pub(crate) fn new(stages: &Stages, link: u64) -> Self {
        let part = |rate: u64| (u128::from(rate) * WHOLE_LINK / u128::from(link.max(1))).clamp(1, WHOLE_LINK);
        let mut parts = [
            (stages.prepare.as_nanos(), 0),
            (stages.running.as_nanos(), part(stages.running_rate)),
            (stages.freeze.as_nanos(), 0),
            (stages.frozen.as_nanos(), part(stages.frozen_rate)),
        ];
        let alone = stages.until_whole();
        // Times are rounded up: what that adds belongs to it as well, so that one after the other they add up.
        let all: u128 = parts.iter().map(|(left, _)| left).sum();
        parts[2].0 += alone.as_nanos().saturating_sub(all);
        Self { stages: parts, alone }
    }
}

/// Begin and end of each, counted from now, rounded up to a millisecond.
pub(crate) type Spans = Vec<(Duration, Duration)>;

/// Runs all of them, in this order, `concurrency` at a time.
pub(crate) fn run(jobs: &[Job], concurrency: usize) -> Spans {
    if concurrency <= 1 {
        let mut clock = Duration::ZERO;
        let after = |clock: Duration, job: &Job| clock.saturating_add(job.alone).min(LONGEST);
        return jobs
            .iter()
            .map(|job| {
                let begin = clock;
                clock = after(clock, job);
                (begin, clock)
            })
            .collect();
    }
    share(jobs, concurrency)
}

struct Running {
    job: usize,
    stage: usize,
    left: u128,
}

fn share(jobs: &[Job], concurrency: usize) -> Spans {
    let mut spans = vec![(Duration::ZERO, Duration::ZERO); jobs.len()];
    let mut waiting = 0..jobs.len();
    let mut running: Vec<Running> = Vec::new();
    let mut clock = 0u128;
    loop {
        // Stages that take no time are over at once; who is through makes room.
        for one in &mut running {
            while one.left == 0 && one.stage < 3 {
                one.stage += 1;
                one.left = jobs[one.job].stages[one.stage].0;
            }
            if one.left == 0 {
                spans[one.job].1 = whole(nanos(clock));
            }
        }
        running.retain(|one| one.left > 0 || one.stage < 3);
        let mut began = false;
        while running.len() < concurrency
            && let Some(job) = waiting.next()
        {
            spans[job].0 = whole(nanos(clock));
            running.push(Running { job, stage: 0, left: jobs[job].stages[0].0 });
            began = true;
        }
        if began {
            continue;
        }
        let demand: u128 = running.iter().map(|one| jobs[one.job].stages[one.stage].1).sum();
        let demand = demand.max(WHOLE_LINK);
        let sends = |one: &Running| jobs[one.job].stages[one.stage].1 > 0;
        let until_over = |one: &Running| if sends(one) { (one.left * demand).div_ceil(WHOLE_LINK) } else { one.left };
        let Some(step) = running.iter().map(until_over).min() else { return spans };
        clock += step;
        for one in &mut running {
            let done = if sends(one) { (step * WHOLE_LINK).div_ceil(demand) } else { step };
            one.left = one.left.saturating_sub(done);
        }
    }
}

/// What is over in time, of jobs in the order of their importance: each is taken if all that were taken before it are in time also
/// with it. `None` is no limit.
pub(crate) fn in_time(jobs: &[Job], concurrency: usize, budget: Option<Duration>) -> Vec<bool> {
    let Some(budget) = budget else { return vec![true; jobs.len()] };
    if concurrency <= 1 {
        let mut clock = Duration::ZERO;
        let mut take = |job: &Job| {
            let end = clock.saturating_add(job.alone).min(LONGEST);
            if end <= budget {
                clock = end;
            }
            end <= budget
        };
        return jobs.iter().map(&mut take).collect();
    }
    let all_in_time = |jobs: &[Job]| run(jobs, concurrency).iter().all(|(_, end)| *end <= budget);
    if all_in_time(jobs) {
        return vec![true; jobs.len()];
    }
    let mut taken = Vec::new();
    let mut take = |job: &Job| {
        taken.push(*job);
        let fits = job.alone <= budget && all_in_time(&taken);
        if !fits {
            taken.pop();
        }
        fits
    };
    jobs.iter().map(&mut take).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MB: u64 = 1_000_000;

    /// Seconds of each stage, at 100 MB/s.
    fn job(prepare: u64, running: u64, freeze: u64, frozen: u64, link: u64) -> Job {
        let stages = Stages {
            prepare: Duration::from_secs(prepare),
            running: Duration::from_secs(running),
            freeze: Duration::from_secs(freeze),
            frozen: Duration::from_secs(frozen),
            running_rate: 100 * MB,
            frozen_rate: 100 * MB,
            follows: false,
        };
        Job::new(&stages, link)
    }

    fn ends(jobs: &[Job], concurrency: usize) -> Vec<f64> {
        run(jobs, concurrency).iter().map(|(_, end)| end.as_secs_f64()).collect()
    }

    #[test]
    fn two_that_send_at_the_same_time_take_twice_as_long_and_the_rest_does_not() {
        let link = 100 * MB;
        assert_eq!(ends(&[job(0, 4, 0, 0, link), job(0, 4, 0, 0, link)], 2), [8.0, 8.0]);
        // The second has the link while the first is frozen.
        assert_eq!(ends(&[job(0, 4, 4, 0, link), job(4, 4, 0, 0, link)], 2), [8.0, 8.0]);
        assert_eq!(ends(&[job(1, 2, 1, 0, link), job(1, 2, 1, 0, link)], 1), [4.0, 8.0]);
        assert_eq!(ends(&[job(1, 2, 1, 0, link), job(1, 2, 1, 0, link)], 2), [6.0, 6.0]);
    }

    #[test]
    fn a_link_that_is_wide_enough_for_both_slows_nobody_down() {
        assert_eq!(ends(&[job(0, 4, 0, 0, 200 * MB), job(0, 4, 0, 0, 200 * MB)], 2), [4.0, 4.0]);
        let between = ends(&[job(0, 4, 0, 0, 150 * MB); 2], 2);
        assert!(between.iter().all(|end| (end - 16.0 / 3.0).abs() < 1e-3), "{between:?}");
    }

    #[test]
    fn what_is_late_holds_up_nothing() {
        let link = 100 * MB;
        let jobs = [job(0, 20, 0, 0, link), job(0, 3, 0, 0, link), job(0, 3, 0, 0, link)];
        let limit = Some(Duration::from_secs(6));
        assert_eq!(in_time(&jobs, 1, limit), [false, true, true]);
        assert_eq!(in_time(&jobs, 2, limit), [false, true, true]);
        assert_eq!(in_time(&jobs, 2, Some(Duration::from_secs(5))), [false, true, false]);
        assert_eq!(in_time(&jobs, 2, None), [true; 3]);
    }

    #[test]
    fn the_longest_times_do_not_overflow() {
        let long = Stages {
            prepare: LONGEST,
            running: LONGEST,
            freeze: LONGEST,
            frozen: LONGEST,
            running_rate: 1,
            frozen_rate: u64::MAX,
            follows: false,
        };
        let job = Job::new(&long, u64::MAX);
        for (_, end) in run(&[job; 5], 3) {
            assert_eq!(end, LONGEST);
        }
    }

    proptest! {
        /// All bytes go over one link: nobody is done sooner than alone, and all of them no later than one after the other.
        #[test]
        fn sharing_is_between_alone_and_one_after_the_other(
            sizes in prop::collection::vec((0..5u64, 0..20u64, 0..5u64, 0..5u64), 1..8),
            concurrency in 1..5usize,
            link in 1..4u64,
        ) {
            let jobs: Vec<Job> = sizes.into_iter().map(|(a, b, c, d)| job(a, b, c, d, link * 100 * MB)).collect();
            let sum: Duration = jobs.iter().map(|job| job.alone).sum();
            for ((begin, end), job) in run(&jobs, concurrency).into_iter().zip(&jobs) {
                // Moments are rounded up.
                let slack = Duration::from_millis(1);
                prop_assert!(end + slack >= begin + job.alone);
                prop_assert!(end <= sum + slack);
            }
        }
    }
}
