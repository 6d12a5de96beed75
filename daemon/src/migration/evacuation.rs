//! Several migrations in the order of a plan, each with its next best target when the best one refuses.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use spothop_policy::{Estimates, Move, Plan, Request};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::moving::Moving;
use super::{Context, Error, Job, MANUAL, chain};
use crate::api::{Accepted, Outcome};
use crate::inventory::{self, Candidate};
use crate::notice::{Notice, NoticeEvent};

/// What to plan for.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// Only this container; all running ones otherwise.
    pub container: Option<String>,
    /// Only this host as a target.
    pub to: Option<String>,
    /// Time until this host is taken away.
    pub budget: Option<Duration>,
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
    let candidates = match &question.container {
        Some(name) => vec![inventory::container(context, name).await?],
        None => inventory::containers(context).await?,
    };
    let images = candidates.iter().map(|candidate| candidate.container.image.clone()).collect();
    let mut hosts = inventory::hosts(context, images).await;
    hosts.retain(|host| question.to.as_ref().is_none_or(|name| *name == host.name));
    let request = Request {
        source: context.capacity.as_source(&context.config.host.name),
        containers: candidates.iter().map(Candidate::for_policy).collect(),
        hosts,
        budget: question.budget,
        estimates: context.estimates().await?,
        concurrency: context.config.limits.max_concurrent,
    };
    Ok(Planned {
        plan: spothop_policy::plan(&request),
        candidates: candidates.into_iter().map(|candidate| (candidate.container.id.clone(), candidate)).collect(),
        estimates: Arc::new(request.estimates),
        // A budget beyond the end of time is none.
        deadline: question.budget.and_then(|budget| asked_at.checked_add(budget).ok()),
    })
}

/// Begins every move of the plan in its order, `limits.max_concurrent` at a time, and returns their ids.
///
/// A container that is moving already is left to its first migration; if that fails, a notice takes it up again.
#[must_use]
pub fn begin(context: &Arc<Context>, mut planned: Planned, cause: &str) -> Accepted {
    let mut movers = Vec::new();
    for step in &planned.plan.moves {
        let Some(candidate) = planned.candidates.remove(&step.container) else { continue };
        let mover = Mover {
            context: Arc::clone(context),
            id: Uuid::now_v7().to_string(),
            memory_bytes: candidate.memory_bytes,
            disk_bytes: candidate.disk_bytes,
            step: step.clone(),
            estimates: Arc::clone(&planned.estimates),
            cause: cause.to_owned(),
            deadline: planned.deadline,
        };
        match Moving::claim(context, &step.container) {
            Some(moving) => movers.push((mover, moving)),
            None if cause == MANUAL => info!(container = step.name, "already moving"),
            None => {
                info!(container = step.name, "moves already; if it comes back, it is moved again");
                let context = Arc::clone(context);
                tokio::spawn(async move {
                    let moving = Moving::wait(&context, &mover.step.container).await;
                    if context.is_in_force(&mover.cause) {
                        mover.run(moving).await;
                    }
                });
            }
        }
    }
    let migrations = movers.iter().map(|(mover, _)| mover.id.clone()).collect();
    let turns = Arc::new(Semaphore::new(context.config.limits.max_concurrent));
    tokio::spawn(async move {
        for (mover, moving) in movers {
            // Never closed, so there always is a turn.
            let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
            tokio::spawn(async move {
                mover.run(moving).await;
                drop(turn);
            });
        }
    });
    for stay in &planned.plan.stays {
        warn!(container = stay.name, reasons = stay.reasons().join("; "), "this container stays");
    }
    Accepted { migrations, plan: planned.plan }
}

/// Waits until no migration has the container, but not longer than `limit`.
pub async fn until_free(context: &Arc<Context>, container: &str, limit: Duration) {
    // Whoever begins one claims it again, and tells if it could not.
    let _ = timeout(limit, Moving::wait(context, container)).await;
}

/// Answers notices: a plan under the notice's deadline, begun at once.
pub async fn heed(context: Arc<Context>, mut events: mpsc::Receiver<NoticeEvent>) {
    while let Some(event) = events.recv().await {
        match event {
            NoticeEvent::Noticed(notice) => {
                warn!(%notice, "this host will be taken away");
                let known = {
                    let mut notices = context.notices.lock().unwrap_or_else(PoisonError::into_inner);
                    notices.insert(notice.id.clone(), notice.clone()).is_some()
                };
                if !known {
                    tokio::spawn(evacuate(Arc::clone(&context), notice));
                }
            }
            NoticeEvent::Cancelled { id } => {
                warn!(notice = id, "the notice was withdrawn; migrations that have begun go on");
                context.notices.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            }
        }
    }
}

async fn evacuate(context: Arc<Context>, notice: Notice) {
    let question = Question { budget: notice.lead_time(Timestamp::now()), ..Question::default() };
    match plan(&context, &question).await {
        Ok(planned) => {
            planned.ask_for_hosts(&context, &notice.id);
            let accepted = begin(&context, planned, &notice.id);
            info!(notice = notice.id, migrations = ?accepted.migrations, "the evacuation has begun");
        }
        Err(failure) => error!(notice = notice.id, error = chain(&failure), "the evacuation could not be planned"),
    }
}

struct Mover {
    context: Arc<Context>,
    id: String,
    memory_bytes: u64,
    disk_bytes: u64,
    step: Move,
    estimates: Arc<Estimates>,
    cause: String,
    deadline: Option<Timestamp>,
}

impl Mover {
    /// Tries the plan's hosts in their order until one has the container; without a deadline only the first, because
    /// there is time for somebody to look at what went wrong.
    async fn run(self, _moving: Moving) {
        let attempts = if self.deadline.is_some() { usize::MAX } else { 1 };
        let mut id = self.id.clone();
        for host in self.step.candidates.iter().take(attempts) {
            // What the plan saw may be from the middle of an earlier migration, such as a restart policy that was held.
            let container = match self.context.engine.inspect(&self.step.container).await {
                Ok(container) => container,
                Err(failure) => {
                    warn!(container = self.step.name, error = chain(&failure), "the container is not moved");
                    return;
                }
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
                bytes_per_second: self.estimates.rates(&host.host).bytes_per_second,
                cause: self.cause.clone(),
                deadline: self.deadline,
            };
            match super::run(Arc::clone(&self.context), job).await {
                Ok(Outcome::Moved) => return,
                Ok(Outcome::Aborted) => {}
                Err(failure) => {
                    // The journal does not work: another attempt would not be recorded either.
                    error!(container = self.step.name, error = chain(&failure), "the migration could not be recorded");
                    return;
                }
            }
            if self.deadline.is_some_and(|deadline| Timestamp::now() >= deadline) {
                return;
            }
        }
        warn!(container = self.step.name, "no host took the container; it goes on here");
    }
}
