//! The source's side: read the container out, and either give it away for good or go on as if nothing had happened.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use spothop_criu::cgroup::{CgroupVersion, Freezer};
use spothop_criu::dump::{Checkpoint, DESCRIPTORS, find_runtime_root};
use spothop_criu::memory::ConstantParent;
use spothop_criu::netns::Silencing;
use spothop_criu::runtime_state::RuntimeState;
use spothop_criu::{tasks, watches};
use spothop_policy::{Leaves, Times};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::info;

use super::ending::{Ending, Held};
use super::gate::{Gate, Ticket};
use super::limit::{Brink, Limit};
use super::memory;
use super::message::{Answer, Offer, Request};
use super::meter::{Meter, What};
use super::outgoing::Outgoing;
use super::target::tcp_mode;
use super::track::unpanicked;
use super::{Context, Conversation, Error, Phase, Side, Step, Task, Track, Workspace, images};
use crate::api::Outcome;
use crate::capacity::Promise;
use crate::files::{self, ArchiveStream, Snapshot, Tree, TreeName};
use crate::journal::NewMigration;
use crate::orchestrator::{Container, Mode, OldCopy, Volume};
use crate::parking;
use crate::setup::docker::RUNTIME_PATH;

/// For a step in which the target only talks to itself or its engine: making a container takes Docker a second on a busy disk.
pub(super) const STEP: Duration = Duration::from_secs(60);

/// Between two looks at memory that is being filled; of its end only its pager knows.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How long a cgroup may take to freeze. Tasks in uninterruptible sleep (a hung NFS server) do not freeze at all.
const FREEZE: Duration = Duration::from_secs(5);

/// A container that is to move.
#[derive(Debug, Clone)]
pub struct Job {
    /// UUIDv7.
    pub id: String,
    /// The container as the engine has it.
    pub container: Container,
    /// Its first process, in the host's pid namespace.
    pub init_pid: i32,
    /// Memory of its tasks, in bytes.
    pub memory_bytes: u64,
    /// Its writable layer and its volumes, in bytes.
    pub disk_bytes: u64,
    /// Where to.
    pub target: String,
    /// How long it is predicted to take.
    pub predicted: Times,
    /// How its memory goes, at best.
    pub mode: Leaves,
    /// How fast memory is predicted to go there while the container runs.
    pub bytes_per_second: u64,
    /// A notice's id, or `manual`.
    pub cause: String,
    /// When this host is taken away, if it is.
    pub deadline: Option<Timestamp>,
}

/// Runs one migration to its end, whatever that is. Every failure before COMMIT is an abort and is told to those who watch.
///
/// # Errors
/// The journal's, if it cannot record the beginning.
pub async fn run(context: Arc<Context>, job: Job) -> Result<Outcome, Error> {
    let track = context
        .begin(NewMigration {
            id: job.id.clone(),
            side: Side::Source,
            container_id: job.container.id.clone(),
            container: job.container.name.clone(),
            peer: job.target.clone(),
            cause: job.cause.clone(),
            deadline: job.deadline,
            predicted: Some(job.predicted),
        })
        .await?;
    let (limit, brink) = (Limit::new(&context, job.deadline), Brink::default());
    let workspace = context.workspace(Side::Source, &job.id);
    let meter = Meter::default();
    let mut source = Source {
        context: &context,
        track: &track,
        job: &job,
        workspace,
        watched: Vec::new(),
        brink: &brink,
        memory: Outgoing::new(&context, &track, &job, &meter, &limit),
        limit: &limit,
        memory_bytes: job.memory_bytes,
        parent: None,
        meter: &meter,
        silencing: None,
        held: Held::default(),
    };
    let restored = tokio::select! {
        biased;
        restored = source.until_restored() => restored,
        limit = limit.passed() => Err(Error::TimedOut { step: "the migration", limit }),
        () = brink.withdrawn(&context, &job) => Err(Error::Withdrawn { notice: job.cause.clone() }),
    };
    let (held, follows) = (source.held, source.memory.follows());
    let ending = Ending::new(Arc::clone(&context), track.clone(), job.container.id.clone(), job.target.clone());
    let outcome = ending.conclude(restored, held).await;
    if outcome == Outcome::Aborted && follows {
        // So that the next attempt goes another way.
        track.counted(&job.target, meter.counted()).await;
    }
    Ok(outcome)
}

/// One attempt.
struct Source<'a> {
    context: &'a Arc<Context>,
    track: &'a Track,
    job: &'a Job,
    limit: &'a Limit,
    workspace: Workspace,
    /// Whether it may still be called off.
    brink: &'a Brink,
    /// What the tasks watch, in the container's own paths.
    watched: Vec<PathBuf>,
    /// Their memory.
    memory: Outgoing<'a>,
    /// How much of it there is: it may be more than when the migration was planned.
    memory_bytes: u64,
    /// By which CRIU leaves that memory to us.
    parent: Option<ConstantParent>,
    meter: &'a Meter,
    /// By which no packet meets it once it is frozen.
    silencing: Option<Silencing>,
    held: Held,
}

impl Source<'_> {
    /// Everything up to the point where the target holds the restored tasks. Any error leaves an abort to be done.
    async fn until_restored(&mut self) -> Result<Conversation, Error> {
        self.wait_until_whole().await?;
        let mut target = self.context.connect(&self.job.target, self.context.config.transfer.connections).await?;
        self.reserve(&mut target).await?;
        // Where CRIU dumps the memory, its images lie here too, beside the container, until the target has them.
        let images = if self.memory.is_paged() { 0 } else { self.memory_bytes };
        let _room = self.context.capacity.room.reserve(Promise {
            migration: format!("{} at its source", self.job.id),
            memory: images,
            disk: 0,
            images: self.workspace.images(),
            // Nobody renews it: it goes with this attempt, and no attempt may take longer.
            patience: self.limit.at_most(),
        })?;
        self.track.enter(Phase::Reserved).await?;
        self.send_image(&mut target).await?;
        target.order(&Request::Create, "making the container", STEP).await?;
        let snapshot = self.send_files(&mut target).await?;
        let gate = self.make_gate().await?;
        target.order(&Request::Start, "starting the container", STEP).await?;
        self.track.enter(Phase::Prepared).await?;
        let checkpoint = self.start_criu(gate)?;
        // Meanwhile it comes up.
        self.memory.send_running(&mut target).await?;
        self.held.before().await?;
        self.freeze().await?;
        self.dump(checkpoint, &mut target, snapshot).await?;
        self.memory.send_missing(&mut target, self.workspace.images()).await?;
        self.send_images(&mut target).await?;
        self.track.enter(Phase::Transferred).await?;
        // While the target is busy, and nobody waits for it.
        let counted = self.track.counted(&self.job.target, self.meter.counted());
        let (restored, ()) = tokio::join!(target.order(&Request::Restore, "the restore", STEP), counted);
        restored?;
        self.track.enter(Phase::Restored).await?;
        Ok(target)
    }

    /// A container that has come here a moment ago may not have all of its memory yet, and nobody would see what is missing.
    async fn wait_until_whole(&mut self) -> Result<(), Error> {
        let (init_pid, since) = (self.job.init_pid, Instant::now());
        while unpanicked(spawn_blocking(move || memory::is_being_filled(init_pid)).await)? {
            sleep(LOOK_AGAIN).await;
        }
        let now = unpanicked(spawn_blocking(move || tasks::memory(init_pid)).await)?;
        self.memory_bytes = self.job.memory_bytes.max(now);
        // Whether any of it follows is decided at the freeze.
        self.meter.begin(self.job.mode.max(Leaves::PreCopy), self.memory_bytes, since);
        Ok(())
    }

    /// Whether memory may follow the container. Not where nothing but CRIU keeps its tasks frozen ([`freeze_behind_criu`]): they are
    /// given away by then, and must not run whatever becomes of CRIU.
    fn may_follow(&self) -> Result<bool, Error> {
        let wanted = self.memory.is_paged() && self.job.mode == Leaves::PostCopy;
        Ok(wanted && Freezer::of_pid(self.job.init_pid)?.version() == CgroupVersion::V2)
    }

    async fn reserve(&mut self, target: &mut Conversation) -> Result<(), Error> {
        let may_follow = self.may_follow()?;
        let offer = Request::Offer(Box::new(Offer {
            migration: self.job.id.clone(),
            cause: self.job.cause.clone(),
            deadline: self.job.deadline,
            recipe: self.job.container.recipe.clone(),
            memory_bytes: self.memory_bytes,
            disk_bytes: self.job.disk_bytes,
            paged: self.memory.is_paged(),
            descriptors: self.runtime_state().await?.descriptors,
            post_copy: may_follow,
            instance: self.context.instance.get().cloned(),
            urgent: self.context.is_leaving(),
        }));
        match target.ask(&offer, "the reservation", STEP).await? {
            Answer::Accepted { post_copy } => {
                if may_follow && post_copy {
                    self.memory.let_follow();
                }
                if parking::is_url(&self.job.target) {
                    self.track.intend(Step::Upload { url: self.job.target.clone() }).await?;
                }
                Ok(())
            }
            Answer::Refused { reason } => Err(Error::Refused { peer: self.job.target.clone(), reason }),
            _ => Err(target.out_of_turn("the reservation")),
        }
    }

    async fn runtime_state(&self) -> Result<RuntimeState, Error> {
        let container = &self.job.container;
        let root = self.runtime_root()?;
        let id = container.id.clone();
        let state = unpanicked(spawn_blocking(move || RuntimeState::read(&root, &id)).await);
        state.map_err(|failure| Error::Dump(failure.into()))
    }

    fn runtime_root(&self) -> Result<PathBuf, Error> {
        let container = &self.job.container;
        find_runtime_root(&container.id).ok_or_else(|| Error::NoRuntimeState { container: container.name.clone() })
    }

    async fn send_image(&self, target: &mut Conversation) -> Result<(), Error> {
        let (image, request) = (&self.job.container.image, |shipped| Request::Image { shipped });
        let progress = self.track.progress("image", None);
        let shipped = images::ship(self.context, target, image, request, &progress).await?;
        if let Some((stats, began)) = shipped {
            self.track.count(stats).await?;
            self.meter.sent(What::Files, stats.raw_bytes, began);
        }
        Ok(())
    }

    /// Pass 1: all files, while the container runs.
    async fn send_files(&self, target: &mut Conversation) -> Result<Arc<Snapshot>, Error> {
        let began = Instant::now();
        target.say(&Request::Files).await?;
        let archive = files::archive(self.trees());
        let (snapshot, bytes) = send_archive(self.track, target, archive, "files").await?;
        target.done("writing the files", STEP).await?;
        self.meter.sent(What::Files, bytes, began);
        Ok(snapshot)
    }

    fn trees(&self) -> Vec<Tree> {
        let container = &self.job.container;
        let rootfs = container.upper_dir.iter().map(|upper| (TreeName::Rootfs, upper));
        // A volume that is mounted twice is copied once.
        let volumes: BTreeMap<_, _> =
            container.volumes.iter().map(|volume| (TreeName::Volume(volume.name.clone()), &volume.path)).collect();
        rootfs.chain(volumes).map(|(name, directory)| Tree { name, directory: directory.clone() }).collect()
    }

    /// Makes what the freeze needs, and writes down every side effect that it will have: no fsync of an intent is downtime.
    async fn make_gate(&mut self) -> Result<Gate, Error> {
        let container = &self.job.container;
        self.track.intend(Step::Workspace { directory: self.workspace.directory().to_owned() }).await?;
        let (workspace, bytes) = (self.workspace.clone(), self.memory_bytes);
        unpanicked(spawn_blocking(move || workspace.make(bytes)).await)?;
        let ticket = Ticket {
            migration: self.job.id.clone(),
            journal: self.context.journal_path.clone(),
            reset_connections: container.network.mode == Mode::NewIp,
        };
        let gate = Gate::make(self.workspace.directory(), &self.context.program, &ticket)?;
        if !container.restart_policy.is_no() {
            let (container, policy) = (container.id.clone(), container.restart_policy.clone());
            self.track.intend(Step::HoldRestarts { container, policy }).await?;
        }
        let old_copy = |volume: &Volume| {
            OldCopy::of(&volume.name, &volume.path).map_err(|source| Error::File {
                action: "look at the volume in",
                path: volume.path.clone(),
                source,
            })
        };
        let volumes = container.volumes.iter().map(old_copy).collect::<Result<Vec<_>, _>>()?;
        if !volumes.is_empty() {
            self.track.intend(Step::Depart { volumes }).await?;
        }
        if self.memory.is_paged() {
            let context = Arc::clone(self.context);
            self.parent = unpanicked(spawn_blocking(move || context.ways.parent()).await)?;
        }
        let init_pid = self.job.init_pid;
        // A container that is gone by now cannot be frozen either, which says why.
        self.watched = unpanicked(spawn_blocking(move || watches::watched(init_pid)).await).unwrap_or_default();
        let task = Task::of_pid(init_pid).ok_or_else(|| Error::Ended { container: self.job.container.name.clone() })?;
        self.track.intend(Step::Freeze { task }).await?;
        if self.silences() {
            self.track.intend(Step::Silence { task }).await?;
            self.silencing = Some(unpanicked(spawn_blocking(move || Silencing::prepare(init_pid)).await)?);
        }
        self.track.intend(Step::Checkpoint).await?;
        Ok(gate)
    }

    /// Whether no packet may meet the frozen sockets: when the connections live on. A container that gets a new address
    /// must on the contrary be able to say goodbye to its peers.
    fn silences(&self) -> bool {
        self.job.container.network.mode == Mode::KeepIp
    }

    /// Downtime begins. Until [`Source::silence`] the kernel takes what clients have sent or are about to send: it goes along in the dump,
    /// and they need not send it again, for which TCP lets them wait 0.2 s at least.
    async fn freeze(&mut self) -> Result<(), Error> {
        if !self.brink.freeze() {
            return Err(Error::Withdrawn { notice: self.job.cause.clone() });
        }
        let init_pid = self.job.init_pid;
        unpanicked(spawn_blocking(move || Freezer::of_pid(init_pid)?.freeze(FREEZE)).await)?;
        self.track.enter(Phase::Frozen).await
    }

    /// From here on nothing reaches the sockets, which CRIU is about to read.
    async fn silence(&mut self) -> Result<(), Error> {
        let Some(silencing) = self.silencing.take() else { return Ok(()) };
        unpanicked(spawn_blocking(move || silencing.silence()).await)?;
        Ok(())
    }

    /// Has CRIU come up to the point where it needs the tasks to be frozen.
    fn start_criu(&mut self, gate: Gate) -> Result<Checkpoint, Error> {
        let checkpoint = self.checkpoint(gate.script())?;
        self.held.start(gate, checkpoint.clone());
        Ok(checkpoint)
    }

    /// CRIU writes its images, and meanwhile the last changes of the files go out. Returns when CRIU holds the dump.
    async fn dump(
        &mut self,
        checkpoint: Checkpoint,
        target: &mut Conversation,
        snapshot: Arc<Snapshot>,
    ) -> Result<(), Error> {
        let (context, job) = (self.context, self.job);
        self.memory.look_at_frozen().await?;
        unpanicked(spawn_blocking(move || checkpoint.frozen()).await)?;
        let last_files = files::difference(self.trees(), snapshot);
        self.silence().await?;
        let held = &mut self.held;
        held.begin().await?;
        let engine = Arc::clone(&context.engine);
        let restarts = held.hold_restarts(engine, &job.container.id, &job.container.restart_policy);
        let (track, target_name, memory, meter) = (self.track, &job.target, &self.memory, self.meter);
        let files = async {
            let began = Instant::now();
            target.say(&Request::LastFiles).await?;
            let (_, bytes) = send_archive(track, target, last_files, "last files").await?;
            target.done("writing the last files", STEP).await?;
            meter.sent(What::Frozen, bytes, began);
            memory.send_changed(target).await
        };
        let held = async {
            held.reached().await?;
            meter.dumped();
            track.reach("dump-held")?;
            freeze_behind_criu(job.init_pid).await
        };
        tokio::try_join!(held, restarts, files)?;
        info!(migration = %track.id, target = target_name, "the dump is held");
        Ok(())
    }

    fn checkpoint(&self, action_script: &Path) -> Result<Checkpoint, Error> {
        let (container, mode) = (&self.job.container, self.job.container.network.mode);
        Ok(Checkpoint {
            runtime: self.context.config.criu.runc.clone(),
            runtime_root: self.runtime_root()?,
            container_id: container.id.clone(),
            images: self.workspace.images(),
            work_dir: self.workspace.directory().to_owned(),
            tcp: tcp_mode(mode),
            in_its_network: matches!(mode, Mode::KeepIp | Mode::NewIp),
            action_script: action_script.to_owned(),
            stand_in: RUNTIME_PATH.into(),
            file_locks: true,
            watched: self.watched.clone(),
            parent: self.parent.clone(),
        })
    }

    /// Memory and all else that CRIU wrote, from tmpfs to tmpfs.
    async fn send_images(&self, target: &mut Conversation) -> Result<(), Error> {
        let root = self.workspace.images();
        let (names, bytes) = {
            let root = root.clone();
            unpanicked(spawn_blocking(move || list(&root)).await)?
        };
        let began = Instant::now();
        target.say(&Request::Images { bytes }).await?;
        let stats = target.bulk().send_files(&root, &names, &self.track.progress("memory", Some(bytes))).await?;
        self.track.count(stats).await?;
        target.done("receiving the images", STEP).await?;
        self.meter.sent(What::Frozen, stats.raw_bytes, began);
        Ok(())
    }
}

/// CRIU thaws the cgroup once it has seized the tasks one by one (criu, `criu/seize.c`, `freeze_processes`): if it died while the
/// dump is held, the tasks would run again, after COMMIT as well. Frozen once more they stay where they are.
///
/// Not on cgroup v1, where a frozen task cannot even be killed.
async fn freeze_behind_criu(init_pid: i32) -> Result<(), Error> {
    let frozen = spawn_blocking(move || {
        let freezer = Freezer::of_pid(init_pid)?;
        match freezer.version() {
            CgroupVersion::V1 => Ok(()),
            CgroupVersion::V2 => freezer.freeze(FREEZE),
        }
    });
    Ok(unpanicked(frozen.await)?)
}

/// Returns what was sent, also in bytes.
async fn send_archive(
    track: &Track,
    target: &mut Conversation,
    mut archive: ArchiveStream,
    what: &'static str,
) -> Result<(Arc<Snapshot>, u64), Error> {
    let sent = target.bulk().send_stream(&mut archive, &track.progress(what, None)).await;
    // The archive's own error says more than the stream that broke because of it.
    let (snapshot, _) = archive.finish().await?;
    let sent = sent?;
    let bytes = sent.raw_bytes;
    track.count(sent).await?;
    Ok((snapshot, bytes))
}

/// The regular files of a directory and their total size.
fn list(directory: &Path) -> Result<(Vec<String>, u64), Error> {
    let failed = |source| Error::File { action: "list", path: directory.to_owned(), source };
    let mut names = Vec::new();
    let mut bytes = 0;
    for entry in directory.read_dir().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let metadata = entry.metadata().map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // CRIU's link to the parent of its images means nothing at the target, and what runc adds is there already.
        if !metadata.is_file() || name == DESCRIPTORS {
            continue;
        }
        bytes += metadata.len();
        names.push(name);
    }
    Ok((names, bytes))
}
