//! The API of Kubernetes as its reference shows it, from a server that says nothing else.

use std::sync::Arc;
use std::time::Duration as Time;

use serde_json::{Value, json};
use tokio::time::timeout;
use wiremock::matchers::{header, method, path, query_param, query_param_is_missing};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;
use crate::config::Config;
use crate::inventory::Inventory;

fn node(name: &str, addresses: &[(&str, &str)]) -> Value {
    let addresses: Vec<_> = addresses.iter().map(|(kind, address)| json!({"type": kind, "address": address})).collect();
    json!({ "metadata": { "name": name }, "status": { "addresses": addresses, "capacity": { "cpu": "4" } } })
}

fn list(version: &str, next: &str, items: &[Value]) -> ResponseTemplate {
    let metadata = json!({ "resourceVersion": version, "continue": next });
    ResponseTemplate::new(200).set_body_json(json!({ "kind": "NodeList", "metadata": metadata, "items": items }))
}

fn events(all: &[(&str, Value)]) -> ResponseTemplate {
    let lines = all.iter().map(|(kind, object)| format!("{}\n", json!({ "type": kind, "object": object })));
    ResponseTemplate::new(200).set_body_string(lines.collect::<String>())
}

struct Cluster {
    server: MockServer,
    _files: tempfile::TempDir,
    source: Kubernetes,
    inventory: Arc<Inventory>,
}

async fn cluster() -> Cluster {
    let server = MockServer::start().await;
    let files = tempfile::tempdir().unwrap();
    let (token, ca) = (files.path().join("token"), files.path().join("ca.crt"));
    std::fs::write(&token, "secret\n").unwrap();
    std::fs::write(&ca, "").unwrap();
    let text = format!(
        "[inventory.kubernetes]\napi = \"{}/\"\ntoken = {token:?}\nca = {ca:?}\nselector = \"spothop in (yes,on)\"\nport = 7078\n",
        server.uri()
    );
    let config = Config::parse(&text, std::path::Path::new("config.toml"), "a").unwrap();
    let source = Kubernetes::new(config.inventory.kubernetes.as_ref().unwrap()).unwrap();
    Cluster { server, _files: files, source, inventory: Arc::new(Inventory::open(&config, None)) }
}

impl Cluster {
    async fn look(&self) -> Result<(), HttpError> {
        let mut teller = Teller::new(Arc::clone(&self.inventory), "kubernetes");
        timeout(Time::from_secs(60), self.source.look(&mut teller)).await.expect("an end")
    }

    fn hosts(&self) -> Vec<String> {
        self.inventory.entries().into_iter().map(|entry| format!("{} {}", entry.name, entry.address)).collect()
    }
}

#[tokio::test]
async fn nodes_are_listed_page_by_page_and_followed_from_there() {
    let cluster = cluster().await;
    let asked = || {
        let get = Mock::given(method("GET")).and(path("/api/v1/nodes")).and(header("authorization", "Bearer secret"));
        get.and(query_param("labelSelector", "spothop in (yes,on)"))
    };
    let (b, c) =
        (node("b", &[("Hostname", "b"), ("InternalIP", "10.0.0.2")]), node("c", &[("ExternalIP", "198.51.100.1")]));
    let first = asked().and(query_param_is_missing("continue")).and(query_param_is_missing("watch"));
    first.respond_with(list("9", "more", &[b, c])).mount(&cluster.server).await;
    let second = asked().and(query_param("continue", "more"));
    second.respond_with(list("9", "", &[node("d", &[("InternalIP", "fd00::4")])])).mount(&cluster.server).await;
    let watch = asked().and(query_param("watch", "true")).and(query_param("resourceVersion", "9"));
    let changes = events(&[
        ("ADDED", node("e", &[("InternalIP", "10.0.0.5")])),
        ("BOOKMARK", json!({ "metadata": { "resourceVersion": "10" } })),
        ("MODIFIED", node("b", &[("InternalIP", "10.0.0.22")])),
        ("MODIFIED", node("d", &[])),
        ("ADDED", node("f", &[("InternalIP", "10.0.0.6")])),
        ("DELETED", node("e", &[("InternalIP", "10.0.0.5")])),
    ]);
    watch.respond_with(changes).expect(1).mount(&cluster.server).await;
    cluster.look().await.unwrap();
    assert_eq!(cluster.hosts(), ["b 10.0.0.22:7078", "f 10.0.0.6:7078"]);
}

#[tokio::test]
async fn a_version_that_is_too_old_begins_anew_and_a_refusal_keeps_what_is_known() {
    let cluster = cluster().await;
    let one = list("1", "", &[node("b", &[("InternalIP", "10.0.0.2")])]);
    let nodes = Mock::given(method("GET")).and(query_param_is_missing("watch"));
    nodes.respond_with(one).up_to_n_times(1).mount(&cluster.server).await;
    let gone = json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version" });
    let watch = Mock::given(method("GET")).and(query_param("watch", "true"));
    watch.respond_with(events(&[("ERROR", gone)])).mount(&cluster.server).await;
    let error = cluster.look().await.expect_err("an error");
    assert!(error.to_string().contains("too old resource version"), "{error}");

    let refusal = ResponseTemplate::new(403).set_body_string("nodes is forbidden: cannot list resource \"nodes\"");
    Mock::given(method("GET")).respond_with(refusal).mount(&cluster.server).await;
    let error = cluster.look().await.expect_err("an error");
    assert!(error.to_string().contains("403") && error.to_string().contains("cannot list"), "{error}");
    assert_eq!(cluster.hosts(), ["b 10.0.0.2:7078"]);
}

#[test]
fn the_api_is_where_kubernetes_says() {
    let variables = |host: Option<&'static str>, port: Option<&'static str>| {
        around(move |name| if name.ends_with("HOST") { host } else { port }.map(str::to_owned))
    };
    assert_eq!(variables(Some("10.96.0.1"), Some("6443")).unwrap(), "https://10.96.0.1:6443");
    assert_eq!(variables(Some("fd00::1"), None).unwrap(), "https://[fd00::1]:443");
    assert!(matches!(variables(None, Some("443")), Err(HttpError::NoCluster)));
    assert_eq!(escape("a in (b,ü)"), "a%20in%20%28b%2C%C3%BC%29");
}
