//! Requests and answers: over a session with another daemon, or with a store in a daemon's place.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use spothop_transfer::{ExtentSink, ExtentSource, Limits, Session, Stats};
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::warn;

use super::Error;
use super::message::{Answer, Request};
use crate::parking::{Download, Received, Upload};

/// One conversation.
#[derive(Debug)]
pub struct Conversation {
    line: Line,
}

/// With whom.
#[derive(Debug)]
enum Line {
    /// Another daemon.
    Peer(Session),
    /// A store, which stands in for a target.
    Store(Box<Upload>),
    /// A checkpoint, which stands in for a source.
    Checkpoint(Box<Download>),
}

impl Conversation {
    /// Speaks over `session`.
    #[must_use]
    pub fn new(session: Session) -> Self {
        Self { line: Line::Peer(session) }
    }

    /// Speaks to a store.
    pub(crate) fn with_store(upload: Upload) -> Self {
        Self { line: Line::Store(Box::new(upload)) }
    }

    /// Hears a checkpoint.
    pub(crate) fn with_checkpoint(download: Download) -> Self {
        Self { line: Line::Checkpoint(Box::new(download)) }
    }

    /// The other host's name, as its certificate has it; a store's or checkpoint's URL.
    #[must_use]
    pub fn peer(&self) -> &str {
        match &self.line {
            Line::Peer(session) => session.peer_name(),
            Line::Store(upload) => upload.url(),
            Line::Checkpoint(download) => download.url(),
        }
    }

    /// The bulk side, for what the last request announced.
    pub fn bulk(&mut self) -> Bulk<'_> {
        Bulk(self)
    }

    /// Says `request`; the answer is to be had from [`Conversation::answer`].
    ///
    /// # Errors
    /// The session's.
    pub async fn say(&mut self, request: &Request) -> Result<(), Error> {
        if let Line::Store(upload) = &mut self.line {
            upload.say(request);
            return Ok(());
        }
        self.send(request).await
    }

    /// Says `request` and waits for its answer.
    ///
    /// # Errors
    /// The session's; [`Error::Peer`] when the other host failed; [`Error::TimedOut`].
    pub async fn ask(&mut self, request: &Request, step: &'static str, limit: Duration) -> Result<Answer, Error> {
        self.say(request).await?;
        self.answer(step, limit).await
    }

    /// Waits for the answer to the last request.
    ///
    /// # Errors
    /// As [`Conversation::ask`].
    pub async fn answer(&mut self, step: &'static str, limit: Duration) -> Result<Answer, Error> {
        let too_late = |_| Error::TimedOut { step, limit };
        let session = match &mut self.line {
            Line::Peer(session) => session,
            Line::Store(upload) => {
                return Ok(tokio::time::timeout(limit, upload.answer()).await.map_err(too_late)??);
            }
            Line::Checkpoint(_) => return Err(self.out_of_turn(step)),
        };
        let message = tokio::time::timeout(limit, session.recv()).await.map_err(too_late)??;
        let message = message.ok_or_else(|| Error::HungUp { peer: self.peer().to_owned(), step })?;
        match self.parse(&message, step)? {
            Answer::Failed { reason } => Err(Error::Peer { peer: self.peer().to_owned(), reason }),
            answer => Ok(answer),
        }
    }

    /// Says `request` and expects a plain [`Answer::Done`].
    ///
    /// # Errors
    /// As [`Conversation::ask`].
    pub async fn order(&mut self, request: &Request, step: &'static str, limit: Duration) -> Result<(), Error> {
        self.say(request).await?;
        self.done(step, limit).await
    }

    /// Expects a plain [`Answer::Done`] to the last request.
    ///
    /// # Errors
    /// As [`Conversation::ask`].
    pub async fn done(&mut self, step: &'static str, limit: Duration) -> Result<(), Error> {
        match self.answer(step, limit).await? {
            Answer::Done => Ok(()),
            _ => Err(self.out_of_turn(step)),
        }
    }

    /// The next request; none when the other host said goodbye. Safe to cancel.
    ///
    /// # Errors
    /// The session's, or something that is no request.
    pub async fn hear(&mut self) -> Result<Option<Request>, Error> {
        let session = match &mut self.line {
            Line::Peer(session) => session,
            Line::Checkpoint(download) => return Ok(download.hear().await?),
            Line::Store(_) => return Err(self.out_of_turn("a request")),
        };
        match session.recv().await? {
            Some(message) => self.parse(&message, "a request").map(Some),
            None => Ok(None),
        }
    }

    /// Answers the last request.
    ///
    /// # Errors
    /// The session's.
    pub async fn reply(&mut self, answer: &Answer) -> Result<(), Error> {
        if let Line::Checkpoint(download) = &mut self.line {
            download.reply(answer);
            return Ok(());
        }
        self.send(answer).await
    }

    /// Says goodbye.
    ///
    /// # Errors
    /// The session's.
    pub async fn close(self) -> Result<(), Error> {
        match self.line {
            Line::Peer(session) => Ok(session.close().await?),
            Line::Store(_) | Line::Checkpoint(_) => Ok(()),
        }
    }

    /// The error for an answer that does not fit the request.
    #[must_use]
    pub fn out_of_turn(&self, step: &'static str) -> Error {
        Error::OutOfTurn { peer: self.peer().to_owned(), step }
    }

    async fn send(&mut self, message: &impl Serialize) -> Result<(), Error> {
        // Fails only for maps whose keys are no strings, of which there are none in a message.
        let bytes = serde_json::to_vec(message).map_err(|_| self.out_of_turn("a message"))?;
        match &mut self.line {
            Line::Peer(session) => Ok(session.send(&bytes).await?),
            Line::Store(_) | Line::Checkpoint(_) => Err(self.out_of_turn("a message")),
        }
    }

    fn parse<T: DeserializeOwned>(&self, message: &[u8], step: &'static str) -> Result<T, Error> {
        serde_json::from_slice(message).map_err(|error| {
            // What it was may be a secret; where it goes wrong is none.
            warn!(peer = self.peer(), %error, step, "a message makes no sense here");
            self.out_of_turn(step)
        })
    }
}

/// Told the raw bytes so far.
type Progress<'p> = &'p (dyn Fn(u64) + Send + Sync);

/// The bulk side of a conversation. What goes wrong is told as [`Session`]'s methods of the same names tell it, and by the store's error.
#[derive(Debug)]
pub struct Bulk<'a>(&'a mut Conversation);

impl Bulk<'_> {
    /// As [`Session::send_stream`].
    ///
    /// # Errors
    /// The session's or the store's; so of the others.
    pub async fn send_stream(
        self,
        source: impl AsyncRead + Send + Unpin,
        progress: Progress<'_>,
    ) -> Result<Stats, Error> {
        match &mut self.0.line {
            Line::Peer(session) => Ok(session.send_stream(source, progress).await?),
            Line::Store(upload) => Ok(upload.send_stream(source, progress).await?),
            Line::Checkpoint(_) => Err(self.0.out_of_turn("a stream")),
        }
    }

    /// As [`Session::send_extents`].
    ///
    /// # Errors
    /// See [`Bulk::send_stream`].
    pub async fn send_extents(self, source: Arc<dyn ExtentSource>, progress: Progress<'_>) -> Result<Stats, Error> {
        match &mut self.0.line {
            Line::Peer(session) => Ok(session.send_extents(source, progress).await?),
            Line::Store(upload) => Ok(upload.send_extents(source, progress).await?),
            Line::Checkpoint(_) => Err(self.0.out_of_turn("pages")),
        }
    }

    /// As [`Session::send_files`].
    ///
    /// # Errors
    /// See [`Bulk::send_stream`].
    pub async fn send_files(self, root: &Path, names: &[String], progress: Progress<'_>) -> Result<Stats, Error> {
        match &mut self.0.line {
            Line::Peer(session) => Ok(session.send_files(root, names, progress).await?),
            Line::Store(upload) => Ok(upload.send_files(root, names, progress).await?),
            Line::Checkpoint(_) => Err(self.0.out_of_turn("files")),
        }
    }

    /// As [`Session::receive_stream`]; a sink that failed is told by its error in both cases.
    ///
    /// # Errors
    /// See [`Bulk::send_stream`].
    pub async fn receive_stream(
        self,
        sink: impl AsyncWrite + Send + Unpin,
        max_bytes: u64,
        progress: Progress<'_>,
    ) -> Result<Stats, Error> {
        match &mut self.0.line {
            Line::Peer(session) => Ok(session.receive_stream(sink, max_bytes, progress).await?),
            Line::Checkpoint(download) => {
                download.receive_stream(sink, max_bytes, progress).await.map_err(|failure| match failure {
                    Received::Store(failure) => failure.into(),
                    Received::Sink(source) => spothop_transfer::Error::Sink { source: Arc::new(source) }.into(),
                })
            }
            Line::Store(_) => Err(self.0.out_of_turn("a stream")),
        }
    }

    /// As [`Session::receive_extents`].
    ///
    /// # Errors
    /// See [`Bulk::send_stream`].
    pub async fn receive_extents(
        self,
        sink: Arc<dyn ExtentSink>,
        limits: &Limits,
        progress: Progress<'_>,
    ) -> Result<Stats, Error> {
        match &mut self.0.line {
            Line::Peer(session) => Ok(session.receive_extents(sink, limits, progress).await?),
            Line::Checkpoint(download) => Ok(download.receive_extents(sink, limits, progress).await?),
            Line::Store(_) => Err(self.0.out_of_turn("pages")),
        }
    }

    /// As [`Session::receive_files`].
    ///
    /// # Errors
    /// See [`Bulk::send_stream`].
    pub async fn receive_files(self, root: &Path, limits: &Limits, progress: Progress<'_>) -> Result<Stats, Error> {
        match &mut self.0.line {
            Line::Peer(session) => Ok(session.receive_files(root, limits, progress).await?),
            Line::Checkpoint(download) => Ok(download.receive_files(root, limits, progress).await?),
            Line::Store(_) => Err(self.0.out_of_turn("files")),
        }
    }
}
