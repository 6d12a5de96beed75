//! Google's metadata server, as "View and query VM metadata" and "Query metadata server for maintenance event notices" in the Compute Engine
//! documentation describe it: `Metadata-Flavor: Google` in both directions (403 without), nothing that was forwarded, an `ETag` of every
//! value, and `wait_for_change` with `last_etag` and `timeout_sec`. It is a VM of a family that shows no maintenance ahead (404) until one is foretold.

use std::time::Duration;

use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use xxhash_rust::xxh3::xxh3_64;

use super::clouds::{plain, query, text};
use super::{Action, Metadata};

const FLAVOR: &str = "metadata-flavor";

pub(super) async fn answer(metadata: &Metadata, request: &Parts) -> Response {
    let mut response = tell(metadata, request).await;
    response.headers_mut().insert(FLAVOR, HeaderValue::from_static("Google"));
    response.headers_mut().insert(header::SERVER, HeaderValue::from_static("Metadata Server for VM"));
    response
}

async fn tell(metadata: &Metadata, request: &Parts) -> Response {
    let headers = &request.headers;
    if text(headers, FLAVOR) != Some("Google") || headers.contains_key("x-forwarded-for") {
        return StatusCode::FORBIDDEN.into_response();
    }
    let path = request.uri.path().trim_start_matches('/');
    let mut changes = metadata.changes();
    let Some(mut said) = value(metadata, path) else { return StatusCode::NOT_FOUND.into_response() };
    if query(request, "wait_for_change") == Some("true") {
        let last = query(request, "last_etag").map_or_else(|| etag(&said), str::to_owned);
        let seconds = query(request, "timeout_sec").and_then(|seconds| seconds.parse().ok());
        let wait = async {
            while etag(&said) == last && changes.changed().await.is_ok() {
                said = value(metadata, path).unwrap_or_default();
            }
        };
        match seconds {
            // At the end of the time it is told as it is.
            Some(seconds) => drop(tokio::time::timeout(Duration::from_secs(seconds), wait).await),
            None => wait.await,
        }
    }
    ([(header::ETAG, etag(&said))], plain(said)).into_response()
}

fn etag(value: &str) -> String {
    format!("{:016x}", xxh3_64(value.as_bytes()))
}

fn value(metadata: &Metadata, path: &str) -> Option<String> {
    let instance = metadata.instance();
    let action = metadata.notice().map(|notice| notice.action);
    let value = match path.strip_prefix("computeMetadata/v1/instance/")? {
        // A number of 64 bits.
        "id" => xxh3_64(instance.id.as_bytes()).to_string(),
        "name" => instance.name,
        "zone" => format!("projects/123456789012/zones/{}", instance.zone),
        "machine-type" => "projects/123456789012/machineTypes/n2-standard-2".to_owned(),
        "preempted" => match action {
            None | Some(Action::Reboot) => "FALSE".to_owned(),
            Some(_) => "TRUE".to_owned(),
        },
        "maintenance-event" => match action {
            Some(Action::Reboot) => "TERMINATE_ON_HOST_MAINTENANCE".to_owned(),
            _ => "NONE".to_owned(),
        },
        "scheduling/automatic-restart" => "TRUE".to_owned(),
        "scheduling/on-host-maintenance" => "TERMINATE".to_owned(),
        "scheduling/preemptible" => "TRUE".to_owned(),
        _ => return metadata.document(path),
    };
    Some(value)
}

#[cfg(test)]
mod tests {
    use axum::http::Method;

    use super::super::clouds::testing::{ask, notice, service};
    use super::super::{Cloud, IPV4};
    use super::*;

    const GOOGLE: (&str, &str) = ("Metadata-Flavor", "Google");

    #[tokio::test]
    async fn nothing_is_told_without_the_header_or_through_a_proxy() {
        let metadata = service(Cloud::Gcp);
        let path = "/computeMetadata/v1/instance/preempted";
        for headers in [vec![], vec![GOOGLE, ("X-Forwarded-For", "10.0.0.9")]] {
            let (status, headers, _) = ask(&metadata, IPV4, Method::GET, path, &headers, "").await;
            assert_eq!((status, &headers[FLAVOR]), (StatusCode::FORBIDDEN, &HeaderValue::from_static("Google")));
        }
        let (status, _, body) = ask(&metadata, IPV4, Method::GET, path, &[GOOGLE], "").await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, "FALSE"));
    }

    #[tokio::test]
    async fn an_answer_waits_for_the_change() {
        let metadata = service(Cloud::Gcp);
        let path = "/computeMetadata/v1/instance/preempted";
        let get = async |query: &str| {
            let (_, headers, body) = ask(&metadata, IPV4, Method::GET, &format!("{path}{query}"), &[GOOGLE], "").await;
            (headers[header::ETAG].to_str().unwrap().to_owned(), body)
        };
        let (etag, _) = get("").await;
        assert_eq!(get("?wait_for_change=true&timeout_sec=0").await.1, "FALSE");
        let query = format!("?wait_for_change=true&last_etag={etag}");
        let (waited, ()) = tokio::join!(get(&query), async {
            tokio::task::yield_now().await;
            metadata.set_notice(Some(notice(Action::Stop)));
        });
        assert_eq!(waited.1, "TRUE");
        // What has changed since is told at once.
        assert_eq!(get(&query).await, waited);
    }

    #[tokio::test]
    async fn maintenance_is_shown_ahead_when_it_is_planned() {
        let metadata = service(Cloud::Gcp);
        let plan = crate::imds::ahead::upcoming_maintenance("2025-09-10T09:28:15Z".parse().unwrap());
        let uri = format!("/{}?alt=json", plan.path);
        let get = async || ask(&metadata, IPV4, Method::GET, &uri, &[GOOGLE], "").await;
        assert_eq!(get().await.0, StatusCode::NOT_FOUND);
        metadata.set_document(plan.path.to_owned(), Some(plan.body));
        let said: serde_json::Value = serde_json::from_str(&get().await.2).unwrap();
        assert_eq!(said["window_start_time"], "2025-09-10T09:28:15+00:00");
        assert_eq!(said["window_end_time"], "2025-09-10T11:28:15+00:00");
    }

    #[tokio::test]
    async fn maintenance_is_no_preemption() {
        let metadata = service(Cloud::Gcp);
        metadata.set_notice(Some(notice(Action::Reboot)));
        for (path, said) in [("preempted", "FALSE"), ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")] {
            let uri = format!("/computeMetadata/v1/instance/{path}");
            assert_eq!(ask(&metadata, IPV4, Method::GET, &uri, &[GOOGLE], "").await.2, said);
        }
    }
}
