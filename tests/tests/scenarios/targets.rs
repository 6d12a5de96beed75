//! Targets that will not do: the container goes on where it is, and the reason is precise.

use crate::redis::{assert_faithful, under_load};
use crate::scene::{ABORTED, Answer, REFUSED, Scene};

/// Asks for a migration that must be refused for each of these reasons, with the container and its connection untouched.
fn assert_refused(scene: &Scene, reasons: &[&str]) {
    let (_redis, client) = under_load(scene, 1);
    let answer = scene.spothop("a", &["migrate", "r1", "--to", "b"]);
    let text = said_by(&answer);
    assert_eq!(answer.code, REFUSED, "{text}");
    for reason in reasons {
        assert!(text.contains(reason), "{reason} is not in: {text}");
    }
    assert_faithful(client);
    scene.nothing_is_left("a", "r1", &["a", "b"]);
    assert_eq!(scene.inspect("a", "r1")["HostConfig"]["RestartPolicy"]["Name"], "always");
}

fn said_by(answer: &Answer) -> String {
    format!("{} {}", answer.json, answer.stderr)
}

/// Puts a file of host `b` back, and restarts its daemon, when a scenario is over.
struct PutBack<'a> {
    scene: &'a Scene,
    path: &'static str,
}

impl<'a> PutBack<'a> {
    fn later(scene: &'a Scene, path: &'static str) -> Self {
        scene.sh("b", &format!("rm -rf {path}.kept; cp -a {path} {path}.kept"));
        Self { scene, path }
    }
}

impl Drop for PutBack<'_> {
    fn drop(&mut self) {
        let path = self.path;
        // A panic here, while another one is on its way, would hide the reason of both.
        let script = format!("rm -rf {path}; mv {path}.kept {path}; systemctl restart spothop");
        if let Err(error) = self.scene.output("b", ["sh", "-ec", &script]) {
            eprintln!("b is not as it was: {error}");
        }
    }
}

pub(crate) fn a_target_without_memory_refuses_with_figures(scene: &Scene) {
    let _later = PutBack::later(scene, "/etc/spothop/config.toml");
    scene.sh("b", "printf '\\n[limits]\\nmemory_reserve = \"1TiB\"\\n' >> /etc/spothop/config.toml");
    scene.restart_daemon("b");
    assert_refused(scene, &["memory", "MiB"]);
}

pub(crate) fn a_certificate_of_another_authority_is_named_as_the_reason(scene: &Scene) {
    let _later = PutBack::later(scene, "/etc/spothop/tls");
    scene.sh(
        "b",
        "rm -rf /tmp/other; spothop cert init --dir /tmp/other; rm -r /etc/spothop/tls; \
         spothop cert issue b --dir /tmp/other --out /etc/spothop/tls",
    );
    scene.restart_daemon("b");
    let hosts = said_by(&scene.spothop("a", &["hosts"]));
    assert!(hosts.contains("UnknownIssuer") && hosts.contains("ca.pem"), "{hosts}");
    assert_refused(scene, &["UnknownIssuer", "ca.pem"]);
}

pub(crate) fn a_certificate_of_another_host_is_named_as_the_reason(scene: &Scene) {
    let _later = PutBack::later(scene, "/etc/spothop/tls");
    // Of the right authority, whose key is not on the hosts.
    scene.issue_certificate("mallory", "b");
    scene.restart_daemon("b");
    let hosts = said_by(&scene.spothop("a", &["hosts"]));
    assert!(hosts.contains("mallory"), "{hosts}");
    assert_refused(scene, &["mallory"]);
}

pub(crate) fn a_name_that_is_taken_at_the_target_is_left_alone(scene: &Scene) {
    let (_redis, client) = under_load(scene, 1);
    let theirs = scene.run("b", "r1", "python", &["sleep", "1000"]);
    let answer = scene.spothop("a", &["migrate", "r1", "--to", "b"]);
    assert_eq!(answer.code, ABORTED, "{answer:?}");
    let reason = answer.json["migrations"][0]["reason"].to_string();
    assert!(reason.contains("already has a container named r1"), "{reason}");
    assert_faithful(client);
    assert_eq!(scene.inspect("b", "r1")["Id"], theirs);
    scene.sh("b", "docker rm -f r1");
    scene.nothing_is_left("a", "r1", &["a", "b"]);
}
