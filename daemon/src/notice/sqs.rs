//! Notices that EventBridge has put into a queue (`[notice.sqs]`).
//!
//! | message | what becomes of it |
//! |---|---|
//! | about this host alone | deleted once the notice is accepted |
//! | about this host and others | as those about others |
//! | about others, or something else | `others = "keep"`: handed back at once; `"delete"`: deleted |
//! | a maintenance that is far away | handed back until it is near, or for the twelve hours that SQS allows |
//! | nonsense | left alone: it comes again after the queue's visibility timeout, until the queue's own policy puts it aside |
//!
//! A notice that was accepted is not in the queue any more. A daemon that restarts hears of it from the metadata service.

use std::error::Error;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use procfs::CurrentSI as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::complaint::Complaint;
use super::eventbridge::{Reading, Said, read};
use super::{NoticeEvent, NoticeSource};
use crate::config::Others;
use crate::provider::Instance;

/// "The maximum is 12 hours" (ChangeMessageVisibility in the SQS API Reference).
const LONGEST_WAIT: Duration = Duration::from_secs(12 * 3600);

/// A message of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it says.
    pub body: String,
    /// By which the queue knows who has it.
    pub receipt: String,
}

/// What is needed of a queue.
pub trait Queue: Send + Sync + 'static {
    /// Why it did not do it.
    type Error: Error + Send;

    /// Waits for messages, for some seconds; there may be none.
    fn receive(&self) -> impl Future<Output = Result<Vec<Message>, Self::Error>> + Send;

    /// Takes a message out.
    fn delete(&self, message: &Message) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Lets others have it, `after` from now.
    fn hand_back(&self, message: &Message, after: Duration) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

#[cfg(feature = "aws")]
impl Queue for spothop_aws::Queue {
    type Error = spothop_aws::Error;

    async fn receive(&self) -> Result<Vec<Message>, Self::Error> {
        let messages = spothop_aws::Queue::receive(self).await?;
        Ok(messages.into_iter().map(|message| Message { body: message.body, receipt: message.receipt }).collect())
    }

    async fn delete(&self, message: &Message) -> Result<(), Self::Error> {
        spothop_aws::Queue::delete(self, &message.receipt).await
    }

    async fn hand_back(&self, message: &Message, after: Duration) -> Result<(), Self::Error> {
        self.set_visibility(&message.receipt, after).await
    }
}

/// How messages are dealt with, and how often is asked.
#[derive(Debug, Clone, Copy)]
pub struct SqsOptions {
    /// What becomes of messages about others.
    pub others: Others,
    /// A scheduled maintenance becomes a notice so long before it begins.
    pub maintenance_lead: Duration,
    /// Between two questions when the queue does not answer, or gave what was handed back. Default 2 s.
    pub pause: Duration,
}

impl Default for SqsOptions {
    fn default() -> Self {
        let maintenance_lead = crate::config::AwsNotice::default().maintenance_lead;
        Self { others: Others::default(), maintenance_lead, pause: Duration::from_secs(2) }
    }
}

/// The region of the queue at this URL: `sqs.REGION.amazonaws.com`, or (of VPC endpoints and imitations) what `AWS_REGION` says.
#[cfg(feature = "aws")]
#[must_use]
pub fn region(url: &str) -> Option<String> {
    let host = url.split("://").nth(1)?.split('/').next()?;
    let mut parts = host.split('.').skip_while(|part| *part != "sqs" && *part != "sqs-fips");
    parts.next();
    parts.next().map(str::to_owned).or_else(|| std::env::var("AWS_REGION").ok())
}

/// Reads a queue.
pub struct SqsSource<Q> {
    queue: Q,
    instance: Arc<OnceLock<Instance>>,
    options: SqsOptions,
    booted: Timestamp,
    complaint: Complaint,
}

impl<Q: Queue> SqsSource<Q> {
    /// A source that asks once `instance` is known: until then nobody can tell what is for this host.
    #[must_use]
    pub fn new(queue: Q, instance: Arc<OnceLock<Instance>>, options: SqsOptions) -> Self {
        let stat = procfs::KernelStats::current().ok();
        let booted = stat.and_then(|stat| Timestamp::from_second(i64::try_from(stat.btime).ok()?).ok());
        let booted = booted.unwrap_or(Timestamp::MIN);
        Self { queue, instance, options, booted, complaint: Complaint::default() }
    }

    async fn poll_forever(&mut self, events: &mpsc::Sender<NoticeEvent>) {
        let instance = loop {
            match self.instance.get() {
                Some(instance) => break instance.clone(),
                None => sleep(self.options.pause).await,
            }
        };
        loop {
            let messages = match self.queue.receive().await {
                Ok(messages) => messages,
                Err(error) => {
                    self.complain("the queue of notices cannot be read, asking on", &error);
                    sleep(self.options.pause).await;
                    continue;
                }
            };
            if let Some(times) = self.complaint.succeeded() {
                tracing::info!("the queue of notices answers again after {times} failures");
            }
            let mut handed_back = false;
            for message in messages {
                let reading = Reading {
                    instance: instance.clone(),
                    now: Timestamp::now(),
                    booted: self.booted,
                    lead: self.options.maintenance_lead,
                };
                match self.take(&message, &reading, events).await {
                    Ok(Done::HandedBack) => handed_back = true,
                    Ok(Done::Dealt) => {}
                    Ok(Done::NobodyListens) => return,
                    Err(error) => self.complain("a message of the queue of notices comes again", &error),
                }
            }
            if handed_back {
                // Or this host would have it again before its own does.
                sleep(self.options.pause).await;
            }
        }
    }

    async fn take(
        &self,
        message: &Message,
        reading: &Reading,
        events: &mpsc::Sender<NoticeEvent>,
    ) -> Result<Done, Q::Error> {
        let is_ours = match read(&message.body, reading) {
            Ok(Said::Event { event, alone }) => {
                if events.send(event).await.is_err() {
                    return Ok(Done::NobodyListens);
                }
                alone
            }
            Ok(Said::Nothing) => true,
            Ok(Said::Others) => false,
            Ok(Said::NotYet(wait)) => {
                self.queue.hand_back(message, wait.min(LONGEST_WAIT)).await?;
                return Ok(Done::Dealt);
            }
            Err(reason) => {
                let body: String = message.body.chars().take(200).collect();
                tracing::warn!(reason, body, "a message of the queue of notices makes no sense; it is left there");
                return Ok(Done::Dealt);
            }
        };
        if is_ours || self.options.others == Others::Delete {
            self.queue.delete(message).await?;
            return Ok(Done::Dealt);
        }
        self.queue.hand_back(message, Duration::ZERO).await?;
        Ok(Done::HandedBack)
    }

    fn complain(&mut self, what: &str, error: &Q::Error) {
        if self.complaint.failed(Instant::now()) {
            tracing::warn!("{what}: {error}");
        }
    }
}

/// What became of a message.
enum Done {
    Dealt,
    HandedBack,
    NobodyListens,
}

impl<Q: Queue> NoticeSource for SqsSource<Q> {
    fn name(&self) -> &'static str {
        "sqs"
    }

    fn run(mut self: Box<Self>, events: mpsc::Sender<NoticeEvent>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            tokio::select! {
                () = events.closed() => {}
                () = self.poll_forever(&events) => {}
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::super::eventbridge::tests::{instance, interruption};
    use super::*;

    /// Gives what it has, one answer after the other, and says what it was told to do.
    struct Scripted {
        answers: Mutex<VecDeque<Result<Vec<Message>, std::io::Error>>>,
        told: mpsc::UnboundedSender<String>,
    }

    impl Queue for Scripted {
        type Error = std::io::Error;

        async fn receive(&self) -> Result<Vec<Message>, Self::Error> {
            let answer = self.answers.lock().unwrap().pop_front();
            match answer {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        }

        async fn delete(&self, message: &Message) -> Result<(), Self::Error> {
            let _ = self.told.send(format!("delete {}", message.receipt));
            Ok(())
        }

        async fn hand_back(&self, message: &Message, after: Duration) -> Result<(), Self::Error> {
            let _ = self.told.send(format!("{} in {} s", message.receipt, after.as_secs()));
            Ok(())
        }
    }

    fn message(receipt: &str, body: String) -> Message {
        Message { body, receipt: receipt.to_owned() }
    }

    #[tokio::test]
    async fn ours_are_deleted_others_handed_back_and_nonsense_left_alone() {
        let now = Timestamp::now().to_string();
        let (ours, theirs) = (instance().id().to_owned(), "i-0fedcba0987654321");
        for (others, word) in [(Others::Keep, "theirs in 0 s"), (Others::Delete, "delete theirs")] {
            let (told, mut heard) = mpsc::unbounded_channel();
            let answers = VecDeque::from([
                Err(std::io::Error::other("throttled")),
                Ok(vec![
                    message("nonsense", "<html>".to_owned()),
                    message("theirs", interruption(theirs, "terminate", &now)),
                ]),
                Ok(vec![message("ours", interruption(&ours, "terminate", &now))]),
            ]);
            let queue = Scripted { answers: Mutex::new(answers), told };
            let known = Arc::new(OnceLock::from(instance()));
            let options = SqsOptions { others, pause: Duration::from_millis(1), ..SqsOptions::default() };
            let (events, mut receiver) = mpsc::channel(4);
            tokio::spawn(Box::new(SqsSource::new(queue, known, options)).run(events));
            let patience = Duration::from_secs(20);
            let event = tokio::time::timeout(patience, receiver.recv()).await.expect("an event in time");
            let Some(NoticeEvent::Noticed(notice)) = event else { panic!("{event:?}") };
            assert_eq!(notice.id, format!("aws:{ours}:terminate"));
            assert_eq!(heard.recv().await.as_deref(), Some(word));
            assert_eq!(heard.recv().await.as_deref(), Some("delete ours"));
        }
    }
}
