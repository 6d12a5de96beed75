//! Containers that cannot be moved: said before it matters, refused without being touched.

use serde_json::Value;

use crate::scene::{REFUSED, Scene};

/// Sets up an io_uring (system call 425) and keeps it.
const IO_URING: &str = include_str!("programs/io_uring.py");

/// A unix listener that does not accept, and an unconnected socket of multipath TCP.
const BACKLOG: &str = include_str!("programs/backlog.py");
const MULTIPATH: &str = include_str!("programs/multipath.py");

const SLEEP: &[&str] = &["sleep", "1000"];

pub(crate) fn what_cannot_be_moved_is_shown_with_its_reason_before_any_notice(scene: &Scene) {
    scene.sh("a", "mkdir -p /srv/data");
    scene.run("a", "ring", "--security-opt=seccomp=unconfined python", &["python3", "-c", IO_URING]);
    let said = scene.follow("a", "docker logs --follow ring").until(|_| true);
    assert_eq!(said, "ring", "this machine has no io_uring to try with");
    for (name, program) in [("backlog", BACKLOG), ("multipath", MULTIPATH)] {
        scene.run("a", name, "python", &["python3", "-c", program]);
        let said = scene.follow("a", &format!("docker logs --follow {name} 2>&1")).until(|_| true);
        assert_eq!(said, "ready", "{name}");
    }
    let cases: &[(&str, &str, &[&str])] = &[
        ("ring", "", &["io_uring"]),
        ("backlog", "", &["does not accept", "unix socket"]),
        ("multipath", "", &["multipath TCP"]),
        ("hostpid", "--pid=host", &["pid namespace"]),
        ("device", "--device=/dev/net/tun", &["/dev/net/tun"]),
        ("bound", "--volume=/srv/data:/data", &["/srv/data", "io.spothop.mount./data=shared"]),
        ("boss", "--privileged", &["privileged"]),
        ("never", "--label=io.spothop.migrate=never", &["io.spothop.migrate=never"]),
    ];
    for (name, options, _) in &cases[3..] {
        scene.run("a", name, &format!("{options} python"), SLEEP);
    }
    scene.run("a", "fine", "python", SLEEP);

    let doctor = scene.spothop("a", &["doctor"]).json;
    let checks = doctor["checks"].as_array().expect("a list of checks");
    let finding = |name: &str| checks.iter().find(|check| check["subject"] == format!("container {name}"));
    for (name, _, reasons) in cases {
        let listed = scene.listed("a", name)["obstacles"].to_string();
        let check = finding(name).unwrap_or_else(|| panic!("doctor says nothing of {name}: {doctor:#}"));
        assert_eq!(check["verdict"], "warning", "{check:#}");
        let pid = scene.sh("a", &format!("docker inspect --format={{{{.State.Pid}}}} {name}"));
        let answer = scene.spothop("a", &["migrate", name, "--to", "b"]);
        assert_eq!(answer.code, REFUSED, "{name}: {answer:?}");
        for reason in *reasons {
            for (place, text) in
                [("ps", listed.clone()), ("doctor", check["finding"].to_string()), ("migrate", said_by(&answer))]
            {
                assert!(text.contains(reason), "{place} does not name {reason} for {name}: {text}");
            }
        }
        assert_eq!(
            scene.sh("a", &format!("docker inspect --format={{{{.State.Pid}}}} {name}")),
            pid,
            "{name} was touched"
        );
    }
    assert_eq!(scene.listed("a", "fine")["obstacles"], Value::Array(vec![]));
    assert_eq!(finding("fine"), None);
    assert_eq!(scene.sh("b", "docker ps -aq"), "", "something was begun on b");
}

/// Everything that a command said, whichever way.
fn said_by(answer: &crate::scene::Answer) -> String {
    format!("{} {}", answer.json, answer.stderr)
}

pub(crate) fn a_bind_mount_moves_when_its_label_says_that_it_is_shared(scene: &Scene) {
    for host in ["a", "b"] {
        scene.sh(host, &format!("mkdir -p /srv/shared; echo {host} > /srv/shared/where"));
    }
    let options =
        "--volume=/srv/shared:/data --label=io.spothop.mount./data=shared --network=lan --ip=172.30.0.56 python";
    scene.run("a", "s1", options, SLEEP);
    assert_eq!(scene.listed("a", "s1")["obstacles"], Value::Array(vec![]));

    scene.migrate("a", "s1", "b");

    assert_eq!(scene.sh("b", "docker exec s1 cat /data/where"), "b");
    assert_eq!(scene.sh("a", "cat /srv/shared/where"), "a");
}
