//! Azure's metadata service, as "Scheduled Events for Linux VMs" and "Azure Instance Metadata Service" in the Azure documentation describe it:
//! `Metadata: true` and an API version with every request (400 without), events of this VM as long as they last, approvals by `POST`.

use axum::body::{Body, to_bytes};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_128;

use super::clouds::{query, text};
use super::{Action, Metadata, Notice};

/// No request of ours is longer.
const LONGEST_REQUEST: usize = 64 * 1024;

pub(super) async fn answer(metadata: &Metadata, request: &Parts, body: Body) -> Response {
    let headers = &request.headers;
    let asked_well = text(headers, "metadata") == Some("true") && !headers.contains_key("x-forwarded-for");
    if !asked_well || query(request, "api-version").is_none() {
        return StatusCode::BAD_REQUEST.into_response();
    }
    match (&request.method, request.uri.path()) {
        (&Method::GET, "/metadata/instance/compute") => document(&compute(metadata)),
        (&Method::GET, "/metadata/scheduledevents") => document(&events(metadata, Timestamp::now())),
        (&Method::POST, "/metadata/scheduledevents") => approve(metadata, body).await,
        (_, "/metadata/instance/compute" | "/metadata/scheduledevents") => {
            StatusCode::METHOD_NOT_ALLOWED.into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn document(document: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json; charset=utf-8")], document.to_string()).into_response()
}

fn compute(metadata: &Metadata) -> Value {
    let instance = metadata.instance();
    json!({
        "azEnvironment": "AzurePublicCloud",
        "evictionPolicy": "Deallocate",
        "location": "westeurope",
        "name": instance.name,
        "osType": "Linux",
        "priority": "Spot",
        "vmId": uuid(instance.id.as_bytes()),
        "vmScaleSetName": "",
        "vmSize": "Standard_D2s_v5",
        "zone": "1",
    })
}

fn events(metadata: &Metadata, now: Timestamp) -> Value {
    let events: Vec<Value> = metadata.notice().iter().map(|notice| event(metadata, notice, now)).collect();
    json!({"DocumentIncarnation": metadata.version(), "Events": events})
}

fn event(metadata: &Metadata, notice: &Notice, now: Timestamp) -> Value {
    let kind = match notice.action {
        Action::Terminate => "Terminate",
        Action::Reboot => "Reboot",
        Action::Stop | Action::Hibernate => "Preempt",
    };
    let started = metadata.approved().is_some() || now >= notice.time;
    json!({
        "EventId": event_id(notice),
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": [metadata.instance().name],
        "EventStatus": if started { "Started" } else { "Scheduled" },
        "NotBefore": if started { String::new() } else { notice.time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string() },
        "Description": "",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
    })
}

fn event_id(notice: &Notice) -> String {
    uuid(format!("{notice:?}").as_bytes())
}

/// The same for the same bytes.
fn uuid(of: &[u8]) -> String {
    uuid::Uuid::from_u128(xxh3_128(of)).to_string()
}

/// 200 if it is an event of ours, also one that was approved before; 400 for what is no such request.
async fn approve(metadata: &Metadata, body: Body) -> Response {
    let body = to_bytes(body, LONGEST_REQUEST).await.unwrap_or_default();
    let known = metadata.notice().map(|notice| json!(event_id(&notice)));
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let requests = asked["StartRequests"].as_array().cloned().unwrap_or_default();
    let ours = |request: &Value| known.as_ref().is_some_and(|known| request["EventId"] == *known);
    if requests.is_empty() || !requests.iter().all(ours) {
        return StatusCode::BAD_REQUEST.into_response();
    }
    metadata.approve(Timestamp::now());
    StatusCode::OK.into_response()
}

#[cfg(test)]
mod tests {
    use super::super::clouds::testing::{ask, notice, service};
    use super::super::{Cloud, IPV4};
    use super::*;

    const AZURE: (&str, &str) = ("Metadata", "true");
    const EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";

    #[tokio::test]
    async fn header_and_version_are_required() {
        let metadata = service(Cloud::Azure);
        for (uri, headers) in [(EVENTS, vec![]), ("/metadata/scheduledevents", vec![AZURE])] {
            let (status, ..) = ask(&metadata, IPV4, Method::GET, uri, &headers, "").await;
            assert_eq!(status, StatusCode::BAD_REQUEST);
        }
        let (status, _, body) = ask(&metadata, IPV4, Method::GET, EVENTS, &[AZURE], "").await;
        let document: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &document["Events"]), (StatusCode::OK, &json!([])));
    }

    #[tokio::test]
    async fn an_event_that_was_approved_has_started_and_others_cannot_be() {
        let metadata = service(Cloud::Azure);
        let coming = Notice { time: Timestamp::MAX, ..notice(Action::Stop) };
        metadata.set_notice(Some(coming));
        let event = async || {
            let (_, _, body) = ask(&metadata, IPV4, Method::GET, EVENTS, &[AZURE], "").await;
            serde_json::from_str::<Value>(&body).unwrap()["Events"][0].take()
        };
        let before = event().await;
        assert_eq!((&before["EventStatus"], &before["EventType"]), (&json!("Scheduled"), &json!("Preempt")));
        assert_eq!(before["NotBefore"], "Thu, 30 Dec 9999 22:00:00 GMT");
        for (id, status) in
            [("another", StatusCode::BAD_REQUEST), (before["EventId"].as_str().unwrap(), StatusCode::OK)]
        {
            let body = json!({"StartRequests": [{"EventId": id}]}).to_string();
            assert_eq!(ask(&metadata, IPV4, Method::POST, EVENTS, &[AZURE], &body).await.0, status);
        }
        let after = event().await;
        assert_eq!((&after["EventStatus"], &after["NotBefore"]), (&json!("Started"), &json!("")));
        metadata.set_notice(Some(coming));
        assert_eq!(metadata.approved(), None, "a new notice is not approved");
    }
}
