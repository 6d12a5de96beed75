//! Tencent's metadata service, as "Querying Spot Instance Repossession Status" in the CVM documentation describes it: no tokens, and
//! `spot/termination-time` without a zone, in UTC+8, while the instance is repossessed; 404 otherwise.

use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use jiff::tz::offset;

use super::Metadata;
use super::clouds::plain;

pub(super) fn answer(metadata: &Metadata, request: &Parts) -> Response {
    let instance = metadata.instance();
    let path = request.uri.path();
    match (path.strip_prefix("/latest/meta-data/").unwrap_or_default(), metadata.notice()) {
        // `ins-` and eight characters.
        ("instance-id", _) => {
            plain(format!("ins-{:0>8}", instance.id.get(instance.id.len().saturating_sub(8)..).unwrap_or_default()))
        }
        ("instance/instance-type", _) => plain("S5.MEDIUM4"),
        ("placement/zone", _) => plain("ap-guangzhou-3"),
        ("local-ipv4", _) => plain(instance.address.to_string()),
        ("spot/termination-time", Some(notice)) => {
            plain(offset(8).to_datetime(notice.time).strftime("%Y-%m-%d %H:%M:%S").to_string())
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Method;

    use super::super::clouds::TENCENT;
    use super::super::clouds::testing::{ask, notice, service};
    use super::super::{Action, Cloud};
    use super::*;

    #[tokio::test]
    async fn a_time_is_told_in_beijings_time_without_saying_so() {
        let metadata = service(Cloud::Tencent);
        let get = async |path: &str| {
            ask(&metadata, TENCENT, Method::GET, &format!("/latest/meta-data/{path}"), &[], "").await
        };
        assert_eq!(get("instance-id").await.2, "ins-9abcdef0");
        assert_eq!(get("spot/termination-time").await.0, StatusCode::NOT_FOUND);
        metadata.set_notice(Some(notice(Action::Terminate)));
        assert_eq!(get("spot/termination-time").await.2, "2018-08-18 12:05:33");
    }
}
