//! `[notice]`: where a host hears that it will be taken away.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// `[notice]`: one table per cloud.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Notice {
    /// Amazon EC2's instance metadata service.
    pub aws: AwsNotice,
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
}

impl Default for AwsNotice {
    fn default() -> Self {
        Self {
            enabled: true,
            endpoints: vec!["http://169.254.169.254".to_owned(), "http://[fd00:ec2::254]".to_owned()],
            poll_interval: Duration::from_secs(1),
        }
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
