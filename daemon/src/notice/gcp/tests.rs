use wiremock::matchers::{header, method, path, query_param, query_param_is_missing};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::planned::{ON_HOST_MAINTENANCE, UPCOMING};
use super::*;
use crate::notice::testing::{PATIENCE, asked, drain, next, noticed, script};

fn value(text: &str, etag: &str) -> ResponseTemplate {
    ResponseTemplate::new(200)
        .insert_header("Metadata-Flavor", "Google")
        .insert_header("ETag", etag)
        .set_body_string(text)
}

fn options(server: &MockServer) -> GcpOptions {
    GcpOptions {
        endpoints: vec![server.uri()],
        wait: Duration::from_secs(3),
        request_timeout: PATIENCE,
        poll_interval: Duration::from_millis(1),
        outlook_interval: Duration::from_millis(1),
        ..GcpOptions::default()
    }
}

fn watch(options: &GcpOptions) -> mpsc::Receiver<NoticeEvent> {
    let (events, receiver) = mpsc::channel(16);
    tokio::spawn(Box::new(GcpSource::new(options).unwrap()).run(events));
    receiver
}

/// Answers every `GET` of a path that carries the header with these in turn, waiting or not.
async fn serve(server: &MockServer, at: &str, answers: Vec<ResponseTemplate>) -> mpsc::UnboundedReceiver<()> {
    let (script, heard) = script(answers);
    let get = Mock::given(method("GET")).and(path(format!("/{at}"))).and(header("Metadata-Flavor", "Google"));
    get.respond_with(script).mount(server).await;
    heard
}

/// A server of a VM with its number, on which nothing else happens.
async fn uneventful() -> MockServer {
    let server = calm().await;
    serve(&server, PREEMPTED, vec![value("FALSE", "p").set_delay(PATIENCE)]).await;
    server
}

/// A server of a VM that is told of by its id and without maintenance.
async fn calm() -> MockServer {
    let server = MockServer::start().await;
    serve(&server, INSTANCE_ID, vec![value("4520031799277581759", "i")]).await;
    serve(&server, MAINTENANCE, vec![value("NONE", "m").set_delay(Duration::from_millis(50))]).await;
    server
}

#[tokio::test]
async fn a_preemption_is_waited_for_with_the_last_etag_and_stops_the_vm_in_thirty_seconds() {
    let server = calm().await;
    let get = || Mock::given(method("GET")).and(path(format!("/{PREEMPTED}")));
    get().and(query_param_is_missing("wait_for_change")).respond_with(value("FALSE", "e1")).mount(&server).await;
    // The first wait ends without a change.
    let waiting = || get().and(query_param("wait_for_change", "true")).and(query_param("timeout_sec", "3"));
    waiting().and(query_param("last_etag", "e1")).respond_with(value("FALSE", "e2")).expect(1).mount(&server).await;
    let (answer, _) = script(vec![value("TRUE", "e3"), value("TRUE", "e3").set_delay(PATIENCE)]);
    waiting().and(query_param("last_etag", "e2")).respond_with(answer).mount(&server).await;
    waiting()
        .and(query_param("last_etag", "e3"))
        .respond_with(value("TRUE", "e3").set_delay(PATIENCE))
        .mount(&server)
        .await;

    let notice = noticed(&mut watch(&options(&server))).await;

    assert_eq!(notice.id, "gcp:4520031799277581759:stop");
    assert_eq!((notice.action, notice.certainty), (Action::Stop, Certainty::Certain));
    assert_eq!(notice.lead_time(notice.received), Some(Duration::from_secs(30)));
    server.verify().await;
}

#[tokio::test]
async fn what_the_operator_says_of_the_vm_makes_it_a_deletion_in_two_minutes() {
    let server = calm().await;
    serve(&server, PREEMPTED, vec![value("TRUE", "e")]).await;
    let options =
        GcpOptions { notice_period: Duration::from_secs(120), reclaim: Action::Terminate, ..options(&server) };
    let notice = noticed(&mut watch(&options)).await;
    assert_eq!(notice.id, "gcp:4520031799277581759:terminate");
    assert_eq!(notice.lead_time(notice.received), Some(Duration::from_secs(120)));
}

#[tokio::test]
async fn maintenance_is_watched_at_the_same_time_and_a_live_migration_is_no_notice() {
    for (restart, action, id) in [("TRUE", Action::Reboot, "reboot"), ("FALSE", Action::Stop, "stop")] {
        let server = MockServer::start().await;
        serve(&server, INSTANCE_ID, vec![value("42", "i")]).await;
        // Nobody answers the other question in time.
        serve(&server, PREEMPTED, vec![value("FALSE", "p").set_delay(PATIENCE)]).await;
        serve(&server, AUTOMATIC_RESTART, vec![value(restart, "r")]).await;
        let says = ["NONE", "MIGRATE_ON_HOST_MAINTENANCE", "NONE", "TERMINATE_ON_HOST_MAINTENANCE", "NONE"];
        let says = says.iter().enumerate().map(|(n, text)| value(text, &n.to_string())).collect();
        serve(&server, MAINTENANCE, says).await;
        let mut events = watch(&options(&server));
        let notice = noticed(&mut events).await;
        assert_eq!((notice.id, notice.action), (format!("gcp:maintenance-42:{id}"), action));
        assert_eq!(next(&mut events).await, NoticeEvent::Cancelled { id: format!("gcp:maintenance-42:{id}") });
    }
}

#[tokio::test]
async fn nonsense_is_neither_a_notice_nor_the_end_of_one_nor_fatal() {
    let text = |body: &str| value(body, "e");
    let nonsense = vec![
        text(""),
        text("true!"),
        text("<html>"),
        // Anybody can say so; without the header it is not Google.
        ResponseTemplate::new(200).set_body_string("TRUE"),
        ResponseTemplate::new(200).insert_header("Metadata-Flavor", "Other").set_body_string("FALSE"),
        ResponseTemplate::new(301).insert_header("location", "/elsewhere"),
        ResponseTemplate::new(403),
        ResponseTemplate::new(404),
        ResponseTemplate::new(429),
        ResponseTemplate::new(500),
        ResponseTemplate::new(503),
    ];
    let rows = nonsense.len();
    let server = calm().await;
    let answers = [nonsense.clone(), vec![text("TRUE")], nonsense, vec![text("FALSE")]].concat();
    let mut heard = serve(&server, PREEMPTED, answers).await;
    let mut events = watch(&options(&server));
    let notice = noticed(&mut events).await;
    let mut polls = drain(&mut heard);
    assert!(polls > rows, "a notice came out of nonsense, at poll {polls}");
    assert_eq!(next(&mut events).await, NoticeEvent::Cancelled { id: notice.id });
    polls += drain(&mut heard);
    assert!(polls > 2 * rows + 1, "a notice ended by nonsense, at poll {polls}");
}

#[tokio::test]
async fn a_server_that_hangs_or_is_not_there_is_asked_anew_at_the_next_address() {
    let server = calm().await;
    serve(&server, PREEMPTED, vec![value("FALSE", "e").set_delay(10 * PATIENCE), value("TRUE", "e")]).await;
    let options = GcpOptions {
        // Nothing listens on the discard port of loopback.
        endpoints: vec!["http://127.0.0.1:9".to_owned(), server.uri()],
        request_timeout: Duration::from_millis(200),
        ..options(&server)
    };
    noticed(&mut watch(&options)).await;
}

#[tokio::test]
async fn a_notice_does_not_wait_for_the_id() {
    let server = MockServer::start().await;
    let mut ids = serve(&server, INSTANCE_ID, vec![ResponseTemplate::new(500), value("42", "i")]).await;
    serve(&server, MAINTENANCE, vec![value("NONE", "m").set_delay(PATIENCE)]).await;
    serve(&server, PREEMPTED, vec![value("TRUE", "e")]).await;
    let mut events = watch(&options(&server));
    assert_eq!(noticed(&mut events).await.id, "gcp:unknown:stop");
    asked(&mut ids, 2).await;
    assert!(events.try_recv().is_err(), "learning the id does not make it another notice");
}

/// A plan whose window begins in so many seconds.
fn plan(seconds: i64) -> ResponseTemplate {
    let start = Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    let end = start + jiff::SignedDuration::from_hours(4);
    let plan = serde_json::json!({
        "can_reschedule": "true", "latest_window_start_time": end.to_string(), "maintenance_status": "PENDING",
        "type": "SCHEDULED", "window_end_time": end.to_string(), "window_start_time": start.to_string(),
    });
    value(&plan.to_string(), "u")
}

#[tokio::test]
async fn planned_maintenance_is_a_notice_from_its_lead_on_and_ends_with_the_plan() {
    let server = uneventful().await;
    serve(&server, AUTOMATIC_RESTART, vec![value("TRUE", "r")]).await;
    serve(&server, ON_HOST_MAINTENANCE, vec![value("TERMINATE", "o")]).await;
    let absent = ResponseTemplate::new(404).insert_header("Metadata-Flavor", "Google");
    let unknown = ResponseTemplate::new(503);
    let near = plan(540);
    let answers = vec![
        absent,
        unknown.clone(),
        value("{ }", "u"),
        plan(100 * 3600),
        near.clone(),
        // Neither repeats nor ends it.
        near,
        unknown,
        value("[]", "u"),
        ResponseTemplate::new(500),
        // Put off by a minute, and by a week.
        plan(595),
        plan(100 * 3600),
    ];
    let polls = answers.len();
    let mut heard = serve(&server, UPCOMING, answers).await;
    let mut events = watch(&options(&server));

    let notice = noticed(&mut events).await;
    assert_eq!(notice.id, "gcp:upcoming-maintenance-4520031799277581759:reboot");
    assert_eq!((notice.action, notice.certainty), (Action::Reboot, Certainty::Certain));
    let left = notice.lead_time(notice.received).expect("a deadline");
    assert!(left <= Duration::from_secs(540), "{left:?}");

    let put_off = noticed(&mut events).await;
    assert_eq!(put_off.id, notice.id);
    assert!(put_off.deadline > notice.deadline, "{put_off}");
    assert_eq!(next(&mut events).await, NoticeEvent::Cancelled { id: notice.id });
    asked(&mut heard, polls).await;
}

#[tokio::test]
async fn a_vm_that_is_moved_as_it_runs_stays_at_planned_maintenance() {
    let server = uneventful().await;
    serve(&server, ON_HOST_MAINTENANCE, vec![value("MIGRATE", "o")]).await;
    let mut heard = serve(&server, UPCOMING, vec![plan(60)]).await;
    let mut events = watch(&options(&server));
    asked(&mut heard, 5).await;
    assert!(events.try_recv().is_err(), "a live migration is no reason to leave");
}
