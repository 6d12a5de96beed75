//! `[inventory]`: where hosts are known from besides `[[peers]]`.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// `[inventory]`: one table per source. Default: none; the hosts are those of `[[peers]]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Inventory {
    /// Hosts that enter themselves into etcd.
    pub etcd: Option<Etcd>,
    /// Instances of Amazon EC2 with a tag.
    pub ec2: Option<Ec2>,
    /// Nodes of a Kubernetes cluster.
    pub kubernetes: Option<Kubernetes>,
}

impl Inventory {
    /// Whether the configuration has a source of this name.
    #[must_use]
    pub fn has(&self, source: &str) -> bool {
        match source {
            "static" => true,
            "etcd" => self.etcd.is_some(),
            "ec2" => self.ec2.is_some(),
            "kubernetes" => self.kubernetes.is_some(),
            _ => false,
        }
    }

    /// Whether hosts may come and go while the daemon runs.
    #[must_use]
    pub fn is_dynamic(&self) -> bool {
        self.etcd.is_some() || self.ec2.is_some() || self.kubernetes.is_some()
    }
}

/// `[inventory.etcd]`. This host enters itself, and finds all others that have.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Etcd {
    /// Base URLs of the members of one etcd cluster (3.4 or later), `http://` or `https://`, tried in turn. No default.
    #[serde(deserialize_with = "urls")]
    pub endpoints: Vec<String>,
    /// What the keys of all hosts begin with. Default: `/spothop/hosts/`.
    #[serde(default = "prefix", deserialize_with = "not_empty")]
    pub prefix: String,
    /// How long a host that is silent stays in etcd: 5 s to 10 minutes. Default: 15 s; it is renewed three times in it.
    #[serde(default = "ttl", deserialize_with = "lease")]
    pub ttl: Duration,
    /// PEM file with the authorities of etcd's certificates; needed for `https://`. Default: none.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// PEM file with this host's certificate for etcd. Default: none.
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// PEM file with that certificate's key. Default: none.
    #[serde(default)]
    pub key: Option<PathBuf>,
}

/// `[inventory.ec2]`. Credentials, profiles and endpoints are those of AWS's own SDK.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ec2 {
    /// The tag that all hosts have, as `KEY=VALUE`, such as `spothop:cluster=prod`. No default.
    pub tag: Tag,
    /// The region, such as `eu-central-1`. No default.
    pub region: String,
    /// The tag whose value is a host's name. An instance without it has its id for a name. Default: `spothop:name`.
    #[serde(default = "name_tag", deserialize_with = "not_empty")]
    pub name_tag: String,
    /// The port on which all hosts listen. Default: 7077.
    #[serde(default = "port")]
    pub port: u16,
    /// Time between two looks. Default: 30 s.
    #[serde(default = "refresh", deserialize_with = "super::positive_duration")]
    pub refresh: Duration,
}

/// A tag of EC2: its key and its value, of which only the value may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Its key, 1 to 128 characters.
    pub key: String,
    /// Its value, 256 characters at most.
    pub value: String,
}

impl<'de> Deserialize<'de> for Tag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // Both lengths, and what is reserved: "Tag your Amazon EC2 resources" in the EC2 User Guide.
        match text.split_once('=') {
            Some((key, value))
                if (1..=128).contains(&key.chars().count())
                    && value.chars().count() <= 256
                    && !key.starts_with("aws:") =>
            {
                Ok(Self { key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err(de::Error::custom(format_args!(
                "`{text}` is not a tag; write KEY=VALUE, such as \"spothop:cluster=prod\""
            ))),
        }
    }
}

/// `[inventory.kubernetes]`. In a pod, an empty table is enough: the rest is what Kubernetes gives to its service account.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kubernetes {
    /// Base URL of the cluster's API. Default: `https://` and what `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT` say.
    pub api: Option<String>,
    /// File with the token that is shown there; read again for every connection. Default: the service account's.
    pub token: PathBuf,
    /// PEM file with the authorities of the API's certificate. Default: the service account's.
    pub ca: PathBuf,
    /// Which nodes are hosts, as a label selector of Kubernetes, such as `spothop=yes`. Default: all.
    pub selector: String,
    /// The port on which all hosts listen. Default: 7077.
    pub port: u16,
}

impl Default for Kubernetes {
    fn default() -> Self {
        let account = PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount");
        Self {
            api: None,
            token: account.join("token"),
            ca: account.join("ca.crt"),
            selector: String::new(),
            port: port(),
        }
    }
}

fn prefix() -> String {
    "/spothop/hosts/".to_owned()
}

fn name_tag() -> String {
    "spothop:name".to_owned()
}

fn ttl() -> Duration {
    Duration::from_secs(15)
}

fn refresh() -> Duration {
    Duration::from_secs(30)
}

fn port() -> u16 {
    super::DEFAULT_PORT
}

fn lease<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let ttl = super::units::duration(deserializer)?;
    if (Duration::from_secs(5)..=Duration::from_secs(600)).contains(&ttl) {
        return Ok(ttl);
    }
    Err(de::Error::custom("must be from 5s to 10m"))
}

fn not_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Err(de::Error::custom("must not be empty")) } else { Ok(text) }
}

fn urls<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let urls = Vec::<String>::deserialize(deserializer)?;
    let is_url = |url: &&String| url.starts_with("http://") || url.starts_with("https://");
    match urls.iter().find(|url| !is_url(url)) {
        Some(url) => {
            Err(de::Error::custom(format_args!("`{url}` is not a URL of etcd, such as \"http://10.0.0.9:2379\"")))
        }
        None if urls.is_empty() => Err(de::Error::custom("name one member of the etcd cluster at least")),
        None => Ok(urls),
    }
}
