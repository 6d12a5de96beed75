//! Redis under load: a client on one TCP connection that checks every reply and remembers every acknowledged write.

use std::net::Ipv4Addr;
use std::time::Duration;

use spothop_tests::events::{Events, Kind};
use spothop_tests::imds::Action;
use spothop_tests::redis::live;
use spothop_tests::scenario::{LiveClient, Redis};

use crate::scene::Scene;

/// The container's address, the same on both hosts.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 50);

/// A Redis container `r1` on host `a` with that many MiB in it, and a client that talks to it.
pub(crate) fn under_load(scene: &Scene, mib: u64) -> (Redis<'_>, LiveClient) {
    let (redis, _) = Redis::start(scene, "a", "r1", ADDRESS, mib).expect("a Redis with data");
    // The policy that would start it again as soon as its process ends.
    scene.sh("a", "docker update --restart=always r1");
    let client = redis.talk(false).expect("a client");
    (redis, client)
}

/// The client's connection lived to the end, and no acknowledged write is lost.
pub(crate) fn assert_faithful(client: LiveClient) -> live::Report {
    let report = client.stop().expect("a client on its first connection");
    assert_eq!((report.connections, report.lost_writes), (1, 0), "{report:?}");
    report
}

pub(crate) fn a_notice_moves_redis_under_load_with_its_connection_and_every_acknowledged_write(scene: &Scene) {
    let (redis, client) = under_load(scene, 64);
    let keys = redis.key_count().expect("a number");
    let mut events = Events::follow(scene, "a").expect("a stream of events");

    scene.notice("a", Action::Terminate, Duration::from_secs(120)).expect("a notice");

    let end = events.find_map(|event| match event.expect("an event").kind {
        Kind::Finished { outcome, reason } => Some((outcome, reason)),
        _ => None,
    });
    assert_eq!(end, Some(("moved".to_owned(), None)));
    let report = assert_faithful(client);
    eprintln!("longest gap {:.0} ms", report.longest_gap_ms);
    redis.verify().expect("the data of the beginning");
    assert_eq!(redis.key_count().expect("a number"), keys);
    scene.nothing_is_left("b", "r1", &["a", "b"]);
    // Taken back, so that this host takes containers again.
    scene.cancel_notice("a").expect("a cancellation");
    scene.eventually("a", "spothop status --json | tr -d ' \\n' | grep -q '\"notices\":\\[\\]'");
}

pub(crate) fn a_connection_lives_through_a_move_and_the_move_back(scene: &Scene) {
    let (redis, client) = under_load(scene, 16);
    let keys = redis.key_count().expect("a number");
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "b")] {
        scene.migrate(from, "r1", to);
        scene.nothing_is_left(to, "r1", &["a", "b"]);
    }
    assert_faithful(client);
    redis.verify().expect("the data of the beginning");
    assert_eq!(redis.key_count().expect("a number"), keys);
}

pub(crate) fn a_moved_container_that_is_restarted_starts_in_the_ordinary_way(scene: &Scene) {
    let (redis, client) = under_load(scene, 1);
    scene.migrate("a", "r1", "b");
    assert_faithful(client);

    scene.sh("b", "docker restart r1");

    scene.eventually("b", "docker exec r1 redis-cli ping | grep PONG");
    let client = redis.talk(true).expect("a new client");
    client.stop().expect("an answer");
    let keys = redis.key_count().expect("a number");
    assert_eq!(keys, 1000, "only the new client's: memory does not outlive an ordinary start");
    scene.nothing_is_left("b", "r1", &["a", "b"]);
}

pub(crate) fn the_restart_policy_acts_again_after_the_move(scene: &Scene) {
    let (_redis, client) = under_load(scene, 1);
    scene.migrate("a", "r1", "b");
    assert_faithful(client);
    let before = scene.inspect("b", "r1")["State"]["Pid"].clone();

    // The process ends by itself; Docker starts it again.
    scene.sh("b", "docker exec r1 redis-cli shutdown nosave || true");

    scene.eventually("b", "docker exec r1 redis-cli ping | grep PONG");
    assert_ne!(scene.inspect("b", "r1")["State"]["Pid"], before);
    assert_eq!(scene.sh("b", "docker exec r1 redis-cli dbsize"), "0");
    // And when the engine itself comes back.
    scene.sh("b", "systemctl restart docker");
    scene.eventually("b", "docker exec r1 redis-cli ping | grep PONG");
    scene.migrate("b", "r1", "a");
    scene.nothing_is_left("a", "r1", &["a", "b"]);
}
