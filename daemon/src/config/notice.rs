//! `[notice]`: where a host hears that it will be taken away.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use super::units;
use crate::notice::Cloud;

/// `[notice]`, and one table per cloud.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Notice {
    /// What to do when a cloud says that it is likelier than usual that it takes this host away (AWS's rebalance recommendation).
    /// Default: `prepare`.
    pub likely: Likely,
    /// With `likely = "evacuate"`: containers do not leave because of that again within this time, nor when one has come here within it,
    /// so that none goes to and fro. Default: 30 min.
    #[serde(deserialize_with = "super::positive_duration")]
    pub likely_cooldown: Duration,
    /// Which cloud this host is in. Default: found out, by which metadata service answers.
    pub cloud: CloudChoice,
    /// Whether a shutdown of this machine moves its containers first. Default: in Google's cloud, whose preemption is one.
    pub shutdown: Shutdown,
    /// Amazon EC2's instance metadata service.
    pub aws: AwsNotice,
    /// A queue of Amazon SQS into which EventBridge puts what happens to instances.
    pub sqs: SqsNotice,
    /// Google Compute Engine's metadata server.
    pub gcp: GcpNotice,
    /// Azure's scheduled events.
    pub azure: AzureNotice,
    /// Alibaba Cloud's metadata service.
    #[serde(deserialize_with = "alibaba")]
    pub alibaba: SpotNotice,
    /// Tencent Cloud's metadata service.
    #[serde(deserialize_with = "tencent")]
    pub tencent: SpotNotice,
}

impl Default for Notice {
    fn default() -> Self {
        Self {
            likely: Likely::default(),
            likely_cooldown: Duration::from_secs(30 * 60),
            cloud: CloudChoice::default(),
            shutdown: Shutdown::default(),
            aws: AwsNotice::default(),
            sqs: SqsNotice::default(),
            gcp: GcpNotice::default(),
            azure: AzureNotice::default(),
            alibaba: SpotNotice::at(&["http://100.100.100.200"]),
            tencent: SpotNotice::at(&["http://169.254.0.23", "http://metadata.tencentyun.com"]),
        }
    }
}

/// `[notice.sqs]`. Credentials, profiles and endpoints are those of AWS's own SDK.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SqsNotice {
    /// The queue's URL, as AWS shows it. Default: none, and nothing is asked.
    #[serde(deserialize_with = "queue_url")]
    pub queue_url: Option<String>,
    /// What becomes of messages about other instances. Default: `keep`.
    pub others: Others,
}

/// What becomes of messages that are not for this host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Others {
    /// They are handed back at once, for the hosts that they are about. Every host that looks at a message counts as an attempt to the
    /// queue's dead-letter policy.
    #[default]
    Keep,
    /// They are deleted: this queue is this host's alone.
    Delete,
}

/// What to do about a notice that is only likely to come true.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Likely {
    /// Show it, and go on.
    Ignore,
    /// Take no more containers (but from hosts that are taken away for certain), and have the hosts to which this host's would go get
    /// their images.
    #[default]
    Prepare,
    /// Move all containers away, without a deadline.
    Evacuate,
}

/// `[notice] cloud`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CloudChoice {
    /// All are asked until one answers.
    #[default]
    Auto,
    /// Amazon EC2.
    Aws,
    /// Google Compute Engine.
    Gcp,
    /// Microsoft Azure.
    Azure,
    /// Alibaba Cloud ECS.
    Alibaba,
    /// Tencent Cloud CVM.
    Tencent,
    /// No cloud: nothing is asked.
    None,
}

impl CloudChoice {
    /// The cloud that is named.
    #[must_use]
    pub fn named(self) -> Option<Cloud> {
        match self {
            Self::Auto | Self::None => None,
            Self::Aws => Some(Cloud::Aws),
            Self::Gcp => Some(Cloud::Gcp),
            Self::Azure => Some(Cloud::Azure),
            Self::Alibaba => Some(Cloud::Alibaba),
            Self::Tencent => Some(Cloud::Tencent),
        }
    }
}

/// `[notice] shutdown`: what a shutdown of this machine (`systemctl poweroff`, a reboot, the power button, which clouds press too) is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shutdown {
    /// As `evacuate` in Google's cloud, where a preemption begins with the power button; elsewhere as `ignore`.
    #[default]
    Auto,
    /// A notice: the shutdown waits until the containers are gone, as long as logind's `InhibitDelayMaxSec` allows.
    Evacuate,
    /// Nothing: containers stop with the machine.
    Ignore,
}

/// What becomes of a reclaimed instance, where the cloud does not say so to the instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reclaim {
    /// It is switched off and may be started again. The safe assumption.
    #[default]
    Stop,
    /// It is deleted. Only then may a target that has lost this host run its containers when the deadline is past.
    Delete,
}

/// `[notice.gcp]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GcpNotice {
    /// Base URLs, tried in this order until one answers. Default: the documented address and name.
    #[serde(deserialize_with = "http_urls")]
    pub endpoints: Vec<String>,
    /// Time from a preemption notice to the end of the VM, 0 to 120 s. Default: 30 s; 120 s for VMs that were made with
    /// `--preemption-notice-duration=120s`. The server does not say.
    #[serde(deserialize_with = "up_to_two_minutes")]
    pub notice_period: Duration,
    /// The VM's `--instance-termination-action`. Default: `"stop"`, as Google's. The server does not say.
    pub reclaim: Reclaim,
    /// Containers leave so long before the window of a maintenance that Google has planned, which it shows days ahead. Default: 10 min.
    #[serde(deserialize_with = "super::positive_duration")]
    pub maintenance_lead: Duration,
}

impl Default for GcpNotice {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://169.254.169.254".to_owned(), "http://metadata.google.internal".to_owned()],
            notice_period: Duration::from_secs(30),
            reclaim: Reclaim::default(),
            maintenance_lead: Duration::from_secs(10 * 60),
        }
    }
}

/// `[notice.azure]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AzureNotice {
    /// Base URLs, tried in this order until one answers. Default: the documented address.
    #[serde(deserialize_with = "http_urls")]
    pub endpoints: Vec<String>,
    /// Time between two polls. Default: 1 s, as Azure recommends; a preemption is told 30 s ahead at best.
    #[serde(deserialize_with = "super::positive_duration")]
    pub poll_interval: Duration,
}

impl Default for AzureNotice {
    fn default() -> Self {
        Self { endpoints: vec!["http://169.254.169.254".to_owned()], poll_interval: Duration::from_secs(1) }
    }
}

/// `[notice.alibaba]` and `[notice.tencent]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpotNotice {
    /// Base URLs, tried in this order until one answers. Default: the documented addresses of the cloud
    /// (`http://100.100.100.200`; `http://169.254.0.23` and `http://metadata.tencentyun.com`).
    pub endpoints: Vec<String>,
    /// Time between two polls. Default: 1 s.
    pub poll_interval: Duration,
    /// What becomes of the instance. Default: `"stop"`. The service does not say.
    pub reclaim: Reclaim,
}

impl SpotNotice {
    fn at(endpoints: &[&str]) -> Self {
        Self {
            endpoints: endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect(),
            poll_interval: Duration::from_secs(1),
            reclaim: Reclaim::default(),
        }
    }
}

/// A [`SpotNotice`] as written: what its defaults are depends on whose it is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SpotTable {
    #[serde(default, deserialize_with = "some_http_urls")]
    endpoints: Option<Vec<String>>,
    #[serde(default, deserialize_with = "some_positive_duration")]
    poll_interval: Option<Duration>,
    reclaim: Option<Reclaim>,
}

impl SpotTable {
    fn over(self, default: SpotNotice) -> SpotNotice {
        SpotNotice {
            endpoints: self.endpoints.unwrap_or(default.endpoints),
            poll_interval: self.poll_interval.unwrap_or(default.poll_interval),
            reclaim: self.reclaim.unwrap_or(default.reclaim),
        }
    }
}

fn alibaba<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SpotNotice, D::Error> {
    Ok(SpotTable::deserialize(deserializer)?.over(Notice::default().alibaba))
}

fn tencent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SpotNotice, D::Error> {
    Ok(SpotTable::deserialize(deserializer)?.over(Notice::default().tencent))
}

/// `[notice.aws]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AwsNotice {
    /// Whether to ask at all. Default: yes; on a machine that is not EC2 the service does not answer and nothing happens.
    pub enabled: bool,
    /// Base URLs, tried in this order until one answers. Default: the documented IPv4 and IPv6 link-local addresses.
    #[serde(deserialize_with = "http_urls")]
    pub endpoints: Vec<String>,
    /// Time between two polls. Default: 1 s; AWS recommends every 5 s, and the notice is only 120 s at best.
    #[serde(deserialize_with = "super::positive_duration")]
    pub poll_interval: Duration,
    /// Containers leave so long before a maintenance that EC2 has scheduled, which it does days ahead. Default: 10 min.
    #[serde(deserialize_with = "super::positive_duration")]
    pub maintenance_lead: Duration,
    /// The lifecycle hook by which this host's Auto Scaling group waits before it terminates an instance: held while containers leave, completed
    /// when all are gone. Default: none, and the group is told nothing.
    #[serde(deserialize_with = "hook_name")]
    pub lifecycle_hook: Option<String>,
}

impl Default for AwsNotice {
    fn default() -> Self {
        Self {
            enabled: true,
            endpoints: vec!["http://169.254.169.254".to_owned(), "http://[fd00:ec2::254]".to_owned()],
            poll_interval: Duration::from_secs(1),
            maintenance_lead: Duration::from_secs(10 * 60),
            lifecycle_hook: None,
        }
    }
}

/// `[A-Za-z0-9\-_\/]+`, 255 characters at most (`LifecycleHookName` in the Auto Scaling API Reference).
fn hook_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(deserializer)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/');
    match (1..=255).contains(&name.len()) && name.chars().all(plain) {
        true => Ok(Some(name)),
        false => {
            Err(de::Error::custom(format_args!("`{name}` is not the name of a lifecycle hook, such as \"spothop\"")))
        }
    }
}

fn queue_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let url = String::deserialize(deserializer)?;
    let complete = |rest: &str| rest.split('/').filter(|part| !part.is_empty()).count() >= 2;
    match url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")) {
        Some(rest) if complete(rest) => Ok(Some(url)),
        _ => Err(de::Error::custom(format_args!(
            "`{url}` is not the URL of a queue, such as \"https://sqs.eu-central-1.amazonaws.com/123456789012/notices\""
        ))),
    }
}

fn http_urls<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let urls = Vec::<String>::deserialize(deserializer)?;
    // The services are plain HTTP on link-local addresses; TLS to them does not exist.
    match urls.iter().find(|url| !url.starts_with("http://")) {
        Some(url) => Err(de::Error::custom(format_args!(
            "`{url}` is not an http:// URL of a metadata service, such as \"http://169.254.169.254\""
        ))),
        None => Ok(urls),
    }
}

fn some_http_urls<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    http_urls(deserializer).map(Some)
}

fn some_positive_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    super::positive_duration(deserializer).map(Some)
}

fn up_to_two_minutes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let duration = units::duration(deserializer)?;
    if duration > Duration::from_secs(120) {
        return Err(de::Error::custom("must be 120s or less: Google gives no more"));
    }
    Ok(duration)
}
