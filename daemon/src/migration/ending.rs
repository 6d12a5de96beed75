//! How a migration ends at the source: given away after COMMIT, or gone on with after ABORT. Also by a daemon that comes
//! back and finds the verdict (or none yet) in the journal.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use spothop_criu::cgroup::{self, Freezer};
use spothop_criu::dump::{self, Checkpoint, DumpError, Outcome as DumpOutcome};
use spothop_criu::{netns, repair};
use tokio::sync::{Mutex, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tracing::{error, warn};

use super::error::chain;
use super::filling;
use super::gate::Gate;
use super::lending::lend;
use super::message::{Answer, Request};
use super::track::unpanicked;
use super::{Context, Conversation, Error, Phase, Side, Step, Track, Verdict, Workspace};
use crate::api::{MigrationView, Outcome};
use crate::journal::JournalError;
use crate::orchestrator::{self, Orchestrator, RestartPolicy};
use crate::parking;

/// For an engine to note something down while the container is frozen; it takes 70 ms.
const ENGINE: Duration = Duration::from_secs(5);

/// For the target to let the tasks run.
pub(super) const RUN: Duration = Duration::from_secs(60);

/// A dump that is under way or held at the gate.
#[derive(Debug, Default)]
pub(super) struct Held {
    gate: Option<Gate>,
    dump: Option<JoinHandle<Result<DumpOutcome, DumpError>>>,
    /// The engine's call that holds the restart policy.
    holding: Option<JoinHandle<()>>,
}

impl Held {
    /// Starts CRIU, which waits at the gate before it touches the tasks.
    pub(super) fn start(&mut self, gate: Gate, checkpoint: Checkpoint) {
        self.gate = Some(gate);
        self.dump = Some(spawn_blocking(move || checkpoint.run()));
    }

    /// Has the engine note that it must not start the container again, and waits for its answer, but not for long: an engine that
    /// restarts takes calls, and answers them half a minute later. What was asked goes on then, and is done all the same.
    pub(super) fn hold_restarts(
        &mut self,
        engine: Arc<dyn Orchestrator>,
        container: &str,
        policy: &RestartPolicy,
    ) -> impl Future<Output = Result<(), Error>> + use<> {
        let (answer, answered) = oneshot::channel();
        if policy.is_no() {
            let _ = answer.send(Ok(()));
        } else {
            let (container, policy) = (container.to_owned(), policy.clone());
            self.holding = Some(tokio::spawn(async move {
                let _ = answer.send(engine.hold_restarts(&container, &policy).await);
            }));
        }
        async {
            match timeout(ENGINE, answered).await {
                Ok(Ok(answer)) => Ok(answer?),
                _ => Err(Error::TimedOut { step: "holding the restart policy", limit: ENGINE }),
            }
        }
    }

    /// Waits until CRIU is about to touch the tasks. Safe to cancel.
    pub(super) async fn before(&mut self) -> Result<(), Error> {
        let (Some(gate), Some(dump)) = (&mut self.gate, &mut self.dump) else { return Ok(()) };
        let ended = tokio::select! {
            before = gate.before() => return Ok(before?),
            ended = dump => ended,
        };
        self.dump = None;
        unpanicked(ended)?;
        Err(Error::NotHeld)
    }

    /// Lets it: the tasks are frozen.
    pub(super) async fn begin(&mut self) -> Result<(), Error> {
        match &mut self.gate {
            Some(gate) => Ok(gate.begin().await?),
            None => Ok(()),
        }
    }

    /// Waits until CRIU holds the dump at the gate. Safe to cancel.
    pub(super) async fn reached(&mut self) -> Result<(), Error> {
        let (Some(gate), Some(dump)) = (&mut self.gate, &mut self.dump) else { return Ok(()) };
        let ended = tokio::select! {
            reached = gate.reached() => return Ok(reached?),
            ended = dump => ended,
        };
        self.dump = None;
        match unpanicked(ended)? {
            DumpOutcome::Resumed => Err(Error::NotHeld),
            DumpOutcome::Killed => {
                // Only an action script that was never called explains this. The images are whole and nothing else is left.
                error!("CRIU killed the tasks without asking at the gate; the migration goes on");
                Ok(())
            }
        }
    }

    /// Whether CRIU has ended, which it must not before the verdict.
    fn has_ended(&self) -> bool {
        self.dump.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Lets CRIU's action script look at the verdict: one that waits is woken, and one that comes only now finds nobody to wait for.
    fn open(&mut self) {
        self.gate = None;
    }

    /// Waits for CRIU's end; none if it had ended or never begun.
    async fn ended(self) -> Option<Result<DumpOutcome, DumpError>> {
        match self.dump {
            Some(dump) => Some(unpanicked(dump.await)),
            None => None,
        }
    }
}

/// The end of one migration. It does not rest before it is reached, whatever fails on the way.
pub(super) struct Ending {
    context: Arc<Context>,
    track: Track,
    container_id: String,
    target: String,
    /// [`Held::holding`].
    holding: Mutex<Option<JoinHandle<()>>>,
}

/// Who has the container after COMMIT.
enum Taken {
    /// The target runs it.
    Yes,
    /// The target never ran it and never will.
    GivenBack(String),
}

impl Ending {
    pub(super) fn new(context: Arc<Context>, track: Track, container_id: String, target: String) -> Self {
        Self { context, track, container_id, target, holding: Mutex::default() }
    }

    /// Decides, and does what follows: COMMIT if the target holds the restored tasks, ABORT otherwise.
    pub(super) async fn conclude(self, restored: Result<Conversation, Error>, held: Held) -> Outcome {
        let failure = match restored {
            Ok(_) if held.has_ended() => Error::HolderDied,
            Ok(target) => match self.track.decide(Verdict::Commit, None).await {
                Ok(Verdict::Commit) => return self.give_away(Some(target), held).await,
                Ok(Verdict::Abort) => Error::Outvoted,
                // It may have been written all the same; the next compare-and-set tells.
                Err(failure) => failure,
            },
            Err(failure) => failure,
        };
        match self.abort(&failure).await {
            Verdict::Commit => self.give_away(None, held).await,
            Verdict::Abort => self.go_on(chain(&failure), held).await,
        }
    }

    /// Writes ABORT if nothing else stands. Returns what stands.
    async fn abort(&self, failure: &Error) -> Verdict {
        let reason = chain(failure);
        self.track.surely("deciding ABORT", || self.try_abort(reason.clone()).boxed()).await
    }

    async fn try_abort(&self, reason: String) -> Result<Verdict, Error> {
        match self.track.decide(Verdict::Abort, Some(reason.clone())).await {
            Err(Error::Journal(JournalError::TargetDecides { .. })) => self.ask_for_abort(&reason).await,
            decided => decided,
        }
    }

    /// The deadline has passed, so the target may run the container by now. Its journal decides.
    async fn ask_for_abort(&self, reason: &str) -> Result<Verdict, Error> {
        let verdict = match self.tell(None, Verdict::Abort, Some(reason.to_owned())).await? {
            Answer::Running { .. } => Verdict::Commit,
            _ => Verdict::Abort,
        };
        self.track.adopt(verdict, reason.to_owned()).await
    }

    /// COMMIT stands: the target runs, and what is left here is taken away. Unless the target gives the container back.
    async fn give_away(self, target: Option<Conversation>, mut held: Held) -> Outcome {
        if let Taken::GivenBack(reason) = self.tell_commit(target).await {
            return self.go_on(reason, held).await;
        }
        self.track.surely("recording that it runs", || self.track.enter(Phase::Running).boxed()).await;
        held.open();
        let _ = self.track.reach("gate-opened");
        if let Some(Err(failure)) = held.ended().await {
            warn!(migration = %self.track.id, error = chain(&failure), "CRIU did not end well after COMMIT");
        }
        self.track.surely("letting go of the container", || self.let_go().boxed()).await;
        self.track.finished(Outcome::Moved, None);
        Outcome::Moved
    }

    /// Takes away what is left here, in this order.
    async fn let_go(&self) -> Result<(), Error> {
        self.checkpoint_ended(true).await?;
        let steps = self.track.unsettled().await?;
        // CRIU resumes tasks when it fails late. They are still frozen by us, and must never run again.
        for (_, step) in &steps {
            if let Step::Freeze { task } = step {
                let task = *task;
                let killed = spawn_blocking(move || {
                    if task.is_alive() {
                        cgroup::kill_frozen(task.pid)
                    }
                });
                unpanicked(killed.await);
            }
        }
        // As long as it is listed, somebody may start it: a second copy.
        self.context.engine.remove(&self.container_id).await?;
        for (id, step) in steps {
            match step {
                Step::Workspace { directory } => {
                    let state = self.context.state.clone();
                    unpanicked(spawn_blocking(move || Workspace::at(directory).remove(&state)).await)?;
                }
                Step::Depart { volumes } => self.track.volumes_departed(volumes).await?,
                _ => {}
            }
            self.track.settled(id).await?;
        }
        self.track.enter(Phase::Cleaned).await
    }

    /// Says COMMIT until the target says what became of it, or somebody resolves it by hand.
    async fn tell_commit(&self, mut target: Option<Conversation>) -> Taken {
        let what = "hearing from the target that the container runs";
        self.track.surely(what, || self.try_tell_commit(target.take()).boxed()).await
    }

    async fn try_tell_commit(&self, target: Option<Conversation>) -> Result<Taken, Error> {
        let standing = self.track.standing().await?;
        match (standing.verdict, standing.phase) {
            (Some(Verdict::Abort), _) => return Ok(Taken::GivenBack("resolved by hand".to_owned())),
            (_, Phase::Running | Phase::Cleaned) => return Ok(Taken::Yes),
            _ => {}
        }
        if let Answer::Running { lost } = self.tell(target, Verdict::Commit, None).await? {
            if let Some(reason) = lost {
                self.track.remark(filling::remark(&reason)).await?;
            }
            return Ok(Taken::Yes);
        }
        let reason = format!("{} lost the container before it ran there and gives it back", self.target);
        match self.track.adopt(Verdict::Abort, reason.clone()).await? {
            Verdict::Abort => Ok(Taken::GivenBack(reason)),
            Verdict::Commit => Ok(Taken::Yes),
        }
    }

    /// Tells the target a verdict and hears what stands in its journal: `Running` or `Gone`.
    async fn tell(
        &self,
        session: Option<Conversation>,
        verdict: Verdict,
        reason: Option<String>,
    ) -> Result<Answer, Error> {
        const STEP_NAME: &str = "what became of the container";
        let mut target = match session {
            Some(target) => target,
            None => self.context.connect(&self.target, 1).await?,
        };
        let decided = Request::Decided { migration: self.track.id.to_string(), verdict, reason };
        let answer = target.ask(&decided, STEP_NAME, RUN).await?;
        match lend(&self.track, &mut target, answer, STEP_NAME).await? {
            answer @ (Answer::Running { .. } | Answer::Gone) => Ok(answer),
            _ => Err(target.out_of_turn(STEP_NAME)),
        }
    }

    /// ABORT stands: undoes everything. The target notices by the session's end, and asks if it must.
    async fn go_on(mut self, reason: String, mut held: Held) -> Outcome {
        held.open();
        self.holding = Mutex::new(held.holding.take());
        if let Some(Ok(DumpOutcome::Killed)) = held.ended().await {
            error!(migration = %self.track.id, "CRIU killed the tasks although the verdict is ABORT");
        }
        self.track.surely("undoing the migration", || self.undo_all().boxed()).await;
        self.track.finished(Outcome::Aborted, Some(reason));
        Outcome::Aborted
    }

    /// As much of it as can be undone now; the first failure is the result.
    async fn undo_all(&self) -> Result<(), Error> {
        let mut result = Ok(());
        for (id, step) in self.track.unsettled().await? {
            match self.undo(step.clone()).await {
                Ok(()) => {}
                Err(failure) => {
                    error!(migration = %self.track.id, ?step, error = chain(&failure), "a step was not undone");
                    result = result.and(Err(failure));
                    continue;
                }
            }
            // The last one to be settled: until then whoever comes back knows that the engine was told not to start it.
            if matches!(step, Step::HoldRestarts { .. }) && self.has_died().await? {
                self.look_after().await?;
            }
            self.track.settled(id).await?;
        }
        result?;
        self.track.enter(Phase::Cleaned).await
    }

    /// Whether the tasks ended in our hands: those that are frozen do not end by themselves. A CRIU that is killed while its code is in
    /// them takes them along, and so does a power cut, or an engine that starts again.
    async fn has_died(&self) -> Result<bool, Error> {
        let was_frozen = self.track.record().await?.phases.iter().any(|entry| entry.phase == Phase::Frozen);
        let steps = self.track.steps().await?;
        Ok(was_frozen && steps.iter().any(|step| matches!(step, Step::Freeze { task } if !task.is_alive())))
    }

    /// The engine had been told not to start them again.
    async fn look_after(&self) -> Result<(), Error> {
        let (engine, id, migration) = (&self.context.engine, &self.container_id, &self.track.id);
        match engine.inspect(id).await {
            Err(orchestrator::Error::NotRunning { .. }) => {}
            Err(orchestrator::Error::NoContainer { .. }) | Ok(_) => return Ok(()),
            Err(failure) => return Err(failure.into()),
        }
        error!(%migration, container = id, "the container did not survive; starting it again, as its restart policy says");
        Ok(engine.start(id).await?)
    }

    /// Waits for a checkpoint that a former daemon began; one of our own has ended already.
    async fn checkpoint_ended(&self, gone: bool) -> Result<(), Error> {
        let workspace = self.context.workspace(Side::Source, &self.track.id);
        let ended = spawn_blocking(move || {
            dump::wait_until_ended(workspace.directory())?;
            dump::clear_remains(workspace.directory(), gone);
            Ok(())
        });
        unpanicked(ended.await)
    }

    async fn undo(&self, step: Step) -> Result<(), Error> {
        match step {
            Step::HoldRestarts { container, policy } => {
                // The engine does it some time, and must not do so after this.
                if let Some(holding) = self.holding.lock().await.take() {
                    unpanicked(holding.await);
                }
                Ok(self.context.engine.resume_restarts(&container, &policy).await?)
            }
            Step::Checkpoint => self.checkpoint_ended(false).await,
            Step::Upload { url } => {
                parking::discard(&self.context, &url, &self.track.id).await;
                Ok(())
            }
            blocking => {
                let (state, id) = (self.context.state.clone(), self.track.id.to_string());
                unpanicked(spawn_blocking(move || undo_blocking(blocking, &state, &id)).await)
            }
        }
    }
}

fn undo_blocking(step: Step, state: &Path, migration: &str) -> Result<(), Error> {
    match step {
        Step::Workspace { directory } => Ok(Workspace::at(directory).remove(state)?),
        Step::Freeze { task } if task.is_alive() => {
            // A CRIU that was killed left the connections mute. They are all that suffers if this fails.
            if let Err(failure) = repair::release(task.pid) {
                warn!(migration, error = chain(&failure), "connections may have to be made again");
            }
            Ok(Freezer::of_pid(task.pid)?.thaw()?)
        }
        Step::Silence { task } if task.is_alive() => {
            netns::unsilence(task.pid)?;
            netns::announce(task.pid);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Ends a migration that a former daemon left behind, as its journal says.
pub(super) async fn recover(context: Arc<Context>, left: &MigrationView) {
    let track = context.track(&left.id, Side::Source, &left.container);
    let ending = Ending::new(context, track, left.container_id.clone(), left.peer.clone());
    ending.conclude(Err(Error::DaemonDied), Held::default()).await;
}
