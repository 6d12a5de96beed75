//! Against a receiver that answers what a test says.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use super::*;
use crate::config::notification::Notification;
use crate::notice::Notice;
use crate::standard_webhooks::{ID, SIGNATURE, Secrets, TIME};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn secret(directory: &Path, text: &str) -> String {
    let file = directory.join("secret");
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    file.display().to_string()
}

fn notice() -> Notice {
    serde_json::from_value(json!({
        "id": "aws:i-1:terminate", "cloud": "aws", "instance": "i-1", "action": "terminate",
        "deadline": "2026-01-01T00:02:00Z", "received": "2026-01-01T00:00:00Z",
    }))
    .unwrap()
}

fn courier(server: &MockServer, secret_file: &str, more: &str) -> Arc<Courier> {
    let text = format!("url = '{}/hook'\nsecret_file = '{secret_file}'\n{more}", server.uri());
    let mut courier = Courier::new(toml::from_str::<Notification>(&text).unwrap()).unwrap();
    courier.pause = Duration::from_millis(1);
    Arc::new(courier)
}

/// A receiver that answers with these in turn, and then with 204, to what comes. Returns when it has heard so many requests.
async fn receiver(first: Vec<u16>) -> MockServer {
    let server = MockServer::start().await;
    for (n, status) in first.into_iter().enumerate() {
        let answer = Mock::given(method("POST")).respond_with(ResponseTemplate::new(status));
        answer.up_to_n_times(1).with_priority(u8::try_from(n + 1).unwrap()).mount(&server).await;
    }
    Mock::given(method("POST"))
        .and(path("/hook"))
        .respond_with(ResponseTemplate::new(204))
        .with_priority(200)
        .mount(&server)
        .await;
    server
}

async fn heard(server: &MockServer, count: usize) -> Vec<Request> {
    loop {
        let requests = server.received_requests().await.unwrap();
        if requests.len() >= count {
            return requests;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_message_is_signed_and_sent_again_under_its_id_until_it_is_heard() {
    let scratch = tempfile::tempdir().unwrap();
    let server = receiver(vec![500, 401, 302]).await;
    let courier = courier(&server, &secret(scratch.path(), SECRET), "");
    courier.send(&Arc::new(Message::received("a", &notice())));
    let requests = heard(&server, 4).await;
    let secrets = Secrets::parse(SECRET, true).unwrap();
    for request in &requests {
        let value = |name| request.headers.get(name).unwrap().to_str().unwrap();
        assert_eq!(value(ID), requests[0].headers[ID].to_str().unwrap());
        let expected = secrets.sign(value(ID), value(TIME), &request.body);
        assert_eq!(value(SIGNATURE), expected);
        let off = value(TIME).parse::<i64>().unwrap() - Timestamp::now().as_second();
        assert!(off.abs() < 60, "{off}");
    }
    let body: Value = requests[0].body_json().unwrap();
    assert_eq!((&body["type"], &body["data"]["host"]), (&json!("notice.received"), &json!("a")));
    assert_eq!(body["data"]["notice"]["deadline"], "2026-01-01T00:02:00Z");
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_left_alone_and_others_are_told_what_they_want() {
    let scratch = tempfile::tempdir().unwrap();
    let (gone, some) = (receiver(vec![410]).await, receiver(vec![]).await);
    let file = secret(scratch.path(), SECRET);
    let couriers = vec![courier(&gone, &file, ""), courier(&some, &file, "events = ['notice.withdrawn']")];
    let (sender, queue) = mpsc::channel(4);
    let handing = tokio::spawn(hand_on(couriers, queue));
    sender.send(Message::received("a", &notice())).await.unwrap();
    heard(&gone, 1).await;
    sender.send(Message::withdrawn("a", "aws:i-1:terminate")).await.unwrap();
    drop(sender);
    handing.await.unwrap();
    assert_eq!(heard(&some, 1).await.len(), 1);
    let kinds: Vec<_> =
        heard(&gone, 2).await.iter().map(|one| one.body_json::<Value>().unwrap()["type"].clone()).collect();
    assert_eq!(kinds, [json!("notice.received"), json!("notice.withdrawn")], "the first was sent once");
}

#[tokio::test]
async fn spot_io_is_told_that_the_instance_may_go_and_nothing_else() {
    let scratch = tempfile::tempdir().unwrap();
    let server = MockServer::start().await;
    let post = Mock::given(method("POST")).and(path("/hook")).and(header("Authorization", "Bearer token"));
    post.respond_with(ResponseTemplate::new(200)).mount(&server).await;
    let courier = courier(&server, &secret(scratch.path(), "token\n"), "format = 'spotio'");
    let (sender, queue) = mpsc::channel(4);
    tokio::spawn(hand_on(vec![courier], queue));
    sender.send(Message::received("a", &notice())).await.unwrap();
    sender.send(Message::finished("a", &notice())).await.unwrap();
    let requests = heard(&server, 1).await;
    let body: Value = requests[0].body_json().unwrap();
    assert_eq!(body, json!({ "instanceId": "i-1", "signal": "INSTANCE_READY_TO_SHUTDOWN" }));
}

#[tokio::test]
async fn a_secret_that_comes_late_is_no_reason_to_give_up() {
    let scratch = tempfile::tempdir().unwrap();
    let server = receiver(vec![]).await;
    let file = scratch.path().join("secret");
    let courier = courier(&server, file.to_str().unwrap(), "");
    courier.send(&Arc::new(Message::failed("a", &notice())));
    secret(scratch.path(), SECRET);
    let body: Value = heard(&server, 1).await[0].body_json().unwrap();
    assert_eq!(body["type"], "evacuation.failed");
}

#[tokio::test]
async fn what_is_told_waits_for_nobody() {
    let (sender, _queue) = mpsc::channel(1);
    let notifier = Notifier(Some(sender));
    for _ in 0..10 {
        notifier.tell(Message::received("a", &notice()));
    }
    Notifier(None).tell(Message::received("a", &notice()));
}
