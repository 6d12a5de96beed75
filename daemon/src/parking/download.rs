//! A checkpoint as the source of a migration: it offers the container, and says in turn what its source said when it was parked.
//!
//! The first thing after the offer is the claim, before anything is made on this host; the last is COMMIT, if the claim still stands. In
//! between nothing is written to the store.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use spothop_transfer::{ExtentSink, Limits, Stats};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::claim::Claim;
use super::key::DataKey;
use super::manifest::{Kind, Manifest, Object};
use super::pipe::{self, Progress};
use super::store::Store;
use super::{Error, records};
use crate::migration::Verdict;
use crate::migration::message::{Answer, Request};

/// Bytes that are handed on at once, and how many of these are between two stages.
const PIECE: usize = 256 << 10;
const BETWEEN: usize = 4;

/// What a target hears, and the bytes that follow.
#[derive(Debug, Clone)]
struct Step {
    request: Request,
    object: Option<Object>,
}

/// A conversation with a checkpoint.
pub(crate) struct Download {
    place: Store,
    key: DataKey,
    concurrency: usize,
    /// None where a second container is wanted.
    claim: Option<Claim>,
    image: Option<Object>,
    script: VecDeque<Step>,
    /// When it is given up, and how long that is from the beginning.
    due: Instant,
    limit: Duration,
    /// Hears whether this host takes the container.
    accepted: Option<oneshot::Sender<Result<(), String>>>,
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Download {
    /// Of a checkpoint whose manifest is genuine. The second value hears whether this host takes the container.
    pub(super) fn new(
        place: Store,
        key: DataKey,
        manifest: &Manifest,
        claim: Option<Claim>,
        concurrency: usize,
        limit: Duration,
    ) -> Result<(Self, oneshot::Receiver<Result<(), String>>), Error> {
        let (accepted, told) = oneshot::channel();
        let image = manifest.objects.iter().find(|object| object.kind == Kind::Image).cloned();
        let script = script(manifest).ok_or_else(|| Error::Tampered {
            url: place.url().to_owned(),
            what: "its objects are not those of a container".to_owned(),
        })?;
        let due = Instant::now() + limit;
        let accepted = Some(accepted);
        Ok((Self { place, key, concurrency, claim, image, script, due, limit, accepted }, told))
    }

    /// Where it is.
    pub(crate) fn url(&self) -> &str {
        self.place.url()
    }

    /// What comes next. Safe to cancel.
    pub(crate) async fn hear(&mut self) -> Result<Option<Request>, Error> {
        let Some(Step { request, .. }) = self.script.front().cloned() else { return Ok(None) };
        match (&request, &self.claim) {
            (Request::Image { shipped: false }, Some(claim)) => claim.take(&self.place).await?,
            (Request::Decided { verdict: Verdict::Commit, .. }, Some(claim)) => {
                let there = Claim::read(&self.place).await?;
                if there.as_ref() != Some(claim) {
                    let url = self.place.url().to_owned();
                    return Err(there.map_or(Error::NoCheckpoint { url }, |there| there.refusal(&self.place)));
                }
            }
            // What is restored is let run, however late.
            (Request::Decided { .. }, _) => {}
            _ if Instant::now() > self.due => return Err(Error::TimedOut(self.limit)),
            _ => {}
        }
        Ok(Some(request))
    }

    /// Takes the answer to what was heard last.
    pub(crate) fn reply(&mut self, answer: &Answer) {
        match answer {
            Answer::Accepted { .. } => self.tell(Ok(())),
            Answer::Refused { reason } => self.tell(Err(reason.clone())),
            Answer::ImageNeeded { reason } => {
                let shipped = self.image.clone().map(|image| (Request::Image { shipped: true }, Some(image)));
                let missing = || {
                    let reason = format!("the image is not in the checkpoint, as a registry had it: {reason}");
                    let migration = String::new();
                    (Request::Decided { migration, verdict: Verdict::Abort, reason: Some(reason) }, None)
                };
                let (request, object) = shipped.unwrap_or_else(missing);
                self.script[0] = Step { request, object };
            }
            Answer::Failed { .. } => self.script.clear(),
            _ => drop(self.script.pop_front()),
        }
    }

    fn tell(&mut self, accepted: Result<(), String>) {
        if let Some(told) = self.accepted.take() {
            // Whoever asked may be gone; the restore goes on.
            let _ = told.send(accepted);
        }
    }

    /// Hands the stream on that was announced, in order, and shuts `sink` down at its verified end.
    pub(crate) async fn receive_stream(
        &mut self,
        mut sink: impl AsyncWrite + Send + Unpin,
        max_bytes: u64,
        progress: Progress<'_>,
    ) -> Result<Stats, Received> {
        let (out, mut pieces) = mpsc::channel::<Bytes>(BETWEEN);
        // Ends with its first error, and takes its end of the channel along, so that nobody waits for it. Whether what it got is whole the
        // other half says.
        let hand_on = async move {
            while let Some(piece) = pieces.recv().await {
                sink.write_all(&piece).await?;
            }
            Ok::<_, io::Error>(sink)
        };
        let received = self.receive(Limits::bytes(max_bytes), progress, move |from| {
            let mut piece = vec![0; PIECE];
            loop {
                let count = from.read(&mut piece)?;
                if count == 0 {
                    return Ok(());
                }
                out.blocking_send(Bytes::copy_from_slice(&piece[..count])).map_err(|_| io::ErrorKind::BrokenPipe)?;
            }
        });
        let (received, handed_on) = tokio::join!(received, hand_on);
        let mut sink = handed_on.map_err(Received::Sink)?;
        let stats = received.map_err(Received::Store)?;
        sink.shutdown().await.map_err(Received::Sink)?;
        Ok(stats)
    }

    /// Puts the pages into `sink` that were announced.
    pub(crate) async fn receive_extents(
        &mut self,
        sink: Arc<dyn ExtentSink>,
        limits: &Limits,
        progress: Progress<'_>,
    ) -> Result<Stats, Error> {
        let limits = *limits;
        // What they are told by is in their stream too.
        let most = Limits::bytes(u64::MAX);
        self.receive(most, progress, move |from| records::take_pages(from, sink.as_ref(), limits)).await
    }

    /// Makes the files in `root` that were announced.
    pub(crate) async fn receive_files(
        &mut self,
        root: &Path,
        limits: &Limits,
        progress: Progress<'_>,
    ) -> Result<Stats, Error> {
        let (root, limits) = (root.to_owned(), *limits);
        let most = Limits::bytes(u64::MAX);
        self.receive(most, progress, move |from| records::take_files(from, &root, limits)).await
    }

    async fn receive(
        &mut self,
        limits: Limits,
        progress: Progress<'_>,
        work: impl FnOnce(&mut dyn Read) -> io::Result<()> + Send + 'static,
    ) -> Result<Stats, Error> {
        let object = self.script.front().and_then(|step| step.object.clone());
        let object = object.ok_or_else(|| Error::OutOfTurn { url: self.url().to_owned(), step: "bytes" })?;
        if object.raw_bytes > limits.max_bytes {
            let what = format!("it has {} bytes", object.raw_bytes);
            return Err(Error::Tampered { url: self.place.url_of(&object.name), what });
        }
        let key = self.key.of_object(&object.name)?;
        let read = pipe::read(&self.place, &object, key, self.concurrency, progress, work);
        let ((), stats) = timeout_at(self.due, read).await.map_err(|_| Error::TimedOut(self.limit))??;
        Ok(stats)
    }
}

/// Why a stream was not handed on.
#[derive(Debug)]
pub(crate) enum Received {
    /// It could not be read.
    Store(Error),
    /// Nobody took it.
    Sink(io::Error),
}

/// What a source says, in the order of the objects; none if these cannot be a container.
fn script(manifest: &Manifest) -> Option<VecDeque<Step>> {
    let step = |request| Step { request, object: None };
    let mut script = VecDeque::from([step(Request::Image { shipped: false }), step(Request::Create)]);
    let mut frozen = false;
    let mut kinds = Vec::new();
    for object in &manifest.objects {
        let request = match object.kind {
            Kind::Image => continue,
            Kind::Files => Request::Files,
            Kind::Pages => Request::Pages { bytes: object.announced, frozen },
            Kind::LastFiles => {
                frozen = true;
                Request::LastFiles
            }
            Kind::Images => Request::Images { bytes: object.announced },
        };
        kinds.push(object.kind);
        script.push_back(Step { request, object: Some(object.clone()) });
        if object.kind == Kind::Files {
            script.push_back(step(Request::Start));
        }
    }
    kinds.retain(|kind| *kind != Kind::Pages);
    script.push_back(step(Request::Restore));
    script.push_back(step(Request::Decided { migration: manifest.id.clone(), verdict: Verdict::Commit, reason: None }));
    (kinds == [Kind::Files, Kind::LastFiles, Kind::Images]).then_some(script)
}
