//! Real connections to a real server.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path as FilePath;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use spothop_transfer::certs::{self, Existing};
use tempfile::TempDir;

use super::*;

const KEY: &[u8] = b"twenty-four bytes of key";

struct World {
    scratch: TempDir,
    config: Webhook,
    address: std::net::SocketAddr,
    heard: mpsc::Receiver<NoticeEvent>,
}

/// A server for the host `a`, with a sender `saas` and more of `[webhook]`.
async fn world(more: &str) -> World {
    let scratch = tempfile::tempdir().unwrap();
    let secret = scratch.path().join("secret");
    std::fs::write(&secret, format!("whsec_{}\n", BASE64_STANDARD.encode(KEY))).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let more = more.replace("DIR", scratch.path().to_str().unwrap());
    let text =
        format!("listen = '127.0.0.1:0'\n{more}\n[[senders]]\nname = 'saas'\nsecret_file = '{}'", secret.display());
    let config = crate::config::webhook::tests::read(&text).unwrap();
    let (sender, heard) = mpsc::channel(16);
    let desk = Desk::new(&config, "a", Arc::default(), sender);
    let server = Server::bind(&config, desk).await.unwrap().unwrap();
    let address = server.address();
    tokio::spawn(server.serve());
    World { scratch, config, address, heard }
}

fn body(host: &str, word: &str) -> String {
    json!({ "type": word, "data": { "instance": host } }).to_string()
}

fn sign(id: &str, at: Timestamp, body: &str) -> String {
    let message = format!("{id}.{}.{body}", at.as_second());
    let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, KEY), message.as_bytes());
    format!("v1,{}", BASE64_STANDARD.encode(tag.as_ref()))
}

impl World {
    async fn post(&self, path: &str, id: &str, at: Timestamp, signature: &str, body: &str) -> (u16, Value) {
        let request = reqwest::Client::new().post(format!("http://{}{path}", self.address));
        let request = request.header("webhook-id", id).header("webhook-timestamp", at.as_second());
        let answer = request.header("webhook-signature", signature).body(body.to_owned()).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or(Value::Null))
    }

    async fn send(&self, id: &str, body: &str) -> (u16, Value) {
        let now = Timestamp::now();
        self.post("/v1/webhooks/saas", id, now, &sign(id, now, body), body).await
    }

    /// What was passed on since the last time.
    fn heard(&mut self) -> Vec<NoticeEvent> {
        std::iter::from_fn(|| self.heard.try_recv().ok()).collect()
    }
}

#[tokio::test]
async fn an_event_is_accepted_once_however_often_it_comes() {
    let mut world = world("").await;
    let stop = body("a", "instance.stop");
    let accepted = (202, json!({ "evacuation": "webhook:saas/stop" }));
    assert_eq!(world.send("1", &stop).await, accepted);
    assert!(matches!(&world.heard()[..], [NoticeEvent::Noticed(notice)] if notice.id == "webhook:saas/stop"));
    assert_eq!((world.send("1", &stop).await, world.heard().len()), (accepted.clone(), 0));
    // Another event is heeded, and so is a withdrawal.
    assert_eq!((world.send("2", &stop).await, world.heard().len()), (accepted, 1));
    assert_eq!(world.send("3", &body("a", "instance.withdrawn")).await.0, 202);
    assert!(world.heard().iter().all(|event| matches!(event, NoticeEvent::Cancelled { .. })));
    assert_eq!(world.send("4", &body("a", "invoice.paid")).await, (200, json!({ "ignored": "invoice.paid" })));
    assert!(world.heard().is_empty());
}

#[tokio::test]
async fn what_is_forged_late_or_for_others_is_refused_with_a_reason_and_not_heard() {
    let mut world = world("").await;
    let (now, stop) = (Timestamp::now(), body("a", "instance.stop"));
    let (path, right) = ("/v1/webhooks/saas", sign("1", now, &stop));
    let other = body("a", "instance.reboot");
    let old = now - jiff::SignedDuration::from_secs(400);
    for (status, code, answer) in [
        (401, "unauthorized", world.post(path, "1", now, &right, &other).await),
        (401, "unauthorized", world.post(path, "2", now, &right, &stop).await),
        (401, "unauthorized", world.post(path, "1", old, &sign("1", old, &stop), &stop).await),
        (401, "unauthorized", world.post(path, "1", now, "", &stop).await),
        (404, "not-found", world.post("/v1/webhooks/other", "1", now, &right, &stop).await),
        (404, "not-found", world.post("/", "1", now, &right, &stop).await),
        (400, "bad-request", world.send("1", "nonsense").await),
        (413, "bad-request", world.send("1", &" ".repeat(LONGEST_BODY + 1)).await),
        (421, "refused", world.send("1", &body("b", "instance.stop")).await),
    ] {
        assert_eq!((answer.0, &answer.1["code"]), (status, &json!(code)), "{}", answer.1);
        assert!(answer.1["message"].as_str().is_some_and(|message| message.len() > 10), "{}", answer.1);
    }
    assert!(world.heard().is_empty());
    // A refusal is not remembered: the same id, told rightly, is heeded.
    assert_eq!(world.send("1", &stop).await.0, 202);
}

#[tokio::test]
async fn a_secret_is_replaced_without_a_restart_and_must_be_root_s_alone() {
    let world = world("").await;
    let file = &world.config.senders[0].secret_file;
    let right = std::fs::read_to_string(file).unwrap();
    std::fs::write(file, "whsec_AAAA\n").unwrap();
    assert_eq!(world.send("1", &body("a", "instance.stop")).await.0, 401);
    std::fs::write(file, format!("whsec_AAAA\n{right}")).unwrap();
    assert_eq!(world.send("1", &body("a", "instance.stop")).await.0, 202);
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (status, problem) = world.send("2", &body("a", "instance.stop")).await;
    assert_eq!((status, &problem["code"]), (500, &json!("internal")));
    // Whoever asks is told nothing of this host's files.
    assert!(!problem["message"].as_str().unwrap().contains('/'), "{problem}");
}

#[tokio::test]
async fn there_is_a_rate_for_each_address() {
    let world = world("rate = 3").await;
    let stop = body("a", "instance.stop");
    for event in ["1", "2", "3"] {
        assert_eq!(world.send(event, &stop).await.0, 202);
    }
    let (status, problem) = world.send("4", &stop).await;
    assert_eq!((status, &problem["code"]), (429, &json!("busy")));
}

#[tokio::test]
async fn a_busy_host_takes_all_of_an_event_or_nothing() {
    let mut world = world("").await;
    let stop = body("a", "instance.stop");
    for event in 0..16 {
        assert_eq!(world.send(&event.to_string(), &stop).await.0, 202);
    }
    assert_eq!(world.send("x", &stop).await.0, 503);
    assert_eq!(world.heard().len(), 16);
    assert_eq!(world.send("x", &stop).await.0, 202);
}

fn issue(dir: &FilePath, existing: Existing) {
    certs::issue(&dir.join("ca"), "hooks.example", &["127.0.0.1".parse().unwrap()], dir, existing).unwrap();
}

#[tokio::test]
async fn senders_are_shown_a_certificate_that_may_be_renewed() {
    let scratch = tempfile::tempdir().unwrap();
    certs::init(&scratch.path().join("ca"), Existing::Keep).unwrap();
    issue(scratch.path(), Existing::Keep);
    let dir = scratch.path().display();
    let world = world(&format!("cert = '{dir}/host.pem'\nkey = '{dir}/host.key'")).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(scratch.path().join("ca/ca.pem")).unwrap()).unwrap();
    let ask = async || {
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        let https = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(https);
        let uri = format!("https://{}/v1/webhooks/saas", world.address);
        let request = http::Request::post(uri).body(Full::default()).unwrap();
        let answer = client.request(request).await.unwrap();
        assert_eq!(answer.status(), 401);
        let _ = answer.into_body().collect().await;
    };
    ask().await;
    issue(scratch.path(), Existing::Replace);
    ask().await;
    // Half-way through, the old one goes on.
    std::fs::write(scratch.path().join("host.key"), "nonsense").unwrap();
    ask().await;
    drop(world.scratch);
}
