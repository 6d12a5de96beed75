//! `spothop doctor` finds what migrations may leave behind, and says how to get rid of it.

use serde_json::Value;

use crate::scene::Scene;

/// Of a migration that no journal knows.
const MIGRATION: &str = "019b76da-a800-7000-8000-0123456789ab";
const OTHER: &str = "019b76da-a800-7000-8000-0123456789ac";

/// The leftovers that doctor tells of, as finding and advice.
fn leftovers(scene: &Scene) -> Vec<(String, String)> {
    let answer = scene.spothop("b", &["doctor"]);
    let checks = answer.json["checks"].as_array().unwrap_or_else(|| panic!("{answer:?}")).clone();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ours = checks.iter().filter(|check| check["subject"] == "leftovers");
    ours.map(|check| (text(&check["finding"]), text(&check["advice"]))).collect()
}

pub(crate) fn every_kind_of_leftover_is_found_and_its_command_removes_it(scene: &Scene) {
    scene.run("b", "cutoff", "--network lan --ip 172.30.0.61 python", &["sleep", "1000"]);
    scene.run("b", "still", "python", &["sleep", "1000"]);
    assert_eq!(leftovers(scene), [("none of migrations that are over".to_owned(), String::new())]);

    let pid = |name: &str| scene.sh("b", &format!("docker inspect --format='{{{{.State.Pid}}}}' {name}"));
    let (cutoff, still) = (pid("cutoff"), pid("still"));
    scene.sh(
        "b",
        &format!(
            "nft add table inet spothop
             nsenter --net=/proc/{cutoff}/ns/net nft add table netdev spothop
             echo 1 > /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/{still}/cgroup)/cgroup.freeze
             ip netns add spothop-0123456789ab
             mkdir -p /run/spothop/dump/{MIGRATION}/images /run/spothop/restore/{MIGRATION}/work
             mount -t tmpfs -o size=64k spothop /run/spothop/dump/{MIGRATION}/images
             mkdir /run/spothop/restore/{OTHER}
             touch /run/spothop/restore/{OTHER}/criu.conf
             mkdir -p /var/lib/spothop/pending
             touch /var/lib/spothop/pending/{MIGRATION}
             docker create --annotation io.spothop.migration={MIGRATION} --name half python true"
        ),
    );

    let found = leftovers(scene);
    let wanted = [
        "table `inet spothop` in the host's network",
        "table `netdev spothop` in the network of container cutoff",
        "container still stands still",
        "network namespace spothop-0123456789ab",
        "the mount /run/spothop/dump/",
        "the directory /run/spothop/dump/",
        "the directory /run/spothop/restore/",
        "the empty /run/spothop/restore/",
        "the marker /var/lib/spothop/pending/",
        "the half-made container half",
    ];
    for what in wanted {
        assert!(found.iter().any(|(finding, _)| finding.contains(what)), "{what} is not in {found:#?}");
    }
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
    assert_eq!(scene.spothop("b", &["doctor"]).code, 1, "a container that stands still is a failure");

    // In their order, as a person would; a condition stands before a colon.
    for (finding, advice) in &found {
        let command = advice.rsplit(": ").next().expect("a command");
        eprintln!("{finding}\n    -> {command}");
        scene.sh("b", command);
    }
    assert_eq!(leftovers(scene), [("none of migrations that are over".to_owned(), String::new())]);
    scene.sh("b", "docker exec still sleep 0");
}

pub(crate) fn a_migration_leaves_nothing_for_doctor_to_find(scene: &Scene) {
    scene.run("a", "passer", "--network lan --ip 172.30.0.62 python", &["sleep", "1000"]);
    scene.migrate("a", "passer", "b");
    scene.nothing_is_left("b", "passer", &["a", "b"]);
    assert_eq!(leftovers(scene), [("none of migrations that are over".to_owned(), String::new())]);
}
