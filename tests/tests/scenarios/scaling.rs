//! A host of an Auto Scaling group, which waits by a lifecycle hook before it terminates it.

use std::net::TcpListener;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use spothop_tests::autoscaling::{Group, Imitation, State};
use spothop_tests::imds::ahead::lifecycle;
use spothop_tests::layout::CLIENT_ADDRESS;
use spothop_tests::testbed::instance_id;

use crate::notices::{CONFIGURATION, Foretold, calm};
use crate::provider::{AWS_UNIT, ask_there};
use crate::scene::{HOSTS, Scene};
use crate::targets::PutBack;

/// The shortest that AWS allows.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Long enough for everything here.
const PATIENCE: Duration = Duration::from_secs(90);

/// Host `a` as the instance of a group whose hook `drain` is spothop's, until this is dropped.
struct Grouped<'a> {
    group: Imitation,
    scene: &'a Scene,
    /// After the rest.
    _configuration: PutBack<'a>,
}

impl<'a> Grouped<'a> {
    fn of(scene: &'a Scene) -> Self {
        let listener = scene.on_client(|| TcpListener::bind((CLIENT_ADDRESS, 0)).expect("a port"));
        let listener = listener.join().expect("a listener");
        let group = Group { name: "spot".to_owned(), hook: "drain".to_owned(), timeout: TIMEOUT };
        let group = Imitation::start(listener, group, &instance_id(0)).expect("a group");
        let grouped = Self { _configuration: PutBack::later(scene, "a", CONFIGURATION), group, scene };
        ask_there(scene, "a", "AWS_ENDPOINT_URL_AUTO_SCALING", &grouped.group.endpoint());
        scene.sh("a", &format!("printf '\\n[notice.aws]\\nlifecycle_hook = \"drain\"\\n' >> {CONFIGURATION}"));
        scene.sh("a", "journalctl --rotate --quiet; journalctl --vacuum-time=1s --quiet");
        scene.restart_daemon("a");
        scene.eventually("a", "journalctl -u spothop | grep -q 'this host is aws '");
        grouped
    }
}

impl Drop for Grouped<'_> {
    fn drop(&mut self) {
        // A panic here, while another one is on its way, would hide the reason of both.
        let script = format!("rm -f {AWS_UNIT}; systemctl daemon-reload");
        if let Err(error) = self.scene.output("a", ["sh", "-ec", &script]) {
            eprintln!("a is not as it was: {error}");
        }
    }
}

/// `doctor`'s line about the hook.
fn examined(scene: &Scene) -> (String, String) {
    let answer = scene.spothop("a", &["doctor"]);
    let checks = answer.json["checks"].as_array().unwrap_or_else(|| panic!("{answer:?}"));
    let check = checks.iter().find(|check| check["subject"] == "lifecycle hook");
    let check = check.unwrap_or_else(|| panic!("{answer:?}"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&check["verdict"]), text(&check["finding"]))
}

pub(crate) fn a_group_waits_for_a_host_until_its_last_container_is_safe_and_no_longer(scene: &Scene) {
    let grouped = Grouped::of(scene);
    let group = &grouped.group;
    let ready = "drain of the group spot waits 30 s and can be held";
    assert_eq!(examined(scene), ("ok".to_owned(), ready.to_owned()));
    scene.run("a", "g1", "--network=lan --ip=172.30.0.60 python", &["sleep", "1000"]);
    // For now there is no host that would take it.
    scene.sh("b", "systemctl stop spothop");

    group.terminate();
    let foretold = Foretold::of(scene, lifecycle("Terminated"));

    // Without the first the hook would be over by the time of the third.
    let State { heartbeats, completed, .. } = group.wait_for(PATIENCE, |state| state.heartbeats.len() >= 3);
    assert!(heartbeats.len() >= 3 && completed.is_none(), "{heartbeats:?}, {completed:?}");
    scene.sh("b", "systemctl start spothop");
    let State { completed, .. } = group.wait_for(PATIENCE, |state| state.completed.is_some());
    let (at, result) = completed.expect("a completion");
    assert_eq!(result, "CONTINUE");
    let record = scene.spothop("b", &["history", "--limit", "1"]).json[0].take();
    let mut phases = record["phases"].as_array().into_iter().flatten();
    let runs = phases.find(|entry| entry["phase"] == "running").and_then(|entry| entry["at"].as_str());
    let runs: Timestamp = runs.and_then(|at| at.parse().ok()).unwrap_or_else(|| panic!("{record:#}"));
    assert!(at > runs, "completed at {at}, and it runs since {runs}");
    eprintln!("{} heartbeats; completed {} after it ran", group.state().heartbeats.len(), at.duration_since(runs));
    scene.nothing_is_left("b", "g1", &HOSTS);
    drop(foretold);
    calm(scene);
}

pub(crate) fn a_group_does_not_wait_for_what_can_never_be_moved(scene: &Scene) {
    let grouped = Grouped::of(scene);
    scene.run("a", "g2", "--label=io.spothop.migrate=never python", &["sleep", "1000"]);

    grouped.group.terminate();
    let foretold = Foretold::of(scene, lifecycle("Terminated"));

    scene.eventually("a", "journalctl -u spothop | grep -q 'this container stays for now.*g2'");
    assert!(grouped.group.state().completed.is_none(), "it is not safe");
    scene.sh("a", "docker rm -f g2");
    let State { heartbeats, completed, .. } = grouped.group.wait_for(PATIENCE, |state| state.completed.is_some());
    assert!(completed.is_some() && heartbeats.is_empty(), "{heartbeats:?}, {completed:?}");
    drop(foretold);
    calm(scene);
}
