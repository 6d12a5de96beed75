//! A stopwatch for what a source sends: what the next migrations are predicted by.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use spothop_policy::{Counted, Leaves, Sent};

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// The image or files, while the container runs.
    Files,
    /// Memory, while it runs.
    Rounds,
    /// Anything, while it is frozen.
    Frozen,
}

/// The counts of one migration.
#[derive(Debug, Default)]
pub(super) struct Meter(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    counted: Counted,
    /// When something was sent under the freeze.
    frozen: Vec<(Instant, Instant)>,
    /// When CRIU had written its images.
    dumped: Option<Instant>,
}

impl Meter {
    /// How much memory there is, how it leaves, and since when it was waited for.
    pub(super) fn begin(&self, leaves: Leaves, memory_bytes: u64, waiting_since: Instant) {
        let counted = &mut self.lock().counted;
        (counted.leaves, counted.memory_bytes, counted.waited) = (leaves, memory_bytes, waiting_since.elapsed());
    }

    /// So much of the memory follows when the container runs at the target already.
    pub(super) fn follows(&self, bytes: u64) {
        let counted = &mut self.lock().counted;
        (counted.leaves, counted.followed_bytes) = (Leaves::PostCopy, bytes);
    }

    /// The target has so many bytes (before compression) since `began`.
    pub(super) fn sent(&self, what: What, bytes: u64, began: Instant) {
        let mut counts = self.lock();
        let Counted { rounds_bytes, running, frozen, .. } = &mut counts.counted;
        let (sum, ended) = (if what == What::Frozen { frozen } else { running }, Instant::now());
        *sum = Sent { bytes: sum.bytes + bytes, time: sum.time + ended.duration_since(began) };
        if what == What::Rounds {
            *rounds_bytes += bytes;
        }
        if what == What::Frozen {
            counts.frozen.push((began, ended));
        }
    }

    /// CRIU has written its images; from here on whatever is sent is waited for.
    pub(super) fn dumped(&self) {
        self.lock().dumped = Some(Instant::now());
    }

    /// All of it.
    pub(super) fn counted(&self) -> Counted {
        let counts = self.lock();
        let until = |(began, ended): &(Instant, Instant)| {
            counts.dumped.map_or(Duration::ZERO, |dumped| dumped.min(*ended).saturating_duration_since(*began))
        };
        Counted { hidden: counts.frozen.iter().map(until).sum(), ..counts.counted }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_beside_the_dump_is_hidden_and_what_came_after_it_is_not() {
        let meter = Meter::default();
        let now = Instant::now();
        let ago = |ms| now.checked_sub(Duration::from_millis(ms)).expect("a machine that is up for seconds");
        meter.begin(Leaves::StopAndCopy, 5_000, ago(950));
        meter.sent(What::Files, 10, ago(900));
        meter.sent(What::Rounds, 20, ago(800));
        meter.lock().dumped = Some(ago(100));
        meter.sent(What::Frozen, 3, ago(300));
        meter.sent(What::Frozen, 4, ago(50));
        let counted = meter.counted();
        assert_eq!((counted.leaves, counted.memory_bytes), (Leaves::StopAndCopy, 5_000));
        assert_eq!((counted.running.bytes, counted.rounds_bytes, counted.frozen.bytes), (30, 20, 7));
        assert!(counted.waited >= Duration::from_millis(950));
        assert_eq!(counted.hidden, Duration::from_millis(200));
        assert!(counted.running.time >= Duration::from_millis(1_700));
        assert!(counted.frozen.time >= Duration::from_millis(350));
    }
}
