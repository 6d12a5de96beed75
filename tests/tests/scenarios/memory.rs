//! Memory, in every way in which it can go over.

use crate::configured::Configured;
use crate::redis::{assert_faithful, under_load};
use crate::scene::{HOSTS, MOVED, Scene};

/// A tree of processes that writes to memory of every kind. USR1 lets it compare all of it; the exit code says whether it is right.
const EVERY_KIND: &str = include_str!("programs/memory.py");

pub(crate) fn every_way_of_memory_keeps_the_connection_and_every_acknowledged_write(scene: &Scene) {
    let ways = [
        ("mode = 'dump'", false),
        ("mode = 'stop-and-copy'\nrestore = 'eager'", false),
        ("mode = 'stop-and-copy'\nrestore = 'lazy'", false),
        ("tracking = 'content'\nrestore = 'eager'", true),
        ("tracking = 'content'\nrestore = 'lazy'\nmax_precopy_cpu = 0.5", true),
        ("tracking = 'write-protect'\nrestore = 'eager'", true),
    ];
    let (redis, client) = under_load(scene, 32);
    let keys = redis.key_count().expect("a number");
    let (mut from, mut to) = ("a", "b");
    for (table, in_rounds) in ways {
        let configured = Configured::memory(scene, table);
        let migration = scene.migrate(from, "r1", to);
        let phases = migration["phases"].as_array().expect("phases");
        assert_eq!(phases.iter().any(|entered| entered["phase"] == "pre-copy(1)"), in_rounds, "{table}: {migration:#}");
        redis.verify().expect("the data of the beginning");
        scene.nothing_is_left(to, "r1", &HOSTS);
        drop(configured);
        (from, to) = (to, from);
    }
    assert_faithful(client);
    assert_eq!(redis.key_count().expect("a number"), keys);
}

pub(crate) fn memory_of_every_kind_is_the_same_after_the_move_in_all_processes(scene: &Scene) {
    for (container, way) in [("m1", ""), ("m2", "restore = 'eager'")] {
        let configured = Configured::memory(scene, way);
        scene.run("a", container, "--network=lan --ip=172.30.0.61 python", &["python3", "-c", EVERY_KIND]);
        let mut logs = scene.follow("a", &format!("docker logs --follow {container}"));
        for _ in 0..3 {
            logs.until(|line| line == "ready");
        }

        scene.migrate("a", container, "b");
        scene.migrate("b", container, "a");

        scene.assert_ends_well("a", container);
        scene.sh("a", &format!("docker rm {container}"));
        drop(configured);
    }
}

/// Stands still between running and having all of its memory, and is told to move on at once.
pub(crate) fn a_container_that_is_still_being_filled_moves_on_only_when_it_is_whole(scene: &Scene) {
    let (redis, client) = under_load(scene, 64);
    let keys = redis.key_count().expect("a number");
    scene.sh("b", "echo 'target:pager:held stop' > /run/spothop/failpoint");
    scene.migrate("a", "r1", "b");
    scene.eventually("b", "test -e /run/spothop/failpoint.hit");

    let mut moving = scene.begin("b", "r1", "a");
    moving.until("planned");
    scene.eventually("b", "spothop status --json | grep -q planned");
    let phase = scene.sh("b", "spothop status --json | grep -o '\"phase\": *\"[a-z]*\"' | tail -1");
    assert!(phase.contains("planned"), "{phase}");
    scene.sh("b", "kill -CONT $(cat /run/spothop/failpoint.hit)");

    let (code, said) = moving.end();
    assert_eq!(code, MOVED, "{said}");
    redis.verify().expect("the data of the beginning");
    assert_faithful(client);
    assert_eq!(redis.key_count().expect("a number"), keys);
    scene.nothing_is_left("a", "r1", &HOSTS);
}
