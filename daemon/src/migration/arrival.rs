//! What becomes of a container that the target holds restored: it runs, or it goes again. Also by a daemon that comes back and finds
//! it so in the journal.
//!
//! Only the source's journal knows the verdict: the target keeps the tasks stopped and asks, until it hears it or until the source
//! cannot run any more ([`Occasion::fences`]).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use spothop_criu::handoff::{Directory, Report};
use spothop_criu::netns::OwnNetns;
use spothop_criu::runtime_state::{RuntimeState, find_runtime_root};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::error::chain;
use super::filling::{self, Filling, Missing};
use super::handoff::Handoff;
use super::message::{Answer, Request};
use super::moving::Moving;
use super::protocol::{self, Instance, Occasion, Return};
use super::target::{START, Target};
use super::track::unpanicked;
use super::{Context, Conversation, Error, Phase, Side, Step, Task, Track, Verdict, Workspace};
use crate::api::{MigrationView, Outcome};
use crate::capacity::Promise;
use crate::orchestrator;
use crate::parking;
use crate::provider::Inquiry;

/// For a runtime that waits to say so again to a daemon that came back: it tries many times a second.
const REPEAT: Duration = Duration::from_secs(2);

/// Why a target gives up what the source keeps.
const GOES_ON: &str = "the source goes on";

/// Between two looks for a process that is ending.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Between two questions to a source that does not answer.
const ASK_AGAIN: Duration = Duration::from_millis(500);

impl Target {
    /// The tasks are restored and stopped. Hears the verdict, and does as it says.
    pub(super) async fn await_verdict(self, source: Option<Conversation>) {
        let (verdict, source) = self.hear_verdict(source).await;
        let reason = (verdict == Verdict::Abort).then(|| GOES_ON.to_owned());
        match self.track.surely("deciding", || self.track.decide(verdict, reason.clone()).boxed()).await {
            Verdict::Commit => self.run_until_it_runs(source).await,
            Verdict::Abort => {
                self.give_up(GOES_ON.to_owned()).await;
                if let Some(mut source) = source {
                    // It asks again if it does not hear this.
                    let _ = source.reply(&Answer::Gone).await;
                }
            }
        }
    }

    /// From the session, as long as it lives; then by asking the source; at last by the fence.
    async fn hear_verdict(&self, source: Option<Conversation>) -> (Verdict, Option<Conversation>) {
        if let Some(mut source) = source {
            match source.hear().await {
                Ok(Some(Request::Decided { verdict, .. })) => return (verdict, Some(source)),
                Ok(_) => warn!(migration = %self.track.id, "the source left without a verdict; asking it"),
                Err(failure) => {
                    warn!(migration = %self.track.id, error = chain(&failure), "lost the source before its verdict; asking it");
                }
            }
        }
        let mut inquiry = self.context.providers.inquire(self.offer.instance.clone());
        loop {
            match self.find_verdict(&mut inquiry).await {
                Ok(Some(verdict)) => return (verdict, None),
                Ok(None) => {}
                Err(failure) => {
                    warn!(migration = %self.track.id, error = chain(&failure), "the journal cannot be read; asking again");
                }
            }
            sleep(ASK_AGAIN).await;
        }
    }

    async fn find_verdict(&self, inquiry: &mut Inquiry) -> Result<Option<Verdict>, Error> {
        // Somebody resolves it, or the source asks us to let go of it.
        if let Some(verdict) = self.track.verdict().await? {
            return Ok(Some(verdict));
        }
        match self.ask_source().await {
            // Alive and undecided: it will decide.
            Ok(verdict) => return Ok(verdict),
            Err(failure) => info!(migration = %self.track.id, error = chain(&failure), "the source does not answer"),
        }
        let occasion = Occasion { cause: &self.offer.cause, deadline: self.offer.deadline };
        let word = inquiry.word().await;
        if occasion.fences(Instance::from(&word), Timestamp::now()) {
            error!(migration = %self.track.id, source = %word, "the source is silent and cannot run any more: the container runs here now");
            return Ok(Some(Verdict::Commit));
        }
        Ok(None)
    }

    async fn ask_source(&self) -> Result<Option<Verdict>, Error> {
        let record = self.track.record().await?;
        let mut source = self.context.connect(&record.peer, 1).await?;
        let ask = Request::Ask { migration: self.offer.migration.clone() };
        match source.ask(&ask, "the verdict", START).await? {
            Answer::Verdict { verdict } => Ok(verdict),
            _ => Err(source.out_of_turn("the verdict")),
        }
    }

    /// COMMIT stands: nothing else may hold the memory of these tasks, so the target does not rest until they run.
    async fn run_until_it_runs(mut self, mut source: Option<Conversation>) {
        let mut pause = ASK_AGAIN;
        while let Err(failure) = self.run().await {
            error!(migration = %self.track.id, error = chain(&failure), "a committed container does not run yet; restoring it again");
            if let Some(mut source) = source.take() {
                // It says COMMIT again, in another session, until it is told that the container runs.
                let _ = source.reply(&Answer::Failed { reason: chain(&failure) }).await;
            }
            sleep(pause).await;
            pause = (pause * 2).min(START);
            if let Err(failure) = self.start_again().await {
                error!(migration = %self.track.id, error = chain(&failure), "the restore cannot be prepared again");
            }
        }
        self.it_runs(source).await;
    }

    async fn it_runs(self, source: Option<Conversation>) {
        self.track.surely("recording that it runs", || self.track.enter(Phase::Running).boxed()).await;
        let source = self.become_whole(source).await;
        let _ = self.track.reach("running:reply");
        if let Some(mut source) = source {
            // It says COMMIT again if it does not hear this, and is answered from the journal.
            let lost = Filling::of(&self.context, &self.track).lost().await.unwrap_or_default();
            let _ = source.reply(&Answer::Running { lost }).await;
        }
        self.tidy_up().await;
    }

    /// Returns when nothing of it is needed from its source any more; with the session, if that has lasted.
    async fn become_whole(&self, source: Option<Conversation>) -> Option<Conversation> {
        if !self.offer.post_copy {
            return source;
        }
        let filling = Filling::of(&self.context, &self.track);
        let mut session = source;
        if let Some(source) = &mut session
            && let Err(failure) = filling.fetch(source).await
        {
            warn!(migration = %self.track.id, error = chain(&failure), "the rest of the memory has not followed yet; the source will say COMMIT again");
            session = None;
        }
        let mut inquiry = self.context.providers.inquire(self.offer.instance.clone());
        let mut before = u64::MAX;
        loop {
            let missing = match filling.missing().await {
                Missing::Nothing => break,
                Missing::Lost(reason) => {
                    let lose = || filling.lose(reason.clone()).boxed();
                    self.track.surely("recording that memory is lost", lose).await;
                    break;
                }
                Missing::Bytes(missing) => missing,
            };
            // Another session may be at it.
            if missing >= before
                && let Err(failure) = self.mourn(&filling, &mut inquiry).await
            {
                warn!(migration = %self.track.id, error = chain(&failure), "what becomes of the missing memory is not known");
            }
            before = missing;
            sleep(ASK_AGAIN).await;
        }
        self.track.surely("starting the container from its files", || self.start_if_lost(&filling).boxed()).await;
        session
    }

    /// A container that was still coming when this host lost its power is not yet one that its restart policy alone looks after.
    async fn note_power_cut(&self, holds: bool) {
        let is_coming = || async move {
            let steps = self.track.unsettled().await?;
            // The marker is the first thing that goes once nothing is missing.
            Ok(steps.iter().any(|(_, step)| matches!(step, Step::Pending { marker } if marker.exists())))
        };
        if self.offer.post_copy
            && !holds
            && self.track.surely("looking whether it has come", || is_coming().boxed()).await
        {
            let filling = Filling::of(&self.context, &self.track);
            let lose = || filling.lose("this host lost its power before all of it had come".to_owned()).boxed();
            self.track.surely("recording that memory is lost", lose).await;
        }
    }

    /// Says that the missing memory is lost, once it is: by somebody's word, or because its source cannot run any more.
    async fn mourn(&self, filling: &Filling<'_>, inquiry: &mut Inquiry) -> Result<(), Error> {
        if filling.lost().await?.is_some() {
            return filling.say_lost().await;
        }
        let Err(failure) = self.ask_source().await else { return Ok(()) };
        info!(migration = %self.track.id, error = chain(&failure), "the source does not answer, and has memory of a container that runs here");
        let occasion = Occasion { cause: &self.offer.cause, deadline: self.offer.deadline };
        let word = inquiry.word().await;
        if occasion.fences(Instance::from(&word), Timestamp::now()) {
            filling.lose(format!("the source is silent and cannot run any more: {word}")).await?;
        }
        Ok(())
    }

    /// A container whose memory was lost is dead by now. It is ours whatever its restart policy says, as after a power cut.
    async fn start_if_lost(&self, filling: &Filling<'_>) -> Result<(), Error> {
        let Some(reason) = filling.lost().await? else { return Ok(()) };
        self.track.remark(filling::remark(&reason)).await?;
        let unsettled = self.track.unsettled().await?;
        let Some((id, _)) = unsettled.into_iter().find(|(_, step)| matches!(step, Step::Lost { .. })) else {
            return Ok(());
        };
        // Otherwise a former daemon has seen it dead, and what runs now may be what that one has started.
        if filling.was_owed() {
            self.end_lacking().await?;
            filling.forget()?;
        }
        self.try_start_anew().await?;
        Ok(self.track.settled(id).await?)
    }

    /// Waits until the engine knows that the tasks are dead. Their guard kills them; one that was killed with its pager does not.
    async fn end_lacking(&self) -> Result<(), Error> {
        let created = self.created.as_ref().ok_or(Error::NotCreated)?;
        let dead = async {
            while !matches!(self.context.engine.inspect(&created.id).await, Err(orchestrator::Error::NotRunning { .. }))
            {
                kill_restored(&created.id).await;
                sleep(LOOK_AGAIN).await;
            }
        };
        timeout(START, dead).await.map_err(|_| Error::TimedOut { step: "ending what lacks memory", limit: START })
    }

    /// Its memory went with this host's power after COMMIT, like that of every container here. It is started like them.
    async fn start_anew(self) {
        error!(migration = %self.track.id, "this host lost its power before the container ran; it is started from its files");
        self.track.surely("starting the container", || self.try_start_anew().boxed()).await;
        self.it_runs(None).await;
    }

    async fn try_start_anew(&self) -> Result<(), Error> {
        self.remove_markers().await?;
        let created = self.created.as_ref().ok_or(Error::NotCreated)?;
        Ok(self.context.engine.start(&created.id).await?)
    }

    /// From here on an ordinary start of the container is no second copy.
    async fn remove_markers(&self) -> Result<(), Error> {
        for (_, step) in self.track.unsettled().await? {
            if let Step::Pending { marker } = step {
                remove_marker(marker)?;
            }
        }
        Ok(())
    }

    /// Lets the tasks run. The engine's own call ends after that; a daemon that came back has no such call to wait for.
    async fn run(&mut self) -> Result<(), Error> {
        self.track.reach("run:before")?;
        if self.starting.is_none() && Directory::at(self.workspace.directory()).may_have_run() {
            // The runtime's last word was for a daemon that did not live to hear it. What runs is not started twice.
            self.start_again().await?;
        }
        let handoff = self.handoff.as_mut().ok_or(Error::NotCreated)?;
        handoff.run();
        let running = match self.starting.take() {
            Some(starting) => timeout(START, async { Ok(unpanicked(starting.await)?) }).await,
            None => timeout(REPEAT, heard_to_run(handoff)).await,
        };
        running.unwrap_or(Err(Error::TimedOut { step: "letting the tasks run", limit: START }))?;
        Ok(self.track.reach("run:after")?)
    }

    /// Tasks that have not run are restored once more: the images are still whole. Those that may have run have done things that
    /// others know of, and the container is started from its files, as after any death.
    async fn start_again(&mut self) -> Result<(), Error> {
        let directory = Directory::at(self.workspace.directory());
        let id = self.created.as_ref().ok_or(Error::NotCreated)?.id.clone();
        if directory.may_have_run() {
            self.remove_markers().await?;
            self.end_unknown(&id).await?;
            // Whatever those lacked, this one lacks nothing.
            Filling::of(&self.context, &self.track).forget()?;
            self.call_engine(&id);
            return Ok(());
        }
        let used = directory.used();
        match fs::remove_file(&used) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::File { action: "remove", path: used, source });
            }
            _ => {}
        }
        let handoff = self.handoff.as_ref().ok_or(Error::NotCreated)?;
        handoff.restore();
        handoff.run();
        self.call_engine(&id);
        Ok(())
    }

    /// An engine that was killed meanwhile does not know that the tasks run, cannot be told, and takes the network away from whatever
    /// runs when it hears of their end. So they end before it starts the container.
    async fn end_unknown(&self, id: &str) -> Result<(), Error> {
        match self.context.engine.inspect(id).await {
            Err(orchestrator::Error::NotRunning { .. }) => {}
            Ok(_) => return Ok(()),
            Err(failure) => return Err(failure.into()),
        }
        let gone = async {
            while kill_restored(id).await {
                sleep(LOOK_AGAIN).await;
            }
        };
        timeout(START, gone)
            .await
            .map_err(|_| Error::TimedOut { step: "ending what the engine does not know", limit: START })
    }

    /// The container runs and is an ordinary one from now on.
    async fn tidy_up(self) {
        self.track.surely("tidying up", || self.try_tidy_up().boxed()).await;
        self.track.finished(Outcome::Moved, None);
        match self.track.record().await {
            Ok(record) if parking::is_url(&record.peer) => {
                tokio::spawn(parking::note_restored(Arc::clone(&self.context), record.peer, self.track.id.to_string()));
            }
            Ok(_) => {}
            Err(failure) => {
                warn!(migration = %self.track.id, error = chain(&failure), "a checkpoint that was restored is marked later");
            }
        }
    }

    async fn try_tidy_up(&self) -> Result<(), Error> {
        let created = self.created.as_ref().ok_or(Error::NotCreated)?;
        let policy = &self.offer.recipe.restart_policy;
        self.remove_markers().await?;
        self.context.engine.resume_restarts(&created.id, policy).await?;
        if !policy.is_no()
            && let Err(orchestrator::Error::NotRunning { .. }) = self.context.engine.inspect(&created.id).await
        {
            // A power cut, or an engine that was killed, ended it before the policy was back, which now acts on the next end only.
            self.context.engine.start(&created.id).await?;
        }
        let volumes: Vec<_> = created.volumes.iter().map(|volume| volume.name.clone()).collect();
        let journal = Arc::clone(&self.context.journal);
        unpanicked(spawn_blocking(move || journal.volumes_arrived(&volumes)).await)?;
        for (id, step) in self.track.unsettled().await? {
            if let Step::Workspace { directory } = step {
                let state = self.context.state.clone();
                unpanicked(spawn_blocking(move || Workspace::at(directory).remove(&state)).await)?;
            }
            self.track.settled(id).await?;
        }
        self.track.enter(Phase::Cleaned).await
    }

    /// Before COMMIT: undoes everything.
    pub(super) async fn give_up(mut self, reason: String) {
        if let Some(handoff) = &self.handoff {
            handoff.abort(&reason);
        }
        if let Some(starting) = self.starting.take() {
            // The wrapper fails the engine's call; without a wrapper the engine's call ends by itself.
            if timeout(START, starting).await.is_err() {
                warn!(migration = %self.track.id, "the engine's start did not end after the abort");
            }
        }
        undo(&self.context, &self.track, reason).await;
    }
}

/// The first process of a container that the runtime knows, if it lives: what the runtime knows may be left of one that is dead.
async fn restored_init(id: String) -> Option<Task> {
    let state = spawn_blocking(move || RuntimeState::read(&find_runtime_root(&id)?, &id).ok());
    let init = unpanicked(state.await).map(|state| Task { pid: state.init_pid, started: state.init_started });
    init.filter(|init| init.is_alive())
}

/// Kills that process; false when there is none.
async fn kill_restored(id: &str) -> bool {
    let init = restored_init(id.to_owned()).await;
    if let Some(init) = init {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(init.pid), Signal::SIGKILL);
    }
    init.is_some()
}

/// Waits for the runtime's word that the tasks run, as a daemon that came back hears it.
async fn heard_to_run(handoff: &mut Handoff) -> Result<(), Error> {
    loop {
        match handoff.report().await {
            Some(Report::Running) => return Ok(()),
            Some(Report::Failed { error }) => return Err(Error::Restore { reason: error }),
            Some(_) => {}
            None => return Err(Error::NotCreated),
        }
    }
}

/// Decides ABORT on this side and undoes every step. What cannot be undone at once is tried again in the background.
pub(super) async fn undo(context: &Arc<Context>, track: &Track, reason: String) {
    match try_undo(context, track, &reason).await {
        Ok(()) => track.finished(Outcome::Aborted, Some(reason)),
        Err(failure) => {
            warn!(migration = %track.id, error = chain(&failure), "the aborted migration is not cleaned up yet");
            let (context, track) = (Arc::clone(context), track.clone());
            tokio::spawn(async move {
                track.surely("undoing the migration", || try_undo(&context, &track, &reason).boxed()).await;
                track.finished(Outcome::Aborted, Some(reason));
            });
        }
    }
}

async fn try_undo(context: &Context, track: &Track, reason: &str) -> Result<(), Error> {
    if track.decide(Verdict::Abort, Some(reason.to_owned())).await? == Verdict::Commit {
        error!(migration = %track.id, "a committed migration is not undone");
        return Ok(());
    }
    for (id, step) in track.unsettled().await? {
        match step {
            Step::Workspace { directory } => {
                let state = context.state.clone();
                unpanicked(spawn_blocking(move || give_up_restore(directory, &state)).await)?;
            }
            Step::Create { offer } => {
                context.engine.discard(&offer.recipe, &offer.migration).await?;
                // The runtime does that itself, unless it was killed together with what would have called it.
                unpanicked(spawn_blocking(move || OwnNetns::of(&offer.migration).delete()).await);
            }
            Step::Pending { marker } => remove_marker(marker)?,
            _ => {}
        }
        track.settled(id).await?;
    }
    let source = track.record().await?.peer;
    if parking::is_url(&source) {
        // Nothing of it is here any more: somebody else may restore it.
        parking::release(context, &source, &track.id).await?;
    }
    track.enter(Phase::Cleaned).await
}

/// Takes up a migration that a former daemon left behind.
///
/// # Errors
/// The journal's, or that of the runtime directory.
pub(super) async fn recover(context: Arc<Context>, left: &MigrationView) -> Result<(), Error> {
    let track = context.track(&left.id, Side::Target, &left.container);
    // All of them: some are settled when it dies while it tidies up.
    let steps = track.steps().await?;
    let offer = steps.iter().find_map(|step| match step {
        Step::Create { offer } => Some((**offer).clone()),
        _ => None,
    });
    let created = steps.into_iter().find_map(|step| match step {
        Step::Made { created } => Some(created),
        _ => None,
    });
    let workspace = context.workspace(Side::Target, &left.id);
    let holds = workspace.directory().exists();
    let (offer, must) = match (offer, protocol::returns(left.phase, track.verdict().await?, holds)) {
        (Some(offer), must) if must != Return::GiveUp => (offer, must),
        _ => {
            undo(&context, &track, Error::DaemonDied.to_string()).await;
            return Ok(());
        }
    };
    let handoff = holds.then(|| Handoff::listen(&Directory::at(workspace.directory()))).transpose()?;
    // The container's memory is in use already; nothing more is promised.
    let room = context.capacity.room.reserve(Promise {
        migration: left.id.clone(),
        memory: 0,
        disk: 0,
        images: workspace.images(),
        patience: Duration::ZERO,
    })?;
    let moving = created.as_ref().and_then(|created| Moving::claim(&context, &created.id));
    let target =
        Target { context, track, offer, workspace, room, image_bytes: 0, created, handoff, moving, starting: None };
    match must {
        Return::Wait => target.await_verdict(None).await,
        Return::Run => target.run_until_it_runs(None).await,
        Return::Start => target.start_anew().await,
        Return::CleanUp | Return::GiveUp => {
            target.note_power_cut(holds).await;
            target.become_whole(None).await;
            target.tidy_up().await;
        }
    }
    Ok(())
}

/// Nothing may be removed below a restore that goes on: the runtime would make its directory again.
fn give_up_restore(directory: PathBuf, state: &Path) -> Result<(), Error> {
    Directory::at(&directory).give_up().map_err(|source| Error::File {
        action: "give up the restore in",
        path: directory.clone(),
        source,
    })?;
    Ok(Workspace::at(directory).remove(state)?)
}

fn remove_marker(path: PathBuf) -> Result<(), Error> {
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::File { action: "remove", path, source }),
        _ => Ok(()),
    }
}
