use serde_json::json;
use wiremock::matchers::{method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;

fn heard(facts: &[(Fact, &str)]) -> (Option<String>, Option<String>, Option<bool>, Option<String>) {
    let machine = Machine::default();
    facts.iter().for_each(|(fact, text)| machine.hear(*fact, text));
    let word = |what: &OnceLock<String>| what.get().cloned();
    (word(&machine.machine_type), word(&machine.zone), machine.spot.get().copied(), machine.pool())
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn what_clouds_say_is_read_in_their_own_words() {
    let aws = [(Fact::Type, "c7i.large"), (Fact::Zone, "eu-central-1a\n"), (Fact::Spot, "spot")];
    assert_eq!(heard(&aws), (some("c7i.large"), some("eu-central-1a"), Some(true), some("c7i.large/eu-central-1a")));
    let google = [
        (Fact::Type, "projects/123456789012/machineTypes/n2-standard-2"),
        (Fact::Zone, "projects/123456789012/zones/europe-west1-b"),
        (Fact::Spot, "FALSE"),
    ];
    assert_eq!(heard(&google), (some("n2-standard-2"), some("europe-west1-b"), Some(false), None));
}

#[test]
fn azure_says_all_of_it_at_once() {
    let compute = |priority: &str, zone: &str| {
        let document = json!({
            "location": "westeurope", "priority": priority, "vmSize": "Standard_D2s_v5", "zone": zone, "vmId": "1",
        });
        heard(&[(Fact::Compute, &document.to_string())])
    };
    let (kind, zone) = (some("Standard_D2s_v5"), some("westeurope-1"));
    let pool = some("Standard_D2s_v5/westeurope-1");
    assert_eq!(compute("Spot", "1"), (kind.clone(), zone.clone(), Some(true), pool.clone()));
    assert_eq!(compute("Low", "1"), (kind.clone(), zone.clone(), Some(true), pool));
    assert_eq!(compute("", "1"), (kind.clone(), zone, Some(false), None));
    assert_eq!(compute("Regular", ""), (kind, None, Some(false), None), "a region without zones");
    assert_eq!(heard(&[(Fact::Compute, "<html>")]), (None, None, None, None));
}

#[test]
fn only_a_known_spot_machine_is_of_a_pool_and_the_first_word_stands() {
    let (kind, zone) = ((Fact::Type, "c7i.large"), (Fact::Zone, "eu-central-1a"));
    assert_eq!(heard(&[kind, zone]).3, None);
    assert_eq!(heard(&[kind, zone, (Fact::Spot, "on-demand")]).3, None);
    assert_eq!(heard(&[kind, (Fact::Spot, "spot")]).3, None);
    // As when an operator has named another zone beforehand.
    assert_eq!(heard(&[zone, (Fact::Zone, "eu-central-1b")]).1, some("eu-central-1a"));
    assert_eq!(heard(&[(Fact::Type, "<html>"), (Fact::Zone, "")]), (None, None, None, None));
}

#[tokio::test]
async fn everything_is_asked_of_whichever_address_answers_and_no_answer_is_one() {
    let server = MockServer::start().await;
    Mock::given(method("PUT")).respond_with(ResponseTemplate::new(200).set_body_string("token")).mount(&server).await;
    for (at, body) in [("instance-type", "c7i.large"), ("instance-life-cycle", "on-demand")] {
        let get = Mock::given(method("GET")).and(path(format!("/latest/meta-data/{at}")));
        get.respond_with(ResponseTemplate::new(200).set_body_string(body)).mount(&server).await;
    }
    let service = |address: &str| Service::new(super::super::aws::PROBE.dialect, &[address.to_owned()], PATIENCE);
    let mut services = [service("http://127.0.0.1:9").unwrap(), service(&server.uri()).unwrap()];
    let machine = Machine::default();
    machine.say(None, Some("eu-central-1b".to_owned()), None);
    ask(Cloud::Aws, &mut services, &machine).await;
    assert_eq!(machine.machine_type.get().map(String::as_str), Some("c7i.large"));
    assert_eq!((machine.spot.get(), machine.zone_id.get()), (Some(&false), None));
    assert_eq!(machine.zone.get().map(String::as_str), Some("eu-central-1b"));
}
