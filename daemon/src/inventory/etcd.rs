//! Hosts that enter themselves into etcd, each under a lease that it renews: one that dies is gone when its lease ends.
//!
//! Spoken through the JSON form of etcd's API ("gRPC gateway" in etcd's documentation), which every member serves beside gRPC on
//! the same port since 3.4, unless `--enable-grpc-gateway=false` switches it off. The client crate for gRPC cannot be built without a
//! compiler for protocol buffers, which cargo does not bring; the five calls that are needed here have no need of it.
//! Formats: <https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/> and `rpc.proto`: keys and values are base64, 64-bit
//! numbers are strings, and what has its default value is left out.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::warn;

use super::http::{Http, Lines, malformed};
use super::{Access, Found, HttpError, Source, Teller};
use crate::config::{self, Address, Config};
use crate::migration::unpanicked;

/// Between two attempts at members that do not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// What this host enters.
#[derive(Debug, Clone)]
pub struct Registration {
    name: String,
    /// `host.advertise`; otherwise the address from which etcd is reached, with the port of `host.listen`.
    advertise: Option<Address>,
    listen: SocketAddr,
    zone: Option<String>,
}

impl Registration {
    /// What the configuration says of this host.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let host = &config.host;
        Self {
            name: host.name.clone(),
            advertise: host.advertise.clone(),
            listen: host.listen,
            zone: host.zone.clone(),
        }
    }
}

/// The source.
#[derive(Debug)]
pub struct Etcd {
    endpoints: Vec<String>,
    prefix: String,
    ttl: Duration,
    access: Access,
    own: Registration,
    /// The lease under which this host is entered, as etcd numbers it.
    lease: Option<String>,
}

/// The value under a host's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Value {
    name: String,
    address: String,
    /// For whoever reads etcd; the host tells it itself when it is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Granted {
    #[serde(rename = "ID")]
    id: String,
}

#[derive(Debug, Deserialize)]
struct KeptAlive {
    result: Lease,
}

#[derive(Debug, Deserialize)]
struct Lease {
    /// Seconds that are left; none when there is no such lease any more.
    #[serde(rename = "TTL")]
    ttl: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Range {
    header: Header,
    #[serde(default)]
    kvs: Vec<KeyValue>,
}

#[derive(Debug, Deserialize)]
struct Header {
    revision: String,
}

#[derive(Debug, Deserialize)]
struct KeyValue {
    key: String,
    #[serde(default)]
    value: String,
}

#[derive(Debug, Deserialize)]
struct Watched {
    result: Change,
}

#[derive(Debug, Deserialize)]
struct Change {
    #[serde(default)]
    canceled: bool,
    #[serde(default)]
    cancel_reason: Option<String>,
    #[serde(default)]
    events: Vec<serde::de::IgnoredAny>,
}

/// Of calls whose answer says nothing.
#[derive(Debug, Deserialize)]
struct Done {}

impl Etcd {
    /// Asks nothing yet.
    ///
    /// # Errors
    /// The files for TLS cannot be read.
    pub fn new(config: &config::inventory::Etcd, own: Registration) -> Result<Self, HttpError> {
        if config.cert.is_some() != config.key.is_some() {
            return Err(HttpError::HalfIdentity);
        }
        let identity = config.cert.clone().zip(config.key.clone());
        let access = Access { ca: config.ca.clone(), identity, token: None };
        Http::open(&access)?;
        Ok(Self {
            endpoints: config.endpoints.iter().map(|url| url.trim_end_matches('/').to_owned()).collect(),
            prefix: config.prefix.clone(),
            ttl: config.ttl,
            access,
            own,
            lease: None,
        })
    }

    /// As long as the first member answers: enters this host, renews its lease, and tells of every change.
    async fn converse(&mut self, teller: &mut Teller) -> Result<(), HttpError> {
        let member = Member { http: Http::open(&self.access)?, url: self.endpoints[0].clone() };
        self.enter(&member).await?;
        let mut renewals = interval(self.ttl / 3);
        renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (hosts, mut changes) = member.hosts(&self.prefix, &self.own.name).await?;
            teller.tell(hosts).await;
            // Many hosts at once make one look, not many.
            loop {
                tokio::select! {
                    change = changed(&mut changes, &member.url) => { change?; break }
                    _ = renewals.tick() => {
                        if !self.renew(&member).await? {
                            warn!("etcd has let this host's lease end; it is entered again");
                            self.lease = None;
                            self.enter(&member).await?;
                        }
                        teller.confirm();
                    }
                }
            }
        }
    }

    /// Enters this host, under the lease that it has or a new one.
    async fn enter(&mut self, member: &Member) -> Result<(), HttpError> {
        let kept = match self.lease {
            Some(_) => self.renew(member).await?,
            None => false,
        };
        if !kept {
            let granted: Granted = member.call("lease/grant", &json!({ "TTL": self.ttl.as_secs() })).await?;
            self.lease = Some(granted.id);
        }
        let address = self.address(&member.url).await?;
        let value = Value { name: self.own.name.clone(), address: address.to_string(), zone: self.own.zone.clone() };
        let value = serde_json::to_vec(&value).map_err(|error| malformed(&member.url, error.to_string(), b""))?;
        let key = format!("{}{}", self.prefix, self.own.name);
        let put = json!({ "key": encode(key.as_bytes()), "value": encode(&value), "lease": self.lease });
        member.call::<Done>("kv/put", &put).await.map(drop)
    }

    /// Whether the lease lives on.
    async fn renew(&self, member: &Member) -> Result<bool, HttpError> {
        // An answer that could go on, of which there is one line for one question.
        let kept: KeptAlive = member.call("lease/keepalive", &json!({ "ID": self.lease })).await?;
        Ok(kept.result.ttl.is_some_and(|ttl| ttl != "0"))
    }

    /// Where others reach this host.
    async fn address(&self, url: &str) -> Result<Address, HttpError> {
        if let Some(address) = &self.own.advertise {
            return Ok(address.clone());
        }
        let listen = self.own.listen;
        if !listen.ip().is_unspecified() {
            return Ok(listen.into());
        }
        let towards = url.split_once("://").map_or(url, |(_, rest)| rest).split('/').next().unwrap_or(url).to_owned();
        let transport = |source| HttpError::Transport { url: url.to_owned(), source: Box::new(source) };
        // A datagram socket that is connected has the address by which the kernel would go there, and sends nothing.
        let own = spawn_blocking(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect(&towards).map(|()| socket));
            let socket =
                socket.or_else(|_| UdpSocket::bind("[::]:0").and_then(|six| six.connect(&towards).map(|()| six)))?;
            socket.local_addr()
        });
        let own = unpanicked(own.await).map_err(transport)?;
        Ok(SocketAddr::new(own.ip(), listen.port()).into())
    }
}

impl Source for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn run(mut self: Box<Self>, mut teller: Teller) -> BoxFuture<'static, ()> {
        async move {
            loop {
                if let Err(error) = self.converse(&mut teller).await {
                    teller.complain(&error);
                }
                self.endpoints.rotate_left(1);
                sleep(PAUSE).await;
            }
        }
        .boxed()
    }
}

/// Waits for a change. What else it says (that it watches, that it is still there) is none.
async fn changed(changes: &mut Lines, url: &str) -> Result<(), HttpError> {
    loop {
        let watched: Watched = changes.next().await?;
        if watched.result.canceled {
            // Such as a revision that is no longer there; the next conversation begins with the newest.
            let reason = watched.result.cancel_reason.unwrap_or_else(|| "the watch was cancelled".to_owned());
            return Err(malformed(url, reason, b""));
        }
        if !watched.result.events.is_empty() {
            return Ok(());
        }
    }
}

/// A member of the cluster.
struct Member {
    http: Http,
    url: String,
}

impl Member {
    async fn call<T: serde::de::DeserializeOwned>(
        &self,
        method: &str,
        body: &serde_json::Value,
    ) -> Result<T, HttpError> {
        self.http.post(&self.method(method), body).await
    }

    fn method(&self, method: &str) -> String {
        format!("{}/v3/{method}", self.url)
    }

    /// All hosts but this one, and what will change of them from there on.
    async fn hosts(&self, prefix: &str, own: &str) -> Result<(Vec<Found>, Lines), HttpError> {
        let (key, range_end) = (encode(prefix.as_bytes()), encode(&end_of(prefix.as_bytes())));
        let range: Range = self.call("kv/range", &json!({ "key": key, "range_end": range_end })).await?;
        let revision: i64 = range.header.revision.parse().map_err(|_| {
            malformed(&self.url, "a revision that is no number".to_owned(), range.header.revision.as_bytes())
        })?;
        let start = (revision + 1).to_string();
        let watch = json!({ "create_request": { "key": key, "range_end": range_end, "start_revision": start } });
        let changes = self.http.post_lines(&self.method("watch"), &watch).await?;
        let hosts = range.kvs.iter().filter_map(|entry| host(prefix, entry)).filter(|host| host.name != own);
        Ok((hosts.collect(), changes))
    }
}

/// A host's entry; none for what is not one.
fn host(prefix: &str, entry: &KeyValue) -> Option<Found> {
    let key = String::from_utf8(BASE64_STANDARD.decode(&entry.key).ok()?).ok()?;
    let value = BASE64_STANDARD.decode(&entry.value).ok()?;
    let read = serde_json::from_slice::<Value>(&value).map_err(|error| error.to_string());
    let read = read.and_then(|value| {
        if key.strip_prefix(prefix) != Some(&value.name) {
            return Err(format!("it is the entry of another host, {}", value.name));
        }
        let address = value.address.parse().map_err(|error: config::Problem| error.to_string())?;
        Ok(Found { name: value.name, address })
    });
    read.inspect_err(|error| warn!(key, error, "an entry in etcd is no host and is passed over")).ok()
}

fn encode(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// The first key after all that begin with `prefix` ("range_end" in `rpc.proto`): its last byte one higher, or without it where
/// it has no higher one.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    // "If the range_end is '\0', the range is all keys greater than or equal to the key argument."
    vec![0]
}
