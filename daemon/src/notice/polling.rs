//! What sources that ask again and again have in common: when to ask, what to say of trouble, and which answers are news.

use std::collections::HashSet;
use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::complaint::Complaint;
use super::metadata::Error;
use super::{Notice, NoticeEvent};

/// Something that can be asked which notices are in force.
pub(super) trait Poll: Send {
    /// Every notice that the cloud gives now. An error is no answer: it neither begins nor ends a notice.
    fn poll(&mut self) -> impl Future<Output = Result<Vec<Notice>, Error>> + Send;
}

/// Asks once in `period` until nobody listens any more, and tells what has changed.
pub(super) async fn poll_forever(
    mut source: impl Poll,
    service: &'static str,
    period: Duration,
    events: mpsc::Sender<NoticeEvent>,
) {
    let poll = async {
        let mut trouble = Trouble::with(service);
        let mut in_force = InForce::default();
        let mut ticks = interval(period);
        // After a slow answer the next poll is one period away; there is nothing to be caught up on.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let outcome = source.poll().await;
            trouble.report(outcome.as_ref().err());
            let Ok(notices) = outcome else { continue };
            if in_force.tell(notices, &events).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = events.closed() => {}
        () = poll => {}
    }
}

/// The log lines about a service that does not answer as it should.
#[derive(Debug)]
pub(super) struct Trouble {
    service: &'static str,
    complaint: Complaint,
}

impl Trouble {
    /// None so far.
    pub(super) fn with(service: &'static str) -> Self {
        Self { service, complaint: Complaint::default() }
    }

    /// Counts what a request has come to, and writes what is worth it.
    pub(super) fn report(&mut self, error: Option<&Error>) {
        let service = self.service;
        match error {
            None => {
                if let Some(polls) = self.complaint.succeeded() {
                    tracing::info!("the metadata service of {service} answers again after {polls} failed polls");
                }
            }
            Some(error) if self.complaint.failed(Instant::now()) => {
                tracing::warn!("notices of {service} cannot be read, asking on: {error}");
            }
            Some(_) => {}
        }
    }
}

/// The notices that a source has told of and not cancelled.
#[derive(Debug, Default)]
pub(super) struct InForce {
    notices: Vec<Notice>,
}

impl InForce {
    /// The oldest of them.
    pub(super) fn first(&self) -> Option<&Notice> {
        self.notices.first()
    }

    /// Sends what differs between the notices given `now` and those given before. One that repeats another of the same id is no news
    /// unless it names another time.
    ///
    /// # Errors
    /// Nobody listens any more.
    pub(super) async fn tell(
        &mut self,
        now: Vec<Notice>,
        events: &mpsc::Sender<NoticeEvent>,
    ) -> Result<(), mpsc::error::SendError<NoticeEvent>> {
        for event in self.changed(now) {
            events.send(event).await?;
        }
        Ok(())
    }

    /// New notices come before the ends of those that they replace, so that at no moment the host seems to be safe.
    fn changed(&mut self, now: Vec<Notice>) -> Vec<NoticeEvent> {
        let said: HashSet<String> = now.iter().map(|notice| notice.id.clone()).collect();
        let mut events = Vec::new();
        for notice in now {
            let known = self.notices.iter_mut().find(|known| known.id == notice.id);
            if known.as_ref().is_some_and(|known| notice.deadline.is_none() || known.deadline == notice.deadline) {
                continue;
            }
            match notice.lead_time(notice.received) {
                Some(left) => tracing::warn!(notice = notice.id, "notice: {notice}, in {:.0} s", left.as_secs_f64()),
                None => tracing::warn!(notice = notice.id, "notice: {notice}"),
            }
            match known {
                Some(known) => *known = notice.clone(),
                None => self.notices.push(notice.clone()),
            }
            events.push(NoticeEvent::Noticed(notice));
        }
        let (still, over) = std::mem::take(&mut self.notices).into_iter().partition(|known| said.contains(&known.id));
        self.notices = still;
        for notice in over {
            tracing::warn!(notice = notice.id, "notice withdrawn: {notice}");
            events.push(NoticeEvent::Cancelled { id: notice.id });
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notice::{Action, Certainty, Cloud};

    fn notice(id: &str, deadline: &str) -> Notice {
        Notice {
            id: id.to_owned(),
            cloud: Cloud::Azure,
            instance: "vm".to_owned(),
            action: Action::Stop,
            certainty: Certainty::Certain,
            deadline: Some(deadline.parse().unwrap()),
            received: "2026-01-01T00:00:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn only_what_differs_is_told_and_ends_come_last() {
        let mut in_force = InForce::default();
        let (first, later) = (notice("azure:1:stop", "2026-01-01T00:01:00Z"), "2026-01-01T00:09:00Z");
        assert_eq!(in_force.changed(vec![first.clone()]), [NoticeEvent::Noticed(first.clone())]);
        assert_eq!(in_force.changed(vec![first.clone()]), [], "a repetition");
        assert_eq!(in_force.changed(vec![Notice { deadline: None, ..first.clone() }]), [], "it has begun");
        let sooner = notice("azure:1:stop", "2026-01-01T00:00:30Z");
        assert_eq!(in_force.changed(vec![sooner.clone()]), [NoticeEvent::Noticed(sooner)]);
        let second = notice("azure:2:stop", later);
        let ended = NoticeEvent::Cancelled { id: "azure:1:stop".to_owned() };
        assert_eq!(in_force.changed(vec![second.clone()]), [NoticeEvent::Noticed(second.clone()), ended]);
        assert_eq!(in_force.changed(vec![second.clone(), second]), []);
        assert_eq!(in_force.changed(Vec::new()), [NoticeEvent::Cancelled { id: "azure:2:stop".to_owned() }]);
    }
}
