//! The control connection: two tasks, one reading and one writing, so that nobody's dropped future ever leaves half a frame behind.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::error::Error;
use crate::session::MAX_MESSAGE;
use crate::wire::message::{self, MAX_REASON};
use crate::wire::{Connection, frame};

/// Bytes of messages that may wait each way. More than one of the largest, so that a small one fits beside it.
const QUEUE_BYTES: usize = 2 * MAX_MESSAGE;
/// Messages of the peer that may wait for `recv`; more stay with the peer.
const QUEUE_MESSAGES: usize = 64;
/// Messages about transfers that may wait: a peer in step has never more than `begin`, `finish` and `abort` under way.
const QUEUE_TRANSFER: usize = 8;
/// How long a side that closes waits for the other to say goodbye, so that its own is not lost in a reset.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// How the session ended, once it has: `Ok` after a goodbye, else the first cause.
type End = Option<Result<(), Error>>;

struct Outgoing {
    kind: frame::Kind,
    payload: Vec<u8>,
    /// Told when the kernel has the frame; dropped when it cannot have it.
    written: Option<oneshot::Sender<()>>,
    _room: Option<OwnedSemaphorePermit>,
}

/// The session's own side of the control connection. Dropping it closes the connection at once.
pub(crate) struct Control {
    peer: Arc<str>,
    outgoing: mpsc::UnboundedSender<Outgoing>,
    outgoing_room: Arc<Semaphore>,
    messages: mpsc::Receiver<(Vec<u8>, OwnedSemaphorePermit)>,
    transfer: mpsc::Receiver<message::Message>,
    end: watch::Receiver<End>,
    _tasks: JoinSet<()>,
}

impl Control {
    /// Takes over a connection after its hello.
    pub(crate) fn new(connection: Connection, peer: Arc<str>) -> Self {
        let (reader, writer) = tokio::io::split(connection);
        let (outgoing, outgoing_queue) = mpsc::unbounded_channel();
        let (messages_in, messages) = mpsc::channel(QUEUE_MESSAGES);
        let (transfer_in, transfer) = mpsc::channel(QUEUE_TRANSFER);
        let (end_in, end) = watch::channel(None);
        let end_in = Arc::new(end_in);
        let mut tasks = JoinSet::new();
        let read = Reader { stream: reader, peer: peer.clone(), messages: messages_in, transfer: transfer_in };
        tasks.spawn(read.run(end_in.clone()));
        tasks.spawn(write(writer, peer.clone(), outgoing_queue, end_in));
        let outgoing_room = Arc::new(Semaphore::new(QUEUE_BYTES));
        Self { peer, outgoing, outgoing_room, messages, transfer, end, _tasks: tasks }
    }

    pub(crate) fn peer(&self) -> &Arc<str> {
        &self.peer
    }

    /// See [`crate::Session::send`].
    pub(crate) async fn send(&mut self, kind: frame::Kind, payload: &[u8]) -> Result<(), Error> {
        if payload.len() > MAX_MESSAGE {
            return Err(Error::Limit {
                what: "a control message (bytes)",
                actual: payload.len() as u64,
                limit: MAX_MESSAGE as u64,
            });
        }
        self.check()?;
        let room = self.outgoing_room.clone().acquire_many_owned(payload.len() as u32);
        // The semaphore is never closed.
        let room = room.await.ok();
        let (written, wait) = oneshot::channel();
        let frame = Outgoing { kind, payload: payload.to_vec(), written: Some(written), _room: room };
        if self.outgoing.send(frame).is_ok() && wait.await.is_ok() {
            return Ok(());
        }
        Err(self.wait_for_end().await.err().unwrap_or_else(|| self.closed()))
    }

    /// See [`crate::Session::recv`].
    pub(crate) async fn recv(&mut self) -> Result<Option<Vec<u8>>, Error> {
        match self.messages.recv().await {
            Some((message, _room)) => Ok(Some(message)),
            None => self.wait_for_end().await.map(|()| None),
        }
    }

    /// The next message about a transfer. Cancel-safe.
    pub(crate) async fn next_transfer(&mut self) -> Result<message::Message, Error> {
        match self.transfer.recv().await {
            Some(message) => Ok(message),
            None => Err(self.wait_for_end().await.err().unwrap_or_else(|| self.closed())),
        }
    }

    /// Sends a message about a transfer.
    pub(crate) async fn send_transfer(&mut self, message: &message::Message) -> Result<(), Error> {
        self.send(frame::Kind::Transfer, &message::encode(message)).await
    }

    /// What can tell the peer about the end of a transfer even from a destructor.
    pub(crate) fn aborter(&self) -> Aborter {
        Aborter { outgoing: self.outgoing.clone() }
    }

    /// Whether the session has ended, and why.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match &*self.end.borrow() {
            None => Ok(()),
            Some(Ok(())) => Err(self.closed()),
            Some(Err(error)) => Err(error.clone()),
        }
    }

    /// See [`crate::Session::close`].
    pub(crate) async fn close(mut self) -> Result<(), Error> {
        if let Some(end) = self.end.borrow().clone() {
            return end;
        }
        self.send(frame::Kind::Goodbye, &[]).await?;
        // The peer's goodbye, its end, or silence: ours has been said in any case.
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, self.wait_for_end()).await;
        Ok(())
    }

    async fn wait_for_end(&mut self) -> Result<(), Error> {
        match self.end.wait_for(Option::is_some).await.map(|end| end.clone()) {
            Ok(Some(end)) => end,
            // Unreachable while the tasks live: each sets the end before it drops its sender.
            Ok(None) | Err(_) => Err(self.closed()),
        }
    }

    fn closed(&self) -> Error {
        Error::Closed { peer: self.peer.to_string() }
    }
}

/// Tells the peer that a transfer has failed on this side, without waiting.
pub(crate) struct Aborter {
    outgoing: mpsc::UnboundedSender<Outgoing>,
}

impl Aborter {
    pub(crate) fn abort(&self, transfer: u32, code: crate::error::AbortCode, mut reason: String) {
        reason.truncate(reason.floor_char_boundary(MAX_REASON));
        let payload = message::encode(&message::Message::Abort { transfer, code, reason });
        // At most one a session: the transfer takes the data connections with it. A peer that is gone need not know.
        let _ = self.outgoing.send(Outgoing { kind: frame::Kind::Transfer, payload, written: None, _room: None });
    }
}

/// Keeps the first end.
fn set_end(end: &watch::Sender<End>, value: Result<(), Error>) {
    end.send_if_modified(|end| {
        let first = end.is_none();
        end.get_or_insert(value);
        first
    });
}

struct Reader {
    stream: ReadHalf<Connection>,
    peer: Arc<str>,
    messages: mpsc::Sender<(Vec<u8>, OwnedSemaphorePermit)>,
    transfer: mpsc::Sender<message::Message>,
}

impl Reader {
    async fn run(mut self, end: Arc<watch::Sender<End>>) {
        let mut ended = end.subscribe();
        let result = tokio::select! {
            result = self.read() => result,
            _ = ended.wait_for(Option::is_some) => return,
        };
        set_end(&end, result);
    }

    /// Hands on frames until the goodbye.
    async fn read(&mut self) -> Result<(), Error> {
        let room = Arc::new(Semaphore::new(QUEUE_BYTES));
        loop {
            let (kind, payload) = frame::read(&mut self.stream, &self.peer).await?;
            match kind {
                frame::Kind::Message => {
                    let Ok(room) = room.clone().acquire_many_owned(payload.len() as u32).await else { return Ok(()) };
                    if self.messages.send((payload, room)).await.is_err() {
                        return Ok(()); // The session is being dropped.
                    }
                }
                frame::Kind::Transfer => {
                    let protocol = |rule| Error::Protocol { peer: self.peer.to_string(), rule };
                    let message = serde_json::from_slice(&payload)
                        .map_err(|_| protocol("a message about a transfer is known JSON"))?;
                    self.transfer
                        .try_send(message)
                        .map_err(|_| protocol("messages about transfers come one transfer at a time"))?;
                }
                frame::Kind::Goodbye => return Ok(()),
            }
        }
    }
}

/// Writes what comes, and a goodbye when the peer has said its own.
async fn write(
    mut stream: WriteHalf<Connection>,
    peer: Arc<str>,
    mut queue: mpsc::UnboundedReceiver<Outgoing>,
    end: Arc<watch::Sender<End>>,
) {
    let mut ended = end.subscribe();
    loop {
        let next = tokio::select! {
            next = queue.recv() => next,
            _ = ended.wait_for(Option::is_some) => None,
        };
        // Without a next one the session has ended; if in good order, the peer waits for our goodbye.
        let frame =
            next.unwrap_or(Outgoing { kind: frame::Kind::Goodbye, payload: Vec::new(), written: None, _room: None });
        if let Err(error) = frame::write(&mut stream, frame.kind, &frame.payload, &peer).await {
            set_end(&end, Err(error));
            return;
        }
        if frame.kind == frame::Kind::Goodbye {
            // Only the polite end of TLS; the goodbye itself is out.
            let _ = stream.shutdown().await;
        }
        if let Some(written) = frame.written {
            let _ = written.send(());
        }
        if frame.kind == frame::Kind::Goodbye {
            return;
        }
    }
}
