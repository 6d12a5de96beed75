//! Clouds that put the time at which a spot instance ends somewhere, and nothing else: Alibaba and Tencent.

#[cfg(test)]
mod tests;

use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;

use super::metadata::{Dialect, Error, Service, identifier};
use super::polling::{Poll, poll_forever};
use super::{Action, Certainty, Cloud, Notice, NoticeEvent, NoticeSource, SourceError, UNKNOWN_INSTANCE};

/// These clouds give minutes. A time that is further from now, one way or the other, is a misunderstanding (of its zone, or the clock
/// is wrong): an evacuation in great haste, or without any, would be worse than one without a deadline.
const PLAUSIBLE: SignedDuration = SignedDuration::from_hours(1);

/// Where a cloud puts the time, and how it writes it.
pub(super) struct Place {
    pub(super) cloud: Cloud,
    /// The source's.
    pub(super) name: &'static str,
    pub(super) dialect: &'static Dialect,
    /// Path of the instance's id.
    pub(super) instance_id: &'static str,
    /// Path of the time; 404 or nothing unless the instance is to end.
    pub(super) termination_time: &'static str,
    /// Reads the time; the error says what is wrong with it.
    pub(super) parse: fn(&str) -> Result<Timestamp, String>,
}

/// Where to ask, how often, and what the service does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TerminationOptions {
    /// Bases of the service's addresses.
    pub(super) endpoints: Vec<String>,
    /// Time from one poll to the next.
    pub(super) poll_interval: Duration,
    /// What a reclaimed instance comes to: [`Action::Stop`] or [`Action::Terminate`].
    pub(super) reclaim: Action,
    /// Time that one request may take.
    pub(super) request_timeout: Duration,
}

/// Polls the time of one place.
pub(super) struct TerminationSource {
    poller: Poller,
    poll_interval: Duration,
}

struct Poller {
    place: &'static Place,
    service: Service,
    reclaim: Action,
    instance: Option<String>,
    /// The notice in force.
    current: Option<Notice>,
}

impl TerminationSource {
    /// A source that has asked nothing yet.
    ///
    /// # Errors
    /// [`SourceError`] for addresses that cannot be asked, and for an interval of zero.
    pub(super) fn new(place: &'static Place, options: &TerminationOptions) -> Result<Self, SourceError> {
        if options.poll_interval.is_zero() {
            return Err(SourceError::PollInterval { service: place.dialect.service });
        }
        let service = Service::new(place.dialect, &options.endpoints, options.request_timeout)?;
        Ok(Self {
            poller: Poller { place, service, reclaim: options.reclaim, instance: None, current: None },
            poll_interval: options.poll_interval,
        })
    }
}

impl NoticeSource for TerminationSource {
    fn name(&self) -> &'static str {
        self.poller.place.name
    }

    fn run(self: Box<Self>, events: mpsc::Sender<NoticeEvent>) -> BoxFuture<'static, ()> {
        let service = self.poller.place.dialect.service;
        Box::pin(poll_forever(self.poller, service, self.poll_interval, events))
    }
}

impl Poll for Poller {
    async fn poll(&mut self) -> Result<Vec<Notice>, Error> {
        let path = self.place.termination_time;
        let answer = self.service.get(path).await?;
        if self.instance.is_none() {
            // Asked second, and its failure is passed over, because a notice is worth more than a name.
            let id = self.service.get(self.place.instance_id).await.ok().flatten();
            self.instance = id.and_then(|answer| identifier(&answer.body));
        }
        let text = answer.as_ref().map(|answer| answer.body.trim()).unwrap_or_default();
        if text.is_empty() {
            self.current = None;
        } else {
            let time = (self.place.parse)(text).map_err(|reason| self.service.malformed(path, text, reason))?;
            if self.current.is_none() {
                self.current = Some(self.notice(time, Timestamp::now()));
            }
        }
        Ok(self.current.iter().cloned().collect())
    }
}

impl Poller {
    fn notice(&self, time: Timestamp, now: Timestamp) -> Notice {
        let instance = self.instance.as_deref().unwrap_or(UNKNOWN_INSTANCE);
        let plausible = time.duration_since(now).abs() <= PLAUSIBLE;
        if !plausible {
            tracing::warn!(
                "{} ends this instance at {time}, which cannot be meant: check the clock",
                self.place.dialect.service
            );
        }
        Notice {
            id: format!("{}:{instance}:{}", self.place.cloud, self.reclaim),
            cloud: self.place.cloud,
            instance: instance.to_owned(),
            action: self.reclaim,
            certainty: Certainty::Certain,
            deadline: plausible.then_some(time),
            received: now,
        }
    }
}
