//! The store as the target of a migration: to each of the source's requests the answer of a target that keeps what it gets.
//!
//! ```text
//! source           store
//!   Offer ────────► Accepted                       a key for this checkpoint
//!   Image ────────► ImageReady, if a registry has it; else ImageNeeded, and an object
//!   Create, Start ► Done                           nothing to do
//!   Files, Pages, LastFiles, Images ──► Done       an object each, in this order
//!   Restore ──────► Done                           the manifest: all is there
//!   Decided{commit} ► Running                      the mark `committed`: it is anybody's
//!   Decided{abort} ─► Gone, or Running             all of it removed, unless somebody has claimed it
//! target, at a checkpoint that it restores
//!   Ask ──────────► Verdict                        whether it is his
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::Stream;
use jiff::Timestamp;
use spothop_transfer::{ExtentSource, Stats};
use tokio::io::AsyncRead;
use tokio::task::spawn_blocking;
use tokio_util::io::ReaderStream;

use super::claim::{self, Claim};
use super::key::{DataKey, MasterKey};
use super::manifest::{self, Details, Kind, Manifest, Object};
use super::pipe::{self, Progress, Written};
use super::store::Store;
use super::{COPY, Error, records};
use crate::journal::Journal;
use crate::migration::message::{Answer, Offer, Request};
use crate::migration::{Context, Side, Verdict, unpanicked};

/// Bytes that are read from a stream at once.
const PIECE: usize = 256 << 10;

/// A conversation with a store.
pub(crate) struct Upload {
    store: Store,
    host: String,
    source: spothop_policy::Source,
    cpuinfo: Option<String>,
    key_file: PathBuf,
    concurrency: usize,
    journal: Arc<Journal>,
    /// The last request, until it is answered.
    said: Option<Request>,
    /// Of a request that came with bytes.
    answer: Option<Answer>,
    checkpoint: Option<Checkpoint>,
}

/// One that is being made.
struct Checkpoint {
    place: Store,
    key: DataKey,
    manifest: Manifest,
    offer: Offer,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Upload {
    /// With the store at `url`, of which nothing is asked yet.
    pub(crate) fn open(context: &Context, url: &str) -> Result<Self, Error> {
        let parking = &context.config.parking;
        Ok(Self {
            store: Store::open(parking, url)?,
            host: context.config.host.name.clone(),
            source: context.capacity.as_source(&context.config.host.name),
            cpuinfo: context.capacity.cpuinfo(),
            key_file: parking.key_file.clone(),
            concurrency: parking.concurrency,
            journal: Arc::clone(&context.journal),
            said: None,
            answer: None,
            checkpoint: None,
        })
    }

    /// One for tests, of host `a`.
    #[cfg(test)]
    pub(super) fn over(store: Store, key_file: PathBuf, journal: Arc<Journal>) -> Self {
        Self {
            store,
            host: "a".to_owned(),
            source: super::tests::source(),
            cpuinfo: None,
            key_file,
            concurrency: 2,
            journal,
            said: None,
            answer: None,
            checkpoint: None,
        }
    }

    /// Where it is.
    pub(crate) fn url(&self) -> &str {
        self.store.url()
    }

    /// Takes a request, which is answered by [`Upload::answer`], after its bytes if some follow.
    pub(crate) fn say(&mut self, request: &Request) {
        self.said = Some(request.clone());
    }

    /// Does what was said.
    pub(crate) async fn answer(&mut self) -> Result<Answer, Error> {
        if let Some(answer) = self.answer.take() {
            return Ok(answer);
        }
        match self.said.take() {
            Some(Request::Offer(offer)) => self.accept(*offer),
            Some(Request::Image { shipped: false }) => self.look_for_image(),
            Some(Request::Create | Request::Start) => Ok(Answer::Done),
            Some(Request::Restore) => self.complete().await,
            Some(Request::Decided { migration, verdict, .. }) => self.decided(&migration, verdict).await,
            Some(Request::Ask { migration }) => self.verdict(migration).await,
            _ => Err(self.out_of_turn("an answer")),
        }
    }

    fn accept(&mut self, offer: Offer) -> Result<Answer, Error> {
        let (master, key) = (MasterKey::read(&self.key_file)?, DataKey::random()?);
        let manifest = Manifest::of(&offer, &self.host, offer.memory_bytes, &master, &key)?;
        self.checkpoint = Some(Checkpoint { place: self.store.of(&offer.migration), key, manifest, offer });
        Ok(Answer::Accepted { post_copy: false })
    }

    fn look_for_image(&self) -> Result<Answer, Error> {
        let checkpoint = self.checkpoint.as_ref().ok_or_else(|| self.out_of_turn("the image"))?;
        Ok(match checkpoint.offer.recipe.image.digests.is_empty() {
            true => Answer::ImageNeeded { reason: "no registry has it".to_owned() },
            false => Answer::ImageReady,
        })
    }

    /// All objects are there.
    async fn complete(&mut self) -> Result<Answer, Error> {
        let (source, cpuinfo) = (self.source.clone(), self.cpuinfo.clone());
        let out_of_turn = self.out_of_turn("the manifest");
        let Checkpoint { place, key, manifest, offer } = self.checkpoint.as_mut().ok_or(out_of_turn)?;
        manifest.created = Timestamp::now();
        let details = Details { offer: offer.clone(), source, cpuinfo };
        place.put(manifest::NAME, manifest.seal(&details, key)?).await?;
        Ok(Answer::Done)
    }

    async fn decided(&self, migration: &str, verdict: Verdict) -> Result<Answer, Error> {
        let place = self.store.of(migration);
        match verdict {
            Verdict::Commit => {
                claim::commit(&place, &self.host, migration).await.map(|()| Answer::Running { lost: None })
            }
            Verdict::Abort if claim::take_back(&place, &self.host, migration).await? => Ok(Answer::Gone),
            Verdict::Abort => Ok(Answer::Running { lost: None }),
        }
    }

    /// What the target of a restore hears that came back: the checkpoint is its own, or is not.
    async fn verdict(&self, migration: String) -> Result<Answer, Error> {
        let (journal, id) = (Arc::clone(&self.journal), migration.clone());
        let record = unpanicked(spawn_blocking(move || journal.record(&id, Side::Target)).await);
        let copy = record.is_ok_and(|record| record.cause == COPY);
        let claimed = Claim::read(&self.store).await?.is_some_and(|claim| claim.migration == migration);
        Ok(Answer::Verdict { verdict: Some(if copy || claimed { Verdict::Commit } else { Verdict::Abort }) })
    }

    /// Sends everything that `source` gives.
    pub(crate) async fn send_stream(
        &mut self,
        source: impl AsyncRead + Send + Unpin,
        progress: Progress<'_>,
    ) -> Result<Stats, Error> {
        let (kind, answer) = match self.said.take() {
            Some(Request::Image { shipped: true }) => (Kind::Image, Answer::ImageReady),
            Some(Request::Files) => (Kind::Files, Answer::Done),
            Some(Request::LastFiles) => (Kind::LastFiles, Answer::Done),
            _ => return Err(self.out_of_turn("a stream")),
        };
        let pieces = ReaderStream::with_capacity(source, PIECE);
        self.send(kind, 0, pieces, progress, answer).await
    }

    /// Sends all pages of `source`. No call of it is under way when this returns.
    pub(crate) async fn send_extents(
        &mut self,
        source: Arc<dyn ExtentSource>,
        progress: Progress<'_>,
    ) -> Result<Stats, Error> {
        let Some(Request::Pages { bytes, .. }) = self.said.take() else { return Err(self.out_of_turn("pages")) };
        let (pieces, job) = pipe::pieces_of(move |out| records::give_pages(source.as_ref(), out));
        let sent = self.send(Kind::Pages, bytes, pieces, progress, Answer::Done).await;
        unpanicked(job.await);
        sent
    }

    /// Sends the files `root/name`.
    pub(crate) async fn send_files(
        &mut self,
        root: &Path,
        names: &[String],
        progress: Progress<'_>,
    ) -> Result<Stats, Error> {
        let Some(Request::Images { bytes }) = self.said.take() else { return Err(self.out_of_turn("images")) };
        let (root, names) = (root.to_owned(), names.to_vec());
        let (pieces, job) = pipe::pieces_of(move |out| records::give_files(&root, &names, out));
        let sent = self.send(Kind::Images, bytes, pieces, progress, Answer::Done).await;
        unpanicked(job.await);
        sent
    }

    async fn send(
        &mut self,
        kind: Kind,
        announced: u64,
        pieces: impl Stream<Item = std::io::Result<Bytes>> + Unpin,
        progress: Progress<'_>,
        answer: Answer,
    ) -> Result<Stats, Error> {
        let begun = Instant::now();
        let (concurrency, out_of_turn) = (self.concurrency, self.out_of_turn("bytes"));
        let Checkpoint { place, key, manifest, .. } = self.checkpoint.as_mut().ok_or(out_of_turn)?;
        let name = format!("{:03}-{}", manifest.objects.len(), kind.word());
        let written = pipe::write(place, &name, key.of_object(&name)?, concurrency, pieces, progress).await?;
        let Written { raw_bytes, size, sha256 } = written;
        manifest.objects.push(Object { name, kind, announced, raw_bytes, size, sha256 });
        self.answer = Some(answer);
        Ok(Stats { raw_bytes, wire_bytes: size, zero_bytes: 0, elapsed: begun.elapsed() })
    }

    fn out_of_turn(&self, step: &'static str) -> Error {
        Error::OutOfTurn { url: self.url().to_owned(), step }
    }
}
