use wiremock::matchers::{body_json, header, method, path, query_param};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;
use crate::notice::testing::{PATIENCE, asked, drain, next, noticed, script};

const ID: &str = "602d9444-d2cd-49c7-8624-8643e7171297";

fn event(kind: &str, resources: &[&str]) -> Value {
    json!({
        "EventId": ID, "EventType": kind, "ResourceType": "VirtualMachine", "Resources": resources,
        "EventStatus": "Scheduled", "NotBefore": "Mon, 11 Apr 2026 22:26:58 GMT", "Description": "Whatever.",
        "EventSource": "Platform", "DurationInSeconds": -1,
    })
}

fn with(mut event: Value, key: &str, value: impl Into<Value>) -> Value {
    event[key] = value.into();
    event
}

fn events(events: &[Value]) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(json!({"DocumentIncarnation": 7, "Events": events}))
}

fn compute(eviction_policy: &str) -> ResponseTemplate {
    let document = json!({"name": "west_0", "vmId": "1", "priority": "Spot", "evictionPolicy": eviction_policy});
    ResponseTemplate::new(200).set_body_json(document)
}

/// A VM `west_0` whose service answers questions for events with these in turn.
async fn service(
    names: Vec<ResponseTemplate>,
    answers: Vec<ResponseTemplate>,
) -> (MockServer, mpsc::UnboundedReceiver<()>) {
    let server = MockServer::start().await;
    let get = |at: &str| Mock::given(method("GET")).and(path(format!("/{at}"))).and(header("Metadata", "true"));
    get(COMPUTE).and(query_param("format", "json")).respond_with(script(names).0).mount(&server).await;
    let (script, heard) = script(answers);
    get(EVENTS).and(query_param("api-version", "2020-07-01")).respond_with(script).mount(&server).await;
    (server, heard)
}

fn source(server: &MockServer) -> AzureSource {
    AzureSource::new(&AzureOptions {
        endpoints: vec![server.uri()],
        poll_interval: Duration::from_millis(1),
        first_timeout: PATIENCE,
        request_timeout: PATIENCE,
    })
    .unwrap()
}

fn watch(source: AzureSource) -> mpsc::Receiver<NoticeEvent> {
    let (events, receiver) = mpsc::channel(16);
    tokio::spawn(Box::new(source).run(events));
    receiver
}

#[tokio::test]
async fn a_preemption_is_read_as_azure_documents_it_and_called_off() {
    let answers = vec![events(&[]), events(&[event("Preempt", &["WEST_0"])]), events(&[])];
    let (server, _heard) = service(vec![compute("Deallocate")], answers).await;
    let mut received = watch(source(&server));
    let notice = noticed(&mut received).await;
    assert_eq!(notice.id, format!("azure:{ID}:stop"));
    assert_eq!((notice.instance.as_str(), notice.action), ("west_0", Action::Stop));
    assert_eq!(notice.deadline, Some("2026-04-11T22:26:58Z".parse().unwrap()));
    assert_eq!(next(&mut received).await, NoticeEvent::Cancelled { id: notice.id });
}

#[tokio::test]
async fn each_kind_of_event_is_what_becomes_of_the_vm() {
    for (kind, policy, action) in [
        ("Preempt", "Delete", Action::Terminate),
        ("Preempt", "", Action::Stop),
        ("Terminate", "", Action::Terminate),
        ("Reboot", "Delete", Action::Reboot),
        ("Redeploy", "Delete", Action::Reboot),
    ] {
        let (server, _heard) = service(vec![compute(policy)], vec![events(&[event(kind, &["west_0"])])]).await;
        let notice = noticed(&mut watch(source(&server))).await;
        assert_eq!((notice.action, notice.id), (action, format!("azure:{ID}:{action}")), "{kind}");
    }
}

#[tokio::test]
async fn events_of_others_pauses_and_what_takes_no_time_are_no_notices() {
    let short = with(event("Freeze", &["west_0"]), "DurationInSeconds", 5);
    let unnoticed = with(event("Reboot", &["west_0"]), "DurationInSeconds", 0);
    let unheard_of = event("Explode", &["west_0"]);
    let ours = with(event("Preempt", &["west_1", "west_0"]), "EventId", "ours");
    let answers =
        [event("Preempt", &["west_1"]), event("Preempt", &[]), short, unnoticed, unheard_of, json!({"EventId": 1})];
    let all = [answers.as_slice(), &[ours]].concat();
    let (server, _heard) = service(vec![compute("")], vec![events(&answers), events(&all)]).await;
    let mut received = watch(source(&server));
    assert_eq!(noticed(&mut received).await.id, "azure:ours:stop");
}

#[tokio::test]
async fn what_has_started_without_having_been_scheduled_is_a_notice_without_a_time() {
    let started = with(with(event("Reboot", &["west_0"]), "EventStatus", "Started"), "NotBefore", "");
    let (server, _heard) = service(vec![compute("")], vec![events(std::slice::from_ref(&started))]).await;
    let notice = noticed(&mut watch(source(&server))).await;
    assert_eq!((notice.action, notice.deadline), (Action::Reboot, None));
    // One that was scheduled before stays the notice that it was.
    let scheduled = event("Reboot", &["west_0"]);
    let started = events(&[started]);
    let answers = vec![events(&[scheduled]), started.clone(), started];
    let (server, mut heard) = service(vec![compute("")], answers).await;
    let mut received = watch(source(&server));
    assert!(noticed(&mut received).await.deadline.is_some());
    asked(&mut heard, 6).await;
    assert!(received.try_recv().is_err(), "one event for one notice");
}

#[tokio::test]
async fn a_time_that_is_none_does_not_hide_the_event() {
    let answer = events(&[with(event("Preempt", &["west_0"]), "NotBefore", "soon")]);
    let (server, _heard) = service(vec![compute("")], vec![answer]).await;
    assert_eq!(noticed(&mut watch(source(&server))).await.deadline, None);
}

#[tokio::test]
async fn nonsense_is_neither_a_notice_nor_the_end_of_one_nor_fatal() {
    let text = |body: &str| ResponseTemplate::new(200).set_body_string(body);
    let nonsense = vec![
        text(""),
        text("<html>"),
        text("{}"),
        text(r#"{"Events": 3}"#),
        text(&"x".repeat(1 << 20)),
        ResponseTemplate::new(400),
        ResponseTemplate::new(404),
        ResponseTemplate::new(429),
        ResponseTemplate::new(500),
    ];
    let rows = nonsense.len();
    let answers =
        [nonsense.clone(), vec![events(&[event("Preempt", &["west_0"])])], nonsense, vec![events(&[])]].concat();
    let (server, mut heard) = service(vec![compute("")], answers).await;
    let mut received = watch(source(&server));
    let notice = noticed(&mut received).await;
    let mut polls = drain(&mut heard);
    assert!(polls > rows, "a notice came out of nonsense, at poll {polls}");
    assert_eq!(next(&mut received).await, NoticeEvent::Cancelled { id: notice.id });
    polls += drain(&mut heard);
    assert!(polls > 2 * rows + 1, "a notice ended by nonsense, at poll {polls}");
}

#[tokio::test]
async fn events_wait_until_the_vm_knows_its_name() {
    let names = vec![ResponseTemplate::new(500), ResponseTemplate::new(200).set_body_string("{}"), compute("")];
    let answers =
        vec![events(&[event("Preempt", &["west_1"]), with(event("Preempt", &["west_0"]), "EventId", "ours")])];
    let (server, _heard) = service(names, answers).await;
    assert_eq!(noticed(&mut watch(source(&server))).await.id, "azure:ours:stop");
}

#[tokio::test]
async fn only_the_first_answer_may_take_minutes() {
    let slow = events(&[]).set_delay(Duration::from_millis(300));
    let hangs = events(&[]).set_delay(10 * PATIENCE);
    let (server, _heard) =
        service(vec![compute("")], vec![slow, hangs, events(&[event("Preempt", &["west_0"])])]).await;
    let options = AzureOptions {
        endpoints: vec![server.uri()],
        poll_interval: Duration::from_millis(1),
        first_timeout: PATIENCE,
        request_timeout: Duration::from_millis(200),
    };
    noticed(&mut watch(AzureSource::new(&options).unwrap())).await;
}

/// Mounts what hears approvals and answers them.
async fn approvals(server: &MockServer, event: &str, answer: ResponseTemplate, times: u64) {
    Mock::given(method("POST"))
        .and(path(format!("/{EVENTS}")))
        .and(header("Metadata", "true"))
        .and(query_param("api-version", "2020-07-01"))
        .and(body_json(json!({"StartRequests": [{"EventId": event}]})))
        .respond_with(answer)
        .up_to_n_times(times.max(1))
        .expect(times)
        .mount(server)
        .await;
}

#[tokio::test]
async fn an_event_of_this_vm_alone_is_approved_and_tried_again() {
    let (server, _heard) = service(vec![compute("")], vec![events(&[event("Preempt", &["west_0"])])]).await;
    approvals(&server, ID, ResponseTemplate::new(500), 1).await;
    approvals(&server, ID, ResponseTemplate::new(200), 1).await;
    let source = source(&server);
    let acknowledger = source.acknowledger().expect("Azure wants to know");
    let mut received = watch(source);
    let notice = noticed(&mut received).await;
    acknowledger.acknowledge(&notice).await;
    server.verify().await;
}

#[tokio::test]
async fn an_event_that_concerns_others_or_has_started_is_not_approved() {
    let started = with(event("Preempt", &["west_0"]), "EventStatus", "Started");
    for event in [event("Preempt", &["west_0", "west_1"]), started] {
        let (server, _heard) = service(vec![compute("")], vec![events(&[event])]).await;
        approvals(&server, ID, ResponseTemplate::new(200), 0).await;
        let source = source(&server);
        let acknowledger = source.acknowledger().expect("Azure wants to know");
        let notice = noticed(&mut watch(source)).await;
        acknowledger.acknowledge(&notice).await;
        server.verify().await;
    }
}
