//! What this host does about notices: one task that hears all sources, decides by [`Notices`], and sees to it that every container has
//! left, once for all of them.
//!
//! It keeps nothing that matters: sources repeat their notices to a daemon that comes back, the journal tells what moves or has moved,
//! and the engine what is left.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::pending;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use super::evacuation::{End, Errand, Planned, Question, begin_for, park_for, plan};
use super::message::Request;
use super::notices::{Failures, Heard, Leave, Manner, Notices, Stance};
use super::track::unpanicked;
use super::{Context, Error, MANUAL, Phase, Side, chain, images};
use crate::api::{MigrationView, Outcome};
use crate::config::Likely;
use crate::journal::Journal;
use crate::notice::{Acknowledge, Certainty, NoticeEvent};
use crate::notification::Message;
use crate::orchestrator::Image;

/// Between two looks for containers that are left, and hosts that would take them. Also until something certain to end is over: a container
/// may be started, or come back from a target that failed.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// Between two preparations for what is only likely: it may stay so for days, and hosts and containers come and go.
const PREPARE_AGAIN: Duration = Duration::from_secs(300);

/// Migrations that are looked through for the last that came here, or that left because of a notice.
const RECENT: u32 = 50;

/// The ways to tell clouds that this host is empty, by their name.
pub type Acknowledgers = BTreeMap<&'static str, Arc<dyn Acknowledge>>;

/// Answers notices until their sources end.
pub async fn heed(context: Arc<Context>, mut events: mpsc::Receiver<NoticeEvent>, acknowledgers: Acknowledgers) {
    let (ends, mut ended) = mpsc::unbounded_channel();
    let mut host = Heed::new(context, acknowledgers, ends);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => host.hear(&event),
                None => return,
            },
            Some(end) = ended.recv() => host.note(&end),
            found = finished(&mut host.looking) => {
                host.looking = None;
                host.found(found.unwrap_or(Found::Nothing));
            }
            _ = finished(&mut host.preparing) => {
                host.preparing = None;
            }
            () = sleep_until(host.next), if host.notices.any() && host.looking.is_none() && host.preparing.is_none() => {}
        }
        host.act().await;
    }
}

/// The result of a task, when it has ended by itself.
async fn finished<T>(task: &mut Option<JoinHandle<T>>) -> Option<T> {
    match task {
        Some(task) => task.await.inspect_err(|error| error!(%error, "looking for what is left has failed")).ok(),
        None => pending().await,
    }
}

struct Heed {
    context: Arc<Context>,
    notices: Notices,
    acknowledgers: Acknowledgers,
    failures: Failures,
    /// For all containers that leave because of notices.
    turns: Arc<Semaphore>,
    ends: mpsc::UnboundedSender<End>,
    looking: Option<JoinHandle<Found>>,
    preparing: Option<JoinHandle<()>>,
    /// When to look next.
    next: Instant,
    /// When containers last began to leave because of something that was only likely.
    left: Option<Timestamp>,
    /// Why containers stay, as was said already.
    said: HashMap<String, String>,
}

/// What a look has found.
enum Found {
    /// No container runs here, and none is on its way.
    Empty,
    /// Nothing to begin now.
    Nothing,
    /// Some that had to be planned: those that stay, with their reasons; and whether one is on its way, or could be if there were a host.
    Left { stays: Vec<(String, String, String)>, hope: bool },
}

impl Heed {
    fn new(context: Arc<Context>, acknowledgers: Acknowledgers, ends: mpsc::UnboundedSender<End>) -> Self {
        let config = &context.config.notice;
        Self {
            notices: Notices::new(Manner { likely: config.likely, cooldown: config.likely_cooldown }),
            turns: Arc::new(Semaphore::new(context.config.limits.max_concurrent)),
            context,
            acknowledgers,
            failures: Failures::default(),
            ends,
            looking: None,
            preparing: None,
            next: Instant::now(),
            left: None,
            said: HashMap::new(),
        }
    }

    /// Takes a source's word, and lets everybody know who asks for the notices in force.
    fn hear(&mut self, event: &NoticeEvent) {
        let heard = self.notices.hear(event);
        match (heard, event) {
            (Heard::Known, _) => return,
            (Heard::New, NoticeEvent::Noticed(notice)) => match notice.certainty {
                Certainty::Certain => warn!(notice = notice.id, "this host will be taken away: {notice}"),
                Certainty::Likely => warn!(notice = notice.id, "this host may be taken away: {notice}"),
            },
            (_, NoticeEvent::Noticed(notice)) => warn!(notice = notice.id, "a notice has changed: {notice}"),
            (_, NoticeEvent::Cancelled { id }) => {
                warn!(notice = id, "the notice was withdrawn; what is not frozen because of it stays");
            }
        }
        let id = match event {
            NoticeEvent::Noticed(notice) => &notice.id,
            NoticeEvent::Cancelled { id } => id,
        };
        {
            let mut notices = self.context.notices.lock().unwrap_or_else(PoisonError::into_inner);
            match self.notices.shown(id, Timestamp::now()) {
                Some(notice) => notices.insert(id.clone(), notice),
                None => notices.remove(id),
            };
        }
        self.context.notifier.tell(match event {
            NoticeEvent::Noticed(notice) => Message::received(&self.context.config.host.name, notice),
            NoticeEvent::Cancelled { id } => Message::withdrawn(&self.context.config.host.name, id),
        });
        self.failures.clear();
        self.said.clear();
        self.next = Instant::now();
        // Also for those who wait for the end of a notice that changes nothing for the others.
        self.context.departure.send_modify(|_| {});
    }

    fn note(&mut self, end: &End) {
        if end.failed {
            self.failures.failed(&end.container, Timestamp::now());
        }
        // Something may be left, or nothing at all.
        self.next = Instant::now();
    }

    fn found(&mut self, found: Found) {
        match found {
            Found::Empty => self.acknowledge(),
            // On its way, or to be tried again.
            Found::Nothing => self.hold(),
            Found::Left { stays, hope } => {
                if hope {
                    self.hold();
                }
                for (id, name, reasons) in stays {
                    if self.said.get(&id) != Some(&reasons) {
                        warn!(container = name, reasons, "this container stays for now");
                        self.said.insert(id, reasons);
                    }
                }
            }
        }
    }

    async fn act(&mut self) {
        let now = Timestamp::now();
        for notice in self.notices.overdue(now) {
            warn!(notice = notice.id, "its time is over, and containers are left here");
            self.context.notifier.tell(Message::failed(&self.context.config.host.name, &notice));
        }
        let stance = self.notices.stance(now, self.last_left(now).await);
        let departure = match &stance {
            Stance::Leave(leave) if leave.certain => Some(leave.clone()),
            _ => None,
        };
        self.context.departure.send_if_modified(|known| {
            let changed = *known != departure;
            *known = departure;
            changed
        });
        if stance != Stance::Prepare
            && let Some(preparing) = self.preparing.take()
        {
            preparing.abort();
        }
        if self.looking.is_some() || Instant::now() < self.next {
            return;
        }
        // What happens meanwhile brings it forward.
        self.next = Instant::now() + LOOK_AGAIN;
        match stance {
            Stance::Prepare if self.preparing.is_none() => {
                self.next = Instant::now() + PREPARE_AGAIN;
                self.preparing = Some(tokio::spawn(prepare(Arc::clone(&self.context))));
            }
            Stance::Stay | Stance::Prepare => {}
            Stance::Leave(leave) => {
                if !leave.certain {
                    self.left = Some(now);
                }
                let (context, turns) = (Arc::clone(&self.context), Arc::clone(&self.turns));
                let (resting, ends) = (self.failures.resting(now), self.ends.clone());
                self.looking = Some(tokio::spawn(look(context, leave, resting, turns, ends)));
            }
        }
    }

    /// When this host last began to leave because of a notice, or got a container; looked for only where that counts.
    async fn last_left(&self, now: Timestamp) -> Option<Timestamp> {
        if self.context.config.notice.likely != Likely::Evacuate || !self.notices.has_likely() {
            return None;
        }
        let journal = Arc::clone(&self.context.journal);
        let history = unpanicked(spawn_blocking(move || Journal::history(&journal, RECENT)).await);
        match history {
            Ok(history) => history.iter().filter_map(came_or_left).chain(self.left).max(),
            Err(failure) => {
                warn!(
                    error = chain(&failure),
                    "what came here lately cannot be read, so nothing leaves for what is only likely"
                );
                Some(now)
            }
        }
    }

    /// Something here needs time.
    fn hold(&self) {
        for notice in self.notices.unacknowledged() {
            if let Some(acknowledger) = self.acknowledgers.get(notice.cloud.to_string().as_str()) {
                tokio::spawn(acknowledger.hold(notice));
            }
        }
    }

    /// Every container is safe.
    fn acknowledge(&mut self) {
        for notice in self.notices.acknowledge() {
            info!(notice = notice.id, "nothing is left on this host");
            self.context.notifier.tell(Message::finished(&self.context.config.host.name, &notice));
            if let Some(acknowledger) = self.acknowledgers.get(notice.cloud.to_string().as_str()) {
                let acknowledger = Arc::clone(acknowledger);
                tokio::spawn(async move { acknowledger.acknowledge(&notice).await });
            }
        }
    }
}

/// When a container came here, or left because of a notice.
fn came_or_left(view: &MigrationView) -> Option<Timestamp> {
    let entered = |phase| view.phases.iter().find(|entry| entry.phase == phase).map(|entry| entry.at);
    match view.side {
        Side::Target => entered(Phase::Running).filter(|_| view.outcome == Some(Outcome::Moved)),
        Side::Source => entered(Phase::Planned).filter(|_| view.cause != MANUAL),
    }
}

/// Looks for containers that are here and not on their way, and begins to move them. `resting` are left in peace for now.
async fn look(
    context: Arc<Context>,
    leave: Leave,
    resting: BTreeSet<String>,
    turns: Arc<Semaphore>,
    ends: mpsc::UnboundedSender<End>,
) -> Found {
    match try_look(&context, leave, resting, turns, ends).await {
        Ok(found) => found,
        Err(failure) => {
            error!(error = chain(&failure), "the evacuation could not be planned; trying again");
            Found::Nothing
        }
    }
}

async fn try_look(
    context: &Arc<Context>,
    leave: Leave,
    resting: BTreeSet<String>,
    turns: Arc<Semaphore>,
    ends: mpsc::UnboundedSender<End>,
) -> Result<Found, Error> {
    // Before the engine is asked: what has left by then is not listed any more.
    let moving: BTreeSet<String> =
        context.moving.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
    let running = context.engine.list().await?;
    if running.is_empty() && moving.is_empty() {
        return Ok(Found::Empty);
    }
    let is_moving = !moving.is_empty();
    let except: BTreeSet<String> = moving.into_iter().chain(resting).collect();
    if running.iter().all(|container| except.contains(&container.id)) {
        return Ok(Found::Nothing);
    }
    let budget = leave.by.map(|by| Duration::try_from(by.duration_since(Timestamp::now())).unwrap_or_default());
    let mut planned = plan(context, &Question { budget, except, ..Question::default() }).await?;
    let (notice, is_certain) = (leave.notice.clone(), leave.certain);
    let errand = Errand::Noticed { leave, ends };
    if is_certain {
        planned.ask_for_hosts(context, &notice);
        park_for(context, &mut planned, &errand, &turns);
    }
    let accepted = begin_for(context, planned, &errand, &turns);
    if !accepted.migrations.is_empty() {
        info!(notice, migrations = ?accepted.migrations, "the evacuation has begun");
        context.notifier.tell(Message::started(&context.config.host.name, &notice, &accepted));
    }
    let could_go = |stay: &spothop_policy::Stay| stay.obstacles.is_empty();
    let hope = is_moving || !accepted.migrations.is_empty() || accepted.plan.stays.iter().any(could_go);
    let stay = |stay: spothop_policy::Stay| {
        let reasons = stay.reasons().join("; ");
        (stay.container, stay.name, reasons)
    };
    Ok(Found::Left { stays: accepted.plan.stays.into_iter().map(stay).collect(), hope })
}

/// Has the hosts to which this host's containers would go get their images.
async fn prepare(context: Arc<Context>) {
    let planned = match plan(&context, &Question::default()).await {
        Ok(planned) => planned,
        Err(failure) => {
            warn!(error = chain(&failure), "nothing can be prepared now");
            return;
        }
    };
    for (target, image) in needed(&planned) {
        match warm(&context, target, image).await {
            Ok(()) => info!(target, image = image.reference, "prepared: the image is there"),
            Err(failure) => {
                warn!(target, image = image.reference, error = chain(&failure), "the image could not be prepared");
            }
        }
    }
}

/// Each image once for each target.
fn needed(planned: &Planned) -> Vec<(&str, &Image)> {
    let mut seen = BTreeSet::new();
    planned.images().filter(|(target, image)| seen.insert((*target, image.id.as_str()))).collect()
}

async fn warm(context: &Context, target: &str, image: &Image) -> Result<(), Error> {
    let mut conversation = context.connect(target, context.config.transfer.connections).await?;
    let request = |shipped| Request::Warm { image: Box::new(image.clone()), shipped };
    images::ship(context, &mut conversation, image, request, &|_| {}).await?;
    // It has said what it had to; how it says goodbye does not matter.
    let _ = conversation.close().await;
    Ok(())
}
