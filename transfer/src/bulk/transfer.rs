//! What all transfers have in common: tasks that work on the data connections, watched together with the control connection.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use super::{ACCEPTED_CHUNKS, CHUNK, Stats};
use crate::codec::Packer;
use crate::error::{AbortCode, Error};
use crate::link::Link;
use crate::session::{Aborter, Control, TransferParts};
use crate::wire::Connection;
use crate::wire::chunk::{Encoding, HEADER, Header};
use crate::wire::message::{Begin, Content, Finish, Message};

/// How long a side whose data connection broke waits for the other to say what it did on purpose.
const CAUSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Blocking jobs of one transfer at a time; it has at most one per connection.
const JOBS: usize = crate::session::MAX_DATA_CONNECTIONS;

/// Told the raw bytes so far.
pub(crate) type Progress<'a> = &'a (dyn Fn(u64) + Send + Sync);
/// A task on a data connection gives it back, with its index, when its part is done.
pub(crate) type Worker = Result<(usize, Connection), Error>;

/// A running transfer. Dropped before [`Transfer::conclude`], it tells the peer that it was cancelled, and closes the data connections.
pub(crate) struct Transfer<'a> {
    control: &'a mut Control,
    home: &'a mut Vec<Connection>,
    aborter: Aborter,
    progress: Progress<'a>,
    pub(crate) workers: JoinSet<Worker>,
    /// A message that came while tasks were still at work.
    early: Option<Message>,
    begun: Instant,
    concluded: bool,
    pub(crate) context: Context,
}

/// What the tasks of a transfer share.
#[derive(Clone)]
pub(crate) struct Context {
    /// The transfer's number.
    pub(crate) number: u32,
    pub(crate) peer: Arc<str>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) link: Arc<Link>,
    pub(crate) jobs: Jobs,
}

impl Context {
    /// Receiver: takes an end mark, after so many chunks.
    pub(crate) fn check_end(&self, end: &Header, chunks: u64) -> Result<(), Error> {
        if end.offset != chunks {
            let rule = "an end mark counts the chunks before it";
            return Err(Error::Protocol { peer: self.peer.to_string(), rule });
        }
        self.meter.add(end);
        Ok(())
    }
}

impl<'a> Transfer<'a> {
    pub(crate) fn new(parts: TransferParts<'a>, progress: Progress<'a>) -> (Self, Vec<Connection>) {
        let TransferParts { control, home, link, number, connections } = parts;
        let context =
            Context { number, peer: control.peer().clone(), meter: Arc::default(), link, jobs: Jobs::default() };
        let transfer = Self {
            aborter: control.aborter(),
            control,
            home,
            progress,
            workers: JoinSet::new(),
            early: None,
            begun: Instant::now(),
            concluded: false,
            context,
        };
        (transfer, connections)
    }

    /// Sender: says what will come.
    pub(crate) async fn announce(&mut self, content: Content) -> Result<(), Error> {
        let begin = Begin { transfer: self.context.number, chunk_bytes: CHUNK, content };
        self.control.send_transfer(&Message::Begin(begin)).await
    }

    /// Receiver: what will come, and the length of its chunks.
    pub(crate) async fn announced(&mut self) -> Result<(Content, u32), Error> {
        match self.next().await? {
            Message::Begin(begin) if begin.transfer == self.context.number => {
                if !ACCEPTED_CHUNKS.contains(&begin.chunk_bytes) {
                    return Err(self.protocol("chunks are between 64 KiB and 4 MiB long"));
                }
                Ok((begin.content, begin.chunk_bytes))
            }
            _ => Err(self.protocol("a transfer begins with its announcement, on both sides at the same number")),
        }
    }

    /// Runs the tasks and `feed` to their ends, telling the progress; the first failure of any, or of the session, ends it.
    pub(crate) async fn drive<T>(
        &mut self,
        feed: impl Future<Output = Result<T, Error>>,
    ) -> Result<(T, Vec<Connection>), Error> {
        let mut feed = pin!(feed);
        let mut fed = None;
        let mut finished = Vec::new();
        let meter = self.context.meter.clone();
        loop {
            tokio::select! {
                // The peer's word first: it is the cause of what the connections show next.
                biased;
                message = self.control.next_transfer() => self.keep(message?)?,
                Some(worker) = self.workers.join_next() => match worker {
                    Ok(worker) => finished.push(worker?),
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        // Nobody else aborts the tasks: the runtime is shutting down, and this future with it.
                        Err(_) => std::future::pending().await,
                    },
                },
                result = &mut feed, if fed.is_none() => fed = Some(result?),
                () = meter.changed.notified() => (self.progress)(meter.raw.load(Ordering::Relaxed)),
            }
            if self.workers.is_empty()
                && let Some(fed) = fed.take()
            {
                (self.progress)(meter.raw.load(Ordering::Relaxed));
                finished.sort_by_key(|(index, _)| *index);
                return Ok((fed, finished.into_iter().map(|(_, connection)| connection).collect()));
            }
        }
    }

    /// Sender: says what should have come, and waits for the receiver to have found it so.
    pub(crate) async fn finish(&mut self, digests: Vec<String>) -> Result<(), Error> {
        let raw_bytes = self.context.meter.raw.load(Ordering::Relaxed);
        let finish = Finish { transfer: self.context.number, raw_bytes, digests };
        self.control.send_transfer(&Message::Finish(finish)).await?;
        match self.next().await? {
            Message::Done { transfer } if transfer == self.context.number => Ok(()),
            _ => Err(self.protocol("a transfer ends with the receiver's confirmation")),
        }
    }

    /// Receiver: what should have come.
    pub(crate) async fn finished(&mut self) -> Result<Finish, Error> {
        match self.next().await? {
            Message::Finish(finish) if finish.transfer == self.context.number => Ok(finish),
            _ => Err(self.protocol("a transfer ends with the sender's manifest")),
        }
    }

    /// Receiver: everything is there.
    pub(crate) async fn confirm(&mut self) -> Result<(), Error> {
        self.control.send_transfer(&Message::Done { transfer: self.context.number }).await
    }

    /// Ends the transfer: gives the connections back, or finds the first cause, tells the peer, and closes them. No task and no blocking
    /// job of the transfer is left when this returns.
    pub(crate) async fn conclude(mut self, outcome: Result<Vec<Connection>, Error>) -> Result<Stats, Error> {
        let result = match outcome {
            Ok(connections) => {
                *self.home = connections;
                Ok(self.context.meter.stats(self.begun.elapsed()))
            }
            Err(error) => {
                if !matches!(error, Error::Peer { .. }) {
                    self.aborter.abort(self.context.number, error.abort_code(), error.to_string());
                }
                self.concluded = true;
                let error = self.first_cause(error).await;
                Err(error)
            }
        };
        self.concluded = true;
        self.workers.shutdown().await;
        self.context.jobs.idle().await;
        result
    }

    pub(crate) fn protocol(&self, rule: &'static str) -> Error {
        Error::Protocol { peer: self.context.peer.to_string(), rule }
    }

    /// The next message, unless it is the peer's giving up.
    async fn next(&mut self) -> Result<Message, Error> {
        if let Some(message) = self.early.take() {
            return Ok(message);
        }
        let message = self.control.next_transfer().await?;
        self.keep(message)?;
        // Just kept.
        Ok(self.early.take().expect("a message was kept"))
    }

    fn keep(&mut self, message: Message) -> Result<(), Error> {
        match message {
            Message::Abort { code, reason, .. } => {
                Err(Error::Peer { peer: self.context.peer.to_string(), code, message: reason })
            }
            message if self.early.is_none() => {
                self.early = Some(message);
                Ok(())
            }
            _ => Err(self.protocol("one message about a transfer follows from another")),
        }
    }

    /// A broken connection may be only the echo of what the peer is about to say; unless to the peer, too, it is no more than broken.
    async fn first_cause(&mut self, error: Error) -> Error {
        if !error.is_connection_loss() || self.control.check().is_err() {
            return error;
        }
        let peer = tokio::time::timeout(CAUSE_TIMEOUT, async {
            loop {
                let message = self.control.next_transfer().await?;
                if matches!(message, Message::Abort { .. }) {
                    return self.keep(message);
                }
            }
        });
        match peer.await {
            Ok(Err(cause @ Error::Peer { code, .. })) if code != AbortCode::Connection => cause,
            _ => error,
        }
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        if !self.concluded {
            self.aborter.abort(self.context.number, AbortCode::Cancelled, "it was cancelled there".into());
        }
    }
}

/// Counts what has gone over the data connections.
#[derive(Default)]
pub(crate) struct Meter {
    raw: AtomicU64,
    wire: AtomicU64,
    zero: AtomicU64,
    changed: Notify,
}

impl Meter {
    /// Another chunk, or an end mark.
    pub(crate) fn add(&self, header: &Header) {
        let raw = u64::from(header.raw_length);
        self.wire.fetch_add(HEADER as u64 + u64::from(header.stored_length), Ordering::Relaxed);
        if header.encoding == Encoding::Zero {
            self.zero.fetch_add(raw, Ordering::Relaxed);
        }
        self.raw.fetch_add(raw, Ordering::Relaxed);
        self.changed.notify_one();
    }

    fn stats(&self, elapsed: Duration) -> Stats {
        Stats {
            raw_bytes: self.raw.load(Ordering::Relaxed),
            wire_bytes: self.wire.load(Ordering::Relaxed),
            zero_bytes: self.zero.load(Ordering::Relaxed),
            elapsed,
        }
    }
}

/// Runs what would block the reactor (file I/O, compression) on tokio's blocking threads, and knows when none is left: a job outlives the
/// task that waits for it.
#[derive(Clone)]
pub(crate) struct Jobs(Arc<Semaphore>);

impl Default for Jobs {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(JOBS)))
    }
}

impl Jobs {
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        // The semaphore is never closed.
        let permit = self.0.clone().acquire_owned().await.ok();
        let job = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            job()
        });
        match job.await.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(result) => result,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // Not run because the runtime is shutting down, and this task with it.
            Err(Err(_)) => std::future::pending().await,
        }
    }

    /// Returns when no job runs.
    async fn idle(&self) {
        let _ = self.0.acquire_many(JOBS as u32).await;
    }
}

/// Sender: one data connection, on which chunks go out until the end mark.
pub(crate) struct Outlet {
    index: usize,
    connection: Connection,
    context: Context,
    chunks: u64,
}

impl Outlet {
    pub(crate) fn new(index: usize, connection: Connection, context: Context) -> Self {
        Self { index, connection, context, chunks: 0 }
    }

    /// Sends the chunk that the packer has, whose header this is.
    pub(crate) async fn send(&mut self, packer: &mut Packer, header: &Header) -> Result<(), Error> {
        let begin = Instant::now();
        write_chunk(&mut self.connection, packer.frame(), &self.context.peer).await?;
        packer.written(begin.elapsed());
        self.context.meter.add(header);
        self.chunks += 1;
        Ok(())
    }

    /// Sends the end mark; gives the connection back.
    pub(crate) async fn end(mut self) -> Worker {
        let end = Header::end(self.context.number, self.chunks);
        write_chunk(&mut self.connection, &end.encode(), &self.context.peer).await?;
        self.context.meter.add(&end);
        Ok((self.index, self.connection))
    }
}

/// Writes a chunk, or an end mark, and hands it to the kernel.
pub(crate) async fn write_chunk(
    connection: &mut (impl AsyncWrite + Unpin + ?Sized),
    bytes: &[u8],
    peer: &str,
) -> Result<(), Error> {
    let sent = async {
        connection.write_all(bytes).await?;
        connection.flush().await
    };
    sent.await.map_err(|error| Error::from_io(peer, "a transfer", error))
}
