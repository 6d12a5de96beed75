use serde_json::json;
use wiremock::matchers::{header, header_exists, method, path};
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

use super::*;

const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
const TOKEN_PATH: &str = "/latest/api/token";
const ACTION_PATH: &str = "/latest/meta-data/spot/instance-action";
const ID_PATH: &str = "/latest/meta-data/instance-id";

/// Ten times as long as anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers the n-th request with the n-th of its answers and then with the last, and tells the test of each.
struct Script {
    answers: Vec<ResponseTemplate>,
    asked: mpsc::UnboundedSender<()>,
    count: std::sync::atomic::AtomicUsize,
}

impl Respond for Script {
    fn respond(&self, _: &Request) -> ResponseTemplate {
        let n = self.count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let _ = self.asked.send(());
        self.answers[n.min(self.answers.len() - 1)].clone()
    }
}

fn script(answers: Vec<ResponseTemplate>) -> (Script, mpsc::UnboundedReceiver<()>) {
    let (asked, heard) = mpsc::unbounded_channel();
    (Script { answers, asked, count: Default::default() }, heard)
}

fn action(action: &str, time: &str) -> ResponseTemplate {
    // The service declares text/plain.
    ResponseTemplate::new(200).set_body_string(json!({ "action": action, "time": time }).to_string())
}

fn none() -> ResponseTemplate {
    ResponseTemplate::new(404)
}

fn token(value: &str) -> ResponseTemplate {
    ResponseTemplate::new(200).insert_header(TTL_HEADER, "21600").set_body_string(value)
}

async fn mount_token(server: &MockServer) {
    let put = Mock::given(method("PUT")).and(path(TOKEN_PATH)).and(header(TTL_HEADER, "21600"));
    put.respond_with(token("token-1")).mount(server).await;
}

async fn mount_id(server: &MockServer) {
    let get = Mock::given(method("GET")).and(path(ID_PATH)).and(header_exists(TOKEN_HEADER));
    get.respond_with(ResponseTemplate::new(200).set_body_string("i-0abc")).mount(server).await;
}

/// A service that issues `token-1`, says its id and answers the question for a notice by the script.
async fn service(answers: Vec<ResponseTemplate>) -> (MockServer, mpsc::UnboundedReceiver<()>) {
    let server = MockServer::start().await;
    mount_token(&server).await;
    mount_id(&server).await;
    let (script, heard) = script(answers);
    let get = Mock::given(method("GET")).and(path(ACTION_PATH)).and(header(TOKEN_HEADER, "token-1"));
    get.respond_with(script).mount(&server).await;
    (server, heard)
}

fn options(endpoints: Vec<String>) -> AwsOptions {
    AwsOptions {
        endpoints,
        poll_interval: Duration::from_millis(1),
        request_timeout: PATIENCE,
        // Only who asks for what is ahead gets it.
        outlook_interval: PATIENCE * 100,
        ..AwsOptions::default()
    }
}

/// A source at work; dropping the receiver ends it.
fn watch(endpoints: Vec<String>) -> mpsc::Receiver<NoticeEvent> {
    let source = AwsSource::new(options(endpoints)).unwrap();
    let (events, receiver) = mpsc::channel(16);
    tokio::spawn(Box::new(source).run(events));
    receiver
}

async fn next(events: &mut mpsc::Receiver<NoticeEvent>) -> NoticeEvent {
    tokio::time::timeout(PATIENCE, events.recv()).await.expect("an event in time").expect("a running source")
}

async fn noticed(events: &mut mpsc::Receiver<NoticeEvent>) -> Notice {
    match next(events).await {
        NoticeEvent::Noticed(notice) => notice,
        NoticeEvent::Cancelled { id } => panic!("{id} was cancelled"),
    }
}

async fn asked(heard: &mut mpsc::UnboundedReceiver<()>, times: usize) {
    for _ in 0..times {
        tokio::time::timeout(PATIENCE, heard.recv()).await.expect("a poll in time");
    }
}

/// How often the service was asked since the last time.
fn drain(heard: &mut mpsc::UnboundedReceiver<()>) -> usize {
    std::iter::from_fn(|| heard.try_recv().ok()).count()
}

#[tokio::test]
async fn a_notice_is_read_as_aws_documents_it() {
    let (server, _heard) = service(vec![none(), none(), action("terminate", "2017-09-18T08:22:00Z")]).await;
    let notice = noticed(&mut watch(vec![server.uri()])).await;
    assert_eq!(notice.id, "aws:i-0abc:terminate");
    assert_eq!(notice.instance, "i-0abc");
    assert_eq!(notice.action, Action::Terminate);
    assert_eq!(notice.deadline, Some("2017-09-18T08:22:00Z".parse().unwrap()));
    assert_eq!(notice.lead_time(notice.received), Some(Duration::ZERO));
}

#[tokio::test]
async fn a_notice_repeated_with_another_time_is_the_same_notice() {
    let answers = (0..5).map(|n| action("stop", &format!("2030-01-01T00:0{n}:00Z"))).collect();
    let (server, mut heard) = service(answers).await;
    let mut events = watch(vec![server.uri()]);
    assert_eq!(noticed(&mut events).await.deadline, Some("2030-01-01T00:00:00Z".parse().unwrap()));
    asked(&mut heard, 8).await;
    assert!(events.try_recv().is_err(), "one event for one notice");
}

#[tokio::test]
async fn a_notice_that_disappears_is_cancelled_and_may_come_back() {
    let again = action("terminate", "2030-01-01T00:00:00Z");
    let (server, _heard) = service(vec![again.clone(), again.clone(), none(), again]).await;
    let mut events = watch(vec![server.uri()]);
    let first = noticed(&mut events).await;
    assert_eq!(next(&mut events).await, NoticeEvent::Cancelled { id: first.id.clone() });
    assert_eq!(noticed(&mut events).await.id, first.id);
}

#[tokio::test]
async fn another_action_is_another_notice_and_replaces_the_first() {
    let time = "2030-01-01T00:00:00Z";
    let (server, _heard) = service(vec![action("hibernate", time), action("terminate", time)]).await;
    let mut events = watch(vec![server.uri()]);
    assert_eq!(noticed(&mut events).await.id, "aws:i-0abc:hibernate");
    assert_eq!(noticed(&mut events).await.id, "aws:i-0abc:terminate");
    assert_eq!(next(&mut events).await, NoticeEvent::Cancelled { id: "aws:i-0abc:hibernate".to_owned() });
}

#[tokio::test]
async fn nonsense_is_neither_a_notice_nor_the_end_of_one_nor_fatal() {
    let text = |body: &str| ResponseTemplate::new(200).set_body_string(body);
    let good = action("terminate", "2030-01-01T00:00:00Z");
    let nonsense = vec![
        text(""),
        text("<html>"),
        text("{}"),
        text(r#"{"action":"terminate"}"#),
        text(r#"{"action":"terminate","time":"soon"}"#),
        text(r#"{"action":"explode","time":"2030-01-01T00:00:00Z"}"#),
        text(&"x".repeat(1 << 20)),
        ResponseTemplate::new(200).set_body_bytes([0xff, 0xfe]),
        ResponseTemplate::new(301).insert_header("location", "/elsewhere"),
        ResponseTemplate::new(400),
        ResponseTemplate::new(403),
        ResponseTemplate::new(500),
        ResponseTemplate::new(503),
    ];
    let rows = nonsense.len();
    let answers = [nonsense.clone(), vec![good], nonsense, vec![none()]].concat();
    let (server, mut heard) = service(answers).await;
    let mut events = watch(vec![server.uri()]);
    let notice = noticed(&mut events).await;
    let mut polls = drain(&mut heard);
    assert!(polls > rows, "a notice came out of nonsense, at poll {polls}");
    assert_eq!(next(&mut events).await, NoticeEvent::Cancelled { id: notice.id });
    polls += drain(&mut heard);
    assert!(polls > 2 * rows + 1, "a notice ended by nonsense, at poll {polls}");
    let requests = server.received_requests().await.unwrap();
    assert!(requests.iter().all(|request| request.url.path() != "/elsewhere"), "redirects are not followed");
}

#[tokio::test]
async fn a_refused_token_is_replaced_at_once() {
    let server = MockServer::start().await;
    mount_id(&server).await;
    let (tokens, _) = script(vec![token("token-1"), token("token-2")]);
    Mock::given(method("PUT")).and(path(TOKEN_PATH)).respond_with(tokens).expect(2).mount(&server).await;
    let (refusal, mut refused) = script(vec![ResponseTemplate::new(401)]);
    let get = || Mock::given(method("GET")).and(path(ACTION_PATH));
    get().and(header(TOKEN_HEADER, "token-1")).respond_with(refusal).expect(1).mount(&server).await;
    let notice = action("terminate", "2030-01-01T00:00:00Z");
    get().and(header(TOKEN_HEADER, "token-2")).respond_with(notice).mount(&server).await;

    let mut events = watch(vec![server.uri()]);
    noticed(&mut events).await;
    asked(&mut refused, 1).await;
    server.verify().await;
}

#[tokio::test]
async fn a_token_at_its_end_is_renewed_and_used_on_while_that_fails() {
    let server = MockServer::start().await;
    mount_id(&server).await;
    // A granted life of 0 s is over at once, so that every question is preceded by a renewal.
    let brief = |value: &str| token(value).insert_header(TTL_HEADER, "0");
    let (tokens, _) = script(vec![brief("token-1"), ResponseTemplate::new(500), brief("token-2")]);
    Mock::given(method("PUT")).and(path(TOKEN_PATH)).respond_with(tokens).mount(&server).await;
    let (answers, mut heard) = script(vec![none()]);
    Mock::given(method("GET")).and(path(ACTION_PATH)).respond_with(answers).mount(&server).await;

    let _events = watch(vec![server.uri()]);
    asked(&mut heard, 3).await;
    let requests = server.received_requests().await.unwrap();
    let gets = requests.iter().filter(|request| request.method.as_str() == "GET");
    let tokens: Vec<_> = gets.take(3).map(|get| get.headers[TOKEN_HEADER].to_str().unwrap()).collect();
    assert_eq!(tokens, ["token-1", "token-1", "token-2"]);
}

#[tokio::test]
async fn one_token_serves_many_polls() {
    let (server, mut heard) = service(vec![none()]).await;
    let _events = watch(vec![server.uri()]);
    asked(&mut heard, 10).await;
    let requests = server.received_requests().await.unwrap();
    assert_eq!(requests.iter().filter(|request| request.method.as_str() == "PUT").count(), 1);
    assert_eq!(requests.iter().filter(|request| request.url.path() == ID_PATH).count(), 1);
}

#[tokio::test]
async fn no_token_no_question_but_another_try() {
    let server = MockServer::start().await;
    mount_id(&server).await;
    let (tokens, mut heard) = script(vec![
        ResponseTemplate::new(400),
        ResponseTemplate::new(403),
        ResponseTemplate::new(404),
        ResponseTemplate::new(500),
        token(""),
        token("not\na token"),
        token("token-1"),
    ]);
    Mock::given(method("PUT")).and(path(TOKEN_PATH)).respond_with(tokens).mount(&server).await;
    let notice = action("terminate", "2030-01-01T00:00:00Z");
    let get = Mock::given(method("GET")).and(path(ACTION_PATH)).and(header(TOKEN_HEADER, "token-1"));
    get.respond_with(notice).mount(&server).await;

    noticed(&mut watch(vec![server.uri()])).await;
    asked(&mut heard, 7).await;
}

#[tokio::test]
async fn a_notice_does_not_wait_for_the_id() {
    let server = MockServer::start().await;
    mount_token(&server).await;
    let (ids, mut heard) =
        script(vec![ResponseTemplate::new(500), ResponseTemplate::new(200).set_body_string("i-0abc")]);
    Mock::given(method("GET")).and(path(ID_PATH)).respond_with(ids).mount(&server).await;
    let notice = action("terminate", "2030-01-01T00:00:00Z");
    Mock::given(method("GET")).and(path(ACTION_PATH)).respond_with(notice).mount(&server).await;

    let mut events = watch(vec![server.uri()]);
    assert_eq!(noticed(&mut events).await.id, "aws:unknown:terminate");
    asked(&mut heard, 2).await;
    assert!(events.try_recv().is_err(), "learning the id does not make it another notice");
}

#[tokio::test]
async fn the_next_address_is_asked_when_one_does_not_answer() {
    let (server, _heard) = service(vec![action("terminate", "2030-01-01T00:00:00Z")]).await;
    // Nothing listens on the discard port of loopback.
    noticed(&mut watch(vec!["http://127.0.0.1:9".to_owned(), server.uri()])).await;
}

#[tokio::test]
async fn a_service_that_hangs_is_asked_anew() {
    let answers = vec![none().set_delay(10 * PATIENCE), action("terminate", "2030-01-01T00:00:00Z")];
    let (server, _heard) = service(answers).await;
    let options = AwsOptions { request_timeout: Duration::from_millis(200), ..options(vec![server.uri()]) };
    let (events, mut receiver) = mpsc::channel(16);
    tokio::spawn(Box::new(AwsSource::new(options).unwrap()).run(events));
    noticed(&mut receiver).await;
}

/// What the service tells of itself when it answers the question for the identity document with these in turn, and what
/// [`AwsSource`] has told by the time of the third poll.
async fn told(documents: Vec<ResponseTemplate>) -> (Option<Instance>, Option<String>) {
    let (server, mut polled) = service(vec![none()]).await;
    let (documents, _) = script(documents);
    let get = Mock::given(method("GET")).and(path("/latest/dynamic/instance-identity/document"));
    get.respond_with(documents).mount(&server).await;
    let (told, zone) = (Arc::default(), Arc::default());
    let (events, _receiver) = mpsc::channel(1);
    let source = AwsSource::new(options(vec![server.uri()])).unwrap().telling(Arc::clone(&told), Arc::clone(&zone));
    tokio::spawn(Box::new(source).run(events));
    asked(&mut polled, 3).await;
    (OnceLock::get(&told).cloned(), OnceLock::get(&zone).cloned())
}

fn identity(id: &str) -> ResponseTemplate {
    let document = json!({ "accountId": "123456789012", "region": "eu-central-1", "availabilityZone": "eu-central-1b", "instanceId": id });
    ResponseTemplate::new(200).set_body_string(format!("{document:#}"))
}

#[tokio::test]
async fn it_tells_which_instance_this_is_also_when_the_service_fails_at_first() {
    let id = "i-0123456789abcdef0";
    let instance = Instance::aws("123456789012", "eu-central-1", id).unwrap();
    let here = (Some(instance), Some("eu-central-1b".to_owned()));
    assert_eq!(told(vec![identity(id)]).await, here);
    assert_eq!(told(vec![ResponseTemplate::new(500), identity(id)]).await, here);
}

#[tokio::test]
async fn an_imitation_without_an_identity_is_no_instance() {
    for document in [none(), identity("unknown"), ResponseTemplate::new(200).set_body_string("<html>")] {
        assert_eq!(told(vec![document, identity("i-0123456789abcdef0")]).await, (None, None));
    }
}

#[tokio::test]
async fn what_is_ahead_is_heard_beside_what_is_at_hand() {
    let (server, mut heard) = service(vec![none()]).await;
    let (answers, _) = script(vec![
        none(),
        ResponseTemplate::new(500),
        ResponseTemplate::new(200).set_body_string(r#"{"noticeTime":"2020-10-27T08:22:00Z"}"#),
        ResponseTemplate::new(500),
        none(),
    ]);
    let at = |document: &str| Mock::given(method("GET")).and(path(format!("/latest/meta-data/{document}")));
    at("events/recommendations/rebalance").respond_with(answers).mount(&server).await;
    // One that hangs keeps nobody waiting who asks for an interruption.
    let hangs = none().set_delay(PATIENCE * 10);
    at("autoscaling/target-lifecycle-state").respond_with(hangs).mount(&server).await;
    let options = AwsOptions {
        outlook_interval: Duration::from_millis(1),
        request_timeout: Duration::from_millis(500),
        ..options(vec![server.uri()])
    };
    let (events, mut receiver) = mpsc::channel(16);
    tokio::spawn(Box::new(AwsSource::new(options).unwrap()).run(events));
    let notice = noticed(&mut receiver).await;
    assert_eq!((notice.id.as_str(), notice.certainty), ("aws:i-0abc:rebalance", Certainty::Likely));
    drain(&mut heard);
    assert_eq!(next(&mut receiver).await, NoticeEvent::Cancelled { id: notice.id });
    assert!(drain(&mut heard) > 10, "the other loop went on");
}

#[tokio::test]
async fn it_ends_when_nobody_listens() {
    let (server, mut heard) = service(vec![none()]).await;
    let (events, receiver) = mpsc::channel(1);
    let source = AwsSource::new(AwsOptions { poll_interval: PATIENCE * 100, ..options(vec![server.uri()]) }).unwrap();
    let task = tokio::spawn(Box::new(source).run(events));
    asked(&mut heard, 1).await;
    drop(receiver);
    tokio::time::timeout(PATIENCE, task).await.expect("an end in time").unwrap();
}

#[test]
fn a_source_that_never_rests_is_refused() {
    assert!(AwsSource::new(AwsOptions::default()).is_ok());
    let never = AwsOptions { poll_interval: Duration::ZERO, ..AwsOptions::default() };
    assert!(matches!(AwsSource::new(never), Err(SourceError::PollInterval { .. })));
}
