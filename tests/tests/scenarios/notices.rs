//! What a host does about the notices that it gets: one evacuation for all of them, and none for what is withdrawn.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use spothop_tests::events::{Events, Kind};
use spothop_tests::imds::Action;
use spothop_tests::imds::ahead::{Document, lifecycle, maintenance, rebalance};
use spothop_tests::moto::{ACCOUNT, REGION};

use crate::post_copy::{Client, Slow, writer};
use crate::provider::cloud_over;
use crate::scene::{HOSTS, Scene};
use crate::targets::PutBack;

/// What the writer writes a second, in MiB: half of what the slow link takes, so that its rounds go on for seconds.
const RATE: &str = "12";

/// The daemon's.
pub(crate) const CONFIGURATION: &str = "/etc/spothop/config.toml";

/// Long enough for everything here.
const LEAD: Duration = Duration::from_secs(120);

/// What is foretold of host `a`, until this is dropped.
pub(crate) struct Foretold<'a>(&'a Scene, Document);

impl<'a> Foretold<'a> {
    pub(crate) fn of(scene: &'a Scene, document: Document) -> Self {
        scene.foretell("a", document.clone()).expect("a metadata service");
        Self(scene, document)
    }
}

impl Drop for Foretold<'_> {
    fn drop(&mut self) {
        // A panic here would hide the reason of one that is on its way.
        if let Err(error) = self.0.recant("a", &self.1) {
            eprintln!("{error}");
        }
    }
}

/// Takes the interruption back, and waits until no notice is in force.
pub(crate) fn calm(scene: &Scene) {
    scene.cancel_notice("a").expect("a cancellation");
    scene.eventually("a", "spothop status --json | tr -d ' \\n' | grep -q '\"notices\":\\[\\]'");
}

/// The migrations of a container that `a` knows of, the newest first.
fn history(scene: &Scene, container: &str) -> Vec<Value> {
    let answer = scene.spothop("a", &["history", "--limit", "50"]);
    let all = answer.json.as_array().unwrap_or_else(|| panic!("{answer:?}"));
    all.iter().filter(|one| one["container"] == container).cloned().collect()
}

/// When a migration entered a phase.
fn entered(migration: &Value, phase: &str) -> Option<Timestamp> {
    let entry = migration["phases"].as_array()?.iter().find(|entry| entry["phase"] == phase)?;
    entry["at"].as_str()?.parse().ok()
}

/// The end of the next migration from `a`: its outcome, and why.
pub(crate) fn end(events: &mut Events) -> (String, Option<String>) {
    let end = events.find_map(|event| match event.expect("an event").kind {
        Kind::Finished { outcome, reason } => Some((outcome, reason)),
        _ => None,
    });
    end.expect("an end")
}

pub(crate) fn what_is_only_likely_prepares_the_target_and_moves_nothing(scene: &Scene) {
    let build = "printf 'FROM python\\nLABEL only=likely\\n' | DOCKER_BUILDKIT=0 docker build -q -t likely -";
    let image = scene.sh("a", build);
    scene.sh("b", "docker image rm -f likely 2>/dev/null || true");
    scene.run("a", "l1", "--network=lan --ip=172.30.0.55 likely", &["sleep", "1000"]);
    let before = scene.inspect("a", "l1")["State"].clone();

    let foretold = Foretold::of(scene, rebalance(Timestamp::now()));

    scene.eventually("b", "docker image inspect likely");
    assert_eq!(scene.sh("b", "docker image inspect --format={{.Id}} likely"), image);
    assert_eq!(scene.sh("b", "docker ps --all --quiet"), "", "nothing but the image is made");
    // Nobody sends a container to a host that may be gone soon.
    scene.eventually("b", "spothop hosts | grep -q rebalance");
    let status = scene.spothop("a", &["status"]).json;
    assert_eq!(status["notices"][0]["certainty"], "likely", "{status:#}");
    assert_eq!(scene.inspect("a", "l1")["State"], before);
    assert!(history(scene, "l1").is_empty());

    drop(foretold);
    calm(scene);
    scene.eventually("b", "! spothop hosts | grep -q rebalance");
    scene.sh("b", "docker image rm likely");
}

pub(crate) fn what_is_only_likely_moves_containers_where_it_shall_but_none_that_came_just_now(scene: &Scene) {
    let _later = PutBack::later(scene, "a", CONFIGURATION);
    scene.sh("a", &format!("printf '\\n[notice]\\nlikely = \"evacuate\"\\n' >> {CONFIGURATION}"));
    scene.sh("a", "journalctl --rotate --quiet; journalctl --vacuum-time=1s --quiet");
    scene.restart_daemon("a");
    scene.run("b", "l1", "--network=lan --ip=172.30.0.55 python", &["sleep", "1000"]);
    scene.migrate("b", "l1", "a");
    let before = history(scene, "l1").len();

    let foretold = Foretold::of(scene, rebalance(Timestamp::now()));

    // It stays, and `b` is prepared.
    scene.eventually("a", "journalctl -u spothop | grep -q 'prepared: the image is there'");
    assert_eq!(history(scene, "l1").len(), before);

    // Nothing has come lately any more.
    scene.sh("a", &format!("echo 'likely_cooldown = \"1ms\"' >> {CONFIGURATION}"));
    scene.restart_daemon("a");
    scene.eventually("b", "docker inspect --format={{.State.Running}} l1 | grep true");
    scene.nothing_is_left("b", "l1", &HOSTS);
    let moved = history(scene, "l1").remove(0);
    assert!(moved["cause"].as_str().is_some_and(|cause| cause.ends_with(":rebalance")), "{moved:#}");
    assert_eq!(moved["deadline"], Value::Null, "{moved:#}");
    drop(foretold);
    calm(scene);
}

pub(crate) fn a_scheduled_maintenance_moves_containers_before_it_begins(scene: &Scene) {
    scene.run("a", "m1", "--network=lan --ip=172.30.0.55 python", &["sleep", "1000"]);
    let mut events = Events::follow(scene, "a").expect("a stream of events");
    let start = Timestamp::now() + SignedDuration::from_mins(5);

    let foretold = Foretold::of(scene, maintenance("system-reboot", start, "active"));

    assert_eq!(end(&mut events), ("moved".to_owned(), None));
    let moved = history(scene, "m1").remove(0);
    assert_eq!(moved["cause"], "aws:instance-event-0d59937288b749b32:reboot", "{moved:#}");
    assert!(entered(&moved, "committed").is_some_and(|committed| committed < start), "{moved:#}");
    scene.nothing_is_left("b", "m1", &HOSTS);
    drop(foretold);
    calm(scene);
}

pub(crate) fn a_notice_that_is_withdrawn_stops_what_is_not_frozen_and_the_container_runs_on(scene: &Scene) {
    writer(scene, RATE, "");
    let before = scene.inspect("a", "w1")["State"].clone();
    let since = Timestamp::now();
    let client = Client::of(scene);
    let slow = Slow::link(scene);
    let mut events = Events::follow(scene, "a").expect("a stream of events");
    scene.notice("a", Action::Terminate, LEAD).expect("a notice");
    let round = |kind: &Kind| matches!(kind, Kind::Phase { phase } if phase.starts_with("pre-copy"));
    assert!(events.any(|event| round(&event.expect("an event").kind)), "there was no round");

    scene.cancel_notice("a").expect("a cancellation");

    let (outcome, reason) = end(&mut events);
    assert_eq!(outcome, "aborted");
    assert!(reason.as_ref().is_some_and(|reason| reason.contains("withdrawn")), "{reason:?}");
    drop(slow);
    calm(scene);
    // Others before this have moved containers of that name.
    let is_new = |one: &Value| entered(one, "planned").is_some_and(|at| at >= since);
    let migrations: Vec<Value> = history(scene, "w1").into_iter().filter(is_new).collect();
    assert_eq!(migrations.len(), 1, "{migrations:#?}");
    assert_eq!(entered(&migrations[0], "frozen"), None, "{:#}", migrations[0]);
    assert_eq!(scene.inspect("a", "w1")["State"], before);
    let gap = client.assert_faithful();
    eprintln!("longest wait for an answer {gap:?}");
    scene.nothing_is_left("a", "w1", &HOSTS);
    // And it can leave when there is a reason again.
    scene.migrate("a", "w1", "b");
}

pub(crate) fn several_notices_are_one_evacuation(scene: &Scene) {
    let names = ["n1", "n2", "n3"];
    for (name, address) in names.iter().zip(56..) {
        scene.run("a", name, &format!("--network=lan --ip=172.30.0.{address} python"), &["sleep", "1000"]);
    }
    let since = Timestamp::now();
    let foretold = Foretold::of(scene, lifecycle("Terminated"));
    scene.notice("a", Action::Terminate, LEAD).expect("a notice");

    for name in names {
        scene.eventually("b", &format!("docker inspect --format={{{{.State.Running}}}} {name} | grep true"));
        scene.eventually("a", &format!("! docker inspect {name}"));
    }
    scene.eventually("a", "spothop status --json | tr -d ' \\n' | grep -q 'autoscaling:terminate.*:terminate'");
    let mut first = SignedDuration::MAX;
    for name in names {
        let migrations = history(scene, name);
        assert_eq!(migrations.len(), 1, "{migrations:#?}");
        // Its target has answered by then.
        let reserved = entered(&migrations[0], "reserved").expect("a reservation");
        first = first.min(reserved.duration_since(since));
    }
    eprintln!("{} ms from the notice to the first word of a target", first.as_millis());
    drop(foretold);
    calm(scene);
}

pub(crate) fn a_container_without_a_target_is_moved_when_a_host_appears_before_the_deadline(scene: &Scene) {
    scene.run("a", "o1", "--network=lan --ip=172.30.0.56 python", &["sleep", "1000"]);
    scene.sh("b", "systemctl stop spothop");
    let mut events = Events::follow(scene, "a").expect("a stream of events");
    let notice = scene.notice("a", Action::Terminate, LEAD).expect("a notice");
    scene.eventually("a", "journalctl -u spothop -b --since=-1min | grep -q 'this container stays for now.*o1'");
    assert!(history(scene, "o1").is_empty());
    // Also one that is started only now.
    scene.run("a", "o2", "--network=lan --ip=172.30.0.57 python", &["sleep", "1000"]);

    scene.sh("b", "systemctl start spothop");

    for _ in 0..2 {
        assert_eq!(end(&mut events), ("moved".to_owned(), None));
    }
    for name in ["o1", "o2"] {
        let committed = history(scene, name).first().and_then(|migration| entered(migration, "committed"));
        assert!(committed.is_some_and(|committed| committed < notice.time), "{name}: {committed:?}");
        assert_eq!(scene.inspect("b", name)["State"]["Running"], true);
    }
    calm(scene);
}

/// What EventBridge puts into a queue when an instance is interrupted.
fn interruption(instance: &str) -> String {
    json!({
        "version": "0", "id": "7bf73129-1428-4cd3-a780-95db273d1602",
        "detail-type": "EC2 Spot Instance Interruption Warning", "source": "aws.ec2", "account": ACCOUNT,
        "time": Timestamp::now().to_string(), "region": REGION, "resources": [],
        "detail": { "instance-id": instance, "instance-action": "terminate" },
    })
    .to_string()
}

pub(crate) fn a_message_in_a_queue_evacuates_the_host_that_it_is_about_and_no_other(_: &Scene) {
    let scene = Scene::up("e2e-queue");
    let (moto, [ours, theirs]) = cloud_over(&scene);
    let queue = moto.make_queue("notices").expect("a queue");
    scene.sh("a", &format!("printf '\\n[notice.sqs]\\nqueue_url = \"{queue}\"\\n' >> /etc/spothop/config.toml"));
    scene.restart_daemon("a");
    scene.run("a", "q1", "--network=lan --ip=172.30.0.58 python", &["sleep", "1000"]);
    let mut events = Events::follow(&scene, "a").expect("a stream of events");
    moto.send(&queue, &interruption(&theirs)).expect("a message");
    moto.send(&queue, &interruption(&ours)).expect("a message");

    assert_eq!(end(&mut events), ("moved".to_owned(), None));

    let status = scene.spothop("a", &["status"]).json;
    assert_eq!(status["notices"].as_array().map(Vec::len), Some(1), "{status:#}");
    assert_eq!(status["notices"][0]["id"], format!("aws:{ours}:terminate"));
    // The other one's is there for it; while it is looked at, nobody else has it.
    let left = std::iter::from_fn(|| moto.count(&queue).ok()).take(20).find(|count| count == "1 0");
    assert!(left.is_some(), "{:?}", moto.count(&queue));
}
