//! Alibaba's metadata service, as "Instance metadata" in the ECS documentation describes it for an instance that requires tokens (403 without one):
//! `instance/spot/termination-time` in UTC while the instance is to be reclaimed, and 404 otherwise.

use std::time::Instant;

use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};

use super::clouds::{plain, text};
use super::tree::seconds;
use super::{Metadata, locked};

const TOKEN_HEADER: &str = "x-aliyun-ecs-metadata-token";
const LIFE_HEADER: &str = "x-aliyun-ecs-metadata-token-ttl-seconds";

pub(super) fn answer(metadata: &Metadata, request: &Parts) -> Response {
    let headers = &request.headers;
    let path = request.uri.path();
    if request.method == Method::PUT && path == "/latest/api/token" {
        return match locked(&metadata.tokens).issue(text(headers, LIFE_HEADER), Instant::now()) {
            Some((token, _)) => plain(token),
            None => StatusCode::BAD_REQUEST.into_response(),
        };
    }
    let known = text(headers, TOKEN_HEADER)
        .is_some_and(|token| locked(&metadata.tokens).remaining(token, Instant::now()).is_some());
    if !known {
        return StatusCode::FORBIDDEN.into_response();
    }
    let instance = metadata.instance();
    match (path.strip_prefix("/latest/meta-data/").unwrap_or_default(), metadata.notice()) {
        ("instance-id", _) => plain(instance.id),
        ("hostname", _) => plain(instance.name),
        ("region-id", _) => plain("eu-central-1"),
        ("zone-id", _) => plain("eu-central-1a"),
        ("instance/instance-type", _) => plain("ecs.c7.large"),
        ("instance/spot/termination-time", Some(notice)) => plain(seconds(notice.time)),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::clouds::ALIBABA;
    use super::super::clouds::testing::{ask, notice, service};
    use super::super::{Action, Cloud};
    use super::*;

    #[tokio::test]
    async fn a_time_is_told_in_utc_and_only_with_a_token() {
        let metadata = service(Cloud::Alibaba);
        let path = "/latest/meta-data/instance/spot/termination-time";
        assert_eq!(ask(&metadata, ALIBABA, Method::GET, path, &[], "").await.0, StatusCode::FORBIDDEN);
        let put = async |life: &str| {
            ask(&metadata, ALIBABA, Method::PUT, "/latest/api/token", &[(LIFE_HEADER, life)], "").await
        };
        assert_eq!(put("0").await.0, StatusCode::BAD_REQUEST);
        let (_, _, token) = put("21600").await;
        let get = async || ask(&metadata, ALIBABA, Method::GET, path, &[(TOKEN_HEADER, &token)], "").await;
        assert_eq!(get().await.0, StatusCode::NOT_FOUND);
        metadata.set_notice(Some(notice(Action::Terminate)));
        assert_eq!(get().await.2, "2018-08-18T04:05:33Z");
    }
}
