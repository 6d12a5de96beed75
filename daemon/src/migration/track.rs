//! A migration's handle on the journal and on those who watch: every phase goes through here.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use spothop_criu::failpoint::{self, Injected};
use tokio::sync::broadcast;
use tokio::time::sleep;
use tracing::{info, warn};

use super::error::chain;
use super::{Error, Phase, Side, Step, Verdict};
use crate::api::{Event, EventKind, MigrationView, Outcome};
use crate::journal::{Journal, JournalError, Standing, StepId};
use crate::orchestrator::OldCopy;

/// Events that a slow watcher may lag behind before it loses some. A migration makes about ten a second.
const BACKLOG: usize = 4096;

/// At most one progress event per this many milliseconds and transfer: enough for a smooth bar.
const PROGRESS_EVERY_MS: u64 = 100;

/// Between two attempts at what must be done, the first and the longest.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Where everything that happens to migrations is announced.
#[derive(Debug, Clone)]
pub struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }
}

impl Events {
    /// Everything from now on.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}

/// One side of one migration, on record.
#[derive(Debug, Clone)]
pub struct Track {
    /// The migration's id.
    pub id: Arc<str>,
    /// Which end this is.
    pub side: Side,
    /// The container's name.
    pub container: Arc<str>,
    journal: Arc<Journal>,
    events: Events,
}

impl Track {
    /// A handle on a migration that the journal knows.
    #[must_use]
    pub fn new(id: &str, side: Side, container: &str, journal: Arc<Journal>, events: Events) -> Self {
        Self { id: id.into(), side, container: container.into(), journal, events }
    }

    /// Announces the beginning, which the journal has already.
    pub fn announce_planned(&self) {
        self.announce(EventKind::Phase { phase: Phase::Planned });
    }

    /// Records and announces a phase.
    ///
    /// # Errors
    /// The journal's, or the injected one.
    pub async fn enter(&self, phase: Phase) -> Result<(), Error> {
        self.reach(format_args!("{phase}"))?;
        self.journal(move |journal, id, side| journal.enter(id, side, phase, Timestamp::now())).await?;
        self.announce(EventKind::Phase { phase });
        Ok(self.reach(format_args!("{phase}:after"))?)
    }

    /// Passes the point `<side>:<point>`, where a test may have ordered a failure.
    ///
    /// # Errors
    /// The one that was ordered.
    pub fn reach(&self, point: impl Display) -> Result<(), Injected> {
        failpoint::reach(format!("{}:{point}", self.side))
    }

    /// The compare-and-set. Returns the verdict that stands.
    ///
    /// # Errors
    /// The journal's, or an injected one; whether something is decided is to be read again.
    pub async fn decide(&self, wanted: Verdict, reason: Option<String>) -> Result<Verdict, Error> {
        self.reach(wanted.phase())?;
        let stands = self
            .journal(move |journal, id, side| journal.decide(id, side, wanted, reason.as_deref(), Timestamp::now()))
            .await?;
        self.announce(EventKind::Phase { phase: stands.phase() });
        self.reach(format_args!("{}:after", wanted.phase()))?;
        Ok(stands)
    }

    /// What is decided.
    ///
    /// # Errors
    /// The journal's.
    pub async fn verdict(&self) -> Result<Option<Verdict>, JournalError> {
        self.journal(Journal::verdict).await
    }

    /// How far it is and what is decided.
    ///
    /// # Errors
    /// The journal's.
    pub async fn standing(&self) -> Result<Standing, JournalError> {
        self.journal(Journal::standing).await
    }

    /// At the source: takes over what the target has decided. Returns what stands.
    ///
    /// # Errors
    /// The journal's.
    pub async fn adopt(&self, targets: Verdict, reason: String) -> Result<Verdict, Error> {
        let stands =
            self.journal(move |journal, id, _| journal.adopt(id, targets, Some(&reason), Timestamp::now())).await?;
        self.announce(EventKind::Phase { phase: stands.phase() });
        Ok(stands)
    }

    /// Does what must be done sooner or later, and tries again until it is: a full disk or an engine that restarts is no reason to
    /// leave a migration open.
    pub async fn surely<'a, T>(
        &self,
        what: &'static str,
        mut attempt: impl FnMut() -> BoxFuture<'a, Result<T, Error>> + Send,
    ) -> T {
        let (mut pause, longest) = AGAIN;
        loop {
            match attempt().await {
                Ok(done) => return done,
                Err(failure) => {
                    warn!(migration = %self.id, side = %self.side, error = chain(&failure), "{what} failed; trying again");
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// The whole record.
    ///
    /// # Errors
    /// The journal's.
    pub async fn record(&self) -> Result<MigrationView, JournalError> {
        self.journal(Journal::record).await
    }

    /// Writes an intent.
    ///
    /// # Errors
    /// The journal's; the side effect must not be done then.
    pub async fn intend(&self, step: Step) -> Result<StepId, JournalError> {
        self.journal(move |journal, id, side| journal.intend(id, side, &step, Timestamp::now())).await
    }

    /// Everything that may still have to be undone, the latest first.
    ///
    /// # Errors
    /// The journal's.
    pub async fn unsettled(&self) -> Result<Vec<(StepId, Step)>, JournalError> {
        self.journal(Journal::unsettled).await
    }

    /// Every side effect there was, the latest first.
    ///
    /// # Errors
    /// The journal's.
    pub async fn steps(&self) -> Result<Vec<Step>, JournalError> {
        self.journal(Journal::steps).await
    }

    /// A side effect needs no undo any more.
    ///
    /// # Errors
    /// The journal's.
    pub async fn settled(&self, step: StepId) -> Result<(), JournalError> {
        self.journal(move |journal, _, _| journal.settled(step, Timestamp::now())).await
    }

    /// Adds what a transfer moved.
    ///
    /// # Errors
    /// The journal's.
    pub async fn count(&self, stats: spothop_transfer::Stats) -> Result<(), JournalError> {
        self.journal(move |journal, id, side| journal.count_bytes(id, side, stats.raw_bytes, stats.wire_bytes)).await
    }

    /// Records what the source has counted, for the predictions of others; if that fails this migration is none the worse.
    pub async fn counted(&self, peer: &str, counted: spothop_policy::Counted) {
        let peer = peer.to_owned();
        if let Err(failure) = self.journal(move |journal, id, _| journal.count(id, &peer, &counted)).await {
            warn!(migration = %self.id, error = chain(&failure), "what was measured is not recorded");
        }
    }

    /// Records what is to be known about a migration whatever its end.
    ///
    /// # Errors
    /// The journal's.
    pub async fn remark(&self, reason: String) -> Result<(), JournalError> {
        self.journal(move |journal, id, side| journal.remark(id, side, &reason)).await
    }

    /// Records that the migration took these volumes away.
    ///
    /// # Errors
    /// The journal's.
    pub async fn volumes_departed(&self, volumes: Vec<OldCopy>) -> Result<(), JournalError> {
        self.journal(move |journal, id, _| journal.volumes_departed(id, &volumes)).await
    }

    /// Announces the end.
    pub fn finished(&self, outcome: Outcome, reason: Option<String>) {
        self.announce(EventKind::Finished { outcome, reason });
    }

    /// A callback for the transfer crate that announces progress, not too often.
    pub fn progress(&self, what: &'static str, total: Option<u64>) -> impl Fn(u64) + Send + Sync + 'static {
        let (track, began, last) = (self.clone(), Instant::now(), AtomicU64::new(0));
        let percent = AtomicU64::new(0);
        move |sent| {
            if let Some(total) = total {
                track.reach_percent(what, &percent, sent, total);
            }
            let now = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let before = last.load(Ordering::Relaxed);
            let complete = total == Some(sent);
            if (complete || now >= before + PROGRESS_EVERY_MS)
                && last.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            {
                track.tell(EventKind::Progress { what: what.to_owned(), sent, total });
            }
        }
    }

    /// Passes the points `<side>:<what>:1`, `:10` and `:99` of a stream.
    fn reach_percent(&self, what: &str, last: &AtomicU64, sent: u64, total: u64) {
        let now = sent.saturating_mul(100) / total.max(1);
        let before = last.fetch_max(now, Ordering::Relaxed);
        for mark in [1, 10, 99] {
            if before < mark && mark <= now {
                // A stream fails by being cut or by its end dying, which is for whoever stops us here.
                let _ = self.reach(format_args!("{what}:{mark}"));
            }
        }
    }

    fn announce(&self, what: EventKind) {
        let (container, side) = (&self.container, self.side);
        match &what {
            EventKind::Phase { phase } => info!(migration = %self.id, %side, "{container}: {phase}"),
            EventKind::Finished { outcome: Outcome::Moved, .. } => {
                info!(migration = %self.id, %side, "{container}: moved")
            }
            EventKind::Finished { outcome: Outcome::Aborted, reason } => {
                let reason = reason.as_deref().unwrap_or("no reason given");
                warn!(migration = %self.id, %side, "{container}: aborted: {reason}");
            }
            EventKind::Progress { .. } => {}
        }
        self.tell(what);
    }

    fn tell(&self, what: EventKind) {
        // An error means that nobody watches.
        let _ = self.events.0.send(Event {
            migration: self.id.to_string(),
            side: self.side,
            container: self.container.to_string(),
            at: Timestamp::now(),
            what,
        });
    }

    /// Runs a journal call, which blocks for an fsync, off the reactor.
    async fn journal<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Journal, &str, Side) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let (journal, id, side) = (Arc::clone(&self.journal), Arc::clone(&self.id), self.side);
        unpanicked(tokio::task::spawn_blocking(move || call(&journal, &id, side)).await)
    }
}

/// The value of a blocking task; a panic in it goes on in the caller.
pub fn unpanicked<T>(joined: Result<T, tokio::task::JoinError>) -> T {
    match joined {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
