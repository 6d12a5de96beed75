//! When to stop sending memory from under a running container, and freeze it.

use std::time::Duration;

/// A round of pre-copy that is over: what it sent, and what the tasks wrote meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// Bytes of memory that it sent.
    pub sent_bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Bytes that had been written again when it was over, and would have to be sent under the freeze.
    pub dirty_bytes: u64,
}

impl Round {
    /// Bytes of memory that the round sent per second, compression and all.
    pub(crate) fn rate(&self) -> f64 {
        self.sent_bytes as f64 / self.elapsed.as_secs_f64().max(1e-3)
    }
}

/// Why the container is frozen now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enough {
    /// What is left goes over faster than a round could make it less.
    Little,
    /// The tasks write about as fast as the link takes it: the last round has not made it less.
    NoProgress,
    /// The last round that is allowed.
    Rounds,
    /// The deadline leaves no time for another one.
    Deadline,
}

/// So little goes over within what freezing and dumping takes anyway.
pub(crate) const LITTLE: u64 = 4 << 20;

/// A round must leave less than this part of what the one before left.
const PROGRESS: f64 = 0.75;

/// Converging takes three to five; who writes faster than the link is found out by the second.
const MOST: usize = 10;

/// Freeze, dump, restore and COMMIT, besides what is sent: they took 0.5 s on the machines this was built on; a busy host takes longer.
pub(crate) const AFTER: Duration = Duration::from_secs(5);

/// Whether another round is worth it, after at least one. `time_left` is until COMMIT must be written, where that is limited.
///
/// # Errors
/// None: `Ok` asks for another round, `Err` says why there shall be none.
pub fn another(rounds: &[Round], time_left: Option<Duration>) -> Result<(), Enough> {
    let [before @ .., last] = rounds else { return Ok(()) };
    if last.dirty_bytes <= LITTLE {
        return Err(Enough::Little);
    }
    if rounds.len() >= MOST {
        return Err(Enough::Rounds);
    }
    // The first round leaves what was written while everything was sent; it has nothing to be compared with but that.
    let was = before.last().map_or(last.sent_bytes, |round| round.dirty_bytes);
    if last.dirty_bytes as f64 >= PROGRESS * was as f64 {
        return Err(Enough::NoProgress);
    }
    let sending = Duration::try_from_secs_f64(last.dirty_bytes as f64 / last.rate().max(1.0)).unwrap_or(Duration::MAX);
    // Once for the round, once more in case that it has not helped.
    if time_left.is_some_and(|left| sending.saturating_mul(2).saturating_add(AFTER) > left) {
        return Err(Enough::Deadline);
    }
    Ok(())
}

/// Whether the first round, of `bytes` in all, ends before the freeze must begin, at `bytes_per_second`.
pub fn first(bytes: u64, bytes_per_second: u64, time_left: Option<Duration>) -> Result<(), Enough> {
    let sending = Duration::from_secs(bytes / bytes_per_second.max(1));
    match time_left {
        Some(left) if sending.saturating_add(AFTER) > left => Err(Enough::Deadline),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn round(sent: u64, millis: u64, dirty: u64) -> Round {
        Round { sent_bytes: sent * MIB, elapsed: Duration::from_millis(millis), dirty_bytes: dirty * MIB }
    }

    #[test]
    fn rounds_go_on_while_they_help() {
        assert_eq!(another(&[], None), Ok(()));
        assert_eq!(another(&[round(1024, 2000, 100)], None), Ok(()));
        assert_eq!(another(&[round(1024, 2000, 100), round(100, 200, 20)], None), Ok(()));
        let small = [round(1024, 2000, 100), round(100, 200, 20), round(20, 40, 4)];
        assert_eq!(another(&small, None), Err(Enough::Little));
    }

    #[test]
    fn a_container_that_writes_as_fast_as_the_link_is_frozen_after_the_round_that_shows_it() {
        assert_eq!(another(&[round(1024, 2000, 900)], None), Err(Enough::NoProgress));
        assert_eq!(another(&[round(1024, 2000, 400), round(400, 800, 390)], None), Err(Enough::NoProgress));
    }

    #[test]
    fn rounds_have_an_end() {
        let mut rounds = vec![round(1 << 20, 2000, 1 << 19)];
        while another(&rounds, None).is_ok() {
            let dirty = rounds[rounds.len() - 1].dirty_bytes / MIB;
            rounds.push(round(dirty, 100, dirty / 2));
        }
        assert_eq!((rounds.len(), another(&rounds, None)), (MOST, Err(Enough::Rounds)));
    }

    #[test]
    fn the_deadline_comes_first() {
        // 500 MiB/s: 100 MiB take 0.2 s.
        let rounds = [round(1000, 2000, 100)];
        assert_eq!(another(&rounds, Some(Duration::from_secs(5))), Err(Enough::Deadline));
        assert_eq!(another(&rounds, Some(Duration::from_secs(6))), Ok(()));
        assert_eq!(first(1000 * MIB, 100 * MIB, Some(Duration::from_secs(14))), Err(Enough::Deadline));
        assert_eq!(first(1000 * MIB, 100 * MIB, Some(Duration::from_secs(15))), Ok(()));
        assert_eq!(first(u64::MAX, 0, None), Ok(()));
    }

    #[test]
    fn a_round_that_took_no_time_is_no_division_by_zero() {
        assert_eq!(another(&[round(0, 0, 5), round(8, 0, 5)], Some(Duration::MAX)), Err(Enough::NoProgress));
        assert_eq!(another(&[round(100, 0, 5)], Some(Duration::from_secs(6))), Ok(()));
    }
}
