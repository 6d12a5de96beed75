//! Telling others what becomes of this host's containers (`[[notifications]]`).
//!
//! Nothing waits for it: what is told goes into a queue, and each message to each receiver is a task of its own that tries until it is
//! heard, is told that nobody wants it, or an hour is over. A message has one id however often it is sent. What has not been heard when the
//! daemon ends is not told later.

mod delivery;
mod message;

use std::sync::Arc;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tracing::warn;

use self::delivery::Courier;
pub(crate) use self::message::Message;
use crate::api::{Event, EventKind};
use crate::config::Config;
use crate::journal::Journal;
use crate::migration::{Side, chain, unpanicked};

pub use self::delivery::DeliveryError;

/// Messages that wait to be handed on, which takes no time.
const QUEUE: usize = 256;

/// The queue of what is to be told.
#[derive(Debug, Clone)]
pub struct Notifier(Option<mpsc::Sender<Message>>);

impl Notifier {
    /// Reads the receivers' certificates, and begins to tell. Nothing is done where nobody wants to hear anything.
    ///
    /// # Errors
    /// [`DeliveryError`]: an authority's file cannot be used.
    pub fn start(config: &Config) -> Result<Self, DeliveryError> {
        if config.notifications.is_empty() {
            return Ok(Self(None));
        }
        let couriers: Vec<Arc<Courier>> = config
            .notifications
            .iter()
            .map(|receiver| Courier::new(receiver.clone()).map(Arc::new))
            .collect::<Result<_, _>>()?;
        let (sender, queue) = mpsc::channel(QUEUE);
        tokio::spawn(hand_on(couriers, queue));
        Ok(Self(Some(sender)))
    }

    /// Tells it to everybody who wants to hear it, at some time.
    pub(crate) fn tell(&self, message: Message) {
        if let Some(queue) = &self.0
            && let Err(error) = queue.try_send(message)
        {
            warn!(%error, "something is not told");
        }
    }

    /// Tells how migrations end, for as long as the daemon runs.
    pub(crate) async fn follow(self, host: String, journal: Arc<Journal>, mut events: Receiver<Event>) {
        if self.0.is_none() {
            return;
        }
        loop {
            match events.recv().await {
                Ok(Event { migration, side: Side::Source, what: EventKind::Finished { .. }, .. }) => {
                    let (journal, id) = (Arc::clone(&journal), migration.clone());
                    match unpanicked(spawn_blocking(move || journal.migration(&id, Side::Source)).await) {
                        Ok(Some(view)) => self.tell(Message::ended(&host, &view)),
                        Ok(None) => {}
                        Err(failure) => {
                            warn!(migration, error = chain(&failure), "the end of this migration is not told");
                        }
                    }
                }
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => warn!(missed, "some ends of migrations may not be told"),
                Err(RecvError::Closed) => return,
            }
        }
    }
}

async fn hand_on(couriers: Vec<Arc<Courier>>, mut queue: mpsc::Receiver<Message>) {
    while let Some(message) = queue.recv().await {
        let message = Arc::new(message);
        for courier in couriers.iter().filter(|courier| courier.wants(message.kind())) {
            courier.send(&message);
        }
    }
}

#[cfg(test)]
mod tests;
