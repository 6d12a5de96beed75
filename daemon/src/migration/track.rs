//! A migration's handle on the journal and on those who watch: every phase goes through here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::broadcast;
use tracing::{info, warn};

use super::{Error, Phase, Side, Step, Verdict};
use crate::api::{Event, EventKind, MigrationView, Outcome};
use crate::journal::{Journal, JournalError, StepId};
use crate::orchestrator::OldCopy;

/// Events that a slow watcher may lag behind before it loses some. A migration makes about ten a second.
const BACKLOG: usize = 4096;

/// At most one progress event per this many milliseconds and transfer: enough for a smooth bar.
const PROGRESS_EVERY_MS: u64 = 100;

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

/// A failure to be injected, for tests: the migration fails when this side enters this phase.
///
/// From `SPOTHOP_FAIL_AT=<side>:<phase>`, such as `source:transferred`; anything else is ignored.
#[derive(Debug, Clone, Copy)]
pub struct FailAt(Side, Phase);

impl FailAt {
    /// What the environment asks for.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let text = std::env::var("SPOTHOP_FAIL_AT").ok()?;
        let (side, phase) = text.split_once(':')?;
        let side = [Side::Source, Side::Target].into_iter().find(|known| known.to_string() == side)?;
        Some(Self(side, phase.parse().ok()?))
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
    fail_at: Option<FailAt>,
}

impl Track {
    /// A handle on a migration that the journal knows.
    #[must_use]
    pub fn new(
        id: &str,
        side: Side,
        container: &str,
        journal: Arc<Journal>,
        events: Events,
        fail_at: Option<FailAt>,
    ) -> Self {
        Self { id: id.into(), side, container: container.into(), journal, events, fail_at }
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
        if self.fail_at.is_some_and(|FailAt(side, at)| side == self.side && at == phase) {
            return Err(Error::Injected { phase });
        }
        self.journal(move |journal, id, side| journal.enter(id, side, phase, Timestamp::now())).await?;
        self.announce(EventKind::Phase { phase });
        Ok(())
    }

    /// The compare-and-set. Returns the verdict that stands.
    ///
    /// # Errors
    /// The journal's; nothing is decided then.
    pub async fn decide(&self, wanted: Verdict, reason: Option<String>) -> Result<Verdict, JournalError> {
        let stands = self
            .journal(move |journal, id, side| journal.decide(id, side, wanted, reason.as_deref(), Timestamp::now()))
            .await?;
        let phase = match stands {
            Verdict::Commit => Phase::Committed,
            Verdict::Abort => Phase::Aborted,
        };
        self.announce(EventKind::Phase { phase });
        Ok(stands)
    }

    /// What is decided.
    ///
    /// # Errors
    /// The journal's.
    pub async fn verdict(&self) -> Result<Option<Verdict>, JournalError> {
        self.journal(Journal::verdict).await
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
        move |sent| {
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
