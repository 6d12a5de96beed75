//! Until when a migration must have committed, and what ends it before it has begun in earnest.

use std::future::pending;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::sleep;

use super::notices::Leave;
use super::protocol::Occasion;
use super::{Context, Job, MANUAL};

/// Before the deadline, COMMIT must be written at least this long: the target needs to hear it while this host is up.
const LAST_MOMENT: Duration = Duration::from_secs(2);

/// The time of one migration. A notice that comes while it is under way may shorten it; nothing makes it longer.
pub(super) struct Limit {
    began: Instant,
    /// Without any deadline.
    manual: Duration,
    /// The soonest deadline so far.
    soonest: Mutex<Option<Timestamp>>,
    departure: watch::Receiver<Option<Leave>>,
}

impl Limit {
    /// `deadline`: the migration's own.
    pub(super) fn new(context: &Context, deadline: Option<Timestamp>) -> Self {
        Self {
            began: Instant::now(),
            manual: context.config.limits.manual_timeout,
            soonest: Mutex::new(deadline),
            departure: context.departure.subscribe(),
        }
    }

    /// Time until COMMIT must be written; none when no deadline sets it.
    pub(super) fn left(&self) -> Option<Duration> {
        let now = Timestamp::now();
        // A host that is still there after it has nothing to fear from it.
        let said = self.departure.borrow().as_ref().and_then(|leave| leave.by).filter(|by| *by > now);
        let mut soonest = self.soonest.lock().unwrap_or_else(PoisonError::into_inner);
        *soonest = soonest.into_iter().chain(said).min();
        let left = Duration::try_from((*soonest)?.duration_since(now)).unwrap_or(Duration::ZERO);
        Some(left.saturating_sub(LAST_MOMENT))
    }

    /// Longer than this from now it does not take.
    pub(super) fn at_most(&self) -> Duration {
        self.left().unwrap_or(self.manual)
    }

    /// Whether this is no time to be modest.
    pub(super) fn presses(&self) -> bool {
        self.left().is_some() || self.departure.borrow().is_some()
    }

    /// Returns when it is over, with how long it was.
    pub(super) async fn passed(&self) -> Duration {
        let mut departure = self.departure.clone();
        loop {
            departure.mark_unchanged();
            let left = self.left().unwrap_or_else(|| self.manual.saturating_sub(self.began.elapsed()));
            tokio::select! {
                () = sleep(left) => return self.began.elapsed(),
                changed = departure.changed() => if changed.is_err() { pending().await },
            }
        }
    }
}

/// What came first: the freeze, after which a migration goes on whatever becomes of its notice, or the end of that notice.
#[derive(Debug, Default)]
pub(super) struct Brink(OnceLock<First>);

#[derive(Debug, PartialEq, Eq)]
enum First {
    Freeze,
    Withdrawal,
}

impl Brink {
    /// Called before anything is frozen; false when it must not be any more.
    pub(super) fn freeze(&self) -> bool {
        *self.0.get_or_init(|| First::Freeze) == First::Freeze
    }

    /// Returns when the notice is withdrawn for whose sake the container moves, if that is before the freeze.
    ///
    /// Another one may be in force. Then it goes on, unless a target was told when a cloud takes this host away for good: what was
    /// withdrawn must not open a fence.
    pub(super) async fn withdrawn(&self, context: &Context, job: &Job) {
        if job.cause == MANUAL {
            return pending().await;
        }
        let mut departure = context.departure.subscribe();
        let tells_of_an_end = Occasion { cause: &job.cause, deadline: job.deadline }.taken_away().is_some();
        let needed = |leave: &Option<Leave>| leave.is_some() && !tells_of_an_end;
        while context.is_in_force(&job.cause) || needed(&departure.borrow_and_update()) {
            if departure.changed().await.is_err() {
                return pending().await;
            }
        }
        if *self.0.get_or_init(|| First::Withdrawal) != First::Withdrawal {
            pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(departure: &watch::Sender<Option<Leave>>, deadline: Option<Timestamp>) -> Limit {
        Limit {
            began: Instant::now(),
            manual: Duration::from_secs(900),
            soonest: Mutex::new(deadline),
            departure: departure.subscribe(),
        }
    }

    fn leaving(by: Option<Timestamp>) -> Option<Leave> {
        Some(Leave { notice: "aws:i-1:terminate".to_owned(), deadline: by, by, certain: true })
    }

    fn after(seconds: u64) -> Timestamp {
        Timestamp::now() + Duration::from_secs(seconds)
    }

    #[test]
    fn a_deadline_gets_sooner_and_never_later() {
        let departure = watch::Sender::new(None);
        let by_hand = limit(&departure, None);
        assert!(by_hand.left().is_none() && !by_hand.presses());
        departure.send_replace(leaving(Some(after(60))));
        assert!(by_hand.left().unwrap() <= Duration::from_secs(58) && by_hand.presses());
        departure.send_replace(leaving(Some(after(1000))));
        assert!(by_hand.left().unwrap() <= Duration::from_secs(58), "another one does not make it later");
        departure.send_replace(None);
        assert!(by_hand.left().unwrap() <= Duration::from_secs(58), "nor does the end of all");
    }

    #[test]
    fn a_deadline_that_has_passed_is_none_for_what_begins_after_it() {
        let departure = watch::Sender::new(leaving(Some(Timestamp::now() - Duration::from_secs(1))));
        assert_eq!(limit(&departure, None).left(), None);
    }

    #[tokio::test]
    async fn a_sooner_deadline_ends_what_is_under_way() {
        let departure = watch::Sender::new(None);
        let by_hand = limit(&departure, None);
        let passed = by_hand.passed();
        tokio::pin!(passed);
        assert!(futures_util::poll!(&mut passed).is_pending());
        departure.send_replace(leaving(Some(after(2))));
        tokio::time::timeout(Duration::from_secs(60), passed).await.expect("an end long before fifteen minutes");
    }

    #[test]
    fn what_is_frozen_goes_on_and_what_was_withdrawn_is_not_frozen() {
        let frozen = Brink::default();
        assert!(frozen.freeze() && frozen.freeze());
        assert_eq!(*frozen.0.get_or_init(|| First::Withdrawal), First::Freeze);
        let withdrawn = Brink::default();
        withdrawn.0.get_or_init(|| First::Withdrawal);
        assert!(!withdrawn.freeze());
    }
}
