//! What the tests of all sources do with a metadata service that answers by a script.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use wiremock::{Request, Respond, ResponseTemplate};

use super::{Notice, NoticeEvent};

/// Ten times as long as anything here takes on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Answers the n-th request with the n-th of its answers and then with the last, and tells the test of each.
pub(super) struct Script {
    answers: Vec<ResponseTemplate>,
    asked: mpsc::UnboundedSender<()>,
    count: AtomicUsize,
}

impl Respond for Script {
    fn respond(&self, _: &Request) -> ResponseTemplate {
        let n = self.count.fetch_add(1, Ordering::Relaxed);
        let _ = self.asked.send(());
        self.answers[n.min(self.answers.len() - 1)].clone()
    }
}

pub(super) fn script(answers: Vec<ResponseTemplate>) -> (Script, mpsc::UnboundedReceiver<()>) {
    let (asked, heard) = mpsc::unbounded_channel();
    (Script { answers, asked, count: AtomicUsize::new(0) }, heard)
}

pub(super) async fn next(events: &mut mpsc::Receiver<NoticeEvent>) -> NoticeEvent {
    tokio::time::timeout(PATIENCE, events.recv()).await.expect("an event in time").expect("a running source")
}

pub(super) async fn noticed(events: &mut mpsc::Receiver<NoticeEvent>) -> Notice {
    match next(events).await {
        NoticeEvent::Noticed(notice) => notice,
        NoticeEvent::Cancelled { id } => panic!("{id} was cancelled"),
    }
}

pub(super) async fn asked(heard: &mut mpsc::UnboundedReceiver<()>, times: usize) {
    for _ in 0..times {
        tokio::time::timeout(PATIENCE, heard.recv()).await.expect("a poll in time");
    }
}

/// How often the service was asked since the last time.
pub(super) fn drain(heard: &mut mpsc::UnboundedReceiver<()>) -> usize {
    std::iter::from_fn(|| heard.try_recv().ok()).count()
}
