//! Whose metadata service a machine has. It has one at a time; the addresses of the others are there too, and answer 404.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::{Action, IPV4, IPV6, Metadata, alibaba, azure, gcp, router, tencent};

/// Alibaba's address ("Instance metadata" in its documentation).
pub(super) const ALIBABA: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);
/// Tencent's address, which `metadata.tencentyun.com` stands for.
pub(super) const TENCENT: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 23);

/// A cloud.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Cloud {
    /// Amazon EC2.
    #[default]
    Aws,
    /// Google Compute Engine.
    Gcp,
    /// Microsoft Azure.
    Azure,
    /// Alibaba Cloud ECS.
    Alibaba,
    /// Tencent Cloud CVM.
    Tencent,
}

impl Cloud {
    /// Whether this cloud has a notice of that kind.
    #[must_use]
    pub fn gives(self, action: Action) -> bool {
        match self {
            Self::Aws => action != Action::Reboot,
            Self::Gcp | Self::Azure => action != Action::Hibernate,
            Self::Alibaba | Self::Tencent => matches!(action, Action::Terminate | Action::Stop),
        }
    }
}

/// Where a machine has metadata services.
pub const ADDRESSES: [IpAddr; 4] = [IpAddr::V4(IPV4), IpAddr::V6(IPV6), IpAddr::V4(ALIBABA), IpAddr::V4(TENCENT)];

/// Answers at `address` as the machine's cloud does there.
pub(super) fn at(address: IpAddr, metadata: Arc<Metadata>) -> Router {
    Router::new().fallback(answer).with_state((address, metadata))
}

async fn answer(State((address, metadata)): State<(IpAddr, Arc<Metadata>)>, request: Request) -> Response {
    let cloud = metadata.cloud();
    if cloud == Cloud::Aws && (address == IPV4 || address == IPV6) {
        return router::answer(State(metadata), request).await;
    }
    let (request, body) = request.into_parts();
    match cloud {
        Cloud::Gcp if address == IPV4 => gcp::answer(&metadata, &request).await,
        Cloud::Azure if address == IPV4 => azure::answer(&metadata, &request, body).await,
        Cloud::Alibaba if address == ALIBABA => alibaba::answer(&metadata, &request),
        Cloud::Tencent if address == TENCENT => tencent::answer(&metadata, &request),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// A value as text.
pub(super) fn plain(body: impl Into<String>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain")], body.into()).into_response()
}

/// The value of a header.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The value of a query's key; none of ours has characters that would be escaped.
pub(super) fn query<'a>(request: &'a Parts, key: &str) -> Option<&'a str> {
    let mut pairs = request.uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(name, _)| *name == key).map(|(_, value)| value)
}

#[cfg(test)]
pub(super) mod testing {
    use axum::body::Body;
    use axum::http::Method;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;
    use crate::imds::{Instance, Notice};

    /// The service of a machine of that cloud.
    pub(crate) fn service(cloud: Cloud) -> Arc<Metadata> {
        let metadata = Metadata::new(Instance {
            id: "i-0123456789abcdef0".to_owned(),
            kind: "m7i.large".to_owned(),
            zone: "eu-central-1b".to_owned(),
            name: "a".to_owned(),
            address: Ipv4Addr::new(172, 30, 0, 1),
            mac: "02:54:ac:1e:00:01".to_owned(),
        });
        metadata.set_cloud(cloud);
        metadata
    }

    /// What is answered at an address.
    pub(crate) async fn ask(
        metadata: &Arc<Metadata>,
        address: impl Into<IpAddr>,
        method: Method,
        uri: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (StatusCode, HeaderMap, String) {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let response = at(address.into(), Arc::clone(metadata)).oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    /// A notice of a time that is long past.
    pub(crate) fn notice(action: Action) -> Notice {
        Notice { action, time: "2018-08-18T04:05:33Z".parse().unwrap() }
    }

    #[tokio::test]
    async fn a_machine_is_of_one_cloud_only() {
        let metadata = service(Cloud::Gcp);
        for (address, uri) in [
            (IpAddr::V4(IPV4), "/latest/meta-data/"),
            (IpAddr::V6(IPV6), "/computeMetadata/v1/instance/id"),
            (IpAddr::V4(ALIBABA), "/latest/meta-data/instance-id"),
            (IpAddr::V4(TENCENT), "/latest/meta-data/instance-id"),
        ] {
            let (status, ..) = ask(&metadata, address, Method::GET, uri, &[("Metadata-Flavor", "Google")], "").await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{address} {uri}");
        }
    }
}
