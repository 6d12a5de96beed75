use serde_json::json;
use wiremock::matchers::{header, header_exists, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;
use crate::notice::testing::{PATIENCE as TEST_PATIENCE, noticed, script};

fn text(body: &str) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_string(body)
}

/// A server that answers as the service of that cloud does, with these in turn to the question by which it is known.
async fn service(cloud: Cloud, first: Vec<ResponseTemplate>) -> MockServer {
    let server = MockServer::start().await;
    let get = |at: &str| Mock::given(method("GET")).and(path(format!("/{at}")));
    let answers = |last: ResponseTemplate| script([first, vec![last]].concat()).0;
    match cloud {
        Cloud::Aws | Cloud::Alibaba => {
            let (token, probe) = match cloud {
                Cloud::Aws => ("X-aws-ec2-metadata-token", &aws::PROBE),
                _ => ("X-aliyun-ecs-metadata-token", &alibaba::PROBE),
            };
            let put = Mock::given(method("PUT")).and(header_exists(format!("{token}-ttl-seconds").as_str()));
            put.respond_with(text("token")).mount(&server).await;
            let get = get(probe.path).and(header(token, "token"));
            get.respond_with(answers(text("i-0123456789abcdef0"))).mount(&server).await;
        }
        Cloud::Gcp => {
            let id = text("4520031799277581759").insert_header("Metadata-Flavor", "Google");
            get(gcp::PROBE.path)
                .and(header("Metadata-Flavor", "Google"))
                .respond_with(answers(id))
                .mount(&server)
                .await;
        }
        Cloud::Azure => {
            let compute = ResponseTemplate::new(200).set_body_json(json!({"name": "vm", "vmId": "1"}));
            get(azure::PROBE.path).and(header("Metadata", "true")).respond_with(answers(compute)).mount(&server).await;
        }
        Cloud::Tencent | Cloud::Machine | Cloud::Webhook => {
            get(tencent::PROBE.path).respond_with(answers(text("ins-3g445roi"))).mount(&server).await;
        }
    }
    server
}

const CLOUDS: [Cloud; 5] = [Cloud::Aws, Cloud::Gcp, Cloud::Azure, Cloud::Alibaba, Cloud::Tencent];

/// Every cloud's service is looked for at this one address.
fn config(address: &str) -> config::Notice {
    let endpoints = vec![address.to_owned()];
    let mut config = config::Notice { shutdown: Shutdown::Ignore, ..config::Notice::default() };
    config.aws.endpoints.clone_from(&endpoints);
    config.gcp.endpoints.clone_from(&endpoints);
    config.azure.endpoints.clone_from(&endpoints);
    config.alibaba.endpoints.clone_from(&endpoints);
    config.tencent.endpoints = endpoints;
    config
}

#[tokio::test]
async fn each_cloud_is_known_by_what_only_it_answers() {
    for cloud in CLOUDS {
        let server = service(cloud, Vec::new()).await;
        assert_eq!(look(&config(&server.uri())).await.unwrap(), Some(cloud));
    }
}

#[tokio::test]
async fn what_answers_everything_alike_is_no_cloud() {
    for answer in
        [text("<html>login</html>"), text(""), text("i"), ResponseTemplate::new(302), ResponseTemplate::new(500)]
    {
        let server = MockServer::start().await;
        Mock::given(wiremock::matchers::any()).respond_with(answer).mount(&server).await;
        assert_eq!(look(&config(&server.uri())).await.unwrap(), None);
    }
    // Nothing listens on the discard port of loopback.
    assert_eq!(look(&config("http://127.0.0.1:9")).await.unwrap(), None);
}

#[tokio::test]
async fn a_cloud_that_is_switched_off_or_not_the_one_that_is_named_is_not_asked() {
    let server = service(Cloud::Aws, Vec::new()).await;
    let mut off = config(&server.uri());
    off.aws.enabled = false;
    let named = config::Notice { cloud: CloudChoice::Azure, ..config(&server.uri()) };
    let none = config::Notice { cloud: CloudChoice::None, ..config(&server.uri()) };
    for config in [off, named, none] {
        assert_eq!(look(&config).await.unwrap(), None);
        assert!(CloudSource::new(&config, &Identity::default(), "a").unwrap().candidates.len() < CLOUDS.len());
    }
}

#[tokio::test]
async fn it_asks_until_one_answers_and_then_listens_to_that_one() {
    let late = vec![ResponseTemplate::new(404), ResponseTemplate::new(500)];
    let server = service(Cloud::Tencent, late).await;
    let time = (jiff::Timestamp::now() + Duration::from_secs(120)).to_string();
    Mock::given(method("GET"))
        .and(path(format!("/{}", tencent::PLACE.termination_time)))
        .respond_with(text(&time))
        .mount(&server)
        .await;
    let source = CloudSource::new(&config(&server.uri()), &Identity::default(), "a").unwrap();
    assert!(source.acknowledgers().contains_key("azure"));
    let (events, mut receiver) = mpsc::channel(16);
    tokio::spawn(Box::new(source).run(events));
    assert_eq!(noticed(&mut receiver).await.id, "tencent:ins-3g445roi:stop");
    let requests = server.received_requests().await.unwrap();
    let since = requests.iter().position(|request| request.url.path().ends_with("termination-time")).unwrap();
    assert!(requests[since..].iter().all(|request| !request.url.path().contains("computeMetadata")));
}

#[tokio::test]
async fn a_cloud_that_is_named_is_listened_to_at_once() {
    let server = MockServer::start().await;
    let events = Mock::given(method("GET")).and(path("/computeMetadata/v1/instance/preempted"));
    let answer = text("TRUE").insert_header("Metadata-Flavor", "Google");
    events.respond_with(answer).mount(&server).await;
    let config = config::Notice { cloud: CloudChoice::Gcp, ..config(&server.uri()) };
    let source = CloudSource::new(&config, &Identity::default(), "a").unwrap();
    let (events, mut receiver) = mpsc::channel(16);
    tokio::spawn(Box::new(source).run(events));
    assert_eq!(noticed(&mut receiver).await.id, "gcp:unknown:stop");
}

#[tokio::test]
async fn it_ends_when_nobody_listens() {
    let source = CloudSource::new(&config("http://127.0.0.1:9"), &Identity::default(), "a").unwrap();
    let (events, receiver) = mpsc::channel(1);
    let task = tokio::spawn(Box::new(source).run(events));
    drop(receiver);
    tokio::time::timeout(TEST_PATIENCE, task).await.expect("an end in time").unwrap();
}

#[test]
fn addresses_are_checked_beforehand() {
    for wrong in ["169.254.169.254", "https://169.254.169.254", ""] {
        assert!(CloudSource::new(&config(wrong), &Identity::default(), "a").is_err(), "{wrong}");
    }
}
