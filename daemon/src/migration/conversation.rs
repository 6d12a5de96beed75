//! Requests and answers over a session.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use spothop_transfer::Session;
use tracing::warn;

use super::Error;
use super::message::{Answer, Request};

/// One session with another daemon.
#[derive(Debug)]
pub struct Conversation {
    session: Session,
}

impl Conversation {
    /// Speaks over `session`.
    #[must_use]
    pub fn new(session: Session) -> Self {
        Self { session }
    }

    /// The other host's name, as its certificate has it.
    #[must_use]
    pub fn peer(&self) -> &str {
        self.session.peer_name()
    }

    /// The bulk side, for what the last request announced.
    pub fn bulk(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Says `request`; the answer is to be had from [`Conversation::answer`].
    ///
    /// # Errors
    /// The session's.
    pub async fn say(&mut self, request: &Request) -> Result<(), Error> {
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
        let heard = tokio::time::timeout(limit, self.session.recv()).await;
        let message = heard.map_err(|_| Error::TimedOut { step, limit })??;
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
        match self.session.recv().await? {
            Some(message) => self.parse(&message, "a request").map(Some),
            None => Ok(None),
        }
    }

    /// Answers the last request.
    ///
    /// # Errors
    /// The session's.
    pub async fn reply(&mut self, answer: &Answer) -> Result<(), Error> {
        self.send(answer).await
    }

    /// Says goodbye.
    ///
    /// # Errors
    /// The session's.
    pub async fn close(self) -> Result<(), Error> {
        Ok(self.session.close().await?)
    }

    /// The error for an answer that does not fit the request.
    #[must_use]
    pub fn out_of_turn(&self, step: &'static str) -> Error {
        Error::OutOfTurn { peer: self.peer().to_owned(), step }
    }

    async fn send(&mut self, message: &impl Serialize) -> Result<(), Error> {
        // Fails only for maps whose keys are no strings, of which there are none in a message.
        let bytes = serde_json::to_vec(message).map_err(|_| self.out_of_turn("a message"))?;
        Ok(self.session.send(&bytes).await?)
    }

    fn parse<T: DeserializeOwned>(&self, message: &[u8], step: &'static str) -> Result<T, Error> {
        serde_json::from_slice(message).map_err(|error| {
            // What it was may be a secret; where it goes wrong is none.
            warn!(peer = self.peer(), %error, step, "a message makes no sense here");
            self.out_of_turn(step)
        })
    }
}
