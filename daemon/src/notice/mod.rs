//! How the host hears that it will be taken away.
//!
//! A [`NoticeSource`] watches one place where a cloud announces that (a metadata service, a queue) and sends
//! [`NoticeEvent`]s. Every source runs as a task of its own and never ends by itself: whatever the cloud answers is
//! logged and asked again.
//!
//! The trait is made for clouds that differ in all that matters here: AWS is polled and names a deadline ([`aws`]);
//! Google Cloud answers a long poll and names none; Azure lists events that concern several machines and waits for an
//! acknowledgement ([`Acknowledge`]); Alibaba and Tencent show a time; a machine is told to shut down by somebody. [`detect`] finds out
//! which of them it is, and is the source of all their notices.

mod alibaba;
pub mod aws;
mod azure;
mod complaint;
pub mod detect;
#[cfg(any(feature = "aws", test))]
mod eventbridge;
mod gcp;
pub mod lifecycle;
pub mod machine;
mod metadata;
mod polling;
mod shutdown;
#[cfg(any(feature = "aws", test))]
pub mod sqs;
mod tencent;
mod termination;
#[cfg(test)]
mod testing;
pub mod webhook;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub(crate) use self::complaint::Complaint;

/// Stands for the instance while a service does not say its id. A notice must not wait for that.
const UNKNOWN_INSTANCE: &str = "unknown";

/// Why a source cannot be made. Everything that can go wrong later is logged and tried again.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is no address to ask.
    #[error("no endpoint of the metadata service of {service} is configured; name one, or another [notice] cloud")]
    NoEndpoint {
        /// Whose service.
        service: &'static str,
    },
    /// An address is not an `http://` URL.
    #[error("{endpoint:?} is not the http:// address of the metadata service of {service}")]
    Endpoint {
        /// Whose service.
        service: &'static str,
        /// The address as configured.
        endpoint: String,
    },
    /// A poll interval of zero would keep a core busy.
    #[error("the poll interval of the metadata service of {service} must be longer than zero")]
    PollInterval {
        /// Whose service.
        service: &'static str,
    },
    /// The HTTP client could not be set up.
    #[error("cannot set up the HTTP client for the metadata service: {0}")]
    Client(#[from] reqwest::Error),
}

/// Who takes the host away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cloud {
    /// Amazon EC2.
    Aws,
    /// Google Compute Engine.
    Gcp,
    /// Microsoft Azure.
    Azure,
    /// Alibaba Cloud.
    Alibaba,
    /// Tencent Cloud.
    Tencent,
    /// No cloud: the machine itself says that it is shut down.
    Machine,
    /// No cloud: somebody who may has said so by a webhook.
    Webhook,
}

impl fmt::Display for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aws => "aws",
            Self::Gcp => "gcp",
            Self::Azure => "azure",
            Self::Alibaba => "alibaba",
            Self::Tencent => "tencent",
            Self::Machine => "machine",
            Self::Webhook => "webhook",
        })
    }
}

/// What will happen to the host. To its containers it is all the same: they do not run here any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The machine is deleted.
    Terminate,
    /// The machine is switched off and may come back.
    Stop,
    /// The machine's memory is saved and it is switched off. AWS begins at once, without the usual two minutes.
    Hibernate,
    /// The machine is started anew, here or on other hardware; its disks stay.
    Reboot,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "terminate",
            Self::Stop => "stop",
            Self::Hibernate => "hibernate",
            Self::Reboot => "reboot",
        })
    }
}

/// How sure it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Certainty {
    /// It will be taken away: containers leave at once.
    #[default]
    Certain,
    /// It is likelier than usual (AWS's rebalance recommendation): time to prepare, and none to lose containers over.
    Likely,
}

impl fmt::Display for Certainty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certain => "will",
            Self::Likely => "may",
        })
    }
}

/// A cloud's word that this host will be taken away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Which notice this is: `cloud:instance:action` for AWS, otherwise the cloud's own event id after `cloud:`. The same
    /// for every repetition of the notice, also to a daemon that was restarted in between.
    pub id: String,
    /// Who said it.
    pub cloud: Cloud,
    /// The cloud's id of this host.
    pub instance: String,
    /// What will happen.
    pub action: Action,
    /// Whether it will.
    #[serde(default)]
    pub certainty: Certainty,
    /// When, as the first answer that carried this notice said; `None` when the cloud does not say (it may be at once).
    pub deadline: Option<Timestamp>,
    /// When this daemon heard of it, by its own clock.
    pub received: Timestamp,
}

impl Notice {
    /// Time from `now` to the deadline, zero when that has passed; `None` when there is no deadline.
    pub fn lead_time(&self, now: Timestamp) -> Option<Duration> {
        let left = self.deadline?.duration_since(now);
        Some(left.try_into().unwrap_or(Duration::ZERO))
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.cloud, self.certainty, self.action, self.instance)?;
        match self.deadline {
            Some(deadline) => write!(f, " at {deadline}"),
            None if self.certainty == Certainty::Likely => Ok(()),
            None => write!(f, " at a time it does not name"),
        }
    }
}

/// What a source has to tell. For each notice there is one [`Noticed`](Self::Noticed), however often the cloud repeats it (another one
/// only if its deadline is another), and at most one [`Cancelled`](Self::Cancelled) after that. A notice that comes back after its cancellation is a new one,
/// of the same id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoticeEvent {
    /// The host will be taken away.
    Noticed(Notice),
    /// The cloud no longer says so.
    Cancelled {
        /// [`Notice::id`] of the notice that is void.
        id: String,
    },
}

/// A place where a cloud says that it will take this host away.
pub trait NoticeSource: Send {
    /// For log lines: `aws`.
    fn name(&self) -> &'static str;

    /// Watches until the receiver of `events` is dropped, and for no other reason.
    fn run(self: Box<Self>, events: mpsc::Sender<NoticeEvent>) -> BoxFuture<'static, ()>;

    /// The way to tell the cloud that the host is empty, to be asked for before [`run`](Self::run); `None` where a cloud
    /// does not want to know.
    fn acknowledger(&self) -> Option<Arc<dyn Acknowledge>> {
        None
    }
}

/// Tells a cloud that it need not wait for the deadline of a notice.
pub trait Acknowledge: Send + Sync {
    /// Says that nothing on this host needs the time that is left. Best effort: a failure is logged by the implementation,
    /// and the cloud then takes the host at the deadline.
    fn acknowledge(&self, notice: &Notice) -> BoxFuture<'static, ()>;

    /// Says that something here still needs time. Said every few seconds while that is so, until [`acknowledge`](Self::acknowledge); best effort,
    /// like that. Most clouds cannot be asked for time.
    fn hold(&self, _notice: &Notice) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(deadline: Option<&str>) -> Notice {
        Notice {
            id: "aws:i-0:terminate".to_owned(),
            cloud: Cloud::Aws,
            instance: "i-0".to_owned(),
            action: Action::Terminate,
            certainty: Certainty::Certain,
            deadline: deadline.map(|text| text.parse().unwrap()),
            received: "2026-01-01T00:00:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn lead_time_ends_at_zero() {
        let notice = notice(Some("2026-01-01T00:02:00Z"));
        let at = |text: &str| notice.lead_time(text.parse().unwrap());
        assert_eq!(at("2026-01-01T00:00:12Z"), Some(Duration::from_secs(108)));
        assert_eq!(at("2026-01-01T00:02:00Z"), Some(Duration::ZERO));
        assert_eq!(at("2026-01-01T00:03:00Z"), Some(Duration::ZERO));
    }

    #[test]
    fn a_notice_reads_as_a_sentence() {
        let with = notice(Some("2026-01-01T00:02:00Z"));
        assert_eq!(with.to_string(), "aws will terminate i-0 at 2026-01-01T00:02:00Z");
        assert_eq!(notice(None).lead_time(with.received), None);
        assert_eq!(notice(None).to_string(), "aws will terminate i-0 at a time it does not name");
        let likely = Notice { certainty: Certainty::Likely, ..notice(None) };
        assert_eq!(likely.to_string(), "aws may terminate i-0");
    }
}
