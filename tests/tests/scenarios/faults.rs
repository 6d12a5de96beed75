//! Failures before COMMIT, of every kind: the container goes on at the source with its connection, and nothing is left behind.

use spothop_tests::switch::Direction;

use crate::redis::{assert_faithful, under_load};
use crate::scene::{ABORTED, Scene};

/// Enough memory that there is time for something to happen between freeze and restore, in MiB.
const MUCH: u64 = 192;

/// The container is where it was, as it was.
fn assert_unharmed(scene: &Scene, hosts: &[&str]) {
    scene.nothing_is_left("a", "r1", hosts);
    let inspect = scene.inspect("a", "r1");
    assert_eq!(inspect["State"]["Running"], true);
    assert_eq!(inspect["HostConfig"]["RestartPolicy"]["Name"], "always");
    assert_eq!(inspect["RestartCount"], 0);
}

/// What `spothop status ID --log` prints on a host, once the migration is over there.
fn criu_log(scene: &Scene, host: &str, migration: &serde_json::Value) -> String {
    let id = migration["id"].as_str().expect("an id");
    scene.eventually(host, &format!("spothop status {id} --json | grep -q 'logs/{id}[.].*[.]zst'"));
    scene.sh(host, &format!("spothop status {id} --log"))
}

/// Lets the daemon of `host` fail at a phase.
fn fails_at(scene: &Scene, host: &str, phase: &str) {
    let (redis, client) = under_load(scene, 4);
    scene.sh(host, &format!("echo '{phase} error' > /run/spothop/failpoint"));
    let mut answer = scene.spothop("a", &["migrate", "r1", "--to", "b"]);

    let migration = answer.json["migrations"][0].take();
    assert_eq!(answer.code, ABORTED, "{answer:?}");
    assert_eq!(migration["outcome"], "aborted", "{migration:#}");
    let reason = migration["reason"].to_string();
    assert!(reason.contains("injected"), "{reason}");
    assert!(criu_log(scene, "a", &migration).contains("Dumping processes"));
    assert_unharmed(scene, &["a", "b"]);
    assert_faithful(client);
    redis.verify().expect("the data of the beginning");
    // And it can be tried again.
    let moved = scene.migrate("a", "r1", "b");
    assert!(criu_log(scene, "b", &moved).contains("Restore finished successfully"));
}

pub(crate) fn a_failure_at_the_source_after_the_transfer_leaves_the_container_where_it_was(scene: &Scene) {
    fails_at(scene, "a", "source:transferred");
}

pub(crate) fn a_failure_at_the_source_after_the_restore_leaves_the_container_where_it_was(scene: &Scene) {
    fails_at(scene, "a", "source:restored");
}

pub(crate) fn a_failure_at_the_target_after_the_restore_leaves_the_container_where_it_was(scene: &Scene) {
    fails_at(scene, "b", "target:restored");
}

pub(crate) fn a_target_daemon_killed_before_commit_leaves_the_container_where_it_was(scene: &Scene) {
    let (redis, client) = under_load(scene, MUCH);
    let pid = scene.sh("b", "systemctl show --property=MainPID --value spothop");
    let mut moving = scene.begin("a", "r1", "b");
    moving.until("frozen");
    scene.sh("b", &format!("kill -KILL {pid}"));

    let (code, said) = moving.end();

    assert_eq!(code, ABORTED, "{said}");
    assert_unharmed(scene, &["a", "b"]);
    assert_faithful(client);
    redis.verify().expect("the data of the beginning");
}

pub(crate) fn a_source_daemon_killed_before_commit_leaves_the_container_where_it_was(scene: &Scene) {
    let (redis, client) = under_load(scene, MUCH);
    let pid = scene.sh("a", "systemctl show --property=MainPID --value spothop");
    let mut moving = scene.begin("a", "r1", "b");
    moving.until("frozen");
    scene.sh("a", &format!("kill -KILL {pid}"));

    // The command line waits for the daemon that systemd starts again.
    let (code, said) = moving.end();

    assert_eq!(code, ABORTED, "{said}");
    assert_unharmed(scene, &["a", "b"]);
    assert_faithful(client);
    redis.verify().expect("the data of the beginning");
}

pub(crate) fn a_target_cut_off_before_commit_leaves_the_container_where_it_was(scene: &Scene) {
    let (redis, client) = under_load(scene, MUCH);
    let mut moving = scene.begin("a", "r1", "b");
    moving.until("frozen");
    scene.cut("b", Direction::Both).expect("a cut");

    let (code, said) = moving.end();

    assert_eq!(code, ABORTED, "{said}");
    assert_unharmed(scene, &["a"]);
    let report = assert_faithful(client);
    eprintln!("frozen for at most {:.0} ms", report.longest_gap_ms);
    scene.heal("b").expect("a link");
    assert_unharmed(scene, &["a", "b"]);
    redis.verify().expect("the data of the beginning");
}

pub(crate) fn a_target_that_loses_its_power_before_commit_leaves_the_container_where_it_was(_: &Scene) {
    let mut scene = Scene::up("e2e-powerless");
    let (_, client) = under_load(&scene, MUCH);
    let mut moving = scene.begin("a", "r1", "b");
    moving.until("frozen");
    scene.bed().power_off("b").expect("off");

    let (code, said) = moving.end();

    assert_eq!(code, ABORTED, "{said}");
    assert_unharmed(&scene, &["a"]);
    assert_faithful(client);
}
