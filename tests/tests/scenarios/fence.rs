//! A source that is gone before its target has heard the verdict: when the target may run what it holds, and when not.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use spothop_tests::imds::Action;

use crate::provider::cloud_over;
use crate::redis::{assert_faithful, under_load};
use crate::scene::{MOVED, REFUSED, Scene};

/// After its deadline the source gets this much longer (`migration::protocol::FENCE`).
const FENCE: SignedDuration = SignedDuration::from_secs(30);

/// Moves Redis from `a` to `b` and takes the power from `a` when `b` has restored it and `a` has not written COMMIT. Returns the
/// migration's id.
fn lose_source(scene: &mut Scene, begin: impl FnOnce(&Scene)) -> String {
    scene.sh("a", "echo 'source:restored stop' > /run/spothop/failpoint");
    begin(scene);
    scene.eventually("a", "test -e /run/spothop/failpoint.hit");
    scene.bed().power_off("a").expect("off");
    let open = scene.spothop("b", &["status"]).json["migrations"][0].take();
    assert_eq!(open["phase"], "restored", "{open:#}");
    open["id"].as_str().expect("an id").to_owned()
}

/// `spothop migrate`, which does not come to its end.
fn migrate(scene: &Scene) {
    scene.sh("a", "setsid spothop migrate r1 --to b > /dev/null 2>&1 &");
}

fn record(scene: &Scene, id: &str) -> Value {
    scene.spothop("b", &["status", id]).json
}

/// Waits until the container runs on `b` with its memory, in which there are `keys`, and nothing is left.
fn assert_runs_on_b(scene: &Scene, id: &str, keys: &str) {
    // A deadline and a margin take longer than anything that is waited for elsewhere.
    let over = format!("spothop status {id} --json | grep -q '\"phase\": *\"cleaned\"'");
    scene.sh("b", &format!("until {over}; do sleep 0.2; done"));
    assert_eq!(record(scene, id)["outcome"], "moved");
    assert_eq!(scene.sh("b", "docker exec r1 redis-cli dbsize"), keys);
    scene.nothing_is_left("b", "r1", &["b"]);
}

/// A Redis on `a` with some keys; returns their number. Its client has ended: it would not wait for as long as a fence takes.
fn redis(scene: &Scene) -> String {
    let (_, client) = under_load(scene, 4);
    assert_faithful(client);
    scene.sh("a", "docker exec r1 redis-cli dbsize")
}

pub(crate) fn past_a_clouds_deadline_and_a_margin_the_target_runs_without_its_source(_: &Scene) {
    let mut scene = Scene::up("e2e-fence-time");
    let keys = redis(&scene);
    let id = lose_source(&mut scene, |scene| {
        scene.notice("a", Action::Terminate, Duration::from_secs(15)).expect("a notice");
    });

    assert_runs_on_b(&scene, &id, &keys);
    let record = record(&scene, &id);
    let time = |value: &Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok()).expect("a time");
    let phases = record["phases"].as_array().expect("a list");
    let committed = phases.iter().find(|entry| entry["phase"] == "committed").expect("a verdict");
    assert!(time(&committed["at"]).duration_since(time(&record["deadline"])) > FENCE, "{record:#}");
}

pub(crate) fn the_target_runs_when_the_cloud_says_that_the_source_is_gone(_: &Scene) {
    let mut scene = Scene::up("e2e-fence-cloud");
    let keys = redis(&scene);
    let (moto, [source, _]) = cloud_over(&scene);
    let id = lose_source(&mut scene, migrate);
    // Without a deadline only somebody's word helps: `a` may be behind a broken link.
    assert_eq!(record(&scene, &id)["phase"], "restored");

    moto.terminate(&source).expect("the end of an instance");

    assert_runs_on_b(&scene, &id, &keys);
    let log = scene.sh("b", "journalctl -u spothop -b");
    assert!(log.contains("gone for good") && log.contains("terminated"), "{log}");
}

pub(crate) fn a_person_ends_a_migration_by_hand_whose_source_is_gone_for_good(_: &Scene) {
    let mut scene = Scene::up("e2e-fence-person");
    let keys = redis(&scene);
    let id = lose_source(&mut scene, migrate);

    // It shows what it knows first, and does nothing.
    let shown = scene.spothop("b", &["resolve", &id]);
    assert_eq!(shown.code, MOVED, "{shown:?}");
    assert!(shown.json["unreachable"].is_string(), "{shown:?}");
    assert_eq!(record(&scene, &id)["phase"], "restored");

    let resolved = scene.spothop("b", &["resolve", &id, "--here"]);

    assert_eq!(resolved.code, MOVED, "{resolved:?}");
    assert_runs_on_b(&scene, &id, &keys);
    let again = scene.spothop("b", &["resolve", &id, "--there"]);
    assert_eq!(again.code, REFUSED, "{again:?}");
}
