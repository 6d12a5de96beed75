//! The HTTP side of the metadata service.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::tree::{Found, find};
use super::{Metadata, locked};

const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
const LIFE_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";

/// Versions that the service answers to; `latest` is the newest.
const VERSIONS: &[&str] = &["1.0", "2016-09-02", "2021-07-15", "latest"];

/// Answers as the service of an instance that requires tokens (`HttpTokens=required`).
pub(super) async fn answer(State(metadata): State<Arc<Metadata>>, request: Request) -> Response {
    let path = request.uri().path().trim_start_matches('/');
    match *request.method() {
        Method::PUT if path == "latest/api/token" => issue(&metadata, request.headers()),
        Method::GET | Method::HEAD => tell(&metadata, path, request.headers()),
        _ => refuse(StatusCode::METHOD_NOT_ALLOWED),
    }
}

/// A new token. A request that came through a proxy gets none: that is what the `PUT` protects from.
fn issue(metadata: &Metadata, headers: &HeaderMap) -> Response {
    if headers.contains_key("x-forwarded-for") {
        return refuse(StatusCode::FORBIDDEN);
    }
    match locked(&metadata.tokens).issue(text(headers, LIFE_HEADER), Instant::now()) {
        Some((token, life)) => {
            ([(header::CONTENT_TYPE.as_str(), "text/plain".to_owned()), (LIFE_HEADER, life.to_string())], token)
                .into_response()
        }
        None => refuse(StatusCode::BAD_REQUEST),
    }
}

/// What is at the path, for whoever has a token.
fn tell(metadata: &Metadata, path: &str, headers: &HeaderMap) -> Response {
    let remaining =
        text(headers, TOKEN_HEADER).and_then(|token| locked(&metadata.tokens).remaining(token, Instant::now()));
    let Some(remaining) = remaining else {
        return refuse(StatusCode::UNAUTHORIZED);
    };
    let found = match path.split_once('/') {
        None if path.is_empty() => Some(Found::Listing(VERSIONS.join("\n"))),
        None => VERSIONS.contains(&path).then(|| find("", &metadata.instance(), metadata.notice())).flatten(),
        Some((version, rest)) => {
            let find = || match metadata.document(rest) {
                Some(body) => Some(Found::Value(body)),
                None => find(rest, &metadata.instance(), metadata.notice()),
            };
            VERSIONS.contains(&version).then(find).flatten()
        }
    };
    match found {
        Some(Found::Value(body) | Found::Listing(body)) => {
            ([(header::CONTENT_TYPE.as_str(), "text/plain".to_owned()), (LIFE_HEADER, remaining.to_string())], body)
                .into_response()
        }
        None => refuse(StatusCode::NOT_FOUND),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The page that the service sends with every refusal.
fn refuse(status: StatusCode) -> Response {
    let title = format!("{} - {}", status.as_u16(), status.canonical_reason().unwrap_or_default());
    let body = format!(
        r#"<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
	"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>{title}</title>
 </head>
 <body>
  <h1>{title}</h1>
 </body>
</html>
"#
    );
    (status, [(header::CONTENT_TYPE, "text/html")], body).into_response()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use axum::Router;
    use axum::body::Body;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;
    use crate::imds::{Action, Instance, Notice};

    fn metadata() -> Arc<Metadata> {
        Metadata::new(Instance {
            id: "i-0123456789abcdef0".to_owned(),
            kind: "m7i.large".to_owned(),
            zone: "eu-central-1b".to_owned(),
            name: "a".to_owned(),
            address: Ipv4Addr::new(172, 30, 0, 1),
            mac: "02:54:ac:1e:00:01".to_owned(),
        })
    }

    async fn ask(
        metadata: &Arc<Metadata>,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (StatusCode, HeaderMap, String) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        let router = Router::new().fallback(answer).with_state(Arc::clone(metadata));
        let response = router.oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        (parts.status, parts.headers, body)
    }

    async fn token(metadata: &Arc<Metadata>) -> String {
        let (status, headers, token) = ask(metadata, Method::PUT, "/latest/api/token", &[(LIFE_HEADER, "300")]).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers[LIFE_HEADER], "300");
        token
    }

    async fn get(metadata: &Arc<Metadata>, path: &str) -> (StatusCode, HeaderMap, String) {
        let token = token(metadata).await;
        ask(metadata, Method::GET, path, &[(TOKEN_HEADER, &token)]).await
    }

    #[tokio::test]
    async fn a_token_is_refused_without_a_valid_life_or_through_a_proxy() {
        let metadata = metadata();
        let path = "/latest/api/token";
        let (status, ..) = ask(&metadata, Method::PUT, path, &[]).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        let (status, ..) = ask(&metadata, Method::PUT, path, &[(LIFE_HEADER, "21601")]).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        let proxied = [(LIFE_HEADER, "300"), ("X-Forwarded-For", "10.0.0.9")];
        let (status, ..) = ask(&metadata, Method::PUT, path, &proxied).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
    }

    #[tokio::test]
    async fn nothing_is_told_without_a_token() {
        let metadata = metadata();
        let path = "/latest/meta-data/instance-id";
        let (status, _, body) = ask(&metadata, Method::GET, path, &[]).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert!(body.contains("401 - Unauthorized"));
        let (status, ..) = ask(&metadata, Method::GET, path, &[(TOKEN_HEADER, "AQ==")]).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        let (status, _, body) = get(&metadata, path).await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, "i-0123456789abcdef0"));
    }

    #[tokio::test]
    async fn a_notice_appears_and_can_be_taken_back() {
        let metadata = metadata();
        let path = "/latest/meta-data/spot/instance-action";
        let (status, _, body) = get(&metadata, path).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(body.contains("<title>404 - Not Found</title>"));

        metadata
            .set_notice(Some(Notice { action: Action::Terminate, time: "2017-09-18T08:22:00.75Z".parse().unwrap() }));
        let (status, headers, body) = get(&metadata, path).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers[header::CONTENT_TYPE], "text/plain");
        assert_eq!(body, r#"{"action":"terminate","time":"2017-09-18T08:22:00Z"}"#);
        let (_, _, time) = get(&metadata, "/latest/meta-data/spot/termination-time").await;
        assert_eq!(time, "2017-09-18T08:22:00Z");

        metadata.set_notice(None);
        let (status, ..) = get(&metadata, path).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn what_is_ahead_appears_and_can_be_taken_back() {
        let metadata = metadata();
        let document = crate::imds::ahead::rebalance("2020-10-27T08:22:00Z".parse().unwrap());
        let path = format!("/latest/{}", document.path);
        assert_eq!(get(&metadata, &path).await.0, StatusCode::NOT_FOUND);
        metadata.set_document(document.path.to_owned(), Some(document.body));
        assert_eq!(get(&metadata, &path).await.2, r#"{"noticeTime":"2020-10-27T08:22:00Z"}"#);
        metadata.set_document(document.path.to_owned(), None);
        assert_eq!(get(&metadata, &path).await.0, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn only_a_termination_has_a_termination_time() {
        let metadata = metadata();
        metadata.set_notice(Some(Notice { action: Action::Stop, time: "2017-09-18T08:22:00Z".parse().unwrap() }));
        let (status, ..) = get(&metadata, "/latest/meta-data/spot/termination-time").await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        let (_, _, spot) = get(&metadata, "/latest/meta-data/spot/").await;
        assert_eq!(spot, "instance-action");
    }

    #[tokio::test]
    async fn directories_are_listed_and_the_identity_is_json() {
        let metadata = metadata();
        let (_, _, list) = get(&metadata, "/latest/meta-data/").await;
        assert!(list.lines().any(|line| line == "placement/"), "{list}");
        assert!(!list.contains("spot/"), "{list}");
        let (_, _, versions) = get(&metadata, "/").await;
        assert!(versions.lines().any(|line| line == "latest"));
        let (_, _, document) = get(&metadata, "/latest/dynamic/instance-identity/document").await;
        let document: serde_json::Value = serde_json::from_str(&document).unwrap();
        assert_eq!(document["region"], "eu-central-1");
        assert_eq!(document["instanceId"], "i-0123456789abcdef0");
    }

    #[tokio::test]
    async fn other_methods_are_not_allowed() {
        let metadata = metadata();
        let (status, ..) = ask(&metadata, Method::POST, "/latest/api/token", &[]).await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    }
}
