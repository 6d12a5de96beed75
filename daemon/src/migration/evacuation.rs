//! Several migrations in the order of a plan, each with its next best target when the best one refuses.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use spothop_policy::{Estimates, Fallback, Leaves, Move, NextBest, Plan, Request};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::moving::Moving;
use super::notices::Leave;
use super::{Context, Error, Job, chain};
use crate::api::{Accepted, Outcome};
use crate::inventory::{self, Candidate};
use crate::orchestrator::Image;
use crate::parking;

/// Longer than twice what parking takes, a container waits for a host that may yet appear.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to plan for.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// Only this container; all running ones otherwise.
    pub container: Option<String>,
    /// Only this host as a target.
    pub to: Option<String>,
    /// Time until this host is taken away.
    pub budget: Option<Duration>,
    /// None of these, by id.
    pub except: BTreeSet<String>,
}

/// A plan, and what it is about.
#[derive(Debug)]
pub struct Planned {
    /// Which container goes where.
    pub plan: Plan,
    candidates: HashMap<String, Candidate>,
    /// By what it was predicted.
    estimates: Arc<Estimates>,
    deadline: Option<Timestamp>,
}

impl Planned {
    /// Which image each target will need.
    pub(super) fn images(&self) -> impl Iterator<Item = (&str, &Image)> {
        let image = |step: &'_ Move| self.candidates.get(&step.container).map(|candidate| &candidate.container.image);
        self.plan.moves.iter().filter_map(move |step| Some((step.target.as_str(), image(step)?)))
    }

    /// Has hosts launched for what stays for want of room alone, beside everything else. They come into the inventory when they are up.
    #[cfg_attr(not(feature = "aws"), expect(unused_variables, reason = "without a cloud's API nothing is launched"))]
    pub fn ask_for_hosts(&self, context: &Context, notice: &str) {
        #[cfg(feature = "aws")]
        if let Some(launcher) = context.launcher.clone() {
            let left = crate::capacity::launch::without_room(&self.plan);
            let sizes: Vec<u64> =
                left.iter().filter_map(|id| self.candidates.get(*id)).map(|left| left.memory_bytes).collect();
            let notice = notice.to_owned();
            tokio::spawn(async move { launcher.help(&notice, &sizes).await });
        }
    }
}

/// Looks at containers and hosts, and asks the planner.
///
/// # Errors
/// The engine's; no such container; no such peer.
pub async fn plan(context: &Arc<Context>, question: &Question) -> Result<Planned, Error> {
    if let Some(peer) = question.to.as_ref().filter(|name| !context.inventory.has(name)) {
        return Err(Error::UnknownPeer { peer: peer.clone() });
    }
    let asked_at = Timestamp::now();
    let mut candidates = match &question.container {
        Some(name) => vec![inventory::container(context, name).await?],
        None => inventory::containers(context).await?,
    };
    candidates.retain(|candidate| !question.except.contains(&candidate.container.id));
    let images = candidates.iter().map(|candidate| candidate.container.image.clone()).collect();
    let mut hosts = inventory::hosts(context, images).await;
    hosts.retain(|host| question.to.as_ref().is_none_or(|name| *name == host.name));
    let failed_by = context.failed_by().await?;
    let for_policy = |candidate: &Candidate| spothop_policy::Container {
        failed_by: failed_by.get(&candidate.container.id).copied(),
        ..candidate.for_policy()
    };
    let request = Request {
        source: context.capacity.as_source(&context.config.host.name),
        containers: candidates.iter().map(for_policy).collect(),
        hosts,
        budget: question.budget,
        estimates: context.estimates().await?,
        concurrency: context.config.limits.max_concurrent,
        streams: context.config.transfer.connections,
        notice: super::occasion::of(context),
        can_park: context.config.parking.url.is_some(),
        never_cold: true,
    };
    Ok(Planned {
        plan: context.config.policy.compiled().plan(&request),
        candidates: candidates.into_iter().map(|candidate| (candidate.container.id.clone(), candidate)).collect(),
        estimates: Arc::new(request.estimates),
        // A budget beyond the end of time is none.
        deadline: question.budget.and_then(|budget| asked_at.checked_add(budget).ok()),
    })
}

/// Begins every move of the plan in its order, `limits.max_concurrent` at a time, and returns their ids. On somebody's behalf: `cause` is
/// what the migrations name.
///
/// A container that is moving already is left to its first migration.
#[must_use]
pub fn begin(context: &Arc<Context>, planned: Planned, cause: &str) -> Accepted {
    for stay in &planned.plan.stays {
        warn!(container = stay.name, reasons = stay.reasons().join("; "), "this container stays");
    }
    let turns = Arc::new(Semaphore::new(context.config.limits.max_concurrent));
    let errand = Errand::Asked { cause: cause.to_owned(), deadline: planned.deadline };
    begin_for(context, planned, &errand, &turns)
}

/// The same on anybody's behalf, with turns that several of them share.
pub(super) fn begin_for(
    context: &Arc<Context>,
    mut planned: Planned,
    errand: &Errand,
    turns: &Arc<Semaphore>,
) -> Accepted {
    let mut movers = Vec::new();
    for step in &planned.plan.moves {
        let Some(candidate) = planned.candidates.remove(&step.container) else { continue };
        let Some(moving) = Moving::claim(context, &step.container) else {
            info!(container = step.name, "already moving");
            continue;
        };
        let mover = Mover {
            context: Arc::clone(context),
            id: Uuid::now_v7().to_string(),
            memory_bytes: candidate.memory_bytes,
            disk_bytes: candidate.disk_bytes,
            step: step.clone(),
            estimates: Arc::clone(&planned.estimates),
            errand: errand.clone(),
        };
        movers.push((mover, moving));
    }
    let migrations = movers.iter().map(|(mover, _)| mover.id.clone()).collect();
    let turns = Arc::clone(turns);
    let at_a_time = context.config.limits.max_concurrent;
    tokio::spawn(async move {
        let mut punctual = true;
        for (mover, moving) in movers {
            // What will be late waits until the others are over: it would take the link from those that can be saved.
            if std::mem::replace(&mut punctual, mover.step.fits_deadline) && !mover.step.fits_deadline {
                let all = u32::try_from(at_a_time).unwrap_or(u32::MAX);
                drop(Arc::clone(&turns).acquire_many_owned(all).await);
            }
            // Never closed, so there always is a turn.
            let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
            tokio::spawn(async move {
                mover.go(moving).await;
                drop(turn);
            });
        }
    });
    Accepted { migrations, plan: planned.plan }
}

/// Parks what the plan has no host for, or would be too late to move, as far as that is its next best and there is a turn left; the plan
/// does not move it any more. A container without a host waits for one as long as there is time for that.
pub(super) fn park_for(context: &Arc<Context>, planned: &mut Planned, errand: &Errand, turns: &Arc<Semaphore>) {
    let left = planned.deadline.map(|by| Duration::try_from(by.duration_since(Timestamp::now())).unwrap_or_default());
    let takes = |next: &Option<Fallback>| {
        next.as_ref().filter(|next| next.then == NextBest::Park).map(|next| next.takes.unwrap_or_default())
    };
    let presses = |takes: Duration| left.is_none_or(|left| left <= takes.saturating_mul(2) + PATIENCE);
    let plan = &mut planned.plan;
    let stays = plan.stays.iter().filter(|stay| takes(&stay.next_best).is_some_and(presses));
    let mut parked: Vec<_> = stays.map(|stay| (stay.container.clone(), stay.name.clone())).collect();
    plan.moves.retain(|step| {
        let is_late = !step.fits_deadline && takes(&step.next_best).is_some();
        if is_late {
            parked.push((step.container.clone(), step.name.clone()));
        }
        !is_late
    });
    for (container, name) in parked {
        // Without one it is looked at again.
        let Ok(turn) = Arc::clone(turns).try_acquire_owned() else { return };
        let (context, errand) = (Arc::clone(context), errand.clone());
        tokio::spawn(async move {
            let failed = park(&context, &container, &name, &errand).await;
            errand.tell(End { container, failed });
            drop(turn);
        });
    }
}

/// Returns whether that has failed.
async fn park(context: &Arc<Context>, container: &str, name: &str, errand: &Errand) -> bool {
    let Some((cause, deadline)) = errand.occasion(context) else { return false };
    info!(container = name, "no host will do in time: the container is parked");
    match parking::park(context, container, deadline, &cause).await {
        Ok(Outcome::Moved) => false,
        Ok(Outcome::Aborted) => true,
        Err(failure) => {
            warn!(container = name, error = chain(&failure), "the container cannot be parked");
            true
        }
    }
}

/// Waits until no migration has the container, but not longer than `limit`.
pub async fn until_free(context: &Arc<Context>, container: &str, limit: Duration) {
    // Whoever begins one claims it again, and tells if it could not.
    let _ = timeout(limit, Moving::wait(context, container)).await;
}

/// On whose behalf containers move.
#[derive(Debug, Clone)]
pub(super) enum Errand {
    /// Somebody's, who may have named a deadline.
    Asked { cause: String, deadline: Option<Timestamp> },
    /// A notice's; told of every end.
    Noticed { leave: Leave, ends: mpsc::UnboundedSender<End> },
}

/// How the moving of a container ended.
#[derive(Debug)]
pub(super) struct End {
    /// Its id.
    pub(super) container: String,
    /// Whether it has failed and may be tried again.
    pub(super) failed: bool,
}

impl Errand {
    /// Why and until when one migration takes place that begins now; none when there is no reason any more.
    fn occasion(&self, context: &Context) -> Option<(String, Option<Timestamp>)> {
        match self {
            Self::Asked { cause, deadline } => Some((cause.clone(), *deadline)),
            Self::Noticed { leave, .. } => match &*context.departure.borrow() {
                // Not what it was when this was planned: that may be void, and a target's fence must not rest on it.
                Some(now) => Some((now.notice.clone(), now.deadline)),
                None if !leave.certain && context.is_in_force(&leave.notice) => {
                    Some((leave.notice.clone(), leave.deadline))
                }
                None => None,
            },
        }
    }

    /// Tells whoever waits for the end.
    fn tell(&self, end: End) {
        if let Self::Noticed { ends, .. } = self {
            // Whoever does not listen any more is at an end himself.
            let _ = ends.send(end);
        }
    }

    /// Whether every host that would do is tried. Without haste only the first, because there is time for somebody to look at what went
    /// wrong.
    fn insists(&self) -> bool {
        match self {
            Self::Asked { deadline, .. } => deadline.is_some(),
            Self::Noticed { leave, .. } => leave.certain,
        }
    }
}

struct Mover {
    context: Arc<Context>,
    id: String,
    memory_bytes: u64,
    disk_bytes: u64,
    step: Move,
    estimates: Arc<Estimates>,
    errand: Errand,
}

impl Mover {
    async fn go(self, moving: Moving) {
        let failed = self.run().await;
        drop(moving);
        self.errand.tell(End { container: self.step.container.clone(), failed });
    }

    /// Post-copy, or where that was aborted once what comes after it.
    async fn unless_it_failed(&self) -> Leaves {
        let failed = self.context.failed_by().await.map(|all| all.contains_key(&self.step.container));
        if failed.unwrap_or(true) { Leaves::PreCopy } else { Leaves::PostCopy }
    }

    /// Tries the plan's hosts in their order until one has the container; returns whether that has failed.
    async fn run(&self) -> bool {
        let attempts = if self.errand.insists() { usize::MAX } else { 1 };
        let mut id = self.id.clone();
        for host in self.step.candidates.iter().take(attempts) {
            let Some((cause, deadline)) = self.errand.occasion(&self.context) else {
                info!(container = self.step.name, "there is no reason to move it any more");
                return false;
            };
            // What the plan saw may be from the middle of an earlier migration, such as a restart policy that was held.
            let container = match self.context.engine.inspect(&self.step.container).await {
                Ok(container) => container,
                Err(failure) => {
                    warn!(container = self.step.name, error = chain(&failure), "the container is not moved");
                    return true;
                }
            };
            // An attempt at another host may have failed since the plan was made.
            let mode = match host.mode {
                Leaves::PostCopy => self.unless_it_failed().await,
                mode => mode,
            };
            let job = Job {
                id: std::mem::replace(&mut id, Uuid::now_v7().to_string()),
                // Pids are below 2^22 on Linux.
                init_pid: i32::try_from(container.init_pid).unwrap_or(i32::MAX),
                container,
                memory_bytes: self.memory_bytes,
                disk_bytes: self.disk_bytes,
                target: host.host.clone(),
                predicted: host.predicted,
                mode,
                bytes_per_second: self.estimates.rates(&host.host).bytes_per_second,
                cause,
                deadline,
            };
            match super::run(Arc::clone(&self.context), job).await {
                Ok(Outcome::Moved) => return false,
                Ok(Outcome::Aborted) => {}
                Err(failure) => {
                    // The journal does not work: another attempt would not be recorded either.
                    error!(container = self.step.name, error = chain(&failure), "the migration could not be recorded");
                    return true;
                }
            }
            if deadline.is_some_and(|deadline| Timestamp::now() >= deadline) {
                return true;
            }
        }
        warn!(container = self.step.name, "no host took the container; it goes on here");
        true
    }
}
