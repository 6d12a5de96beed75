//! The nodes of a Kubernetes cluster, where each of them runs this daemon.
//!
//! A list, then a watch from the list's version on, as "Efficient detection of changes" in Kubernetes's API concepts says. Two
//! requests of plain HTTP and JSON, with the few fields of a node that matter here. A client crate with the types of all of
//! Kubernetes would be one to two minutes of building for them.
//!
//! A service account needs `get`, `list` and `watch` on `nodes` (a ClusterRole: nodes are in no namespace).

use std::env;
use std::net::IpAddr;
use std::time::Duration;

use std::collections::BTreeMap;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use tokio::time::sleep;

use super::http::{Http, malformed};
use super::{Access, Found, HttpError, Source, Teller};
use crate::config;

/// Between two attempts at an API that does not answer.
const PAUSE: Duration = Duration::from_secs(2);

/// Nodes in one page of the list ("Retrieving large results sets in chunks").
const PAGE: usize = 500;

/// How long the API may keep a watch open, in seconds; then the list is asked for anew, so that whatever was missed is missed for
/// so long at most. Also how old a token in use may get: those of pods are renewed every hour.
const WATCH_SECONDS: u64 = 300;

/// The source.
#[derive(Debug)]
pub struct Kubernetes {
    api: String,
    access: Access,
    selector: String,
    port: u16,
}

#[derive(Debug, Deserialize)]
struct List {
    metadata: ListMeta,
    #[serde(default)]
    items: Vec<Node>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    resource_version: String,
    /// Where the next page begins; empty or absent on the last.
    #[serde(default, rename = "continue")]
    next: String,
}

#[derive(Debug, Deserialize)]
struct Node {
    metadata: Meta,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
struct Meta {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
struct Status {
    #[serde(default)]
    addresses: Vec<NodeAddress>,
}

#[derive(Debug, Deserialize)]
struct NodeAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

/// One line of a watch. Of an `ERROR` the object is a status and no node.
#[derive(Debug, Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: serde_json::Value,
}

impl Kubernetes {
    /// Asks nothing yet.
    ///
    /// # Errors
    /// There is no cluster around this process and none in the configuration; the files of the service account cannot be read.
    pub fn new(config: &config::inventory::Kubernetes) -> Result<Self, HttpError> {
        let api = match &config.api {
            Some(api) => api.trim_end_matches('/').to_owned(),
            None => around(|name| env::var(name).ok())?,
        };
        let access = Access { ca: Some(config.ca.clone()), identity: None, token: Some(config.token.clone()) };
        Http::open(&access)?;
        Ok(Self { api, access, selector: config.selector.clone(), port: config.port })
    }

    /// A list, and what changes until the API ends the watch.
    async fn look(&self, teller: &mut Teller) -> Result<(), HttpError> {
        // With the token as it is now.
        let http = Http::open(&self.access)?;
        let (mut nodes, version) = self.list(&http).await?;
        teller.tell(hosts(&nodes)).await;
        let watch = self.url(&[
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", &version),
            ("timeoutSeconds", &WATCH_SECONDS.to_string()),
        ]);
        let mut events = http.get_lines(&watch).await?;
        loop {
            let event: Event = match events.next().await {
                Ok(event) => event,
                // As was asked for.
                Err(HttpError::Ended { .. }) => return Ok(()),
                Err(error) => return Err(error),
            };
            let said = || event.object.to_string().into_bytes();
            if event.kind == "ERROR" {
                // Above all 410: the version is too old. The next look begins with a list.
                return Err(malformed(&watch, "the watch failed".to_owned(), &said()));
            }
            if event.kind == "BOOKMARK" {
                teller.confirm();
                continue;
            }
            let node = Node::deserialize(&event.object);
            let node = node.map_err(|error| malformed(&watch, error.to_string(), &said()))?;
            let host = host(&node, self.port).filter(|_| event.kind != "DELETED");
            let before = match &host {
                Some(host) => nodes.insert(node.metadata.name, host.clone()),
                None => nodes.remove(&node.metadata.name),
            };
            // A node says something every few minutes, which is seldom where it is.
            if before == host {
                teller.confirm();
            } else {
                teller.tell(hosts(&nodes)).await;
            }
        }
    }

    /// All nodes by name, and the version of the list.
    async fn list(&self, http: &Http) -> Result<(BTreeMap<String, Found>, String), HttpError> {
        let (mut nodes, mut next) = (BTreeMap::new(), String::new());
        loop {
            let limit = PAGE.to_string();
            let mut query = vec![("limit", limit.as_str())];
            if !next.is_empty() {
                query.push(("continue", &next));
            }
            let page: List = http.get(&self.url(&query)).await?;
            let found = page.items.iter().filter_map(|node| host(node, self.port));
            nodes.extend(found.map(|host| (host.name.clone(), host)));
            if page.metadata.next.is_empty() {
                return Ok((nodes, page.metadata.resource_version));
            }
            next = page.metadata.next;
        }
    }

    fn url(&self, query: &[(&str, &str)]) -> String {
        let selector = (!self.selector.is_empty()).then_some(("labelSelector", self.selector.as_str()));
        let query = query.iter().copied().chain(selector);
        let query: Vec<String> = query.map(|(key, value)| format!("{key}={}", escape(value))).collect();
        format!("{}/api/v1/nodes?{}", self.api, query.join("&"))
    }
}

impl Source for Kubernetes {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn run(self: Box<Self>, mut teller: Teller) -> BoxFuture<'static, ()> {
        async move {
            loop {
                if let Err(error) = self.look(&mut teller).await {
                    teller.complain(&error);
                    sleep(PAUSE).await;
                }
            }
        }
        .boxed()
    }
}

/// The API as Kubernetes tells its pods ("Accessing the API from a Pod").
fn around(variable: impl Fn(&str) -> Option<String>) -> Result<String, HttpError> {
    let host = variable("KUBERNETES_SERVICE_HOST").ok_or(HttpError::NoCluster)?;
    let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    Ok(format!("https://{host}:{port}"))
}

/// A node as a host; none as long as it has no address inside of the cluster.
fn host(node: &Node, port: u16) -> Option<Found> {
    let internal = node.status.addresses.iter().find(|address| address.kind == "InternalIP")?;
    let ip: IpAddr = internal.address.parse().ok()?;
    Some(Found { name: node.metadata.name.clone(), address: std::net::SocketAddr::new(ip, port).into() })
}

fn hosts(nodes: &BTreeMap<String, Found>) -> Vec<Found> {
    nodes.values().cloned().collect()
}

/// Percent-encoding of everything but RFC 3986's unreserved characters.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().fold(String::new(), |escaped, byte| match plain(byte) {
        true => escaped + char::from(byte).encode_utf8(&mut [0; 4]),
        false => escaped + &format!("%{byte:02X}"),
    })
}

#[cfg(test)]
mod tests;
