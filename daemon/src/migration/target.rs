//! The target's side: make the container, restore it stopped, and let it run when the source has committed.
//!
//! Until it has answered `Restore` the target gives up by itself when anything goes wrong. After that only the source's
//! journal knows the verdict: the target keeps the tasks stopped and asks, until it hears it or until the source cannot
//! run any more ([`Occasion::fences`]).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use jiff::Timestamp;
use spothop_criu::TcpMode;
use spothop_criu::handoff::{Directory, Network, Report, RestoreRequest};
use spothop_criu::netns::OwnNetns;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::error::chain;
use super::handoff::Handoff;
use super::message::{Answer, Offer, Request};
use super::protocol::{self, Instance, Occasion, Return};
use super::track::unpanicked;
use super::{Context, Conversation, Error, Phase, Side, Step, Track, Verdict, Workspace};
use crate::api::{MigrationView, Outcome};
use crate::capacity::Reservation;
use crate::files::{self, Place, Target as Way, TreeName};
use crate::journal::NewMigration;
use crate::orchestrator::{self, CreateOptions, Created, Mode};
use crate::provider::Inquiry;

/// For the engine and the wrapper to get to the point where only the images are missing.
const START: Duration = Duration::from_secs(60);

/// For CRIU to restore: a gigabyte a second, and more than that for a tree of thousands of tasks.
const RESTORE: Duration = Duration::from_secs(300);

/// For a runtime that waits to say so again to a daemon that came back: it tries many times a second.
const REPEAT: Duration = Duration::from_secs(2);

/// Why a target gives up what the source keeps.
const GOES_ON: &str = "the source goes on";

/// Between two questions to a source that does not answer.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// More than this of files or image is refused, in bytes; the disk's room was looked at before.
const MOST_BYTES: u64 = 1 << 42;

/// A container that is coming.
pub(super) struct Target {
    context: Arc<Context>,
    track: Track,
    offer: Offer,
    workspace: Workspace,
    _room: Reservation,
    created: Option<Created>,
    handoff: Option<Handoff>,
    starting: Option<JoinHandle<Result<(), orchestrator::Error>>>,
}

/// Takes part in one migration, from its offer to its end.
///
/// # Errors
/// What ended it, if it was no migration that could be recorded.
pub(super) async fn take(context: Arc<Context>, mut source: Conversation, offer: Offer) -> Result<(), Error> {
    let accepted = Target::accept(context, offer, source.peer()).await;
    let mut target = match accepted {
        Ok(target) => target,
        Err(refusal) => return source.reply(&Answer::Refused { reason: chain(&refusal) }).await,
    };
    source.reply(&Answer::Accepted).await?;
    match target.until_restored(&mut source).await {
        Ok(()) => target.await_verdict(Some(source)).await,
        Err(failure) => {
            let reason = chain(&failure);
            target.give_up(reason.clone()).await;
            // The source may be gone, which is then what went wrong.
            let _ = source.reply(&Answer::Failed { reason }).await;
        }
    }
    Ok(())
}

impl Target {
    async fn accept(context: Arc<Context>, offer: Offer, source: &str) -> Result<Self, Error> {
        if let Some(notice) = context.notice() {
            return Err(Error::UnderNotice { notice: notice.id });
        }
        let track = context
            .begin(NewMigration {
                id: offer.migration.clone(),
                side: Side::Target,
                container_id: String::new(),
                container: offer.recipe.name.clone(),
                peer: source.to_owned(),
                cause: offer.cause.clone(),
                deadline: offer.deadline,
            })
            .await?;
        let workspace = context.workspace(Side::Target, &offer.migration);
        // The images lie in memory until they are restored, so a container needs twice its size for a moment.
        let room = match context.capacity.reserve(&offer.migration, offer.memory_bytes.saturating_mul(2)) {
            Ok(room) => room,
            Err(no_room) => {
                undo(&context, &track, no_room.to_string()).await;
                return Err(no_room.into());
            }
        };
        if let Err(failure) = track.enter(Phase::Reserved).await {
            undo(&context, &track, chain(&failure)).await;
            return Err(failure);
        }
        Ok(Self { context, track, offer, workspace, _room: room, created: None, handoff: None, starting: None })
    }

    /// Does what the source asks, up to the answer to `Restore`, which is the last point of giving up.
    async fn until_restored(&mut self, source: &mut Conversation) -> Result<(), Error> {
        loop {
            let request =
                source.hear().await?.ok_or_else(|| Error::HungUp { peer: source.peer().to_owned(), step: "a step" })?;
            let restored = matches!(request, Request::Restore);
            let answer = match request {
                Request::Image { shipped } => self.have_image(source, shipped).await?,
                Request::Create => self.create().await?,
                Request::Files => self.take_files(source, false).await?,
                Request::Start => self.start().await?,
                Request::LastFiles => {
                    self.track.enter(Phase::Frozen).await?;
                    self.take_files(source, true).await?
                }
                Request::Images { bytes } => self.take_images(source, bytes).await?,
                Request::Restore => self.restore().await?,
                Request::Decided { verdict: Verdict::Abort, reason, .. } => {
                    return Err(Error::Peer { peer: source.peer().to_owned(), reason: reason.unwrap_or_default() });
                }
                Request::Offer(_) | Request::Probe(_) | Request::Ask { .. } | Request::Decided { .. } => {
                    return Err(source.out_of_turn("a step of the migration"));
                }
            };
            if restored {
                // Durable before it is said: from here on the source may commit.
                self.track.enter(Phase::Restored).await?;
                // If the source does not hear this, it aborts, and says so when it is asked.
                let _ = source.reply(&answer).await;
                return Ok(());
            }
            source.reply(&answer).await?;
        }
    }

    async fn have_image(&self, source: &mut Conversation, shipped: bool) -> Result<Answer, Error> {
        let (engine, image) = (&self.context.engine, &self.offer.recipe.image);
        if shipped {
            let (reader, writer) = tokio::io::simplex(1 << 20);
            let progress = self.track.progress("image", None);
            let (received, imported) = tokio::join!(
                source.bulk().receive_stream(writer, MOST_BYTES, &progress),
                engine.import_image(image, Box::new(reader)),
            );
            // A broken stream explains a failed import, not the other way round.
            self.track.count(received?).await?;
            imported?;
            return Ok(Answer::ImageReady);
        }
        if engine.has_image(image).await? {
            return Ok(Answer::ImageReady);
        }
        match engine.pull_image(image).await {
            Ok(()) => Ok(Answer::ImageReady),
            Err(error) => Ok(Answer::ImageNeeded { reason: chain(&error) }),
        }
    }

    async fn create(&mut self) -> Result<Answer, Error> {
        let marker = self.context.state.join("pending").join(&self.offer.migration);
        self.track.intend(Step::Pending { marker: marker.clone() }).await?;
        unpanicked(spawn_blocking(move || make_marker(&marker)).await)?;
        self.track.intend(Step::Create { offer: Box::new(self.offer.clone()) }).await?;
        self.track.reach("create:intent")?;
        let journal = Arc::clone(&self.context.journal);
        let stale_volumes = unpanicked(spawn_blocking(move || journal.departed_volumes()).await)?;
        let options = CreateOptions { migration: self.offer.migration.clone(), stale_volumes };
        let created = self.context.engine.create(&self.offer.recipe, &options).await?;
        self.track.reach("create:done")?;
        self.track.intend(Step::Made { created: created.clone() }).await?;
        self.created = Some(created);
        Ok(Answer::Done)
    }

    /// The first pass goes into directories that nobody has mounted, the last one through the mounted root filesystem.
    async fn take_files(&self, source: &mut Conversation, last: bool) -> Result<Answer, Error> {
        let created = self.created.as_ref().ok_or_else(|| source.out_of_turn("the files"))?;
        let rootfs = match last {
            false => Way::Raw(created.upper_dir.clone()),
            true => Way::Mounted(created.merged_dir.clone()),
        };
        let volumes = created
            .volumes
            .iter()
            .map(|volume| Place { name: TreeName::Volume(volume.name.clone()), target: Way::Raw(volume.path.clone()) });
        let places = std::iter::once(Place { name: TreeName::Rootfs, target: rootfs }).chain(volumes).collect();
        let mut sink = files::apply(places);
        let progress = self.track.progress(if last { "last files" } else { "files" }, None);
        let received = source.bulk().receive_stream(&mut sink, MOST_BYTES, &progress).await;
        match received {
            Ok(stats) => {
                sink.finish().await?;
                self.track.count(stats).await?;
                Ok(Answer::Done)
            }
            // The stream broke because writing failed: that is what to tell.
            Err(spothop_transfer::Error::Sink { .. }) => {
                sink.finish().await?;
                Ok(received.map(|_| Answer::Done)?)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Has the engine start the container; its `create` waits in the wrapper for the images.
    async fn start(&mut self) -> Result<Answer, Error> {
        let created = self.created.as_ref().ok_or(Error::NotCreated)?;
        self.track.intend(Step::Workspace { directory: self.workspace.directory().to_owned() }).await?;
        let (workspace, bytes, request) = (self.workspace.clone(), self.offer.memory_bytes, self.restore_request());
        unpanicked(
            spawn_blocking(move || {
                workspace.make(bytes)?;
                write_request(&Directory::at(workspace.directory()), &request)
            })
            .await,
        )?;
        let id = created.id.clone();
        self.handoff = Some(Handoff::listen(&Directory::at(self.workspace.directory()))?);
        self.call_engine(&id);
        self.wrapper_says("the engine's start", START, |report| matches!(report, Report::Waiting { .. })).await?;
        self.track.enter(Phase::Prepared).await?;
        Ok(Answer::Done)
    }

    fn call_engine(&mut self, id: &str) {
        let (engine, id) = (Arc::clone(&self.context.engine), id.to_owned());
        self.starting = Some(tokio::spawn(async move { engine.start(&id).await }));
    }

    fn restore_request(&self) -> RestoreRequest {
        let network = &self.offer.recipe.network;
        RestoreRequest {
            migration: self.offer.migration.clone(),
            images: self.workspace.images(),
            tcp: tcp_mode(network.mode),
            network: match network.mode {
                Mode::KeepIp | Mode::NewIp => Network::Own { addresses: network.addresses() },
                Mode::Host | Mode::None => Network::Given,
            },
            runtime: self.context.config.criu.runc.clone(),
        }
    }

    async fn take_images(&self, source: &mut Conversation, bytes: u64) -> Result<Answer, Error> {
        let limits = spothop_transfer::Limits::bytes(bytes);
        let progress = self.track.progress("memory", Some(bytes));
        let stats = source.bulk().receive_files(&self.workspace.images(), &limits, &progress).await?;
        self.track.count(stats).await?;
        self.track.enter(Phase::Transferred).await?;
        Ok(Answer::Done)
    }

    async fn restore(&mut self) -> Result<Answer, Error> {
        self.handoff.as_ref().ok_or(Error::NotCreated)?.restore();
        // Restored and stopped, and the engine has plugged in its network.
        self.wrapper_says("the restore", RESTORE, |report| matches!(report, Report::Attached { .. })).await?;
        Ok(Answer::Done)
    }

    /// Waits for one of the wrapper's reports; its failure, and the engine's, end the wait.
    async fn wrapper_says(
        &mut self,
        step: &'static str,
        limit: Duration,
        wanted: impl Fn(&Report) -> bool,
    ) -> Result<(), Error> {
        let (Some(handoff), Some(starting)) = (&mut self.handoff, &mut self.starting) else {
            return Err(Error::NotCreated);
        };
        let heard = timeout(limit, async {
            loop {
                let report = tokio::select! {
                    biased;
                    report = handoff.report() => report,
                    ended = &mut *starting => return Heard::EngineEnded(unpanicked(ended)),
                };
                match report {
                    Some(report) if wanted(&report) => return Heard::Wanted,
                    Some(Report::Failed { error }) => return Heard::Failed(error),
                    _ => {}
                }
            }
        })
        .await;
        match heard.map_err(|_| Error::TimedOut { step, limit })? {
            Heard::Wanted => Ok(()),
            Heard::Failed(reason) => Err(Error::Restore { reason }),
            Heard::EngineEnded(result) => {
                self.starting = None;
                result?;
                // The engine says that it runs, without the wrapper: it was started in the ordinary way.
                Err(Error::ColdStart { step })
            }
        }
    }

    /// The tasks are restored and stopped. Hears the verdict, and does as it says.
    async fn await_verdict(self, source: Option<Conversation>) {
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
        let _ = self.track.reach("running:reply");
        if let Some(mut source) = source {
            // It says COMMIT again if it does not hear this, and is answered from the journal.
            let _ = source.reply(&Answer::Running).await;
        }
        self.tidy_up().await;
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

    /// The container runs and is an ordinary one from now on.
    async fn tidy_up(self) {
        self.track.surely("tidying up", || self.try_tidy_up().boxed()).await;
        self.track.finished(Outcome::Moved, None);
    }

    async fn try_tidy_up(&self) -> Result<(), Error> {
        let created = self.created.as_ref().ok_or(Error::NotCreated)?;
        let policy = &self.offer.recipe.restart_policy;
        self.remove_markers().await?;
        self.context.engine.resume_restarts(&created.id, policy).await?;
        if self.handoff.is_none() && !policy.is_no() {
            // A power cut may have come before the policy was back. Nothing happens to a container that runs.
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
    async fn give_up(mut self, reason: String) {
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

enum Heard {
    Wanted,
    Failed(String),
    EngineEnded(Result<(), orchestrator::Error>),
}

/// The way of sockets: they live on with their address, or come back closed.
pub(super) fn tcp_mode(mode: Mode) -> TcpMode {
    match mode {
        Mode::KeepIp | Mode::None => TcpMode::Established,
        Mode::NewIp | Mode::Host => TcpMode::Close,
    }
}

/// Decides ABORT on this side and undoes every step. What cannot be undone at once is tried again in the background.
async fn undo(context: &Arc<Context>, track: &Track, reason: String) {
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
                unpanicked(spawn_blocking(move || Workspace::at(directory).remove(&state)).await)?;
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
    let room = context.capacity.reserve(&left.id, 0)?;
    let target = Target { context, track, offer, workspace, _room: room, created, handoff, starting: None };
    match must {
        Return::Wait => target.await_verdict(None).await,
        Return::Run => target.run_until_it_runs(None).await,
        Return::Start => target.start_anew().await,
        Return::CleanUp | Return::GiveUp => target.tidy_up().await,
    }
    Ok(())
}

/// Keeps the wrapper from cold-starting the container; `/var/lib` survives a reboot, as the half-made container does.
fn make_marker(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::File { action: "make", path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    File::create(path).and_then(|marker| marker.sync_all()).map_err(failed)
}

fn remove_marker(path: PathBuf) -> Result<(), Error> {
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::File { action: "remove", path, source }),
        _ => Ok(()),
    }
}

fn write_request(directory: &Directory, request: &RestoreRequest) -> Result<(), Error> {
    let path = directory.request();
    serde_json::to_vec(request)
        .map_err(io::Error::from)
        .and_then(|text| fs::write(&path, text))
        .map_err(|source| Error::File { action: "write", path, source })
}
