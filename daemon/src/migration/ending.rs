//! How a migration ends at the source: given away after COMMIT, or gone on with after ABORT. Also by a daemon that comes
//! back and finds the verdict (or none yet) in the journal.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use spothop_criu::cgroup::Freezer;
use spothop_criu::dump::{self, Checkpoint, DumpError, Outcome as DumpOutcome};
use spothop_criu::{netns, repair};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;
use tracing::{error, warn};

use super::error::chain;
use super::gate::Gate;
use super::message::{Answer, Request};
use super::track::unpanicked;
use super::{Context, Conversation, Error, Phase, Side, Step, Track, Verdict, Workspace};
use crate::api::{MigrationView, Outcome};
use crate::orchestrator;

/// For the target to let the tasks run.
const RUN: Duration = Duration::from_secs(60);

/// Between two attempts to tell the target the verdict, the first and the longest.
const TELL_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A dump that is under way or held at the gate.
#[derive(Debug, Default)]
pub(super) struct Held {
    gate: Option<Gate>,
    dump: Option<JoinHandle<Result<DumpOutcome, DumpError>>>,
}

impl Held {
    /// Starts CRIU.
    pub(super) fn start(&mut self, gate: Gate, checkpoint: Checkpoint) {
        self.gate = Some(gate);
        self.dump = Some(spawn_blocking(move || checkpoint.run()));
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

    /// Lets CRIU's action script look at the verdict.
    fn open(&mut self) {
        if let Some(gate) = &mut self.gate {
            gate.open();
        }
    }

    /// Waits for CRIU's end; none if it had ended or never begun.
    async fn ended(self) -> Option<Result<DumpOutcome, DumpError>> {
        match self.dump {
            Some(dump) => Some(unpanicked(dump.await)),
            None => None,
        }
    }
}

/// The end of one migration.
pub(super) struct Ending {
    context: Arc<Context>,
    track: Track,
    container_id: String,
    target: String,
}

impl Ending {
    pub(super) fn new(context: Arc<Context>, track: Track, container_id: String, target: String) -> Self {
        Self { context, track, container_id, target }
    }

    /// After COMMIT: the target runs, and what is left here is taken away, in this order.
    ///
    /// # Errors
    /// The journal's.
    pub(super) async fn give_away(self, target: Option<Conversation>, mut held: Held) -> Result<Outcome, Error> {
        held.open();
        self.tell_commit(target).await;
        self.track.enter(Phase::Running).await?;
        if let Some(Err(failure)) = held.ended().await {
            warn!(migration = %self.track.id, error = chain(&failure), "CRIU did not end well after COMMIT");
        }
        self.checkpoint_ended().await.unwrap_or_else(|failure| {
            warn!(migration = %self.track.id, error = chain(&failure), "not known whether CRIU has ended");
        });
        let steps = self.track.unsettled().await?;
        // CRIU resumes tasks when it fails late. They are still frozen by us, and must never run again.
        for (_, step) in &steps {
            if let Step::Freeze { init_pid } = step {
                kill_frozen(*init_pid).await;
            }
        }
        self.context.engine.remove(&self.container_id).await.unwrap_or_else(|failure| {
            warn!(migration = %self.track.id, error = chain(&failure), "the container that moved away is still listed here; \
                   remove it with `docker rm`");
        });
        for (id, step) in steps {
            match step {
                Step::Workspace { directory } => {
                    unpanicked(spawn_blocking(move || Workspace::at(directory).remove()).await)?;
                }
                Step::Depart { volumes } => self.track.volumes_departed(volumes).await?,
                _ => {}
            }
            self.track.settled(id).await?;
        }
        self.track.enter(Phase::Cleaned).await?;
        self.track.finished(Outcome::Moved, None);
        Ok(Outcome::Moved)
    }

    /// Says COMMIT until the target says that the container runs. There is no other way forward.
    async fn tell_commit(&self, mut target: Option<Conversation>) {
        let commit = Request::Decided { migration: self.track.id.to_string(), verdict: Verdict::Commit, reason: None };
        let (mut pause, longest) = TELL_AGAIN;
        loop {
            let told = async {
                let mut target = match target.take() {
                    Some(target) => target,
                    None => self.context.connect(&self.target, 1).await?,
                };
                match target.ask(&commit, "running the container", RUN).await? {
                    Answer::Running => Ok(()),
                    _ => Err(target.out_of_turn("running the container")),
                }
            };
            match told.await {
                Ok(()) => return,
                Err(failure) => {
                    warn!(migration = %self.track.id, error = chain(&failure), "the target has not confirmed COMMIT; saying it again");
                    sleep(pause).await;
                    pause = (pause * 2).min(longest);
                }
            }
        }
    }

    /// After a failure before COMMIT: decides ABORT and undoes everything. The target notices by the session's end, and
    /// asks if it must.
    ///
    /// # Errors
    /// The journal's. Then CRIU's action script decides when it has waited long enough.
    pub(super) async fn go_on(self, failure: Error, mut held: Held) -> Result<Outcome, Error> {
        let reason = chain(&failure);
        let verdict = self.track.decide(Verdict::Abort, Some(reason.clone())).await?;
        if verdict == Verdict::Commit {
            return Box::pin(self.give_away(None, held)).await;
        }
        held.open();
        if let Some(Ok(DumpOutcome::Killed)) = held.ended().await {
            error!(migration = %self.track.id, "CRIU killed the tasks although the verdict is ABORT");
        }
        let mut clean = true;
        let mut restarts_held = false;
        for (id, step) in self.track.unsettled().await? {
            restarts_held |= matches!(step, Step::HoldRestarts { .. });
            match self.undo(step.clone()).await {
                Ok(()) => self.track.settled(id).await?,
                Err(failure) => {
                    clean = false;
                    error!(migration = %self.track.id, ?step, error = chain(&failure), "a step was not undone");
                }
            }
        }
        if matches!(failure, Error::Dump(_)) {
            self.look_after(restarts_held).await;
        }
        if clean {
            self.track.enter(Phase::Cleaned).await?;
        }
        self.track.finished(Outcome::Aborted, Some(reason));
        Ok(Outcome::Aborted)
    }

    /// A CRIU that is killed while its code is in the tasks takes them along, and the engine had been told not to start them again.
    async fn look_after(&self, restarts_held: bool) {
        let (engine, id, migration) = (&self.context.engine, &self.container_id, &self.track.id);
        if !matches!(engine.inspect(id).await, Err(orchestrator::Error::NotRunning { .. })) {
            return;
        }
        error!(%migration, container = id, "the container did not survive the attempt to checkpoint it");
        if restarts_held && let Err(failure) = engine.start(id).await {
            error!(%migration, container = id, error = chain(&failure), "nor can it be started again, as its restart policy says");
        }
    }

    /// Waits for a checkpoint that a former daemon began; one of our own has ended already.
    async fn checkpoint_ended(&self) -> Result<(), Error> {
        let workspace = self.context.workspace(Side::Source, &self.track.id);
        Ok(unpanicked(spawn_blocking(move || dump::wait_until_ended(workspace.directory())).await)?)
    }

    async fn undo(&self, step: Step) -> Result<(), Error> {
        match step {
            Step::HoldRestarts { container, policy } => {
                Ok(self.context.engine.resume_restarts(&container, &policy).await?)
            }
            Step::Checkpoint => self.checkpoint_ended().await,
            blocking => {
                let (state, id) = (self.context.state.clone(), self.track.id.to_string());
                unpanicked(spawn_blocking(move || undo_blocking(blocking, &state, &id)).await)
            }
        }
    }
}

fn undo_blocking(step: Step, state: &Path, migration: &str) -> Result<(), Error> {
    match step {
        Step::Workspace { directory } => {
            let workspace = Workspace::at(directory);
            workspace.keep_logs(state, migration);
            Ok(workspace.remove()?)
        }
        Step::Freeze { init_pid } if is_alive(init_pid) => {
            // A CRIU that was killed left the connections mute. They are all that suffers if this fails.
            if let Err(failure) = repair::release(init_pid) {
                warn!(migration, error = chain(&failure), "connections may have to be made again");
            }
            Ok(Freezer::of_pid(init_pid)?.thaw()?)
        }
        Step::Silence { init_pid } if is_alive(init_pid) => Ok(netns::unsilence(init_pid)?),
        _ => Ok(()),
    }
}

fn is_alive(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None).is_ok()
}

/// Kills a container's first process, and with it its pid namespace, if it still is frozen.
async fn kill_frozen(init_pid: i32) {
    let killed = spawn_blocking(move || {
        let frozen = Freezer::of_pid(init_pid).and_then(|freezer| freezer.is_frozen());
        if is_alive(init_pid) && frozen.unwrap_or(false) {
            // It may have ended by itself between the two.
            let _ = kill(Pid::from_raw(init_pid), Signal::SIGKILL);
            if let Ok(freezer) = Freezer::of_pid(init_pid) {
                // On cgroup v1 a frozen task dies only when it thaws; the signal is pending, no user code runs.
                let _ = freezer.thaw();
            }
        }
    });
    unpanicked(killed.await);
}

/// Ends a migration that a former daemon left behind, as its journal says.
///
/// # Errors
/// The journal's.
pub(super) async fn recover(context: Arc<Context>, left: &MigrationView) -> Result<Outcome, Error> {
    let track = context.track(&left.id, Side::Source, &left.container);
    let ending = Ending::new(context, track.clone(), left.container_id.clone(), left.peer.clone());
    match track.verdict().await? {
        Some(Verdict::Commit) => ending.give_away(None, Held::default()).await,
        Some(Verdict::Abort) | None => ending.go_on(Error::DaemonDied, Held::default()).await,
    }
}
