//! Whether a container may run at its target before the last of its memory is there.
//!
//! Until that memory has followed, the container lives on two hosts, and the loss of either is the loss of its memory. So it is done only
//! where it spares a long freeze, and where what has been measured says that it ends before the source is taken away.

use std::time::Duration;

use crate::rounds::{AFTER, Round};

/// What takes less than this is sent under the freeze. Freezing, dumping and restoring take about as long (see [`AFTER`]), and the
/// sending goes on beside the dump: a freeze that is hardly longer is no price for a container on two hosts.
const NOTICEABLE: Duration = Duration::from_millis(500);

/// How many times what is left could be sent before the deadline. Once for what is measured; once more because pages that are asked for
/// piece by piece come more slowly than all of them in a row, and because a link may be shared with others by then.
const MARGIN: u32 = 2;

/// The time that must be left for what takes so long to follow.
pub(crate) fn in_reserve(sending: Duration) -> Duration {
    sending.saturating_mul(MARGIN).saturating_add(AFTER)
}

/// Why what is left of the memory is sent under the freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnderFreeze {
    /// It does not take long.
    Short,
    /// No round has shown how long it takes.
    Unmeasured,
    /// It might not have followed before the deadline.
    Deadline,
}

/// Whether `left_bytes` may follow the container. `time_left` is until COMMIT must be written, where that is limited.
///
/// # Errors
/// None: `Ok` says how long it will take, as far as that can be known; `Err` says why it shall be sent under the freeze.
pub fn may_follow(left_bytes: u64, rounds: &[Round], time_left: Option<Duration>) -> Result<Duration, UnderFreeze> {
    // The slowest counts: a link that was slow once may be so again.
    let rate = rounds.iter().filter(|round| round.sent_bytes > 0).map(Round::rate).min_by(f64::total_cmp);
    let rate = rate.ok_or(UnderFreeze::Unmeasured)?;
    let sending = Duration::try_from_secs_f64(left_bytes as f64 / rate.max(1.0)).unwrap_or(Duration::MAX);
    if sending < NOTICEABLE {
        return Err(UnderFreeze::Short);
    }
    match time_left {
        Some(left) if in_reserve(sending) > left => Err(UnderFreeze::Deadline),
        _ => Ok(sending),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// 100 MiB/s.
    fn measured() -> [Round; 1] {
        [Round { sent_bytes: 1000 * MIB, elapsed: Duration::from_secs(10), dirty_bytes: 400 * MIB }]
    }

    #[test]
    fn what_takes_long_may_follow_and_what_does_not_is_sent_at_once() {
        assert_eq!(may_follow(400 * MIB, &measured(), None), Ok(Duration::from_secs(4)));
        assert_eq!(may_follow(50 * MIB, &measured(), None), Ok(NOTICEABLE));
        assert_eq!(may_follow(49 * MIB, &measured(), None), Err(UnderFreeze::Short));
    }

    #[test]
    fn what_nobody_has_measured_does_not_follow() {
        assert_eq!(may_follow(400 * MIB, &[], None), Err(UnderFreeze::Unmeasured));
        let nothing = [Round { sent_bytes: 0, elapsed: Duration::from_secs(1), dirty_bytes: 400 * MIB }];
        assert_eq!(may_follow(400 * MIB, &nothing, None), Err(UnderFreeze::Unmeasured));
    }

    #[test]
    fn it_must_have_followed_twice_over_before_the_deadline() {
        assert_eq!(may_follow(400 * MIB, &measured(), Some(Duration::from_secs(13))), Ok(Duration::from_secs(4)));
        let late = Some(Duration::from_millis(12_999));
        assert_eq!(may_follow(400 * MIB, &measured(), late), Err(UnderFreeze::Deadline));
    }

    proptest! {
        /// Whatever was measured: more to send, a slower round or less time never make of a no a yes.
        #[test]
        fn no_proof_comes_from_having_more_to_do(
            left in 0..u64::MAX,
            more in 0..u64::MAX,
            rounds in prop::collection::vec((0..u64::MAX, 0..u64::MAX), 0..6),
            slower in (1..u64::MAX, 1..u64::MAX),
            time in 0..u64::MAX,
            less in 0..u64::MAX,
        ) {
            let round = |(sent_bytes, millis)| Round { sent_bytes, elapsed: Duration::from_millis(millis), dirty_bytes: 0 };
            let mut rounds: Vec<_> = rounds.into_iter().map(round).collect();
            let time = Duration::from_millis(time);
            let before = may_follow(left, &rounds, Some(time));
            if let Ok(sending) = before {
                prop_assert!(sending * 2 < time);
                prop_assert_eq!(may_follow(left, &rounds, None), before);
            }
            if before == Err(UnderFreeze::Deadline) {
                let later = may_follow(left.saturating_add(more), &rounds, Some(time.saturating_sub(Duration::from_millis(less))));
                prop_assert_eq!(later, Err(UnderFreeze::Deadline));
                rounds.push(round(slower));
                prop_assert_eq!(may_follow(left, &rounds, Some(time)), Err(UnderFreeze::Deadline));
            }
        }
    }
}
