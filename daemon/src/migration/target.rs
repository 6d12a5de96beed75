//! The target's side, up to the tasks that are restored and stopped. What becomes of them is [`super::arrival`]'s.
//!
//! Until it has answered `Restore` the target gives up by itself when anything goes wrong.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use spothop_criu::TcpMode;
use spothop_criu::handoff::{Directory, Network, Report, RestoreRequest};
use spothop_criu::memory::{Restore, Store, compose};
use spothop_transfer::{ExtentSink, Limits};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::arrival::undo;
use super::error::chain;
use super::handoff::Handoff;
use super::message::{Answer, Offer, Request};
use super::moving::Moving;
use super::outgoing::progress_name;
use super::packing::{CLEARED, PACKED, unpack};
use super::track::unpanicked;
use super::{Context, Conversation, Error, Phase, Side, Step, Track, Verdict, Workspace, images};
use crate::capacity::{Promise, Reservation};
use crate::files::{self, Place, Target as Way, TreeName};
use crate::journal::NewMigration;
use crate::orchestrator::{self, CreateOptions, Created, Mode};

/// For the engine and the wrapper to get to the point where only the images are missing.
pub(super) const START: Duration = Duration::from_secs(60);

/// A source that says nothing for so long has died in a way that its kernel has not noticed, or hangs: the longest of what it does
/// between two questions is a dump, whose end a migration by hand awaits no longer than this either.
const SILENCE: Duration = Duration::from_secs(15 * 60);

/// For CRIU to restore: a gigabyte a second, and more than that for a tree of thousands of tasks.
const RESTORE: Duration = Duration::from_secs(300);

/// More than this of files or image is refused, in bytes; the disk's room was looked at before.
pub(super) const MOST_BYTES: u64 = 1 << 42;

/// A container that is coming.
pub(super) struct Target {
    pub(super) context: Arc<Context>,
    pub(super) track: Track,
    pub(super) offer: Offer,
    pub(super) workspace: Workspace,
    pub(super) room: Reservation,
    /// How much of the promised disk is for the image, in bytes.
    pub(super) image_bytes: u64,
    pub(super) created: Option<Created>,
    pub(super) handoff: Option<Handoff>,
    /// Nothing moves the container on before it is an ordinary one.
    pub(super) moving: Option<Moving>,
    pub(super) starting: Option<JoinHandle<Result<(), orchestrator::Error>>>,
}

/// Takes part in one migration, from its offer to its end.
///
/// # Errors
/// What ended it, if it was no migration that could be recorded.
pub(crate) async fn take(context: Arc<Context>, mut source: Conversation, offer: Offer) -> Result<(), Error> {
    let accepted = Target::accept(context, offer, source.peer()).await;
    let mut target = match accepted {
        Ok(target) => target,
        Err(refusal) => return source.reply(&Answer::Refused { reason: chain(&refusal) }).await,
    };
    source.reply(&Answer::Accepted { post_copy: target.offer.post_copy && target.is_lazy() }).await?;
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
        if let Some(notice) = context.notice_against(offer.urgent) {
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
                predicted: None,
            })
            .await?;
        let workspace = context.workspace(Side::Target, &offer.migration);
        let (room, image_bytes) = match Self::reserve(&context, &offer, &workspace).await {
            Ok(reserved) => reserved,
            Err(no_room) => {
                undo(&context, &track, chain(&no_room)).await;
                return Err(no_room);
            }
        };
        if let Err(failure) = track.enter(Phase::Reserved).await {
            undo(&context, &track, chain(&failure)).await;
            return Err(failure);
        }
        Ok(Self {
            context,
            track,
            offer,
            workspace,
            room,
            image_bytes,
            created: None,
            handoff: None,
            moving: None,
            starting: None,
        })
    }

    /// Room for all that will come, and how much of its disk is for the image.
    async fn reserve(context: &Context, offer: &Offer, workspace: &Workspace) -> Result<(Reservation, u64), Error> {
        let image = &offer.recipe.image;
        let image_bytes = if context.engine.has_image(image).await? { 0 } else { image.size };
        let reservation = context.capacity.room.reserve(Promise {
            migration: offer.migration.clone(),
            // The images lie in memory until they are restored, so a container needs twice its size for a moment.
            memory: offer.memory_bytes.saturating_mul(2),
            disk: offer.disk_bytes.saturating_add(image_bytes),
            images: workspace.images(),
            patience: SILENCE,
        })?;
        Ok((reservation, image_bytes))
    }

    /// Does what the source asks, up to the answer to `Restore`, which is the last point of giving up.
    async fn until_restored(&mut self, source: &mut Conversation) -> Result<(), Error> {
        loop {
            let heard = timeout(SILENCE, source.hear()).await;
            let heard = heard.map_err(|_| Error::TimedOut { step: "the source's next word", limit: SILENCE })??;
            let request = heard.ok_or_else(|| Error::HungUp { peer: source.peer().to_owned(), step: "a step" })?;
            self.room.renew();
            let restored = matches!(request, Request::Restore);
            let runs_on = matches!(
                request,
                Request::Image { .. }
                    | Request::Create
                    | Request::Files
                    | Request::Start
                    | Request::Pages { frozen: false, .. }
            );
            let answer = match request {
                Request::Image { shipped } => self.have_image(source, shipped).await?,
                Request::Create => self.create().await?,
                Request::Files => self.take_files(source, false).await?,
                Request::Start => self.start().await?,
                Request::Pages { bytes, frozen } => self.take_pages(source, bytes, frozen).await?,
                Request::LastFiles => {
                    self.track.enter(Phase::Frozen).await?;
                    self.take_files(source, true).await?
                }
                Request::Images { bytes } => self.take_images(source, bytes).await?,
                Request::Restore => self.restore().await?,
                Request::Decided { verdict: Verdict::Abort, reason, .. } => {
                    return Err(Error::Peer { peer: source.peer().to_owned(), reason: reason.unwrap_or_default() });
                }
                Request::Offer(_)
                | Request::Probe(_)
                | Request::Warm { .. }
                | Request::Ask { .. }
                | Request::Decided { .. }
                | Request::Lost { .. } => {
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
            // Said in the answer's place, which is when the source listens. What is frozen has nowhere better to go.
            if let Some(notice) = self.context.notice_against(self.offer.urgent).filter(|_| runs_on) {
                return Err(Error::UnderNotice { notice: notice.id });
            }
            source.reply(&answer).await?;
        }
    }

    async fn have_image(&mut self, source: &mut Conversation, shipped: bool) -> Result<Answer, Error> {
        let answer = self.get_image(source, shipped).await?;
        if matches!(answer, Answer::ImageReady) {
            self.room.wrote(std::mem::take(&mut self.image_bytes));
        }
        Ok(answer)
    }

    async fn get_image(&self, source: &mut Conversation, shipped: bool) -> Result<Answer, Error> {
        let (engine, image) = (&self.context.engine, &self.offer.recipe.image);
        if !shipped {
            return images::have(engine, image).await;
        }
        let received = images::receive(engine, image, source, &self.track.progress("image", None)).await?;
        self.track.count(received).await?;
        Ok(Answer::ImageReady)
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
        self.moving = Moving::claim(&self.context, &created.id);
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
                self.room.wrote(stats.raw_bytes);
                self.track.count(stats).await?;
                Ok(Answer::Done)
            }
            // The stream broke because writing failed: that is what to tell.
            Err(Error::Transfer(spothop_transfer::Error::Sink { .. })) => {
                sink.finish().await?;
                received.map(|_| Answer::Done)
            }
            Err(error) => Err(error),
        }
    }

    /// Has the engine start the container; its `create` waits in the wrapper for the images.
    async fn start(&mut self) -> Result<Answer, Error> {
        let created = self.created.as_ref().ok_or(Error::NotCreated)?;
        self.track.intend(Step::Workspace { directory: self.workspace.directory().to_owned() }).await?;
        let (workspace, bytes, request) = (self.workspace.clone(), self.offer.memory_bytes, self.restore_request());
        let store = self.offer.paged.then(|| self.store());
        unpanicked(
            spawn_blocking(move || {
                workspace.make(bytes)?;
                store.map(|store| make_store(&store)).transpose()?;
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

    pub(super) fn call_engine(&mut self, id: &str) {
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
            lazy: self.is_lazy().then(|| Directory::at(self.workspace.directory()).pages()),
            descriptors: self.offer.descriptors.clone(),
        }
    }

    /// Whether the tasks run before all of their memory is in place.
    fn is_lazy(&self) -> bool {
        self.offer.paged && self.context.ways.lazy()
    }

    /// Where pages wait until they are restored.
    fn store(&self) -> Store {
        Store::at(Directory::at(self.workspace.directory()).pages())
    }

    async fn take_pages(&self, source: &mut Conversation, bytes: u64, frozen: bool) -> Result<Answer, Error> {
        if !self.offer.paged {
            return Err(source.out_of_turn("the pages"));
        }
        let progress = self.track.progress(progress_name(frozen), Some(bytes));
        let sink = Arc::new(Incoming(self.store()));
        let stats = source.bulk().receive_extents(sink, &Limits::bytes(bytes), &progress).await?;
        self.track.count(stats).await?;
        Ok(Answer::Done)
    }

    async fn take_images(&self, source: &mut Conversation, bytes: u64) -> Result<Answer, Error> {
        let progress = self.track.progress("memory", Some(bytes));
        let stats = source.bulk().receive_files(&self.workspace.images(), &Limits::bytes(bytes), &progress).await?;
        self.track.count(stats).await?;
        if self.offer.paged {
            let (images, store) = (self.workspace.images(), self.store());
            let restore = if self.is_lazy() { Restore::Lazy } else { Restore::Eager };
            unpanicked(spawn_blocking(move || compose(&images, &store, restore)).await)?;
        }
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
}

/// Pages on their way into the store.
pub(super) struct Incoming(pub(super) Store);

impl ExtentSink for Incoming {
    fn put(&self, object: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match object & (PACKED | CLEARED) {
            0 => self.0.put(object.cast_signed(), offset, bytes),
            PACKED => unpack(bytes, |address, bytes| self.0.put((object & !PACKED).cast_signed(), address, bytes)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "pages that are to be forgotten come as zeros")),
        }
    }

    fn zero(&self, object: u32, offset: u64, length: u32) -> io::Result<()> {
        self.0.zero((object & !CLEARED).cast_signed(), offset, u64::from(length))
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

/// Keeps the wrapper from cold-starting the container; `/var/lib` survives a reboot, as the half-made container does.
fn make_marker(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::File { action: "make", path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    File::create(path).and_then(|marker| marker.sync_all()).map_err(failed)
}

fn make_store(store: &Store) -> Result<(), Error> {
    store.create().map_err(|source| Error::File { action: "make", path: store.directory().to_owned(), source })
}

fn write_request(directory: &Directory, request: &RestoreRequest) -> Result<(), Error> {
    let path = directory.request();
    serde_json::to_vec(request)
        .map_err(io::Error::from)
        .and_then(|text| fs::write(&path, text))
        .map_err(|source| Error::File { action: "write", path, source })
}
