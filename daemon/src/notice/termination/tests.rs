use wiremock::matchers::{header, header_exists, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;
use crate::notice::testing::{PATIENCE, asked, drain, next, noticed, script};
use crate::notice::{alibaba, tencent};

/// In so long, as both clouds write it.
fn soon(place: &Place, seconds: i64) -> String {
    let time = Timestamp::now() + SignedDuration::from_secs(seconds);
    match place.cloud {
        Cloud::Tencent => jiff::tz::offset(8).to_datetime(time).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        _ => time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    }
}

fn text(body: &str) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_string(body)
}

/// A service that gives tokens, says the instance's id and answers the question for the time by the script.
async fn service(place: &Place, answers: Vec<ResponseTemplate>) -> (MockServer, mpsc::UnboundedReceiver<()>) {
    let server = MockServer::start().await;
    let put = Mock::given(method("PUT")).and(path("/latest/api/token"));
    put.and(header("X-aliyun-ecs-metadata-token-ttl-seconds", "21600"))
        .respond_with(text("token-1"))
        .mount(&server)
        .await;
    let get = |at: &str| {
        let get = Mock::given(method("GET")).and(path(format!("/{at}")));
        match place.cloud {
            Cloud::Alibaba => get.and(header_exists("X-aliyun-ecs-metadata-token")),
            _ => get,
        }
    };
    let id = if place.cloud == Cloud::Alibaba { "i-bp13znx0" } else { "ins-3g445roi" };
    get(place.instance_id).respond_with(text(id)).mount(&server).await;
    let (script, heard) = script(answers);
    get(place.termination_time).respond_with(script).mount(&server).await;
    (server, heard)
}

fn options(server: &MockServer) -> TerminationOptions {
    TerminationOptions {
        endpoints: vec![server.uri()],
        poll_interval: Duration::from_millis(1),
        reclaim: Action::Stop,
        request_timeout: PATIENCE,
    }
}

fn watch(place: &'static Place, options: &TerminationOptions) -> mpsc::Receiver<NoticeEvent> {
    let (events, receiver) = mpsc::channel(16);
    tokio::spawn(Box::new(TerminationSource::new(place, options).unwrap()).run(events));
    receiver
}

#[tokio::test]
async fn a_time_is_a_notice_of_the_instance_and_its_absence_the_end_of_it() {
    for (place, id) in [(&alibaba::PLACE, "alibaba:i-bp13znx0"), (&tencent::PLACE, "tencent:ins-3g445roi")] {
        let time = soon(place, 120);
        let answers = vec![ResponseTemplate::new(404), text(&time), text(&format!("{time}\n")), text("")];
        let (server, _heard) = service(place, answers).await;
        let mut events = watch(place, &options(&server));
        let notice = noticed(&mut events).await;
        assert_eq!((notice.id.clone(), notice.action), (format!("{id}:stop"), Action::Stop));
        let left = notice.lead_time(notice.received).expect("a time").as_secs();
        assert!((100..=120).contains(&left), "{left} s");
        assert_eq!(next(&mut events).await, NoticeEvent::Cancelled { id: notice.id });
    }
}

#[tokio::test]
async fn what_the_operator_says_of_it_makes_it_a_deletion() {
    let (server, _heard) = service(&alibaba::PLACE, vec![text(&soon(&alibaba::PLACE, 300))]).await;
    let options = TerminationOptions { reclaim: Action::Terminate, ..options(&server) };
    assert_eq!(noticed(&mut watch(&alibaba::PLACE, &options)).await.id, "alibaba:i-bp13znx0:terminate");
}

#[tokio::test]
async fn a_time_that_cannot_be_meant_is_none() {
    for seconds in [-8 * 3600, 8 * 3600] {
        let (server, _heard) = service(&tencent::PLACE, vec![text(&soon(&tencent::PLACE, seconds))]).await;
        assert_eq!(noticed(&mut watch(&tencent::PLACE, &options(&server))).await.deadline, None);
    }
}

#[tokio::test]
async fn a_notice_repeated_with_another_time_is_the_same_notice() {
    let answers = (1..6).map(|n| text(&soon(&tencent::PLACE, 60 * n))).collect();
    let (server, mut heard) = service(&tencent::PLACE, answers).await;
    let mut events = watch(&tencent::PLACE, &options(&server));
    noticed(&mut events).await;
    asked(&mut heard, 8).await;
    assert!(events.try_recv().is_err(), "one event for one notice");
}

#[tokio::test]
async fn nonsense_is_neither_a_notice_nor_the_end_of_one_nor_fatal() {
    for place in [&alibaba::PLACE, &tencent::PLACE] {
        let nonsense = vec![
            text("<html>"),
            text("soon"),
            text("12:00:00"),
            text(&"x".repeat(1 << 20)),
            ResponseTemplate::new(301).insert_header("location", "/elsewhere"),
            ResponseTemplate::new(400),
            ResponseTemplate::new(403),
            ResponseTemplate::new(429),
            ResponseTemplate::new(500),
        ];
        let rows = nonsense.len();
        let answers =
            [nonsense.clone(), vec![text(&soon(place, 120))], nonsense, vec![ResponseTemplate::new(404)]].concat();
        let (server, mut heard) = service(place, answers).await;
        let mut events = watch(place, &options(&server));
        let notice = noticed(&mut events).await;
        let mut polls = drain(&mut heard);
        assert!(polls > rows, "a notice came out of nonsense, at poll {polls}");
        assert_eq!(next(&mut events).await, NoticeEvent::Cancelled { id: notice.id });
        polls += drain(&mut heard);
        assert!(polls > 2 * rows + 1, "a notice ended by nonsense, at poll {polls}");
    }
}

#[tokio::test]
async fn a_refused_token_is_replaced_at_once() {
    let place = &alibaba::PLACE;
    let time = text(&soon(place, 300));
    let (server, mut heard) = service(place, vec![ResponseTemplate::new(401), time]).await;
    let options = TerminationOptions { poll_interval: 10 * PATIENCE, ..options(&server) };
    noticed(&mut watch(place, &options)).await;
    asked(&mut heard, 2).await;
    let requests = server.received_requests().await.unwrap();
    assert_eq!(requests.iter().filter(|request| request.method.as_str() == "PUT").count(), 2);
}

#[tokio::test]
async fn a_service_that_hangs_is_asked_anew_and_the_next_address_when_one_does_not_answer() {
    let place = &tencent::PLACE;
    let answers = vec![ResponseTemplate::new(404).set_delay(10 * PATIENCE), text(&soon(place, 120))];
    let (server, _heard) = service(place, answers).await;
    let options = TerminationOptions {
        // Nothing listens on the discard port of loopback.
        endpoints: vec!["http://127.0.0.1:9".to_owned(), server.uri()],
        request_timeout: Duration::from_millis(200),
        ..options(&server)
    };
    noticed(&mut watch(place, &options)).await;
}
