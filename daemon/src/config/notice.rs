//! `[notice]`: where a host hears that it will be taken away.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// `[notice]`: one table per cloud.
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
    /// Amazon EC2's instance metadata service.
    pub aws: AwsNotice,
    /// A queue of Amazon SQS into which EventBridge puts what happens to instances.
    pub sqs: SqsNotice,
}

impl Default for Notice {
    fn default() -> Self {
        Self {
            likely: Likely::default(),
            likely_cooldown: Duration::from_secs(30 * 60),
            aws: AwsNotice::default(),
            sqs: SqsNotice::default(),
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
}

impl Default for AwsNotice {
    fn default() -> Self {
        Self {
            enabled: true,
            endpoints: vec!["http://169.254.169.254".to_owned(), "http://[fd00:ec2::254]".to_owned()],
            poll_interval: Duration::from_secs(1),
            maintenance_lead: Duration::from_secs(10 * 60),
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
