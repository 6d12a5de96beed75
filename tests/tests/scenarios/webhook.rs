//! A service beside the clouds says that a host is taken away, and hears what becomes of it.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::configured::Configured;
use crate::redis::{assert_faithful, under_load};
use crate::scene::Scene;

/// The service; see there.
const SAAS: &str = include_str!("programs/saas.py");

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// The daemon of `a` takes webhooks with the certificate that it has for other hosts.
const TABLE: &str = "[webhook]\nlisten = '0.0.0.0:7443'\ncert = '/etc/spothop/tls/host.pem'\nkey = '/etc/spothop/tls/host.key'\n\
                     [[webhook.senders]]\nname = 'saas'\nsecret_file = '/etc/spothop/saas'\n\
                     [[notifications]]\nurl = 'http://127.0.0.1:8099/'\nsecret_file = '/etc/spothop/saas'";

/// Who is told what becomes of it; see there.
const RECEIVER: &str = include_str!("programs/receiver.py");

/// What is sent, and when it says that it was signed.
struct Event<'a> {
    id: &'a str,
    secret: &'a str,
    age: u32,
    body: &'a str,
    /// Put in the body's place on the way.
    forged: Option<&'a str>,
}

/// Sends an event from beside the hosts. Returns the status and what was answered.
fn send(scene: &Scene, event: &Event<'_>) -> (u16, Value) {
    let Event { id, secret, age, body, forged } = *event;
    let (address, age) = (scene.state().host("a").expect("a host").address.to_string(), age.to_string());
    let first = ["timeout", "60", "python3", "-c", SAAS, &address, "7443", "a", "/tmp/ca.pem", secret, id, &age, body];
    let mut command = scene.client(first.into_iter().chain(forged)).expect("a client");
    let output = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let (status, answer) =
        said.split_once(' ').unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (status.parse().expect("a status"), serde_json::from_str(answer).expect("JSON"))
}

pub(crate) fn a_service_that_signs_repeats_and_is_imitated_evacuates_the_host_once_and_hears_of_it(scene: &Scene) {
    scene.sh("a", &format!("umask 077; echo {SECRET} > /etc/spothop/saas"));
    let authority = scene.sh("a", "cat /etc/spothop/tls/ca.pem");
    let mut keep = scene.client(["sh", "-c", "echo \"$0\" > /tmp/ca.pem", &authority]).expect("a client");
    assert!(keep.status().expect("it starts").success());
    scene.sh("a", "rm -f /tmp/told");
    let receiver = ["systemd-run", "--unit=receiver", "--collect", "python3", "-c", RECEIVER, SECRET];
    scene.output("a", receiver).expect("a receiver");
    let configured = Configured::adding(scene, &["a"], TABLE);
    let (redis, client) = under_load(scene, 32);
    let since = Timestamp::now();
    let deadline = since + SignedDuration::from_secs(110);
    let body = |host: &str| json!({ "type": "instance.terminate", "data": { "instance": host, "deadline": deadline } });
    let (ours, others) = (body("a").to_string(), body("b").to_string());
    let right = Event { id: "evt_1", secret: SECRET, age: 0, body: &ours, forged: None };

    // None of these is heard: another secret, another body, one of long ago, another host's.
    let refused = [
        (401, Event { secret: "whsec_AAAA", ..right }),
        (401, Event { body: &others, forged: Some(&ours), ..right }),
        (401, Event { age: 400, ..right }),
        (421, Event { body: &others, ..right }),
    ];
    for (status, event) in &refused {
        let answer = send(scene, event);
        assert_eq!(answer.0, *status, "{}", answer.1);
    }
    let status = scene.spothop("a", &["status"]).json;
    assert_eq!(status["notices"], json!([]), "{status:#}");

    let accepted = (202, json!({ "evacuation": "webhook:saas/terminate" }));
    assert_eq!(send(scene, &right), accepted);
    assert_eq!(send(scene, &right), accepted, "again, as after an answer that was lost");

    let name = redis.name();
    scene.eventually("a", &format!("! docker inspect {name}"));
    scene.eventually("b", &format!("docker inspect --format={{{{.State.Running}}}} {name} | grep true"));
    assert_eq!(send(scene, &right), accepted, "and when all is over");
    let history = scene.spothop("a", &["history", "--limit", "50"]).json;
    let all = history.as_array().expect("a list");
    let caused: Vec<_> = all.iter().filter(|one| one["cause"] == accepted.1["evacuation"]).collect();
    assert_eq!((caused.len(), &caused[0]["outcome"]), (1, &json!("moved")), "{caused:#?}");
    let report = assert_faithful(client);
    eprintln!("longest gap {:.0} ms", report.longest_gap_ms);

    // The first was not heard at once, and came again.
    for told in ["notice.received", "evacuation.started", "container.moved", "evacuation.finished"] {
        scene.eventually("a", &format!("grep -q {told} /tmp/told"));
    }
    let told = scene.sh("a", "sort /tmp/told");
    let expected = ["container.moved", "evacuation.finished", "evacuation.started", "notice.received"];
    assert_eq!(told.split_whitespace().collect::<Vec<_>>(), expected);

    let withdrawn = json!({ "type": "instance.withdrawn", "data": { "instance": "a" } }).to_string();
    assert_eq!(send(scene, &Event { id: "evt_2", body: &withdrawn, ..right }).0, 202);
    scene.eventually("a", "spothop status --json | tr -d ' \\n' | grep -q '\"notices\":\\[\\]'");
    scene.eventually("a", "grep -q notice.withdrawn /tmp/told");
    drop(configured);
    scene.sh("a", "systemctl stop receiver");
}
