//! Notices of all clouds but AWS (see `redis`), and of the machine itself: each is found, heard, and moves Redis under load.

use std::thread;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use spothop_tests::events::Events;
use spothop_tests::imds::ahead::upcoming_maintenance;
use spothop_tests::imds::{Action, Cloud};

use crate::notices::{Foretold, calm, end};
use crate::redis::{assert_faithful, under_load};
use crate::scene::Scene;

/// Host `a` as an instance of another cloud, which its daemon finds out.
struct Elsewhere<'a>(&'a Scene);

impl<'a> Elsewhere<'a> {
    fn of(scene: &'a Scene, cloud: Cloud) -> Self {
        let elsewhere = Self(scene);
        scene.set_cloud("a", cloud).expect("a metadata service");
        scene.sh("a", "journalctl --rotate --quiet; journalctl --vacuum-time=1s --quiet");
        scene.restart_daemon("a");
        let name = format!("{cloud:?}").to_lowercase();
        scene.eventually("a", &format!("journalctl -u spothop | grep -q 'listening to the notices.*cloud={name}'"));
        elsewhere
    }
}

impl Drop for Elsewhere<'_> {
    fn drop(&mut self) {
        // A panic here, while another one is on its way, would hide the reason of both.
        let put_back = self.0.set_cloud("a", Cloud::Aws);
        let restarted = put_back.and_then(|()| self.0.output("a", ["systemctl", "restart", "spothop"]));
        if let Err(error) = restarted {
            eprintln!("a is not as it was: {error}");
        }
    }
}

/// The cloud takes `a` away, and Redis moves to `b` with its connection; `then` looks at what comes of it while the notice is out.
fn evacuated(scene: &Scene, cloud: Cloud, action: Action, lead: Duration, then: impl FnOnce(&Scene)) {
    let _elsewhere = Elsewhere::of(scene, cloud);
    let (redis, client) = under_load(scene, 16);
    let keys = redis.key_count().expect("a number");
    let mut events = Events::follow(scene, "a").expect("a stream of events");
    scene.notice("a", action, lead).expect("a notice");
    assert_eq!(end(&mut events), ("moved".to_owned(), None));
    let report = assert_faithful(client);
    eprintln!("{cloud:?}: longest gap {:.0} ms", report.longest_gap_ms);
    redis.verify().expect("the data of the beginning");
    assert_eq!(redis.key_count().expect("a number"), keys);
    scene.nothing_is_left("b", "r1", &["a", "b"]);
    then(scene);
    calm(scene);
}

pub(crate) fn googles_preemption_moves_redis_with_its_connection(scene: &Scene) {
    // The time is not told; thirty seconds are what Google gives.
    evacuated(scene, Cloud::Gcp, Action::Stop, Duration::from_secs(30), |_| {});
}

pub(crate) fn maintenance_that_google_plans_moves_redis_when_it_is_near_and_no_sooner(scene: &Scene) {
    let _elsewhere = Elsewhere::of(scene, Cloud::Gcp);
    let (redis, client) = under_load(scene, 16);
    let keys = redis.key_count().expect("a number");
    let mut events = Events::follow(scene, "a").expect("a stream of events");
    let foretold = Foretold::of(scene, upcoming_maintenance(Timestamp::now() + SignedDuration::from_hours(24)));
    scene.eventually("a", "journalctl -u spothop | grep -q 'Google plans maintenance from'");
    assert_eq!(scene.spothop("a", &["status"]).json["notices"], json!([]));
    drop(foretold);

    // Brought forward.
    let start = Timestamp::now() + SignedDuration::from_mins(5);
    let foretold = Foretold::of(scene, upcoming_maintenance(start));
    assert_eq!(end(&mut events), ("moved".to_owned(), None));

    let report = assert_faithful(client);
    eprintln!("longest gap {:.0} ms", report.longest_gap_ms);
    redis.verify().expect("the data of the beginning");
    assert_eq!(redis.key_count().expect("a number"), keys);
    let status = scene.spothop("a", &["status"]).json;
    let id = status["notices"][0]["id"].as_str().unwrap_or_default();
    assert!(id.starts_with("gcp:upcoming-maintenance-") && id.ends_with(":reboot"), "{status:#}");
    drop(foretold);
    calm(scene);
}

pub(crate) fn azures_preemption_moves_redis_with_its_connection_and_is_approved_when_that_runs(scene: &Scene) {
    evacuated(scene, Cloud::Azure, Action::Stop, Duration::from_secs(120), |scene| {
        let started = "http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01";
        scene.eventually("a", &format!("curl -s -H Metadata:true '{started}' | grep -q Started"));
        let approved = scene.metadata("a").expect("a metadata service").approved.expect("an approval");
        let record = scene.spothop("b", &["history", "--limit", "1"]).json[0].take();
        let runs = entered(&record, "running");
        assert!(approved > runs, "approved at {approved}, and it runs since {runs}");
        eprintln!("approved {} after it ran", approved.duration_since(runs));
    });
}

pub(crate) fn alibabas_termination_time_moves_redis_with_its_connection(scene: &Scene) {
    evacuated(scene, Cloud::Alibaba, Action::Terminate, Duration::from_secs(300), |_| {});
}

pub(crate) fn tencents_termination_time_moves_redis_with_its_connection(scene: &Scene) {
    evacuated(scene, Cloud::Tencent, Action::Terminate, Duration::from_secs(120), |scene| {
        // Eight hours from now, or eight hours ago, would be the same time in another zone.
        let record = scene.spothop("a", &["history", "--limit", "1"]).json[0].take();
        let left = time(&record["deadline"]).duration_since(entered(&record, "planned"));
        assert!((60..=120).contains(&left.as_secs()), "{left}");
    });
}

/// When a migration has entered a phase.
fn entered(record: &Value, phase: &str) -> Timestamp {
    let mut phases = record["phases"].as_array().into_iter().flatten();
    let entry = phases.find(|entry| entry["phase"] == phase).unwrap_or_else(|| panic!("no {phase} in {record:#}"));
    time(&entry["at"])
}

fn time(value: &Value) -> Timestamp {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("a time: {value}"))
}

pub(crate) fn a_machine_that_is_powered_off_waits_until_its_containers_are_gone(_: &Scene) {
    let scene = Scene::up("e2e-poweroff");
    // The hosts of the testbed have no logind unless they need it.
    scene.sh("a", "systemctl unmask systemd-logind 2>&1; systemctl daemon-reload; systemctl start systemd-logind");
    scene.sh("a", "printf '[notice]\\nshutdown = \"evacuate\"\\n' >> /etc/spothop/config.toml");
    scene.restart_daemon("a");
    scene.eventually("a", "journalctl -u spothop | grep -q 'a shutdown of this machine moves its containers first'");
    let (redis, client) = under_load(&scene, 64);
    let keys = redis.key_count().expect("a number");
    let first = scene.state().host("a").expect("a host").pid;

    scene.sh("a", "systemctl poweroff");

    scene.eventually("b", "docker inspect --format={{.State.Running}} r1 | grep true");
    let report = assert_faithful(client);
    eprintln!("longest gap {:.0} ms", report.longest_gap_ms);
    redis.verify().expect("the data of the beginning");
    assert_eq!(redis.key_count().expect("a number"), keys);
    let record = scene.spothop("b", &["history", "--limit", "1"]).json[0].take();
    assert_eq!(record["outcome"], "moved", "{record:#}");
    // Nothing tells when the last process of another pid namespace has gone.
    while std::path::Path::new(&format!("/proc/{first}")).exists() {
        thread::sleep(Duration::from_millis(50));
    }
    scene.nothing_is_left("b", "r1", &["b"]);
}
